"""What a person reads: the HTML page, the same in Markdown, and what a run ends with on a terminal.

The page is one file that needs no network. The Markdown is small enough for a pull request or a step summary, its
plots by reference. All text from records is escaped.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterator, Sequence

from rich.console import Group as Lines
from rich.console import RenderableType
from rich.text import Text

from niffbench import __version__
from niffbench.report import tables, text
from niffbench.report.comparison import pairs, table, unlike
from niffbench.report.digest import Digest, gather
from niffbench.report.facts import choices, measured, notices
from niffbench.report.findings import crossover_sentences
from niffbench.report.plots.canvas import Plot
from niffbench.report.table import UNLIKE
from niffbench.report.text import markdown
from niffbench.report.trends import rivalries
from niffbench.report.view import View
from niffbench.report.writers.html import asset, environment
from niffbench.report.writers.markdown import titled
from niffbench.report.writers.terminal import Terminal
from niffbench.results import Run

MOST_CROSSOVERS, MOST_FINDINGS = 5, 7
"""On the first screen; the others are one click away."""


def page(views: Sequence[View], side: Plot | None) -> str:
    """The HTML of a report on one run or several; ``side`` is the plot of run against run."""
    script = "\n" + asset("report.js")
    digests = [view.digest for view in views]
    several = len(digests) > 1
    return (
        environment()
        .get_template("report.html.j2")
        .render(
            title=title(views),
            lead=lead(views),
            views=views,
            compared=table(digests, pairs(digests)) if several else None,
            apart=unlike(digests) if several else (),
            side=side,
            fingerprint=tables.fingerprints(digests),
            most_findings=MOST_FINDINGS,
            most_crossovers=MOST_CROSSOVERS,
            left_out=text.left_out,
            css=asset("report.css"),
            js=script,
            script_hash=f"sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}",
            version=__version__,
        )
    )


def title(views: Sequence[View]) -> str:
    """The report's title: the suite, or the runs against each other."""
    names = [view.digest.name for view in views]
    return f"niffbench: {' against '.join(names)}" if len(names) > 1 else f"niffbench: {names[0]}"


def lead(views: Sequence[View]) -> str:
    """What was compared with what, in one line."""
    first = views[0].digest
    if len(views) > 1:
        return f"{text.plural(len(views), 'run')} side by side; ratios between runs are to {first.name}."
    operators = len({row.label for row in first.rows})
    return (
        f"{text.plural(operators, 'operator')} at {text.plural(len(first.groups), 'problem')}, compared with "
        f"{first.baseline} in latency, memory and FLOPs."
    )


MOST_BYTES = 60_000
_LENGTHS = (400, 200, 100, 60, 30, 15, 6)


def document(views: Sequence[View], side: Plot | None) -> str:
    """The whole document, with tables cut as short as it takes to stay below 60,000 bytes."""
    content = ""
    for most in _LENGTHS:
        content = "\n\n".join(_blocks(views, side, most)) + "\n"
        if len(content.encode()) < MOST_BYTES:
            return content
    head = content.encode()[: MOST_BYTES - 200].decode(errors="ignore").rpartition("\n")[0]
    return f"{head}\n\nThe rest is left out for space; report.html has it.\n"


def _blocks(views: Sequence[View], side: Plot | None, most: int) -> Iterator[str]:
    digests = [view.digest for view in views]
    yield f"# {markdown(title(views), 300)}"
    yield markdown(lead(views), 400)
    if len(views) > 1:
        yield from (f"> {markdown(sentence, 600)}" for sentence in unlike(digests))
        yield from [_image(side, "")] if side else []
        yield titled(table(digests, pairs(digests)), most)
    for place, view in enumerate(views):
        yield from _run(view, f"r{place}-" if len(views) > 1 else "", most, named=len(views) > 1)
    yield titled(tables.fingerprints(digests), max(most, 60))
    yield f"Written by niffbench {__version__}."


def _run(view: View, prefix: str, most: int, *, named: bool) -> Iterator[str]:
    if named:
        yield f"## {markdown(view.digest.name)}"
    yield from (f"> {markdown(sentence, 400)}" for sentence in view.notices)
    yield "### Findings"
    if view.no_crossovers:
        yield markdown(view.no_crossovers, 400)
    said = [f"- {markdown(finding.sentence, 500)}" for finding in view.findings[: max(most // 4, 6)]]
    yield "\n".join(said) if said else "No difference is certain enough to be put into a sentence."
    yield titled(view.winners, most)
    if view.intervals:
        yield view.intervals
    yield "### The machine and the run"
    yield "\n".join(f"- {word}: {markdown(what, 300)}" for word, what in view.facts)
    if view.failures.rows:
        yield titled(view.failures, max(most // 4, 6))
    for section in view.sections:
        yield f"### {section.title}"
        yield from (_image(plot, prefix) for plot in section.plots)
        yield from (titled(each, max(most // 4, 6)) for each in section.tables if each.name != "achieved")
    yield titled(view.cases, most)


def _image(plot: Plot, prefix: str) -> str:
    return f"![{markdown(plot.alt, 400)}](plots/{prefix}{plot.name}.svg)\n\n*{markdown(plot.caption, 500)}*"


MOST_ROWS = 80
"""Operator rows that are listed; a larger run gets one line a problem."""


def summary_table(run: Run) -> RenderableType:
    """The closing table of ``run``, crossovers before it."""
    digest = gather(run)
    sentences = crossover_sentences(digest, rivalries(digest))
    parts: list[RenderableType] = [Text(sentence) for sentence in sentences[:MOST_CROSSOVERS]]
    if len(sentences) > MOST_CROSSOVERS:
        parts.append(Text(f"{len(sentences) - MOST_CROSSOVERS:,} more of these in the report."))
    if len(digest.rows) <= MOST_ROWS:
        parts.append(Terminal(tables.summary(digest)))
    else:
        parts.append(Terminal(tables.brief_winners(digest)))
        parts += [Text(sentence) for _, sentence in choices(digest)]
    parts.append(Text(_legend(digest), style="dim"))
    parts.append(Text(f"Measured: {measured(digest)}"))
    parts += [Text(notice, style="yellow") for notice in notices(digest)]
    return Lines(*parts)


def _legend(digest: Digest) -> str:
    sentences = [
        f"Latency: {digest.regime}, median of {text.rounds(digest.round_counts)}; memory: total "
        "(inputs, parameters, what is kept, peak of a call).",
        f"×: ratio to {digest.baseline} [95 % interval]. ★: best; ≈: not told from the best.",
    ]
    if len(digest.rows) <= MOST_ROWS and any(row.chosen for row in digest.rows):
        sentences.append("In brackets: the engine that auto chose.")
    if any(not row.like_baseline for row in digest.rows):
        sentences.append(f"{UNLIKE}: computes another function than the baseline.")
    return " ".join(sentences)
