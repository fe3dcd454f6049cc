"""A comparison as Markdown, for a pull request or a CI step summary."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from niffbench.gate.findings import Comparison, Finding
from niffbench.report.text import markdown as escape
from niffbench.report.verdicts.trend import line
from niffbench.report.verdicts.words import MARKS, change, interval, remarks, side, tally, telling, value

MOST_ROWS = 100
"""Rows of one table: with 120 characters of reason each, a comment stays under GitHub's 65,536 characters."""

_HEADINGS = ("", "case", "problem", "quantity", "base", "head", "change", "interval", "why")


def render(comparison: Comparison) -> str:
    """The outcome first, then what fails, then what else is worth a line, folded away."""
    pressing = [finding for finding in telling(comparison) if finding.pressing]
    other = [finding for finding in telling(comparison) if not finding.pressing]
    lines = [
        f"### niffbench: {escape(comparison.headline, 300)}",
        "",
        f"Suite {escape(comparison.head.suite)}: {tally(comparison)}.",
        "",
        *_table(pressing),
        *_folded("everything else that is not equivalent", other),
        f"BASE: {escape(side(comparison.base), 200)}  ",
        f"HEAD: {escape(side(comparison.head), 200)}  ",
        f"Rule: {escape(comparison.method, 200)}, alpha {comparison.alpha:g}; "
        f"slowdowns of {comparison.rule_out:.0%} are to be ruled out.",
        "",
        *(f"- Step in the history: {escape(line(step), 300)}" for step in comparison.steps[:20]),
        *(f"- {escape(remark, 300)}" for remark in remarks(comparison)[:40]),
    ]
    return "\n".join(lines).rstrip() + "\n"


def _folded(title: str, findings: Sequence[Finding]) -> Iterator[str]:
    if findings:
        yield f"<details><summary>{len(findings)} more: {title}</summary>"
        yield ""
        yield from _table(findings)
        yield "</details>"
        yield ""


def _table(findings: Sequence[Finding]) -> Iterator[str]:
    if not findings:
        return
    yield "| " + " | ".join(_HEADINGS) + " |"
    yield "|" + "---|" * 4 + "--:|" * 3 + "---|" * 2
    for finding in findings[:MOST_ROWS]:
        cells = (
            f"{MARKS[finding.verdict]} {finding.verdict}",
            escape(finding.label),
            escape(finding.problem),
            escape(finding.quantity),
            escape(value(finding, finding.base)),
            escape(value(finding, finding.head)),
            escape(change(finding)),
            escape(interval(finding)),
            escape(finding.reason),
        )
        yield "| " + " | ".join(cells) + " |"
    if len(findings) > MOST_ROWS:
        yield ""
        yield f"… and {len(findings) - MOST_ROWS} more."
    yield ""
