"""The clock: the series for whose samples its step was too large, and how large they tell it is."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from statistics import median
from typing import TypeAlias

from niffbench.results.metrics import Metric
from niffbench.results.record import Latency, Member, Record
from niffbench.stats.series import JITTER, clock_step

Timed: TypeAlias = tuple[Member | None, Latency]
"""A series, and which member of a fleet took it."""


def coarse(records: Iterable[Record], metric: Metric) -> list[Timed]:
    """The series of a latency for which the clock's step was large; of any other metric none."""
    series = ((one.member, one.latency.get(metric.regime)) for one in records) if metric.regime else ()
    return [(by, one) for by, one in series if one is not None and "coarse" in one.flags and all(one.samples)]


def relative_step(*machines: Sequence[Timed]) -> float:
    """The step of the clock, relative to the values of ``coarse`` series; 0 without any: it is of no account.

    Each clock's is told by its own series, and the largest counts: what several clocks told is all multiples of
    nothing, or of far less. Only series that tell none alone are taken together with all others.

    Args:
        machines: The series of each; a fleet is one, of whose members each has a clock.
    """
    clocks: dict[tuple[int, Member | None], list[Latency]] = {}
    for number, timed in enumerate(machines):
        for member, one in timed:
            clocks.setdefault((number, member), []).append(one)
    steps = [0.0]
    for series in clocks.values():
        tick = _tick(series) or _tick([one for every in clocks.values() for one in every]) or 0.0
        steps += [tick / (one.calls * median(one.samples)) for one in series]
    return max(steps)


def _tick(series: Sequence[Latency]) -> float | None:
    # A call has a share of a sample.
    return clock_step([sample * one.calls for one in series for sample in one.samples], JITTER)
