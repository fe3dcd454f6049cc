"""What ``niffbench run`` says: at its opening, while it measures, and at its close."""

from __future__ import annotations

import json
import os
import shlex
import signal
import sys
import time
from collections import Counter
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import asdict
from pathlib import Path
from statistics import median
from typing import Any, NoReturn

from rich.console import Console, RenderableType
from rich.table import Table
from rich.text import Text

from niffbench import report
from niffbench.commands.progress import Bar, clock
from niffbench.errors import FingerprintsDiffer, NiffbenchError, NothingMeasured, UsageError
from niffbench.records import REGIMES, Record, Run, read
from niffbench.report import text
from niffbench.report.metrics import latency_of
from niffbench.runner.campaign import Campaign
from niffbench.runner.interrupts import INTERRUPTED, Interrupted, Interrupts
from niffbench.runner.outcome import Outcome, outcome
from niffbench.runner.sitting import Observer
from niffbench.suite import Regime

_MOST_LINES = 20
_MOMENT = 0.8
"""Seconds after an interrupt until which its report is waited for."""
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

    def opening(self, campaign: Campaign) -> AbstractContextManager[Observer]:
        """Say what is going to be measured; returns the progress bar, or on no terminal a silent observer."""
        manifest = campaign.manifest
        facts = manifest.fingerprint.must
        machine = facts.get("gpu") or facts.get("processor") or facts.get("device")
        skipped = sum(forecast.skip is not None for forecast in campaign.plan.forecasts)
        total = len(manifest.suite.cases) * manifest.rounds
        left = campaign.plan.seconds * campaign.missing / max(total, 1)
        self._tell(
            f"{manifest.suite.name}: {len(manifest.suite.cases)} cases × {manifest.rounds} rounds on {machine}"
            + (f", {total - campaign.missing} of {total} records are there" if campaign.done else "")
            + (f", {skipped} cases will be skipped" if skipped else "")
            + (f"; about {clock(left)}" if campaign.missing else "; nothing is missing")
        )
        if self._quiet or not self._err.is_terminal or not campaign.missing:
            return nullcontext(Observer())
        labels = {forecast.case.id: forecast.label for forecast in campaign.plan.forecasts}
        return Bar(self._err, campaign.plan, labels, total, total - campaign.missing)

    def closing(
        self, campaign: Campaign, stopped: NiffbenchError | None, suite: str | None, stop: Interrupts
    ) -> int:
        """Write the report and print the result; returns the exit status. Raises NothingMeasured."""
        try:
            if isinstance(stopped, Interrupted):
                raise stopped
            with stop.at_any_moment():
                run = read(campaign.directory)
                found = outcome(run)
                page = _write(run) if self._report and found.measured else None
                result = self._result(run, found, page)
        except Interrupted as interrupted:
            self._part(campaign, interrupted, suite, stop.when + _MOMENT)
        self._print(result)
        if page is not None:
            self._tell(f"report: {page}")
        if stopped is None and not found.measured:
            first = found.failures[0]
            raise NothingMeasured(
                f"nothing could be measured; {first.label} at {first.problem}: {first.status}, {first.reason}"
            )
        if stopped is None:
            return 0
        self._say_how_to_go_on(campaign, stopped, suite)
        return INTERRUPTED if found.measured and not isinstance(stopped, FingerprintsDiffer) else stopped.exit_code

    def _part(self, campaign: Campaign, stopped: NiffbenchError, suite: str | None, deadline: float) -> NoReturn:
        """Take leave of somebody in a hurry: a process of its own writes the report, and is waited for until
        ``deadline`` (``time.monotonic``).
        """
        from niffbench.report.writing import PAGE

        writer = _write_aside(campaign.directory) if self._report and campaign.kept else None
        self._say_how_to_go_on(campaign, stopped, suite)
        done = writer is not None and _is_done(writer, deadline)
        if writer is not None:
            self._tell(f"report: {campaign.directory / PAGE}" + ("" if done else ", which is still being written"))
        if self._as_json:
            run = read(campaign.directory)
            self._print(self._result(run, outcome(run), campaign.directory / PAGE if done else None))
        with suppress(OSError):
            sys.stdout.flush()
        os._exit(INTERRUPTED)  # taking the interpreter down can take as long as all of this

    def _say_how_to_go_on(self, campaign: Campaign, stopped: NiffbenchError, suite: str | None) -> None:
        """Even when quiet: this is the only way to what was measured."""
        again = ["niffbench", "run", suite or campaign.manifest.suite.name, "--resume", str(campaign.directory)]
        told = f"{stopped}; {campaign.kept} records are kept, {campaign.missing} are missing; go on with:"
        self._err.print(Text(text.clean(told, 2000)), soft_wrap=True)
        self._err.print(Text(f"  {shlex.join(again)}"), soft_wrap=True)

    def _result(self, run: Run, found: Outcome, page: Path | None) -> list[RenderableType]:
        """What standard output is to show."""
        if self._as_json:
            return [json.dumps(_as_json(run, found, page), indent=1, allow_nan=False)]
        if self._quiet:
            return []
        tables = [report.terminal(run)] if found.measured else []
        tables += [_failures(found)] if found.failures else []
        return [*tables, *map(Text, _remarks(run, found))]

    def _print(self, result: list[RenderableType]) -> None:
        for part in result:
            if isinstance(part, str):
                sys.stdout.write(part + "\n")
            else:
                self._out.print(part)

    def _tell(self, line: str) -> None:
        if not self._quiet:
            self._err.print(Text(text.clean(line, 1000)), soft_wrap=True)


def _write(run: Run) -> Path:
    """Write the report; who cannot have it is told how to get it later."""
    try:
        return report.write(run, run.path)
    except UsageError as error:
        later = shlex.join(["niffbench", "report", str(run.path)])
        raise UsageError(f"{error}; the records are kept, so when that is mended: {later}") from error


def _write_aside(directory: Path) -> int:
    """Begin to write the report in a process that outlives this one; returns its process id."""
    if (writer := os.fork()) != 0:
        return writer
    try:
        os.setsid()
        os.nice(_POLITE)
        signal.alarm(_LONGEST_REPORT)
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)
        nothing = os.open(os.devnull, os.O_RDWR)
        for descriptor in range(3):  # who reads our output in a pipe is not kept waiting
            os.dup2(nothing, descriptor)
        run = read(directory)
        report.write(run, run.path)
    finally:
        os._exit(0)


def _is_done(writer: int, deadline: float) -> bool:
    """Whether it ends until then."""
    while time.monotonic() < deadline:
        if os.waitpid(writer, os.WNOHANG) != (0, 0):
            return True
        time.sleep(0.02)
    return False


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


def _as_json(run: Run, found: Outcome, page: Path | None) -> dict[str, Any]:
    """The result for a machine: latencies in seconds (medians of round medians), memory in bytes, real FLOPs."""
    manifest = run.manifest
    cases: dict[str, list[Record]] = {}
    for record in run.records:
        cases.setdefault(record.id, []).append(record)
    return {
        "directory": str(run.path),
        "report": None if page is None else str(page),
        "suite": manifest.suite.name,
        "baseline": manifest.suite.baseline,
        "device": manifest.device,
        "fingerprint": manifest.fingerprint.hash,
        "rounds": manifest.rounds,
        "seed": manifest.seed,
        "complete": found.missing == 0,
        "missing": found.missing,
        "records": dict(found.counts),
        "wall": manifest.wall,
        "measuring_share": found.share,
        "notes": manifest.notes,
        "imprecise": [asdict(one) for one in found.imprecise],
        "cases": [_case_as_json(records) for records in cases.values()],
    }


def _case_as_json(records: list[Record]) -> dict[str, Any]:
    """One case over its rounds; ``others`` is the largest share of the processor that other processes used."""
    case, measured = records[0].case, [record for record in records if record.status == "ok"]
    told = measured[0] if measured else None
    return {
        "id": records[0].id,
        "label": records[0].traits.label,
        "problem": asdict(case.problem),
        "kernel": case.kernel,
        "options": dict(case.options),
        "execution": case.execution,
        "records": dict(Counter(record.status for record in records)),
        "reasons": sorted({record.reason for record in records if record.reason}),
        "others": max(
            (r.machine.others for r in measured if r.machine and r.machine.others is not None), default=None
        ),
        "latency": {regime: value for regime in REGIMES if (value := _latency(measured, regime)) is not None},
        "memory_peak": None if told is None or told.memory is None else told.memory.peak,
        "flops": None if told is None or told.cost is None else told.cost.closed,
        "parameters": None if told is None else told.parameters,
    }


def _latency(records: list[Record], regime: Regime) -> float | None:
    medians = [value for record in records if (value := latency_of(record, regime)) is not None]
    return median(medians) if medians else None
