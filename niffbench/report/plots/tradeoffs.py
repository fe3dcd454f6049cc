"""Trade-offs at one problem: latency against memory with its Pareto front, and latency against error."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

from niffbench.report import text
from niffbench.report.digest import Digest, Group, Row
from niffbench.report.plots.canvas import INK, PAPER, Plot, finish, legend, log_axis, sheet
from niffbench.report.plots.palette import Style
from niffbench.report.slices import evenly

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MOST = 6
"""Problems in one plot: six in two lines, or up to three in one."""


def pareto(digest: Digest, styles: Mapping[str, Style]) -> Plot | None:
    """Latency against peak memory; operators on the line are beaten in neither by any one other."""
    return _panels(
        digest,
        styles,
        lambda row: row.value(digest.metrics[1].key),
        name="pareto",
        title="Latency against memory",
        noun=digest.metrics[1].title,
        show=text.size_of,
        base=2,
        caption="The grey line is the Pareto front: whatever lies off it, one on it is no worse in both.",
        front=True,
    )


def errors(digest: Digest, styles: Mapping[str, Style]) -> Plot | None:
    """Latency against the relative L2 error to float64, in training that of the worst gradient if it is larger."""
    return _panels(
        digest,
        styles,
        lambda row: row.largest_error,
        name="error",
        title="Latency against error",
        noun="relative L2 error",
        show=text.power_of_ten,
        base=10,
        caption="Error against float64 of the output, in training of a gradient where that is larger; an operator "
        "outside its tolerance is not timed.",
        front=False,
    )


def front(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """The Pareto front of points of which less is better in both coordinates, ascending in the first."""
    edge: list[tuple[float, float]] = []
    for point in sorted(set(points)):
        if not edge or point[1] < edge[-1][1]:
            edge.append(point)
    return edge


def _panels(
    digest: Digest,
    styles: Mapping[str, Style],
    across: Callable[[Row], float | None],
    *,
    name: str,
    title: str,
    noun: str,
    show: Callable[[float], str],
    base: int,
    caption: str,
    front: bool,
) -> Plot | None:
    def points(group: Group) -> dict[str, tuple[float, float]]:
        places = {row.label: (across(row), row.value(digest.metrics[0].key)) for row in group.rows if row.ok}
        return {label: (x, y) for label, (x, y) in places.items() if x and y and x > 0}

    groups = [group for group in digest.groups if len(points(group)) > 1]
    if not groups:
        return None
    chosen = evenly(groups, MOST if len(groups) >= MOST else 3)
    columns = min(len(chosen), 3)
    lines = len(chosen) // columns
    used = {row.label: styles[row.label] for g in chosen for row in g.rows if row.label in points(g)}
    figure, axes = sheet(lines, columns, (2.55 if columns > 2 else 2.95, 2.0), named=list(used))
    flat = [axis for line in axes for axis in line]
    for axis, group in zip(flat, chosen, strict=True):
        _scatter(axis, points(group), styles, with_front=front)
        log_axis(axis, "x", [x for x, _ in points(group).values()], show, base=base, most=5)
        log_axis(axis, "y", [y for _, y in points(group).values()], text.seconds, most=5)
        axis.set_title(group.label)
    for axis in axes[-1]:
        axis.set_xlabel(noun)
    for line in axes:
        line[0].set_ylabel(f"{digest.regime} latency")
    legend(figure, used, lines=False)
    return finish(
        figure,
        name=name,
        title=title,
        alt=f"Scatter plots of {digest.regime} latency against {noun} at {text.plural(len(chosen), 'problem')}, "
        "one mark an operator; the table of cases holds the numbers.",
        caption=caption + text.left_out(len(groups) - len(chosen), "problem"),
        wide=columns > 1,
    )


def _scatter(
    axis: Axes, points: Mapping[str, tuple[float, float]], styles: Mapping[str, Style], *, with_front: bool
) -> None:
    if with_front:
        edge = front(list(points.values()))
        axis.step(*zip(*edge, strict=True), where="post", color=INK, alpha=0.35, linewidth=1.0, zorder=1)
    for label, (x, y) in points.items():
        style = styles[label]
        axis.plot(x, y, linestyle="none", marker=style.marker, color=style.colour, markersize=6,
                  markeredgecolor=PAPER, markeredgewidth=0.5, zorder=3)  # fmt: skip
