"""Effective filter size on planted kernels, whose answer is known."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from niffbench.niff import NiffDepthwise, NiffFull, NiffPointwise, NiffSplit
from niffbench.niff.layer import FilteringLayer
from niffbench.study.effective import (
    analyse_layer,
    crop,
    explained_variance,
    filtering_layers,
    kernels_of,
    mass_ratio,
    smallest_truncation,
    truncated,
    truncation_errors,
)


def truncation_error(layer: FilteringLayer, x: Tensor, side: int, *, boundary: str = "circular") -> float:
    return next(truncation_errors(layer, x, [side], boundary=boundary))


class Planted(NiffDepthwise):
    """A depthwise layer whose spatial kernels are given instead of generated."""

    def __init__(self, kernels: Tensor) -> None:
        super().__init__(kernels.shape[0], form="fft", dtype=kernels.dtype)
        height, width = kernels.shape[-2:]
        self.planted = torch.fft.fft2(torch.roll(kernels, (-(height // 2), -(width // 2)), (-2, -1)))
        self.generator.full_plane = lambda h, w, dtype: self.planted  # type: ignore[method-assign]


def box(side: int, height: int, width: int, channels: int = 2) -> Tensor:
    """Kernels of ones on a centred side×side window."""
    kernels = torch.zeros(channels, height, width, dtype=torch.float64)
    rows, columns = height // 2, width // 2
    half = side // 2
    kernels[:, rows - half : rows + half + 1, columns - half : columns + half + 1] = 1
    return kernels


@pytest.mark.parametrize("size", [(8, 8), (7, 7), (6, 9)])
def test_a_delta_has_all_its_mass_in_the_smallest_window(size: tuple[int, int]) -> None:
    layer = Planted(box(1, *size))
    assert torch.allclose(kernels_of(layer, *size), box(1, *size), atol=1e-12)
    ratios = mass_ratio(kernels_of(layer, *size))
    assert ratios.numel() == max(size) // 2 + 1
    assert torch.allclose(ratios, torch.ones_like(ratios))
    assert analyse_layer(layer, *size).side(0.99) == 1


def test_mass_is_counted_in_windows_of_odd_side() -> None:
    kernels = torch.cat((box(3, 8, 8, 1), box(5, 8, 8, 1)))
    expected = [(1 / 9 + 1 / 25) / 2, (1 + 9 / 25) / 2, 1, 1, 1]
    assert mass_ratio(kernels).tolist() == pytest.approx(expected)
    assert mass_ratio(-kernels).tolist() == pytest.approx(expected)
    assert mass_ratio(torch.zeros(1, 4, 4)).tolist() == [1, 1, 1]


def test_the_edge_of_an_even_side_belongs_to_the_last_window() -> None:
    kernels = torch.zeros(1, 4, 4)
    kernels[0, 0, 2] = 1  # Offset -2, which an even axis has on one side only.
    assert mass_ratio(kernels).tolist() == [0, 0, 1]


def test_principal_components_of_planted_rank() -> None:
    generator = torch.Generator().manual_seed(0)
    basis = torch.linalg.qr(torch.randn(49, 2, generator=generator, dtype=torch.float64)).Q.T
    scores = torch.randn(30, 2, generator=generator, dtype=torch.float64) * torch.tensor([3.0, 1.0])
    kernels = (scores @ basis + 5).view(30, 7, 7)
    shares = explained_variance(kernels)
    spectrum = np.linalg.svd((scores - scores.mean(0)).numpy(), compute_uv=False) ** 2
    assert shares[:2].tolist() == pytest.approx(list(spectrum / spectrum.sum()))
    assert shares[2:].abs().max() < 1e-12
    assert shares.numel() == 10
    assert torch.allclose(explained_variance(kernels.transpose(1, 2)), shares, atol=1e-9)
    wide = explained_variance(kernels[:5], components=3)
    assert wide.numel() == 3
    assert float(wide.sum()) == pytest.approx(1)
    assert explained_variance(torch.ones(4, 3, 3)).tolist() == [0] * 4


def test_a_crop_is_centred() -> None:
    kernels = box(1, 8, 7)
    assert torch.equal(crop(kernels, 3), box(1, 3, 3))
    assert crop(kernels, 7).shape == (2, 7, 7)
    assert crop(kernels, 9).shape == (2, 8, 7)
    with pytest.raises(ValueError, match="odd and positive, got 4"):
        crop(kernels, 4)


LAYERS = [lambda: NiffDepthwise(3), lambda: NiffFull(3, 4), lambda: NiffSplit(3, 4)]


@pytest.mark.parametrize("make", LAYERS)
def test_a_truncation_as_large_as_an_odd_map_is_exact_with_a_circular_boundary(make: object) -> None:
    torch.manual_seed(0)
    layer = make().double()
    x = torch.randn(2, 3, 7, 7, dtype=torch.float64)
    assert torch.allclose(truncated(layer, 7, 7, 7)(x), layer(x), atol=1e-10)
    assert truncation_error(layer, x, 7) < 1e-12
    assert truncation_error(layer, x, 5) > 1e-6
    assert truncation_error(layer, x, 7, boundary="zeros") > 1e-6


@pytest.mark.parametrize("make", LAYERS)
@pytest.mark.parametrize("boundary", ["circular", "zeros"])
@pytest.mark.parametrize("size", [(8, 6), (7, 9)])
def test_the_error_is_that_of_the_convolution(make: object, boundary: str, size: tuple[int, int]) -> None:
    torch.manual_seed(0)
    layer = make().double()
    x = torch.randn(2, 3, *size, dtype=torch.float64)
    for side in (1, 3, 5):
        small = truncated(layer, side, *size, boundary=boundary)
        expected = (small(x) - layer(x)).norm() / layer(x).norm()
        error = truncation_error(layer, x, side, boundary=boundary)
        assert error == pytest.approx(float(expected.detach()))


def test_truncation_error_of_a_planted_kernel() -> None:
    kernels = box(3, 16, 16)
    kernels[:, 8, 13] = 0.5  # One tap outside the 3×3 window.
    layer = Planted(kernels)
    x = torch.randn(2, 2, 16, 16, dtype=torch.float64)
    lost = torch.roll(x, 5, 3) * 0.5
    expected = lost.norm() / layer(x).norm()
    assert truncation_error(layer, x, 3) == pytest.approx(float(expected))
    assert truncation_error(layer, x, 11) < 1e-12

    result = smallest_truncation(layer, x, 1e-6)
    assert sum(value.numel() for value in truncated(layer, 11, 16, 16).parameters()) == result.parameters_then
    assert (result.side, result.height, result.width) == (11, 16, 16)
    assert result.flops_then == 2 * 11**2 * 2 * 256
    assert result.parameters_then == 2 * 11**2
    assert result.parameters_now == 120 + 10 * 2
    assert smallest_truncation(layer, x, float(expected) * 1.01).side == 3


def test_a_kernel_without_a_small_part_cannot_be_truncated() -> None:
    layer = Planted(torch.ones(1, 8, 8, dtype=torch.float64))
    x = torch.rand(1, 1, 8, 8, dtype=torch.float64)
    result = smallest_truncation(layer, x, 0.05)
    assert result.side is None
    assert result.error > 0.05
    with pytest.raises(ValueError, match="must be positive, got 0"):
        smallest_truncation(layer, x, 0)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: filtering_layers(nn.Conv2d(3, 3, 3)), "Conv2d has no layer with a frequency filter"),
        (lambda: filtering_layers(nn.Sequential(NiffPointwise(3, 3))), "no layer with a frequency filter"),
        (lambda: truncated(NiffDepthwise(3), 9, 7, 16), "9×9 kernel does not fit a grid of 7×16"),
        (lambda: truncated(NiffDepthwise(3), 3, 7, 7, boundary="zero"), "unknown boundary 'zero'.*'zeros'"),
    ],
)
def test_refusals_say_what_is_wrong(call: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()
