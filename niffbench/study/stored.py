"""Networks by name, and from files: trained weights are read without running anything that the file holds."""

from __future__ import annotations

import argparse
import codecs
import re
import zipfile
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from functools import partial
from pathlib import Path, PosixPath
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from niffbench.errors import did_you_mean
from niffbench.niff import networks
from niffbench.niff.catalogue import NETWORKS, execution_of
from niffbench.niff.checkpoint import is_of_filter, load_published, recognise
from niffbench.niff.layer import FilteringLayer
from niffbench.niff.networks import Rule
from niffbench.operators.module import UserNetwork, users_code
from niffbench.study import digits
from niffbench.study.filters import natural_noise
from niffbench.suite import UserModule, nameless

LARGEST_FILE = 2 * 2**30
"""Bytes; the largest network of the catalogue has a quarter of that."""

MOST_FOLDS = 20
LARGEST_SIDE = 8192
"""Of images, as ``--size`` takes it."""

_PREFIX = "digits-"


@dataclass(frozen=True)
class Checkpoint:
    """Weights from the file ``path``, and the name of their network if the file says it.

    ``chosen`` says which of several that it holds they are; empty of one alone. ``size`` is the side of the
    images that the network was trained on, ``fold`` the number from 0, and the number of all, of the fold of the
    digits that it was not trained on, if the file says it.
    """

    path: Path
    state: Mapping[str, Tensor]
    network: str | None
    chosen: str = ""
    size: int | None = None
    fold: tuple[int, int] | None = None


def names() -> tuple[str, ...]:
    """Every network that :func:`build` knows by a name of its own."""
    return (*NETWORKS, *(_PREFIX + variant for variant in digits.VARIANTS))


def build(
    name: str,
    *,
    execution: str = "rfft",
    keep: Sequence[str] = (),
    replaced: Mapping[str, str] | None = None,
    size: int = 224,
    classes: int = 1000,
) -> nn.Module:
    """A network with fresh weights: of the catalogue, one for digits, or anybody's, converted.

    ``torchvision:NAME``, ``timm:NAME`` and ``my_nets.py:NAME`` are converted as ``replaced`` says
    (:data:`niffbench.niff.catalogue.REPLACEABLE`); biases stay.

    ``NAME-full`` and ``NAME-split`` convert torchvision's network NAME: dense convolutions of stride 1 become full
    or split NIFF layers, the others as in MobileNet-v2. The networks for digits have a fixed number of classes.

    Args:
        keep: name patterns of layers to leave alone.
        replaced: what becomes of the layers of anybody's network; of others that is known.
        size: side of the square input it is meant for.

    Raises:
        ValueError: for an unknown name, execution or pattern, a network without replaceable convolution, or a
            size that is smaller than the network's stride or that it cannot take.
    """
    if lack := nameless(name):
        raise ValueError(f"'{name}' {lack}")
    if ":" in name:
        return _anybodys(name, execution, keep, replaced or {}, size, classes)
    if replaced:
        raise ValueError(
            f"{name}: what becomes of its layers is known; --replace is for torchvision:NAME and the like"
        )
    if name.startswith(_PREFIX) and name in names():
        if keep:
            raise ValueError(f"{name} is made as it is, not converted: there is nothing to keep")
        variant = name.removeprefix(_PREFIX)
        model = digits.network(variant)
        networks.check_input(model, size, size)
        return networks.execute_as(model, execution) if variant == "niff" else model
    base, _, variant = name.rpartition("-")
    if name in NETWORKS or variant not in ("full", "split") or base not in _bases():
        if name not in NETWORKS:
            folder = " (it is a folder: name a file in it)" if Path(name).is_dir() else ""
            raise ValueError(f"no network named '{name}'{folder}{did_you_mean(name, names())}")
        return networks.build(name, execution=execution, keep=keep, input_size=size, num_classes=classes)
    import torchvision.models

    model = torchvision.models.get_model(base, weights=None, num_classes=classes)
    rule = Rule(spatial=variant, keep=tuple(keep), forms=execution_of(execution), bias=False)
    sizes = networks.feature_maps(model, size, size)
    return networks.level(networks.convert(model, rule, sizes), sizes)


def _anybodys(
    name: str, execution: str, keep: Sequence[str], replaced: Mapping[str, str], size: int, classes: int
) -> nn.Module:
    row = UserModule(operator=name, source=name, folders=(str(Path.cwd()),), network=True)
    with users_code(name):
        model = UserNetwork.original(row, classes)
        sizes = networks.feature_maps(model, size, size) if replaced else {}
    if not replaced:
        return model
    rule = replace(networks.Rule.of(replaced, execution), keep=tuple(keep))
    return networks.level(networks.convert(model, rule, sizes), sizes)


def _bases() -> tuple[str, ...]:
    """torchvision's classifiers."""
    import torchvision.models

    return tuple(torchvision.models.list_models(module=torchvision.models))


def save(
    path: Path, network: str, model: nn.Module, size: int | None = None, fold: tuple[int, int] | None = None
) -> None:
    """Write the weights of ``model``, which :func:`build` calls ``network``, for :func:`read`.

    ``size`` and ``fold`` are those of :class:`Checkpoint`.
    """
    torch.save({"network": network, "size": size, "fold": fold, "state_dict": model.state_dict()}, path)


def read(path: Path) -> Checkpoint:
    """Weights from a file of ``torch.save``, of whichever version, or of safetensors.

    The state dict is found by what it is: of all mappings in the file whose values are all tensors, the one with
    the most. Nothing in the file is executed, and tensors land on the CPU.

    Raises:
        ValueError: for a file that is missing, too large, or holds no state dict. The message names the file.
    """
    content = _content(path)
    said = content if isinstance(content, Mapping) else {}
    network, size = said.get("network"), said.get("size")
    every = sorted(_state_dicts(content), key=lambda one: len(one[1]), reverse=True)
    if not every:
        raise ValueError(f"{path}: holds no state dict; save one with torch.save(model.state_dict(), FILE)")
    where, largest = every[0]
    state = {key: _checked(path, key, value) for key, value in _unwrapped(largest).items()}
    alike = [other for other, one in every[1:] if len(one) == len(largest)]
    return Checkpoint(
        path,
        state,
        network if isinstance(network, str) else None,
        f"'{where}', not '{alike[0]}'" if alike else "",
        size if isinstance(size, int) and 0 < size <= LARGEST_SIDE else None,
        _fold_in(said.get("fold")),
    )


def _fold_in(value: object) -> tuple[int, int] | None:
    """The fold that a file says, if it can be one."""
    match value:
        case (int(number), int(folds)) if 0 <= number < folds <= MOST_FOLDS:
            return number, folds
    return None


def _content(path: Path) -> object:
    """What a file holds, read by the reader that its first bytes ask for."""
    try:
        if not path.is_file():
            raise ValueError(f"{path}: is not a file")
        with path.open("rb") as file:
            head = file.read(len(_OLD))
        _check_size(path, zipped=head.startswith(_ZIP))
    except OSError as error:
        raise ValueError(f"{path}: cannot be read ({error.strerror})") from error
    except zipfile.BadZipFile as error:
        raise ValueError(f"{path}: is a damaged checkpoint ({error})") from error
    if head.startswith(_ZIP) or head == _OLD:
        return _unpickled(path)
    if path.suffix == ".safetensors" or head[8:9] == b"{":  # after the length of what describes them
        return _safe(path)
    raise ValueError(f"{path}: is not a checkpoint as torch.save or safetensors write it")


_ZIP = b"PK"
_OLD = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."
"""The first bytes of what torch.save wrote before 1.6: its magic number, pickled."""


def _check_size(path: Path, *, zipped: bool) -> None:
    """Raise ValueError for more than is read at once, unpacked."""
    size = path.stat().st_size
    if zipped and size <= LARGEST_FILE:
        with zipfile.ZipFile(path) as archive:
            size = max(size, sum(entry.file_size for entry in archive.infolist()))
    if size > LARGEST_FILE:
        raise ValueError(f"{path}: holds {size:,} bytes; checkpoints of up to {LARGEST_FILE:,} are read")


def _unpickled(path: Path) -> object:
    """By torch's reader of weights alone; namespaces, paths, dates and what is numpy's are let in."""
    types = [np.dtype(kind) for kind in ("f2", "f4", "f8", "i1", "i2", "i4", "i8", "u1", "?")]
    scalar, array = np.float64(0).__reduce__()[0], np.zeros(0).__reduce__()[0]
    allowed: list[Any] = [argparse.Namespace, codecs.encode, np.dtype, np.ndarray, *(type(one) for one in types)]
    allowed += [PosixPath, datetime, timedelta]
    for core in ("core", "_core"):
        allowed += [(scalar, f"numpy.{core}.multiarray.scalar"), (array, f"numpy.{core}.multiarray._reconstruct")]
    try:
        with torch.serialization.safe_globals(allowed):
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # The file may be hostile: torch's reader fails on one in a dozen ways.
        text = re.sub(r"\x1b\[[0-9;]*m", "", str(error)).strip()
        foreign = re.search(r"GLOBAL ([\w.]+)", text)
        if foreign is not None:
            raise ValueError(
                f"{path}: holds a {foreign[1]}, which is code and not data; save the weights alone, with "
                "torch.save(model.state_dict(), FILE)"
            ) from error
        if "TorchScript" in text or "locating file data.pkl" in text:
            raise ValueError(
                f"{path}: holds a program and not weights alone; save those with torch.save(model.state_dict(), F)"
            ) from error
        reason = text.partition("\n")[0][:200]
        raise ValueError(f"{path}: cannot be read as weights alone ({type(error).__name__}: {reason})") from error


def _safe(path: Path) -> object:
    try:
        from safetensors.torch import load_file
    except ImportError as error:
        raise ValueError(
            f"{path} needs safetensors, which is not installed: pip install 'niffbench[safetensors]'"
        ) from error
    try:
        return load_file(path)
    except Exception as error:
        raise ValueError(f"{path}: cannot be read ({type(error).__name__}: {str(error)[:200]})") from error


def _state_dicts(content: object) -> Iterator[tuple[str, dict[str, Tensor]]]:
    """The mappings from names to tensors in a nest of them, and where each is; the outer ones first.

    Not an optimiser's, which has numbers for names. Numpy's arrays of numbers are taken for tensors. What stands
    in several places is looked through once: the work is bounded by the file's size, however it is nested.
    """
    level, seen = [("", content)], set[int]()
    states: dict[int, dict[str, Tensor]] = {}
    for _ in range(_DEEPEST + 1):
        below: list[tuple[str, object]] = []
        for where, value in level:
            if (state := states.get(id(value))) is not None:
                yield where, state
            if id(value) in seen:
                continue
            seen.add(id(value))
            if isinstance(value, list | tuple):
                below += [(f"{where}[{place}]", one) for place, one in enumerate(value)]
            if not isinstance(value, Mapping):
                continue
            plain = {key: _as_tensor(one) for key, one in value.items() if key not in _BESIDE}
            if plain and all(isinstance(key, str) and isinstance(one, Tensor) for key, one in plain.items()):
                states[id(value)] = plain
                yield where, plain
            elif all(isinstance(key, str) for key in value):
                below += [(f"{where}.{key}".lstrip("."), one) for key, one in value.items()]
        level = below


def _as_tensor(value: Any) -> Any:
    return torch.as_tensor(value) if isinstance(value, np.ndarray) and value.dtype.kind in "biuf" else value


_DEEPEST = 8
_BESIDE = ("_metadata", "n_averaged")
"""What stands among the tensors of a state dict without being a weight: versions, a count of averages."""


def _unwrapped(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weights without what torch itself puts before names: torch.compile anywhere, DataParallel first."""
    plain = {key.replace("_orig_mod.", ""): value for key, value in state.items()}
    while plain and all(key.startswith("module.") for key in plain):
        plain = {key.removeprefix("module."): value for key, value in plain.items()}
    return plain


def _checked(path: Path, key: object, value: object) -> Tensor:
    """``value`` if it is an ordinary tensor of finite numbers; else ValueError."""
    if not isinstance(value, Tensor):
        raise ValueError(
            f"{path}: {str(key)[:100]!r} is no tensor; save one with torch.save(model.state_dict(), FILE)"
        )
    # An expanded tensor claims more numbers than are stored, and would take that much memory when looked at.
    if (
        value.layout != torch.strided
        or not value.is_cpu
        or value.numel() * value.element_size() > value.untyped_storage().nbytes()
    ):
        raise ValueError(f"{path}: {str(key)[:100]!r} is not an ordinary, dense tensor")
    if value.is_floating_point() and not bool(torch.isfinite(value).all()):
        raise ValueError(f"{path}: {str(key)[:100]!r} holds NaN or infinite values")
    return value


def restore(
    checkpoint: Checkpoint,
    name: str,
    *,
    execution: str = "rfft",
    keep: Sequence[str] = (),
    replaced: Mapping[str, str] | None = None,
    size: int = 224,
) -> nn.Module:
    """The network ``name`` with the weights of a file, whatever wrapper's words stand before their names.

    State dicts laid out like ours load as they are, and NIFF layers laid out like the published code's too. The
    classifier may be another one: no filter sees it, and where it does not fit it keeps its fresh weights. No
    memory is taken for weights of the shapes that the file asks for before they are known to be those it holds.

    Raises:
        ValueError: as :func:`build`, or for weights of another architecture. The message names the file.
    """
    make = partial(build, name, execution=execution, keep=keep, replaced=replaced, size=size)
    with _Unallocated():
        blueprint = make()
    classes = _classes(checkpoint.state, blueprint)
    if classes not in (None, _classes(blueprint.state_dict(), blueprint)):
        with _Unallocated():
            other = make(classes=classes)
        with suppress(ValueError):  # of the usual number of classes it may fit
            if _fitted(checkpoint, name, other).keys() >= set(_of_head(other, other.state_dict())):
                make, blueprint = partial(make, classes=classes), other
    _fitted(checkpoint, name, blueprint)
    model = make()
    model.load_state_dict(_fitted(checkpoint, name, model), strict=False)
    return model


def bare(checkpoint: Checkpoint, execution: str) -> nn.Module:
    """The NIFF layers that a file's names tell of, without the network around them.

    Raises:
        ValueError: for a file without any whose channels are clear, or an unknown execution.
    """
    path = checkpoint.path
    try:
        recognised = recognise(checkpoint.state)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    if not recognised.layers:
        what = "no NIFF layer with a filter"
        if recognised.unclear:
            what = f"only full layers whose channels its names do not tell, as {recognised.unclear[0]}"
        raise ValueError(f"{path}: holds {what}; --network says what it is of")
    return networks.execute_as(BareLayers(recognised.layers, recognised.guessed), execution)


class BareLayers(nn.Module):
    """Layers without a network: each is given noise of its own channels, of the input's batch and size.

    Attributes:
        guessed: those that may be depthwise or full: :class:`~niffbench.niff.checkpoint.Recognised`.
    """

    def __init__(self, layers: Mapping[str, FilteringLayer], guessed: tuple[str, ...] = ()) -> None:
        super().__init__()
        self.guessed = guessed
        for name, layer in layers.items():
            *parents, last = name.split(".")
            place: nn.Module = self
            for parent in parents:
                if not hasattr(place, parent):
                    place.add_module(parent, nn.Module())
                place = place.get_submodule(parent)
            place.add_module(last, layer)

    def forward(self, x: Tensor) -> Tensor:
        batch, _, height, width = x.shape
        for _, layer in networks.niff_layers(self):
            layer(natural_noise(layer.in_channels, height, width, batch=batch))
        return x


class _Unallocated(TorchFunctionMode):
    """The weights of modules made within have shapes and no memory.

    Not so what is made with other functions than theirs: a RegNet computes its widths in torch.
    """

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        given = dict(kwargs or {})
        if func is torch.empty:
            given["device"] = "meta"
        return func(*args, **given)


def _classes(state: Mapping[str, Tensor], model: nn.Module) -> int | None:
    """Rows of the last matrix, or convolution, in what the last child of ``model`` is called: its classifier."""
    last = _last_child(model)
    weights = [
        value
        for key, value in _aligned(state, set(model.state_dict())).items()
        if last is not None and key.startswith(f"{last}.") and key.endswith("weight") and value.dim() in (2, 4)
    ]
    return weights[-1].shape[0] or None if weights else None


def _fitted(checkpoint: Checkpoint, name: str, model: nn.Module) -> dict[str, Tensor]:
    """The weights laid out like those of ``model``, which may have no memory; ValueError if they do not fit."""
    path, own = checkpoint.path, _aligned(checkpoint.state, set(model.state_dict()))
    for prefix, layer in networks.niff_layers(model):
        ours = {f"{prefix}.{key}" for key in layer.state_dict()}
        theirs = {key: value for key, value in own.items() if key.startswith(f"{prefix}.")}
        if not theirs or theirs.keys() & ours:
            continue
        try:
            load_published(layer, {key.removeprefix(f"{prefix}."): value for key, value in theirs.items()})
        except ValueError as error:
            raise ValueError(f"{path}: {prefix}: {error}") from error
        own = {key: value for key, value in own.items() if key not in theirs}
        own |= {f"{prefix}.{key}": value for key, value in layer.state_dict().items()}
    wanted = model.state_dict()
    of_head = _of_head(model, (*wanted, *own))
    if any(key not in own or key not in wanted or own[key].shape != wanted[key].shape for key in of_head):
        if not own.keys() & of_head:  # it has another name there
            children = {child for child, _ in model.named_children()}
            own = {
                key: value
                for key, value in own.items()
                if key in wanted or key.partition(".")[0] in children or is_of_filter(key)
            }
        own = {key: value for key, value in own.items() if key not in of_head}
        wanted = {key: value for key, value in wanted.items() if key not in of_head}
    missing = [key for key in wanted if key not in own and not key.endswith(".num_batches_tracked")]
    extra = [key for key in own if key not in wanted]
    if missing or extra:
        what = f"lacks '{missing[0]}'" if missing else f"also holds '{extra[0][:100]}'"
        raise ValueError(f"{path}: is of another architecture than {name}: it {what}")
    for key, value in own.items():
        if value.shape != wanted[key].shape:
            raise ValueError(
                f"{path}: is of another architecture than {name}: '{key}' has shape {tuple(value.shape)} "
                f"where {tuple(wanted[key].shape)} is expected"
            )
        if value.is_floating_point() != wanted[key].is_floating_point():
            raise ValueError(f"{path}: '{key}' is {value.dtype} where {wanted[key].dtype} is expected")
    return own


def _aligned(state: Mapping[str, Tensor], wanted: Collection[str]) -> dict[str, Tensor]:
    """The weights without the words before their names after which most are those ``wanted``.

    A child that alone has another name there, and the same names below it, gets its name here. What does not begin
    with these words is no part of the network: a trainer's loss, say.
    """
    prefixes = {""}
    for key in state:
        words = key.split(".")
        prefixes |= {".".join(words[:depth]) + "." for depth in range(1, min(len(words), _DEEPEST))}

    def fitting(prefix: str) -> tuple[int, int]:
        return sum(key.startswith(prefix) and key[len(prefix) :] in wanted for key in state), -len(prefix)

    best = max(prefixes, key=fitting)
    aligned = {key.removeprefix(best): value for key, value in state.items() if key.startswith(best)}
    ours, theirs = _below(wanted), _below(aligned)
    lost, strange = ours.keys() - theirs.keys(), theirs.keys() - ours.keys()
    if len(lost) == len(strange) == 1 and ours[mine := lost.pop()] == theirs[other := strange.pop()]:
        aligned = {re.sub(rf"^{re.escape(other)}(?=\.)", mine, key): value for key, value in aligned.items()}
    return aligned


def _below(names: Iterable[str]) -> dict[str, set[str]]:
    """The children of a network, and the names of weights below each."""
    children: dict[str, set[str]] = {}
    for name in names:
        child, _, rest = name.partition(".")
        children.setdefault(child, set()).add(rest)
    return children


def _of_head(model: nn.Module, names: Iterable[str]) -> set[str]:
    """Of names of weights those in the last child of a network that has any, if that holds no filter."""
    last = _last_child(model)
    if last is None or any(isinstance(part, FilteringLayer) for part in model.get_submodule(last).modules()):
        return set()
    return {name for name in names if name.startswith(f"{last}.")}


def _last_child(model: nn.Module) -> str | None:
    """The last child with weights, of several."""
    children = [name for name, child in model.named_children() if any(True for _ in child.parameters())]
    return children[-1] if len(children) > 1 else None
