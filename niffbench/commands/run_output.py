"""What ``niffbench run`` says: at its opening, while it measures, and at its close."""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any, NoReturn

from rich.text import Text

from niffbench import report
from niffbench.commands.progress import Bar, expected
from niffbench.errors import INTERRUPTED, FingerprintsDiffer, NiffbenchError, UsageError
from niffbench.report import text
from niffbench.report.exports import cases_for_machines, findings_of, written
from niffbench.report.table import Column, Entry, Table, row_of
from niffbench.report.writers.terminal import Terminal, console
from niffbench.results import Run, read
from niffbench.session.directory import RunProgress, progress_of
from niffbench.session.interrupts import Interrupted, Interrupts
from niffbench.session.outcome import Outcome, outcome
from niffbench.session.run_session import RunSession
from niffbench.session.worker_session import Observer

_MOST_LINES = 20


class Screen:
    """Results go to standard output, everything else to standard error; ``quiet`` prints neither.

    Args:
        suite: how it was named on the command line, which the command that resumes repeats.
        placement: what says there where the workers are, which it repeats too.
    """

    def __init__(
        self, *, as_json: bool, quiet: bool, report: bool, suite: str | None, placement: Sequence[str] = ()
    ) -> None:
        self._as_json = as_json
        self._quiet = quiet
        self._report = report
        self._suite = suite
        self._placement = placement
        self._out, self._err = console(), console(stderr=True)

    def opening(self, session: RunSession) -> AbstractContextManager[Observer]:
        """Say what is going to be measured; returns the progress bar, or on no terminal a silent observer."""
        manifest, missing, plan = session.manifest, session.progress.missing, session.plan
        total = manifest.records
        left = plan.seconds * missing / max(total, 1) / session.workers
        self.say(
            f"{manifest.suite.name}: {text.plural(len(manifest.suite.cases), 'case')} × "
            f"{text.plural(manifest.rounds, 'round')} on {manifest.fingerprint.machine}"
            + (f", {total - missing} of {text.plural(total, 'record')} there" if session.is_resumed else "")
            + (f", {text.plural(plan.skipped, 'case')} will be skipped" if plan.skipped else "")
            + (f"; {expected(left, plan)}" if missing else "; nothing is missing")
        )
        if self._quiet or not self._err.is_terminal or not missing:
            return nullcontext(Observer())
        labels = {forecast.case.id: forecast.label for forecast in plan.forecasts}
        return Bar(self._err, plan, labels, total, total - missing)

    def finish(self, progress: RunProgress, stopped: NiffbenchError | None, stop: Interrupts) -> int:
        """Write the report and print the result; returns the exit status.

        Raises:
            NothingMeasured: when no case was.
            UsageError: when the run was removed or cut short.
            Interrupted: meanwhile, by a signal.
        """
        with stop.at_any_moment():
            run = read(progress.directory)
            if len(run.records) + len(run.probes) < progress.records:
                raise UsageError(f"{run.path}: was removed, or cut short, before its result was read")
            result = outcome(run)
            page = _write(run) if self._report and result.measured else None
            if not self._report and result.measured:
                report.write_whole(run.path / "findings.json", written(findings_of(run)))
            printed = self._result(run, result, page)
        sys.stdout.write(printed)
        if page is not None:
            self.say(f"report: {page}")
        if stopped is None and not result.measured:
            raise result.nothing_measured()
        if stopped is None:
            return 0
        # Even when quiet: this is the only way to what was measured.
        message = f"{text.clean(str(stopped), 2000)}; {self._how_to_resume(progress_of(run.path))}"
        self._err.print(Text(message), soft_wrap=True)
        return (
            INTERRUPTED if result.measured and not isinstance(stopped, FingerprintsDiffer) else stopped.exit_code
        )

    def interrupted(self, progress: RunProgress, interrupted: Interrupted) -> NoReturn:
        """Say how to go on, and nothing that takes time.

        Raises:
            Interrupted: always, with what to do next.
        """
        if self._as_json:
            sys.stdout.write(_dumps(_head(progress, None, self._resume(progress))))
        report = f"\ndraw the report of what is there with:\n  {_later(progress.directory)}"
        raise Interrupted(f"{interrupted}; {self._how_to_resume(progress)}" + (report if progress.records else ""))

    def _how_to_resume(self, progress: RunProgress) -> str:
        records = text.plural(progress.records, "record")
        return f"{records} kept, {progress.missing:,} missing; go on with:\n  {self._resume(progress)}"

    def _resume(self, progress: RunProgress) -> str:
        """The command that goes on with a run."""
        suite = self._suite or progress.manifest.suite.name
        return shlex.join(["niffbench", "run", suite, "--resume", str(progress.directory), *self._placement])

    def _result(self, run: Run, summary: Outcome, page: Path | None) -> str:
        """What standard output is to show."""
        if self._as_json:
            progress = progress_of(run.path)
            return _dumps({**_head(progress, page, self._resume(progress)), **_as_json(run, summary)})
        if self._quiet:
            return ""
        with self._out.capture() as drawn:
            if summary.measured:
                self._out.print(report.terminal(run))
            for one, of_one in [(run, summary), *((one, outcome(one)) for one in run.beside)]:
                if of_one.failures:
                    self._out.print(Terminal(_failures(of_one)))
                for remark in _remarks(one, of_one):
                    self._out.print(Text(remark))
        return drawn.get()

    def say(self, line: str) -> None:
        """Print a line on standard error."""
        if not self._quiet:
            self._err.print(Text(text.clean(line, 1000)), soft_wrap=True)


def _write(run: Run) -> Path:
    """Write the report; who cannot have it is told how to get it later."""
    try:
        return report.save(report.draw(run), run.path)
    except UsageError as error:
        if not run.path.is_dir():
            raise
        later = _later(run.path)
        raise UsageError(f"{error}; the records are kept, so when that is mended: {later}") from error


def _later(directory: Path) -> str:
    """The command that writes the report of a run."""
    return shlex.join(["niffbench", "report", str(directory)])


def _failures(summary: Outcome) -> Table:
    """What was not measured, and why."""
    rows = []
    for failure in summary.failures[:_MOST_LINES]:
        times = f" (in {failure.rounds} rounds)" if failure.rounds > 1 else ""
        case = Entry(text.clean(failure.label, 300), text.clean(failure.problem))
        rows.append(row_of(failure.status, case, text.clean(failure.reason + times, 300)))
    if len(summary.failures) > _MOST_LINES:
        rows.append(row_of("…", f"{len(summary.failures) - _MOST_LINES} more in the report", ""))
    return Table(
        "failures", "not measured", (Column("status", "word"), Column("case"), Column("why", "prose")), tuple(rows)
    )


def _remarks(run: Run, summary: Outcome) -> list[str]:
    """What a reader of the table should know of it."""
    target = run.manifest.suite.measure.precision
    lines = [f"note: {text.clean(note, 300)}" for note in run.manifest.notes]
    if summary.imprecise:
        worst = summary.imprecise[0]
        width = f"±{text.percent(worst.half_width)}" if worst.half_width < 1 else "not determined"
        lines.append(
            f"precision: {len(summary.imprecise)} of {summary.latencies} latencies are "
            f"not known to ±{text.percent(target)} over their rounds; the widest interval is that of "
            f"{worst.label} at {worst.problem}, {worst.regime}, {width}"
        )
    if summary.share is not None and run.manifest.wall is not None:
        lines.append(f"time: {text.duration(run.manifest.wall)}, {text.percent(summary.share)} of it sampling")
    return [text.clean(line, 400) for line in lines]


def _as_json(run: Run, summary: Outcome) -> dict[str, Any]:
    """What the records say, for a machine, in base units."""
    return {
        "records": dict(summary.counts),
        "measuring_share": summary.share,
        "imprecise": [asdict(one) for one in summary.imprecise],
        "findings": findings_of(run),
        "cases": cases_for_machines(run),
    }


def _dumps(document: dict[str, Any]) -> str:
    return json.dumps(document, indent=1, allow_nan=False) + "\n"


def _head(progress: RunProgress, page: Path | None, again: str) -> dict[str, Any]:
    """What the result says of the run as a whole, which no record needs to be read for.

    ``again`` is the command that goes on with it.
    """
    manifest, missing = progress.manifest, progress.missing
    return {
        "directory": str(progress.directory),
        "report": None if page is None else str(page),
        "suite": manifest.suite.name,
        "baseline": manifest.suite.baseline,
        "device": manifest.device,
        "fingerprint": manifest.fingerprint.hash,
        "rounds": manifest.rounds,
        "seed": manifest.seed,
        "complete": missing == 0,
        "missing": missing,
        "kept": progress.records,
        "resume": again if missing else None,
        "wall": manifest.wall,
        "notes": manifest.notes,
    }
