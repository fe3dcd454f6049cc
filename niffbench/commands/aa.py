"""``niffbench aa``: how small a change can this machine show?"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from niffbench.case import REGIMES
from niffbench.commands.gate_options import GateCommand, Outputs, limit, print_json
from niffbench.commands.options import operator_option, share, suite_options

if TYPE_CHECKING:
    from niffbench.results import Run

UNFIT = 5


@click.command("aa", cls=GateCommand)
@click.argument("suite", required=False)
@click.option("--run", "measured", type=click.Path(path_type=Path), metavar="DIR", help="Assess this run instead.")
@click.option("--rounds", default=16, show_default=True, metavar="N", help="Rounds to measure of the same code.")
@click.option(
    "--effect",
    default="5%",
    callback=share,
    metavar="SHARE",
    show_default=True,
    help="The slowdown a gate is to find.",
)
@click.option(
    "--power",
    default="90%",
    callback=share,
    metavar="SHARE",
    show_default=True,
    help="The probability it is to find it.",
)
@click.option(
    "--gate-rounds",
    default=8,
    show_default=True,
    metavar="N",
    help="Rounds a side (pairs) the gate is to measure.",
)
@click.option("--alpha", default="0.01", callback=share, metavar="SHARE", show_default=True, help="Of the gate.")
@click.option(
    "--min-effect", default="3%", callback=limit, metavar="SHARE", show_default=True, help="Of the gate."
)
@click.option(
    "--regime",
    "regimes",
    multiple=True,
    type=click.Choice(REGIMES),
    help="Assess these regimes only.  [default: cold, steady, graph]",
)
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="Where the run is kept.  [default: reports/aa-SUITE-TIME-ID]",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of a table.")
@suite_options
@operator_option
@click.pass_context
def command(
    context: click.Context,
    /,
    suite: str | None,
    measured: Path | None,
    rounds: int,
    effect: float,
    power: float,
    gate_rounds: int,
    alpha: float,
    min_effect: float,
    regimes: tuple[str, ...],
    out: Path | None,
    as_json: bool,
    device: str | None,
    only: tuple[str, ...],
    added: tuple[str, ...],
) -> None:
    """Measure the same code again and again, and say what a gate could see on this machine.

    For each latency of SUITE: the noise between rounds (fresh processes), the smallest slowdown that `niffbench
    check` and `niffbench ab` would find, and the rounds they need to find one of --effect. A gate is fit when it
    would find --effect in nine of ten cases even if the noise is at the upper end of what was seen.

    \b
    Exit codes
      0  a gate is fit on this machine
      1  nothing could be measured
      2  bad input
      5  none is, or it cannot be told: raise --rounds, or quiet the machine
    """
    from niffbench.errors import UsageError
    from niffbench.gate.noise import Aim, assess
    from niffbench.gate.rules import Rules, chosen
    from niffbench.report import fitness
    from niffbench.report.writers.terminal import console
    from niffbench.results import read

    with Outputs(everything=False, as_json=as_json, markdown=None, junit=None).promised():
        if (suite is None) == (measured is None):
            raise UsageError("give a SUITE to measure, or --run DIR with what was measured")
        if rounds < 2 or gate_rounds < 2:
            raise UsageError("--rounds and --gate-rounds should be at least 2")
        rules = Rules(alpha=alpha, min_effect=min_effect, regimes=chosen(regimes))
        if suite is not None:
            rows = [f"--operator={row}" for row in added]
            run = _measure(suite, rounds, device, only, rows, out, quiet=as_json)
        else:
            assert measured is not None
            run = read(measured)
        assessment = assess(run, rules, Aim(effect, power, gate_rounds), only)
        code = 0 if assessment.fit else UNFIT
        if as_json:
            print_json({"exit_code": code, **fitness.plain(assessment)})
        else:
            console().print(fitness.terminal(assessment))
        context.exit(code)


def _measure(
    suite: str,
    rounds: int,
    device: str | None,
    only: tuple[str, ...],
    rows: Sequence[str],
    out: Path | None,
    *,
    quiet: bool,
) -> Run:
    from niffbench.device import portable
    from niffbench.errors import HeadFails, NothingMeasured
    from niffbench.gate.ab import measured
    from niffbench.gate.checkout import terminable
    from niffbench.session import directory
    from niffbench.suite import available, find

    name = suite if suite in available() else str(find(suite).resolve())
    place = out or directory.default(f"aa-{Path(suite).stem}")
    directory.check_vacant(place)
    filters = [part for pattern in only for part in ("--only", pattern)]
    arguments = [name, "--rounds", str(rounds), "--device", portable(device), *filters, *rows]
    arguments += ["--no-report", *(["--quiet"] if quiet else [])]
    try:
        with terminable():
            return measured(sys.executable, arguments, place, os.environ, cwd=Path.cwd(), quiet=quiet)
    except NothingMeasured as error:
        raise HeadFails(str(error)) from error
