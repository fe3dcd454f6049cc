r"""A table for a paper: LaTeX with booktabs, UTF-8.

The preamble needs ``\usepackage{booktabs}`` and, for the signs, ``\usepackage{amssymb}``.
"""

from __future__ import annotations

import re

from niffbench.report.table import Entry, Table
from niffbench.report.text import MISSING, clean

_SPECIAL = {
    "\\": r"\textbackslash{}",
    "{": r"\{",
    "}": r"\}",
    "$": r"\$",
    "&": r"\&",
    "%": r"\%",
    "#": r"\#",
    "_": r"\_",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    "[": "{[}",  # after a line break, a bracket would be an argument of it
    "]": "{]}",
    "×": r"$\times$",
    "·": r"$\cdot$",
    "±": r"$\pm$",
    "²": r"$^2$",
    "→": r"$\to$",
    "≈": r"$\approx$",
    "≁": r"$\nsim$",
    "✓": r"$\checkmark$",
    "✗": r"$\times$",
    "★": r"$\star$",
    "µ": r"\textmu{}",
    "–": "--",
    "—": "---",
    "…": r"\dots{}",
    "“": "``",
    "”": "''",
}
_SUPERSCRIPT = str.maketrans("⁻⁰¹²³⁴⁵⁶⁷⁸⁹", "-0123456789")


def escape(text: str, longest: int = 400) -> str:
    """Text as LaTeX prints it."""
    parts = re.split(r"([⁻⁰¹³⁴⁵⁶⁷⁸⁹][⁻⁰¹²³⁴⁵⁶⁷⁸⁹]*)", clean(text, longest))
    return "".join(
        f"$^{{{part.translate(_SUPERSCRIPT)}}}$" if place % 2 else "".join(_SPECIAL.get(c, c) for c in part)
        for place, part in enumerate(parts)
    )


def write(table: Table) -> str:
    """A ``table`` environment: caption, label, and a ``tabular`` whose groups have headings of their own."""
    shown = [column for column in table.columns if column.kind != "group"]
    sides = "".join("r" if column.align == "right" else "l" for column in shown)
    out = [
        r"% needs \usepackage{booktabs} and \usepackage{amssymb}",
        r"\begin{table}",
        r"\centering",
        rf"\caption{{{escape(' '.join(filter(None, (f'{table.title}.', table.caption))), 1000)}}}",
        rf"\label{{tab:{re.sub(r'[^A-Za-z0-9-]', '-', table.name)}}}",
        rf"\begin{{tabular}}{{@{{}}{sides}@{{}}}}",
        r"\toprule",
        " & ".join(escape(column.title) for column in shown) + r" \\",
    ]
    for heading, places, rows in table.grouped():
        out.append(r"\midrule")
        if heading:
            out.append(rf"\multicolumn{{{len(shown)}}}{{@{{}}l}}{{\textit{{{escape(heading)}}}}} \\")
        out += [" & ".join(_entry(each.entries[place]) for place in places) + r" \\" for each in rows]
    if not table.rows:
        out.append(r"\midrule")
    return "\n".join([*out, r"\bottomrule", r"\end{tabular}", r"\end{table}"]) + "\n"


def _entry(entry: Entry) -> str:
    shown = escape(entry.shown)
    if "winner" in entry.marks and entry.text != MISSING:
        shown = rf"\textbf{{{shown}}}"
    return f"{shown} {{\\footnotesize {escape(entry.note)}}}" if entry.note else shown
