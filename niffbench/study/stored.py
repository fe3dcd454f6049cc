"""Networks by name, and from files: trained weights are read without running anything that the file holds."""

from __future__ import annotations

import zipfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from niffbench.errors import did_you_mean
from niffbench.niff import networks
from niffbench.niff.catalogue import NETWORKS, execution_of
from niffbench.niff.checkpoint import load_published
from niffbench.niff.networks import Rule
from niffbench.study import digits

LARGEST_FILE = 2 * 2**30
"""Bytes; the largest network of the catalogue has a quarter of that."""

_PREFIX = "digits-"
_WRAPPERS = ("state_dict", "model")
_PARALLEL = "module."  # what nn.DataParallel puts before every name


@dataclass(frozen=True)
class Checkpoint:
    """Weights from the file ``path``, and the name of their network if the file says it."""

    path: Path
    state: Mapping[str, Tensor]
    network: str | None


def names() -> tuple[str, ...]:
    """Every network that :func:`build` knows by a name of its own."""
    return (*NETWORKS, *(_PREFIX + variant for variant in digits.VARIANTS))


def build(
    name: str, *, execution: str = "rfft", keep: Sequence[str] = (), size: int = 224, classes: int = 1000
) -> nn.Module:
    """A network with fresh weights: of the catalogue, one for digits, or any of torchvision's converted.

    ``NAME-full`` and ``NAME-split`` convert torchvision's network NAME: dense convolutions of stride 1 become full
    or split NIFF layers, the others as in MobileNet-v2. The networks for digits have a fixed number of classes.

    Args:
        keep: name patterns of layers to leave alone.
        size: side of the square input it is meant for.

    Raises:
        ValueError: for an unknown name, execution or pattern, a network without replaceable convolution, or a
            size that is smaller than the network's stride or that it cannot take.
    """
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
            raise ValueError(f"no network named '{name}'{did_you_mean(name, names())}")
        return networks.build(name, execution=execution, keep=keep, input_size=size, num_classes=classes)
    import torchvision.models

    model = torchvision.models.get_model(base, weights=None, num_classes=classes)
    converted = networks.convert(model, Rule(spatial=variant, keep=tuple(keep), forms=execution_of(execution)))
    return networks.level(converted, networks.feature_maps(converted, size, size))


def _bases() -> tuple[str, ...]:
    """torchvision's classifiers."""
    import torchvision.models

    return tuple(torchvision.models.list_models(module=torchvision.models))


def save(path: Path, network: str, model: nn.Module) -> None:
    """Write the weights of ``model``, which :func:`build` calls ``network``, for :func:`read`."""
    torch.save({"network": network, "state_dict": model.state_dict()}, path)


def read(path: Path) -> Checkpoint:
    """Weights from a file of ``torch.save``: a state dict, or one under ``state_dict`` or ``model``.

    It is loaded with ``weights_only``, so that nothing in it is executed, and onto the CPU.

    Raises:
        ValueError: for a file that is missing, too large, or anything else than that. The message names the file.
    """
    _check_archive(path)
    try:
        found = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # The file may be hostile: torch's reader fails on one in a dozen ways.
        reason = str(error).strip().partition("\n")[0][:200]
        raise ValueError(f"{path}: cannot be read as weights alone ({type(error).__name__}: {reason})") from error
    network = None
    if isinstance(found, Mapping):
        named = found.get("network")
        network = named if isinstance(named, str) else None
        wrapped = next((found[key] for key in _WRAPPERS if isinstance(found.get(key), Mapping)), None)
        found = found if wrapped is None else wrapped
    if not isinstance(found, Mapping) or not found:
        raise ValueError(f"{path}: holds no state dict; save one with torch.save(model.state_dict(), FILE)")
    state = {str(key).removeprefix(_PARALLEL): _checked(path, key, value) for key, value in found.items()}
    return Checkpoint(path, state, network)


def _check_archive(path: Path) -> None:
    """Raise ValueError unless ``path`` is an archive as torch writes since 1.6, of a bearable size unpacked."""
    try:
        if not path.is_file():
            raise ValueError(f"{path}: is not a file")
        size = path.stat().st_size
        if size <= LARGEST_FILE:
            with zipfile.ZipFile(path) as archive:
                size = max(size, sum(entry.file_size for entry in archive.infolist()))
    except OSError as error:
        raise ValueError(f"{path}: cannot be read ({error.strerror})") from error
    except zipfile.BadZipFile as error:
        raise ValueError(f"{path}: is not a checkpoint as torch.save writes it (a zip archive)") from error
    if size > LARGEST_FILE:
        raise ValueError(f"{path}: holds {size:,} bytes; checkpoints of up to {LARGEST_FILE:,} are read")


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
    checkpoint: Checkpoint, name: str, *, execution: str = "rfft", keep: Sequence[str] = (), size: int = 224
) -> nn.Module:
    """The network ``name`` with the weights of a file.

    State dicts laid out like ours load as they are, and NIFF layers laid out like the published code's too.
    No memory is taken for weights of the shapes that the file asks for before they are known to be those it holds.

    Raises:
        ValueError: as :func:`build`, or for weights of another architecture. The message names the file.
    """
    classes = _classes(checkpoint.state)
    sized = {"size": size} if classes is None else {"size": size, "classes": classes}
    with _Unallocated():
        blueprint = build(name, execution=execution, keep=keep, **sized)
    _fitted(checkpoint, name, blueprint)
    model = build(name, execution=execution, keep=keep, **sized)
    model.load_state_dict(_fitted(checkpoint, name, model))
    return model


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


def _classes(state: Mapping[str, Tensor]) -> int | None:
    """Rows of the last matrix with a bias: the classifier's in every network here."""
    weights = [key for key, value in state.items() if value.dim() == 2 and key.endswith(".weight")]
    biased = [key for key in weights if key.removesuffix("weight") + "bias" in state]
    return state[biased[-1]].shape[0] if biased else None


def _fitted(checkpoint: Checkpoint, name: str, model: nn.Module) -> dict[str, Tensor]:
    """The weights laid out like those of ``model``, which may have no memory; ValueError if they do not fit."""
    path, own = checkpoint.path, dict(checkpoint.state)
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
    missing = [key for key in wanted if key not in own]
    extra = [key for key in own if key not in wanted]
    if missing or extra:
        what = f"lacks '{missing[0]}'" if missing else f"also holds '{extra[0][:100]}'"
        raise ValueError(f"{path}: is of another architecture than {name}: it {what}")
    for key, value in wanted.items():
        if own[key].shape != value.shape:
            raise ValueError(
                f"{path}: is of another architecture than {name}: '{key}' has shape {tuple(own[key].shape)} "
                f"where {tuple(value.shape)} is expected"
            )
        if own[key].is_floating_point() != value.is_floating_point():
            raise ValueError(f"{path}: '{key}' is {own[key].dtype} where {value.dtype} is expected")
    return own
