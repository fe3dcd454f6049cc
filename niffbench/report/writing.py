"""Writing a report: from runs to the files of its directory."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from niffbench.errors import UsageError
from niffbench.report.comparison import pairs
from niffbench.report.csv_table import csv_table
from niffbench.report.files import write_whole
from niffbench.report.markdown import document
from niffbench.report.page import page
from niffbench.report.plots.canvas import settings
from niffbench.report.plots.palette import styles
from niffbench.report.plots.side_by_side import side_by_side
from niffbench.report.view import View, view
from niffbench.results import Run

PAGE = "report.html"


def draw(runs: Run | Sequence[Run]) -> dict[str, str | bytes]:
    """See :func:`niffbench.report.draw`."""
    import matplotlib

    given = [runs] if isinstance(runs, Run) else list(runs)
    if not given:
        raise ValueError("a report needs at least one run")
    views = _named([view(run) for run in given])
    digests = [each.digest for each in views]
    side = None
    if len(views) > 1:
        drawn = styles((row.label, row.kin) for digest in digests for row in digest.rows)
        with matplotlib.rc_context(dict(settings())):
            side = side_by_side(digests, pairs(digests), drawn)
    plots = {f"{prefix}{plot.name}": plot for prefix, each in _prefixed(views) for plot in each.plots}
    plots |= {side.name: side} if side else {}
    files: dict[str, str | bytes] = {}
    for name, plot in plots.items():
        files[f"plots/{name}.svg"] = plot.svg
        files[f"plots/{name}.png"] = plot.png
    return {
        **files,
        "table.csv": csv_table(digests),
        "report.md": document(views, side),
        PAGE: page(views, side),
    }


def save(files: Mapping[str, str | bytes], directory: Path) -> Path:
    """See :func:`niffbench.report.save`."""
    try:
        for name, content in files.items():
            _make_below(directory, (directory / name).parent)
            write_whole(directory / name, content)
    except UsageError as error:
        if directory.is_dir():
            raise
        raise UsageError(f"{directory}: was removed while the report was written") from error
    return directory / PAGE


def _make_below(directory: Path, place: Path) -> None:
    """Make a directory in ``directory``, but not that itself: removed, it stays so."""
    if place != directory:
        with suppress(OSError):  # writing into it tells
            place.mkdir(exist_ok=True)


def _prefixed(views: Sequence[View]) -> list[tuple[str, View]]:
    """Each view with what its plots' files begin with, nothing where there is one run."""
    return [("" if len(views) == 1 else f"r{place}-", each) for place, each in enumerate(views)]


def _named(views: list[View]) -> list[View]:
    """Make equal names of runs different, by their number."""
    names = [each.digest.name for each in views]
    return [
        each
        if names.count(each.digest.name) == 1
        else replace(each, digest=replace(each.digest, name=f"{each.digest.name} ({place})"))
        for place, each in enumerate(views, start=1)
    ]
