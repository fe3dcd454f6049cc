"""``niffbench report``: the report of one run, or of several side by side."""

from __future__ import annotations

import json
from pathlib import Path

import click

from niffbench.errors import UsageError


@click.command()
@click.argument("runs", nargs=-1, required=True, type=click.Path(path_type=Path), metavar="RUN...")
@click.option(
    "--out", type=click.Path(path_type=Path, file_okay=False), metavar="DIR",
    help="Where it goes.  [default: into the run; of several, beside the first]",
)  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="Print the paths as JSON.")
def command(runs: tuple[Path, ...], out: Path | None, as_json: bool) -> None:
    """Write report.html, report.md, table.csv and plots of RUN, a run's directory.

    Several runs are set side by side: other machines, other commits. The first is what the others are compared
    with.
    """
    from niffbench.report import write
    from niffbench.results import read

    repeated = sorted({str(path) for path in runs if [p.resolve() for p in runs].count(path.resolve()) > 1})
    if repeated:
        raise UsageError(f"{repeated[0]}: is named twice; side by side with itself a run says nothing")
    read_runs = [read(path) for path in runs]
    if out is None:
        first, *others = read_runs
        out = first.path
        if others:
            out = first.path.resolve().parent / "-and-".join(run.name for run in read_runs)[:120]
    page = write(read_runs, out)
    if as_json:
        click.echo(
            json.dumps({"html": str(page), "markdown": str(out / "report.md"), "table": str(out / "table.csv")})
        )
    else:
        click.echo(page)
