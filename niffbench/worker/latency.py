"""Latency: raw samples of one regime of one case, taken in blocks so that cases can be interleaved.

Every call goes through the device's interface, so that a replay exercises all of this without timing anything.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from math import ceil, inf, isfinite
from statistics import median
from typing import Literal, TypeVar

from niffbench.device import Block, Device, Processor, Runner
from niffbench.device.base import is_throttled
from niffbench.results import Latency, MachineState
from niffbench.stats.series import ENOUGH, JITTER, check, precision
from niffbench.suite import WALL_SHARE, Measure, Regime

QUANTA = 1000
"""A sample lasts at least this many steps of the timer, so that a step is below 0.1 % of it."""

SAMPLES_A_FLOOR = 100
"""... and at least ``min_time`` over this, so that a fast case does not fill the journal with samples."""

BLOCKS_A_FLOOR = 4
"""Blocks that ``min_time`` is divided into: so often do the cases of a problem take turns."""

SHORTEST_BLOCK = 0.02
LEAST_A_BLOCK = 5
"""Samples that a block holds, if there is time for as many: each block begins with a call that is none."""

MOST_SAMPLES = 5000
WARM_TIME = 0.01
"""Seconds of calls before the first block of a regime: thread pools, clocks, caches. Plans and autotuning were
done with in the calls that checked the numerics and measured the memory; but some plans are dropped and made
again, so that the first call says nothing, unless it is :data:`LONG` and not worth a second."""

WARM_SHARE = 0.25
"""No more calls are made for that than fill this share of ``min_time``, but two: a short series is no better for a
long warm-up."""

SINGLE: frozenset[Regime] = frozenset({"cold", "wall"})
"""Regimes in which a sample is one call."""

LONG = 0.5
"""Seconds of a call beside which filling the caches again (tens of MB at 10 GB/s and more) is below 1 %."""

THROTTLE_REPEATS = 3
THROTTLE_REST = 1.0
"""So often in a series a throttled block is dropped and repeated after a rest; then it is kept and labelled."""

EAGER_TIMINGS = 5
"""Timings whose median is the eager time that a graph is held against."""

T = TypeVar("T")
Stopped = Literal["precision", "time", "count", "single"]


def first(seconds: float) -> Latency:
    """The regime ``first``: the one call that made plans, tuned, compiled; in seconds."""
    return Latency(samples=[seconds], blocks=[1], stopped="single", flags=_flags([seconds], set()))


class Sampler:
    """One regime of one case. :meth:`step` takes a block; ``done`` once the rule of ``measure`` says so.

    The rule: not before ``min_time`` and ``min_samples``; then as soon as the median is known to ``precision``, at
    the latest after ``max_time`` (seconds inside blocks, flushes included) or :data:`MOST_SAMPLES`. ``guess``:
    seconds a call is known to take, so that a cold series needs no trial and a long call no warm-up; 0 if unknown.
    """

    def __init__(
        self, device: Device, runner: Runner, regime: Regime, measure: Measure, guess: float = 0.0
    ) -> None:
        self.regime = regime
        self.stopped: Stopped | None = None
        self.seconds = 0.0  # wall time inside blocks
        self.states: list[MachineState] = []
        self.processor: list[Processor] = []  # before the first block, and after each
        self._device = device
        self._runner = runner
        self._measure = _for_wall(measure) if regime == "wall" else measure
        self._samples: list[float] = []
        self._blocks: list[int] = []
        self._flags: set[str] = set()
        self._turns = 1  # of the runner, in a sample
        self._each = guess  # wall seconds a sample takes, at best
        self._repeats = 0

    @property
    def calls(self) -> int:
        """Calls of the case that a sample is the mean of."""
        return self._turns * self._runner.unrolled

    @property
    def _quantum(self) -> float:
        """The step of the clock; the host's, which an accelerator's ``wall`` is told by, is of no account."""
        return 0.0 if self.regime == "wall" else self._device.quantum

    @property
    def done(self) -> bool:
        """Whether enough is known, or enough time spent."""
        return self.stopped is not None

    def step(self) -> None:
        """Warm up, take one block, judge."""
        if self._blocks:
            if self.regime != "cold":
                self._device.timed(self._runner)  # the others' blocks have had the caches
        else:
            self._prepare()
            self.processor.append(self._device.processor())
        block = self._sound_block(self._count())
        self._samples += block.samples
        self._blocks.append(len(block.samples))
        self._flags |= block.flags
        self.stopped = self._verdict()

    def result(self) -> Latency:
        """The series as recorded, samples to six digits."""
        assert self.stopped is not None
        return Latency(
            samples=[float(f"{sample:.6g}") for sample in self._samples],
            calls=self.calls,
            blocks=self._blocks,
            stopped=self.stopped,
            flags=_flags(self._samples, self._flags, self._quantum / self.calls, JITTER / self.calls),
        )

    def median(self) -> float:
        """The median sample so far in seconds per call."""
        return median(self._samples)

    def _prepare(self) -> None:
        """Warm up; choose how many calls a sample is the mean of, and guess how long one takes.

        A call longer than all the sampling may last, and than :data:`LONG`, is not made once more for nothing.
        """
        if self._each > 0 and (self.regime == "cold" or self._each >= max(LONG, self._measure.max_time)):
            return
        time = min(WARM_TIME, WARM_SHARE * self._measure.min_time)
        call = warm_up(self._device, self._runner, self._each, time)
        if self.regime not in SINGLE and call > 0:
            length = max(QUANTA * self._quantum, self._measure.min_time / SAMPLES_A_FLOOR)
            self._turns = self._device.calls_lasting(self._runner, length, call)
        self._each = call * self._turns

    def _count(self) -> int:
        """Samples of the next block."""
        if self._each <= 0:
            return self._measure.min_samples
        block = max(SHORTEST_BLOCK, self._measure.min_time / BLOCKS_A_FLOOR)
        wanted = int(block / self._each)
        if self.regime != "cold":
            wanted = max(wanted, LEAST_A_BLOCK)
        elif not self._blocks:
            wanted = min(wanted, self._measure.min_samples)  # what flushing costs is not known yet
        left = ceil((self._measure.max_time - self.seconds) / self._each)
        return max(1, min(wanted, left, MOST_SAMPLES - len(self._samples)))

    def _sound_block(self, count: int) -> Block:
        """A block during which the device was not held back, or, when patience ends, one that says it was."""
        while True:
            begun = self._device.clock()
            block = self._device.samples(self._runner, self.regime, self._turns, count)
            spent = self._device.clock() - begun
            self.seconds += spent
            self._each = min(self._each, spent / count) if self._blocks else spent / count
            state = self._device.state()
            self.states.append(state)
            self.processor.append(self._device.processor())
            if not is_throttled(self._device, state):
                return block
            if self._repeats == THROTTLE_REPEATS:
                return Block(block.samples, block.flags | {"throttled"})
            self._device.rest(THROTTLE_REST * 2**self._repeats)
            self._repeats += 1

    def _verdict(self) -> Stopped | None:
        measure = self._measure
        if self.seconds >= measure.max_time:
            return "time"
        if len(self._samples) >= MOST_SAMPLES:
            return "count"
        if len(self._samples) < measure.min_samples or self.seconds < measure.min_time:
            return None
        if not all(isfinite(sample) and sample > 0 for sample in self._samples):
            return None
        least = min(ENOUGH, measure.min_samples)
        return "precision" if precision(self._samples, measure.precision, least=least).reached else None


def _for_wall(measure: Measure) -> Measure:
    times = {"min_time": WALL_SHARE * measure.min_time, "max_time": WALL_SHARE * measure.max_time}
    return measure.model_copy(update=times)


def warm_up(device: Device, runner: Runner, guess: float = 0.0, time: float = WARM_TIME) -> float:
    """Call ``runner`` for ``time`` seconds; returns the shortest mean of a call in seconds, the first left out.

    Of what is known to take long, and does, by ``guess`` (seconds of a call) the first is enough.
    """
    first_call, _ = device.timed(runner)
    if first_call >= LONG or 0 < time <= min(first_call, guess):
        return first_call
    calls, spent, best = 1, first_call, inf
    while spent < time or best == inf:
        seconds, _ = device.timed(runner, calls)
        best = min(best, seconds / calls)
        spent += seconds
        left = (time - spent) / best if best > 0 else inf
        calls = max(1, ceil(left)) if left < 2 * calls else 2 * calls
    return best


def turns(waiting: Sequence[T], rng: random.Random, step: Callable[[T], bool]) -> Iterator[T]:
    """Let all of ``waiting`` take turns, in a new random order every time round; yields each when it is done.

    ``step`` takes one block and says whether that was the last. Random interleaving of repetitions takes out
    what a fixed order would favour (google/benchmark's way).
    """
    left = list(waiting)
    while left:
        rng.shuffle(left)
        for one in list(left):
            if step(one):
                left.remove(one)
                yield one


def launch_share(device: Device, runner: Runner, graph_latency: float, calls: int) -> float | None:
    """The share of the eager wall time that is launching: what a graph of the same call does without.

    A call before them is not timed: capturing the graph, and neighbours that went, have emptied the allocator's
    pool. None where either time is none (a stuck or broken timer).
    """
    device.timed(runner)
    timings = [device.timed(runner, calls)[0] for _ in range(EAGER_TIMINGS)]
    if not all(isfinite(time) and time > 0 for time in (graph_latency, *timings)):
        return None
    return max(0.0, 1.0 - graph_latency * calls / median(timings))


def around(states: Sequence[MachineState], processor: Sequence[Processor] = ()) -> MachineState | None:
    """The machine around a case: last load, lowest clock, highest heat and power, all throttle reasons.

    Args:
        processor: the readings in their order. Others' share is taken from the first to the last, and not
            block by block: a block lasts but a few of the kernel's ticks, so that their sum would be mostly
            rounding. What lies between are the blocks of the cases it takes turns with, whose time is this
            process's own.
    """
    if not states:
        return None
    clocks = [state.sm_clock for state in states if state.sm_clock is not None]
    heat = [state.temperature for state in states if state.temperature is not None]
    power = [state.power for state in states if state.power is not None]
    return replace(
        states[-1],
        others=(processor[-1] - processor[0]).share if processor else None,
        sm_clock=min(clocks, default=None),
        temperature=max(heat, default=None),
        power=max(power, default=None),
        throttle=sorted({reason for state in states for reason in state.throttle}),
    )


def _flags(samples: list[float], flags: set[str], quantum: float = 0.0, jitter: float = 0.0) -> list[str]:
    return sorted({*check(samples, quantum, jitter).flags, *flags})
