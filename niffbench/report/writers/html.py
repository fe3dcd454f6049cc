"""A table as HTML: searched and sorted by the page's script, with all text escaped."""

from __future__ import annotations

from functools import cache
from importlib.resources import files
from math import isfinite
from typing import TYPE_CHECKING

from niffbench.report.table import Column, Entry, Table
from niffbench.report.text import clean

if TYPE_CHECKING:
    from jinja2 import Environment
    from markupsafe import Markup

SEARCHED = 12
"""Rows above which a table gets a box to search it."""
_WIDE_TEXT = 48


@cache
def environment() -> Environment:
    """The templates, and what they call."""
    from jinja2 import Environment, FunctionLoader, StrictUndefined

    made = Environment(
        loader=FunctionLoader(asset),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.globals.update(zip=zip, clean=clean, classes=_classes, number=_number, table=write, searched=_searched)
    return made


def asset(name: str) -> str:
    """A file of ``templates/``."""
    return files("niffbench.report").joinpath("templates", name).read_text(encoding="utf-8")


def write(table: Table, prefix: str = "", kind: str = "") -> Markup:
    """The table; ``prefix`` goes before its anchors, ``kind`` ``cards`` sets each row as a card on a phone."""
    from markupsafe import Markup

    return Markup(environment().get_template("table.html.j2").render(t=table, prefix=prefix, kind=kind))


def _searched(table: Table) -> bool:
    """Whether a table gets a box to search it: a long one, and one that others link into."""
    return len(table.rows) > SEARCHED or any(each.anchor for each in table.rows)


def _classes(column: Column, entry: Entry) -> str | None:
    wide = "wrap" if len(entry.text) > _WIDE_TEXT or len(entry.note) > _WIDE_TEXT else ""
    return " ".join(filter(None, ("number" if column.align == "right" else "", *entry.marks, wide))) or None


def _number(value: float | None) -> str | None:
    return repr(float(value)) if value is not None and isfinite(value) else None
