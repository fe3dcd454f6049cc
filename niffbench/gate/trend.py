"""Trends: a metric of a case over the runs of a history, and where its level changed."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from math import inf, isfinite, nan
from statistics import median

from niffbench.errors import UsageError, did_you_mean
from niffbench.gate.case_results import CaseResults, RunCases
from niffbench.gate.findings import Step
from niffbench.gate.rules import Accepted, Rules
from niffbench.results import REGISTRY, Metric, Run
from niffbench.stats.changepoints import History, change_points
from niffbench.suite import Selection


@dataclass(frozen=True)
class Point:
    """One run of a history: when, of which commit, and each round's value (none where it failed)."""

    started: str
    commit: str | None
    values: tuple[float, ...]

    @cached_property
    def level(self) -> float:
        """The median of the rounds; NaN without any."""
        if len(self.values) == 1:  # what is the same in every round is remembered once
            return self.values[0]
        return median(self.values) if self.values else nan


@dataclass(frozen=True)
class Trend:
    """One metric of one case over all runs, oldest first, cut into levels.

    A change is called at :class:`Rules`' alpha, divided by the number of trends looked at together, and from the
    least change that counts of that metric on.
    """

    results: CaseResults
    metric: Metric
    points: tuple[Point, ...]
    history: History
    least: float

    def steps(self) -> tuple[Step, ...]:
        """The changes of level, oldest first. The culprit is after ``since`` and up to ``commit``."""
        segments = self.history.segments
        return tuple(
            Step(
                case=self.results.any.id,
                label=self.results.label,
                problem=self.results.problem,
                quantity=self.metric.key,
                started=self.points[change.run].started,
                since=self.points[change.run - 1].commit,
                commit=self.points[change.run].commit,
                ratio=change.ratio.estimate,
                low=change.ratio.low,
                high=change.ratio.high,
                open=segments[-1].level > before.level * (1 + self.least) and after.level > before.level,
            )
            for change, before, after in zip(self.history.changes, segments, segments[1:], strict=False)
        )

    def beyond(self, accepted: Accepted) -> float | None:
        """The newest level over the first, which is the accepted one; None while it is not beyond that."""
        levels = self._levels
        if not levels or levels[-1] <= levels[0] * (1 + self.least):
            return None
        first, last = levels[0], levels[-1]
        for one in reversed(accepted.changes):
            if one.fits(self.results.case, self.results.label, self.metric.key):
                if not accepted.is_over(one.change.until) and one.covers(last, first):
                    return None
                break
        return last / first if first else inf

    @property
    def is_undecided(self) -> bool:
        """Whether there are too few runs to tell if its level changed."""
        return not self._levels

    @cached_property
    def _levels(self) -> list[float]:
        """The levels in turn; where too few runs tell of noise, each run's of what has none."""
        if self.history.segments or not (self.metric.exact or self.metric.gate == "tolerance"):
            return [segment.level for segment in self.history.segments]
        return [point.level for point in self.points if isfinite(point.level)]


def followed(rules: Rules) -> tuple[Metric, ...]:
    """The metrics that have trends: all of which less is better, latencies in the regimes that are judged."""
    return tuple(
        metric
        for metric in REGISTRY.values()
        if metric.better == "lower" and (metric.regime is None or metric.regime in rules.regimes)
    )


def of_case(trends: Sequence[Trend], case: str) -> Trend:
    """The first trend of the case that ``case`` means, as ``--only`` does.

    Raises:
        UsageError: without one.
    """
    takes = Selection([case])
    for trend in trends:
        if takes.takes(trend.results.case, trend.results.label):
            return trend
    raise UsageError(
        f"no case of the newest run is '{case}'{did_you_mean(case, {t.results.label for t in trends})}"
    )


Values = Mapping[str, Mapping[str, Sequence[float]]]
"""What a run measured: each round's value, by case and metric; without those that have none."""


def values_of(run_cases: RunCases, rules: Rules) -> Values:
    """The values of all metrics that have trends."""
    values: dict[str, dict[str, Sequence[float]]] = {}
    for id_, results in run_cases.items():
        for metric in followed(rules):
            if rounds := tuple(results.values(metric).values.values()):
                values.setdefault(id_, {})[metric.key] = rounds
    return values


def trends(runs: Iterable[Run], rules: Rules) -> tuple[Trend, ...]:
    """The trends of every case of the newest run, in its order; each run is let go once its values are read.

    Raises:
        ValueError: without a run.
    """
    moments: list[tuple[str, str | None]] = []
    values: list[Values] = []
    newest: RunCases | None = None
    for run in runs:
        newest = RunCases(run, Selection(()))
        moments.append((run.manifest.started, run.manifest.commit))
        values.append(values_of(newest, rules))
    if newest is None:
        raise ValueError("a trend needs a run")
    return of_values(newest, moments, values, rules)


def of_values(
    newest: RunCases, moments: Sequence[tuple[str, str | None]], values: Sequence[Values], rules: Rules
) -> tuple[Trend, ...]:
    """The trends of every case of ``newest``; of each run its start and commit, and its values, oldest first."""
    measured = {(id_, key) for run in values for id_, metrics in run.items() for key in metrics}
    wanted = [(id_, metric) for id_ in newest for metric in followed(rules) if (id_, metric.key) in measured]
    trends = []
    for id_, metric in wanted:
        results = newest[id_]
        points = tuple(
            Point(started, commit, tuple(run.get(id_, {}).get(metric.key, ())))
            for (started, commit), run in zip(moments, values, strict=True)
        )
        least = rules.least_change(results.case, results.label, metric)
        levels = [point.level for point in points]
        if metric.unit in ("B", "FLOP", "count") and 0 in levels:  # of nothing there is no logarithm
            levels = [level + 1 for level in levels]
        cut = change_points(levels, alpha=rules.alpha / len(wanted), min_effect=least)
        trends.append(Trend(results, metric, points, cut, least))
    return tuple(trends)
