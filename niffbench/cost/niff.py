"""Closed forms of NIFF's layers: the FLOPs of each form, step by step, forward and backward (exact).

The formulas are those of NIFF's cost table; ``fft`` and ``rfft`` state what torch does with one channel too.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType

from niffbench.case import Problem
from niffbench.cost.closed import (
    NOTHING,
    Work,
    added,
    complex_fft,
    contraction,
    half_plane,
    inverse_real_fft,
    product,
    real_fft,
    spectral_product,
    steps,
)
from niffbench.niff.catalogue import HIDDEN_WIDTHS, form_of, form_with_engine, images_at_once
from niffbench.niff.native.passes import real_transforms

LayerParts = dict[str, Work]
"""Step → FLOPs forward and backward, in the order of the forward pass."""
FormParts = Callable[["Layer"], LayerParts]


@dataclass(frozen=True)
class Layer:
    """One layer on one problem; ``mlp`` is None for a layer without a filter, ``layout`` is its images'."""

    problem: Problem
    kind: str
    mlp: str | None
    layout: str = "nchw"

    @property
    def points(self) -> int:
        """Pixels of an image, or frequencies of the full plane."""
        return self.problem.height * self.problem.width

    @property
    def half(self) -> int:
        """Frequencies of the half plane."""
        return half_plane(self.problem.height, self.problem.width)

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
    def parameters(self) -> int:
        """Learnable scalars: two MLPs with biases, and the linear map."""
        mapping = self.problem.channels * self.problem.channels_out if self.maps_channels else 0
        return mapping + 2 * sum(a * b + b for a, b in itertools.pairwise(self.widths))


def layer_parts(layer: Layer, form: str, engine: str | None) -> LayerParts:
    """The closed form of one form of a layer; of an ``auto`` that chose ``engine``, where one is given.

    While auto has chosen nothing it is as fused, of full layers as rfft: a figure that depends on no machine. Its
    transforms and its product are one step. A full layer's product is the mixing of its channels; other layers
    mix theirs afterwards.
    """
    if form_of(layer.kind, form).engine != "auto":
        return _FORMS[form](layer)
    full = layer.kind == "full"
    parts: LayerParts = {}
    within = {"forward fft", "mixing" if full else "product", "inverse fft"}
    chosen = form_with_engine(layer.kind, form, engine or ("rfft" if full else "fused"))
    for name, work in _FORMS[chosen](layer).items():
        name = "convolution" if name in within else name
        parts[name] = added(parts.get(name, NOTHING), work)
    return parts


def published(layer: Layer) -> LayerParts:
    """As the original: a complex FFT of real data, a filter made in every call by two chains of 1×1 convolutions.

    Backward as the original too, whose coordinates ask for a gradient: every layer's two products.
    """
    chains = [product(2 * 2 * a * b * layer.points) for a, b in itertools.pairwise(layer.widths)]
    biases = sum(2 * _bias_sum(width, layer.points) for width in layer.widths[1:])
    return _by_fft(layer, added(*chains, (0, biases)), einsum=False)


def fft(layer: Layer) -> LayerParts:
    """Complex FFTs; the filter by both chains at once, as batched products."""
    if layer.mlp is None:
        return _by_fft(layer, NOTHING)
    last = product(2 * 2 * layer.widths[-2] * layer.planes * layer.points)
    generation = added(_hidden(layer, layer.points), last, (0, 2 * _bias_sum(layer.planes, layer.points)))
    return _by_fft(layer, generation)


def rfft(layer: Layer) -> LayerParts:
    """Real FFTs and half planes throughout."""
    if layer.mlp is None:
        return _by_fft(layer, NOTHING, real=True)
    generation = added(_hidden(layer, 2 * layer.half), product(_last_product(layer)))
    return _by_fft(layer, generation, real=True)


def _by_fft(layer: Layer, generation: Work, *, real: bool = False, einsum: bool = True) -> LayerParts:
    """A layer between two FFTs, on half planes where they are ``real``.

    Args:
        einsum: as may map the channels.
    """
    p, frequencies = layer.problem, layer.half if real else layer.points
    forward_fft, inverse_fft = (real_fft, inverse_real_fft) if real else (complex_fft, complex_fft)
    parts = {"filter generation": generation, "forward fft": forward_fft(layer.points, layer.into)}
    if layer.kind == "full":
        parts["mixing"] = contraction(p, frequencies)
    elif layer.mlp is not None:
        parts["product"] = spectral_product(p.batch, p.channels, frequencies)
    if layer.maps_channels:
        flops = 4 * layer.into * p.channels_out * frequencies
        parts["mixing"] = _spectrum_map(layer, flops) if einsum else product(flops)
    parts["inverse fft"] = inverse_fft(layer.points, layer.out)
    return parts


def _spectrum_map(layer: Layer, flops: int) -> Work:
    """The linear map as one real product on the stored numbers.

    With layout ``nhwc`` it is ``torch.einsum``, which over one channel multiplies, with nothing to add; nor has
    backward, if one channel goes out.
    """
    forward, backward = product(flops)
    if layer.layout == "nhwc" and layer.problem.channels == 1:
        forward -= flops // 2
        backward -= flops // 2 if layer.problem.channels_out == 1 else 0
    return forward, backward


def cached(layer: Layer) -> LayerParts:
    """As rfft; where no gradient is wanted the filter is at hand, of full layers as one matrix a frequency."""
    p = layer.problem
    parts = _cached(rfft)(layer)
    if layer.kind == "full":  # over one channel, too
        parts["mixing"] = product(8 * p.batch * p.channels * p.channels_out * layer.half)
    return parts


def elided(layer: Layer) -> LayerParts:
    """The linear map as an ordinary 1×1 convolution; for split, after the depthwise layer as rfft."""
    p = layer.problem
    mixing = {"mixing": product(2 * layer.into * p.channels_out * layer.points)}
    return mixing if layer.kind == "pointwise" else rfft(_depthwise(layer)) | mixing


def fused(layer: Layer) -> LayerParts:
    """Real FFTs, and backward real FFTs too: the image's spectrum is kept for it."""
    p, (once, _) = layer.problem, inverse_real_fft(layer.points, layer.into)
    return {
        "filter generation": _lean_generation(layer),
        "forward fft": (once, once),
        "product": spectral_product(p.batch, p.channels, layer.half),
        "inverse fft": (once, once),
    }


def dft(layer: Layer) -> LayerParts:
    """Products with constant matrices instead of FFTs: of small images at once, of others by rows and columns."""
    p, columns = layer.problem, layer.problem.width // 2 + 1
    if layer.points <= 256:
        flops = 2 * layer.into * layer.points * 2 * layer.half
    else:
        rows = 2 * layer.into * p.height * p.width * 2 * columns
        flops = rows + 2 * layer.into * columns * 2 * p.height * 2 * p.height
    return {
        "filter generation": _lean_generation(layer),
        "forward fft": (flops, flops),
        "product": spectral_product(p.batch, p.channels, layer.half),
        "inverse fft": (flops, flops),
    }


def native(layer: Layer) -> LayerParts:
    """One kernel; backward one that makes the image's spectrum again."""
    fft, _ = inverse_real_fft(layer.points, layer.into)
    return _one_kernel(layer, fft, fft)


def features(layer: Layer) -> LayerParts:
    """As native; where no gradient is wanted hidden features are at hand, which the kernel makes the filter of."""
    return _of_features(layer, native(layer))


def _features_as_executed(layer: Layer) -> LayerParts:
    return _of_features(layer, _native_as_executed(layer))


def _of_features(layer: Layer, parts: LayerParts) -> LayerParts:
    if layer.problem.mode != "inference":
        return parts
    forward, backward = parts["convolution"]
    return {"convolution": (forward + 4 * layer.planes * layer.widths[-2] * layer.half, backward)}


def _native_as_executed(layer: Layer) -> LayerParts:
    """With the operations of the C kernel's own transforms for nominal ones."""
    there, back = real_transforms(layer.problem.height, layer.problem.width)
    return _one_kernel(layer, layer.into * there, layer.into * back)


def _one_kernel(layer: Layer, there: int, back: int) -> LayerParts:
    """One kernel, by the FLOPs of all images' transforms."""
    multiplied, twice = spectral_product(layer.problem.batch, layer.problem.channels, layer.half)
    return {
        "filter generation": _generation_within(layer),
        "convolution": (there + multiplied + back, 2 * there + twice + back),
    }


def factored(layer: Layer) -> LayerParts:
    """A full layer without its filter: one real matrix contracts the channels' spectra times each feature."""
    p, k = layer.problem, layer.widths[-2]
    there, back = (inverse_real_fft(layer.points, images)[0] for images in (layer.into, layer.out))
    forward, backward = _hidden(layer, 2 * layer.half)
    return {
        "filter generation": (forward, backward + 4 * k * layer.half),
        "forward fft": (there, back),
        "mixing": _factored_mixing(p, k, 2 * layer.half),
        "inverse fft": (back, there),
    }


def _factored_mixing(p: Problem, k: int, length: int) -> Work:
    """The contraction of a layer that makes no filter, in pieces of so many images.

    Args:
        length: stored numbers of a half plane. Backward the products are made again, and gradients of weights,
            products, features and spectrum follow.
    """
    constants = product(2 * p.channels_out * p.batch * p.channels * length)
    pieces = [NOTHING]
    at_once = images_at_once(p.channels, k, length // 2, max(p.element_bytes, 4))
    for first in range(0, p.batch, at_once):
        planes = min(at_once, p.batch - first) * p.channels
        products = 2 * k * planes * length
        mixing = 2 * p.channels_out * products
        summed = products if planes > 1 else 0
        pieces.append((products + mixing, products + 2 * mixing + products + summed + 2 * products))
    return added(constants, *pieces)


def _depthwise(layer: Layer) -> Layer:
    """The depthwise layer that a split one begins with."""
    return Layer(replace(layer.problem, channels_out=layer.problem.channels), "depthwise", layer.mlp)


def _then_mixed(engine: FormParts) -> FormParts:
    """The closed form of ``engine``, and for split of the 1×1 convolution that follows."""

    def parts(layer: Layer) -> LayerParts:
        if not layer.maps_channels:
            return engine(layer)
        return engine(_depthwise(layer)) | {"mixing": elided(layer)["mixing"]}

    return parts


def _cached(form: FormParts) -> FormParts:
    """The closed form of ``form`` with what it makes of the weights kept: at hand where no gradient is wanted."""

    def parts(layer: Layer) -> LayerParts:
        made = form(layer)
        return made | {"filter generation": NOTHING} if layer.problem.mode == "inference" else made

    return parts


def executed(layer: Layer, form: str, engine: str | None) -> int | None:
    """FLOPs as executed on a CPU, in the mode of the problem; None where they are not known.

    They are of what only multiplies matrices, and of the C kernel. Which algorithms torch's FFTs take is for their
    libraries (pocketfft, MKL) to know.
    """
    described = form_of(layer.kind, form)
    execute = _AS_EXECUTED.get((engine if described.engine == "auto" else described.engine) or "")
    if execute is None:
        return None
    parts = (_cached(execute) if described.keeps_filter else execute)(layer)
    return sum(step.flops for step in steps(layer.problem, parts))


_ENGINES: Mapping[str, FormParts] = MappingProxyType(
    {
        engine: _then_mixed(parts)
        for engine, parts in {
            "fused": fused,
            "dft": dft,
            "native": native,
            "features": features,
            "triton": native,
        }.items()
    }
)
_AS_EXECUTED: Mapping[str, FormParts] = MappingProxyType(
    {
        engine: _then_mixed(parts)
        for engine, parts in {
            "dft": dft,
            "native": _native_as_executed,
            "features": _features_as_executed,
        }.items()
    }
)
_FORMS: Mapping[str, FormParts] = MappingProxyType(
    {
        "published": published,
        "fft": fft,
        "rfft": rfft,
        "cached": cached,
        "elided": elided,
        "factored": factored,
        "factored-cached": _cached(factored),
        **_ENGINES,
        **{f"{engine}-cached": _cached(parts) for engine, parts in _ENGINES.items()},
    }
)
"""Form → its closed form, but for those of ``auto``."""


def _last_product(layer: Layer) -> int:
    """The Hermitian part on the half plane: one product with the hidden layers' even and odd parts.

    Real parts come from the even part of the real MLP's last hidden layer (K wide) and its bias, imaginary parts
    from the odd part of the imaginary MLP's: ``planes × (2K + 1)`` numbers with ``(2K + 1) × 2`` a frequency, half
    of them zero.
    """
    return 4 * layer.planes * (2 * layer.widths[-2] + 1) * layer.half


def _lean_generation(layer: Layer) -> Work:
    """As in :func:`rfft`; backward without the products with what is zero."""
    for_basis = 8 * layer.planes * layer.widths[-2] * layer.half
    once = _last_product(layer)
    return added(_hidden(layer, 2 * layer.half), (once, once + for_basis))


def _generation_within(layer: Layer) -> Work:
    """As in :func:`rfft`, without the products with what is zero; backward makes it all again."""
    forward, backward = _hidden(layer, 2 * layer.half)
    last = 4 * layer.planes * layer.widths[-2] * layer.half
    return forward + last, forward + backward + 3 * last + _bias_sum(layer.planes, layer.half)


def _hidden(layer: Layer, points: int) -> Work:
    """Both chains up to the last layer; the coordinates ask for no gradient."""
    forward = backward = 0
    for a, b in itertools.pairwise(layer.widths[:-1]):
        flops = 2 * a * b * points
        backward += 2 * (flops * (1 if not forward else 2) + _bias_sum(b, points))
        forward += 2 * flops
    return forward, backward


def _bias_sum(width: int, points: int) -> int:
    """A bias's gradient: the sum over all frequencies."""
    return width * points if points > 1 else 0
