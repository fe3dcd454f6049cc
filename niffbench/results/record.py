"""A record: what one round learned of one case, or why it could not; and its line of JSON."""

from __future__ import annotations

import re
from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Literal

from pydantic import ConfigDict, Field, GetPydanticSchema, PlainSerializer, TypeAdapter

from niffbench.case import Case, Regime

Role = Literal["spatial", "spectral", "attention", "network", "other"]
Status = Literal["ok", "oom", "timeout", "crashed", "unsupported", "skipped", "wrong"]
REGIME_ORDER: tuple[Regime, ...] = ("steady", "cold", "graph", "wall", "first")
"""The regime that is meant where one number must stand for latency: the first of these that was measured."""
MAX_SAMPLES = 1_000_000
"""Of one series in a file; the sampler takes a few thousand."""
Count = Annotated[int, Field(ge=0, lt=2**63)]
Member = tuple[int, str]
"""A device of a fleet: the number of its node, and the device's id, empty where it has none."""
Seconds = Annotated[float, Field(ge=0, lt=1e12, allow_inf_nan=False)]
"""Of wall time, so that those of all records add up; a sample may be anything."""
Doubles = Annotated[
    Sequence[float],
    GetPydanticSchema(lambda _, handler: handler(Annotated[list[float], Field(max_length=MAX_SAMPLES)])),
    PlainSerializer(list, return_type=list[float]),
]
"""Numbers that are kept as an array of doubles: a quarter of a list's memory. In a file they are a list."""


class _Part:
    """Configuration of every part: unknown keys are refused; a broken clock's NaN and infinity survive.

    Parts are dataclasses with slots rather than pydantic models: a run of 100,000 records takes a third of the
    memory. They are checked when read (:func:`parse`), not when made.
    """

    __slots__ = ()
    __pydantic_config__ = ConfigDict(extra="forbid", ser_json_inf_nan="constants")


@dataclass(frozen=True, slots=True, kw_only=True)
class Traits(_Part):
    """What tables need to know of an operator without asking the catalogue.

    Attributes:
        base: the operator it was made from, by its name: of a network, torchvision's original. ``role``
            decides what it is compared with; ``layers`` is the family whose colour it has, of a network that
            of the layers in it.
        published: it executes as its paper's code does. Older records have these three derived.
        reference: what its numerics were held to: something written ``independent``ly of it, or ``itself`` in
            float64, which finds rounding and no wrong formula.
    """

    label: str
    family: str
    boundary: Literal["circular", "zero", "none", "unknown"]
    equivalence: str
    base: str | None = None
    role: Role = None  # type: ignore[assignment]
    layers: str = None  # type: ignore[assignment]
    published: bool = None  # type: ignore[assignment]
    reference: Literal["independent", "itself"] = "independent"

    def __post_init__(self) -> None:
        for key, derive in _OLD_TRAITS.items():
            if getattr(self, key) is None:
                object.__setattr__(self, key, derive(self))


def is_control(traits: Traits) -> bool:
    """Whether it is a convolution of torch's own: what these share in a round is the machine's, or torch's."""
    return traits.family in ("dense", "depthwise")


_ROLES: dict[str, Role] = {
    **dict.fromkeys(("dense", "depthwise", "strip"), "spatial"),
    **dict.fromkeys(("niff", "fft", "global-filter", "spectral"), "spectral"),
    "attention": "attention",
    "network": "network",
}


def _layers(traits: Traits) -> str:
    if traits.family != "network":
        return traits.family
    if traits.boundary == "circular":
        return "niff"
    return "depthwise" if re.search(r"-k(\d+|map)\b", traits.label) else "dense"


_OLD_TRAITS: dict[str, Callable[[Traits], object]] = {
    "role": lambda traits: _ROLES.get(traits.family, "other"),
    "layers": _layers,
    "published": lambda traits: "published" in traits.label,
}
"""How a trait is read of a record that was written before there was such a key."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Latency(_Part):
    """Samples of one regime, in seconds per call, in the order they were taken.

    ``calls`` is the number of back-to-back calls one sample is the mean of (1 for cold, wall and first; of a graph
    those it holds, times its replays); ``blocks`` the lengths of the interleaved blocks the series consists of;
    ``stopped`` what ended the sampling; ``flags`` what is wrong with the series (``drift``, ``stuck``,
    ``throttled``, ``busy`` …).
    ``launch_share`` (graph regime): the share of the eager time that the launches took.
    """

    samples: Doubles
    calls: Annotated[int, Field(ge=1)] = 1
    blocks: list[int] = field(default_factory=list)
    stopped: Literal["precision", "time", "count", "single"] = "count"
    flags: list[str] = field(default_factory=list)
    launch_share: float | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "samples", array("d", self.samples))


@dataclass(frozen=True, slots=True, kw_only=True)
class Memory(_Part):
    """Bytes. ``peak`` is above ``resident``: inputs, parameters, what is kept, in training the output's gradient.

    ``kept`` is what the operator holds between calls beyond its parameters; older records have None. Memory in
    full, ``memory_total`` of :mod:`niffbench.results.metrics`, is resident + peak.
    ``saved`` is what autograd kept for backward, ``output`` the result. ``predicted`` is the dispatch-visible
    peak from fake tensors; ``workspace`` = peak − predicted is what kernels took inside. CUDA's are ``reserved``,
    by which the allocator's pool grew, and ``device_delta``, by which the device's free memory shrank: both in one
    warm call, so that neither holds what the process took before (its context, libraries, plans).
    """

    peak: Count
    resident: Count
    output: Count
    kept: Count | None = None
    saved: Count | None = None
    predicted: Count | None = None
    workspace: int | None = None
    reserved: Count | None = None
    device_delta: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class StepCost(_Part):
    """One step of one direction: closed-form real FLOPs, and the bytes it was counted to move; None uncounted."""

    name: str
    direction: Literal["forward", "backward"]
    flops: Count
    bytes: Count | None


@dataclass(frozen=True, slots=True, kw_only=True)
class CostRecord(_Part):
    """The three witnesses, in real FLOPs (multiply-add = 2), for the whole of the case's mode.

    Attributes:
        closed: closed form.
        counted: FlopCounterMode with our formulas.
        fvcore: ×2, with handlers, forward only (so beside ``closed_forward``). ``stock_torch`` and
            ``stock_fvcore``: what the stock counters say (fvcore ×2), ``missed`` the ops they count as
            nothing. ``disagreement`` names a known reason why witnesses differ, or is None when they agree.
        notes: what a witness could not do, and why; one that failed has no figure.
        stated: False of an operator without a closed form, whose place the count takes.
        executed: as executed, where that is known (of what makes matrix products, and of the C kernel on a
            CPU); older records have None.
    """

    closed: Count
    closed_forward: Count
    steps: list[StepCost]
    counted: Count | None = None
    fvcore: Count | None = None
    stock_torch: Count | None = None
    stock_fvcore: Count | None = None
    missed: list[str] = field(default_factory=list)
    disagreement: str | None = None
    notes: list[str] = field(default_factory=list)
    bytes_floor: Count
    bytes_own: Count | None
    largest_prime_factor: Count | None = None
    stated: bool = True
    executed: Count | None = None

    @property
    def is_contradicted(self) -> bool:
        """Whether both counters say otherwise than the closed form, and nobody knows why."""
        unexplained = (self.disagreement or "").startswith("unexplained")
        return (
            unexplained
            and self.counted not in (None, self.closed)
            and self.fvcore not in (None, self.closed_forward)
        )

    @property
    def flops(self) -> int:
        """What operators are ranked by: the closed form, or where it is contradicted what was counted."""
        return self.counted if self.is_contradicted and self.counted is not None else self.closed


@dataclass(frozen=True, slots=True, kw_only=True)
class GradientError(_Part):
    """Errors of one gradient as of an output; ``name`` says whose it is: ``input``'s or a parameter's.

    ``max`` is None where units switch: of one that rounding has switched the gradient is wrong altogether.
    """

    name: str
    l2: float
    max: float | None
    tolerance: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Numerics(_Part):
    """Error of the output against float64: relative L2, and maximum relative to the reference's largest value.

    In training ``gradient`` is the one that is furthest from float64. Where units switch, ``exact_gradient`` is
    the furthest when the operator itself runs in float64: what rounding switches hides errors of ``gradient``, not
    of this. ``gradients_left_out`` says why either was not compared, the other may have been. Older records
    have none of the three.
    """

    l2: float
    max: float
    tolerance: float
    gradient: GradientError | None = None
    exact_gradient: GradientError | None = None
    gradients_left_out: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class MachineState(_Part):
    """The machine around a case: load average per core, SM clock in MHz, °C, watts and throttle reasons.

    Attributes:
        others: the share of the processor, 0 to 1, that other processes and the hypervisor used from the
            case's first sample to its last; None where the platform does not tell, or in too short a time to
            mean anything.
    """

    load: float | None = None
    others: Annotated[float, Field(ge=0, le=1)] | None = None
    sm_clock: float | None = None
    temperature: float | None = None
    power: float | None = None
    throttle: list[str] = field(default_factory=list)


@dataclass(frozen=True, slots=True, kw_only=True)
class Record(_Part):
    """What one round learned of one case, or why it could not.

    ``status`` other than ``ok`` comes with ``reason``; then what was not measured is None, never 0. ``needed`` and
    ``available`` (bytes) explain ``oom`` and ``skipped``.

    Attributes:
        elapsed: the wall time of the case in this round in seconds, ``measuring`` the part of it in sampling
            and the energy pass, ``once`` the part that later rounds have no need of. ``energy`` in joules a call.
        chosen: the engine of each layer that chooses one by measuring (NIFF's ``auto``), in the network's
            order; the cost is then that of these.
        output: the output's shape where it is none of an image as large as the input, of a layer.
        node: the number of the machine that measured it, where a run has several. ``device_id`` tells its device
            from the run's others, and nothing else of it; None of a CPU. Neither key is written without a value.
    """

    case: Case
    id: str
    round: Annotated[int, Field(ge=0, lt=2**31)]
    status: Status
    reason: str | None = None
    traits: Traits
    parameters: Count | None = None
    chosen: list[str] | None = None
    output: list[int] | None = None
    cost: CostRecord | None = None
    latency: dict[Regime, Latency] = field(default_factory=dict)
    memory: Memory | None = None
    numerics: Numerics | None = None
    energy: float | None = None
    machine: MachineState | None = None
    needed: Count | None = None
    available: Count | None = None
    elapsed: Seconds = 0.0
    measuring: Seconds = 0.0
    once: Seconds = 0.0
    node: Annotated[int, Field(ge=0, lt=2**31)] | None = None
    device_id: Annotated[str, Field(pattern="^[0-9a-f]{12}$")] | None = None

    @property
    def member(self) -> Member | None:
        """Which of the fleet's machines and devices measured it; None where nobody says."""
        return None if self.node is None and self.device_id is None else (self.node or 0, self.device_id or "")


_UNWRITTEN = ("node", "device_id")
"""Keys that a line has only where they say something."""
_RECORD: TypeAdapter[Record] = TypeAdapter(Record)


def in_words(chosen: Sequence[str] | None) -> str | None:
    """Choices in short, the most frequent first: ``native``, of several layers ``native 14, dft 2``."""
    if not chosen or len(chosen) == 1:
        return chosen[0] if chosen else None
    return ", ".join(f"{engine} {number}" for engine, number in Counter(chosen).most_common())


def main_regime(records: Iterable[Record]) -> Regime:
    """The regime that stands for latency in a run: the first of REGIME_ORDER that any record has."""
    present = {regime for record in records for regime in record.latency}
    return next((regime for regime in REGIME_ORDER if regime in present), "steady")


def dump(record: Record) -> bytes:
    """A record as one line of JSON, newline included."""
    left_out = {key for key in _UNWRITTEN if getattr(record, key) is None}
    return _RECORD.dump_json(record, exclude=left_out) + b"\n"


def parse(line: bytes) -> Record:
    """The record on one line; pydantic's ValidationError when it is none."""
    return _RECORD.validate_json(line)
