"""``niffbench filters``: how large the filters of a NIFF network really are, and what could be cut."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

import click

from niffbench.commands.options import share
from niffbench.errors import UsageError

if TYPE_CHECKING:
    from torch import Tensor, nn

    from niffbench.study.tables import FilterReport

SUFFIXES = (".pt", ".pth", ".ckpt", ".bin")


@click.command()
@click.argument("subject", required=False, metavar="CHECKPOINT|NETWORK")
@click.option("--network", metavar="NAME", help="Which network a checkpoint's weights are of, if it does not say.")
@click.option(
    "--train",
    type=click.Choice(["digits"]),
    help="Train a small NIFF network and its 3×3 twin on scikit-learn's handwritten digits, and look at that.",
)
@click.option("--epochs", type=click.IntRange(1, 1000), metavar="N", help="Epochs of --train.  [default: 10]")
@click.option("--layer", "only", multiple=True, metavar="NAME", help="Look at this layer only.  Repeatable.")
@click.option(
    "--keep",
    multiple=True,
    metavar="PATTERN",
    help="Leave layers of such names as they are, 'layer4.*' say, when converting NETWORK.  Repeatable.",
)
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="Where report, table and plots go.  [default: reports/filters-NETWORK-TIME]",
)
@click.option(
    "--error",
    "tolerance",
    default="1%",
    callback=share,
    show_default=True,
    metavar="SHARE",
    help="Relative error of a layer's output that a truncated kernel may make.",
)
@click.option(
    "--size", type=click.IntRange(1, 8192), metavar="N", help="Side of the square input.  [default: 224]"
)
@click.option(
    "--batch", type=click.IntRange(1, 4096), metavar="N", help="Images at once.  [default: 1, of digits 64]"
)
@click.option(
    "--boundary",
    type=click.Choice(["circular", "zeros"]),
    default="circular",
    show_default=True,
    help="Padding of the truncated convolution; only circular is NIFF's own.",
)
@click.option(
    "--execution",
    default="rfft",
    show_default=True,
    metavar="NAME",
    help="The forms that layers execute as: published, fft, rfft, elided, cached, auto, …",
)
@click.option(
    "--seed",
    type=click.IntRange(0, 2**32 - 1),
    default=0,
    show_default=True,
    metavar="N",
    help="Of random weights, noise and training.",
)
@click.option("--json", "as_json", is_flag=True, help="Print everything as JSON instead of a table.")
def command(
    subject: str | None,
    network: str | None,
    train: str | None,
    epochs: int | None,
    only: tuple[str, ...],
    keep: tuple[str, ...],
    out: Path | None,
    tolerance: float,
    size: int | None,
    batch: int | None,
    boundary: str,
    execution: str,
    seed: int,
    as_json: bool,
) -> None:
    """Say how large a NIFF network's filters really are.

    For each layer, on the grid it runs at: how much of a kernel's mass lies near its centre, how many principal
    components its kernels have, the smallest k×k convolution within --error of it, and the FLOPs that saves.

    CHECKPOINT is a file of torch.save with a state dict, read as weights alone. NETWORK is a name of
    `niffbench list networks`, or NAME-full or NAME-split of any network of torchvision, with random weights.
    """
    from niffbench.session.directory import check_vacant, make

    _refuse(subject, network, train, epochs, keep)
    if out is not None:
        check_vacant(out)
    asked = Asked(only, keep, tolerance, size, batch, boundary, execution, seed)
    with _within_memory():
        if subject is None:
            report, networks = _trained(asked, epochs)
        else:
            report, networks = _looked_at(subject, network, asked), {}
    if out is None:
        out = Path("reports") / f"filters-{report.network}-{datetime.now():%Y%m%d-%H%M%S}"
        check_vacant(out)
    make(out)
    _write(out, report, networks)
    _print(out, report, as_json)


@dataclass(frozen=True)
class Asked:
    """What the options say of any network."""

    only: tuple[str, ...]
    keep: tuple[str, ...]
    tolerance: float
    size: int | None
    batch: int | None
    boundary: str
    execution: str
    seed: int


def _refuse(
    subject: str | None, network: str | None, train: str | None, epochs: int | None, keep: tuple[str, ...]
) -> None:
    """Raise UsageError for arguments that do not go together."""
    if train is not None and (subject is not None or network is not None):
        raise UsageError("--train trains a network of its own; give no CHECKPOINT, NETWORK or --network with it")
    if train is None and subject is None:
        raise UsageError("filters of what? Give a CHECKPOINT or a NETWORK, or --train digits")
    if train is not None and keep:
        raise UsageError("--keep is for networks that are converted, which those of --train are not")
    if train is None and epochs is not None:
        raise UsageError("--epochs are those of --train")
    if subject is not None and network is not None and not _is_file(subject):
        raise UsageError(f"--network says what a checkpoint's weights are of, and '{subject}' is no file")


def _is_file(subject: str) -> bool:
    """Whether a checkpoint is meant rather than a network's name."""
    path = Path(subject)
    return path.suffix in SUFFIXES or path.name != subject or path.exists()


def _looked_at(subject: str, network: str | None, asked: Asked) -> FilterReport:
    """A network from a file, or one with random weights."""
    import torch

    from niffbench.study import stored

    try:
        if _is_file(subject):
            checkpoint = stored.read(Path(subject))
            name, weights = network or checkpoint.network, f"weights of {Path(subject).name}"
            if name is None:
                raise UsageError(f"{subject}: does not say which network it is of; give --network NAME")
            model = stored.restore(
                checkpoint, name, execution=asked.execution, keep=asked.keep, size=_size(asked, name)
            )
        else:
            name, weights = subject, f"untrained, random weights of seed {asked.seed}"
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(asked.seed)
                model = stored.build(name, execution=asked.execution, keep=asked.keep, size=_size(asked, name))
    except ValueError as error:
        raise UsageError(str(error)) from error
    kept = f", {', '.join(asked.keep)} not converted" if asked.keep else ""
    return _studied(name, weights + kept, model, asked)


def _on_digits(name: str) -> bool:
    return name.startswith("digits-")


def _size(asked: Asked, name: str) -> int:
    """The input's side. Raises UsageError for another size than the digits'."""
    from niffbench.study.digits import SIDE

    if not _on_digits(name):
        return asked.size or 224
    if asked.size not in (None, SIDE):
        raise UsageError(f"--size {asked.size}: the digits are {SIDE}×{SIDE}")
    return SIDE


def _studied(name: str, weights: str, model: nn.Module, asked: Asked) -> FilterReport:
    from niffbench.study.effective import filtering_layers
    from niffbench.study.filters import study
    from niffbench.study.tables import FilterReport

    try:
        filtering = filtering_layers(model)
    except ValueError as error:
        raise UsageError(f"{name}: {error}{_with_filters(name)}") from error
    x, what = _input(name, model, asked)
    with _progress() as tell:
        try:
            layers = study(model, x, asked.tolerance, boundary=asked.boundary, only=asked.only, on_layer=tell)
        except ValueError as error:
            raise UsageError(f"{name}: {error}") from error
    seen = {layer.name for layer in layers}
    wanted = asked.only or filtering
    return FilterReport(
        name,
        weights,
        what,
        _size(asked, name),
        len(x),
        asked.tolerance,
        asked.boundary,
        layers,
        unreached=tuple(one for one in wanted if one not in seen),
    )


def _input(name: str, model: nn.Module, asked: Asked) -> tuple[Tensor, str]:
    """What the network is run on, and what that is. Raises UsageError for more than fits in memory."""
    if _on_digits(name):
        from niffbench.study.digits import load
        from niffbench.study.learned import IMAGES

        return load().test_images[: asked.batch or IMAGES], "test digits"
    from niffbench.device.host import free_memory
    from niffbench.niff.networks import image_channels
    from niffbench.study.filters import natural_noise

    size, batch, channels = _size(asked, name), asked.batch or 1, image_channels(model)
    if (needed := 8 * batch * channels * size**2) > free_memory():  # which some systems promise all the same
        raise _too_large(needed)
    noise = natural_noise(channels, size, size, batch=batch, seed=asked.seed)
    return noise, "noise with the spectrum of photographs"


@contextlib.contextmanager
def _within_memory() -> Iterator[None]:
    """Turn a failure to allocate memory into a UsageError."""
    from niffbench.worker.failures import explain

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
    from niffbench.niff.catalogue import NETWORKS

    base = NETWORKS[name].base if name in NETWORKS else ""
    having = [
        one.name for one in NETWORKS.values() if one.base == base and one.variant in ("full", "split", "niff")
    ]
    having += ["digits-niff"] if _on_digits(name) else []
    return f"; take {' or '.join(having)}" if having else ""


def _trained(asked: Asked, epochs: int | None) -> tuple[FilterReport, Mapping[str, nn.Module]]:
    """NIFF and its twin, trained on digits: the report, and both networks by name."""
    from niffbench.study.digits import Recipe
    from niffbench.study.learned import IMAGES, learn
    from niffbench.study.tables import FilterReport

    size = _size(asked, "digits-niff")
    recipe = Recipe(seed=asked.seed) if epochs is None else Recipe(epochs=epochs, seed=asked.seed)
    with _progress() as tell:
        try:
            learned = learn(
                recipe,
                asked.tolerance,
                boundary=asked.boundary,
                execution=asked.execution,
                images=asked.batch or IMAGES,
                only=asked.only,
                on_epoch=lambda variant, epoch: tell(f"training {variant}", recipe.epochs),
            )
        except ValueError as error:
            raise UsageError(str(error)) from error
    weights = f"trained on digits for {recipe.epochs} epochs, seed {recipe.seed}"
    report = FilterReport(
        "digits-niff",
        weights,
        "test digits",
        size,
        asked.batch or IMAGES,
        asked.tolerance,
        asked.boundary,
        learned.layers,
        learned,
    )
    return report, learned.networks


@contextlib.contextmanager
def _progress() -> Iterator[Callable[[str, int], None]]:
    """A line on standard error that says what is being done; nothing where that is no terminal."""
    from rich.console import Console
    from rich.markup import escape

    console = Console(stderr=True)
    done: dict[str, int] = {}
    with console.status("starting") if console.is_terminal else contextlib.nullcontext() as status:

        def tell(what: str, total: int) -> None:
            if status is not None:
                done[what] = done.get(what, 0) + 1
                status.update(escape(f"{what}: {done[what]} of {total}"))

        yield tell


def _write(out: Path, report: FilterReport, networks: Mapping[str, nn.Module]) -> None:
    """Report, table, plots and, of a training, both checkpoints. Raises UsageError when that fails."""
    import json

    from niffbench.study import stored
    from niffbench.study import tables as filter_tables

    drawn = filter_tables.plots(report)
    files = {
        "report.md": filter_tables.markdown(report, drawn).encode(),
        "table.csv": filter_tables.comma_separated(report).encode(),
        "filters.json": (json.dumps(filter_tables.plain(report), indent=1, allow_nan=False) + "\n").encode(),
    }
    for plot in drawn:
        files |= {f"plots/{plot.name}.svg": plot.svg.encode(), f"plots/{plot.name}.png": plot.png}
    try:
        (out / "plots").mkdir()
        for name, content in files.items():
            (out / name).write_bytes(content)
        for name, model in networks.items():
            stored.save(out / f"{name}.pt", name, model)
    except OSError as error:
        raise UsageError(f"{out}: cannot be written ({error.strerror})") from error


def _print(out: Path, report: FilterReport, as_json: bool) -> None:
    import json

    from niffbench.report.writers.terminal import Terminal, console
    from niffbench.study import tables as filter_tables

    if as_json:
        click.echo(json.dumps(filter_tables.plain(report), indent=1, allow_nan=False))
        return
    out_console = console()
    out_console.print(Terminal(filter_tables.table(report)))
    for sentence in filter_tables.advice(report):
        out_console.print(f"- {sentence}")
    click.echo(f"Report: {out / 'report.md'}")
