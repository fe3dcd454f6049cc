"""A history as a static site: an overview, a page for each suite and machine, and one for each case."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from math import isfinite
from pathlib import Path
from typing import TYPE_CHECKING

from niffbench import report
from niffbench.gate.history import component
from niffbench.gate.rules import Accepted
from niffbench.gate.series import Series
from niffbench.gate.trend import Trend
from niffbench.report import make_directory, write_whole
from niffbench.report.text import clean, plural
from niffbench.report.verdicts import commit, line, value_in
from niffbench.report.writers.html import asset, environment
from niffbench.results import main_regime

if TYPE_CHECKING:
    from markupsafe import Markup

WIDTH, HEIGHT, TOP = 720, 150, 12
MOST_STEPS = 50


@dataclass(frozen=True)
class Alert:
    """A metric of a case that is beyond its accepted level, by the factor ``ratio``."""

    trend: Trend
    ratio: float


@dataclass(frozen=True)
class Shown:
    """A series as the site shows it; ``folder`` is its place in the site."""

    series: Series
    accepted: Accepted

    @property
    def folder(self) -> str:
        return f"{self.series.entries[0].fingerprint}-{component(self.series.name)}"

    @property
    def machine(self) -> str:
        return clean(self.series.newest.manifest.fingerprint.machine)

    @cached_property
    def alerts(self) -> list[Alert]:
        beyond = [(trend, trend.beyond(self.accepted)) for trend in self.series.trends]
        return sorted((Alert(t, ratio) for t, ratio in beyond if ratio is not None), key=lambda one: -one.ratio)

    @property
    def standing(self) -> str:
        """How many alerts are open, and of how many cases too few runs tell nothing."""
        undecided = {
            id_
            for id_, trends in self.cases.items()
            if any(trend.metric.gate and trend.is_undecided for trend in trends)
        }
        some = bool(self.alerts) or len(undecided) < len(self.cases)
        parts = [plural(len(self.alerts), "open alert")] if some else []
        if undecided:
            parts.append("too few runs to tell" + (f" in {plural(len(undecided), 'case')}" if some else ""))
        return ", ".join(parts)

    @cached_property
    def steps(self) -> list[tuple[Trend, str]]:
        """Changes of level, the newest first, as sentences."""
        steps = [(trend, step) for trend in self.series.trends for step in trend.steps()]
        steps.sort(key=lambda pair: pair[1].started, reverse=True)
        return [(trend, line(step)) for trend, step in steps]

    @cached_property
    def pages(self) -> dict[str, list[Trend]]:
        """The trends of each case, and of what all share."""
        pages: dict[str, list[Trend]] = {}
        for trend in self.series.trends:
            pages.setdefault(trend.results.id, []).append(trend)
        return pages

    @property
    def cases(self) -> dict[str, list[Trend]]:
        """The trends of each case."""
        return {id_: trends for id_, trends in self.pages.items() if trends[0].results.case is not None}

    @property
    def columns(self) -> list[str]:
        """The metrics of the page of the series."""
        regime = main_regime(self.series.newest.records)
        return [f"latency_{regime}", "memory_total", "flops"]

    def newest(self, trends: Sequence[Trend], key: str) -> str:
        """The newest value of a case's metric."""
        level = next((trend.values[-1] for trend in trends if trend.metric.key == key), float("nan"))
        return value_in(key, level) if isfinite(level) else "–"


def write(series: Iterable[Series], out: Path, accepted: Accepted, notes: Sequence[str]) -> Path:
    """Write the site; returns its first page.

    Raises:
        UsageError: when it cannot be.
    """
    shown = [Shown(one, accepted) for one in series]
    for one in shown:
        folder = out / one.folder
        make_directory(folder)
        page = folder / "newest" / "report.html"
        newest = one.series.entries[-1].place
        mark = folder / "newest" / "of.txt"
        if not (page.exists() and mark.exists() and mark.read_text(encoding="utf-8") == newest):
            report.write(one.series.newest, folder / "newest")
            write_whole(mark, newest)
        for id_, trends in one.pages.items():
            write_whole(folder / f"{id_}.html", _page("case", "../", one=one, trends=trends))
        write_whole(folder / "index.html", _page("series", "../", one=one))
    write_whole(out / "index.html", _page("overview", "", shown=shown, notes=notes))
    return out / "index.html"


def _page(kind: str, up: str, **content: object) -> str:
    functions: Mapping[str, object] = {
        "chart": chart,
        "value_in": value_in,
        "commit": commit,
        "plural": plural,
        "most_steps": MOST_STEPS,
    }
    template = environment().get_template("site.html.j2")
    return template.render(kind=kind, up=up, css=asset("report.css"), **functions, **content)


def chart(trend: Trend) -> Markup:
    """A trend as SVG: a dot a run, a line a level, a mark a change; runs from left to right, oldest first."""
    from markupsafe import Markup, escape

    values = trend.values
    finite = [value for value in values if isfinite(value)]
    low, high = min(finite), max(finite)
    if low == high:
        return Markup("<p>always %s</p>") % value_in(trend.metric.key, low)
    across = (WIDTH - 10) / max(len(values) - 1, 1)

    def x(position: float) -> str:
        return f"{5 + across * position:.1f}"

    def y(value: float) -> str:
        return f"{TOP + (HEIGHT - 2 * TOP) * (high - value) / (high - low):.1f}"

    dots = "".join(f"M{x(i)} {y(value)}h0" for i, value in enumerate(values) if isfinite(value))
    levels = "".join(
        f"M{x(s.start)} {y(s.level)}H{x(s.end - 1)}" for s in trend.history.segments if s.level <= high
    )
    marks = "".join(
        f'<path class="step" d="M{x(change.run)} {TOP}V{HEIGHT - TOP}"><title>{escape(line(step))}</title></path>'
        for change, step in zip(trend.history.changes, trend.steps(), strict=True)
    )
    ends = _ends(trend, low, high)
    return Markup(
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(ends)}">'
        f'<path class="dots" d="{dots}"/><path class="levels" d="{levels}"/>{marks}</svg>'
        f'<p class="caveat">{escape(ends)}</p>'
    )


def _ends(trend: Trend, low: float, high: float) -> str:
    key = trend.metric.key
    less = f", less what {trend.controls} controls share: as on the newest run's machine" if trend.controls else ""
    return f"{value_in(key, low)} to {value_in(key, high)} over {plural(len(trend.runs), 'run')}{less}"
