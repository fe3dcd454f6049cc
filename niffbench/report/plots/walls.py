"""Memory walls: how far each operator got before the device's memory ended."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from niffbench.report import text
from niffbench.report.digest import Digest, Row
from niffbench.report.plots.canvas import (
    INK,
    MUTED,
    PAPER,
    Margins,
    Plot,
    evenly,
    finish,
    legend,
    legend_height,
    log_axis,
    sheet,
)
from niffbench.report.plots.palette import Style

MARKS = 60
"""Problems on one line."""


def walled(digest: Digest) -> list[Row]:
    """Rows that ran out of memory, or were skipped because they would have."""
    return [row for row in digest.rows if "oom" in row.statuses or (row.value("needed") and not row.ok)]


def walls(digest: Digest, styles: Mapping[str, Style]) -> Plot | None:
    """Memory against the input's size, for the operators that met the wall; crosses did not fit."""
    hit = walled(digest)
    labels = list(dict.fromkeys(row.label for row in hit))[:10]
    limit = min((available for row in hit if (available := row.value("available"))), default=None)
    if not labels or limit is None:
        return None
    used = {label: styles[label] for label in labels}
    width = 7.4
    figure, [[axis]] = sheet(
        1, 1, (width - 1.15, 2.9), Margins(left=0.95, right=0.2), below=legend_height(labels, width)
    )
    extent: list[float] = [float(limit)]
    sizes: list[float] = []
    for label, setting in dict.fromkeys((row.label, _setting(row)) for row in hit):
        style = used.get(label)
        if style is None:
            continue
        rows = evenly(
            sorted((r for r in digest.rows if r.label == label and _setting(r) == setting), key=_input), MARKS
        )
        fits = [(_input(row), _total(row)) for row in rows if row.ok and _total(row)]
        fails = [(_input(row), float(row.value("needed") or limit)) for row in rows if row in hit]
        axis.plot(*_columns(fits), color=style.colour, linestyle=style.dash, marker=style.marker,
                  markeredgecolor=PAPER, markeredgewidth=0.5, zorder=3)  # fmt: skip
        axis.plot(*_columns(fails), color=style.colour, linestyle="none", marker="x", markersize=7,
                  markeredgewidth=1.8, zorder=4)  # fmt: skip
        extent += [y for _, y in (*fits, *fails)]
        sizes += [x for x, _ in (*fits, *fails)]
    axis.axhline(limit, color=INK, linewidth=1.1, zorder=1)
    log_axis(axis, "x", sizes, text.size_of, base=2)
    log_axis(axis, "y", extent, text.size_of, base=2)
    axis.annotate(f"available, {text.size_of(limit)}", (min(sizes), limit), xytext=(2, 4),
                  textcoords="offset points", fontsize=8, color=MUTED)  # fmt: skip
    axis.set_xlabel("input")
    axis.set_ylabel("resident and peak memory")
    legend(figure, used)
    return finish(
        figure,
        name="walls",
        title="Memory walls",
        alt=f"Memory against input size for {text.listing(labels, 10)}; crosses mark what did not fit into "
        f"{text.size_of(limit)}. The table of what failed lists them.",
        caption="Marks fitted, crosses did not: at the bytes that were asked for or predicted, where known. "
        "A line is one operator in one mode, batch and channel count, over the resolution.",
        wide=False,
    )


def _setting(row: Row) -> tuple[object, ...]:
    """What a line holds fixed: all but the resolution."""
    p = row.case.problem
    return p.batch, p.channels, p.channels_out, p.mode, p.precision, p.memory_format, row.case.execution


def _input(row: Row) -> float:
    problem = row.case.problem
    return float(problem.batch * problem.channels * problem.height * problem.width * problem.element_bytes)


def _total(row: Row) -> float:
    return (row.value("memory_peak") or 0.0) + (row.value("memory_resident") or 0.0)


def _columns(points: Sequence[tuple[float, float]]) -> tuple[list[float], list[float]]:
    return [x for x, _ in points], [y for _, y in points]
