"""From a trained NIFF network to the cheapest network of the same quality on this machine, with proof.

Each layer's replacements are compared with it on real activations, what they cost is measured, the choice is
solved exactly for a first-order estimate of the harm to the network's output, and then verified on the network.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count
from math import ceil, inf, log
from typing import Literal

import torch
from torch import Tensor, nn

from niffbench.case import Case, MemoryFormat
from niffbench.errors import UsageError
from niffbench.niff import networks
from niffbench.niff.catalogue import forms_of
from niffbench.niff.layer import FilteringLayer
from niffbench.niff.pointwise import NiffPointwise
from niffbench.stats.contrasts import FloatArray
from niffbench.stats.intervals import Interval
from niffbench.stats.proportions import difference, expected_loss, share
from niffbench.study import candidates as replacing
from niffbench.study.candidates import Candidate, Errors
from niffbench.study.choice import Attempt, Choice, Option, verified
from niffbench.study.costs import Costs, cases_of
from niffbench.study.effective import filtering_layers
from niffbench.study.images import BATCH, Images

NEGLIGIBLE = 0.03
"""Of the harm that is tolerated: kernels larger than one that does no more have nothing to gain."""
STEP = 10
"""Kernels of a kind are measured up to so many pixels larger before it is asked whether larger ones can pay."""
LEARNING_RATE = 5e-3
STEPS = {False: 0.05, True: 0.2}
"""How much less is tolerated after a first solution that fails: where nothing is trained, and where it is."""
_DRAWS = 8
_TOLERANCES: tuple[float, ...] = tuple(2.0 ** (-step / 2) for step in range(2, 27))
"""Relative errors of logits that are tried, largest first: 0.5 to 1e-4."""


@dataclass(frozen=True)
class Budget:
    """What may be lost: a share of ``accuracy`` or a relative ``error`` of the logits."""

    kind: Literal["accuracy", "error"]
    value: float


@dataclass(frozen=True)
class Outputs:
    """What a network says of images: logits ``(N, classes)``, and the images' labels ``(N,)`` if they have any."""

    logits: Tensor
    labels: Tensor | None

    @property
    def right(self) -> Tensor:
        """Which images are named rightly; ``(N,)``."""
        assert self.labels is not None
        return self.logits.argmax(1).eq(self.labels)

    @property
    def margins(self) -> FloatArray:
        """By how much the score of an image's class exceeds the best other one; ``(N,)``."""
        assert self.labels is not None
        others = self.logits.double().clone()
        own = others.gather(1, self.labels[:, None])[:, 0]
        margins: FloatArray = (own - others.scatter(1, self.labels[:, None], -inf).amax(1)).cpu().numpy()
        return margins


def outputs_of(model: nn.Module, images: Images) -> Outputs:
    """What the network says of all images.

    Raises:
        UsageError: for a network that gives no class scores.
    """
    logits, labels = [], []
    with torch.no_grad():
        for x, y in images.batches():
            logits.append(model(x))
            labels += [] if y is None else [y]
    every = torch.cat(logits)
    if every.dim() != 2:
        raise UsageError(
            f"the network's output has the shape {tuple(every.shape)}, and should be (images, classes)"
        )
    return Outputs(every, torch.cat(labels) if labels else None)


@dataclass(frozen=True)
class Quality:
    """How a network does beside the one it came from, on the same images.

    Attributes:
        error: relative L2 error of the logits.
        right: images named rightly; ``lost`` and ``gained``: those that only the one before, and only this one,
            names rightly. None without labels.
    """

    error: float
    images: int
    right: int | None = None
    lost: int | None = None
    gained: int | None = None

    @property
    def accuracy(self) -> Interval | None:
        """The share of images named rightly, with its interval; None without labels."""
        return None if self.right is None else share(self.right, self.images)

    @property
    def loss(self) -> Interval | None:
        """The share of images named rightly less than before, paired, with its interval; None without labels."""
        if self.lost is None or self.gained is None:
            return None
        return difference(self.lost, self.gained, self.images)

    def within(self, budget: Budget) -> bool:
        """Whether the budget allows it."""
        if budget.kind == "error":
            return self.error <= budget.value
        return self.lost is not None and self.lost - (self.gained or 0) <= budget.value * self.images + 1e-9

    def __add__(self, other: Quality) -> Quality:
        """Of both together, on other images each."""
        images = self.images + other.images
        error = (self.error * self.images + other.error * other.images) / images
        if self.right is None or other.right is None:
            return Quality(error, images)
        lost, gained = (self.lost or 0) + (other.lost or 0), (self.gained or 0) + (other.gained or 0)
        return Quality(error, images, self.right + other.right, lost, gained)


def quality(own: Outputs, reference: Outputs) -> Quality:
    """Compare what a network says with the ``reference`` of the network before."""
    size = float(torch.linalg.vector_norm(reference.logits, dtype=torch.float64))
    away = torch.linalg.vector_norm(own.logits - reference.logits, dtype=torch.float64)
    error, images = float(away) / (size or 1.0), len(own.logits)
    if own.labels is None:
        return Quality(error, images)
    now, before = own.right, reference.right
    return Quality(error, images, int(now.sum()), int((before & ~now).sum()), int((now & ~before).sum()))


def loss_of(own: Outputs, reference: Outputs) -> Interval | None:
    """The accuracy that is expected to be lost on other images, as a share, and at most; None without labels."""
    return None if own.labels is None else expected_loss(reference.margins, own.margins)


def holds(own: Outputs, reference: Outputs, budget: Budget) -> bool:
    """Whether the budget allows on other images what a network says of these.

    Of a budget in accuracy an image that is gained makes up for none that is lost: among many solutions, one that
    gains more than it loses on a few images is lucky, and not better.
    """
    if budget.kind == "error":
        return quality(own, reference).error <= budget.value
    loss, lost = loss_of(own, reference), int((reference.right & ~own.right).sum())
    within = lost <= budget.value * len(own.logits) + 1e-9
    return within and loss is not None and loss.high is not None and loss.high <= budget.value


def check(model: nn.Module, reference: Outputs, images: Images, budget: Budget) -> None:
    """Raise UsageError where the unshrunk network already does not do what is asked, or the data do not fit it."""
    logits, labels = reference.logits, reference.labels
    if not bool(torch.isfinite(logits).all()):
        raise UsageError("what the unshrunk network computes is not finite: with these weights it overflows")
    if budget.kind == "error":
        x, _ = next(images.batches())
        exact = copy.deepcopy(model).double()
        with torch.no_grad():
            truth = exact(x.double())
        own = quality(Outputs(logits[: len(x)], None), Outputs(truth.to(logits.dtype), None)).error
        if own > budget.value:
            raise UsageError(
                f"--max-error {budget.value:g}: the unshrunk network is itself {own:.1e} off, against float64"
            )
        return
    if labels is None:
        raise UsageError("--budget is in accuracy, and the images have no labels; give --max-error")
    classes = logits.shape[1]
    if int(labels.min()) < 0 or int(labels.max()) >= classes:
        raise UsageError(
            f"--data: labels go up to {int(labels.max())}, and the network tells {classes} classes apart"
        )
    most = int(torch.bincount(labels).max())
    if most == len(labels):
        raise UsageError("--data: all images are of one class, of which any network could say it")
    right = int(reference.right.sum())
    named = share(right, len(labels))
    if named.high is not None and named.high <= most / len(labels):
        raise UsageError(
            f"the unshrunk network names {100 * right / len(labels):.1f} % of the images rightly, no more than "
            f"whoever always names the commonest class ({100 * most / len(labels):.1f} %): there is no accuracy "
            "to be kept; are these its weights, its classes, its resolution?"
        )


def tolerated(reference: Outputs, budget: Budget) -> float:
    """The relative error of the logits to begin with.

    Of a budget in accuracy, the largest error which as noise is verified to hold it, in most of :data:`_DRAWS`.
    """
    if budget.kind == "error" or reference.labels is None:
        return budget.value
    logits = reference.logits.double()
    generator = torch.Generator().manual_seed(0)
    held = dict.fromkeys(_TOLERANCES, 0)
    for _ in range(_DRAWS):
        noise = torch.randn(logits.shape, generator=generator, dtype=torch.float64)
        noise *= logits.norm() / noise.norm()
        for tolerance in held:
            held[tolerance] += holds(Outputs(logits + tolerance * noise, reference.labels), reference, budget)
    return next((one for one, times in held.items() if 2 * times > _DRAWS), _TOLERANCES[-1])


@dataclass(frozen=True)
class Layer:
    """One layer of the network: what could replace it, how wrong that is, and what an error here does to logits.

    ``gains``: relative error of the logits for one of the layer's output, to first order, by kind of replacement
    and boundary: errors at the border of an image do not weigh what others do. ``memory_format``: of what it is
    given when its cost is measured.
    """

    name: str
    layer: FilteringLayer
    height: int
    width: int
    errors: Mapping[Candidate, float]
    gains: Mapping[tuple[str, str], float]
    memory_format: MemoryFormat = "contiguous"

    def harm(self, candidate: Candidate) -> float:
        """The relative error of the logits that a replacement is expected to make."""
        return self.gains.get((candidate.kind, candidate.boundary), 0.0) * self.errors[candidate]


@dataclass(frozen=True)
class Tuning:
    """Training of what was cut, to the answers of the network before: for ``epochs`` over ``images``."""

    images: Images
    epochs: int
    seed: int = 0


def examine(
    model: nn.Module,
    images: Images,
    on_layer: Callable[[str, int], None] | None = None,
    memory_format: MemoryFormat = "contiguous",
) -> tuple[Layer, ...]:
    """The layers of ``model`` that ``images`` reach, each with its replacements' errors and its gains.

    Raises:
        UsageError: if no layer has a filter.
    """
    model.eval()
    try:
        every = filtering_layers(model)
    except ValueError as error:
        raise UsageError(f"{error}: there is nothing to shrink") from error
    maps: dict[str, tuple[int, int]] = {}
    meters: dict[str, Errors] = {}
    with _hooked(every, meters, maps):
        outputs_of(model, images)
    if not meters:
        raise UsageError(f"evaluation reaches none of {', '.join(every)}")
    some = Images(images.items, images.places[:BATCH], images.labelled)  # a gain is a rough figure, and many runs
    reference = outputs_of(model, some)
    layers = []
    for name, meter in meters.items():
        if on_layer is not None:
            on_layer(name, len(meters))
        errors = meter.result()
        gains = _gains(model, name, maps[name], errors, some, reference)
        layers.append(Layer(name, every[name], *maps[name], errors, gains, memory_format))
    return tuple(layers)


@contextmanager
def _hooked(
    layers: Mapping[str, FilteringLayer], meters: dict[str, Errors], maps: dict[str, tuple[int, int]]
) -> Iterator[None]:
    """Within, what the layers are given goes to ``meters``; their maps' sizes are noted at the first call."""

    def take(name: str, layer: FilteringLayer, x: Tensor) -> None:
        if name not in meters:
            maps[name] = (x.shape[-2], x.shape[-1])
            meters[name] = Errors(layer, replacing.candidates(layer, *maps[name], forms_of(layer.kind)))
        meters[name].add(x)

    handles = [
        layer.register_forward_pre_hook(lambda _, inputs, name=name, layer=layer: take(name, layer, inputs[0]))
        for name, layer in layers.items()
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _gains(
    model: nn.Module,
    name: str,
    grid: tuple[int, int],
    errors: Mapping[Candidate, float],
    images: Images,
    reference: Outputs,
) -> dict[tuple[str, str], float]:
    """Replace the layer by what errs by about a tenth, of each kind, and see what that does to the logits."""
    kinds: dict[tuple[str, str], list[Candidate]] = {}
    for candidate, error in errors.items():
        if not candidate.exact and error > 0:
            kinds.setdefault((candidate.kind, candidate.boundary), []).append(candidate)
    gains = {}
    for kind, some in kinds.items():
        probe = min(some, key=lambda candidate: abs(log(errors[candidate] / 0.1)))
        changed = replaced(model, {name: probe}, {name: grid})
        gains[kind] = quality(outputs_of(changed, images), reference).error / errors[probe]
    return gains


def replaced(model: nn.Module, choice: Choice, grids: Mapping[str, tuple[int, int]]) -> nn.Module:
    """A copy of ``model`` with the chosen replacements; spectral pointwise layers become 1×1 convolutions."""
    changed = copy.deepcopy(model)
    modules: dict[str, nn.Module] = {}
    for name, layer in networks.niff_layers(changed):
        if name in choice:
            assert isinstance(layer, FilteringLayer)
            modules[name] = replacing.build(choice[name], layer, *grids[name])
        elif isinstance(layer, NiffPointwise):
            modules[name] = _ordinary(layer)
    for name, module in modules.items():
        if not name:
            return module.eval()
        parent, _, last = name.rpartition(".")
        setattr(changed.get_submodule(parent), last, module)
    return changed.eval()


def _ordinary(layer: NiffPointwise) -> nn.Module:
    """The 1×1 convolution that a spectral pointwise layer is, exactly; of channels last, a linear map."""
    last = layer.layout == "nhwc"
    module: nn.Conv2d | nn.Linear = (
        nn.Linear(layer.in_channels, layer.out_channels, bias=False, device="meta")
        if last
        else nn.Conv2d(layer.in_channels, layer.out_channels, 1, bias=False, device="meta")
    )
    weight = layer.weight.detach().clone()
    module.weight = nn.Parameter(weight if last else weight[:, :, None, None])
    return module


def needed(layer: Layer, tolerance: float, *, trained: bool = False) -> list[Candidate]:
    """The replacements of a layer whose costs matter: what is exact, and what is within reach of ``tolerance``.

    Of a kind, sides above the first that does no harm worth counting are left out: they do more work for nothing.

    Args:
        trained: what is cut is trained afterwards, so that no harm that it does before is out of reach. Left out
            is what is further from the layer's output than nothing at all.
    """
    done: set[tuple[str, str, int | None]] = set()
    result = []
    for candidate in layer.errors:
        harm = layer.harm(candidate)
        kind = (candidate.kind, candidate.boundary, candidate.rank)
        reached = layer.errors[candidate] < 1 if trained else harm <= tolerance
        if candidate.exact or (reached and kind not in done):
            result.append(candidate)
        if not candidate.exact and harm <= NEGLIGIBLE * tolerance:
            done.add(kind)
    return result


def costs_of(
    layers: Sequence[Layer],
    batch: int,
    needs: Mapping[str, Sequence[Candidate]],
    measure: Callable[[Sequence[Case]], Costs],
    objective: str = "latency",
) -> Costs:
    """What the replacements that matter cost, by ``measure``, which is given each case once.

    Of a kind, kernels are measured from the smallest up, and larger ones only where the largest so far, wanted or
    not, is cheaper than the layer's cheapest form.

    Args:
        needs: of each layer, by name, what :func:`needed` says.
    """
    total = Costs({})
    if objective == "parameters":  # which are counted
        return total
    for wave in count():
        cases: dict[str, Case] = {}
        for layer in layers:
            for candidate in _wave(layer, batch, needs[layer.name], total, wave, objective):
                for case in _cases(layer, candidate, batch) or ():
                    cases[case.id] = case
        new = [case for id_, case in cases.items() if id_ not in total.figures]
        if not cases:
            return total
        if not new:
            continue
        total = total.joined(measure(new))
    raise AssertionError


def _wave(
    layer: Layer, batch: int, needs: Sequence[Candidate], costs: Costs, number: int, objective: str
) -> Iterator[Candidate]:
    """The candidates of a layer that are measured next."""
    forms = [candidate for candidate in needs if candidate.exact]
    if number == 0:
        yield from forms
    best = min((price_of(layer, one, costs, batch, objective) or inf for one in forms), default=inf)
    families: dict[tuple[str, str, int | None], list[Candidate]] = {}
    for candidate in layer.errors:
        if not candidate.exact:
            families.setdefault((candidate.kind, candidate.boundary, candidate.rank), []).append(candidate)
    wanted = set(needs)
    for some in families.values():
        before = [one for one in some if _step_of(one) < number]
        last = price_of(layer, before[-1], costs, batch, objective) if before else None
        if number == 0 or (last is not None and last < best):
            now = [one for one in some if _step_of(one) == number]
            larger = any(_step_of(one) > number for one in some if one in wanted)
            yield from (one for one in now if one in wanted or (larger and one is now[-1]))


def _step_of(candidate: Candidate) -> int:
    return max((candidate.side or 1) - 2, 0) // STEP


def _cases(layer: Layer, candidate: Candidate, batch: int) -> list[Case] | None:
    return cases_of(candidate, layer.layer, batch, layer.height, layer.width, layer.memory_format)


def price_of(layer: Layer, candidate: Candidate, costs: Costs, batch: int, objective: str) -> float | None:
    """What a replacement costs of ``objective``; None where that is not known."""
    if objective == "parameters":
        return float(candidate.parameters)
    cases = _cases(layer, candidate, batch)
    return None if cases is None else costs.of(cases, objective)


@dataclass(frozen=True)
class Shrunk:
    """What came of it: the network, and how it was chosen.

    Attributes:
        layers: in the network's order, with all that was considered; ``options`` is what of that has a cost.
        attempts: every solution and its test; the last one holds. Empty where nothing could be chosen.
        losses: of each attempt, the accuracy that is expected to be lost; None without labels.
        chosen: the replacement of every layer.
        forms: the cheapest form of every layer.
        finetune: epochs for which what is cut was trained.
    """

    model: nn.Module
    layers: tuple[Layer, ...]
    options: Mapping[str, Sequence[Option]]
    attempts: Sequence[Attempt]
    losses: Sequence[Interval | None]
    chosen: Mapping[str, Option]
    forms: Mapping[str, Option]
    tolerance: float
    costs: Costs
    finetune: int = 0

    @property
    def cuts(self) -> dict[str, Candidate]:
        """The layers that are not what they were any more, and what became of them."""
        return {name: option.candidate for name, option in self.chosen.items() if not option.candidate.exact}

    @property
    def grids(self) -> dict[str, tuple[int, int]]:
        """Height and width of each layer's map."""
        return {layer.name: (layer.height, layer.width) for layer in self.layers}


def shrink(
    model: nn.Module,
    layers: Sequence[Layer],
    needs: Mapping[str, Sequence[Candidate]],
    costs: Costs,
    *,
    budget: Budget,
    tolerance: float,
    verification: Images,
    reference: Outputs,
    batch: int,
    objective: str = "latency",
    tuning: Tuning | None = None,
) -> Shrunk:
    """Choose a replacement for every layer, verify the network, and choose again until the budget holds.

    Args:
        layers: of :func:`examine`; ``needs`` is what :func:`needed` says of each, by name.
        tolerance: relative error of the logits, of :func:`tolerated`. The first solution is the cheapest that is
            expected to be within it; where what is cut is trained, the cheapest there is.
        verification: images that solutions are tested on; ``reference`` is what ``model`` says of them.

    Raises:
        UsageError: where a layer has no candidate with a cost.
    """
    options = {layer.name: _options(layer, needs[layer.name], costs, batch, objective) for layer in layers}
    for name, some in options.items():
        if not any(option.candidate.exact for option in some):
            why = next(iter(costs.lost.values()), f"no {objective} is counted on this device")
            raise UsageError(f"{name}: no form of it could be measured: {why}")
    forms = {
        name: min((option for option in some if option.candidate.exact), key=lambda option: option.cost)
        for name, some in options.items()
    }
    grids = {layer.name: (layer.height, layer.width) for layer in layers}
    made: list[nn.Module] = []
    losses: list[Interval | None] = []
    start = tolerance
    if tuning is not None:
        start = max(tolerance, sum(max(one.harm for one in some) ** 2 for some in options.values()) ** 0.5)
        wanted = outputs_of(model, tuning.images).logits

    def test(choice: Choice) -> tuple[float, bool]:
        network = replaced(model, choice, grids)
        if tuning is not None:
            tune(network, wanted, [name for name, one in choice.items() if not one.exact], tuning)
        made.append(network)
        own = outputs_of(network, verification)
        losses.append(loss_of(own, reference))
        return quality(own, reference).error, holds(own, reference, budget)

    limit = None if tuning is None else tolerance
    attempts = verified(options, start, test, STEPS[tuning is not None], limit)
    is_verified = bool(attempts) and attempts[-1].holds
    chosen = attempts[-1].choice if is_verified else forms
    plain = {name: one.candidate for name, one in forms.items()}
    network = made[-1] if is_verified else replaced(model, plain, grids)
    epochs = 0 if tuning is None else tuning.epochs
    return Shrunk(
        network, tuple(layers), options, attempts, tuple(losses), chosen, forms, tolerance, costs, epochs
    )


def _options(layer: Layer, needs: Sequence[Candidate], costs: Costs, batch: int, objective: str) -> list[Option]:
    prices = {one: price_of(layer, one, costs, batch, objective) for one in needs}
    if objective == "parameters":  # which all forms have the same of
        prices = {one: price for one, price in prices.items() if one.form in (None, "auto-cached")}
    return [Option(one, price, layer.harm(one)) for one, price in prices.items() if price is not None]


def tune(network: nn.Module, wanted: Tensor, names: Sequence[str], tuning: Tuning) -> None:
    """Train what is cut, in place, to what the network before says of the images, ``wanted``.

    All weights are trained but those of the layers that keep their filters, and normalisations' statistics are
    taken anew; nothing is where nothing is cut.

    Args:
        names: of the modules that are cut.
    """
    whole = {id(weight) for _, layer in networks.niff_layers(network) for weight in layer.parameters()}
    weights = [weight for weight in network.parameters() if names and id(weight) not in whole]
    if not weights:
        return
    optimiser = torch.optim.AdamW(weights, lr=LEARNING_RATE, weight_decay=0.0, foreach=False)
    steps = tuning.epochs * ceil(len(wanted) / BATCH)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, LEARNING_RATE, total_steps=steps)
    generator = torch.Generator().manual_seed(tuning.seed)
    network.train().to(memory_format=torch.channels_last)  # where convolutions are fastest
    for _ in range(tuning.epochs):
        order = torch.randperm(len(wanted), generator=generator).tolist()
        for number, (x, _) in enumerate(tuning.images.batches(order)):
            target = wanted[order[number * BATCH : (number + 1) * BATCH]]
            loss = (network(x) - target).square().sum() / target.square().sum()
            gradients = torch.autograd.grad(loss, weights)
            for weight, gradient in zip(weights, gradients, strict=True):
                weight.grad = gradient
            optimiser.step()
            schedule.step()
    optimiser.zero_grad()
    network.eval().to(memory_format=torch.contiguous_format)
