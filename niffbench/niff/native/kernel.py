"""The kernels, in C for a CPU and in CUDA for a GPU, as one differentiable torch function."""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import _get_current_dispatch_mode
from torch.utils.flop_counter import register_flop_formula

from niffbench.lengths import fft_flops, largest_prime_factor
from niffbench.niff import fused
from niffbench.niff.autograd import compiling, transformed, wants_gradient, wants_operations, watched
from niffbench.niff.native import LANGUAGES, cuda
from niffbench.niff.native.build import load
from niffbench.niff.native.passes import cyclic_length
from niffbench.niff.native.registered import registered
from niffbench.niff.steps import is_recording, step

DEVICES = tuple(LANGUAGES)

REALS = {torch.float32: "float", torch.float64: "double"}
"""What is computed in, and C's name for it."""

CACHE_LINE = 64
"""Bytes, on all but a few CPUs."""

HALVES = {torch.bfloat16: 1, torch.float16: 2}
"""What images on a CPU may be of too, computed in float32, and their numbers in ``convolve.c``."""


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
        return fused.convolve(x.to(half.dtype.to_real()), half).to(x.dtype)
    if compiling() or watched() or type(x) not in (Tensor, nn.Parameter) or x.device.type == "meta":
        seen: Tensor = _operator(x, half)
        return seen
    if wants_gradient(x, half):
        result: Tensor = _Convolution.apply(x, half)
        return result
    return _forward(x, half)


def _check(x: Tensor, half: Tensor) -> None:
    """Raise for what the kernel, which trusts its addresses, must never be given."""
    check_images(x)
    _, channels, height, width = x.shape
    expected = (channels, height, width // 2 + 1)
    dtype = torch.promote_types(x.dtype, torch.complex64)
    if tuple(half.shape) != expected or half.dtype != dtype or half.device != x.device:
        raise ValueError(
            f"expected a filter of shape {expected} and dtype {dtype} on {x.device}, "
            f"got {tuple(half.shape)}, {half.dtype} on {half.device}"
        )


def check_images(x: Tensor) -> None:
    """Raise for images that no kernel takes."""
    if x.device.type not in DEVICES:
        raise NotImplementedError(
            f"the native form is not implemented for {x.device.type}: it runs on {' and '.join(DEVICES)}"
        )
    if x.dtype not in REALS and not takes(x):
        raise NotImplementedError(f"the native form is not implemented for {x.dtype} on {x.device.type}")


def takes(x: Tensor) -> bool:
    """Whether the kernel reads and writes such numbers itself, computing in float32: a half precision, on a CPU.

    Raises:
        Unavailable: if there is no kernel.
    """
    return x.is_cpu and x.dtype in HALVES and bool(load("float").niff_takes(HALVES[x.dtype]))


class _Convolution(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, half: Tensor) -> Tensor:
        ctx.save_for_backward(x, half)
        return _forward(x, half)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None]:
        x, half = ctx.saved_tensors
        if wants_operations(gradient):
            wide = x.to(half.dtype.to_real()), half, gradient.to(half.dtype.to_real())
            for_x, for_half = fused.gradients(*wide, ctx.needs_input_grad)
            return None if for_x is None else for_x.to(x.dtype), for_half
        return _backward(x, half, gradient, *ctx.needs_input_grad)


def _forward(x: Tensor, half: Tensor) -> Tensor:
    """The kernel by its address; through torch's dispatcher where somebody wants to see it."""
    with step("convolution"):
        if not _is_seen(x):
            return _convolve(x, half)
        seen: Tensor = torch.ops.niffbench.circular_convolution(x, half)  # of this call profilers know for certain
        return seen


def _is_seen(x: Tensor) -> bool:
    """Whether a dispatch mode, a FLOP counter say, looks on, or a GPU's profiler, which knows a kernel by the
    operator that launched it.
    """
    return _get_current_dispatch_mode() is not None or (x.is_cuda and is_recording())


def _backward(
    x: Tensor, half: Tensor, gradient: Tensor, need_x: bool, need_half: bool
) -> tuple[Tensor | None, Tensor | None]:
    """The gradients, likewise."""
    with step("convolution"):
        if not _is_seen(x):
            return _gradients(x, half, gradient, need_x, need_half)
        for_x, for_half = _gradients_operator(x, half, gradient, need_x, need_half)
        return for_x if need_x else None, for_half if need_half else None


def _convolve(x: Tensor, half: Tensor) -> Tensor:
    _check(x, half)
    if x.is_cuda:
        return cuda.convolve(dense(x)[0], half.resolve_conj().contiguous())
    x, last = dense(x)
    half = half.resolve_conj().contiguous()
    return call_for(x, last).convolve(x, Filter(half.data_ptr()))


class Filter(ctypes.Structure):
    """``Filter`` in ``convolve.c``; what a finished filter is not made of is left out."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("half", "features", "weight", "bias")),
        ("scale", ctypes.c_double),
        ("hidden", ctypes.c_int),
        *((name, ctypes.c_void_p) for name in ("shift", "limits")),
    )


@functools.lru_cache(maxsize=64)
def limits_in_c(limits: tuple[float, ...], dtype: torch.dtype) -> ctypes.Array[Any]:
    """A filter's ``limits`` as the kernel that computes in ``dtype`` reads them; somebody keeps them alive."""
    real = ctypes.c_float if dtype == torch.float32 else ctypes.c_double
    return (real * len(limits))(*limits)


class _Images(ctypes.Structure):
    """``Call`` in ``convolve.c``."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("down", "along")),
        *((name, ctypes.c_int64) for name in ("batch", "channels")),
        *((name, ctypes.c_int) for name in ("height", "width", "channels_last", "numbers")),
        *((name, ctypes.c_int) for name in ("threads", "backward_threads", "parts", "ways")),
    )


@dataclass(frozen=True)
class Call:
    """What calls of the C functions on images of one shape have in common.

    Attributes:
        axes: what the addresses in ``images`` lead to, kept alive.
        parts: how many the batch is divided into, backward, where there are fewer groups of channels than threads.
    """

    library: ctypes.CDLL
    images: _Images
    axes: tuple[object, object]
    address: int
    forward_bytes: int
    backward_bytes: int
    parts: int

    def convolve(
        self, x: Tensor, made_of: Filter, *, in_place: bool = False, memory: Tensor | None = None
    ) -> Tensor:
        """The convolution of such images; in their place, where nobody needs them, it misses less of the cache.

        Args:
            memory: scratch memory, at least ``forward_bytes``; by default new.
        """
        y = x if in_place else torch.empty_like(x)
        memory = workspace(self.forward_bytes) if memory is None else memory
        addresses = x.data_ptr(), y.data_ptr(), memory.data_ptr()
        self.library.niff_convolve(ctypes.byref(made_of), self.address, *addresses)
        return y

    def gradients(self, x: Tensor, made_of: Filter, gradient: Tensor, into: Sequence[Tensor | None]) -> None:
        """The gradients, each into its tensor: of x, half plane, features, weights, bias; None: unwanted."""
        memory = workspace(self.backward_bytes)
        self.library.niff_gradient(
            *(ctypes.byref(made_of), self.address, x.data_ptr(), gradient.data_ptr()),
            *(None if out is None else out.data_ptr() for out in into),
            memory.data_ptr(),
        )


def call_for(x: Tensor, last: bool, hidden: int = 0) -> Call:
    """With a filter of so many hidden features, or a finished one, for images as :func:`dense` gives them.

    Raises:
        Unavailable: if there is no kernel.
    """
    real = torch.promote_types(x.dtype, torch.float32)
    return _made_call(load(REALS[real]), x.shape, last, x.dtype, torch.get_num_threads(), hidden)


@functools.lru_cache(maxsize=256)
def _made_call(
    library: ctypes.CDLL, shape: torch.Size, last: bool, dtype: torch.dtype, threads: int, hidden: int
) -> Call:
    batch, channels, height, width = shape
    real = torch.promote_types(dtype, torch.float32)
    (down, down_address), (along, along_address) = _axis(height, real), _axis(width, real)
    axes = down_address, along_address
    lanes = int(library.niff_lanes())
    groups = -(-channels // lanes)
    parts = max(1, min(batch, -(-threads // groups)))
    forward_bytes, backward_bytes = (
        library.niff_workspace(height, width, planes, hidden, *axes)
        for planes in (1 if hidden and batch == 1 else 2, 4)
    )
    # With channels last a pixel's numbers may be half a cache line, whose other half is the next group's; of maps
    # that do not fit the cache themselves two at once were slower.
    halves = last and lanes * dtype.itemsize < CACHE_LINE and batch * groups >= 2 * threads
    halves = halves and forward_bytes <= library.niff_cache()
    forward, backward = max(1, min(threads, batch * groups)), min(threads, groups * parts)
    ways = 2 if halves else 1
    images = _Images(*axes, *shape, last, HALVES.get(dtype, 0), forward, backward, parts, ways)
    together = ways * forward * forward_bytes, backward * backward_bytes
    return Call(library, images, (down, along), ctypes.addressof(images), *together, parts)


def _gradients(
    x: Tensor, half: Tensor, gradient: Tensor, need_x: bool, need_half: bool
) -> tuple[Tensor | None, Tensor | None]:
    _check(x, half)
    x, last = dense(x)
    gradient = like(gradient, last)
    half = half.resolve_conj().contiguous()
    if x.is_cuda:
        return (
            cuda.convolve(gradient, half, conjugate=True) if need_x else None,
            cuda.filter_gradient(x, gradient) if need_half else None,
        )
    call = call_for(x, last)
    for_x = torch.empty_like(x) if need_x else None
    for_half = half.new_empty((call.parts, *half.shape)) if need_half else None
    call.gradients(x, Filter(half.data_ptr()), gradient, (for_x, for_half, None, None, None))
    return for_x, together(for_half)


def together(parts: Tensor | None) -> Tensor | None:
    """The sum of the parts' shares."""
    if parts is None:
        return None
    return parts.sum(0) if len(parts) > 1 else parts[0]


def dense(x: Tensor) -> tuple[Tensor, bool]:
    """Images that the kernel can take, and whether their channels come last."""
    x = x.resolve_neg()
    if x.is_contiguous() or x.is_cuda:
        return x.contiguous(), False
    if x.is_contiguous(memory_format=torch.channels_last):
        return x, True
    return x.contiguous(), False


def like(gradient: Tensor, last: bool) -> Tensor:
    """A gradient laid out as what :func:`dense` made of the images."""
    return gradient.resolve_neg().contiguous(
        memory_format=torch.channels_last if last else torch.contiguous_format
    )


def workspace(size: int) -> Tensor:
    """Scratch memory of so many bytes, from torch so that its profilers see it."""
    return torch.empty(size, dtype=torch.uint8, device="cpu")


class _Axis(ctypes.Structure):
    """``Axis`` in ``convolve.c``."""

    _fields_ = (
        ("roots", ctypes.c_void_p),
        ("prime", ctypes.c_int),
        ("size", ctypes.c_int),
        ("powers", ctypes.c_void_p),
        ("inner_roots", ctypes.c_void_p),
        ("kernel", ctypes.c_void_p),
    )


@functools.lru_cache(maxsize=64)
def _axis(length: int, dtype: torch.dtype) -> tuple[object, int]:
    """What C needs to know of a length, and where it is. By NumPy, on which no mode of torch has an effect."""
    real, prime = np.float32 if dtype == torch.float32 else np.float64, largest_prime_factor(length)
    arrays, powers = [_roots(length)], np.zeros(0, np.int32)
    size = cyclic_length(prime)
    if size:
        powers, kernel = _powers(prime), np.zeros(size, complex)
        kernel[: prime - 1] = _roots(prime)[np.roll(powers[::-1], 1)]
        if size > prime - 1:
            kernel[2 - prime :] = kernel[1 : prime - 1]
        arrays += [_roots(size), np.fft.fft(kernel) / size]
    stored = [np.stack((array.real, array.imag), axis=1).astype(real) for array in arrays]
    roots, *inner = (array.ctypes.data for array in stored)
    axis = _Axis(roots, prime if size else 0, size, powers.ctypes.data, *inner)
    return (axis, powers, stored), ctypes.addressof(axis)


def _roots(length: int) -> np.ndarray[Any, np.dtype[np.complex128]]:
    """``exp(-2πi k / length)`` for every k."""
    roots: np.ndarray[Any, np.dtype[np.complex128]] = np.exp(-2j * np.pi * np.arange(length) / length)
    return roots


def _powers(prime: int) -> np.ndarray[Any, np.dtype[np.int32]]:
    """All powers of the least number whose powers are all numbers but 0, modulo ``prime``."""
    for generator in range(2, prime):
        powers = [1]
        while (power := powers[-1] * generator % prime) != 1:
            powers.append(power)
        if len(powers) == prime - 1:
            return np.array(powers, np.int32)
    raise ValueError(f"{prime} is no odd prime")


# The same as operators of torch, for what traces instead of running (torch.compile, fake tensors), or counts.


@registered("circular_convolution", DEVICES)
def _operator(x: Tensor, half: Tensor) -> Tensor:
    return _convolve(x, half)


@_operator.register_fake
def _(x: Tensor, half: Tensor) -> Tensor:
    return torch.empty_like(dense(x)[0])


@register_flop_formula(torch.ops.niffbench.circular_convolution, get_raw=True)
def _flops(x: Tensor, half: Tensor, *_: Any, **__: Any) -> int:
    """Two real FFTs, and a complex product on the half plane."""
    return 2 * fft_flops(prod(x.shape[2:]), prod(x.shape[:2]), real=True) + 6 * x.shape[0] * half.numel()


@registered("circular_convolution_gradients", DEVICES)
def _gradients_operator(
    x: Tensor, half: Tensor, gradient: Tensor, need_x: bool, need_half: bool
) -> tuple[Tensor, Tensor]:
    for_x, for_half = _gradients(x, half, gradient, need_x, need_half)
    nothing = x.new_empty(0)
    return nothing if for_x is None else for_x, half.new_empty(0) if for_half is None else for_half


@_gradients_operator.register_fake
def _(x: Tensor, half: Tensor, gradient: Tensor, need_x: bool, need_half: bool) -> tuple[Tensor, Tensor]:
    for_x = torch.empty_like(dense(x)[0]) if need_x else x.new_empty(0)
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


_operator.register_autograd(_differentiate, setup_context=_remember)
