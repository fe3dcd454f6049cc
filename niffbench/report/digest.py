"""The digest of a run: cases brought together into comparable groups, each value with its interval over rounds.

A *group* is one problem executed one way; its rows are operators, and nothing is ever compared across groups.
Terminal, HTML, Markdown, CSV and plots all show this one digest, so that they cannot disagree.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

from niffbench.case import Case, Execution, Problem
from niffbench.cost.roofline import bandwidth, ceiling, floor_time
from niffbench.report.text import NAME, clean, short_names
from niffbench.results import (
    REGIME_ORDER,
    REGISTRY,
    Ceilings,
    CostRecord,
    Member,
    Metric,
    Numerics,
    Reason,
    Record,
    Run,
    Traits,
    attributes,
    in_words,
    is_busy,
    main_regime,
    round_value,
)
from niffbench.results.clock import Timed, coarse, relative_step
from niffbench.results.fleet import Fleet, fleet, of_one_machine
from niffbench.results.metrics import Place, headline
from niffbench.stats.fleet import replicates
from niffbench.stats.intervals import Interval, counted, exactly, median_of_rounds, ratio, widened
from niffbench.suite import Regime

CONFIDENCE = 0.95
"""Of every interval in a report."""


@dataclass(frozen=True)
class Cell:
    """One metric of one row: its value over rounds, and its ratio to the baseline's (None: there is none).

    Attributes:
        rounds: the value of each round that has one.
        choices: what each round chose by measuring.
        members: whose each round is, of a fleet's.
        coarse: the series of it that the clock's step is large for.
        base: the baseline's cells.
    """

    metric: Metric
    rounds: Mapping[int, float]
    choices: Mapping[int, str] = field(default_factory=dict)
    members: Mapping[int, Member] = field(default_factory=dict)
    coarse: Sequence[Timed] = ()
    base: Cells | None = field(default=None, repr=False, compare=False)

    @property
    def counted(self) -> bool:
        """Whether rounds that differ are no noise: something else was executed."""
        return self.metric.certainty != "by rounds"

    @property
    def exact(self) -> bool:
        """Known without error. What is chosen by measuring may differ by round, and FLOPs and bytes then do."""
        return self.counted and len(set(self.rounds.values())) == 1

    @cached_property
    def estimate(self) -> float:
        """What stands for the rounds; where that is their median, for the members of a fleet."""
        is_median = not self.counted and self.metric.over_rounds == "median"
        return self.metric.of_rounds(self.replicates if is_median else list(self.rounds.values()))

    @cached_property
    def replicates(self) -> list[float]:
        """What the interval is made of: the rounds' values or, of a fleet's several members, each one's."""
        return list(replicates([self.rounds], [self.members])[0].values())

    @cached_property
    def by_choice(self) -> tuple[tuple[float, int, str], ...]:
        """Of what is counted and differs: each value, in how many rounds, and what was chosen in these."""
        if not self.counted or self.exact:
            return ()
        values = Counter(self.rounds.values())
        chosen = {value: self.choices.get(round_, "") for round_, value in self.rounds.items()}
        return tuple((value, number, chosen[value]) for value, number in values.most_common())

    @cached_property
    def value(self) -> Interval:
        """The estimate with its interval over rounds."""
        if self.exact:
            return exactly(self.estimate, CONFIDENCE)
        if self.counted:
            return counted(self.estimate, list(self.rounds.values()), CONFIDENCE, len(self.rounds))
        if (method := self.metric.over_rounds) != "median":
            return Interval(self.estimate, None, None, CONFIDENCE, len(self.rounds), method, "of all rounds")
        return median_of_rounds(self.replicates, confidence=CONFIDENCE)

    @cached_property
    def ratio(self) -> Interval | None:
        """The ratio to the baseline with its interval."""
        base = self.base.get(self.metric.key) if self.base is not None and self.metric.compared else None
        relative = compare(base, self) if base is not None else None
        return None if relative is None or relative.estimate is None else relative


class Cells(Mapping[str, Cell]):
    """The cells of one row by their metrics' keys, each worked out when it is asked for."""

    def __init__(self, records: Sequence[Record], base: Cells | None = None) -> None:
        self._records = records
        self._base = base
        self._made: dict[str, Cell | None] = {}

    def __getitem__(self, key: str) -> Cell:
        if key not in self._made:
            self._made[key] = self._make(REGISTRY[key])
        if (cell := self._made[key]) is None:
            raise KeyError(key)
        return cell

    def __iter__(self) -> Iterator[str]:
        return (key for key in REGISTRY if key in self)

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def _make(self, metric: Metric) -> Cell | None:
        rounds = {
            record.round: value
            for record in self._records
            if not isinstance(value := round_value(record, metric), Reason)
        }
        choices = {record.round: words for record in self._records if (words := in_words(record.chosen))}
        members = {record.round: member for record in self._records if (member := record.member)}
        if not rounds:
            return None
        series = coarse([record for record in self._records if record.round in rounds], metric)
        return Cell(metric, rounds, choices, members, series, self._base)

    def why_not(self, key: str) -> str:
        """Why rounds that ran have no value: ``stuck``, ``throttled 2 of 3``; empty where all have one."""
        values = [round_value(record, REGISTRY[key]) for record in self._records]
        reasons = Counter(value.kind for value in values if isinstance(value, Reason) and value.tried)
        total = len(values)
        return ", ".join(kind if n == total else f"{kind} {n} of {total}" for kind, n in reasons.items())


def aligned(*cells: Cell | None) -> list[list[float | None]]:
    """The rounds of several cells side by side: value i of each is of the same round, None where it has none.

    Of a fleet, value i is of the same member.
    """
    series = replicates(
        [cell.rounds if cell else {} for cell in cells], [cell.members if cell else {} for cell in cells]
    )
    numbers = sorted({number for one in series for number in one})
    return [[one.get(number) for number in numbers] for one in series]


def compare(base: Cell, other: Cell, *, paired: bool = True) -> Interval:
    """The ratio other/base, the quotient of the two estimates; within one run its interval is paired by round.

    It allows for a step of the clock, where that is large.
    """
    if base.counted and other.counted and min(*base.rounds.values(), *other.rounds.values()) > 0:
        every = [two / one for one in base.rounds.values() for two in other.rounds.values()]
        estimate = other.estimate / base.estimate
        if len(set(every)) == 1:
            return exactly(estimate, CONFIDENCE)
        return counted(estimate, every, CONFIDENCE, min(len(base.rounds), len(other.rounds)))
    sides = aligned(base, other) if paired else [cell.replicates for cell in (base, other)]
    interval = ratio(*sides, paired=paired, confidence=CONFIDENCE)
    one_clock = [*base.coarse, *other.coarse]
    return widened(interval, relative_step(one_clock) if paired else relative_step(base.coarse, other.coarse))


@dataclass(frozen=True)
class Names:
    """What the operators of a run are called: no two that differ are called the same.

    Attributes:
        labels: by their labels.
        without_kernel: by their labels without the kernel size.
    """

    labels: Mapping[str, str]
    without_kernel: Mapping[str, str]

    def shown(self, label: str) -> str:
        """What is shown of a label, that of an operator without a record too."""
        return self.labels.get(label) or clean(label, NAME)


def _names(run: Run) -> Names:
    records = (*run.records, *run.probes)
    return Names(short_names(record.traits.label for record in records), short_names(map(_bare, records)))


def _bare(record: Record) -> str:
    return record.traits.label.replace(f"-k{record.case.kernel}", "", 1)


@dataclass(frozen=True)
class Row:
    """One case: an operator on the group's problem, with all that its rounds learned.

    Attributes:
        label: the operator's name, fit to show.
        without_kernel: the same without its kernel size.
        cells: every metric that any round has a value of.
        statuses: rounds by status.
        reasons: the first reason of each status other than ``ok``.
        choices: what was chosen by measurement, in short, and in how many rounds; the most frequent comes
            first, and ``cost`` is its.
        like_baseline: False where the row computes another function than the baseline, or at another boundary:
            its ratio is then one of unlike things, and marked.
        gradient: the gradient of the largest error; ``exact_gradient`` that in float64.
    """

    case: Case
    id: str
    attributes: Mapping[str, Any]
    traits: Traits
    label: str
    without_kernel: str
    cells: Cells
    statuses: Mapping[str, int]
    reasons: Mapping[str, str]
    flags: Mapping[str, int]
    choices: Mapping[str, int]
    cost: CostRecord | None
    gradient: str | None
    exact_gradient: str | None
    gradients_left_out: str | None
    like_baseline: bool = True

    def value(self, key: str) -> float | None:
        """What stands for the rounds of a metric, or None."""
        cell = self.cells.get(key)
        return cell.estimate if cell else None

    @property
    def kin(self) -> str:
        """The family whose colour it has."""
        return self.traits.layers

    @property
    def chosen(self) -> str:
        """What was chosen, fit to show: ``native``, or ``native in 2 of 3 rounds; dft in 1``; else empty."""
        if len(self.choices) <= 1:
            return next(iter(self.choices), "")
        (usual, often), *others = self.choices.items()
        first = f"{usual} in {often} of {sum(self.choices.values())} rounds"
        return "; ".join([first, *(f"{what} in {number}" for what, number in others)])

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
        errors = [self.value("error_l2"), self.value("error_gradient_l2")]
        return max((error for error in errors if error is not None), default=None)


@dataclass(frozen=True)
class Winner:
    """The best row of a group in one quantity.

    Attributes:
        tied: rows that its rounds cannot tell from it.
        certain: False where there are too few rounds to tell.
    """

    row: Row
    tied: tuple[Row, ...]
    certain: bool

    @property
    def decided(self) -> bool:
        """Whether the best is known to be it, and alone."""
        return self.certain and not self.tied

    def mark(self, row: Row) -> Literal["winner", "tied"] | None:
        """What ``row`` is marked as: nothing where its rounds decide nothing."""
        if not self.certain or (row.id != self.row.id and all(row.id != other.id for other in self.tied)):
            return None
        return "tied" if self.tied else "winner"


@dataclass(frozen=True)
class Group:
    """One problem, executed one way: rows in the suite's order, the baseline, the winners."""

    problem: Problem
    execution: Execution
    rows: tuple[Row, ...]
    baseline: Row | None
    winners: Mapping[str, Winner]

    @property
    def setting(self) -> tuple[str, ...]:
        """What is no extent: mode, dtype, memory format, execution."""
        problem = self.problem
        return problem.mode, problem.precision, problem.memory_format, self.execution

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
    names: Names = field(repr=False)

    @property
    def metrics(self) -> tuple[Metric, Metric, Metric]:
        """What groups are judged by: latency in the run's main regime, memory, FLOPs."""
        return headline(self.regime)

    def shown(self, place: Place) -> tuple[Metric, ...]:
        """The metrics that a place shows and any row has, the main latency first; on a terminal no other one."""
        main = self.metrics[0]
        places = {place, "networks"} if self.has_networks and place in ("terminal", "cases") else {place}
        others = [
            metric
            for metric in REGISTRY.values()
            if metric is not main and places & metric.shown and not (metric.regime and place == "terminal")
        ]
        return (main, *(metric for metric in others if any(metric.key in row.cells for row in self.rows)))

    @property
    def has_networks(self) -> bool:
        """Whether any row is a whole network, whose speed is also told in images per second."""
        return any(row.traits.role == "network" for row in self.rows)

    @cached_property
    def probes(self) -> tuple[Row, ...]:
        """What was measured beside the suite's cases, to bracket crossovers; held against no baseline."""
        by_case: dict[str, list[Record]] = {}
        own = {row.id for row in self.rows}
        for record in self.run.probes:
            if record.id not in own:
                by_case.setdefault(record.id, []).append(record)
        return tuple(_row(records, self.regime, Cells(records), None, self.names) for records in by_case.values())

    @cached_property
    def fleet(self) -> Fleet:
        """The devices that measured it, where there are several."""
        return fleet(self.run)

    @property
    def baseline(self) -> str:
        """The baseline's name."""
        return self.names.shown(self.run.manifest.suite.baseline)

    @property
    def rounds(self) -> int:
        """Rounds that were planned."""
        return self.run.manifest.rounds

    @cached_property
    def round_counts(self) -> tuple[int, int]:
        """The least and the most rounds that any row's main latency is known in; else those planned."""
        cells = [row.cells.get(self.metrics[0].key) for row in self.rows]
        counts = [len(cell.rounds) for cell in cells if cell] or [self.rounds]
        return min(counts), max(counts)

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
        return tuple(
            regime for regime in REGIME_ORDER if any(f"latency_{regime}" in row.cells for row in self.rows)
        )

    @cached_property
    def families(self) -> tuple[str, ...]:
        """Operator families in order of appearance."""
        return tuple(dict.fromkeys(row.kin for row in self.rows))

    @cached_property
    def statuses(self) -> Mapping[str, int]:
        """Rows by what became of them; a row with several statuses counts under each."""
        return Counter(status for row in self.rows for status in row.statuses)


def gather(run: Run) -> Digest:
    """Digest a run. Time and memory are linear in its records.

    Raises:
        FingerprintsDiffer: where its nodes are unlike: each kind of them has a digest of its own.
    """
    regime = main_regime(of_one_machine(run).records)
    by_case: dict[str, list[Record]] = {}
    for record in run.records:
        by_case.setdefault(record.id, []).append(record)
    order = {case: place for place, case in enumerate(run.manifest.suite.cases)}
    names = _names(run)
    groups: dict[tuple[Problem, Execution], list[list[Record]]] = {}
    for id_ in sorted(by_case, key=lambda id_: order.get(id_, len(order))):
        case = by_case[id_][0].case
        groups.setdefault((case.problem, case.execution), []).append(by_case[id_])
    return Digest(
        run=run,
        name=clean(run.name),
        regime=regime,
        groups=tuple(
            _group(run, problem, execution, cases, regime, names) for (problem, execution), cases in groups.items()
        ),
        missing=max(len(order) * run.manifest.rounds - len(run.records), 0),
        names=names,
    )


def _group(
    run: Run,
    problem: Problem,
    execution: Execution,
    cases: Sequence[Sequence[Record]],
    regime: Regime,
    names: Names,
) -> Group:
    base = next((records for records in cases if run.is_baseline(records[0])), None)
    base_cells = None if base is None else Cells(base)
    rows = [
        _row(records, regime, Cells(records, base_cells), None if base is None else base[0].traits, names)
        for records in cases
    ]
    ranked = (*headline(regime), REGISTRY["bytes_own"])
    return Group(
        problem=problem,
        execution=execution,
        rows=tuple(rows),
        baseline=None if base is None else next(row for row in rows if row.id == base[0].id),
        winners={metric.key: winner for metric in ranked if (winner := _winner(rows, metric.key))},
    )


def _row(records: Sequence[Record], regime: Regime, cells: Cells, base: Traits | None, names: Names) -> Row:
    measured = [record for record in records if record.status == "ok"]
    best = measured[0] if measured else records[0]
    choices = Counter(words for record in measured if (words := in_words(record.chosen)))
    usual = next((words for words, _ in choices.most_common(1)), None)
    reasons: dict[str, str] = {}
    for record in records:
        if record.status != "ok":
            reasons.setdefault(record.status, clean(record.reason or "no reason was given", 300))
    worst, exact = (_worst(records, key) for key in ("error_gradient_l2", "error_gradient_exact"))
    traits = best.traits
    return Row(
        case=best.case,
        id=best.id,
        attributes=attributes(best),
        traits=traits,
        label=names.labels[traits.label],
        without_kernel=names.without_kernel[_bare(best)],
        cells=cells,
        statuses=Counter(record.status for record in records),
        reasons=reasons,
        flags=Counter(clean(flag, 40) for record in measured for flag in _flags(record, regime)),
        choices={clean(words, 60): number for words, number in choices.most_common()},
        cost=next((r.cost for r in records if r.cost and usual in (None, in_words(r.chosen))), None),
        gradient=worst.gradient.name if worst and worst.gradient else None,
        exact_gradient=exact.exact_gradient.name if exact and exact.exact_gradient else None,
        gradients_left_out=next(
            (r.numerics.gradients_left_out for r in records if r.numerics and r.numerics.gradients_left_out), None
        ),
        like_baseline=base is None or (traits.equivalence, traits.boundary) == (base.equivalence, base.boundary),
    )


def _worst(records: Iterable[Record], key: str) -> Numerics | None:
    """The numerics of the round whose error is the largest."""
    errors = [
        (value, record.numerics)
        for record in records
        if not isinstance(value := round_value(record, REGISTRY[key]), Reason)
    ]
    return max(errors, key=lambda error: error[0])[1] if errors else None


def _flags(record: Record, regime: Regime) -> set[str]:
    """What is wrong with a round's main series, and with the machine around it."""
    series = record.latency.get(regime)
    throttled = ["throttled"] if record.machine and record.machine.throttle else []
    return {*(series.flags if series else ()), *throttled}


def _winner(rows: Iterable[Row], key: str) -> Winner | None:
    """The row of least value among those measured, and those whose ratio to it does not exclude 1.

    What is counted may be nothing, of which there is no ratio: it is compared as it is.
    """
    having = [row for row in rows if row.ok and key in row.cells]
    if len(having) < 2:
        return None
    best = min(having, key=lambda row: row.cells[key].estimate)
    others = [row for row in having if row.id != best.id]
    if best.cells[key].counted:
        most = max(best.cells[key].rounds.values())
        return Winner(
            best, tuple(row for row in others if min(row.cells[key].rounds.values()) <= most), certain=True
        )
    ratios = [(row, compare(best.cells[key], row.cells[key])) for row in others]
    tied = tuple(row for row, ratio in ratios if ratio.low is not None and not ratio.excludes(1.0))
    return Winner(best, tied, certain=all(ratio.low is not None for _, ratio in ratios))


def achieved(row: Row, digest: Digest) -> tuple[float, float] | None:
    """FLOP/s and bytes/s of the form's own traffic, or None where latency or cost is unknown."""
    latency = row.value(f"latency_{digest.regime}")
    if not latency or row.cost is None or row.cost.bytes_own is None:
        return None
    return row.cost.flops / latency, row.cost.bytes_own / latency


def over_floor(row: Row, digest: Digest) -> float | None:
    """Latency over the least time of its FLOPs and least traffic at this machine's measured rates.

    Traffic takes as long as a copy of as many bytes, which a cache may hold; ``cold``, as long as from memory.
    Of a padded kernel only what meets the image is work. None where others were busy while the rates were taken:
    these are then theirs as much as the machine's.
    """
    ceilings = digest.ceilings
    latency = row.value(f"latency_{digest.regime}")
    if not latency or row.cost is None or ceilings is None or is_busy(ceilings.others):
        return None
    try:
        peak = ceiling(ceilings.matmul, row.case.problem.precision)
    except KeyError:
        return None
    traffic = row.cost.bytes_floor
    rate = ceilings.copy_bandwidth if digest.regime == "cold" else bandwidth(ceilings, traffic)
    taps = row.value("taps_share")
    floor = floor_time(row.cost.flops * (1.0 if taps is None else taps), traffic, peak, rate)
    return latency / floor if floor else None
