"""Float64 references, written independently of the operators: direct sums, dense Fourier matrices, numpy's FFT.

A direct sum costs k² passes over the image. Where that would take more than about half a second the same sum is
taken by a linear convolution with numpy's FFT, long enough that nothing wraps; the tests hold one to the other.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

DIRECT_LIMIT = 500_000_000
"""Multiply-adds up to which the direct sum is taken."""


def convolve(x: Tensor, weight: Tensor, *, circular: bool, depthwise: bool = False) -> Tensor:
    """Convolution ("cross-correlation") of size "same", stride 1, circular or zero boundary.

    ``x`` is ``(B, Ci, H, W)``, ``weight`` ``(Co, Ci, k, l)`` with k and l odd, or ``(C, 1, k, l)`` when
    ``depthwise``; all float64. ``y[b, o, h, w] = Σ weight[o, i, m, n] · x[b, i, h + m - k//2, w + n - l//2]``.
    """
    multiply_adds = x.shape[0] * weight.numel() * x.shape[-2] * x.shape[-1]
    way = by_sum if multiply_adds <= DIRECT_LIMIT else by_transform
    return way(x, weight, circular=circular, depthwise=depthwise)


def by_sum(x: Tensor, weight: Tensor, *, circular: bool, depthwise: bool) -> Tensor:
    """The definition, one tap after the other."""
    *_, height, width = x.shape
    rows, columns = weight.shape[-2] // 2, weight.shape[-1] // 2
    padded = _extended(x, rows, columns, circular)
    y = torch.zeros(x.shape[0], weight.shape[0], height, width, dtype=x.dtype)
    for m in range(weight.shape[-2]):
        for n in range(weight.shape[-1]):
            window = padded[..., m : m + height, n : n + width]
            tap = weight[..., m, n]
            if depthwise:
                y.addcmul_(window, tap[:, 0, None, None])
            else:
                y += torch.einsum("bihw,oi->bohw", window, tap)
    return y


def by_transform(x: Tensor, weight: Tensor, *, circular: bool, depthwise: bool) -> Tensor:
    """The same sum: the extended image times the kernel, both transformed at a size at which nothing wraps."""
    *_, height, width = x.shape
    k, l = weight.shape[-2:]  # noqa: E741 - the kernel's sides
    padded = _extended(x, k // 2, l // 2, circular).numpy()
    size = (padded.shape[-2] + k - 1, padded.shape[-1] + l - 1)
    spectrum = np.fft.fft2(padded, s=size)
    kernel = np.conj(np.fft.fft2(weight.numpy(), s=size))
    mixed = spectrum * kernel[:, 0] if depthwise else np.einsum("bihw,oihw->bohw", spectrum, kernel, optimize=True)
    # Correlation: tap (m, n) of the kernel meets the extended image m rows down and n columns right.
    full = np.fft.ifft2(mixed).real
    return torch.from_numpy(np.ascontiguousarray(full[..., :height, :width]))


def _extended(x: Tensor, rows: int, columns: int, circular: bool) -> Tensor:
    """``x`` with ``rows`` and ``columns`` more on each side: of itself, or of zeros."""
    *_, height, width = x.shape
    if circular:
        down = torch.arange(-rows, height + rows) % height
        right = torch.arange(-columns, width + columns) % width
        return x[..., down[:, None], right]
    extended = torch.zeros(*x.shape[:-2], height + 2 * rows, width + 2 * columns, dtype=x.dtype)
    extended[..., rows : rows + height, columns : columns + width] = x
    return extended


def filtered(x: Tensor, spectrum: Tensor) -> Tensor:
    """``Re ifft2(W · fft2(x))`` with a full-plane filter in unshifted order.

    ``x`` is ``(B, Ci, H, W)`` float64; ``spectrum`` complex128, ``(C, H, W)`` for one filter a channel or
    ``(Ci, Co, H, W)`` to contract the channels.
    """
    image = np.fft.fft2(x.numpy())
    planes = spectrum.numpy()
    mixed = image * planes if planes.ndim == 3 else np.einsum("bihw,iohw->bohw", image, planes, optimize=True)
    return torch.from_numpy(np.ascontiguousarray(np.fft.ifft2(mixed).real))


def full_plane(half: Tensor, width: int) -> Tensor:
    """The filter that ``irfft2`` sees in a half plane ``(…, H, width // 2 + 1)``, on every frequency.

    The missing columns mirror the given ones. Column 0 and, for even ``width``, the last one are their own
    mirror images: of those a real result sees only the Hermitian part.
    """
    height = half.shape[-2]
    mirror = -torch.arange(height) % height
    plane = torch.zeros(*half.shape[:-1], width, dtype=half.dtype)
    plane[..., : half.shape[-1]] = half
    for column in range(half.shape[-1], width):
        plane[..., column] = half[..., mirror, width - column].conj()
    for column in {0, width // 2} if width % 2 == 0 else {0}:
        plane[..., column] = (half[..., column] + half[..., mirror, column].conj()) / 2
    return plane
