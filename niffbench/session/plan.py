"""The plan: what will be run, what will not and why, and how long it should take."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

from niffbench.case import Case
from niffbench.cost.closed import Cost, Step, floor_bytes
from niffbench.cost.roofline import steps_time
from niffbench.operators.base import Operator
from niffbench.protocol import Predicted
from niffbench.results import Ceilings
from niffbench.session.survey import Survey
from niffbench.suite import Measure, Settings, Suite
from niffbench.worker.admission import Skip, refusal

LAUNCH = 5e-6
"""Seconds of a step that no roofline knows: dispatch, allocation, a kernel's launch."""
EXTRA_CALLS = 10
"""Calls of a case in a round that are no samples: first call, warm-up, the memory pass, the float64 reference."""
WORKER = 4.0
"""Seconds a worker needs to import torch and open its device."""


@dataclass(frozen=True)
class Forecast:
    """What is known of a case before it runs.

    ``call`` is the expected time of one steady call, ``sampling`` and ``overhead`` those of one round, in seconds;
    ``predicted`` is None where no survey was made.
    """

    case: Case
    label: str
    cost: Cost
    predicted: Predicted | None
    skip: Skip | None
    call: float
    sampling: float
    overhead: float

    @property
    def needed(self) -> int | None:
        """Predicted bytes at the worst moment."""
        return None if self.predicted is None else self.predicted.needed

    @property
    def bytes(self) -> int:
        """Bytes that a call moves: counted, or else what any implementation would."""
        if self.predicted is None or self.predicted.steps is None:
            return self.cost.bytes_floor
        return sum(step.bytes or 0 for step in self.predicted.steps)

    @property
    def is_estimated(self) -> bool:
        """Whether its time is estimated from the bytes that any implementation moves, for want of counted ones."""
        return self.predicted is None or self.predicted.steps is None

    @property
    def seconds(self) -> float:
        """Expected wall time of one round; nothing for a case that is skipped."""
        return 0.0 if self.skip else self.sampling + self.overhead


@dataclass(frozen=True)
class Plan:
    """The cases of a suite on a machine, in the suite's order. ``available`` in bytes.

    Attributes:
        crowded: the times come from ceilings that were measured beside busy neighbours, and may be far too
            long.
    """

    forecasts: tuple[Forecast, ...]
    rounds: int
    available: int | None = None
    crowded: bool = False

    @property
    def skipped(self) -> int:
        """How many of the cases will not be tried."""
        return sum(forecast.skip is not None for forecast in self.forecasts)

    @property
    def tried(self) -> int:
        """How many will be."""
        return len(self.forecasts) - self.skipped

    @property
    def overhead(self) -> float:
        """Expected seconds of one round that are not sampling, the worker's start included."""
        return WORKER + sum(forecast.overhead for forecast in self.forecasts if forecast.skip is None)

    @property
    def seconds(self) -> float:
        """Expected wall time of all rounds."""
        return self.rounds * (WORKER + sum(forecast.seconds for forecast in self.forecasts))


def make(suite: Suite, survey: Survey, operators: Mapping[str, Operator], settings: Settings) -> Plan:
    """Plan a suite: what fits in the memory limit, or else in the free memory, and how long it takes.

    A prediction that fits is believed; without one, a case that dominates one that does not fit does not either.
    """
    available = survey.free_memory if settings.memory_limit is None else settings.memory_limit
    skips: dict[str, Skip] = {}
    unfit: list[Case] = []
    unpredicted: list[Case] = []
    for case in suite.cases:
        predicted = survey.predictions.get(case.id)
        if predicted is None or (needed := predicted.needed) is None:
            unpredicted.append(case)
        elif (skip := refusal(case, operators, needed=needed, available=available)) is not None:
            skips[case.id] = skip
            unfit.append(case)
    for case in unpredicted:
        if (skip := refusal(case, operators, unfit=unfit)) is not None:
            skips[case.id] = skip
    forecasts = []
    for case in suite.cases:
        operator = operators[case.operator]
        predicted = survey.predictions.get(case.id)
        cost = operator.cost(case) or _counted(case, predicted)
        call = call_time(case, cost, predicted, survey.ceilings, operator.shortfall)
        forecasts.append(
            Forecast(
                case=case,
                label=suite.labels[case.id],
                cost=cost,
                predicted=predicted,
                skip=skips.get(case.id),
                call=call,
                sampling=sampling_time(call, settings.measure),
                overhead=operator.setup + EXTRA_CALLS * call,
            )
        )
    return Plan(tuple(forecasts), settings.rounds, available, survey.crowded)


def _counted(case: Case, predicted: Predicted | None) -> Cost:
    """What a survey counted of an operator without a closed form; the floor is that of a layer without weights."""
    steps = (predicted and predicted.steps) or ()
    flops = tuple(Step(step.name, step.direction, step.flops) for step in steps if step.flops)
    return Cost(flops, floor_bytes(case.problem, 0), 0)


def call_time(
    case: Case, cost: Cost, predicted: Predicted | None, ceilings: Ceilings | None, shortfall: float
) -> float:
    """Expected seconds of a steady call: its steps at their roofs, times its operator's shortfall, plus launches.

    Where the bytes of the steps were not counted, the floor's are moved in a step of their own.
    """
    if predicted is None or predicted.steps is None:
        steps = [_Step(step.name, step.flops, 0) for step in cost.steps]
        steps.append(_Step("floor", 0, cost.bytes_floor))
    else:
        steps = [_Step(step.name, step.flops, step.bytes or 0) for step in predicted.steps]
    roof = 0.0
    if ceilings:
        roof = steps_time(steps, ceilings, case.problem.precision, ceilings.fft_of(case.problem))
    return shortfall * roof + LAUNCH * len(steps)


class _Step(NamedTuple):
    name: str
    flops: int
    bytes: int


def sampling_time(call: float, measure: Measure) -> float:
    """Expected seconds of sampling a case in one round: each regime half-way between its least time and its most.

    A quiet machine reaches the precision asked for soon, a noisy one never.
    """
    least = max(measure.min_time, min(measure.min_samples * call, measure.max_time))
    return measure.windows * max((least + measure.max_time) / 2, call)
