"""What a run ends with on a terminal: readable by a stranger, narrow enough for 100 columns."""

from __future__ import annotations

from rich.console import Group as Lines
from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from niffbench.report import text
from niffbench.report.digest import Digest, Group, Row
from niffbench.report.facts import choices, measured, notices
from niffbench.report.gather import gather
from niffbench.report.tables import UNLIKE
from niffbench.results import Metric, Run

MOST_ROWS = 80
"""Operator rows that are listed; a larger run gets one line a problem."""


def closing(run: Run) -> RenderableType:
    """The closing table of ``run``."""
    digest = gather(run)
    parts: list[RenderableType] = []
    if len(digest.rows) <= MOST_ROWS:
        parts += [_operators(digest, group) for group in digest.groups]
    else:
        parts.append(_problems(digest))
        parts += [Text(sentence) for _, sentence in choices(digest)]
    parts.append(Text(_legend(digest), style="dim"))
    parts.append(Text(f"Measured: {measured(digest)}"))
    parts += [Text(notice, style="yellow") for notice in notices(digest)]
    return Lines(*parts)


def _legend(digest: Digest) -> str:
    said = [
        f"Latency: {digest.regime}, median of {text.plural(digest.rounds, 'round')}; memory: peak above inputs."
    ]
    said.append(f"×: ratio to {digest.baseline} [95 % interval]. ★: best, or not to be told from the best.")
    if len(digest.rows) <= MOST_ROWS and any(row.chosen for row in digest.rows):
        said.append("In brackets: the engine that auto chose.")
    if any(not row.like_baseline for row in digest.rows):
        said.append(f"{UNLIKE}: computes another function than the baseline.")
    return " ".join(said)


def _operators(digest: Digest, group: Group) -> Table:
    table = Table(title=f"\n{group.label}", title_justify="left", box=None, padding=(0, 1, 0, 0), pad_edge=False)
    table.title_style = "bold"
    table.add_column("operator", overflow="fold", max_width=40)
    metrics, judged = digest.shown("terminal"), digest.metrics
    for metric in metrics:
        for heading in [metric.title.split()[-1], *(["×"] if metric in judged else [])]:
            table.add_column(heading, justify="right", no_wrap=True)
    for row in group.rows:
        is_base = group.baseline is not None and row.id == group.baseline.id
        name = Text(row.label + ("" if row.like_baseline else f" {UNLIKE}"), style="bold" if is_base else "")
        if row.chosen:
            name.append(f" ({row.chosen})", style="dim")
        if not row.ok:
            table.add_row(name, Text(row.status, style="red"))
            continue
        cells: list[Text] = []
        for metric in metrics:
            if metric in judged:
                cells += _pair(row, group, metric)
            else:
                cells.append(Text(text.quantity(row.value(metric.key), metric.unit)))
        table.add_row(name, *cells)
    return table


def _pair(row: Row, group: Group, metric: Metric) -> list[Text]:
    cell = row.cells.get(metric.key)
    if cell is None:
        return [Text(text.MISSING, style="dim")] * 2
    winner = group.winners.get(metric.key)
    best = winner is not None and winner.holds(row)
    style = "green" if best else ""
    value = Text(("★ " if best else "") + text.quantity(cell.estimate, metric.unit), style=style)
    if cell.ratio is None:
        return [value, Text("")]
    ends = f" {text.brackets(cell.ratio)}".rstrip() if metric.regime else ""
    return [value, Text(text.times(cell.ratio.estimate) + ends, style=style)]


def _problems(digest: Digest) -> Table:
    rows: list[list[Text]] = []
    for group in digest.groups:
        cells: list[Text] = []
        for metric in digest.metrics:
            winner = group.winners.get(metric.key)
            if winner is None:
                cells += [Text(text.MISSING, style="dim"), Text("")]
                continue
            ratio = winner.row.cells[metric.key].ratio
            unlike = "" if winner.row.like_baseline else UNLIKE
            cells += [
                Text(("≈ " if winner.tied else "") + winner.row.label, no_wrap=True, overflow="ellipsis"),
                Text(unlike + text.times(ratio.estimate) if ratio else ""),
            ]
        rows.append([Text(group.label), *cells])
    table = Table(box=None, padding=(0, 1), pad_edge=False)
    # Where there is no room, names are cut, and neither problems nor figures.
    problems, *columns = (max(cell.cell_len for cell in column) for column in zip(*rows, strict=True))
    table.add_column("problem", no_wrap=True, min_width=problems)
    for metric, figures in zip(digest.metrics, columns[1::2], strict=True):
        table.add_column(text.best(metric), max_width=26)
        table.add_column("×", justify="right", no_wrap=True, min_width=figures)
    for row in rows:
        table.add_row(*row)
    return table
