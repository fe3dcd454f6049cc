"""Circular convolution of real images with a frequency filter: how the depthwise forms execute.

``x`` is real ``(B, C, H, W)``; every function returns the real ``(B, C, H, W)``
``ifft2(W · fft2(x)).real`` (NIFF, "Modules" and "Exact equivalences").
"""

from __future__ import annotations

import torch
from torch import Tensor

from niffbench.niff.steps import step


def published_shift(spectrum: Tensor, direction: int) -> Tensor:
    """Move zero frequency to the middle (``direction=1``) or back (-1), at the price the original pays.

    The original calls ``fftshift`` without ``dim`` and so rolls batch and channels too: four passes instead of
    two. All four are made here. The batch is rolled and rolled back; channels are rolled by 0, which costs the
    same and leaves channel ``c`` with filter plane ``c``.
    """
    batch, _, height, width = spectrum.shape
    shifts = (direction * (batch // 2), 0, direction * (height // 2), direction * (width // 2))
    return torch.roll(spectrum, shifts, dims=(0, 1, 2, 3))


def published_depthwise(x: Tensor, filter_: Tensor) -> Tensor:
    """The original's steps; ``filter_`` is ``(C, H, W)`` with zero frequency in the middle."""
    with step("forward fft"):
        spectrum = torch.fft.fft2(x)
    with step("shift"):
        spectrum = published_shift(spectrum, 1)
    with step("product"):
        spectrum = filter_[None] * spectrum
    with step("shift"):
        spectrum = published_shift(spectrum, -1)
    with step("inverse fft"):
        spectrum = torch.fft.ifft2(spectrum)
    with step("real part"):
        return torch.real(spectrum)


def complex_depthwise(x: Tensor, filter_: Tensor) -> Tensor:
    """Complex FFTs and no shifts; ``filter_`` is ``(C, H, W)`` in unshifted order."""
    with step("forward fft"):
        spectrum = torch.fft.fft2(x)
    with step("product"):
        spectrum = spectrum * filter_
    with step("inverse fft"):
        spectrum = torch.fft.ifft2(spectrum)
    with step("real part"):
        return torch.real(spectrum)


def real_depthwise(x: Tensor, half: Tensor) -> Tensor:
    """Real FFTs; ``half`` is the filter's Hermitian half plane ``(C, H, W // 2 + 1)``."""
    with step("forward fft"):
        spectrum = torch.fft.rfft2(x)
    with step("product"):
        spectrum = spectrum * half
    with step("inverse fft"):
        result: Tensor = torch.fft.irfft2(spectrum, s=x.shape[-2:])
    return result
