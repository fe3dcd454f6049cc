"""``niffbench filters``: how large the filters of a NIFF network really are, and what could be cut."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import click

from niffbench.commands.options import conversion_options, share
from niffbench.errors import UsageError
from niffbench.home import user_cache

if TYPE_CHECKING:
    from niffbench.study.tables import FilterReport


def sides(_: click.Context, __: click.Parameter, value: str | None) -> tuple[int, ...] | None:
    """A callback that reads sides, as ``8,16,32``; None stays None."""
    if value is None:
        return None
    parts = value.split(",")
    if not all(part.strip().isascii() and part.strip().isdecimal() and len(part) < 10 for part in parts):
        raise UsageError(f"--sizes {value}: should be sides, as 8,16,32")
    return tuple(sorted({int(part) for part in parts}))


@click.command()
@click.argument("subject", required=False, metavar="CHECKPOINT|NETWORK")
@conversion_options
@click.option(
    "--train",
    type=click.Choice(["digits"]),
    help="Train a small NIFF network and its 3×3 twin on scikit-learn's handwritten digits, and look at that.",
)
@click.option(
    "--sizes",
    callback=sides,
    metavar="N,N,…",
    help="With --train: train the NIFF network at each of these resolutions, and say whether filters grow.",
)
@click.option(
    "--seeds", type=click.IntRange(1, 100), metavar="N", help="With --sizes: networks at each.  [default: 5]"
)
@click.option("--epochs", type=click.IntRange(1, 1000), metavar="N", help="Epochs of --train.  [default: 10]")
@click.option("--layer", "only", multiple=True, metavar="NAME", help="Look at this layer only.  Repeatable.")
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="Where report, table and plots go.  [default: reports/filters-NETWORK-TIME-ID]",
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
    sizes: tuple[int, ...] | None,
    seeds: int | None,
    epochs: int | None,
    only: tuple[str, ...],
    keep: tuple[str, ...],
    replaced: dict[str, str],
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

    CHECKPOINT is a file of torch.save or safetensors, read as weights alone; without --network the NIFF layers
    that it names are looked at by themselves, on --size N. NETWORK is a name of `niffbench list networks`,
    NAME-full or NAME-split of any network of torchvision, or with --replace torchvision:NAME, timm:NAME or
    my_nets.py:NAME; it has random weights.
    """
    from niffbench.session import directory
    from niffbench.study.request import Request, write
    from niffbench.study.request import as_json as study_as_json

    if train is not None and (subject is not None or network is not None):
        raise UsageError("--train trains a network of its own; give no CHECKPOINT, NETWORK or --network with it")
    if train is None and subject is None:
        raise UsageError("filters of what? Give a CHECKPOINT or a NETWORK, or --train digits")
    request = Request(
        subject=subject,
        network=network,
        epochs=epochs,
        only=only,
        keep=keep,
        replaced=replaced,
        tolerance=tolerance,
        size=size,
        batch=batch,
        boundary=boundary,
        execution=execution,
        seed=seed,
    )
    request.check()
    if out is not None:
        directory.check_vacant(out)
    if sizes is not None or seeds is not None:
        if train is None or sizes is None:
            raise UsageError("--seeds goes with --sizes, and --sizes with --train digits")
        _over_resolutions(sizes, range(seed, seed + (seeds or 5)), epochs, out, as_json=as_json)
        return
    with working() as observer:
        report, networks = request.report(observer)
    if out is None:
        out = directory.default(f"filters-{report.network}")
        directory.check_vacant(out)
    directory.make(out)
    write(out, report, networks)
    if as_json:
        click.echo(study_as_json(report))
    else:
        _show(out, report)


@contextlib.contextmanager
def working() -> Iterator[Callable[[str, int], None]]:
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


def _over_resolutions(
    sizes: tuple[int, ...], seeds: range, epochs: int | None, out: Path | None, *, as_json: bool
) -> None:
    """How wide filters become, over resolutions and seeds."""
    from niffbench.report.writers.terminal import Terminal, console
    from niffbench.session import directory
    from niffbench.study import digits, resolutions

    for side in sizes:
        if side not in digits.SIDES:
            raise UsageError(
                f"--sizes: the digits are 8×8 and can be enlarged to {digits.SIDES[-1]}×…, not {side}"
            )
    with working() as observer:
        widths = resolutions.learn_widths(sizes, seeds, epochs, observer, user_cache())
    if out is None:
        out = directory.default("filters-resolutions")
        directory.check_vacant(out)
    directory.make(out)
    resolutions.write(out, widths)
    if as_json:
        click.echo(json.dumps(resolutions.plain(widths), indent=1, allow_nan=False))
        return
    screen = console()
    screen.print(Terminal(resolutions.table(widths)))
    for sentence in resolutions.sentences(widths):
        screen.print(f"- {sentence}")
    click.echo(f"Report: {out / 'report.md'}")


def _show(out: Path, report: FilterReport) -> None:
    from niffbench.report.writers.terminal import Terminal, console
    from niffbench.study import tables

    out_console = console()
    out_console.print(Terminal(tables.table(report)))
    for sentence in tables.advice(report):
        out_console.print(f"- {sentence}")
    click.echo(f"Report: {out / 'report.md'}")
