"""A table as CSV, for spreadsheets and scripts."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Mapping, Sequence

from niffbench.report.table import Table
from niffbench.report.text import clean


def write(table: Table) -> str:
    """Numbers in base units where entries have one, else their text; notes have columns of their own."""
    notes = [any(each.entries[place].note for each in table.rows) for place in range(len(table.columns))]
    names: list[str] = []
    for column, noted in zip(table.columns, notes, strict=True):
        name = column.key or column.title
        names += [f"{name} ({column.unit})" if column.unit else name, *([f"{name}, note"] if noted else [])]
    lines = []
    for each in table.rows:
        line: list[object] = []
        for entry, noted in zip(each.entries, notes, strict=True):
            line += [entry.shown if entry.value is None else entry.value, *([entry.note] if noted else [])]
        lines.append(line)
    return _written(names, lines)


def records(lines: Sequence[Mapping[str, object]], names: Sequence[str]) -> str:
    """Lines with the same keys, of which ``names`` become columns."""
    return _written(names, ([line.get(name) for name in names] for line in lines))


def _written(names: Sequence[str], lines: Iterable[Sequence[object]]) -> str:
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(map(safe, names))
    writer.writerows([safe(value) for value in line] for line in lines)
    return out.getvalue()


def safe(value: object) -> object:
    """Text on one line; what a spreadsheet would take for a formula gets an apostrophe in front."""
    if not isinstance(value, str):
        return value
    line = clean(value, 400)
    return f"'{line}" if line.startswith(("=", "+", "-", "@")) else line
