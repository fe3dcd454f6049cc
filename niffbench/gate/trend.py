"""Trends: a metric of a case over the runs of a history, and where its level changed.

As when two runs are compared, what the controls of a suite share in a run is taken out of its latencies, and is a
trend of its own: a machine that got slower is one step and not one of every case.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from math import inf, isfinite, nan
from statistics import median

import numpy as np

from niffbench.errors import NothingMeasured, UsageError, did_you_mean
from niffbench.gate.case_results import CaseResults, RunCases, shared_name
from niffbench.gate.findings import Step
from niffbench.gate.latencies import FEWEST_CONTROLS, are_scattered
from niffbench.gate.rules import Accepted, Rules
from niffbench.results import REGISTRY, Metric, Reason, Run, is_control, round_value
from niffbench.stats.changepoints import History, change_points
from niffbench.stats.contrasts import FloatArray
from niffbench.stats.fleet import polish
from niffbench.suite import Selection

_NOTHING = Accepted()


@dataclass(frozen=True)
class Moment:
    """One run of a history: when it began, and of which commit it is.

    Attributes:
        is_scattered: whether several devices measured one of its rounds, which then share nothing.
        controls: the ids of those that it measured.
    """

    started: str
    commit: str | None
    is_scattered: bool = False
    controls: Sequence[str] = ()

    @classmethod
    def of(cls, run: Run) -> Moment:
        """That of ``run``."""
        measured = [record for record in run.records if record.status == "ok"]
        scattered = are_scattered((record.round, record.member) for record in measured)
        controls = sorted({record.id for record in measured if is_control(record.traits)})
        return cls(run.manifest.started, run.manifest.commit, scattered, controls)


@dataclass(frozen=True)
class Everything:
    """What a trend is of that all cases share: in the place of a case's results."""

    controls: int
    id: str = "shared"
    label: str = "everything"
    case: None = None

    @property
    def problem(self) -> str:
        """Of how many controls it is known."""
        return f"{self.controls} controls"


@dataclass(frozen=True)
class Trend:
    """One metric of one case over all runs, oldest first, cut into levels.

    A change is called at :class:`Rules`' alpha, divided by the number of trends looked at together, and from the
    least change that counts of that metric on. A latency is what it would have been on the newest run's machine,
    so far as the controls tell how fast that was in each run; a run with too few of them counts as fast as the one
    before, and a step there may be the machine's. What they share is relative to the first run.

    Attributes:
        rounds: of each run the values of its rounds, or one where all are alike; none where it failed.
        runs: when each run was.
        values: the median of each run's rounds; NaN without any.
        controls: how many there are whose share was taken out.
        known: of each run, whether they tell how fast its machine was; None where that does not matter.
    """

    results: CaseResults | Everything
    metric: Metric
    runs: Sequence[Moment]
    rounds: Sequence[Sequence[float]]
    values: Sequence[float]
    history: History
    least: float
    controls: int = 0
    known: Sequence[bool] | None = None

    def steps(self, accepted: Accepted = _NOTHING) -> tuple[Step, ...]:
        """The changes of level, oldest first. The culprit is after ``since`` and up to ``commit``.

        ``since`` is the last run before that has a value.

        What all share is no longer open once it is ``accepted``: no commit of a case can close it.
        """
        segments = self.history.segments
        closed = self.results.case is None and self._is_accepted(accepted)
        return tuple(
            Step(
                case=self.results.id,
                label=self.results.label,
                problem=self.results.problem,
                quantity=self.metric.key,
                started=self.runs[change.run].started,
                since=self.runs[before.end - 1].commit,
                commit=self.runs[change.run].commit,
                ratio=change.ratio.estimate,
                low=change.ratio.low,
                high=change.ratio.high,
                open=segments[-1].level > before.level * (1 + self.least)
                and after.level > before.level
                and not closed,
                machine_known=self.known is None or (self.known[before.end - 1] and self.known[change.run]),
            )
            for change, before, after in zip(self.history.changes, segments, segments[1:], strict=False)
        )

    def beyond(self, accepted: Accepted) -> float | None:
        """The newest level over the first, which is the accepted one; None while it is not beyond that."""
        levels = self._levels
        if not levels or levels[-1] <= levels[0] * (1 + self.least):
            return None
        if self._is_accepted(accepted):
            return None
        return levels[-1] / levels[0] if levels[0] else inf

    def _is_accepted(self, accepted: Accepted) -> bool:
        """Whether the newest level is within what the last entry accepts that speaks of it."""
        for one in reversed(accepted.changes):
            if one.fits(self.results.case, self.results.label, self.metric.key):
                levels = self._levels
                within = bool(levels) and one.change.covers(levels[-1], levels[0])
                return within and not accepted.is_over(one.change.until)
        return False

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
        results = trend.results
        if takes.takes(results.case, results.label) if results.case else case == results.label:
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
        self.runs.append(Moment.of(run))
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
    """The trends of every case of ``newest``, and of what they share; of each run its moment and its values.

    Args:
        values: oldest first.
    """
    measured = {(id_, key) for run in values for id_, metrics in run.items() for key in metrics}
    wanted = [(id_, metric) for id_ in newest for metric in followed(rules) if (id_, metric.key) in measured]
    nothing: Mapping[str, Sequence[float]] = {}

    def rounds(id_: str, metric: Metric) -> list[Sequence[float]]:
        return [run.get(id_, nothing).get(metric.key, ()) for run in values]

    shared: dict[str, _Shared] = {}
    controls = sorted({id_ for run in runs for id_ in run.controls})  # the newest run may lack some
    for metric in followed(rules):
        if metric.gate != "test":
            continue
        levels_of = {id_: _levels(rounds(id_, metric)) for id_ in controls if (id_, metric.key) in measured}
        if (found := _Shared.of(levels_of, runs)) is not None:
            shared[metric.key] = found
    alpha = rules.alpha / max(len(wanted) + len(shared), 1)
    trends = []
    for id_, metric in wanted:
        results, own = newest[id_], rounds(id_, metric)
        share = shared.get(metric.key)
        known = [False] * len(runs) if metric.gate == "test" else None
        if share is not None:
            known, factors = share.known, share.without(id_)
            own = [tuple(v / factor for v in one) for one, factor in zip(own, factors, strict=True)]
        levels = _levels(own)
        least = rules.least_change(results.case, results.label, metric)
        # Of nothing there is no logarithm.
        shift = metric.unit in ("B", "FLOP", "count") and 0 in levels
        cut = change_points([level + 1 for level in levels] if shift else levels, alpha=alpha, min_effect=least)
        controls_of = share.controls if share else 0
        trends.append(Trend(results, metric, runs, own, levels, cut, least, controls_of, known))
    for key, share in shared.items():
        metric = REGISTRY[key]
        metric = replace(metric, key=shared_name(key), title=f"{metric.title} that all share", unit="")
        own = [(level,) if isfinite(level) else () for level in share.levels]
        cut = change_points(share.levels, alpha=alpha, min_effect=rules.min_effect)
        every = Everything(share.controls)
        trends.append(Trend(every, metric, runs, own, share.levels, cut, rules.min_effect))
    return tuple(trends)


def _levels(rounds: Sequence[Sequence[float]]) -> list[float]:
    return [one[0] if len(one) == 1 else median(one) if one else nan for one in rounds]


@dataclass(frozen=True)
class _Shared:
    """What the controls share in each run of one latency.

    Attributes:
        residuals: of each control the log of its level less its own, of shape (runs,); NaN without one, and in
            runs that measured fewer than FEWEST_CONTROLS, or are scattered.
    """

    residuals: Mapping[str, FloatArray]

    @classmethod
    def of(cls, controls: Mapping[str, Sequence[float]], runs: Sequence[Moment]) -> _Shared | None:
        """Of the levels of each control in ``runs``; None where it is known of none."""
        if not controls:
            return None
        table = np.log(np.array(list(controls.values()), dtype=np.float64))
        enough = np.isfinite(table).sum(axis=0) >= FEWEST_CONTROLS
        enough &= [not run.is_scattered for run in runs]
        if not enough.any():
            return None
        table[:, ~enough] = nan
        known = np.flatnonzero(np.isfinite(table).any(axis=1)).tolist()
        centres = polish(table[known][:, enough].T)
        ids = list(controls)
        return cls({ids[row]: table[row] - centre for row, centre in zip(known, centres, strict=True)})

    @property
    def controls(self) -> int:
        """How many there are."""
        return len(self.residuals)

    @property
    def known(self) -> list[bool]:
        """Of each run, whether it is known there."""
        return [isfinite(level) for level in self.levels]

    @property
    def levels(self) -> list[float]:
        """The speed of each run to that of the first that it is known of; NaN where it is not."""
        logs = self._logs(list(self.residuals.values()))
        return list(map(float, np.exp(logs - logs[np.isfinite(logs)][0])))

    def without(self, id_: str) -> list[float]:
        """What a case has of it in each run, relative to the newest; a control what enough others share.

        Where it is not known it is that of the run before, and before the first that of the first.
        """
        others = [one for control, one in self.residuals.items() if control != id_]
        logs = self._logs(others if len(others) >= FEWEST_CONTROLS else list(self.residuals.values()))
        known = np.flatnonzero(np.isfinite(logs))
        logs = logs[known[np.maximum(np.searchsorted(known, np.arange(logs.size), "right") - 1, 0)]]
        return list(map(float, np.exp(logs - logs[-1])))

    @staticmethod
    def _logs(residuals: Sequence[FloatArray]) -> FloatArray:
        table = np.array(residuals)
        known = np.isfinite(table).any(axis=0)
        result = np.full(table.shape[1], nan)
        result[known] = np.nanmedian(table[:, known], axis=0)
        return result
