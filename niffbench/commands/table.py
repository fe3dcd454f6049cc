"""``niffbench table``: metrics of a run as a table for a paper."""

from __future__ import annotations

import importlib
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import click

from niffbench.errors import UsageError

if TYPE_CHECKING:
    from niffbench.report.table import Table
    from niffbench.results import Run


def _names(context: click.Context, parameter: click.Parameter, value: str) -> tuple[str, ...]:
    return tuple(dict.fromkeys(filter(None, map(str.strip, value.split(",")))))


@click.command()
@click.argument("run", type=click.Path(path_type=Path))
@click.option(
    "--rows", default="operator", callback=_names, show_default=True, metavar="COLUMNS", help="What makes a row."
)
@click.option(
    "--columns", default="problem", callback=_names, show_default=True, metavar="COLUMNS",
    help="What makes a column; '' for none.",
)  # fmt: skip
@click.option(
    "--values", default="latency,memory", callback=_names, show_default=True, metavar="METRICS",
    help="What is in the cells. latency_ratio is the ratio to the baseline.",
)  # fmt: skip
@click.option(
    "--only", multiple=True, metavar="PATTERN", help="Only these cases, as in niffbench run.  Repeatable."
)
@click.option(
    "--format", "format_", type=click.Choice(["markdown", "latex", "csv"]), default="markdown", show_default=True,
    help="What to write; latex needs booktabs and amssymb.",
)  # fmt: skip
@click.option(
    "--per-node",
    is_flag=True,
    help="Instead, a line for each device of a fleet: how far it is from the others, clock, temperature, flags.",
)
@click.option("--intervals/--no-intervals", default=True, help="Show 95 % intervals.  [default: intervals]")
@click.option(
    "--out", type=click.Path(path_type=Path, dir_okay=False), metavar="FILE",
    help="Where.  [default: standard output]",
)  # fmt: skip
def command(
    run: Path,
    rows: tuple[str, ...],
    columns: tuple[str, ...],
    values: tuple[str, ...],
    only: tuple[str, ...],
    format_: str,
    per_node: bool,
    intervals: bool,
    out: Path | None,
) -> None:
    """Write metrics of a run as a table for a paper.

    COLUMNS are columns of the frame, METRICS those of `niffbench list metrics`, or latency, memory or error for
    the main one of its kind; several are separated by commas. The best of each problem is bold, where it is
    decided. With --per-node the table is that of a fleet's devices, beside each other.
    """
    from niffbench.report import make_directory, write_whole
    from niffbench.report.pivot import pivot
    from niffbench.results import read
    from niffbench.suite import Selection

    if not values or not rows:
        raise UsageError(f"--{'rows' if values else 'values'}: names nothing")
    read_run, chosen = read(run), Selection(only)

    def narrow(one: Run) -> Run:
        records = tuple(record for record in one.records if chosen.takes(record.case, record.traits.label))
        return replace(one, records=records, beside=tuple(map(narrow, one.beside)))

    narrowed = narrow(read_run)
    if not narrowed.records:
        what = f"--only {' '.join(only)} matches no case of it" if only else "nothing was measured in it"
        raise UsageError(f"{run}: {what}")
    table = _per_node(narrowed) if per_node else pivot(narrowed, rows, columns, values)
    if not intervals:
        bare = (replace(row, entries=tuple(replace(one, note="") for one in row.entries)) for row in table.rows)
        table = replace(table, rows=tuple(bare))
    written = importlib.import_module(f"niffbench.report.writers.{format_}").write(table).rstrip("\n") + "\n"
    if out is None:
        click.echo(written, nl=False)
        return
    make_directory(out.parent)
    write_whole(out, written)
    click.echo(out)


def _per_node(run: Run) -> Table:
    """The table of a fleet's devices; where they are unlike, of each kind in turn."""
    from niffbench.report.digest import gather
    from niffbench.report.tables import fleet
    from niffbench.results.fleet import machines

    tables = [fleet(gather(kind)) for kind in machines(run)]
    rows = tuple(row for table in tables for row in table.rows)
    if not rows:
        raise UsageError(f"{run.path}: was measured on one device; --per-node needs several of a kind")
    return replace(tables[0], rows=rows)
