"""A table on a terminal: at any width, figures stay whole and names stay readable.

Where room is short, in this order: names are wrapped at their own seams, notes go below their figures, sentences
below their rows, and then columns are dropped, the least important first. What was dropped is named.
"""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from rich.cells import cell_len
from rich.console import Console, ConsoleOptions
from rich.text import Text

from niffbench.report.table import ESSENTIAL, Entry, Mark, Row, Table
from niffbench.report.text import clean, listing

STYLES: Mapping[Mark, str] = {
    "winner": "green",
    "baseline": "bold",
    "failed": "red",
    "undecided": "yellow",
    "passed": "green",
    "quiet": "dim",
}
_PIECES = re.compile(r"[^/\-_@·, ]*[/\-_@·, ]+|[^/\-_@·, ]+")
_RIGID = ("figure", "word")
"""Kinds of columns whose entries are never broken."""
_Names = Literal["whole", "split", "wrapped"]
_ATTEMPTS: tuple[tuple[int, _Names, bool], ...] = (
    (2, "whole", False),
    (2, "split", False),
    (2, "split", True),
    (1, "split", True),
    (2, "wrapped", False),
    (2, "wrapped", True),
    (1, "wrapped", True),
)
"""What is tried, the most readable first: the gap between columns; names whole, with their notes below, or
wrapped; and whether the notes of figures stand below them."""
_AT_EASE = 4
"""The attempts in which there is room for sentences beside their rows."""
_NARROWEST_PROSE = 28
"""Columns that a sentence wants beside its row; with fewer it goes below."""
_NARROWEST_NAME = 6
"""Columns in which a name is broken wherever it must be, when nothing else is left."""
_LONGEST = 400
"""Characters of one cell; records come from strangers."""


def console(*, stderr: bool = False) -> Console:
    """A console as wide as the terminal, and 80 columns where there is none (or as ``COLUMNS`` says)."""
    return Console(stderr=stderr, highlight=False, markup=False, soft_wrap=False)


@dataclass(frozen=True)
class Terminal:
    """A table for rich to print."""

    table: Table
    titled: bool = True

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[Text]:
        """Yield its lines."""
        for line in lines(self.table, options.max_width, titled=self.titled):
            line.no_wrap, line.overflow = True, "ignore"
            yield line


@dataclass(frozen=True)
class Layout:
    """How a table is set at some width.

    Args:
        widths: Of the columns that stand side by side, by their place in the table.
        gap: Spaces between two columns.
        stacked: Whether notes stand below their figures.
        below: Places of the columns that stand below their rows.
        dropped: Places of the columns that there is no room for.
    """

    widths: Mapping[int, int]
    gap: int
    stacked: bool
    below: tuple[int, ...] = ()
    dropped: tuple[int, ...] = ()

    @property
    def width(self) -> int:
        """The length of its longest line but for headings and what stands below."""
        return sum(self.widths.values()) + self.gap * max(len(self.widths) - 1, 0)


def layout(table: Table, width: int) -> Layout:
    """How ``table`` is set in ``width`` columns: with as little lost as that allows."""
    shown = [place for place, column in enumerate(table.columns) if column.kind != "group"]
    sizes = {place: _sizes(table, place) for place in shown}
    prose = tuple(place for place in shown if table.columns[place].kind == "prose")
    dropped: list[int] = []
    while True:
        for below in ((), prose) if prose and len(shown) > len(prose) else ((),):
            beside = [place for place in shown if place not in below]
            for gap, names, stacked in _ATTEMPTS[: _AT_EASE if prose and not below else None]:
                limits = {place: sizes[place].limits(names, stacked=stacked) for place in beside}
                if (widths := _shared(limits, width - gap * (len(beside) - 1))) is not None:
                    return Layout(widths, gap, stacked, below, tuple(sorted(dropped)))
        droppable = [place for place in shown if table.columns[place].importance < ESSENTIAL]
        if not droppable:
            return _squeezed(table, shown, sizes, width, tuple(sorted(dropped)))
        least = min(droppable, key=lambda place: (table.columns[place].importance, -place))
        shown.remove(least)
        prose = tuple(place for place in prose if place != least)
        dropped.append(least)


@dataclass(frozen=True)
class _Sizes:
    """What one column needs: whole, with its notes below, and its longest piece that should not be broken."""

    kind: str
    whole: int
    stacked: int
    piece: int

    def limits(self, names: _Names, *, stacked: bool) -> tuple[int, int]:
        """The least and the greatest width that make sense."""
        if self.kind in _RIGID:
            size = self.stacked if stacked else self.whole
            return size, size
        if self.kind == "prose":
            return min(self.whole, max(_NARROWEST_PROSE, self.piece)), self.whole
        return {"whole": self.whole, "split": self.stacked, "wrapped": min(self.piece, self.stacked)}[
            names
        ], self.whole


def _sizes(table: Table, place: int) -> _Sizes:
    column, entries = table.columns[place], [each.entries[place] for each in table.rows]
    title = max(map(cell_len, column.title.split()), default=0)
    flows = [_flow(entry, column.kind) for entry in entries]
    return _Sizes(
        column.kind,
        max([title, *map(cell_len, flows)]),
        max([title, *(max(cell_len(_head(entry)), cell_len(_note(entry, column.kind))) for entry in entries)]),
        max([title, *map(_longest_piece, flows)]) if column.kind not in _RIGID else 0,
    )


def _shared(limits: Mapping[int, tuple[int, int]], room: int) -> dict[int, int] | None:
    """Widths between their limits that fill ``room`` at most; None where there is too little of it."""
    widths = {place: least for place, (least, _) in limits.items()}
    extra = room - sum(widths.values())
    if extra < 0:
        return None
    growing = sorted(limits, key=lambda place: limits[place][1] - limits[place][0])
    for number, place in enumerate(growing):
        more = min(limits[place][1] - limits[place][0], extra // (len(growing) - number))
        widths[place] += more
        extra -= more
    return {place: widths[place] for place in limits}


def _squeezed(
    table: Table, shown: Sequence[int], sizes: Mapping[int, _Sizes], width: int, dropped: tuple[int, ...]
) -> Layout:
    """Essential columns alone, names broken wherever they must be: figures keep their width, whatever it is."""
    below = tuple(place for place in shown if table.columns[place].kind == "prose")
    below = below if len(below) < len(shown) else ()
    beside = [place for place in shown if place not in below]
    figures = {place: sizes[place].stacked for place in beside if table.columns[place].kind in _RIGID}
    names = [place for place in beside if place not in figures]
    room = width - sum(figures.values()) - (len(beside) - 1)
    widths = dict(figures)
    for number, place in enumerate(names):
        share = max(room // (len(names) - number), _NARROWEST_NAME)
        widths[place] = min(share, sizes[place].whole)
        room -= widths[place]
    return Layout({place: widths[place] for place in beside}, 1, True, below, dropped)


def lines(table: Table, width: int, *, titled: bool = True) -> Iterator[Text]:
    """The lines of ``table``, none of them longer than ``width`` unless its essential columns are."""
    plan = layout(table, width)
    if titled and table.title:
        yield from (Text(line, "bold") for line in wrap(clean(table.title, _LONGEST), width))
    yield from _side_by_side([(i, [Text(t, "bold") for t in _heading(table.columns[i].title, w)])
                              for i, w in plan.widths.items()], table, plan)  # fmt: skip
    for number, (heading, _, rows) in enumerate(table.grouped()):
        if heading:
            if number:
                yield Text("")
            yield from (Text(line, "bold") for line in wrap(clean(heading, _LONGEST), width))
        for each in rows:
            yield from _row(each, table, plan, width)
    if plan.dropped:
        names = [
            (table.columns[place].key or table.columns[place].title).replace("_", " ") for place in plan.dropped
        ]
        note = f"left out at this width: {listing(names, len(names))}"
        yield from (Text(line, "dim") for line in wrap(note, width))


def _row(each: Row, table: Table, plan: Layout, width: int) -> Iterator[Text]:
    cells = [
        (place, _cell(each.entries[place], table.columns[place].kind, size, plan.stacked))
        for place, size in plan.widths.items()
    ]
    yield from _side_by_side(cells, table, plan)
    for place in plan.below:
        entry = each.entries[place]
        if not entry.text:
            continue
        style = _style(entry)
        yield from (Text(f"  {line}", style) for line in wrap(_flow(entry, "prose"), max(width - 2, 8)))


def _side_by_side(cells: Iterable[tuple[int, list[Text]]], table: Table, plan: Layout) -> Iterator[Text]:
    columns = list(cells)
    for number in range(max((len(texts) for _, texts in columns), default=0)):
        line = Text()
        for place, texts in columns:
            part = texts[number] if number < len(texts) else Text()
            room = max(plan.widths[place] - part.cell_len, 0)
            if line or place != columns[0][0]:
                line.append(" " * plan.gap)
            if table.columns[place].align == "right":
                line.append(" " * room)
                line.append_text(part)
            else:
                line.append_text(part)
                line.append(" " * room)
        line.rstrip()
        yield line


def _cell(entry: Entry, kind: str, width: int, stacked: bool) -> list[Text]:
    style = _style(entry)
    if kind in _RIGID:
        if not (note := _note(entry, kind)):
            return [Text(_head(entry), style)]
        if stacked:
            return [Text(_head(entry), style), Text(note, style)]
        return [Text(f"{_head(entry)} {note}", style)]
    flow = _flow(entry, kind)
    if kind == "name" and entry.note and cell_len(flow) > width:
        return [Text(line, style) for part in (_head(entry), _note(entry, kind)) for line in wrap(part, width)]
    return [Text(line, style) for line in wrap(flow, width)]


def _style(entry: Entry) -> str:
    return " ".join(STYLES[mark] for mark in entry.marks if mark in STYLES)


def _head(entry: Entry) -> str:
    return ("★ " if "winner" in entry.marks else "") + clean(entry.shown, _LONGEST)


def _note(entry: Entry, kind: str) -> str:
    """The note as it is shown: those of figures are intervals and have brackets of their own."""
    note = clean(entry.note, _LONGEST)
    return f"({note})" if note and kind not in _RIGID else note


def _flow(entry: Entry, kind: str) -> str:
    """The entry in one line."""
    return f"{_head(entry)} {_note(entry, kind)}".rstrip()


def wrap(words: str, width: int) -> list[str]:
    """``words`` in lines of at most ``width`` columns, broken after ``/ - _ @ · ,`` and at spaces.

    Only what has no such seam within ``width`` is broken elsewhere. But for spaces at their ends, the lines put
    together are ``words`` again.
    """
    out, line = [], ""
    for piece in _PIECES.findall(words):
        if line and cell_len(line + piece.rstrip()) > width:
            out.append(line.rstrip())
            line = ""
        while cell_len(piece.rstrip()) > width:
            head = _leading(piece, width)
            out.append(head)
            piece = piece[len(head) :]
        line += piece
    return [*out, line.rstrip()] if line.strip() or not out else out


def _heading(title: str, width: int) -> list[str]:
    """A column's title in lines, broken at spaces alone."""
    return textwrap.wrap(title, max(width, 1), break_on_hyphens=False) or [""]


def _leading(piece: str, width: int) -> str:
    """The first characters of ``piece`` that fit, one at least."""
    end = 1
    while end < len(piece) and cell_len(piece[: end + 1]) <= width:
        end += 1
    return piece[:end]


def _longest_piece(words: str) -> int:
    return max((cell_len(piece.rstrip()) for piece in _PIECES.findall(words)), default=0)
