"""A table as data. Every output of niffbench builds its tables from this one, and ``writers/`` sets them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

Kind = Literal["name", "word", "figure", "prose", "group"]
"""What a column holds.

``name``: identifiers, wrapped at their own seams where room is short. ``word``: a few short words, never broken.
``figure``: numbers, set right and never broken. ``prose``: sentences. ``group``: what neighbouring rows share; a
terminal and a paper show it as a heading above them, other outputs as a column.
"""

Mark = Literal["winner", "tied", "unlike", "baseline", "failed", "undecided", "passed", "quiet"]
"""What a cell means beyond its text; writers turn it into a sign, a weight or a colour."""

SIGNS: dict[Mark, str] = {"tied": "≈ ", "unlike": "≁"}
"""Signs that every writer puts before the text."""

UNLIKE = SIGNS["unlike"]
"""Marks a ratio to something that computes another function, or at another boundary."""

ESSENTIAL = 9
"""The importance of a column that is never dropped."""


@dataclass(frozen=True)
class Entry:
    """One cell.

    Args:
        text: What is read.
        note: Small print that belongs to it: the interval of a figure, the engine that an operator chose.
        value: A number to sort by, in the column's unit; None where there is none.
        marks: What the cell means.
        colour: Colour of the operator family that it names, ``#rrggbb``.
    """

    text: str
    note: str = ""
    value: float | None = None
    marks: tuple[Mark, ...] = ()
    colour: str = ""

    @property
    def shown(self) -> str:
        """The text with its signs."""
        return "".join(SIGNS.get(mark, "") for mark in self.marks) + self.text


@dataclass(frozen=True)
class Column:
    """One column.

    Args:
        title: Its heading.
        kind: What it holds.
        key: What a program calls it; the title where nothing else is said.
        unit: Of the entries' ``value``: ``s``, ``B``.
        hint: What it means, in a sentence.
        importance: Where room is short, the least important column goes first, and one of ``ESSENTIAL`` never.
    """

    title: str
    kind: Kind = "name"
    key: str = ""
    unit: str = ""
    hint: str = ""
    importance: int = ESSENTIAL

    @property
    def align(self) -> Literal["left", "right"]:
        """On which side its entries are set."""
        return "right" if self.kind == "figure" else "left"


@dataclass(frozen=True)
class Row:
    """One row, an entry for each column; ``anchor`` is what a link to it ends in."""

    entries: tuple[Entry, ...]
    anchor: str = ""


def row_of(*cells: Entry | str, anchor: str = "") -> Row:
    """A row of entries, or of texts that have nothing to add."""
    return Row(tuple(cell if isinstance(cell, Entry) else Entry(cell) for cell in cells), anchor)


@dataclass(frozen=True)
class Table:
    """A table. ``name`` is its anchor, ``caption`` is set below it."""

    name: str
    title: str
    columns: tuple[Column, ...]
    rows: tuple[Row, ...]
    caption: str = ""

    def only(self, *keys: str) -> Table:
        """The table with the columns of these keys, in this order, as far as it has them."""
        return self._of([place for key in keys for place, column in enumerate(self.columns) if key == column.key])

    def without(self, *titles: str) -> Table:
        """The table without the columns of these titles."""
        places = [place for place, column in enumerate(self.columns) if column.title not in titles]
        return self._of(places)

    def _of(self, places: Sequence[int]) -> Table:
        return replace(
            self,
            columns=tuple(self.columns[place] for place in places),
            rows=tuple(replace(each, entries=tuple(each.entries[p] for p in places)) for each in self.rows),
        )

    def grouped(self) -> Iterator[tuple[str, tuple[int, ...], list[Row]]]:
        """Neighbouring rows under what they share: heading, the places of the other columns, rows."""
        groups = [place for place, column in enumerate(self.columns) if column.kind == "group"]
        others = tuple(place for place, column in enumerate(self.columns) if column.kind != "group")
        heading, some = "", list[Row]()
        for each in self.rows:
            here = ", ".join(each.entries[place].shown for place in groups)
            if here != heading and some:
                yield heading, others, some
                some = []
            heading = here
            some.append(each)
        if some:
            yield heading, others, some
