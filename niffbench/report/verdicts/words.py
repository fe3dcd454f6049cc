"""A finding's numbers in words, the same in every output."""

from __future__ import annotations

from collections.abc import Callable

from niffbench.gate.findings import Comparison, Finding, Subject, Verdict
from niffbench.report.text import MISSING, brackets, clean, count, flops, seconds, size_of, times
from niffbench.stats.intervals import Interval

SIGNS: dict[Verdict, str] = {
    "regressed": "✗",
    "missing": "✗",
    "inconclusive": "?",
    "incomparable": "–",
    "improved": "✓",
    "new": "+",
    "equivalent": "=",
}
"""A sign for each verdict, so that colour is not needed to tell them apart."""

_UNITS: tuple[tuple[str, Callable[[float | None], str]], ...] = (
    ("latency_", seconds),
    ("ratio_", times),
    ("memory_", size_of),
    ("flops", flops),
    ("parameters", count),
)

LONGEST_NOTE = 400


def value(finding: Finding, number: float | None) -> str:
    """One side's figure in the quantity's unit."""
    if number is None:
        return MISSING
    return next((unit(number) for prefix, unit in _UNITS if finding.quantity.startswith(prefix)), MISSING)


def change(finding: Finding) -> str:
    """The relative change of head against base: ``+3.1 %``; empty where there is none."""
    if finding.ratio is None:
        return ""
    if finding.ratio == float("inf"):
        return "from nothing"
    return f"{100 * (finding.ratio - 1):+.1f} %"


def interval(finding: Finding) -> str:
    """The ends of the ratio's interval; empty for what is exact."""
    if finding.low is None or finding.high is None or finding.ratio is None or finding.p_adjusted is None:
        return ""
    return brackets(Interval(finding.ratio, finding.low, finding.high, 0.0, 0, ""))


def commit(name: str | None) -> str:
    """A commit as it is shown."""
    return clean(name)[:10] if name else "an unknown commit"


def side(subject: Subject) -> str:
    """Which run a side is: name, commit, rounds."""
    at = f" at {commit(subject.commit)}" if subject.commit else ""
    dirty = " with uncommitted changes" if subject.dirty else ""
    return f"{clean(subject.name)}{at}{dirty}, {subject.rounds} round{'s' * (subject.rounds != 1)}"


def tally(comparison: Comparison) -> str:
    """How many findings of each verdict: ``1 regressed, 12 equivalent``."""
    return ", ".join(f"{number} {verdict}" for verdict, number in comparison.counts.items())


def telling(comparison: Comparison) -> tuple[Finding, ...]:
    """The findings worth a line: all that are not a proof of sameness or a pair of equal failures."""
    return tuple(f for f in comparison.findings if f.verdict != "equivalent")


def remarks(comparison: Comparison) -> tuple[str, ...]:
    """The notes, and the fields of the fingerprint that differ, as sentences."""
    fields = tuple(
        f"{clean(d.field)} differs ({'must' if d.tier == 'must' else 'should'} match): "
        f"{clean(d.base)} in BASE, {clean(d.head)} in HEAD"
        for d in comparison.differences
    )
    return tuple(clean(note, LONGEST_NOTE) for note in comparison.notes) + fields
