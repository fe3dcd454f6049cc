"""The page: one HTML file that needs no network, with all text from records escaped."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence

from niffbench import __version__
from niffbench.report import tables, text
from niffbench.report.comparison import pairs, table, unlike
from niffbench.report.plots.canvas import Plot
from niffbench.report.view import View
from niffbench.report.writers.html import asset, environment

MOST_FINDINGS = 7
"""Findings on the first screen; the others are one click away."""


def page(views: Sequence[View], side: Plot | None) -> str:
    """The HTML of a report on one run or several; ``side`` is the plot of run against run."""
    script = "\n" + asset("report.js")
    digests = [view.digest for view in views]
    several = len(digests) > 1
    return (
        environment()
        .get_template("report.html.j2")
        .render(
            title=title(views),
            lead=lead(views),
            views=views,
            compared=table(digests, pairs(digests)) if several else None,
            apart=unlike(digests) if several else (),
            side=side,
            fingerprint=tables.fingerprints(digests),
            most_findings=MOST_FINDINGS,
            css=asset("report.css"),
            js=script,
            script_hash=f"sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}",
            version=__version__,
        )
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
