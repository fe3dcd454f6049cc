"""A device that replays: samples, memory, clocks and failures from a file, or made up from a seed. Loads no torch.

It lets the session, the worker, the statistics and the report be tested without timing anything, and a run of
a machine one does not have be looked at on one that has no GPU. Time is virtual: it advances by the samples.
"""

from __future__ import annotations

import fcntl
import itertools
import math
import os
import random
import signal
import time
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from statistics import median
from typing import Annotated, Literal
from weakref import WeakSet

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from niffbench.case import Case
from niffbench.device.base import DEFAULT_CACHE, Block, Capabilities, Kind, Processor, Runner, Usage
from niffbench.errors import UsageError
from niffbench.fingerprint import Fact
from niffbench.results import Ceilings, MachineState
from niffbench.suite import Regime

MAX_REPLAY_BYTES = 256_000_000
REGIME_FACTOR: dict[str, float] = {"first": 20.0, "cold": 1.5, "steady": 1.0, "wall": 1.2, "graph": 0.8}
"""A made-up latency in a regime, relative to ``steady``."""

Bytes = Annotated[int, Field(ge=0)]
Seconds = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Stage = Literal["build", "first", "numerics", "cost", "memory", "cold", "steady", "wall", "graph", "energy"]


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Series(_Model):
    """Where the samples of one regime come from, in seconds per call.

    Attributes:
        samples: recorded ones, one list a round (used in turn), started over at the end; any value is taken,
            also 0 and NaN, as a broken timer would give them. Without them, log-normal ones around ``median``
            (None: from the closed form) with ``sigma`` within a round and ``between`` across rounds (standard
            deviations of the log), times ``1 + drift · i`` for the i-th sample.
    """

    samples: Annotated[list[Annotated[list[float], Field(min_length=1)]], Field(min_length=1)] | None = None
    median: Seconds | None = None
    sigma: Annotated[float, Field(ge=0, le=3)] = 0.01
    between: Annotated[float, Field(ge=0, le=3)] = 0.003
    drift: float = 0.0
    flags: list[str] = []


class Failure(_Model):
    """Something that goes wrong when the case reaches ``stage``.

    ``oom``: out of memory, ``requested`` and ``available`` in bytes. ``unsupported``: the device lacks it.
    ``lost``: the GPU is gone. ``error``: any exception, ``message``. ``hang``: forever. ``exit``: it exits with
    ``status``.

    Attributes:
        signal: the worker kills itself with ``signal``.
        crowded: all that only while another case is set up beside it.
    """

    kind: Literal["oom", "unsupported", "lost", "error", "hang", "signal", "exit"]
    stage: Stage = "memory"
    crowded: bool = False
    requested: Bytes | None = None
    available: Bytes | None = None
    message: str = "replayed"
    signal: Literal["SIGSEGV", "SIGABRT", "SIGBUS", "SIGFPE", "SIGILL", "SIGKILL", "SIGTERM"] = "SIGSEGV"
    status: Annotated[int, Field(ge=1, le=255)] = 1


class MemoryTrace(_Model):
    """Memory figures in bytes; None is made up from the closed form."""

    resident: Bytes | None = None
    peak: Bytes | None = None
    output: Bytes | None = None
    saved: Bytes | None = None
    predicted: Bytes | None = None
    reserved: Bytes | None = None
    device_delta: int | None = None


class GradientTrace(_Model):
    """Errors of the worst gradient against float64; ``name`` says whose."""

    name: str = "input"
    l2: float
    max: float | None = None


class NumericsTrace(_Model):
    """Errors against float64; outside the tolerance the case is wrong. ``gradient`` counts in training only."""

    l2: float
    max: float
    gradient: GradientTrace | None = None


class CaseTrace(_Model):
    """What is known of the cases that match: globs for label, operator and problem label, or a case's id.

    ``states`` are read one after another, one per block of samples; the last one stays. ``others`` of a state is
    the share of the processor that other processes use during its block. ``rounds`` limits all of it to these
    rounds.
    """

    id: str | None = None
    label: str = "*"
    operator: str = "*"
    problem: str = "*"
    rounds: list[int] | None = None
    latency: dict[Regime, Series] = {}
    memory: MemoryTrace = MemoryTrace()
    numerics: NumericsTrace | None = None
    states: list[MachineState] = []
    failure: Failure | None = None

    def steady(self, round_: int) -> float | None:
        """The steady latency the entry tells of, in seconds: as given, or the median of what was recorded."""
        series = self.latency.get("steady", Series())
        recorded = series.samples[round_ % len(series.samples)] if series.samples else []
        sound = [value for value in recorded if math.isfinite(value) and value > 0]
        return median(sound) if sound else series.median

    def fits(self, case: Case, label: str, round_: int) -> bool:
        """Whether this entry speaks of ``case`` in round ``round_``."""
        return (
            (self.id is None or self.id == case.id)
            and fnmatchcase(label, self.label)
            and fnmatchcase(case.operator, self.operator)
            and fnmatchcase(case.problem.label, self.problem)
            and (self.rounds is None or round_ in self.rounds)
        )


class Trace(_Model):
    """A replay file. Whatever ``cases`` do not list is made up: ``overhead`` plus the larger of closed-form FLOPs
    over ``flops`` and bytes over ``bandwidth``, log-normal, from ``seed``.

    Attributes:
        like: which kind of device it plays.
        facts: the fingerprint's. ``watts`` feed the energy counter.
        pace: real seconds slept for each second of virtual time (0: as fast as it goes).
        slow: how much slower each device is, of ``replay:FILE:N`` by its number.
        disturbed: the factor on the latency of one of these devices while another one is open.
    """

    schema_version: Literal[1] = 1
    like: Literal["cpu", "cuda"] = "cpu"
    facts: dict[str, Fact] = {}
    free_memory: Bytes | None = None
    highest_clock: float | None = None
    watts: Annotated[float, Field(ge=0)] | None = None
    quantum: Seconds = 5e-8
    seed: int = 0
    flops: Seconds = 5e10
    bandwidth: Seconds = 1e10
    overhead: Seconds = 1e-5
    pace: Annotated[float, Field(ge=0, le=1000)] = 0.0
    ceilings: Ceilings | None = None
    slow: list[Seconds] = []
    disturbed: Seconds = 1.0
    cases: list[CaseTrace] = []


@dataclass(eq=False)
class ReplayRunner:
    """A case to be replayed: the entry that speaks of it, and its nominal latency in seconds.

    ``held`` are all that are set up on the device, this one too.
    """

    case: Case
    round: int
    entry: CaseTrace
    nominal: float
    peak: int
    kept: int
    held: WeakSet[ReplayRunner] = field(default_factory=WeakSet)
    begun: bool = False
    states_read: int = 0
    unrolled: int = 1
    _made: dict[Regime, Iterator[float]] = field(default_factory=dict)  # samples to come, by regime

    def __post_init__(self) -> None:
        self.held.add(self)

    def sample(self, regime: Regime, seed: int) -> float:
        """The next sample of ``regime`` in seconds."""
        if regime not in self._made:
            series = self.entry.latency.get(regime, Series())
            origin = f"{seed}/{self.case.id}/{regime}/{self.round}"
            self._made[regime] = _samples(series, self.round, self.nominal * REGIME_FACTOR[regime], origin)
        return next(self._made[regime])

    @property
    def state(self) -> MachineState:
        """The state of the block of samples that is taken now, or was taken last."""
        states = self.entry.states
        return states[min(self.states_read, len(states) - 1)] if states else MachineState(load=0.0)

    def scope(self) -> AbstractContextManager[object]:
        return nullcontext()

    def call(self) -> object:
        return None

    def reset(self) -> None:
        """Nothing is left behind."""

    def reach(self, stage: str) -> None:
        """Fail here if the entry says so. Raises, hangs or ends the process."""
        failure = self.entry.failure
        if failure is not None and failure.stage == stage and (len(self.held) > 1 or not failure.crowded):
            fail(failure)


class ReplayedOutOfMemory(RuntimeError):
    """Out of memory, as replayed; in bytes."""

    def __init__(self, requested: int | None, available: int | None) -> None:
        super().__init__(f"out of memory: tried to allocate {requested} bytes, {available} available (replayed)")
        self.requested = requested
        self.available = available


CAPABILITIES = {
    "cpu": Capabilities(flush=True, memory=True, energy=True),
    "cuda": Capabilities(asynchronous=True, graphs=True, flush=True, memory=True, energy=True),
}
"""By what a trace is ``like``."""


class ReplayDevice:
    """Plays a :class:`Trace`."""

    place = "meta"
    tf32 = False
    cache = DEFAULT_CACHE

    def __init__(self, trace: Trace, spec: str = "replay", number: int | None = None) -> None:
        self.trace = trace
        self.spec = spec
        self.number = number
        self._flags = Presence(spec, number) if number is not None and trace.disturbed != 1.0 else None
        self.quantum = trace.quantum
        self.highest_clock = trace.highest_clock
        self.capabilities = CAPABILITIES[trace.like]
        self._now = 0.0
        self._processor = Processor()
        self._current: ReplayRunner | None = None  # whose states are read
        self.held: WeakSet[ReplayRunner] = WeakSet()

    @classmethod
    def load(cls, path: str, number: int | None = None) -> ReplayDevice:
        """Read a replay file; it plays device ``number`` of several.

        Raises:
            UsageError: naming file, key and fault.
        """
        file = Path(path)
        try:
            if file.stat().st_size > MAX_REPLAY_BYTES:
                raise UsageError(f"{path}: larger than {MAX_REPLAY_BYTES:,} bytes, so not a replay file")
            trace = Trace.model_validate_json(file.read_bytes())
        except OSError as error:
            raise UsageError(f"--device replay:{path}: cannot be read ({error.strerror})") from error
        except ValidationError as error:
            fault = error.errors()[0]
            key = ".".join(map(str, fault["loc"])) or "the file"
            raise UsageError(f"{path}: key '{key}': {fault['msg']}") from error
        return cls(trace, f"replay:{path}", number)

    def entry(self, case: Case, label: str, round_: int) -> CaseTrace:
        """The first entry that speaks of ``case``, else an empty one."""
        return next((entry for entry in self.trace.cases if entry.fits(case, label, round_)), CaseTrace())

    def arithmetic(self, tf32: bool) -> AbstractContextManager[object]:
        """Nothing to set: nothing is computed."""
        return nullcontext()

    def facts(self) -> Mapping[str, Fact]:
        """The file's facts, marked as replayed."""
        return {**self.trace.facts, "device": f"replay of {self.trace.like}"}

    def surroundings(self) -> Mapping[str, Fact]:
        return {} if self.number is None else {"gpu_id": f"replay {self.number}"}

    @property
    def _slowness(self) -> float:
        """The factor on what the file says, of this device and at this moment."""
        own = (
            self.trace.slow[self.number] if self.number is not None and self.number < len(self.trace.slow) else 1.0
        )
        return own * (self.trace.disturbed if self._flags is not None and self._flags.others() else 1.0)

    def free_memory(self) -> int | None:
        return self.trace.free_memory

    def synchronise(self) -> None:
        """Nothing is enqueued."""

    def clock(self) -> float:
        return self._now

    def timed(self, runner: Runner, calls: int = 1) -> tuple[float, object]:
        """The first time, the case's ``first`` sample; later its nominal latency, which uses up no sample."""
        replayed = _replayed(runner)
        if not replayed.begun:
            replayed.begun = True
            replayed.reach("first")
            return self._take(replayed, "first", 1, 1)[0], None
        self._pass(replayed.nominal * calls)
        return replayed.nominal * calls, None

    def samples(self, runner: Runner, regime: Regime, calls: int, count: int) -> Block:
        """The next ``count`` samples of the case in this round."""
        replayed = _replayed(runner)
        replayed.reach(regime)
        self._current = replayed
        flags = replayed.entry.latency.get(regime, Series()).flags
        begun = self._now
        block = Block(tuple(self._take(replayed, regime, count, calls)), frozenset(flags))
        if (others := replayed.state.others) is not None:
            spent, so_far = self._now - begun, self._processor
            self._processor = Processor(so_far.others + others * spent, so_far.watched + spent)
        return block

    def _take(self, runner: ReplayRunner, regime: Regime, count: int, calls: int) -> list[float]:
        slowness = self._slowness
        values = [slowness * runner.sample(regime, self.trace.seed) for _ in range(count)]
        # A broken timer must not stop virtual time, or sampling would never end.
        sane = (value if math.isfinite(value) and value > 0 else runner.nominal for value in values)
        self._pass(sum(sane) * calls)
        return values

    def _pass(self, seconds: float) -> None:
        self._now += seconds
        time.sleep(seconds * self.trace.pace)

    def calls_lasting(self, runner: Runner, seconds: float, call: float) -> int:
        return max(1, math.ceil(seconds / call))

    def capture(self, runner: Runner) -> Runner:
        """The same runner; fails as the file says of the stage ``graph``, which is where a capture would."""
        _replayed(runner).reach("graph")
        return runner

    def flush(self) -> None:
        """Nothing is cached."""

    def usage(self, runner: Runner) -> Usage:
        replayed = _replayed(runner)
        replayed.reach("memory")
        memory = replayed.entry.memory
        return Usage(replayed.peak, replayed.kept, memory.reserved, memory.device_delta)

    def state(self) -> MachineState:
        """The next state of the case whose samples were last taken; the last one stays."""
        runner = self._current
        if runner is None:
            return MachineState(load=0.0)
        state = runner.state
        runner.states_read += 1
        return state

    def processor(self) -> Processor:
        """The time of all samples whose state tells of ``others``."""
        return self._processor

    def joules(self) -> float | None:
        if self._current is not None:
            self._current.reach("energy")
        return None if self.trace.watts is None else self.trace.watts * self._now

    def rest(self, seconds: float) -> None:
        self._pass(seconds)

    def release(self) -> None:
        self._current = None

    def give_back(self) -> None:
        """There is nothing."""

    def forget_plans(self) -> None:
        """There are none."""

    def counters(self) -> Mapping[str, bool]:
        return {}


def _replayed(runner: Runner) -> ReplayRunner:
    if not isinstance(runner, ReplayRunner):
        raise TypeError(f"a replay device replays, it cannot run {type(runner).__name__}")
    return runner


def _samples(series: Series, round_: int, nominal: float, origin: str) -> Iterator[float]:
    """Without end: the recorded ones over and over, or new ones around ``nominal`` seconds, by ``origin``."""
    if series.samples is not None:
        yield from itertools.cycle(series.samples[round_ % len(series.samples)])
    rng = random.Random(origin)
    level = (series.median or nominal) * math.exp(rng.gauss(0.0, series.between))
    for index in itertools.count():
        yield level * math.exp(rng.gauss(0.0, series.sigma)) * max(0.01, 1.0 + series.drift * index)


def fail(failure: Failure) -> None:
    """Let ``failure`` happen: raise, hang, or end the process."""
    match failure.kind:
        case "oom":
            raise ReplayedOutOfMemory(failure.requested, failure.available)
        case "unsupported":
            raise NotImplementedError(f'"replayed" not implemented for this case: {failure.message}')
        case "lost":
            raise RuntimeError(f"CUDA error: {failure.message}")
        case "error":
            raise RuntimeError(failure.message)
        case "hang":
            while True:
                time.sleep(3600)
        case "signal":
            number = signal.Signals[failure.signal]
            os.kill(os.getpid(), number)
            time.sleep(3600)
        case "exit":
            os._exit(failure.status)


class Presence:
    """A locked file beside the replay file for as long as one of its devices is open, which others can see."""

    def __init__(self, spec: str, number: int) -> None:
        file = Path(spec.partition(":")[2])
        self._own = file.with_name(f"{file.name}.open-{number}")
        self._pattern = file.parent, f"{file.name}.open-*"
        self._descriptor = os.open(self._own, os.O_RDWR | os.O_CREAT, 0o644)
        fcntl.flock(self._descriptor, fcntl.LOCK_SH)

    def others(self) -> bool:
        """Whether another device is open."""
        folder, pattern = self._pattern
        return any(_is_locked(path) for path in folder.glob(pattern) if path != self._own)


def _is_locked(path: Path) -> bool:
    with path.open("rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


def _opened(which: str, threads: int | None) -> ReplayDevice:
    if not which:
        raise UsageError("--device replay: should be replay:FILE")
    path, _, number = which.rpartition(":")
    if number.isdecimal() and path and not Path(which).exists():
        return ReplayDevice.load(path, int(number))
    return ReplayDevice.load(which)


KIND = Kind(
    forms="replay:FILE",
    open=_opened,
    is_usable=lambda: True,
    describe=lambda: "a file that says how long cases take",
    computes=False,
)
