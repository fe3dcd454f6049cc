"""The depthwise convolution by matrix products alone: for maps so small that an FFT's overhead is most of it.

The discrete Fourier transform of an image is a product with a constant matrix: at once for a whole small image, or
by its rows and then its columns. Gradients are matrix products too, by torch's own rules.
"""

from __future__ import annotations

import torch
from torch import Tensor

from niffbench.niff.autograd import wants_gradient, watched
from niffbench.niff.grid import Remembered
from niffbench.niff.steps import step

AT_ONCE = 256
"""Pixels up to which an image is transformed by one matrix: beyond it two smaller products are fewer FLOPs."""


def convolve(x: Tensor, half: Tensor, constants: Remembered) -> Tensor:
    """As :func:`niffbench.niff.fused.convolve`; the matrices are kept in ``constants``."""
    height, width = x.shape[-2:]
    if height * width <= AT_ONCE:
        return _at_once(x, half, constants)
    return _by_rows_and_columns(x, half, constants)


def _at_once(x: Tensor, half: Tensor, constants: Remembered) -> Tensor:
    batch, channels, height, width = x.shape
    key = (height, width, x.dtype, x.device)
    forward = constants.get(("to half plane", *key), lambda: _plane(height, width).to(x), x)
    inverse = constants.get(("to image", *key), lambda: _image(height, width).to(x), x)
    with step("forward fft"):
        numbers = x.reshape(batch * channels, height * width) @ forward
    with step("product"):
        numbers = _product(numbers.view(batch, channels, height, -1, 2), half)
    with step("inverse fft"):
        return (numbers.reshape(batch * channels, -1) @ inverse).view(x.shape)


def _by_rows_and_columns(x: Tensor, half: Tensor, constants: Remembered) -> Tensor:
    batch, channels, height, width = x.shape
    planes, columns = batch * channels, width // 2 + 1
    key = (height, width, x.dtype, x.device)
    along = constants.get(("along", *key), lambda: _rows(width).to(x), x)
    down = constants.get(("down", *key), lambda: _columns(height).to(x), x)
    up = constants.get(("up", *key), lambda: _columns(height).T.contiguous().to(x), x)
    back = constants.get(("back", *key), lambda: _rows_inverse(width).to(x), x)
    with step("forward fft"):
        images = x.reshape(planes, height, width).transpose(1, 2)
        rows = along.expand(planes, -1, -1) @ images
        numbers = rows.view(planes * columns, 2 * height) @ down
    with step("product"):
        numbers = _product(numbers.view(batch, channels, columns, height, 2), half.transpose(-1, -2))
    with step("inverse fft"):
        rows = (numbers.reshape(planes * columns, 2 * height) @ up).view(planes, 2 * columns, height)
        return (rows.transpose(1, 2) @ back.expand(planes, -1, -1)).view(x.shape)


def _product(numbers: Tensor, half: Tensor) -> Tensor:
    """Complex numbers as pairs, times the filter; in place if nobody needs what was there."""
    spectrum = torch.view_as_complex(numbers)
    if wants_gradient(spectrum, half) or watched():
        return torch.view_as_real(spectrum * half)
    return torch.view_as_real(spectrum.mul_(half))


def _angles(n: int) -> Tensor:
    """2π·j·k / n for every j and k, ``(n, n)``; reduced before scaling, so that large products stay exact."""
    index = torch.arange(n)
    return (torch.outer(index, index) % n).double() * (2 * torch.pi / n)


def _rows(width: int) -> Tensor:
    """A row to its half spectrum: ``(2·columns, width)``, real and imaginary parts in turn."""
    angles = _angles(width)[: width // 2 + 1]
    return torch.stack((angles.cos(), -angles.sin()), dim=1).flatten(0, 1)


def _rows_inverse(width: int) -> Tensor:
    """The unscaled inverse of :func:`_rows`, ``(2·columns, width)``: columns with a mirror image count twice.

    Like an inverse real FFT it has no use for the imaginary part of a column that is its own mirror image.
    """
    column = torch.arange(width // 2 + 1)
    factor = torch.where((column == 0) | (2 * column == width), 1.0, 2.0)
    return _rows(width) * factor.repeat_interleave(2)[:, None]


def _columns(height: int) -> Tensor:
    """A column, all real parts before all imaginary parts, to its spectrum, real and imaginary parts in turn.

    ``(2·height, 2·height)``, to be multiplied from the right; its transpose is the unscaled inverse.
    """
    cosine, sine = _angles(height).cos(), _angles(height).sin()
    from_real = torch.stack((cosine, -sine), dim=-1).flatten(1)
    from_imaginary = torch.stack((sine, cosine), dim=-1).flatten(1)
    return torch.cat((from_real, from_imaginary))


def _plane(height: int, width: int) -> Tensor:
    """A whole image to its half plane: ``(height·width, height·columns·2)``."""
    down, along = _angles(height), _angles(width)[:, : width // 2 + 1]
    angles = down[:, None, :, None] + along[None, :, None, :]
    return torch.stack((angles.cos(), -angles.sin()), dim=-1).view(height * width, -1)


def _image(height: int, width: int) -> Tensor:
    """The unscaled inverse of :func:`_plane`, ``(height·columns·2, height·width)``."""
    column = torch.arange(width // 2 + 1)
    factor = torch.where((column == 0) | (2 * column == width), 1.0, 2.0)
    return _plane(height, width).T * factor.repeat_interleave(2).repeat(height)[:, None]
