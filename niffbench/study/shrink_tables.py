"""What became of a network that was shrunk, in words: sentences, tables, the page, Markdown, CSV and JSON."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

import torch

from niffbench.errors import UsageError
from niffbench.report import text
from niffbench.report.table import Column, Entry, Row, Table, row_of
from niffbench.report.writers import csv, html
from niffbench.report.writers.markdown import titled
from niffbench.results import is_busy
from niffbench.study.candidates import Candidate
from niffbench.study.choice import Option
from niffbench.study.costs import OBJECTIVES
from niffbench.study.shrink import Layer, Shrunk, price_of
from niffbench.study.shrinking import FORMS, MODULE, PUBLISHED, SHRUNK, TWIN, WEIGHTS

if TYPE_CHECKING:
    from niffbench.report.plots.canvas import Plot
    from niffbench.stats.intervals import Interval
    from niffbench.study.shrink import Budget
    from niffbench.study.shrinking import Compared, ShrinkReport

IN_WORDS = {PUBLISHED: "the published network", FORMS: "its fastest forms", TWIN: "the 3×3 twin"}
"""The networks that the shrunk one is compared with."""

SHOWN = {"latency": text.seconds, "memory": text.size_of, "parameters": text.count}
"""How a cost is written, by objective."""

LAYERS_CAPTION = (
    "“90 % mass” is the side of the smallest centred window that holds 90 % of Σ|k|, on average over a layer's "
    "kernels. The error is the relative L2 error of the layer's output on real activations, the expected harm "
    "that of the network's output, to first order. Costs are those of the layer alone, measured at its own shape."
)
NETWORKS_CAPTION = (
    "Accuracy is on images by which nothing was chosen, with its score interval; what is lost is paired, image by "
    "image, against the network before. Latency is of a whole call, the median over rounds, all networks in every "
    "round; a ratio is the quotient of two medians, its interval paired by round. All but the published network "
    "have their normalisations folded into the layers before them. Memory that a call frees stays with its "
    "process."
)


def title(report: ShrinkReport) -> str:
    """One line: which network, whose weights, on what, to which budget."""
    batch, _, height, width = report.shape
    layout = ", channels last in memory" if _memory_format(report) == "channels_last" else ""
    return (
        f"{report.name}, {report.weights}; {report.what}; least {report.objective} of "
        f"{text.plural(batch, 'image')} of {height}×{width}{layout}; {budget(report.budget)}"
    )


def _memory_format(report: ShrinkReport) -> str:
    return report.shrunk.layers[0].memory_format


def budget(allowed: Budget) -> str:
    """What may be lost, in words."""
    if allowed.kind == "accuracy":
        return f"at most {text.percent(allowed.value)} of accuracy may be lost"
    return f"outputs may be {text.percent(allowed.value)} off"


def sentences(report: ShrinkReport) -> list[str]:
    """What was cut, what it lost and saved, whether that was foreseen, and what can be done with it."""
    cuts, layers = report.cuts, report.shrunk.layers
    within = text.percent(report.budget.value)
    if report.undone:
        said = [f"Nothing is cut: {report.undone}."]
    elif not cuts:
        said = [f"Nothing can be cut within {within}: no layer has a cheaper replacement that the budget allows."]
    else:
        named = text.listing([f"{name} ({candidate.name})" for name, candidate in cuts.items()], 6)
        said = [f"{len(cuts)} of {text.plural(len(layers), 'layer')} can be cut within {within}: {named}."]
    said += _quality(report)
    said += _speed(report)
    said += _foreseen(report)
    said += beside(report.others)
    if report.unwritten:
        said.append(f"No module could be written of the network: {report.unwritten}.")
    elif report.module is not None:
        needs = "niffbench for the layers that are left" if "niffbench" in _imports(report) else "torch alone"
        said.append(f"The module that was written of the network needs {needs}.")
    return said


def beside(others: float | None) -> list[str]:
    """What is to be said where others were busy while costs were measured."""
    if others is None or not is_busy(others):
        return []
    return [
        f"Other processes used up to {text.percent(others)} of the processor while costs were measured: repeat "
        "this on a quiet machine. What a layer costs is remembered only where it was measured on one."
    ]


def _imports(report: ShrinkReport) -> str:
    assert report.module is not None
    return "\n".join(line for line in report.module[0].splitlines() if line.startswith("from "))


def _quality(report: ShrinkReport) -> list[str]:
    own = report.compared.get(SHRUNK)
    if own is None:
        return []
    quality = own.quality
    if quality.accuracy is None or quality.loss is None:
        return [
            f"On {quality.images:,} images that nothing was chosen by its outputs are "
            f"{text.percent(quality.error)} off."
        ]
    return [
        f"On {quality.images:,} images that nothing was chosen by it names {in_percent(quality.accuracy)} "
        f"rightly; it loses {points(quality.loss)} points against the network before, paired."
    ]


def _speed(report: ShrinkReport) -> list[str]:
    said = []
    for other in (PUBLISHED, FORMS, TWIN):
        interval = report.speed(other)
        if interval is not None and not (report.undone and other == FORMS):
            said.append(f"{text.ratio(interval)} the latency of {IN_WORDS[other]}")
    if not said:
        reason = next((one.figures.reason for one in report.compared.values() if one.figures.reason), None)
        return [f"Whole networks were not timed: {text.clean(reason, 200)}."] if reason else []
    sentence = f"It has {text.listing(said, 9)}."
    ahead = report.speed(FORMS)
    if report.objective == "latency" and (report.undone or ahead is None or ahead.high is None or ahead.high >= 1):
        costs = sums(report.shrunk)
        is_ = "not shown to be faster than the fastest forms" if report.cuts else "the one in its fastest forms"
        sentence += (
            f" It is {is_}: layer by layer these take "
            f"{text.seconds(costs['forms'])} in all, what was chosen {text.seconds(costs['chosen'])}, and the "
            f"cheapest candidates within reach, whatever harm they do together, {text.seconds(costs['cheapest'])}."
        )
    return [sentence]


def sums(shrunk: Shrunk) -> dict[str, float]:
    """Costs of all layers together: in their cheapest forms, as chosen, and of the cheapest candidates."""
    return {
        "forms": sum(option.cost for option in shrunk.forms.values()),
        "chosen": sum(option.cost for option in shrunk.chosen.values()),
        "cheapest": sum(min(option.cost for option in some) for some in shrunk.options.values()),
    }


def _foreseen(report: ShrinkReport) -> list[str]:
    attempts = report.shrunk.attempts
    if report.undone or not attempts or not attempts[-1].holds or (not report.cuts and len(attempts) < 2):
        return []
    failed = text.plural(len(attempts) - 1, "cheaper solution")
    if not report.cuts:
        harm = f"does {text.percent(attempts[-2].measured)} of harm to the outputs"
        return [f"{failed} failed verification; the last of them {harm}{_lost(report.shrunk.losses[-2])}."]
    last, epochs = attempts[-1], report.shrunk.finetune
    does = f"trained for {text.plural(epochs, 'epoch')} it does" if epochs else "it does"
    said = [
        f"To first order the choice does {text.percent(last.expected)} of harm to the outputs; {does} "
        f"{text.percent(last.measured)}{_lost(report.shrunk.losses[-1])}."
    ]
    if len(attempts) > 1:
        said.append(f"{failed} failed verification; the last verified one is kept.")
    own, forms = report.compared.get(SHRUNK), report.compared.get(FORMS)
    if report.objective == "latency" and own and forms:
        costs = sums(report.shrunk)
        times = [_median(one.figures.latency) for one in (forms, own)]
        if times[0] is not None and times[1] is not None:
            saved = text.seconds(costs["forms"] - costs["chosen"])
            said.append(
                f"Layers measured alone foretell that {saved} a call is saved against the fastest forms; the "
                f"networks differ by {text.seconds(times[0] - times[1])}."
            )
    return said


def _lost(loss: Interval | None) -> str:
    if loss is None:
        return ""
    return (
        f" and is expected to lose {text.percent(loss.estimate)} of the images, {text.percent(loss.high)} at most"
    )


def _median(rounds: Sequence[float | None]) -> float | None:
    values = [value for value in rounds if value is not None]
    return median(values) if values else None


def in_percent(interval: Interval) -> str:
    """A share with its interval, in percent."""
    return _in_a_line(accuracy(interval))


def points(interval: Interval) -> str:
    """A difference of shares, in points."""
    return _in_a_line(lost(interval))


def accuracy(interval: Interval | None) -> Entry:
    """A cell with a share in percent, its interval below it where room is short."""
    if interval is None:
        return Entry(text.MISSING)
    return Entry(f"{100 * (interval.estimate or 0):.1f} %", note=_ends(interval), value=interval.estimate)


def lost(interval: Interval | None) -> Entry:
    """The same of a difference of shares, in points."""
    if interval is None:
        return Entry(text.MISSING)
    return Entry(f"{100 * (interval.estimate or 0):.2f}", note=_ends(interval), value=interval.estimate)


def ratio(interval: Interval | None) -> Entry:
    """The same of a quotient."""
    if interval is None:
        return Entry(text.MISSING)
    return Entry(text.times(interval.estimate), note=text.brackets(interval), value=interval.estimate)


def _in_a_line(entry: Entry) -> str:
    return f"{entry.text} {entry.note}".rstrip()


def _ends(interval: Interval) -> str:
    if interval.low is None or interval.high is None:
        return ""
    return f"[{100 * interval.low:.2f}, {100 * interval.high:.2f}]"


def layers(report: ShrinkReport) -> Table:
    """One line a layer: what was learned, what was chosen and why, error and cost before and after."""
    show = SHOWN.get(report.objective, text.plain)
    columns = (
        Column("layer"),
        Column("grid", importance=6),
        Column("kernels", "figure", importance=2),
        Column("50 % mass", "figure", importance=3),
        Column("90 % mass", "figure", importance=7),
        Column("chosen"),
        Column("error", "figure"),
        Column("expected harm", "figure", importance=5),
        Column("published", "figure", importance=4),
        Column("cheapest form", "figure", importance=8),
        Column("chosen costs", "figure"),
        Column("why", "prose", importance=1),
    )
    rows = [_layer_row(report, layer, show) for layer in report.shrunk.layers]
    return Table("layers", f"Layer by layer, by {report.objective}", columns, tuple(rows), LAYERS_CAPTION)


def _layer_row(report: ShrinkReport, layer: Layer, show: Any) -> Row:
    shrunk, size = report.shrunk, report.facts[layer.name].size
    chosen, form = shrunk.chosen[layer.name], shrunk.forms[layer.name]
    published = _named(shrunk.options[layer.name], PUBLISHED)
    error = layer.errors[chosen.candidate]
    return row_of(
        layer.name,
        f"{layer.height}×{layer.width}",
        f"{size.kernels:,}",
        _square(size.side(0.5)),
        _square(size.side(0.9)),
        chosen.candidate.name,
        Entry(text.percent(error), value=error),
        Entry(text.percent(chosen.harm), value=chosen.harm),
        Entry(show(published.cost) if published else text.MISSING, value=published.cost if published else None),
        Entry(show(form.cost), note=form.candidate.name, value=form.cost),
        Entry(show(chosen.cost), value=chosen.cost),
        f"not cut: {report.undone}" if report.undone else _why(report, layer, show),
    )


def _named(options: Sequence[Option], form: str) -> Option | None:
    return next((option for option in options if option.candidate.form == form), None)


def _square(side: int) -> str:
    return f"{side}×{side}"


def _why(report: ShrinkReport, layer: Layer, show: Any) -> str:
    shrunk = report.shrunk
    options, chosen = shrunk.options[layer.name], shrunk.chosen[layer.name]
    cuts = [option for option in options if not option.candidate.exact]
    if chosen.candidate.exact:
        if not cuts:
            best = min((one for one in layer.errors if not one.exact), key=layer.harm)
            if layer.harm(best) <= shrunk.tolerance:
                smaller = _largest_measured(report, layer)
                if smaller is not None and smaller.cost >= chosen.cost:
                    costs = f"{smaller.candidate.name} already costs {show(smaller.cost)}"
                    return f"no cut within reach is cheaper: {costs}"
                return "no cut within reach has a cost"
            return (
                f"no cut is within reach: {best.name}, the best, would do {text.percent(layer.harm(best))} of harm"
            )
        least = min(cuts, key=lambda option: option.cost)
        if least.cost >= chosen.cost:
            return f"no cut is cheaper: {least.candidate.name} costs {show(least.cost)}"
        when = " before training" if shrunk.finetune else ""
        harm = f"its harm of {text.percent(least.harm)}{when} is more than is left"
        return f"{least.candidate.name} costs {show(least.cost)}, and {harm}"
    cheaper = [option for option in cuts if option.cost < chosen.cost]
    if not cheaper:
        return "the cheapest within reach"
    nearest = max(cheaper, key=lambda option: option.cost)
    harm = f"its harm of {text.percent(nearest.harm)} is too much"
    return f"{nearest.candidate.name} costs {show(nearest.cost)}, and {harm}"


def _largest_measured(report: ShrinkReport, layer: Layer) -> Option | None:
    """Of the kernels with a cost, the largest: one that is within reach may be larger still."""
    batch, costs = report.shape[0], report.shrunk.costs
    prices = {one: price_of(layer, one, costs, batch, report.objective) for one in layer.errors if one.side}
    priced = [Option(one, price, layer.harm(one)) for one, price in prices.items() if price is not None]
    return max(priced, key=lambda option: option.candidate.side or 0, default=None)


def networks(report: ShrinkReport) -> Table:
    """Whole networks: how good they are on images that nothing was chosen by, and what a call of them costs."""
    columns = (
        Column("network"),
        Column("accuracy", "figure"),
        Column("lost, points", "figure"),
        Column("latency", "figure", unit="s"),
        Column("to published", "figure", importance=7),
        Column("to fastest forms", "figure"),
        Column("memory", "figure", unit="B", importance=6),
        Column("parameters", "figure", importance=5),
    )
    rows = [_network_row(report, one) for one in report.compared.values()]
    return Table("networks", "Whole networks", columns, tuple(rows), NETWORKS_CAPTION)


def _network_row(report: ShrinkReport, one: Compared) -> Row:
    from niffbench.stats import intervals

    loss = one.quality.loss
    latency = intervals.median_of_rounds(one.figures.latency)
    ratios = []
    for other in (PUBLISHED, FORMS):
        base = report.compared[other].figures.latency
        interval = None if other == one.name else intervals.ratio(base, one.figures.latency, paired=True)
        ratios.append(ratio(interval))
    return row_of(
        Entry(one.name, note="channels last" if one.figures.channels_last else ""),
        accuracy(one.quality.accuracy),
        Entry(f"{text.percent(one.quality.error)} off") if loss is None else lost(loss),
        Entry(text.seconds(latency.estimate), value=latency.estimate),
        *ratios,
        Entry(text.size_of(one.figures.memory), value=one.figures.memory),
        Entry(f"{one.parameters:,}", value=one.parameters),
    )


def attempts(report: ShrinkReport) -> Table:
    """Every solution and its test."""
    show = SHOWN.get(report.objective, text.plain)
    columns = (
        Column("solution", "figure"),
        Column("layers cut", "figure"),
        Column("cost", "figure"),
        Column("expected harm", "figure"),
        Column("harm", "figure"),
        Column("lost, at most", "figure"),
        Column("verified", "word"),
    )
    rows = []
    shrunk = report.shrunk
    for number, (one, loss) in enumerate(zip(shrunk.attempts, shrunk.losses, strict=True), start=1):
        cut = sum(not option.candidate.exact for option in one.choice.values())
        rows.append(
            row_of(
                f"{number}",
                f"{cut}",
                Entry(show(one.cost), value=one.cost),
                Entry(text.percent(one.expected), value=one.expected),
                Entry(text.percent(one.measured), value=one.measured),
                Entry(text.MISSING) if loss is None else _at_most(loss),
                "holds" if one.holds else "fails",
            )
        )
    caption = (
        "Harm is the relative L2 error of the network's outputs on the images that verify. Lost is the share of "
        "images expected to be named rightly no more, by how far their margins fall: its upper bound at 99 %."
    )
    return Table("solutions", "Solutions and their tests", columns, tuple(rows), caption)


def _at_most(loss: Interval) -> Entry:
    return Entry(text.percent(loss.high), note=f"expected {text.percent(loss.estimate)}", value=loss.high)


def plots(report: ShrinkReport) -> list[Plot]:
    """The Pareto front, kernel mass and kernels."""
    import matplotlib

    from niffbench.report.plots.canvas import settings
    from niffbench.study import plots as drawing

    style: Any = settings()
    curves = [report.facts[layer.name].curves for layer in report.shrunk.layers]
    points = {
        one.name: drawing.Point(
            one.quality.accuracy,
            _median(one.figures.latency),
            one.figures.memory,
            None if one.quality.accuracy is not None else one.quality.error,
        )
        for one in report.compared.values()
    }
    with matplotlib.rc_context(style):
        front = drawing.front_of_networks(points)
        return [*([front] if front else []), drawing.mass(curves), drawing.kernels(curves)]


def markdown(report: ShrinkReport, drawn: Sequence[Plot]) -> str:
    """The whole report, with the plots as files below ``plots/``."""
    blocks = ["# A network, shrunk", text.markdown(title(report), 400)]
    blocks.append("\n".join(f"- {text.markdown(sentence, 1000)}" for sentence in sentences(report)))
    blocks += [titled(networks(report)), titled(layers(report)), titled(attempts(report))]
    for plot in drawn:
        blocks += [f"## {plot.title}", f"![{text.markdown(plot.alt, 300)}](plots/{plot.name}.svg)"]
        blocks.append(text.markdown(plot.caption, 500))
    blocks.append(f"{text.markdown(machine(report), 300)}.")
    return "\n\n".join(blocks) + "\n"


def machine(report: ShrinkReport) -> str:
    """Where costs were measured, and how long all of it took."""
    parts = [f"{what} in {text.duration(seconds)}" for what, seconds in report.parts.items()]
    return f"Measured on {processor(report)}, in {text.duration(report.seconds)} in all: {text.listing(parts, 9)}"


def processor(report: ShrinkReport) -> str:
    """On which machine."""
    facts = report.shrunk.costs.machine
    names = [facts.get(key) for key in ("gpu", "processor")]
    return text.listing([text.clean(name) for name in names if name], 3)


def page(report: ShrinkReport, drawn: Sequence[Plot]) -> str:
    """The same as one file of HTML, that needs no network."""
    return (
        html.environment()
        .get_template("shrink.html.j2")
        .render(
            title=f"niffbench: {report.name}, shrunk",
            lead=title(report),
            sentences=sentences(report),
            tables=[networks(report), layers(report), attempts(report)],
            plots=drawn,
            machine=f"{machine(report)}.",
            css=html.asset("report.css"),
        )
    )


def comma_separated(report: ShrinkReport) -> str:
    """The layers, one a line, numbers as they are."""
    return csv.write(layers(report))


def plain(report: ShrinkReport) -> dict[str, Any]:
    """Everything but pictures and weights, for JSON."""
    shrunk = report.shrunk
    return {
        "network": report.name,
        "weights": report.weights,
        "data": report.what,
        "shape": list(report.shape),
        "memory_format": _memory_format(report),
        "budget": asdict(report.budget),
        "objective": report.objective,
        "metric": OBJECTIVES[report.objective],
        "machine": {
            key: value for key, value in shrunk.costs.machine.items() if isinstance(value, str | int | float)
        },
        "layers": [_plain_layer(report, layer) for layer in shrunk.layers],
        "tolerance": shrunk.tolerance,
        "attempts": [
            {
                "tolerance": one.tolerance,
                "cost": one.cost,
                "expected": one.expected,
                "measured": one.measured,
                "loss": None if loss is None else asdict(loss),
                "holds": one.holds,
                "choice": {name: option.candidate.name for name, option in one.choice.items()},
            }
            for one, loss in zip(shrunk.attempts, shrunk.losses, strict=True)
        ],
        "sums": sums(shrunk),
        "verification": asdict(report.verification),
        "networks": [_plain_network(one) for one in report.compared.values()],
        "ratios": {
            other: asdict(interval)
            for other in (PUBLISHED, FORMS, TWIN)
            if (interval := report.speed(other)) is not None
        },
        "cut": {name: candidate.name for name, candidate in report.cuts.items()},
        "undone": report.undone,
        "unwritten": report.unwritten,
        "measured_cases": shrunk.costs.measured,
        "lost": dict(shrunk.costs.lost),
        "others": report.others,
        "seconds": report.seconds,
        "parts": dict(report.parts),
        "sentences": sentences(report),
    }


def _plain_layer(report: ShrinkReport, layer: Layer) -> dict[str, Any]:
    size, shrunk = report.facts[layer.name].size, report.shrunk
    costs: Mapping[Candidate, float] = {option.candidate: option.cost for option in shrunk.options[layer.name]}
    return {
        "layer": layer.name,
        "kind": report.facts[layer.name].kind,
        "height": layer.height,
        "width": layer.width,
        "side_50": size.side(0.5),
        "side_90": size.side(0.9),
        "chosen": shrunk.chosen[layer.name].candidate.name,
        "cheapest_form": shrunk.forms[layer.name].candidate.name,
        "candidates": [
            {
                "name": one.name,
                "error": error,
                "harm": layer.harm(one),
                "cost": costs.get(one),
                "parameters": one.parameters,
            }
            for one, error in layer.errors.items()
        ],
    }


def _plain_network(one: Compared) -> dict[str, Any]:
    accuracy, loss = one.quality.accuracy, one.quality.loss
    return {
        "name": one.name,
        "parameters": one.parameters,
        **asdict(one.quality),
        "accuracy": None if accuracy is None else asdict(accuracy),
        "loss": None if loss is None else asdict(loss),
        "latency": list(one.figures.latency),
        "memory": one.figures.memory,
        "channels_last": one.figures.channels_last,
        "reason": one.figures.reason,
    }


def write(out: Path, report: ShrinkReport) -> None:
    """Report, tables, plots, the network as a module with its weights, and all of it as JSON.

    Raises:
        UsageError: when that fails.
    """
    drawn = plots(report)
    files = {
        "report.md": markdown(report, drawn).encode(),
        "report.html": page(report, drawn).encode(),
        "table.csv": comma_separated(report).encode(),
        "shrink.json": (as_json(report) + "\n").encode(),
    }
    for plot in drawn:
        files |= {f"plots/{plot.name}.svg": plot.svg.encode(), f"plots/{plot.name}.png": plot.png}
    if report.module is not None:
        files[MODULE] = report.module[0].encode()
    try:
        (out / "plots").mkdir()
        for name, content in files.items():
            (out / name).write_bytes(content)
        state = report.shrunk.model.state_dict() if report.module is None else dict(report.module[1])
        torch.save(state, out / WEIGHTS)
    except OSError as error:
        raise UsageError(f"{out}: cannot be written ({error.strerror})") from error


def as_json(report: ShrinkReport) -> str:
    """Everything in it but pictures and weights."""
    return json.dumps(plain(report), indent=1, allow_nan=False)
