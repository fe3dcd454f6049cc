"""The quantities a report compares: where each comes from, what less of it is called, and how it is written."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import isfinite
from statistics import median
from typing import Literal

from niffbench.report import text
from niffbench.results import Record
from niffbench.suite import Regime

Key = Literal["latency", "memory", "flops", "bytes"]

PLAUSIBLE = (1e-12, 1e9)
"""Seconds. What lies outside is no latency but a broken clock, or a joke."""

EXACT: frozenset[Key] = frozenset({"flops", "bytes"})
"""Quantities from closed forms: known without error, so that one round is enough."""


@dataclass(frozen=True)
class Metric:
    """One quantity. ``noun`` and ``axis`` name it in sentences and on axes, ``best`` is the winner's word,
    ``less`` and ``more`` compare ("faster", "slower"); ``show`` writes a value with its unit.
    """

    key: Key
    noun: str
    axis: str
    best: str
    less: str
    more: str
    show: Callable[[float | None], str]


def latency(regime: Regime) -> Metric:
    """Latency of one regime, in seconds."""
    return Metric("latency", f"{regime} latency", f"{regime} latency", "fastest", "faster", "slower", text.seconds)


MEMORY = Metric("memory", "peak memory", "peak memory", "leanest", "leaner", "more memory-hungry", text.size_of)
FLOPS = Metric("flops", "FLOPs", "FLOPs", "cheapest", "cheaper", "costlier", text.flops)
BYTES = Metric("bytes", "own traffic", "own traffic", "lightest", "lighter", "heavier", text.size_of)


def value(record: Record, key: Key, regime: Regime) -> float | None:
    """What one round has to say of a quantity, in seconds, bytes or real FLOPs; None where it was not measured."""
    if key == "latency":
        return latency_of(record, regime)
    if key == "memory":
        return record.memory.peak if record.memory and record.status == "ok" else None
    if record.cost is None:
        return None
    return record.cost.closed if key == "flops" else record.cost.bytes_own


def latency_of(record: Record, regime: Regime) -> float | None:
    """The round's median in one regime, in seconds.

    None unless the record is ``ok`` and has samples of it; a clock that shows zero, less or no number measured
    nothing.
    """
    series = record.latency.get(regime) if record.status == "ok" else None
    if not series or not series.samples or not isfinite(sum(series.samples)):
        return None
    middle = median(series.samples)
    return middle if PLAUSIBLE[0] < middle < PLAUSIBLE[1] else None
