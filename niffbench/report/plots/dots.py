"""Dot plots of ratios: every operator at every problem against the baseline, and run against run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING

from niffbench.report import text
from niffbench.report.comparison import Pair
from niffbench.report.digest import Digest, Group
from niffbench.report.plots.canvas import (
    FAINT,
    INK,
    MUTED,
    PAPER,
    Margins,
    Plot,
    finish,
    legend,
    log_axis,
    sheet,
)
from niffbench.report.plots.palette import Style
from niffbench.report.slices import evenly
from niffbench.results import Metric
from niffbench.stats.intervals import Interval

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MOST_PROBLEMS, MOST_OPERATORS, MOST_RUNS = 16, 40, 4
"""Lines of either plot, and panels of run against run."""
LANES = 0.62
"""The share of a problem's line over which its operators are spread, so that equal values stay apart."""
WIDTH = 9.6
"""Inches."""

Dots = Mapping[str, Sequence[tuple[Interval, float]]]
"""By operator, each interval and the line that it stands on."""


def overview(digest: Digest, styles: Mapping[str, Style]) -> Plot | None:
    """One line a problem, one mark an operator, one panel a quantity; bars are 95 % intervals over rounds."""
    measured = [group for group in digest.groups if any(row.ok for row in group.rows)]
    relative = all(group.baseline is not None and group.baseline.ok for group in measured)
    groups = _spread(measured)
    labels = [label for label in styles if any(row.ok and row.label == label for g in groups for row in g.rows)]
    panels = {metric: dots for metric in digest.metrics if (dots := _dots(groups, labels, metric, relative))}
    if not panels:
        return None
    shown = {label: styles[label] for label in labels}
    figure, axes = _sheet([group.label for group in groups], len(panels), 0.42, labels)
    for (metric, dots), axis in zip(panels.items(), axes, strict=True):
        show = text.times if relative else partial(text.quantity, unit=metric.unit)
        _draw(axis, dots, shown)
        log_axis(axis, "x", [*_estimates(dots), *([1.0] if relative else [])], show, most=5)
        if relative:
            axis.axvline(1.0, color=INK, linewidth=0.9, zorder=1)
        axis.set_title(text.capital(metric.title))
        axis.grid(axis="y", visible=False)
        for edge in range(1, len(groups)):
            axis.axhline(edge - 0.5, color=FAINT, linewidth=0.5, zorder=0)
        axis.spines["left"].set_visible(False)
        axis.tick_params(axis="x", labelcolor=MUTED)
    legend(figure, shown, lines=False)
    against = f"as a ratio to {digest.baseline}" if relative else "in absolute terms"
    titles = text.listing([metric.title for metric in panels], 5)
    return finish(
        figure,
        name="overview",
        title="Every operator at every problem",
        alt=f"Dot plot: {titles} of {text.plural(len(shown), 'operator')} at "
        f"{text.plural(len(groups), 'problem')}, {against}; lower values are to the left. The tables "
        "below hold the numbers.",
        caption=f"{text.capital(titles)} {against}; further left is less. "
        f"Bars: {text.intervals(digest.round_counts)}." + text.left_out(len(measured) - len(groups), "problem"),
    )


def side_by_side(digests: Sequence[Digest], pairs: Sequence[Pair], styles: Mapping[str, Style]) -> Plot | None:
    """One line an operator, one mark a problem, one panel a run: latencies as ratios to the first run's."""
    with_latency = [(pair, ratio) for pair in pairs if (ratio := pair.latency) and ratio.estimate]
    labels = evenly(list(dict.fromkeys(pair.row.label for pair, _ in with_latency)), MOST_OPERATORS)
    others = sorted({pair.run for pair, _ in with_latency})[:MOST_RUNS]
    if not labels or not others:
        return None
    figure, axes = _sheet(labels, len(others), 0.27)
    for axis, place in zip(axes, others, strict=True):
        dots: dict[str, list[tuple[Interval, float]]] = {}
        for pair, ratio in with_latency:
            if pair.run == place and pair.row.label in labels:
                dots.setdefault(pair.row.label, []).append((ratio, labels.index(pair.row.label)))
        _draw(axis, dots, styles)
        log_axis(axis, "x", [*_estimates(dots), 1.0], text.times, most=6)
        axis.axvline(1.0, color=INK, linewidth=0.9, zorder=1)
        axis.grid(axis="y", color=FAINT)
        axis.set_title(digests[place].name)
        axis.set_xlabel(f"{digests[place].regime} latency, as a ratio to {digests[0].name}")
    return finish(
        figure,
        name="side-by-side",
        title="Latency, run against run",
        alt=f"Dot plot of {digests[0].regime} latency of {text.plural(len(labels), 'operator')} in "
        f"{text.plural(len(others), 'run')}, as a ratio to {digests[0].name}; the table below holds the numbers.",
        caption=f"One mark a problem; further left is faster than {digests[0].name}. "
        "Bars: 95 % intervals over rounds.",
        wide=len(others) > 1,
    )


def _spread(groups: Sequence[Group]) -> list[Group]:
    """As many groups as there is room for, evenly from each mode, dtype, memory format and execution."""
    settings: dict[tuple[str, ...], list[Group]] = {}
    for group in groups:
        settings.setdefault(group.setting, []).append(group)
    room = max(MOST_PROBLEMS // max(len(settings), 1), 2)
    drawn = {id(group) for some in settings.values() for group in evenly(some, room)}
    return [group for group in groups if len(groups) <= MOST_PROBLEMS or id(group) in drawn]


def _dots(groups: Sequence[Group], labels: Sequence[str], metric: Metric, relative: bool) -> Dots:
    """Ratios, or values, of a metric; the operators of a problem lie in lanes of its line."""
    dots: dict[str, list[tuple[Interval, float]]] = {}
    for number, group in enumerate(groups):
        for row in group.rows:
            cell = row.cells.get(metric.key)
            interval = None if cell is None or not row.ok else cell.ratio if relative else cell.value
            if interval is not None and interval.estimate and interval.estimate > 0:
                lane = LANES * (labels.index(row.label) / max(len(labels) - 1, 1) - 0.5)
                dots.setdefault(row.label, []).append((interval, number + lane))
    return dots


def _estimates(dots: Dots) -> list[float]:
    return [interval.estimate or 1.0 for some in dots.values() for interval, _ in some]


def _sheet(
    names: Sequence[str], columns: int, height: float, named: Sequence[str] = ()
) -> tuple[Figure, list[Axes]]:
    """Panels side by side that share their lines, each ``height`` inches high and named at the left."""
    margins = Margins(left=min(max(map(len, names)) * 0.068 + 0.3, 3.0), right=0.25, bottom=0.45, across=0.3)
    across = (WIDTH - margins.left - margins.right - margins.across * (columns - 1)) / columns
    figure, [axes] = sheet(1, columns, (across, height * len(names) + 0.1), margins, named=named)
    for axis in axes:
        axis.set_ylim(len(names) - 0.5, -0.5)
        axis.set_yticks(range(len(names)), names if axis is axes[0] else [""] * len(names))
        axis.tick_params(axis="y", labelcolor=INK)
    return figure, axes


def _draw(axis: Axes, dots: Dots, styles: Mapping[str, Style]) -> None:
    for label, some in dots.items():
        style = styles[label]
        for interval, line in some:
            if interval.low is not None and interval.high is not None and interval.high > interval.low:
                axis.plot([interval.low, interval.high], [line, line], color=style.colour, linewidth=1.2, zorder=2)
        axis.plot([interval.estimate or 1.0 for interval, _ in some], [line for _, line in some], linestyle="none",
                  marker=style.marker, color=style.colour, markersize=5, markeredgecolor=PAPER,
                  markeredgewidth=0.5, zorder=3)  # fmt: skip
