"""Crossovers: between which two measured values of an axis does the order of two operators change?

A *form* and a *rival* are compared at every value that both were measured at. At each one side is shown to be
better or it is a tie; a crossover lies between two neighbouring values at which different sides are shown to be
better, and is given as these two: never a value between them, where nothing is known. Latency and memory have
cliffs (a library changes its algorithm), so that a line between measured values says nothing.

Where a bracket is not yet one step of the axis wide, :func:`wanted` says what to measure next: the middle of it,
at first in 3 rounds, and where they do not decide in 5 and in 9. (Exact costs, which go up and down in steps, need
one round, and a bracket of few values is measured whole.) What is looked at three times is tested three
times: each look has the one-sided level (1 − confidence) / (3 m), where ``m`` counts the values measured and those
that bisecting the widest gap will add (two values, g steps apart: m = ⌈log2 g⌉ + 2). So all that a curve says of
who is better is right at once with the stated confidence (Bonferroni, which needs nothing of how looks and values
depend on one another). What three looks leave undecided is a tie; both of its sides are then bisected.

That one side is better *throughout* needs less care: every value must show it (an intersection–union test: Berger,
Technometrics 24, 1982, pp. 295–300), so each has the level (1 − confidence) / 3 a look.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from math import ceil, exp, gcd, isfinite, log, log1p, log2, nan
from statistics import fmean, median
from typing import Literal

import numpy as np

from niffbench.case import Contender
from niffbench.errors import plural
from niffbench.stats.contrasts import contrast
from niffbench.stats.intervals import NOT_POSITIVE, ONE_ROUND

Outcome = Literal["crossover", "several", "none", "undecided"]

LOOKS = (3, 5, 9)
"""Rounds after which a value is judged; the last of them takes what is undecided for a tie."""

MOST_STEPS = 4096
"""Of a lattice."""

MOST_AT_ONCE = 8
"""Values within a bracket of exact costs that are measured all at once: one round each, none is missed."""

CLIFF = 2.0
"""A side jumps where it grows so many times more than its FLOPs do, or shrinks so many times more."""

_OTHER: Mapping[Contender, Contender] = {"form": "rival", "rival": "form"}


@dataclass(frozen=True)
class Point:
    """Both sides at one value of the axis: their costs by round, less being better.

    Rounds that both sides have are compared pairwise, what a round does to both cancels; without two of these the
    sides are compared as they are. ``theory``: what explains their growth along the axis (FLOPs), the form's
    first. ``step``: the clock's, relative to the costs, where it is large: a difference of no more is none.
    """

    at: float
    form: Mapping[int, float]
    rival: Mapping[int, float]
    theory: tuple[float, float] | None = None
    step: float = 0.0

    @property
    def shared(self) -> list[int]:
        """The rounds that both sides have, in order."""
        return sorted(self.form.keys() & self.rival.keys())

    def of(self, side: Contender) -> Mapping[int, float]:
        """The costs of one side."""
        return self.form if side == "form" else self.rival


@dataclass(frozen=True)
class Order:
    """Who is better at one value; None: a tie, the two could not be told apart in as many ``rounds``.

    ``ratio``: the form's cost over the rival's, of geometric means.
    """

    at: float
    better: Contender | None
    ratio: float
    rounds: int


@dataclass(frozen=True)
class Cliff:
    """A jump between the values of a crossover: ``side`` grows ``ratio`` times, where theory says ``expected``."""

    side: Contender
    ratio: float
    expected: float


@dataclass(frozen=True)
class Crossover:
    """Two measured values, ``below`` < ``above``, between which the order changes; both are decided.

    ``better_above``: who is better from ``above`` on, the other one being better up to ``below``. ``adjacent``:
    whether there is no admissible value between them; ``ties`` are those that were measured and are undecided.
    """

    below: float
    above: float
    better_above: Contender
    adjacent: bool
    ties: tuple[float, ...]
    confidence: float
    cliff: Cliff | None = None

    @property
    def bounds(self) -> dict[str, float]:
        """Both by what they say: ``rival_better_to`` and ``form_better_from``, or the other way round."""
        return {
            f"{_OTHER[self.better_above]}_better_to": self.below,
            f"{self.better_above}_better_from": self.above,
        }


@dataclass(frozen=True)
class Comparison:
    """What the measured values show of a form and a rival along an axis.

    ``outcome``: ``crossover`` (one), ``several``, ``none`` (``better`` is better throughout) or ``undecided``,
    with the ``reason``. ``orders`` are the values that both have, ascending; ``confidence`` is that of all of them
    at once, but in ``none`` that of the claim.
    """

    outcome: Outcome
    orders: tuple[Order, ...]
    crossovers: tuple[Crossover, ...]
    better: Contender | None
    confidence: float
    reason: str | None = None


def lattice(axis: str, values: Iterable[float]) -> tuple[float, ...]:
    """The admissible values of an axis between the least and the largest of ``values``, these among them.

    Kernels are odd; of other axes it is the multiples of the greatest common divisor of ``values``. Between values
    that are no integers nothing is admissible. Of more than MOST_STEPS every other one is left out, and again.
    """
    some = sorted(set(values))
    if not some or not all(float(value).is_integer() for value in some):
        return tuple(some)
    whole = [int(value) for value in some]
    step = 2 if axis == "kernel" else gcd(*whole)
    while (whole[-1] - whole[0]) // step > MOST_STEPS:  # nobody measures such an axis, but anybody may send a run
        step *= 2
    return tuple(sorted({*map(float, range(whole[0], whole[-1] + 1, step)), *map(float, whole)}))


def compare(
    points: Sequence[Point], admissible: Sequence[float], *, exact: bool = False, confidence: float = 0.95
) -> Comparison:
    """Find where a form and a rival change places.

    Args:
        points: Values of the axis, all different; those that a side lacks are left out, and so are costs that are
            no finite number.
        admissible: The values that can be measured (:func:`lattice`).
        exact: Whether costs are without error (FLOPs, bytes): then one round decides.
        confidence: Between 0.5 and 1; of everything that is said.

    Raises:
        ValueError: For values of the axis that repeat.
    """
    if len({point.at for point in points}) < len(points):
        raise ValueError("the values of the axis must all be different")
    every = measured = _measured(points)
    if not exact and any(_rounds(point) > 1 for point in measured):  # one round says nothing; it was for bytes
        measured = [point for point in measured if _rounds(point) > 1]
    if len(measured) < 2:
        reason = f"{plural(len(measured), 'value')} measured for both, at least 2 are needed"
        return Comparison("undecided", (), (), None, confidence, reason)
    if not exact and any(cost <= 0 for point in measured for side in _OTHER for cost in point.of(side).values()):
        return Comparison("undecided", (), (), None, confidence, NOT_POSITIVE)
    loose, strict = (1 - confidence) / len(LOOKS), _level(measured, admissible, confidence)
    everywhere = {_better(point, loose, exact, least=2) for point in measured}
    orders = tuple(_order(point, _better(point, strict, exact)) for point in measured)
    if len(everywhere) == 1 and (better := everywhere.pop()) is not None:
        orders = tuple(_order(point, better) for point in measured)
        return Comparison("none", orders, (), better, confidence)
    crossovers = _crossovers(every, orders, admissible, confidence)
    if crossovers:
        outcome: Outcome = "crossover" if len(crossovers) == 1 else "several"
        return Comparison(outcome, orders, crossovers, None, confidence)
    if not exact and max(order.rounds for order in orders) < 2:
        reason = ONE_ROUND
    else:
        where = "at some values" if any(order.better for order in orders) else "throughout"
        reason = f"{where} the two cannot be told apart"
    return Comparison("undecided", orders, (), None, confidence, reason)


def wanted(
    points: Sequence[Point], admissible: Sequence[float], *, exact: bool = False, confidence: float = 0.95
) -> dict[float, int]:
    """What to measure next of both sides: values of the axis, and in how many rounds in all.

    Nothing, when every crossover is between neighbours, or what keeps it from that is a tie. Arguments as in
    :func:`compare`; values that turned out not to be measurable are to be left out of ``admissible``.
    """
    measured = _measured(points)
    if len(measured) < 2:
        return {}
    level = _level(measured, admissible, confidence)
    better = {point.at: _better(point, level, exact) for point in measured}
    path = [point for point in measured if better[point.at] or (not exact and len(point.shared) < LOOKS[-1])]
    more: dict[float, int] = {}
    for one, other in pairwise(path):
        if _leaning(one, better[one.at]) == _leaning(other, better[other.at]):
            continue
        undecided = [point for point in (one, other) if better[point.at] is None]
        for point in undecided:
            more[point.at] = next(look for look in LOOKS if look > len(point.shared))
        if undecided:
            continue
        stops = [point.at for point in measured if one.at <= point.at <= other.at]
        for low, high in {(stops[0], stops[1]), (stops[-2], stops[-1])}:
            between = _between(low, high, admissible)
            if exact and len(between) <= MOST_AT_ONCE:
                more.update(dict.fromkeys(between, 1))
            elif between:
                more[between[len(between) // 2]] = 1 if exact else LOOKS[0]
    return more


def _measured(points: Sequence[Point]) -> list[Point]:
    """The points that both sides have, ascending, costs that are no number left out."""
    clean = (
        Point(
            point.at,
            {number: cost for number, cost in point.form.items() if isfinite(cost)},
            {number: cost for number, cost in point.rival.items() if isfinite(cost)},
            point.theory,
            point.step,
        )
        for point in sorted(points, key=lambda point: point.at)
    )
    return [point for point in clean if point.form and point.rival]


def _rounds(point: Point) -> int:
    """Rounds that a comparison can use."""
    return min(map(len, _paired(point)))


def _level(measured: Sequence[Point], admissible: Sequence[float], confidence: float) -> float:
    """The one-sided level of one look at one value."""
    steps = max(len(_between(one.at, other.at, admissible)) + 1 for one, other in pairwise(measured))
    return (1 - confidence) / (len(LOOKS) * (len(measured) + ceil(log2(steps))))


def _between(low: float, high: float, admissible: Sequence[float]) -> list[float]:
    return sorted(value for value in admissible if low < value < high)


def _better(point: Point, level: float, exact: bool, least: int = LOOKS[0]) -> Contender | None:
    """Who is shown to be better at a value, by the first look that shows it; ``least`` rounds must there be."""
    form, rival = _paired(point)
    if exact:
        return "form" if max(form) < min(rival) else "rival" if max(rival) < min(form) else None
    if min(len(form), len(rival)) < least:
        return None
    looks = _looks(form, rival, is_shared=len(point.shared) > 1, step=point.step)
    return next((side for p_value, side in looks if p_value <= level), None)


def _paired(point: Point) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """The costs of form and rival that are compared: those of the rounds that both have, else all."""
    shared = point.shared if len(point.shared) > 1 else None
    return (
        tuple(point.form[number] for number in shared or point.form),
        tuple(point.rival[number] for number in shared or point.rival),
    )


@lru_cache(maxsize=10_000)  # refining asks again of all values whenever one has changed
def _looks(
    form: tuple[float, ...], rival: tuple[float, ...], *, is_shared: bool, step: float
) -> list[tuple[float, Contender]]:
    """The one-sided p-value of each look, and whom it speaks for.

    A look after all rounds takes the place of those that were not made; unpaired rounds are looked at once.
    """
    logs, rounds = (np.log(form), np.log(rival)), min(len(form), len(rival))
    looks = [*(look for look in LOOKS[:-1] if look < rounds), rounds] if is_shared else [None]
    tests: list[tuple[float, Contender]] = []
    for look in looks:
        difference = contrast([log[:look] for log in logs], (1.0, -1.0), shared=is_shared)
        p_value = float(difference.beyond(log1p(step)).p_value()) / 2
        tests.append((p_value, "form" if difference.estimate < 0 else "rival"))
    return tests


def _order(point: Point, better: Contender | None) -> Order:
    form, rival = _paired(point)
    return Order(point.at, better, _mean(form) / (_mean(rival) or nan), min(len(form), len(rival)))


def _mean(costs: Sequence[float]) -> float:
    """Geometric; of exact costs some may be zero."""
    return exp(fmean(map(log, costs))) if min(costs) > 0 else fmean(costs)


def _leaning(point: Point, better: Contender | None) -> Contender | None:
    """Who is better, or seems to be as far as it was measured."""
    forms, rivals = _paired(point)
    form, rival = median(forms), median(rivals)
    if len(point.shared) > 1 and min(*forms, *rivals) > 0:  # one slow round is not to hide where to look
        # Logs, so that the answer is the same from either side, of an even number of rounds too.
        form, rival = median(log(one / other) for one, other in zip(forms, rivals, strict=True)), 0.0
    return better or (None if form == rival else "form" if form < rival else "rival")


def _crossovers(
    measured: Sequence[Point], orders: Sequence[Order], admissible: Sequence[float], confidence: float
) -> tuple[Crossover, ...]:
    by_value = {point.at: point for point in measured}
    crossovers: list[Crossover] = []
    for one, other in pairwise([order for order in orders if order.better is not None]):
        if other.better is None or one.better == other.better:
            continue
        ties = tuple(at for at in by_value if one.at < at < other.at)
        crossovers.append(
            Crossover(
                below=one.at,
                above=other.at,
                better_above=other.better,
                adjacent=not ties and not _between(one.at, other.at, admissible),
                ties=ties,
                confidence=confidence,
                cliff=_cliff(by_value[one.at], by_value[other.at]),
            )
        )
    return tuple(crossovers)


def _cliff(one: Point, other: Point) -> Cliff | None:
    """The jump of the side that jumps more than its theory explains, where one does."""
    if one.theory is None or other.theory is None:
        return None
    cliffs: list[tuple[float, Cliff]] = []
    for place, side in enumerate(_OTHER):
        costs = median(one.of(side).values()), median(other.of(side).values())
        theory = one.theory[place], other.theory[place]
        if min(*costs, *theory) > 0:
            ratio, expected = costs[1] / costs[0], theory[1] / theory[0]
            excess = max(ratio / max(expected, 1.0), min(expected, 1.0) / ratio)
            cliffs.append((excess, Cliff(side, ratio, expected)))
    excess, largest = max(cliffs, key=lambda some: some[0], default=(0.0, None))
    return largest if excess >= CLIFF else None
