"""Phases: where the time and memory of a case go, step by step, from an instrumented run. Loads torch when called.

Operators wrap what they do in named ranges (:mod:`niffbench.niff.steps`); torch's profiler records them with the
operations inside. A backward operation belongs to the step whose forward operation made its node in autograd's
graph: profiler events carry the node's sequence number. A node that no step made, as of an operator with its own
backward, has the steps that are taken inside it. A GPU kernel, whenever it runs, is in the step of the operation
that launched it: the profiler knows that by the launch's correlation number. Of a module that names no steps, its
operations are taken by their kind, as when they are counted. What lies outside every step is the remainder; the
sum of it all is set beside the call as a whole, and that beside the uninstrumented one, because recording takes
time too.
"""

from __future__ import annotations

import json
from bisect import bisect_right
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, median
from typing import TYPE_CHECKING, Any, TypeAlias

from niffbench.cost.closed import Direction
from niffbench.device import Device
from niffbench.results import StepCost
from niffbench.worker.latency import warm_up

if TYPE_CHECKING:
    from torch.autograd.profiler_util import EventList, FunctionEvent

    from niffbench.worker.workload import TorchWorkload

Step: TypeAlias = tuple[str, Direction]

CALL = "niffbench::call"
CALLS = (3, 40)
"""Instrumented calls: at least, at most; as many plain ones around them."""

PROFILED_TIME = 0.4  # seconds of calls aimed at between the two
_BACKWARD = "autograd::engine::evaluate_function: "


@dataclass(frozen=True)
class Kernel:
    """An operation or GPU kernel that does the work of a step: seconds a call, and the library it comes from."""

    name: str
    library: str
    seconds: float


@dataclass(frozen=True)
class Phase:
    """One step of one direction. Seconds a call; bytes at most above the step's start, and bytes it leaves.

    ``flops`` are the closed form's and ``bytes`` counted; None of a step that neither knows. ``peak`` and ``kept``
    are the device's memory; None where its allocator told nothing. CUDA's hands out whole blocks of 512 bytes.
    """

    name: str
    direction: Direction
    seconds: float
    flops: int | None
    bytes: int | None
    peak: int | None
    kept: int | None
    kernels: tuple[Kernel, ...]


@dataclass(frozen=True)
class Phases:
    """A case taken apart, in means over the middle half of the calls by length: unlike medians, they add up.

    Attributes:
        steady: seconds of an uninstrumented call.
        whole: seconds of an instrumented one, measured as one.
        remainder: seconds of it outside every step, and ``outside`` what ran there. On a GPU whole, phases and
            remainder are the GPU's time, launches left out.
    """

    steady: float
    whole: float
    phases: tuple[Phase, ...]
    remainder: float
    outside: tuple[Kernel, ...]

    @property
    def instrumented(self) -> float:
        """Seconds of an instrumented call, added up: all steps and the remainder."""
        return sum(phase.seconds for phase in self.phases) + self.remainder

    @property
    def gap(self) -> float:
        """The share of the whole that steps and remainder do not account for; negative where they say too much."""
        return 1 - self.instrumented / self.whole if self.whole > 0 else 0.0


def profile(
    device: Device,
    workload: TorchWorkload,
    steps: Sequence[StepCost],
    trace: Path | None = None,
    *,
    by_kind: bool = False,
) -> Phases:
    """Take ``workload`` apart.

    Args:
        steps: what each of its steps costs.
        by_kind: operations outside of every step are steps of their kind.
        trace: gets a Chrome/Perfetto trace (JSON, without the host's name).

    Raises:
        OSError: when the trace cannot be written.
    """
    import torch
    from torch.profiler import ProfilerActivity, record_function

    from niffbench.niff.steps import recording

    call = warm_up(device, workload)
    count = max(CALLS[0], min(CALLS[1], int(PROFILED_TIME / max(call, 1e-6))))
    on_gpu = device.capabilities.asynchronous
    together = max(1, int(1e-3 / max(call, 1e-6)))
    plain = list(device.samples(workload, "steady", together, -(-count // 2)).samples)
    activities = {ProfilerActivity.CPU, getattr(ProfilerActivity, torch.device(device.place).type.upper())}
    with workload.scope(), recording():
        workload.call()
        workload.reset()
        with torch.profiler.profile(activities=activities, profile_memory=True, acc_events=True) as recorded:
            for _ in range(count):
                with record_function(CALL):
                    output = workload.call()
                    device.synchronise()
                del output
    device.timed(workload)
    plain += device.samples(workload, "steady", together, -(-count // 2)).samples
    if trace is not None:
        recorded.export_chrome_trace(str(trace))
        _scrub(trace)
    return take_apart(recorded, on_gpu, median(plain), steps, by_kind=by_kind)


def take_apart(
    recorded: Any, on_gpu: bool, steady: float, steps: Sequence[StepCost], *, by_kind: bool = False
) -> Phases:
    """The phases of the calls in a finished profile with memory.

    Args:
        steady: seconds of an uninstrumented call.
    """
    return _assemble(_Timeline(recorded.events(), on_gpu, by_kind), _memory(recorded, on_gpu), steady, steps)


@dataclass(frozen=True)
class _Part:
    """A stretch of time of one step in one call, its own time in µs and what ran in it."""

    step: Step | None
    start: float
    end: float
    own: float
    call: int
    kernels: tuple[tuple[str, str, float], ...]


class _Timeline:
    """The profiler's events, sorted into calls and steps. Times in µs."""

    def __init__(self, events: EventList, on_gpu: bool, by_kind: bool = False) -> None:
        from niffbench.niff.steps import PREFIX, STEPS

        self._prefix = PREFIX
        self._steps = {PREFIX + name for name in STEPS}  # operators of ours are called niffbench::… too
        self._on_gpu = on_gpu
        self.events: list[FunctionEvent] = [e for e in events if _is_host(e) and e.name != "[memory]"]
        self.calls = sorted((e for e in self.events if e.name == CALL), key=lambda e: e.time_range.start)
        self._starts = [e.time_range.start for e in self.calls]
        self._step_of_node = self._nodes()
        self._kinds: dict[int, Step] = {}
        if by_kind:
            self._kinds = dict(self._of_kinds())

    def parts(self) -> list[_Part]:
        """Every stretch of every step, and the stretches that lie in none."""
        parts: list[_Part] = []
        for event in self.events:
            if event.name == CALL:
                parts.append(self._part(event, None))
            elif event.name.startswith(_BACKWARD):
                step = self._step_of_node.get(event.sequence_nr)
                parts.append(self._part(event, None if step is None else (step, "backward")))
            elif self._is_part(event):
                direction: Direction = "forward" if self._node_above(event) is None else "backward"
                step_of_event = self._kinds.get(id(event), (event.name.removeprefix(self._prefix), direction))
                parts.append(self._part(event, step_of_event))
        return parts

    def _of_kinds(self) -> Iterator[tuple[int, Step]]:
        """Identities and steps of the operations that are in no step, the outermost that have a kind."""
        from niffbench.cost.traffic import OTHER, kind_of

        def below(event: FunctionEvent) -> Iterator[FunctionEvent]:
            for child in event.cpu_children:
                yield child
                yield from below(child)

        for event in self.events:
            is_node = event.name.startswith(_BACKWARD) and "AccumulateGrad" not in event.name
            if event.name != CALL and not (is_node and event.sequence_nr not in self._step_of_node):
                continue
            waiting = list(event.cpu_children)
            while waiting:
                child = waiting.pop()
                kind = kind_of(child.name)
                if self._is_part(child):
                    continue
                if kind == OTHER and any(self._is_part(one) or kind_of(one.name) != OTHER for one in below(child)):
                    waiting += child.cpu_children
                else:
                    yield id(child), (kind, "backward" if is_node else "forward")

    def wholes(self) -> list[float]:
        """Each call as one: its duration, or on a GPU what its kernels took, in whatever part or thread."""
        if not self._on_gpu:
            return [call.cpu_time_total for call in self.calls]
        totals = [0.0] * len(self.calls)
        for event in self.events:
            # A range is on the GPU's timeline once more, as if it were a kernel.
            if event.kernels and event.name != CALL and not self._is_step(event):
                totals[self._call_of(event.time_range.start)] += sum(kernel.duration for kernel in event.kernels)
        return totals

    def _part(self, event: FunctionEvent, step: Step | None) -> _Part:
        span = event.time_range
        does_the_work = [event] if id(event) in self._kinds else []
        kernels = tuple(kernel for one in (*does_the_work, *self._inside(event)) for kernel in self._kernels(one))
        if self._on_gpu:
            own = sum(seconds for _, _, seconds in kernels)
        else:
            own = event.cpu_time_total - sum(part.cpu_time_total for part in self._nested(event))
        return _Part(step, span.start, span.end, own, self._call_of(span.start), kernels)

    def _nested(self, event: FunctionEvent) -> list[FunctionEvent]:
        """The outermost steps and backward nodes inside ``event``, whose time is theirs."""
        outermost: list[FunctionEvent] = []
        waiting = list(event.cpu_children)
        while waiting:
            child = waiting.pop()
            if self._is_part(child):
                outermost.append(child)
            else:
                waiting += child.cpu_children
        return outermost

    def _inside(self, event: FunctionEvent) -> list[FunctionEvent]:
        """All operations inside ``event`` that are in no part of their own."""
        inside: list[FunctionEvent] = []
        waiting = list(event.cpu_children)
        while waiting:
            child = waiting.pop()
            if not self._is_part(child):
                inside.append(child)
                waiting += child.cpu_children
        return inside

    def _kernels(self, event: FunctionEvent) -> Iterable[tuple[str, str, float]]:
        """What did the work: GPU kernels, or on a CPU the operation's own time."""
        if self._on_gpu:
            return [(kernel.name, library(kernel.name), kernel.duration) for kernel in event.kernels]
        return [(event.name, library(event.name), event.self_cpu_time_total)]

    def _is_step(self, event: FunctionEvent) -> bool:
        return event.name in self._steps

    def _is_part(self, event: FunctionEvent) -> bool:
        """A step or a node; a step inside a node that is some step's own belongs to that one."""
        if not self._is_step(event):
            return bool(event.name.startswith(_BACKWARD)) or id(event) in self._kinds
        node = self._node_above(event)
        return node is None or node.sequence_nr not in self._step_of_node

    def _call_of(self, start: float) -> int:
        return bisect_right(self._starts, start) - 1

    def _nodes(self) -> dict[int, str]:
        """The step that made each node of autograd's graph.

        An operation carries the number that the next node will get; the last one with a number makes the node.
        """
        steps: dict[int, tuple[float, str | None]] = {}
        for event in self.events:
            if event.sequence_nr < 0 or self._node_above(event) is not None:
                continue
            latest = steps.get(event.sequence_nr)
            if latest is None or latest[0] < event.time_range.start:
                steps[event.sequence_nr] = (event.time_range.start, self._step_above(event))
        return {number: step for number, (_, step) in steps.items() if step is not None}

    def _step_above(self, event: FunctionEvent) -> str | None:
        parent = event.cpu_parent
        while parent is not None:
            if self._is_step(parent):
                return str(parent.name.removeprefix(self._prefix))
            parent = parent.cpu_parent
        return None

    @staticmethod
    def _node_above(event: FunctionEvent) -> FunctionEvent | None:
        """The node of autograd's graph that ``event`` is, or is inside of; None in a forward pass."""
        above: FunctionEvent | None = event
        while above is not None and not above.name.startswith(_BACKWARD):
            above = above.cpu_parent
        return above


def _is_host(event: FunctionEvent) -> bool:
    return "CPU" in str(event.device_type)


def _assemble(
    timeline: _Timeline, memory: Sequence[tuple[float, int]], steady: float, steps: Sequence[StepCost]
) -> Phases:
    wholes, parts = timeline.wholes(), timeline.parts()
    calls = len(wholes)
    middle = _middle(wholes)
    times: dict[Step | None, list[float]] = defaultdict(lambda: [0.0] * calls)
    kernels: dict[Step | None, dict[tuple[str, str], list[float]]] = defaultdict(dict)
    for part in parts:
        times[part.step][part.call] += part.own
        for name, origin, spent in part.kernels:
            kernels[part.step].setdefault((name, origin), [0.0] * calls)[part.call] += spent
    costs = {(step.name, step.direction): step for step in steps}
    space = _space(parts, memory)
    phases = []
    for key in sorted(filter(None, times), key=lambda key: (key[1] == "backward", _first(parts, key))):
        cost = costs.get(key)
        peak, kept = space.get(key, (None, None))
        phases.append(
            Phase(
                name=key[0],
                direction=key[1],
                seconds=_typical(times[key], middle),
                flops=None if cost is None else cost.flops,
                bytes=None if cost is None else cost.bytes,
                peak=peak,
                kept=kept,
                kernels=_listed(kernels[key], middle),
            )
        )
    return Phases(
        steady=steady,
        whole=_typical(wholes, middle),
        phases=tuple(phases),
        remainder=_typical(times[None], middle),
        outside=_listed(kernels[None], middle),
    )


def _first(parts: Sequence[_Part], key: Step) -> float:
    return min(part.start for part in parts if part.step == key)


def _middle(wholes: Sequence[float]) -> list[int]:
    """The calls left when the shortest and the longest quarter are taken away."""
    order = sorted(range(len(wholes)), key=wholes.__getitem__)
    quarter = len(order) // 4
    return order[quarter : len(order) - quarter]


def _typical(times: Sequence[float], calls: Sequence[int]) -> float:
    """Seconds a call, of the times in µs of all calls."""
    return fmean(times[call] for call in calls) * 1e-6


def _listed(kernels: dict[tuple[str, str], list[float]], calls: Sequence[int]) -> tuple[Kernel, ...]:
    """Kernels with their time a call, the longest first; without those of less than 1 % of it all."""
    spent = {key: _typical(times, calls) for key, times in kernels.items()}
    least = 0.01 * sum(spent.values())
    ordered = sorted(spent.items(), key=lambda item: -item[1])
    return tuple(Kernel(name, origin, time) for (name, origin), time in ordered if time >= least)


def _space(parts: Sequence[_Part], memory: Sequence[tuple[float, int]]) -> dict[Step, tuple[int, int]]:
    """Bytes each step of a call took at most above its start, and left behind; the last call is the warmest."""
    last = max(part.call for part in parts)
    space: dict[Step, tuple[int, int]] = {}
    for part in parts:
        if part.step is None or part.call != last or not memory:
            continue
        total = peak = 0
        for moment, size in memory:
            if part.start <= moment <= part.end:
                total += size
                peak = max(peak, total)
        before = space.get(part.step, (0, 0))
        space[part.step] = (max(before[0], peak), before[1] + total)
    return space


def _memory(recorded: Any, on_gpu: bool) -> list[tuple[float, int]]:
    """The device's allocations and frees in bytes with their time in µs on the events' clock, sorted.

    A profile holds the events of the host's and of the GPU's allocator side by side. Both are of the host's time,
    when a tensor was made or dropped, so that they fall into the step that did it although its kernels run later.
    """
    from torch.autograd import DeviceType  # type: ignore[attr-defined]

    results = recorded.profiler.kineto_results
    begun = results.trace_start_ns()
    events = [
        ((event.start_ns() - begun) / 1000, event.nbytes())
        for event in results.events()
        if event.name() == "[memory]" and (event.device_type() != DeviceType.CPU) == on_gpu
    ]
    return sorted(events, key=lambda event: event[0])


_LIBRARIES = (
    # Part of a kernel's or an operation's name → where it comes from; the first that fits.
    ("mkldnn", "oneDNN"),
    ("aten::convolution_backward", "oneDNN or native"),
    ("_fft_", "MKL"),
    ("cudnn", "cuDNN"),
    ("cutlass", "CUTLASS"),
    ("xmma", "cuDNN or cuBLAS"),
    ("gemm", "cuBLAS"),
    ("gemv", "cuBLAS"),
    ("regular_fft", "cuFFT"),
    ("vector_fft", "cuFFT"),
    ("postprocess_kernel", "cuFFT"),
    ("preprocess_kernel", "cuFFT"),
    ("triton_", "Triton"),
    ("at::native", "native"),
    ("aten::mm", "MKL"),
    ("aten::bmm", "MKL"),
    ("aten::addmm", "MKL"),
    ("aten::baddbmm", "MKL"),
)


_OURS = ("convolve", "filter_gradient", "features", "features_gradient")
"""Names of this project's kernels on a GPU."""


def library(name: str) -> str:
    """Where a kernel (by its name on a GPU) or an operation (on a CPU) comes from; ``native`` is torch itself."""
    import torch

    if name in _OURS or name.startswith("niffbench::"):
        return "niffbench"
    origin = next((origin for mark, origin in _LIBRARIES if mark in name), "native")
    if origin == "MKL" and not torch.backends.mkl.is_available():  # type: ignore[no-untyped-call]
        return "PocketFFT" if "_fft_" in name else "BLAS"
    return origin


def _scrub(trace: Path) -> None:
    """Take out of a trace what tells whose machine it was."""
    document = json.loads(trace.read_text(encoding="utf-8"))
    for key in ("host_name", "traceName", "trace_id"):
        document.pop(key, None)
    trace.write_text(json.dumps(document, separators=(",", ":")), encoding="utf-8")
