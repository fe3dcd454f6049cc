"""Runs side by side: every case of the later runs as a ratio to the first."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from niffbench.report import text
from niffbench.report.comparison import Pair
from niffbench.report.digest import Digest
from niffbench.report.plots.canvas import (
    FAINT,
    INK,
    PAPER,
    Margins,
    Plot,
    evenly,
    finish,
    log_axis,
    sheet,
)
from niffbench.report.plots.palette import Style

MOST = 40
"""Operators in one plot."""


def side_by_side(digests: Sequence[Digest], pairs: Sequence[Pair], styles: Mapping[str, Style]) -> Plot | None:
    """One line an operator, one mark a problem, one panel a run."""
    with_latency = [(pair, ratio) for pair in pairs if (ratio := pair.latency) and ratio.estimate]
    labels = evenly(list(dict.fromkeys(pair.row.label for pair, _ in with_latency)), MOST)
    others = [place for place in range(1, len(digests)) if any(pair.run == place for pair, _ in with_latency)][:4]
    if not labels or not others:
        return None
    used = {label: styles[label] for label in labels}
    left = max(map(len, labels)) * 0.068 + 0.3
    margins = Margins(left=left, right=0.15, bottom=0.5, across=0.3)
    across = (9.6 - left - 0.15 - 0.3 * (len(others) - 1)) / len(others)
    figure, [axes] = sheet(1, len(others), (across, 0.27 * len(labels) + 0.15), margins)
    for axis, place in zip(axes, others, strict=True):
        values = [1.0]
        for pair, ratio in with_latency:
            if pair.run != place or pair.row.label not in used or ratio.estimate is None:
                continue
            line, style = labels.index(pair.row.label), used[pair.row.label]
            values.append(ratio.estimate)
            if ratio.low is not None and ratio.high is not None:
                axis.plot([ratio.low, ratio.high], [line, line], color=style.colour, linewidth=1.0, alpha=0.5)
            axis.plot(ratio.estimate, line, marker=style.marker, color=style.colour, markersize=5,
                      markeredgecolor=PAPER, markeredgewidth=0.4, zorder=3)  # fmt: skip
        log_axis(axis, "x", values, text.times, most=6)
        axis.axvline(1.0, color=INK, linewidth=0.9, zorder=1)
        axis.set_ylim(len(labels) - 0.5, -0.5)
        axis.set_yticks(range(len(labels)), labels if axis is axes[0] else [""] * len(labels))
        axis.tick_params(axis="y", labelcolor=INK)
        axis.grid(axis="y", color=FAINT)
        axis.set_title(digests[place].name)
        axis.set_xlabel(f"{digests[place].regime} latency, as a ratio to {digests[0].name}")
    return finish(
        figure,
        name="side-by-side",
        title="Latency, run against run",
        alt=f"Dot plot of {digests[0].regime} latency of {text.plural(len(labels), 'operator')} in "
        f"{text.plural(len(others), 'run')}, as a ratio to {digests[0].name}; the table below holds the numbers.",
        caption=f"One mark a problem; further left is faster than {digests[0].name}. "
        "Bars: 95 % intervals over rounds.",
        wide=len(others) > 1,
    )
