"""``niffbench publish``: a history as a static site."""

from __future__ import annotations

from pathlib import Path

import click


@click.command("publish")
@click.argument("history", type=click.Path(path_type=Path, file_okay=False))
@click.option(
    "--out",
    type=click.Path(path_type=Path, file_okay=False),
    default=Path("site"),
    show_default=True,
    metavar="DIR",
    help="Where the site goes; what an earlier one learned of the runs is taken from there.",
)
@click.option(
    "--accept",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE",
    help="As of `niffbench check`: what is accepted is no alert.",
)
def command(history: Path, out: Path, accept: Path | None) -> None:
    """Write HISTORY, which `check --history` keeps, as a static site.

    Its pages open from a file or any web server: an overview of suites and machines with the open alerts; for each
    its cases, the changes of level with their commits, and a report of the newest run; for each case the trend of
    every metric of which less is better.
    """
    from niffbench.errors import plural
    from niffbench.gate.rules import Rules
    from niffbench.gate.series import INDEX, collect
    from niffbench.report import make_directory, site
    from niffbench.report.text import clean
    from niffbench.report.verdicts import LONGEST_NOTE

    rules = Rules().reading(None, accept)
    make_directory(out)
    notes: list[str] = []
    series = list(collect(history, out / INDEX, rules, notes))
    page = site.write(series, out, rules.accepted, notes)
    for note in notes:
        click.echo(clean(note, LONGEST_NOTE), err=True)
    runs = sum(len(one.entries) for one in series)
    click.echo(f"{page}: {plural(runs, 'run')} of {plural(len(series), 'suite')}")
