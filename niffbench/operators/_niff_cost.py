"""Closed forms of NIFF's layers: what each form does, part by part, forward and backward.

FLOPs follow the formulas of NIFF's cost table and are exact; so are the bytes, but for a few numbers, unless there
is but one channel, where torch takes other ways than stated here. A leaf's gradient may be put in order as well,
which is not the form's.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType

from niffbench.case import Problem
from niffbench.cost.closed import NOTHING, Work, bilinear
from niffbench.cost.parts import Transform, batch_sum, casts, compute_bytes, contraction, spectral_product
from niffbench.niff.catalogue import HIDDEN_WIDTHS, form_of, settled
from niffbench.niff.pieces import images_at_once

Pair = tuple[Work, Work]
Parts = dict[str, Pair]
"""Step → forward and backward, in the order of the forward pass."""
FormParts = Callable[["Layer"], Parts]


@dataclass(frozen=True)
class Layer:
    """One layer on one problem; ``mlp`` is None for a layer without a filter, ``layout`` is its images'."""

    problem: Problem
    kind: str
    mlp: str | None
    layout: str = "nchw"

    @property
    def transform(self) -> Transform:
        """The layer's FFTs: of the image's own size, in at least float32."""
        return Transform(self.problem.height, self.problem.width, compute_bytes(self.problem))

    @property
    def real(self) -> int:
        """Bytes of a real number."""
        return self.transform.real

    @property
    def into(self) -> int:
        """Images that come in."""
        return self.problem.batch * self.problem.channels

    @property
    def out(self) -> int:
        """Images that go out."""
        return self.problem.batch * self.problem.channels_out

    @property
    def maps_channels(self) -> bool:
        """Whether a real linear map over the channels is part of it."""
        return self.kind in ("pointwise", "split")

    @property
    def planes(self) -> int:
        """Planes of the frequency filter."""
        p = self.problem
        return p.channels * p.channels_out if self.kind == "full" else p.channels

    @property
    def widths(self) -> tuple[int, ...]:
        """Widths of the filter MLP's layers, input and output included; none without a filter."""
        return () if self.mlp is None else (2, *HIDDEN_WIDTHS[self.mlp], self.planes)

    @property
    def mapping(self) -> int:
        """Learnable scalars of the linear map alone."""
        return self.problem.channels * self.problem.channels_out if self.maps_channels else 0

    @property
    def parameters(self) -> int:
        """Learnable scalars: two MLPs with biases, and the linear map."""
        return self.mapping + 2 * sum(a * b + b for a, b in itertools.pairwise(self.widths))

    @property
    def casts(self) -> Pair:
        """Half precision to float32 and back."""
        return casts(self.problem, self.parameters)


def published(layer: Layer) -> Parts:
    """As the original: a complex FFT of real data, rolls along four dimensions, a filter made in every call."""
    transform = layer.transform
    parts: Parts = {"cast": layer.casts}
    if layer.mlp is not None:
        parts["filter generation"] = published_generation(layer)
    parts["forward fft"] = complex_fft(layer)
    if layer.mlp is not None:
        # Each way forward and back, a pass a dimension; the way back of split moves the channels that go out.
        rolls = Work(0, 8 * transform.full_spectra(layer.into + layer.out))
        parts["shift"] = (rolls, rolls)
    parts |= filtering(layer, transform.points, batched=True)
    if layer.maps_channels:
        parts["mixing"] = published_map(layer)
    return parts | complex_ifft(layer)


def fft(layer: Layer) -> Parts:
    """Complex FFTs, nothing to shift."""
    parts: Parts = {"cast": layer.casts}
    if layer.mlp is not None:
        parts["filter generation"] = plane_generation(layer)
    parts["forward fft"] = complex_fft(layer)
    parts |= filtering(layer, layer.transform.points)
    if layer.maps_channels:
        parts["mixing"] = spectrum_map(layer, layer.transform.points)
    return parts | complex_ifft(layer)


def rfft(layer: Layer) -> Parts:
    """Real FFTs and half planes throughout."""
    transform = layer.transform
    parts: Parts = {"cast": layer.casts}
    if layer.mlp is not None:
        parts["filter generation"] = half_generation(layer)
    parts["forward fft"] = (transform.r2c(layer.into), transform.r2c_backward(layer.into))
    parts |= filtering(layer, transform.half)
    if layer.maps_channels:
        parts["mixing"] = spectrum_map(layer, transform.half)
    parts["inverse fft"] = (transform.c2r(layer.out), transform.c2r_backward(layer.out))
    return parts


def cached(layer: Layer) -> Parts:
    """As rfft; where no gradient is wanted the filter is at hand, of full layers as one matrix a frequency."""
    parts = kept(rfft)(layer)
    transform, p = layer.transform, layer.problem
    if layer.kind == "full" and p.channels == 1:
        # Over one channel torch.einsum would multiply. This is a product of matrices, as over several channels.
        parts["mixing"] = matrix_products(p, transform.half, transform.complex)
        forward, backward = parts["filter generation"]
        ordering = Work(0, 2 * transform.spectra(layer.planes) * (p.channels_out > 1))
        parts["filter generation"] = forward, backward + ordering
    return parts


def factored(layer: Layer) -> Parts:
    """A full layer without its filter: one real matrix contracts the channels' spectra times each feature."""
    transform = layer.transform
    there, back = transform.r2c(layer.into), transform.c2r(layer.out, scaled=False)
    outer, inner = transform.r2c(layer.out), transform.c2r(layer.into, scaled=False)
    return {
        "cast": layer.casts,
        "filter generation": factor_generation(layer),
        "forward fft": (there, outer),
        "mixing": factored_mixing(layer),
        "inverse fft": (back, inner),
    }


def elided(layer: Layer) -> Parts:
    """The linear map as an ordinary 1×1 convolution; for split, after the depthwise layer as rfft."""
    p = layer.problem
    # A pointwise layer has nothing to transform, and so nothing to cast up.
    real = p.element_bytes if layer.kind == "pointwise" else layer.real
    pixels = p.height * p.width
    weights = p.channels * p.channels_out
    mixing = bilinear(
        2 * layer.into * p.channels_out * pixels,
        layer.into * pixels * real,
        weights * real,
        layer.out * pixels * real,
    )
    if layer.kind == "pointwise":
        # Channels are taken to the end of several images by a copy, unless they are there.
        moved = p.batch > 1 and p.channels > 1 and p.memory_format == "contiguous" and layer.layout == "nhwc"
        forward, backward = mixing
        return {"mixing": (forward + Work(0, 2 * layer.into * pixels * real * moved), backward)}
    within = Problem(p.batch, p.channels, p.channels, p.height, p.width, p.dtype, p.memory_format, p.mode)
    return rfft(Layer(within, "depthwise", layer.mlp)) | {"cast": layer.casts, "mixing": mixing}


def fused(layer: Layer) -> Parts:
    """Real FFTs, unscaled, and the product in place; backward real FFTs too, the image's spectrum kept for it."""
    transform, p = layer.transform, layer.problem
    once, back = transform.r2c(layer.into), transform.c2r(layer.into, scaled=False)
    forward, _ = spectral_product(p.batch, p.channels, transform.half, transform.complex)
    spectra, filters = transform.spectra(layer.into), transform.spectra(layer.planes)
    # The image's spectrum conjugated, times the gradient's, summed; then twice the columns that stand for two.
    for_filter = Work(6 * layer.into * transform.half, 5 * spectra)
    if p.batch > 1:
        for_filter += batch_sum(p.batch, layer.planes * transform.half, transform.complex)
    else:  # a sum over one image, which is a copy
        for_filter += Work(0, 2 * filters)
    doubled = Work(0, 2 * layer.planes * p.height * ((p.width - 1) // 2) * transform.complex)
    for_image = Work(6 * layer.into * transform.half, 3 * filters + 2 * spectra)
    return {
        "cast": layer.casts,
        "filter generation": lean_generation(layer),
        "forward fft": (once, once),
        "product": (forward, for_filter + doubled + for_image),
        "inverse fft": (back, back),
    }


def dft(layer: Layer) -> Parts:
    """Products with constant matrices instead of FFTs: of small images at once, of others by rows and columns."""
    transform, p = layer.transform, layer.problem
    planes, points, half, columns = layer.into, transform.points, transform.half, p.width // 2 + 1
    if points <= 256:
        there = _matrix(planes, points, 2 * half)
        back = _matrix(planes, 2 * half, points)
    else:
        rows = _matrix(planes * p.height, p.width, 2 * columns)
        down = _matrix(planes * columns, 2 * p.height, 2 * p.height)
        there = back = rows + down
    there, back = _sized(there, layer.real), _sized(back, layer.real)
    forward, backward = spectral_product(p.batch, p.channels, half, transform.complex)
    # Rows of pixels are taken from several images with channels last by a copy.
    gathered = p.batch > 1 and p.channels > 1 and p.memory_format == "channels_last"
    gathering = Work(0, 2 * transform.images(planes) * gathered)
    # Rows and columns change places in what comes out of the second product, and is put in order.
    ordering = 2 * transform.spectra(planes) if points > 256 else 0
    return {
        "cast": layer.casts,
        "filter generation": lean_generation(layer),
        "forward fft": (gathering + there, there),
        "product": (forward, backward + Work(0, 2 * transform.spectra(layer.planes) if points > 256 else 0)),
        "inverse fft": (back, back + Work(0, ordering)),
    }


def native(layer: Layer) -> Parts:
    """One pass over each image; backward one over image and gradient, with the image's spectrum made again."""
    transform, p = layer.transform, layer.problem
    images, filters = transform.images(layer.into), transform.spectra(layer.planes)
    product = 6 * layer.into * transform.half
    fft = transform.r2c(layer.into).flops
    added = batch_sum(p.batch, layer.planes * transform.half, transform.complex).flops
    forward = Work(2 * fft + product, 2 * images + filters)
    backward = Work(3 * fft + 2 * product + added, 3 * images + 2 * filters)
    return {
        "cast": layer.casts,
        "filter generation": lean_generation(layer),
        "convolution": (forward, backward),
    }


def then_mixed(engine: FormParts) -> FormParts:
    """The closed form of ``engine``, and for split of the 1×1 convolution that follows."""

    def parts(layer: Layer) -> Parts:
        if not layer.maps_channels:
            return engine(layer)
        within = replace(layer.problem, channels_out=layer.problem.channels)
        found = engine(Layer(within, "depthwise", layer.mlp))
        return found | {"cast": layer.casts, "mixing": elided(layer)["mixing"]}

    return parts


def auto(form: FormParts) -> FormParts:
    """The closed form of auto where it does as ``form``: its transforms and its product are one step.

    A full layer's product is the mixing of its channels; other layers mix theirs afterwards.
    """

    def parts(layer: Layer) -> Parts:
        found: Parts = {}
        product = "mixing" if layer.kind == "full" else "product"
        for name, (forward, backward) in form(layer).items():
            whole = "convolution" if name in ("forward fft", product, "inverse fft") else name
            there, back = found.get(whole, (NOTHING, NOTHING))
            found[whole] = (there + forward, back + backward)
        return found

    return parts


def kept(form: FormParts, *, copied: bool = True) -> FormParts:
    """The closed form of ``form`` with what it makes of the weights kept: at hand where no gradient is wanted.

    ``copied``: elsewhere it is copied all the same, out of the view that it is, as if it were to be kept.
    """

    def parts(layer: Layer) -> Parts:
        found = form(layer)
        generation, backward = found["filter generation"]
        if layer.problem.mode == "inference":
            return found | {"filter generation": (NOTHING, NOTHING), "cast": casts(layer.problem, layer.mapping)}
        copying = Work(0, 2 * layer.transform.spectra(layer.planes) * copied)
        return found | {"filter generation": (generation + copying, backward)}

    return parts


ENGINE_PARTS: Mapping[str, FormParts] = MappingProxyType(
    {engine: then_mixed(parts) for engine, parts in {"fused": fused, "dft": dft, "native": native}.items()}
)
"""Engine → the closed form of a layer that it executes."""

FORM_PARTS: Mapping[str, FormParts] = MappingProxyType(
    {
        "published": published,
        "fft": fft,
        "rfft": rfft,
        "cached": cached,
        "elided": elided,
        "factored": factored,
        "factored-cached": kept(factored, copied=False),
        **ENGINE_PARTS,
        **{f"{engine}-cached": kept(parts) for engine, parts in ENGINE_PARTS.items()},
    }
)
"""Form → its closed form, but for those of ``auto``."""


def form_parts(kind: str, form: str, engine: str | None) -> FormParts:
    """The closed form of one form of a kind of layer; of an ``auto`` that chose ``engine``, where one is given.

    While auto has chosen nothing it is as fused, of full layers as rfft: a figure that depends on no machine.
    """
    if form_of(kind, form).engine != "auto":
        return FORM_PARTS[form]
    unmeasured = "rfft" if kind == "full" else "fused"
    return auto(FORM_PARTS[settled(kind, form, engine or unmeasured)])


def complex_fft(layer: Layer) -> Pair:
    """A complex FFT of real images, the copy that makes them complex included; backward the inverse, unscaled."""
    transform = layer.transform
    once = transform.c2c(layer.into)
    return transform.widen(layer.into) + once, once


def complex_ifft(layer: Layer) -> Parts:
    """The complex inverse FFT and its real part, a view; backward spreads the gradient over zeros."""
    transform = layer.transform
    once = transform.c2c(layer.out, scaled=True)
    spread = Work(0, transform.images(layer.out) + transform.full_spectra(layer.out))
    return {"inverse fft": (once, once), "real part": (NOTHING, spread)}


def filtering(layer: Layer, points: int, *, batched: bool = False) -> Parts:
    """The spectrum times the filter, ``points`` frequencies a plane, by channel or contracted over channels."""
    p, number = layer.problem, layer.transform.complex
    if layer.kind == "full":
        return {"mixing": contraction(p, points, number)}
    if layer.mlp is None:
        return {}
    return {"product": spectral_product(p.batch, p.channels, points, number, batched=batched)}


def published_map(layer: Layer) -> Pair:
    """The linear map on real and on imaginary parts: each copied with channels last, multiplied, put together.

    Of a single image channels last is a view, and no copy; so it is of images of a single channel.
    """
    p, pixels = layer.problem, layer.transform.points
    into, out = (planes * pixels * layer.real for planes in (layer.into, layer.out))
    flops = 2 * layer.into * p.channels_out * pixels
    forward, backward = bilinear(flops, into, p.channels * p.channels_out * layer.real, out)
    several = p.batch > 1
    copies, joining = Work(0, 2 * into * (several and p.channels > 1)), Work(0, 4 * out)
    # Backward each gradient is copied likewise, and both gradients of the spectrum are spread and added.
    gathering = Work(0, 2 * out * (several and p.channels_out > 1) + 3 * into)
    adding = Work(0, 6 * into + 3 * p.channels * p.channels_out * layer.real)
    return 2 * (copies + forward) + joining, 2 * (gathering + backward) + adding


def spectrum_map(layer: Layer, points: int) -> Pair:
    """The linear map as one real product on the stored numbers, copied with channels last and back.

    Of a single image channels last is a view, and the way there, and backward both ways, no copy; of a single
    channel no way is one. Where weights ask for no gradient, as cast ones in inference, ``torch.matmul`` takes
    images one by one and copies nothing. With layout ``nhwc`` it is ``torch.einsum``: backward, of a single image
    too, the gradient that comes is copied twice; over a single channel, products are written down to be summed.
    """
    p = layer.problem
    into, out = (planes * 2 * points * layer.real for planes in (layer.into, layer.out))
    flops = 4 * layer.into * p.channels_out * points
    forward, backward = bilinear(flops, into, p.channels * p.channels_out * layer.real, out)
    if layer.layout == "nhwc" and p.channels == 1:
        # torch.einsum over one channel multiplies, with nothing to add; nor has backward, if one channel goes out.
        forward = replace(forward, flops=forward.flops - flops // 2)
        backward = replace(backward, flops=backward.flops - (flops // 2 if p.channels_out == 1 else 0))
    there, back = Work(0, 2 * into * (p.channels > 1)), Work(0, 2 * out * (p.channels_out > 1))
    if p.mode == "inference" and p.element_bytes < layer.real and layer.layout == "nchw":
        return forward, backward
    if p.batch == 1:
        once, gathering = back, NOTHING
    else:
        once, gathering = there + back, there + back
    if layer.layout == "nhwc":
        sums = Work(0, 2 * out * (2 if p.channels_out > 1 else 1))
        gathering = back + (there + back if p.channels > 1 else sums)
    return once + forward, gathering + backward


def matrix_products(problem: Problem, points: int, number: int) -> Pair:
    """Complex matrices over the channels, one for each of ``points`` frequencies of ``number`` bytes."""
    batch, into, out = problem.batch, problem.channels, problem.channels_out
    spectra, matrices, results = (count * points * number for count in (batch * into, into * out, batch * out))
    return bilinear(8 * batch * into * out * points, spectra, matrices, results)


def factored_mixing(layer: Layer) -> Pair:
    """The contraction of a layer that makes no filter, in pieces of so many images; numbers as stored, in pairs.

    Of several images the numbers are copied with channels first, and back, forward and backward.
    """
    transform, p = layer.transform, layer.problem
    k, length = layer.widths[-2], 2 * transform.half
    features, weights, constants = 2 * k * length, 2 * k * p.channels * p.channels_out, p.channels * p.channels_out
    into, out = layer.into * length, layer.out * length
    several = p.batch > 1
    copies = Work(0, 2 * into * (several and p.channels > 1) + 2 * out * (several and p.channels_out > 1))
    product = Work(2 * p.channels_out * into, constants + into + out)
    forward, backward = copies + product, copies + 2 * product
    # Columns that stand for two are doubled, and halved again.
    twos = 2 * p.height * ((p.width - 1) // 2)
    backward += Work(0, 2 * twos * (layer.out + layer.into) + features + weights)
    at_once = images_at_once(p.channels, k, transform.half, layer.real)
    for first in range(0, p.batch, at_once):
        images = min(at_once, p.batch - first)
        given, made = (images * c * length for c in (p.channels, p.channels_out))
        products = 2 * k * given
        making = Work(products, 4 * given + features + products)
        mixing = 2 * p.channels_out * products
        forward += making + Work(mixing, 2 * made + weights + products)
        for_weights = Work(mixing, made + products + 2 * weights)
        for_products = Work(mixing, weights + made + products)
        summed = products if images * p.channels > 1 else 0
        for_features = Work(products + summed, 3 * products + 2 * given + 4 * features)
        for_spectrum = Work(2 * products, 3 * products + features + 2 * given + 2 * given + 6 * given)
        backward += making + for_weights + for_products + for_features + for_spectrum
    return _sized(forward, layer.real), _sized(backward, layer.real)


def published_generation(layer: Layer) -> Pair:
    """Two chains of 1×1 convolutions on every frequency.

    Backward as the original, whose grid asks for a gradient: every layer's two products.
    """
    points = layer.transform.points
    forward, backward = NOTHING, NOTHING
    for last, (a, b) in _layers(layer.widths):
        product, back = bilinear(2 * a * b * points, a * points, a * b, b * points)
        forward += product + Work(0, b) + (NOTHING if last else Work(0, 2 * b * points))
        # Both MLPs' parameters are parts of one, over which their gradients are spread and added; the grid's too.
        shared = Work(0, 6 * (a * b + b))
        backward += back + Work(0, b) + shared + (NOTHING if last else Work(0, 3 * b * points))
    joining = Work(0, 4 * layer.planes * points)
    grid = Work(0, 3 * layer.widths[0] * points)
    return _sized(2 * forward + joining, layer.real), _sized(2 * backward + grid, layer.real)


def plane_generation(layer: Layer) -> Pair:
    """Both chains at once, as batched products on every frequency."""
    points, planes = layer.transform.points, layer.planes
    hidden, unhidden = _hidden(layer, points)
    a = layer.widths[-2]
    product, back = bilinear(2 * a * planes * points, a * points, a * planes, planes * points)
    forward = 2 * (product + Work(0, planes)) + Work(0, 4 * planes * points)
    backward = 2 * (back + _bias_sum(planes, points)) + Work(0, 4 * planes * points)
    return hidden + _sized(forward, layer.real), unhidden + _sized(backward, layer.real)


def half_generation(layer: Layer) -> Pair:
    """The Hermitian part on the half plane: hidden layers at a frequency and its mirror image, then one product.

    Real parts come from the even part of the real MLP's last hidden layer (K wide) and its bias, imaginary parts
    from the odd part of the imaginary MLP's: a product of ``planes × (2K + 1)`` with ``(2K + 1) × 2`` numbers a
    frequency, half of them zero.
    """
    half, planes = layer.transform.half, layer.planes
    hidden, unhidden = _hidden(layer, 2 * half)
    k = layer.widths[-2]
    rows = 2 * k + 1
    product, back = bilinear(4 * planes * rows * half, planes * rows, rows * 2 * half, planes * 2 * half)
    assembling = Work(0, (27 * k + 9) * half + 2 * planes * rows)
    # Backward through even and odd parts: two scaled, one negated, four spread over zeros, two sums, one stack;
    # and of both MLPs' weights and a bias, which are put together.
    taking_apart = Work(0, 38 * k * half + planes * (12 * k + 3))
    # A contraction leaves the filter's gradient in another order than the product wants it.
    contracted = layer.kind == "full" and layer.problem.channels > 1
    ordering = Work(0, 4 * planes * half if contracted else 0)
    return (
        hidden + _sized(assembling + product, layer.real),
        unhidden + _sized(ordering + back + taking_apart, layer.real),
    )


def lean_generation(layer: Layer) -> Pair:
    """As :func:`half_generation`, with fewer passes: the factors are in the rows, the parts written in place."""
    half, planes = layer.transform.half, layer.planes
    hidden, unhidden = _hidden(layer, 2 * half)
    k = layer.widths[-2]
    rows = 2 * k + 1
    basis = rows * 2 * half
    product = Work(4 * planes * rows * half, planes * rows + basis + planes * 2 * half)
    assembling = Work(0, basis + (6 * k + 1) * half + 4 * planes * rows)
    for_rows = Work(4 * planes * rows * half, planes * rows + basis + planes * 2 * half)
    for_basis = Work(8 * planes * k * half, 2 * planes * k + 4 * k * half + planes * 2 * half)
    # The odd part's mirror image negated, all four parts stacked and put in order.
    taking_apart = Work(0, (2 + 8 + 8) * k * half)
    scaling = Work(0, 4 * planes * rows)
    return (
        hidden + _sized(assembling + product, layer.real),
        unhidden + _sized(for_rows + for_basis + taking_apart + scaling, layer.real),
    )


def factor_generation(layer: Layer) -> Pair:
    """Even and odd features, each number twice; the last layer's weights in the order of a full layer's matrix."""
    half, planes, k = layer.transform.half, layer.planes, layer.widths[-2]
    hidden, unhidden = _hidden(layer, 2 * half)
    features, weights = 2 * k * half, 2 * k * planes
    # Two parts added and two subtracted, stacked, scaled, and written twice; weights in order, the bias scaled.
    assembling = Work(0, 10 * features + 2 * weights + 2 * planes)
    # What was written twice summed and scaled, one half negated, three stacks; the bias's gradient scaled, spread.
    ordering = 2 * (weights + planes) * (min(layer.problem.channels, layer.problem.channels_out) > 1)
    taking_apart = Work(2 * features, 14 * features + ordering + 5 * planes)
    return hidden + _sized(assembling, layer.real), unhidden + _sized(taking_apart, layer.real)


def _matrix(rows: int, into: int, out: int) -> Work:
    """``rows × into`` numbers times a constant matrix ``into × out``; bytes in numbers."""
    return Work(2 * rows * into * out, rows * into + into * out + rows * out)


def _hidden(layer: Layer, points: int) -> Pair:
    """Both chains up to the last layer, as batched products; the coordinates are stored once, without gradient."""
    forward, backward = NOTHING, NOTHING
    for last, (a, b) in _layers(layer.widths):
        if last:
            break
        first = a == layer.widths[0] and forward == NOTHING
        read = a * points if not first else a * points // 2
        product = Work(2 * a * b * points, read + a * b + b + b * points)
        forward += 2 * (product + Work(0, 2 * b * points))
        weights = Work(2 * a * b * points, b * points + read + a * b)
        inputs = NOTHING if first else Work(2 * a * b * points, b * points + a * b + a * points)
        backward += 2 * (weights + inputs + _bias_sum(b, points) + Work(0, 3 * b * points))
    return _sized(forward, layer.real), _sized(backward, layer.real)


def _bias_sum(width: int, points: int) -> Work:
    """A bias's gradient: the sum over all frequencies."""
    return Work(width * points, width * points + width) if points > 1 else NOTHING


def _layers(widths: tuple[int, ...]) -> list[tuple[bool, tuple[int, int]]]:
    """Input and output width of each layer, and whether it is the last one."""
    pairs = list(itertools.pairwise(widths))
    return [(index == len(pairs) - 1, pair) for index, pair in enumerate(pairs)]


def _sized(work: Work, real: int) -> Work:
    """Work whose traffic was counted in numbers."""
    return Work(work.flops, work.bytes * real)
