"""NIFF's layers in each of their forms: what this package is about (Grabinski, Keuper and Keuper, TMLR 2024)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, ClassVar

from niffbench.case import Case
from niffbench.cost.closed import Cost, layer_cost
from niffbench.cost.niff import Layer, executed, layer_parts
from niffbench.niff.catalogue import FORMS, GRIDS, HIDDEN_WIDTHS, IN_C, LAYOUTS, engines_of, form_of
from niffbench.operators.base import Choice, Operator, Option, same_channels
from niffbench.results import Role

if TYPE_CHECKING:
    from torch import Tensor, nn

GRID = Option("paper", GRIDS, "coordinate grid; they differ on odd sides, where the paper's has no exact zero")
LAYOUT = Option("nchw", LAYOUTS, "where the layer itself wants the channels; nhwc is ConvNeXt's")
_OPTIONS: dict[str, dict[str, Option]] = {
    "depthwise": {"mlp": Option("small", tuple(HIDDEN_WIDTHS), "filter MLP; ConvNeXt's is big"), "grid": GRID},
    "full": {"mlp": Option("tiny", tuple(HIDDEN_WIDTHS), "filter MLP"), "grid": GRID},
    "pointwise": {"layout": LAYOUT},
    "split": {"mlp": Option("small", tuple(HIDDEN_WIDTHS), "filter MLP"), "grid": GRID},
}


@dataclass(frozen=True)
class Niff(Operator):
    """One layer of :mod:`niffbench.niff` in one form. float16 and bfloat16 are computed in float32, or better than
    they are.

    ``engine`` is what a form ``auto`` has chosen; None of other forms, and while nothing is chosen.
    """

    kind: str = "depthwise"
    form: str = "published"
    engine: str | None = None
    role: Role = "spectral"
    options: Mapping[str, Option] = field(default_factory=dict, hash=False)

    def refusal(self, case: Case) -> str | None:
        return same_channels(case) if self.kind == "depthwise" else None

    def equivalence(self, case: Case) -> str:
        settings = [str(case.option(name)) for name in ("mlp", "grid") if name in self.options]
        return "-".join(["niff", self.kind, *settings])

    def is_published(self, case: Case) -> bool:
        return self.form == "published"

    def cost(self, case: Case) -> Cost:
        p, layer = case.problem, self._layer(case)
        elided = self.kind == "pointwise" and self.form == "elided"
        lengths = () if elided else (p.height, p.width)
        return layer_cost(p, layer_parts(layer, self.form, self.engine), layer.parameters, lengths)

    def executed(self, case: Case) -> int | None:
        return executed(self._layer(case), self.form, self.engine)

    def _layer(self, case: Case) -> Layer:
        mlp = str(case.option("mlp")) if "mlp" in self.options else None
        layout = str(case.option("layout")) if "layout" in self.options else "nchw"
        return Layer(case.problem, self.kind, mlp, layout)

    def build(self, case: Case) -> nn.Module:
        from niffbench import niff

        p = case.problem
        settings: dict[str, Any] = {name: case.option(name) for name in self.options}
        settings["form"] = self.form
        if self.kind == "pointwise":
            layer = niff.NiffPointwise(p.channels, p.channels_out, **settings)
            if settings["layout"] == "nhwc":
                layer.register_forward_pre_hook(_channels_last)
                layer.register_forward_hook(_channels_first)
            return layer
        makers = {"depthwise": niff.NiffDepthwise, "full": niff.NiffFull, "split": niff.NiffSplit}
        channels = (p.channels,) if self.kind == "depthwise" else (p.channels, p.channels_out)
        filtering: niff.NiffDepthwise | niff.NiffFull | niff.NiffSplit = makers[self.kind](*channels, **settings)
        if self.engine is not None:
            filtering.fix_engine(self.engine)
        return filtering

    def choice(self, case: Case, module: nn.Module) -> Choice | None:
        engines = chosen_engines(case, module)
        return Choice(engines, replace(self, engine=engines[0])) if engines else None

    def likely(self, case: Case) -> Sequence[Niff]:
        """Of a form that chooses the C kernel, where the layer has it, on its features too where they are kept."""
        form = form_of(self.kind, self.form)
        if form.engine != "auto":
            return (self,)
        engines = {*engines_of(self.kind, form.keeps_filter)}
        return [replace(self, engine=engine) for engine in sorted(engines & {*IN_C} or engines)]

    def reference(self, case: Case, state: Mapping[str, Tensor], x: Tensor) -> Tensor:
        return evaluate(self.kind, state, x, str(case.option("grid")) if "grid" in self.options else "paper")


class NiffInTriton(Niff):
    """In a form that float64 does not have."""

    dtypes: ClassVar[frozenset[str]] = Niff.dtypes - {"float64"}


def evaluate(kind: str, state: Mapping[str, Tensor], x: Tensor, grid: str) -> Tensor:
    """One layer from the definition of its filter, whatever its form; ``state`` is its state dict."""
    import torch

    from niffbench.operators.kit import filtered

    if kind != "pointwise":
        height, width = x.shape[-2:]
        planes = (x.shape[1], -1) if kind == "full" else (x.shape[1],)
        x = filtered(x, _filter(state, height, width, grid).view(*planes, height, width))
    return torch.einsum("bihw,oi->bohw", x, state["weight"]) if kind in ("pointwise", "split") else x


def chosen_engines(case: Case, module: nn.Module) -> tuple[str, ...]:
    """The engine of each layer of ``module`` that chooses one, in their order; none while any has not chosen."""
    from niffbench.niff.networks import choosing_layers

    engines: list[str] = []
    for layer in choosing_layers(module):
        chosen = layer.chosen
        if chosen is None and case.execution == "compiled":
            chosen = layer.when_compiled()
        if chosen is None:
            return ()
        engines.append(chosen)
    return tuple(engines)


def _channels_last(_: nn.Module, inputs: tuple[Tensor]) -> Tensor:
    return inputs[0].permute(0, 2, 3, 1)


def _channels_first(_: nn.Module, __: tuple[Tensor], output: Tensor) -> Tensor:
    return output.permute(0, 3, 1, 2)


def _filter(state: Mapping[str, Tensor], height: int, width: int, grid: str) -> Tensor:
    """W at every frequency in unshifted order, ``(planes, height, width)``, point by point from its definition.

    Coordinates of shifted index i on an axis of n points: i − n/2 on the paper's grid, i − ⌊n/2⌋ on the centred
    one; channel 0 runs along the width. Two MLPs, SiLU between their layers.
    """
    import torch

    like = state["generator.weight1"]
    row, column = (
        (torch.arange(n, dtype=like.dtype, device=like.device) + n // 2) % n
        - (n / 2 if grid == "paper" else n // 2)
        for n in (height, width)
    )
    here = torch.stack((column.repeat(height), row.repeat_interleave(width)))
    depth = sum(name.startswith("generator.weight") for name in state)
    parts = []
    for part in (0, 1):
        values = here
        for layer in range(1, depth + 1):
            weight, bias = state[f"generator.weight{layer}"][part], state[f"generator.bias{layer}"][part]
            values = weight @ values + bias[:, None]
            if layer < depth:
                values = values * torch.sigmoid(values)
        parts.append(values)
    return torch.complex(*parts).view(-1, height, width)


OPERATORS = tuple(
    (NiffInTriton if form.engine == "triton" else Niff)(
        name=f"niff-{kind}/{form.name}",
        family="niff",
        summary=f"NIFF {kind}: {form.description}",
        boundary="none" if kind == "pointwise" else "circular",
        options=_OPTIONS[kind],
        kind=kind,
        form=form.name,
    )
    for kind, forms in FORMS.items()
    for form in forms
)
