"""Neighbours: whether devices of one machine that are measured on at once disturb each other, by measuring it."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from itertools import cycle, islice
from math import exp, log
from statistics import median

import numpy as np

from niffbench import protocol
from niffbench.case import REGIMES, Case
from niffbench.launch.base import Launcher, WorkerBroken, WorkerEnd
from niffbench.results import REGISTRY, Neighbours, Reason, main_regime, round_value
from niffbench.session.interrupts import Interrupted, Interrupts
from niffbench.session.plan import Plan
from niffbench.session.worker_session import STARTUP, Answer, TaskRefused, WorkerSession
from niffbench.stats.contrasts import contrast
from niffbench.suite import Settings, UserModule

MOST_CASES, MOST_PROBES, PAIRS = 3, 4, 4
"""Cases that are measured, devices on which they are, and how often alone and beside the others at least."""
MOST_TIME = 0.5
"""Seconds that a case is sampled."""
FOREVER = 3600.0
"""Seconds that the others go on sampling, if they are let."""
TOLERATED = 0.01
"""The share by which a device may be slower beside the others for them to be measured on at once."""


def disturbance(
    launcher: Launcher,
    devices: Sequence[str],
    plan: Plan,
    settings: Settings,
    modules: Sequence[UserModule],
    stop: Interrupts,
) -> Neighbours | None:
    """How much slower a device is beside the others than alone; None when no case can be measured.

    Alone and beside the others take turns, as do the devices that are looked at. The interval is over these pairs:
    Student's t on the log ratios, of each the median over the cases.

    Raises:
        Interrupted: by a signal.
        WorkerBroken: when a worker cannot be started.
        TaskRefused: when there is no such device.
    """
    cases = _few(plan)
    if not cases:
        return None
    stride = max(len(devices) // MOST_PROBES, 1)
    probes = range(0, len(devices), stride)[:MOST_PROBES]
    differences: list[float] = []
    for number, probe in enumerate(islice(cycle(probes), max(PAIRS, len(probes)))):
        sides = {}
        for beside in (False, True) if number % 2 == 0 else (True, False):
            others = [place for place in range(len(devices)) if beside and place != probe]
            with _busy(launcher, devices, others, cases, settings, modules, stop):
                sides[beside] = _measured(devices, probe, cases, settings, modules, stop)
        both = [log(sides[True][case] / sides[False][case]) for case in sides[True].keys() & sides[False].keys()]
        if both:
            differences.append(median(both))
    if not differences:
        return None
    low = high = None
    if len(differences) > 1:
        low, high = (float(end) for end in contrast([np.array(differences)], [1.0], shared=True).band(0.95))
    mean = sum(differences) / len(differences)
    return Neighbours(
        devices=len(devices),
        cases=len(cases),
        pairs=len(differences),
        ratio=exp(mean),
        low=None if low is None else exp(low),
        high=None if high is None else exp(high),
        in_turn=exp(mean) > 1 + TOLERATED,
    )


def _few(plan: Plan) -> list[Case]:
    """A few cases that fit, from short ones to the longest."""
    fitting = sorted((one for one in plan.forecasts if one.skip is None), key=lambda one: one.seconds)
    last = len(fitting) - 1
    places = {round(part * last / MOST_CASES) for part in range(1, MOST_CASES + 1)} if fitting else set()
    return [fitting[place].case for place in sorted(places)]


def _task(
    devices: Sequence[str],
    place: int,
    cases: Sequence[Case],
    settings: Settings,
    modules: Sequence[UserModule],
    most: float,
) -> protocol.Task:
    least = min(settings.measure.min_time, MOST_TIME) if most <= MOST_TIME else most
    measure = settings.measure.model_copy(
        update={"max_time": most, "min_time": least, "case_timeout": max(settings.measure.case_timeout, 4 * most)}
    )
    return protocol.Task(
        kind="round",
        settings=settings.model_copy(update={"measure": measure}),
        cases=list(cases),
        modules=list(modules),
        devices=list(devices),
        place=place,
    )


def _measured(
    devices: Sequence[str],
    place: int,
    cases: Sequence[Case],
    settings: Settings,
    modules: Sequence[UserModule],
    stop: Interrupts,
) -> dict[str, float]:
    """The latency of each case on a device that has one."""
    records = []

    def take(answer: Answer) -> None:
        if isinstance(answer, protocol.Finished):
            records.append(answer.record)

    WorkerSession(_task(devices, place, cases, settings, modules, MOST_TIME), stop, take).run()
    metric = REGISTRY[f"latency_{main_regime(records)}"]
    values = {record.id: round_value(record, metric) for record in records}
    return {case: value for case, value in values.items() if not isinstance(value, Reason) and value > 0}


@contextmanager
def _busy(
    launcher: Launcher,
    devices: Sequence[str],
    places: Sequence[int],
    cases: Sequence[Case],
    settings: Settings,
    modules: Sequence[UserModule],
    stop: Interrupts,
) -> Iterator[None]:
    """Keep the devices at ``places`` busy sampling, until the with block is left."""
    with ExitStack() as workers:
        started = []
        for place in places:
            task = _task(devices, place, cases, settings, modules, FOREVER)
            worker = workers.enter_context(launcher.start(task, stop.descriptor))
            workers.enter_context(stop.killing(worker.kill))
            started.append(worker)
        deadline = time.monotonic() + STARTUP
        for worker in started:
            while True:
                message = worker.next(deadline)
                if stop.requested:
                    raise Interrupted("interrupted before anything was measured")
                if isinstance(message, protocol.Begin) and message.stage in REGIMES and message.stage != "first":
                    break
                if isinstance(message, protocol.Refused):
                    raise TaskRefused(message)
                if message is None or isinstance(message, WorkerEnd):
                    why = "said nothing" if message is None else message.cause
                    raise WorkerBroken(f"a device could not be kept busy beside another: its worker {why}")
                if isinstance(message, protocol.End):  # time is virtual there
                    break
        yield
