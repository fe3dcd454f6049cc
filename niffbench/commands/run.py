"""``niffbench run``: measure a suite, from the machine's survey to the report."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from niffbench.commands.options import measure_options, operator_option, shard_option, suite_options

if TYPE_CHECKING:
    from niffbench.launch.base import Request
    from niffbench.session.interrupts import Interrupts
    from niffbench.session.opening import Opening, SuiteLoader
    from niffbench.session.run_session import RunSession


@click.command()
@click.argument("suite", required=False)
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="Where the run goes; must be empty or not exist.  [default: reports/SUITE-TIME-ID]",
)
@click.option(
    "--resume",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="Go on with an interrupted run: measure just what is missing, with the settings it was begun with.",
)
@suite_options
@shard_option
@operator_option
@measure_options
@click.option(
    "--seed", type=click.IntRange(0, 2**63 - 1), metavar="N", help="Of the random order.  [default: random]"
)
@click.option("--report/--no-report", default=True, help="Write the report at the end.  [default: report]")
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON on standard output.")
@click.option("--quiet", "-q", is_flag=True, help="Print nothing but errors.")
@click.pass_context
def command(
    context: click.Context,
    /,
    suite: str | None,
    out: Path | None,
    resume: Path | None,
    report: bool,
    as_json: bool,
    quiet: bool,
    **overrides: Any,
) -> int:
    """Measure a suite; ends with a table and a report.

    SUITE is the name of a suite (see `niffbench list suites`) or the path of one. Every round is a fresh process
    that measures each case once, in random order. What fails, is skipped or takes too long is recorded with its
    reason; nothing of it stops the run. Ctrl-C keeps what was measured and says how to go on.

    \b
    Exit codes
      0    everything was attempted, and something was measured
      2    bad input, or the run's directory was lost
      3    nothing could be measured
      4    --resume on another machine
      130  interrupted; --resume goes on
    """
    import time
    from dataclasses import replace

    from niffbench.commands.options import place_of, placement, request_of
    from niffbench.commands.run_output import Screen
    from niffbench.errors import NiffbenchError
    from niffbench.launch import launcher
    from niffbench.results import MANIFEST, read_manifest
    from niffbench.session.directory import progress_of
    from niffbench.session.interrupts import Interrupted, Interrupts
    from niffbench.session.journal import JournalLost
    from niffbench.session.opening import other_machines

    screen = Screen(as_json=as_json, quiet=quiet, report=report, suite=suite, placement=placement(overrides))
    stopped: NiffbenchError | None = None
    with Interrupts() as stop:
        if resume is None:
            place, load, start = _new(suite, out, overrides)
            on, device = place_of(overrides)
            moved, workers = None, launcher(on or "local")
        else:
            _check_unasked(context)
            begun = read_manifest(resume)
            on, moved = place_of(overrides)
            on, device = on or begun.settings.launcher, moved or begun.device
            place, workers = resume, launcher(on)
            load, start = _resumed(resume, suite, moved, on)

        def measure(directory: Path, opening: Opening) -> RunSession:
            nonlocal stopped
            began = time.monotonic()
            request = replace(request_of(overrides, directory, load, device), say=screen.say)
            with (
                stop.killing(workers.end_all),
                stop.leaving(workers.leave_all),
                opening(stop, began, request) as session,
                screen.opening(session) as observer,
            ):
                try:
                    session.measure(stop, observer)
                except (Interrupted, JournalLost):
                    raise
                except NiffbenchError as error:
                    stopped = error
            return session

        try:
            session = measure(place, start)
            for directory, opening in other_machines(session, load, moved):
                if stopped is not None:
                    break
                try:
                    measure(directory, opening)
                except (Interrupted, JournalLost):
                    raise
                except NiffbenchError as error:
                    stopped = error
            return screen.finish(session.progress, stopped, stop)
        except Interrupted as interrupted:
            if left := workers.leftovers:
                interrupted = Interrupted(f"{interrupted}; {left}")
            if not (place / MANIFEST).exists():
                raise interrupted from None
            screen.interrupted(progress_of(place), interrupted)


def _new(suite: str | None, out: Path | None, overrides: dict[str, Any]) -> tuple[Path, SuiteLoader, Opening]:
    """Where a new run goes, and its opening: nothing is written before it is surveyed and planned."""
    from niffbench.commands.options import loader, overrides_of
    from niffbench.device import kind_of
    from niffbench.launch import launcher
    from niffbench.session import directory
    from niffbench.session.opening import begin, prepare

    if suite is None:
        raise click.UsageError("which suite? Give its name or path; `niffbench list suites` lists them")
    load = loader(suite, *(overrides.pop(name) for name in ("only", "shard", "added")))
    asked = overrides_of(overrides)
    name = load(kind_of(asked.device)).name
    place = directory.default(name) if out is None else out
    directory.check_vacant(place)

    @contextmanager
    def start(stop: Interrupts, began: float, request: Request) -> Iterator[RunSession]:
        with (
            launcher(asked.launcher).open(request),
            begin(place, prepare(load, asked, stop), ["niffbench", *_arguments()], began) as session,
        ):
            yield session

    return place, load, start


def _arguments() -> list[str]:
    """Those of the command line; of what an engine is told only the keys, as values name hosts and accounts."""
    given = sys.argv[1:]
    for index, (option, pair) in enumerate(zip(["", *given], given, strict=False)):
        value = pair if option == "--launcher-option" else pair.removeprefix("--launcher-option=")
        if option == "--launcher-option" or value != pair:
            given[index] = f"{pair.removesuffix(value)}{value.partition('=')[0]}=…"
    return given


def _resumed(place: Path, suite: str | None, device: str | None, on: str) -> tuple[SuiteLoader, Opening]:
    """The opening of an interrupted run, which is surveyed and planned anew for what is missing in it."""
    from functools import partial

    from niffbench.commands.options import loader
    from niffbench.errors import UsageError
    from niffbench.results import read_manifest
    from niffbench.session.opening import resume
    from niffbench.suite import available

    echo = read_manifest(place).suite
    if suite is None and echo.name not in available():
        raise UsageError(
            f"{place}: suite '{echo.name}' was given by its path; give that again: run PATH --resume DIR"
        )
    shard = None if echo.shard is None else echo.shard.name
    load = loader(echo.name if suite is None else suite, tuple(echo.only), shard, tuple(echo.added))
    return load, partial(resume, place, load, device=device, launcher=on)


def _check_unasked(context: click.Context) -> None:
    """A resumed run keeps the settings it was begun with; asking for others is a misunderstanding."""
    from niffbench.errors import UsageError

    free = {"suite", "resume", "device", "report", "as_json", "quiet", "launcher", "workers", "launcher_options"}
    free |= {"gpus_per_worker", "cpus_per_worker", "devices"}
    for parameter in context.command.params:
        name = parameter.name or ""
        if name not in free and context.get_parameter_source(name) is click.core.ParameterSource.COMMANDLINE:
            raise UsageError(
                f"{parameter.opts[0]}: a resumed run keeps the settings it was begun with; leave it out"
            )
