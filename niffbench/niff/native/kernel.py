"""The kernels, in C for a CPU and in CUDA for a GPU, as one differentiable torch function."""

from __future__ import annotations

import ctypes
import functools
from math import prod
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import _get_current_dispatch_mode
from torch.utils.flop_counter import register_flop_formula

from niffbench.lengths import fft_flops
from niffbench.niff import fused
from niffbench.niff.autograd import compiling, transformed, wants_gradient, watched
from niffbench.niff.native import LANGUAGES, cuda
from niffbench.niff.native.build import load
from niffbench.niff.steps import step

DEVICES = tuple(LANGUAGES)

_REALS = {torch.float32: "float", torch.float64: "double"}
_COMPLEX = {torch.float32: torch.complex64, torch.float64: torch.complex128}


def convolve(x: Tensor, half: Tensor) -> Tensor:
    """``H·W · irfft2(half · rfft2(x))`` on a CPU or a CUDA GPU, as :func:`niffbench.niff.fused.convolve`.

    x is real ``(B, C, H, W)``, half complex ``(C, H, W // 2 + 1)``. Contiguous images are taken as they are, on a
    CPU channels-last ones too, and the result has the same memory format; others are copied. Differentiable, twice
    too; backward transforms real images only, and makes the spectrum of ``x`` again instead of keeping it.

    Raises:
        niffbench.niff.native.build.Unavailable: if the kernel cannot be compiled here.
        NotImplementedError: on another device, for a dtype other than float32 and float64, and on a GPU for sides
            beyond :data:`niffbench.niff.native.cuda_source.LARGEST_SIDE`.
        ValueError: if ``half`` is not the half plane of such images in the same precision.
    """
    if transformed():
        return fused.convolve(x, half)
    if compiling() or watched() or type(x) not in (Tensor, nn.Parameter) or x.device.type == "meta":
        seen: Tensor = _operator(x, half)
        return seen
    if wants_gradient(x, half):
        result: Tensor = _Convolution.apply(x, half)
        return result
    return _forward(x, half)


def _check(x: Tensor, half: Tensor) -> None:
    """Raise for what the kernel, which trusts its addresses, must never be given."""
    if x.device.type not in DEVICES:
        raise NotImplementedError(
            f"the native form is not implemented for {x.device.type}: it runs on {' and '.join(DEVICES)}"
        )
    if x.dtype not in _REALS:
        raise NotImplementedError(f"the native form is not implemented for {x.dtype}")
    _, channels, height, width = x.shape
    expected = (channels, height, width // 2 + 1)
    if tuple(half.shape) != expected or half.dtype != _COMPLEX[x.dtype] or half.device != x.device:
        raise ValueError(
            f"expected a filter of shape {expected} and dtype {_COMPLEX[x.dtype]} on {x.device}, "
            f"got {tuple(half.shape)}, {half.dtype} on {half.device}"
        )


class _Convolution(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, half: Tensor) -> Tensor:
        ctx.save_for_backward(x, half)
        return _forward(x, half)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None]:
        x, half = ctx.saved_tensors
        if torch.is_grad_enabled():
            return fused.gradients(x, half, gradient, ctx.needs_input_grad)
        return _backward(x, half, gradient, *ctx.needs_input_grad)


def _forward(x: Tensor, half: Tensor) -> Tensor:
    """The kernel by its address; through torch's dispatcher where a mode, a FLOP counter say, wants to see it."""
    if _get_current_dispatch_mode() is not None:
        seen: Tensor = _operator(x, half)
        return seen
    with step("convolution"):
        return _convolve(x, half)


def _backward(
    x: Tensor, half: Tensor, gradient: Tensor, need_x: bool, need_half: bool
) -> tuple[Tensor | None, Tensor | None]:
    """The gradients, likewise."""
    if _get_current_dispatch_mode() is not None:
        for_x, for_half = _gradients_operator(x, half, gradient, need_x, need_half)
        return for_x if need_x else None, for_half if need_half else None
    with step("convolution"):
        return _gradients(x, half, gradient, need_x, need_half)


def _convolve(x: Tensor, half: Tensor) -> Tensor:
    _check(x, half)
    x, last = _dense(x)
    half = half.resolve_conj().contiguous()
    if x.is_cuda:
        return cuda.convolve(x, half)
    y = torch.empty_like(x)
    batch, channels, height, width = x.shape
    library = load(_REALS[x.dtype])
    threads = max(1, min(torch.get_num_threads(), batch * -(-channels // _lanes(library))))
    memory = _workspace(library, threads, height, width, planes=2)
    library.niff_convolve(
        *(x.data_ptr(), half.data_ptr(), y.data_ptr(), batch, channels, height, width, last),
        *(_roots(height, x.dtype)[1], _roots(width, x.dtype)[1], memory.data_ptr(), threads),
    )
    return y


def _gradients(
    x: Tensor, half: Tensor, gradient: Tensor, need_x: bool, need_half: bool
) -> tuple[Tensor | None, Tensor | None]:
    _check(x, half)
    x, last = _dense(x)
    gradient = gradient.contiguous(memory_format=torch.channels_last if last else torch.contiguous_format)
    half = half.resolve_conj().contiguous()
    if x.is_cuda:
        return (
            cuda.convolve(gradient, half, conjugate=True) if need_x else None,
            cuda.filter_gradient(x, gradient) if need_half else None,
        )
    batch, channels, height, width = x.shape
    library = load(_REALS[x.dtype])
    groups = -(-channels // _lanes(library))
    threads = torch.get_num_threads()
    parts = max(1, min(batch, -(-threads // groups)))  # Fewer groups of channels than threads: divide the batch.
    threads = min(threads, groups * parts)
    memory = _workspace(library, threads, height, width, planes=4)
    for_x = torch.empty_like(x) if need_x else None
    for_half = half.new_empty((parts, *half.shape)) if need_half else None
    library.niff_gradient(
        *(x.data_ptr(), half.data_ptr(), gradient.data_ptr()),
        *(None if out is None else out.data_ptr() for out in (for_x, for_half)),
        *(batch, channels, height, width, last, parts),
        *(_roots(height, x.dtype)[1], _roots(width, x.dtype)[1], memory.data_ptr(), threads),
    )
    if for_half is not None:
        for_half = for_half.sum(0) if parts > 1 else for_half[0]
    return for_x, for_half


def _dense(x: Tensor) -> tuple[Tensor, bool]:
    """Images that the kernel can take, and whether their channels come last."""
    if x.is_contiguous() or x.is_cuda:
        return x.contiguous(), False
    if x.is_contiguous(memory_format=torch.channels_last):
        return x, True
    return x.contiguous(), False


def _workspace(library: ctypes.CDLL, threads: int, height: int, width: int, planes: int) -> Tensor:
    """Scratch memory, from torch so that its profilers see it."""
    return torch.empty(threads * library.niff_workspace(height, width, planes), dtype=torch.uint8)


@functools.cache
def _lanes(library: ctypes.CDLL) -> int:
    return int(library.niff_lanes())


@functools.lru_cache(maxsize=64)
def _roots(length: int, dtype: torch.dtype) -> tuple[object, int]:
    """``exp(-2πi k / length)`` for every k, and where it is. By NumPy, on which no mode of torch has an effect."""
    angles = -2 * np.pi * np.arange(length) / length
    roots = np.stack((np.cos(angles), np.sin(angles)), axis=1)
    roots = roots.astype(np.float32 if dtype == torch.float32 else np.float64)
    return roots, roots.ctypes.data


# The same as operators of torch, for what traces instead of running (torch.compile, fake tensors), or counts.


@torch.library.custom_op("niffbench::circular_convolution", mutates_args=(), device_types=DEVICES)
def _operator(x: Tensor, half: Tensor) -> Tensor:
    return _convolve(x, half)


@_operator.register_fake
def _(x: Tensor, half: Tensor) -> Tensor:
    return torch.empty_like(_dense(x)[0])


@register_flop_formula(torch.ops.niffbench.circular_convolution, get_raw=True)
def _flops(x: Tensor, half: Tensor, *_: Any, **__: Any) -> int:
    """Two real FFTs, and a complex product on the half plane."""
    return 2 * fft_flops(prod(x.shape[2:]), prod(x.shape[:2]), real=True) + 6 * x.shape[0] * half.numel()


@torch.library.custom_op("niffbench::circular_convolution_gradients", mutates_args=(), device_types=DEVICES)
def _gradients_operator(
    x: Tensor, half: Tensor, gradient: Tensor, need_x: bool, need_half: bool
) -> tuple[Tensor, Tensor]:
    for_x, for_half = _gradients(x, half, gradient, need_x, need_half)
    nothing = x.new_empty(0)
    return nothing if for_x is None else for_x, half.new_empty(0) if for_half is None else for_half


@_gradients_operator.register_fake
def _(x: Tensor, half: Tensor, gradient: Tensor, need_x: bool, need_half: bool) -> tuple[Tensor, Tensor]:
    for_x = torch.empty_like(_dense(x)[0]) if need_x else x.new_empty(0)
    return for_x, half.new_empty(half.shape if need_half else 0)


@register_flop_formula(torch.ops.niffbench.circular_convolution_gradients, get_raw=True)
def _gradient_flops(x: Tensor, half: Tensor, _: Tensor, need_x: bool, need_half: bool, **__: Any) -> int:
    """An FFT of the gradient, and for each gradient that is wanted another and a product; a sum over the batch."""
    transform = fft_flops(prod(x.shape[2:]), prod(x.shape[:2]), real=True)
    product = 6 * x.shape[0] * half.numel()
    added = 2 * x.shape[0] * half.numel() if x.shape[0] > 1 else 0
    return transform + (transform + product) * need_x + (transform + product + added) * need_half


def _remember(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _differentiate(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None]:
    need_x, need_half = ctx.needs_input_grad
    for_x, for_half = _gradients_operator(*ctx.saved_tensors, gradient, need_x, need_half)
    return for_x if need_x else None, for_half if need_half else None


OPERATIONS = (torch.ops.niffbench.circular_convolution, torch.ops.niffbench.circular_convolution_gradients)
"""The kernels as operations of torch; each has a formula in torch's own registry of FLOPs."""

_operator.register_autograd(_differentiate, setup_context=_remember)
