"""Refining: what to measure between a suite's values, for crossovers to lie between neighbours."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache

from niffbench.case import Case
from niffbench.operators.base import Operator
from niffbench.results import (
    REGIME_ORDER,
    REGISTRY,
    Member,
    Metric,
    Reason,
    Record,
    Run,
    key_of,
    main_regime,
    round_value,
)
from niffbench.results.clock import Timed, coarse, relative_step
from niffbench.stats.crossovers import Comparison, Point, compare, lattice, wanted
from niffbench.stats.fleet import replicates
from niffbench.suite import (
    PAIR_AXES,
    Axis,
    Pair,
    Quantity,
    Refine,
    Regime,
    Suite,
    curve,
    fixed,
    pairs,
    position,
    side_of,
)

MOST_SILENT = 3
"""Rounds that may tell nothing of a value (a stuck timer, a throttled card) before it is given up."""


@dataclass
class _Place:
    """One case of a curve: whose its rounds are, its value of each quantity by round, and whether any failed.

    Attributes:
        coarse: the series of its latency that the clock's step is large for.
    """

    members: dict[int, Member | None] = field(default_factory=dict)
    values: dict[Quantity, dict[int, float]] = field(default_factory=dict)
    coarse: list[Timed] = field(default_factory=list)
    failed: bool = False

    def of(self, quantity: Quantity) -> dict[int, float]:
        """The values of one quantity, by round."""
        return self.values.setdefault(quantity, {})


class Measured:
    """What records say of the curves along an axis, in the quantities in which orders may change."""

    def __init__(self, axis: Axis, regime: Regime) -> None:
        self._axis = axis
        self.metrics: dict[Quantity, Metric] = {
            "flops": REGISTRY["flops"],
            "memory": REGISTRY[key_of("memory", regime)],
            "latency": REGISTRY[key_of("latency", regime)],
        }
        self._places: dict[tuple[object, ...], dict[float | None, _Place]] = {}

    def add(self, record: Record) -> None:
        """Take over what a record says."""
        place = self._curve(record.case).setdefault(position(record.case, self._axis), _Place())
        place.members[record.round] = record.member
        if record.status == "ok":
            place.coarse += coarse([record], self.metrics["latency"])
        place.failed |= record.status != "ok"
        for quantity, metric in self.metrics.items():
            if not isinstance(value := round_value(record, metric), Reason):
                place.of(quantity)[record.round] = value

    def points(self, pair: Pair, quantity: Quantity, *, by_member: bool = False) -> list[Point]:
        """The values of the axis that both have, measured or not; ``by_member``: a fleet's stand for rounds."""
        points: list[Point] = []
        for at, form, rival in self._both(pair):
            flops = form.of("flops"), rival.of("flops")
            theory = (max(flops[0].values()), max(flops[1].values())) if all(flops) else None
            one, other = form.of(quantity), rival.of(quantity)
            if by_member:
                one, other = replicates([one, other], [form.members, rival.members])
            step = relative_step([*form.coarse, *rival.coarse]) if quantity == "latency" else 0.0
            points.append(Point(at, one, other, theory, step))
        return points

    def barred(self, pair: Pair) -> set[float]:
        """The values at which there is nothing to be had: a side fails, or says nothing in several rounds."""
        barred: set[float] = set()
        for at, form, rival in self._both(pair):
            silent = (form.members.keys() & rival.members.keys()) - (
                form.of("latency").keys() & rival.of("latency").keys()
            )
            if form.failed or rival.failed or len(silent) >= MOST_SILENT:
                barred.add(at)
        return barred

    def _both(self, pair: Pair) -> Iterator[tuple[float, _Place, _Place]]:
        forms, rivals = self._curve(pair.form), self._curve(pair.rival)
        for at, rival in rivals.items():
            form = forms.get(at, forms.get(None))
            if at is not None and form is not None:
                yield at, form, rival

    def _curve(self, case: Case) -> dict[float | None, _Place]:
        return self._places.setdefault((fixed(case, self._axis), *curve(case, self._axis)), {})


class Refinement:
    """The crossovers of a suite that are to be bracketed, and what to measure for it. It is told every record."""

    def __init__(self, suite: Suite, refine: Refine, operators: Mapping[str, Operator]) -> None:
        self.refine = refine
        self._suite = suite
        self._operators = operators
        self._pairs = pairs(suite.cases, refine.axis, lambda case: side_of(operators[case.operator]))
        asked = suite.measure.regimes
        self._measured = Measured(refine.axis, next((one for one in REGIME_ORDER if one in asked), "steady"))
        self.failures = 0

    def add(self, record: Record) -> None:
        """Take over what a record says."""
        self.failures += record.status != "ok"
        self._measured.add(record)

    def wanted(self, most: int | None = None) -> dict[Case, int]:
        """Which cases to measure next, and in how many more rounds; nothing when all is known that can be.

        FLOPs need no measuring. With ``most`` there are about so many cases at once: pairs wait for those before.
        """
        cases: dict[Case, int] = {}
        for pair in self._pairs:
            more = self._of_pair(pair)
            if cases and most is not None and len(cases.keys() | more.keys()) > most:
                continue
            for case, rounds in more.items():
                cases[case] = max(rounds, cases.get(case, 0))
        return cases

    @property
    def unfinished(self) -> int:
        """How many pairs have a crossover that could be bracketed more closely."""
        return sum(bool(self._of_pair(pair)) for pair in self._pairs)

    def _of_pair(self, pair: Pair) -> dict[Case, int]:
        barred = self._measured.barred(pair)
        admissible = [
            at
            for at in lattice(pair.axis, pair.values)
            if at not in barred
            and all(self._suite.refusal(case, self._operators[case.operator]) is None for case in pair.at(at))
        ]
        cases: dict[Case, int] = {}
        for quantity in self.refine.quantities:
            if quantity == "flops":
                continue
            points = [point for point in self._measured.points(pair, quantity) if point.at not in barred]
            shared = {point.at: len(point.shared) for point in points}
            more = wanted(points, admissible, exact=quantity == "memory", confidence=self.refine.confidence)
            for at, rounds in more.items():
                for case in pair.at(at):
                    cases[case] = max(rounds - shared.get(at, 0), cases.get(case, 0))
        return cases


@dataclass(frozen=True)
class Compared:
    """A form and a rival along an axis in one quantity, as all records of a run show them.

    Attributes:
        probes: at how many values they were measured beside the suite's.
    """

    pair: Pair
    quantity: Quantity
    metric: Metric
    comparison: Comparison
    probes: int


def comparisons(run: Run, operators: Mapping[str, Operator]) -> list[Compared]:
    """Every form with every rival along every axis that both vary in.

    FLOPs are compared at every admissible value, by closed forms where nothing was measured: none is needed. One
    that the counters contradicted anywhere says nothing.
    """
    cases = {record.case: record for record in run.records}
    doubtful = {record.case.operator for record in run.records if record.cost and record.cost.is_contradicted}
    refine, regime = run.manifest.settings.refine, main_regime(run.records)
    confidence = 0.95 if refine is None else refine.confidence
    every: list[Compared] = []

    @cache
    def flops(case: Case) -> int | None:
        operator = None if case.operator in doubtful else operators.get(case.operator)
        try:
            cost = None if operator is None or operator.refusal(case) else operator.cost(case)
        except LookupError:  # a record of another version's, or a stranger's, lacks an option
            return None
        return None if cost is None else cost.flops()

    for axis in PAIR_AXES:
        measured = Measured(axis, regime)
        for record in (*run.records, *run.probes):
            measured.add(record)
        for pair in pairs(cases, axis, lambda case: side_of(cases[case].traits)):
            admissible = lattice(axis, pair.values)
            for quantity, metric in measured.metrics.items():
                points = measured.points(pair, quantity, by_member=True)
                probes = len({point.at for point in points} - set(pair.values))
                if quantity == "flops":
                    points += _closed(pair, points, admissible, flops)
                comparison = compare(points, admissible, exact=quantity != "latency", confidence=confidence)
                every.append(Compared(pair, quantity, metric, comparison, probes))
    return every


def _closed(
    pair: Pair, points: Sequence[Point], admissible: Sequence[float], flops: Callable[[Case], int | None]
) -> list[Point]:
    """The FLOPs of both where nothing was measured; a form that is one case has the recorded ones."""
    recorded = next((point.form for point in points if point.form), {})
    measured = {point.at for point in points}
    more: list[Point] = []
    for at in admissible:
        if at not in measured:
            form_case, rival_case = pair.at(at)
            form = recorded if form_case == pair.form else _of_round(flops(form_case))
            rival = _of_round(flops(rival_case))
            if form and rival:
                more.append(Point(at, form, rival))
    return more


def _of_round(count: int | None) -> dict[int, float]:
    return {} if count is None else {0: count}
