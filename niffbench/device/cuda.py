"""A CUDA GPU as a device: events over a filled queue, an L2 flush, the caching allocator, NVML."""

from __future__ import annotations

import ctypes
import gc
import os
import time
from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import replace
from itertools import pairwise, repeat
from math import ceil

import torch

from niffbench.device import host
from niffbench.device.base import DEFAULT_CACHE, FLUSH_FACTOR, Block, Kind, Processor, Runner, Usage
from niffbench.device.nvml import Nvml
from niffbench.device.settings import torch_facts
from niffbench.fingerprint import Fact
from niffbench.results import MachineState
from niffbench.suite import Regime

EVENT_QUANTUM = 0.5e-6
"""Resolution of an event in seconds (CUDA Runtime API, cudaEventElapsedTime)."""

WINDOW = 3e-3
"""Host time in seconds that may be enqueued behind one spin: the launch queue holds about 1,000 entries, and a
launch from Python takes 3 µs or more."""

LONGEST_SPIN = 0.1
BACKLOG = 50e-6
"""Seconds of work that must be left in the queue when the host is done: more than a last kernel and waking up."""

REPEATS = 2
"""How often a window is repeated with a longer spin when the queue ran dry."""

_CAPTURE_WARMUP = 3  # torch.cuda.graph's documentation asks for a few calls on a side stream first
_SPIN_CYCLES = 4_000_000


class CudaDevice:
    """GPU ``index``; ``threads`` are the host's intra-op threads, ``cache`` the bytes of L2 (None: as it says).

    Timing follows nvbench: the stream first gets a kernel that spins while the host enqueues what is timed, so
    that launch latency stays out of the window between two events.
    """

    kind: Kind = "cuda"
    quantum = EVENT_QUANTUM
    has_graphs = True

    def __init__(self, index: int = 0, threads: int | None = None, cache: int | None = None) -> None:
        torch.set_num_threads(threads or host.cores())
        torch.cuda.set_device(index)
        self.spec = f"cuda:{index}"
        self.index = index
        self._properties = torch.cuda.get_device_properties(index)
        self._cache = (getattr(self._properties, "L2_cache_size", 0) if cache is None else cache) or DEFAULT_CACHE
        self._sweep: torch.Tensor | None = None
        self._side: torch.cuda.Stream | None = None
        uuid = getattr(self._properties, "uuid", None)
        self._nvml = Nvml.open(None if uuid is None else str(uuid))
        self.highest_clock = self._nvml.highest_clock() if self._nvml else None
        self._cycles_per_second = self._spin_rate()

    @property
    def tf32(self) -> bool:
        """By torch's flags, the card and the driver's override."""
        allowed = torch.backends.cuda.matmul.allow_tf32 or torch.backends.cudnn.allow_tf32
        return bool(allowed) and self._properties.major >= 8 and os.environ.get("NVIDIA_TF32_OVERRIDE") != "0"

    def facts(self) -> Mapping[str, Fact]:
        """The GPU, its driver and settings, the libraries, precision and determinism flags."""
        properties, cudnn, matmul = self._properties, torch.backends.cudnn, torch.backends.cuda.matmul
        return {
            "device": "cuda",
            "gpu": properties.name,
            "gpu_memory_mib": properties.total_memory // 2**20,
            "gpu_capability": f"{properties.major}.{properties.minor}",
            "gpu_multiprocessors": properties.multi_processor_count,
            "gpu_l2_bytes": getattr(properties, "L2_cache_size", None),
            **(self._nvml.facts() if self._nvml else {"driver": None}),
            "cuda": torch.version.cuda,
            "cudnn": cudnn.version(),  # type: ignore[no-untyped-call]
            "cufft": _cufft_version(),
            "tf32_matmul": matmul.allow_tf32,
            "tf32_cudnn": cudnn.allow_tf32,
            "cudnn_benchmark": cudnn.benchmark,
            "cudnn_deterministic": cudnn.deterministic,
            **torch_facts(),
        }

    def free_memory(self) -> int:
        """What the device has free and what the allocator's pool has unused."""
        free, _ = torch.cuda.mem_get_info(self.index)
        return int(free + torch.cuda.memory_reserved(self.index) - torch.cuda.memory_allocated(self.index))

    def clock(self) -> float:
        return time.perf_counter()

    def timed(self, runner: Runner, calls: int = 1) -> tuple[float, object]:
        """Wall time on the host, launches included, from an idle GPU to an idle GPU."""
        call, output = runner.call, None
        with runner.scope():
            torch.cuda.synchronize(self.index)
            start = time.perf_counter()
            for _ in repeat(None, calls):
                output = call()
            torch.cuda.synchronize(self.index)
            return time.perf_counter() - start, output

    def samples(self, runner: Runner, regime: Regime, calls: int, count: int) -> Block:
        """GPU time between events. ``launch-bound`` is flagged when the queue ran dry inside a window."""
        collecting = gc.isenabled()
        gc.disable()
        try:
            with runner.scope():
                return self._sampled(runner, regime == "cold", calls, count)
        finally:
            if collecting:
                gc.enable()

    def most_calls(self, runner: Runner) -> int:
        """What can be enqueued in one window."""
        with runner.scope():
            return max(1, int(WINDOW / self._enqueue_time(runner)))

    def _sampled(self, runner: Runner, cold: bool, calls: int, count: int) -> Block:
        each = self._enqueue_time(runner) * calls
        width = 1 if cold else max(1, min(count, int(WINDOW / each)))
        taken: list[float] = []
        full = True
        while len(taken) < count:
            size = min(width, count - len(taken))
            for attempt in range(1 + REPEATS):
                window, filled = self._window(runner, cold, calls, size, each * size, 2.0**attempt)
                if filled:
                    break
            taken += window
            full = full and filled
        return Block(tuple(taken), frozenset() if full else frozenset({"launch-bound"}))

    def _enqueue_time(self, runner: Runner) -> float:
        """Host seconds that one call takes to enqueue on an empty queue."""
        torch.cuda.synchronize(self.index)
        start = time.perf_counter()
        runner.call()
        taken = time.perf_counter() - start
        torch.cuda.synchronize(self.index)
        return max(taken, 1e-6)

    def _window(
        self, runner: Runner, cold: bool, calls: int, count: int, host_time: float, stretch: float
    ) -> tuple[list[float], bool]:
        """``count`` samples behind one spin of ``stretch`` times what ``host_time`` asks for.

        Also whether the queue never ran dry: the GPU had not begun when the host was done enqueueing, or still
        had a backlog then. (A queue longer than the driver's makes the host wait for the spin to end.)
        """
        marks = [_event() for _ in range(count + 1)]
        if cold:
            self.flush()
        self._spin(stretch * (1.5 * host_time + 50e-6))
        marks[0].record()
        for mark in marks[1:]:
            for _ in repeat(None, calls):
                runner.call()
            mark.record()
        begun = bool(marks[0].query())  # type: ignore[no-untyped-call]
        enqueued = time.perf_counter()
        marks[-1].synchronize()
        backlog = time.perf_counter() - enqueued
        window = [a.elapsed_time(b) * 1e-3 / calls for a, b in pairwise(marks)]
        return window, not begun or backlog > BACKLOG

    def _spin(self, seconds: float) -> None:
        """Keep the stream busy. A spin ends by itself, so a call that synchronises cannot deadlock behind it."""
        cycles = ceil(min(seconds, LONGEST_SPIN) * self._cycles_per_second)
        torch.cuda._sleep(cycles)  # type: ignore[no-untyped-call]

    def _spin_rate(self) -> float:
        """Cycles of the spin kernel per second, measured (best of three: the clock ramps up)."""
        rates: list[float] = []
        for _ in range(3):
            before, after = _event(), _event()
            before.record()
            torch.cuda._sleep(_SPIN_CYCLES)  # type: ignore[no-untyped-call]
            after.record()
            after.synchronize()
            rates.append(_SPIN_CYCLES / (before.elapsed_time(after) * 1e-3))
        return max(rates)

    def capture(self, runner: Runner) -> Runner:
        """Capture one call. Raises RuntimeError for calls that cannot be captured (they synchronise, say).

        All warm up and are captured on one stream: torch keeps a workspace of cuBLAS for each that it ever saw.
        """
        if self._side is None:
            self._side = torch.cuda.Stream(self.index)  # type: ignore[no-untyped-call]
        side = self._side
        side.wait_stream(torch.cuda.current_stream(self.index))
        with torch.cuda.stream(side), runner.scope():
            for _ in range(_CAPTURE_WARMUP):
                runner.call()
        torch.cuda.current_stream(self.index).wait_stream(side)
        torch.cuda.synchronize(self.index)
        runner.reset()
        graph = torch.cuda.CUDAGraph()
        # A capture that fails does not leave its stream by itself.
        with torch.cuda.stream(side), runner.scope(), torch.cuda.graph(graph, stream=side):
            runner.call()
        return Captured(runner, graph)

    def flush(self) -> None:
        """Write ``FLUSH_FACTOR`` times the L2."""
        if self._sweep is None:
            self._sweep = torch.empty(FLUSH_FACTOR * self._cache, dtype=torch.int8, device=self.spec)
        self._sweep.zero_()

    def usage(self, runner: Runner) -> Usage:
        """From the caching allocator, which cuFFT's and cuDNN's workspaces come from too.

        Two warm calls come first: plans, and the largest candidate workspace when cuDNN tries its algorithms.
        """
        with runner.scope():
            for _ in range(2):
                runner.call()
            runner.reset()
            self.release()
            torch.cuda.synchronize(self.index)
            allocated, reserved = torch.cuda.memory_allocated(self.index), torch.cuda.memory_reserved(self.index)
            free, _ = torch.cuda.mem_get_info(self.index)
            torch.cuda.reset_peak_memory_stats(self.index)
            output = runner.call()
            torch.cuda.synchronize(self.index)
        kept = torch.cuda.memory_allocated(self.index)
        del output
        left, _ = torch.cuda.mem_get_info(self.index)
        return Usage(
            peak=max(0, torch.cuda.max_memory_allocated(self.index) - allocated),
            kept=max(0, kept - allocated),
            reserved=max(0, torch.cuda.max_memory_reserved(self.index) - reserved),
            device_delta=free - left,
        )

    def state(self) -> MachineState:
        """NVML's figures beside the host's load."""
        load = host.load()
        return replace(self._nvml.state(), load=load) if self._nvml else MachineState(load=load)

    def probe(self) -> dict[str, bool]:
        """Which of NVML's counters answer; empty without NVML."""
        return self._nvml.probe() if self._nvml else {}

    def processor(self) -> Processor:
        return host.processor()

    def joules(self) -> float | None:
        """NVML's energy counter, after the GPU is idle."""
        torch.cuda.synchronize(self.index)
        return self._nvml.joules() if self._nvml else None

    def rest(self, seconds: float) -> None:
        torch.cuda.synchronize(self.index)
        time.sleep(seconds)

    def release(self) -> None:
        gc.collect()
        torch.cuda.empty_cache()


class Captured:
    """A case as a CUDA graph; holds the graph's memory, and the original whose tensors it reads.

    Not the output: of training it would hold gradients to the stream of the capture, where eager calls would wait.
    """

    def __init__(self, runner: Runner, graph: torch.cuda.CUDAGraph) -> None:
        self._runner = runner
        self.call = graph.replay

    def scope(self) -> AbstractContextManager[object]:
        return self._runner.scope()

    def reset(self) -> None:
        """Nothing: a replay writes where the capture wrote."""


def _event() -> torch.cuda.Event:
    return torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]


def usable() -> bool:
    """Whether torch sees a GPU it can use."""
    return torch.version.cuda is not None and torch.cuda.is_available()


def count() -> int:
    """GPUs torch sees."""
    return torch.cuda.device_count()


def describe() -> str:
    """Why CUDA cannot be used, or what torch sees, in one sentence."""
    if torch.version.cuda is None:
        return f"torch {torch.__version__} was built without CUDA"
    if not usable():
        return f"torch {torch.__version__} is built for CUDA {torch.version.cuda} but sees no usable GPU or driver"
    names = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return "torch sees " + ", ".join(f"cuda:{i} ({name})" for i, name in enumerate(names))


def _cufft_version() -> int | None:
    """cuFFT's own version number, from the library torch has loaded."""
    major = int((torch.version.cuda or "0").partition(".")[0])
    for name in (f"libcufft.so.{major - 1}", "libcufft.so"):  # cuFFT 11 came with CUDA 12, cuFFT 12 with CUDA 13
        try:
            version = ctypes.c_int()
            if ctypes.CDLL(name).cufftGetVersion(ctypes.byref(version)) == 0:
                return version.value
        except (OSError, AttributeError):
            continue
    return None
