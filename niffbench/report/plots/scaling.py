"""Scaling: latency, memory and FLOPs along one axis, log–log, one line an operator, with fitted slopes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING

from niffbench.case import Case
from niffbench.report import text
from niffbench.report.digest import Digest, Row
from niffbench.report.plots.canvas import (
    INK,
    MUTED,
    PAPER,
    Margins,
    Plot,
    finish,
    legend,
    log_axis,
    measured_axis,
    sheet,
)
from niffbench.report.plots.palette import Style
from niffbench.report.slices import AXES, WORDS, Point, Slice, evenly, representative
from niffbench.report.trends import Growth, is_niff
from niffbench.results import Metric
from niffbench.suite.pairs import Axis, curve, fixed, position

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MOST = 3
"""Slices shown in one plot."""
SLOPES = 8
"""Slopes written into a panel; where there are more, one a family."""
MARKS = 24
"""Marks on a line; one of more points is marked at every other, third …"""
VARIANTS = 3
"""Kernel sizes of one operator shown where another axis is swept."""


def scaling(
    slices: Sequence[Slice], fits: Sequence[Growth], digest: Digest, styles: Mapping[str, Style]
) -> Plot | None:
    """One row a slice, one column a quantity. ``slices`` share an axis; ``fits`` are their growths."""
    chosen = representative(slices)
    curves = [_chosen(slice_, digest.probes) for slice_ in chosen]
    metrics = [m for m in digest.metrics if any(_line(c, m) for some in curves for c in some.values())]
    if not chosen or not metrics:
        return None
    axis_name: Axis = chosen[0].axis
    used = {
        name: styles[points[0].row.label]
        for some in curves
        for name, points in some.items()
        if any(_line(points, metric) for metric in metrics) or _wall({name: points})
    }
    columns = len(metrics)
    panel = (2.45, 2.0)
    margins = Margins(left=0.95, right=0.55, across=1.25, down=0.6)
    figure, axes = sheet(len(chosen), columns, panel, margins, named=list(used))
    for line, slice_, some in zip(axes, chosen, curves, strict=True):
        for axis, metric in zip(line, metrics, strict=True):
            slopes = {fit.operator: fit for fit in fits if fit.slice is slice_ and fit.metric.key == metric.key}
            _panel(axis, slice_, some, metric, styles, slopes)
            axis.set_ylabel(metric.title)
        line[0].set_title(slice_.fixed)
    for axis in axes[-1]:
        axis.set_xlabel(AXES[axis_name])
    legend(figure, used)
    left_out = len(slices) - len(chosen)
    more = f" {text.plural(left_out, 'further slice')} in the tables only." if left_out else ""
    word = WORDS[axis_name]
    level = f" Level lines have no {word}: their mark says which is which." if any(s.level for s in chosen) else ""
    probed = {id(row) for row in digest.probes}
    if any(id(point.row) in probed for some in curves for points in some.values() for point in points):
        level += f" Where there is no tick a {word} was measured for the crossovers."
    drawn = {id(slice_) for slice_ in chosen}
    if any(id(fit.slice) in drawn and fit.scaling.overall.slope.estimate is not None for fit in fits):
        level += " The number at a line's end is its fitted log–log slope."
    walls = any(map(_wall, curves))
    level += " Crosses did not fit: at the bytes asked for or predicted, where known." if walls else ""
    return finish(
        figure,
        name=f"scaling-{axis_name}",
        title=f"Scaling with {word}",
        alt=f"Log–log plots of {text.listing([m.title for m in metrics])} against {word} for "
        f"{text.listing(list(used), 20)}; the table of exponents holds the fitted slopes.",
        caption=f"Bars: {text.intervals(digest.round_counts)}.{level}{more}",
    )


def _chosen(slice_: Slice, probes: Sequence[Row]) -> dict[str, Sequence[Point]]:
    """The curves that are drawn: of an operator in many kernel sizes only a few, spread over the range.

    Each has the values that were measured for crossovers, too: no straight line hides a cliff between the suite's.
    """
    families: dict[str, list[str]] = {}
    for name, points in slice_.curves.items():
        families.setdefault(points[0].row.case.operator, []).append(name)
    shown = {
        name for names in families.values() for name in evenly(names, VARIANTS if slice_.axis != "kernel" else 99)
    }
    lines: dict[str, Sequence[Point]] = {}
    for name in (name for name in slice_.curves if name in shown):
        first = slice_.curves[name][0]
        more = [
            Point(at, row, first.group)
            for row in probes
            if _line_of(row.case, slice_.axis) == _line_of(first.row.case, slice_.axis)
            if (at := position(row.case, slice_.axis)) is not None
        ]
        lines[name] = sorted([*slice_.curves[name], *more], key=lambda point: point.at)
    places = slice_.positions
    for name, point in slice_.level.items():
        lines[name] = [Point(at, point.row, point.group) for at in (places[0], places[-1])]
    return lines


def _line_of(case: Case, axis: Axis) -> tuple[object, ...]:
    return fixed(case, axis), curve(case, axis)


def _line(points: Sequence[Point], metric: Metric) -> list[tuple[float, float, float | None, float | None]]:
    line = []
    for point in points:
        cell = point.row.cells.get(metric.key) if point.row.ok else None
        if cell is not None and cell.estimate > 0:
            low, high = (cell.value.low, cell.value.high) if cell.value.is_determined else (None, None)
            line.append((point.at, cell.estimate, low, high))
    return line


def _wall(curves: Mapping[str, Sequence[Point]]) -> list[tuple[float, float, float, str]]:
    """What ran out of memory, or was skipped because it would have: place, bytes needed and available, label."""
    rows = [(point.at, point.row) for points in curves.values() for point in points]
    hit = [(at, row) for at, row in rows if "oom" in row.statuses or (row.value("needed") and not row.ok)]
    return [
        (at, row.value("needed") or available, available, row.label)
        for at, row in hit
        if (available := row.value("available"))
    ]


def _panel(
    axis: Axes,
    slice_: Slice,
    curves: Mapping[str, Sequence[Point]],
    metric: Metric,
    styles: Mapping[str, Style],
    slopes: Mapping[str, Growth],
) -> None:
    lines = {name: line for name, points in curves.items() if (line := _line(points, metric))}
    values = [y for line in lines.values() for _, y, _, _ in line]
    if metric.family == "memory" and (wall := _wall(curves)):
        limit = min(available for _, _, available, _ in wall)
        for x, needed, _, label in wall:
            axis.plot(
                x, needed, color=styles[label].colour, marker="x", markersize=7, markeredgewidth=1.8, zorder=5
            )
        axis.axhline(limit, color=INK, linewidth=1.1, zorder=1)
        axis.annotate(f"available, {text.size_of(limit)}", (slice_.positions[0], limit), xytext=(2, 4),
                      textcoords="offset points", fontsize=8, color=MUTED)  # fmt: skip
        values += [limit, *(needed for _, needed, _, _ in wall)]
    measured_axis(axis, "x", slice_.positions, most=6)
    log_axis(
        axis, "y", values, partial(text.quantity, unit=metric.unit), base=2 if metric.unit == "B" else 10, most=5
    )
    ends: dict[str, list[tuple[float, str, str]]] = {}
    marked = _apart([name for name in lines if name in slice_.level], slice_.positions)
    for name, line in lines.items():
        style = styles[curves[name][0].row.label]
        level = name in slice_.level
        axis.plot(
            [x for x, *_ in line] if not level else [line[0][0], marked[name], line[-1][0]],
            [y for _, y, *_ in line] if not level else [line[0][1]] * 3,
            color=style.colour,
            linestyle=style.dash,
            marker=style.marker,
            markevery=[1] if level else -(-len(line) // MARKS),
            markeredgecolor=PAPER,
            markeredgewidth=0.5,
            alpha=0.9,
            zorder=4 if is_niff(curves[name][0].row) else 3,
        )
        bars = [(x, low, high) for x, _, low, high in line if low and high and high > low and not level]
        axis.vlines(*_columns(bars), color=style.colour, linewidth=1.2, zorder=2)
        slope = slopes[name].scaling.overall.slope.estimate if name in slopes else None
        if slope is not None:
            ends.setdefault(style.colour, []).append((line[-1][1], f"{slope:.2f}", style.colour))
    many = sum(map(len, ends.values())) > SLOPES
    _end_labels(
        axis, slice_.positions[-1], [end for some in ends.values() for end in (some[:1] if many else some)]
    )
    axis.tick_params(axis="both", labelcolor=MUTED)


def _apart(names: Sequence[str], positions: Sequence[float]) -> dict[str, float]:
    """Where each level line bears its marker: spread over the axis, so that lines which coincide show theirs."""
    first, last = positions[0], positions[-1]
    return {name: first * (last / first) ** ((i + 1) / (len(names) + 1)) for i, name in enumerate(names)}


def _columns(bars: Sequence[tuple[float, float, float]]) -> tuple[list[float], list[float], list[float]]:
    return [x for x, _, _ in bars], [low for _, low, _ in bars], [high for _, _, high in bars]


def _end_labels(axis: Axes, x: float, ends: Sequence[tuple[float, str, str]]) -> None:
    """Write each slope beside the end of its line, moved apart where they would touch."""
    points = 72 / axis.figure.dpi
    bottom, top = (float(axis.transAxes.transform((0, edge))[1]) * points for edge in (0, 1))
    ordered = sorted(ends)
    heights = [float(axis.transData.transform((x, y))[1]) * points for y, _, _ in ordered]
    for (y, label, colour), height, place in zip(ordered, heights, apart(heights, 9.0, bottom, top), strict=True):
        axis.annotate(label, (x, y), xytext=(6, place - height), textcoords="offset points",
                      fontsize=7.5, color=colour, va="center", annotation_clip=False)  # fmt: skip


def apart(places: Sequence[float], gap: float, low: float, high: float) -> list[float]:
    """Ascending places moved to lie ``gap`` apart, below ``high`` as far as there is room."""
    moved: list[float] = []
    for place in places:
        moved.append(max(place, low, moved[-1] + gap if moved else low))
    ceiling = high
    for index in reversed(range(len(moved))):
        moved[index] = max(min(moved[index], ceiling), low)
        ceiling = moved[index] - gap
    return moved
