"""A table as GitHub's Markdown: escaped, so that it mentions nobody and links nowhere."""

from __future__ import annotations

from niffbench.report.table import Entry, Table
from niffbench.report.text import MISSING, markdown, plural

_FOLDED = 12
"""Rows above which a table is folded away."""


def write(table: Table, most: int | None = None) -> str:
    """Head, rule and at most ``most`` rows, and below them the caption and how many rows were left out."""
    heads = "| " + " | ".join(markdown(column.title) for column in table.columns) + " |"
    rule = "|" + "|".join("---:" if column.align == "right" else "---" for column in table.columns) + "|"
    body = ["| " + " | ".join(map(_entry, each.entries)) + " |" for each in table.rows[:most]]
    left_out = len(table.rows) - len(body)
    caption = [markdown(table.caption, 800)] if table.caption else []
    caption += [f"{plural(left_out, 'row')} left out."] if left_out else []
    return "\n".join([heads, rule, *body]) + (f"\n\n{' '.join(caption)}" if caption else "")


def titled(table: Table, most: int | None = None) -> str:
    """The same below its title, folded away where it is long."""
    if min(len(table.rows), len(table.rows) if most is None else most) <= _FOLDED:
        return f"#### {markdown(table.title)}\n\n{write(table, most)}"
    return folded(table.title, write(table, most))


def folded(title: str, content: str) -> str:
    """Something behind its title, one click away."""
    return f"<details><summary>{markdown(title)}</summary>\n\n{content}\n\n</details>"


def _entry(entry: Entry) -> str:
    shown = markdown(entry.shown, 300)
    if "winner" in entry.marks and entry.text != MISSING:
        shown = f"**{shown}**"
    return f"{shown} {markdown(entry.note, 160)}" if entry.note else shown
