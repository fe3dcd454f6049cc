"""How the layers execute with torch's FFTs: pure functions of an input, a filter and a channel map.

``x`` is real ``(B, Ci, H, W)`` and a channel map ``weight`` is real ``(Co, Ci)``. A filter is complex: ``centred``
has zero frequency in the middle, ``plane`` is in unshifted order, and ``half`` is the Hermitian part of the latter
on the real FFT's half plane, ``(…, H, W // 2 + 1)``.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from niffbench.niff.steps import step


def published_depthwise(x: Tensor, centred: Tensor) -> Tensor:
    """The original's steps; ``centred`` is ``(C, H, W)``."""
    spectrum = _published_shift(_fft2(x), 1)
    with step("product"):
        spectrum = centred[None] * spectrum
    return _ifft2_real(_published_shift(spectrum, -1))


def published_full(x: Tensor, centred: Tensor) -> Tensor:
    """The original's steps; ``centred`` is ``(Ci, Co, H, W)``."""
    spectrum = _published_shift(_fft2(x), 1)
    with step("mixing"):
        spectrum = torch.einsum("bihw,iohw->bohw", spectrum, centred)
    return _ifft2_real(_published_shift(spectrum, -1))


def published_pointwise(x: Tensor, weight: Tensor) -> Tensor:
    """The original's steps: no shifts, the linear map over the last dimension and so two permutes."""
    return _ifft2_real(_published_mix(_fft2(x), weight))


def published_split(x: Tensor, centred: Tensor, weight: Tensor) -> Tensor:
    """The original's steps: the shift back comes after the linear map."""
    spectrum = _published_shift(_fft2(x), 1)
    with step("product"):
        spectrum = centred[None] * spectrum
    return _ifft2_real(_published_shift(_published_mix(spectrum, weight), -1))


def complex_depthwise(x: Tensor, plane: Tensor) -> Tensor:
    """Complex FFTs without shifts; ``plane`` is ``(C, H, W)``."""
    spectrum = _fft2(x)
    with step("product"):
        spectrum = spectrum * plane
    return _ifft2_real(spectrum)


def complex_full(x: Tensor, plane: Tensor) -> Tensor:
    """Complex FFTs without shifts; ``plane`` is ``(Ci, Co, H, W)``."""
    spectrum = _fft2(x)
    with step("mixing"):
        spectrum = torch.einsum("bihw,iohw->bohw", spectrum, plane)
    return _ifft2_real(spectrum)


def complex_pointwise(x: Tensor, weight: Tensor, dimensions: tuple[int, int] = (2, 3)) -> Tensor:
    """Complex FFTs over ``dimensions``, the linear map over the remaining channel dimension without permutes."""
    spectrum = _mix(_fft2(x, dimensions), weight, dimensions)
    with step("inverse fft"):
        spectrum = torch.fft.ifft2(spectrum, dim=dimensions)
    with step("real part"):
        return torch.real(spectrum)


def complex_split(x: Tensor, plane: Tensor, weight: Tensor) -> Tensor:
    """Complex FFTs without shifts; ``plane`` is ``(Ci, H, W)``."""
    spectrum = _fft2(x)
    with step("product"):
        spectrum = spectrum * plane
    return _ifft2_real(_mix(spectrum, weight, (2, 3)))


def real_depthwise(x: Tensor, half: Tensor) -> Tensor:
    """Real FFTs; ``half`` is ``(C, H, W // 2 + 1)``."""
    spectrum = _rfft2(x)
    with step("product"):
        spectrum = spectrum * half
    return _irfft2(spectrum, x.shape)


def real_full(x: Tensor, half: Tensor) -> Tensor:
    """Real FFTs; ``half`` is ``(Ci, Co, H, W // 2 + 1)``."""
    spectrum = _rfft2(x)
    with step("mixing"):
        spectrum = torch.einsum("bihw,iohw->bohw", spectrum, half)
    return _irfft2(spectrum, x.shape)


def real_matrices(x: Tensor, matrices: Tensor) -> Tensor:
    """Real FFTs; ``matrices`` is ``(H · (W // 2 + 1), Ci, Co)``, one for each frequency."""
    spectrum = _rfft2(x)
    with step("mixing"):
        height, columns = spectrum.shape[2:]
        mixed = spectrum.flatten(2).permute(2, 0, 1) @ matrices
        spectrum = mixed.permute(1, 2, 0).view(*mixed.shape[1:], height, columns)
    return _irfft2(spectrum, x.shape)


def real_pointwise(x: Tensor, weight: Tensor, dimensions: tuple[int, int] = (2, 3)) -> Tensor:
    """Real FFTs over ``dimensions`` and the linear map on the half plane."""
    return _irfft2(_mix(_rfft2(x, dimensions), weight, dimensions), x.shape, dimensions)


def real_split(x: Tensor, half: Tensor, weight: Tensor) -> Tensor:
    """Real FFTs; ``half`` is ``(Ci, H, W // 2 + 1)``."""
    spectrum = _rfft2(x)
    with step("product"):
        spectrum = spectrum * half
    return _irfft2(_mix(spectrum, weight, (2, 3)), x.shape)


def mix_images(x: Tensor, weight: Tensor) -> Tensor:
    """The linear map as an ordinary 1×1 convolution."""
    with step("mixing"):
        return F.conv2d(x, weight[:, :, None, None])


def _published_shift(spectrum: Tensor, direction: int) -> Tensor:
    """Move zero frequency to the middle (``direction=1``) or back (-1), at the price the original pays.

    The original calls ``fftshift`` without ``dim`` and so rolls batch and channels too: four passes instead of
    two. All four are made here. The batch is rolled and rolled back; channels are rolled by 0, which costs the
    same and leaves channel ``c`` with filter plane ``c``.
    """
    batch, _, height, width = spectrum.shape
    shifts = (direction * (batch // 2), 0, direction * (height // 2), direction * (width // 2))
    with step("shift"):
        return torch.roll(spectrum, shifts, dims=(0, 1, 2, 3))


def _published_mix(spectrum: Tensor, weight: Tensor) -> Tensor:
    """The linear map on real and imaginary parts with channels moved to the end and back."""
    with step("mixing"):
        last = spectrum.permute(0, 2, 3, 1)
        mixed = torch.complex(F.linear(torch.real(last), weight), F.linear(torch.imag(last), weight))
        return mixed.permute(0, 3, 1, 2)


def _mix(spectrum: Tensor, weight: Tensor, dimensions: tuple[int, int]) -> Tensor:
    """The linear map over the channels of a complex spectrum: one real matrix product on the stored numbers."""
    with step("mixing"):
        numbers = torch.view_as_real(spectrum.resolve_conj())
        if dimensions == (2, 3):
            batch, _, height, width, _ = numbers.shape
            mixed = (weight @ numbers.reshape(batch, weight.shape[1], -1)).view(batch, -1, height, width, 2)
        else:
            mixed = torch.einsum("oi,bhwir->bhwor", weight, numbers)
        return torch.view_as_complex(mixed.contiguous())


def _fft2(x: Tensor, dimensions: tuple[int, int] = (2, 3)) -> Tensor:
    with step("forward fft"):
        spectrum: Tensor = torch.fft.fft2(x, dim=dimensions)
    return spectrum


def _ifft2_real(spectrum: Tensor) -> Tensor:
    with step("inverse fft"):
        images = torch.fft.ifft2(spectrum)
    with step("real part"):
        return torch.real(images)


def _rfft2(x: Tensor, dimensions: tuple[int, int] = (2, 3)) -> Tensor:
    with step("forward fft"):
        spectrum: Tensor = torch.fft.rfft2(x, dim=dimensions)
    return spectrum


def _irfft2(spectrum: Tensor, shape: torch.Size, dimensions: tuple[int, int] = (2, 3)) -> Tensor:
    """Back to images of height and width as in ``shape``, which an odd width makes necessary to say."""
    with step("inverse fft"):
        sizes = [shape[dimension] for dimension in dimensions]
        images: Tensor = torch.fft.irfft2(spectrum, s=sizes, dim=dimensions)
    return images
