"""Reports of runs: HTML, Markdown, a table, plots, and what is printed at the end of a run. Nothing here loads
torch.

Heavy libraries (matplotlib, pandas) are loaded by the calls, not by the import.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from niffbench.errors import UsageError

if TYPE_CHECKING:
    from rich.console import RenderableType

    from niffbench.results import Run

__all__ = ["draw", "save", "terminal", "write"]


def write(runs: Run | Sequence[Run], directory: Path) -> Path:
    """Write ``report.html``, ``report.md``, ``table.csv`` and ``plots/`` into ``directory``; return the page's
    path.

    Several runs are put side by side, the first being what the others are compared with. Each file is written
    whole or not at all, the page last; equal runs give equal bytes.

    Raises UsageError when ``directory`` cannot be written, or was removed meanwhile: a run's directory is not
    made anew without its records. ValueError without a run.
    """
    from niffbench.report.files import make_directory

    was_there = directory.is_dir()
    files = draw(runs)
    if was_there and not directory.is_dir():
        raise UsageError(f"{directory}: was removed while the report was drawn; nothing was written")
    if not was_there:
        make_directory(directory)
    return save(files, directory)


def draw(runs: Run | Sequence[Run]) -> dict[str, str | bytes]:
    """What :func:`write` writes, by the files' paths in the report's directory; this is what takes its time."""
    from niffbench.report.writing import draw as draw_files

    return draw_files(runs)


def save(files: Mapping[str, str | bytes], directory: Path) -> Path:
    """Write what :func:`draw` gave into ``directory``, which is there.

    Raises UsageError when it cannot be written, or is removed meanwhile.
    """
    from niffbench.report.writing import save as save_files

    return save_files(files, directory)


def terminal(run: Run) -> RenderableType:
    """What a run ends with on a terminal: per problem, operators in latency, memory and FLOPs, winners marked."""
    from niffbench.report.console import closing

    return closing(run)
