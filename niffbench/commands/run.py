"""``niffbench run``: measure a suite, from the machine's survey to the report."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from niffbench.commands.options import measure_options, suite_options

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractContextManager

    from niffbench.session.interrupts import Interrupts
    from niffbench.session.run_session import RunSession


@click.command()
@click.argument("suite", required=False)
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="Where the run goes; must be empty or not exist.  [default: reports/SUITE-TIME]",
)
@click.option(
    "--resume",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="Go on with an interrupted run: measure just what is missing, with the settings it was begun with.",
)
@suite_options
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
    from contextlib import ExitStack

    from niffbench.commands.run_output import Screen
    from niffbench.errors import NiffbenchError
    from niffbench.operators.catalogue import catalogue
    from niffbench.session.interrupts import Interrupted, Interrupts
    from niffbench.session.journal import JournalLost
    from niffbench.session.progress import standing

    began = time.monotonic()
    screen = Screen(as_json=as_json, quiet=quiet, report=report)
    stopped: NiffbenchError | None = None
    with Interrupts() as stop:
        with ExitStack() as held:
            if resume is not None:
                _check_unasked(context)
                going_on = _resumed(resume, suite, overrides["device"], stop, began, screen.warm_up)
                try:
                    campaign = held.enter_context(going_on)
                except Interrupted as interrupted:
                    screen.part(standing(resume), interrupted, suite, stop)
            else:
                campaign = held.enter_context(_begun(suite, out, overrides, stop, began, screen.warm_up))
            observer = held.enter_context(screen.opening(campaign))
            try:
                campaign.measure(catalogue(), stop, observer=observer)
            except JournalLost:
                raise
            except NiffbenchError as error:
                stopped = error
        return screen.closing(campaign, stopped, suite, stop)


def _begun(
    suite: str | None,
    out: Path | None,
    overrides: dict[str, Any],
    stop: Interrupts,
    began: float,
    meanwhile: Callable[[], None],
) -> AbstractContextManager[RunSession]:
    """A new run, surveyed and planned; nothing is written when that fails."""
    from niffbench.commands.options import loader, wished
    from niffbench.operators.catalogue import catalogue
    from niffbench.session import directory
    from niffbench.session import run_session as campaign
    from niffbench.session.settings import kind_of

    if suite is None:
        raise click.UsageError("which suite? Give its name or path; `niffbench list suites` lists them")
    load = loader(suite, overrides.pop("only"))
    asked = wished(overrides)
    name = load(kind_of(asked.device)).name
    place = _default(name) if out is None else out
    directory.check_vacant(place)
    prepared = campaign.prepare(load, asked, catalogue(), stop, meanwhile=meanwhile)
    return campaign.begin(place, prepared, ["niffbench", *sys.argv[1:]], began)


def _resumed(
    place: Path,
    suite: str | None,
    device: str | None,
    stop: Interrupts,
    began: float,
    meanwhile: Callable[[], None],
) -> AbstractContextManager[RunSession]:
    """An interrupted run, surveyed and planned anew for what is missing in it."""
    from niffbench.commands.options import loader
    from niffbench.errors import UsageError
    from niffbench.operators.catalogue import catalogue
    from niffbench.results import read_manifest
    from niffbench.session import run_session as campaign
    from niffbench.suite import available

    echo = read_manifest(place).suite
    if suite is None and echo.name not in available():
        raise UsageError(
            f"{place}: suite '{echo.name}' was given by its path; give that again: run PATH --resume DIR"
        )
    load = loader(echo.name if suite is None else suite, tuple(echo.only))
    return campaign.resume(place, load, catalogue(), stop, began, device=device, meanwhile=meanwhile)


def _check_unasked(context: click.Context) -> None:
    """A resumed run keeps the settings it was begun with; asking for others is a misunderstanding."""
    from niffbench.errors import UsageError

    free = {"suite", "resume", "device", "report", "as_json", "quiet"}
    for parameter in context.command.params:
        name = parameter.name or ""
        if name not in free and context.get_parameter_source(name) is click.core.ParameterSource.COMMANDLINE:
            raise UsageError(
                f"{parameter.opts[0]}: a resumed run keeps the settings it was begun with; leave it out"
            )


def _default(name: str) -> Path:
    """``reports/SUITE-TIME``, with a number where two runs begin in one second."""
    from datetime import datetime

    place = Path("reports") / f"{name}-{datetime.now().astimezone():%Y%m%d-%H%M%S}"
    candidates = (place.with_name(f"{place.name}-{number}") for number in range(2, 1000))
    return place if not place.exists() else next(path for path in candidates if not path.exists())
