"""A run session: sees that every case has a record in every round, whatever becomes of the workers."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from math import inf
from pathlib import Path

from niffbench import protocol
from niffbench.anonymize import anonymize
from niffbench.case import Case
from niffbench.errors import plural
from niffbench.launch.base import WorkerBroken
from niffbench.operators.catalogue import catalogue
from niffbench.results import Manifest, Record, Status
from niffbench.session.budget import REPORT_TIME, Share, share
from niffbench.session.directory import RunProgress, write_manifest
from niffbench.session.interrupts import Interrupted, Interrupts
from niffbench.session.journal import Journal, JournalLost
from niffbench.session.nodes import Nodes, Whereabouts
from niffbench.session.plan import WORKER, Plan
from niffbench.session.refine import Refinement
from niffbench.session.worker_session import STARTUP, Answer, Loss, Observer, WorkerSession
from niffbench.suite import Measure, Settings, UserModule
from niffbench.worker.admission import Skip, refusal

MAX_LOSSES = 10
"""Workers in a row that may be lost over a case, none of them finishing one, before a round is given up."""
REFINING_ROUNDS = 12
"""Rounds that bracketing a crossover takes, about: four bisections of three. Pairs that there is no time for in so
many wait until others are done with."""
MAX_BLAMELESS = 5
"""Workers in a row that may be lost with no case to blame before the run is given up, unless they took long to."""


class RunSession:
    """Measures what is missing of the run in ``directory``, which is locked. It sleeps while a worker measures.

    Args:
        directory: Where the manifest is, and where the journal will be.
        manifest: The run's, as written.
        settings: Those of the manifest, with the device as this machine finds it.
        plan: Which cases fit, and how long they take.
        done: The records that are there already.
        began: When work on the run began, this time (``time.monotonic``).
        refinement: What is to be measured after all rounds, if anything.
        modules: The user's among the suite's operators.
    """

    def __init__(
        self,
        directory: Path,
        manifest: Manifest,
        settings: Settings,
        plan: Plan,
        done: Collection[Record],
        began: float,
        refinement: Refinement | None = None,
        modules: Sequence[UserModule] = (),
    ) -> None:
        self.directory = directory
        self.manifest = manifest
        self.plan = plan
        self.is_resumed = bool(done)
        self._settings = settings
        self._modules = list(modules)
        self._budget_began = began - (manifest.wall or 0.0)
        self._done = {(record.id, record.round) for record in done}
        self._overheads = [record.elapsed - record.measuring for record in done if record.elapsed > 0]
        self._checked: dict[str, list[protocol.Checked]] = {}
        for record in done:
            self._note_checked(record)
        self._exhausted = list(dict.fromkeys(record.case for record in done if record.status == "oom"))
        self._refinement = refinement
        if refinement is not None:
            for record in done:
                refinement.add(record)
        self._elapsed = [record.elapsed for record in done if record.elapsed > 0]
        self._refining = manifest.refining or 0.0
        self._notes = list(manifest.notes)
        self._nodes = Nodes(manifest, done)
        self._round = 0
        self._pending: dict[str, Case] = {}  # of the round, by id: what has no record yet
        self._losses = self._blameless = 0  # workers in a row, over a case each and over none
        self._last_good = time.monotonic()  # when a worker last got anywhere

    @property
    def progress(self) -> RunProgress:
        """How far it has come."""
        return RunProgress(self.directory, self.manifest, len(self._done))

    def measure(self, stop: Interrupts, observer: Observer | None = None) -> None:
        """Measure until no record is missing; the manifest says afterwards how long it took, and if that is so.

        Whatever ends it early, what was measured until then is in the journal.

        Raises:
            Interrupted: by a signal.
            JournalLost: when the run's directory cannot be written any more.
            WorkerBroken: when no worker comes to measuring.
            TaskRefused: when a worker cannot take the task.
            FingerprintsDiffer: when a worker finds another machine than the manifest's.
        """
        self._stop, self._observer = stop, observer or Observer()
        try:
            with Journal(self.directory) as journal:
                self._append: Callable[[Record], None] = journal.append
                for number in range(self._settings.rounds):
                    self._measure_round(number)
                if self._refinement is not None:
                    self._refine(self._refinement)
        except JournalLost:  # then the manifest cannot be written either
            raise
        except BaseException:
            self._conclude(finished=False)
            raise
        self._conclude(finished=not self.progress.missing)

    def _conclude(self, *, finished: bool) -> None:
        now = datetime.now(UTC).isoformat(timespec="seconds")
        update = {
            "wall": time.monotonic() - self._budget_began,
            "refining": self._refining or None,
            "finished": now if finished else None,
            "notes": list(dict.fromkeys(self._notes)),
        }
        self.manifest = self.manifest.model_copy(update=update)
        write_manifest(self.directory, self.manifest)

    def _measure_round(self, number: int) -> None:
        self._round = number
        cases = (forecast.case for forecast in self.plan.forecasts)
        self._pending = {case.id: case for case in cases if (case.id, number) not in self._done}
        if not self._pending:
            return
        for forecast in self.plan.forecasts:
            if forecast.skip is not None and forecast.case.id in self._pending:
                self._give_up(forecast.case, forecast.skip)
        allowed = self._allowed()
        if allowed.rounds == 0:
            self._give_up_rest(self._out_of_time())
        if not self._work_off(allowed.measure, self._deadline()):
            self._give_up_rest(self._out_of_time())

    def _refine(self, refinement: Refinement) -> None:
        """Bracket crossovers in further rounds, of probes alone, until nothing is wanted or time is up."""
        spent, began = self._refining, time.monotonic()
        deadline = began + refinement.refine.budget - spent
        if self._settings.budget is not None:
            deadline = min(deadline, self._budget_began + self._settings.budget - REPORT_TIME)
        each = sum(self._elapsed) / max(len(self._elapsed), 1)
        most = int(((deadline - began) / REFINING_ROUNDS - WORKER) / each) if each else None
        number = max(self._settings.rounds, 1 + max((number for _, number in self._done), default=0))
        try:
            while time.monotonic() < deadline and (wanted := refinement.wanted(most)):
                failures = refinement.failures
                for place in range(max(wanted.values())):
                    self._round = number
                    self._pending = {case.id: case for case, more in wanted.items() if more > place}
                    if not self._work_off(self._settings.measure, deadline):
                        break
                    number += 1
                    if refinement.failures > failures:  # then something else is wanted
                        break
        finally:
            self._refining = spent + time.monotonic() - began
        if unfinished := refinement.unfinished:
            self._notes.append(
                f"crossovers of {plural(unfinished, 'pair')} could be bracketed more closely: "
                "the time for it was used up"
            )

    def _work_off(self, measure: Measure, deadline: float) -> bool:
        """Let workers measure what is pending, one after another; False when ``deadline`` came before they had."""
        self._losses = 0
        while self._pending:
            self._skip_unfit()
            if self._pending and not self._run_worker(measure, deadline):
                return False
        return True

    def _run_worker(self, measure: Measure, deadline: float) -> bool:
        """Let one worker measure what it can of what is pending; False when ``deadline`` ended it."""
        predicted = (forecast.predicted for forecast in self.plan.forecasts)
        task = protocol.Task(
            kind="round",
            settings=self._settings.model_copy(update={"measure": measure}),
            cases=list(self._pending.values()),
            round=self._round,
            predictions=[one for one in predicted if one is not None and one.case in self._pending],
            checked={case: checks for case, checks in self._checked.items() if case in self._pending},
            modules=self._modules,
        )
        session = WorkerSession(
            task,
            self._stop,
            lambda answer: self._take(answer, session),
            fingerprint=self.manifest.fingerprint,
            deadline=deadline,
            observer=self._observer,
        )
        loss = session.run()
        if loss is not None:
            self._on_worker_lost(loss, self._whereabouts(session))
        return not self._pending or loss is not None or time.monotonic() < deadline

    def _take(self, answer: Answer, session: WorkerSession) -> None:
        """Keep what the worker of ``session`` says."""
        if isinstance(answer, protocol.Note):
            self._notes.append(anonymize(answer.text))
        elif isinstance(answer, protocol.Finished):
            record = answer.record
            reason = anonymize(record.reason) if record.reason else None
            self._write(replace(record, reason=reason, **self._whereabouts(session)))
            self._losses = self._blameless = 0
            self._last_good = time.monotonic()
            if record.status == "oom" and record.case not in self._exhausted:
                self._exhausted.append(record.case)

    def _whereabouts(self, session: WorkerSession) -> Whereabouts:
        """Where the worker of ``session`` is; a node that is new is in the manifest before any of its records."""
        where = self._nodes.of(session.hello)
        if len(self._nodes.fingerprints) > len(self.manifest.nodes):
            self.manifest = self.manifest.model_copy(update={"nodes": list(self._nodes.fingerprints)})
            write_manifest(self.directory, self.manifest)
        return where

    def _on_worker_lost(self, loss: Loss, where: Whereabouts) -> None:
        """Write down what the loss of a worker cost, and see whether another is worth starting."""
        if loss.case is None:
            self._blameless += 1
            if self._blameless >= MAX_BLAMELESS or time.monotonic() - self._last_good > STARTUP:
                count = f"{self._blameless} workers in a row were" if self._blameless > 1 else "a worker was"
                raise WorkerBroken(f"{count} lost, over no case: {loss.reason}")
            return
        self._blameless = 0
        self._last_good = time.monotonic()
        self._losses += 1
        self._give_up(loss.case, Skip(loss.reason), loss.status, loss.elapsed, where)
        if self._losses >= MAX_LOSSES:
            why = f"{MAX_LOSSES} workers in a row were lost over a case each, the last: {loss.reason}"
            self._give_up_rest(Skip(why))
            self._notes.append(f"round {self._round} was given up: {why}")

    def _allowed(self) -> Share:
        """What the budget leaves for this round and those after it; the first round is always made."""
        settings, rounds = self._settings, self._settings.rounds - self._round
        if settings.budget is None:
            return Share(rounds, settings.measure)
        left = self._budget_began + settings.budget - time.monotonic()
        overhead = self._overhead()
        if self._round > 0 and left <= overhead:
            return Share(0, settings.measure)
        cases = len(self._pending)
        allowed = share(left, rounds=rounds, cases=cases, overhead=overhead, measure=settings.measure)
        if allowed.is_less(rounds, settings.measure):
            self._notes.append(
                f"round {self._round}: the time budget of {settings.budget:g} s left "
                f"{allowed.measure.max_time:.3g} s of sampling a regime, and {allowed.rounds} of "
                f"{plural(rounds, 'round')}"
            )
        return allowed

    def _overhead(self) -> float:
        """Seconds of a round that are not sampling: as forecast at first, then as seen."""
        if not self._overheads:
            return self.plan.overhead
        mean = sum(self._overheads) / len(self._overheads)
        return mean * sum(forecast.skip is None for forecast in self.plan.forecasts)

    def _deadline(self) -> float:
        """When the budget ends (``time.monotonic``); the first round has all the time it needs."""
        if self._settings.budget is None or self._round == 0:
            return inf
        return self._budget_began + self._settings.budget - REPORT_TIME

    def _out_of_time(self) -> Skip:
        return Skip(f"the time budget of {self._settings.budget:g} s was used up")

    def _skip_unfit(self) -> None:
        """Skip what is larger than a case that ran out of memory."""
        for case in list(self._pending.values()):
            if (skip := refusal(case, catalogue(), unfit=self._exhausted)) is not None:
                self._give_up(case, skip)

    def _give_up_rest(self, skip: Skip) -> None:
        """Skip all that is left of a round."""
        for case in list(self._pending.values()):
            self._give_up(case, skip)

    def _give_up(
        self,
        case: Case,
        why: Skip,
        status: Status = "skipped",
        elapsed: float = 0.0,
        where: Whereabouts | None = None,
    ) -> None:
        """Write the record of a case that no worker will.

        Raises:
            Interrupted: of these there may be thousands.
        """
        if self._stop.requested:
            raise Interrupted("interrupted")
        self._write(
            Record(
                case=case,
                id=case.id,
                round=self._round,
                status=status,
                reason=why.reason,
                traits=catalogue()[case.operator].traits(case),
                needed=why.needed,
                available=why.available,
                elapsed=elapsed,
                **(where or {}),
            )
        )

    def _write(self, record: Record) -> None:
        self._append(record)
        self._done.add((record.id, record.round))
        if self._refinement is not None:
            self._refinement.add(record)
        del self._pending[record.id]
        if record.elapsed > 0:
            self._overheads.append(record.elapsed - record.measuring)
            self._elapsed.append(record.elapsed)
        self._note_checked(record)
        self._observer.record(record)

    def _note_checked(self, record: Record) -> None:
        """Remember what later rounds need not find out again; of a case that was wrong they try."""
        if record.status == "wrong" or record.numerics is None or record.cost is None:
            return
        checks = self._checked.setdefault(record.id, [])
        if all(check.engines != record.chosen for check in checks):
            checks.append(
                protocol.Checked(
                    engines=record.chosen, numerics=record.numerics, cost=record.cost, memory=record.memory
                )
            )
