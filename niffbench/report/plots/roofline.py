"""The roofline: what each case achieved, under the ceilings measured on the same machine in the same run.

S. Williams, A. Waterman and D. Patterson, "Roofline: an insightful visual performance model for multicore
architectures", Communications of the ACM 52(4), 2009, pp. 65–76. Intensity is taken over the form's own
traffic.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import atan2, degrees
from typing import TYPE_CHECKING

from niffbench.report import text
from niffbench.report.digest import Digest, Row
from niffbench.report.plots.canvas import (
    INK,
    MUTED,
    PAPER,
    Margins,
    Plot,
    finish,
    legend,
    log_axis,
    sheet,
)
from niffbench.report.plots.palette import Style
from niffbench.report.slices import evenly
from niffbench.results import Ceilings, is_busy

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MOST = 600
"""Marks in the plot."""


def roofline(digest: Digest, styles: Mapping[str, Style]) -> Plot | None:
    """FLOP/s against FLOP/byte, one mark a case, for the dtype that most cases have."""
    ceilings = digest.ceilings
    rows = [row for row in digest.rows if row.ok and _place(row, digest)]
    if ceilings is None or not rows or not all(1 < rate < 1e30 for rate in _rates(ceilings)):
        return None
    dtypes = [row.case.problem.precision for row in rows]
    dtype = max(dict.fromkeys(dtypes), key=dtypes.count)
    rows = [row for row in rows if row.case.problem.precision == dtype]
    used = {row.label: styles[row.label] for row in rows}
    margins = Margins(left=0.95, right=0.2)
    figure, [[axis]] = sheet(1, 1, (6.25, 3.6), margins, named=list(used))
    marks: dict[str, list[tuple[float, float]]] = {}
    for row in evenly(rows, MOST):
        if place := _place(row, digest):
            marks.setdefault(row.label, []).append(place)
    every = [place for places in marks.values() for place in places]
    low, high = min(x for x, _ in every) / 1.6, max(x for x, _ in every) * 1.6
    tops = _ceilings(axis, ceilings, dtype, low, high)
    own = [one.rate for one in ceilings.fft_by_map if one.dtype == dtype]
    if own:
        axis.axhspan(min(own), max(own), color=INK, alpha=0.07, linewidth=0, zorder=0)
    for label, places in marks.items():
        style = styles[label]
        axis.plot(*zip(*places, strict=True), linestyle="none", marker=style.marker, color=style.colour,
                  markersize=5.5, markeredgecolor=PAPER, markeredgewidth=0.4, alpha=0.9, zorder=3)  # fmt: skip
    log_axis(axis, "x", [low, high], text.plain)
    log_axis(axis, "y", [*(y for _, y in every), *tops], lambda value: text.rate(value, "FLOP/s"))
    _slanted(axis, ceilings.copy_bandwidth, low)
    axis.set_xlabel("arithmetic intensity, FLOP per byte of the form's own traffic")
    axis.set_ylabel("achieved")
    legend(figure, used, lines=False)
    of = f", {MOST:,} of {len(rows):,} cases" if len(rows) > MOST else ""
    return finish(
        figure,
        name="roofline",
        title="Roofline",
        alt=f"Roofline plot ({dtype}): achieved FLOP/s of {text.plural(len(rows), 'case')} against arithmetic "
        f"intensity, under a copy bandwidth of {text.rate(ceilings.copy_bandwidth, 'B/s')}.",
        caption=f"{dtype}, {digest.regime} latency{of}. Ceilings were measured in this run. A mark above the "
        "slanted line found its data in a cache; nominal FFT FLOPs make no claim on the matrix-product ceiling."
        + (" Shaded: bare FFTs of the cases' own maps." if own else "")
        + (" Others were busy meanwhile, so the ceilings may be too low." if is_busy(ceilings.others) else ""),
        wide=False,
    )


def _rates(ceilings: Ceilings) -> list[float]:
    own = [one.rate for one in ceilings.fft_by_map]
    return [ceilings.copy_bandwidth, *ceilings.matmul.values(), *ceilings.fft.values(), *own]


def _place(row: Row, digest: Digest) -> tuple[float, float] | None:
    latency, work = row.value(digest.metrics[0].key), row.cost
    if not latency or work is None or not work.flops or not work.bytes_own:
        return None
    return work.flops / work.bytes_own, work.flops / latency


def _ceilings(axis: Axes, ceilings: Ceilings, dtype: str, low: float, high: float) -> list[float]:
    """Draw the roofs between two intensities; return the heights they reach."""
    bandwidth = ceilings.copy_bandwidth
    flat = [
        ("matrix product", ceilings.matmul.get(dtype), "solid"),
        ("bare FFT", ceilings.fft.get(dtype), "dashed"),
    ]
    tops = [bandwidth * low]
    roof = max([height for _, height, _ in flat if height], default=bandwidth * high)
    ridge = min(roof / bandwidth, high)
    axis.plot([low, ridge], [bandwidth * low, bandwidth * ridge], color=INK, linewidth=1.1, zorder=1)
    for noun, height, dash in flat:
        if height:
            start = min(height / bandwidth, high)
            axis.plot([start, high], [height, height], color=INK, linewidth=1.1, linestyle=dash, zorder=1)
            axis.annotate(f"{noun}, {text.rate(height, 'FLOP/s')}", (high, height), xytext=(-4, 4), zorder=4,
                          bbox={"facecolor": PAPER, "edgecolor": "none", "alpha": 0.75, "pad": 1},
                          textcoords="offset points", ha="right", fontsize=8, color=MUTED)  # fmt: skip
            tops.append(height)
    return tops


def _slanted(axis: Axes, bandwidth: float, start: float) -> None:
    """Name the bandwidth along its line, once the axes' limits are known."""
    ends = axis.transData.transform([(start, bandwidth * start), (2 * start, 2 * bandwidth * start)])
    angle = degrees(atan2(ends[1][1] - ends[0][1], ends[1][0] - ends[0][0]))
    axis.annotate(f"copy, {text.rate(bandwidth, 'B/s')}", (start, bandwidth * start), xytext=(2, 6), fontsize=8,
                  textcoords="offset points", rotation=angle, rotation_mode="anchor", color=MUTED)  # fmt: skip
