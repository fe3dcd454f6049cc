"""State dicts: NIFF layers recognised by their keys, and the published code's layout loaded into these layers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import isqrt

import torch
from torch import Tensor, nn

from niffbench.niff.catalogue import HIDDEN_WIDTHS
from niffbench.niff.depthwise import NiffDepthwise
from niffbench.niff.filters import FilterGenerator, written
from niffbench.niff.full import NiffFull
from niffbench.niff.layer import FilteringLayer, SpectralLayer
from niffbench.niff.pointwise import NiffPointwise
from niffbench.niff.split import NiffSplit


def load_published(layer: SpectralLayer, state_dict: Mapping[str, Tensor]) -> None:
    """Copy published weights into ``layer``, in place; it then reproduces the published layer's output.

    Keys are those of the published modules: ``mlp_real.layer_mpl1.weight`` of shape ``(out, in, 1, 1)`` and so
    on, ``mlp_imag`` likewise; ``mlp.weight`` of shape ``(out, in)`` for pointwise; both, with prefixes ``0.`` and
    ``1.``, for split. The published code shifts batch and channels together with the frequencies, so its
    channel ``c`` meets filter plane ``(c + C // 2) % C``, on the output side too: planes, and the channel map of
    split, are permuted on the way in.

    Raises:
        ValueError: if the keys or shapes are those of another layer, MLP or channel count, or weights of ``layer``
            are made of others (parametrized, say); the layer is then left as it was.
    """
    entries = list(_entries(layer))
    wanted = {key for entry in entries for key in entry.keys}
    missing = sorted(wanted - set(state_dict))
    extra = sorted(set(state_dict) - wanted)
    if missing or extra:
        what = f"lacks {missing[0]!r}" if missing else f"also holds {extra[0]!r}"
        raise ValueError(f"this checkpoint is of another architecture than {_describe(layer)}: it {what}")
    values = []
    for entry in entries:
        for key in entry.keys:
            if tuple(state_dict[key].shape) != entry.shape:
                raise ValueError(
                    f"this checkpoint is of another architecture than {_describe(layer)}: {key!r} has shape "
                    f"{tuple(state_dict[key].shape)} where {entry.shape} is expected"
                )
        values.append(entry.value(state_dict))
    with torch.no_grad():
        for entry, value in zip(entries, values, strict=True):
            entry.parameter.copy_(value)


@dataclass(frozen=True)
class _Entry:
    """Where one parameter's value stands in a published state dict.

    ``keys`` are stacked if there are several (the real and the imaginary MLP), each of ``shape``; ``channels`` is
    the shape over which the published order is shifted, starting at dimension ``first`` of the parameter.
    """

    parameter: nn.Parameter
    keys: tuple[str, ...]
    shape: tuple[int, ...]
    channels: tuple[int, ...] = ()
    first: int = 0

    def value(self, state_dict: Mapping[str, Tensor]) -> Tensor:
        value = torch.stack([state_dict[key] for key in self.keys]).reshape(self.parameter.shape)
        if not self.channels:
            return value
        before = self.parameter.shape[: self.first]
        shifts = tuple(-(size // 2) for size in self.channels)
        dimensions = tuple(range(self.first, self.first + len(self.channels)))
        by_channel = value.reshape(*before, *self.channels, -1)
        return torch.roll(by_channel, shifts, dimensions).reshape(self.parameter.shape)


def _entries(layer: SpectralLayer) -> Iterator[_Entry]:
    if isinstance(layer, NiffPointwise):
        yield _Entry(written(layer, "weight"), ("mlp.weight",), tuple(layer.weight.shape))
        return
    if isinstance(layer, FilteringLayer):
        yield from _generator_entries(layer.generator, "0." if isinstance(layer, NiffSplit) else "")
    if isinstance(layer, NiffSplit):
        shape = tuple(layer.weight.shape)
        yield _Entry(written(layer, "weight"), ("1.mlp.weight",), shape, channels=shape)


def _generator_entries(generator: FilterGenerator, prefix: str) -> Iterator[_Entry]:
    for index in range(1, generator.depth + 1):
        channels = generator.shape if index == generator.depth else ()
        for name, tail in (("weight", (1, 1)), ("bias", ())):
            parameter = written(generator, f"{name}{index}")
            keys = tuple(f"{prefix}mlp_{part}.layer_mpl{index}.{name}" for part in ("real", "imag"))
            yield _Entry(parameter, keys, (*parameter.shape[1:], *tail), channels, first=1)


def _describe(layer: SpectralLayer) -> str:
    mlp = f" with the {layer.generator.mlp} MLP" if isinstance(layer, FilteringLayer) else ""
    return f"{type(layer).__name__}({layer.extra_repr()}){mlp}"


@dataclass(frozen=True)
class Recognised:
    """The layers with a filter in a state dict, by name.

    Attributes:
        guessed: those that may be depthwise or full: no normalisation tells, or the MLP says otherwise.
        unclear: those that it does not say enough of; they are left out.
    """

    layers: Mapping[str, FilteringLayer]
    guessed: tuple[str, ...]
    unclear: tuple[str, ...]


def recognise(state_dict: Mapping[str, Tensor]) -> Recognised:
    """Build every NIFF layer with a filter whose weights a state dict holds, in our layout or the published one.

    The MLP is told by its widths, a split layer by the matrix that it has besides, a depthwise layer, and a full
    one with as many planes, by the channels of the normalisation after it. Where none follows, one with the tiny
    MLP, as published full layers have, is taken for a full one, else for a depthwise one. Of such a full one the
    channels that come in are taken to be as many as go out, and where the planes are no square it is unclear.
    Unless both say the same it is a guess. Grids are taken for the paper's.

    Raises:
        ValueError: for weights that look like a layer's and are not.
    """
    layers: dict[str, FilteringLayer] = {}
    guessed, unclear = [], []
    for key in state_dict:
        for weight, outputs in _WEIGHTS.items():
            mark = weight.format(1)
            if key != mark and not key.endswith(f".{mark}"):
                continue
            prefix = key.removesuffix(mark)
            widths: list[int] = []
            while (weights := state_dict.get(prefix + weight.format(len(widths) + 1))) is not None:
                widths.append(weights.shape[outputs] if weights.dim() > outputs else 0)
            try:
                name, layer, is_guess = _layer(state_dict, prefix, tuple(widths), published=outputs == 0)
            except (RuntimeError, IndexError, KeyError) as error:
                reason = (str(error).strip().splitlines() or [""])[-1].strip()
                raise ValueError(
                    f"'{prefix.removesuffix('.')}' looks like a NIFF layer, but is none: {reason}"
                ) from error
            if layer is None:
                unclear.append(name)
            else:
                layers[name] = layer
                guessed += [name] if is_guess else []
    return Recognised(layers, tuple(guessed), tuple(unclear))


def is_of_filter(key: str) -> bool:
    """Whether a state dict with ``key`` holds a layer with a filter, in our layout or the published one."""
    return f".{key}".endswith(tuple(f".{weight.format(1)}" for weight in _WEIGHTS))


_WEIGHTS = {"generator.weight{}": 1, "mlp_real.layer_mpl{}.weight": 0}
"""The weights of an MLP by their number, in our layout and the published one → the dimension of their outputs."""


def _layer(
    state_dict: Mapping[str, Tensor], prefix: str, widths: tuple[int, ...], *, published: bool
) -> tuple[str, FilteringLayer | None, bool]:
    """Name and layer of the MLP with its weights after ``prefix``, and whether its kind is a guess.

    None for a layer whose channels are not clear.
    """
    name = prefix.removesuffix(".")
    mlp = next((mlp for mlp, hidden in HIDDEN_WIDTHS.items() if hidden == widths[:-1]), None)
    if mlp is None:
        raise ValueError(f"'{name}' looks like a NIFF layer, but no filter MLP has the widths {widths[:-1]}")
    planes = widths[-1]
    mixing = state_dict.get(f"{prefix}weight")
    if published and prefix.endswith("0."):
        mixing = state_dict.get(f"{prefix[:-2]}1.mlp.weight")
        if mlp == "tiny" and mixing is not None and mixing.shape[-1:] != (planes,):
            mixing = None  # Of a pointwise layer behind a full one.
        prefix = prefix[:-2] if mixing is not None else prefix
        name = prefix.removesuffix(".")
    if mixing is not None and mixing.dim() != 2:
        raise ValueError(f"'{name}' looks like a NIFF layer, but what mixes its channels is no matrix")
    if planes == 0 or (mixing is not None and mixing.numel() == 0):
        raise ValueError(f"'{name}' looks like a NIFF layer, but has no channels")
    layer: FilteringLayer | None
    after = _normalised_after(state_dict, name)
    known = after is not None and planes % after == 0
    if mixing is not None:
        layer = NiffSplit(planes, mixing.shape[0], mlp=mlp)
    elif after is not None and known:
        layer = NiffDepthwise(planes, mlp=mlp) if after == planes else NiffFull(planes // after, after, mlp=mlp)
    elif mlp == "tiny":
        side = isqrt(planes)
        layer = NiffFull(side, side) if side * side == planes else None
    else:
        layer = NiffDepthwise(planes, mlp=mlp)
    if layer is None:
        return name, None, True
    own = {key.removeprefix(prefix): value for key, value in state_dict.items() if key.startswith(prefix)}
    if not published:  # within whatever else stands beside them
        own = {key: value for key, value in own.items() if key == "weight" or key.startswith("generator.")}
    for key, value in own.items():
        if not value.is_floating_point():
            raise ValueError(f"'{prefix}{key}' is {value.dtype}, and a weight should be of floating-point numbers")
    if published:
        load_published(layer, own)
    else:
        layer.load_state_dict(own)
    return name, layer, mixing is None and not (known and (after == planes) == (mlp != "tiny"))


def _normalised_after(state_dict: Mapping[str, Tensor], name: str) -> int | None:
    """Channels of the normalisation that comes next in the module that the layer is in; None where none does.

    By the order in which torch writes weights; where they are sorted by name, a bias comes first.
    """
    keys = list(state_dict)
    after = 1 + max(place for place, key in enumerate(keys) if key.startswith(f"{name}." if name else ""))
    beside = keys[after].rpartition(".")[0] if after < len(keys) else ""
    expected = [f"{beside}.weight", f"{beside}.bias"]
    if keys[after : after + 2] != expected or beside.rpartition(".")[0] != name.rpartition(".")[0]:
        return None
    weight, bias = (state_dict[key] for key in expected)
    return len(weight) or None if weight.dim() == 1 and weight.shape == bias.shape else None
