"""Contrasts: a weighted sum of mean logs, with its standard error and degrees of freedom.

A ratio, a scaling exponent and a point on a crossover curve are all linear in the logs of the round
medians, so their intervals and tests come from this one place. The unit of replication is the round.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import stdtr, stdtrit

FloatArray: TypeAlias = NDArray[np.float64]
BoolArray: TypeAlias = NDArray[np.bool_]

EXACTLY = 1 + 1e-9
"""The factor by which a clock's step may look larger than it is, for rounding."""
_NEGLIGIBLE = 1e-12  # of a log: differences of rounding in float64, not of measurement


@dataclass(frozen=True)
class Contrast:
    """Estimates with standard errors and degrees of freedom; three arrays of one shape (0-d for a single one).

    A standard error of zero says that the rounds were identical: right for what is deterministic.
    """

    estimate: FloatArray
    error: FloatArray
    freedom: FloatArray

    def band(self, confidence: float) -> tuple[FloatArray, FloatArray]:
        """Both ends of the two-sided t intervals, of the contrast's shape."""
        half = self.quantile((1 + confidence) / 2) * self.error
        return self.estimate - half, self.estimate + half

    def quantile(self, probability: float) -> FloatArray:
        """Student's t quantile at each contrast's degrees of freedom."""
        return np.asarray(stdtrit(self.freedom, probability), dtype=np.float64)

    def beyond(self, step: float | FloatArray) -> Contrast:
        """By how much more than ``step``, of the logs, the estimates are from zero."""
        more = np.maximum(np.abs(self.estimate) - step * EXACTLY, 0)
        return Contrast(np.sign(self.estimate) * more, self.error, self.freedom)

    def p_value(self) -> FloatArray:
        """Two-sided p-values of "the contrast is zero"."""
        with np.errstate(divide="ignore", invalid="ignore"):
            t = np.abs(self.estimate) / self.error
        certain = np.where(self.estimate == 0, 1.0, 0.0)
        return np.where(self.error > 0, 2 * stdtr(self.freedom, -t), certain)


def contrast(
    groups: Sequence[FloatArray],
    weights: Sequence[float | FloatArray],
    *,
    shared: bool,
) -> Contrast:
    """Estimate ``sum(weights[g] * mean(groups[g]))`` with its standard error.

    Groups that share no rounds are independent: the variances add, with the degrees of freedom of Welch
    (Biometrika 34, 1947, pp. 28–35) and Satterthwaite (Biometrics Bulletin 2, 1946, pp. 110–114). These are
    capped by what equal variances would give. Without the cap two rounds against
    eight cover 91 % instead of 95 %, and at the small levels Holm's rule asks for, 5 against 20 raise 5 times too
    many alarms: a small group that happens to look quiet passes the large one's certainty off as its own. For
    groups of equal size the cap never binds.

    Args:
        groups: logs, each of shape ``(..., rounds)``.
        weights: one number a group, or an array of the leading shape.
        shared: the groups were measured in the same rounds (same length, in the same order), so the contrast
            is formed within each round and Student's t applied to its values.

    Raises:
        ValueError: for a group of fewer than two rounds, or shared groups of unlike length.
    """
    sizes = [group.shape[-1] for group in groups]
    if min(sizes) < 2:
        raise ValueError(f"a contrast needs two rounds a group, not {min(sizes)}")
    if shared and len(set(sizes)) > 1:
        raise ValueError(f"shared rounds must be equally many, not {sizes}")
    if shared:
        within = sum(_column(weight) * group for weight, group in zip(weights, groups, strict=True))
        values = np.asarray(within, dtype=np.float64)
        estimate = values.mean(axis=-1)
        variance = values.var(axis=-1, ddof=1) / sizes[0]
        freedom = np.full_like(variance, sizes[0] - 1.0)
    else:
        estimate, variance, freedom = _welch(groups, weights, sizes)
    return _without_rounding(estimate, variance, freedom)


def _without_rounding(estimate: FloatArray, variance: FloatArray, freedom: FloatArray) -> Contrast:
    """Take rounding in float64 for the nothing it is."""
    estimate = np.where(np.abs(estimate) < _NEGLIGIBLE, 0.0, estimate)
    variance = np.where(variance < _NEGLIGIBLE**2, 0.0, variance)
    return Contrast(estimate, np.sqrt(variance), freedom)


def _welch(
    groups: Sequence[FloatArray], weights: Sequence[float | FloatArray], sizes: Sequence[int]
) -> tuple[FloatArray, FloatArray, FloatArray]:
    estimate = variance = square = alike = alike_square = np.zeros(())
    for group, weight, n in zip(groups, weights, sizes, strict=True):
        factor = np.asarray(weight, dtype=np.float64)
        scale = factor**2 / n
        part = scale * group.var(axis=-1, ddof=1)
        estimate = estimate + factor * group.mean(axis=-1)
        variance = variance + part
        square = square + part**2 / (n - 1)
        alike = alike + scale
        alike_square = alike_square + scale**2 / (n - 1)
    cap = alike**2 / alike_square
    with np.errstate(divide="ignore", invalid="ignore"):
        freedom = np.where(square > 0, variance**2 / square, cap)
    return estimate, variance, np.minimum(freedom, cap)


def _column(weight: float | FloatArray) -> float | FloatArray:
    return weight[..., None] if isinstance(weight, np.ndarray) else weight


def in_order(differences: FloatArray, base_first: ArrayLike) -> Contrast:
    """The mean of paired log differences, freed of a steady drift by the order of each pair.

    A machine that slows down steadily adds +d to a pair base–head and −d to head–base. The model
    ``difference = effect ± d + noise`` (the AB/BA cross-over without carry-over: Senn, Cross-over Trials in
    Clinical Research, 2nd ed., Wiley 2002, ch. 3) estimates the effect as the mean of the two orders' means with
    ``pairs − 2`` degrees of freedom: ABBA order removes the drift, and here its noise too.

    Args:
        differences: ``(..., pairs)``, log(head) − log(base) of neighbours in time.
        base_first: per pair, whether base ran first.

    Raises:
        ValueError: unless both orders occur and there are at least three pairs.
    """
    first = np.asarray(base_first, dtype=bool)
    if first.shape != differences.shape[-1:]:
        raise ValueError(f"{differences.shape[-1]} pairs but {first.size} orders")
    n, forth = first.size, int(first.sum())
    back = n - forth
    if n < 3 or forth == 0 or back == 0:
        raise ValueError("an order can be accounted for from three pairs on, with both orders among them")
    one, two = differences[..., first], differences[..., ~first]
    estimate = (one.mean(axis=-1) + two.mean(axis=-1)) / 2
    squares = one.var(axis=-1) * forth + two.var(axis=-1) * back
    variance = squares / (n - 2) * (1 / forth + 1 / back) / 4
    return _without_rounding(estimate, variance, np.full_like(variance, n - 2.0))
