"""The sheet all plots are drawn on: sizes in inches, quiet axes, ticks with units, and files that are always
the same.

Text stays text in SVG, nothing depends on the time or on the machine's fonts, and dollar signs in a label mean
dollars.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from html import escape
from itertools import pairwise
from math import ceil, floor, log, log2, log10
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from niffbench.report.plots.palette import Style

INK, FAINT, PAPER = "#1f2429", "#d9dee3", "#ffffff"
"""Text, grid and background. In a page these become the page's own colours, light or dark."""
MUTED = "#6b747d"
_PAGE_COLOURS = ((INK, "currentColor"), (FAINT, "var(--rule)"), (PAPER, "var(--paper)"), (MUTED, "var(--muted)"))
DPI = 144


@dataclass(frozen=True)
class Plot:
    """A finished plot. ``name`` is its file's stem and its anchor; ``alt`` tells it to who cannot see it."""

    name: str
    title: str
    alt: str
    caption: str
    svg: str
    png: bytes
    wide: bool  # more than one panel across: scrolls sideways on a phone

    def inline(self, prefix: str = "") -> str:
        """The SVG for a page: no prologue, ids of its own, alternative text, colours that follow the page's."""
        body = self.svg[self.svg.index("<svg") :]
        body = re.sub(r"<metadata>.*?</metadata>", "", body, flags=re.DOTALL)
        body = re.sub(r'(\bid="|url\(#|href="#)', rf"\g<1>{prefix}{self.name}-", body)
        for colour, variable in _PAGE_COLOURS:
            body = body.replace(f": {colour}", f": {variable}")
        width = re.search(r' width="([\d.]+)pt"', body)
        body = re.sub(r' (?:width|height)="[\d.]+pt"', "", body, count=2)
        pixels = float(width[1]) * 4 / 3 if width else 900
        head = f'<svg role="img" aria-label="{escape(self.alt, quote=True)}" style="max-width: {pixels:.0f}px"'
        return body.replace("<svg", head, 1)


@cache
def settings() -> Mapping[Any, Any]:
    """What matplotlib is told. The hash salt and the one bundled font make files reproducible."""
    import seaborn

    axes = dict(seaborn.axes_style("ticks"))
    return axes | {
        "axes.edgecolor": FAINT,
        "axes.facecolor": "none",
        "axes.grid": True,
        "axes.labelcolor": INK,
        "axes.linewidth": 0.8,
        "axes.labelsize": 9,
        "axes.spines.right": False,
        "axes.spines.top": False,
        "axes.titlecolor": INK,
        "axes.titlelocation": "left",
        "axes.titlesize": 9.5,
        "axes.titleweight": "bold",
        "figure.facecolor": PAPER,
        "font.family": ["DejaVu Sans"],
        "font.size": 8.5,
        "grid.color": FAINT,
        "grid.linewidth": 0.5,
        "legend.fontsize": 8.5,
        "legend.frameon": False,
        "lines.linewidth": 1.4,
        "lines.markersize": 4.5,
        "pdf.fonttype": 42,
        "ps.fonttype": 42,
        "savefig.facecolor": PAPER,
        "svg.fonttype": "none",
        "svg.hashsalt": "niffbench",
        "text.color": INK,
        "text.parse_math": False,
        "xtick.color": FAINT,
        "xtick.labelcolor": MUTED,
        "xtick.labelsize": 8,
        "xtick.major.size": 3,
        "ytick.color": FAINT,
        "ytick.labelcolor": MUTED,
        "ytick.labelsize": 8,
        "ytick.major.size": 0,
    }


@dataclass(frozen=True)
class Margins:
    """Inches around the panels, and between them."""

    left: float = 0.75
    right: float = 0.15
    top: float = 0.3
    bottom: float = 0.5
    across: float = 0.6
    down: float = 0.65


def sheet(
    rows: int, columns: int, panel: tuple[float, float], margins: Margins = Margins(), *, named: Sequence[str] = ()
) -> tuple[Figure, list[list[Axes]]]:
    """A figure of equal panels, each ``panel`` inches (width, height), with room below for a legend of ``named``.

    Sizes are fixed rather than found by trial, which is several times faster and the same everywhere.
    """
    from matplotlib.figure import Figure

    width = margins.left + columns * panel[0] + (columns - 1) * margins.across + margins.right
    below = 0.2 * ceil(len(named) / legend_columns(named, width)) + 0.1 if named else 0.0
    height = margins.top + rows * panel[1] + (rows - 1) * margins.down + margins.bottom + below
    figure = Figure(figsize=(width, height))
    axes = figure.subplots(rows, columns, squeeze=False)
    figure.subplots_adjust(
        left=margins.left / width,
        right=1 - margins.right / width,
        top=1 - margins.top / height,
        bottom=(margins.bottom + below) / height,
        wspace=margins.across / panel[0],
        hspace=margins.down / panel[1],
    )
    return figure, [list(line) for line in axes]


def finish(figure: Figure, *, name: str, title: str, alt: str, caption: str, wide: bool = True) -> Plot:
    """Render once to SVG and once to PNG."""
    spread_ticks(figure)
    svg, png = io.StringIO(), io.BytesIO()
    figure.savefig(svg, format="svg", metadata={"Date": None, "Creator": None})
    figure.savefig(png, format="png", dpi=DPI, metadata={"Software": None})
    drawing = re.sub(
        r"'DejaVu Sans'", "system-ui, 'Segoe UI', Roboto, Helvetica, Arial, sans-serif", svg.getvalue()
    )
    return Plot(name, title, alt, caption, drawing, png.getvalue(), wide)


def legend_columns(labels: Sequence[str], width: float) -> int:
    """In how many columns a legend of ``labels`` goes on a figure ``width`` inches wide."""
    from matplotlib.font_manager import FontProperties
    from matplotlib.textpath import text_to_path

    font = FontProperties(size=settings()["legend.fontsize"])
    points = [text_to_path.get_text_width_height_descent(label, font, ismath=False)[0] for label in labels]
    widest = max(points, default=72.0) / 72
    return max(1, min(len(labels), floor(width / (widest + 0.6))))  # a mark, and room on both sides


def legend(figure: Figure, used: Mapping[str, Style], *, lines: bool = True) -> None:
    """One legend under all panels, in the suite's order."""
    from matplotlib.lines import Line2D

    if not used:
        return
    keys = [
        Line2D([], [], color=s.colour, linestyle=s.dash if lines else "none", marker=s.marker, markeredgewidth=0)
        for s in used.values()
    ]
    columns = legend_columns(list(used), figure.get_figwidth())
    figure.legend(
        keys,
        list(used),
        loc="lower center",
        bbox_to_anchor=(0.5, 0.02 / figure.get_figheight()),
        ncols=columns,
        handlelength=2.4 if lines else 1.0,
        columnspacing=1.6,
        borderaxespad=0.0,
        labelcolor=INK,
    )


def log_ticks(low: float, high: float, *, base: int = 10, most: int = 6) -> list[float]:
    """Round values from ``low`` to ``high``, at most about ``most``: powers of ``base``, or some between them."""
    first, last = ceil(log(low, base) - 1e-9), floor(log(high, base) + 1e-9)
    powers = last - first + 1
    if base == 2 and powers < 2:
        octave = 2.0 ** floor(log2(low))
        parts = next((n for n in (4, 8, 16) if high - low >= 2 * octave / n), 32)
        steps = [octave * (1 + step / parts) for step in range(3 * parts)]
        return [value for value in steps if low <= value <= high]
    if powers >= 3 or base == 2:
        step = next(s for s in (1, 2, 5, 10, 20, 50, 100, 1000) if powers <= most * s)
        start = ceil(first / step) * step
        return [float(base) ** exponent for exponent in range(start, last + 1, step)]
    decade = floor(log10(low))
    fine = [m * 10.0**e for e in range(decade, decade + 4) for m in (1, 2, 5)]
    inside = [value for value in fine if low <= value * (1 + 1e-9) and value <= high * (1 + 1e-9)]
    if len(inside) >= 2:
        return inside
    finer = [m * 10.0**e for e in range(decade, decade + 3) for m in (1, 1.2, 1.5, 2, 2.5, 3, 4, 5, 6, 7, 8, 9)]
    return [value for value in finer if low <= value <= high]


def log_axis(
    axes: Axes, which: str, values: Sequence[float], show: Callable[[float], str], *, base: int = 10, most: int = 6
) -> None:
    """Make an axis logarithmic over ``values`` with a little room, ticks at round values, labels by ``show``."""
    from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

    axis = axes.xaxis if which == "x" else axes.yaxis
    positive = [value for value in values if value > 0] or [1.0]
    room = max((max(positive) / min(positive)) ** 0.06, 1.08)
    low, high = min(positive) / room, max(positive) * room
    _logarithmic(axes, which, low, high)
    axis.set_major_locator(FixedLocator(log_ticks(low, high, base=base, most=most)))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(FuncFormatter(lambda value, _: trim(show(value))))


def _logarithmic(axes: Axes, which: str, low: float, high: float) -> None:
    """Limits come first: matplotlib warns of a logarithmic axis that fits itself to one value."""
    (axes.set_xlim if which == "x" else axes.set_ylim)(low, high)
    (axes.set_xscale if which == "x" else axes.set_yscale)("log")


def measured_axis(axes: Axes, which: str, values: Sequence[float], *, most: int = 8) -> None:
    """A logarithmic axis with ticks at the values that were measured, thinned where they would touch."""
    from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

    axis = axes.xaxis if which == "x" else axes.yaxis
    ordered = sorted({value for value in values if value > 0})
    room = (ordered[-1] / ordered[0]) ** 0.05 if len(ordered) > 1 else 1.3
    _logarithmic(axes, which, ordered[0] / room, ordered[-1] * room)
    axis.set_major_locator(FixedLocator(thin(ordered, most)))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.4g}"))


def spread_ticks(figure: Figure) -> None:
    """Leave out every second tick of an axis with ticks of our own for as long as two of its labels touch."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.ticker import FixedLocator

    canvas: Any = FigureCanvasAgg(figure)
    renderer = canvas.get_renderer()
    for axis, ends in ((a, e) for axes in figure.axes for a, e in ((axes.xaxis, "x"), (axes.yaxis, "y"))):
        while isinstance(axis.get_major_locator(), FixedLocator) and len(places := axis.get_majorticklocs()) > 2:
            low, high = sorted(axis.get_view_interval())
            ticks = [tick for tick in axis.get_major_ticks() if low <= tick.get_loc() <= high]
            shown = [tick.label1 for tick in ticks if tick.label1.get_visible() and tick.label1.get_text()]
            boxes = [label.get_window_extent(renderer) for label in shown]
            sides = sorted((getattr(box, f"{ends}0"), getattr(box, f"{ends}1")) for box in boxes)
            if all(after[0] - before[1] > 2 for before, after in pairwise(sides)):
                break
            axis.set_major_locator(FixedLocator(list(places)[::2]))


def thin(ordered: Sequence[float], most: int) -> list[float]:
    """Those of some ascending positive values that lie far enough apart on a log scale to carry a label."""
    if len(ordered) < 2:
        return list(ordered)
    gap = log(ordered[-1] / ordered[0]) / most
    ticks = [ordered[0]]
    for value in ordered[1:-1]:
        if log(value / ticks[-1]) >= gap and log(ordered[-1] / value) >= gap:
            ticks.append(value)
    return [*ticks, ordered[-1]]


def trim(label: str) -> str:
    """``10.0 µs`` as ``10 µs``: a tick's value is exact."""
    return re.sub(r"\.(?!\d)", "", re.sub(r"(\.\d*?)0+(?=\D|$)", r"\1", label))
