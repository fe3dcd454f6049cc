"""The overview: every operator at every problem, as a ratio to the baseline (or absolute where there is none)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial

from niffbench.report import text
from niffbench.report.digest import Digest, Group, Row
from niffbench.report.plots.canvas import (
    FAINT,
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
from niffbench.results import Metric

MOST = 16
"""Problems in one plot."""
LANES = 0.62
"""The share of a problem's line over which its operators are spread, so that equal values stay apart."""


def overview(digest: Digest, styles: Mapping[str, Style]) -> Plot | None:
    """One line a problem, one mark an operator, one panel a quantity; bars are 95 % intervals over rounds."""
    measured = [group for group in digest.groups if any(row.ok for row in group.rows)]
    relative = all(group.baseline is not None and group.baseline.ok for group in measured)
    groups = _spread(measured)
    quantities = [m for m in digest.metrics if any(_at(row, m, relative) for g in groups for row in g.rows)]
    if not groups or not quantities:
        return None
    present = {row.label for group in groups for row in group.rows if row.ok}
    shown = {label: style for label, style in styles.items() if label in present}
    width = 9.6
    names = max(len(group.label) for group in groups) * 0.068 + 0.3
    margins = Margins(left=min(names, 3.0), right=0.25, bottom=0.3, across=0.25)
    panel = ((width - margins.left - margins.right - margins.across * (len(quantities) - 1)) / len(quantities),
             0.42 * len(groups) + 0.1)  # fmt: skip
    figure, axes = sheet(1, len(quantities), panel, margins, below=legend_height(list(shown), width))
    for place, (metric, axis) in enumerate(zip(quantities, axes[0], strict=True)):
        _panel(axis, metric, groups, shown, relative)
        axis.set_title(text.capital(metric.title))
        if place:
            axis.tick_params(axis="y", labelleft=False)
        else:
            axis.set_yticks(range(len(groups)), [group.label for group in groups])
        axis.set_ylim(len(groups) - 0.5, -0.5)
    legend(figure, shown, lines=False)
    against = f"as a ratio to {digest.baseline}" if relative else "in absolute terms"
    left_out = (
        f" {len(measured) - len(groups)} problems are left out for space." if len(groups) < len(measured) else ""
    )
    return finish(
        figure,
        name="overview",
        title="Every operator at every problem",
        alt=f"Dot plot: {text.listing([m.title for m in quantities], 5)} of "
        f"{text.plural(len(shown), 'operator')} at {text.plural(len(groups), 'problem')}, {against}; lower values "
        "are to the left. The tables below hold the numbers.",
        caption=f"{text.capital(text.listing([m.title for m in quantities]))} {against}; further left is less. "
        f"Bars: {text.intervals(digest.rounds)}.{left_out}",
    )


def _spread(groups: Sequence[Group]) -> list[Group]:
    """As many groups as there is room for, evenly from each mode, dtype, memory format and execution."""
    settings: dict[tuple[str, ...], list[Group]] = {}
    for group in groups:
        p = group.problem
        settings.setdefault((p.mode, p.precision, p.memory_format, group.execution), []).append(group)
    room = max(MOST // max(len(settings), 1), 2)
    kept = {id(group) for some in settings.values() for group in evenly(some, room)}
    return [group for group in groups if len(groups) <= MOST or id(group) in kept]


def _at(row: Row, metric: Metric, relative: bool) -> tuple[float, float | None, float | None] | None:
    cell = row.cells.get(metric.key)
    interval = None if cell is None or not row.ok else cell.ratio if relative else cell.value
    if interval is None or not interval.estimate or interval.estimate <= 0:
        return None
    return interval.estimate, interval.low, interval.high


def _panel(axis, metric: Metric, groups: Sequence[Group], styles: Mapping[str, Style], relative: bool) -> None:  # type: ignore[no-untyped-def]
    values: list[float] = [1.0] if relative else []
    drawn: dict[str, list[tuple[float, float]]] = {}
    lanes = {label: place for place, label in enumerate(styles)}
    for number, group in enumerate(groups):
        for row in group.rows:
            at = _at(row, metric, relative)
            if at is None:
                continue
            estimate, low, high = at
            line = number + LANES * (lanes[row.label] / max(len(lanes) - 1, 1) - 0.5)
            values.append(estimate)
            drawn.setdefault(row.label, []).append((estimate, line))
            if low is not None and high is not None and high > low:
                axis.plot([low, high], [line, line], color=styles[row.label].colour, linewidth=1.2, zorder=2)
    for label, points in drawn.items():
        style = styles[label]
        axis.plot(*zip(*points, strict=True), linestyle="none", marker=style.marker, color=style.colour,
                  markersize=5, markeredgecolor=PAPER, markeredgewidth=0.5, zorder=3)  # fmt: skip
    log_axis(axis, "x", values, text.times if relative else partial(text.quantity, unit=metric.unit), most=5)
    if relative:
        axis.axvline(1.0, color=INK, linewidth=0.9, zorder=1)
    axis.grid(axis="y", visible=False)
    for edge in range(1, len(groups)):
        axis.axhline(edge - 0.5, color=FAINT, linewidth=0.5, zorder=0)
    axis.spines["left"].set_visible(False)
    axis.tick_params(axis="y", labelcolor=INK)
    axis.tick_params(axis="x", labelcolor=MUTED)
