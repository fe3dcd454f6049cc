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
fleet without one is at most ``alpha`` (simulated: of two members in 0.1 % of fleets, of three in 3.6 %, of four in
0.8 %, of eight in 1 to 3 %). Of two members nobody knows which is the odd one, nor how much such cards
differ: there only a difference of more than ``PAIR`` counts.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
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
        One shift for each member that measured a case which others measured too.
    """
    names = list(dict.fromkeys(member for member, *_ in values))
    cases = {case: place for place, case in enumerate(dict.fromkeys(case for _, _, case, _ in values))}
    if len(names) < 2:
        return {}
    rows = np.array([names.index(member) for member, *_ in values])
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
        centre[own] = _polish(table[group][:, own])
        residuals = logs - centre[columns]
        units = [_Units.of(rounds[inside & (rows == row)], residuals[inside & (rows == row)]) for row in group]
        level = alpha * len(group) / sum(map(len, groups))
        result |= {
            names[row]: shift
            for row, shift in zip(group, _judged(units, table[group][:, own], confidence, level), strict=True)
        }
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


def _polish(table: FloatArray) -> FloatArray:
    """The cases' effects of ``case + member``: medians are taken out of rows and columns until none is left.

    Every row and column has a value.
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


def _judged(units: Sequence[_Units], table: FloatArray, confidence: float, alpha: float) -> list[Shift]:
    """The shifts of members that are comparable: ``units`` are each one's rounds, ``table`` its cases' logs."""
    odd = _stragglers(units, alpha)
    for place in sorted(odd):  # what is named must be slower by something in its own interval, too
        ratio = _ratio(units, place, odd, confidence)
        if ratio.low is None or ratio.low <= 1 or (ratio.estimate or 0.0) < 1 + TRIFLING:
            odd -= {place}
    result = []
    for place in range(len(units)):
        fellows = _fellows(len(units), place, odd)
        own, others = table[place], table[fellows]
        compared = np.isfinite(own) & np.isfinite(others).any(axis=0)
        worst = np.max(np.where(np.isfinite(others), others, -np.inf), axis=0)
        result.append(
            Shift(
                ratio=_ratio(units, place, odd, confidence),
                fellows=len(fellows),
                cases=int(compared.sum()),
                slowest_in=int((compared & (own > worst)).sum()),
                is_straggler=place in odd,
            )
        )
    return result


def _fellows(members: int, place: int, odd: set[int]) -> list[int]:
    """Whom a member is compared with: the others that are no stragglers, if there are any."""
    others = [other for other in range(members) if other != place]
    return [other for other in others if other not in odd] or others


def _stragglers(units: Sequence[_Units], alpha: float) -> set[int]:
    shifts = np.array([unit.shift for unit in units])
    order = np.argsort(shifts)
    if len(units) == 2:
        slow = int(order[1])
        low = _ratio(units, slow, set(), 1 - 2 * alpha).low
        return {slow} if low is not None and low > 1 + PAIR else set()
    named = 0
    # One that measured less than the others is known less well, and differs the more for that alone.
    errors = np.array([_within(units) * max(1 / unit.rounds.size, _PER_VALUE / unit.values) for unit in units])
    steps = max((len(units) - 1) // 2, 1)
    for step in range(1, steps + 1):
        rest, slowest = order[: len(units) - step], order[len(units) - step]
        less_sure = max(float(errors[slowest] - errors[rest].mean()), 0.0)
        error = sqrt(float(shifts[rest].var(ddof=1)) * (1 + 1 / rest.size) + less_sure)
        distance = float(shifts[slowest] - shifts[rest].mean())
        t = distance / error if error > 0 else np.inf * (distance > 0)
        p = float(stdtr(rest.size - 1.0, -t)) * (rest.size + 1)
        if p <= alpha / 2 ** min(step, steps - 1):
            named = step
    return {int(place) for place in order[len(units) - named :] if units[place].values >= FEWEST}


def _within(units: Sequence[_Units]) -> float:
    """The variance of a round's shift within a member, of all members together; 0 where none has two rounds."""
    freedom = sum(unit.rounds.size - 1 for unit in units)
    return sum(float(unit.rounds.var()) * unit.rounds.size for unit in units) / freedom if freedom else 0.0


def _ratio(units: Sequence[_Units], place: int, odd: set[int], confidence: float) -> Interval:
    """A member to its fellows: Welch's t, of its rounds against the fellows' shifts, of one fellow its rounds.

    Fewer than ``_OWN`` rounds are taken to be as unsure as those of all members are.
    """
    fellows = [units[other] for other in _fellows(len(units), place, odd)]
    own = units[place]
    others = np.array([unit.shift for unit in fellows])
    estimate = own.shift - float(others.mean())
    pooled, pooled_freedom = _within(units), sum(unit.rounds.size - 1 for unit in units)
    parts, freedoms = [], []
    lone = len(fellows) == 1
    for side in (own.rounds, fellows[0].rounds if lone else others):
        few = (lone or side is own.rounds) and side.size < _OWN and pooled_freedom > 0
        parts.append((pooled if few else float(side.var(ddof=1)) if side.size > 1 else 0.0) / side.size)
        freedoms.append(pooled_freedom if few else side.size - 1)
    if not freedoms[0] and freedoms[1]:  # one round each: that of this member differs as much as the fellows do
        parts[0], freedoms[0] = parts[1] * others.size, freedoms[1]
    if not min(freedoms):
        why = "one round each: what another would give is unknown"
        return Interval(exp(estimate), None, None, confidence, 1, "none", why)
    square = sum(part**2 / free for part, free in zip(parts, freedoms, strict=True))
    freedom = sum(parts) ** 2 / square if square > 0 else float(sum(freedoms))
    half = float(stdtrit(freedom, (1 + confidence) / 2)) * sqrt(sum(parts))
    ends = exp(estimate - half), exp(estimate + half)
    return Interval(exp(estimate), *ends, confidence, own.rounds.size, "Welch t on logs of rounds and members")
