"""A GPU as torch's CUDA, which on AMD's is ROCm: events over a filled queue, L2 flush, caching allocator, NVML."""

from __future__ import annotations

import ctypes
import gc
import hashlib
import os
import re
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, suppress
from dataclasses import replace
from itertools import pairwise, repeat
from math import ceil
from typing import Any, TypeVar
from weakref import WeakKeyDictionary

import torch

from niffbench.device import host, settings
from niffbench.device.base import DEFAULT_CACHE, FLUSH_FACTOR, Block, Capabilities, Kind, Processor, Runner, Usage
from niffbench.device.nvml import Nvml
from niffbench.device.settings import allow_tf32, tf32_allowed, torch_facts
from niffbench.errors import UsageError
from niffbench.fingerprint import Fact
from niffbench.results import MachineState
from niffbench.suite import Regime

T = TypeVar("T")

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

GRAPH_TIME = 50e-6
"""Seconds that a graph lasts at least, beside which the few µs between two replays are little."""

MOST_UNROLLED = 64
"""Calls in one graph at most: its nodes take memory of their own."""

WATCHED = 2e-3
"""Seconds that the GPU is kept busy while its state is read: longer than NVML takes to answer."""

_TRIALS = 3  # the fastest of them counts: the first may be cold
_RAMP = 0.1  # seconds of work after which a GPU that was idle has its full clock
_CAPTURE_WARMUP = 3  # torch.cuda.graph's documentation asks for a few calls on a side stream first
_SPIN_CYCLES = 4_000_000


class CudaDevice:
    """GPU ``index``; ``threads`` are the host's intra-op threads, ``cache`` the bytes of L2 (None: as it says).

    Timing follows nvbench: the stream first gets a kernel that spins while the host enqueues what is timed, so
    that the host's launch latency stays out of the window between two events. What the GPU itself needs from one
    kernel to the next stays in it: a call of many short kernels takes longer in ``steady`` than in ``graph``. The
    regime ``wall`` is the host's: one call from an idle GPU to an idle GPU.
    """

    quantum = EVENT_QUANTUM
    capabilities = Capabilities(
        asynchronous=True,
        graphs=True,
        flush=True,
        memory=True,
        energy=True,
        lazy_loading=True,  # CUDA's modules are since 12.2, by default; torch's libraries are in any case
    )

    def __init__(self, index: int = 0, threads: int | None = None, cache: int | None = None) -> None:
        torch.set_num_threads(threads or host.cores())
        torch.cuda.set_device(index)
        allow_tf32(False, False)  # cuDNN's is on by default
        self.spec = self.place = f"cuda:{index}"
        self.index = index
        self._properties = torch.cuda.get_device_properties(index)
        self.cache = (getattr(self._properties, "L2_cache_size", 0) if cache is None else cache) or DEFAULT_CACHE
        self._sweep: torch.Tensor | None = None
        self._side: torch.cuda.Stream | None = None
        uuid = getattr(self._properties, "uuid", None)
        self._nvml = Nvml.open(None if uuid is None else str(uuid))
        self.highest_clock = self._nvml.highest_clock() if self._nvml else None
        self._enqueue_times: WeakKeyDictionary[Runner, float] = WeakKeyDictionary()
        self._cycles_per_second = self._spin_rate()

    @property
    def tf32(self) -> bool:
        """By torch's flags, the card and the driver's override."""
        override = os.environ.get("NVIDIA_TF32_OVERRIDE")
        return self._has_tf32 and override != "0" and (override == "1" or any(tf32_allowed()))

    @property
    def _has_tf32(self) -> bool:
        return torch.version.hip is None and self._properties.major >= 8

    def arithmetic(self, tf32: bool) -> AbstractContextManager[object]:
        """Torch's flags set so."""
        if tf32 and (not self._has_tf32 or os.environ.get("NVIDIA_TF32_OVERRIDE") == "0"):
            raise NotImplementedError("TF32 is not implemented for this card, or NVIDIA_TF32_OVERRIDE forbids it")
        return settings.tf32(tf32)

    def surroundings(self) -> Mapping[str, Fact]:
        """A digest of the card's identity, and the other processes on it."""
        identity = getattr(self._properties, "uuid", None)
        digest = None if identity is None else hashlib.sha256(str(identity).encode()).hexdigest()[:12]
        return {"gpu_id": digest, **(self._nvml.others() if self._nvml else {})}

    def facts(self) -> Mapping[str, Fact]:
        """The GPU, its driver and settings, the libraries, precision and determinism flags."""
        properties, cudnn, (tf32_matmul, tf32_cudnn) = self._properties, torch.backends.cudnn, tf32_allowed()
        return {
            "device": "cuda",
            "gpu": properties.name,
            "gpu_memory_mib": properties.total_memory // 2**20,
            "gpu_capability": f"{properties.major}.{properties.minor}",
            "gpu_multiprocessors": properties.multi_processor_count,
            "gpu_l2_bytes": getattr(properties, "L2_cache_size", None),
            **(self._nvml.facts() if self._nvml else {"driver": None}),
            "cuda": torch.version.cuda,
            **({} if torch.version.hip is None else {"hip": torch.version.hip}),
            "cudnn": cudnn.version(),  # type: ignore[no-untyped-call]
            "cufft": _cufft_version(),
            "tf32_matmul": tf32_matmul,
            "tf32_cudnn": tf32_cudnn,
            "cudnn_benchmark": cudnn.benchmark,
            "cudnn_deterministic": cudnn.deterministic,
            **torch_facts(),
        }

    def free_memory(self) -> int:
        """What the device has free and what the allocator's pool has unused."""
        free, _ = torch.cuda.mem_get_info(self.index)
        return int(free + torch.cuda.memory_reserved(self.index) - torch.cuda.memory_allocated(self.index))

    def synchronise(self) -> None:
        torch.cuda.synchronize(self.index)

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
        """GPU time between events; of ``wall`` the host's time, the GPU idle before and after each call.

        ``launch-bound`` is flagged when the queue ran dry inside a window.
        """
        collecting = gc.isenabled()
        gc.disable()
        try:
            with runner.scope():
                if regime == "wall":
                    block = Block(tuple(self._waited_for(runner, calls) for _ in range(count)))
                else:
                    block = self._sampled(runner, regime == "cold", calls, count)
        finally:
            if collecting:
                gc.enable()
        return replace(block, samples=tuple(sample / runner.unrolled for sample in block.samples))

    def calls_lasting(self, runner: Runner, seconds: float, call: float) -> int:
        """By the GPU's time of a call, not by that of its launches; at most what is enqueued in one window."""
        busy = max(min(call, self._busy_time(runner)), EVENT_QUANTUM)
        with runner.scope():
            most = int(WINDOW / self._enqueue_time(runner))
        return max(1, min(ceil(seconds / busy), most))

    def _busy_time(self, runner: Runner) -> float:
        """GPU seconds of one ``runner.call()``, all that it unrolls."""
        return min(self.samples(runner, "steady", 1, _TRIALS).samples) * runner.unrolled

    def _waited_for(self, runner: Runner, calls: int) -> float:
        """Host seconds of a call that is waited for, the mean of ``calls``."""
        torch.cuda.synchronize(self.index)
        start = time.perf_counter()
        for _ in repeat(None, calls):
            runner.call()
            torch.cuda.synchronize(self.index)
        return (time.perf_counter() - start) / calls

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
        """Host seconds that one call takes to enqueue on a queue with room: the best of three, once a runner."""
        seconds = self._enqueue_times.get(runner)
        if seconds is None:
            torch.cuda.synchronize(self.index)
            marks = [time.perf_counter()]
            for _ in range(_TRIALS):
                runner.call()
                marks.append(time.perf_counter())
            torch.cuda.synchronize(self.index)
            seconds = max(min(after - before for before, after in pairwise(marks)), 1e-6)
            self._enqueue_times[runner] = seconds
        return seconds

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
        torch.cuda._sleep(self._cycles(seconds))  # type: ignore[no-untyped-call]

    def _cycles(self, seconds: float) -> int:
        return ceil(min(seconds, LONGEST_SPIN) * self._cycles_per_second)

    def _spin_rate(self) -> float:
        """Cycles of the spin kernel per second: the SM clock in Hz, once the GPU has ramped it up."""
        begun = time.perf_counter()
        while time.perf_counter() - begun < _RAMP:
            _cycle_rate(_SPIN_CYCLES, _nothing)
        return max(_cycle_rate(_SPIN_CYCLES, _nothing)[0] for _ in range(_TRIALS))

    def capture(self, runner: Runner) -> Runner:
        """Capture so many calls in one graph that it lasts :data:`GRAPH_TIME`.

        All warm up and are captured on one stream: torch keeps a workspace of cuBLAS for each that it ever saw.

        Raises:
            RuntimeError: for calls that cannot be captured (they synchronise, say). The process can go on.
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
        calls = 1
        while True:
            captured = Captured(runner, self._record(runner, side, calls), calls)
            lasts = max(self._busy_time(captured), EVENT_QUANTUM)
            if lasts >= GRAPH_TIME or calls == MOST_UNROLLED:
                return captured
            del captured  # its memory is the next one's
            calls = min(MOST_UNROLLED, max(2 * calls, ceil(calls * GRAPH_TIME / lasts)))

    def _record(self, runner: Runner, side: torch.cuda.Stream, calls: int) -> torch.cuda.CUDAGraph:
        """A graph of ``calls`` calls one after another, each in the memory that the one before has left."""
        graph, pool = torch.cuda.CUDAGraph(), torch.cuda.graph_pool_handle()
        try:
            # Up to torch 2.11 a capture that fails does not leave its stream by itself.
            with torch.cuda.stream(side), runner.scope(), torch.cuda.graph(graph, pool=pool, stream=side):
                for _ in repeat(None, calls):
                    runner.call()
        except Exception:
            self._undo(graph, pool, side)
            raise
        return graph

    def _undo(self, graph: torch.cuda.CUDAGraph, pool: tuple[int, int], side: torch.cuda.Stream) -> None:
        """Set right what a failed capture leaves where torch does not do so itself (2.11).

        The allocator still serves the stream from the graph's pool, and the default random generator takes itself
        to be captured: outside a capture, and in graphs captured before, it then refuses to draw. Only the end of
        a capture that succeeds tells it otherwise.
        """
        with suppress(RuntimeError, AttributeError):
            graph.reset()  # where torch sets things right, it has ended and releases the pool now; the rest raises
            torch._C._cuda_endAllocateToPool(self.index, pool)
            torch._C._cuda_releasePool(self.index, pool)
        with (
            suppress(RuntimeError),
            torch.cuda.stream(side),
            torch.cuda.graph(torch.cuda.CUDAGraph(), stream=side),
        ):
            torch.cuda._sleep(1)  # type: ignore[no-untyped-call]

    def flush(self) -> None:
        """Write ``FLUSH_FACTOR`` times the L2."""
        if self._sweep is None:
            self._sweep = torch.empty(FLUSH_FACTOR * self.cache, dtype=torch.int8, device=self.spec)
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
        """The SM clock by its own cycles, NVML's figures, the host's load, all while the GPU is kept busy.

        Read when it is idle, a clock is that of an idle GPU, and no reason to throttle is left.
        """
        rate, seen = _cycle_rate(self._cycles(WATCHED), self._nvml.state if self._nvml else MachineState)
        amd = torch.version.hip is not None  # there the counter has a clock of its own
        return replace(seen, load=host.load(), sm_clock=None if amd else float(round(rate * 1e-6)))

    def counters(self) -> Mapping[str, bool]:
        """NVML's; none without it."""
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

    def give_back(self) -> None:
        """Nothing is kept there."""

    def forget_plans(self) -> None:
        """cuFFT's, as torch keeps them."""
        torch.backends.cuda.cufft_plan_cache[self.index].clear()


class Captured:
    """A case as a CUDA graph of ``unrolled`` calls; holds its memory, and the original whose tensors it reads.

    Not the output: of training it would hold gradients to the stream of the capture, where eager calls would wait.
    """

    def __init__(self, runner: Runner, graph: torch.cuda.CUDAGraph, unrolled: int) -> None:
        self._runner = runner
        self.call = graph.replay
        self.unrolled = unrolled

    def scope(self) -> AbstractContextManager[object]:
        return self._runner.scope()

    def reset(self) -> None:
        """Nothing: a replay writes where the capture wrote."""


def _event() -> torch.cuda.Event:
    return torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]


def _cycle_rate(cycles: int, meanwhile: Callable[[], T]) -> tuple[float, T]:
    """Cycles per second of a kernel that spins for ``cycles``, and what is ``meanwhile`` read on the host."""
    before, after = _event(), _event()
    before.record()
    torch.cuda._sleep(cycles)  # type: ignore[no-untyped-call]
    after.record()
    seen = meanwhile()
    after.synchronize()
    return cycles / (before.elapsed_time(after) * 1e-3), seen


def _nothing() -> None:
    return None


def usable() -> bool:
    """Whether torch sees a GPU it can use."""
    return _built_for() is not None and torch.cuda.is_available()


def _built_for() -> str | None:
    """The platform of torch's GPUs and its version, which is CUDA or, called the same by torch, ROCm."""
    if torch.version.hip is not None:
        return f"ROCm {torch.version.hip}"
    return None if torch.version.cuda is None else f"CUDA {torch.version.cuda}"


def describe() -> str:
    """Why CUDA cannot be used, or what torch sees, in one sentence."""
    if (platform := _built_for()) is None:
        return f"torch {torch.__version__} was built without CUDA"
    if not usable():
        return f"torch {torch.__version__} is built for {platform} but sees no usable GPU or driver"
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


def _opened(which: str, threads: int | None) -> CudaDevice:
    if which and not re.fullmatch(r"\d{1,3}", which):
        raise UsageError(f"--device cuda:{which}: should be cuda or cuda:N")
    if not usable() or int(which or 0) >= torch.cuda.device_count():
        raise UsageError(f"--device cuda{which and ':'}{which}: {describe()}; use --device cpu")
    return CudaDevice(int(which or 0), threads)


def _near(which: str) -> list[int]:
    """The cores next to the card."""
    card: Any = torch.cuda.get_device_properties(int(which or 0))
    if not hasattr(card, "pci_bus_id"):  # of an older torch
        return []
    return host.near(f"{card.pci_domain_id:04x}:{card.pci_bus_id:02x}:{card.pci_device_id:02x}.0")


KIND = Kind(
    forms="cuda or cuda:N",
    open=_opened,
    is_usable=usable,
    describe=describe,
    rank=10,
    accelerator=True,
    near=_near,
)
