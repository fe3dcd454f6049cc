"""What a run ends with on a terminal: readable by a stranger, at any width."""

from __future__ import annotations

from rich.console import Group as Lines
from rich.console import RenderableType
from rich.text import Text

from niffbench.report import tables, text
from niffbench.report.digest import Digest
from niffbench.report.facts import choices, measured, notices
from niffbench.report.gather import gather
from niffbench.report.table import UNLIKE
from niffbench.report.writers.terminal import Terminal
from niffbench.results import Run

MOST_ROWS = 80
"""Operator rows that are listed; a larger run gets one line a problem."""


def closing(run: Run) -> RenderableType:
    """The closing table of ``run``."""
    digest = gather(run)
    parts: list[RenderableType] = []
    if len(digest.rows) <= MOST_ROWS:
        parts.append(Terminal(tables.closing(digest)))
    else:
        parts.append(Terminal(tables.brief_winners(digest)))
        parts += [Text(sentence) for _, sentence in choices(digest)]
    parts.append(Text(_legend(digest), style="dim"))
    parts.append(Text(f"Measured: {measured(digest)}"))
    parts += [Text(notice, style="yellow") for notice in notices(digest)]
    return Lines(*parts)


def _legend(digest: Digest) -> str:
    sentences = [
        f"Latency: {digest.regime}, median of {text.plural(digest.rounds, 'round')}; memory: peak above inputs.",
        f"×: ratio to {digest.baseline} [95 % interval]. ★: best, or not to be told from the best.",
    ]
    if len(digest.rows) <= MOST_ROWS and any(row.chosen for row in digest.rows):
        sentences.append("In brackets: the engine that auto chose.")
    if any(not row.like_baseline for row in digest.rows):
        sentences.append(f"{UNLIKE}: computes another function than the baseline.")
    return " ".join(sentences)
