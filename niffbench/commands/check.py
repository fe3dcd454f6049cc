"""``niffbench check``: has anything got worse?"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from niffbench.commands.gate_options import Outputs, output_options, rule_options, rules_of, write

if TYPE_CHECKING:
    from niffbench.gate.findings import Step
    from niffbench.gate.rules import Rules
    from niffbench.results import Run

_FOLDER = click.Path(path_type=Path, file_okay=False)


@click.command("check")
@click.argument("runs", nargs=-1, type=click.Path(path_type=Path), metavar="[BASE] [HEAD]")
@click.option("--baseline", type=_FOLDER, metavar="DIR", help="Take as BASE the newest matching run below DIR.")
@click.option(
    "--history", type=_FOLDER, metavar="DIR", help="Keep HEAD in DIR, and find the steps in its history."
)
@click.option("--trend", metavar="CASE", help="With --history: draw the trend of a case (id or label).")
@click.option(
    "--plot",
    type=click.Path(path_type=Path, dir_okay=False),
    default=Path("trend.svg"),
    show_default=True,
    metavar="FILE",
    help="Where --trend draws: .svg or .png.",
)
@click.option(
    "--only", multiple=True, metavar="PATTERN", help="Judge these cases only: operator, id or axis=value."
)
@click.option("--across-machines", is_flag=True, help="Let fingerprints differ, and judge what is comparable.")
@click.option("--paired", is_flag=True, help="Both are sides of one `niffbench ab`: judge paired differences.")
@rule_options
@output_options
@click.pass_context
def command(
    context: click.Context,
    /,
    runs: tuple[Path, ...],
    baseline: Path | None,
    history: Path | None,
    trend: str | None,
    plot: Path,
    only: tuple[str, ...],
    across_machines: bool,
    paired: bool,
    everything: bool,
    as_json: bool,
    markdown: Path | None,
    junit: Path | None,
    **limits: Any,
) -> None:
    """Judge the run HEAD against the run BASE, case by case.

    BASE and HEAD are run directories. With --baseline DIR, BASE is the newest finished run below DIR of the same
    suite and fingerprint; with --history DIR and no BASE, the newest one kept there. --history DIR alone tells the
    steps of the history.

    Latencies: Welch's test on logs of round medians, Holm across the suite, and a minimum effect. FLOPs and
    parameters are exact, memory has a tolerance, a case that newly fails or vanished is a regression. Improvements
    never fail. At alpha 0.01 a latency needs 5 rounds a side before anything is concluded: run --rounds 8.

    \b
    Exit codes
      0  no regression, and slowdowns of --rule-out are ruled out for every latency
      1  a regression, of whatever quantity
      2  bad input
      3  nothing to compare: no baseline, another suite, nothing measured
      4  unlike fingerprints (see --across-machines)
      5  no regression shown, but a slowdown of --rule-out could have gone unseen
    """
    from niffbench.gate.ab import abba
    from niffbench.gate.comparison import compare
    from niffbench.results import read

    _refuse(runs, baseline, history, trend, plot, paired)
    rules = rules_of(**limits)
    if not runs:
        assert history is not None
        _tell(_history(history, None, rules, trend, plot), as_json)
        return
    head = read(runs[-1])
    outputs = Outputs(everything, as_json, markdown, junit)
    steps: tuple[Step, ...] = ()
    try:
        base, notes = (read(runs[0]), ()) if len(runs) == 2 else _found(baseline, history, head, across_machines)
    finally:
        # A run is kept whatever is found: the first of a history has no baseline.
        if history is not None:
            steps = _history(history, head, rules, trend, plot)
    pairing = abba(base, head) if paired else None
    comparison = compare(base, head, rules, only=only, across_machines=across_machines, pairing=pairing)
    comparison = comparison.model_copy(update={"notes": (*notes, *comparison.notes), "steps": steps})
    outputs.say(comparison)
    context.exit(comparison.exit_code)


def _refuse(
    runs: tuple[Path, ...],
    baseline: Path | None,
    history: Path | None,
    trend: str | None,
    plot: Path,
    paired: bool,
) -> None:
    """Raise UsageError for arguments that do not go together."""
    from niffbench.errors import UsageError

    if len(runs) > 2:
        raise UsageError(f"check takes BASE and HEAD, not {len(runs)} runs")
    if len(runs) == 2 and baseline is not None:
        raise UsageError("give BASE or --baseline DIR, not both")
    if len(runs) == 1 and baseline is None and history is None:
        raise UsageError(f"compare {runs[0]} with what? Give BASE and HEAD, or --baseline DIR, or --history DIR")
    if not runs and (history is None or baseline is not None):
        raise UsageError("which run is to be judged? Give BASE and HEAD")
    if paired and len(runs) != 2:
        raise UsageError("--paired needs BASE and HEAD")
    if trend is not None and history is None:
        raise UsageError("--trend needs --history DIR")
    if plot.suffix not in (".svg", ".png"):
        raise UsageError(f"--plot {plot}: should end in .svg or .png")


def _found(
    baseline: Path | None, history: Path | None, head: Run, across_machines: bool
) -> tuple[Run, tuple[str, ...]]:
    from niffbench.errors import NothingMeasured
    from niffbench.gate.baseline import newest_matching

    directory = baseline or history
    assert directory is not None
    if baseline is None and not directory.exists():
        raise NothingMeasured(f"{directory}: no baseline yet; {head.name} is the first run kept there")
    return newest_matching(directory, head, across_machines=across_machines)


def _history(directory: Path, head: Run | None, rules: Rules, trend: str | None, plot: Path) -> tuple[Step, ...]:
    """Keep ``head``, draw the trend asked for, and return the steps of the history it belongs to."""
    from niffbench.errors import plural
    from niffbench.gate import archive
    from niffbench.gate.trend import trends
    from niffbench.report.plots.trend import draw

    suite = fingerprint = None
    if head is not None:
        archive.keep(directory, head)
        suite, fingerprint = head.manifest.suite.name, head.manifest.fingerprint.hash
    runs, notes = archive.history(directory, suite, fingerprint)
    for note in notes:
        click.echo(note, err=True)
    suite = runs[-1].manifest.suite.name
    click.echo(f"{directory}: {plural(len(runs), 'run')} of {suite} on this fingerprint", err=True)
    if trend is not None:
        drawn = draw(trends(runs, rules, [trend])[0])
        write(plot, drawn.png if plot.suffix == ".png" else drawn.svg.encode())
        click.echo(f"{plot}: {drawn.title}", err=True)
    return tuple(step for one in trends(runs, rules) for step in one.steps())


def _tell(steps: tuple[Step, ...], as_json: bool) -> None:
    import json

    from niffbench.report.verdicts import line

    if as_json:
        click.echo(json.dumps({"steps": [step.model_dump(mode="json") for step in steps]}, indent=1))
        return
    for step in steps:
        click.echo(line(step))
    if not steps:
        click.echo("no change of level in any case")
