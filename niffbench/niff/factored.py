"""The full convolution without its filter, whose MLP's last layer is applied to spectrum and features instead.

The half plane of the filter from channel i to channel o is ``constant[o, i]`` plus a sum over the 2K features of
the MLPs' last hidden layers, of which those of the imaginary one count times i: see
:mod:`niffbench.niff.hermitian`. What channels are contracted with may therefore be the spectrum times each
feature, by one real matrix for all frequencies, ``mixing`` with ``Ci·2K`` columns; the ``Ci·Co`` planes, and
backward their gradients, are never made. It takes ``2K·Ci`` planes for each image instead, so images are done in
pieces.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from niffbench.niff.autograd import compiling, wants_gradient, wants_operations, watched, without_autocast
from niffbench.niff.catalogue import images_at_once
from niffbench.niff.steps import step


def convolve(x: Tensor, features: Tensor, mixing: Tensor, constant: Tensor) -> Tensor:
    """``(B, Ci, H, W)`` to ``(B, Co, H, W)``.

    Args:
        x: real images.
        features: ``(2, K, 2·H·(W // 2 + 1))``: even ones, then odd ones, each frequency's number twice.
        mixing: ``(Co, Ci·2·K)``.
        constant: ``(Co, Ci)``.

    The factor 1 / (H·W) of the inverse FFT is expected in ``features`` and ``constant``. Differentiable, twice
    too; backward makes one real FFT and one inverse.
    """
    if compiling() or watched():
        return _plainly(x, features, mixing, constant)
    if wants_gradient(x, features, mixing, constant):
        result: Tensor = _Convolution.apply(x, features, mixing, constant)
        return result
    return _forward(x, features, mixing, constant)[0]


def _plainly(x: Tensor, features: Tensor, mixing: Tensor, constant: Tensor) -> Tensor:
    """By ordinary operations; images keep the first axis, or torch 2.11 cannot export any number of them."""
    with step("forward fft"):
        spectrum: Tensor = torch.fft.rfft2(x)
    with step("mixing"):
        numbers = torch.view_as_real(torch.stack((spectrum, spectrum * 1j), dim=2)).flatten(-3)
        products = (numbers[:, :, :, None] * features).flatten(1, 3)
        mixed = constant @ numbers[:, :, 0] + mixing @ products
    return _inverse(mixed.transpose(0, 1).flatten(1), x.shape)


def _forward(x: Tensor, features: Tensor, mixing: Tensor, constant: Tensor) -> tuple[Tensor, Tensor]:
    """The convolution, and what :func:`_spectrum` makes of ``x``."""
    spectrum = _spectrum(x)
    with step("mixing"):
        mixed = constant @ spectrum
        for piece in _pieces(spectrum.shape[0], spectrum, features):
            products = _products(_both(spectrum[:, piece], features), features)
            mixed[:, piece].addmm_(mixing, products.view(mixing.shape[1], -1))
    return _inverse(mixed, x.shape), spectrum


class _Convolution(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, features: Tensor, mixing: Tensor, constant: Tensor) -> Tensor:
        result, spectrum = _forward(x, features, mixing, constant)
        keep = any(ctx.needs_input_grad[1:])
        ctx.save_for_backward(x, features, mixing, constant, spectrum if keep else None)
        return result

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, *weights, spectrum = ctx.saved_tensors
        with without_autocast(gradient):
            if wants_operations(gradient):  # Leave all to autograd.
                twice = torch.is_grad_enabled()
                wanted = [one for one, needed in zip((x, *weights), ctx.needs_input_grad, strict=True) if needed]
                with torch.enable_grad():
                    again = _plainly(x, *weights)
                    gradients = iter(torch.autograd.grad(again, wanted, gradient, create_graph=twice))
                return tuple(next(gradients) if needed else None for needed in ctx.needs_input_grad)
            for_spectrum, for_weights = _gradients(gradient, spectrum, ctx.needs_input_grad[0], *weights)
            return None if for_spectrum is None else _inverse(for_spectrum, x.shape), *for_weights


def _gradients(
    gradient: Tensor, spectrum: Tensor | None, need_x: bool, features: Tensor, mixing: Tensor, constant: Tensor
) -> tuple[Tensor | None, tuple[Tensor | None, ...]]:
    """Gradients with respect to what :func:`_inverse` makes ``x`` of, and weights if there is a ``spectrum``.

    In a real FFT's half plane every column but the first (and, for an even width, the last) stands for its mirror
    image too, and so counts twice in the weights' gradients.
    """
    width, spectra, length = gradient.shape[-1], constant.shape[1], features.shape[-1]
    outer = _spectrum(gradient)
    with step("mixing"):
        _paired(outer, width).mul_(2)
        for_spectrum = constant.T @ outer if need_x else None
        if spectrum is not None:
            for_features, for_mixing = torch.zeros_like(features), torch.zeros_like(mixing)
        for piece in _pieces(spectra, outer, features):
            for_products = (mixing.T @ outer[:, piece]).view(spectra, *features.shape[:2], -1, length)
            if spectrum is not None:
                both = _both(spectrum[:, piece], features)
                products = _products(both, features)
                for_mixing.addmm_(outer[:, piece], products.view(mixing.shape[1], -1).T)
                for part in (0, 1):
                    torch.mul(for_products[:, part], both[part][:, None], out=products[:, part])
                    for_features[part].add_(products[:, part].sum((0, 2)))
            if for_spectrum is not None:
                even, odd = for_products.mul_(features[:, :, None]).sum(2).flatten(2).unbind(1)
                for_spectrum[:, piece].add_(even).add_(_times(odd, -1j))
        if for_spectrum is not None:
            _paired(for_spectrum, width).mul_(0.5)
        if spectrum is None:
            return for_spectrum, (None, None, None)
        return for_spectrum, (for_features, for_mixing, outer @ spectrum.T)


def _pieces(channels: int, numbers: Tensor, features: Tensor) -> list[slice]:
    """Columns of each piece's images in ``numbers``, those of all; ``channels`` of each are multiplied."""
    length = features.shape[-1]
    columns = length * images_at_once(channels, features.shape[1], length // 2, numbers.element_size())
    return [slice(start, start + columns) for start in range(0, numbers.shape[1], columns)]


def _spectrum(images: Tensor) -> Tensor:
    """The real FFT, stored numbers of all images side by side: ``(channels, B·2·H·(W // 2 + 1))``."""
    with step("forward fft"):
        spectrum: Tensor = torch.fft.rfft2(images)
    with step("mixing"):
        return torch.view_as_real(spectrum).transpose(0, 1).reshape(images.shape[1], -1)


def _both(spectrum: Tensor, features: Tensor) -> tuple[Tensor, Tensor]:
    """A piece's spectrum, which even features are for, and times i, for the odd; real ``(Ci, b, numbers)``."""
    shape = (spectrum.shape[0], -1, features.shape[-1])
    return spectrum.view(shape), _times(spectrum, 1j).view(shape)


def _times(spectrum: Tensor, factor: complex) -> Tensor:
    """Complex numbers, stored as pairs along the columns, times ``factor``."""
    product = torch.view_as_complex(spectrum.view(spectrum.shape[0], -1, 2)) * factor
    return torch.view_as_real(product).flatten(1)


def _paired(spectrum: Tensor, width: int) -> Tensor:
    """The columns of the half plane that stand for two, of images ``width`` wide."""
    rows = spectrum.view(spectrum.shape[0], -1, width // 2 + 1, 2)
    return rows[:, :, 1 : (width + 1) // 2]


def _products(both: tuple[Tensor, Tensor], features: Tensor) -> Tensor:
    """``(Ci, 2, K, b, numbers)``."""
    channels, images, numbers = both[0].shape
    products = features.new_empty(channels, 2, features.shape[1], images, numbers)
    for part in (0, 1):
        torch.mul(both[part][:, None], features[part, :, None], out=products[:, part])
    return products


def _inverse(numbers: Tensor, shape: torch.Size) -> Tensor:
    """Back from :func:`_spectrum` to images, one after the other, of height and width as in ``shape``."""
    batch, _, height, width = shape
    with step("mixing"):
        pairs = numbers.view(numbers.shape[0], batch, height, width // 2 + 1, 2)
        spectrum = torch.view_as_complex(pairs).transpose(0, 1).contiguous()
    with step("inverse fft"):
        images: Tensor = torch.fft.irfft2(spectrum, s=(height, width), norm="forward")
    return images
