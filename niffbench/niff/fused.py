"""The depthwise convolution by torch's FFTs with nothing to spare: in place, unscaled, real transforms only."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from niffbench.niff.autograd import wants_gradient, watched
from niffbench.niff.steps import step


def convolve(x: Tensor, half: Tensor) -> Tensor:
    """``H·W · irfft2(half · rfft2(x))`` of x, real ``(B, C, H, W)``, and half, complex ``(C, H, W // 2 + 1)``.

    The factor 1 / (H·W) of the inverse FFT is expected in ``half``, where it costs nothing. Differentiable, twice
    too; backward makes one real FFT and one inverse (that of torch's own ``rfft2`` is a complex FFT).
    """
    plainly = watched()
    if wants_gradient(x, half) and not plainly:
        result: Tensor = _Convolution.apply(x, half)
        return result
    with step("forward fft"):
        spectrum: Tensor = torch.fft.rfft2(x)
    with step("product"):
        spectrum = spectrum * half if plainly else spectrum.mul_(half)
    return _inverse(spectrum, x.shape)


def gradients(
    x: Tensor, half: Tensor, gradient: Tensor, needs: tuple[bool, bool], spectrum: Tensor | None = None
) -> tuple[Tensor | None, Tensor | None]:
    """Gradients of :func:`convolve` with respect to ``x`` and ``half``, by differentiable operations.

    ``needs`` says which of the two are wanted; ``spectrum`` is ``rfft2(x)`` if it is at hand. In a real FFT's
    half plane every column but the first (and, for an even width, the last) stands for its mirror image too, and
    so counts twice in the gradient of ``half``.
    """
    need_x, need_half = needs
    for_x, for_half = None, None
    with step("forward fft"):
        outer: Tensor = torch.fft.rfft2(gradient)
    if need_half:
        if spectrum is None:
            with step("forward fft"):
                spectrum = torch.fft.rfft2(x)
        with step("product"):
            for_half = torch.linalg.vecdot(spectrum, outer, dim=0)
            for_half[..., 1 : (x.shape[-1] + 1) // 2].mul_(2)
    if need_x:
        with step("product"):
            product = outer * half.conj()
        for_x = _inverse(product, x.shape)
    return for_x, for_half


class _Convolution(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, half: Tensor) -> Tensor:
        with step("forward fft"):
            spectrum: Tensor = torch.fft.rfft2(x)
        keep = ctx.needs_input_grad[1]
        ctx.save_for_backward(x, half, spectrum if keep else None)
        with step("product"):
            product = spectrum * half if keep else spectrum.mul_(half)
        return _inverse(product, x.shape)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None]:
        x, half, spectrum = ctx.saved_tensors
        if torch.is_grad_enabled():
            spectrum = None  # To be differentiated again it must be seen to come from x.
        return gradients(x, half, gradient, ctx.needs_input_grad, spectrum)


def _inverse(spectrum: Tensor, shape: torch.Size) -> Tensor:
    with step("inverse fft"):
        images: Tensor = torch.fft.irfft2(spectrum, s=shape[-2:], norm="forward")
    return images
