"""Shrinking as it is requested: whose layers, by which data, to which budget; and what is written of it."""

from __future__ import annotations

import contextlib
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from niffbench.case import MemoryFormat
from niffbench.errors import UsageError
from niffbench.niff import folded, networks
from niffbench.results import most
from niffbench.stats.intervals import Interval, ratio
from niffbench.study import images as pictures
from niffbench.study import shrink as choosing
from niffbench.study import source, stored
from niffbench.study.candidates import Candidate
from niffbench.study.costs import Measuring, NetworkFigures, measure, measure_networks
from niffbench.study.effective import FilterSize, analyse_layer, kernels_of
from niffbench.study.filters import pictures_of
from niffbench.study.images import Splits
from niffbench.study.plots import Curves, curves_of
from niffbench.study.request import Observer, Request, within_memory
from niffbench.study.shrink import Budget, Quality, Shrunk, Tuning

PUBLISHED, FORMS, TWIN, SHRUNK = "published", "fastest forms", "3×3 twin", "shrunk"
"""The networks compared: as published, with each layer's cheapest form, the ordinary one, and what came of it."""

EXECUTION = "auto-cached"
"""How the network executes while it is looked at."""

MODULE, WEIGHTS = "shrunk.py", "shrunk.pt"

LAYOUTS: Mapping[MemoryFormat, torch.memory_format] = {
    "contiguous": torch.contiguous_format,
    "channels_last": torch.channels_last,
}


@dataclass(frozen=True)
class ShrinkRequest:
    """What is shrunk, and how it is judged.

    Attributes:
        subject, network, keep, replaced, size: as of :class:`niffbench.study.request.Request`.
        data: ``digits``, a folder or ``my_data.py:dataset``; None: noise, of networks for digits these.
        batch, memory_format: of the calls whose cost counts.
        objective: one of :data:`niffbench.study.costs.OBJECTIVES`.
        finetune: epochs for which what is cut is trained.
        twin: a checkpoint of the ordinary network that the NIFF one is compared with.
        most: images that are taken of the data.
    """

    subject: str
    network: str | None = None
    data: str | None = None
    size: int | None = None
    budget: Budget | None = None
    batch: int = 1
    memory_format: MemoryFormat = "contiguous"
    objective: str = "latency"
    finetune: int = 0
    twin: Path | None = None
    keep: tuple[str, ...] = ()
    replaced: Mapping[str, str] = field(default_factory=dict)
    most: int = 3000
    seed: int = 0

    @property
    def usual(self) -> Budget:
        """What may be lost unless something is said."""
        return Budget("accuracy", 0.002)

    def load(self) -> Loaded:
        """The network, its twin and the images.

        Raises:
            UsageError: for what cannot be loaded, or does not go together.
        """
        ask = Request(subject=self.subject, network=self.network, keep=self.keep, replaced=self.replaced)
        ask = replace(ask, size=self.size, seed=self.seed, execution=EXECUTION)
        name, weights, model, size = ask.model(self.subject)
        if isinstance(model, stored.BareLayers):
            raise UsageError(f"{self.subject}: does not say which network it is of; give --network NAME")
        if not any(True for _ in networks.niff_layers(model)):
            raise UsageError(f"{name} has no NIFF layer: there is nothing to shrink")
        twin = None
        if self.twin is not None:
            read = Request(subject=str(self.twin), network=None, size=size, seed=self.seed)
            twin = read.model(str(self.twin))[2]
        of_digits = name.startswith("digits-")
        data = self.data or (pictures.DIGITS if of_digits else None)
        budget = self.budget or (self.usual if data else None)
        if budget is None:
            raise UsageError(
                "by what is it judged? Give --data, with labels for a --budget in accuracy, or --max-error, the "
                "relative error of its outputs that may be made"
            )
        channels = networks.image_channels(model)
        if data is None:
            if budget.kind == "accuracy":
                raise UsageError("--budget is in accuracy: give --data with labels, or --max-error instead")
            splits = pictures.noise(channels, size, self.seed)
        else:
            splits = self._splits(data, channels, size)
        for one, what in ((model, self.subject), (twin, f"--twin {self.twin}")):
            if one is not None:
                _check_takes(one, _example(splits), what)
        return Loaded(name, weights, model, twin, splits, budget)

    def _splits(self, data: str, channels: int, size: int) -> Splits:
        """The images; of the digits, where the checkpoint says so, those of its fold, which it has not seen."""
        path = Path(self.subject)
        fold = stored.read(path).fold if data == pictures.DIGITS and path.is_file() else None
        if fold is not None and channels == 1:
            return pictures.of_digits(*pictures.fold_of(size, *fold))
        return pictures.load(data, channels, size, self.most, self.seed)


@dataclass(frozen=True)
class Loaded:
    """A network with its weights, its ordinary twin if there is one, and images to judge them by."""

    name: str
    weights: str
    model: nn.Module
    twin: nn.Module | None
    splits: Splits
    budget: Budget


@dataclass(frozen=True)
class Compared:
    """One of the networks: how good it is on images that no choice was made by, and what a call of it costs."""

    name: str
    parameters: int
    quality: Quality
    figures: NetworkFigures


@dataclass(frozen=True)
class LayerFacts:
    """What was learned in a layer: how large its kernels are, and what they look like."""

    kind: str
    size: FilterSize
    curves: Curves


@dataclass(frozen=True)
class ShrinkReport:
    """All there is to say.

    Attributes:
        compared: networks by name, those of :data:`PUBLISHED`, :data:`FORMS`, :data:`TWIN` and :data:`SHRUNK` that
            there are.
        facts: of each layer, by name.
        undone: why cuts that the budget allows were not kept; empty where they were.
        verification: how the kept network does on the images that solutions were tested on.
        unwritten: why no module could be written of the network; empty where it was.
        parts: seconds that each part of it took, by what was done.
    """

    name: str
    weights: str
    what: str
    shape: tuple[int, int, int, int]
    budget: Budget
    objective: str
    shrunk: Shrunk
    compared: Mapping[str, Compared]
    facts: Mapping[str, LayerFacts]
    verification: Quality
    undone: str = ""
    unwritten: str = ""
    parts: Mapping[str, float] = field(default_factory=dict)
    module: tuple[str, Mapping[str, Tensor]] | None = field(default=None, repr=False)

    @property
    def cuts(self) -> Mapping[str, Candidate]:
        """What became of the layers that were cut, by name."""
        return {} if self.undone else self.shrunk.cuts

    @property
    def seconds(self) -> float:
        """That all of it took."""
        return sum(self.parts.values())

    @property
    def others(self) -> float | None:
        """The largest share of the processor that other processes used while costs were measured, 0 to 1."""
        return most([self.shrunk.costs.others, *(one.figures.others for one in self.compared.values())])

    def speed(self, other: str) -> Interval | None:
        """The latency of the shrunk network to that of another one; None where there is none."""
        own, base = self.compared.get(SHRUNK), self.compared.get(other)
        if own is None or base is None:
            return None
        return ratio(base.figures.latency, own.figures.latency, paired=True)


def carry_out(
    loaded: Loaded, request: ShrinkRequest, measuring: Measuring, observer: Observer = lambda *_: None
) -> ShrinkReport:
    """Shrink a network, verify it, and compare it with what it came from.

    Raises:
        UsageError: for a network or images that cannot be worked with.
        Interrupted, WorkerBroken: as a run.
    """
    parts: dict[str, float] = {}
    model, splits, budget = loaded.model.eval(), loaded.splits, loaded.budget
    with _timed(parts, "layers looked at"), within_memory(), measuring.stop.at_any_moment():
        shape = (request.batch, *splits.shape)
        reference = choosing.outputs_of(model, splits.verification)
        choosing.check(model, reference, splits.verification, budget)
        tolerance = choosing.tolerated(reference, budget)
        layers = choosing.examine(model, splits.calibration, observer, request.memory_format)
    needs = {one.name: choosing.needed(one, tolerance, trained=request.finetune > 0) for one in layers}
    with _timed(parts, "replacements measured"):
        price = partial(measure, measuring=measuring, energy=request.objective == "energy")
        costs = choosing.costs_of(layers, request.batch, needs, price, request.objective)
    with _timed(parts, "chosen and verified"), within_memory(), measuring.stop.at_any_moment():
        shrunk = choosing.shrink(
            model,
            layers,
            needs,
            costs,
            budget=budget,
            tolerance=tolerance,
            verification=splits.verification,
            reference=reference,
            batch=request.batch,
            objective=request.objective,
            tuning=Tuning(splits.training, request.finetune, request.seed) if request.finetune else None,
        )
        shrunk = replace(shrunk, model=_for_inference(shrunk.model, request.memory_format))
    report = ShrinkReport(
        loaded.name,
        loaded.weights,
        splits.what,
        shape,
        budget,
        request.objective,
        shrunk,
        {},
        {layer.name: _facts(layer) for layer in layers},
        choosing.quality(choosing.outputs_of(shrunk.model, splits.verification), reference),
    )
    with _timed(parts, "whole networks measured"):
        report = replace(report, compared=_compared(report, loaded, measuring, request.memory_format))
    if report.cuts and is_worse(report):
        plain = _in_forms(model, shrunk, request.memory_format)
        report = replace(
            report,
            undone=f"the whole network took more {request.objective} than with the cheapest forms",
            verification=choosing.quality(choosing.outputs_of(plain, splits.verification), reference),
            shrunk=replace(shrunk, model=plain, chosen=shrunk.forms),
            compared={**report.compared, SHRUNK: replace(report.compared[FORMS], name=SHRUNK)},
        )
    try:
        title = f"{loaded.name}, shrunk by niffbench."
        last = report.compared[SHRUNK].figures.channels_last
        module = source.written(report.shrunk.model, _example(splits), title, WEIGHTS, channels_last=last)
        report = replace(report, module=module)
    except source.Unwritable as error:
        report = replace(report, unwritten=str(error))
    return replace(report, parts=parts)


@contextlib.contextmanager
def _timed(parts: dict[str, float], what: str) -> Iterator[None]:
    """Note how long it takes."""
    began = time.monotonic()
    yield
    parts[what] = time.monotonic() - began


def is_worse(report: ShrinkReport) -> bool:
    """Whether the shrunk network, measured whole, is shown to take more of the objective than the forms do."""
    own, forms = report.compared[SHRUNK], report.compared[FORMS]
    match report.objective:
        case "latency":
            ratio_to_forms = report.speed(FORMS)
            return ratio_to_forms is not None and (ratio_to_forms.low or 0.0) > 1.0
        case "parameters":
            return own.parameters > forms.parameters
        case "energy":
            pair = own.figures.energy, forms.figures.energy
        case _:
            pair = own.figures.memory, forms.figures.memory
    return pair[0] is not None and pair[1] is not None and pair[0] > pair[1]


def _example(splits: Splits) -> Tensor:
    return next(splits.calibration.batches())[0][:2]


def _check_takes(model: nn.Module, x: Tensor, what: str) -> None:
    """Raise UsageError for a network that cannot take such images."""
    try:
        with torch.no_grad(), within_memory():
            model.eval()(x)
    except (RuntimeError, ValueError, AssertionError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0][:200]
        shape = "×".join(map(str, x.shape[1:]))
        raise UsageError(f"{what}: cannot take images of {shape}: {reason}") from error


def _in_forms(model: nn.Module, shrunk: Shrunk, memory_format: MemoryFormat) -> nn.Module:
    """With each layer's cheapest form."""
    choice = {name: one.candidate for name, one in shrunk.forms.items()}
    return _for_inference(choosing.replaced(model, choice, shrunk.grids), memory_format)


def _for_inference(model: nn.Module, memory_format: MemoryFormat) -> nn.Module:
    """With its normalisations folded into the layers before them, if its course can be traced, laid out so."""
    with contextlib.suppress(ValueError):
        model = folded(model)
    return model.to(memory_format=LAYOUTS[memory_format])


def _facts(layer: choosing.Layer) -> LayerFacts:
    size = analyse_layer(layer.layer, layer.height, layer.width)
    kernels = kernels_of(layer.layer, layer.height, layer.width)
    return LayerFacts(layer.layer.kind, size, curves_of(layer.name, size, pictures_of(kernels)))


def _compared(
    report: ShrinkReport, loaded: Loaded, measuring: Measuring, memory_format: MemoryFormat
) -> dict[str, Compared]:
    """All networks, measured side by side; the published one as it is, with its channels where it has them."""
    model, shrunk = loaded.model, report.shrunk
    published = {name: Candidate("form", 0, form="published") for name in shrunk.forms}
    rivals = {
        PUBLISHED: _published(choosing.replaced(model, published, shrunk.grids), model),
        FORMS: _in_forms(model, shrunk, memory_format),
    }
    if loaded.twin is not None:
        rivals[TWIN] = _for_inference(loaded.twin.eval(), memory_format)
    if report.cuts:  # else it is the one with the fastest forms
        rivals[SHRUNK] = shrunk.model
    with within_memory(), measuring.stop.at_any_moment():
        reference = choosing.outputs_of(model, loaded.splits.held_out)
        qualities = {
            name: choosing.quality(choosing.outputs_of(one, loaded.splits.held_out), reference)
            for name, one in rivals.items()
        }
    last = [name for name in rivals if name != PUBLISHED] if memory_format == "channels_last" else []
    with tempfile.TemporaryDirectory(prefix="niffbench-") as scratch:
        files = {}
        for number, (name, one) in enumerate(rivals.items()):
            files[name] = Path(scratch) / f"network{number}.pt"
            torch.save(one, files[name])
        figures = measure_networks(files, report.shape, reference.logits.shape[1], measuring, last)
    compared = {
        name: Compared(name, sum(p.numel() for p in one.parameters()), qualities[name], figures[name])
        for name, one in rivals.items()
    }
    return {**compared, SHRUNK: compared.get(SHRUNK) or replace(compared[FORMS], name=SHRUNK)}


def _published(changed: nn.Module, model: nn.Module) -> nn.Module:
    """``changed`` with the spectral pointwise layers of ``model`` in their published form again."""
    for name, layer in networks.niff_layers(model):
        if layer.kind == "pointwise":
            parent, _, last = name.rpartition(".")
            setattr(changed.get_submodule(parent), last, layer.with_form("published"))
    return changed
