"""Clocks of a GPU that agree with each other: events, graph replays and the wall, cold and warm."""

from __future__ import annotations

import statistics

import pytest
import torch
from gpu_cases import PLACES, Holder, case, opened

from niffbench.device.cuda import GRAPH_TIME, MOST_UNROLLED, CudaDevice
from niffbench.suite import Measure
from niffbench.worker.latency import Sampler, launch_share
from niffbench.worker.probe import Probe
from niffbench.worker.torch_evaluator import TorchEvaluator

pytestmark = pytest.mark.alone


def _product(place: str, side: int) -> Probe:
    a = torch.randn(side, side, device=place)
    out = torch.empty_like(a)
    return Probe(lambda: torch.mm(a, a, out=out))


def _long() -> Probe:
    """Some milliseconds in one kernel, so that launching is nothing beside it."""
    return _product("cuda", 4096)


@pytest.mark.cuda
def test_events_and_the_wall_agree_on_a_long_kernel() -> None:
    device, probe = opened("cuda"), _long()
    for _ in range(3):
        device.timed(probe, 5)
    events = statistics.median(device.samples(probe, "steady", 1, 20).samples)
    wall = statistics.median(device.timed(probe, 20)[0] / 20 for _ in range(5))
    assert events == pytest.approx(wall, rel=0.15)


@pytest.mark.cuda
def test_events_and_graph_replays_agree_on_a_long_kernel() -> None:
    device, probe = opened("cuda"), _long()
    captured = device.capture(probe)
    for _ in range(3):
        device.timed(captured, 5)
    events = statistics.median(device.samples(probe, "steady", 1, 20).samples)
    graph = statistics.median(device.samples(captured, "steady", 1, 20).samples)
    assert graph == pytest.approx(events, rel=0.1)


@pytest.mark.cuda
def test_a_graph_of_many_small_kernels_is_no_slower_and_saves_launches() -> None:
    device = opened("cuda")
    workload = TorchEvaluator(device).workload(case("niff-depthwise/published", batch=1, size=(14, 14)))
    captured = device.capture(Holder(workload))
    for runner in (workload, captured):
        device.timed(runner, 20)
    eager = statistics.median(device.samples(workload, "steady", 5, 20).samples)
    graph = statistics.median(device.samples(captured, "steady", 5, 20).samples)
    assert graph <= 1.1 * eager
    replayed = device.samples(device.capture(_long()), "steady", 1, 10).samples
    small = launch_share(device, workload, graph, 20)
    large = launch_share(device, _long(), statistics.median(replayed), 5)
    assert small is not None
    assert large is not None
    assert 0 <= large < small < 1


@pytest.mark.cuda
def test_a_flushed_cache_is_colder() -> None:
    """What is copied again and again fits in the L2; flushed, it comes from memory."""
    device = opened("cuda")
    source = torch.randn(torch.cuda.get_device_properties(0).L2_cache_size // 32, device="cuda")
    target = torch.empty_like(source)
    probe = Probe(lambda: target.copy_(source))
    device.timed(probe, 20)
    steady = statistics.median(device.samples(probe, "steady", 20, 20).samples)
    cold = statistics.median(device.samples(probe, "cold", 1, 20).samples)
    assert cold > steady


@pytest.mark.cuda
def test_a_flush_writes_twice_the_l2() -> None:
    device = CudaDevice()
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    device.flush()
    swept = torch.cuda.memory_allocated() - before
    assert swept >= 2 * torch.cuda.get_device_properties(0).L2_cache_size


@pytest.mark.cuda
@pytest.mark.parametrize("cache", [0, 2**20])
def test_an_odd_cache_size_is_no_obstacle(cache: int) -> None:
    device = CudaDevice(cache=cache)
    block = device.samples(_product("cuda", 64), "cold", 1, 3)
    assert len(block.samples) == 3
    assert min(block.samples) > 0


@pytest.mark.parametrize("place", PLACES)
def test_blocks_hold_what_was_asked_for(place: str) -> None:
    device, probe = opened(place), _product(place, 64)
    for calls, count in ((1, 1), (7, 3), (2, 400)):
        block = device.samples(probe, "steady", calls, count)
        assert len(block.samples) == count
        assert min(block.samples) > 0
    assert device.calls_lasting(probe, 1e-3, 1e-5) >= 1


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("regime", ["cold", "steady"])
def test_a_sampler_ends_and_its_samples_are_long_enough(place: str, regime: str) -> None:
    device = opened(place)
    measure = Measure(regimes=["steady"], precision=0.05, min_time=0.02, max_time=0.2, min_samples=5)
    sampler = Sampler(device, _product(place, 128), regime, measure)  # type: ignore[arg-type]
    while not sampler.done:
        sampler.step()
    series = sampler.result()
    assert len(series.samples) >= 5 or series.stopped == "time"
    assert sum(series.blocks) == len(series.samples)
    if regime == "cold":
        assert series.calls == 1


@pytest.mark.cuda
def test_a_call_that_waits_for_the_gpu_does_not_wait_for_ever() -> None:
    """It stands behind the kernel that spins; that ends by itself."""
    device, x = opened("cuda"), torch.ones(8, device="cuda")
    block = device.samples(Probe(lambda: float((x + 1).sum())), "steady", 50, 10)
    assert len(block.samples) == 10
    assert min(block.samples) > 0


@pytest.mark.cuda
def test_what_cannot_be_captured_is_refused_and_the_device_lives_on() -> None:
    device, x = opened("cuda"), torch.ones(8, device="cuda")
    with pytest.raises(RuntimeError):
        device.capture(Probe(lambda: float((x + 1).sum())))
    torch.cuda.synchronize()
    assert float((x + 1).sum()) == 16
    assert device.samples(_product("cuda", 64), "steady", 1, 2).samples


@pytest.mark.cuda
def test_after_a_failed_capture_all_goes_on_as_if_there_had_been_none() -> None:
    """Random numbers, in graphs of before and after too, memory, and captures."""
    device, x = opened("cuda"), torch.ones(8, device="cuda")
    drawn = torch.zeros(1024, device="cuda")
    drawing = Probe(lambda: drawn.copy_(torch.randn(1024, device="cuda")))
    earlier = device.capture(drawing)
    device.release()
    home, reserved = torch.cuda.current_stream(), torch.cuda.memory_reserved()
    for _ in range(2):
        with pytest.raises(RuntimeError):
            device.capture(Probe(lambda: float(torch.ones(64 * 2**20, device="cuda").sum())))
    device.release()
    assert torch.cuda.current_stream() == home
    assert torch.cuda.memory_reserved() - reserved < 64 * 2**20
    assert float(torch.randn(4096, device="cuda").std()) == pytest.approx(1, abs=0.2)
    large = torch.ones(64 * 2**20, device="cuda")
    assert float(large.sum()) == 64 * 2**20
    later = device.capture(drawing)
    for graph in (earlier, later):
        graph.call()
        before = drawn.clone()
        graph.call()
        assert not torch.equal(before, drawn)
        assert float(drawn.std()) == pytest.approx(1, abs=0.2)
    captured = device.capture(Probe(lambda: x.add_(1)))
    before = x.clone()
    captured.call()
    assert torch.equal(x, before + captured.unrolled)


@pytest.mark.cuda
def test_a_graph_of_a_short_call_holds_many_and_lasts() -> None:
    device = opened("cuda")
    short = device.capture(_product("cuda", 64))
    per_call = statistics.median(device.samples(short, "graph", 10, 20).samples)
    assert short.unrolled > 1
    assert short.unrolled == MOST_UNROLLED or per_call * short.unrolled > 0.7 * GRAPH_TIME
    assert device.capture(_long()).unrolled == 1


@pytest.mark.cuda
def test_the_wall_is_no_shorter_than_the_gpus_own_time() -> None:
    device = opened("cuda")
    workload = TorchEvaluator(device).workload(case("niff-depthwise/published", batch=1, size=(14, 14)))
    device.timed(workload, 20)
    steady = statistics.median(device.samples(workload, "steady", 5, 20).samples)
    assert statistics.median(device.samples(workload, "wall", 1, 50).samples) >= 0.9 * steady


@pytest.mark.cuda
def test_the_clock_is_that_of_a_busy_gpu() -> None:
    device = opened("cuda")
    device.samples(_long(), "steady", 1, 20)
    clock = device.state().sm_clock
    assert clock is not None
    assert device.highest_clock is None or 0.3 * device.highest_clock < clock < 1.1 * device.highest_clock
