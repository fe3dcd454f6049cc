"""Plots of effective filter size: kernel mass, principal components, kernels, what truncated ones still do."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from niffbench.report import text
from niffbench.report.plots.canvas import (
    MUTED,
    Margins,
    Plot,
    finish,
    legend,
    log_axis,
    measured_axis,
    sheet,
)
from niffbench.report.plots.palette import BLUE, VERMILLION, Style, styles
from niffbench.report.plots.tradeoffs import front
from niffbench.report.slices import evenly

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from numpy.typing import NDArray

    from niffbench.stats.intervals import Interval
    from niffbench.study.effective import FilterSize

MOST_PANELS = 6
MOST_NAMES = 8
MOST_PICTURED = 8


@dataclass(frozen=True)
class Curves:
    """One layer's curves, arrays of one dimension, and its kernels ``(n, height, width)``, the mean of |k| first.

    Attributes:
        mass: entry i is the share of Σ|k| inside the centred window of side 2i + 1. ``whole`` and ``cropped``:
            the shares of variance of the leading principal components, of whole kernels and of their central
            crop.
    """

    name: str
    height: int
    width: int
    mass: NDArray[np.float64]
    whole: NDArray[np.float64]
    cropped: NDArray[np.float64]
    pictures: NDArray[np.float64]


def curves_of(name: str, size: FilterSize, pictures: NDArray[np.float64]) -> Curves:
    """A layer's figures as the arrays that plots take."""
    return Curves(
        name=name,
        height=size.height,
        width=size.width,
        mass=np.asarray(size.mass_ratio),
        whole=np.asarray(size.explained_variance),
        cropped=np.asarray(size.explained_variance_crop),
        pictures=pictures,
    )


def mass(layers: Sequence[Curves]) -> Plot:
    """Kernel mass ratio against the window's side, a panel for each grid, a line for each layer."""
    grids = evenly(sorted({(c.height, c.width) for c in layers}, reverse=True), MOST_PANELS)
    styles = _styles(layers)
    columns = 2 if len(grids) == 4 else min(len(grids), 3)
    rows = -(-len(grids) // columns)
    spread = {"a kernel without any centre": Style(MUTED, (0, (1.2, 1.4)), "")}
    named = _named(styles) | spread
    figure, axes = sheet(rows, columns, (2.6, 1.9), Margins(across=0.35), named=list(named))
    flat, first = [axis for line in axes for axis in line], [line[0] for line in axes]
    for axis, (height, wide) in zip(flat, grids, strict=False):
        sides = 2 * np.arange(max(height, wide) // 2 + 1) + 1
        even = np.minimum(sides, height) * np.minimum(sides, wide) / (height * wide)
        axis.plot(sides, even, color=MUTED, linestyle=(0, (1.2, 1.4)), linewidth=1)
        for curve in (c for c in layers if (c.height, c.width) == (height, wide)):
            _line(axis, 2 * np.arange(len(curve.mass)) + 1, curve.mass, styles[curve.name])
        axis.set_title(f"grid {height}×{wide}")
        _share_axis(axis, labelled=axis in first)
        axis.set_xlim(left=0)
        axis.set_xlabel("window side, pixels")
        _whole_ticks(axis)
    for axis in flat[len(grids) :]:
        axis.set_axis_off()
    for axis in first:
        axis.set_ylabel("mass inside")
    legend(figure, named)
    return finish(
        figure,
        name="kernel-mass",
        title="How much of a filter lies near its centre",
        alt=f"Kernel mass ratio against window side for {len(layers)} layers on {len(grids)} grids.",
        caption="Mean over a layer's kernels of the share of Σ|k| inside the centred window. The dotted line is a "
        "kernel spread evenly over the grid: a layer above it is localised.",
    )


def components(layers: Sequence[Curves], crop_side: int) -> Plot:
    """Explained variance, summed over the leading components: of whole kernels, and of their central crop."""
    styles = _styles(layers)
    named = _named(styles)
    figure, [axes] = sheet(1, 2, (3.4, 2.1), Margins(across=0.35), named=list(named))
    panels = (("whole kernels", "whole"), (f"central {crop_side}×{crop_side} at most", "cropped"))
    for axis, (title, which) in zip(axes, panels, strict=True):
        for curve in layers:
            shares: NDArray[np.float64] = getattr(curve, which)
            _line(axis, np.arange(1, len(shares) + 1), np.cumsum(shares), styles[curve.name])
        axis.set_title(title)
        axis.set_xlabel("components")
        _whole_ticks(axis)
        _share_axis(axis, labelled=which == "whole")
    axes[0].set_ylabel("variance explained")
    legend(figure, named)
    return finish(
        figure,
        name="components",
        title="How many kernels a layer's kernels are made of",
        alt=f"Cumulative explained variance of the leading principal components for {len(layers)} layers.",
        caption="Principal components over all kernels of a layer. A steep start means few basic shapes.",
    )


def kernels(layers: Sequence[Curves]) -> Plot:
    """The mean magnitude of a layer's kernels, and the strongest of them, for some of the layers."""
    shown = evenly(layers, MOST_PICTURED)
    columns = max(len(curve.pictures) for curve in shown)
    longest = max(len(curve.name) for curve in shown)
    margins = Margins(left=0.3 + 0.07 * longest, bottom=0.15, top=0.3, across=0.08, down=0.1)
    figure, axes = sheet(len(shown), columns, (1.15, 1.15), margins)
    for row, (curve, line) in enumerate(zip(shown, axes, strict=True)):
        for column, axis in enumerate(line):
            axis.set_xticks([])
            axis.set_yticks([])
            axis.grid(False)
            if column >= len(curve.pictures):
                axis.set_axis_off()
                continue
            _picture(axis, curve.pictures[column], signed=column > 0)
            if row == 0:
                axis.set_title("mean of |k|" if column == 0 else f"strongest {column}")
        line[0].set_ylabel(f"{curve.name}\n{curve.height}×{curve.width}", rotation=0, ha="right", va="center")
    return finish(
        figure,
        name="kernels",
        title="The filters in space",
        alt=f"Pictures of the spatial kernels of {len(shown)} layers: mean magnitude and the strongest ones.",
        caption="Zero offset is in the middle. Each picture has its own scale; blue is negative, red positive.",
    )


def accuracies(cut: Mapping[int, float], whole: float, twin: float) -> Plot:
    """Test accuracy of a network whose filters are all cut to k×k, without training it again.

    ``cut`` maps k to a share of the test images, ``whole`` is the share with whole filters, ``twin`` that of the
    3×3 twin.
    """
    used = {
        "NIFF, every filter cut to k×k": Style(VERMILLION, "solid", "o"),
        "NIFF, whole filters": Style(VERMILLION, (0, (5, 1.6)), ""),
        "3×3 twin": Style(BLUE, (0, (1.2, 1.4)), ""),
    }
    figure, [[axis]] = sheet(1, 1, (4.4, 2.2), named=list(used))
    first, second, third = used.values()
    _line(axis, np.array(list(cut)), np.array(list(cut.values())), first)
    for level, style in ((whole, second), (twin, third)):
        axis.axhline(level, color=style.colour, linestyle=style.dash, linewidth=1.1)
    axis.set_xticks(list(cut))
    axis.set_xlabel("k, pixels")
    axis.set_ylabel("test accuracy")
    _percent(axis)
    legend(figure, used)
    return finish(
        figure,
        name="truncated-accuracy",
        title="What truncated filters still do",
        alt="Test accuracy against the side to which all filters are cut, beside whole filters and the 3×3 twin.",
        caption="The trained network with every filter replaced by its central k×k as a circular convolution, "
        "without training again.",
        wide=False,
    )


def widths(lines: Mapping[str, Sequence[tuple[int, Interval]]]) -> Plot:
    """The width of a layer's filters against the side of its map, in pixels and as a share of it.

    ``lines`` has for each layer the sides of its maps and what holds 90 % of the mass on them.
    """
    sides = sorted({side for line in lines.values() for side, _ in line})
    marks = dict(zip(lines, styles((name, name) for name in lines).values(), strict=True))
    whole = {"the whole map": Style(MUTED, (0, (1.2, 1.4)), "")}
    figure, [axes] = sheet(1, 2, (3.1, 2.3), Margins(across=0.8), named=[*marks, *whole])
    for axis, relative in zip(axes, (False, True), strict=True):
        every = []
        for name, line in lines.items():
            of = [side if relative else 1 for side, _ in line]
            values = [(one.estimate or 0.0) / unit for (_, one), unit in zip(line, of, strict=True)]
            _line(axis, np.array([side for side, _ in line]), np.array(values), marks[name])
            for (side, one), unit in zip(line, of, strict=True):
                if one.low is not None and one.high is not None:
                    axis.plot(
                        [side, side], [one.low / unit, one.high / unit], color=marks[name].colour, linewidth=1
                    )
            every += values
        axis.plot(sides, [1.0 if relative else side for side in sides], color=MUTED, linestyle=(0, (1.2, 1.4)))
        measured_axis(axis, "x", sides)
        axis.set_xlabel("side of the map, pixels")
        if relative:
            axis.set_ylim(0, 1.03)
            _percent(axis)
            axis.set_ylabel("width, of the map")
        else:
            log_axis(axis, "y", [*every, *map(float, sides)], text.plain, base=2)
            axis.set_ylabel("width, pixels")
    legend(figure, marks | whole)
    return finish(
        figure,
        name="widths",
        title="How wide learned filters are",
        alt=f"Width that holds 90 % of the kernel mass against the side of the map, for {len(lines)} layers.",
        caption="The side of the centred window that holds 90 % of Σ|k|, median and 95 % interval over seeds. "
        "Filters of a fixed size lie level on the left, of a fixed share of the map on the right.",
    )


@dataclass(frozen=True)
class Point:
    """A network: its accuracy, seconds and bytes of a call; ``error`` of its outputs where it has no accuracy."""

    accuracy: Interval | None
    latency: float | None
    memory: float | None
    error: float | None = None


def front_of_networks(points: Mapping[str, Point]) -> Plot | None:
    """Accuracy against latency and against memory, with the Pareto front; None where nothing was measured."""
    shown = {name: point for name, point in points.items() if point.latency and point.memory}
    if len(shown) < 2:
        return None
    marks = dict(zip(shown, styles((name, name) for name in shown).values(), strict=True))
    figure, [axes] = sheet(1, 2, (3.1, 2.3), Margins(across=0.9), named=list(marks))
    scored = all(point.accuracy is not None for point in shown.values())
    for axis, (noun, show, base) in zip(
        axes, (("latency", text.seconds, 10), ("memory", text.size_of, 2)), strict=True
    ):
        places = {}
        for name, point in shown.items():
            x, style = float(getattr(point, noun)), marks[name]
            y = float((point.accuracy.estimate if point.accuracy else point.error) or 0.0)
            places[name] = (x, -y if scored else y)
            if point.accuracy is not None and point.accuracy.low is not None and point.accuracy.high is not None:
                axis.plot(
                    [x, x], [point.accuracy.low, point.accuracy.high], color=style.colour, linewidth=1, alpha=0.5
                )
            axis.plot([x], [y], linestyle="none", marker=style.marker, color=style.colour, markersize=6)
        edge = [(x, -y if scored else y) for x, y in front(list(places.values()))]
        axis.step(*zip(*edge, strict=True), where="post", color=MUTED, alpha=0.5, linewidth=1, zorder=1)
        log_axis(axis, "x", [x for x, _ in places.values()], show, base=base, most=5)
        axis.set_xlabel(f"{noun} of a call")
        axis.set_ylabel("accuracy" if scored else "relative error of outputs")
        _percent(axis, None if scored else 1)
    legend(figure, marks, lines=False)
    return finish(
        figure,
        name="networks",
        title="Accuracy against latency and memory" if scored else "Error against latency and memory",
        alt=f"Scatter plots of {len(shown)} networks, one mark each; the table of networks holds the numbers.",
        caption="Bars are the accuracies' 95 % intervals. The grey line is the Pareto front: what lies off it, "
        "one on it is no worse in both.",
    )


def _styles(layers: Sequence[Curves]) -> Mapping[str, Style]:
    """A colour by depth, from a scale that is even to the eye and safe for the colour-blind."""
    from matplotlib import colormaps
    from matplotlib.colors import to_hex

    scale = colormaps["viridis"]
    places = np.linspace(0.05, 0.85, len(layers))
    return {
        layer.name: Style(to_hex(scale(place)), "solid", "") for layer, place in zip(layers, places, strict=True)
    }


def _named(styles: Mapping[str, Style]) -> dict[str, Style]:
    return {name: styles[name] for name in evenly(list(styles), MOST_NAMES)}


def _line(axis: Axes, x: NDArray[Any], y: NDArray[np.float64], style: Style) -> None:
    axis.plot(x, y, color=style.colour, linestyle=style.dash, marker=style.marker, markeredgewidth=0)


def _share_axis(axis: Axes, *, labelled: bool) -> None:
    axis.set_ylim(0, 1.03)
    _percent(axis)
    if not labelled:
        axis.tick_params(labelleft=False)


def _whole_ticks(axis: Axes) -> None:
    from matplotlib.ticker import MaxNLocator

    axis.xaxis.set_major_locator(MaxNLocator(6, integer=True))


def _percent(axis: Axes, decimals: int | None = None) -> None:
    from matplotlib.ticker import PercentFormatter

    axis.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=decimals))


def _picture(axis: Axes, picture: NDArray[np.float64], *, signed: bool) -> None:
    largest = float(np.abs(picture).max()) or 1.0
    axis.imshow(
        picture,
        cmap="RdBu_r" if signed else "magma",
        vmin=-largest if signed else 0.0,
        vmax=largest,
        interpolation="nearest",
        aspect="auto" if picture.shape[0] != picture.shape[1] else "equal",
    )
