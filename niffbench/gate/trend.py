"""Trends: the latency of a case over the runs of a history, and where its level changed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import nan
from statistics import median

from niffbench.errors import UsageError, did_you_mean
from niffbench.gate.findings import Step
from niffbench.gate.rules import Rules
from niffbench.gate.sides import Known, Side
from niffbench.results import Run
from niffbench.stats.changepoints import History, change_points
from niffbench.suite import Regime, Selection


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

    known: Known
    quantity: str
    points: tuple[Point, ...]
    history: History

    def steps(self) -> tuple[Step, ...]:
        """The changes of level, oldest first. The culprit is after ``since`` and up to ``commit``."""
        return tuple(
            Step(
                case=self.known.any.id,
                label=self.known.label,
                problem=self.known.problem,
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
    sides = [Side(run, selection) for run in runs]
    newest = sides[-1]
    if not newest:
        labels = {record.traits.label for record in runs[-1].records}
        raise UsageError(f"no case of the newest run is '{' '.join(only)}'{did_you_mean(only[0], labels)}")
    wanted = [(id_, regime) for id_ in newest for regime in rules.regimes if _measured(sides, id_, regime)]
    return tuple(_trend(sides, id_, regime, rules, len(wanted)) for id_, regime in wanted)


def _measured(sides: Sequence[Side], id_: str, regime: Regime) -> bool:
    return any(id_ in side and side[id_].timing(regime).medians for side in sides)


def _trend(sides: Sequence[Side], id_: str, regime: Regime, rules: Rules, together: int) -> Trend:
    known, quantity = sides[-1][id_], f"latency_{regime}"
    points = tuple(
        Point(
            side.run.manifest.started,
            side.run.manifest.commit,
            tuple(side[id_].timing(regime).medians.values()) if id_ in side else (),
        )
        for side in sides
    )
    least = rules.min_effect_of(known.case, known.label, quantity)
    levels = [point.level for point in points]
    return Trend(known, quantity, points, change_points(levels, alpha=rules.alpha / together, min_effect=least))
