"""A run session: sees that every case has a record in every round, whatever becomes of the workers."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import replace
from datetime import UTC, datetime
from math import inf
from pathlib import Path
from typing import NamedTuple

from niffbench import protocol
from niffbench.anonymize import anonymize
from niffbench.case import Case
from niffbench.errors import FingerprintsDiffer, NiffbenchError, plural
from niffbench.fingerprint import Fingerprint
from niffbench.launch import launcher
from niffbench.launch.base import WorkerBroken
from niffbench.operators.catalogue import catalogue
from niffbench.results import Manifest, Record, Status
from niffbench.session.budget import REPORT_TIME, Share, share
from niffbench.session.directory import RunProgress, write_manifest
from niffbench.session.disturbance import measure_disturbance
from niffbench.session.interrupts import Interrupted, Interrupts
from niffbench.session.journal import Journal, JournalLost
from niffbench.session.lock import device_lock
from niffbench.session.nodes import Nodes, Whereabouts
from niffbench.session.plan import WORKER, Plan
from niffbench.session.refine import Refinement
from niffbench.session.units import MAX_BLAMELESS, MAX_LOSSES, Unit, Units, problems_of, shards_for
from niffbench.session.worker_session import (
    STARTUP,
    Answer,
    Loss,
    Observer,
    SourcesDiffer,
    TaskRefused,
    WorkerSession,
)
from niffbench.suite import Measure, Settings, UserModule
from niffbench.worker.admission import Skip, refusal

REFINING_ROUNDS = 12
"""Rounds that bracketing a crossover takes, about: four bisections of three. Pairs that there is no time for in so
many wait until others are done with."""


class Unheard(NamedTuple):
    """A record that is in no journal yet, and the first words of the worker that made it."""

    hello: protocol.Hello
    record: Record


class RunSession:
    """Measures what is missing of the run in ``directory``, which is locked. It sleeps while workers measure.

    Where a launcher runs several workers at once, each has a thread of its own here, and one of them at a time
    touches the session's state and its journal.

    Args:
        directory: Where the manifest is, and where the journal will be.
        manifest: The run's, as written.
        settings: Those of the manifest, with the device as this machine finds it.
        plan: Which cases fit, and how long they take.
        done: The records that are there already.
        began: When work on the run began, this time (``time.monotonic``).
        refinement: What is to be measured after all rounds, if anything.
        modules: The user's among the suite's operators.
        unheard: What workers of an earlier session finished after it had ended.
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
        unheard: Sequence[Unheard] = (),
    ) -> None:
        self.directory = directory
        self.manifest = manifest
        self.plan = plan
        self.is_resumed = bool(done)
        self.settings = settings
        self._modules = list(modules)
        self._unheard = unheard
        self._budget_began = began - (manifest.wall or 0.0)
        self._done = {(record.id, record.round) for record in done}
        self._overheads = [_overhead(record) for record in done if record.elapsed > 0]
        self._checked: dict[str, list[protocol.Checked]] = {}
        for record in done:
            self._note_checked(record)
        self._exhausted = list(dict.fromkeys(record.case for record in done if record.status == "oom"))
        self._refinement = refinement
        if refinement is not None:
            for record in done:
                refinement.add(record)
        self._elapsed = [record.elapsed for record in done if record.elapsed > 0]
        self._starts: list[float] = []  # seconds of each worker that no case took
        self._refining = manifest.refining or 0.0
        self._notes = list(manifest.notes)
        self._nodes = Nodes(manifest, directory, done)
        self._cards = {manifest.fingerprint.should.get("gpu_id")}  # that are locked; the first since the opening
        self._launcher = launcher(settings.launcher)
        self._units = Units({})
        self._allowances: dict[int, Measure] = {}  # how cases are measured, by round that was begun
        self._changed = threading.Condition(threading.RLock())  # held by whoever touches any of this
        self._failure: BaseException | None = None  # what ends the session, in whatever thread
        self._predicted = {
            forecast.case.id: forecast.predicted for forecast in plan.forecasts if forecast.predicted is not None
        }

    @property
    def progress(self) -> RunProgress:
        """How far it has come."""
        return RunProgress.of(self.directory, self.manifest, len(self._done))

    @property
    def workers(self) -> int:
        """How many measure at once."""
        return self._launcher.workers

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
            with Journal(self.directory) as journal, ExitStack() as self._locks:
                self._append: Callable[[Record], None] = journal.append
                self._take_turns_if_disturbed()
                for hello, record in self._unheard:
                    if (record.id, record.round) not in self._done:  # the journal's last line was mended meanwhile
                        self._keep(record, self._whereabouts(hello))
                self._measure_rounds()
                if self._refinement is not None:
                    self._refine(self._refinement)
        except JournalLost:  # then the manifest cannot be written either
            raise
        except BaseException:
            self._conclude(finished=False)
            raise
        self._conclude(finished=not self.progress.missing)

    def _take_turns_if_disturbed(self) -> None:
        """Measure on one device at a time where several disturb each other, unless asked otherwise."""
        at_once = self.settings.at_once
        if at_once is False:
            self._launcher.workers = 1
        if self.workers < 2 or len(self._launcher.devices) < 2 or not self.progress.missing:
            return
        disturbance = self.manifest.disturbance
        if disturbance is None or disturbance.devices != len(self._launcher.devices):
            fingerprint = self.manifest.fingerprint
            disturbance = measure_disturbance(
                self._launcher, self.plan, self.settings, self._modules, fingerprint, self._stop
            )
            self.manifest = self.manifest.model_copy(update={"disturbance": disturbance})
            write_manifest(self.directory, self.manifest)
        if disturbance is None:
            self._notes.append("whether the devices disturb each other could not be measured")
        if (disturbance is None or disturbance.in_turn) and not at_once:
            self._launcher.workers = 1

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

    def _measure_rounds(self) -> None:
        cases = [forecast.case for forecast in self.plan.forecasts]
        missing = {
            number: [case for case in cases if (case.id, number) not in self._done]
            for number in range(self.settings.rounds)
        }
        self._work_off(missing, begin=self._begin_round)

    def _begin_round(self, number: int) -> Measure:
        """How cases are measured in a round, of which what will not be measured at all is given up."""
        pending = {case.id: case for unit in self._units.of_round(number) for case in unit.missing.values()}
        for forecast in self.plan.forecasts:
            if forecast.skip is not None and forecast.case.id in pending:
                del pending[forecast.case.id]
                self._give_up(forecast.case, number, forecast.skip)
        allowed = self._allowed(number, len(pending))
        if allowed.rounds == 0:
            for case in pending.values():
                self._give_up(case, number, self._out_of_time())
        return allowed.measure

    def _refine(self, refinement: Refinement) -> None:
        """Bracket crossovers in further rounds, of probes alone, until nothing is wanted or time is up."""
        spent, began = self._refining, time.monotonic()
        deadline = began + refinement.refine.budget - spent
        if self.settings.budget is not None:
            deadline = min(deadline, self._budget_began + self.settings.budget - REPORT_TIME)
        each = sum(self._elapsed) / max(len(self._elapsed), 1)
        most = int(((deadline - began) / REFINING_ROUNDS - self._start()) / each * self.workers) if each else None
        number = max(self.settings.rounds, 1 + max((number for _, number in self._done), default=0))
        try:
            while time.monotonic() < deadline and (wanted := refinement.wanted(most)):
                failures = refinement.failures
                for place in range(max(wanted.values())):
                    cases = [case for case, more in wanted.items() if more > place]
                    self._work_off({number: cases}, deadline=deadline)
                    if not self._units.is_done:
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

    def _work_off(
        self,
        missing: Mapping[int, Sequence[Case]],
        *,
        begin: Callable[[int], Measure] | None = None,
        deadline: float | None = None,
    ) -> None:
        """Let workers measure what is ``missing`` by round; without ``begin``, no longer than ``deadline``.

        Args:
            begin: is called once for a round before any worker gets a case of it.
        """
        workers = self.workers
        cases = max(missing.values(), key=len, default=())
        seconds = self.plan.seconds / max(self.plan.rounds, 1)
        self._units = Units(missing, shards_for(workers, len(missing), problems_of(cases), seconds))
        self._begin, self._probing_until = begin, deadline
        if workers == 1:
            self._serve()
            return
        if begin is not None and self.settings.budget is None:  # else it depends on the time that is left by then
            self._allowances |= {number: begin(number) for number in missing}
            self._launcher.announce([self._task(unit) for unit in self._units.waiting])
        with self._stop.calling_off() as call_off, ThreadPoolExecutor(workers, "worker") as pool:
            for _ in range(workers):
                pool.submit(self._serve_in_thread, call_off)
        if self._failure is not None:
            raise self._failure

    def _serve_in_thread(self, call_off: Callable[[], None]) -> None:
        """Serve; the first failure of all threads ends the others."""
        try:
            self._serve()
        except BaseException as error:
            with self._changed:
                self._failure = self._failure or error
                self._changed.notify_all()
            call_off()

    def _serve(self) -> None:
        """Let one worker after another measure units, until none is left or time is up."""
        while (unit := self._next_unit()) is not None:
            try:
                self._run_worker(unit)
            finally:
                with self._changed:
                    self._units.give_back(unit)
                    self._changed.notify_all()

    def _next_unit(self) -> Unit | None:
        """A unit of which something is worth trying; sleeps while others have all, who may give one back."""
        with self._changed:
            while self._failure is None and not self._units.is_done:
                if (unit := self._units.take()) is None:
                    self._changed.wait()
                    continue
                if self._begin is not None and unit.round not in self._allowances:
                    self._allowances[unit.round] = self._begin(unit.round)
                self._skip_unfit(unit)
                if time.monotonic() < self._deadline(unit.round):
                    if unit.missing:
                        return unit
                elif self._probing_until is not None:
                    self._units.give_back(unit)  # for the others to see the time, too
                    self._changed.notify_all()
                    return None
                else:
                    self._give_up_rest(unit, self._out_of_time())
                self._changed.notify_all()
            return None

    def _task(self, unit: Unit) -> protocol.Task:
        """What a worker is to do for ``unit``."""
        measure = self._allowances.get(unit.round, self.settings.measure)
        return protocol.Task(
            kind="round",
            settings=self.settings.model_copy(update={"measure": measure}),
            cases=list(unit.missing.values()),
            round=unit.round,
            predictions=[self._predicted[case] for case in unit.missing if case in self._predicted],
            checked={case: checks for case, checks in self._checked.items() if case in unit.missing},
            modules=self._modules,
        )

    def _run_worker(self, unit: Unit) -> None:
        """Let one worker measure what it can of ``unit``."""
        with self._changed:
            task = self._task(unit)
        begun, in_cases = time.monotonic(), 0.0

        def take(answer: Answer) -> None:
            nonlocal in_cases
            in_cases += answer.record.elapsed if isinstance(answer, protocol.Finished) else 0.0
            self._take(answer, unit, session)

        session = WorkerSession(
            task,
            self._stop,
            take,
            fingerprint=self.manifest.fingerprint,
            sources=self.manifest.modules,
            deadline=self._deadline(unit.round),
            observer=self._observer,
        )
        try:
            loss = session.run()
            if loss is None:
                self._starts.append(time.monotonic() - begun - in_cases)
        except (FingerprintsDiffer, SourcesDiffer) as error:
            assert session.hello is not None
            self._leave_out(session.hello.node, error)
            if isinstance(error, FingerprintsDiffer):
                self._note_unlike(session.hello.fingerprint)
            return
        except TaskRefused as error:
            self._leave_out(error.node, error)
            return
        with self._changed:
            if loss is not None and self._failure is None:
                where = self._whereabouts(session.hello)
                # A node that is of no use must not end what others can do.
                if loss.node is not None and self._launcher.avoid(loss.node):
                    self._notes.append(f"{self._nodes.name(loss.node)} was left out: {loss.reason}")
                else:
                    self._on_worker_lost(loss, unit, where)

    def _take(self, answer: Answer, unit: Unit, session: WorkerSession) -> None:
        """Keep what the worker of ``session`` says."""
        with self._changed:
            if isinstance(answer, protocol.Note):
                self._notes.append(anonymize(answer.text))
            elif isinstance(answer, protocol.Finished):
                self._keep(answer.record, self._whereabouts(session.hello))
                unit.losses, unit.blameless, unit.wasted = 0, 0, 0.0

    def _keep(self, record: Record, where: Whereabouts) -> None:
        """Write down what a worker finished."""
        self._write(replace(record, reason=anonymize(record.reason) if record.reason else None, **where))
        if record.status == "oom" and record.case not in self._exhausted:
            self._exhausted.append(record.case)

    def _leave_out(self, node: str | None, error: NiffbenchError) -> None:
        """Go on without a node that cannot measure for this run, where an engine has others."""
        if node is None:
            raise error
        with self._changed:
            where = self._nodes.name(node) if self._nodes.fingerprints else "node 0"
            # Before anything is measured what is wrong with a node can still be mended; a machine is as it is.
            is_mendable = not self._done and not isinstance(error, FingerprintsDiffer)
            if is_mendable or not self._launcher.avoid(node):
                raise error.at(where)
            self._notes.append(f"{where} was left out: {anonymize(str(error))}")

    def _note_unlike(self, fingerprint: Fingerprint) -> None:
        """Write down that there is another machine, to be measured in a run of its own."""
        with self._changed:
            if fingerprint.hash not in {one.hash for one in self.manifest.unlike}:
                unlike = [*self.manifest.unlike, fingerprint]
                self.manifest = self.manifest.model_copy(update={"unlike": unlike})
                write_manifest(self.directory, self.manifest)

    def _whereabouts(self, hello: protocol.Hello | None) -> Whereabouts:
        """Where the worker is that said ``hello``; a new node is in the manifest before any of its records."""
        card = hello.fingerprint.should.get("gpu_id") if hello is not None and self._launcher.devices else None
        if card is not None and card not in self._cards:
            self._cards.add(card)
            if (shared := self._locks.enter_context(device_lock(str(card)))) is not None:
                self._notes.append(shared)
        where = self._nodes.of(hello)
        if (self._nodes.fingerprints, self._nodes.devices) != (self.manifest.nodes, self.manifest.devices):
            update = {"nodes": list(self._nodes.fingerprints), "devices": dict(self._nodes.devices)}
            self.manifest = self.manifest.model_copy(update=update)
            write_manifest(self.directory, self.manifest)
        return where

    def _on_worker_lost(self, loss: Loss, unit: Unit, where: Whereabouts) -> None:
        """Write down what the loss of a worker cost, and see whether another is worth starting."""
        if loss.recalled:  # whoever lends machines says how often
            return
        if loss.case is None:
            unit.blameless += 1
            unit.wasted += loss.elapsed
            if unit.blameless >= MAX_BLAMELESS or unit.wasted >= STARTUP:
                count = f"{unit.blameless} workers in a row were" if unit.blameless > 1 else "a worker was"
                raise WorkerBroken(f"{count} lost, over no case: {loss.reason}")
            return
        unit.blameless, unit.wasted = 0, 0.0
        if loss.taken and unit.is_tried_again(loss.case.id, self._launcher.tries):
            return
        unit.losses += 1
        self._give_up(loss.case, unit.round, Skip(loss.reason), loss.status, loss.elapsed, where)
        if unit.losses >= MAX_LOSSES:
            why = f"{MAX_LOSSES} workers in a row were lost over a case each, the last: {loss.reason}"
            self._give_up_rest(unit, Skip(why))
            self._notes.append(f"round {unit.round} was given up: {why}")

    def _allowed(self, number: int, cases: int) -> Share:
        """What the budget leaves for ``cases`` of a round and those after it; the first round is always made."""
        settings, rounds = self.settings, self.settings.rounds - number
        if settings.budget is None:
            return Share(rounds, settings.measure)
        left = (self._budget_began + settings.budget - time.monotonic()) * self.workers
        overhead = self._overhead()
        if number > 0 and left <= overhead:
            return Share(0, settings.measure)
        allowed = share(left, rounds=rounds, cases=cases, overhead=overhead, measure=settings.measure)
        if allowed.is_less(rounds, settings.measure):
            self._notes.append(
                f"round {number}: the time budget of {settings.budget:g} s left "
                f"{allowed.measure.max_time:.3g} s of sampling a regime, and {allowed.rounds} of "
                f"{plural(rounds, 'round')}"
            )
        return allowed

    def _overhead(self) -> float:
        """Seconds of a later round that are not sampling: as forecast at first, then as seen."""
        if not self._overheads:
            return self.plan.overhead
        mean = sum(self._overheads) / len(self._overheads)
        return self._start() + mean * sum(forecast.skip is None for forecast in self.plan.forecasts)

    def _start(self) -> float:
        """Seconds of a round that no case takes: as expected at first, then as seen."""
        return sum(self._starts) / len(self._starts) if self._starts else WORKER

    def _deadline(self, number: int) -> float:
        """When a round must end (``time.monotonic``): with the budget, but the first has all the time it needs."""
        if self._probing_until is not None:
            return self._probing_until
        if self.settings.budget is None or number == 0:
            return inf
        return self._budget_began + self.settings.budget - REPORT_TIME

    def _out_of_time(self) -> Skip:
        return Skip(f"the time budget of {self.settings.budget:g} s was used up")

    def _skip_unfit(self, unit: Unit) -> None:
        """Skip what is larger than a case that ran out of memory."""
        for case in list(unit.missing.values()):
            if (skip := refusal(case, catalogue(), unfit=self._exhausted)) is not None:
                self._give_up(case, unit.round, skip)

    def _give_up_rest(self, unit: Unit, skip: Skip) -> None:
        """Skip all that is left of a unit."""
        for case in list(unit.missing.values()):
            self._give_up(case, unit.round, skip)

    def _give_up(
        self,
        case: Case,
        number: int,
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
                round=number,
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
        self._units.answered(record.round, record.id)
        if record.elapsed > 0:
            self._overheads.append(_overhead(record))
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


def _overhead(record: Record) -> float:
    """Seconds of a case that a later round needs, too, and that are not sampling."""
    return max(record.elapsed - record.measuring - record.once, 0.0)
