"""Memory walls: what is at least as large as a case that did not fit will not fit either."""

from __future__ import annotations

from collections.abc import Hashable

from niffbench.case import Case


class Walls:
    """Cases known not to fit. A case *dominates* another when operator, options, mode, memory format and execution
    are the same, and batch, channels, sides, kernel and bytes per element are each at least as large.
    """

    def __init__(self) -> None:
        self._known: dict[Hashable, list[Case]] = {}

    def add(self, case: Case) -> None:
        """``case`` did not fit."""
        walls = self._known.setdefault(_kind(case), [])
        if not any(_dominates(case, wall) for wall in walls):
            walls[:] = [wall for wall in walls if not _dominates(wall, case)] + [case]

    def behind(self, case: Case) -> Case | None:
        """A case that did not fit and that ``case``, another one, dominates; None when it may fit."""
        walls = self._known.get(_kind(case), [])
        return next((wall for wall in walls if wall != case and _dominates(case, wall)), None)


def _kind(case: Case) -> Hashable:
    return case.operator, case.options, case.execution, case.problem.mode, case.problem.memory_format


def _extents(case: Case) -> tuple[int, ...]:
    problem = case.problem
    sides = (problem.batch, problem.channels, problem.channels_out, problem.height, problem.width)
    return (*sides, case.kernel or 0, problem.element_bytes)


def _dominates(large: Case, small: Case) -> bool:
    return all(a >= b for a, b in zip(_extents(large), _extents(small), strict=True))
