"""The survey: what the machine is and can do at best, and what each case will need, before measuring."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from niffbench.case import Case
from niffbench.errors import NiffbenchError
from niffbench.fingerprint import Fingerprint
from niffbench.records import Ceilings
from niffbench.runner import messages
from niffbench.runner.interrupts import Interrupted, Interrupts
from niffbench.runner.process import WORKER, Death, Worker, WorkerBroken
from niffbench.runner.settings import Settings

STARTUP = 300.0
"""Seconds a worker may take to say hello: importing torch from a cold network disk takes minutes."""

CEILINGS = 120.0
"""Seconds the roofline may take to be measured: two, and what a library takes to load."""

_ATTEMPTS = 3


class TaskRefused(NiffbenchError):
    """The worker says why it cannot do any of it: no such device, an unreadable replay file."""

    def __init__(self, refusal: messages.Refused) -> None:
        super().__init__(refusal.message)
        self.exit_code = refusal.exit_code


@dataclass(frozen=True)
class Survey:
    """``free_memory`` in bytes; ``predictions`` by case id, complete unless the worker kept dying over them.

    ``note`` says why there are no ``ceilings`` where they were asked for.
    """

    fingerprint: Fingerprint
    free_memory: int | None = None
    predictions: Mapping[str, messages.Predicted] = field(default_factory=dict)
    ceilings: Ceilings | None = None
    note: str | None = None


def survey(
    cases: Sequence[Case],
    settings: Settings,
    stop: Interrupts,
    *,
    ceilings: bool = True,
    command: Sequence[str] = WORKER,
    meanwhile: Callable[[], None] | None = None,
) -> Survey:
    """Ask a worker of its own; ``meanwhile`` is called while it starts.

    A case whose prediction kills or hangs the worker has no prediction, and a machine whose roofline does has no
    ceilings. Raises TaskRefused, WorkerBroken when no
    worker starts, and Interrupted.
    """
    asked = _Questioning(list(cases), ceilings)
    for attempt in range(_ATTEMPTS):
        task = messages.Task(
            kind="survey",
            device=settings.device,
            cases=[case for case in cases if case.id not in asked.predictions],
            measure=settings.measure,
            seed=settings.seed,
            ceilings=ceilings and asked.ceilings is None,
            memory_limit=settings.memory_limit,
        )
        with Worker(task, stop.descriptor, command) as worker:
            stop.at_once = worker.kill
            if meanwhile is not None and attempt == 0:
                meanwhile()
            if asked.ask(worker, stop, settings.measure.case_timeout, last=attempt == _ATTEMPTS - 1):
                break
    stop.at_once = None
    assert asked.hello is not None  # the last attempt raises when there is none
    return Survey(asked.hello.fingerprint, asked.hello.free_memory, asked.predictions, asked.ceilings, asked.note)


class _Questioning:
    """What has been answered so far."""

    def __init__(self, cases: list[Case], ceilings: bool) -> None:
        self.hello: messages.Hello | None = None
        self.predictions: dict[str, messages.Predicted] = {}
        self.ceilings: Ceilings | None = None
        self.note: str | None = None
        self._cases = cases
        self._wanted = ceilings

    def ask(self, worker: Worker, stop: Interrupts, patience: float, *, last: bool) -> bool:
        """Listen to one worker until its end; True when it had nothing left to say.

        ``patience``: seconds a case may take; for the start there are :data:`STARTUP`, for the ceilings
        :data:`CEILINGS`. Raises WorkerBroken for one that does not say hello, unless it died and another may be
        tried.
        """
        greeted = False
        suspect: str | None = None
        while True:
            silence = patience if suspect else CEILINGS if greeted and self._all_told else STARTUP
            heard = worker.next(time.monotonic() + silence)
            if stop.requested:
                raise Interrupted("interrupted")
            match heard:
                case messages.Hello():
                    self.hello, greeted = heard, True
                case messages.Refused():
                    raise TaskRefused(heard)
                case messages.Begin():
                    suspect = heard.case
                case messages.Predicted():
                    self.predictions[heard.case] = heard
                    suspect = None
                case messages.Roofline():
                    self.ceilings = heard.ceilings
                case messages.End():
                    return True
                case Death() | None:
                    end = heard or "it did not answer in time"
                    if greeted and self._all_told:  # another worker would fare no better
                        if self._wanted and self.ceilings is None:
                            self.note = f"the machine's roofline could not be measured: {end}"
                        return True
                    if greeted:
                        self._blame(suspect, str(end))
                    elif last or heard is None:
                        raise WorkerBroken(f"no worker process can be started: {end}")
                    return False

    def _blame(self, suspect: str | None, end: str) -> None:
        """Do not ask again what ended the worker: the case it named, else the first it had not answered."""
        left = [case.id for case in self._cases if case.id not in self.predictions]
        blamed = suspect if suspect in left else left[0]
        self.predictions[blamed] = messages.Predicted(case=blamed, reason=f"the prediction failed: {end}")

    @property
    def _all_told(self) -> bool:
        """Whether every case has its answer, so that only the ceilings are to come."""
        return len(self.predictions) == len(self._cases)
