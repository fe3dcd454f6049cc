"""``niffbench plot``: any column of a run against any other, as a figure for a paper."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from niffbench.errors import UsageError

if TYPE_CHECKING:
    from niffbench.results import Record, Run

_MILLIMETRES = 25.4
"""In an inch."""


def _labels(context: click.Context, parameter: click.Parameter, given: Sequence[str]) -> dict[str, str]:
    pairs = [one.partition("=") for one in given]
    for name, equals, _ in pairs:
        if not name or not equals:
            raise click.BadParameter("should be NAME=TEXT, as niff-depthwise/auto=NIFF", context, parameter)
    return {name: label for name, _, label in pairs}


def _theme(path: Path | None) -> tuple[dict[str, str], dict[str, str]]:
    """Labels and colours of a TOML file's two tables."""
    from matplotlib.colors import is_color_like

    from niffbench.suite import parse_toml, read_text

    if path is None:
        return {}, {}
    content = parse_toml(read_text(path, "a theme"), str(path))
    if strange := set(content) - {"labels", "colours"}:
        raise UsageError(f"{path}: unknown table '{min(strange)}'; there are [labels] and [colours]")
    for table, entries in content.items():
        for name, value in entries.items() if isinstance(entries, dict) else [(table, entries)]:
            if not isinstance(value, str) or (table == "colours" and not is_color_like(value)):
                raise UsageError(
                    f"{path}: {table}.{name} should be a {'colour' if table == 'colours' else 'text'}"
                )
    return content.get("labels", {}), content.get("colours", {})


def _inches(context: click.Context, parameter: click.Parameter, value: str | None) -> tuple[float, float] | None:
    if value is None:
        return None
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*[x×]\s*(\d+(?:\.\d+)?)\s*(mm)?", value.strip())
    unit = _MILLIMETRES if match and match[3] else 1.0
    sides = (float(match[1]) / unit, float(match[2]) / unit) if match else (0.0, 0.0)
    if not all(0.5 <= side <= 100 for side in sides):
        raise click.BadParameter(
            f"{value!r} should be width x height, as 6.5x4 in inches or 165x100mm", context, parameter
        )
    return sides


@click.command()
@click.argument("run", type=click.Path(path_type=Path))
@click.option("--x", required=True, metavar="COLUMN", help="Along the x axis, as size, channels, kernel or label.")
@click.option("--y", default="latency", show_default=True, metavar="COLUMN", help="Up the y axis; numbers.")
@click.option(
    "--hue", metavar="COLUMN",
    help="One colour for each value, as label, family or mode.  [default: label, where there are several]",
)  # fmt: skip
@click.option("--style", metavar="COLUMN", help="One line style and marker for each value.")
@click.option("--col", metavar="COLUMN", help="One panel for each value, side by side.")
@click.option("--row", metavar="COLUMN", help="One panel for each value, below each other.")
@click.option(
    "--only", multiple=True, metavar="PATTERN", help="Only these cases, as in niffbench run.  Repeatable."
)
@click.option(
    "--size", callback=_inches, metavar="WxH",
    help="Inches, or millimetres as 165x100mm.  [default: 6.5x4, and higher where the legend needs it]",
)  # fmt: skip
@click.option("--log/--linear", default=None, help="Scale of both axes.  [default: log where values are positive]")
@click.option("--log-x/--linear-x", default=None, help="Scale of the x axis alone.")
@click.option("--log-y/--linear-y", default=None, help="Scale of the y axis alone.")
@click.option(
    "--label", "labels", multiple=True, callback=_labels, metavar="NAME=TEXT",
    help="What an operator or a column is called in the figure.  Repeatable.",
)  # fmt: skip
@click.option(
    "--theme", type=click.Path(path_type=Path, dir_okay=False), metavar="FILE",
    help="A TOML file with tables [labels] and [colours], by name.",
)  # fmt: skip
@click.option(
    "--out", type=click.Path(path_type=Path, dir_okay=False), default=Path("fig.pdf"), show_default=True,
    metavar="FILE", help="A .pdf, .svg or .png file.",
)  # fmt: skip
def command(
    run: Path,
    x: str,
    y: str,
    hue: str | None,
    style: str | None,
    col: str | None,
    row: str | None,
    only: tuple[str, ...],
    size: tuple[float, float] | None,
    log: bool | None,
    log_x: bool | None,
    log_y: bool | None,
    labels: dict[str, str],
    theme: Path | None,
    out: Path,
) -> None:
    """Draw columns of a run's records against each other.

    COLUMN is any column of the frame (`niffbench export RUN --format csv` shows them), or latency, memory or
    error for the main one of its kind; with _ratio behind it, or ratio alone for latency's, the ratio to the
    baseline in the same round. Points are medians over rounds with 95 % intervals; level lines are operators
    without a kernel size, along kernels. Fonts are embedded.
    """
    from niffbench.report import make_directory, text, write_whole
    from niffbench.report.plots.custom import FORMATS, Request, draw, placeless, pooled, resolve, with_ratios
    from niffbench.results import frame, main_regime, read
    from niffbench.results.fleet import of_one_machine
    from niffbench.suite import Selection

    suffix = out.suffix.lower().lstrip(".")
    if suffix not in FORMATS:
        raise UsageError(f"--out {out}: should end in {', '.join(f'.{name}' for name in FORMATS)}")
    read_run = of_one_machine(read(run))
    chosen = Selection(only)
    records = _records(read_run, x, y)
    shown = [record for record in records if chosen.takes(record.case, record.traits.label)]
    if not shown:
        what = f"--only {' '.join(only)} matches no measured case of it" if only else "nothing was measured in it"
        raise UsageError(f"{run}: {what}")
    table = frame(type(read_run)(read_run.path, read_run.manifest, records))
    table = with_ratios(table, read_run.manifest.suite.baseline)
    table = table[table["case"].isin({record.id for record in shown})]
    more_labels, colours = _theme(theme)
    asked = Request(
        x, y, hue, style, col, row, size, log if log_x is None else log_x, log if log_y is None else log_y,
        {**more_labels, **labels}, colours,
    )  # fmt: skip
    request = resolve(asked, table, main_regime(shown))
    content = draw(request, table, suffix)
    make_directory(out.parent)
    write_whole(out, content)
    if absent := placeless(request, table):
        click.echo(f"note: without a {request.x}, and so left out: {text.listing(absent, 5)}", err=True)
    if mixed := pooled(request, table):
        written = ", ".join(f"{name} ({text.listing(_names(values), 4)})" for name, values in mixed.items())
        click.echo(
            f"note: one point is the median over all of {written}, so there are no intervals; show them (--hue, "
            "--style, --col, --row) or choose (--only)", err=True,
        )  # fmt: skip
    click.echo(out)


def _names(values: Sequence[object]) -> list[str]:
    from niffbench.report import text

    return [f"{value:g}" if isinstance(value, float) else text.clean(value, 40) for value in values]


def _records(run: Run, x: str, y: str) -> tuple[Record, ...]:
    """What was measured, in the suite's order; along the axis of a refinement what lies between, too.

    There the baseline was not measured, so that it is no part of ratios.
    """
    place = {case: number for number, case in enumerate(run.manifest.suite.cases)}
    refine = run.manifest.settings.refine
    is_refined = refine is not None and refine.axis == x and "ratio" not in y
    between = [record for record in run.probes if record.id not in place] if is_refined else []
    ordered = sorted((*run.records, *between), key=lambda record: place.get(record.id, len(place)))
    return tuple(record for record in ordered if record.status == "ok")
