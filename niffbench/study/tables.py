"""What ``filters`` found, in words: the table, the advice, Markdown, CSV and JSON."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from niffbench.report import text
from niffbench.report.table import Column, Entry, Row, Table, row_of
from niffbench.report.writers.csv import records
from niffbench.report.writers.markdown import write as write_markdown

if TYPE_CHECKING:
    from niffbench.report.plots.canvas import Plot
    from niffbench.study.filters import LayerStudy
    from niffbench.study.learned import Learned

HALF, MOST = 0.5, 0.9
"""The shares of kernel mass, and of variance, that the table gives sizes for."""

CAPTION = (
    "“x % mass” is the side of the smallest centred window that holds x % of Σ|k|, on average over a layer's "
    "kernels; “90 % variance” is how many principal components explain it. The error is the relative L2 error of "
    "the layer's output on its own input; where nothing is within the tolerance it is that of the largest kernel "
    "tried. FLOPs are of one forward pass by closed forms, FFTs at their nominal 5·N·log2 N, half for real ones; "
    "on a GPU latency can decide otherwise."
)


@dataclass(frozen=True)
class FilterReport:
    """One network's filters. ``input`` is what it was run on, ``size`` its side, ``weights`` whose they are.

    ``unreached`` names the layers that evaluation never reaches, ``guessed`` those that may be of another kind.
    """

    network: str
    weights: str
    input: str
    size: int
    batch: int
    tolerance: float
    boundary: str
    layers: tuple[LayerStudy, ...]
    learned: Learned | None = None
    unreached: tuple[str, ...] = ()
    guessed: tuple[str, ...] = ()


def advice(report: FilterReport) -> list[str]:
    """What follows, in sentences: what could be truncated, what it saves, what cannot, and whether it works."""
    within = [layer for layer in report.layers if layer.truncation.side is not None]
    paying = [layer for layer in within if layer.pays]
    error, total = text.percent(report.tolerance), len(report.layers)
    kind = "circular" if report.boundary == "circular" else "zero-padded"
    said = []
    if not within:
        best = min(report.layers, key=lambda layer: layer.truncation.error)
        said.append(
            f"No layer could be a {kind} k×k convolution within {error}: even the largest kernel tried misses "
            f"{text.percent(best.truncation.error)} in {best.name}, the best of them."
        )
    else:
        said.append(
            f"{len(within)} of {text.plural(total, 'layer')} could be a {kind} k×k convolution within {error}."
        )
    if paying:
        now = sum(layer.flops_form for layer in report.layers)
        saved = sum(layer.flops_form - (layer.flops_truncated or 0) for layer in paying)
        named = text.listing([f"{layer.name} ({_square(layer.truncation.side)})" for layer in paying], 4)
        said.append(
            f"Truncating {named} would save {text.flops(saved)} of the {text.flops(now)} that these layers take "
            f"in their present forms, {text.percent(saved / now)}."
        )
    elif within:
        said.append("None of them would save FLOPs: the kernel it takes costs more than the FFTs do.")
    if report.unreached:
        said.append(f"Left out, because evaluation never reaches them: {text.listing(report.unreached, 4)}.")
    if report.guessed:
        said.append(
            "The file does not say whether these are depthwise or full, which is guessed by their MLPs: "
            f"{text.listing(report.guessed, 4)}. --network tells."
        )
    if report.learned is not None:
        said += _learned(report.learned, error)
    return said


def _learned(learned: Learned, error: str) -> list[str]:
    said = [
        f"{training.network}: {_tenths(training.accuracy)} of the test images right, "
        f"{training.parameters:,} parameters, {text.seconds(training.seconds)} of training."
        for training in (learned.niff, learned.twin)
    ]
    enough = [k for k, accuracy in learned.cut.items() if accuracy >= learned.niff.accuracy - 0.01]
    if enough:
        said.append(
            f"With every filter cut to {_square(min(enough))}, and no further training, the network stays within "
            f"a point of that ({_tenths(learned.cut[min(enough)])})."
        )
    if learned.advised is not None:
        said.append(f"With the truncations within {error}, it gets {_tenths(learned.advised)}.")
    return said


def _tenths(share: float) -> str:
    return f"{100 * share:.1f} %"


def table(report: FilterReport) -> Table:
    """One line a layer: how large its filters are, what they could be truncated to, and what that would save."""
    columns = (
        Column("layer"),
        Column("niff", importance=1),
        Column("grid"),
        Column("kernels", "figure", importance=2),
        Column("50 % mass", "figure", importance=7),
        Column("90 % mass", "figure", importance=8),
        Column("90 % variance", "figure", importance=4),
        Column("truncated to", "figure"),
        Column("error", "figure", importance=8),
        Column("FLOPs as it is", "figure", unit="FLOP", importance=6),
        Column("FLOPs truncated", "figure", unit="FLOP", importance=6),
        Column("advice", importance=3),
    )
    return Table("filters", title(report), columns, tuple(map(_row, report.layers)), CAPTION)


def _row(layer: LayerStudy) -> Row:
    size, cut = layer.size, layer.truncation
    return row_of(
        layer.name,
        f"{layer.kind}/{layer.form}",
        f"{size.height}×{size.width}",
        f"{size.kernels:,}",
        _square(size.side(HALF)),
        _square(size.side(MOST)),
        _components(size.explained_variance),
        _square(cut.side),
        Entry(text.percent(cut.error), value=cut.error),
        Entry(text.flops(layer.flops_form), value=layer.flops_form),
        Entry(text.flops(layer.flops_truncated), value=layer.flops_truncated),
        _verdict(layer),
    )


def _verdict(layer: LayerStudy) -> str:
    if layer.saving is None:
        return "keep"
    if layer.saving <= 0:
        return f"keep, cut costs {text.times(1 - layer.saving)}"
    return f"cut, saves {text.percent(layer.saving)}"


def _square(side: int | None) -> str:
    return text.MISSING if side is None else f"{side}×{side}"


def _components(shares: Sequence[float]) -> str:
    """How many leading components explain :data:`MOST` of the variance."""
    reached = np.cumsum(shares) >= MOST
    return str(int(reached.argmax()) + 1) if reached.any() else f"> {len(shares)}"


def title(report: FilterReport) -> str:
    """One line: which network, whose weights, at what input."""
    images = text.plural(report.batch, "image")
    return (
        f"{report.network}, {report.weights}; {images} of {report.size}×{report.size}: {report.input}; "
        f"tolerance {text.percent(report.tolerance)}"
    )


def markdown(report: FilterReport, drawn: Sequence[Plot]) -> str:
    """The whole report, with the plots as files below ``plots/``."""
    blocks = ["# Effective filter size", text.markdown(title(report), 300)]
    blocks.append("\n".join(f"- {text.markdown(sentence, 1000)}" for sentence in advice(report)))
    blocks.append(write_markdown(table(report)))
    for plot in drawn:
        blocks += [f"## {plot.title}", f"![{text.markdown(plot.alt, 300)}](plots/{plot.name}.svg)"]
        blocks.append(text.markdown(plot.caption, 500))
    return "\n\n".join(blocks) + "\n"


def comma_separated(report: FilterReport) -> str:
    """One line a layer, numbers as they are."""
    lines = [_plain(layer) for layer in report.layers]
    return records(lines, [key for key in lines[0] if not isinstance(lines[0][key], list)])


def plain(report: FilterReport) -> dict[str, Any]:
    """Everything but the pictures, for JSON."""
    learned = report.learned
    return {
        "network": report.network,
        "weights": report.weights,
        "input": report.input,
        "size": report.size,
        "batch": report.batch,
        "tolerance": report.tolerance,
        "boundary": report.boundary,
        "layers": [_plain(layer) for layer in report.layers],
        "unreached": list(report.unreached),
        "guessed": list(report.guessed),
        "learned": None
        if learned is None
        else {
            "niff": asdict(learned.niff),
            "twin": asdict(learned.twin),
            "cut": [{"side": side, "accuracy": accuracy} for side, accuracy in learned.cut.items()],
            "advised": learned.advised,
        },
        "advice": advice(report),
    }


def _plain(layer: LayerStudy) -> dict[str, Any]:
    size, cut = layer.size, layer.truncation
    return {
        "layer": layer.name,
        "kind": layer.kind,
        "form": layer.form,
        "height": size.height,
        "width": size.width,
        "kernels": size.kernels,
        "side_50": size.side(HALF),
        "side_90": size.side(MOST),
        "mass_ratio": list(size.mass_ratio),
        "explained_variance": list(size.explained_variance),
        "crop_side": size.crop_side,
        "explained_variance_crop": list(size.explained_variance_crop),
        "truncated_side": cut.side,
        "error": cut.error,
        "flops_form": layer.flops_form,
        "flops_truncated": layer.flops_truncated,
        "saving": layer.saving,
        "parameters": cut.parameters_now,
        "parameters_truncated": cut.parameters_then if cut.side is not None else None,
    }


def plots(report: FilterReport) -> list[Plot]:
    """Kernel mass, principal components, kernels; of a training also the accuracy of truncated filters."""
    import matplotlib

    from niffbench.report.plots.canvas import settings
    from niffbench.study import plots as filter_plots

    learned = report.learned
    curves = [filter_plots.curves_of(layer.name, layer.size, layer.pictures) for layer in report.layers]
    style: Any = settings()
    with matplotlib.rc_context(style):
        drawn = [
            filter_plots.mass(curves),
            filter_plots.components(curves, report.layers[0].size.crop_side),
            filter_plots.kernels(curves),
        ]
        if learned is not None:
            drawn.append(filter_plots.accuracies(learned.cut, learned.niff.accuracy, learned.twin.accuracy))
    return drawn
