"""Shrinking by cross-validation: networks trained on the digits, each shrunk and judged on digits it never saw.

Every digit is judged once. In each fold a part of the training digits is kept apart: solutions are verified on it.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial, reduce
from operator import add
from pathlib import Path
from typing import Any

from torch import nn

from niffbench.errors import UsageError
from niffbench.niff.networks import execute_as
from niffbench.report import text
from niffbench.report.table import Column, Entry, Table, row_of
from niffbench.report.writers.markdown import titled
from niffbench.stats.intervals import Interval, median_of_rounds, ratio
from niffbench.study import digits, stored
from niffbench.study import shrink_tables as tables
from niffbench.study.costs import Measuring
from niffbench.study.images import fold_of, of_digits
from niffbench.study.request import Observer
from niffbench.study.shrink import Budget, Quality
from niffbench.study.shrinking import (
    EXECUTION,
    FORMS,
    PUBLISHED,
    SHRUNK,
    TWIN,
    Loaded,
    ShrinkReport,
    ShrinkRequest,
    carry_out,
)

Networks = tuple[nn.Module, nn.Module]
"""A NIFF network and its 3×3 twin."""


@dataclass(frozen=True)
class Folds:
    """The report of each fold. Quality adds up over folds; latencies are ratios, one a fold."""

    reports: tuple[ShrinkReport, ...]

    @property
    def names(self) -> list[str]:
        """The networks that were compared."""
        return list(self.reports[0].compared)

    def quality(self, name: str) -> Quality:
        """Of one of the networks, over all digits."""
        return reduce(add, (report.compared[name].quality for report in self.reports))

    def latencies(self, name: str) -> list[float | None]:
        """Seconds of a call, by fold."""
        return [median_of_rounds(one.compared[name].figures.latency).estimate for one in self.reports]

    def speed(self, name: str, other: str) -> Interval:
        """The latency of one network to that of another, over folds."""
        return ratio(self.latencies(other), self.latencies(name), paired=True)


def cross_validate(
    folds: int,
    side: int,
    request: ShrinkRequest,
    measuring: Measuring,
    observer: Observer = lambda *_: None,
    *,
    epochs: int | None = None,
    on_fold: Callable[[int, ShrinkReport, Networks], None] = lambda *_: None,
) -> Folds:
    """Train, each fold from a seed of its own, shrink and judge once a fold.

    Networks that an earlier call trained, and kept in the measuring's cache, are not trained again.

    Args:
        epochs: of training; None: as many as the recipe has.
        on_fold: is given what came of a fold as soon as it is there.

    Raises:
        UsageError, Interrupted, WorkerBroken: as :func:`niffbench.study.shrinking.carry_out`.
    """
    reports = []
    for number in range(folds):
        data, verification = fold_of(side, number, folds)
        recipe = digits.recipe(epochs, request.seed + number)
        trained = []
        for variant in digits.VARIANTS:
            tell = partial(observer, f"fold {number + 1}, training {variant}", recipe.epochs)
            with measuring.stop.at_any_moment():
                trained.append(digits.train(variant, data, recipe, lambda *_, tell=tell: tell(), measuring.cache))
        pair = execute_as(trained[0].network, EXECUTION), trained[1].network
        weights = f"trained on the digits, fold {number + 1} of {folds}"
        loaded = Loaded(
            "digits-niff", weights, *pair, of_digits(data, verification), request.budget or request.usual
        )
        report = carry_out(loaded, replace(request, seed=request.seed + number), measuring, observer)
        on_fold(number, report, pair)
        reports.append(report)
    return Folds(tuple(reports))


def sentences(folds: Folds) -> list[str]:
    """What holds on average, with its interval, and what differs between folds."""
    own = folds.quality(SHRUNK)
    first = folds.reports[0]
    said = []
    if own.accuracy is not None and own.loss is not None:
        said.append(
            f"Over {text.plural(len(folds.reports), 'fold')} and {own.images:,} digits, each judged by a network "
            f"that never saw it, shrinking loses {tables.points(own.loss)} points of accuracy, "
            f"paired: {_beside_budget(own, own.loss, first.budget)}."
        )
    ratios = [(other, folds.speed(SHRUNK, other)) for other in (PUBLISHED, FORMS, TWIN) if other in folds.names]
    named = [f"{text.ratio(interval)} the latency of {tables.IN_WORDS[other]}" for other, interval in ratios]
    said.append(f"The shrunk networks have {text.listing(named, 9)}, over folds.")
    forms = dict(ratios)[FORMS]
    if first.objective == "latency" and (forms.high is None or forms.high >= 1):
        sums = [tables.sums(report.shrunk) for report in folds.reports]
        low, high = (end(one["cheapest"] for one in sums) for end in (min, max))
        least, most = (end(one["forms"] for one in sums) for end in (min, max))
        are = "not shown to be faster than the fastest forms"
        if not any(report.cuts for report in folds.reports):
            are = "the ones in their fastest forms, as nothing could be cut"
        said.append(
            f"They are {are}: layer by layer these take "
            f"{text.seconds(least)} to {text.seconds(most)} in all, every layer's cheapest candidate within reach "
            f"{text.seconds(low)} to {text.seconds(high)}."
        )
    shares = [report.others for report in folds.reports]
    return said + tables.beside(max((share for share in shares if share is not None), default=None))


def _beside_budget(own: Quality, loss: Interval, allowed: Budget) -> str:
    """Where the loss is, beside what was allowed: by its interval where that tells, else by its estimate."""
    most = text.percent(allowed.value)
    if allowed.kind == "error":
        return f"outputs are {text.percent(own.error)} off, where {most} was allowed"
    known = f" ({text.percent(loss.confidence)})"
    if loss.high is not None and loss.high <= allowed.value:
        return f"within the {most} that were allowed{known}"
    if loss.low is not None and loss.low > allowed.value:
        return f"beyond the {most} that were allowed{known}"
    return f"on average {'within' if own.within(allowed) else 'beyond'} the {most} that were allowed"


def networks(folds: Folds) -> Table:
    """The networks over all folds."""
    columns = (
        Column("network"),
        Column("accuracy", "figure", importance=3),
        Column("lost, points", "figure"),
        Column("latency", "figure", unit="s", importance=2),
        Column("to published", "figure"),
        Column("to fastest forms", "figure"),
        Column("memory", "figure", unit="B", importance=1),
    )
    rows = []
    for name in folds.names:
        quality, latency = folds.quality(name), median_of_rounds(folds.latencies(name))
        memory = median_of_rounds([report.compared[name].figures.memory for report in folds.reports])
        ratios = [
            tables.ratio(None if other == name else folds.speed(name, other)) for other in (PUBLISHED, FORMS)
        ]
        rows.append(
            row_of(
                name,
                tables.accuracy(quality.accuracy),
                tables.lost(quality.loss),
                Entry(text.seconds(latency.estimate), value=latency.estimate),
                *ratios,
                Entry(text.size_of(memory.estimate), value=memory.estimate),
            )
        )
    caption = (
        "Accuracy over all digits; latency and memory medians over folds. A ratio is the quotient of the medians, "
        "its interval is over folds, paired, and stretched where needed to hold it. All but the published network "
        "have their normalisations folded into the layers before them."
    )
    return Table("networks", "Whole networks, over folds", columns, tuple(rows), caption)


def layers(folds: Folds) -> Table:
    """What was learned and chosen in each layer, over folds."""
    columns = (
        Column("layer"),
        Column("grid"),
        Column("50 % mass", "figure"),
        Column("90 % mass", "figure"),
        Column("chosen, by how many folds"),
    )
    rows = []
    for layer in folds.reports[0].shrunk.layers:
        sizes = [report.facts[layer.name].size for report in folds.reports]
        half, most = (median_of_rounds([size.width_of(share) for size in sizes]) for share in (0.5, 0.9))
        chosen = Counter(report.shrunk.chosen[layer.name].candidate.name for report in folds.reports)
        rows.append(
            row_of(
                layer.name,
                f"{layer.height}×{layer.width}",
                *(
                    Entry(f"{one.estimate:.1f}", note=text.brackets(one), value=one.estimate)
                    for one in (half, most)
                ),
                ", ".join(f"{name} ({count})" for name, count in chosen.most_common()),
            )
        )
    caption = (
        "Width in pixels that holds 50 % and 90 % of Σ|k|, interpolated, median over folds with its interval."
    )
    return Table("layers", "Layer by layer, over folds", columns, tuple(rows), caption)


def fold_by_fold(folds: Folds) -> Table:
    """What came of each fold: what differs between networks of different weights and data."""
    columns = (
        Column("fold", "figure"),
        Column("cut"),
        Column("accuracy", "figure", importance=2),
        Column("lost, points", "figure"),
        Column("to published", "figure"),
        Column("to fastest forms", "figure"),
        Column("layers in fastest forms", "figure", importance=5),
        Column("as chosen", "figure", importance=4),
        Column("cheapest candidates", "figure", importance=3),
    )
    show, rows = tables.SHOWN.get(folds.reports[0].objective, text.plain), []
    for number, report in enumerate(folds.reports, start=1):
        own, costs = report.compared[SHRUNK].quality, tables.sums(report.shrunk)
        ratios = [report.speed(other) for other in (PUBLISHED, FORMS)]
        cuts = Counter(candidate.name for candidate in report.cuts.values())
        rows.append(
            row_of(
                f"{number}",
                ", ".join(f"{name} ({count})" for name, count in cuts.most_common()) or "nothing",
                tables.accuracy(own.accuracy),
                tables.lost(own.loss),
                *map(tables.ratio, ratios),
                *(Entry(show(costs[what]), value=costs[what]) for what in ("forms", "chosen", "cheapest")),
            )
        )
    caption = (
        "Ratios are of whole networks' latencies, their intervals paired by round. Beside them what all NIFF "
        "layers cost in their fastest forms, as chosen, and as every layer's cheapest candidate, whatever harm "
        "these do together."
    )
    return Table("folds", "Fold by fold", columns, tuple(rows), caption)


def write(out: Path, folds: Folds) -> None:
    """The report on all folds.

    Raises:
        UsageError: when that fails.
    """
    head = f"# digits-niff, shrunk in {text.plural(len(folds.reports), 'fold')}"
    title = text.markdown(tables.title(replace(folds.reports[0], weights="trained on the digits")), 400)
    blocks = [head, title, "\n".join(f"- {text.markdown(one, 800)}" for one in sentences(folds))]
    blocks += [titled(table(folds)) for table in (networks, fold_by_fold, layers)]
    where = text.markdown(tables.processor(folds.reports[0]), 300)
    seconds = text.duration(sum(report.seconds for report in folds.reports))
    blocks.append(f"Measured on {where}, in {seconds}, the networks' training apart.")
    try:
        (out / "report.md").write_bytes(("\n\n".join(blocks) + "\n").encode())
        (out / "folds.json").write_bytes((json.dumps(plain(folds), indent=1, allow_nan=False) + "\n").encode())
    except OSError as error:
        raise UsageError(f"{out}: cannot be written ({error.strerror})") from error


def plain(folds: Folds) -> dict[str, Any]:
    """What is said of all folds, for JSON; each fold's own is in its folder."""
    every: dict[str, Mapping[str, Any]] = {}
    for name in folds.names:
        quality = folds.quality(name)
        every[name] = {
            **asdict(quality),
            "accuracy": None if quality.accuracy is None else asdict(quality.accuracy),
            "loss": None if quality.loss is None else asdict(quality.loss),
            "latency": folds.latencies(name),
            "to_forms": None if name == FORMS else asdict(folds.speed(name, FORMS)),
            "to_published": None if name == PUBLISHED else asdict(folds.speed(name, PUBLISHED)),
        }
    cut: Sequence[Mapping[str, str]] = [
        {name: candidate.name for name, candidate in report.cuts.items()} for report in folds.reports
    ]
    return {"networks": every, "cut": cut, "sentences": sentences(folds)}


def save(out: Path, pair: Networks, side: int, fold: tuple[int, int]) -> None:
    """The networks of a fold, as checkpoints that say which digits they were not trained on."""
    for variant, network in zip(digits.VARIANTS, pair, strict=True):
        stored.save(out / f"digits-{variant}.pt", f"digits-{variant}", network, side, fold)
