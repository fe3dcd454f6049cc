"""State dicts laid out like the published code's, loaded into these layers."""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from niffbench.niff.filters import FilterGenerator
from niffbench.niff.layers import NiffDepthwise, SpectralLayer

_PARTS = ("real", "imag")


def load_published(layer: SpectralLayer, state_dict: Mapping[str, Tensor]) -> None:
    """Copy published weights into ``layer``, in place.

    Keys are those of the published modules: ``mlp_real.layer_mpl1.weight`` of shape ``(out, in, 1, 1)`` and so
    on, ``mlp_imag`` likewise. The published code shifts batch and channels together with the frequencies, so
    its channel ``c`` meets filter plane ``(c + C // 2) % C``: the planes are permuted on the way in (NIFF,
    quirk 1), and the layer then reproduces the published output.

    Raises:
        ValueError: if the keys or shapes are those of another layer, MLP or channel count; the layer is then
            left as it was.
    """
    if not isinstance(layer, NiffDepthwise):
        raise ValueError(f"no published layout is known for {type(layer).__name__}")
    _copy(_filter_weights(layer.generator, state_dict, prefix=""), extra=_foreign(layer, state_dict))


def _foreign(layer: NiffDepthwise, state_dict: Mapping[str, Tensor]) -> list[str]:
    pattern = re.compile(rf"mlp_(real|imag)\.layer_mpl[1-{layer.generator.depth}]\.(weight|bias)")
    return [key for key in state_dict if not pattern.fullmatch(key)]


def _filter_weights(
    generator: FilterGenerator, state_dict: Mapping[str, Tensor], prefix: str
) -> list[tuple[nn.Parameter, Tensor]]:
    """Each parameter of a generator with its new value."""
    pairs: list[tuple[nn.Parameter, Tensor]] = []
    for index in range(1, generator.depth + 1):
        for name in ("weight", "bias"):
            parameter = generator.get_parameter(f"{name}{index}")
            tail = (1, 1) if name == "weight" else ()
            shape = (*parameter.shape[1:], *tail)
            keys = [f"{prefix}mlp_{part}.layer_mpl{index}.{name}" for part in _PARTS]
            value = torch.stack([_entry(state_dict, key, shape).reshape(parameter.shape[1:]) for key in keys])
            if index == generator.depth:
                value = _unshifted(value, generator.shape)
            pairs.append((parameter, value))
    return pairs


def _unshifted(value: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Reorder the planes of a last layer, ``(2, planes, …)``, so that channel ``c`` meets plane ``c``."""
    planes = value.reshape(2, *shape, *value.shape[2:])
    shifts = tuple(-(size // 2) for size in shape)
    dimensions = tuple(range(1, 1 + len(shape)))
    return torch.roll(planes, shifts, dimensions).flatten(1, len(shape))


def _entry(state_dict: Mapping[str, Tensor], key: str, shape: tuple[int, ...]) -> Tensor:
    if key not in state_dict:
        raise ValueError(f"this checkpoint is of another architecture: it lacks {key!r}")
    found = state_dict[key]
    if tuple(found.shape) != shape:
        raise ValueError(
            f"this checkpoint is of another architecture: {key!r} has shape {tuple(found.shape)}, expected {shape}"
        )
    return found


def _copy(pairs: list[tuple[nn.Parameter, Tensor]], extra: list[str]) -> None:
    if extra:
        raise ValueError(f"this checkpoint is of another architecture: it also holds {extra[0]!r}")
    with torch.no_grad():
        for parameter, value in pairs:
            parameter.copy_(value)
