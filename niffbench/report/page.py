"""The page: one HTML file that needs no network, with all text from records escaped."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence
from importlib.resources import files
from math import isfinite

from niffbench import __version__
from niffbench.report import tables, text
from niffbench.report.comparison import pairs, table, unlike
from niffbench.report.plots.canvas import Plot
from niffbench.report.tables import Column, Item
from niffbench.report.view import View

MOST_FINDINGS = 7
"""Findings on the first screen; the others are one click away."""
_WIDE_TEXT = 48


def page(views: Sequence[View], side: Plot | None) -> str:
    """The HTML of a report on one run or several; ``side`` is the plot of run against run."""
    from jinja2 import Environment, StrictUndefined

    assets = files("niffbench.report").joinpath("templates")
    script = "\n" + assets.joinpath("report.js").read_text(encoding="utf-8")
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    template = environment.from_string(assets.joinpath("report.html.j2").read_text(encoding="utf-8"))
    digests = [view.digest for view in views]
    several = len(digests) > 1
    return template.render(
        title=title(views),
        lead=lead(views),
        views=views,
        compared=table(digests, pairs(digests)) if several else None,
        apart=unlike(digests) if several else (),
        side=side,
        fingerprint=tables.fingerprints(digests),
        most_findings=MOST_FINDINGS,
        css=assets.joinpath("report.css").read_text(encoding="utf-8"),
        js=script,
        script_hash=f"sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}",
        version=__version__,
        zip=zip,
        classes=_classes,
        number=_number,
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


def _classes(column: Column, item: Item) -> str | None:
    wide = "wrap" if len(item.show) > _WIDE_TEXT or len(item.note) > _WIDE_TEXT else ""
    return " ".join(filter(None, ("number" if column.numeric else "", item.mark, wide))) or None


def _number(value: float | None) -> str | None:
    return repr(float(value)) if value is not None and isfinite(value) else None
