"""``niffbench merge``: the parts of a suite that were measured apart, as one run."""

from __future__ import annotations

from pathlib import Path

import click


@click.command()
@click.argument("runs", nargs=-1, required=True, type=click.Path(path_type=Path), metavar="RUN...")
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    required=True,
    metavar="DIR",
    help="Where the whole run goes.",
)
@click.option(
    "--fleet",
    is_flag=True,
    help="Each RUN is of another device: whole suites are taken too, nodes get numbers, and machines that are "
    "unlike are put side by side.",
)
def command(runs: tuple[Path, ...], out: Path, fleet: bool) -> int:
    """Put RUN..., the parts of a suite that `run --shard` measured, together into one run.

    Every part must be there once, complete, of one suite, and measured on machines that are alike. The whole is a
    run as any other: report, check and export take it. With --fleet it knows its devices: intervals are over
    these, and a straggler among them is named.

    \b
    Exit codes
      0    merged
      2    a part is missing, incomplete, there twice, or of another suite
      4    the parts were measured on unlike machines, without --fleet
    """
    from niffbench.errors import plural
    from niffbench.results import read
    from niffbench.session.merging import merge

    merge([read(run) for run in runs], out, fleet=fleet)
    what = plural(len(runs), "run" if fleet else "part")
    click.echo(f"merged {what} into {out}; draw its report with:\n  niffbench report {out}")
    return 0
