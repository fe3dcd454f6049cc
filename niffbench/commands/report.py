"""``niffbench report``: the report of one run, or of several side by side."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

import click

from niffbench.errors import UsageError

MOST_BYTES = 120
"""Of the name of a report on several runs."""


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
        first, *others = [run.path.resolve() for run in read_runs]
        out = first.parent / _joined(first, *others) if others else read_runs[0].path
    page = write(read_runs, out)
    if as_json:
        click.echo(
            json.dumps({"html": str(page), "markdown": str(out / "report.md"), "table": str(out / "table.csv")})
        )
    else:
        click.echo(page)


def _joined(*runs: Path) -> str:
    """The name of a report on several runs; no two have one name, whose runs have long names or lie elsewhere."""
    name = os.fsencode("-and-".join(run.name for run in runs))
    if len(name) <= MOST_BYTES and len({run.parent for run in runs}) == 1:
        return os.fsdecode(name)
    mark = hashlib.sha256(b"\0".join(map(os.fsencode, runs))).hexdigest()[:8]
    return f"{name[: MOST_BYTES - 9].decode(errors='ignore')}-{mark}"
