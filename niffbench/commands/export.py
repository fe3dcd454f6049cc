"""``niffbench export``: a run in another tool's format."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from niffbench.errors import UsageError
from niffbench.report import EXPORTS


@click.command()
@click.argument("run", type=click.Path(path_type=Path))
@click.option("--format", "format_", type=click.Choice(EXPORTS), required=True, help="What to write.")
@click.option(
    "--out", type=click.Path(path_type=Path, dir_okay=False), metavar="FILE",
    help="Where.  [default: standard output]",
)  # fmt: skip
def command(run: Path, format_: str, out: Path | None) -> None:
    """Write RUN, a run's directory, in another tool's format.

    \b
    csv, parquet             every record as a row, in seconds, bytes and real FLOPs, with run, machine and
                             intervals; the data dictionary is in Parquet's metadata and beside a CSV file
    pytest-benchmark         a file for `pytest-benchmark compare`, raw samples included
    github-action-benchmark  a file for the action's tool customSmallerIsBetter
    bencher                  Bencher Metric Format, for `bencher run --adapter json`
    openmetrics              OpenMetrics text, for Prometheus's collectors of text files
    """
    from niffbench.report import make_directory, write_whole
    from niffbench.report.exports import data_dictionary, export
    from niffbench.results import read

    if out is None and format_ == "parquet" and sys.stdout.isatty():
        raise UsageError("--format parquet is no text for a terminal; give --out FILE")
    content = export(read(run), format_)
    if out is None:
        sys.stdout.buffer.write(content)
        return
    make_directory(out.parent)
    write_whole(out, content)
    if format_ == "csv":
        write_whole(out.with_suffix(".dictionary.md"), data_dictionary())
    click.echo(out)
