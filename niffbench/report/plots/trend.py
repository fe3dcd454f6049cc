"""The trend of a case as a plot."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from niffbench.gate.trend import Trend
from niffbench.report.plots.canvas import FAINT, INK, MUTED, Margins, Plot, finish, settings, sheet
from niffbench.report.text import clean, plural
from niffbench.report.verdicts import commit, line, value_in

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_DOT, _LEVEL = "#4477aa", "#aa3377"
_MOST_TICKS = 12


def draw(trend: Trend) -> Plot:
    """Every round median as a dot, every level as a line; runs from left to right, oldest first."""
    import matplotlib

    title = f"{clean(trend.results.label)} · {clean(trend.results.problem)} · {trend.metric.key}"
    steps = trend.steps()
    style: Any = settings()
    with matplotlib.rc_context(style):
        margins = Margins(left=0.9, bottom=0.95)
        figure, panels = sheet(1, 1, (min(max(0.25 * len(trend.runs), 4.0), 12.0), 2.6), margins)
        _fill(panels[0][0], trend)
        panels[0][0].set_title(title)
        outcome = "; ".join(map(line, steps)) or trend.history.reason or "no change of level"
        return finish(
            figure,
            name="trend",
            title=title,
            alt=f"{title} over {plural(len(trend.runs), 'run')}: {outcome}",
            caption=outcome,
        )


def _fill(axes: Axes, trend: Trend) -> None:
    from matplotlib.ticker import FuncFormatter

    for position, values in enumerate(trend.rounds):
        axes.plot([position] * len(values), values, "o", color=_DOT, alpha=0.55, markersize=3.5, markeredgewidth=0)
    for segment in trend.history.segments:
        axes.plot([segment.start - 0.4, segment.end - 0.6], [segment.level] * 2, color=_LEVEL)
    for change in trend.history.changes:
        axes.axvline(change.run - 0.5, color=MUTED, linewidth=0.8, linestyle=":")
    names = [f"{run.started[:10]}\n{commit(run.commit)}" for run in trend.runs]
    every = -(-len(names) // _MOST_TICKS)
    shown = range(0, len(names), every)
    axes.set_xticks(list(shown), [names[i] for i in shown], rotation=45, ha="right", fontsize=7, color=INK)
    axes.set_xlim(-0.6, len(names) - 0.4)
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: value_in(trend.metric.key, value)))
    axes.grid(axis="x", visible=False)
    axes.grid(axis="y", color=FAINT)
    of_what = "each round" if trend.results.case else "relative to the first run"
    less = "\nless what controls share" if trend.controls else ""
    axes.set_ylabel(f"{trend.metric.title}, {of_what}{less}")
