"""One round in a worker: every case once, problems in random order, the operators of a problem interleaved.

A problem's cases are first set up one by one: built, called once (the regime ``first``), what that gave checked
against float64, the cost counted, the memory measured. Only then, with nothing else going on, their latencies are
sampled in turns. A case that is wrong is not timed.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from pydantic import BaseModel

from niffbench.case import Case, Problem
from niffbench.device import Runner
from niffbench.measure import energy, latency, memory, tolerance
from niffbench.measure.bench import Bench, Prediction
from niffbench.measure.failures import Failure, explain
from niffbench.operators.catalogue import catalogue
from niffbench.records import Latency
from niffbench.runner import messages
from niffbench.runner.dominance import dominated
from niffbench.runner.visit import Visit
from niffbench.suite import Regime

NOT_CAPTURED = "not captured"
"""Flag of the regime ``graph`` where a case cannot be captured as a CUDA graph."""


class Round:
    """Works off ``task`` on ``bench``; ``send`` gets the messages."""

    def __init__(self, task: messages.Task, bench: Bench, send: Callable[[BaseModel], None]) -> None:
        self._task = task
        self._bench = bench
        self._device = bench.device
        self._send = send
        self._rng = random.Random(f"{task.seed}/{task.round}")
        self._unfit: list[Case] = []
        self._predicted = {told.case: told for told in task.predictions}

    def run(self) -> None:
        """Every case; sends a record of each."""
        for problem in self._problems():
            alone: list[Visit] = []
            for together in self._fitting(problem):
                alone += self._measure(together)
            for visit in alone:  # ran out of memory beside others
                self._measure([Visit(visit.case, visit.operator, prediction=visit.prediction)])
            self._bench.forget()

    def _problems(self) -> list[list[Case]]:
        groups: dict[Problem, list[Case]] = {}
        for case in self._task.cases:
            groups.setdefault(case.problem, []).append(case)
        order = list(groups.values())
        self._rng.shuffle(order)
        for cases in order:
            self._rng.shuffle(cases)
        return order

    def _fitting(self, cases: Sequence[Case]) -> Iterator[list[Visit]]:
        """The cases of a problem in lots that fit in memory together: all residents and the largest peak."""
        limit = self._limit()
        lot: list[Visit] = []
        resident = peak = 0
        for case in cases:
            visit = self._admit(case, limit)
            if visit is None:
                continue
            told = visit.prediction
            if told is not None:
                resident, peak = resident + told.resident, max(peak, told.peak)
                if lot and limit is not None and resident + peak > limit:
                    yield lot
                    lot, resident, peak = [], told.resident, told.peak
            lot.append(visit)
        if lot:
            yield lot

    def _limit(self) -> int | None:
        limit = self._task.memory_limit
        return self._device.free_memory() if limit is None else limit

    def _admit(self, case: Case, limit: int | None) -> Visit | None:
        """A visit to ``case``; None when it is known not to fit, and then its record is sent."""
        visit = Visit(case, catalogue()[case.operator])
        if (told := self._predicted.get(case.id)) is not None:
            if told.resident is not None and told.peak is not None:
                visit.prediction = Prediction(told.resident, told.peak)
        else:
            with self._stage(visit, "predict"):
                try:
                    visit.prediction = self._bench.predict(case)
                except Exception as error:
                    explain(error)  # no prediction; the case will say itself what it lacks
        needed = visit.prediction.total if visit.prediction else None
        failure = None
        if limit is not None and needed is not None and needed > limit:
            reason = f"would need {needed:,} bytes of the {limit:,} available (predicted)"
            failure = Failure("skipped", reason, needed, limit)
        elif (other := dominated(case, self._unfit)) is not None:
            label = f"{visit.operator.label(other)} at {other.problem.label}"
            failure = Failure("skipped", f"at least as large as {label}, which ran out of memory", needed, limit)
        if failure is None:
            return visit
        self._close(visit, failure)
        return None

    def _measure(self, visits: Sequence[Visit]) -> list[Visit]:
        """Set up and time; returns those that ran out of memory only because the others were there."""
        ready: list[Visit] = []
        crowded: list[Visit] = []
        for visit in visits:
            failure = self._set_up(visit)
            if failure is None:
                ready.append(visit)
                continue
            visit.subject = None
            self._device.release()
            if failure.status == "oom" and ready:
                crowded.append(visit)
            else:
                self._close(visit, failure)
        self._time(ready)
        return crowded

    def _set_up(self, visit: Visit) -> Failure | None:
        """Everything but the sampling. Returns what went wrong."""
        bench, case = self._bench, visit.case
        try:
            with self._stage(visit, "build"):
                visit.subject = subject = bench.subject(case)
                visit.parameters = subject.parameters
            with self._stage(visit, "first"):
                visit.first, output = self._device.timed(subject)
            choice = bench.choice(subject)
            visit.chosen = None if choice is None else list(choice.engines)
            with self._stage(visit, "numerics"):
                visit.numerics = bench.numerics(subject, output)
                del output
                if tolerance.is_wrong(visit.numerics):
                    return Failure("wrong", tolerance.verdict(visit.numerics))
            if "first" in self._task.measure.regimes:
                visit.latency["first"] = latency.first(visit.first)
                visit.measuring += visit.first
            visit.cost = self._task.costs.get(case.id) if choice is None else None
            if visit.cost is None:
                with self._stage(visit, "cost"):
                    visit.cost = bench.cost(case, choice)
            with self._stage(visit, "memory"):
                visit.memory = memory.measure(self._device, subject, visit.prediction)
                subject.reset()
        except Exception as error:
            return explain(error, self._device.free_memory())
        return None

    def _time(self, visits: Sequence[Visit]) -> None:
        """Sample the regimes one after another, the cases in turns; send each record when its last is done."""
        asked = self._task.measure.regimes
        regimes: list[Regime] = [r for r in ("cold", "steady") if r in asked]
        if "graph" in asked and self._device.has_graphs:
            regimes.append("graph")
        left = list(visits)
        for regime in regimes:
            waiting = [turn for visit in list(left) if (turn := self._turn(visit, regime)) is not None]
            for turn in latency.turns(waiting, self._rng, self._step):
                if turn.failure is None:
                    self._keep(turn)
                if turn.failure is not None or regime == regimes[-1]:
                    left.remove(turn.visit)
                    self._close(turn.visit, turn.failure)
        for visit in left:
            self._close(visit)

    def _turn(self, visit: Visit, regime: Regime) -> Turn | None:
        """What to sample for one regime of one case; None when a graph was asked for and cannot be captured."""
        assert visit.subject is not None
        runner: Runner = visit.subject
        if regime == "graph":
            with self._stage(visit, "graph"):
                try:
                    runner = self._device.capture(runner)
                except Exception as error:
                    visit.note = f"no graph: {explain(error).reason}"
                    visit.latency["graph"] = Latency(samples=[], flags=[NOT_CAPTURED])
                    return None
        sampler = latency.Sampler(self._device, runner, regime, self._task.measure, visit.pace(regime))
        return Turn(visit, runner, sampler)

    def _step(self, turn: Turn) -> bool:
        with self._stage(turn.visit, turn.sampler.regime):
            try:
                turn.sampler.step()
            except Exception as error:
                turn.failure = explain(error, self._device.free_memory())
        return turn.failure is not None or turn.sampler.done

    def _keep(self, turn: Turn) -> None:
        """Take over a finished series, and what hangs on it: the launch share of a graph, the energy of a call."""
        visit, sampler, subject = turn.visit, turn.sampler, turn.visit.subject
        assert subject is not None
        visit.states += sampler.states
        visit.processor += sampler.processor
        visit.measuring += sampler.seconds
        share = None
        with self._stage(visit, sampler.regime):
            if sampler.regime == "graph":
                share = latency.launch_share(self._device, subject, sampler.median(), sampler.calls)
            if sampler.regime == "steady":
                visit.energy = energy.per_call(self._device, subject, sampler.median())
        visit.latency[sampler.regime] = sampler.result(share)

    def _close(self, visit: Visit, failure: Failure | None = None) -> None:
        if failure is not None and failure.status == "oom":
            self._unfit.append(visit.case)
        visit.subject = None
        self._send(messages.Finished(record=visit.record(self._task.round, failure)))

    @contextmanager
    def _stage(self, visit: Visit, stage: str) -> Iterator[None]:
        """Say what is begun, so that a death or a hang has somebody to blame; count the time."""
        self._send(messages.Begin(case=visit.case.id, stage=stage))
        begun = self._device.clock()
        try:
            yield
        finally:
            visit.elapsed += self._device.clock() - begun


@dataclass
class Turn:
    """One regime of one case, being sampled."""

    visit: Visit
    runner: Runner
    sampler: latency.Sampler
    failure: Failure | None = None
