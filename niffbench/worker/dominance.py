"""Dominance: what needs at least as much of everything as a case that did not fit will not fit either."""

from __future__ import annotations

from collections.abc import Iterable

from niffbench.case import Case


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


def dominated(case: Case, unfit: Iterable[Case]) -> Case | None:
    """The first of the cases known not to fit that ``case`` dominates (or is); None when there is none."""
    return next((other for other in unfit if dominates(case, other)), None)
