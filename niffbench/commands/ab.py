"""``niffbench ab``: two versions of the code, measured in turn on this machine."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime
from pathlib import Path
from secrets import token_hex
from typing import TYPE_CHECKING, Any

import click

from niffbench.commands.gate_options import Outputs, output_options, rule_options, rules_of
from niffbench.commands.options import suite_options

if TYPE_CHECKING:
    from niffbench.gate.checkout import Code


@click.command("ab")
@click.argument("suite")
@click.option("--base", required=True, metavar="REV|PATH|PYTHON", help="What HEAD is compared with.")
@click.option("--head", default=".", show_default=True, metavar="REV|PATH|PYTHON", help="What is judged.")
@click.option("--rounds", default=10, show_default=True, metavar="N", help="Pairs of rounds, one of each side.")
@click.option("--seed", default=0, show_default=True, help="Of the order of cases; each pair has its own.")
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="Where both runs are kept.  [default: reports/ab-SUITE-TIME]",
)
@suite_options
@rule_options
@output_options
@click.pass_context
def command(
    context: click.Context,
    /,
    suite: str,
    base: str,
    head: str,
    rounds: int,
    seed: int,
    out: Path | None,
    device: str | None,
    only: tuple[str, ...],
    everything: bool,
    as_json: bool,
    markdown: Path | None,
    junit: Path | None,
    **limits: Any,
) -> None:
    """Judge HEAD against BASE by measuring both in turn: the gate for noisy and shared machines.

    Either side is a git revision (checked out as a worktree outside of the repository, and removed again even on
    Ctrl-C), a directory that holds niffbench/ (such as ".", the working directory as it is), or a Python
    interpreter or virtual environment with niffbench installed. Rounds run in ABBA order, each in fresh processes;
    the paired differences are judged by the rule of `niffbench check`. Nothing of your working tree is touched.

    SUITE is a name, and then each side measures its own suite of that name, or a file that both measure.

    Exit codes are those of `niffbench check`, and 130 when interrupted; alpha 0.01 needs at least 8 pairs.
    """
    from niffbench.device import portable
    from niffbench.errors import UsageError
    from niffbench.gate.ab import Orders, abba, measure
    from niffbench.gate.checkout import checked_out, terminable
    from niffbench.gate.comparison import compare
    from niffbench.session.directory import check_vacant

    outputs = Outputs(everything, as_json, markdown, junit)
    with outputs.promised():
        if rounds < 1:
            raise UsageError(f"--rounds should be at least 1, got {rounds}")
        rules = rules_of(**limits)
        name = Path(suite).stem
        place = out or Path("reports") / f"ab-{name}-{datetime.now(UTC):%Y%m%dT%H%M%SZ}-{token_hex(2)}"
        check_vacant(place)
        orders = Orders(_suite(suite), portable(device), seed, only)
        with terminable(), ExitStack() as undone:
            one, two = (
                undone.enter_context(checked_out(*side, Path.cwd())) for side in ((base, "BASE"), (head, "HEAD"))
            )
            one.check()
            two.check()
            notes = _notes(one, two)
            for note in notes:
                click.echo(f"note: {note}", err=True)
            progress = undone.enter_context(_progress(rounds))
            try:
                runs = measure(one, two, orders, rounds, place, progress)
            except KeyboardInterrupt:
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
