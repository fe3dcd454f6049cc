"""A fleet: like devices that measured one suite together, each with an error of its own, and which of them is odd.

Between cards of one model there are several per cent, so a device's rounds say little of what the next device
would give: in a fleet the unit of replication is the *member*, a device of a node. The log of a round's median is
taken for ``case + member + round``, both random and nested, and intervals are Student's t over the members'
medians (:func:`replicates`), with one degree of freedom less than there are members. With equally many rounds each
that is exact whatever the two variances are (Scheffé, The Analysis of Variance, Wiley 1959, §7.2; Searle, Casella
and McCulloch, Variance Components, Wiley 1992, ch. 3); with unequally many, so that medians are unequally sure,
the t interval errs to the safe side (Benjamini, Journal of the American Statistical Association 78, 1983, pp.
645–654). With two or three members it is wide: so little do they say of the next one.

Share of 2,000 simulated 95 % intervals that hold the truth, at a standard deviation of 1 % between rounds: for a
value, for a ratio (0.5 %, and a third of that between members), and for the value were rounds taken for members:

=================================== ============== ============== ==============
standard deviation between members  0              0.5 %          3 %
=================================== ============== ============== ==============
four members of four rounds         .95 .96 .95    .94 .96 .90    .95 .95 .70
two members of four rounds          .95 .95 .95    .96 .95 .88    .95 .96 .53
8, 2, 2, 1 and 1 rounds             .96 .94 .95    .96 .97 .88    .95 .95 .56
eight members of a round            .95 .95 .95    .94 .95 .94    .95 .96 .95
=================================== ============== ============== ==============

A ratio is that of each member to itself: operators of a problem take turns on one device.

A *straggler* is slower than its fellows by more than they differ among themselves: Rosner's generalized ESD test
(Technometrics 25, 1983, pp. 165–172), one-sided, on the members' shifts, which finds several that would hide each
other. Step i of r has the level alpha / 2ⁱ (the last what is left), with which the chance that any is named of a
fleet without one is at most ``alpha`` (simulated: of two members in 0.1 % of fleets, of three in 4.6 %, of four in
0.8 %, of eight in 1 to 3 %). Of two members nobody knows which is the odd one, nor how much such cards
differ: there only a difference of more than ``PAIR`` counts.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, pairwise
from math import exp, sqrt
from statistics import median
from typing import TypeVar

import numpy as np
from scipy.special import stdtr, stdtrit

from niffbench.stats.contrasts import BoolArray, FloatArray
from niffbench.stats.intervals import Interval

M = TypeVar("M", bound=Hashable)

ALPHA = 0.05
"""Share of fleets without a straggler in which one may be named."""
TRIFLING = 0.01
"""A member that is slower by less is named by nobody."""
PAIR = 0.10
"""Of two members, how much slower one must be at least."""
MOST = 4096
"""Members that are compared; no fleet has more."""
_MOST_CELLS = 20_000_000
_SWEEPS = 10
FEWEST = 5
"""Values, one a case and round, of which a member is named."""
_PER_VALUE = 3.0
"""Values that a round's shift is of, at least: with fewer a member is less well known than its rounds say."""
_OWN = 4
"""Rounds from which a member's own tell how much they differ."""


def replicates(
    series: Sequence[Mapping[int, float]], members: Sequence[Mapping[int, Hashable]]
) -> list[dict[int, float]]:
    """What intervals are made of: values by round where all are one member's, else by member.

    Args:
        series: values by round.
        members: of each series, whose each round is; a round that is left out is nobody's in particular.

    Returns:
        The series as they are, or in each the medians of the members' rounds, members numbered alike in all.
    """
    owners = [[members_of.get(number) for number in one] for one, members_of in zip(series, members, strict=True)]
    numbers = {owner: number for number, owner in enumerate(dict.fromkeys(chain.from_iterable(owners)))}
    if len(numbers) < 2:
        return [dict(one) for one in series]
    result = []
    for one, owned in zip(series, owners, strict=True):
        values: dict[int, list[float]] = {}
        for value, owner in zip(one.values(), owned, strict=True):
            values.setdefault(numbers[owner], []).append(value)
        result.append({number: median(some) for number, some in values.items()})
    return result


@dataclass(frozen=True)
class Shift:
    """How far a member is from its fellows, those that are no stragglers.

    Attributes:
        ratio: its latency to theirs, over cases that several measured; the interval is over its rounds and over
            the fellows.
        fellows: how many they are.
        cases: how many of its cases a fellow measured as well.
        slowest_in: in how many of these it was slower than each of them.
    """

    ratio: Interval
    fellows: int
    cases: int
    slowest_in: int
    is_straggler: bool


def shifts(
    values: Sequence[tuple[M, int, str, float]], *, confidence: float = 0.95, alpha: float = ALPHA
) -> dict[M, Shift]:
    """Each member's shift against the others.

    Cases and members are told apart by Tukey's median polish (Exploratory Data Analysis, 1977, ch. 11), so that
    neither an odd case nor who happened to measure which cases moves a shift, which is a median over cases and
    rounds; the interval is over the shifts of rounds. Members that share no case, not even by way of others, are
    not compared.

    Args:
        values: member, round, case and a positive latency, in any order.
        alpha: share of fleets without a straggler in which one may be named.

    Returns:
        One shift for each member that measured a case which others measured too; none of more than ``MOST``.
    """
    names = list(dict.fromkeys(member for member, *_ in values))
    cases = {case: place for place, case in enumerate(dict.fromkeys(case for _, _, case, _ in values))}
    if not 1 < len(names) <= MOST or len(names) * len(cases) > _MOST_CELLS:
        return {}
    places = {name: place for place, name in enumerate(names)}
    rows = np.array([places[member] for member, *_ in values])
    columns = np.array([cases[case] for _, _, case, _ in values])
    rounds = np.array([number for _, number, _, _ in values])
    logs = np.log([value for *_, value in values])
    table = _medians(rows, columns, logs, (len(names), len(cases)))
    shared = np.isfinite(table).sum(axis=0) > 1
    result: dict[M, Shift] = {}
    groups = [group for group in _connected(np.isfinite(table) & shared) if len(group) > 1]
    for group in groups:
        own = shared & np.isfinite(table[group]).any(axis=0)
        inside = np.isin(rows, group) & own[columns]
        centre = np.full(len(cases), np.nan)
        centre[own] = polish(table[group][:, own])
        residuals = logs - centre[columns]
        order = np.argsort(rows[inside], kind="stable")
        bounds = np.searchsorted(rows[inside][order], [*group, len(names)])
        parts = [order[start:end] for start, end in pairwise(bounds)]
        units = [_Units.of(rounds[inside][part], residuals[inside][part]) for part in parts]
        block = _Block(units, confidence, alpha * len(group) / sum(map(len, groups)))
        judged = block.judged(table[group][:, own])
        result |= {names[row]: shift for row, shift in zip(group, judged, strict=True)}
    return {name: result[name] for name in names if name in result}


def _medians(rows: np.ndarray, columns: np.ndarray, logs: FloatArray, shape: tuple[int, int]) -> FloatArray:
    """Members × cases: the median over rounds, NaN where there is none."""
    table = np.full(shape, np.nan)
    order = np.lexsort((logs, columns, rows))
    cell = rows[order] * shape[1] + columns[order]
    starts = np.flatnonzero(np.r_[True, cell[1:] != cell[:-1]])
    counts = np.diff(np.r_[starts, cell.size])
    low, high = logs[order][starts + (counts - 1) // 2], logs[order][starts + counts // 2]
    table.flat[cell[starts]] = (low + high) / 2
    return table


def _connected(measured: BoolArray) -> list[list[int]]:
    """Members that can be compared, directly or by way of others: the rows of each connected block."""
    left, blocks = set(range(measured.shape[0])), []
    while left:
        block, ahead = set(), {min(left)}
        while ahead:
            block |= ahead
            columns = measured[sorted(ahead)].any(axis=0)
            ahead = set(np.flatnonzero(measured[:, columns].any(axis=1)).tolist()) - block
        blocks.append(sorted(block))
        left -= block
    return blocks


def polish(table: FloatArray) -> FloatArray:
    """The cases' effects of ``case + member``, of shape (cases,): medians are taken out until none is left.

    Args:
        table: Members × cases, on logs; NaN where there is no value, of which every row and column has one.
    """
    members = np.zeros((table.shape[0], 1))
    for _ in range(_SWEEPS):
        cases = _median(table - members, 0)
        moved = _median(table - cases, 1)
        moved -= np.median(moved)
        if np.abs(moved - members).max() < 1e-6:
            break
        members = moved
    return np.asarray(cases[0], dtype=np.float64)


def _median(table: FloatArray, axis: int) -> FloatArray:
    """The medians along an axis, which is kept, without NaNs; twenty times faster than ``numpy.nanmedian``."""
    ordered, counts = np.sort(table, axis=axis), np.isfinite(table).sum(axis=axis, keepdims=True)
    low, high = (np.take_along_axis(ordered, place, axis) for place in ((counts - 1) // 2, counts // 2))
    return np.asarray((low + high) / 2, dtype=np.float64)


@dataclass(frozen=True)
class _Units:
    """What is known of one member: its shift, the median of so many ``values``, and that of each of its rounds."""

    shift: float
    rounds: FloatArray
    values: int

    @classmethod
    def of(cls, rounds: np.ndarray, residuals: FloatArray) -> _Units:
        """Of what is left of its logs when the cases' effects are taken out, and the round of each."""
        medians = [np.median(residuals[rounds == number]) for number in np.unique(rounds)]
        return cls(float(np.median(residuals)), np.array(medians), residuals.size)


class _Block:
    """Members that are comparable."""

    def __init__(self, units: Sequence[_Units], confidence: float, alpha: float) -> None:
        self._units, self._confidence, self._alpha = units, confidence, alpha
        self._shifts = np.array([unit.shift for unit in units])
        self._freedom = sum(unit.rounds.size - 1 for unit in units)
        squares = sum(float(unit.rounds.var()) * unit.rounds.size for unit in units)
        # Of a round's shift within a member, of all members together.
        self._within = squares / self._freedom if self._freedom else 0.0

    def judged(self, table: FloatArray) -> list[Shift]:
        """The members' shifts; ``table`` has the log of each one's cases."""
        odd = self._stragglers()
        for place in np.flatnonzero(
            odd
        ).tolist():  # what is named must be slower by something in its own interval, too
            ratio = self._ratio(place, odd)
            if ratio.low is None or ratio.low <= 1 or (ratio.estimate or 0.0) < 1 + TRIFLING:
                odd = odd & (np.arange(odd.size) != place)
        # Of the members that are compared with, the slowest and the slowest but one in each case.
        compared_with = ~odd if (~odd).sum() > 1 else np.ones_like(odd)
        logs = np.where(np.isfinite(table) & compared_with[:, None], table, -np.inf)
        first, (slowest, second) = logs.argmax(axis=0), np.sort(logs, axis=0)[:-3:-1]
        result = []
        for place, own in enumerate(table):
            fellows = self._fellows(place, odd)
            worst = np.where(first == place, second, slowest)
            compared = np.isfinite(own) & np.isfinite(worst)
            result.append(
                Shift(
                    ratio=self._ratio(place, odd),
                    fellows=int(fellows.sum()),
                    cases=int(compared.sum()),
                    slowest_in=int((compared & (own > worst)).sum()),
                    is_straggler=bool(odd[place]),
                )
            )
        return result

    def _fellows(self, place: int, odd: BoolArray) -> BoolArray:
        """Whom a member is compared with: the others that are no stragglers, if there are any."""
        others = np.arange(odd.size) != place
        return np.asarray(others & ~odd if (others & ~odd).any() else others, dtype=bool)

    def _stragglers(self) -> BoolArray:
        units, shifts, alpha = self._units, self._shifts, self._alpha
        order = np.argsort(shifts)
        odd = np.zeros(shifts.size, dtype=bool)
        if shifts.size == 2:
            low = self._ratio(int(order[1]), odd, 1 - 2 * alpha).low
            odd[order[1]] = low is not None and low > 1 + PAIR
            return odd
        # One that measured less than the others is known less well, and differs the more for that alone.
        errors = np.array([self._within * max(1 / u.rounds.size, _PER_VALUE / u.values) for u in units])
        steps = max((shifts.size - 1) // 2, 1)
        named = 0
        for step in range(1, steps + 1):
            rest, slowest = order[: shifts.size - step], order[shifts.size - step]
            less_sure = max(float(errors[slowest] - errors[rest].mean()), 0.0)
            error = sqrt(float(shifts[rest].var(ddof=1)) * (1 + 1 / rest.size) + less_sure)
            distance = float(shifts[slowest] - shifts[rest].mean())
            t = distance / error if error > 0 else np.inf * (distance > 0)
            p = float(stdtr(rest.size - 1.0, -t)) * (rest.size + 1)
            if p <= alpha / 2 ** min(step, steps - 1):
                named = step
        odd[order[shifts.size - named :]] = True
        return odd & (np.array([unit.values for unit in units]) >= FEWEST)

    def _ratio(self, place: int, odd: BoolArray, confidence: float | None = None) -> Interval:
        """A member to its fellows: Welch's t, of its rounds against the fellows' shifts, of one fellow its rounds.

        Fewer than ``_OWN`` rounds are taken to be as unsure as those of all members are.
        """
        confidence = self._confidence if confidence is None else confidence
        fellows, own = np.flatnonzero(self._fellows(place, odd)), self._units[place]
        others = self._shifts[fellows]
        estimate = own.shift - float(others.mean())
        parts, freedoms = [], []
        lone = fellows.size == 1
        for side in (own.rounds, self._units[fellows[0]].rounds if lone else others):
            few = (lone or side is own.rounds) and side.size < _OWN and self._freedom > 0
            variance = self._within if few else float(side.var(ddof=1)) if side.size > 1 else 0.0
            parts.append(variance / side.size)
            freedoms.append(self._freedom if few else side.size - 1)
        if not freedoms[0] and freedoms[1]:  # one round each: that of this member differs as much as fellows do
            parts[0], freedoms[0] = parts[1] * others.size, freedoms[1]
        if not min(freedoms):
            why = "one round each: what another would give is unknown"
            return Interval(exp(estimate), None, None, confidence, 1, "none", why)
        square = sum(part**2 / free for part, free in zip(parts, freedoms, strict=True))
        freedom = sum(parts) ** 2 / square if square > 0 else float(sum(freedoms))
        half = float(stdtrit(freedom, (1 + confidence) / 2)) * sqrt(sum(parts))
        ends = exp(estimate - half), exp(estimate + half)
        return Interval(exp(estimate), *ends, confidence, own.rounds.size, "Welch t on logs of rounds and members")
