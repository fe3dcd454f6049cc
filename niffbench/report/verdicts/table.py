"""A comparison on a terminal."""

from __future__ import annotations

from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from niffbench.regress.findings import Comparison, Finding, Verdict
from niffbench.report.text import clean
from niffbench.report.verdicts.trend import line
from niffbench.report.verdicts.words import MARKS, change, interval, remarks, side, tally, telling, value

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


def show(comparison: Comparison, console: Console, *, everything: bool = False) -> None:
    """Print table, remarks and headline. ``everything``: also what was shown to be the same, without a limit."""
    console.print(render(comparison, everything=everything))


def render(comparison: Comparison, *, everything: bool = False) -> RenderableType:
    """The comparison as a rich renderable."""
    findings = comparison.findings if everything else telling(comparison)
    shown = findings if everything else findings[:MOST_ROWS]
    colour = {0: "green", 1: "red", 5: "yellow"}[comparison.exit_code]
    parts: list[RenderableType] = [
        Text(f"BASE {side(comparison.base)}\nHEAD {side(comparison.head)}\n{comparison.method}", style="dim")
    ]
    if shown:
        parts.append(_table(shown, f"{1 - 2 * comparison.alpha:.0%} interval"))
    if len(findings) > len(shown):
        parts.append(Text(f"… and {len(findings) - len(shown)} more (--all, or --json)", style="dim"))
    parts += [Text(f"note: {remark}", style="dim") for remark in remarks(comparison)]
    parts += [Text(f"step: {line(step)}", style="magenta") for step in comparison.steps]
    parts.append(Text(f"{comparison.headline} ({tally(comparison)})", style=f"bold {colour}"))
    return Group(*parts)


def _table(findings: tuple[Finding, ...], confidence: str) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("verdict", no_wrap=True)
    table.add_column("case", overflow="fold")
    table.add_column("quantity", overflow="fold")
    for name in ("base", "head", "change"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column(confidence, no_wrap=True)
    table.add_column("why", overflow="fold", ratio=1)
    for finding in findings:
        table.add_row(
            Text(f"{MARKS[finding.verdict]} {finding.verdict}", style=_STYLES[finding.verdict]),
            Text(f"{clean(finding.label)}\n{clean(finding.problem)}"),
            Text(finding.quantity),
            Text(value(finding, finding.base)),
            Text(value(finding, finding.head)),
            Text(change(finding)),
            Text(interval(finding)),
            Text(clean(finding.reason)),
        )
    return table
