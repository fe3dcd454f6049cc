"""Whole networks: the paper's, torchvision's originals, and the same with large spatial kernels."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, ClassVar

from niffbench.case import Case, Problem
from niffbench.cost.architectures import STRIDE, Convolution, Linear, Norm, Site, sites, with_kernel
from niffbench.cost.closed import NOTHING, Cost, Work, added, steps
from niffbench.cost.niff import Layer, layer_parts
from niffbench.niff.catalogue import EXECUTIONS, GRIDS, NETWORKS, Network, form_of, keeping
from niffbench.operators.base import Choice, Operator, Option
from niffbench.operators.niff import chosen_engines, evaluate
from niffbench.results import Role

if TYPE_CHECKING:
    from torch import Tensor, nn

_EXECUTION = Option("rfft", tuple(EXECUTIONS), "which form each kind of NIFF layer takes")
_GRID = Option("paper", GRIDS, "coordinate grid of the filters; they differ on odd sides")
_FOLDED = Option("no", ("no", "yes"), "inference with normalisations folded, channels last: niffbench.niff.folded")
_OPTIMISER = Option("none", ("none", "sgd", "adamw"), "its step ends each training step, weights unchanged")


@dataclass(frozen=True)
class WholeNetwork(Operator):
    """A network of :mod:`niffbench.niff.networks`, from images to class scores.

    ``channels`` is 3, ``channels_out`` the number of classes. In ``training`` its normalisations use the batch's
    statistics; dropout and stochastic depth are off, so that every call computes the same. The optimiser's
    learning rate and weight decay are 0: it does all its work and changes no weight.

    ``engines`` is what each layer of form ``auto`` has chosen, in the network's order; empty where there is none,
    and while nothing is chosen.
    """

    network: Network = field(default_factory=lambda: NETWORKS["resnet18"])
    engines: tuple[str, ...] = ()
    role: Role = "network"
    shortfall: ClassVar[float] = 1.0
    setup: ClassVar[float] = 6.0  # hundreds of operations to each that traces it
    options: Mapping[str, Option] = field(default_factory=dict, hash=False)

    def refusal(self, case: Case) -> str | None:
        p = case.problem
        if p.channels != 3:
            return f"needs channels = 3, for images, got {p.channels}"
        if min(p.height, p.width) < STRIDE:
            return f"needs at least {STRIDE}×{STRIDE} pixels, its stride, got {p.height}×{p.width}"
        if self.network.kernel == "map" and p.height != p.width:
            return f"needs square images for kernels of feature-map size, got {p.height}×{p.width}"
        if case.option("optimiser") != "none" and p.mode != "training":
            return f"optimiser={case.option('optimiser')} needs mode = training, got {p.mode}"
        if case.option("folded") == "yes":
            if p.mode != "inference":
                return f"folded=yes needs mode = inference, got {p.mode}"
            if "execution" in self.options and not str(case.option("execution")).startswith("auto"):
                return f"folded=yes needs execution = auto or auto-cached, got {case.option('execution')}"
        if p.mode == "training" and p.batch == 1 and not self.network.base.startswith("convnext"):
            *_, last = (
                site.made
                for site in sites(self.network.base, p.height, p.width, p.channels_out)
                if isinstance(site, Convolution)
            )
            if last == (1, 1):
                return (
                    "cannot normalise over a single value in training: "
                    f"needs batch ≥ 2, or more than {p.height}×{p.width} pixels, whose last map is 1×1"
                )
        return None

    def equivalence(self, case: Case) -> str:
        grid = f"-{case.option('grid')}" if "grid" in self.options else ""
        state = "-training" if case.problem.mode == "training" else ""
        return f"network-{self.network.name}{grid}{state}"

    @property
    def layers(self) -> str:
        """NIFF's where it has any, else those of the convolutions that NIFF would replace."""
        if self.boundary == "circular":
            return "niff"
        return "dense" if self.network.kernel is None else "depthwise"

    def is_published(self, case: Case) -> bool:
        return ("execution", "published") in case.options

    def output_shape(self, case: Case) -> tuple[int, ...]:
        return case.problem.batch, case.problem.channels_out

    def mixes_images(self, case: Case) -> bool:
        return case.problem.mode == "training"

    def switches(self, case: Case) -> bool:
        """All do but ConvNeXt, whose GELUs are smooth."""
        return not self.network.base.startswith("convnext")

    def error_growth(self, case: Case) -> float:
        """One layer's errors after another; in half precision, where that would allow anything, at random."""
        p = case.problem
        chain = sites(self.network.base, p.height, p.width, p.channels_out)
        layers = sum(isinstance(site, Convolution | Linear) for site in chain)
        return layers if p.element_bytes >= 4 else layers**0.5

    def cost(self, case: Case) -> Cost:
        p = case.problem
        forms = EXECUTIONS[str(case.option("execution"))] if "execution" in self.options else {}
        folded = case.option("folded") == "yes"
        if folded:
            forms = {kind: keeping(kind, form) for kind, form in forms.items()}
        engines = iter(self.engines)
        parts: dict[str, Work] = {}
        parameters, lengths, kind = 0, set[int](), None
        for site in sites(self.network.base, p.height, p.width, p.channels_out):
            before, kind = kind, self._replaced(site)
            if kind is not None and self.network.kernel is not None:
                kind, site = None, with_kernel(site, self.network.kernel)
            if kind is None:
                of_site, learnable = site.parts(p.batch), site.parameters
                if folded and isinstance(site, Norm) and site.folds and before != "full":
                    learnable = site.channels
            else:
                layer = _layer(site, kind, p, "big" if self.network.base.startswith("convnext") else "small")
                engine = next(engines, None) if form_of(kind, forms[kind]).engine == "auto" else None
                of_site, learnable = layer_parts(layer, forms[kind], engine), layer.parameters
                if (kind, forms[kind]) != ("pointwise", "elided"):
                    lengths |= {layer.problem.height, layer.problem.width}
            parameters += learnable
            for name, work in of_site.items():
                parts[name] = added(parts.get(name, NOTHING), work)
        images = p.batch * p.channels * p.height * p.width
        floor = (images + p.batch * p.channels_out + parameters) * p.element_bytes
        return Cost(
            steps=steps(p, parts),
            bytes_floor=floor * (2 if p.mode == "training" else 1),
            parameters=parameters,
            transform_lengths=tuple(sorted(lengths)),
        )

    def _replaced(self, site: Site) -> str | None:
        """The kind of NIFF layer that stands for ``site``; of a baseline, the kind that does in the NIFF one."""
        if self.network.variant == "original":
            return None
        if isinstance(site, Linear):
            return "pointwise" if site.replaceable else None
        if not isinstance(site, Convolution) or site.stride != 1:
            return None
        if site.kernel == (1, 1):
            return "pointwise"
        if site.groups > 1:
            return "depthwise"
        return "full" if self.network.variant == "full" else "split"

    def build(self, case: Case) -> nn.Module:
        model = self._model(case)
        if (name := case.option("optimiser")) != "none":
            _end_with_step(model, str(name))
        if case.option("folded") == "yes":
            _fold_when_called(model, self.engines)
        return model

    def _model(self, case: Case) -> nn.Module:
        import torch
        from torchvision.ops import StochasticDepth

        from niffbench.niff.networks import build, choosing_layers

        p = case.problem
        settings = {name: str(case.option(name)) for name in ("execution", "grid") if name in self.options}
        size = (p.height, p.width)
        model = build(self.network.name, input_size=size, num_classes=p.channels_out, **settings)
        for module in model.modules():
            if isinstance(module, torch.nn.Dropout | StochasticDepth):
                module.p = 0.0
        if self.engines:
            for layer, engine in zip(choosing_layers(model), self.engines, strict=True):
                layer.fix_engine(engine)
        return model.train(p.mode == "training")

    def choice(self, case: Case, module: nn.Module) -> Choice | None:
        engines = chosen_engines(case, module)
        return Choice(engines, replace(self, engines=engines)) if engines else None

    def likely(self, case: Case) -> Sequence[WholeNetwork]:
        """Of one whose layers choose nothing is known."""
        chooses = "execution" in self.options and str(case.option("execution")).startswith("auto")
        return () if chooses else (self,)

    def reference(self, case: Case, state: Mapping[str, Tensor], x: Tensor) -> Tensor:
        """The network in float64, each NIFF layer computed from the definition of its filter.

        Depthwise convolutions of stride 1 are computed as those of layers are: with 31×31 taps torch's own, in
        float64 on a CPU, take a minute of what then takes seconds.
        """
        import torch

        from niffbench.niff.networks import niff_layers

        model = self._model(case).to(x)
        model.load_state_dict(state)
        for _, layer in niff_layers(model):
            layer.forward = by_definition(layer)  # type: ignore[assignment,method-assign]
        for module in model.modules():
            if isinstance(module, torch.nn.Conv2d) and module.groups > 1 and module.stride == (1, 1):
                module.forward = plainly(module)  # type: ignore[assignment,method-assign]
        parameters = {name: state[name] for name, _ in model.named_parameters()}  # which ask for the gradients
        out: Tensor = torch.func.functional_call(model, parameters, x)
        return out


def by_definition(layer: nn.Module) -> Callable[[Tensor], Tensor]:
    from niffbench.niff.layer import FilteringLayer, SpectralLayer

    assert isinstance(layer, SpectralLayer)
    last = layer.channel_dimension == 3
    grid = layer.generator.grid if isinstance(layer, FilteringLayer) else "paper"

    def forward(x: Tensor) -> Tensor:
        images = x.permute(0, 3, 1, 2) if last else x
        y = evaluate(layer.kind, layer.state_dict(keep_vars=True), images, grid)
        return y.permute(0, 2, 3, 1) if last else y

    return forward


def plainly(convolution: nn.Conv2d) -> Callable[[Tensor], Tensor]:
    """A depthwise convolution of stride 1 that keeps the size, and its bias."""
    from niffbench.operators.kit import convolve

    def forward(x: Tensor) -> Tensor:
        y = convolve(x, convolution.weight, circular=False, depthwise=True)
        return y if convolution.bias is None else y + convolution.bias[:, None, None]

    return forward


def _fold_when_called(model: nn.Module, engines: tuple[str, ...]) -> None:
    """Let ``model`` be what :func:`niffbench.niff.folded` makes of the weights that its first call meets."""
    from niffbench.niff import folded
    from niffbench.niff.networks import choosing_layers

    def forward(x: Tensor) -> Tensor:
        del model.forward
        made = folded(model, copied=False)
        for layer, engine in zip(choosing_layers(made), engines, strict=bool(engines)):
            layer.fix_engine(engine)
        for registry in (model._modules, model._parameters, model._buffers):
            registry.clear()
        model.folded = made
        model.forward = made.forward
        out: Tensor = made(x)
        return out

    model.forward = forward


def _end_with_step(model: nn.Module, name: str) -> None:
    """Let an optimiser step as soon as all gradients of a backward pass are there."""
    import torch

    made: list[torch.optim.Optimizer] = []

    def step() -> None:
        if not made:
            parameters = list(model.parameters())
            made.append(
                torch.optim.SGD(parameters, lr=0.0)
                if name == "sgd"
                # On a GPU it counts its steps there, or no CUDA graph could hold it.
                else torch.optim.AdamW(parameters, lr=0.0, weight_decay=0.0, capturable=parameters[0].is_cuda)
            )
        made[0].step()

    def begin(gradient: Tensor) -> None:
        torch.autograd.Variable._execution_engine.queue_callback(step)

    def watch(_: nn.Module, __: object, output: Tensor) -> None:
        if output.requires_grad:
            output.register_hook(begin)  # type: ignore[no-untyped-call]

    model.register_forward_hook(watch)


def _layer(site: Site, kind: str, p: Problem, mlp: str) -> Layer:
    """The NIFF layer in the place of ``site``, on the problem that it meets there."""
    assert isinstance(site, Convolution | Linear)
    height, width = site.given if isinstance(site, Convolution) else site.size
    problem = replace(p, channels=site.into, channels_out=site.out, height=height, width=width)
    return Layer(problem, kind, {"pointwise": None, "full": "tiny"}.get(kind, mlp))


def _operators() -> Iterator[WholeNetwork]:
    for network in NETWORKS.values():
        spectral = network.variant in ("full", "split", "niff")
        kernel = "their feature map's size" if network.kernel == "map" else f"k = {network.kernel}"
        summaries = {
            "original": f"torchvision's {network.base}",
            "spatial": f"{network.base}, every convolution that NIFF replaces at {kernel}",
        }
        yield WholeNetwork(
            name=f"network/{network.name}",
            family="network",
            summary=summaries.get(network.variant, f"{network.base} with NIFF layers ({network.variant})"),
            boundary="circular" if spectral else "zero",
            base=None if network.variant == "original" else f"network/{network.base}",
            options={
                **({"execution": _EXECUTION, "grid": _GRID} if spectral else {}),
                "folded": _FOLDED,
                "optimiser": _OPTIMISER,
            },
            network=network,
        )


OPERATORS = tuple(_operators())
