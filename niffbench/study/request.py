"""A study as it is asked for: of a checkpoint, of a network with random weights, or of one trained on digits."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from niffbench.device.host import free_memory
from niffbench.errors import UsageError
from niffbench.niff.catalogue import NETWORKS
from niffbench.niff.networks import image_channels
from niffbench.operators.module import users_code
from niffbench.study import digits, stored, tables
from niffbench.study.effective import filtering_layers
from niffbench.study.filters import natural_noise, study
from niffbench.study.learned import IMAGES, learn
from niffbench.study.tables import FilterReport
from niffbench.worker.failures import explain

SUFFIXES = (".pt", ".pth", ".ckpt", ".bin", ".safetensors")
TRAINED = "digits-niff"

Observer = Callable[[str, int], None]
"""Told what is being done, and how often it will be."""


@dataclass(frozen=True)
class Request:
    """Whose filters, and how they are looked at.

    Attributes:
        subject: a checkpoint's file or a network's name; None: the network that is trained on digits.
        network: whose weights the checkpoint holds, where it does not say so itself.
        epochs: of training; None: as many as the recipe has.
        only: names of the layers to look at; all if empty.
        keep: name patterns of layers that are not converted.
        replaced: what becomes of the layers of a network that is not of the catalogue, by kind of layer.
        tolerance: relative L2 error of a layer's output that a truncated kernel may make.
        size, batch: of the input; None: 224 and 1, of digits 16 and 64.
        boundary: of the truncated convolution.
        execution: the forms that layers execute as.
        seed: of random weights, noise and training.
    """

    subject: str | None
    network: str | None = None
    epochs: int | None = None
    only: tuple[str, ...] = ()
    keep: tuple[str, ...] = ()
    replaced: Mapping[str, str] = field(default_factory=dict)
    tolerance: float = 0.01
    size: int | None = None
    batch: int | None = None
    boundary: str = "circular"
    execution: str = "rfft"
    seed: int = 0

    def check(self) -> None:
        """Raise UsageError for what does not go together."""
        if self.subject is None and (self.keep or self.replaced):
            option = "--keep is" if self.keep else "--replace is"
            raise UsageError(f"{option} for networks that are converted, which those of --train are not")
        if self.subject is not None and self.epochs is not None:
            raise UsageError("--epochs are those of --train")
        if self.subject is not None and self.network is not None and not _is_file(self.subject):
            raise UsageError(
                f"--network says what a checkpoint's weights are of, and '{self.subject}' is no such file"
            )

    def report(self, observer: Observer) -> tuple[FilterReport, Mapping[str, nn.Module]]:
        """What is found, and the networks that were trained, by name.

        Raises:
            UsageError: for a request that cannot be met.
        """
        with within_memory():
            if self.subject is None:
                return self._of_trained(observer)
            name, weights, model, size = self.model(self.subject)
            return replace(self, size=size)._of(name, weights, model, observer), {}

    def model(self, subject: str) -> tuple[str, str, nn.Module, int]:
        """A network from a file, or one with random weights: its name, what weights these are, and its size.

        Raises:
            UsageError: for what is neither, or a checkpoint of another resolution than is asked for.
        """
        exempt = f", {', '.join(self.keep)} not converted" if self.keep else ""
        try:
            if _is_file(subject):
                checkpoint = stored.read(Path(subject))
                if self.size is not None and checkpoint.size not in (None, self.size):
                    raise UsageError(
                        f"{subject}: was trained at {checkpoint.size}×{checkpoint.size}, not "
                        f"{self.size}×{self.size}: its filters are other ones there"
                    )
                name = self.network or checkpoint.network
                chosen = f" ({checkpoint.chosen})" if checkpoint.chosen else ""
                weights = f"weights of {Path(subject).name}{chosen}"
                if name is None:
                    return Path(subject).stem, weights, self._bare(checkpoint), self.size or 224
                size = checkpoint.size or self._size(name)
                model = stored.restore(
                    checkpoint, name, execution=self.execution, keep=self.keep, replaced=self.replaced, size=size
                )
                return name, f"{weights}{exempt}", model, size
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(self.seed)
                model = stored.build(
                    subject,
                    execution=self.execution,
                    keep=self.keep,
                    replaced=self.replaced,
                    size=self._size(subject),
                )
            return subject, f"untrained, random weights of seed {self.seed}{exempt}", model, self._size(subject)
        except ValueError as error:
            raise UsageError(str(error)) from error

    def _bare(self, checkpoint: stored.Checkpoint) -> nn.Module:
        """The layers that a file's names tell of; ValueError and UsageError where it takes more to know them."""
        if self.size is None:
            raise UsageError(
                f"{checkpoint.path}: does not say which network it is of; give --network NAME, or --size N to "
                "look at each of its NIFF layers on N×N noise"
            )
        return stored.bare(checkpoint, self.execution)

    def _of(self, name: str, weights: str, model: nn.Module, observer: Observer) -> FilterReport:
        try:
            filtering = filtering_layers(model)
        except ValueError as error:
            raise UsageError(f"{name}: {error}{_with_filters(name)}") from error
        x, what = self._input(name, model)
        try:
            with users_code(name) if ":" in name else contextlib.nullcontext(), within_memory():
                layers = study(model, x, self.tolerance, boundary=self.boundary, only=self.only, on_layer=observer)
        except ValueError as error:
            raise UsageError(f"{name}: {error}") from error
        seen = {layer.name for layer in layers}
        return FilterReport(
            name,
            weights,
            what,
            self._size(name),
            len(x),
            self.tolerance,
            self.boundary,
            layers,
            unreached=tuple(one for one in self.only or filtering if one not in seen),
            guessed=tuple(one for one in model.guessed if one in seen)
            if isinstance(model, stored.BareLayers)
            else (),
        )

    def _of_trained(self, observer: Observer) -> tuple[FilterReport, Mapping[str, nn.Module]]:
        size, images = self._size(TRAINED), self.batch or IMAGES
        recipe = digits.recipe(self.epochs, self.seed)
        try:
            learned = learn(
                recipe,
                self.tolerance,
                side=size,
                boundary=self.boundary,
                execution=self.execution,
                images=images,
                only=self.only,
                on_epoch=lambda variant, epoch: observer(f"training {variant}", recipe.epochs),
            )
        except ValueError as error:
            raise UsageError(str(error)) from error
        weights = f"trained on digits for {recipe.epochs} epochs, seed {recipe.seed}"
        report = FilterReport(
            TRAINED, weights, DIGITS, size, images, self.tolerance, self.boundary, learned.layers, learned
        )
        return report, learned.networks

    def _size(self, name: str) -> int:
        """The input's side.

        Raises:
            UsageError: for one that the digits cannot be enlarged to.
        """
        if not _on_digits(name):
            return self.size or 224
        if self.size is not None and self.size not in digits.SIDES:
            sides = f"{digits.SIDES[0]}×{digits.SIDES[0]} to {digits.SIDES[-1]}×{digits.SIDES[-1]}"
            raise UsageError(f"--size {self.size}: the digits are 8×8, and enlarged to {sides}")
        return self.size or digits.SIDE

    def _input(self, name: str, model: nn.Module) -> tuple[Tensor, str]:
        """What the network is run on, and what that is.

        Raises:
            UsageError: for more than fits in memory.
        """
        if _on_digits(name):
            return digits.load(self._size(name)).test_images[: self.batch or IMAGES], DIGITS
        size, batch = self._size(name), self.batch or 1
        bare = isinstance(model, stored.BareLayers)
        channels = 1 if bare else image_channels(model)
        if (needed := 8 * batch * channels * size**2) > free_memory():  # which some systems promise all the same
            raise _too_large(needed)
        noise = natural_noise(channels, size, size, batch=batch, seed=self.seed)
        what = "noise with the spectrum of photographs"
        return noise, f"{what}, {size}×{size}, given to each layer by itself" if bare else what


DIGITS = "test digits"


def write(out: Path, report: FilterReport, networks: Mapping[str, nn.Module]) -> None:
    """Report, table, plots and, of a training, both checkpoints.

    Raises:
        UsageError: when that fails.
    """
    drawn = tables.plots(report)
    files = {
        "report.md": tables.markdown(report, drawn).encode(),
        "table.csv": tables.comma_separated(report).encode(),
        "filters.json": (as_json(report) + "\n").encode(),
    }
    for plot in drawn:
        files |= {f"plots/{plot.name}.svg": plot.svg.encode(), f"plots/{plot.name}.png": plot.png}
    try:
        (out / "plots").mkdir()
        for name, content in files.items():
            (out / name).write_bytes(content)
        for name, model in networks.items():
            stored.save(out / f"{name}.pt", name, model, report.size)
    except OSError as error:
        raise UsageError(f"{out}: cannot be written ({error.strerror})") from error


def as_json(report: FilterReport) -> str:
    """Everything in it."""
    return json.dumps(tables.plain(report), indent=1, allow_nan=False)


def _is_file(subject: str) -> bool:
    """Whether a checkpoint is meant rather than a network's name."""
    path = Path(subject)
    if path.suffix == ".py":  # of which a network's name is missing
        return False
    if path.is_file() or path.suffix in SUFFIXES:
        return True
    return path.name != subject and ":" not in subject


def _on_digits(name: str) -> bool:
    return name in (TRAINED, "digits-twin")


@contextlib.contextmanager
def within_memory() -> Iterator[None]:
    """Turn a failure to allocate memory into a UsageError."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        failure = explain(error)
        if failure.status != "oom":
            raise
        raise _too_large(failure.needed) from error


def _too_large(needed: int | None) -> UsageError:
    amount = "" if needed is None else f" for {needed:,} bytes at once"
    return UsageError(f"there is not enough memory{amount}: give a smaller --size or --batch")


def _with_filters(name: str) -> str:
    """Which networks of the same make do have filters, as the tail of a message."""
    base = NETWORKS[name].base if name in NETWORKS else ""
    having = [
        one.name for one in NETWORKS.values() if one.base == base and one.variant in ("full", "split", "niff")
    ]
    having += [TRAINED] if _on_digits(name) else []
    return f"; take {' or '.join(having)}" if having else ""
