"""The paper's question: how large are learned filters, in pixels and of the map, and do they grow with it?

NIFF networks are trained on the digits at several resolutions from several seeds. A layer's width is the side of
the centred window that holds a share of its kernels' mass, interpolated between whole windows.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

from niffbench.errors import UsageError
from niffbench.niff import networks
from niffbench.report import text
from niffbench.report.table import Column, Entry, Row, Table, row_of
from niffbench.report.writers import csv
from niffbench.report.writers.markdown import titled
from niffbench.stats.intervals import Interval, combination, median_of_rounds
from niffbench.study import digits
from niffbench.study.effective import analyse_layer, filtering_layers

if TYPE_CHECKING:
    from niffbench.report.plots.canvas import Plot

HALF, MOST = 0.5, 0.9

CAPTION = (
    "Width is the side of the centred window that holds 50 % and 90 % of Σ|k|, on average over a layer's "
    "kernels, interpolated; the median over seeds with its interval. “Untrained” is the second before training."
)


@dataclass(frozen=True)
class Width:
    """How wide one layer's filters are on its map, learned from one seed at one resolution; in pixels.

    ``half`` and ``most`` hold 50 % and 90 % of the mass, ``untrained`` 90 % of it before training. ``accuracy``
    is the network's, on test images.
    """

    layer: str
    size: int
    map: int
    seed: int
    half: float
    most: float
    untrained: float
    accuracy: float


@dataclass(frozen=True)
class Growth:
    """The exponent e of width ∝ map^e in one layer: 0 for filters of fixed pixels, 1 for a fixed share."""

    layer: str
    exponent: Interval

    @property
    def verdict(self) -> str:
        """What the interval leaves open of both, in words."""
        low, high = self.exponent.low, self.exponent.high
        if low is None or high is None:
            return "are of one seed, which decides nothing"
        if low > 0:
            if high < 1:
                return "grow more slowly than the map"
            return "grow faster than the map" if low > 1 else "grow, at a rate that may be the map's"
        if high < 0:
            return "shrink in pixels"
        slowly = " and, if they do, grow more slowly than the map" if high < 1 else ""
        return f"are not shown to grow{slowly}"


def learn_widths(
    sides: Sequence[int],
    seeds: Sequence[int],
    epochs: int | None = None,
    on_epoch: Callable[[str, int], None] = lambda *_: None,
    cache: Path | None = None,
) -> tuple[Width, ...]:
    """Train a NIFF network on the digits at each of ``sides`` from each of ``seeds``; how wide are its filters?

    Args:
        epochs: of training; None: as many as the recipe has.
        on_epoch: told what is trained, and how many epochs that takes.
        cache: as of :func:`niffbench.study.digits.train`.

    Raises:
        UsageError: if scikit-learn is not installed.
    """
    widths: list[Width] = []
    for side in sides:
        data = digits.load(side)
        for seed in seeds:
            recipe = digits.recipe(epochs, seed)
            tell = partial(on_epoch, f"training at {side}×{side}, seed {seed}", recipe.epochs)
            trained = digits.train("niff", data, recipe, lambda *_, tell=tell: tell(), cache)
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(seed)
                fresh = digits.network("niff")
            widths += widths_of(trained.network, fresh, side, seed, trained.accuracy)
    return tuple(widths)


def widths_of(model: nn.Module, untrained: nn.Module, side: int, seed: int, accuracy: float) -> list[Width]:
    """The widths of all layers of a network on images of ``side``, beside those before training."""
    maps = networks.feature_maps(model, side, side)
    before = filtering_layers(untrained)
    widths = []
    for name, layer in filtering_layers(model).items():
        size, first = (analyse_layer(one, *maps[name]) for one in (layer, before[name]))
        widths.append(
            Width(
                name,
                side,
                maps[name][0],
                seed,
                size.width_of(HALF),
                size.width_of(MOST),
                first.width_of(MOST),
                accuracy,
            )
        )
    return widths


def growth(widths: Sequence[Width]) -> list[Growth]:
    """How the width that holds 90 % of the mass grows with the map: a layer's slope on logs, paired by seed."""
    result = []
    for layer in dict.fromkeys(one.layer for one in widths):
        own = [one for one in widths if one.layer == layer]
        maps = {one.size: one.map for one in sorted(own, key=lambda one: one.size)}
        if len(set(maps.values())) < 2:
            continue
        x = np.log(np.asarray(list(maps.values()), dtype=np.float64))
        weights = (x - x.mean()) / np.square(x - x.mean()).sum()
        seeds = sorted({one.seed for one in own})
        groups = [[_only(own, size, seed).most for seed in seeds] for size in maps]
        result.append(Growth(layer, combination(groups, weights.tolist(), shared=True)))
    return result


def _only(widths: Sequence[Width], size: int, seed: int) -> Width:
    return next(one for one in widths if one.size == size and one.seed == seed)


def sentences(widths: Sequence[Width]) -> list[str]:
    """What follows, layer by layer."""
    said = []
    for one in growth(widths):
        own = [width for width in widths if width.layer == one.layer]
        sides = sorted({width.map for width in own})
        ends = [median_of_rounds([w.most for w in own if w.map == side]) for side in (sides[0], sides[-1])]
        first, last = (f"{end.estimate:.1f} {text.brackets(end)}".rstrip() for end in ends)
        exponent = one.exponent
        power = f"{exponent.estimate:.2f} {text.brackets(exponent)}".rstrip()
        said.append(
            f"{one.layer}: filters {one.verdict}: 90 % of their mass lies within {first} pixels of a map of "
            f"{sides[0]}, within {last} of one of {sides[-1]}; width ∝ map^{power}."
        )
    if not said:
        said.append("At one resolution alone nothing can be said about growth.")
    seeds = len({one.seed for one in widths})
    return [*said, f"{text.plural(seeds, 'seed')}; what differs between seeds is in the intervals."]


def table(widths: Sequence[Width]) -> Table:
    """One line a layer and resolution."""
    columns = (
        Column("layer"),
        Column("images", "figure"),
        Column("map", "figure"),
        Column("50 % mass, pixels", "figure", importance=5),
        Column("90 % mass, pixels", "figure"),
        Column("of the map", "figure", importance=8),
        Column("untrained, pixels", "figure", importance=4),
        Column("accuracy", "figure", importance=3),
    )
    rows: list[Row] = []
    for layer in dict.fromkeys(one.layer for one in widths):
        for size in sorted({one.size for one in widths}):
            own = [one for one in widths if one.layer == layer and one.size == size]
            side = own[0].map
            rows.append(
                row_of(
                    layer,
                    Entry(f"{size}×{size}", value=size),
                    Entry(f"{side}×{side}", value=side),
                    _entry([one.half for one in own]),
                    _entry([one.most for one in own]),
                    _entry([one.most / side for one in own]),
                    _entry([one.untrained for one in own]),
                    _entry([one.accuracy for one in own]),
                )
            )
    return Table("widths", "How wide learned filters are", columns, tuple(rows), CAPTION)


def _entry(values: Sequence[float]) -> Entry:
    interval = median_of_rounds(values)
    return Entry(text.plain(interval.estimate), note=text.brackets(interval), value=interval.estimate)


def plot(widths: Sequence[Width]) -> Plot:
    """Width against the map's side, in pixels and as a share of it."""
    import matplotlib

    from niffbench.report.plots.canvas import settings
    from niffbench.study import plots as drawing

    lines: dict[str, list[tuple[int, Interval]]] = {}
    for layer in dict.fromkeys(one.layer for one in widths):
        own = [one for one in widths if one.layer == layer]
        lines[layer] = [
            (side, median_of_rounds([one.most for one in own if one.map == side]))
            for side in sorted({one.map for one in own})
        ]
    style: Any = settings()
    with matplotlib.rc_context(style):
        return drawing.widths(lines)


def plain(widths: Sequence[Width]) -> dict[str, Any]:
    """Everything, for JSON."""
    return {
        "widths": [asdict(one) for one in widths],
        "growth": [
            {"layer": one.layer, "exponent": asdict(one.exponent), "verdict": one.verdict}
            for one in growth(widths)
        ],
        "sentences": sentences(widths),
    }


def write(out: Path, widths: Sequence[Width]) -> None:
    """Report, table, figure and JSON.

    Raises:
        UsageError: when that fails.
    """
    drawn, wide = plot(widths), table(widths)
    blocks = [
        "# How large learned filters are",
        "\n".join(f"- {text.markdown(one, 600)}" for one in sentences(widths)),
    ]
    blocks += [titled(wide), f"![{text.markdown(drawn.alt, 300)}](plots/{drawn.name}.svg)"]
    blocks.append(text.markdown(drawn.caption, 500))
    files = {
        "report.md": ("\n\n".join(blocks) + "\n").encode(),
        "table.csv": csv.write(wide).encode(),
        "widths.json": (json.dumps(plain(widths), indent=1, allow_nan=False) + "\n").encode(),
        f"plots/{drawn.name}.svg": drawn.svg.encode(),
        f"plots/{drawn.name}.png": drawn.png,
    }
    try:
        (out / "plots").mkdir()
        for name, content in files.items():
            (out / name).write_bytes(content)
    except OSError as error:
        raise UsageError(f"{out}: cannot be written ({error.strerror})") from error
