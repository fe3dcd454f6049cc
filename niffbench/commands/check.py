"""``niffbench check``: has anything got worse?"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from niffbench.commands.gate_options import (
    GateCommand,
    Outputs,
    output_options,
    print_json,
    rule_options,
    rules_of,
    write,
)
from niffbench.errors import NiffbenchError, NothingMeasured, UsageError, plural

if TYPE_CHECKING:
    from niffbench.gate.comparison import Before
    from niffbench.gate.findings import Step
    from niffbench.gate.rules import Rules
    from niffbench.gate.trend import Collected
    from niffbench.results import Run

NO_STEP = "no change of level in any case"
_FOLDER = click.Path(path_type=Path, file_okay=False)


@click.command("check", cls=GateCommand)
@click.argument("runs", nargs=-1, type=click.Path(path_type=Path), metavar="[BASE] [HEAD]")
@click.option("--baseline", type=_FOLDER, metavar="DIR", help="Take as BASE what began before HEAD below DIR.")
@click.option(
    "--history", type=_FOLDER, metavar="DIR", help="Keep HEAD in DIR, and find the steps in its history."
)
@click.option(
    "--keep",
    type=click.IntRange(min=1),
    metavar="N",
    help="With --history: remove all but the newest N runs, and the first of each case, its accepted level.",
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
@click.option(
    "--reference",
    type=click.Path(path_type=Path),
    metavar="RUN",
    help="What has crept away from RUN is a regression, too.  [default: the first of --history]",
)
@click.option(
    "--fail-on-step",
    is_flag=True,
    help="With --history: a step for the worse fails while it stands, one that all share until it is accepted.",
)
@click.option(
    "--fail-on-environment", is_flag=True, help="Exit 1 for a changed environment that nobody acknowledged."
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
    keep: int | None,
    trend: str | None,
    plot: Path,
    only: tuple[str, ...],
    reference: Path | None,
    fail_on_step: bool,
    fail_on_environment: bool,
    across_machines: bool,
    paired: bool,
    everything: bool,
    as_json: bool,
    markdown: Path | None,
    junit: Path | None,
    **limits: Any,
) -> None:
    """Judge the run HEAD against the run BASE, case by case.

    BASE and HEAD are run directories. With --history DIR, where HEAD is then kept, BASE is what was kept there
    before, in the order of arrival; with --baseline DIR, what began before HEAD of the runs below DIR. Of these
    BASE is chosen case by case: the newest of the same suite and fingerprint that measured the case. --history DIR
    alone tells the steps of the history.

    Latencies: Welch's test on logs of round medians, Holm across the suite, and a minimum effect. FLOPs and
    parameters are exact, memory has a tolerance, a case that newly fails or vanished is a regression. Improvements
    never fail. At alpha 0.01 a latency needs 5 rounds a side before anything is concluded: run --rounds 8.

    A history's first usable run of a case is its accepted level: whatever is beyond it is a regression, however
    small the steps were, until --accept FILE says up to where it may go, and why.

    \b
    Exit codes
      0  no regression, and slowdowns of --rule-out are ruled out for every latency
      1  a regression, of whatever quantity, or nothing of HEAD could be measured
      2  bad input
      3  no baseline yet
      4  unlike fingerprints of two runs named by hand (see --across-machines)
      5  no regression shown, but a slowdown of --rule-out could have gone unseen: by noise, for a case without a
         BASE, or because the environment changed and nobody acknowledged that
    """
    outputs = Outputs(everything, as_json, markdown, junit)
    with outputs.promised():
        from niffbench.gate.ab import abba
        from niffbench.gate.comparison import Before, compare, head_fails
        from niffbench.gate.trend import Collected
        from niffbench.results import read

        _refuse(runs, baseline, history, trend, plot, paired)
        if keep is not None and (history is None or not runs):
            raise UsageError("--keep needs HEAD and --history DIR")
        if not runs and (markdown is not None or junit is not None):
            raise UsageError("--markdown and --junit need HEAD: a history alone is shown as text or --json")
        rules = rules_of(**limits)
        if not runs:
            assert history is not None
            context.exit(_tell(_steps(history, None, rules, trend, plot), as_json, fail_on_step=fail_on_step))
        head = read(runs[-1])
        base: Run | Before | NiffbenchError
        base = read(runs[0]) if len(runs) == 2 else _before(baseline, history, head, across_machines)
        # A run is kept whatever there is to compare it with: the first of a history has no baseline.
        kept = history is not None and _keep(history, head)
        collected = Collected(rules)
        try:
            if isinstance(base, NiffbenchError):
                raise base if any(record.status == "ok" for record in head.records) else head_fails(head)
            comparison = compare(
                base,
                head,
                rules,
                only=only,
                across_machines=across_machines,
                pairing=abba(base, head) if paired and not isinstance(base, Before) else None,
                reference=None if reference is None else read(reference),
                passing=collected.add,
            )
        except NiffbenchError:
            if history is not None and kept:  # its trend can be drawn all the same
                _steps(history, head, rules, trend, plot)
            raise
        steps: tuple[Step, ...] = ()
        if history is not None and kept:
            collected.add(head)
            once = isinstance(base, Before) and base.by_arrival and reference is None  # it was read as a whole
            steps = _steps(history, head, rules, trend, plot, collected if once else None)
        changes: dict[str, object] = {"steps": steps, "fail_on_step": fail_on_step}
        if comparison.environment == "open" and fail_on_environment:
            changes["environment"] = "failing"
        comparison = comparison.model_copy(update=changes)
        if keep is not None and history is not None:
            from niffbench.gate.history import prune

            if removed := prune(history, head, keep):
                click.echo(f"{history}: {plural(removed, 'run')} removed", err=True)
        outputs.say(comparison)  # last, so that no exit code is said that does not come
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


def _before(
    baseline: Path | None, history: Path | None, head: Run, across_machines: bool
) -> Before | NiffbenchError:
    """The runs before HEAD, or why there is no baseline."""
    from niffbench.gate.comparison import Before
    from niffbench.gate.history import before

    directory, by_arrival = (baseline, False) if baseline is not None else (history, True)
    assert directory is not None
    try:
        earlier = before(directory, head, by_arrival=by_arrival, across_machines=across_machines)
        everywhere = before(directory, head, by_arrival=by_arrival, across_machines=True)
        return Before.of(earlier, everywhere, by_arrival=by_arrival)
    except NothingMeasured as error:
        return error
    except UsageError as error:
        if not by_arrival:
            raise
        return error  # of a history; the run is kept all the same, so that it can recover


def _keep(directory: Path, head: Run) -> bool:
    """Keep ``head`` in a history; returns whether it was worth it."""
    from niffbench.gate.history import keep
    from niffbench.report.text import clean
    from niffbench.report.verdicts import LONGEST_NOTE

    try:
        keep(directory, head)
    except NothingMeasured as error:
        click.echo(clean(error, LONGEST_NOTE), err=True)
        return False
    return True


def _steps(
    directory: Path,
    head: Run | None,
    rules: Rules,
    trend: str | None,
    plot: Path,
    collected: Collected | None = None,
) -> tuple[Step, ...]:
    """Draw the trend asked for, and return the steps of the history that ``head`` belongs to.

    Args:
        head: left out, the newest run of the history.
        collected: what was read of the history already.
    """
    from niffbench.gate.history import of_suite
    from niffbench.gate.trend import Collected, of_case
    from niffbench.report.plots.trend import draw
    from niffbench.report.text import clean

    if collected is None:
        where = (None, None) if head is None else (head.manifest.suite.name, head.manifest.fingerprint.hash)
        stored = of_suite(directory, *where)
        unreadable: dict[Path, str] = {}
        collected = Collected(rules)
        for _, run in stored.read(unreadable, oldest_first=True):
            collected.add(run)
        for note in (*stored.notes, *unreadable.values()):
            click.echo(clean(note), err=True)
    every = collected.trends()
    number, suite = plural(len(collected.runs), "run"), clean(collected.newest.manifest.suite.name)
    click.echo(f"{directory}: {number} of {suite} on this fingerprint", err=True)
    if trend is not None:
        drawn = draw(of_case(every, trend))
        write(plot, drawn.png if plot.suffix == ".png" else drawn.svg.encode())
        click.echo(f"{plot}: {drawn.title}", err=True)
    return tuple(step for one in every for step in one.steps(rules.accepted))


def _tell(steps: tuple[Step, ...], as_json: bool, *, fail_on_step: bool) -> int:
    """Show a history's steps; returns the exit code."""
    from niffbench.report.verdicts import line

    still = sum(step.open for step in steps)
    code = int(fail_on_step and still > 0)
    headline = f"{plural(len(steps), 'step')}, {still} for the worse and still there" if steps else NO_STEP
    if as_json:
        dumped = [step.model_dump(mode="json") for step in steps]
        print_json({"exit_code": code, "headline": headline, "counts": {"steps": len(steps)}, "steps": dumped})
        return code
    for step in steps:
        click.echo(line(step))
    click.echo(headline)
    return code
