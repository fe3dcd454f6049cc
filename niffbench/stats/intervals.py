"""Intervals: a median of round medians and a ratio, each with what is known of its error.

An interval is over rounds (fresh processes), the unit of replication: samples of one process share its memory
layout, clocks and plans, so their scatter says little of what the next process would give. It is called
a *spread* here (:func:`spread`), and never a confidence interval.

What few rounds allow, at 95 % (s: standard deviation of the logs of the round medians):

====== ==========================================================================================
rounds what is said
====== ==========================================================================================
1      an estimate and the reason why there is no interval; nothing may be concluded from it
2      median ± 9.0 s: right if logs are normal, and so wide that it rarely excludes anything
3      median ± 2.5 s
8      median ± 0.84 s
10 up  order statistics, which need no distribution at all
====== ==========================================================================================

A ratio is the quotient of two such medians, so that it is that of the values beside it. Share of intervals that
hold the truth, simulated (``tests/stats/test_intervals.py``) at 95 % with a standard deviation of 2 % between
rounds, for a value and for its ratio to a quiet one, of 3, 5, 10 and 20 rounds:

=================================== =================== ===================
rounds                              value               ratio
=================================== =================== ===================
log-normal                          .95 .95 .95 .95     .95 .95 .95 .95
10 % of the rounds 1.3 times slower .97 .97 .95 .95     .96 .97 .97 .91
either of two modes, 1.15 apart     .80 .93 .91 .96     .85 .93 .95 .95
=================================== =================== ===================

Three rounds that all fall into one of two modes know nothing of the other: hence .80. The geometric mean was no
choice: with slow rounds its interval holds it in .62 to .88 of the cases.

Rounds that agree exactly give an interval of no width. That is right for bytes and FLOPs; of times it says that
the clock did not tell them apart. Where its step was large the interval of a ratio is :func:`widened` by it, so
that no difference of one step is called one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import median

import numpy as np
from scipy.special import bdtr

from niffbench.stats.contrasts import EXACTLY, Contrast, FloatArray, contrast

Rounds = Sequence[float | None] | FloatArray

UNDETERMINED = 10.0
"""The factor between the ends of an interval from which it is said to determine nothing."""
ORDER_STATISTICS_FROM = 10
"""Rounds from which the interval of a median is made of order statistics."""


@dataclass(frozen=True)
class Interval:
    """An estimate and, where rounds allow one, its two-sided confidence interval, all in one unit.

    ``low`` and ``high`` are None together, and then ``reason`` says why; ``estimate`` is None when not even
    that can be had. ``rounds`` counts the rounds used (of the smaller side of a ratio); ``method`` names the
    formula. An estimate always lies in its interval.
    """

    estimate: float | None
    low: float | None
    high: float | None
    confidence: float
    rounds: int
    method: str
    reason: str | None = None

    def excludes(self, value: float) -> bool:
        """Whether the interval exists and does not contain ``value``."""
        return self.low is not None and self.high is not None and not self.low <= value <= self.high

    @property
    def is_determined(self) -> bool:
        """Whether its ends are not so far apart that it says nothing: by a factor of ten."""
        return not self.low or self.high is None or self.high <= UNDETERMINED * self.low

    @property
    def half_width(self) -> float | None:
        """Half the interval's width relative to the estimate, or None."""
        if self.low is None or self.high is None or not self.estimate:
            return None
        return (self.high - self.low) / 2 / self.estimate


@dataclass(frozen=True)
class Spread:
    """Quantiles of the samples of one process, in their unit. Not a confidence interval of anything."""

    low: float  # 5 %
    lower_quartile: float
    median: float
    upper_quartile: float
    high: float  # 95 %
    samples: int


def spread(samples: Sequence[float] | FloatArray) -> Spread:
    """Quantiles (5, 25, 50, 75, 95 %; linear interpolation) of one process's samples.

    Raises:
        ValueError: when there is no finite sample.
    """
    values = np.asarray(samples, dtype=np.float64)
    values = values[np.isfinite(values)]
    if not values.size:
        raise ValueError("a spread needs at least one finite sample")
    low, lower, median, upper, high = np.quantile(values, [0.05, 0.25, 0.5, 0.75, 0.95]).tolist()
    return Spread(low, lower, median, upper, high, values.size)


def median_of_rounds(rounds: Rounds, *, confidence: float = 0.95) -> Interval:
    """The median of round medians, with a confidence interval over rounds.

    Below ten rounds: Student's t on the logs (run-to-run factors multiply), stretched where needed to contain the
    median; its centre is the geometric mean, which is the median of a distribution symmetric on logs. From ten on:
    interpolated order statistics (Hettmansperger and Sheather, Statistics & Probability Letters 4, 1986, pp.
    75–79), which cover the median whatever the distribution.

    Args:
        rounds: one median a round, positive; None and NaN (a round that failed) are left out.
    """
    values = finite(rounds)
    if not values.size:
        return Interval(None, None, None, confidence, 0, "none", NO_ROUND)
    estimate = median(values.tolist())
    if values.min() <= 0:
        return Interval(estimate, None, None, confidence, values.size, "none", NOT_POSITIVE)
    if values.size == 1:
        return Interval(estimate, None, None, confidence, 1, "none", ONE_ROUND)
    logs = np.log(values)
    ends = _order_statistics(np.sort(logs), confidence) if values.size >= ORDER_STATISTICS_FROM else None
    method = "order statistics" if ends else "t on logs"
    if ends is None:
        low, high = contrast([logs], [1.0], shared=True).band(confidence)
        ends = float(low), float(high)
    on_logs = Interval(None, *ends, confidence, values.size, method)
    return stretched(exponential(on_logs), estimate)


def ratio(base_rounds: Rounds, other_rounds: Rounds, *, paired: bool, confidence: float = 0.95) -> Interval:
    """The ratio other/base with a confidence interval over rounds.

    The estimate is the quotient of the medians of both sides' rounds: that of :func:`median_of_rounds`. The
    interval is stretched where needed to hold it. Values are positive; a round missing on a side (None, NaN) is
    left out, of a paired interval with its partner.

    Args:
        paired: value i of both sides comes from the same round (two operators of one run), so what the round
            does to both cancels; Student's t on the differences of logs. Otherwise (two runs): Welch on logs,
            see :func:`niffbench.stats.contrasts.contrast`.

    Raises:
        ValueError: for paired sides of unlike length.
    """
    logs = combination((base_rounds, other_rounds), (-1.0, 1.0), shared=paired, confidence=confidence)
    one, two = finite(base_rounds), finite(other_rounds)
    if not one.size or not two.size or min(one.min(), two.min()) <= 0:
        return exponential(logs)
    return stretched(exponential(logs), median(two.tolist()) / median(one.tolist()))


def stretched(interval: Interval, estimate: float) -> Interval:
    """The interval with another estimate, which it holds."""
    low, high = interval.low, interval.high
    if low is None or high is None:
        return replace(interval, estimate=estimate)
    return replace(interval, estimate=estimate, low=min(low, estimate), high=max(high, estimate))


def widened(interval: Interval, step: float) -> Interval:
    """The interval of a ratio of two times, either of which a clock has told to within half a step of it.

    Args:
        step: relative to the times.
    """
    if interval.low is None or interval.high is None:
        return interval
    factor = (1 + step) * EXACTLY if step else 1.0
    return replace(interval, low=interval.low / factor, high=interval.high * factor)


def combination(
    groups: Sequence[Rounds], weights: Sequence[float], *, shared: bool, confidence: float = 0.95
) -> Interval:
    """A weighted sum of mean logs (a log ratio, a log–log slope) with its interval over rounds, on logs.

    Args:
        groups: per group its round medians.
        shared: all groups come from the same rounds, in one order, and only rounds that have every group are
            used.

    Raises:
        ValueError: for shared groups of unlike length.
    """
    try:
        logs = log_groups(groups, shared=shared)
    except NotPositive:
        return Interval(None, None, None, confidence, 0, "none", NOT_POSITIVE)
    rounds = min(group.size for group in logs)
    if not rounds:
        return Interval(None, None, None, confidence, 0, "none", NO_ROUND)
    if rounds == 1:
        estimate = sum(weight * float(group.mean()) for weight, group in zip(weights, logs, strict=True))
        return Interval(estimate, None, None, confidence, 1, "none", ONE_ROUND)
    difference = contrast(logs, weights, shared=shared)
    return of_contrast(difference, confidence, rounds, "paired t on logs" if shared else "Welch t on logs")


def of_contrast(difference: Contrast, confidence: float, rounds: int, method: str) -> Interval:
    """A single contrast as an interval, on logs."""
    low, high = difference.band(confidence)
    return Interval(float(difference.estimate), float(low), float(high), confidence, rounds, method)


def exponential(logs: Interval) -> Interval:
    """An interval on logs, carried over to ratios."""
    with np.errstate(over="ignore"):
        ends = [None if end is None else float(np.exp(end)) for end in (logs.estimate, logs.low, logs.high)]
    return replace(logs, estimate=ends[0], low=ends[1], high=ends[2])


def exactly(value: float, confidence: float) -> Interval:
    """What is known without error: FLOPs, bytes of a closed form."""
    return Interval(value, value, value, confidence, 0, EXACT)


def counted(estimate: float, values: Sequence[float], confidence: float, rounds: int) -> Interval:
    """What was counted, and differs from round to round as what was executed did: all ``values`` there were.

    Its ends decide an order for certain; they are no confidence interval and never shown as one.
    """
    return Interval(estimate, min(values), max(values), confidence, rounds, COUNTED)


EXACT, COUNTED = "exact", "counted"
"""Methods whose ends are no confidence interval."""
NO_ROUND = "no round has a value for every part of it"
ONE_ROUND = "one round: what another process would give is unknown"
NOT_POSITIVE = "a value is zero or negative, so it has no logarithm"


class NotPositive(ValueError):
    """A quantity that must be positive is not."""


def finite(rounds: Rounds) -> FloatArray:
    """The values of the rounds that have one (None, NaN and infinities left out)."""
    values = np.asarray(rounds, dtype=np.float64)
    return values[np.isfinite(values)]


def log_groups(groups: Sequence[Rounds], *, shared: bool) -> tuple[FloatArray, ...]:
    """Logs of the groups' round medians, rounds without a value left out (of all groups if ``shared``).

    Raises:
        NotPositive: for a value that is not.
        ValueError: for shared groups of unlike length.
    """
    values = [np.asarray(group, dtype=np.float64) for group in groups]
    if shared:
        if len({group.shape for group in values}) > 1:
            raise ValueError(f"shared rounds must be equally many, not {[group.size for group in values]}")
        complete = np.all([np.isfinite(group) for group in values], axis=0)
        values = [group[complete] for group in values]
    else:
        values = [finite(group) for group in values]
    if any((group <= 0).any() for group in values):
        raise NotPositive(NOT_POSITIVE)
    return tuple(np.log(group) for group in values)


def _order_statistics(ordered: FloatArray, confidence: float) -> tuple[float, float] | None:
    """Interpolated order-statistic interval of the median; None when all n rounds together fall short of it."""
    n = ordered.size
    ranks = np.arange(1, n // 2 + 1)
    coverage = 1 - 2 * bdtr(ranks - 1, n, 0.5)  # of [x(k), x(n+1−k)]
    wide = int((coverage >= confidence).sum())  # the innermost rank that still covers enough
    if wide == 0 or wide == ranks.size:
        return None
    excess = (coverage[wide - 1] - confidence) / (coverage[wide - 1] - coverage[wide])
    inward = (n - wide) * excess / (wide + (n - 2 * wide) * excess)
    low = (1 - inward) * ordered[wide - 1] + inward * ordered[wide]
    high = (1 - inward) * ordered[n - wide] + inward * ordered[n - wide - 1]
    return float(low), float(high)
