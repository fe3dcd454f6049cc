"""Effective filter size of a network's NIFF layers, and what truncating them would cost and save."""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from niffbench.case import Case, Problem
from niffbench.errors import UsageError, did_you_mean
from niffbench.operators.catalogue import catalogue
from niffbench.study import effective
from niffbench.study.effective import FilterSize, Truncation

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from niffbench.niff.layer import FilteringLayer

PICTURED = 3
"""Kernels of a layer that are kept to be drawn, beside the mean of all their magnitudes."""


@dataclass(frozen=True)
class LayerStudy:
    """One layer of a network, on the grid it runs at.

    Attributes:
        kind, form: which NIFF layer it is, and how it executes.
        size: kernel mass and principal components.
        truncation: the smallest k×k convolution within the tolerance, on the layer's own input.
        flops_form: real FLOPs of a forward pass of the whole batch in the layer's form, by its closed form.
        flops_truncated: the same as a k×k convolution; None where no k is within the tolerance.
        pictures: ``(1 + n, H, W)``: the mean of |k| over all kernels, then the ``n`` kernels of largest norm.
    """

    name: str
    kind: str
    form: str
    size: FilterSize
    truncation: Truncation
    flops_form: int
    flops_truncated: int | None
    pictures: NDArray[np.float64]

    @property
    def saving(self) -> float | None:
        """The share of the form's FLOPs that truncation saves; negative where it costs more."""
        if self.flops_truncated is None:
            return None
        return 1 - self.flops_truncated / self.flops_form

    @property
    def pays(self) -> bool:
        """Whether a truncated convolution is within the tolerance and cheaper in FLOPs."""
        return self.saving is not None and self.saving > 0


def study(
    model: nn.Module,
    x: Tensor,
    tolerance: float,
    *,
    boundary: str = "circular",
    only: Collection[str] = (),
    on_layer: Callable[[str, int], None] | None = None,
) -> tuple[LayerStudy, ...]:
    """Look at the layers of ``model`` that have a filter while it runs once on ``x``, in the network's order.

    A layer that evaluation does not reach, as an auxiliary classifier's, runs on no grid and is left out.

    Args:
        x: a batch of the network's input; FLOPs are of that batch.
        tolerance: relative L2 error of a layer's output that a truncated kernel may make.
        boundary: of the truncated convolution, ``circular`` or ``zeros``.
        only: names of the layers to look at; all if empty.
        on_layer: told each layer's name, and how many there are, before it is looked at.

    Raises:
        ValueError: if no layer has a filter or evaluation reaches none, or what a layer computes is not finite.
        UsageError: for a name in ``only`` that no such layer has.
    """
    layers = effective.filtering_layers(model)
    for name in only:
        if name not in layers:
            raise UsageError(f"no layer with a filter is named '{name}'{did_you_mean(name, layers)}")
    chosen = {name: layer for name, layer in layers.items() if not only or name in only}
    studies: dict[str, LayerStudy] = {}

    def look(name: str) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], None]:
        def hook(_: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            if not bool(torch.isfinite(output).all()):
                raise ValueError(f"what {name} computes is not finite: with these weights the network overflows")
            if on_layer is not None:
                on_layer(name, len(chosen))
            studies[name] = _study_layer(name, chosen[name], inputs[0], tolerance, boundary)

        return hook

    handles = [layer.register_forward_hook(look(name)) for name, layer in chosen.items()]
    modes = [(module, module.training) for module in model.modules()]
    try:
        model.eval()
        with torch.no_grad():
            model(x)
    finally:
        for handle in handles:
            handle.remove()
        for module, mode in modes:
            module.training = mode
    if not studies:
        raise ValueError(f"evaluation reaches none of {', '.join(chosen)}")
    return tuple(studies[name] for name in chosen if name in studies)


def _study_layer(name: str, layer: FilteringLayer, x: Tensor, tolerance: float, boundary: str) -> LayerStudy:
    height, width = x.shape[-2:]
    truncation = effective.smallest_truncation(layer, x, tolerance, boundary=boundary)
    return LayerStudy(
        name=name,
        kind=layer.kind,
        form=layer.form,
        size=effective.analyse_layer(layer, height, width),
        truncation=truncation,
        flops_form=_form_flops(layer, x),
        flops_truncated=None if truncation.side is None else truncation.flops_then * len(x),
        pictures=pictures_of(effective.kernels_of(layer, height, width)),
    )


def _form_flops(layer: FilteringLayer, x: Tensor) -> int:
    """Forward FLOPs by the closed form of the operator that this layer is, or that it chose to be when called."""
    operator = catalogue()[f"niff-{layer.kind}/{layer.form}"]
    settings = {"mlp": layer.generator.mlp, "grid": layer.generator.grid}
    options = {name: settings.get(name, option.default) for name, option in operator.options.items()}
    batch, _, height, width = x.shape
    problem = Problem(batch, layer.in_channels, layer.out_channels, height, width)
    case = Case(operator.name, problem, options=tuple(sorted(options.items())))
    choice = operator.choice(case, layer)
    cost = (operator if choice is None else choice.operator).cost(case)
    assert cost is not None
    return cost.flops("forward")


def pictures_of(kernels: Tensor) -> NDArray[np.float64]:
    """The mean of |k| over kernels ``(N, H, W)``, then those of largest norm; ``(1 + n, H, W)``."""
    strongest = kernels.flatten(1).norm(dim=1).topk(min(PICTURED, len(kernels))).indices
    pictures: NDArray[np.float64] = (
        torch.cat((kernels.abs().mean(0, keepdim=True), kernels[strongest])).double().cpu().numpy()
    )
    return pictures


def with_truncated(
    model: nn.Module, sides: Mapping[str, int], maps: Mapping[str, tuple[int, int]], *, boundary: str = "circular"
) -> nn.Module:
    """A copy of ``model`` in which the named layers are k×k convolutions; ``sides`` names k, ``maps`` the grids.

    Raises:
        ValueError: for a side that is even or does not fit its grid.
    """
    changed = copy.deepcopy(model)
    layers = effective.filtering_layers(model)
    for name, side in sides.items():
        changed.set_submodule(name, effective.truncated(layers[name], side, *maps[name], boundary=boundary))
    return changed


def natural_noise(channels: int, height: int, width: int, *, batch: int = 1, seed: int = 0) -> Tensor:
    """Gaussian noise with the amplitude spectrum 1/f of photographs, zero mean, unit variance; ``(B, C, H, W)``.

    Natural images have it on average (D. J. Field, "Relations between the statistics of natural images and the
    response properties of cortical cells", J. Opt. Soc. Am. A 4, 1987), white noise does not: a filter's
    far taps matter more for what varies slowly.
    """
    generator = torch.Generator().manual_seed(seed)
    white = torch.randn(batch, channels, height, width, generator=generator, dtype=torch.float64)
    rows, columns = torch.fft.fftfreq(height)[:, None], torch.fft.rfftfreq(width)[None, :]
    frequency = torch.hypot(rows, columns).double()
    frequency[0, 0] = torch.inf  # no mean
    images = torch.fft.irfft2(torch.fft.rfft2(white) / frequency, s=(height, width))
    scaled: Tensor = images / images.std(dim=(2, 3), keepdim=True)
    return scaled.float()
