"""Which replacement each layer gets: the least cost within a budget of harm, solved exactly, then verified."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.optimize import Bounds, LinearConstraint, milp

from niffbench.study.candidates import Candidate

Choice = Mapping[str, Candidate]

MOST_TRIES = 10
"""Solutions that are verified before only what is exact is left."""
REACH = 3.0
"""How many times what is expected of training it may achieve."""


@dataclass(frozen=True)
class Option:
    """A candidate for one layer: its cost, in any unit, and the harm that it alone does to the output."""

    candidate: Candidate
    cost: float
    harm: float


def cheapest(options: Mapping[str, Sequence[Option]], tolerance: float) -> dict[str, Option] | None:
    """One option a layer, of the least total cost with ``√Σ harm² ≤ tolerance``; None where there is none.

    A multiple-choice knapsack (P. Sinha and A. A. Zoltners, Operations Research 27, 1979), as an integer programme
    solved to optimality. Harms of different layers are taken as uncorrelated, so their squares add up.
    """
    rows = [(layer, option) for layer, every in options.items() for option in every if option.harm <= tolerance]
    layers = list(options)
    if {layer for layer, _ in rows} != set(layers):
        return None
    costs = np.array([option.cost for _, option in rows])
    squares = np.array([option.harm**2 for _, option in rows])
    one_each = np.array([[float(layer == name) for layer, _ in rows] for name in layers])
    limit = tolerance**2
    scale = limit or 1.0
    result = milp(
        costs / (costs.max() or 1.0),
        integrality=np.ones(len(rows), dtype=int),
        options={"mip_rel_gap": 0.0},
        bounds=Bounds(0, 1),
        constraints=[
            LinearConstraint(one_each, 1, 1),
            # Relative to the limit, or the solver's own tolerance would be coarser than the numbers.
            LinearConstraint(squares[None] / scale, -np.inf, limit / scale),
        ],
    )
    if result.x is None:
        return None
    return {layer: option for (layer, option), taken in zip(rows, result.x, strict=True) if taken > 0.5}


@dataclass(frozen=True)
class Attempt:
    """A solution and its test: the tolerance it was solved for, the harm expected of it, and the harm it did."""

    tolerance: float
    choice: dict[str, Option]
    expected: float
    measured: float
    holds: bool

    @property
    def cost(self) -> float:
        """The layers' costs together."""
        return sum(option.cost for option in self.choice.values())


def verified(
    options: Mapping[str, Sequence[Option]],
    tolerance: float,
    verify: Callable[[Choice], tuple[float, bool]],
    step: float = 0.05,
    limit: float | None = None,
) -> list[Attempt]:
    """Solve and verify until a solution holds, which is then the last; empty where nothing is within the budget.

    Args:
        tolerance: the harm to begin with.
        verify: the harm that a choice does to the network's output, and whether the budget allows it.
        step: the share by which less is tolerated after the first that fails; it doubles each time.
        limit: where what is cut is trained, about the harm that the budget allows. A step then stays as long as it
            is, but left out is what would do more than :data:`REACH` times that if it did as much of what is
            expected of it as the last solution.
    """
    attempts: list[Attempt] = []
    while True:
        solution = cheapest(options, 0.0 if len(attempts) == MOST_TRIES else tolerance)
        if solution is None:
            return attempts
        expected = sum(option.harm**2 for option in solution.values()) ** 0.5
        measured, holds = verify({layer: option.candidate for layer, option in solution.items()})
        attempts.append(Attempt(tolerance, solution, expected, measured, holds))
        if holds or len(attempts) > MOST_TRIES:
            return attempts
        if limit is None:  # just below what has failed at first, in longer steps from there on
            tolerance = expected * (1 - min(0.5, step * 2 ** (len(attempts) - 1)))
        else:
            tolerance = expected * min(1 - step, REACH * limit / measured)
