"""Steps: what an operator's cost is made of, as stacked bars; counted of a run, and measured by a profile."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from niffbench.case import Problem
from niffbench.report import text
from niffbench.report.digest import Digest, Group, Row
from niffbench.report.plots.canvas import INK, MUTED, PAPER, Margins, Plot, finish, legend_columns, settings, sheet
from niffbench.report.plots.palette import COLOURS, GREY
from niffbench.results import StepCost

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MOST = 12
"""Operators in one plot."""
WIDTH = 9.6
"""Inches."""
PROFILE = "profile.json"
MAX_BYTES = 20_000_000
REST = "outside the steps"

Seconds = Annotated[float, Field(ge=0, allow_inf_nan=False)]


@dataclass(frozen=True)
class Bar:
    """One operator: its label, seconds of each step forward and backward, and of what lies outside the steps."""

    label: str
    forward: tuple[tuple[str, float], ...]
    backward: tuple[tuple[str, float], ...]
    rest: float

    @property
    def total(self) -> float:
        """Seconds of all of it."""
        return sum(seconds for _, seconds in (*self.forward, *self.backward)) + self.rest


def steps(digest: Digest) -> Plot | None:
    """FLOPs by step, from the closed forms, and counted bytes, at the largest problem of the main mode."""
    group = _largest(digest)
    if group is None:
        return None
    varied = _varied(group)
    rows = varied[:MOST]
    names = list(dict.fromkeys(step.name for row in rows if row.cost for step in row.cost.steps))
    if len(names) < 2:
        return None
    colours = {name: COLOURS[place % len(COLOURS)] for place, name in enumerate(names)}
    figure, axes = _sheet([row.label for row in rows], colours, 0.27)
    amounts: list[tuple[str, Callable[[StepCost], int], Callable[[float], str]]] = [
        ("FLOPs by step", lambda step: step.flops, text.flops),
        ("Own traffic by step", lambda step: step.bytes or 0, text.size_of),
    ]
    for axis, (title, amount, show) in zip(axes, amounts, strict=True):
        for place, row in enumerate(rows):
            parts = row.cost.steps if row.cost else []
            total = sum(map(amount, parts))
            shares = [(name, sum(amount(s) for s in parts if s.name == name) / (total or 1), "") for name in names]
            _stack(axis, place, shares, colours)
            axis.text(1.015, place, show(total), va="center", fontsize=7.5, color=MUTED)
        axis.set_title(title)
        axis.set_xlim(0, 1.22)
        axis.set_xticks([0, 0.25, 0.5, 0.75, 1], ["0", "25 %", "50 %", "75 %", "100 %"])
        axis.grid(visible=False)
        for side in ("left", "bottom"):
            axis.spines[side].set_visible(False)
    cut = f" The first {MOST} of {len(varied)} operators." if len(varied) > MOST else ""
    return finish(
        figure,
        name="steps",
        title="Cost by step",
        alt=f"Stacked bars of FLOPs and bytes by step for {text.plural(len(rows), 'operator')} at {group.label}: "
        f"{text.listing(names, 12)}.",
        caption=f"Closed forms and counted bytes at {group.label}, as shares of each operator's own total, "
        f"which is written at the bar's end. FFT FLOPs are nominal.{cut}",
    )


def measured_steps(bars: Sequence[Bar], problem: str) -> Plot:
    """Seconds a call by step, one bar an operator, and the shares; the steps of a backward pass are hatched."""
    import matplotlib as mpl

    names = list(dict.fromkeys(name for bar in bars for name, _ in (*bar.forward, *bar.backward)))
    palette = [colour for colour in COLOURS if colour != GREY]
    colours = {name: palette[place % len(palette)] for place, name in enumerate(names)} | {REST: GREY}
    style: Any = settings()
    with mpl.rc_context(style):
        figure, axes = _sheet([bar.label for bar in bars], colours, 0.3)
        longest = max(bar.total for bar in bars) * 1e3
        scales: list[tuple[str, float, Callable[[Bar], float]]] = [
            ("ms per call", longest * 1.2, lambda _: 1e3),
            ("% of the call", 100, lambda bar: 100 / bar.total if bar.total > 0 else 0.0),
        ]
        for axis, (title, end, scale) in zip(axes, scales, strict=True):
            for place, bar in enumerate(bars):
                parts = [(name, seconds, "") for name, seconds in bar.forward]
                parts += [(name, seconds, "////") for name, seconds in bar.backward]
                scaled = [
                    (name, seconds * scale(bar), hatch) for name, seconds, hatch in (*parts, (REST, bar.rest, ""))
                ]
                _stack(axis, place, scaled, colours)
            axis.set_title(title)
            axis.set_xlim(0, end)
            axis.grid(visible=False, axis="y")
        for place, bar in enumerate(bars):
            total = f" {text.seconds(bar.total)}"
            axes[0].text(bar.total * 1e3, place, total, va="center", fontsize=7.5, color=MUTED)
        return finish(
            figure,
            name="phases",
            title="Where the time goes",
            alt=f"Stacked bars of measured time by step for {text.plural(len(bars), 'operator')} at {problem}: "
            f"{text.listing(names, 12)}.",
            caption=f"Instrumented calls at {problem}; hatched: backward. What no step covers is grey.",
        )


def _sheet(names: Sequence[str], colours: Mapping[str, str], height: float) -> tuple[Figure, list[Axes]]:
    """Two panels with a bar a name, ``height`` inches each, and below them which colour is which step."""
    from matplotlib.patches import Patch

    left = max(map(len, names)) * 0.068 + 0.3
    panel = ((WIDTH - left - 0.45) / 2, height * len(names) + 0.1)
    margins = Margins(left=left, bottom=0.45, across=0.3)
    figure, [axes] = sheet(1, 2, panel, margins, named=list(colours))
    for axis, shown in zip(axes, (names, [""] * len(names)), strict=True):
        axis.set_ylim(len(names) - 0.45, -0.55)
        axis.set_yticks(range(len(names)), shown)
        axis.tick_params(axis="y", labelcolor=INK)
    figure.legend(
        [Patch(color=colour) for colour in colours.values()],
        list(colours),
        loc="lower center",
        bbox_to_anchor=(0.5, 0.02 / figure.get_figheight()),
        ncols=legend_columns(list(colours), figure.get_figwidth()),
        handlelength=1.0,
        handleheight=1.0,
        borderaxespad=0.0,
        labelcolor=INK,
    )
    return figure, axes


def _stack(axis: Axes, place: int, parts: Sequence[tuple[str, float, str]], colours: Mapping[str, str]) -> None:
    """One stacked bar of parts: name, length, hatch."""
    start = 0.0
    for name, length, hatch in parts:
        if length:
            axis.barh(place, length, left=start, height=0.68, color=colours[name], hatch=hatch,
                      edgecolor=PAPER, linewidth=0.6)  # fmt: skip
        start += length


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
    names = {row.id: {step.name for step in row.cost.steps} for row in group.rows if row.cost}
    single = {row.case.operator: row.id for row in reversed(group.rows) if len(names.get(row.id, ())) == 1}
    return [row for row in group.rows if len(names.get(row.id, ())) > 1 or row.id in single.values()]


class _Model(BaseModel):
    model_config = ConfigDict(extra="ignore", frozen=True)


class _Phase(_Model):
    name: str
    direction: str
    seconds: Seconds


class _Case(_Model):
    problem: Problem


class _Profiled(_Model):
    label: str
    case: _Case
    phases: list[_Phase]
    remainder: Seconds

    @property
    def bar(self) -> Bar:
        forward, backward = (
            tuple((text.clean(phase.name, 30), phase.seconds) for phase in self.phases if phase.direction == way)
            for way in ("forward", "backward")
        )
        return Bar(text.clean(self.label, 60), forward, backward, self.remainder)


class _Document(_Model):
    cases: Annotated[list[_Profiled], Field(min_length=1)]


def profiled_steps(directory: Path) -> Plot | None:
    """What ``niffbench profile --out RUN/…`` measured, of the first readable profile in a run's directory.

    It is looked for in ``directory`` and one level below it. A file that is no profile is passed over: it is not
    part of the run.
    """
    for path in sorted([directory / PROFILE, *directory.glob(f"*/{PROFILE}")]):
        if path.is_file() and path.stat().st_size <= MAX_BYTES:
            try:
                profile = _Document.model_validate_json(path.read_bytes())
            except (ValidationError, OSError):
                continue
            return measured_steps([case.bar for case in profile.cases[:MOST]], profile.cases[0].case.problem.label)
    return None
