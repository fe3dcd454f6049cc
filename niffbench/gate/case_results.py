"""What a run found of each case, as a comparison needs it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TypedDict, Unpack

from niffbench.case import Case, Execution, Problem
from niffbench.gate.findings import Finding, Verdict
from niffbench.results import REGISTRY, Manifest, Member, Metric, Reason, Record, Run, round_value
from niffbench.suite import Selection


def quantities() -> tuple[str, ...]:
    """Every name a finding's quantity can have: coverage, and each metric that is judged."""
    judged = [metric for metric in REGISTRY.values() if metric.gate is not None]
    return (
        "coverage",
        *(metric.key for metric in judged),
        *(ratio_name(metric) for metric in judged if metric.gate == "test"),
        *(shared_name(ratio_name(metric)) for metric in judged if metric.gate == "test"),
    )


def ratio_name(metric: Metric) -> str:
    """The quantity of a metric over that of the baseline operator in the same round: ``ratio_steady``."""
    return f"ratio_{metric.regime or metric.key}"


def shared_name(quantity: str) -> str:
    """What all cases share of a latency or its ratio: ``shared_steady``."""
    return f"shared_{quantity.partition('_')[2]}"


def kind_of_device(manifest: Manifest) -> str:
    """On what a run was measured: ``cpu``, ``cuda``."""
    return manifest.device.partition(":")[0]


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
    run: str
    could_show: float | None


@dataclass(frozen=True)
class RoundValues:
    """A metric's values by round, and why rounds that ran are left out; of a fleet, whose each round is."""

    values: Mapping[int, float]
    left_out: tuple[str, ...]
    members: Mapping[int, Member] = field(default_factory=dict)

    @property
    def attempted(self) -> bool:
        """Whether it was measured at all, usable or not."""
        return bool(self.values or self.left_out)


@dataclass(frozen=True)
class CaseResults:
    """What a run found of one case: its records by round.

    Attributes:
        run: all else that it found.
    """

    records: Mapping[int, Record]
    run: RunCases = field(repr=False, compare=False)

    @cached_property
    def any(self) -> Record:
        """A record that stands for what all rounds share: case and traits."""
        return next(iter(self.records.values()))

    @property
    def case(self) -> Case:
        """The case."""
        return self.any.case

    @property
    def id(self) -> str:
        """Of the case."""
        return self.any.id

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

    def values(self, metric: Metric) -> RoundValues:
        """The values of a metric in the rounds that measured the case."""
        if metric.key not in self._values:
            self._values[metric.key] = self._read(metric)
        return self._values[metric.key]

    @cached_property
    def _values(self) -> dict[str, RoundValues]:
        return {}

    def _read(self, metric: Metric) -> RoundValues:
        values: dict[int, float] = {}
        left_out: list[str] = []
        for record in self.ok:
            value = round_value(record, metric)
            if not isinstance(value, Reason):
                values[record.round] = value
            elif value.tried:
                left_out.append(f"round {record.round} {value.words}")
        members = {record.round: member for record in self.ok if (member := record.member)}
        return RoundValues(values, tuple(left_out), members)

    def ratios(self, metric: Metric) -> RoundValues | None:
        """A metric over that of the baseline operator, round by round; None without one, and for itself."""
        baseline = self.run.baseline_of(self.case)
        if baseline is None or baseline is self:
            return None
        own, other = self.values(metric), baseline.values(metric)
        return RoundValues(
            {number: own.values[number] / other.values[number] for number in own.values if number in other.values},
            own.left_out + tuple(f"{text} (baseline)" for text in other.left_out),
            own.members,
        )

    def finding(self, quantity: str, verdict: Verdict, reason: str, **numbers: Unpack[Numbers]) -> Finding:
        """A verdict on one of this case's quantities."""
        return Finding(
            case=self.id,
            label=self.label,
            problem=self.problem,
            quantity=quantity,
            verdict=verdict,
            reason=reason,
            **numbers,
        )


class RunCases(Mapping[str, CaseResults]):
    """A run by case id, in the suite's order.

    Args:
        selection: the filters of ``--only``.
        baseline: the label of the operator that ratios are to, left out that of the run's own suite.
    """

    def __init__(self, run: Run, selection: Selection, baseline: str | None = None) -> None:
        grouped: dict[str, dict[int, Record]] = {}
        for record in run.records:
            grouped.setdefault(record.id, {})[record.round] = record
        order = [*run.manifest.suite.cases, *sorted(grouped)]
        self.run, self._baseline = run, baseline
        self._all = {id_: CaseResults(grouped[id_], self) for id_ in dict.fromkeys(order) if id_ in grouped}
        self._selected = {id_: one for id_, one in self._all.items() if selection.takes(one.case, one.label)}

    def __getitem__(self, id_: str) -> CaseResults:
        return self._selected[id_]

    def __iter__(self) -> Iterator[str]:
        return iter(self._selected)

    def __len__(self) -> int:
        return len(self._selected)

    @property
    def measured(self) -> bool:
        """Whether any case was measured at all."""
        return any(results.ok for results in self._selected.values())

    @property
    def rounds(self) -> dict[tuple[str, str], int]:
        """In how many rounds each case has a value of each metric that is judged, and of its ratio."""
        rounds = {}
        for id_, results in self.items():
            for metric in REGISTRY.values():
                if metric.gate is not None and (values := results.values(metric).values):
                    rounds[id_, metric.key] = len(values)
                    if metric.gate == "test" and (ratios := results.ratios(metric)):
                        rounds[id_, ratio_name(metric)] = len(ratios.values)
        return rounds

    def absence(self, id_: str) -> str:
        """Why this run has nothing of a case the other run has."""
        manifest = self.run.manifest
        if id_ not in manifest.suite.cases:
            return "is no longer a case of the suite"
        return "was not reached: the run was interrupted" if manifest.finished is None else "has no record"

    def baseline_of(self, case: Case) -> CaseResults | None:
        """The baseline operator on the same problem, executed alike, whether selected or not; None without one."""
        return self._baselines.get((case.problem, case.execution))

    @cached_property
    def _baselines(self) -> dict[tuple[Problem, Execution], CaseResults]:
        baselines: dict[tuple[Problem, Execution], CaseResults] = {}
        for results in self._all.values():
            if self.run.is_baseline(results.any, self._baseline):
                baselines.setdefault((results.case.problem, results.case.execution), results)
        return baselines


class EarlierCases(Mapping[str, CaseResults]):
    """What HEAD is compared with: of each case, and of each of its metrics, the first usable result of some runs.

    Runs are added in the order in which they are asked, the newest first for BASE, until every case of ``head``
    has what can be compared, so a long history costs no more than what is used of it.

    Args:
        oldest_first: they are an accepted level, for which every case and metric counts that was ever kept.
        fewest: the rounds that a noisy metric needs to be judged; fewer serve where no run has so many.
        ratios: noisy metrics are judged as ratios to the baseline operator.
    """

    def __init__(
        self,
        head: RunCases,
        tested: Sequence[Metric],
        fewest: int,
        *,
        oldest_first: bool = False,
        ratios: bool = False,
    ) -> None:
        self._head, self._fewest, self._oldest_first, self.ratios = head, fewest, oldest_first, ratios
        self._results: dict[str, list[CaseResults]] = {}
        self.manifests: list[Manifest] = []
        self._complete = False
        exact = [metric for metric in REGISTRY.values() if metric.gate in ("exact", "tolerance")]
        self._wanted = {
            id_: {m.key: m for m in (*exact, *tested) if oldest_first or self._values(results, m)}
            for id_, results in head.items()
        }

    def add(self, run: RunCases) -> bool:
        """Take what is wanted of one more run; returns whether more are wanted."""
        manifest = run.run.manifest
        self.manifests.append(manifest)
        for id_, results in run.items():
            # Only what the newest complete run of the suite has, or a narrowed one since, is missed in HEAD.
            if id_ in self._head or not self._complete:
                self._add(id_, results, self._wanted.get(id_, {}))
        self._complete = not self._oldest_first and (
            self._complete or not (manifest.suite.narrowed or manifest.finished is None)
        )
        return not self._complete or any(self._wanted.values()) or not all(map(self._served, self._head))

    def _add(self, id_: str, results: CaseResults, wanted: dict[str, Metric]) -> None:
        before = self._results.setdefault(id_, [])
        new = {key for key, metric in wanted.items() if self._enough(results, metric)}
        some = any(
            self._values(results, m) and not any(self._values(b, m) for b in before) for m in wanted.values()
        )
        if new or some or not before or (results.ok and not self._served(id_)):
            before.append(results)
        for key in new:
            del wanted[key]

    def _served(self, id_: str) -> bool:
        return any(results.ok for results in self._results.get(id_, ()))

    def judged(self, results: CaseResults, metric: Metric) -> RoundValues | None:
        """What is judged of a metric: its values, or its ratios; None where there can be none."""
        return results.ratios(metric) if self.ratios and metric.gate == "test" else results.values(metric)

    def _values(self, results: CaseResults, metric: Metric) -> Mapping[int, float]:
        judged = self.judged(results, metric)
        return judged.values if judged else {}

    def _enough(self, results: CaseResults, metric: Metric) -> bool:
        return len(self._values(results, metric)) >= (self._fewest if metric.gate == "test" else 1)

    def __getitem__(self, id_: str) -> CaseResults:
        """The first that measured the case; where none did, the first that tried."""
        results = self._results[id_]
        return next((one for one in results if one.ok), results[0])

    def __iter__(self) -> Iterator[str]:
        return iter(self._results)

    def __len__(self) -> int:
        return len(self._results)

    def serving(self, id_: str, metric: Metric) -> CaseResults:
        """The first result with enough usable rounds of a metric, else with any, else that of the case."""
        results = self._results[id_]
        enough = (one for one in results if self._enough(one, metric))
        some = (one for one in results if self._values(one, metric))
        return next(enough, None) or next(some, None) or self[id_]

    def lacks(self, id_: str) -> bool:
        """Whether a case was not in the suite before: it is new, and no result of it has been lost."""
        if all(manifest.suite.narrowed for manifest in self.manifests):  # so that the whole suite is not known
            return False
        return not any(id_ in manifest.suite.cases for manifest in self.manifests)

    @property
    def measured(self) -> bool:
        """Whether any case was measured at all."""
        return any(results.ok for several in self._results.values() for results in several)
