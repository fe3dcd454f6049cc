"""What filters are learned from real data: NIFF beside its 3×3 twin on digits, then truncated as it is."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass

from torch import nn

from niffbench.niff import networks
from niffbench.study import digits
from niffbench.study.filters import LayerStudy, study, with_truncated

IMAGES = 64
"""Test images on which the layers are looked at, unless another number is asked for."""


@dataclass(frozen=True)
class Training:
    """One trained network: ``accuracy`` is the share of test images named rightly, ``seconds`` wall time."""

    network: str
    parameters: int
    accuracy: float
    seconds: float
    epochs: int


@dataclass(frozen=True)
class Learned:
    """NIFF and its twin, and what truncation does to the trained network without training it again.

    Attributes:
        layers: the NIFF network's layers, looked at on test images.
        cut: accuracy with every filter cut to k×k, by k.
        advised: accuracy with the truncations that were found to be within the tolerance; None if there were none.
        networks: both networks by name.
    """

    niff: Training
    twin: Training
    layers: tuple[LayerStudy, ...]
    cut: Mapping[int, float]
    advised: float | None
    networks: Mapping[str, nn.Module]


def learn(
    recipe: digits.Recipe,
    tolerance: float,
    *,
    side: int = digits.SIDE,
    boundary: str = "circular",
    execution: str = "rfft",
    images: int = IMAGES,
    only: Collection[str] = (),
    on_epoch: Callable[[str, int], None] | None = None,
) -> Learned:
    """Train NIFF and its twin with ``recipe``, study NIFF's layers on test images, and truncate them.

    Args:
        tolerance, boundary, only: as :func:`niffbench.study.filters.study`.
        side: of the images.
        execution: the forms in which the trained layers are studied; training is in ``rfft``.
        on_epoch: told the variant and the number of its epochs done.

    Raises:
        ValueError: for an unknown execution.
        UsageError: if scikit-learn is not installed, or for a name in ``only`` that no layer has.
    """
    data = digits.load(side)
    trained = {}
    for variant in digits.VARIANTS:

        def done(epoch: int, _: float, variant: str = variant) -> None:
            if on_epoch is not None:
                on_epoch(variant, epoch)

        trained[variant] = digits.train(variant, data, recipe, done)
    model = networks.execute_as(trained["niff"].network, execution)
    layers = study(model, data.test_images[:images], tolerance, boundary=boundary, only=only)
    maps = networks.feature_maps(model, side, side)
    names = [name for name, _ in networks.niff_layers(model)]

    def accuracy(sides: Mapping[str, int]) -> float:
        return digits.accuracy(with_truncated(model, sides, maps, boundary=boundary), data)

    def largest(name: str) -> int:
        """The largest odd side that fits the layer's grid."""
        return (min(maps[name]) - 1) // 2 * 2 + 1

    sides = range(1, max(map(largest, names)) + 1, 2)
    advised = {layer.name: layer.truncation.side for layer in layers if layer.truncation.side is not None}
    return Learned(
        niff=_training(trained["niff"], recipe),
        twin=_training(trained["twin"], recipe),
        layers=layers,
        cut={side: accuracy({name: min(side, largest(name)) for name in names}) for side in sides},
        advised=accuracy(advised) if advised else None,
        networks={f"digits-{variant}": one.network for variant, one in trained.items()},
    )


def _training(one: digits.Trained, recipe: digits.Recipe) -> Training:
    return Training(f"digits-{one.variant}", one.parameters, one.accuracy, one.seconds, recipe.epochs)
