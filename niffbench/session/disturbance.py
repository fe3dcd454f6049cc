"""Disturbance: whether devices of one machine that are measured on at once disturb each other, by measuring it."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import cycle, islice
from math import exp, log
from statistics import fmean
from typing import Literal

import numpy as np

from niffbench import protocol
from niffbench.case import Case
from niffbench.errors import FingerprintsDiffer
from niffbench.fingerprint import Fingerprint, differences
from niffbench.launch.base import Launcher, Worker, WorkerBroken, WorkerEnd
from niffbench.results import REGISTRY, Disturbance, Reason, Record, main_regime, round_value
from niffbench.session.interrupts import Interrupted, Interrupts
from niffbench.session.plan import Plan
from niffbench.session.worker_session import STARTUP, Answer, TaskRefused, WorkerSession
from niffbench.stats.contrasts import contrast
from niffbench.suite import Settings, UserModule

MOST_CASES, MOST_PROBES, PAIRS = 3, 4, 4
"""Cases that are measured, devices on which they are, and how often alone and beside the others at least."""
MOST_TIME = 0.5
"""Seconds that a case is sampled."""
TURN = 10.0
"""Seconds for which the others sample a case, or until there are samples enough, before they turn to the next."""
TOLERATED = 0.01
"""The share by which a device may be slower beside the others for them to be measured on at once."""


def measure_disturbance(
    launcher: Launcher,
    plan: Plan,
    settings: Settings,
    modules: Sequence[UserModule],
    fingerprint: Fingerprint,
    stop: Interrupts,
) -> Disturbance | None:
    """How much slower a device of ``launcher`` is beside the others than alone; None when no case can be measured.

    Alone and beside the others take turns, as do the devices that are looked at. It is that of the case that is
    disturbed most; the interval is over pairs: Student's t on their log ratios.

    Args:
        fingerprint: The machine's, which every device must have.

    Raises:
        Interrupted: by a signal.
        WorkerBroken: when a worker cannot be started.
        TaskRefused: when there is no such device.
        FingerprintsDiffer: when devices are unlike.
    """
    check = _Check(launcher, _few(plan), settings, list(modules), fingerprint, stop)
    stride = max(len(launcher.devices) // MOST_PROBES, 1)
    probes = range(0, len(launcher.devices), stride)[:MOST_PROBES] if check.cases else ()
    pairs = max(PAIRS, len(probes))
    ratios: dict[str, list[float]] = {}
    for number, probe in enumerate(islice(cycle(probes), pairs)):
        sides = {beside: check.measured(probe, beside=beside) for beside in (bool(number % 2), not number % 2)}
        for case in sides[True].keys() & sides[False].keys():
            ratios.setdefault(case, []).append(log(sides[True][case] / sides[False][case]))
    if not ratios:
        return None
    worst = max(ratios.values(), key=fmean)
    low = high = None
    if len(worst) > 1:
        low, high = (exp(float(end)) for end in contrast([np.array(worst)], [1.0], shared=True).band(0.95))
    ratio = exp(fmean(worst))
    return Disturbance(
        devices=len(launcher.devices),
        cases=len(ratios),
        pairs=len(worst),
        ratio=ratio,
        low=low,
        high=high,
        in_turn=ratio > 1 + TOLERATED,
    )


def _few(plan: Plan) -> list[Case]:
    """A few cases that fit, from short ones to the longest."""
    fitting = sorted((one for one in plan.forecasts if one.skip is None), key=lambda one: one.seconds)
    last = len(fitting) - 1
    places = {round(part * last / MOST_CASES) for part in range(1, MOST_CASES + 1)} if fitting else set()
    return [fitting[place].case for place in sorted(places)]


@dataclass(frozen=True)
class _Check:
    """Measures a few cases on a device, alone or beside the others."""

    launcher: Launcher
    cases: list[Case]
    settings: Settings
    modules: list[UserModule]
    fingerprint: Fingerprint
    stop: Interrupts

    def measured(self, place: int, *, beside: bool) -> dict[str, float]:
        """The latency of each case on a device that has one."""
        records: list[Record] = []

        def take(answer: Answer) -> None:
            if isinstance(answer, protocol.Finished):
                records.append(answer.record)

        others = [other for other in range(len(self.launcher.devices)) if beside and other != place]
        with self._busy(others):
            WorkerSession(self._task("round", place), self.stop, take, fingerprint=self.fingerprint).run()
        metric = REGISTRY[f"latency_{main_regime(records)}"]
        values = {record.id: round_value(record, metric) for record in records}
        return {case: value for case, value in values.items() if not isinstance(value, Reason) and value > 0}

    def _task(self, kind: Literal["round", "busy"], place: int) -> protocol.Task:
        measure = self.settings.measure
        update = {"max_time": MOST_TIME, "min_time": min(measure.min_time, MOST_TIME)}
        if kind == "busy":
            update = {"max_time": TURN, "min_time": TURN}
        update["case_timeout"] = max(measure.case_timeout, 4 * MOST_TIME)
        return protocol.Task(
            kind=kind,
            settings=self.settings.model_copy(update={"measure": measure.model_copy(update=update)}),
            cases=self.cases,
            modules=self.modules,
            devices=list(self.launcher.devices),
            place=place,
        )

    @contextmanager
    def _busy(self, places: Sequence[int]) -> Iterator[None]:
        """Keep the devices at ``places`` at work, until the with block is left."""
        with ExitStack() as stack:
            workers = []
            for place in places:
                worker = self.launcher.start(self._task("busy", place), self.stop.descriptor)
                workers.append(stack.enter_context(worker))
                stack.enter_context(self.stop.killing(worker.kill))
            deadline = time.monotonic() + STARTUP
            for place, worker in zip(places, workers, strict=True):
                self._await_sampling(worker, self.launcher.devices[place], deadline)
            yield

    def _await_sampling(self, worker: Worker, device: str, deadline: float) -> None:
        """Hear a worker out until it samples, or has called every case once; it says no more."""
        while True:
            message = worker.next(deadline)
            if self.stop.requested:
                raise Interrupted("interrupted before anything was measured")
            match message:
                case protocol.Begin(samples=True) | protocol.End():
                    return
                case protocol.Hello(fingerprint=own) if unlike := differences(self.fingerprint.must, own.must):
                    facts = "; ".join(f"{key} {one!r} and {other!r}" for key, (one, other) in unlike.items())
                    raise FingerprintsDiffer(f"{device} is unlike {self.launcher.devices[0]}: {facts}")
                case protocol.Refused():
                    raise TaskRefused(message)
                case None:
                    raise WorkerBroken(f"{device} could not be kept busy: its worker said nothing")
                case WorkerEnd():
                    raise WorkerBroken(f"{device} could not be kept busy: {message.during()}")
