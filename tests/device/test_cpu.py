"""The CPU as a device: samples, flushes of any cache size, allocation events."""

from __future__ import annotations

import gc
import os
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from importlib import metadata

import pytest
import torch

from niffbench.device.base import DEFAULT_CACHE
from niffbench.device.cpu import CpuDevice
from niffbench.fingerprint import differences
from niffbench.worker.machine import fingerprint
from niffbench.worker.probe import Probe


def test_samples_are_means_over_calls_and_as_many_as_asked_for(device: CpuDevice) -> None:
    calls = []
    block = device.samples(Probe(lambda: calls.append(time.sleep(1e-3))), "steady", 5, 4)
    assert len(calls) == 20
    assert len(block.samples) == 4
    assert all(1e-3 <= sample < 5e-2 for sample in block.samples)
    assert block.flags == frozenset()


def test_equal_times_of_a_coarse_clock_are_equal_samples(
    device: CpuDevice, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a long uptime floats would tell them apart, by what they have rounded off."""
    microseconds = iter(range(10**11, 10**12, 20))
    monkeypatch.setattr(time, "perf_counter_ns", lambda: 1000 * next(microseconds))
    assert set(device.samples(Probe(lambda: None), "steady", 3, 50).samples) == {20e-6 / 3}


def test_only_cold_samples_are_preceded_by_a_flush(device: CpuDevice, monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[str] = []
    monkeypatch.setattr(device, "flush", lambda: order.append("flush"))
    device.samples(Probe(lambda: order.append("call")), "cold", 1, 3)
    assert order == ["flush", "call"] * 3
    order.clear()
    device.samples(Probe(lambda: order.append("call")), "steady", 1, 3)
    assert order == ["call"] * 3


def test_the_scope_is_entered_once_a_block_and_the_garbage_collector_waits(device: CpuDevice) -> None:
    entered: list[bool] = []

    class Scoped:
        unrolled = 1

        @contextmanager
        def _inside(self) -> Iterator[None]:
            entered.append(True)
            yield

        def scope(self) -> AbstractContextManager[None]:
            return self._inside()

        def call(self) -> None:
            assert not gc.isenabled()

        def reset(self) -> None: ...

    device.samples(Scoped(), "steady", 3, 3)
    assert entered == [True]
    assert gc.isenabled()
    with pytest.raises(ZeroDivisionError):
        device.samples(Probe(lambda: 1 / 0), "steady", 1, 1)
    assert gc.isenabled()


@pytest.mark.parametrize("cache", [0, 1, 4096])
def test_a_cache_of_no_or_any_size_is_flushed(cache: int) -> None:
    small = CpuDevice(threads=1, cache=cache)
    small.flush()
    assert small._sweep is not None
    assert small._sweep.nbytes == 2 * (cache or DEFAULT_CACHE) // 4 * 4


def test_peak_and_kept_are_those_of_the_allocations(device: CpuDevice) -> None:
    def call() -> torch.Tensor:
        first = torch.empty(1000, dtype=torch.uint8)
        second = torch.empty(5000, dtype=torch.uint8)
        del first
        third = torch.empty(3000, dtype=torch.uint8)
        del second
        return third

    usage = device.usage(Probe(call))
    assert (usage.peak, usage.kept) == (8000, 3000)
    assert usage.reserved is None


def test_buffers_inside_an_operation_are_seen(device: CpuDevice) -> None:
    """irfft2 clones its input: twice 4·9·8 bytes of spectrum beside 4·16·4 of output, of which one remains."""
    spectrum = torch.zeros(4, 9, dtype=torch.complex64)
    usage = device.usage(Probe(lambda: torch.fft.irfft2(spectrum)))
    assert usage.peak > 4 * 16 * 4
    assert usage.kept == 4 * 16 * 4


def test_a_cpu_has_no_graphs(device: CpuDevice) -> None:
    assert not device.capabilities.graphs
    with pytest.raises(RuntimeError, match="CUDA graphs"):
        device.capture(Probe(lambda: None))


def test_the_fingerprint_names_what_must_match_and_nobody(device: CpuDevice) -> None:
    output = fingerprint(device)
    assert {"device", "processor", "torch", "mkl", "onednn", "threads", "cpu_capability", "deterministic"} <= set(
        output.must
    )
    assert output.must["torch"] == torch.__version__
    assert output.hash == fingerprint(device).hash


def test_another_setting_is_another_fingerprint(device: CpuDevice) -> None:
    before = fingerprint(device).hash
    torch.set_float32_matmul_precision("medium")
    try:
        assert fingerprint(device).hash != before
    finally:
        torch.set_float32_matmul_precision("highest")


@pytest.mark.parametrize("name", [
    "OMP_WAIT_POLICY", "OMP_PROC_BIND", "OMP_THREAD_LIMIT", "OMP_DYNAMIC", "KMP_AFFINITY", "KMP_BLOCKTIME",
    "ONEDNN_DEFAULT_FPMATH_MODE", "ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA", "MKL_ENABLE_INSTRUCTIONS",
    "MALLOC_ARENA_MAX", "PYTORCH_ALLOC_CONF",
])  # fmt: skip
def test_what_threads_are_told_is_part_of_the_fingerprint(
    device: CpuDevice, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.delenv(name, raising=False)
    before = fingerprint(device)
    monkeypatch.setenv(name, "another")
    assert differences(before.must, fingerprint(device).must) == {name.lower(): (None, "another")}


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="the platform binds no process to cores")
def test_cores_that_may_not_be_used_make_another_fingerprint(device: CpuDevice) -> None:
    every, before = os.sched_getaffinity(0), fingerprint(device)
    os.sched_setaffinity(0, {min(every)})
    try:
        few = fingerprint(device)
    finally:
        os.sched_setaffinity(0, every)
    assert before.must["allowed_cores"] == len(every)
    assert few.must["allowed_cores"] == 1


def test_a_machine_without_torchvision_says_so(device: CpuDevice, monkeypatch: pytest.MonkeyPatch) -> None:
    assert fingerprint(device).must["torchvision"] == metadata.version("torchvision")

    def missing(package: str) -> str:
        raise metadata.PackageNotFoundError(package)

    monkeypatch.setattr("niffbench.device.settings.version", missing)
    assert fingerprint(device).must["torchvision"] is None


def test_state_and_energy(device: CpuDevice) -> None:
    state = device.state()
    assert state.load is not None
    assert state.load >= 0
    assert device.joules() is None
    assert device.free_memory() > 0
