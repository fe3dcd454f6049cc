"""An independent, slow, float64 account of NIFF, against which the layers are tested.

Filters are evaluated frequency by frequency in NumPy from the definition; convolutions are sums over shifted
images. Nothing here calls an FFT of torch, nor any of the layers' own arithmetic.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from niffbench.niff import NiffFull, NiffPointwise, NiffSplit
from niffbench.niff.layer import FilteringLayer, SpectralLayer


def reference_filter(layer: FilteringLayer, height: int, width: int) -> np.ndarray:
    """W in unshifted order: the two MLPs at the coordinates of every frequency."""
    generator = layer.generator

    def coordinates(n: int) -> np.ndarray:
        shifted = np.arange(n) - (n / 2 if generator.grid == "paper" else n // 2)
        return np.fft.ifftshift(shifted)

    rows, columns = np.meshgrid(coordinates(height), coordinates(width), indexing="ij")
    parts = []
    for part in (0, 1):
        hidden = np.stack((columns.ravel(), rows.ravel()))
        for index in range(1, generator.depth + 1):
            weight = getattr(generator, f"weight{index}")[part].detach().double().numpy()
            bias = getattr(generator, f"bias{index}")[part].detach().double().numpy()
            if index > 1:
                hidden = hidden / (1 + np.exp(-hidden))
            hidden = weight @ hidden + bias[:, None]
        parts.append(hidden)
    return (parts[0] + 1j * parts[1]).reshape(*generator.shape, height, width)


def circular_convolution(x: Tensor, kernel: Tensor) -> Tensor:
    """``y[b, o, p] = Σ_i Σ_q kernel[i, o, q] · x[b, i, p - q]`` with indices modulo the image; float64."""
    x, kernel = x.detach().double(), kernel.detach().double()
    rows, columns = ((torch.arange(n)[:, None] - torch.arange(n)) % n for n in x.shape[2:])
    return torch.einsum("bipqrs,ioqs->bopr", x[:, :, rows][..., columns], kernel)


def reference_output(layer: SpectralLayer, x: Tensor) -> Tensor:
    """What a layer of any kind (channels first) must return for ``x``, in float64."""
    if isinstance(layer, NiffPointwise):
        return torch.einsum("oi,bihw->bohw", layer.weight.detach().double(), x.detach().double())
    assert isinstance(layer, FilteringLayer)
    kernel = torch.from_numpy(np.fft.ifft2(reference_filter(layer, *x.shape[-2:])).real.copy())
    if not isinstance(layer, NiffFull):
        kernel = torch.diag_embed(kernel.permute(1, 2, 0)).permute(2, 3, 0, 1)
    result = circular_convolution(x, kernel)
    if isinstance(layer, NiffSplit):
        result = torch.einsum("oi,bihw->bohw", layer.weight.detach().double(), result)
    return result
