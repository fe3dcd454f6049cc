"""One round in a worker: every case once, problems in random order, the operators of a problem interleaved.

Where operators of a problem are made from others, as networks from their originals, each original and its kin are
a group of their own; otherwise a problem is one group. A group's cases are first set up one by one: built, called
once (the regime ``first``), what that gave checked against float64, the cost counted, the memory measured. Only
then, with nothing else going on, their latencies are sampled in turns. A case that is wrong is not timed.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from math import isfinite
from typing import TypeVar

from pydantic import BaseModel

from niffbench import protocol
from niffbench.anonymize import anonymize
from niffbench.case import Case, Problem
from niffbench.cost.closed import Uncounted
from niffbench.device import Runner
from niffbench.operators.catalogue import catalogue
from niffbench.results import REGIME_ORDER, Latency
from niffbench.suite import Regime
from niffbench.worker import energy, latency, memory, tolerance
from niffbench.worker.admission import refusal
from niffbench.worker.case_run import CaseRun
from niffbench.worker.evaluator import Evaluator, Workload
from niffbench.worker.failures import ENDS, Failure, explain

T = TypeVar("T")

TOY_CHANNELS, TOY_SIDE = 8, 32
"""Large enough for the deepest of the networks."""

ONCE: frozenset[protocol.Stage] = frozenset({"predict", "numerics", "cost"})
"""What is found out once, of the same choice."""

NOT_CAPTURED = "not captured"
"""Flag of the regime ``graph`` where a case cannot be captured as a CUDA graph."""


class Round:
    """Works off ``task`` on ``evaluator``; ``send`` gets the messages."""

    def __init__(self, task: protocol.Task, evaluator: Evaluator, send: Callable[[BaseModel], None]) -> None:
        self._task = task
        self._evaluator = evaluator
        self._device = evaluator.device
        self._send = send
        self._settings = task.settings
        self._rng = random.Random(f"{task.settings.seed}/{task.round}")
        self._unfit: list[Case] = []
        self._predicted = {prediction.case: prediction for prediction in task.predictions}
        self._noted: set[str] = set()  # which engines are missing
        asked = self._settings.measure.regimes
        can = self._device.capabilities
        self._regimes: list[Regime] = ["cold"] if "cold" in asked and can.flush else []
        self._regimes += ["steady"] if "steady" in asked else []
        main = next((regime for regime in REGIME_ORDER if regime in asked), None)
        evaluator.judge_by("host" if main in ("wall", "first") else "device")  # as the tables show it
        if "wall" in asked and can.asynchronous:  # elsewhere steady is what the host waits for
            self._regimes.append("wall")
        if "graph" in asked and can.graphs:
            self._regimes.append("graph")

    def run(self) -> None:
        """Every case; sends a record of each."""
        if self._device.capabilities.lazy_loading:
            self._touch_operators()
        self._take_flush_buffer()
        for group in self._groups():
            alone: list[CaseRun] = []
            for together in self._fitting(group):
                alone += self._measure(together)
            for case_run in alone:  # ran out of memory beside others
                again = CaseRun(
                    case_run.case,
                    case_run.operator,
                    prediction=case_run.prediction,
                    elapsed=case_run.elapsed,
                    once=case_run.once,
                )
                self._measure([again])
            self._evaluator.forget()

    def _touch_operators(self) -> None:
        """Call every operator once at a toy size: no ``first`` call is to load what those after it find loaded.

        What differs by size (kernels of an FFT, say) is loaded later all the same.
        """
        toys: dict[Case, Case] = {}
        for case in self._task.cases:
            toys.setdefault(toy(case), case)
        for small, case in toys.items():
            if catalogue()[case.operator].refusal(small) is None:
                self._send(protocol.Begin(case=case.id, stage="touch"))
                try:
                    self._evaluator.touch(small)
                except ENDS as error:
                    explain(error)  # the case will say itself what it lacks
        self._evaluator.forget()

    def _take_flush_buffer(self) -> None:
        """Flush once, so that what a cold series holds for that is not taken for free memory."""
        if "cold" in self._regimes:
            try:
                self._device.flush()
            except ENDS as error:
                explain(error)  # the cases will say themselves what they lack

    def _groups(self) -> list[list[Case]]:
        """The cases that take turns, in random order: of each problem those of one base.

        Whole networks are too many and too large to wait for one another: the first record of a problem would come
        when all had been set up, and all would be held until then. What is a base does not depend on which cases
        are left to measure.
        """
        bases = {operator.base for operator in catalogue().values()}
        problems: dict[Problem, dict[str | None, list[Case]]] = {}
        for case in self._task.cases:
            base = catalogue()[case.operator].base or (case.operator if case.operator in bases else None)
            problems.setdefault(case.problem, {}).setdefault(base, []).append(case)
        order: list[list[Case]] = []
        for groups in self._shuffled(problems.values()):
            order += [self._shuffled(cases) for cases in self._shuffled(groups.values())]
        return order

    def _shuffled(self, things: Iterable[T]) -> list[T]:
        order = list(things)
        self._rng.shuffle(order)
        return order

    def _fitting(self, cases: Sequence[Case]) -> Iterator[list[CaseRun]]:
        """The cases of a group in lots that fit in memory together: all that stays, and the largest peak.

        A case's input and weights stay, and a captured graph's memory, which is as much as its peak.
        """
        limit = self._limit()
        lot: list[CaseRun] = []
        staying = peak = 0
        for case in cases:
            case_run = self._admit(case, limit)
            if case_run is None:
                continue
            if case_run.prediction is not None and case_run.prediction.peak is not None:
                above, resident = case_run.prediction.peak, case_run.prediction.resident or 0
                stays = resident + above if "graph" in self._regimes else resident
                if lot and limit is not None and staying + stays + max(peak, above) > limit:
                    yield lot
                    lot, staying, peak = [], 0, 0
                staying, peak = staying + stays, max(peak, above)
            lot.append(case_run)
        if lot:
            yield lot

    def _limit(self) -> int | None:
        limit = self._settings.memory_limit
        return self._device.free_memory() if limit is None else limit

    def _admit(self, case: Case, limit: int | None) -> CaseRun | None:
        """``case``, to be run; None when it is known not to fit, and then its record is sent."""
        case_run = CaseRun(case, catalogue()[case.operator])
        if (needs := self._predicted.get(case.id) or self._measured(case)) is not None:
            case_run.prediction = needs
        else:
            with self._stage(case_run, "predict"):
                try:
                    case_run.prediction = self._evaluator.predict(case)
                except ENDS as error:
                    explain(error)  # no prediction; the case will say itself what it lacks
        needed = case_run.prediction.needed if case_run.prediction else None
        skip = refusal(case, catalogue(), needed=needed, available=limit, unfit=self._unfit)
        if skip is None:
            return case_run
        self._close(case_run, Failure("skipped", skip.reason, skip.needed, skip.available))
        return None

    def _measured(self, case: Case) -> protocol.Predicted | None:
        """What a case without a prediction, a probe, needed in an earlier round, whichever engines it chose."""
        memories = [check.memory for check in self._task.checked.get(case.id, []) if check.memory is not None]
        if not memories:
            return None
        most = max(memories, key=lambda memory: memory.resident + memory.peak)
        return protocol.Predicted(case=case.id, resident=most.resident, peak=most.peak)

    def _measure(self, case_runs: Sequence[CaseRun]) -> list[CaseRun]:
        """Set up and sample; returns those that ran out of memory only because the others were there."""
        held: list[CaseRun] = []
        crowded: list[CaseRun] = []
        for case_run in case_runs:
            held.append(case_run)
            if (failure := self._set_up(case_run)) is not None:
                self._lose(case_run, failure, held, crowded)
        self._sample(held, crowded)
        return crowded

    def _set_up(self, case_run: CaseRun) -> Failure | None:
        """Everything but the sampling. Returns what went wrong."""
        evaluator, case = self._evaluator, case_run.case
        try:
            before = evaluator.compiled_so_far()
            workload, output = self._first(case_run)
            if evaluator.compiled_so_far() != before:  # in another order of cases another would have had to
                del workload, output
                case_run.workload = None
                case_run.once = case_run.elapsed
                workload, output = self._first(case_run)
            choice = evaluator.choice(workload)
            if choice is not None:
                case_run.chosen = list(choice.engines)
                self._note_missing_engines()
            case_run.note_shape(output)
            checked = self._checked(case_run)
            if checked is None:
                with self._stage(case_run, "numerics"):
                    case_run.numerics = evaluator.numerics(workload, output)
                if tolerance.is_wrong(case_run.numerics):
                    return Failure("wrong", tolerance.verdict(case_run.numerics))
            else:
                case_run.numerics, case_run.cost = checked.numerics, checked.cost
                workload.checked()
            del output
            if "first" in self._settings.measure.regimes:
                case_run.latency["first"] = latency.first(case_run.first)
                if case_run.first > 0 and isfinite(case_run.first):  # else the timer is broken
                    case_run.measuring += case_run.first
            if case_run.cost is None:
                with self._stage(case_run, "cost"):
                    try:
                        case_run.cost = evaluator.cost(case, choice)
                    except Uncounted as error:
                        case_run.remark(f"no cost: {error}")
            with self._stage(case_run, "memory"):
                counted = None if checked is None else checked.memory
                predicted = case_run.prediction
                if predicted is not None and choice is not None and counted is None:
                    predicted = evaluator.predict(case, choice)  # it was admitted by what it might choose
                if self._device.capabilities.memory:
                    case_run.memory = memory.measure(self._device, workload, predicted, counted)
                workload.reset()
        except ENDS as error:
            return explain(error, self._device.free_memory)
        self._device.give_back()  # What that took would stay, of each case beside the others.
        return None

    def _first(self, case_run: CaseRun) -> tuple[Workload, object]:
        """Build the case and call it once, which is timed; what the call gave beside the case."""
        with self._stage(case_run, "build"):
            case_run.workload = workload = self._evaluator.workload(case_run.case)
            case_run.parameters = workload.parameters
        with self._stage(case_run, "first"):
            case_run.first, output = self._device.timed(workload)
        return workload, output

    def _checked(self, case_run: CaseRun) -> protocol.Checked | None:
        """What an earlier round found out of the case, if it chose the same engines."""
        checks = self._task.checked.get(case_run.case.id, [])
        return next((check for check in checks if check.engines == case_run.chosen), None)

    def _note_missing_engines(self) -> None:
        """Say, once, which engines were not there to be chosen."""
        for text in self._evaluator.gone_without():
            if text not in self._noted:
                self._noted.add(text)
                self._send(protocol.Note(text=anonymize(text)))

    def _sample(self, held: list[CaseRun], crowded: list[CaseRun]) -> None:
        """The regimes one after another, the cases in turns; a record is sent when the last is done."""
        for regime in self._regimes:
            waiting: list[Turn] = []
            for case_run in list(held):
                turn = self._turn(case_run, regime, beside=len(held) > 1)
                if turn.failure is not None:
                    self._lose(case_run, turn.failure, held, crowded)
                elif turn.sampler is not None:
                    waiting.append(turn)
            for turn in latency.turns(waiting, self._rng, self._step):
                turn.sampler = None  # with it goes the case, or its graph
                if turn.failure is not None:
                    self._lose(turn.case_run, turn.failure, held, crowded)
                elif regime == self._regimes[-1]:
                    self._finish(turn.case_run, held)
        for case_run in list(held):
            self._finish(case_run, held)
        self._device.release()

    def _turn(self, case_run: CaseRun, regime: Regime, *, beside: bool) -> Turn:
        """What to sample for one regime of one case: nothing when a graph was asked for and cannot be captured.

        A graph that ran out of memory ``beside`` others is a failure.
        """
        assert case_run.workload is not None
        runner: Runner = case_run.workload
        if regime == "graph":
            with self._stage(case_run, "graph"):
                try:
                    runner = self._device.capture(runner)
                except ENDS as error:
                    failure = explain(error, self._device.free_memory)
                    if failure.status == "oom" and beside:
                        return Turn(case_run, failure=failure)
                    case_run.remark(f"no graph: {failure.reason}")
                    case_run.latency["graph"] = Latency(samples=[], flags=[NOT_CAPTURED])
                    return Turn(case_run)
        sampler = latency.Sampler(self._device, runner, regime, self._settings.measure, case_run.pace(regime))
        return Turn(case_run, sampler)

    def _step(self, turn: Turn) -> bool:
        """One block, and after the last what hangs on the series; whether that was the end, good or bad."""
        sampler = turn.sampler
        assert sampler is not None
        with self._stage(turn.case_run, sampler.regime):
            try:
                sampler.step()
                if sampler.done:
                    self._keep(turn.case_run, sampler)
            except ENDS as error:
                turn.failure = explain(error, self._device.free_memory)
        return turn.failure is not None or sampler.done

    def _keep(self, case_run: CaseRun, sampler: latency.Sampler) -> None:
        """Take over a finished series, then measure a graph's launch share, and in the first round the energy.

        The series is kept whatever becomes of these, and so is the record.
        """
        workload = case_run.workload
        assert workload is not None
        case_run.states += sampler.states
        case_run.processor += sampler.processor
        case_run.measuring += sampler.seconds
        case_run.latency[sampler.regime] = series = sampler.result()
        if sampler.regime == "graph":
            with self._besides(case_run, "launch share"):
                share = latency.launch_share(self._device, workload, sampler.median(), sampler.calls)
                case_run.latency["graph"] = replace(series, launch_share=share)
        wanted = self._settings.measure.energy and self._task.round == 0 and self._device.capabilities.energy
        if sampler.regime == "steady" and wanted:
            begun = self._device.clock()
            with self._besides(case_run, "energy"):
                case_run.energy = energy.per_call(self._device, workload)
            # Else a time budget would take it for what every round needs beside its samples.
            case_run.measuring += self._device.clock() - begun

    @contextmanager
    def _besides(self, case_run: CaseRun, what: str) -> Iterator[None]:
        """What a finished series can do without: its failure is a remark, unless the device is lost with it."""
        try:
            yield
        except ENDS as error:
            case_run.remark(f"no {what}: {explain(error).reason}")

    def _lose(self, case_run: CaseRun, failure: Failure, held: list[CaseRun], crowded: list[CaseRun]) -> None:
        """A case failed; one that ran out of memory beside others is ``crowded``, and not yet closed."""
        self._let_go(case_run, held)
        self._device.release()
        if failure.status == "oom" and held:
            crowded.append(case_run)
        else:
            self._close(case_run, failure)

    def _finish(self, case_run: CaseRun, held: list[CaseRun]) -> None:
        """Close a case that was sampled; what it held is given back when all have been."""
        self._let_go(case_run, held)
        self._close(case_run)

    def _let_go(self, case_run: CaseRun, held: list[CaseRun]) -> None:
        held.remove(case_run)
        case_run.workload = None

    def _close(self, case_run: CaseRun, failure: Failure | None = None) -> None:
        if failure is not None and failure.status == "oom":
            self._unfit.append(case_run.case)
        self._send(protocol.Finished(record=case_run.record(self._task.round, failure)))

    @contextmanager
    def _stage(self, case_run: CaseRun, stage: protocol.Stage) -> Iterator[None]:
        """Say what is begun, so that a death or a hang has somebody to blame; count the time."""
        self._send(protocol.Begin(case=case_run.case.id, stage=stage))
        begun = self._device.clock()
        try:
            yield
        finally:
            taken = self._device.clock() - begun
            case_run.elapsed += taken
            case_run.once += taken if stage in ONCE else 0.0


def toy(case: Case) -> Case:
    """The smallest case that is run as ``case`` is, eagerly."""
    problem = case.problem
    side = min(problem.height, problem.width, TOY_SIDE)
    small = replace(
        problem,
        batch=1,
        channels=min(problem.channels, TOY_CHANNELS),
        channels_out=min(problem.channels_out, TOY_CHANNELS),
        height=side,
        width=side,
    )
    kernel = None if case.kernel is None else min(case.kernel, 2 * side - 1)
    return replace(case, problem=small, kernel=kernel, execution="eager")


@dataclass
class Turn:
    """One regime of one case, being sampled; ``sampler`` is there while it is."""

    case_run: CaseRun
    sampler: latency.Sampler | None = None
    failure: Failure | None = None
