"""The CUDA device's timing against a simulated GPU: a queue, a spin kernel, events, and two clocks.

The simulation says what a real queue does: the host enqueues at its own pace, the GPU runs what is in the queue in
order, and an event is stamped when the GPU gets to it. So it can be planted how long launches and kernels take.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any
from weakref import WeakKeyDictionary

import pytest
import torch

from niffbench.device import cuda
from niffbench.device.base import DEFAULT_CACHE
from niffbench.device.cuda import CudaDevice
from niffbench.device.settings import allow_tf32, tf32_allowed
from niffbench.results import MachineState
from niffbench.worker.probe import Probe

CYCLES = 1e9  # of the spin kernel, per second
QUEUE = 1000  # entries; a host that wants to enqueue more waits


@dataclass
class Gpu:
    """``host`` is the host's clock, ``free`` when the GPU has done all that was enqueued, both in seconds."""

    host: float = 100.0
    free: float = 100.0
    queued: list[str] = field(default_factory=list)
    running: list[float] = field(default_factory=list)  # when each entry of the queue will be done

    def enqueue(self, name: str, launch: float, run: float) -> None:
        """The host takes ``launch`` to enqueue what the GPU runs for ``run``."""
        self.running = [done for done in self.running if done > self.host]
        if len(self.running) >= QUEUE:
            self.host = max(self.host, self.running[-QUEUE])
        self.host += launch
        self.free = max(self.free, self.host) + run
        self.queued.append(name)
        self.running.append(self.free)

    def synchronise(self, *_: object) -> None:
        self.host = max(self.host, self.free)

    def event(self, enable_timing: bool) -> Any:
        gpu = self

        class Event:
            at = 0.0

            def record(self) -> None:
                gpu.host += 1e-7
                self.at = max(gpu.free, gpu.host)

            def query(self) -> bool:
                return gpu.host >= self.at

            def synchronize(self) -> None:
                gpu.host = max(gpu.host, self.at)

            def elapsed_time(self, other: Any) -> float:
                return float(other.at - self.at) * 1e3

        return Event()


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Gpu:
    simulated = Gpu()
    monkeypatch.setattr(torch.cuda, "Event", simulated.event)
    monkeypatch.setattr(torch.cuda, "synchronize", simulated.synchronise)
    monkeypatch.setattr(torch.cuda, "_sleep", lambda cycles: simulated.enqueue("spin", 2e-6, cycles / CYCLES))
    monkeypatch.setattr(cuda, "time", SimpleNamespace(perf_counter=lambda: simulated.host, sleep=lambda s: None))
    return simulated


@pytest.fixture
def device(gpu: Gpu, monkeypatch: pytest.MonkeyPatch) -> CudaDevice:
    made = object.__new__(CudaDevice)
    made.index, made.spec, made._nvml = 0, "cuda:0", None
    made._enqueue_times = WeakKeyDictionary()
    made._cycles_per_second = made._spin_rate()
    monkeypatch.setattr(made, "flush", lambda: gpu.enqueue("flush", 2e-6, 50e-6))
    gpu.queued.clear()
    return made


def _kernels(gpu: Gpu, kernels: int, launch: float, run: float) -> Probe:
    def call() -> None:
        for _ in range(kernels):
            gpu.enqueue("kernel", launch, run)

    return Probe(call)


def test_the_spin_is_calibrated(device: CudaDevice) -> None:
    assert device._cycles_per_second == pytest.approx(CYCLES, rel=1e-3)


@pytest.mark.parametrize("regime", ["steady", "cold"])
@pytest.mark.parametrize(
    ("kernels", "launch", "run"),
    [(1, 5e-6, 1e-3), (20, 5e-6, 2e-6), (20, 10e-6, 1e-6), (3, 4e-6, 4e-6), (1, 50e-6, 3e-6)],
)
def test_launch_latency_stays_out_of_the_window(
    gpu: Gpu, device: CudaDevice, regime: Any, kernels: int, launch: float, run: float
) -> None:
    block = device.samples(_kernels(gpu, kernels, launch, run), regime, 1, 12)
    assert len(block.samples) == 12
    assert block.flags == frozenset()
    assert statistics.median(block.samples) == pytest.approx(kernels * run, rel=1e-6)


def test_a_call_longer_than_the_queue_is_timed_right_while_there_is_a_backlog(
    gpu: Gpu, device: CudaDevice
) -> None:
    block = device.samples(_kernels(gpu, 1500, 5e-6, 3e-6), "steady", 1, 3)
    assert block.flags == frozenset()
    assert block.samples == pytest.approx((4.5e-3,) * 3)


def test_a_call_so_long_that_the_queue_runs_dry_says_so(gpu: Gpu, device: CudaDevice) -> None:
    block = device.samples(_kernels(gpu, 6000, 5e-6, 1e-6), "steady", 1, 2)
    assert block.flags == {"launch-bound"}


def test_without_the_spin_the_same_kernels_would_be_launch_bound(gpu: Gpu, device: CudaDevice) -> None:
    """The simulation can tell: the wall clock of the same calls is that of the launches."""
    probe = _kernels(gpu, 20, 10e-6, 1e-6)
    seconds, _ = device.timed(probe, 10)
    assert seconds / 10 == pytest.approx(200e-6, rel=0.05)


def test_calls_share_a_sample(gpu: Gpu, device: CudaDevice) -> None:
    block = device.samples(_kernels(gpu, 2, 5e-6, 3e-6), "steady", 7, 4)
    assert block.samples == pytest.approx((6e-6,) * 4)


def test_every_cold_sample_is_flushed_before_its_spin(gpu: Gpu, device: CudaDevice) -> None:
    device.samples(_kernels(gpu, 1, 5e-6, 1e-5), "cold", 1, 3)
    after_estimate = gpu.queued[3:]
    assert after_estimate == ["flush", "spin", "kernel"] * 3


def test_a_call_that_waits_for_the_gpu_is_flagged_and_ends(gpu: Gpu, device: CudaDevice) -> None:
    """No spin can hide a host that waits for what it has just enqueued."""

    def call() -> None:
        gpu.enqueue("kernel", 5e-6, 1e-6)
        gpu.synchronise()
        gpu.host += 100e-6

    block = device.samples(Probe(call), "steady", 1, 3)
    assert "launch-bound" in block.flags


def test_a_sample_holds_no_more_calls_than_the_queue(gpu: Gpu, device: CudaDevice) -> None:
    assert device.calls_lasting(_kernels(gpu, 20, 5e-6, 1e-6), 1.0, 100e-6) == pytest.approx(
        cuda.WINDOW / 100e-6, abs=1
    )
    assert device.calls_lasting(_kernels(gpu, 5000, 5e-6, 1e-6), 1.0, 25e-3) == 1


def test_calls_of_a_sample_follow_the_gpus_time_and_not_that_of_the_launches(gpu: Gpu, device: CudaDevice) -> None:
    probe = _kernels(gpu, 10, 10e-6, 2e-6)
    by_the_wall = device.timed(probe, 10)[0] / 10
    assert by_the_wall > 90e-6
    assert device.calls_lasting(probe, 200e-6, by_the_wall) == pytest.approx(10, abs=1)


def test_a_call_that_makes_plans_once_does_not_make_samples_single_calls(gpu: Gpu, device: CudaDevice) -> None:
    planned: list[bool] = []

    def call() -> None:
        gpu.host += 0.0 if planned else 12e-3
        planned.append(True)
        gpu.enqueue("kernel", 5e-6, 2e-6)

    assert device.calls_lasting(Probe(call), 500e-6, 12e-3) == pytest.approx(250, abs=1)


def test_the_spin_is_calibrated_at_the_clock_of_a_busy_gpu(gpu: Gpu, monkeypatch: pytest.MonkeyPatch) -> None:
    """A GPU that comes from idling has a sixth of its clock for the first 50 ms."""
    begun = gpu.host

    def sleep(cycles: int) -> None:
        rate = CYCLES if gpu.host - begun > 50e-3 else CYCLES / 6
        gpu.enqueue("spin", 2e-6, cycles / rate)

    monkeypatch.setattr(torch.cuda, "_sleep", sleep)
    assert object.__new__(CudaDevice)._spin_rate() == pytest.approx(CYCLES, rel=1e-3)


def test_wall_is_what_the_host_waits_for_and_steady_is_the_gpus_own(gpu: Gpu, device: CudaDevice) -> None:
    probe = _kernels(gpu, 20, 10e-6, 2e-6)
    assert device.samples(probe, "steady", 1, 5).samples == pytest.approx((40e-6,) * 5)
    assert device.samples(probe, "wall", 1, 5).samples == pytest.approx((202e-6,) * 5)


def test_the_state_is_read_while_the_gpu_is_busy(gpu: Gpu, device: CudaDevice) -> None:
    busy: list[bool] = []

    def state() -> MachineState:
        gpu.host += 1e-3  # what NVML takes to answer
        busy.append(gpu.free > gpu.host)
        return MachineState(sm_clock=345.0, power=300.0)

    device._nvml = SimpleNamespace(state=state)  # type: ignore[assignment]
    device.samples(_kernels(gpu, 1, 5e-6, 1e-4), "steady", 1, 2)
    seen = device.state()
    assert busy == [True]
    assert (seen.sm_clock, seen.power) == (pytest.approx(CYCLES * 1e-6, rel=0.01), 300.0)


def _flushable(monkeypatch: pytest.MonkeyPatch, cache: int) -> list[int]:
    asked: list[int] = []

    def empty(size: int, **_: object) -> torch.Tensor:
        asked.append(size)
        return torch.zeros(1, dtype=torch.int8)

    properties = SimpleNamespace(
        name="card", major=9, minor=0, L2_cache_size=cache, total_memory=2**30, multi_processor_count=1
    )
    monkeypatch.setattr(torch.cuda, "set_device", lambda index: None)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: properties)
    monkeypatch.setattr(cuda.torch, "empty", empty)
    return asked


@pytest.mark.parametrize(("cache", "flushed"), [(0, DEFAULT_CACHE), (50 * 2**20, 50 * 2**20)])
def test_an_l2_of_no_size_is_flushed_all_the_same(
    gpu: Gpu, monkeypatch: pytest.MonkeyPatch, cache: int, flushed: int
) -> None:
    asked = _flushable(monkeypatch, cache)
    before = torch.get_num_threads()
    made = CudaDevice(0, threads=1)
    torch.set_num_threads(before)
    made.flush()
    made.flush()
    assert asked == [2 * flushed]


def test_a_card_is_opened_with_tf32_off_and_a_case_may_ask_for_it(
    gpu: Gpu, monkeypatch: pytest.MonkeyPatch
) -> None:
    _flushable(monkeypatch, 2**20)
    before, threads = tf32_allowed(), torch.get_num_threads()
    allow_tf32(False, True)  # torch's default
    try:
        device = CudaDevice(0, threads=1)
        assert not device.tf32
        facts = device.facts()
        assert (facts["tf32_matmul"], facts["tf32_cudnn"]) == (False, False)
        with device.arithmetic(tf32=True):
            assert device.tf32
        assert not device.tf32
        device._properties = SimpleNamespace(major=7)  # type: ignore[assignment]
        with pytest.raises(NotImplementedError, match="TF32"):
            device.arithmetic(tf32=True)
    finally:
        allow_tf32(*before)
        torch.set_num_threads(threads)


def test_which_card_it_is_is_told_by_a_digest_and_without_refusing_another(device: CudaDevice) -> None:
    output = []
    for identity in ("2f1c6a5e-aaaa", "2f1c6a5e-bbbb"):
        device._properties = SimpleNamespace(uuid=identity)  # type: ignore[assignment]
        device._nvml = None
        output.append(device.surroundings()["gpu_id"])
        assert str(output[-1]) not in identity
    assert None not in output
    assert output[0] != output[1]


def test_tf32_is_by_flag_card_and_drivers_override(device: CudaDevice, monkeypatch: pytest.MonkeyPatch) -> None:
    device._properties = SimpleNamespace(major=9)  # type: ignore[assignment]
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)
    assert device.tf32
    monkeypatch.setenv("NVIDIA_TF32_OVERRIDE", "0")
    assert not device.tf32
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    monkeypatch.setenv("NVIDIA_TF32_OVERRIDE", "1")
    assert device.tf32
    device._properties = SimpleNamespace(major=7)  # type: ignore[assignment]
    assert not device.tf32


def test_memory_of_a_call_is_the_peak_above_what_was_there(
    device: CudaDevice, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The figures COUNTERS-style: warm calls first, then base, reset, run, peak."""
    log: list[str] = []
    allocated = iter([1000, 1700])
    reserved = iter([4096])
    free = iter([(50_000, 0), (40_000, 0)])

    def named(name: str, answer: Callable[[], Any] = lambda: None) -> Callable[..., Any]:
        def answering(*_: object) -> Any:
            log.append(name)
            return answer()

        return answering

    for name, answer in {
        "memory_allocated": lambda: next(allocated),
        "memory_reserved": lambda: next(reserved),
        "mem_get_info": lambda: next(free),
        "max_memory_allocated": lambda: 2500,
        "max_memory_reserved": lambda: 8192,
        "reset_peak_memory_stats": lambda: None,
        "empty_cache": lambda: None,
    }.items():
        monkeypatch.setattr(torch.cuda, name, named(name, answer))
    usage = device.usage(Probe(named("call")))
    assert (usage.peak, usage.kept, usage.reserved, usage.device_delta) == (1500, 700, 4096, 10_000)
    assert log[:2] == ["call", "call"]
    reset = log.index("reset_peak_memory_stats")
    assert (
        log.index("empty_cache") < log.index("memory_allocated") < reset < len(log) - log[::-1].index("call") - 1
    )
