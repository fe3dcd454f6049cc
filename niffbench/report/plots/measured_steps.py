"""Measured time by step, as stacked bars: what ``niffbench profile`` draws."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from niffbench.report import text
from niffbench.report.plots.canvas import INK, MUTED, PAPER, Margins, Plot, finish, legend_height, sheet
from niffbench.report.plots.palette import COLOURS, GREY
from niffbench.report.plots.phases import step_legend

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
    """Seconds a call by step, one bar an operator; the steps of a backward pass are hatched."""
    names = list(dict.fromkeys(name for bar in bars for name, _ in (*bar.forward, *bar.backward)))
    palette = [colour for colour in COLOURS if colour != GREY]
    colours = {name: palette[place % len(palette)] for place, name in enumerate(names)} | {REST: GREY}
    width = 8.4
    left = max(len(bar.label) for bar in bars) * 0.068 + 0.3
    below = legend_height(list(colours), width)
    panel = (width - left - 0.9, 0.34 * len(bars) + 0.1)
    figure, [[axis]] = sheet(1, 1, panel, Margins(left=left, right=0.9, bottom=0.45), below=below)
    for place, bar in enumerate(bars):
        start = 0.0
        pieces = [(name, time, "") for name, time in bar.forward]
        pieces += [(name, time, "////") for name, time in bar.backward]
        for name, time, hatch in [*pieces, (REST, bar.rest, "")]:
            drawn = axis.barh(place, time * 1e3, left=start * 1e3, height=0.68, color=colours[name], hatch=hatch)
            for patch in drawn:
                patch.set(edgecolor=PAPER, linewidth=0.6)
            start += time
        axis.text(start * 1e3, place, f" {text.seconds(start)}", va="center", fontsize=7.5, color=MUTED)
    axis.set_ylim(len(bars) - 0.45, -0.55)
    axis.set_yticks(range(len(bars)), [bar.label for bar in bars])
    axis.tick_params(axis="y", labelcolor=INK)
    axis.set_xlabel("ms per call")
    axis.grid(visible=False, axis="y")
    step_legend(figure, colours)
    return finish(
        figure,
        name="phases",
        title="Where the time goes",
        alt=f"Stacked bars of measured time by step for {len(bars)} operators at {problem}: "
        f"{text.listing(names, 12)}.",
        caption=f"Instrumented calls at {problem}; hatched: backward. What no step covers is grey.",
        wide=False,
    )
