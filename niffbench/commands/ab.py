"""``niffbench ab``: two versions of the code, measured in turn on this machine."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from niffbench.commands.gate_options import GateCommand, Outputs, output_options, rule_options, rules_of
from niffbench.commands.options import (
    min_time_option,
    operator_option,
    suite_options,
    threads_option,
    time_budget_option,
)
from niffbench.home import user_cache

if TYPE_CHECKING:
    from niffbench.gate.checkout import Code


@click.command("ab", cls=GateCommand)
@click.argument("suite")
@click.option(
    "--base",
    required=True,
    metavar="REV|PATH|PYTHON",
    help="What HEAD is compared with; A...B is where B left A.",
)
@click.option("--head", default=".", show_default=True, metavar="REV|PATH|PYTHON", help="What is judged.")
@click.option(
    "--repo",
    type=click.Path(path_type=Path, file_okay=False, exists=True),
    metavar="PATH",
    help="The folder of your own library, which both sides are states of, and from which it is imported.",
)
@click.option(
    "--setup",
    multiple=True,
    metavar="CMD",
    help="With --repo: a shell command run in each side's tree. One that names $NIFFBENCH_ENV makes a virtual "
    "environment there, once for all trees with the same lock files.  Repeatable.",
)
@click.option("--rounds", default=10, show_default=True, metavar="N", help="Pairs of rounds, one of each side.")
@click.option("--seed", default=0, show_default=True, help="Of the order of cases; each pair has its own.")
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="Where both runs are kept.  [default: reports/ab-SUITE-TIME-ID]",
)
@click.option(
    "--resume",
    type=click.Path(path_type=Path, file_okay=False, exists=True),
    metavar="DIR",
    help="Go on with what was interrupted there, with the same code and options.",
)
@suite_options
@operator_option
@threads_option
@min_time_option
@time_budget_option
@rule_options
@output_options
@click.pass_context
def command(
    context: click.Context,
    /,
    suite: str,
    base: str,
    head: str,
    repo: Path | None,
    setup: tuple[str, ...],
    rounds: int,
    seed: int,
    out: Path | None,
    resume: Path | None,
    threads: int | None,
    min_time: float | None,
    time_budget: float | None,
    device: str | None,
    only: tuple[str, ...],
    added: tuple[str, ...],
    everything: bool,
    as_json: bool,
    markdown: Path | None,
    junit: Path | None,
    **limits: Any,
) -> None:
    """Judge HEAD against BASE by measuring both in turn: the gate for noisy and shared machines.

    Either side is a git revision (checked out as a worktree outside of the repository, and removed again even on
    Ctrl-C), a directory that holds niffbench/ (such as ".", a copy of the working directory as it is now), or a
    Python interpreter or virtual environment with niffbench installed. Rounds run in ABBA order, each in fresh
    processes; the paired differences are judged by the rule of `niffbench check`. Nothing of your working tree is
    touched.

    With --repo the sides are revisions or directories of a library of your own, whose modules SUITE names
    (module = "my_lib.layers:Conv", or "my_ops.py:Conv" beside it); this niffbench measures both.

    SUITE is a name, and then each side measures its own suite of that name, or a file that both measure.

    Exit codes are those of `niffbench check`, and 130 when interrupted; alpha 0.01 needs at least 8 pairs.
    """
    from niffbench.device import portable
    from niffbench.errors import UsageError
    from niffbench.gate.ab import Orders, abba, measure
    from niffbench.gate.checkout import checked_out, set_up, terminable
    from niffbench.gate.comparison import compare
    from niffbench.session import directory

    outputs = Outputs(everything, as_json, markdown, junit)
    with outputs.promised():
        if rounds < 1:
            raise UsageError(f"--rounds should be at least 1, got {rounds}")
        if setup and repo is None:
            raise UsageError("--setup needs --repo PATH")
        if resume is not None and out is not None:
            raise UsageError("give --out or --resume, not both")
        rules = rules_of(**limits)
        name = Path(suite).stem
        place = resume or out or directory.default(f"ab-{name}")
        if resume is None:
            directory.check_vacant(place)
        here = (repo or Path.cwd()).resolve()
        options = [f"--threads={threads}"] * (threads is not None) + [f"--min-time={min_time}s"] * (
            min_time is not None
        )
        file = _suite(suite)
        rows = [_reachable(row, file, None if repo is None else here) for row in added]
        options += [f"--operator={row}" for row in rows]
        own = repo is not None and Path(file).is_relative_to(here)
        inside = str(Path(file).relative_to(here)) if own else None
        orders = Orders(file, portable(device), seed, only, inside, tuple(options), time_budget)
        with terminable(), ExitStack() as undone:
            one, two = (
                undone.enter_context(checked_out(*side, here, library=repo is not None))
                for side in ((base, "BASE"), (head, "HEAD"))
            )
            if setup:
                one, two = (set_up(code, setup, user_cache() / "environments") for code in (one, two))
            notes = list(_notes(one, two))
            for code in (one, two):
                if inside is not None and code.path is not None:  # the same suite beside each side's own modules
                    (code.path / inside).parent.mkdir(parents=True, exist_ok=True)
                    (code.path / inside).write_bytes(Path(file).read_bytes())
                if code.library is None:
                    code.check()
                elif not code.check(_modules(file, rows)):
                    notes.append(f"{code.name}: no row of the suite names a module of its tree")
            for note in notes:
                click.echo(f"note: {note}", err=True)
            progress = undone.enter_context(_progress(rounds))
            try:
                runs = measure(one, two, orders, rounds, place, progress)
            except KeyboardInterrupt:
                click.echo(f"go on with:\n  {_again(place)}", err=True)
                if (place / "base").is_dir():
                    again = f"niffbench check --paired {place / 'base'} {place / 'head'}"
                    click.echo(f"`{again}` judges the pairs there are", err=True)
                raise
        comparison = compare(*runs, rules, pairing=abba(*runs))
        outputs.say(comparison.model_copy(update={"notes": (*notes, *comparison.notes)}))
        click.echo(f"both runs are in {place}", err=True)
        context.exit(comparison.exit_code)


def _suite(text: str) -> str:
    """A suite's name as it is, for each side to find its own; a file by its full path, for both."""
    from niffbench.suite import available, find

    return text if text in available() else str(find(text).resolve())


def _reachable(row: str, suite: str, tree: Path | None) -> str:
    """A row of ``--operator`` as both sides find its module, though each has a current folder of its own.

    What is in a side's ``tree`` is named from there, else what is beside the suite or in the current folder by its
    path.
    """
    from niffbench.operators.module import file_of
    from niffbench.suite import words_of

    name, *settings = words_of(row) or [""]
    where, mark, attribute = name.rpartition(":")
    beside = [Path(suite).parent] if Path(suite).is_file() else []
    in_tree = [tree, tree / "src", *(folder for folder in beside if folder.is_relative_to(tree))] if tree else []
    if not mark or file_of(where, in_tree):
        return row
    file = file_of(where, (*beside, Path.cwd()))
    if file is None:
        return row
    file = file.resolve()
    path = file.relative_to(tree) if tree and file.is_relative_to(tree) else file
    return " ".join([f"{path}:{attribute}", *settings])


def _modules(file: str, added: Sequence[str]) -> list[str]:
    """The modules that a suite's rows name, as they are imported, or the files that hold them."""
    from niffbench.suite import entry_of, find, parse, user_modules
    from niffbench.suite.locate import read

    entries = [*parse(read(find(file)), file).operators, *map(entry_of, added)]
    return [row.source.rpartition(":")[0] for row in user_modules(entries, ())]


def _again(place: Path) -> str:
    """The command that goes on with what is in ``place``."""
    arguments = sys.argv[1:]
    for option in ("--out", "--resume"):
        if option in arguments:
            at = arguments.index(option)
            del arguments[at : at + 2]
    arguments = [argument for argument in arguments if not argument.startswith(("--out=", "--resume="))]
    return shlex.join(["niffbench", *arguments, "--resume", str(place)])


def _notes(base: Code, head: Code) -> tuple[str, ...]:
    """What the reader should know of the two sides before believing the verdicts."""
    notes = []
    for code in (base, head):
        if code.left_out:
            notes.append(f"{code.name}: the working tree has uncommitted changes, and they are not measured")
    if base.commit is not None and base.commit == head.commit and not (base.dirty or head.dirty):
        notes.append("BASE and HEAD are the same commit: this is an A/A run")
    return tuple(notes)


@contextmanager
def _progress(pairs: int) -> Iterator[Callable[[int, str], None]]:
    """Tell which round runs: a bar with the time left on a terminal, else a line each on standard error."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

    console = Console(stderr=True)
    if not console.is_terminal:
        yield lambda pair, side: click.echo(f"pair {pair + 1} of {pairs}: {side}", err=True)
        return
    columns = TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn(), TimeRemainingColumn()
    # Drawn when a round begins, by no thread of its own: nothing may run beside what is measured.
    with Progress(*columns, console=console, auto_refresh=False) as bar:
        task = bar.add_task("starting", total=2 * pairs)
        begun = 0

        def turn(pair: int, side: str) -> None:
            nonlocal begun
            bar.update(task, completed=begun, description=f"pair {pair + 1} of {pairs}: {side}")
            begun += 1
            bar.refresh()

        yield turn
