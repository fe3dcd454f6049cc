"""Crossover maps: who wins where (resolution × channels), and NIFF against spatial (resolution × kernel size)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import log2
from typing import TYPE_CHECKING

import numpy as np

from niffbench.report import text
from niffbench.report.digest import Digest, Group, Row
from niffbench.report.plots.canvas import INK, MUTED, PAPER, Margins, Plot, finish, sheet
from niffbench.report.plots.palette import family_colours
from niffbench.report.trends import is_niff, is_spatial
from niffbench.results import Metric

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from niffbench.stats.contrasts import FloatArray

MOST = 16
"""Values of an axis that a map has room for; of longer axes the map takes as many,."""
REACH = 3.0
"""log2 of the ratio at which the colours of a map are full: 8 times cheaper or costlier."""


@dataclass(frozen=True)
class Place:
    """A group on the plane of resolution and channels."""

    size: float
    channels: int
    group: Group


def winners(digest: Digest) -> Plot | None:
    """Resolution × channels: the fastest and the leanest operator, coloured by family."""
    places = _plane(digest)
    if places is None:
        return None
    sizes, widths = (sorted({getattr(place, axis) for place in places}) for axis in ("size", "channels"))
    metrics = [metric for metric in digest.metrics[:2] if any(metric.key in p.group.winners for p in places)]
    if not metrics:
        return None
    panel = (max(0.62 * len(sizes), 2.6), max(0.4 * len(widths), 1.0))
    figure, axes = sheet(1, len(metrics), panel, Margins(left=0.7, across=0.7, bottom=0.55))
    colours = family_colours(digest.families)
    for metric, axis in zip(metrics, axes[0], strict=True):
        for place in places:
            winner = place.group.winners.get(metric.key)
            if winner is not None:
                _tile(axis, sizes.index(place.size), widths.index(place.channels), winner.row,
                      colours[winner.row.kin], tied=bool(winner.tied) or not winner.certain)  # fmt: skip
        _grid(axis, [f"{size:.4g}" for size in sizes], [str(width) for width in widths])
        axis.set_title(f"{text.capital(text.best(metric))} operator")
        axis.set_xlabel("resolution (side in pixels)")
    axes[0][0].set_ylabel("channels")
    best = text.listing([text.best(metric) for metric in metrics])
    return finish(
        figure,
        name="map-winners",
        title="Who wins where",
        alt=f"Maps of resolution against channels; each cell names the {best} operator.",
        caption=f"{_setting(places[0].group)}. Colour is the winner's family; ≈ marks a winner that the rounds "
        "cannot tell from another.",
        wide=True,
    )


def ratios(digest: Digest) -> Plot | None:
    """Resolution × kernel size: the ratio of the best NIFF form to the spatial operator."""
    operator = _swept(digest)
    if operator is None:
        return None
    metrics = [*digest.metrics[:1], digest.metrics[2]]
    tables = [(metric, table) for metric in metrics if len(table := _ratios(digest, operator, metric)) > 3]
    if not tables:
        return None
    sizes = sorted({size for _, table in tables for size, _ in table})
    kernels = sorted({kernel for _, table in tables for _, kernel in table})
    if len(sizes) < 2 or len(kernels) < 2:
        return None
    panel = (max(0.55 * len(kernels), 3.0), max(0.36 * len(sizes), 1.2))
    figure, axes = sheet(1, len(tables), panel, Margins(left=0.7, across=0.5, bottom=0.55))
    for place, ((metric, table), axis) in enumerate(zip(tables, axes[0], strict=True)):
        _heat(axis, table, sizes, kernels)
        axis.set_title(text.capital(metric.title))
        axis.set_xlabel("kernel size (side in pixels)")
        if place:
            axis.tick_params(axis="y", labelleft=False)
    axes[0][0].set_ylabel("resolution")
    return finish(
        figure,
        name="map-ratios",
        title=f"NIFF against {operator}, by kernel size",
        alt=f"Maps of kernel size against resolution: the ratio of the best NIFF form to {operator}, in "
        f"{text.listing([m.title for m, _ in tables])}; a line separates the kernels between which it passes 1.",
        caption=f"Best NIFF form over {operator}; {_setting(_first(digest, operator))}. Blue: NIFF costs less; "
        "orange: it costs more. A line separates the measured kernels between which that changes.",
        wide=True,
    )


def _plane(digest: Digest) -> list[Place] | None:
    """Square problems of one setting that spread over resolution and channels; None when they do not."""
    settings: dict[tuple[object, ...], list[Place]] = {}
    for group in digest.groups:
        p = group.problem
        if p.channels == p.channels_out and p.height == p.width:
            settings.setdefault((p.batch, *group.setting), []).append(Place(float(p.height), p.channels, group))
    largest = max(settings.values(), key=len, default=[])
    sizes, widths = {place.size for place in largest}, {place.channels for place in largest}
    if not (2 <= len(sizes) <= MOST and 2 <= len(widths) <= MOST) or len(largest) * 2 <= len(sizes) * len(widths):
        return None
    return largest


def _tile(axis: Axes, x: int, y: int, row: Row, colour: str, *, tied: bool) -> None:
    axis.fill_between([x - 0.47, x + 0.47], y - 0.46, y + 0.46, color=colour, linewidth=0)
    name = row.without_kernel.rpartition("/")[2] if row.case.kernel is None else f"k{row.case.kernel}"
    label = ("≈ " if tied else "") + (name if len(name) <= 10 else name[:9] + "…")
    axis.text(x, y, label, ha="center", va="center", fontsize=6.5, color="#fefefe", fontweight="bold")


def _grid(axis: Axes, across: Sequence[str], down: Sequence[str]) -> None:
    axis.set_xlim(-0.5, len(across) - 0.5)
    axis.set_ylim(-0.5, len(down) - 0.5)
    axis.set_xticks(range(len(across)), across)
    axis.set_yticks(range(len(down)), down)
    axis.grid(visible=False)
    axis.tick_params(length=0, labelcolor=MUTED)
    for spine in axis.spines.values():
        spine.set_visible(False)


def _swept(digest: Digest) -> str | None:
    """The spatial operator measured at the most kernel sizes, the baseline first; None unless at several."""
    baselines = {group.baseline.without_kernel for group in digest.groups if group.baseline is not None}
    kernels: dict[tuple[bool, str], set[int]] = {}
    for row in digest.rows:
        if row.ok and row.case.kernel is not None and is_spatial(row):
            operator = (row.without_kernel in baselines, row.without_kernel)
            kernels.setdefault(operator, set()).add(row.case.kernel)
    best = max(kernels, key=lambda operator: (len(kernels[operator]), operator[0]), default=None)
    return best[1] if best is not None and len(kernels[best]) > 1 else None


def _first(digest: Digest, operator: str) -> Group:
    return next(g for g in digest.groups if any(row.without_kernel == operator for row in g.rows))


def _ratios(digest: Digest, operator: str, metric: Metric) -> dict[tuple[float, int], float]:
    """(size, kernel) → best NIFF form over ``operator``, in the setting of the operator's first group."""
    first = _first(digest, operator)
    ratios: dict[tuple[float, int], float] = {}
    for group in digest.groups:
        if _setting(group) != _setting(first):
            continue
        niff = [row.cells[metric.key].estimate for row in group.rows if _has(row, metric) and is_niff(row)]
        for row in group.rows:
            if niff and _has(row, metric) and row.without_kernel == operator and row.case.kernel:
                size = (group.problem.height * group.problem.width) ** 0.5
                ratios[size, row.case.kernel] = min(niff) / row.cells[metric.key].estimate
    return ratios


def _has(row: Row, metric: Metric) -> bool:
    return row.ok and metric.key in row.cells and row.cells[metric.key].estimate > 0


def _setting(group: Group) -> str:
    problem = group.problem
    return f"B{problem.batch}, {problem.channels} channels, {problem.mode}, {problem.precision}, {group.execution}"


def _heat(
    axis: Axes, table: Mapping[tuple[float, int], float], sizes: Sequence[float], kernels: Sequence[int]
) -> None:
    import seaborn
    from matplotlib.colors import LinearSegmentedColormap

    grid = np.full((len(sizes), len(kernels)), np.nan)
    for (size, kernel), ratio in table.items():
        grid[sizes.index(size), kernels.index(kernel)] = log2(ratio)
    colours = LinearSegmentedColormap.from_list("niffbench", ["#0072B2", "#f1f3f5", "#E69F00"])
    room = len(kernels) <= MOST
    marks = np.array([["" if np.isnan(v) else text.digits(2.0**v, 2) for v in line] for line in grid])
    seaborn.heatmap(
        grid,
        ax=axis,
        cmap=colours,
        vmin=-REACH,
        vmax=REACH,
        cbar=False,
        linewidths=1.0,
        linecolor=PAPER,
        annot=marks if room else False,
        fmt="",
        annot_kws={"fontsize": 7, "color": "#111111"},
        xticklabels=False,
        yticklabels=False,
    )
    _border(axis, grid)
    step = -(-len(kernels) // MOST)
    places = range(0, len(kernels), step)
    axis.set_xticks([place + 0.5 for place in places], [str(kernels[place]) for place in places], rotation=0)
    axis.set_yticks([i + 0.5 for i in range(len(sizes))], [f"{size:.4g}" for size in sizes], rotation=0)
    axis.invert_yaxis()
    axis.tick_params(length=0, labelcolor=MUTED)
    axis.grid(visible=False)


def _border(axis: Axes, grid: FloatArray) -> None:
    """Draw between which kernels the order changes: per resolution, the edges of the cells on either side."""
    for line, values in enumerate(grid):
        for low, high in brackets(values):
            for at in {low + 1, high}:
                axis.plot([at, at], [line, line + 1], color=INK, linewidth=2.0, solid_capstyle="butt")


def brackets(values: Sequence[float] | FloatArray) -> list[tuple[int, int]]:
    """The neighbouring measured places between which a log ratio changes its sign."""
    present = [(place, float(value)) for place, value in enumerate(values) if value == value]
    return [(one, two) for (one, before), (two, after) in pairwise(present) if before * after < 0]
