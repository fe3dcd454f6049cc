"""The second witness: formulas against hand-computed FLOPs, the guard, and the traffic."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from niffbench.cost.counters import Counted, count
from niffbench.lengths import fft_flops


def numbers(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.empty(*shape, dtype=dtype, requires_grad=True)  # empty: made without any traffic


def spectrum(*shape: int) -> Tensor:
    return numbers(*shape, dtype=torch.complex64)


@pytest.mark.parametrize(
    ("function", "flops"),
    [
        (lambda: torch.fft.rfft2(numbers(2, 3, 8, 6)), 6 * fft_flops(48, real=True)),
        (lambda: torch.fft.irfft2(spectrum(2, 3, 8, 4), s=(8, 7)), 6 * fft_flops(56, real=True)),
        (lambda: torch.fft.fft2(numbers(2, 3, 8, 6)), 6 * fft_flops(48)),
        (lambda: torch.fft.ifft(spectrum(5, 16)), 5 * fft_flops(16)),
        (lambda: spectrum(2, 3) * spectrum(3), 6 * 6),
        (lambda: spectrum(2, 3) * numbers(3), 2 * 6),
        (lambda: numbers(2, 3) * numbers(3), 6),
        (lambda: spectrum(2, 3) * 2.0, 0),
        (lambda: spectrum(2, 3) @ spectrum(3, 4), 8 * 24),
        (lambda: numbers(2, 3) @ numbers(3, 4), 2 * 24),
        (lambda: torch.einsum("bihw,iohw->bohw", spectrum(2, 3, 4, 5), spectrum(3, 6, 4, 5)), 8 * 2 * 3 * 6 * 20),
        (lambda: spectrum(4, 5).sum(0), 2 * 20),
        (lambda: spectrum(1, 5).sum(0), 0),
        (lambda: F.silu(numbers(4, 5)) + numbers(5), 0),
        (lambda: F.conv2d(numbers(2, 6, 9, 9), numbers(6, 1, 3, 3), groups=6, padding=1), 2 * 9 * 6 * 81 * 2),
    ],
)
def test_forward(function: Callable[[], Tensor], flops: int) -> None:
    counted = count(function)
    assert counted.flops == flops
    assert counted.unpriced == ()


def backward_of(function: Callable[[], Tensor]) -> Counted:
    out = function()
    return count(lambda: out.backward(torch.zeros_like(out)))


@pytest.mark.parametrize("groups", [1, 4, 64])
def test_backward_of_a_grouped_convolution_is_twice_its_forward(groups: int) -> None:
    def convolve() -> Tensor:
        return F.conv2d(numbers(2, 64, 7, 7), numbers(64, 64 // groups, 3, 3), padding=1, groups=groups)

    forward = 2 * 9 * 64 * 64 // groups * 49 * 2
    assert count(convolve).flops == forward
    assert backward_of(convolve).flops == 2 * forward


def stock(function: Callable[[], object]) -> dict[str, int]:
    """What torch's own counter says."""
    with FlopCounterMode(display=False) as counter:
        function()
    return {str(name): flops for name, flops in counter.get_flop_counts().get("Global", {}).items() if flops}


def test_stock_counter_is_wrong_where_the_formulas_are_said_to_mend_it() -> None:
    """When this fails, torch has mended its counter: the formula may go."""
    out = F.conv2d(numbers(1, 64, 7, 7), numbers(64, 1, 3, 3), padding=1, groups=64)
    assert stock(lambda: out.backward(torch.zeros_like(out)))["aten.convolution_backward"] > 2 * (2 * 9 * 64 * 49)
    assert stock(lambda: torch.fft.rfft2(numbers(8, 8)) * spectrum(8, 5)) == {}
    assert stock(lambda: spectrum(2, 3) @ spectrum(3, 4)) == {"aten.mm": 2 * 24}


def test_stock_figures_of_the_same_run_are_those_of_the_stock_counter() -> None:
    def step() -> None:
        y = F.silu(F.conv2d(numbers(2, 6, 9, 9), numbers(6, 1, 3, 3), groups=6, padding=1))
        tokens = F.linear(y.flatten(2).transpose(1, 2), numbers(6, 6))
        F.scaled_dot_product_attention(tokens, tokens, tokens).sum().backward()

    assert count(step).stock == stock(step)
    assert sum(count(step).stock.values()) > 0


def test_only_the_gradients_that_are_wanted_are_counted() -> None:
    weight = numbers(4, 4, 3, 3).detach()
    out = F.conv2d(numbers(1, 4, 7, 7), weight, padding=1)
    assert count(lambda: out.backward(torch.zeros_like(out))).flops == 2 * 9 * 16 * 49


def test_real_transform_goes_back_through_a_complex_one() -> None:
    assert backward_of(lambda: torch.fft.rfft2(numbers(3, 8, 6))).by_op == {"aten._fft_c2c": 3 * fft_flops(48)}
    assert backward_of(lambda: torch.fft.irfft2(spectrum(3, 8, 4))).by_op == {
        "aten._fft_r2c": 3 * fft_flops(48, real=True)
    }


def test_fused_activation_is_not_taken_apart() -> None:
    assert backward_of(lambda: F.silu(numbers(4, 5))).flops == 0


def test_an_operation_that_nobody_priced_is_named() -> None:
    counted = count(lambda: torch.linalg.cholesky_ex(numbers(3, 3))[0] + torch.cumsum(numbers(3), 0))
    assert counted.unpriced == ("aten.cumsum", "aten.linalg_cholesky_ex")


def test_attention_is_priced_as_a_fused_kernel() -> None:
    query = numbers(2, 4, 32, 8)
    products = 4 * 2 * 4 * 32 * 32 * 8
    assert count(lambda: F.scaled_dot_product_attention(query, query, query)).flops == products
    assert backward_of(lambda: F.scaled_dot_product_attention(query, query, query)).flops == products * 5 // 2


@pytest.mark.parametrize("mode", [torch.inference_mode, torch.no_grad, torch.enable_grad])
def test_grad_mode_changes_no_forward_figure(mode: Callable[[], torch.autograd.grad_mode.no_grad]) -> None:
    x, w = numbers(2, 3, 8, 8), spectrum(3, 5, 8, 5)

    def layer() -> Tensor:
        with mode():
            y: Tensor = torch.fft.irfft2(torch.einsum("bihw,iohw->bohw", torch.fft.rfft2(x), w))
            return y

    assert count(layer).flops == 2 * 8 * fft_flops(64, real=True) + 8 * 2 * 15 * 40


def test_fake_tensors_count_like_real_ones() -> None:
    def run() -> Counted:
        x, w = numbers(2, 4, 9, 7), numbers(4, 1, 3, 3)
        out = torch.fft.irfft2(torch.fft.rfft2(F.conv2d(x, w, groups=4, padding=1)), s=(9, 7))
        return count(lambda: out.backward(torch.zeros_like(out)))

    with FakeTensorMode():
        fake = run()
    assert fake == run()
