"""The digest of a run: cases brought together into comparable groups, each value with its interval over rounds.

A *group* is one problem executed one way; its rows are operators, and nothing is ever compared across groups.
Terminal, HTML, Markdown, CSV and plots all show this one digest, so that they cannot disagree.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property

from niffbench.case import Case, Execution, Problem
from niffbench.report import metrics
from niffbench.report.metrics import Key, Metric
from niffbench.report.text import clean
from niffbench.results import REGIME_ORDER, Ceilings, CostRecord, GradientError, Memory, Run, Traits
from niffbench.stats.intervals import Interval, exactly, ratio
from niffbench.suite import Regime

_LARGE_KERNEL = re.compile(r"-k(\d+|map)\b")


def kin(label: str, family: str, boundary: str) -> str:
    """The family whose colour an operator has: of a network that of the layers in it, NIFF's being circular."""
    if family != "network":
        return family
    if boundary == "circular":
        return "niff"
    return "depthwise" if _LARGE_KERNEL.search(label) else "dense"


CONFIDENCE = 0.95
"""Of every interval in a report."""


@dataclass(frozen=True)
class Cell:
    """One quantity of one row: its value over rounds, and its ratio to the baseline's (None: there is none).

    ``rounds`` maps a round to its value; a round without one is not in it. ``exact``: known without error.
    """

    rounds: Mapping[int, float]
    value: Interval
    exact: bool
    ratio: Interval | None = None

    @property
    def estimate(self) -> float:
        """The median of the rounds."""
        return self.value.estimate or 0.0


def aligned(*cells: Cell | None) -> list[list[float | None]]:
    """The rounds of several cells side by side: value i of each is of the same round, None where it has none."""
    rounds = sorted({round_ for cell in cells if cell for round_ in cell.rounds})
    return [[cell.rounds.get(round_) if cell else None for round_ in rounds] for cell in cells]


def compare(base: Cell, other: Cell) -> Interval:
    """The ratio other/base within one run, paired by round; that of exact quantities is exact."""
    if base.exact and other.exact and base.estimate and other.estimate:
        return exactly(other.estimate / base.estimate, CONFIDENCE)
    one, two = aligned(base, other)
    return ratio(one, two, paired=True, confidence=CONFIDENCE)


@dataclass(frozen=True)
class Row:
    """One case: an operator on the group's problem, with all that its rounds learned.

    ``regimes``: the median latency of every regime, in seconds. ``statuses`` counts rounds by status;
    ``reasons`` maps each status other than ``ok`` to its first reason. ``choices``: what was chosen by
    measurement, in short, and in how many rounds; the most frequent comes first, and ``cost`` is its.
    ``like_baseline`` is False where the row computes another function than the baseline, or at another boundary:
    its ratio is then one of unlike things, and marked. ``error``, ``gradient`` and ``exact_gradient`` are the
    largest of all rounds, in relative L2.
    """

    case: Case
    id: str
    traits: Traits
    cells: Mapping[Key, Cell]
    regimes: Mapping[Regime, float]
    statuses: Mapping[str, int]
    reasons: Mapping[str, str]
    flags: Mapping[str, int]
    choices: Mapping[str, int]
    cost: CostRecord | None
    parameters: int | None
    error: float | None
    gradient: GradientError | None
    exact_gradient: GradientError | None
    gradients_left_out: str | None
    energy: float | None
    launch_share: float | None
    memory: Memory | None
    needed: int | None
    available: int | None
    like_baseline: bool = True

    @property
    def label(self) -> str:
        """The operator's name, fit to show."""
        return clean(self.traits.label, 60)

    @property
    def kin(self) -> str:
        """The family whose colour it has."""
        return kin(self.traits.label, self.traits.family, self.traits.boundary)

    @property
    def chosen(self) -> str:
        """What was chosen, fit to show: ``native``, or ``native in 2 of 3 rounds; dft in 1``; else empty."""
        if len(self.choices) <= 1:
            return next(iter(self.choices), "")
        (usual, often), *others = self.choices.items()
        first = f"{usual} in {often} of {sum(self.choices.values())} rounds"
        return "; ".join([first, *(f"{what} in {number}" for what, number in others)])

    @property
    def images_per_second(self) -> float | None:
        """Batch over latency in the run's main regime."""
        latency = self.cells.get("latency")
        return self.case.problem.batch / latency.estimate if latency and latency.estimate else None

    @property
    def resident(self) -> int | None:
        """Bytes of inputs and weights."""
        return self.memory.resident if self.memory else None

    @property
    def predicted(self) -> int | None:
        """Bytes of the peak that fake tensors foretold."""
        return self.memory.predicted if self.memory else None

    @property
    def energy_per_image(self) -> float | None:
        """Joules of a call over its batch."""
        return None if self.energy is None else self.energy / self.case.problem.batch

    @property
    def ok(self) -> bool:
        """Whether any round measured it."""
        return self.statuses.get("ok", 0) > 0

    @property
    def status(self) -> str:
        """``ok``, or what happened and how often: ``crashed 1 of 3``."""
        if set(self.statuses) == {"ok"}:
            return "ok"
        total = sum(self.statuses.values())
        failed = {status: number for status, number in self.statuses.items() if status != "ok"}
        if len(failed) == 1 and total in failed.values():
            return next(iter(failed))
        return ", ".join(f"{status} {number} of {total}" for status, number in failed.items())

    @property
    def largest_error(self) -> float | None:
        """Relative L2 in the case's dtype: of the output or, in training where that is worse, of a gradient."""
        known = [self.error, None if self.gradient is None else self.gradient.l2]
        return max((error for error in known if error is not None), default=None)

    @property
    def stock_share(self) -> float | None:
        """The share of the forward FLOPs that the better of the two stock counters sees, or None."""
        if self.cost is None or not self.cost.closed_forward:
            return None
        seen = [
            count / whole
            for count, whole in (
                (self.cost.stock_torch, self.cost.closed),
                (self.cost.stock_fvcore, self.cost.closed_forward),
            )
            if count is not None and whole
        ]
        return max(seen, default=None)


@dataclass(frozen=True)
class Winner:
    """The best row of a group in one quantity.

    ``tied``: rows that its rounds cannot tell from it; ``certain`` is False where there are too few rounds to
    tell.
    """

    row: Row
    tied: tuple[Row, ...]
    certain: bool

    def holds(self, row: Row) -> bool:
        """Whether ``row`` is the best or tied with it."""
        return row.id == self.row.id or any(row.id == other.id for other in self.tied)


@dataclass(frozen=True)
class Group:
    """One problem, executed one way: rows in the suite's order, the baseline, the winners."""

    problem: Problem
    execution: Execution
    rows: tuple[Row, ...]
    baseline: Row | None
    winners: Mapping[Key, Winner]

    @property
    def label(self) -> str:
        """``B1 64@56 training compiled``."""
        return self.problem.label + ("" if self.execution == "eager" else f" {self.execution}")


@dataclass(frozen=True)
class Digest:
    """Everything a report says of one run, before it is put into words, tables or plots."""

    run: Run = field(repr=False)
    name: str
    regime: Regime
    groups: tuple[Group, ...]
    missing: int  # cases × rounds of the suite without a record

    @property
    def metrics(self) -> tuple[Metric, Metric, Metric]:
        """What groups are judged by: latency in the run's main regime, memory, FLOPs."""
        return metrics.latency(self.regime), metrics.MEMORY, metrics.FLOPS

    @property
    def has_networks(self) -> bool:
        """Whether any row is a whole network, whose speed is also told in images per second."""
        return any(row.traits.family == "network" for row in self.rows)

    @property
    def baseline(self) -> str:
        """The baseline's name."""
        return clean(self.run.manifest.suite.baseline, 60)

    @property
    def rounds(self) -> int:
        """Rounds that were planned."""
        return self.run.manifest.rounds

    @property
    def ceilings(self) -> Ceilings | None:
        """The machine's measured roofline."""
        return self.run.manifest.ceilings

    @cached_property
    def rows(self) -> tuple[Row, ...]:
        """All rows, group by group."""
        return tuple(row for group in self.groups for row in group.rows)

    @cached_property
    def regimes(self) -> tuple[Regime, ...]:
        """The regimes that any row has, the main one first."""
        present = {regime for row in self.rows for regime in row.regimes}
        return tuple(regime for regime in REGIME_ORDER if regime in present)

    @cached_property
    def families(self) -> tuple[str, ...]:
        """Operator families in order of appearance."""
        return tuple(dict.fromkeys(row.kin for row in self.rows))

    @cached_property
    def statuses(self) -> Mapping[str, int]:
        """Rows by what became of them; a row with several statuses counts under each."""
        return Counter(status for row in self.rows for status in row.statuses)

    @property
    def measuring_share(self) -> float | None:
        """The share of the run's wall time that was spent inside sampling, or None while it is not finished."""
        wall = self.run.manifest.wall
        return sum(record.measuring for record in self.run.records) / wall if wall else None
