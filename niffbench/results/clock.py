"""The clock: the series for whose samples its step was too large, and how large they tell it is."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from niffbench.results.metrics import Metric
from niffbench.results.record import Latency, Record
from niffbench.stats.series import JITTER, clock_step


def coarse(records: Iterable[Record], metric: Metric) -> list[Latency]:
    """The series of a latency for which the clock's step was large; of any other metric none."""
    series = (record.latency.get(metric.regime) for record in records) if metric.regime else ()
    return [one for one in series if one is not None and "coarse" in one.flags and all(one.samples)]


def relative_step(series: Sequence[Latency]) -> float:
    """The step of the clock, relative to the values of ``coarse`` series; 0 without any: it is of no account."""
    if not series:
        return 0.0
    # A call has a share of a sample.
    tick = clock_step([sample * one.calls for one in series for sample in one.samples], JITTER) or 0.0
    return max(tick / (one.calls * min(one.samples)) for one in series)
