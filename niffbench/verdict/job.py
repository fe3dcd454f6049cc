"""A verdict at work: its folder, its time, and the processes of its steps."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Literal

from niffbench.device import kind, kind_of
from niffbench.errors import NiffbenchError
from niffbench.session.interrupts import Interrupts

ROOT = Path(__file__).resolve().parents[2]
"""The folder of the package: a checkout, with tests beside it, or where packages are installed."""

GRACE = 8.0
"""Seconds that an interrupted process gets to write down what it has, and that are kept free at the end."""

LAST = 3.0
"""Seconds that killed processes get to be gone."""

GATHER_EVERY = 20.0
"""Seconds between two gatherings while a step lasts."""

Status = Literal["done", "cut", "failed", "skipped", "running"]


@dataclass(frozen=True)
class Outcome:
    """What became of a step: ``cut`` when its time ran out (what there is, is kept), ``skipped`` when it cannot be
    done here; ``detail`` says what came of it, or why not.
    """

    status: Status
    detail: str


@dataclass(frozen=True)
class StepResult:
    """A step as it is written down: times in seconds; ``allowed`` is its share of the time there was."""

    name: str
    group: str
    status: Status
    estimate: float
    allowed: float
    seconds: float
    detail: str


@dataclass(frozen=True)
class Settings:
    """What was asked for. ``rounds`` None: as the suite says."""

    device: str
    minutes: float
    rounds: int | None
    suites: tuple[str, ...]

    @property
    def is_rehearsal(self) -> bool:
        """Whether no GPU is asked, so that everything is done small."""
        return not kind(kind_of(self.device) or "").accelerator

    @property
    def place(self) -> str:
        """The device of steps that a replay cannot do."""
        return "cpu" if self.is_rehearsal else self.device


@dataclass(frozen=True)
class Finished:
    """A process that ended: its exit status, None when it had to be interrupted, and what it printed."""

    status: int | None
    text: str

    @property
    def last_line(self) -> str:
        """The last line that says something."""
        lines = (line.strip()[:200] for line in reversed(self.text.splitlines()))
        return next((line for line in lines if line), "nothing was said")

    def outcome(self, detail: str | None = None, fine: Sequence[int] = (0,)) -> Outcome:
        """As a step's, ``fine`` being the statuses of success; ``detail`` None: the last line."""
        cut = self.status is None or self.status == 130
        status: Status = "cut" if cut else "done" if self.status in fine else "failed"
        return Outcome(status, self.last_line if detail is None or status == "failed" else detail)


@dataclass
class Job:
    """What a step works with: ``folder`` is where results go, ``gather`` is called now and then while its
    processes run. Its share ends at ``until``, all that is allowed at ``deadline`` (``time.monotonic``).
    """

    settings: Settings
    folder: Path
    stop: Interrupts
    gather: Callable[[], None]
    deadline: float
    until: float = 0.0
    _processes: list[subprocess.Popen[bytes]] = field(default_factory=list)

    @property
    def left(self) -> float:
        """Seconds left of the step's share."""
        return max(self.until - time.monotonic(), 0.0)

    def cli(self, name: str, *arguments: str) -> Finished:
        """Run a command of niffbench for as long as the step may take."""
        return self.run(name, [["-m", "niffbench.cli", *arguments]])[0]

    def run(
        self, name: str, commands: Sequence[Sequence[str]], environments: Sequence[Mapping[str, str]] = ()
    ) -> list[Finished]:
        """Run ``python COMMAND`` of each side by side, interrupt those that outlast the step.

        Args:
            name: Of the logs; those of several commands are numbered.
            commands: Arguments of Python.
            environments: Variables of each command.
        """
        logs = self.folder / "logs"
        logs.mkdir(parents=True, exist_ok=True)
        names = [name] if len(commands) == 1 else [f"{name}-{number}" for number, _ in enumerate(commands, 1)]
        with ExitStack() as files:
            outputs = [files.enter_context((logs / f"{each}.txt").open("w+b")) for each in names]
            try:
                for place, command in enumerate(commands):
                    self._start(command, environments[place] if environments else {}, outputs[place])
                statuses = self._wait()
            finally:  # what one step leaves running would spoil the next
                self._end()
            texts = []
            for output in outputs:
                output.seek(0)
                texts.append(output.read().decode("utf-8", errors="replace"))
        return [Finished(status, text) for status, text in zip(statuses, texts, strict=True)]

    def kill(self) -> None:
        """End every process at once."""
        for process in self._processes:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)

    def _start(self, command: Sequence[str], variables: Mapping[str, str], output: IO[bytes]) -> None:
        path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
        fixed = {"PYTHONPATH": path, "NO_COLOR": "1", "COLUMNS": "120", "PYTHONUNBUFFERED": "1"}
        self._processes.append(
            subprocess.Popen(
                [sys.executable, *command],
                env={**os.environ, **fixed, **variables},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        )

    def _wait(self) -> list[int | None]:
        """The exit statuses of all that runs."""
        gathered = time.monotonic()
        while self._running() and self.left > 0 and not self.stop.requested:
            time.sleep(0.05)
            if time.monotonic() - gathered > GATHER_EVERY:
                with suppress(OSError, NiffbenchError):  # after the step all of it is gathered
                    self.gather()
                gathered = time.monotonic()
        interrupted = self._running()
        for process in interrupted:
            process.send_signal(signal.SIGINT)
        until = time.monotonic() + GRACE
        while self._running() and time.monotonic() < until:
            time.sleep(0.05)
        return [None if process in interrupted else process.returncode for process in self._processes]

    def _end(self) -> None:
        """Leave nothing running, but what the system itself takes longer to end: a driver may."""
        self.kill()
        until = time.monotonic() + LAST
        for process in self._processes:
            with suppress(subprocess.TimeoutExpired):
                process.wait(max(until - time.monotonic(), 0.0))
        self._processes.clear()

    def _running(self) -> list[subprocess.Popen[bytes]]:
        return [process for process in self._processes if process.poll() is None]


@contextmanager
def killing(job: Job) -> Iterator[None]:
    """End the job's processes when it is left, and when a second signal asks for the end at once."""
    with job.stop.killing(job.kill):
        try:
            yield
        finally:
            job.kill()
