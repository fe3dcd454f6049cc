"""The CPU as a device."""

from __future__ import annotations

import gc
import time
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from itertools import repeat
from math import ceil
from typing import Any

import torch

from niffbench.device import host, malloc
from niffbench.device.base import (
    DEFAULT_CACHE,
    FLUSH_FACTOR,
    Block,
    Capabilities,
    Kind,
    Processor,
    Runner,
    Usage,
)
from niffbench.device.settings import torch_facts
from niffbench.errors import UsageError
from niffbench.fingerprint import Fact, host_facts
from niffbench.results import MachineState
from niffbench.suite import Regime


class CpuDevice:
    """The host's processor with a fixed number of threads.

    Args:
        threads: intra-op threads, None for the physical cores.
        cache: bytes of the last-level cache, None to ask the kernel; zero means unknown.
    """

    spec = place = "cpu"
    capabilities = Capabilities(host=True, flush=True, memory=True)
    highest_clock = None
    tf32 = False

    def __init__(self, threads: int | None = None, cache: int | None = None) -> None:
        torch.set_num_threads(threads or host.cores())
        self._malloc = malloc.keep_freed()
        self.quantum = host.quantum()
        self.cache = (host.last_level_cache() if cache is None else cache) or DEFAULT_CACHE
        self._sweep: torch.Tensor | None = None

    def arithmetic(self, tf32: bool) -> AbstractContextManager[object]:
        """Nothing to set."""
        if tf32:
            raise NotImplementedError("TF32 is not implemented for the CPU")
        return nullcontext()

    def facts(self) -> Mapping[str, Fact]:
        """Processor, the logical cores of it that may be used, allocator, libraries, threads, flags."""
        return {
            "device": "cpu",
            "processor": host_facts()["cpu"],
            "allowed_cores": len(host.allowed()),
            "malloc": self._malloc,
            **torch_facts(),
        }

    def surroundings(self) -> Mapping[str, Fact]:
        return {}

    def free_memory(self) -> int:
        """What the machine, or the container, has left."""
        return host.free_memory()

    def synchronise(self) -> None:
        """Nothing is enqueued."""

    def clock(self) -> float:
        return time.perf_counter()

    def timed(self, runner: Runner, calls: int = 1) -> tuple[float, object]:
        """Wall time of ``calls`` calls and the last output."""
        call, output = runner.call, None
        with runner.scope():
            start = time.perf_counter()
            for _ in repeat(None, calls):
                output = call()
            return time.perf_counter() - start, output

    def samples(self, runner: Runner, regime: Regime, calls: int, count: int) -> Block:
        """The clock is read around each sample; the garbage collector waits until the block is over."""
        call, cold = runner.call, regime == "cold"
        taken: list[float] = []
        collecting = gc.isenabled()
        gc.disable()
        try:
            with runner.scope():
                for _ in repeat(None, count):
                    if cold:
                        self.flush()
                    start = time.perf_counter_ns()  # equal times in floats differ by what uptime has rounded off
                    for _ in repeat(None, calls):
                        call()
                    taken.append((time.perf_counter_ns() - start) / 1e9 / calls)
        finally:
            if collecting:
                gc.enable()
        return Block(tuple(taken))

    def calls_lasting(self, runner: Runner, seconds: float, call: float) -> int:
        return max(1, ceil(seconds / call))

    def capture(self, runner: Runner) -> Runner:
        """There are no graphs here.

        Raises:
            RuntimeError: always.
        """
        raise RuntimeError("a CPU has no CUDA graphs")

    def flush(self) -> None:
        """Read ``FLUSH_FACTOR`` times the last-level cache with all threads."""
        if self._sweep is None:
            self._sweep = torch.zeros(FLUSH_FACTOR * self.cache // 4)
        self._sweep.sum()

    def usage(self, runner: Runner) -> Usage:
        """From the allocation events of torch's profiler, which sees buffers inside operators too."""
        runner.reset()
        with (
            runner.scope(),
            torch.autograd.profiler.profile(profile_memory=True, use_kineto=True) as profile,
        ):
            output = runner.call()
        del output
        total = peak = 0
        for _, size in memory_events(profile):
            total += size
            peak = max(peak, total)
        return Usage(peak=peak, kept=max(0, total))

    def state(self) -> MachineState:
        """The load."""
        return MachineState(load=host.load())

    def processor(self) -> Processor:
        return host.processor()

    def joules(self) -> float | None:
        return None

    def rest(self, seconds: float) -> None:
        time.sleep(seconds)

    def release(self) -> None:
        gc.collect()
        self.give_back()

    def give_back(self) -> None:
        malloc.give_back()

    def forget_plans(self) -> None:
        """Nobody lets MKL and oneDNN forget theirs."""

    def counters(self) -> Mapping[str, bool]:
        return {}


def _opened(which: str, threads: int | None) -> CpuDevice:
    if which:
        raise UsageError(f"--device cpu:{which}: should be cpu")
    return CpuDevice(threads)


KIND = Kind(
    forms="cpu", open=_opened, is_usable=lambda: True, describe=lambda: f"a CPU: {host_facts()['cpu']}", rank=1
)


def memory_events(profile: torch.autograd.profiler.profile) -> list[tuple[int, int]]:
    """Allocations (+) and frees (−) in bytes with their time in ns, sorted by time, of a finished profile."""
    results = profile.kineto_results
    assert results is not None
    events: list[Any] = [event for event in results.events() if event.name() == "[memory]"]
    return sorted(((event.start_ns(), event.nbytes()) for event in events), key=lambda event: event[0])
