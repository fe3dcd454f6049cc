"""Several runs side by side: the same cases on other machines, or at other commits. Nothing is judged here.

Runs are independent, so their ratios are not paired (Welch on logs). Whether a change is a regression is
another question, with corrections across the suite: :mod:`niffbench.gate` answers it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from niffbench.fingerprint import differences
from niffbench.report import text
from niffbench.report.digest import Digest, Group, Row, compare
from niffbench.report.table import Column, Entry, Table, row_of
from niffbench.results import REGISTRY, Metric
from niffbench.stats.intervals import Interval

MOST_ROWS = 2000


@dataclass(frozen=True)
class Pair:
    """One case in the first run and in another (``run`` is its place): quantities as ratios other/first."""

    run: int
    group: Group
    row: Row
    other: Row
    ratios: dict[str, Interval]

    @property
    def latency(self) -> Interval | None:
        """The ratio of the latencies, None where the runs' main regimes differ."""
        return next((ratio for key, ratio in self.ratios.items() if REGISTRY[key].regime), None)


def pairs(digests: Sequence[Digest]) -> list[Pair]:
    """Every case that the first run and another have measured, in the first run's order."""
    first, *others = digests
    pairs_: list[Pair] = []
    measured = [{row.id: row for row in other.rows} for other in others]
    for group in first.groups:
        for row in group.rows:
            for place, rows in enumerate(measured, start=1):
                other = rows.get(row.id)
                if other is not None and row.ok and other.ok:
                    made = {
                        metric.key: compare(row.cells[metric.key], other.cells[metric.key], paired=False)
                        for metric in first.metrics
                        if metric.key in row.cells
                        and metric.key in other.cells
                        and (metric.regime is None or first.regime == others[place - 1].regime)
                    }
                    pairs_.append(Pair(place, group, row, other, made))
    return pairs_


def unlike(digests: Sequence[Digest]) -> tuple[str, ...]:
    """What makes the runs hard to compare, one sentence each."""
    first, *others = digests
    sentences: list[str] = []
    for other in others:
        apart = differences(first.run.manifest.fingerprint.must, other.run.manifest.fingerprint.must)
        if apart:
            facts = [
                f"{text.clean(key, 40)} ({text.clean(one, 40)} and {text.clean(two, 40)})"
                for key, (one, two) in apart.items()
            ]
            sentences.append(
                f"{first.name} and {other.name} have unlike fingerprints: {text.listing(facts, 6)}. "
                "Their latencies tell of the machines as much as of the code."
            )
        if first.run.manifest.suite.source_hash != other.run.manifest.suite.source_hash:
            sentences.append(
                f"{first.name} and {other.name} ran different suites; only the cases they share are compared."
            )
        if first.regime != other.regime:
            sentences.append(
                f"The main regimes differ ({first.regime} and {other.regime}): "
                f"latencies of {other.name} are not compared."
            )
    return tuple(sentences)


def table(digests: Sequence[Digest], compared: Sequence[Pair]) -> Table:
    """One line a case: latency in every run, and each later run as a ratio to the first."""
    first, *others = digests
    by_case: dict[str, dict[int, Pair]] = {}
    for pair in compared:
        by_case.setdefault(pair.row.id, {})[pair.run] = pair
    rows = []
    for some in list(by_case.values())[:MOST_ROWS]:
        any_ = next(iter(some.values()))
        entries = [Entry(any_.group.label), Entry(any_.row.label), _value(any_.row, first)]
        for place, other in enumerate(others, start=1):
            same = some.get(place)
            entries += [
                _value(same.other, other) if same else Entry(text.MISSING),
                *(_times(same, metric) for metric in first.metrics),
            ]
        rows.append(row_of(*entries))
    here = f"{first.regime} latency, {first.name}"
    columns = [Column("problem"), Column("operator"), Column(here, "figure", unit="s")]
    for other in others:
        columns += [
            Column(f"{other.regime} latency, {other.name}", "figure", unit="s"),
            *(
                Column(f"× {metric.title}", "figure", hint=f"{other.name} over {first.name}")
                for metric in first.metrics
            ),
        ]
    left = len(by_case) - len(rows)
    return Table(
        "compared",
        "The same cases in every run",
        tuple(columns),
        tuple(rows),
        f"Ratios are to {first.name}, with 95 % intervals over rounds (independent runs); bold where the interval "
        "excludes 1. Use `niffbench check` to judge a change: it corrects for the number of cases."
        + (f" {text.plural(left, 'case')} left out for space." if left else ""),
    )


def _value(row: Row, digest: Digest) -> Entry:
    latency = row.value(digest.metrics[0].key)
    return Entry(text.seconds(latency), value=latency)


def _times(pair: Pair | None, metric: Metric) -> Entry:
    ratio_ = pair.ratios.get(metric.key) if pair else None
    if ratio_ is None or ratio_.estimate is None:
        return Entry(text.MISSING)
    sure = ratio_.excludes(1.0) and (not metric.exact or abs(ratio_.estimate - 1) > 1e-9)
    return Entry(text.times(ratio_.estimate), text.brackets(ratio_), ratio_.estimate, ("winner",) if sure else ())
