"""Every operator on a GPU agrees with float64 on the CPU: dtypes, modes, layouts, autocast, CUDA graphs."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import get_args

import gpu_cases
import pytest
import torch
from gpu_cases import Holder, case, everywhere, opened, relative

from niffbench.case import DType, Mode
from niffbench.operators.catalogue import catalogue
from niffbench.worker.tolerance import TOLERANCE, is_wrong, verdict
from niffbench.worker.torch_evaluator import TorchEvaluator
from niffbench.worker.workload import TorchWorkload, build

exactly = pytest.fixture(autouse=True)(gpu_cases.exactly)

GRADIENTS = 20
"""Gradients sum over more numbers than outputs do: how many times an output's tolerance they are allowed."""


@pytest.mark.parametrize("dtype", get_args(DType))
@pytest.mark.parametrize(("place", "name"), everywhere())
def test_outputs_agree_with_float64(place: str, name: str, dtype: DType) -> None:
    if dtype not in catalogue()[name].dtypes:
        pytest.skip(f"{name} is not defined for {dtype}")
    device = opened(place)
    evaluator = TorchEvaluator(device)
    for mode in ("inference", "training"):
        workload = evaluator.workload(case(name, dtype=dtype, mode=mode))
        _, output = device.timed(workload)
        assert isinstance(output, torch.Tensor)
        assert (output.device.type, output.dtype) == (place, getattr(torch, dtype))
        numerics = evaluator.numerics(workload, output)
        assert not is_wrong(numerics), verdict(numerics)


@pytest.mark.parametrize("mode", ["inference", "training"])
@pytest.mark.parametrize(
    ("place", "network"),
    [
        ("cpu", "resnet18-split"),
        *(pytest.param("cuda", name, marks=pytest.mark.cuda) for name in gpu_cases.NETWORKS),
    ],
)
def test_whole_networks_agree_with_float64(place: str, network: str, mode: Mode) -> None:
    device = opened(place)
    evaluator = TorchEvaluator(device)
    one = case(f"network/{network}", mode=mode, channels=3, channels_out=10, size=(64, 64))
    workload = evaluator.workload(one)
    numerics = evaluator.numerics(workload, device.timed(workload)[1])
    assert not is_wrong(numerics), verdict(numerics)


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize(("place", "name"), everywhere())
def test_gradients_agree_with_float64(place: str, name: str, dtype: DType) -> None:
    operator, one = catalogue()[name], case(name, dtype=dtype, mode="training")
    here, truth = build(operator, one, None), build(operator, one, None)
    x = torch.randn(2, 8, *gpu_cases.SIZE, generator=torch.Generator().manual_seed(3))
    workload = TorchWorkload(one, here, x.clone(), torch.device(place))
    exact = TorchWorkload(case(name, dtype="float64", mode="training"), truth, x.clone(), torch.device("cpu"))
    for one_subject in (workload, exact):
        with one_subject.scope():
            one_subject.call()
    for ours, theirs in zip(workload.leaves(), exact.leaves(), strict=True):
        assert ours.grad is not None
        assert theirs.grad is not None
        assert relative(ours.grad, theirs.grad) < GRADIENTS * TOLERANCE[dtype]


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize(("place", "name"), everywhere())
def test_channels_last_gives_the_same(place: str, name: str, dtype: DType) -> None:
    device = opened(place)
    evaluator = TorchEvaluator(device)
    workload = evaluator.workload(case(name, dtype=dtype, memory_format="channels_last"))
    assert workload.x.is_contiguous(memory_format=torch.channels_last)
    numerics = evaluator.numerics(workload, device.timed(workload)[1])
    assert not is_wrong(numerics), verdict(numerics)


@pytest.mark.parametrize("lower", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize(("place", "name"), everywhere())
def test_autocast_keeps_the_function(place: str, name: str, lower: torch.dtype) -> None:
    device = opened(place)
    evaluator = TorchEvaluator(device)
    workload = evaluator.workload(case(name, mode="training"))
    with torch.autocast(place, dtype=lower):
        output = workload.module(workload.x.clone())  # the workload writes other images into its own
    numerics = evaluator.numerics(workload, output)
    allowed = TOLERANCE[str(lower).removeprefix("torch.")]
    assert numerics.l2 < allowed
    assert numerics.max < allowed
    output.sum().backward()
    assert all(leaf.grad is not None and bool(leaf.grad.isfinite().all()) for leaf in workload.leaves())


@pytest.mark.cuda
@pytest.mark.parametrize("mode", get_args(Mode))
@pytest.mark.parametrize("name", gpu_cases.names("cuda"))
def test_a_graph_computes_what_the_calls_in_it_do(name: str, mode: Mode) -> None:
    """cuFFT's transforms included: the graph reads new numbers from the old place."""
    device = opened("cuda")
    workload = TorchEvaluator(device).workload(case(name, mode=mode))
    holder = Holder(workload)
    captured = device.capture(holder)
    fresh = torch.randn(workload.x.shape, generator=torch.Generator().manual_seed(11)).to(workload.x)
    with torch.no_grad():
        workload.x.copy_(fresh)
    with captured.scope():
        captured.call()
    torch.cuda.synchronize()
    assert holder.output is not None
    replayed = holder.output.detach().clone()
    gradients = [None if leaf.grad is None else leaf.grad.clone() for leaf in workload.leaves()]
    workload.reset()
    with workload.scope():
        expected = workload.call()
    torch.testing.assert_close(replayed, expected.detach(), rtol=1e-4, atol=1e-5)
    assert (mode == "training") == all(gradient is not None for gradient in gradients)
    if mode == "training":
        for gradient, leaf in zip(gradients, workload.leaves(), strict=True):
            assert gradient is not None
            assert leaf.grad is not None
            assert relative(gradient, leaf.grad) < 1e-4


@pytest.mark.cuda
@pytest.mark.parametrize("optimiser", ["sgd", "adamw"])
def test_a_graph_holds_the_step_of_an_optimiser(optimiser: str) -> None:
    device = opened("cuda")
    one = case("network/resnet18", mode="training", channels=3, channels_out=10, size=(64, 64))
    options = tuple(sorted((dict(one.options) | {"optimiser": optimiser}).items()))
    workload = TorchEvaluator(device).workload(replace(one, options=options))
    weights = [parameter.detach().clone() for parameter in workload.module.parameters()]
    captured = device.capture(workload)
    with captured.scope():
        captured.call()
    torch.cuda.synchronize()
    for before, after in zip(weights, workload.module.parameters(), strict=True):
        torch.testing.assert_close(after, before, rtol=0, atol=0)


@pytest.mark.cuda
@pytest.mark.parametrize("mode", ["inference", "training"])
@pytest.mark.parametrize("name", gpu_cases.names("cuda"))
def test_large_problems_agree_too(name: str, mode: Mode) -> None:
    """At a size that fills the card, other kernels and FFT plans are at work."""
    size = (32, 32) if name == "attention" else (56, 56)
    channels = 16 if "full" in name or "dense" in name else 64
    device = opened("cuda")
    evaluator = TorchEvaluator(device)
    workload = evaluator.workload(case(name, mode=mode, batch=8, channels=channels, size=size, kernel=9))
    numerics = evaluator.numerics(workload, device.timed(workload)[1])
    assert not is_wrong(numerics), verdict(numerics)


@pytest.fixture(autouse=True)
def _released() -> Iterator[None]:
    yield
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
