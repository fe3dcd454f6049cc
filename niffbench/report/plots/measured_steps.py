"""Measured time by step, as stacked bars: what ``niffbench profile`` draws."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from niffbench.report import text
from niffbench.report.plots.canvas import INK, MUTED, PAPER, Margins, Plot, finish, legend_height, settings, sheet
from niffbench.report.plots.palette import COLOURS, GREY
from niffbench.report.plots.phases import step_legend

if TYPE_CHECKING:
    from matplotlib.axes import Axes

REST = "outside the steps"


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


def measured_steps(bars: Sequence[Bar], problem: str) -> Plot:
    """Seconds a call by step, one bar an operator, and the shares; the steps of a backward pass are hatched."""
    import matplotlib as mpl

    names = list(dict.fromkeys(name for bar in bars for name, _ in (*bar.forward, *bar.backward)))
    palette = [colour for colour in COLOURS if colour != GREY]
    colours = {name: palette[place % len(palette)] for place, name in enumerate(names)} | {REST: GREY}
    width = 9.6
    left = max(len(bar.label) for bar in bars) * 0.068 + 0.3
    panel = ((width - left - 0.45) / 2, 0.3 * len(bars) + 0.1)
    style: Any = settings()
    with mpl.rc_context(style):
        margins = Margins(left=left, bottom=0.45, across=0.3)
        figure, [[times, shares]] = sheet(1, 2, panel, margins, below=legend_height(list(colours), width))
        longest = max(bar.total for bar in bars)
        for place, bar in enumerate(bars):
            _draw(times, place, bar, 1e3, colours)
            _draw(shares, place, bar, 100 / bar.total if bar.total > 0 else 0.0, colours)
            end = f" {text.seconds(bar.total)}"
            times.text(bar.total * 1e3, place, end, va="center", fontsize=7.5, color=MUTED)
        times.set_xlim(0, longest * 1e3 * 1.2)
        shares.set_xlim(0, 100)
        times.set_yticks(range(len(bars)), [bar.label for bar in bars])
        shares.set_yticks(range(len(bars)), [""] * len(bars))
        for axis, title in ((times, "ms per call"), (shares, "% of the call")):
            axis.set_title(title)
            axis.set_ylim(len(bars) - 0.45, -0.55)
            axis.tick_params(axis="y", labelcolor=INK)
            axis.grid(visible=False, axis="y")
        step_legend(figure, colours)
        return finish(
            figure,
            name="phases",
            title="Where the time goes",
            alt=f"Stacked bars of measured time by step for {text.plural(len(bars), 'operator')} at {problem}: "
            f"{text.listing(names, 12)}.",
            caption=f"Instrumented calls at {problem}; hatched: backward. What no step covers is grey.",
        )


def _draw(axis: Axes, place: int, bar: Bar, scale: float, colours: Mapping[str, str]) -> None:
    """One stacked bar; ``scale`` turns seconds into the axis' unit."""
    start = 0.0
    pieces = [(name, seconds, "") for name, seconds in bar.forward]
    pieces += [(name, seconds, "////") for name, seconds in bar.backward]
    for name, seconds, hatch in [*pieces, (REST, bar.rest, "")]:
        drawn = axis.barh(place, seconds * scale, left=start, height=0.68, color=colours[name], hatch=hatch)
        for patch in drawn:
            patch.set(edgecolor=PAPER, linewidth=0.6)
        start += seconds * scale
