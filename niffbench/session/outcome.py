"""The outcome of a run: what was measured, what was not and why, and how well."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from math import isfinite

from niffbench.results import Record, Run, Status
from niffbench.stats.series import precision
from niffbench.suite import Regime


@dataclass(frozen=True)
class Failure:
    """A case that was not measured, in as many ``rounds`` with the same status and reason."""

    status: Status
    label: str
    problem: str
    reason: str
    rounds: int


@dataclass(frozen=True)
class Imprecise:
    """A series that ended before its median was known as well as asked; ``half_width`` is relative."""

    label: str
    problem: str
    regime: Regime
    round: int
    half_width: float | None


@dataclass(frozen=True)
class Outcome:
    """``series`` counts those that had a precision to reach; ``share`` is that of the wall time spent sampling.

    Cases of a replay take virtual time. Where there is more of it than of the wall's, it is the share of that.
    """

    counts: Mapping[Status, int]
    missing: int
    failures: tuple[Failure, ...]
    series: int
    imprecise: tuple[Imprecise, ...]
    share: float | None

    @property
    def measured(self) -> int:
        """Records that hold a measurement."""
        return self.counts.get("ok", 0)


def outcome(run: Run) -> Outcome:
    """Look a run over."""
    manifest, records = run.manifest, run.records
    failures = Counter(
        (record.status, record.traits.label, record.case.problem.label, record.reason or "no reason was given")
        for record in records
        if record.status != "ok"
    )
    every = (*records, *run.probes)
    time = max(manifest.wall or 0.0, sum(record.elapsed for record in every))
    return Outcome(
        counts=dict(Counter(record.status for record in records).most_common()),
        missing=manifest.records - len(records),
        failures=tuple(Failure(*key, rounds) for key, rounds in failures.items()),
        series=sum(len(_sampled(record)) for record in records),
        imprecise=tuple(
            sorted(
                (
                    series
                    for record in records
                    for series in _imprecise(record, manifest.settings.measure.precision)
                ),
                key=lambda series: -1.0 if series.half_width is None else -series.half_width,
            )
        ),
        share=sum(record.measuring for record in every) / time if manifest.wall else None,
    )


def _sampled(record: Record) -> list[Regime]:
    return [regime for regime, series in record.latency.items() if regime != "first" and series.samples]


def _imprecise(record: Record, target: float) -> list[Imprecise]:
    imprecise = []
    for regime in _sampled(record):
        series = record.latency[regime]
        if series.stopped == "precision":
            continue
        half_width = None
        if all(isfinite(sample) and sample > 0 for sample in series.samples):
            half_width = precision(series.samples, target).half_width
        if half_width is None or half_width > target:
            where = record.traits.label, record.case.problem.label
            imprecise.append(Imprecise(*where, regime, record.round, half_width))
    return imprecise
