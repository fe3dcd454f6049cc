"""The kernel that makes its own filter from the MLPs that define it, as differentiable torch functions.

Hidden features of all frequencies come first: they are the same for every channel. The last layer, which is
linear, is applied where the spectrum is multiplied, and its gradients are summed where the spectra are at hand: no
tensor is as large as the filter, forward or backward.
"""

from __future__ import annotations

import ctypes
import functools
import operator
from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import _get_current_dispatch_mode
from torch.utils.flop_counter import register_flop_formula

from niffbench.lengths import fft_flops
from niffbench.niff import fused
from niffbench.niff.autograd import (
    compiling,
    transformed,
    wants_gradient,
    wants_operations,
    watched,
    without_autocast,
)
from niffbench.niff.hermitian import Layers, generate_plainly
from niffbench.niff.native import kernel
from niffbench.niff.native.build import load
from niffbench.niff.native.registered import registered
from niffbench.niff.steps import is_recording, step

DEVICES = ("cpu",)

_WORTH_A_THREAD = 20_000  # multiply-adds: a few µs


def convolve(x: Tensor, grid: Tensor, layers: Layers, scale: float) -> Tensor:
    """:func:`niffbench.niff.native.kernel.convolve` with the filter that ``layers`` make.

    Args:
        x: real ``(B, C, H, W)``; see there for what is taken as it is.
        grid: coordinates of the half plane and of its mirror image by columns, ``(2, 2, W // 2 + 1, H)``.
        layers: the MLPs: see :mod:`niffbench.niff.hermitian`; in the dtype of ``grid``, float32 for halves.
        scale: a factor on the filter.

    Differentiable, twice too; raises as :func:`niffbench.niff.native.kernel.convolve`.
    """
    _check_device(x, grid)
    if transformed():
        return _plainly(x, grid, layers, scale)
    as_operators = compiling() or watched() or x.device.type == "meta"
    if not as_operators and all(type(one) in (Tensor, nn.Parameter) for one in (x, *layers)):
        if wants_gradient(x, *layers):
            result: Tensor = _Convolution.apply(None, x, grid, scale, *layers)
            return result
        return _forward(x, grid, layers, scale)[0]
    with step("filter generation"):
        features = _features_operator(grid, layers[:-2], scale)
    with step("convolution"):
        seen: Tensor = _operator(x, features, *layers[-2:], scale)
        return seen


def features(grid: Tensor, layers: Sequence[Tensor], scale: float) -> Tensor:
    """The hidden features of all frequencies, ``(2, K, frequencies)``, for :func:`from_features`; no gradients.

    Args:
        grid, scale: as for :func:`convolve`.
        layers: all but the last one of each MLP.
    """
    with step("filter generation"):
        return (_features_operator if _is_seen(grid, *layers) else _features)(grid, layers, scale)


def from_features(x: Tensor, features: Tensor, weight: Tensor, bias: Tensor, scale: float) -> Tensor:
    """As :func:`convolve`, of features that were made before; no gradients.

    Args:
        weight: of the MLPs' last layers, ``(2, C, K)``.
        bias: of these, ``(2, C)``.
    """
    _check_device(x, features)
    with step("convolution"):
        return (_operator if _is_seen(x, features) else _convolve)(x, features, weight, bias, scale)


def _check_device(x: Tensor, made: Tensor) -> None:
    if made.device != x.device:
        raise ValueError(f"expected images on {made.device}, where the weights are, got some on {x.device}")


def _is_seen(*tensors: Tensor) -> bool:
    """Whether something other than the kernel itself looks at a call with these, by operators of torch."""
    plain = all(type(one) in (Tensor, nn.Parameter) and one.device.type != "meta" for one in tensors)
    return not plain or compiling() or watched() or _get_current_dispatch_mode() is not None


def _plainly(x: Tensor, grid: Tensor, layers: Layers, scale: float) -> Tensor:
    """By ordinary operations."""
    with step("filter generation"):
        by_columns = generate_plainly(grid.flatten(2), layers, scale)
        half = by_columns.view(-1, *grid.shape[2:]).transpose(1, 2)
    return fused.convolve(x.to(grid.dtype), half).to(x.dtype)


class _Convolution(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, prepared: Prepared | None, x: Tensor, grid: Tensor, scale: float, *layers: Tensor
    ) -> Tensor:
        if prepared is None:
            y, features = _forward(x, grid, layers, scale)
        else:
            y, features = prepared.forward(x, grid, layers)
        ctx.prepared, ctx.scale = prepared, scale
        ctx.save_for_backward(x, grid, features, *layers)
        return y

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, grid, features, *layers = ctx.saved_tensors
        _, need_x, _, _, *need_layers = ctx.needs_input_grad
        if wants_operations(gradient):  # Leave all to autograd.
            twice = torch.is_grad_enabled()
            with without_autocast(gradient), torch.enable_grad():
                again = _plainly(x, grid, tuple(layers), ctx.scale)
                inputs = (x, *layers)
                wanted = [one for one, need in zip(inputs, (need_x, *need_layers), strict=True) if need]
                gradients = iter(torch.autograd.grad(again, wanted, gradient, create_graph=twice))
                for_x, *for_layers = (next(gradients) if need else None for need in (need_x, *need_layers))
                return None, for_x, None, None, *for_layers
        seen = _get_current_dispatch_mode() is not None
        if (
            ctx.prepared is not None
            and ctx.prepared.parts == 1
            and all(need_layers)
            and not (seen or is_recording())
        ):
            for_x, *for_layers = ctx.prepared.backward(x, grid, features, layers, gradient, need_x)
            return None, for_x, None, None, *for_layers
        arguments = (x, features, *layers[-2:], ctx.scale, gradient, need_x, any(need_layers))
        with step("convolution"):
            for_image, for_features, *for_last = (_gradients_operator if seen else _gradients)(*arguments)
        for_hidden: Sequence[Tensor | None] = [None] * (len(layers) - 2)
        if any(need_layers[:-2]):
            with step("filter generation"):
                back = _features_gradient_operator if seen else _features_gradient
                for_hidden = back(grid, layers[:-2], ctx.scale, for_features)
        if not any(need_layers):
            for_last = [None, None]
        return None, for_image if need_x else None, None, None, *for_hidden, *for_last


def _forward(x: Tensor, grid: Tensor, layers: Layers, scale: float) -> tuple[Tensor, Tensor]:
    """The convolution and the features, through torch's dispatcher where a mode wants to see it."""
    seen = _get_current_dispatch_mode() is not None
    with step("filter generation"):
        features = (_features_operator if seen else _features)(grid, layers[:-2], scale)
    with step("convolution"):
        weight, bias = layers[-2:]
        return (_operator if seen else _convolve)(x, features, weight, bias, scale), features


class _Hidden(ctypes.Structure):
    """``Hidden`` in ``calls.h``."""

    _fields_ = (
        ("points", ctypes.c_int64),
        ("widths", ctypes.c_void_p),
        ("scale", ctypes.c_double),
        *((name, ctypes.c_int) for name in ("count", "threads", "backward_threads")),
    )


class Prepared:
    """Calls on a CPU like one that was checked, which nobody watches: what they have in common."""

    def __init__(self, x: Tensor, grid: Tensor, layers: Layers, scale: float) -> None:
        """For calls like :func:`convolve` with these."""
        self._images = kernel.call_for(*kernel.dense(x), layers[-2].shape[-1])
        self._filters = filters = _call_for(grid, layers[:-2])
        points, count, widths = filters.sizes
        threads = filters.threads
        self._hidden = _Hidden(points, ctypes.addressof(widths), scale, count, threads, threads)
        self._addresses = (ctypes.addressof(self._hidden), self._images.address)
        self._tensors = ctypes.c_void_p * len(layers)
        self._shapes = [(layer.shape, layer.dtype) for layer in layers]
        self._weights: tuple[tuple[int, ...], ctypes.Array[ctypes.c_void_p]] = (), self._tensors()
        self._last = kernel.dense(x)[1]
        self._forward_bytes = max(filters.forward_bytes, self._images.forward_bytes) + 127 & ~127
        self._room = prod(filters.shape) * grid.dtype.itemsize + 128  # of features
        self._backward_bytes = self._room + max(filters.backward_bytes, self._images.backward_bytes)
        self.parts = self._images.parts

    def convolve(self, x: Tensor, grid: Tensor, layers: Layers, scale: float) -> Tensor:
        """As :func:`convolve`."""
        if wants_gradient(x, *layers):
            result: Tensor = _Convolution.apply(self, x, grid, scale, *layers)
            return result
        memory = kernel.workspace(self._forward_bytes + self._room)
        y = torch.empty_like(x)
        self._generate(x, y, grid, layers, memory.data_ptr() + self._forward_bytes, memory.data_ptr())
        return y

    def forward(self, x: Tensor, grid: Tensor, layers: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """The convolution and the features, by one call in C."""
        y, features = torch.empty_like(x), grid.new_empty(self._filters.shape)
        memory = kernel.workspace(self._forward_bytes)
        self._generate(x, y, grid, layers, features.data_ptr(), memory.data_ptr())
        return y, features

    def _generate(
        self, x: Tensor, y: Tensor, grid: Tensor, layers: Sequence[Tensor], features: int, memory: int
    ) -> None:
        weights, _alive = self._in_c(layers)
        self._filters.library.niff_generate(
            *self._addresses, grid.data_ptr(), weights, x.data_ptr(), y.data_ptr(), features, memory
        )

    def _in_c(self, layers: Sequence[Tensor]) -> tuple[ctypes.Array[ctypes.c_void_p], Sequence[Tensor]]:
        """Where C finds the layers, and what has to stay there for that.

        Raises:
            ValueError: for layers of other shapes or dtypes than those that were checked.
        """
        addresses, (before, in_c) = tuple(map(Tensor.data_ptr, layers)), self._weights
        if addresses == before:
            return in_c, layers
        if [(layer.shape, layer.dtype) for layer in layers] != self._shapes:
            expected, got = self._shapes, [(layer.shape, layer.dtype) for layer in layers]
            raise ValueError(f"expected layers {expected}, got {got}")
        alive = [layer.resolve_neg().contiguous() for layer in layers]
        in_c = self._tensors(*map(Tensor.data_ptr, alive))
        if all(map(operator.is_, alive, layers)):
            self._weights = addresses, in_c
        return in_c, alive

    def backward(
        self,
        x: Tensor,
        grid: Tensor,
        features: Tensor,
        layers: Sequence[Tensor],
        gradient: Tensor,
        need_x: bool,
    ) -> list[Tensor | None]:
        """The gradients of the images, None where it is not wanted, and of all layers, by one call in C."""
        weights, alive = self._in_c(layers)
        x, gradient = (kernel.like(one, self._last) for one in (x, gradient))  # Hooks may have laid x out anew.
        features = features.contiguous()
        for_x = torch.empty_like(x) if need_x else None
        into = [torch.empty_like(layer) for layer in alive]
        memory = kernel.workspace(self._backward_bytes)
        self._filters.library.niff_generate_gradients(
            *(*self._addresses, grid.data_ptr(), weights, features.data_ptr()),
            *(x.data_ptr(), gradient.data_ptr(), None if for_x is None else for_x.data_ptr()),
            *(self._tensors(*map(Tensor.data_ptr, into)), memory.data_ptr()),
        )
        return [for_x, *into]


def _features(grid: Tensor, layers: Sequence[Tensor], scale: float) -> Tensor:
    call = _call_for(grid, layers)
    alive = [layer.contiguous() for layer in layers]
    out, memory = grid.new_empty(call.shape), kernel.workspace(call.forward_bytes)
    call.library.niff_features(
        *(grid.data_ptr(), *call.sizes, _addresses(alive), scale, out.data_ptr(), memory.data_ptr()), call.threads
    )
    return out


def _features_gradient(grid: Tensor, layers: Sequence[Tensor], scale: float, gradient: Tensor) -> list[Tensor]:
    call = _call_for(grid, layers)
    alive = [layer.contiguous() for layer in (*layers, gradient)]
    out = [layer.new_empty(layer.shape) for layer in layers]
    memory = kernel.workspace(call.backward_bytes)
    call.library.niff_features_gradient(
        *(grid.data_ptr(), *call.sizes, _addresses(alive[:-1]), scale, alive[-1].data_ptr(), _addresses(out)),
        *(memory.data_ptr(), call.threads),
    )
    return out


@dataclass(frozen=True)
class _Call:
    """What calls of the C functions of such hidden layers have in common."""

    library: ctypes.CDLL
    sizes: tuple[int, int, ctypes.Array[ctypes.c_int]]
    shape: tuple[int, int, int]
    threads: int
    forward_bytes: int
    backward_bytes: int


def _call_for(grid: Tensor, layers: Sequence[Tensor]) -> _Call:
    """Raises for what the kernel, which trusts its addresses, must never be given."""
    for layer in layers:
        if layer.dtype != grid.dtype or layer.device != grid.device:
            raise ValueError(
                f"expected layers in {grid.dtype} on {grid.device}, got {layer.dtype}, {layer.device}"
            )
    library = load(kernel.REALS[grid.dtype])
    return _made_call(library, grid.shape, torch.get_num_threads(), *(layer.shape for layer in layers))


@functools.lru_cache(maxsize=256)
def _made_call(library: ctypes.CDLL, grid: torch.Size, most: int, *layers: torch.Size) -> _Call:
    widths = [2]
    for weight, bias in zip(layers[::2], layers[1::2], strict=True):
        if weight != (2, bias[-1], widths[-1]) or bias != (2, bias[-1]):
            raise ValueError(f"expected MLPs, got a layer {tuple(weight)} with a bias {tuple(bias)}")
        widths.append(bias[-1])
    points, count = grid[2] * grid[3], len(widths) - 1
    in_c = (ctypes.c_int * len(widths))(*widths)
    threads = max(1, min(most, sum(map(prod, layers)) * 2 * points // _WORTH_A_THREAD))
    forward, backward = (
        threads * library.niff_features_workspace(count, in_c, gradient) for gradient in (False, True)
    )
    return _Call(library, (points, count, in_c), (2, widths[-1], points), threads, forward, backward)


def _addresses(tensors: Sequence[Tensor]) -> ctypes.Array[ctypes.c_void_p]:
    return (ctypes.c_void_p * len(tensors))(*(tensor.data_ptr() for tensor in tensors))


def _check(x: Tensor, features: Tensor, weight: Tensor, bias: Tensor) -> None:
    kernel.check_images(x)
    dtype = torch.promote_types(x.dtype, torch.float32)
    for one in (features, weight, bias):
        if one.dtype != dtype or one.device != x.device:
            raise ValueError(f"expected a filter in {dtype} on {x.device}, got {one.dtype} on {one.device}")
    _check_shapes(x.shape, features.shape, weight.shape, bias.shape)


@functools.lru_cache(maxsize=256)
def _check_shapes(x: torch.Size, *shapes: torch.Size) -> None:
    _, channels, height, width = x
    hidden, points = shapes[0][1], height * (width // 2 + 1)
    expected = ((2, hidden, points), (2, channels, hidden), (2, channels))
    if shapes != expected:
        raise ValueError(f"expected features, weights and bias of {expected}, got {[*map(tuple, shapes)]}")


def _convolve(x: Tensor, features: Tensor, weight: Tensor, bias: Tensor, scale: float) -> Tensor:
    _check(x, features, weight, bias)
    x, last = kernel.dense(x)
    features, weight, bias = features.contiguous(), weight.contiguous(), bias.contiguous()
    return kernel.call_for(x, last, features.shape[1]).convolve(x, made_of(features, weight, bias, scale))


def made_of(features: Tensor, weight: Tensor, bias: Tensor, scale: float) -> kernel.Filter:
    """Where the kernel finds what it makes the filter of: contiguous tensors, which somebody keeps alive."""
    addresses = (one.data_ptr() for one in (features, weight, bias))
    return kernel.Filter(None, *addresses, scale, features.shape[1])


def _gradients(
    x: Tensor,
    features: Tensor,
    weight: Tensor,
    bias: Tensor,
    scale: float,
    gradient: Tensor,
    need_x: bool,
    need_filter: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Of images, features, weights and bias; empty where they are not wanted."""
    _check(x, features, weight, bias)
    x, last = kernel.dense(x)
    gradient = kernel.like(gradient, last)
    features, weight, bias = features.contiguous(), weight.contiguous(), bias.contiguous()
    call = kernel.call_for(x, last, features.shape[1])
    for_x = torch.empty_like(x) if need_x else None
    for_features = torch.empty_like(features) if need_filter else None
    for_weight, for_bias = (
        one.new_empty((call.parts, *one.shape)) if need_filter else None for one in (weight, bias)
    )
    into = (for_x, None, for_features, for_weight, for_bias)
    call.gradients(x, made_of(features, weight, bias, scale), gradient, into)
    outcome = (for_x, for_features, kernel.together(for_weight), kernel.together(for_bias))
    of = (x, features, weight, bias)
    first, second, third, fourth = (
        to.new_empty(0) if one is None else one for one, to in zip(outcome, of, strict=True)
    )
    return first, second, third, fourth


# The same as operators of torch, for what traces instead of running, or counts.


@registered("filter_features", DEVICES)
def _features_operator(grid: Tensor, layers: Sequence[Tensor], scale: float) -> Tensor:
    return _features(grid, layers, scale)


@_features_operator.register_fake
def _(grid: Tensor, layers: Sequence[Tensor], scale: float) -> Tensor:
    return grid.new_empty(2, layers[-2].shape[1], grid.shape[2] * grid.shape[3])


@register_flop_formula(torch.ops.niffbench.filter_features, get_raw=True)
def _features_flops(grid: Tensor, layers: Sequence[Tensor], *_: Any, **__: Any) -> int:
    """A matrix product a layer, at each frequency of the half plane and of its mirror image."""
    return 2 * sum(weight.numel() for weight in layers[::2]) * grid[0].numel()


@registered("filter_features_gradient", DEVICES)
def _features_gradient_operator(
    grid: Tensor, layers: Sequence[Tensor], scale: float, gradient: Tensor
) -> list[Tensor]:
    return _features_gradient(grid, layers, scale, gradient)


@_features_gradient_operator.register_fake
def _(grid: Tensor, layers: Sequence[Tensor], scale: float, gradient: Tensor) -> list[Tensor]:
    return [layer.new_empty(layer.shape) for layer in layers]


@register_flop_formula(torch.ops.niffbench.filter_features_gradient, get_raw=True)
def _features_gradient_flops(grid: Tensor, layers: Sequence[Tensor], *_: Any, **__: Any) -> int:
    """The features again; for each layer a product for its weights, a sum for its bias and, but for the first, a
    product for what enters it."""
    points = grid[0].numel()
    weights = [weight.numel() for weight in layers[::2]]
    return points * (2 * (2 * sum(weights) + sum(weights[1:])) + sum(bias.numel() for bias in layers[1::2]))


@registered("generated_convolution", DEVICES)
def _operator(x: Tensor, features: Tensor, weight: Tensor, bias: Tensor, scale: float) -> Tensor:
    return _convolve(x, features, weight, bias, scale)


@_operator.register_fake
def _(x: Tensor, features: Tensor, weight: Tensor, bias: Tensor, scale: float) -> Tensor:
    return torch.empty_like(kernel.dense(x)[0])


def _transform_and_product(x: Tensor) -> tuple[int, int]:
    """FLOPs of a real FFT of all images, and of a complex product on the half plane."""
    batch, channels, height, width = x.shape
    return fft_flops(height * width, batch * channels, real=True), 6 * prod(x.shape[:3]) * (width // 2 + 1)


@register_flop_formula(torch.ops.niffbench.generated_convolution, get_raw=True)
def _flops(x: Tensor, features: Tensor, weight: Tensor, *_: Any, **__: Any) -> int:
    """Two real FFTs, a complex product, and the last layer of either MLP at each frequency."""
    transform, product = _transform_and_product(x)
    return 2 * transform + product + 2 * weight.numel() * features.shape[2]


@registered("generated_convolution_gradients", DEVICES)
def _gradients_operator(
    x: Tensor,
    features: Tensor,
    weight: Tensor,
    bias: Tensor,
    scale: float,
    gradient: Tensor,
    need_x: bool,
    need_filter: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return _gradients(x, features, weight, bias, scale, gradient, need_x, need_filter)


@_gradients_operator.register_fake
def _(
    x: Tensor,
    features: Tensor,
    weight: Tensor,
    bias: Tensor,
    scale: float,
    gradient: Tensor,
    need_x: bool,
    need_filter: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    for_x = torch.empty_like(kernel.dense(x)[0]) if need_x else x.new_empty(0)
    first, second, third = (one.new_empty(one.shape if need_filter else (0,)) for one in (features, weight, bias))
    return for_x, first, second, third


@register_flop_formula(torch.ops.niffbench.generated_convolution_gradients, get_raw=True)
def _gradient_flops(
    x: Tensor, features: Tensor, weight: Tensor, bias: Tensor, scale: float, _: Tensor, *needs: bool, **__: Any
) -> int:
    """An FFT of the gradient. For the images' the last layer again, a product and an FFT. For the filter's an FFT
    of the images, a product, a sum over the batch; then two products a last layer, and the sum for the bias."""
    need_x, need_filter = needs
    transform, product = _transform_and_product(x)
    last, points = 2 * weight.numel() * features.shape[2], features.shape[2]
    added = product // 3 if x.shape[0] > 1 else 0
    for_bias = x.shape[1] * points if points > 1 else 0
    return (
        transform
        + (transform + product + last) * need_x
        + (transform + product + added + 2 * last + for_bias) * need_filter
    )


def _remember_features(ctx: Any, inputs: tuple[Tensor, Sequence[Tensor], float], output: Tensor) -> None:
    grid, layers, ctx.scale = inputs
    ctx.save_for_backward(grid, *layers)


def _differentiate_features(ctx: Any, gradient: Tensor) -> tuple[None, list[Tensor], None]:
    grid, *layers = ctx.saved_tensors
    return None, _features_gradient_operator(grid, layers, ctx.scale, gradient), None


def _remember(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor, Tensor, float], output: Tensor) -> None:
    *tensors, ctx.scale = inputs
    ctx.save_for_backward(*tensors)


def _differentiate(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
    need_x, *needs = ctx.needs_input_grad[:4]
    gradients = _gradients_operator(*ctx.saved_tensors, ctx.scale, gradient, need_x, any(needs))
    return *(one if need else None for one, need in zip(gradients, (need_x, *needs), strict=True)), None


_features_operator.register_autograd(_differentiate_features, setup_context=_remember_features)
_operator.register_autograd(_differentiate, setup_context=_remember)

OPERATIONS = tuple(
    getattr(torch.ops.niffbench, name + backward)
    for name, ending in (
        ("circular_convolution", "_gradients"),
        ("filter_features", "_gradient"),
        ("generated_convolution", "_gradients"),
    )
    for backward in ("", ending)
)
"""The kernels as operations of torch; each has a formula in torch's own registry of FLOPs."""
