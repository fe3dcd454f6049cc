"""Parameters and FLOPs of whole networks, counted on shapes and kept in the user's cache directory."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import TypeAdapter, ValidationError
from rich.console import Console
from rich.progress import track

import niffbench
from niffbench.home import user_cache

if TYPE_CHECKING:
    from torch import nn

INPUT_SIZE = 224
_MAX_BYTES = 1_000_000


@dataclass(frozen=True)
class NetworkCost:
    """Learnable scalars, and real FLOPs of one forward of one image at 224×224, NIFF layers in their rfft form."""

    parameters: int
    flops: int


_STORED: TypeAdapter[dict[str, NetworkCost]] = TypeAdapter(dict[str, NetworkCost])


def network_costs(names: Sequence[str]) -> dict[str, NetworkCost]:
    """The costs of the networks of these names; what is not in the cache is counted, with a progress bar."""
    place = _cache()
    counted = _read(place)
    new = [name for name in names if name not in counted]
    if new:
        console = Console(stderr=True)
        for name in track(new, "counting on shapes", console=console, disable=not console.is_terminal):
            counted[name] = _count(name)
        _keep(place, counted)
    return counted


def _count(name: str) -> NetworkCost:
    from niffbench.niff.networks import build

    return count_network(build(name, input_size=INPUT_SIZE, device="meta"))


def count_network(network: nn.Module) -> NetworkCost:
    """What a network on the meta device costs."""
    import torch

    from niffbench.cost.counters import count
    from niffbench.niff.networks import image_channels

    network.eval()
    image = torch.empty(1, image_channels(network), INPUT_SIZE, INPUT_SIZE, device="meta")
    with torch.no_grad():
        counted = count(lambda: network(image))
    return NetworkCost(sum(weight.numel() for weight in network.parameters()), counted.flops)


def _cache() -> Path:
    """A file that another version of the layers, of the formulas, of torch or of torchvision does not share."""
    root = Path(niffbench.__file__).parent
    digest = hashlib.sha256(f"{version('torch')} {version('torchvision')}".encode())
    for source in sorted((*root.glob("niff/*.py"), *root.glob("cost/*.py"))):
        digest.update(source.read_bytes())
    return user_cache() / f"networks-{digest.hexdigest()[:12]}.json"


def _read(place: Path) -> dict[str, NetworkCost]:
    try:
        with place.open("rb") as file:
            return _STORED.validate_json(file.read(_MAX_BYTES))
    except (OSError, ValidationError):
        return {}


def _keep(place: Path, costs: dict[str, NetworkCost]) -> None:
    """Best effort: without a cache the next call counts again."""
    draft = place.with_suffix(f".{os.getpid()}")
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        draft.write_bytes(_STORED.dump_json(costs))
        draft.replace(place)
    except OSError:
        draft.unlink(missing_ok=True)
