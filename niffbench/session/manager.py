"""The manager: sees that every case has a record in every round, whatever becomes of the workers."""

from __future__ import annotations

import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from math import inf

from niffbench import protocol
from niffbench.anonymize import anonymize
from niffbench.case import Case
from niffbench.errors import plural
from niffbench.fingerprint import Fingerprint
from niffbench.launch.local import WORKER, Worker, WorkerBroken
from niffbench.operators.base import Operator
from niffbench.results import Record, Status
from niffbench.session.budget import CLOSING, Share, share
from niffbench.session.interrupts import Interrupted, Interrupts
from niffbench.session.journal import Journal
from niffbench.session.plan import Plan, Skip, too_large
from niffbench.session.settings import Settings
from niffbench.session.survey import STARTUP
from niffbench.session.worker_session import Failed, Observer, WorkerSession
from niffbench.suite import Measure
from niffbench.worker.dominance import dominated

MAX_DEATHS = 10
"""Workers in a row that may die over a case, none of them finishing one, before a round is given up."""
MAX_BLAMELESS = 5
"""Workers in a row that may end with no case to blame before the run is given up, unless they took long to."""


class Manager:
    """Runs what is missing of a run. It sleeps while a worker measures, and imports no torch.

    ``done`` are the records there are already; ``started`` (``time.monotonic``) is when the budget began to run,
    which for a resumed run is before this process. ``notes`` collects what the manifest should say.
    """

    def __init__(
        self,
        settings: Settings,
        plan: Plan,
        fingerprint: Fingerprint,
        operators: Mapping[str, Operator],
        journal: Journal,
        stop: Interrupts,
        *,
        done: Collection[Record] = (),
        started: float | None = None,
        observer: Observer | None = None,
        command: Sequence[str] = WORKER,
    ) -> None:
        self._settings = settings
        self._plan = plan
        self._fingerprint = fingerprint
        self._operators = operators
        self._journal = journal
        self._stop = stop
        self._started = time.monotonic() if started is None else started
        self._observer = observer or Observer()
        self._command = command
        self._done = {(record.id, record.round) for record in done}
        self._visits = [record for record in done if record.elapsed > 0]
        self._costs = {record.id: record.cost for record in done if record.cost and record.chosen is None}
        self._unfit = list(dict.fromkeys(record.case for record in done if record.status == "oom"))
        self._deaths = self._blameless = 0
        self._last_good = time.monotonic()  # when a worker last got anywhere
        self.notes: list[str] = []
        self.written = 0  # records

    def run(self) -> None:
        """Measure until no record is missing.

        Raises Interrupted, JournalLost, WorkerBroken, TaskRefused and FingerprintsDiffer; what was measured until
        then is in the journal.
        """
        try:
            for number in range(self._settings.rounds):
                self._round(number)
        finally:
            self._stop.at_once = None

    def _round(self, number: int) -> None:
        pending = {
            forecast.case.id: forecast.case
            for forecast in self._plan.forecasts
            if (forecast.case.id, number) not in self._done
        }
        if not pending:
            return
        for forecast in self._plan.forecasts:
            if forecast.skip is not None and forecast.case.id in pending:
                self._give_up(pending.pop(forecast.case.id), number, "skipped", forecast.skip)
        allowed = self._share(number, len(pending))
        if allowed.rounds == 0:
            self._abandon(pending, number, self._out_of_time())
        self._deaths = 0
        while pending:
            self._skip_dominating(pending, number)
            if pending:
                self._sit(number, pending, allowed.measure)

    def _share(self, number: int, visits: int) -> Share:
        """What the budget leaves for this round and those after it; the first round is always made."""
        settings, rounds = self._settings, self._settings.rounds - number
        if settings.budget is None:
            return Share(rounds, settings.measure)
        left = self._started + settings.budget - time.monotonic()
        if number > 0 and left <= self._overhead():
            return Share(0, settings.measure)
        allowed = share(left, rounds=rounds, visits=visits, overhead=self._overhead(), measure=settings.measure)
        if allowed.is_less(rounds, settings.measure):
            self.notes.append(
                f"round {number}: the time budget of {settings.budget:g} s left {allowed.measure.max_time:.3g} s "
                f"of sampling a regime, and {allowed.rounds} of {plural(rounds, 'round')}"
            )
        return allowed

    def _overhead(self) -> float:
        """Seconds of a round that are not sampling: as forecast at first, then as seen."""
        if not self._visits:
            return self._plan.overhead
        mean = sum(record.elapsed - record.measuring for record in self._visits) / len(self._visits)
        return mean * sum(forecast.skip is None for forecast in self._plan.forecasts)

    def _sit(self, number: int, pending: dict[str, Case], measure: Measure) -> None:
        """Let one worker process measure what it can of ``pending``; what has its record is taken out."""
        task = protocol.Task(
            kind="round",
            device=self._settings.device,
            cases=list(pending.values()),
            measure=measure,
            round=number,
            seed=self._settings.seed,
            memory_limit=self._settings.memory_limit,
            predictions=[
                forecast.predicted
                for forecast in self._plan.forecasts
                if forecast.predicted is not None and forecast.predicted.case in pending
            ],
            costs={case: cost for case, cost in self._costs.items() if case in pending},
        )

        def take(record: Record) -> None:
            self._write(replace(record, reason=anonymize(record.reason) if record.reason else None))
            del pending[record.id]
            self._deaths = self._blameless = 0
            self._last_good = time.monotonic()
            if record.status == "oom" and record.case not in self._unfit:
                self._unfit.append(record.case)

        with Worker(task, self._stop.descriptor, self._command) as worker:
            self._stop.at_once = worker.kill
            failed = WorkerSession(
                worker,
                pending,
                number,
                stop=self._stop,
                observer=self._observer,
                fingerprint=self._fingerprint,
                case_timeout=self._settings.measure.case_timeout,
                deadline=self._deadline(number),
                take=take,
                note=lambda text: self.notes.append(anonymize(text)),
            ).listen()
        if failed is not None:
            self._bear(failed, number, pending)
        elif time.monotonic() >= self._deadline(number):
            self._abandon(pending, number, self._out_of_time())

    def _bear(self, failed: Failed, number: int, pending: dict[str, Case]) -> None:
        """Write down what the loss of a worker cost, and see whether another is worth starting."""
        if failed.case is None:
            self._blameless += 1
            if self._blameless >= MAX_BLAMELESS or time.monotonic() - self._last_good > STARTUP:
                count = f"{self._blameless} workers in a row were" if self._blameless > 1 else "a worker was"
                raise WorkerBroken(f"{count} lost, over no case: {failed.reason}")
            return
        self._blameless = 0
        self._last_good = time.monotonic()
        self._deaths += 1
        self._give_up(pending.pop(failed.case), number, failed.status, Skip(failed.reason), failed.elapsed)
        if self._deaths >= MAX_DEATHS:
            why = f"{MAX_DEATHS} workers in a row were lost over a case each, the last: {failed.reason}"
            self._abandon(pending, number, Skip(why))
            self.notes.append(f"round {number} was given up: {why}")

    def _deadline(self, number: int) -> float:
        """When the budget ends (``time.monotonic``); the first round has all the time it needs."""
        if self._settings.budget is None or number == 0:
            return inf
        return self._started + self._settings.budget - CLOSING

    def _out_of_time(self) -> Skip:
        return Skip(f"the time budget of {self._settings.budget:g} s was used up")

    def _skip_dominating(self, pending: dict[str, Case], number: int) -> None:
        """Skip what is larger than a case that ran out of memory; that case itself gets its chance every round."""
        for case in list(pending.values()):
            others = [unfit for unfit in self._unfit if unfit != case]
            if (other := dominated(case, others)) is not None:
                label = self._operators[other.operator].label(other)
                self._give_up(pending.pop(case.id), number, "skipped", too_large(other, label))

    def _abandon(self, pending: dict[str, Case], number: int, skip: Skip) -> None:
        """Skip all that is left of a round."""
        for case in pending.values():
            self._give_up(case, number, "skipped", skip)
        pending.clear()

    def _give_up(self, case: Case, number: int, status: Status, why: Skip, elapsed: float = 0.0) -> None:
        """Write the record of a case that no worker will. Raises Interrupted: of these there may be thousands."""
        if self._stop.requested:
            raise Interrupted("interrupted")
        self._write(
            Record(
                case=case,
                id=case.id,
                round=number,
                status=status,
                reason=why.reason,
                traits=self._operators[case.operator].traits(case),
                needed=why.needed,
                available=why.available,
                elapsed=elapsed,
            )
        )

    def _write(self, record: Record) -> None:
        self._journal.append(record)
        self.written += 1
        if record.elapsed > 0:
            self._visits.append(record)
        if record.cost is not None and record.chosen is None:
            self._costs[record.id] = record.cost
        self._observer.record(record)
