"""Phases: what an operator's cost is made of, as stacked bars."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from niffbench.report import text
from niffbench.report.digest import Digest, Group, Row
from niffbench.report.plots.canvas import INK, MUTED, PAPER, Margins, Plot, finish, legend_height, sheet
from niffbench.report.plots.palette import COLOURS
from niffbench.results import StepCost

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MOST = 12
"""Operators in one plot."""


def steps(digest: Digest) -> Plot | None:
    """FLOPs by step, from the closed forms, and counted bytes, at the largest problem of the main mode."""
    group = _largest(digest)
    if group is None:
        return None
    rows = _varied(group)
    names = list(dict.fromkeys(step.name for row in rows if row.cost for step in row.cost.steps))
    if len(names) < 2:
        return None
    colours = {name: COLOURS[place % len(COLOURS)] for place, name in enumerate(names)}
    width = 9.6
    left = max(len(row.label) for row in rows) * 0.068 + 0.3
    margins = Margins(left=left, right=0.15, bottom=0.4, across=0.3)
    panel = ((width - left - 0.45) / 2, 0.27 * len(rows) + 0.1)
    figure, [axes] = sheet(1, 2, panel, margins, below=legend_height(names, width))
    _bars(axes[0], rows, colours, lambda step: step.flops, text.flops)
    _bars(axes[1], rows, colours, lambda step: step.bytes or 0, text.size_of)
    axes[0].set_title("FLOPs by step")
    axes[1].set_title("Own traffic by step")
    axes[0].set_yticks(range(len(rows)), [row.label for row in rows])
    axes[1].set_yticks(range(len(rows)), [""] * len(rows))
    step_legend(figure, colours)
    return finish(
        figure,
        name="steps",
        title="Cost by step",
        alt=f"Stacked bars of FLOPs and bytes by step for {text.plural(len(rows), 'operator')} at {group.label}: "
        f"{text.listing(names, 12)}.",
        caption=f"Closed forms and counted bytes at {group.label}, as shares of each operator's own total, "
        "which is written at the bar's end. FFT FLOPs are nominal.",
    )


def _largest(digest: Digest) -> Group | None:
    """The problem with the most work among those with the most operators measured."""
    groups = [g for g in digest.groups if any(row.ok and row.cost and row.cost.steps for row in g.rows)]
    most = max((sum(row.ok for row in g.rows) for g in groups), default=0)
    full = [g for g in groups if sum(row.ok for row in g.rows) == most]
    return max(
        full, key=lambda g: g.problem.batch * g.problem.channels * g.problem.height * g.problem.width, default=None
    )


def _varied(group: Group) -> list[Row]:
    """Rows worth a bar: those of several steps first, then one of each operator that has a single step."""
    steps = {row.id: {step.name for step in row.cost.steps} for row in group.rows if row.cost}
    single = {row.case.operator: row.id for row in reversed(group.rows) if len(steps.get(row.id, ())) == 1}
    kept = [row for row in group.rows if len(steps.get(row.id, ())) > 1 or row.id in single.values()]
    return kept[:MOST]


def _bars(
    axis: Axes,
    rows: list[Row],
    colours: Mapping[str, str],
    amount: Callable[[StepCost], int],
    show: Callable[[float], str],
) -> None:
    for place, row in enumerate(rows):
        parts = row.cost.steps if row.cost else []
        total = sum(map(amount, parts))
        start = 0.0
        for name, colour in colours.items():
            share = sum(amount(step) for step in parts if step.name == name) / total if total else 0.0
            if share:
                axis.barh(place, share, left=start, height=0.68, color=colour, edgecolor=PAPER, linewidth=0.6)
            start += share
        axis.text(1.015, place, show(total), va="center", fontsize=7.5, color=MUTED)
    axis.set_xlim(0, 1.22)
    axis.set_ylim(len(rows) - 0.45, -0.55)
    axis.set_xticks([0, 0.25, 0.5, 0.75, 1], ["0", "25 %", "50 %", "75 %", "100 %"])
    axis.grid(visible=False)
    axis.tick_params(axis="y", labelcolor=INK)
    for side in ("left", "bottom"):
        axis.spines[side].set_visible(False)


def step_legend(figure, colours: Mapping[str, str]) -> None:  # type: ignore[no-untyped-def]
    """Which colour is which step."""
    from matplotlib.patches import Patch

    figure.legend(
        [Patch(color=colour) for colour in colours.values()],
        list(colours),
        loc="lower center",
        bbox_to_anchor=(0.5, 0.02 / figure.get_figheight()),
        ncols=min(len(colours), 6),
        handlelength=1.0,
        handleheight=1.0,
        borderaxespad=0.0,
        labelcolor=INK,
    )
