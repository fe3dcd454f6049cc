"""``niffbench shrink``: from a trained NIFF network to the fastest network of the same quality on this machine."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import click

from niffbench.commands.filters import working
from niffbench.commands.options import conversion_options, share, threads_option
from niffbench.errors import UsageError
from niffbench.home import user_cache

if TYPE_CHECKING:
    from niffbench.case import MemoryFormat
    from niffbench.study.costs import Measuring
    from niffbench.study.shrinking import ShrinkReport, ShrinkRequest


@click.command()
@click.argument("subject", metavar="CHECKPOINT|NETWORK")
@conversion_options
@click.option(
    "--data",
    metavar="DATA",
    help="digits, a folder with a folder of images for each class, or my_data.py:dataset.  [default: of networks "
    "for digits these; else noise, which --max-error takes]",
)
@click.option("--budget", callback=share, metavar="SHARE", help="Accuracy that may be lost.  [default: 0.2%]")
@click.option(
    "--max-error", callback=share, metavar="SHARE", help="Instead, relative error of the outputs that may be made."
)
@click.option(
    "--size", type=click.IntRange(1, 8192), metavar="N", help="Side of the square images.  [default: 224]"
)
@click.option(
    "--batch", type=click.IntRange(1, 4096), default=1, show_default=True, metavar="N", help="Images of a call."
)
@click.option(
    "--memory-format",
    type=click.Choice(["contiguous", "channels_last"]),
    default="contiguous",
    show_default=True,
    help="Where a call has its channels in memory; the published network keeps its own layout.",
)
@click.option(
    "--objective",
    type=click.Choice(["latency", "memory", "energy", "parameters"]),
    default="latency",
    show_default=True,
    help="What is made as small as the budget allows.",
)
@click.option(
    "--finetune",
    type=click.IntRange(0, 1000),
    default=0,
    metavar="EPOCHS",
    help="Train what is cut to the answers of the network before, for so many epochs.",
)
@click.option(
    "--twin",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    metavar="FILE",
    help="A checkpoint of the ordinary network, to be compared with.",
)
@click.option(
    "--folds",
    type=click.IntRange(2, 20),
    metavar="N",
    help="Of digits-niff alone: train it here with its twin, and shrink it, in so many folds of cross-validation.",
)
@click.option("--epochs", type=click.IntRange(1, 1000), metavar="N", help="Epochs of --folds.  [default: 10]")
@click.option(
    "--images",
    "most",
    type=click.IntRange(6, 1_000_000),
    default=3000,
    show_default=True,
    metavar="N",
    help="Images that are taken of the data, a third of them to choose by, one to verify, one to judge by.",
)
@click.option("--device", default="auto", metavar="DEVICE", help="auto, cpu, cuda or cuda:N.  [default: auto]")
@click.option(
    "--rounds",
    type=click.IntRange(2, 1000),
    default=3,
    show_default=True,
    metavar="N",
    help="Processes that measure.",
)
@threads_option
@click.option(
    "--seed",
    type=click.IntRange(0, 2**32 - 1),
    default=0,
    show_default=True,
    metavar="N",
    help="Of all that is drawn.",
)
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="Where report, module and weights go.  [default: reports/shrink-NETWORK-TIME-ID]",
)
@click.option("--json", "as_json", is_flag=True, help="Print everything as JSON instead of tables.")
def command(
    subject: str,
    network: str | None,
    data: str | None,
    budget: float | None,
    max_error: float | None,
    size: int | None,
    batch: int,
    memory_format: MemoryFormat,
    objective: str,
    finetune: int,
    twin: Path | None,
    folds: int | None,
    epochs: int | None,
    keep: tuple[str, ...],
    replaced: dict[str, str],
    most: int,
    device: str,
    rounds: int,
    threads: int | None,
    seed: int,
    out: Path | None,
    as_json: bool,
) -> None:
    """Cut the filters of a trained NIFF network to what they need, and prove what is left of it.

    For each layer: its forms, k×k kernels for every odd k (circular and zero-padded), strips of rank one, sums of
    a few shared kernels, nothing at all. How wrong each is, is measured on real activations; what it costs, on
    this machine, once a shape. The choice of the least cost within the budget is then verified on the whole
    network, and made again, more carefully, until it holds.

    What comes out is a Python module of plain torch with its weights, and a report: what each layer learned, what
    it became and why, and the networks side by side, on images that nothing was chosen by.
    """
    from niffbench.commands.progress import bar_of
    from niffbench.session import directory
    from niffbench.session.interrupts import Interrupts
    from niffbench.study import shrink_tables as tables
    from niffbench.study import shrinking
    from niffbench.study.costs import Measuring
    from niffbench.study.shrink import Budget

    if budget is not None and max_error is not None:
        raise UsageError("--budget is in accuracy and --max-error in the outputs' error; give one of them")
    allowed = None
    if budget is not None or max_error is not None:
        allowed = Budget("accuracy", budget) if budget is not None else Budget("error", max_error or 0.0)
    request = shrinking.ShrinkRequest(
        subject=subject,
        network=network,
        data=data,
        size=size,
        budget=allowed,
        batch=batch,
        memory_format=memory_format,
        objective=objective,
        finetune=finetune,
        twin=twin,
        keep=keep,
        replaced=replaced,
        most=most,
        seed=seed,
    )
    if out is not None:
        directory.check_vacant(out)
    if epochs is not None and folds is None:
        raise UsageError("--epochs are those of --folds")
    if folds is not None and (subject != "digits-niff" or network or data not in (None, "digits") or twin):
        raise UsageError("--folds trains networks of its own: give digits-niff alone")
    with Interrupts() as stop:
        measuring = Measuring(stop, device, rounds, seed, threads, user_cache(), bar_of)
        if folds is not None:
            _in_folds(folds, request, measuring, epochs, out, as_json=as_json)
            return
        with stop.at_any_moment():
            loaded = request.load()
        with working() as observer:
            report = shrinking.carry_out(loaded, request, measuring, observer)
        if out is None:
            out = directory.default(f"shrink-{Path(loaded.name.replace(':', '-')).stem}")
            directory.check_vacant(out)
        directory.make(out)
        tables.write(out, report)
    if as_json:
        click.echo(tables.as_json(report))
    else:
        _show(out, report)


def _in_folds(
    number: int,
    request: ShrinkRequest,
    measuring: Measuring,
    epochs: int | None,
    out: Path | None,
    *,
    as_json: bool,
) -> None:
    """Train, shrink and judge once a fold; what came of each is written as soon as it is there."""
    from niffbench.report.writers.terminal import Terminal, console
    from niffbench.session import directory
    from niffbench.study import digits, folds
    from niffbench.study import shrink_tables as tables

    side = request.size or digits.SIDE
    if side not in digits.SIDES:
        raise UsageError(f"--size {side}: the digits are 8×8, and enlarged to at most {digits.SIDES[-1]}")
    place = directory.default("shrink-digits-niff") if out is None else out
    directory.check_vacant(place)
    directory.make(place)

    def on_fold(fold: int, report: ShrinkReport, pair: folds.Networks) -> None:
        own = place / f"fold{fold + 1}"
        directory.make(own)
        folds.save(own, pair, side, (fold, number))
        tables.write(own, report)

    with working() as observer:
        done = folds.cross_validate(number, side, request, measuring, observer, epochs=epochs, on_fold=on_fold)
    folds.write(place, done)
    if as_json:
        click.echo(json.dumps(folds.plain(done), indent=1, allow_nan=False))
        return
    screen = console()
    for table in (folds.layers, folds.fold_by_fold, folds.networks):
        screen.print(Terminal(table(done)))
    for sentence in folds.sentences(done):
        screen.print(f"- {sentence}")
    click.echo(f"Report: {place / 'report.md'}")


def _show(out: Path, report: ShrinkReport) -> None:
    from niffbench.report.writers.terminal import Terminal, console
    from niffbench.study import shrink_tables as tables

    screen = console()
    for table in (tables.layers(report), tables.networks(report)):
        screen.print(Terminal(table))
    for sentence in (*tables.sentences(report), f"{tables.machine(report)}."):
        screen.print(f"- {sentence}")
    click.echo(f"Report: {out / 'report.md'}")
