"""A comparison of two runs for people: on a terminal, and as Markdown for a pull request."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from rich.console import Group, RenderableType
from rich.text import Text

from niffbench.gate.findings import ComparedRun, Comparison, Finding, Step, Verdict
from niffbench.report.table import Column, Entry, Mark, Table, row_of
from niffbench.report.text import MISSING, brackets, clean, could_show, times
from niffbench.report.text import markdown as escape
from niffbench.report.text import quantity as in_unit
from niffbench.report.writers import markdown
from niffbench.report.writers.terminal import Terminal
from niffbench.results import REGISTRY
from niffbench.stats.intervals import Interval
from niffbench.units import percents

_MARKS: dict[Verdict, tuple[Mark, ...]] = {
    "regressed": ("failed",),
    "missing": ("failed",),
    "shifted": ("undecided",),
    "uncovered": ("undecided",),
    "accepted": ("undecided",),
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


SIGNS: dict[Verdict, str] = {
    "regressed": "✗",
    "missing": "✗",
    "shifted": "↕",
    "uncovered": "?",
    "inconclusive": "?",
    "incomparable": "–",
    "accepted": "~",
    "improved": "✓",
    "new": "+",
    "equivalent": "=",
}
"""A sign for each verdict, so that colour is not needed to tell them apart."""

LONGEST_NOTE = 400
LONGEST_HEADLINE = 1000


def value(finding: Finding, number: float | None) -> str:
    """One side's figure in the quantity's unit."""
    return MISSING if number is None else value_in(finding.quantity, number)


def value_in(quantity: str, number: float) -> str:
    """A number in a quantity's unit."""
    if quantity.startswith(("ratio_", "shared_")):
        return times(number)
    metric = REGISTRY.get(quantity)
    return MISSING if metric is None else in_unit(number, metric.unit)


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


def side(run: ComparedRun) -> str:
    """Which run a side is: name, commit, rounds."""
    at = f" at {commit(run.commit)}" if run.commit else ""
    dirty = " with uncommitted changes" if run.dirty else ""
    return f"{clean(run.name)}{at}{dirty}, {run.rounds} round{'s' * (run.rounds != 1)}"


def tally(comparison: Comparison) -> str:
    """How many findings of each verdict: ``1 regressed, 12 equivalent``."""
    return ", ".join(f"{number} {verdict}" for verdict, number in comparison.counts.items())


def telling(comparison: Comparison) -> tuple[Finding, ...]:
    """The findings worth a line: all that are not a proof of sameness or a pair of equal failures."""
    return tuple(f for f in comparison.findings if f.verdict != "equivalent")


def remarks(comparison: Comparison) -> tuple[str, ...]:
    """What could have been seen, the notes, and the fields of the fingerprint that differ, as sentences."""
    fields = tuple(
        f"{clean(d.field)} differs ({'must' if d.tier == 'must' else 'should'} match): "
        f"{clean(d.base)} in BASE, {clean(d.head)} in HEAD"
        for d in comparison.differences
    )
    notes = tuple(clean(note, LONGEST_NOTE) for note in comparison.notes)
    shown = comparison.could_show
    return (*([could_show(*shown)] if shown else []), *notes, *fields)


def line(step: Step) -> str:
    """A change of level in one line of plain text."""
    change = "" if step.ratio is None else f"{100 * (step.ratio - 1):+.1f} %"
    ends = "" if step.low is None or step.high is None else f" [{step.low:.3f}, {step.high:.3f}]"
    case = f"{clean(step.label)} · {clean(step.problem)} · {step.quantity}"
    unknown = "" if step.machine_known else "; how fast the machine was is not known there, and it may be that"
    where = f"from {commit(step.commit)} on ({clean(step.started)}), after {commit(step.since)}"
    return f"{case}: {change}{ends} {where}{unknown}"


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
            Column(f"change [{percents(1 - 2 * alpha)} CI]" if bounded else "change", "figure"),
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
    """Table, remarks and headline.

    Args:
        everything: also what was shown to be the same, without a limit.
    """
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
    headline = clean(comparison.headline, LONGEST_HEADLINE)
    parts.append(Text(f"{headline} ({tally(comparison)})", style=f"bold {colour}"))
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
        f"slowdowns of {percents(comparison.rule_out)} are to be ruled out."
    )
    points = [f"- Step in the history: {escape(line(step), 300)}" for step in comparison.steps[:20]]
    points += [f"- {escape(remark, 300)}" for remark in remarks(comparison)[:40]]
    return "\n\n".join([*blocks, "\n".join(points)]).rstrip() + "\n"


def not_compared(message: str, exit_code: int) -> str:
    """Why there is no comparison, as Markdown."""
    return f"### niffbench: nothing was compared (exit code {exit_code})\n\n{escape(message, 1000)}\n"


def _written(findings: Sequence[Finding], comparison: Comparison) -> str:
    return markdown.write(table(findings, comparison.alpha, every_reason=True), MOST_IN_MARKDOWN)
