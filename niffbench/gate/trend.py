"""Trends: the latency of a case over the runs of a history, and where its level changed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import nan
from statistics import median

from niffbench.errors import UsageError, did_you_mean
from niffbench.gate.case_results import CaseResults, RunCases
from niffbench.gate.findings import Step
from niffbench.gate.rules import Rules
from niffbench.results import Metric, Run
from niffbench.stats.changepoints import History, change_points
from niffbench.suite import Selection


@dataclass(frozen=True)
class Point:
    """One run of a history: when, of which commit, and its round medians in seconds (none where it failed)."""

    started: str
    commit: str | None
    medians: tuple[float, ...]

    @property
    def level(self) -> float:
        """The median of the round medians; NaN without any."""
        return median(self.medians) if self.medians else nan


@dataclass(frozen=True)
class Trend:
    """One latency of one case over all runs, oldest first, cut into levels.

    A change is called at :class:`Rules`' alpha, divided by the number of trends looked at together.
    """

    results: CaseResults
    quantity: str
    points: tuple[Point, ...]
    history: History

    def steps(self) -> tuple[Step, ...]:
        """The changes of level, oldest first. The culprit is after ``since`` and up to ``commit``."""
        return tuple(
            Step(
                case=self.results.any.id,
                label=self.results.label,
                problem=self.results.problem,
                quantity=self.quantity,
                started=self.points[change.run].started,
                since=self.points[change.run - 1].commit,
                commit=self.points[change.run].commit,
                ratio=change.ratio.estimate,
                low=change.ratio.low,
                high=change.ratio.high,
            )
            for change in self.history.changes
        )


def trends(runs: Sequence[Run], rules: Rules, only: Sequence[str] = ()) -> tuple[Trend, ...]:
    """The trends of every case of the newest run, in its order.

    Raises UsageError when ``only`` leaves no case.
    """
    selection = Selection(only)
    cases = [RunCases(run, selection) for run in runs]
    newest = cases[-1]
    if not newest:
        labels = {record.traits.label for record in runs[-1].records}
        raise UsageError(f"no case of the newest run is '{' '.join(only)}'{did_you_mean(only[0], labels)}")
    wanted = [(id_, metric) for id_ in newest for metric in rules.tested if _measured(cases, id_, metric)]
    return tuple(_trend(cases, id_, metric, rules, len(wanted)) for id_, metric in wanted)


def _measured(cases: Sequence[RunCases], id_: str, metric: Metric) -> bool:
    return any(id_ in run and run[id_].values(metric).values for run in cases)


def _trend(cases: Sequence[RunCases], id_: str, metric: Metric, rules: Rules, together: int) -> Trend:
    results = cases[-1][id_]
    points = tuple(
        Point(
            of_run.run.manifest.started,
            of_run.run.manifest.commit,
            tuple(of_run[id_].values(metric).values.values()) if id_ in of_run else (),
        )
        for of_run in cases
    )
    least = rules.min_effect_of(results.case, results.label, metric.key)
    levels = [point.level for point in points]
    return Trend(
        results, metric.key, points, change_points(levels, alpha=rules.alpha / together, min_effect=least)
    )
