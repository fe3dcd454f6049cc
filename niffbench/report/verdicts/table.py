"""A comparison on a terminal."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from niffbench.gate.findings import Comparison, Finding, Verdict
from niffbench.report.text import clean
from niffbench.report.verdicts.trend import line
from niffbench.report.verdicts.words import (
    LONGEST_NOTE,
    MARKS,
    change,
    interval,
    remarks,
    side,
    tally,
    telling,
    value,
)

_STYLES: dict[Verdict, str] = {
    "regressed": "bold red",
    "missing": "bold red",
    "inconclusive": "yellow",
    "incomparable": "dim",
    "improved": "green",
    "new": "cyan",
    "equivalent": "dim",
}
MOST_ROWS = 80
"""Rows shown unless all are asked for; the rest are counted."""
MOST_REASONS = 5


def show(comparison: Comparison, console: Console, *, everything: bool = False) -> None:
    """Print table, remarks and headline. ``everything``: also what was shown to be the same, without a limit."""
    console.print(render(comparison, everything=everything))


def render(comparison: Comparison, *, everything: bool = False) -> RenderableType:
    """The comparison as a rich renderable: figures in a table, what has none and what is open in lines."""
    findings = comparison.findings if everything else telling(comparison)
    shown = findings if everything else findings[:MOST_ROWS]
    colour = {0: "green", 1: "red", 5: "yellow"}[comparison.exit_code]
    parts: list[RenderableType] = [
        Text(f"BASE {side(comparison.base)}\nHEAD {side(comparison.head)}\n{comparison.method}", style="dim")
    ]
    figures = [finding for finding in shown if finding.base is not None or finding.head is not None]
    if figures:
        parts.append(_table(figures, f"{1 - 2 * comparison.alpha:.0%} CI"))
    parts += [_line(finding) for finding in shown if finding.base is None and finding.head is None]
    if len(findings) > len(shown):
        parts.append(Text(f"… and {len(findings) - len(shown)} more (--all, or --json)", style="dim"))
    parts += [Text(f"open: {why}", style="dim") for why in _reasons(comparison)]
    parts += [Text(f"note: {remark}", style="dim") for remark in remarks(comparison)]
    parts += [Text(f"step: {line(step)}", style="magenta") for step in comparison.steps]
    parts.append(Text(f"{comparison.headline} ({tally(comparison)})", style=f"bold {colour}"))
    return Group(*parts)


def _verdict(finding: Finding) -> Text:
    return Text(f"{MARKS[finding.verdict]} {finding.verdict}", style=_STYLES[finding.verdict])


def _line(finding: Finding) -> Text:
    case = f"{clean(finding.label)} · {clean(finding.problem)} · {finding.quantity}"
    return Text.assemble(_verdict(finding), f"  {case}: {clean(finding.reason, LONGEST_NOTE)}")


def _reasons(comparison: Comparison) -> list[str]:
    """Why verdicts are open, each reason once, the most frequent first."""
    reasons = Counter(
        f"{finding.verdict}: {clean(finding.reason, LONGEST_NOTE)}"
        for finding in comparison.findings
        if finding.verdict in ("inconclusive", "incomparable") and finding.base is not None
    )
    return [f"{reason} ({number}×)" for reason, number in reasons.most_common(MOST_REASONS)]


def _table(findings: Sequence[Finding], confidence: str) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("verdict", no_wrap=True)
    table.add_column("case", overflow="fold", min_width=12)
    table.add_column("quantity", no_wrap=True)
    for name in ("base", "head", "change"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column(confidence, no_wrap=True)
    for finding in findings:
        table.add_row(
            _verdict(finding),
            Text(f"{clean(finding.label)}\n{clean(finding.problem)}"),
            Text(finding.quantity.replace("latency_", "")),
            Text(value(finding, finding.base)),
            Text(value(finding, finding.head)),
            Text(change(finding)),
            Text(interval(finding)),
        )
    return table
