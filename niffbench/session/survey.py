"""The survey: what the machine is and can do at best, and what each case will need, before measuring."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from niffbench import protocol
from niffbench.case import Case
from niffbench.errors import NiffbenchError
from niffbench.fingerprint import Fingerprint
from niffbench.launch.local import WORKER, Death, Worker, WorkerBroken
from niffbench.results import Ceilings, is_busy
from niffbench.session.interrupts import Interrupted, Interrupts
from niffbench.session.settings import Settings

STARTUP = 300.0
"""Seconds a worker may take to say hello: importing torch from a cold network disk takes minutes."""

CEILINGS = 120.0
"""Seconds the roofline may take to be measured: two, and what a library takes to load."""

_ATTEMPTS = 3


class TaskRefused(NiffbenchError):
    """The worker says why it cannot do any of it: no such device, an unreadable replay file."""

    def __init__(self, refusal: protocol.Refused) -> None:
        super().__init__(refusal.message)
        self.exit_code = refusal.exit_code


@dataclass(frozen=True)
class Survey:
    """``free_memory`` in bytes; ``predictions`` by case id, complete unless the worker kept dying over them.

    ``note`` says why there are no ``ceilings`` where they were asked for, or that they are in doubt: ``crowded``
    are those measured beside busy neighbours, lower than the machine's and all times expected from them longer.
    """

    fingerprint: Fingerprint
    free_memory: int | None = None
    predictions: Mapping[str, protocol.Predicted] = field(default_factory=dict)
    ceilings: Ceilings | None = None
    note: str | None = None
    crowded: bool = False


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
    ceilings; cases that use up all attempts leave one for the ceilings. Raises TaskRefused, WorkerBroken when no
    worker starts, and Interrupted.
    """
    dtypes = sorted({case.problem.precision for case in cases}) if ceilings else []
    asked = _Questioning()
    for attempt in range(_ATTEMPTS + bool(dtypes)):
        left = [case for case in cases if case.id not in asked.predictions] if attempt < _ATTEMPTS else []
        task = protocol.Task(
            kind="survey",
            device=settings.device,
            cases=left,
            measure=settings.measure,
            seed=settings.seed,
            ceilings=dtypes,
            memory_limit=settings.memory_limit,
        )
        with Worker(task, stop.descriptor, command) as worker:
            stop.at_once = worker.kill
            if meanwhile is not None and attempt == 0:
                meanwhile()
            if asked.ask(worker, task, stop, last=attempt == _ATTEMPTS - 1):
                break
    stop.at_once = None
    assert asked.hello is not None  # the last attempt raises when there is none
    return Survey(
        asked.hello.fingerprint,
        asked.hello.free_memory,
        asked.predictions,
        asked.ceilings,
        asked.note,
        is_busy(asked.others),
    )


class _Questioning:
    """What has been answered so far."""

    def __init__(self) -> None:
        self.hello: protocol.Hello | None = None
        self.predictions: dict[str, protocol.Predicted] = {}
        self.ceilings: Ceilings | None = None
        self.others: float | None = None
        self.note: str | None = None

    def ask(self, worker: Worker, task: protocol.Task, stop: Interrupts, *, last: bool) -> bool:
        """Listen to one worker at its ``task`` until its end; True when another would have no more to say.

        A case may be silent for its timeout, the start for :data:`STARTUP`, the ceilings for :data:`CEILINGS`.
        Raises WorkerBroken for one that was to predict and does not say hello, unless it died and another may be
        tried.
        """
        greeted = False
        suspect: str | None = None
        left = dict.fromkeys(case.id for case in task.cases)
        while True:
            silence = task.measure.case_timeout if suspect else CEILINGS if greeted and not left else STARTUP
            heard = worker.next(time.monotonic() + silence)
            if stop.requested:
                raise Interrupted("interrupted")
            match heard:
                case protocol.Hello():
                    self.hello, greeted = heard, True
                case protocol.Refused():
                    raise TaskRefused(heard)
                case protocol.Begin():
                    suspect = heard.case
                case protocol.Predicted():
                    self.predictions[heard.case] = heard
                    left.pop(heard.case, None)
                    suspect = None
                case protocol.Roofline():
                    self.ceilings, self.others = heard.ceilings, heard.others
                    if heard.reason is not None:
                        self.note = f"the machine's roofline could not be measured: {heard.reason}"
                    elif heard.others is not None and is_busy(heard.others):
                        self.note = (
                            f"other processes used {100 * heard.others:.0f} % of the processor while the "
                            "machine's roofline was measured: it may be too low"
                        )
                case protocol.End():
                    return True
                case Death() | None:
                    end = heard or "it did not answer in time"
                    if self.hello is not None and not left:  # another worker would fare no better
                        if task.ceilings and self.ceilings is None:
                            self.note = f"the machine's roofline could not be measured: {end}"
                        return True
                    if greeted:
                        # Not to be asked again: the case it named, else the first it had not answered.
                        blamed = suspect if suspect in left else next(iter(left))
                        reason = f"the prediction failed: {end}"
                        self.predictions[blamed] = protocol.Predicted(case=blamed, reason=reason)
                    elif last or heard is None:
                        raise WorkerBroken(f"no worker process can be started: {end}")
                    return False
