"""Effective filter size: how much of a learned, image-sized filter is used, and what a small kernel would lose.

The measures are those of Grabinski, Keuper and Keuper, TMLR 2024, with two corrections to the published
notebook: the spatial kernel is ``Re ifft2`` of the filter in unshifted order (the notebook skips the shift back,
which for even sides multiplies the kernel by a checkerboard of signs), and the i-th window is 2i + 1 wide, so
that a centred delta has all of its mass in the 1×1 window.

A layer's kernels are the rows of a real tensor ``(kernels, H, W)``, zero offset at ``[H // 2, W // 2]``: one per
channel for depthwise and split layers, one per pair of channels for full ones.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from niffbench.niff import spectral
from niffbench.niff.catalogue import one_of
from niffbench.niff.layer import FilteringLayer
from niffbench.niff.networks import niff_layers
from niffbench.niff.split import NiffSplit

BOUNDARIES = ("circular", "zeros")
"""Paddings of a truncated convolution, as ``nn.Conv2d`` calls them; only circular is NIFF's own."""


@dataclass(frozen=True)
class FilterSize:
    """How large the kernels of one layer are, on the H×W grid it runs at.

    Attributes:
        mass_ratio: entry i is the mean over kernels of the share of Σ|k| inside the centred (2i + 1)² window.
        explained_variance: shares of the variance over kernels that the leading principal components explain.
        explained_variance_crop: the same of the central crop of the kernels (see ``crop_side``).
    """

    height: int
    width: int
    kernels: int
    mass_ratio: tuple[float, ...]
    explained_variance: tuple[float, ...]
    explained_variance_crop: tuple[float, ...]
    crop_side: int

    def side(self, share: float) -> int:
        """The side 2i + 1 of the smallest centred window that holds ``share`` of the mass, on average."""
        return 1 + 2 * next(i for i, ratio in enumerate(self.mass_ratio) if ratio >= share - 1e-6)

    def width_of(self, share: float) -> float:
        """The same, interpolated between whole windows, of which that without a pixel holds nothing."""
        sides = [0.0, *(min(2 * i + 1, max(self.height, self.width)) for i in range(len(self.mass_ratio)))]
        ratios = [0.0, *self.mass_ratio]
        last = next(i for i, ratio in enumerate(ratios) if ratio >= share - 1e-6)
        part = (share - ratios[last - 1]) / (ratios[last] - ratios[last - 1])
        return sides[last - 1] + min(part, 1.0) * (sides[last] - sides[last - 1])


@dataclass(frozen=True)
class Truncation:
    """A layer as a k×k convolution: what is lost and what is saved.

    Attributes:
        side: k, the smallest odd one whose ``error`` is within the tolerance; ``None`` if none is.
        error: ``‖y - y_k‖ / ‖y‖`` over one batch of inputs of the layer, at ``side`` (else at the largest tried).
        flops_then: per image, forward, of the k×k convolution.
        parameters_now, parameters_then: learnable scalars.
    """

    height: int
    width: int
    side: int | None
    error: float
    flops_then: int
    parameters_now: int
    parameters_then: int


def kernels_of(layer: FilteringLayer, height: int, width: int) -> Tensor:
    """The layer's spatial kernels on an H×W grid, one a row; real ``(kernels, H, W)``, without gradient."""
    with torch.no_grad():
        return layer.spatial_kernel(height, width).reshape(-1, height, width)


def mass_ratio(kernels: Tensor) -> Tensor:
    """Kernel mass ratio: mean over kernels of Σ|k| inside the centred (2i + 1)² window over Σ|k|.

    Entry i is for window side 2i + 1; the last window covers the kernel. A kernel that is zero everywhere
    counts as a delta.
    """
    mass = kernels.detach().abs().double()
    offsets = [torch.arange(side, device=mass.device) - side // 2 for side in mass.shape[-2:]]
    ring = torch.maximum(offsets[0].abs()[:, None], offsets[1].abs()[None, :]).flatten()
    by_ring = torch.zeros(mass.shape[0], int(ring.max()) + 1, dtype=mass.dtype, device=mass.device)
    by_ring.index_add_(1, ring, mass.flatten(1))
    by_ring[:, 0] += by_ring.sum(1) == 0
    return (by_ring.cumsum(1) / by_ring.sum(1, keepdim=True)).mean(0)


def explained_variance(kernels: Tensor, components: int = 10) -> Tensor:
    """Shares of the variance over kernels explained by the leading principal components, largest first.

    At most ``components``, fewer if there are fewer kernels or taps. Kernels that do not vary give zeros.
    """
    rows = kernels.detach().flatten(1).double()
    rows = rows - rows.mean(0)
    gram = rows @ rows.T if rows.shape[0] <= rows.shape[1] else rows.T @ rows
    variances = torch.linalg.eigvalsh(gram).flip(0).clamp(min=0)
    total = variances.sum()
    shares = variances / total if total > 0 else torch.zeros_like(variances)
    return shares[:components]


def crop(kernels: Tensor, side: int) -> Tensor:
    """The centred ``side``×``side`` part of kernels ``(…, H, W)``; where H or W is smaller, all of that axis.

    Raises:
        ValueError: for a side that is not odd and positive.
    """
    if side < 1 or side % 2 == 0:
        raise ValueError(f"a crop's side must be odd and positive, got {side}")
    for dimension in (-2, -1):
        length = kernels.shape[dimension]
        if side < length:
            kernels = kernels.narrow(dimension, length // 2 - side // 2, side)
    return kernels


def truncated(
    layer: FilteringLayer, side: int, height: int, width: int, *, boundary: str = "circular"
) -> nn.Module:
    """The layer as an ordinary convolution with its centred ``side``×``side`` kernel on an H×W grid.

    A depthwise layer becomes a depthwise ``nn.Conv2d``, a full one a dense one, a split one a depthwise one and
    a 1×1.

    Raises:
        ValueError: for a side that is not odd and positive or exceeds H or W, or an unknown boundary.
    """
    one_of(boundary, BOUNDARIES, "boundary")
    _check_fit(side, height, width)
    with torch.no_grad():
        kernel = crop(layer.spatial_kernel(height, width), side)
        depthwise = kernel.dim() == 3
        # A convolution layer correlates: flip. Its weight is (out, in / groups, k, k).
        weight = (kernel[:, None] if depthwise else kernel.transpose(0, 1)).flip(-2, -1)
        spatial = nn.Conv2d(
            layer.in_channels,
            weight.shape[0],
            side,
            padding=side // 2,
            padding_mode="circular" if boundary == "circular" else "zeros",
            groups=layer.in_channels if depthwise else 1,
            bias=False,
            device="meta",
        )
        spatial.weight = nn.Parameter(weight.contiguous())
        if not isinstance(layer, NiffSplit):
            return spatial
        mixing = nn.Conv2d(layer.in_channels, layer.out_channels, 1, bias=False, device="meta")
        mixing.weight = nn.Parameter(layer.weight[:, :, None, None].clone())
        return nn.Sequential(spatial, mixing)


def truncation_errors(
    layer: FilteringLayer, x: Tensor, sides: Iterable[int], *, boundary: str = "circular"
) -> Iterator[float]:
    """``‖y - y_k‖ / ‖y‖``, the relative error of :func:`truncated` on the input ``x`` of the layer, for each side.

    By FFT, whose cost does not grow with the side.

    Raises:
        ValueError: as :func:`truncated`.
    """
    one_of(boundary, BOUNDARIES, "boundary")
    height, width = x.shape[-2:]
    with torch.no_grad():
        kernel = layer.spatial_kernel(height, width)
        x = x.to(kernel.dtype)
        truth = _convolved(layer, x, kernel)
        size = float(torch.linalg.vector_norm(truth, dtype=torch.float64))
    for side in sides:
        _check_fit(side, height, width)
        margin = side // 2 if boundary == "zeros" else 0
        with torch.no_grad():
            padded = F.pad(x, (0, margin, 0, margin))
            small = _convolved(layer, padded, crop(kernel, side))[..., :height, :width]
            error = float(torch.linalg.vector_norm(truth - small, dtype=torch.float64))
        yield 0.0 if size == 0 else error / size


def smallest_truncation(
    layer: FilteringLayer, x: Tensor, tolerance: float, *, boundary: str = "circular"
) -> Truncation:
    """The smallest odd k whose truncated convolution is within ``tolerance`` on the input ``x`` of the layer.

    Sides are tried in order, because the error need not fall with every step, up to the feature map's own side.

    Raises:
        ValueError: for a tolerance that is not positive, or an unknown boundary.
    """
    if not tolerance > 0:
        raise ValueError(f"a tolerance must be positive, got {tolerance}")
    height, width = x.shape[-2:]
    sides = range(1, min(height, width) + 1, 2)
    tried: list[float] = []
    for error in truncation_errors(layer, x, sides, boundary=boundary):
        tried.append(error)
        if error <= tolerance:
            break
    side, error = sides[len(tried) - 1], tried[-1]
    planes = layer.generator.planes
    mixing = layer.in_channels * layer.out_channels if isinstance(layer, NiffSplit) else 0
    return Truncation(
        height=height,
        width=width,
        side=side if error <= tolerance else None,
        error=error,
        flops_then=2 * height * width * (side**2 * planes + mixing),
        parameters_now=sum(parameter.numel() for parameter in layer.parameters()),
        parameters_then=side**2 * planes + mixing,
    )


def analyse_layer(
    layer: FilteringLayer, height: int, width: int, *, components: int = 10, crop_side: int = 9
) -> FilterSize:
    """Kernel mass ratio and principal components of one layer's kernels on an H×W grid."""
    kernels = kernels_of(layer, height, width)
    return FilterSize(
        height=height,
        width=width,
        kernels=kernels.shape[0],
        mass_ratio=tuple(mass_ratio(kernels).tolist()),
        explained_variance=tuple(explained_variance(kernels, components).tolist()),
        explained_variance_crop=tuple(explained_variance(crop(kernels, crop_side), components).tolist()),
        crop_side=crop_side,
    )


def filtering_layers(model: nn.Module) -> Mapping[str, FilteringLayer]:
    """The layers of a network that have a filter, by name.

    Raises:
        ValueError: if there are none.
    """
    layers = {name: layer for name, layer in niff_layers(model) if isinstance(layer, FilteringLayer)}
    if not layers:
        raise ValueError(f"{type(model).__name__} has no layer with a frequency filter")
    return layers


def _convolved(layer: FilteringLayer, x: Tensor, kernel: Tensor) -> Tensor:
    """What the layer would return with this centred kernel, no larger than ``x``, instead of its own."""
    rows, columns = kernel.shape[-2:]
    margins = (0, x.shape[-1] - columns, 0, x.shape[-2] - rows)
    at_origin = torch.roll(F.pad(kernel, margins), (-(rows // 2), -(columns // 2)), (-2, -1))
    half = torch.fft.rfft2(at_origin)
    if isinstance(layer, NiffSplit):
        return spectral.real_split(x, half, layer.weight.to(x.dtype))
    return spectral.real_depthwise(x, half) if kernel.dim() == 3 else spectral.real_full(x, half)


def _check_fit(side: int, height: int, width: int) -> None:
    if side > min(height, width):
        raise ValueError(f"a {side}×{side} kernel does not fit a grid of {height}×{width}")
