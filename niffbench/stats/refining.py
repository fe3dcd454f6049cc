"""Refining simulated: are crossovers bracketed as surely as is said, and what does it cost?

The very functions that judge real runs (:mod:`niffbench.stats.crossovers`) refine curves whose truth is known.
The log of the ratio of form and rival is the truth's and the noise of a round, whose standard deviation is ``sd``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TypeAlias

import numpy as np

from niffbench.case import Contender
from niffbench.stats.contrasts import FloatArray
from niffbench.stats.crossovers import Comparison, Point, compare, lattice, wanted

Truth: TypeAlias = Callable[[float], float]
"""The log of the form's cost over the rival's, at a value of the axis."""

SD = 0.04


@dataclass(frozen=True)
class Curve:
    """Curves of one kind: ``draw`` makes one up; ``grid`` are the values that are measured before refining."""

    name: str
    grid: tuple[int, ...]
    draw: Callable[[np.random.Generator], Truth]


@dataclass(frozen=True)
class Row:
    """What became of as many ``curves`` of a kind, as shares of them.

    Attributes:
        wrong: something was said that is not true.
        adjacent: all that is true was found, between neighbours.
        tied: found, and a tie is named in between.
        open: not all that is true was found.
        values: those that were measured beside the grid, their mean.
        rounds: those of probes, their mean.
    """

    name: str
    grid: tuple[int, ...]
    curves: int
    wrong: float
    adjacent: float
    tied: float
    open: float
    values: float
    rounds: float


def _smooth(low: int, high: int, slope: float) -> Callable[[np.random.Generator], Truth]:
    def draw(generator: np.random.Generator) -> Truth:
        at = generator.uniform(np.log(low), np.log(high))
        return lambda value: slope * (at - np.log(value))

    return draw


def _cliff(low: int, high: int) -> Callable[[np.random.Generator], Truth]:
    """The rival is a little better, until it falls off a cliff."""

    def draw(generator: np.random.Generator) -> Truth:
        at, gap = generator.uniform(low, high), generator.uniform(0.05, 0.7)
        return lambda value: gap if value < at else -4.4

    return draw


def _there_and_back(low: int, high: int) -> Callable[[np.random.Generator], Truth]:
    """The form is better in the middle only."""

    def draw(generator: np.random.Generator) -> Truth:
        one = generator.uniform(np.log(low), np.log(high) - 1.2)
        other = generator.uniform(one + 1.0, np.log(high))
        return lambda value: 2 * max(one - np.log(value), np.log(value) - other)

    return draw


def _flat(generator: np.random.Generator) -> Truth:
    """The rival is better at first, and never worse."""
    at = generator.uniform(np.log(8), np.log(30))
    return lambda value: max(2 * (at - np.log(value)), 0.0)


CURVES = (
    Curve("smooth, as k²", (7, 31), _smooth(7, 31, 2.0)),
    Curve("smooth, as k²", (3, 111), _smooth(3, 111, 2.0)),
    Curve("smooth, as k", (3, 7, 31, 63), _smooth(3, 63, 1.0)),
    Curve("cliff", (7, 31), _cliff(7, 31)),
    Curve("there and back", (3, 7, 13, 31, 63), _there_and_back(3, 63)),
    Curve("no crossover: equal from some value on", (7, 13, 21, 31), _flat),
)


def simulate(curve: Curve, *, curves: int = 400, sd: float = SD, confidence: float = 0.95, seed: int = 0) -> Row:
    """Refine made-up curves of one kind. The same seed gives the same row."""
    generator = np.random.default_rng([seed, *curve.name.encode(), *curve.grid])
    admissible = lattice("kernel", curve.grid)
    ends = {"wrong": 0, "adjacent": 0, "tied": 0, "open": 0}
    values = rounds = 0
    for _ in range(curves):
        truth = curve.draw(generator)
        logs = {float(value): truth(value) + sd * generator.standard_normal(3) for value in curve.grid}
        before = len(logs)
        while more := wanted(_points(logs), admissible, confidence=confidence):
            rounds += max(count - len(logs.get(value, ())) for value, count in more.items())
            for value, count in more.items():
                before_look = logs.get(value, np.empty(0))
                fresh = truth(value) + sd * generator.standard_normal(count - before_look.size)
                logs[value] = np.concatenate([before_look, fresh])
        values += len(logs) - before
        ends[_end(compare(_points(logs), admissible, confidence=confidence), truth, curve.grid, admissible)] += 1
    shares = {end: number / curves for end, number in ends.items()}
    return Row(curve.name, curve.grid, curves, **shares, values=values / curves, rounds=rounds / curves)


def table(*, curves: int = 400, seed: int = 0) -> tuple[Row, ...]:
    """All kinds of curves."""
    return tuple(simulate(curve, curves=curves, seed=seed) for curve in CURVES)


def _points(logs: Mapping[float, FloatArray]) -> list[Point]:
    return [
        Point(value, dict(enumerate(map(float, np.exp(some)))), dict.fromkeys(range(len(some)), 1.0))
        for value, some in logs.items()
    ]


def _end(said: Comparison, truth: Truth, grid: Sequence[int], admissible: Sequence[float]) -> str:
    """What became of one curve."""

    def better(value: float) -> Contender | None:
        log = truth(value)
        return "form" if log < 0 else "rival" if log > 0 else None

    if any(order.better not in (None, better(order.at)) for order in said.orders):
        return "wrong"
    sides = [side for value in admissible if (side := better(value)) is not None]
    changes = sum(one != other for one, other in pairwise(sides))
    if len(said.crossovers) < changes:
        return "open"
    return "tied" if any(not crossover.adjacent for crossover in said.crossovers) else "adjacent"
