"""The outcome of a run: what was measured, what was not and why, and how well."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

from niffbench.errors import NothingMeasured
from niffbench.results import REGISTRY, Reason, Run, Status, round_value
from niffbench.stats.fleet import replicates
from niffbench.stats.intervals import median_of_rounds
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
    """A latency of a case that its rounds do not tell as well as was asked.

    ``half_width`` is that of its 95 % interval over them, relative.
    """

    label: str
    problem: str
    regime: Regime
    half_width: float


@dataclass(frozen=True)
class Outcome:
    """``latencies`` counts those with an interval over rounds, one a case and regime; a single round has none.
    ``imprecise`` are those of them that are wider than asked, the widest first; ``share`` is
    :func:`measuring_share`.
    """

    counts: Mapping[Status, int]
    missing: int
    failures: tuple[Failure, ...]
    latencies: int
    imprecise: tuple[Imprecise, ...]
    share: float | None

    @property
    def measured(self) -> int:
        """Records that hold a measurement."""
        return self.counts.get("ok", 0)

    def nothing_measured(self) -> NothingMeasured:
        """The error of a run in which nothing was."""
        first = self.failures[0]
        return NothingMeasured(
            f"nothing could be measured; {first.label} at {first.problem}: {first.status}, {first.reason}"
        )


def outcome(run: Run) -> Outcome:
    """Look a run over."""
    manifest, records = run.manifest, run.records
    failures = Counter(
        (record.status, record.traits.label, record.case.problem.label, record.reason or "no reason was given")
        for record in records
        if record.status != "ok"
    )
    widths, target = _widths(run), manifest.settings.measure.precision
    return Outcome(
        counts=dict(Counter(record.status for record in records).most_common()),
        missing=manifest.records - len(records),
        failures=tuple(Failure(*key, rounds) for key, rounds in failures.items()),
        latencies=len(widths),
        imprecise=tuple(
            sorted((one for one in widths if one.half_width > target), key=lambda one: -one.half_width)
        ),
        share=measuring_share(run),
    )


def measuring_share(run: Run) -> float | None:
    """The share of a run's wall time that was spent inside sampling, None while it is not finished.

    Cases of a replay take virtual time. Where there is more of it than of the wall's, it is the share of that.
    """
    if not run.manifest.wall:
        return None
    every = (*run.records, *run.probes)
    return sum(record.measuring for record in every) / max(
        run.manifest.wall, sum(record.elapsed for record in every)
    )


def _widths(run: Run) -> list[Imprecise]:
    """How well the rounds of a case tell each of its latencies, where they are enough for an interval."""
    rounds: dict[tuple[str, str, Regime], dict[str, dict[int, float]]] = {}
    members = {(record.id, record.round): record.member for record in run.records}
    for record in run.records:
        for regime in record.latency:
            value = round_value(record, REGISTRY[f"latency_{regime}"])
            if regime != "first" and not isinstance(value, Reason):
                key = record.traits.label, record.case.problem.label, regime
                rounds.setdefault(key, {}).setdefault(record.id, {})[record.round] = value
    return [
        Imprecise(*key, half_width)
        for key, cases in rounds.items()
        for id_, values in cases.items()
        for [of_members] in [replicates([values], [{number: members[id_, number] for number in values}])]
        if (half_width := median_of_rounds(list(of_members.values())).half_width) is not None
    ]
