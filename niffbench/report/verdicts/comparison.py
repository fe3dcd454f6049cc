"""A comparison of two runs for people: on a terminal, and as Markdown for a pull request."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from rich.console import Group, RenderableType
from rich.text import Text

from niffbench.gate.findings import Comparison, Finding, Verdict
from niffbench.report.table import Column, Entry, Mark, Table, row_of
from niffbench.report.text import clean
from niffbench.report.text import markdown as escape
from niffbench.report.verdicts.trend import line
from niffbench.report.verdicts.words import (
    LONGEST_NOTE,
    SIGNS,
    change,
    interval,
    remarks,
    side,
    tally,
    telling,
    value,
)
from niffbench.report.writers import markdown
from niffbench.report.writers.terminal import Terminal

_MARKS: dict[Verdict, tuple[Mark, ...]] = {
    "regressed": ("failed",),
    "missing": ("failed",),
    "inconclusive": ("undecided",),
    "incomparable": ("quiet",),
    "improved": ("passed",),
    "new": (),
    "equivalent": ("quiet",),
}
MOST_ROWS = 80
"""Rows on a terminal unless all are asked for; the rest are counted."""
MOST_REASONS = 5
MOST_IN_MARKDOWN = 100
"""Rows of one table: with 120 characters of reason each, a comment stays under GitHub's 65,536 characters."""


def table(findings: Sequence[Finding], alpha: float, *, every_reason: bool) -> Table:
    """One row a finding. ``every_reason`` False: a reason only where there are no figures to show."""
    bounded = any(interval(finding) for finding in findings)
    return Table(
        "verdicts",
        "",
        (
            Column("verdict", "word"),
            Column("case"),
            Column("quantity"),
            Column("base", "figure", importance=4),
            Column("head", "figure", importance=5),
            Column(f"change [{1 - 2 * alpha:.0%} CI]" if bounded else "change", "figure"),
            Column("why", "prose"),
        ),
        tuple(
            row_of(
                Entry(f"{SIGNS[finding.verdict]} {finding.verdict}", marks=_MARKS[finding.verdict]),
                Entry(clean(finding.label), clean(finding.problem)),
                finding.quantity.removeprefix("latency_"),
                value(finding, finding.base),
                value(finding, finding.head),
                Entry(change(finding), interval(finding)),
                finding.reason if every_reason or finding.base is finding.head is None else "",
            )
            for finding in findings
        ),
    )


def terminal(comparison: Comparison, *, everything: bool = False) -> RenderableType:
    """Table, remarks and headline. ``everything``: also what was shown to be the same, without a limit."""
    findings = comparison.findings if everything else telling(comparison)
    shown = findings if everything else findings[:MOST_ROWS]
    colour = {0: "green", 1: "red", 5: "yellow"}[comparison.exit_code]
    parts: list[RenderableType] = [
        Text(f"BASE {side(comparison.base)}\nHEAD {side(comparison.head)}\n{comparison.method}", style="dim")
    ]
    if shown:
        verdicts = table(shown, comparison.alpha, every_reason=False)
        if not any(each.entries[-1].text for each in verdicts.rows):
            verdicts = verdicts.without("why")
        parts.append(Terminal(verdicts))
    if len(findings) > len(shown):
        parts.append(Text(f"… and {len(findings) - len(shown)} more (--all, or --json)", style="dim"))
    parts += [Text(f"open: {why}", style="dim") for why in _reasons(comparison)]
    parts += [Text(f"note: {remark}", style="dim") for remark in remarks(comparison)]
    parts += [Text(f"step: {line(step)}", style="magenta") for step in comparison.steps]
    parts.append(Text(f"{comparison.headline} ({tally(comparison)})", style=f"bold {colour}"))
    return Group(*parts)


def _reasons(comparison: Comparison) -> list[str]:
    """Why verdicts are open, each reason once, the most frequent first."""
    reasons = Counter(
        f"{finding.verdict}: {clean(finding.reason, LONGEST_NOTE)}"
        for finding in comparison.findings
        if finding.verdict in ("inconclusive", "incomparable") and finding.base is not None
    )
    return [f"{reason} ({number}×)" for reason, number in reasons.most_common(MOST_REASONS)]


def document(comparison: Comparison) -> str:
    """As Markdown: the outcome first, then what fails, then what else is worth a line, folded away."""
    pressing = [finding for finding in telling(comparison) if finding.pressing]
    other = [finding for finding in telling(comparison) if not finding.pressing]
    blocks = [
        f"### niffbench: {escape(comparison.headline, 300)}",
        f"Suite {escape(comparison.head.suite)}: {tally(comparison)}.",
    ]
    if pressing:
        blocks.append(_written(pressing, comparison))
    if other:
        title = f"{len(other)} more: everything else that is not equivalent"
        blocks.append(markdown.folded(title, _written(other, comparison)))
    blocks.append(
        f"BASE: {escape(side(comparison.base), 200)}  \n"
        f"HEAD: {escape(side(comparison.head), 200)}  \n"
        f"Rule: {escape(comparison.method, 200)}, alpha {comparison.alpha:g}; "
        f"slowdowns of {comparison.rule_out:.0%} are to be ruled out."
    )
    points = [f"- Step in the history: {escape(line(step), 300)}" for step in comparison.steps[:20]]
    points += [f"- {escape(remark, 300)}" for remark in remarks(comparison)[:40]]
    return "\n\n".join([*blocks, "\n".join(points)]).rstrip() + "\n"


def _written(findings: Sequence[Finding], comparison: Comparison) -> str:
    return markdown.write(table(findings, comparison.alpha, every_reason=True), MOST_IN_MARKDOWN)
