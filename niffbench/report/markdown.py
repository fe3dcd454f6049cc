"""The same in Markdown, for a pull request or a step summary: small, escaped, plots by reference."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from niffbench import __version__
from niffbench.report import tables
from niffbench.report.comparison import pairs, table, unlike
from niffbench.report.page import lead, title
from niffbench.report.plots.canvas import Plot
from niffbench.report.text import markdown
from niffbench.report.view import View
from niffbench.report.writers.markdown import titled

MOST_BYTES = 60_000
_LENGTHS = (400, 200, 100, 60, 30, 15, 6)


def document(views: Sequence[View], side: Plot | None) -> str:
    """The whole document, with tables cut as short as it takes to stay below 60,000 bytes."""
    found = ""
    for most in _LENGTHS:
        found = "\n\n".join(_blocks(views, side, most)) + "\n"
        if len(found.encode()) < MOST_BYTES:
            return found
    head = found.encode()[: MOST_BYTES - 200].decode(errors="ignore").rpartition("\n")[0]
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
    said = [f"- {markdown(finding.sentence, 500)}" for finding in view.findings[: max(most // 4, 6)]]
    yield "\n".join(said) if said else "No difference is certain enough to be put into a sentence."
    yield titled(view.winners, most)
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
