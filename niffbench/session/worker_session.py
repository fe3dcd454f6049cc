"""One worker's session: the conversation with it, from its task to its end."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from math import inf

from niffbench import protocol
from niffbench.case import Case
from niffbench.errors import FingerprintsDiffer, NiffbenchError, UsageError, plural
from niffbench.fingerprint import Fingerprint, differences
from niffbench.launch import launcher
from niffbench.launch.base import Worker, WorkerEnd
from niffbench.results import ModuleSource, Record, Status
from niffbench.session.interrupts import Interrupted, Interrupts

STARTUP = 300.0
"""Seconds a worker may take to say hello: importing torch from a cold network disk takes minutes."""
CEILINGS = 120.0
"""Seconds the roofline may take to be measured: two, and what a library takes to load."""
FAREWELL = 10.0
"""Seconds a worker may take to end once it has answered everything."""

Answer = protocol.Predicted | protocol.Roofline | protocol.Finished | protocol.Note


class TaskRefused(NiffbenchError):
    """The worker says why it cannot do any of its task: no such device, an unreadable replay file."""

    def __init__(self, refusal: protocol.Refused) -> None:
        super().__init__(refusal.message)
        self.exit_code = refusal.exit_code
        self.node = refusal.node


class SourcesDiffer(UsageError):
    """A module of the user's is another on a node than where the run was begun."""


class Observer:
    """Hears how a run goes.

    Attributes:
        interval: seconds between calls of :meth:`wait` while nothing happens, or None.
    """

    interval: float | None = None

    def stage(self, case: Case, stage: str, round_: int) -> None:
        """A worker begins a stage of a case."""

    def record(self, record: Record) -> None:
        """A record is in the journal."""

    def wait(self) -> None:
        """Time passes."""


@dataclass(frozen=True)
class Loss:
    """Why a worker was lost, and over which case, if any: its record gets ``status`` and ``elapsed`` seconds.

    Without a case these are the seconds in which nothing had been heard.

    Attributes:
        silent: it did not end, it was given up.
        taken: it was taken away; the case that was at work is not to blame.
        recalled: ... by whoever lent its machine, and that may happen any number of times.
        node: what an engine calls a machine that is of no use.
    """

    reason: str
    case: Case | None = None
    status: Status = "crashed"
    elapsed: float = 0.0
    silent: bool = False
    taken: bool = False
    recalled: bool = False
    node: str | None = None


@dataclass
class _Clock:
    """How long each case has taken in one worker, all its stages, and which one is being worked at."""

    since: float
    case: str | None = None
    stage: str = "start"
    _spent: dict[str, float] = field(default_factory=dict)

    def turn(self, now: float, case: str | None, stage: str = "between cases") -> None:
        """From ``now`` on (``time.monotonic``), the time is ``case``'s; None: nobody's."""
        if self.case is not None:
            self._spent[self.case] = self.spent(self.case, now)
        self.since, self.case, self.stage = now, case, stage

    def spent(self, case: str, now: float) -> float:
        """Seconds spent on a case until ``now``."""
        return self._spent.get(case, 0.0) + (now - self.since if case == self.case else 0.0)


class WorkerSession:
    """Gives ``task`` to a worker and listens to it until it ends, or must.

    ``hello`` is its first reply, ``unanswered`` the cases of the task that it has not answered, by id.

    Args:
        task: A survey or a round.
        stop: Ends the session when the end is asked for.
        take: Is called with each answer that was asked for, and with notes.
        fingerprint: Of the machine that the worker must be on; None for any.
        sources: What it must find of the user's modules on a node of an engine's.
        deadline: When the worker is ended whatever is unanswered (``time.monotonic``).
        observer: Hears of stages.
    """

    def __init__(
        self,
        task: protocol.Task,
        stop: Interrupts,
        take: Callable[[Answer], None],
        *,
        fingerprint: Fingerprint | None = None,
        sources: Sequence[ModuleSource] | None = None,
        deadline: float = inf,
        observer: Observer | None = None,
    ) -> None:
        self.hello: protocol.Hello | None = None
        self.unanswered = {case.id: case for case in task.cases}
        self._task = task
        self._stop = stop
        self._take = take
        self._fingerprint = fingerprint
        self._sources = sources
        self._deadline = deadline
        self._observer = observer or Observer()
        self._case_timeout = task.settings.measure.case_timeout
        self._roofline_due = bool(task.ceilings)
        self._clock = _Clock(time.monotonic())
        self._is_queued = False

    def run(self) -> Loss | None:
        """Start the worker and hear it out; returns why it was lost, None when nothing went wrong.

        It raises whatever ``take`` raises, too.

        Raises:
            Interrupted: by a signal.
            WorkerBroken: when it cannot be started.
            TaskRefused: when it cannot take the task.
            FingerprintsDiffer: when it finds another machine than the manifest's.
            SourcesDiffer: when it finds other modules than the manifest's.
        """
        try:
            started = launcher(self._task.settings.launcher).start(self._task, self._stop.descriptor)
        except NiffbenchError:
            if self._stop.requested:  # an engine was waited for, in vain
                raise Interrupted("interrupted") from None
            raise
        with started as worker, self._stop.killing(worker.kill):
            return self._listen(worker)

    def _listen(self, worker: Worker) -> Loss | None:
        while True:
            self._is_queued = worker.is_queued
            message = worker.next(self._next_look())
            now = time.monotonic()
            if self._is_queued:
                self._is_queued = worker.is_queued
                self._clock = _Clock(now)
            if self._stop.requested:
                for reply in (message, *worker.arrived()):  # what was finished before is measured
                    self._answer(reply)
                raise Interrupted("interrupted")
            match message:
                case None if now >= self._limit():
                    return self._hang(now)
                case None if now >= self._deadline:
                    return None
                case None:
                    self._observer.wait()
                case protocol.Hello():
                    self.hello = message
                    self._compare(message)
                    self._clock.turn(now, None)
                case protocol.Begin() if message.case in self.unanswered:
                    self._clock.turn(now, message.case, message.stage)
                    self._observer.stage(self.unanswered[message.case], message.stage, self._task.round)
                case protocol.Refused():
                    raise TaskRefused(message)
                case protocol.End() if self.unanswered:
                    return Loss(f"the worker ended without a word on {plural(len(self.unanswered), 'case')}")
                case protocol.End():
                    return None
                case WorkerEnd():
                    return self._death(message, now)
                case _ if self._answer(message):
                    if not isinstance(message, protocol.Note):
                        self._clock.turn(now, None)
                case _:
                    return Loss(f"the worker sent '{message.type}' of a case it was not asked for")

    def _answer(self, message: protocol.Reply | WorkerEnd | None) -> bool:
        """Take ``message`` if it is an answer that was asked for; whether it is."""
        match message:
            case protocol.Note():
                pass
            case protocol.Predicted(case=case) if self._task.kind == "survey" and case in self.unanswered:
                del self.unanswered[case]
            case protocol.Finished(record=record) if (
                self._task.kind == "round"
                and record.round == self._task.round
                and self.unanswered.get(record.id) == record.case
            ):
                del self.unanswered[record.id]
            case protocol.Roofline() if self._roofline_due:
                self._roofline_due = False
            case _:
                return False
        self._take(message)
        return True

    def _limit(self) -> float:
        """When the worker has hung (``time.monotonic``): a case has its timeout for all its stages together."""
        if self._is_queued:
            return inf
        if self._clock.case is None:
            return self._clock.since + self._patience()
        return self._clock.since + self._case_timeout - self._clock.spent(self._clock.case, self._clock.since)

    def _patience(self) -> float:
        """Seconds of silence that are allowed while no case is being worked at."""
        if self.hello is None:
            return STARTUP
        if self.unanswered:  # before its first case it loads what all need, however short a case's timeout
            return max(self._case_timeout, CEILINGS)
        return CEILINGS if self._roofline_due or self._task.counts_ahead else FAREWELL

    def _next_look(self) -> float:
        """When to stop sleeping, whatever happens."""
        interval = self._observer.interval
        return min(self._limit(), self._deadline, inf if interval is None else time.monotonic() + interval)

    def _compare(self, hello: protocol.Hello) -> None:
        ours, theirs = self._fingerprint, hello.fingerprint
        if ours is not None and (unlike := differences(ours.must, theirs.must)):
            changes = "; ".join(f"{key} was {was!r} and is {now!r}" for key, (was, now) in unlike.items())
            raise FingerprintsDiffer(f"this is not the machine the run was begun on: {changes}")
        if hello.node is None or self._sources is None:  # an edit of what is here is found when a run is resumed
            return
        for here, there in zip(self._sources, hello.modules, strict=False):
            if here != there:
                raise SourcesDiffer(f"{here.file or here.operator} is another there than where the run was begun")

    def _hang(self, now: float) -> Loss | None:
        if self._clock.case is None:
            reason = f"the worker was silent for {self._patience():g} s ({self._clock.stage})"
        else:
            reason = f"took longer than {self._case_timeout:g} s (in {self._clock.stage})"
        return self._loss(Loss(reason, silent=True), now)

    def _death(self, end: WorkerEnd, now: float) -> Loss | None:
        stage = None if self._clock.case is None else self._clock.stage
        loss = Loss(end.during(stage), taken=end.taken, recalled=end.recalled, node=end.node)
        return self._loss(loss, now)

    def _loss(self, loss: Loss, now: float) -> Loss | None:
        """``loss`` with what it costs; none when everything is answered."""
        if self.hello is not None and not self.unanswered and not self._roofline_due:
            return None
        if (case := self._clock.case) is None:
            node = loss.node
            if node is None and self.hello is not None and not loss.taken:
                node = self.hello.node
            return replace(loss, elapsed=now - self._clock.since, node=node)
        status: Status = "timeout" if loss.silent else "crashed"
        return replace(loss, case=self.unanswered[case], status=status, elapsed=self._clock.spent(case, now))
