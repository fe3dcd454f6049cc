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
    gradient = torch.randn_like(y)
    y.backward(gradient)
    truth.backward(gradient.double())
    assert x.grad is not None
    assert twin.grad is not None
    assert _error(x.grad, twin.grad) < 2e-6
    for ours, theirs in zip(layer.parameters(), exact.parameters(), strict=True):
        if theirs.grad is not None and float(theirs.grad.norm()) > 1e-6 * float(theirs.norm()):
            assert ours.grad is not None
            assert _error(ours.grad, theirs.grad) < 1e-4


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
        # Two images share a plane, so that an image's rounding is its pair's too.
        assert _error(replayed, expected.flip(0).double()) < 1e-6


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
