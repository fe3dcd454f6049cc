"""Trends: a metric of a case over the runs of a history, and where its level changed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from math import inf, isfinite, nan
from statistics import median

from niffbench.errors import NothingMeasured, UsageError, did_you_mean
from niffbench.gate.case_results import CaseResults, RunCases
from niffbench.gate.findings import Step
from niffbench.gate.rules import Accepted, Rules
from niffbench.results import REGISTRY, Metric, Reason, Run, round_value
from niffbench.stats.changepoints import History, change_points
from niffbench.suite import Selection


@dataclass(frozen=True)
class Moment:
    """One run of a history: when it began, and of which commit it is."""

    started: str
    commit: str | None


@dataclass(frozen=True)
class Trend:
    """One metric of one case over all runs, oldest first, cut into levels.

    A change is called at :class:`Rules`' alpha, divided by the number of trends looked at together, and from the
    least change that counts of that metric on.

    Attributes:
        rounds: of each run the values of its rounds, or one where all are alike; none where it failed.
        runs: when each run was.
        values: the median of each run's rounds; NaN without any.
    """

    results: CaseResults
    metric: Metric
    runs: Sequence[Moment]
    rounds: Sequence[Sequence[float]]
    values: Sequence[float]
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
                started=self.runs[change.run].started,
                since=self.runs[change.run - 1].commit,
                commit=self.runs[change.run].commit,
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
                if not accepted.is_over(one.change.until) and one.change.covers(last, first):
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
        return [value for value in self.values if isfinite(value)]


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


def values_of(run: Run, metrics: Sequence[Metric]) -> Values:
    """The values of ``metrics`` in the rounds that measured a case."""
    values: dict[str, dict[str, list[float]]] = {}
    for record in run.records:
        if record.status == "ok":
            of_case = values.setdefault(record.id, {})
            for metric in metrics:
                if not isinstance(value := round_value(record, metric), Reason):
                    of_case.setdefault(metric.key, []).append(value)
    return values


class Collected:
    """The values of ``runs`` that are shown one after the other, oldest first; each can be let go then."""

    def __init__(self, rules: Rules) -> None:
        self._rules, self._metrics = rules, followed(rules)
        self.runs: list[Moment] = []
        self._values: list[Values] = []
        self._newest: Run | None = None

    def add(self, run: Run) -> None:
        """Take the values of one more run."""
        self._newest = run
        self.runs.append(Moment(run.manifest.started, run.manifest.commit))
        self._values.append(values_of(run, self._metrics))

    @property
    def newest(self) -> Run:
        """The run that was shown last.

        Raises:
            NothingMeasured: without any.
        """
        if self._newest is None:
            raise NothingMeasured("no run of the history can be read")
        return self._newest

    def trends(self) -> tuple[Trend, ...]:
        """The trends of every case of the newest run, in its order."""
        return of_values(RunCases(self.newest, Selection(())), self.runs, self._values, self._rules)


def of_values(
    newest: RunCases, runs: Sequence[Moment], values: Sequence[Values], rules: Rules
) -> tuple[Trend, ...]:
    """The trends of every case of ``newest``; of each run its moment and its values, oldest first."""
    measured = {(id_, key) for run in values for id_, metrics in run.items() for key in metrics}
    wanted = [(id_, metric) for id_ in newest for metric in followed(rules) if (id_, metric.key) in measured]
    nothing: Mapping[str, Sequence[float]] = {}
    trends = []
    for id_, metric in wanted:
        results = newest[id_]
        rounds = [run.get(id_, nothing).get(metric.key, ()) for run in values]
        levels = [one[0] if len(one) == 1 else median(one) if one else nan for one in rounds]
        least = rules.least_change(results.case, results.label, metric)
        # Of nothing there is no logarithm.
        shift = metric.unit in ("B", "FLOP", "count") and 0 in levels
        cut = change_points(
            [level + 1 for level in levels] if shift else levels, alpha=rules.alpha / len(wanted), min_effect=least
        )
        trends.append(Trend(results, metric, runs, rounds, levels, cut, least))
    return tuple(trends)
