"""Reports of runs: HTML, Markdown, a table, plots, and what is printed at the end of a run. Nothing here loads
torch.

Heavy libraries (matplotlib, pandas, scipy) are loaded by the calls, not by the import.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from niffbench.errors import UsageError

if TYPE_CHECKING:
    from rich.console import RenderableType

    from niffbench.results import Run

__all__ = ["EXPORTS", "draw", "make_directory", "save", "terminal", "write", "write_whole"]

PAGE = "report.html"
EXPORTS = ("csv", "parquet", "pytest-benchmark", "github-action-benchmark", "bencher", "openmetrics")
"""Formats of :func:`niffbench.report.exports.export`."""


def write(runs: Run | Sequence[Run], directory: Path) -> Path:
    """Write a report into ``directory``; return its page's path.

    The files are ``report.html``, ``report.md``, ``table.csv``, ``plots/`` and, of one run, ``findings.json``.

    Several runs are put side by side, the first being what the others are compared with; so are the machines of
    one run whose nodes are unlike. Each file is written
    whole or not at all, the page last; equal runs give equal bytes.

    Raises:
        ValueError: without a run.
        UsageError: when ``directory`` cannot be written, or was removed meanwhile: a run's directory is not
            made anew without its records.
    """
    was_there = directory.is_dir()
    files = draw(runs)
    if was_there and not directory.is_dir():
        raise UsageError(f"{directory}: was removed while the report was drawn; nothing was written")
    if not was_there:
        make_directory(directory)
    return save(files, directory)


def draw(runs: Run | Sequence[Run]) -> dict[str, str | bytes]:
    """What :func:`write` writes, by the files' paths in the report's directory; this is what takes its time."""
    import matplotlib

    from niffbench.report import pages
    from niffbench.report.comparison import pairs
    from niffbench.report.exports import findings_of, spreadsheet, written
    from niffbench.report.plots.canvas import settings
    from niffbench.report.plots.dots import side_by_side
    from niffbench.report.plots.palette import styles
    from niffbench.report.view import view
    from niffbench.results import Run
    from niffbench.results.fleet import machines

    directories = [runs] if isinstance(runs, Run) else list(runs)
    given = [one for run in directories for one in machines(run)]
    if not given:
        raise ValueError("a report needs at least one run")
    views = [view(run) for run in given]
    names = [each.digest.name for each in views]
    for place, name in enumerate(names):
        if names.count(name) > 1:
            unique = replace(views[place].digest, name=f"{name} ({place + 1})")
            views[place] = replace(views[place], digest=unique)
    digests = [each.digest for each in views]
    plots = {
        f"r{place}-{plot.name}" if len(views) > 1 else plot.name: plot
        for place, each in enumerate(views)
        for plot in each.plots
    }
    side = None
    if len(views) > 1:
        drawn = styles((row.label, row.kin) for digest in digests for row in digest.rows)
        with matplotlib.rc_context(dict(settings())):
            side = side_by_side(digests, pairs(digests), drawn)
    plots |= {side.name: side} if side else {}
    return {
        **{f"plots/{name}.svg": plot.svg for name, plot in plots.items()},
        **{f"plots/{name}.png": plot.png for name, plot in plots.items()},
        **({"findings.json": written(findings_of(directories[0], views))} if len(directories) == 1 else {}),
        "table.csv": spreadsheet(digests),
        "report.md": pages.document(views, side),
        PAGE: pages.page(views, side),
    }


def save(files: Mapping[str, str | bytes], directory: Path) -> Path:
    """Write what :func:`draw` gave into ``directory``, which is there.

    Raises:
        UsageError: when it cannot be written, or is removed meanwhile.
    """
    try:
        for name, content in files.items():
            place = (directory / name).parent
            if place != directory:
                with suppress(OSError):  # a directory that was removed stays so, and writing into it tells
                    place.mkdir(exist_ok=True)
            write_whole(directory / name, content)
    except UsageError as error:
        if directory.is_dir():
            raise
        raise UsageError(f"{directory}: was removed while the report was written") from error
    return directory / PAGE


def terminal(run: Run) -> RenderableType:
    """What a run ends with on a terminal: per problem, operators in latency, memory and FLOPs, winners marked."""
    from rich.console import Group

    from niffbench.report.pages import summary_table
    from niffbench.results.fleet import machines

    kinds = machines(run)
    if len(kinds) == 1:
        return summary_table(run)
    return Group(*(part for kind in kinds for part in (f"{kind.name}:", summary_table(kind))))


def make_directory(path: Path) -> None:
    """Make ``path``, and what it is in, where it is not there.

    Raises:
        UsageError: when it cannot be made.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"{path}: cannot be made ({error.strerror or error})") from error


def write_whole(path: Path, content: str | bytes) -> None:
    """Write ``path`` by way of a temporary file beside it, so that an interrupt leaves the old file or the new
    one.

    Raises:
        UsageError: when the place cannot be written, or is not there.
    """
    data = content.encode() if isinstance(content, str) else content
    temporary = None
    try:
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        with os.fdopen(handle, "wb") as file:
            file.write(data)
        Path(temporary).chmod(0o644)
        Path(temporary).replace(path)
    except OSError as error:
        raise UsageError(f"{path}: cannot be written ({error.strerror or error})") from error
    finally:
        if temporary is not None:
            Path(temporary).unlink(missing_ok=True)
