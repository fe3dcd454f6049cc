"""What a device can do for a measurement: run, flush, watch memory, tell its state.

Times are in seconds, memory in bytes.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Protocol

from niffbench.fingerprint import Fact
from niffbench.results import MachineState
from niffbench.suite import Regime

FLUSH_FACTOR = 2
"""A flush touches this many times the size of the last-level cache: replacement is not strictly oldest-first."""

DEFAULT_CACHE = 64 * 2**20
"""Bytes assumed for a last-level cache whose size is unknown or said to be zero (some MIG slices and VMs do)."""


class Runner(Protocol):
    """Something to run again and again: one case in its mode, or a probe."""

    @property
    def unrolled(self) -> int:
        """How many calls of a case one :meth:`call` makes: one, of a captured graph as many as it holds."""

    def scope(self) -> AbstractContextManager[object]:
        """The context to run in (inference mode, say), entered once around many calls."""

    def call(self) -> object:
        """Run the case once; on an accelerator, enqueue it. Returns the output, which the caller drops."""

    def reset(self) -> None:
        """Drop what calls leave behind (gradients)."""


@dataclass(frozen=True, slots=True)
class Block:
    """Samples of one uninterrupted stretch, in seconds per call; ``flags`` say what is wrong with it."""

    samples: tuple[float, ...]
    flags: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class Usage:
    """Memory of one call above what was allocated before it: the allocator's peak, and on CUDA two more figures.

    ``kept`` is what is still allocated after the call while its output is alive. ``reserved`` is what the
    allocator's pool grew to above where it stood, ``device_delta`` the device's free memory before the call less
    that after it: of this warm call alone, not of the process, whose context, plans and libraries took theirs in
    earlier calls; what others on the device take or free meanwhile is in it.
    """

    peak: int
    kept: int
    reserved: int | None = None
    device_delta: int | None = None


LEAST_WATCHED = 1.0
"""Seconds that the processor must be watched for a share of it to mean anything: the kernel counts in steps of
10 ms and charges a core by whole ticks of 4 or 10 ms, so that a share of a second may be off by 2 or 3 %."""


@dataclass(frozen=True, slots=True)
class Processor:
    """Time of the host's processor, in seconds of all its logical cores, since whenever: take differences.

    Attributes:
        others: what processes other than this one used, and what the hypervisor took away (steal).
        watched: the time that went by. Both stand still where the platform does not tell.
    """

    others: float = 0.0
    watched: float = 0.0

    def __sub__(self, earlier: Processor) -> Processor:
        return Processor(self.others - earlier.others, self.watched - earlier.watched)

    @property
    def share(self) -> float | None:
        """Others' share, 0 to 1; None for less than :data:`LEAST_WATCHED`."""
        if self.watched < LEAST_WATCHED:
            return None
        return round(min(max(self.others / self.watched, 0.0), 1.0), 3)


@dataclass(frozen=True, slots=True)
class Capabilities:
    """What a kind of device can do; whoever measures asks for this and never for a name.

    Attributes:
        host: cases run on the processor that this program runs on.
        asynchronous: a call is only enqueued, so that what a host waits for is more than the device's own time.
        graphs: :meth:`Device.capture` works.
        flush: :meth:`Device.flush` empties the last-level cache; without it nothing is sampled ``cold``.
        memory: :meth:`Device.usage` can tell the memory of a call; without it records have none.
        energy: there may be a counter; whether there is one, :meth:`Device.joules` tells.
        lazy_loading: libraries and kernels are loaded when something first needs them.
    """

    host: bool = False
    asynchronous: bool = False
    graphs: bool = False
    flush: bool = False
    memory: bool = False
    energy: bool = False
    lazy_loading: bool = False


class Device(Protocol):
    """Where cases run. Measuring functions reach clocks, caches and counters through this and nothing else."""

    @property
    def spec(self) -> str:
        """How it is asked for: ``cpu``, ``cuda:0``, ``replay:FILE``."""

    @property
    def place(self) -> str:
        """Where torch has its tensors: ``cpu``, ``cuda:0``; ``meta`` where there are none."""

    @property
    def capabilities(self) -> Capabilities: ...

    @property
    def quantum(self) -> float:
        """The smallest step of the timer that :meth:`samples` uses, in seconds."""

    @property
    def cache(self) -> int:
        """Bytes of the last-level cache; what is assumed where nobody tells."""

    @property
    def highest_clock(self) -> float | None:
        """The highest SM clock in MHz, where there is one and it is known."""

    @property
    def tf32(self) -> bool:
        """Whether float32 products may be rounded to TF32's 10 bits of mantissa, as things are set now."""

    def arithmetic(self, tf32: bool) -> AbstractContextManager[object]:
        """What to run in so that float32 products are rounded to TF32, or are not.

        Raises:
            NotImplementedError: where that is wanted and there is no TF32.
        """

    def facts(self) -> Mapping[str, Fact]:
        """What the fingerprint's ``must`` tier says of the device, its libraries and settings."""

    def surroundings(self) -> Mapping[str, Fact]:
        """What its ``should`` tier says: which one of its kind the device is, and who else is on it."""

    def free_memory(self) -> int | None:
        """Bytes that can still be allocated; None where nobody knows."""

    def synchronise(self) -> None:
        """Wait until all that was enqueued is done."""

    def clock(self) -> float:
        """Monotonic wall time in seconds; only differences mean anything."""

    def timed(self, runner: Runner, calls: int = 1) -> tuple[float, object]:
        """Wall time of ``calls`` calls from an idle device to an idle device, and the last call's output."""

    def samples(self, runner: Runner, regime: Regime, calls: int, count: int) -> Block:
        """``count`` samples in seconds per call, each the mean of ``calls`` of ``runner.call()``, back to back.

        ``cold``: flushed before each. ``wall``: on an accelerator the host waits for each call.
        """

    def calls_lasting(self, runner: Runner, seconds: float, call: float) -> int:
        """How many of ``runner.call()`` make a sample of ``seconds``, if one sample may hold as many.

        Args:
            call: the wall time of one in seconds, when warm.
        """

    def capture(self, runner: Runner) -> Runner:
        """``runner`` as a graph that is replayed whole.

        Raises:
            RuntimeError: where it cannot be captured.
        """

    def flush(self) -> None:
        """Evict what earlier calls left in the last-level cache."""

    def usage(self, runner: Runner) -> Usage:
        """Memory of one warm call. Never call it while timing."""

    def state(self) -> MachineState:
        """Load, clocks, temperature, power and throttle reasons, now."""

    def processor(self) -> Processor:
        """A running total of what other processes use of the host's processor. Never read it while timing."""

    def joules(self) -> float | None:
        """A running total of the energy used; None where there is no counter."""

    def rest(self, seconds: float) -> None:
        """Let the device cool for ``seconds``."""

    def release(self) -> None:
        """Give unused memory back."""

    def give_back(self) -> None:
        """The same of what the host's allocator keeps, at once and without looking for garbage."""

    def forget_plans(self) -> None:
        """Drop what libraries remember of sizes that were met before, so that the next call plans for itself."""

    def counters(self) -> Mapping[str, bool]:
        """Which of the driver's counters answer, each one really called."""


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of device, as its file offers it under ``KIND``.

    Attributes:
        forms: how it is asked for, in words.
        open: the device; given what follows the name and its colon, and the host's threads (None: the physical
            cores). Raises UsageError where there is no such device, saying why.
        is_usable: whether there is one here.
        rank: of the usable kinds ``auto`` takes that of the highest; 0: never.
        accelerator: cases run on another processor than the host's (``Capabilities.host`` of one that is open).
        computes: cases are run at all; a replay only says how long they took.
        describe: what there is of it here, or why it cannot be used, in a sentence.
        near: the logical cores of the host next to the device that the same text opens; none where nobody knows.
    """

    forms: str
    open: Callable[[str, int | None], Device]
    is_usable: Callable[[], bool]
    describe: Callable[[], str]
    rank: int = 0
    accelerator: bool = False
    computes: bool = True
    near: Callable[[str], Collection[int]] = lambda which: ()


THROTTLED = frozenset({"hw_slowdown", "hw_thermal_slowdown", "hw_power_brake", "sw_thermal_slowdown"})
"""Throttle reasons that spoil a measurement. A power cap does not: it is how the card runs that load, always."""

LOW_CLOCK = 0.75
"""Below this share of its highest clock a busy device is throttled whatever the reason (nvbench's threshold)."""


def is_throttled(device: Device, state: MachineState) -> bool:
    """Whether ``device`` was held back in ``state``."""
    highest, clock = device.highest_clock, state.sm_clock
    slow = highest is not None and clock is not None and clock < LOW_CLOCK * highest
    return bool(THROTTLED & set(state.throttle)) or (slow and bool(state.throttle))
