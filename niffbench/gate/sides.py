"""Sides: what a run knows of each case, as a comparison needs it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from math import isfinite
from statistics import median
from typing import TypedDict, Unpack

from niffbench.case import Case, Execution, Problem
from niffbench.gate.findings import Finding, Verdict
from niffbench.results import REGIMES, Record, Run
from niffbench.suite import Regime, Selection

UNUSABLE = frozenset({"invalid", "stuck", "throttled"})
"""Flags of a series that say nothing of the code: such a round is left out, and that is said."""

EXACT: Mapping[str, Callable[[Record], int | None]] = {
    "flops": lambda record: record.cost.closed if record.cost else None,
    "flops_counted": lambda record: record.cost.counted if record.cost else None,
    "parameters": lambda record: record.parameters,
}
"""Quantities where any difference counts, in FLOPs and numbers. ``flops_counted`` is what the code was seen to do:
it changes where the closed form, which is written by hand, does not."""

BYTES: Mapping[str, Callable[[Record], int | None]] = {
    "memory_peak": lambda record: record.memory.peak if record.memory else None,
    "memory_resident": lambda record: record.memory.resident if record.memory else None,
}
"""Quantities in bytes, judged with a tolerance."""

QUANTITIES: tuple[str, ...] = (
    "coverage",
    *(f"latency_{regime}" for regime in REGIMES),
    *(f"ratio_{regime}" for regime in REGIMES),
    *EXACT,
    *BYTES,
)
"""Every name a finding's quantity can have."""


class Numbers(TypedDict, total=False):
    """What a finding may say in numbers; see :class:`niffbench.gate.findings.Finding`."""

    base: float | None
    head: float | None
    ratio: float | None
    low: float | None
    high: float | None
    p_adjusted: float | None
    min_effect: float
    rounds: tuple[int, int]
    blind: bool


@dataclass(frozen=True)
class Timing:
    """Round medians of one regime in seconds, by round, and why rounds are left out."""

    medians: Mapping[int, float]
    left_out: tuple[str, ...]

    @property
    def attempted(self) -> bool:
        """Whether the regime was measured at all, usable or not."""
        return bool(self.medians or self.left_out)


@dataclass(frozen=True)
class Known:
    """What one side knows of one case: its records by round."""

    records: Mapping[int, Record]

    @cached_property
    def any(self) -> Record:
        """A record that stands for what all rounds share: case and traits."""
        return next(iter(self.records.values()))

    @property
    def case(self) -> Case:
        """The case."""
        return self.any.case

    @property
    def label(self) -> str:
        """Its row's name in tables."""
        return self.any.traits.label

    @property
    def problem(self) -> str:
        """Its problem in short, and how it is executed if not eagerly."""
        execution = self.case.execution
        return self.case.problem.label + (f" {execution}" if execution != "eager" else "")

    @cached_property
    def ok(self) -> tuple[Record, ...]:
        """The rounds that measured it."""
        return tuple(record for record in self.records.values() if record.status == "ok")

    @cached_property
    def failures(self) -> tuple[Record, ...]:
        """The rounds that could not. One skipped beside measured ones was short of time, which is no failure."""
        harmless = ("ok", "skipped") if self.ok else ("ok",)
        return tuple(record for record in self.records.values() if record.status not in harmless)

    @cached_property
    def chosen(self) -> frozenset[tuple[str, ...]]:
        """What was chosen in the rounds that measured it; their FLOPs are those of the choice."""
        return frozenset(tuple(record.chosen or ()) for record in self.ok)

    def failure(self) -> str:
        """The first failure in words: its status, and its reason cut to one short line."""
        first = self.failures[0]
        reason = " ".join((first.reason or "no reason given").split())
        rounds = f" in {len(self.failures)} of {len(self.records)} rounds" if len(self.records) > 1 else ""
        return f"{first.status}{rounds}: {reason[:160]}{'…' if len(reason) > 160 else ''}"

    def timing(self, regime: Regime) -> Timing:
        """The round medians of one regime; a stuck, throttled or impossible round is left out.

        So is one whose samples are all equal because of a coarse timer: one step of it would look like a change.
        """
        medians: dict[int, float] = {}
        left_out: list[str] = []
        for number, record in self.records.items():
            series = record.latency.get(regime) if record.status == "ok" else None
            if series is None:
                continue
            # Sorting NaNs would give any median.
            value = median(series.samples) if series.samples and isfinite(sum(series.samples)) else 0.0
            bad = sorted(UNUSABLE & set(series.flags))
            if "coarse" in series.flags and len(set(series.samples)) == 1:
                left_out.append(f"round {number} has times that its timer cannot tell apart")
            elif bad:
                left_out.append(f"round {number} is {' and '.join(bad)}")
            elif value <= 0:
                left_out.append(f"round {number} has no positive time")
            else:
                medians[number] = value
        return Timing(medians, tuple(left_out))

    def finding(self, quantity: str, verdict: Verdict, reason: str, **numbers: Unpack[Numbers]) -> Finding:
        """A verdict on one of this case's quantities."""
        return Finding(
            case=self.any.id,
            label=self.label,
            problem=self.problem,
            quantity=quantity,
            verdict=verdict,
            reason=reason,
            **numbers,
        )

    def values(self, read: Callable[[Record], int | None]) -> tuple[int, ...]:
        """What ``read`` finds in the rounds that measured the case; rounds without it are left out."""
        return tuple(value for record in self.ok if (value := read(record)) is not None)


class Side(Mapping[str, Known]):
    """A run by case id, in the suite's order; ``only`` are filters as of ``--only``."""

    def __init__(self, run: Run, selection: Selection) -> None:
        grouped: dict[str, dict[int, Record]] = {}
        for record in run.records:
            grouped.setdefault(record.id, {})[record.round] = record
        order = [*run.manifest.suite.cases, *sorted(grouped)]
        self.run = run
        self._all = {id_: Known(grouped[id_]) for id_ in dict.fromkeys(order) if id_ in grouped}
        self._known = {i: k for i, k in self._all.items() if selection.takes(k.case, k.label)}

    def __getitem__(self, id_: str) -> Known:
        return self._known[id_]

    def __iter__(self) -> Iterator[str]:
        return iter(self._known)

    def __len__(self) -> int:
        return len(self._known)

    @property
    def measured(self) -> bool:
        """Whether any case was measured at all."""
        return any(known.ok for known in self._known.values())

    def absence(self, id_: str) -> str:
        """Why this side knows nothing of a case the other side has."""
        manifest = self.run.manifest
        if id_ not in manifest.suite.cases:
            return "is no longer a case of the suite"
        return "was not reached: the run was interrupted" if manifest.finished is None else "has no record"

    def baseline_of(self, id_: str) -> Known | None:
        """The suite's baseline on the same problem, executed alike, whether selected or not; None without one."""
        case = self._known[id_].case
        return self._baselines.get((case.problem, case.execution))

    @cached_property
    def _baselines(self) -> dict[tuple[Problem, Execution], Known]:
        found: dict[tuple[Problem, Execution], Known] = {}
        for known in self._all.values():
            if self.run.is_baseline(known.any):
                found.setdefault((known.case.problem, known.case.execution), known)
        return found
