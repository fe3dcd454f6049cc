"""NIFF's native form on a GPU: what it computes, both ways; that it is one kernel; where auto tries it."""

from __future__ import annotations

import pytest
import torch

from niffbench.niff import NiffDepthwise, auto

pytestmark = pytest.mark.cuda

STAGES = ((56, 56), (28, 28), (14, 14), (7, 7))


def _error(result: torch.Tensor, truth: torch.Tensor) -> float:
    return float((result - truth).norm() / truth.norm())


@pytest.mark.parametrize("size", [*STAGES, (31, 31), (9, 25), (64, 64), (1, 5)], ids=str)
@pytest.mark.parametrize("batch", [1, 2, 33])
def test_on_a_gpu_it_is_the_convolution(size: tuple[int, int], batch: int) -> None:
    layer = NiffDepthwise(6, form="native", device="cuda")
    x = torch.randn(batch, 6, *size, device="cuda", requires_grad=True)
    exact, twin = NiffDepthwise(6, form="rfft", device="cuda").double(), x.detach().double().requires_grad_()
    exact.load_state_dict(layer.state_dict())
    y, truth = layer(x), exact(twin)
    assert _error(y, truth) < 2e-6
    gradient = 2**-27 * torch.randn_like(y)  # as of a mean loss
    y.backward(gradient)
    truth.backward(gradient.double())
    assert x.grad is not None
    assert twin.grad is not None
    assert _error(x.grad, twin.grad) < 2e-6
    largest = max(float(theirs.grad.norm()) for theirs in exact.parameters() if theirs.grad is not None)
    for ours, theirs in zip(layer.parameters(), exact.parameters(), strict=True):
        if (
            theirs.grad is not None and float(theirs.grad.norm()) > 1e-6 * largest
        ):  # others are zero but for rounding
            assert ours.grad is not None
            assert _error(ours.grad, theirs.grad) < 1e-4


@pytest.mark.parametrize("form", ["native", "triton"])
@pytest.mark.parametrize("extreme", [1e20, torch.nan])
def test_no_image_meets_another(form: str, extreme: float) -> None:
    layer = NiffDepthwise(6, form=form, device="cuda")
    x = torch.randn(7, 6, 14, 14, device="cuda")
    with torch.inference_mode():
        expected = layer(x)
        x[2, 1, 3, 4] = x[5, 0, 0, 0] = extreme
        result = layer(x)
    for image in (0, 1, 3, 4, 6):
        assert torch.equal(result[image], expected[image])


def test_one_kernel_does_it_all_and_a_graph_replays_it() -> None:
    layer = NiffDepthwise(8, form="native-cached", device="cuda")
    x = torch.randn(4, 8, 28, 28, device="cuda")
    with torch.inference_mode():
        expected = layer(x)
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
            layer(x)
            torch.cuda.synchronize()
        kernels = [event.name for event in profile.events() if event.device_type == torch.autograd.DeviceType.CUDA]
        assert kernels == ["convolve"]
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            replayed = layer(x)
        x.copy_(x.flip(0))
        graph.replay()
        assert torch.equal(replayed, expected.flip(0))


def test_odd_addresses_empty_batches_and_channels_last() -> None:
    layer = NiffDepthwise(3, form="native", device="cuda")
    flat = torch.randn(2 * 3 * 8 * 8 + 1, device="cuda")
    x = flat[1:].view(2, 3, 8, 8)
    expected = layer.with_form("rfft")(x)
    assert _error(layer(x), expected.double()) < 1e-6
    assert _error(layer(x.contiguous(memory_format=torch.channels_last)), expected.double()) < 1e-6
    assert layer(x[:0]).shape == (0, 3, 8, 8)


def test_auto_tries_it_where_it_may_win() -> None:
    x = torch.randn(2, 4, 14, 14, device="cuda")
    assert "native" in auto.candidates(x)
    assert "native" not in auto.candidates(x.double())
    assert "native" not in auto.candidates(torch.empty(2, 4, 61, 14, device="cuda"))
    assert "native" not in auto.candidates(torch.empty(2, 4, 128, 128, device="cuda"))
