"""NIFF's form triton on a GPU: what it computes, both ways, compiled and captured; where auto tries it."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from niffbench.niff import NiffDepthwise, NiffSplit, auto, forms_of
from niffbench.niff.native import triton_engine

pytestmark = pytest.mark.cuda

STAGES = ((56, 56), (28, 28), (14, 14), (7, 7))
ALLOWED = {torch.float32: 3e-6, torch.float16: 2e-3, torch.bfloat16: 1.5e-2}
"""Relative L2 errors: some ten roundings of float32, one of a half precision."""


def _error(result: Tensor, truth: Tensor) -> float:
    return float((result.double() - truth).norm() / truth.norm())


def _hold(layer: NiffDepthwise | NiffSplit, x: Tensor, call: nn.Module | None = None) -> None:
    """Output and gradients against the same weights in float64; those of weights in proportion to the largest."""
    exact = copy.deepcopy(layer).double()
    exact.form = "rfft"
    twin, allowed = x.detach().double().requires_grad_(), ALLOWED[x.dtype]
    x = x.detach().requires_grad_()
    y, truth = (call or layer)(x), exact(twin)
    assert _error(y, truth) < allowed
    outer = torch.randn_like(y)
    gradients = torch.autograd.grad(y, [x, *layer.parameters()], outer)
    expected = torch.autograd.grad(truth, [twin, *exact.parameters()], outer.double())
    assert _error(gradients[0], expected[0]) < allowed
    largest = max(float(gradient.norm()) for gradient in expected[1:])
    for mine, theirs in zip(gradients[1:], expected[1:], strict=True):
        assert float((mine - theirs).norm()) < 5 * allowed * largest


@pytest.mark.parametrize("dtype", list(ALLOWED), ids=str)
@pytest.mark.parametrize("size", [*STAGES, (31, 31), (9, 25), (64, 64), (32, 32), (1, 5), (61, 2)], ids=str)
def test_on_a_gpu_it_is_the_convolution(size: tuple[int, int], dtype: torch.dtype) -> None:
    for batch, channels in ((1, 6), (33, 17)):
        _hold(NiffDepthwise(channels, form="triton", device="cuda"), _images(batch, channels, size, dtype))


@pytest.mark.parametrize("mlp", ["tiny", "big"])
def test_other_filters_and_split_layers(mlp: str) -> None:
    _hold(NiffDepthwise(5, mlp=mlp, form="triton", device="cuda"), _images(3, 5, (28, 14), torch.float32))
    _hold(NiffSplit(5, 9, mlp=mlp, form="triton", device="cuda"), _images(3, 5, (28, 14), torch.float32))


def _images(batch: int, channels: int, size: tuple[int, int], dtype: torch.dtype) -> Tensor:
    return torch.randn(batch, channels, *size, device="cuda").to(dtype)


def test_two_kernels_do_it_all_and_one_does_where_the_filter_is_kept() -> None:
    assert "triton" in forms_of("depthwise")
    layer, x = NiffDepthwise(8, form="triton", device="cuda"), _images(4, 8, (28, 28), torch.float32)
    for form, expected in (("triton", ["features", "convolve"]), ("triton-cached", ["convolve"])):
        one = layer.with_form(form)
        with torch.inference_mode():
            one(x)
            with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
                one(x)
                torch.cuda.synchronize()
        kernels = [event.name for event in profile.events() if event.device_type == torch.autograd.DeviceType.CUDA]
        assert kernels == expected


@pytest.mark.parametrize("training", [False, True])
def test_a_graph_replays_it(training: bool) -> None:
    layer, x = NiffDepthwise(8, form="triton", device="cuda"), _images(4, 8, (14, 14), torch.float32)
    inputs = [x.requires_grad_(training), *layer.parameters()]

    def call() -> tuple[Tensor, ...]:
        y = layer(x)
        return (y, *torch.autograd.grad(y.square().sum(), inputs)) if training else (y,)

    with torch.set_grad_enabled(training):
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            call()
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            replayed = call()
        with torch.no_grad():
            x.copy_(x.flip(0))
        graph.replay()
        for mine, right in zip(replayed, call(), strict=True):
            assert torch.equal(mine, right), "the same kernels, in the same order"


@pytest.mark.parametrize("form", ["triton", "triton-cached"])
def test_compiled_by_inductor_it_is_the_same(form: str) -> None:
    torch._dynamo.reset()
    layer = NiffDepthwise(6, form=form, device="cuda")
    compiled: Any = torch.compile(layer)
    _hold(layer, _images(3, 6, (14, 9), torch.float32), compiled)
    torch._dynamo.reset()


def test_second_derivatives() -> None:
    results = []
    layer = NiffDepthwise(3, form="triton", device="cuda")
    images = _images(2, 3, (9, 8), torch.float32)
    for form, dtype in (("triton", torch.float32), ("rfft", torch.float64)):
        one = NiffDepthwise(3, form=form, device="cuda", dtype=dtype)
        one.load_state_dict(layer.state_dict())
        x = images.to(dtype).requires_grad_()
        inputs = [x, *one.parameters()]
        first = torch.autograd.grad(one(x).square().sum(), inputs, create_graph=True)
        results.append(torch.autograd.grad(sum(g.square().sum() for g in first), inputs, allow_unused=True))
    largest = max(float(gradient.norm()) for gradient in results[1] if gradient is not None)
    for mine, right in zip(*results, strict=True):
        if right is not None:
            assert mine is not None
            assert float((mine - right).norm()) < 1e-5 * largest


def test_odd_addresses_empty_batches_other_layouts_and_every_call_alike() -> None:
    layer = NiffDepthwise(3, form="triton", device="cuda")
    flat = torch.randn(2 * 3 * 8 * 8 + 1, device="cuda")
    x = flat[1:].view(2, 3, 8, 8)
    expected = layer(x)
    assert _error(expected, layer.with_form("rfft")(x).double()) < 3e-6
    assert torch.equal(layer(x.clone()), expected)
    last = layer(x.contiguous(memory_format=torch.channels_last))
    assert last.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(last, expected)
    assert layer(x[:0]).shape == (0, 3, 8, 8)
    if torch.cuda.device_count() > 1:
        other = torch.device("cuda", 1)
        assert _error(layer.to(other)(x.to(other)).cpu(), expected.cpu().double()) < 3e-6


def test_auto_tries_it_where_it_may_win_and_takes_what_was_fastest() -> None:
    x = _images(2, 4, (14, 14), torch.float32)
    assert "triton" in auto.candidates(x)
    assert "triton" in auto.candidates(x.half())
    assert "triton" not in auto.candidates(x.double())
    assert "triton" not in auto.candidates(torch.empty(2, 4, 128, 128, device="cuda"))
    assert triton_engine.unavailable(x) is None
    auto.forget()
    layer = NiffDepthwise(4, form="auto", device="cuda")
    for dtype in (torch.float32, torch.bfloat16):
        with torch.no_grad():
            y = layer(x.to(dtype))
        assert layer.chosen in auto.candidates(x.to(dtype))
        assert _error(y, layer.with_form("rfft")(x.to(dtype)).double()) < 2 * ALLOWED[dtype]
    auto.forget()
