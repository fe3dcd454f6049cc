"""A sitting: the manager's conversation with one worker, from hello to its end."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from niffbench import protocol
from niffbench.case import Case
from niffbench.errors import FingerprintsDiffer, plural
from niffbench.fingerprint import Fingerprint, differences
from niffbench.launch.local import Death, Worker
from niffbench.results import Record, Status
from niffbench.session.interrupts import Interrupted, Interrupts
from niffbench.session.survey import STARTUP, TaskRefused

FAREWELL = 10.0
"""Seconds a worker may take to end once it has no case left."""


class Observer:
    """Hears how a run goes. ``interval``: seconds between calls of :meth:`wait` while nothing happens, or None."""

    interval: float | None = None

    def turn(self, case: Case, stage: str, round_: int) -> None:
        """A worker begins a stage of a case."""

    def record(self, record: Record) -> None:
        """A record is in the journal."""

    def wait(self) -> None:
        """Time passes."""


@dataclass(frozen=True)
class Failed:
    """The worker is lost, and why: over a case, with the status and time in seconds that its record gets, or
    over none.
    """

    reason: str
    case: str | None = None
    status: Status = "crashed"
    elapsed: float = 0.0


@dataclass
class Clock:
    """How long each case has taken in one worker, all its stages, and which one is being worked at."""

    since: float
    case: str | None = None
    stage: str = "start"
    _spent: dict[str, float] = field(default_factory=dict)

    def turn(self, now: float, case: str | None, stage: str = "between cases") -> None:
        """From ``now`` on (``time.monotonic``), the time is ``case``'s; None: nobody's."""
        if self.case is not None:
            self._spent[self.case] = self.on(self.case, now)
        self.since, self.case, self.stage = now, case, stage

    def on(self, case: str, now: float) -> float:
        """Seconds spent on a case until ``now``."""
        return self._spent.get(case, 0.0) + (now - self.since if case == self.case else 0.0)


class WorkerSession:
    """Listens to ``worker``, which was given the cases of ``pending`` in round ``number``.

    ``take`` journals a finished record and removes it from ``pending``; ``note`` hears what the manifest should
    say. ``deadline`` (``time.monotonic``) ends the sitting whatever is pending.
    """

    def __init__(
        self,
        worker: Worker,
        pending: dict[str, Case],
        number: int,
        *,
        stop: Interrupts,
        observer: Observer,
        fingerprint: Fingerprint,
        case_timeout: float,
        deadline: float,
        take: Callable[[Record], None],
        note: Callable[[str], None],
    ) -> None:
        self._worker = worker
        self._pending = pending
        self._number = number
        self._stop = stop
        self._observer = observer
        self._fingerprint = fingerprint
        self._case_timeout = case_timeout
        self._deadline = deadline
        self._take = take
        self._note = note
        self._patience = STARTUP  # seconds of silence allowed when no case is being worked at
        self._clock = Clock(time.monotonic())

    def listen(self) -> Failed | None:
        """Until the worker ends or must end; None when nothing went wrong.

        Raises Interrupted, TaskRefused, FingerprintsDiffer, and whatever ``take`` raises.
        """
        while True:
            heard = self._worker.next(self._next_look())
            now = time.monotonic()
            if self._stop.requested:
                self._save([heard, *self._worker.unheard()])
                raise Interrupted("interrupted")
            match heard:
                case None if now >= self._limit():
                    return self._hang(now) if self._pending else None
                case None if now >= self._deadline:
                    return None
                case None:
                    self._observer.wait()
                case protocol.Hello():
                    self._compare(heard.fingerprint)
                    self._patience = self._case_timeout
                    self._clock.turn(now, None)
                case protocol.Begin() if heard.case in self._pending:
                    self._clock.turn(now, heard.case, heard.stage)
                    self._observer.turn(self._pending[heard.case], heard.stage, self._number)
                case protocol.Finished(record=record) if self._is_asked_for(record):
                    self._clock.turn(now, None)
                    self._take(record)
                    if not self._pending:
                        self._patience = FAREWELL
                case protocol.Note():
                    self._note(heard.text)
                case protocol.Refused():
                    raise TaskRefused(heard)
                case protocol.End() if self._pending:
                    return Failed(f"the worker ended without a word on {plural(len(self._pending), 'case')}")
                case protocol.End():
                    return None
                case Death():
                    return self._death(heard, now) if self._pending else None
                case _:
                    return Failed(f"the worker sent '{heard.type}' of a case it was not asked for")

    def _save(self, heard: Sequence[protocol.Reply | Death | None]) -> None:
        """Take what was finished before the end was asked for: it is measured."""
        for reply in heard:
            if isinstance(reply, protocol.Finished) and self._is_asked_for(reply.record):
                self._take(reply.record)

    def _limit(self) -> float:
        """When the worker has hung."""
        if self._clock.case is None:
            return self._clock.since + self._patience
        return self._clock.since + self._case_timeout - self._clock.on(self._clock.case, self._clock.since)

    def _next_look(self) -> float:
        """When to stop sleeping, whatever happens."""
        interval = self._observer.interval
        tick = [] if interval is None else [time.monotonic() + interval]
        return min(self._limit(), self._deadline, *tick)

    def _compare(self, fingerprint: Fingerprint) -> None:
        if unlike := differences(self._fingerprint.must, fingerprint.must):
            told = "; ".join(f"{key} was {was!r} and is {now!r}" for key, (was, now) in unlike.items())
            raise FingerprintsDiffer(f"this is not the machine the run was begun on: {told}")

    def _is_asked_for(self, record: Record) -> bool:
        return record.round == self._number and self._pending.get(record.id) == record.case

    def _hang(self, now: float) -> Failed:
        case = self._clock.case
        if case is None:
            return Failed(f"the worker was silent for {self._patience:g} s ({self._clock.stage})")
        reason = f"took longer than {self._case_timeout:g} s (in {self._clock.stage})"
        return Failed(reason, case, "timeout", self._clock.on(case, now))

    def _death(self, death: Death, now: float) -> Failed:
        case = self._clock.case
        if case is None:
            return Failed(str(death))
        reason = f"{death.cause} during {self._clock.stage}"
        if death.last_lines:
            reason += f"; its last lines: {' | '.join(death.last_lines)}"
        return Failed(reason, case, "crashed", self._clock.on(case, now))
