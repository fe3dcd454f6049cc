"""The progress bar: which case is measured, how much is done, and how long the rest will take."""

from __future__ import annotations

import html
import time
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from importlib import import_module

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from niffbench.case import Case
from niffbench.operators.catalogue import catalogue
from niffbench.report import text
from niffbench.results import Record
from niffbench.session.plan import Plan
from niffbench.session.run_session import RunSession
from niffbench.session.worker_session import Observer

_REDRAW = 0.5
"""Least seconds between two drawings: the bar must not cost what is measured its processor."""


class Bar(Observer):
    """A bar on standard error, while entered. It has no thread of its own: it is drawn when the session wakes.

    The time left is the plan's estimate for what remains, corrected by how it has fared so far.
    """

    interval = 1.0

    def __init__(self, console: Console, plan: Plan, labels: Mapping[str, str], total: int, done: int) -> None:
        self._labels = labels
        self._rounds = plan.rounds
        self._expected = {forecast.case.id: forecast.seconds for forecast in plan.forecasts}
        self._left = plan.rounds * sum(self._expected.values()) * (total - done) / max(total, 1)
        self._passed = 0.0
        self._started = time.monotonic()
        self._drawn = 0.0
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TextColumn("{task.fields[left]}"),
            console=console,
            auto_refresh=False,
            transient=True,
        )
        self._task = self._progress.add_task("starting a worker", total=total, completed=done, left="")

    def __enter__(self) -> Bar:
        self._progress.start()
        return self

    def __exit__(self, *failure: object) -> None:
        self._progress.stop()

    def stage(self, case: Case, stage: str, round_: int) -> None:
        """Show the case and the stage."""
        label = self._labels.get(case.id) or catalogue()[case.operator].label(case)
        place = f"round {round_ + 1}" if round_ < self._rounds else "crossovers"
        what = f"{place}: {label} {case.problem.label} {stage}"
        self._progress.update(self._task, description=escape(text.clean(what, 60).ljust(60)))
        self.wait()

    def record(self, record: Record) -> None:
        """Advance."""
        if record.round >= self._rounds:
            return
        expected = self._expected.get(record.id, 0.0)
        self._passed += expected
        self._left = max(0.0, self._left - expected)
        self._progress.update(self._task, advance=1)
        self.wait()

    def wait(self) -> None:
        """Draw, unless that was done just now."""
        now = time.monotonic()
        if now - self._drawn >= _REDRAW:
            self._drawn = now
            self._progress.update(self._task, left=self._time_left(now))
            self._draw()

    def _draw(self) -> None:
        self._progress.refresh()

    def _time_left(self, now: float) -> str:
        spent = now - self._started
        # The estimate is a guess until a few seconds have shown what it is worth.
        factor = spent / self._passed if self._passed > 0 and spent > 5 else 1.0
        return f"about {text.duration(self._left * factor)} left"


def expected(seconds: float, plan: Plan) -> str:
    """The time that something will take by ``plan``, and whether that can be believed."""
    if not plan.tried:
        return "nothing will be measured"
    doubt = (
        " (perhaps far less: other processes kept the machine busy while its speed was measured for this estimate)"
        if plan.crowded
        else ""
    )
    return f"about {text.duration(seconds)}{doubt}"


def bar_of(session: RunSession) -> AbstractContextManager[Observer]:
    """The progress of a new session: in a notebook's cell, on a terminal, or nowhere."""
    console = Console(stderr=True)
    if not (console.is_jupyter or console.is_terminal):
        return nullcontext(Observer())
    labels = {forecast.case.id: forecast.label for forecast in session.plan.forecasts}
    bar = NotebookBar if console.is_jupyter else Bar
    return bar(console, session.plan, labels, session.manifest.records, 0)


class NotebookBar(Bar):
    """The same in a notebook's cell."""

    def __enter__(self) -> NotebookBar:
        self._display = import_module("IPython.display")
        self._cell = self._display.display(self._display.HTML(""), display_id=True)
        return self

    def __exit__(self, *failure: object) -> None:
        self._cell.update(self._display.HTML(""))

    def _draw(self) -> None:
        task = self._progress.tasks[0]
        bar = f'<progress value="{task.completed}" max="{task.total}"></progress>'
        words = f"{task.completed:g} of {task.total:g} {task.description} {task.fields['left']}"
        self._cell.update(self._display.HTML(f"{bar} {html.escape(words)}"))
