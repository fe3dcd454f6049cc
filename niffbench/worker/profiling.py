"""Taking cases apart: each checked against float64, then profiled step by step, with a trace."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from niffbench.case import Case
from niffbench.device import Device
from niffbench.errors import NothingMeasured, UsageError
from niffbench.operators.catalogue import catalogue
from niffbench.worker import phases, tolerance
from niffbench.worker.admission import refusal
from niffbench.worker.failures import DeviceLost, explain
from niffbench.worker.machine import fingerprint
from niffbench.worker.torch_evaluator import TorchEvaluator


@dataclass(frozen=True)
class Profiled:
    """One case taken apart.

    Attributes:
        transforms: whether by its closed form it makes FFTs.
    """

    case: Case
    label: str
    trace: Path
    phases: phases.Phases
    transforms: bool


def profiled(device: Device, case: Case, folder: Path) -> Profiled:
    """Take ``case`` apart; its trace goes to ``folder``.

    Raises:
        NothingMeasured: when it is wrong, is predicted to need more memory than is free, or cannot be run or
            profiled here.
        UsageError: when the trace cannot be written.
    """
    operator = catalogue()[case.operator]
    label, trace = operator.label(case), folder / f"trace-{case.id}.json"
    name = f"{label} at {case.problem.label}"
    try:
        evaluator = TorchEvaluator(device)
        skip = refusal(case, catalogue(), needed=_needed(evaluator, case), available=device.free_memory())
        if skip is not None:
            raise NothingMeasured(f"{name}: skipped, {skip.reason}")
        workload = evaluator.workload(case)
        _, output = device.timed(workload)
        numerics = evaluator.numerics(workload, output)
        del output
        if tolerance.is_wrong(numerics):
            raise NothingMeasured(f"{name}: {tolerance.verdict(numerics)}")
        choice = evaluator.choice(workload)
        cost = (operator if choice is None else choice.operator).cost(case)
        counted = evaluator.cost(case, choice)
        apart = phases.profile(device, workload, counted.steps, trace, by_kind=not counted.stated)
    except NothingMeasured:
        raise
    except OSError as error:
        raise UsageError(f"--out {folder}: cannot be written ({error.strerror})") from error
    except (Exception, SystemExit) as error:
        try:
            failure = explain(error, device.free_memory)
        except DeviceLost as lost:
            raise NothingMeasured(f"{name}: the device is lost: {lost}") from error
        raise NothingMeasured(f"{name}: {failure.status}, {failure.reason}") from error
    if not apart.instrumented > 0:  # CUPTI is not there, or not for this user
        raise NothingMeasured(
            f"{name}: torch's profiler saw none of its kernels; does CUPTI work on this machine?"
        )
    return Profiled(case, label, trace, apart, cost is not None and bool(cost.transform_lengths))


def _needed(evaluator: TorchEvaluator, case: Case) -> int | None:
    """Predicted bytes at the worst moment; None where there is no prediction."""
    try:
        return evaluator.predict(case).needed
    except (Exception, SystemExit) as error:
        explain(error)  # the case will say itself what it lacks
        return None


def document(device: Device, cases: Sequence[Profiled], others: float | None) -> dict[str, Any]:
    """The figures as plain data, for ``profile.json``.

    Args:
        others: the share of the processor, 0 to 1, that other processes used meanwhile; None where nobody knows.
    """
    return {
        "fingerprint": fingerprint(device).model_dump(),
        "others": others,
        "cases": [
            {
                "label": one.label,
                "case": asdict(one.case),
                "trace": one.trace.name,
                "instrumented": one.phases.instrumented,
                "gap": one.phases.gap,
                **asdict(one.phases),
            }
            for one in cases
        ],
    }
