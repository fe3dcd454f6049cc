"""What ``niffbench run`` says: at its opening, while it measures, and at its close."""

from __future__ import annotations

import json
import os
import shlex
import signal
import sys
import threading
import time
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any, NoReturn

from rich.console import Console
from rich.table import Table
from rich.text import Text

from niffbench import report
from niffbench.commands.progress import Bar, clock, expected
from niffbench.errors import FingerprintsDiffer, NiffbenchError, NothingMeasured, UsageError
from niffbench.report import text
from niffbench.report.exports import cases_for_machines
from niffbench.results import RECORDS, Manifest, Run, read
from niffbench.session.interrupts import INTERRUPTED, Interrupted, Interrupts
from niffbench.session.lock import Lock
from niffbench.session.outcome import Outcome, outcome
from niffbench.session.progress import RunProgress
from niffbench.session.run_session import RunSession
from niffbench.session.worker_session import Observer

_MOST_LINES = 20
_MOMENT = 0.8
"""Seconds after an interrupt until which its report is waited for."""
_READING = 1.1
"""Seconds after an interrupt until which its records are read for --json: those of a run of some 10,000."""
_LONGEST_REPORT = 600
"""Seconds after which a report that is written aside is given up."""
_POLITE = 5
"""How much a report that is written aside lets others go first, its parent above all."""
_PIPE_WIDTH = 120
"""Columns of a table that goes to a file or a pipe."""


def console(*, stderr: bool = False) -> Console:
    """A console as wide as the terminal, or wide enough for a table where there is none."""
    made = Console(stderr=stderr, highlight=False)
    if not made.is_terminal and made.width == 80:
        made.width = _PIPE_WIDTH
    return made


class Screen:
    """Results go to standard output, everything else to standard error; ``quiet`` prints neither."""

    def __init__(self, *, as_json: bool, quiet: bool, report: bool) -> None:
        self._as_json = as_json
        self._quiet = quiet
        self._report = report
        self._out, self._err = console(), console(stderr=True)

    def warm_up(self) -> None:
        """Import what a report needs, so that an interrupted run need not wait for it; half a second."""
        if self._report:
            import seaborn  # noqa: F401

            import niffbench.report.writing  # noqa: F401

    def opening(self, campaign: RunSession) -> AbstractContextManager[Observer]:
        """Say what is going to be measured; returns the progress bar, or on no terminal a silent observer."""
        manifest, missing = campaign.manifest, campaign.standing.missing
        facts = manifest.fingerprint.must
        machine = facts.get("gpu") or facts.get("processor") or facts.get("device")
        skipped = sum(forecast.skip is not None for forecast in campaign.plan.forecasts)
        total = len(manifest.suite.cases) * manifest.rounds
        left = campaign.plan.seconds * missing / max(total, 1)
        self._tell(
            f"{manifest.suite.name}: {text.plural(len(manifest.suite.cases), 'case')} × "
            f"{text.plural(manifest.rounds, 'round')} on {machine}"
            + (f", {total - missing} of {text.plural(total, 'record')} there" if campaign.done else "")
            + (f", {text.plural(skipped, 'case')} will be skipped" if skipped else "")
            + (f"; {expected(left, campaign.plan)}" if missing else "; nothing is missing")
        )
        if self._quiet or not self._err.is_terminal or not missing:
            return nullcontext(Observer())
        labels = {forecast.case.id: forecast.label for forecast in campaign.plan.forecasts}
        return Bar(self._err, campaign.plan, labels, total, total - missing)

    def closing(
        self, campaign: RunSession, stopped: NiffbenchError | None, suite: str | None, stop: Interrupts
    ) -> int:
        """Write the report and print the result; returns the exit status. Raises NothingMeasured."""
        try:
            if isinstance(stopped, Interrupted):
                raise stopped
            with stop.at_any_moment():
                run = read(campaign.directory)
                found = outcome(run)
                page = _write(run) if self._report and found.measured else None
                result = self._result(run, found, page, _again(campaign.standing, suite))
        except Interrupted as interrupted:
            self.part(campaign.standing, interrupted, suite, stop)
        sys.stdout.write(result)
        if page is not None:
            self._tell(f"report: {page}")
        if stopped is None and not found.measured:
            first = found.failures[0]
            raise NothingMeasured(
                f"nothing could be measured; {first.label} at {first.problem}: {first.status}, {first.reason}"
            )
        if stopped is None:
            return 0
        self._say_how_to_go_on(campaign.standing, stopped, suite)
        return INTERRUPTED if found.measured and not isinstance(stopped, FingerprintsDiffer) else stopped.exit_code

    def part(self, left: RunProgress, stopped: NiffbenchError, suite: str | None, stop: Interrupts) -> NoReturn:
        """Take leave of somebody in a hurry, however large the run is.

        A process of its own writes the report, and is waited for for a moment; so is the reading of the records
        for --json, which tells of the run as a whole and no ``cases`` when they are too many.
        """
        from niffbench.report.writing import PAGE

        writer = _write_aside(left.directory) if self._report and left.kept else None
        reading = _Reading(left.directory, _again(left, suite)) if self._as_json else None
        self._say_how_to_go_on(left, stopped, suite)
        page = None
        if writer is not None:
            page = left.directory / PAGE
            status = _status(writer, stop.when + _MOMENT)
            if status:
                self._tell(f"the report could not be written; when that is mended: {_later(left.directory)}")
            else:
                self._tell(f"report: {page}" + (", which is still being written" if status is None else ""))
            page = page if status == 0 else None
        if reading is not None:
            told = reading.result(stop.when + _READING)
            told = told or _head(left.directory, left.manifest, left.missing, None, _again(left, suite))
            with suppress(OSError):  # who read it may be gone, interrupted as well
                sys.stdout.write(_dumps({**told, "report": None if page is None else str(page)}))
                sys.stdout.flush()
        os._exit(INTERRUPTED)  # taking the interpreter down can take as long as all of this

    def _say_how_to_go_on(self, left: RunProgress, stopped: NiffbenchError, suite: str | None) -> None:
        """Even when quiet: this is the only way to what was measured."""
        told = f"{stopped}; {text.plural(left.kept, 'record')} kept, {left.missing:,} missing; go on with:"
        self._err.print(Text(text.clean(told, 2000)), soft_wrap=True)
        self._err.print(Text(f"  {_again(left, suite)}"), soft_wrap=True)

    def _result(self, run: Run, found: Outcome, page: Path | None, again: str) -> str:
        """What standard output is to show."""
        if self._as_json:
            return _dumps(_as_json(run, found, page, again))
        if self._quiet:
            return ""
        with self._out.capture() as drawn:
            if found.measured:
                self._out.print(report.terminal(run))
            if found.failures:
                self._out.print(_failures(found))
            for remark in _remarks(run, found):
                self._out.print(Text(remark))
        return drawn.get()

    def _tell(self, line: str) -> None:
        if not self._quiet:
            self._err.print(Text(text.clean(line, 1000)), soft_wrap=True)


class _Reading:
    """The result of what there is, for a machine, worked out beside what is done meanwhile."""

    def __init__(self, directory: Path, again: str) -> None:
        self._found: dict[str, Any] | None = None
        self._thread = threading.Thread(target=self._read, args=(directory, again), daemon=True)
        self._thread.start()

    def result(self, deadline: float) -> dict[str, Any] | None:
        """None when it is not there by ``deadline`` (``time.monotonic``), or the records cannot be read."""
        self._thread.join(max(deadline - time.monotonic(), 0.0))
        return self._found

    def _read(self, directory: Path, again: str) -> None:
        with suppress(NiffbenchError):
            run = read(directory)
            self._found = _as_json(run, outcome(run), None, again)


def _again(left: RunProgress, suite: str | None) -> str:
    """The command that goes on with a run, ``suite`` being how it was named this time."""
    return shlex.join(["niffbench", "run", suite or left.manifest.suite.name, "--resume", str(left.directory)])


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


def _write_aside(directory: Path) -> int:
    """Begin to write the report in a process that outlives this one; returns its process id.

    It ends with status 0 when the report is there. Drawn is what there is now, and nothing is written when the run
    has gone on meanwhile, or is doing so.
    """
    if (writer := os.fork()) != 0:
        return writer
    status = 1
    try:
        os.setsid()
        os.nice(_POLITE)
        signal.alarm(_LONGEST_REPORT)
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)
        nothing = os.open(os.devnull, os.O_RDWR)
        for descriptor in range(3):  # who reads our output in a pipe is not kept waiting
            os.dup2(nothing, descriptor)
        journal = directory / RECORDS
        size = journal.stat().st_size
        files = report.draw(read(directory))
        with Lock(directory):
            if journal.stat().st_size == size:
                report.save(files, directory)
                status = 0
    finally:
        os._exit(status)


def _status(writer: int, deadline: float) -> int | None:
    """Its exit status, not 0 when a signal ended it; None when it is at work until ``deadline``."""
    while time.monotonic() < deadline:
        ended, status = os.waitpid(writer, os.WNOHANG)
        if ended:
            return status
        time.sleep(0.02)
    return None


def _failures(found: Outcome) -> Table:
    """What was not measured, and why."""
    table = Table(title="not measured", title_justify="left", box=None, pad_edge=False, show_header=False)
    table.add_column(no_wrap=True)
    table.add_column(no_wrap=True)
    table.add_column(no_wrap=True)
    table.add_column(ratio=1)
    for failure in found.failures[:_MOST_LINES]:
        times = f" (in {failure.rounds} rounds)" if failure.rounds > 1 else ""
        row = (failure.status, failure.label, failure.problem, failure.reason + times)
        table.add_row(*(Text(text.clean(cell, 300)) for cell in row))
    if len(found.failures) > _MOST_LINES:
        table.add_row("…", f"{len(found.failures) - _MOST_LINES} more in the report", "", "")
    return table


def _remarks(run: Run, found: Outcome) -> list[str]:
    """What a reader of the table should know of it."""
    target = run.manifest.suite.measure.precision
    lines = [f"note: {text.clean(note, 300)}" for note in run.manifest.notes]
    if found.imprecise:
        worst = found.imprecise[0]
        reached = "an unknown precision" if worst.half_width is None else f"±{text.percent(worst.half_width)}"
        lines.append(
            f"precision: {len(found.imprecise)} of {found.series} series did not reach ±{text.percent(target)}; "
            f"the worst is {worst.label} at {worst.problem}, {worst.regime}, with {reached}"
        )
    if found.share is not None and run.manifest.wall is not None:
        lines.append(f"time: {clock(run.manifest.wall)}, {text.percent(found.share)} of it sampling")
    return [text.clean(line, 400) for line in lines]


def _as_json(run: Run, found: Outcome, page: Path | None, again: str) -> dict[str, Any]:
    """The result for a machine, in base units."""
    return {
        **_head(run.path, run.manifest, found.missing, page, again),
        "records": dict(found.counts),
        "measuring_share": found.share,
        "imprecise": [asdict(one) for one in found.imprecise],
        "cases": cases_for_machines(run),
    }


def _dumps(told: dict[str, Any]) -> str:
    return json.dumps(told, indent=1, allow_nan=False) + "\n"


def _head(directory: Path, manifest: Manifest, missing: int, page: Path | None, again: str) -> dict[str, Any]:
    """What the result says of the run as a whole, which no record needs to be read for.

    ``again`` is the command that goes on with it.
    """
    return {
        "directory": str(directory),
        "report": None if page is None else str(page),
        "suite": manifest.suite.name,
        "baseline": manifest.suite.baseline,
        "device": manifest.device,
        "fingerprint": manifest.fingerprint.hash,
        "rounds": manifest.rounds,
        "seed": manifest.seed,
        "complete": missing == 0,
        "missing": missing,
        "kept": len(manifest.suite.cases) * manifest.rounds - missing,
        "resume": again if missing else None,
        "wall": manifest.wall,
        "notes": manifest.notes,
    }
