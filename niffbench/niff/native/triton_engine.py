"""The depthwise convolution by the Triton kernels, as differentiable operators of torch.

A filter is given as what it is made of, so many tensors: alone, the half plane; or three, hidden features of its
MLPs, weights and bias of their last layer, which the kernel applies where it multiplies.

float32 images are computed in three products of TF32, which is as exact as float32; float16 and bfloat16 are read
and written as they are, and computed in one, of numbers rounded to TF32, which is as exact as float16. Of an image
that is not finite in one channel, channels that are computed beside it may not be finite either.
"""

from __future__ import annotations

import functools
import math
import os
import warnings
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from math import prod
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import _get_current_dispatch_mode
from torch.utils.flop_counter import flop_registry, register_flop_formula

from niffbench.lengths import fft_flops
from niffbench.niff import fused, hermitian
from niffbench.niff.autograd import (
    compiling,
    transformed,
    wants_gradient,
    wants_operations,
    watched,
    without_autocast,
)
from niffbench.niff.native.build import Unavailable
from niffbench.niff.native.cuda import shared_memory
from niffbench.niff.native.generated import OPERATIONS as IN_C
from niffbench.niff.native.registered import registered
from niffbench.niff.steps import is_recording, step

LARGEST_SIDE = 64
"""Larger images are convolved by torch's FFTs."""

HALVES = (torch.float16, torch.bfloat16)
"""Dtypes beside float32 that are read and written as they are."""

DEVICES = ("cpu", "cuda")
"""On the former Triton's interpreter runs the kernels, where the environment says ``TRITON_INTERPRET=1``."""

PROGRAMS = 4
"""Programs a multiprocessor for which a channel's images are divided; unmeasured."""

FREQUENCIES, FREQUENCIES_BACKWARD = 16, 32
"""That a program of the hidden features' kernels does at once; where they are interpreted, a program's time is
that of its operations, however much each does."""

_INTERPRETED = 512
_MOST_SUMS = 64  # programs that leave sums of the hidden layers' gradients


class Failed(Unavailable):
    """A kernel does not compile, or cannot be launched, on a GPU where Triton runs."""


_compiled: set[tuple[object, ...]] = set()
_failed: dict[tuple[object, ...], str] = {}
_stands_in = True  # whether torch's FFTs do what a kernel that failed should have done


def stand_in(allowed: bool) -> None:
    """From now on leave what a kernel fails to do to torch's FFTs, or raise: where it is measured, say."""
    global _stands_in
    _stands_in = allowed


def compiled_so_far() -> int:
    """How many kernels this process has compiled, or loaded from Triton's cache."""
    return len(_compiled)


def failures() -> list[str]:
    """What became of the kernels that failed."""
    return list(_failed.values())


def unavailable(x: Tensor) -> str | None:
    """Why the kernels cannot be used for tensors where ``x`` is, or None if they can; compiles nothing."""
    if not _installed():
        return "Triton is not installed"
    if not x.is_cuda and not (x.is_cpu and os.environ.get("TRITON_INTERPRET") == "1"):
        return "it runs on GPUs, and under TRITON_INTERPRET=1 on CPUs"
    return None


@functools.cache
def _installed() -> bool:
    return find_spec("triton") is not None


def takes(x: Tensor) -> bool:
    """Whether the kernels do such images, wherever they are; others go to torch's FFTs."""
    return (
        max(x.shape[-2:]) <= LARGEST_SIDE
        and (x.dtype == torch.float32 or x.dtype in HALVES)
        and prod(x.shape[1:]) < 2**30  # offsets within an image are of 32 bits
    )


def suits(x: Tensor) -> bool:
    """Whether they may be the fastest for such images: at side 64 registers are spilled, and compiling is slow."""
    return takes(x) and max(x.shape[-2:]) < LARGEST_SIDE


def convolve(x: Tensor, half: Tensor) -> Tensor:
    """``H·W · irfft2(half · rfft2(x))``, as :func:`niffbench.niff.fused.convolve`.

    Args:
        x: float32, float16 or bfloat16, ``(B, C, H, W)``; copied unless contiguous. Larger sides than
            :data:`LARGEST_SIDE` go to that function.
        half: complex64, ``(C, H, W // 2 + 1)``.

    Differentiable, twice too.

    Raises:
        niffbench.niff.native.build.Unavailable: if there is no Triton, or it does not run there.
        NotImplementedError: for another dtype.
        ValueError: if ``half`` is not the half plane of such images.
    """
    if not _plain(x):
        with _unless_failed():
            return _convolved(x, [half], 1.0)
    return _plainly(x, half)


def generated(x: Tensor, grid: Tensor, layers: hermitian.Layers, scale: float) -> Tensor:
    """:func:`convolve` with the filter that ``layers`` make.

    Args:
        x: see there.
        grid: coordinates of the half plane and of its mirror image by columns, ``(2, 2, W // 2 + 1, H)``.
        layers: the MLPs: see :mod:`niffbench.niff.hermitian`; float32.
        scale: a factor on the filter.
    """
    if not _plain(x):
        with _unless_failed():
            with step("filter generation"):
                hidden = list(layers[:-2])
                features = (_features if _directly(grid, *hidden) else _features_operator)(grid, hidden, scale)
            return _convolved(x, [features, *layers[-2:]], scale)
    with step("filter generation"):
        by_columns = hermitian.generate(grid.flatten(2), layers, scale)
        half = by_columns.view(-1, *grid.shape[2:]).transpose(1, 2)
    return _plainly(x, half)


def _plain(x: Tensor) -> bool:
    """Whether ordinary operations must do it."""
    if x.dtype != torch.float32 and x.dtype not in HALVES:
        raise NotImplementedError(f"the triton form is not implemented for {x.dtype}")
    return transformed() or not takes(x)


def _unless_failed() -> AbstractContextManager[object]:
    return suppress(Failed) if _stands_in else nullcontext()


def _plainly(x: Tensor, half: Tensor) -> Tensor:
    return fused.convolve(x.to(torch.float32), half).to(x.dtype)


def _convolved(x: Tensor, made_of: list[Tensor], scale: float) -> Tensor:
    with step("convolution"):
        result: Tensor = (_convolve if _directly(x, *made_of) else _operator)(x, made_of, scale)
        return result


def _directly(*tensors: Tensor) -> bool:
    """Whether nobody must see an operator: no autograd, tracer, counter, profiler of a GPU or fake tensor."""
    return not (
        compiling()
        or (is_recording() and tensors[0].is_cuda)
        or watched()
        or wants_gradient(*tensors)
        or _get_current_dispatch_mode() is not None
        or any(type(one) not in (Tensor, nn.Parameter) or one.is_meta for one in tensors)
    )


@dataclass(frozen=True)
class Layout:
    """How the tile of a program is laid out for maps of ``height`` × ``width``."""

    height: int
    width: int

    @property
    def map(self) -> tuple[int, int]:
        """Sides of a quarter of a map in the tile."""
        return _power_of_two(self.height // 2 + 1), _power_of_two(self.width // 2 + 1)

    @property
    def tile(self) -> tuple[int, int]:
        """Sides of the tile."""
        rows, columns = self.map
        return max(16, rows), max(16, columns)

    @property
    def packed(self) -> int:
        """Channels in one tile."""
        return prod(self.tile) // prod(self.map)

    def matrices(self) -> np.ndarray[Any, np.dtype[np.float32]]:
        """Cosines and sines for the left, then for the right; those of packed maps along the diagonal."""
        sides = zip((self.height, self.width), self.map, self.tile, strict=True)
        left, right = (
            [np.kron(np.eye(tile // side), one) for one in _waves(length, side)] for length, side, tile in sides
        )
        return np.concatenate([one.ravel() for one in (*left, *(one.T for one in right))]).astype(np.float32)


_HOW = {
    "num_warps": 4,
    "num_stages": 1,
    "enable_fp_fusion": True,
}  # the last is not to change with Triton's default


_OF_HALVES = 163840
"""Bytes of shared memory that products of halved planes take at the largest tile."""


@functools.cache
def spreads() -> bool:
    """Whether this Triton divides a plane of a product among warps; with 3.6 each of the planes is one warp's."""
    version: str = import_module("triton").__version__
    return tuple(int(part) for part in version.split(".")[:2]) >= (3, 9)


@functools.lru_cache(maxsize=256)
def constants_of(
    layout: Layout, hidden: int, precision: str, shared: int, *, convolves: bool, correlates: bool, conjugate: bool
) -> dict[str, Any]:
    """What the kernel ``convolve`` is compiled for, and how; a program may have so many bytes of shared memory.

    Registers decide, as compiling tells: nothing is spilled at the stages of ResNet and ConvNeXt but, with Triton
    3.6, at 56 on GPUs of less shared memory than halved planes take (compute capability 8.6, 8.9, 12): there 128
    bytes a thread forward, 136 backward.
    """
    (map_height, map_width), (tile_height, tile_width) = layout.map, layout.tile
    slots, separate = tile_height * tile_width, max(layout.tile) > 32
    halves = slots >= 1024 and not (separate or spreads()) and precision != "ieee" and shared >= _OF_HALVES
    return {
        "H": layout.height,
        "W": layout.width,
        "SH": map_height,
        "SW": map_width,
        "TH": tile_height,
        "TW": tile_width,
        "HIDDEN": hidden,
        "CONVOLVES": convolves,
        "CORRELATES": correlates,
        "CONJUGATE": conjugate,
        "AT_ONCE": convolves and correlates and (slots < 1024 or precision == "tf32"),
        "SEPARATE": separate,
        "PARTS": 2 if halves else 1,
        "PRECISION": precision,
        **_HOW,
        "num_warps": min(16, max(4, slots // (128 if halves or spreads() else 256))),
    }


def _power_of_two(least: int) -> int:
    return 1 << (least - 1).bit_length()


def _waves(length: int, side: int) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Cosines and sines of 2π·j·k / length; a column that is its own mirror image counts half."""
    index = np.arange(length // 2 + 1)
    angles = np.outer(index, index) % length * (2 * math.pi / length)
    shares = np.where(2 * index % length == 0, 0.5, 1.0)
    room = (0, side - len(index))
    return np.pad(np.cos(angles) * shares, room), np.pad(np.sin(angles), room)


@functools.cache
def _matrices(layout: Layout, device: torch.device) -> Tensor:
    """On the device, for good: a captured graph knows but the address. So a call must come before a capture."""
    with torch.inference_mode(False):
        return torch.from_numpy(layout.matrices()).to(device)


@functools.cache
def _precision(device: torch.device) -> str:
    """How float32 is multiplied so that it stays float32."""
    if device.index is None or torch.version.hip or torch.cuda.get_device_capability(device) < (8, 0):
        return "ieee"
    return "tf32x3"


def _run(
    images: Tensor,
    other: Tensor | None,
    made_of: Sequence[Tensor],
    scale: float,
    *,
    convolves: bool,
    conjugate: bool,
) -> tuple[Tensor | None, Tensor | None]:
    """The kernel ``convolve``: what becomes of the images, and with ``other`` their correlation."""
    batch, channels, height, width = images.shape
    layout, columns = Layout(height, width), width // 2 + 1
    hidden = made_of[0].shape[1] if len(made_of) > 1 else 0
    filter_, *last = made_of if hidden else (torch.view_as_real(made_of[0].resolve_conj().contiguous()),)
    groups = -(-channels // layout.packed)
    steps, parts = _division(groups, batch, images)
    result = torch.empty_like(images) if convolves else None
    sums = None
    if other is not None:
        shape = (parts, 2, channels, height, columns) if hidden else (parts, channels, height, columns, 2)
        sums = torch.empty(shape, dtype=torch.float32, device=images.device)
    precision = _precision(images.device)
    if images.dtype in HALVES and precision == "tf32x3":
        precision = "tf32"
    how = {"convolves": convolves, "correlates": other is not None, "conjugate": conjugate}
    _launch(
        "convolve",
        (groups, parts),
        *(images, *(images if one is None else one for one in (result, other, sums)), filter_),
        *(last if hidden else (filter_, filter_)),
        *(_matrices(layout, images.device), scale, batch, channels),
        STEPS=steps,
        **constants_of(layout, hidden, precision, shared_memory(images.device) if images.is_cuda else 0, **how),
    )
    return result, sums


def _division(groups: int, batch: int, x: Tensor) -> tuple[int, int]:
    """How many images one program takes, and among how many they are divided."""
    processors = torch.cuda.get_device_properties(x.device).multi_processor_count if x.is_cuda else 1
    parts = max(1, min(batch, -(-PROGRAMS * processors // groups)))
    steps = _power_of_two(-(-batch // min(parts, 65535)))  # Each number of steps is compiled for.
    return steps, -(-batch // steps)


def _launch(kernel: str, grid: tuple[int, ...], *arguments: object, **constants: object) -> None:
    """Enqueue a kernel of :mod:`niffbench.niff.native.triton_kernels` where its first argument is.

    Raises:
        Unavailable: if it cannot run there.
        Failed: if it could not be compiled or launched, which is not tried again; where others stand in, it is
            warned of once.
    """
    first = arguments[0]
    assert isinstance(first, Tensor)
    if (why := unavailable(first)) is not None:
        raise Unavailable(f"the triton form is not available for {first.device.type}: {why}")
    kernels = import_module("niffbench.niff.native.triton_kernels")  # only now: it loads Triton
    where: AbstractContextManager[object] = torch.cuda.device(first.device) if first.is_cuda else nullcontext()
    key = kernel, first.dtype, first.device, tuple(constants.items())
    if key in _failed:
        raise Failed(_failed[key])
    try:
        with where:
            getattr(kernels, kernel)[grid](*arguments, **constants)
        _compiled.add(key)
    except Exception as error:  # of Triton's compiler, of the assembler, of the driver: they share no class
        if isinstance(error, torch.OutOfMemoryError):
            raise
        _failed[key] = what = f"the triton form's kernel {kernel} failed: {type(error).__name__}: {error}"[:300]
        if _stands_in:
            warnings.warn(f"torch's FFTs step in, as {what}", RuntimeWarning, stacklevel=2)
        raise Failed(what) from error


def _check(x: Tensor, made_of: Sequence[Tensor]) -> None:
    """Raise for what the kernel, which trusts its addresses, must never be given."""
    _, channels, height, width = x.shape
    points = height * (width // 2 + 1)
    expected: list[tuple[int, ...]] = [(channels, height, width // 2 + 1)]
    dtype = torch.complex64
    if len(made_of) > 1:
        hidden = made_of[0].shape[1]
        expected, dtype = [(2, hidden, points), (2, channels, hidden), (2, channels)], torch.float32
    shapes = [tuple(one.shape) for one in made_of]
    if shapes != expected or any(one.dtype != dtype or one.device != x.device for one in made_of):
        got = ", ".join(f"{tuple(one.shape)} {one.dtype} on {one.device}" for one in made_of)
        raise ValueError(f"expected a filter of {expected} in {dtype} on {x.device}, got {got}")


def _convolve(x: Tensor, made_of: Sequence[Tensor], scale: float) -> Tensor:
    _check(x, made_of)
    x = x.resolve_neg().contiguous()
    if not x.numel():
        return torch.empty_like(x)
    result, _ = _run(x, None, [one.contiguous() for one in made_of], scale, convolves=True, conjugate=False)
    assert result is not None
    return result


def _gradients(
    x: Tensor, made_of: Sequence[Tensor], scale: float, gradient: Tensor, need_x: bool, need_filter: bool
) -> list[Tensor]:
    """Of the images and of what the filter is made of; empty where they are not wanted."""
    _check(x, made_of)
    nothing = [one.new_empty(0) for one in (x, *made_of)]
    if not x.numel():
        for_x = torch.empty_like(x.contiguous()) if need_x else nothing[0]
        return [for_x, *([torch.zeros_like(one) for one in made_of] if need_filter else nothing[1:])]
    made_of = [one.contiguous() for one in made_of]
    other = x.resolve_neg().contiguous() if need_filter else None
    result, sums = _run(
        gradient.resolve_neg().contiguous(), other, made_of, scale, convolves=need_x, conjugate=True
    )
    for_x = nothing[0] if result is None else result
    if sums is None:
        return [for_x, *nothing[1:]]
    whole = sums.sum(0) if len(sums) > 1 else sums[0]
    if len(made_of) == 1:
        return [for_x, torch.view_as_complex(whole)]
    features, weight, bias = made_of
    planes = whole.flatten(2)
    for_bias = torch.zeros_like(bias)
    torch.sum(planes[0], -1, out=for_bias[0]).mul_(scale)
    return [for_x, weight.mT @ planes, planes @ features.mT, for_bias]


def _features(grid: Tensor, layers: Sequence[Tensor], scale: float) -> Tensor:
    """``(2, K, H·(W // 2 + 1))``: even ones, odd ones, row by row."""
    columns, height = grid.shape[2:]
    result = grid.new_empty(2, layers[-1].shape[1], height * columns)
    at_once = FREQUENCIES if grid.is_cuda else _INTERPRETED
    programs = -(-height * columns // at_once)
    arguments = _hidden_layers(grid, layers)
    constants = features_constants(height, columns, layers, at_once, _precision(grid.device))
    _launch("features", (programs, 2), grid, result, *arguments, scale, **constants)
    return result


def _features_gradient(grid: Tensor, layers: Sequence[Tensor], scale: float, gradient: Tensor) -> Tensor:
    """Those of all layers in turn, one after the other."""
    columns, height = grid.shape[2:]
    at_once = FREQUENCIES_BACKWARD if grid.is_cuda else _INTERPRETED
    blocks = -(-height * columns // (at_once * _MOST_SUMS))
    programs = -(-height * columns // (at_once * blocks))
    sums = grid.new_empty(programs, sum(layer.numel() for layer in layers))
    arguments = _hidden_layers(grid, layers)
    constants = features_constants(height, columns, layers, at_once, _precision(grid.device))
    _launch(
        "features_gradient",
        (programs, 2),
        *(grid, gradient.contiguous(), sums, *arguments, scale),
        BLOCKS=blocks,
        **constants,
    )
    return sums.sum(0)


def _hidden_layers(grid: Tensor, layers: Sequence[Tensor]) -> list[Tensor]:
    """The three that the kernel has arguments for; those that are not there are never read."""
    widths = [2]
    for weight, bias in zip(layers[::2], layers[1::2], strict=True):
        if weight.shape != (2, bias.shape[-1], widths[-1]) or bias.dim() != 2:
            raise ValueError(f"expected MLPs, got a layer {tuple(weight.shape)} with a bias {tuple(bias.shape)}")
        widths.append(bias.shape[-1])
    for layer in (grid, *layers):
        if layer.dtype != torch.float32 or layer.device != grid.device:
            raise ValueError(
                f"expected layers in torch.float32 on {grid.device}, got {layer.dtype}, {layer.device}"
            )
    made = [layer.contiguous() for layer in layers]
    return made + made[:2] * (3 - len(made) // 2)


def features_constants(
    height: int, columns: int, layers: Sequence[Tensor], at_once: int, precision: str
) -> dict[str, Any]:
    """What the kernels of hidden features are compiled for, and how."""
    widths = [bias.shape[1] for bias in layers[1::2]]
    padded = [*widths, *[1] * (3 - len(widths))]
    return {
        "H": height,
        "F": columns,
        "DEPTH": len(widths),
        **{f"N{place}": width for place, width in enumerate(padded, start=1)},
        **{f"R{place}": max(16, _power_of_two(width)) for place, width in enumerate(padded, start=1)},
        "POINTS": at_once,
        "PRECISION": precision,
        **_HOW,
    }


# As operators of torch, for what traces instead of running, or counts, or asks for gradients.


@registered("triton_features", DEVICES)
def _features_operator(grid: Tensor, layers: Sequence[Tensor], scale: float) -> Tensor:
    return _features(grid, layers, scale)


@_features_operator.register_fake
def _(grid: Tensor, layers: Sequence[Tensor], scale: float) -> Tensor:
    return grid.new_empty(2, layers[-2].shape[1], grid.shape[2] * grid.shape[3])


@registered("triton_features_gradient", DEVICES)
def _features_gradient_operator(grid: Tensor, layers: Sequence[Tensor], scale: float, gradient: Tensor) -> Tensor:
    return _features_gradient(grid, layers, scale, gradient)


@_features_gradient_operator.register_fake
def _(grid: Tensor, layers: Sequence[Tensor], scale: float, gradient: Tensor) -> Tensor:
    return grid.new_empty(sum(layer.numel() for layer in layers))


def _remember_features(ctx: Any, inputs: tuple[Tensor, Sequence[Tensor], float], output: Tensor) -> None:
    grid, layers, ctx.scale = inputs
    ctx.save_for_backward(grid, *layers)


def _differentiate_features(ctx: Any, gradient: Tensor) -> tuple[None, list[Tensor], None]:
    grid, *layers = ctx.saved_tensors
    twice, flat = torch.is_grad_enabled() and not compiling(), None
    if compiling() or not wants_operations(gradient):
        with _unless_failed(), step("filter generation"):
            flat = _features_gradient_operator(grid, layers, ctx.scale, gradient)
    if flat is None:  # Leave all to autograd.
        with without_autocast(gradient), torch.enable_grad():
            rows = grid.transpose(2, 3).flatten(2)
            layers = layers if twice else [layer.detach().requires_grad_() for layer in layers]
            again, _, _ = hermitian.factors(rows, (*layers, *layers[-2:]), ctx.scale)
            return None, list(torch.autograd.grad(again, layers, gradient, create_graph=twice)), None
    sizes = [layer.numel() for layer in layers]
    shares = zip(flat.split(sizes), layers, strict=True)
    return None, [share.view(layer.shape) for share, layer in shares], None


_features_operator.register_autograd(_differentiate_features, setup_context=_remember_features)


@registered("triton_convolution", DEVICES)
def _operator(x: Tensor, made_of: Sequence[Tensor], scale: float) -> Tensor:
    return _convolve(x, made_of, scale)


@_operator.register_fake
def _(x: Tensor, made_of: Sequence[Tensor], scale: float) -> Tensor:
    return torch.empty_like(x, memory_format=torch.contiguous_format)


@registered("triton_convolution_gradients", DEVICES)
def _gradients_operator(
    x: Tensor, made_of: Sequence[Tensor], scale: float, gradient: Tensor, need_x: bool, need_filter: bool
) -> list[Tensor]:
    return _gradients(x, made_of, scale, gradient, need_x, need_filter)


@_gradients_operator.register_fake
def _(
    x: Tensor, made_of: Sequence[Tensor], scale: float, gradient: Tensor, need_x: bool, need_filter: bool
) -> list[Tensor]:
    for_x = torch.empty_like(x, memory_format=torch.contiguous_format) if need_x else x.new_empty(0)
    return [for_x, *(one.new_empty(one.shape if need_filter else (0,)) for one in made_of)]


def _remember(ctx: Any, inputs: tuple[Tensor, Sequence[Tensor], float], output: Tensor) -> None:
    x, made_of, ctx.scale = inputs
    ctx.save_for_backward(x, *made_of)


def _differentiate(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, list[Tensor | None], None]:
    x, *made_of = ctx.saved_tensors
    need_x, needs, _ = ctx.needs_input_grad
    twice, gradients = torch.is_grad_enabled() and not compiling(), None
    if compiling() or not wants_operations(gradient):
        with _unless_failed(), step("convolution"):
            gradients = _gradients_operator(x, made_of, ctx.scale, gradient, need_x, any(needs))
    if gradients is None:  # Leave all to autograd.
        with without_autocast(gradient), torch.enable_grad():
            inputs, wants = (x, *made_of), (need_x, *needs)
            if not twice:
                inputs = tuple(one.detach().requires_grad_(need) for one, need in zip(inputs, wants, strict=True))
            again = _plainly(inputs[0], _half_plane(inputs[1:], ctx.scale, x.shape))
            needed = [one for one, need in zip(inputs, wants, strict=True) if need]
            some = iter(torch.autograd.grad(again, needed, gradient, create_graph=twice))
            return next(some) if need_x else None, [next(some) if need else None for need in needs], None
    for_x, *for_filter = gradients
    wanted = [one if need else None for one, need in zip(for_filter, needs, strict=True)]
    return for_x if need_x else None, wanted, None


_operator.register_autograd(_differentiate, setup_context=_remember)


def _half_plane(made_of: Sequence[Tensor], scale: float, shape: torch.Size) -> Tensor:
    """The filter by ordinary operations."""
    if len(made_of) == 1:
        return made_of[0]
    features, weight, bias = made_of
    real, imaginary = weight @ features
    half = torch.complex(real + bias[0, :, None] * scale, imaginary)
    return half.view(shape[1], shape[2], -1)


def _transform_product_and_last(x: Tensor, made_of: Sequence[Tensor]) -> tuple[int, int, int]:
    """FLOPs of a real FFT of all images, a complex product on the half plane, and the last layer of either MLP."""
    batch, channels, height, width = x.shape
    points = height * (width // 2 + 1)
    last = 2 * made_of[1].numel() * points if len(made_of) > 1 else 0
    return fft_flops(height * width, batch * channels, real=True), 6 * batch * channels * points, last


@register_flop_formula(torch.ops.niffbench.triton_convolution, get_raw=True)
def _flops(x: Tensor, made_of: Sequence[Tensor], *_: Any, **__: Any) -> int:
    transform, product, last = _transform_product_and_last(x, made_of)
    return 2 * transform + product + last


@register_flop_formula(torch.ops.niffbench.triton_convolution_gradients, get_raw=True)
def _gradient_flops(
    x: Tensor, made_of: Sequence[Tensor], _: float, __: Tensor, need_x: bool, need_filter: bool, **___: Any
) -> int:
    """As of the kernels in C: see :mod:`niffbench.niff.native.generated`."""
    transform, product, last = _transform_product_and_last(x, made_of)
    points = x.shape[2] * (x.shape[3] // 2 + 1)
    added = product // 3 if x.shape[0] > 1 else 0
    for_bias = x.shape[1] * points if last and points > 1 else 0
    return (
        transform
        + (transform + product + last) * need_x
        + (transform + product + added + 2 * last + for_bias) * need_filter
    )


for _ours, _theirs in zip(("", "_gradient"), IN_C[2:4], strict=True):
    register_flop_formula(getattr(torch.ops.niffbench, f"triton_features{_ours}"), get_raw=True)(
        flop_registry[_theirs]
    )

OPERATIONS = tuple(
    getattr(torch.ops.niffbench, f"triton_{name}")
    for name in ("convolution", "convolution_gradients", "features", "features_gradient")
)
"""The kernels as operations of torch; each has a formula in torch's own registry of FLOPs."""
