"""The third witness: fvcore on traced modules, real and fake."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional as F

from niffbench.cost.fvcore import Traced, trace
from niffbench.lengths import fft_flops


class Layer(nn.Module):
    """Calls a function of the input and one complex and one real weight."""

    def __init__(self, function: Callable[[Tensor, Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.spectrum = nn.Parameter(torch.ones(4, 8, 5, dtype=torch.complex64))
        self.weight = nn.Parameter(torch.ones(6, 4, 3, 3))
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x, self.spectrum, self.weight)


def convolution(x: Tensor, _: Tensor, weight: Tensor) -> Tensor:
    return F.conv2d(x, weight, padding=1)


def spectral(x: Tensor, spectrum: Tensor, _: Tensor) -> Tensor:
    batch, channels, height, width = x.shape
    y: Tensor = torch.fft.irfft2(torch.fft.rfft2(x) * spectrum * 0.5, s=(height, width))
    return y.reshape(batch, channels, height * width)


def whole_plane(x: Tensor, *_: Tensor) -> Tensor:
    y: Tensor = torch.fft.ifft2(torch.fft.fft2(x)).real
    return y


def contraction(x: Tensor, _: Tensor, weight: Tensor) -> Tensor:
    matrix = weight[:, :, 0, 0]
    spectrum = torch.fft.rfft2(x)
    mixed = torch.einsum("bihw,oi->bohw", spectrum, matrix.to(torch.complex64))
    return torch.view_as_real(mixed).sum(0)


def products(x: Tensor, _: Tensor, weight: Tensor) -> Tensor:
    tokens = x.flatten(2).transpose(1, 2)
    mixed = F.linear(tokens, weight[:, :, 0, 0])
    return F.scaled_dot_product_attention(mixed, mixed, mixed) @ weight[:, :, 0, 0]


CASES = [
    (convolution, 2 * 9 * 4 * 6 * 64 * 2, 2 * 9 * 4 * 6 * 64 * 2),
    (spectral, 2 * 8 * fft_flops(64, real=True) + 6 * 2 * 4 * 40, 0),
    (whole_plane, 2 * 8 * fft_flops(64), 0),
    (contraction, 8 * fft_flops(64, real=True) + 8 * 2 * 4 * 6 * 40 + 2 * 2 * 6 * 40, None),
    (products, 2 * 128 * 24 * 2 + 4 * 2 * 64 * 64 * 6, 2 * 128 * 24 * 2),
]


def traced(function: Callable[..., Tensor], *, fake: bool, shape: tuple[int, ...] = (2, 4, 8, 8)) -> Traced:
    if not fake:
        return trace(Layer(function), torch.ones(shape))
    with FakeTensorMode(allow_non_fake_inputs=True):
        module, x = Layer(function), torch.ones(shape)
    return trace(module, x)


@pytest.mark.parametrize("fake", [False, True])
@pytest.mark.parametrize(("function", "flops", "stock"), CASES)
def test_flops(function: Callable[..., Tensor], flops: int, stock: int | None, fake: bool) -> None:
    output = traced(function, fake=fake)
    assert output.flops == flops
    assert stock is None or output.stock == stock


def test_what_only_our_handlers_see() -> None:
    assert traced(spectral, fake=True).missed == ("aten::fft_irfft2", "aten::fft_rfft2", "aten::mul")
    assert traced(convolution, fake=True).missed == ()


def test_any_size_can_be_traced() -> None:
    """1024 channels of 4096²: 64 GiB of input alone."""
    output = traced(convolution, fake=True, shape=(256, 4, 4096, 4096))
    assert output.flops == 2 * 9 * 4 * 6 * 4096**2 * 256


def test_tracing_leaves_no_trace() -> None:
    module = Layer(spectral)
    before = {name: value.clone() for name, value in module.state_dict().items()}
    trace(module, torch.ones(2, 4, 8, 8))
    assert not torch._C._get_tracing_state()
    assert all(torch.equal(before[name], value) for name, value in module.state_dict().items())
    assert module(torch.ones(3, 4, 8, 8)).shape == (3, 4, 64)
