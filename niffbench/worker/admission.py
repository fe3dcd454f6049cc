"""Admission: which cases are not tried for want of memory, and why. Plan, session and worker all ask here.

Data and pure functions: it loads no torch.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from niffbench.case import Case
from niffbench.suite import OperatorInfo
from niffbench.units import size_of


@dataclass(frozen=True, slots=True)
class Skip:
    """Why a case is not run; bytes, where its predicted memory is the reason."""

    reason: str
    needed: int | None = None
    available: int | None = None


def refusal(
    case: Case,
    operators: Mapping[str, OperatorInfo],
    *,
    needed: int | None = None,
    available: int | None = None,
    unfit: Iterable[Case] = (),
) -> Skip | None:
    """Why ``case`` is not tried; None when it is.

    It is not when it is predicted to need more than there is, nor when it dominates another of the ``unfit``:
    cases that are known not to fit, by a prediction or by having run out of memory.

    Args:
        case: The case in question.
        operators: By name, for the message.
        needed: Predicted bytes at the worst moment, None where there is no prediction.
        available: Bytes it may take, None where nobody knows.
        unfit: Cases that do not fit. The case itself may be among them: it gets its chance in every round.
    """
    if needed is not None and available is not None and needed > available:
        return Skip(f"needs {size_of(needed)} by prediction, {size_of(available)} available", needed, available)
    other = next((other for other in unfit if other != case and dominates(case, other)), None)
    if other is None:
        return None
    name = f"{operators[other.operator].label(other)} at {other.problem.label}"
    return Skip(f"at least as large as {name}, which does not fit in memory")


def dominates(case: Case, other: Case) -> bool:
    """Whether ``case`` is ``other`` with every axis at least as large; operator, settings and mode the same."""
    mine, theirs = case.problem, other.problem
    same = (
        (case.operator, case.options, case.execution, case.kernel is None)
        == (other.operator, other.options, other.execution, other.kernel is None)
    ) and (mine.mode, mine.memory_format) == (theirs.mode, theirs.memory_format)
    return (
        same
        and mine.batch >= theirs.batch
        and mine.channels >= theirs.channels
        and mine.channels_out >= theirs.channels_out
        and mine.height >= theirs.height
        and mine.width >= theirs.width
        and mine.element_bytes >= theirs.element_bytes
        and (case.kernel or 0) >= (other.kernel or 0)
    )
