"""The references themselves: direct sums against torch's convolution, the fast way against the direct sum."""

from __future__ import annotations

import sys
from types import ModuleType, SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from operator_cases import case_at
from torch import Tensor
from torch.nn import functional as F

from niffbench.case import Case, Problem
from niffbench.operators import fft
from niffbench.operators.catalogue import catalogue
from niffbench.operators.kit import by_sum, by_transform, filtered, full_plane

SIDES = st.integers(1, 9)


def random(*shape: int) -> Tensor:
    return torch.randn(shape, dtype=torch.float64)


def close(result: Tensor, truth: Tensor) -> bool:
    return bool((result - truth).abs().max() <= 1e-11 * truth.abs().max().clamp_min(1e-3))


@settings(max_examples=60, deadline=None)
@given(SIDES, SIDES, st.integers(0, 8), st.integers(0, 8), st.booleans(), st.booleans())
def test_both_ways_agree(
    height: int, width: int, rows: int, columns: int, circular: bool, depthwise: bool
) -> None:
    torch.manual_seed(0)
    x = random(2, 3, height, width)
    weight = random(*((3, 1) if depthwise else (4, 3)), 2 * rows + 1, 2 * columns + 1)
    leaves = (x.requires_grad_(), weight.requires_grad_())
    direct = by_sum(x, weight, circular=circular, depthwise=depthwise)
    transformed = by_transform(x, weight, circular=circular, depthwise=depthwise)
    assert close(transformed, direct)
    gradient = torch.randn_like(direct)
    of_direct, of_transformed = (torch.autograd.grad(y, leaves, gradient) for y in (direct, transformed))
    assert all(close(*pair) for pair in zip(of_transformed, of_direct, strict=True))


@pytest.mark.parametrize("groups", [1, 3])
@pytest.mark.parametrize("k", [1, 5, 9])
def test_direct_sum_is_torchs_convolution(groups: int, k: int) -> None:
    torch.manual_seed(0)
    x, weight = random(2, 3, 7, 5), random(3, 3 // groups, k, k)
    zero = by_sum(x, weight, circular=False, depthwise=groups > 1)
    assert close(zero, F.conv2d(x, weight, padding=k // 2, groups=groups))
    circular = by_sum(x, weight, circular=True, depthwise=groups > 1)
    padded = F.pad(x, (k // 2,) * 4, mode="circular")
    assert close(circular, F.conv2d(padded, weight, groups=groups))


@pytest.mark.parametrize("depthwise", [True, False])
def test_gradients_of_the_direct_sum_are_those_of_finite_differences(depthwise: bool) -> None:
    torch.manual_seed(0)
    x, weight = random(2, 3, 4, 5), random(3, 1 if depthwise else 3, 3, 5)
    leaves = (x.requires_grad_(), weight.requires_grad_())
    assert torch.autograd.gradcheck(lambda *of: by_sum(*of, circular=True, depthwise=depthwise), leaves)


@settings(max_examples=30, deadline=None)
@given(SIDES, SIDES)
def test_half_planes_are_completed_as_irfft2_reads_them(height: int, width: int) -> None:
    torch.manual_seed(0)
    x = random(2, 3, height, width)
    half = torch.complex(random(3, height, width // 2 + 1), random(3, height, width // 2 + 1))
    plane = full_plane(half, width)
    mirrored = torch.roll(plane.flip(-2, -1), (1, 1), (-2, -1)).conj()
    assert close(torch.view_as_real(plane), torch.view_as_real(mirrored.resolve_conj()))
    y = torch.fft.irfft2(torch.fft.rfft2(x) * half, s=(height, width))
    assert close(filtered(x, plane), y)


@settings(max_examples=20, deadline=None)
@given(SIDES, SIDES, st.sampled_from(("paper", "centred")))
def test_niff_is_a_circular_convolution_with_its_kernel(height: int, width: int, grid: str) -> None:
    """``Re ifft2(W)``, summed tap by tap: no FFT of the image."""
    torch.manual_seed(0)
    case = case_at("niff-depthwise/published", Problem(2, 3, 3, height, width), grid=grid)
    operator = catalogue()[case.operator]
    module = operator.build(case).double()
    x = random(2, 3, height, width)
    kernel = torch.fft.ifft2(module.filter(height, width)).real.detach()
    y = torch.zeros_like(x)
    for i in range(height):
        for j in range(width):
            y += kernel[:, i, j, None, None] * torch.roll(x, (i, j), (-2, -1))
    assert close(operator.reference(case, module.state_dict(), x), y)


@pytest.mark.parametrize(("size", "kernel"), [((7, 7), 7), ((8, 5), 9), ((13, 16), 25)])
def test_nvidias_fused_kernel_is_given_what_makes_it_the_zero_padded_convolution(
    size: tuple[int, int], kernel: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By a stand-in that does what the kernel is said to: no GPU has run the kernel itself here."""
    given: list[int] = []

    def fused_fft_conv2d(x: Tensor, weight: Tensor, fft_size: int) -> Tensor:
        given.append(fft_size)
        assert max(x.shape[-2:]) <= fft_size // 2
        spectrum = torch.fft.rfft2(x, s=(fft_size,) * 2) * torch.fft.rfft2(weight, s=(fft_size,) * 2)
        result = torch.fft.irfft2(spectrum, s=(fft_size,) * 2)
        begin = fft_size // 2
        return result[..., begin : begin + x.shape[-2], begin : begin + x.shape[-1]]

    package = ModuleType(fft.PACKAGE)
    package.fused_fft_conv2d = SimpleNamespace(fused_fft_conv2d=fused_fft_conv2d)  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, fft.PACKAGE, package)
    monkeypatch.setitem(sys.modules, f"{fft.PACKAGE}.fused_fft_conv2d", package.fused_fft_conv2d)
    operator = fft.FusedFFT(name="fft-depthwise-fused", family="fft", summary="", boundary="zero")
    case = Case(operator.name, Problem(2, 3, 3, *size, "float64"), kernel)
    assert operator.refusal(case) is None
    module = operator.build(case).double()
    x = random(2, 3, *size)
    state = dict(module.state_dict())
    assert close(module(x), operator.reference(case, state, x))
    assert operator.equivalence(case) == catalogue()["depthwise"].equivalence(case)
    assert operator.cost(case).flops() > 0
    assert given == [operator.size(case)[0]]
    larger = Case(operator.name, Problem(1, 3, 3, 65, 8), kernel)
    assert operator.refusal(larger) == f"needs sides up to 64 and kernels up to 127, got 65×8 and {kernel}"
