"""A series: the raw samples of one case in one process, in their order. Is it sound? Is it enough?

:func:`check` looks for what makes a median untrue: impossible values, a stuck or coarse timer, a drift, many
outliers, samples that repeat each other, two modes. :func:`precision` is the stopping rule of sampling. Neither
drops a sample.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from statistics import NormalDist
from typing import TYPE_CHECKING, Literal, TypeAlias

import numpy as np

if TYPE_CHECKING:  # scipy, which comes with it, is half of a worker's start
    from niffbench.stats.contrasts import FloatArray

Samples: TypeAlias = "Sequence[float] | FloatArray"
Flag = Literal["invalid", "stuck", "coarse", "drift", "outliers", "correlated", "bimodal"]

ENOUGH = 10
"""Samples below which only impossible values and a stuck timer are looked for."""
COARSE_STEP = 0.01
"""Step of the timer, relative to the median, from which it is called coarse."""
JITTER = 1e-9
"""Of a clock's reading, in seconds: clocks tell whole nanoseconds, whatever their step is."""
OUTLIER_SHARE = 0.05
"""Share of outliers beyond which a series is flagged."""
LEAST_EFFECTIVE = 10.0
"""Independent samples' worth below which a series is called correlated."""
DRIFT_ALPHA = 0.01
LEAST_DRIFT = 0.01
"""A drift is flagged when its p-value is at most the one and its size at least the other."""
TWO_MODES = 0.8
"""Share of the variance explained by two groups from which two modes are hinted at, in a long series."""

_FENCE = 3.0  # interquartile ranges beyond the quartiles: Tukey's "far out"
_LEAST_BATCHES, _MOST_BATCHES = 6, 20
_SEGMENTS = 4
_SPACING = 5  # a batch is at least this many autocorrelation times long
_PLENTY = _SPACING * _LEAST_BATCHES  # samples from which correlation and modes can be judged
_MOST_PARTS = 100  # of the smallest difference that is tried as a clock's step
_LEAST_STEP = 50  # jitters: by chance one value in eight is about a multiple
_ROUNDED = 1e-6  # of a time that is recorded to six digits
_LEAST_MODE = 0.1  # share of the samples a mode must have


@dataclass(frozen=True)
class Drift:
    """How a series moves.

    Attributes:
        change: median of the last third over that of the first, minus one.
        p_value: of "no trend".
    """

    change: float
    p_value: float


@dataclass(frozen=True)
class Check:
    """What was found in a series. None: not looked at, for want of samples or because a flag forbids it.

    Attributes:
        invalid: samples that are negative or not finite.
        distinct: different values.
        step: the timer's as far as they tell, in the samples' unit (:func:`clock_step`).
        outliers: samples beyond 3 interquartile ranges, below and above.
        autocorrelation: at lag one.
        effective: the independent samples that would know the median as well.
        two_modes: share of the variance that a split into two groups explains (a normal series: 0.64, at most
            0.75 for one symmetric mode).
    """

    samples: int
    invalid: int
    zeros: int
    distinct: int
    step: float | None
    outliers: tuple[int, int] | None
    autocorrelation: float | None
    effective: float | None
    drift: Drift | None
    two_modes: float | None
    flags: tuple[Flag, ...]


@dataclass(frozen=True)
class Precision:
    """How well the median of one process's samples is known: a statement on this process, not on the next.

    ``low`` and ``high`` bound the median (None: too few independent samples); ``half_width`` is half their
    distance relative to the median; ``effective`` the independent samples' worth; ``reached`` whether
    sampling may stop.
    """

    median: float
    low: float | None
    high: float | None
    half_width: float | None
    effective: float
    reached: bool


def precision(
    samples: Samples, target: float = 0.02, *, confidence: float = 0.95, least: int = ENOUGH
) -> Precision:
    """The stopping rule: is the median known to within ±``target`` (relative)?

    The interval is made of order statistics, so it needs no distribution; the ranks are spread for
    autocorrelation as for quantiles of dependent output (Heidelberger and Lewis, Operations Research 32, 1984,
    pp. 185–209): (n + 1)/2 ± z √(n τ)/2, τ the integrated autocorrelation time of "above or below the median". A
    series that drifts has a large τ and is not known. What is worth fewer than ``least`` independent samples is
    never enough, because a rule that stops on narrowness stops early on lucky beginnings (Chow and Robbins, Annals
    of Mathematical Statistics 36, 1965, pp. 457–462, is right only in the limit). Simulated with a standard
    deviation of 5 % and a target of 2 %, the median it stops at is within the target in 97 % of the series when
    samples are independent, in 90 % and 77 % at a lag-one autocorrelation of 0.5 and 0.8: a reason to report
    intervals over rounds and not this one.

    A pure function of the samples so far, in time linear in their number (10,000 take well under a millisecond).

    Args:
        samples: positive, in the order taken, one unit.

    Raises:
        ValueError: when there is no sample.
    """
    values = np.asarray(samples, dtype=np.float64)
    n = values.size
    if not n:
        raise ValueError("there is no sample yet")
    median = float(np.median(values))
    time = autocorrelation_time(np.sign(values - median))
    reach = NormalDist().inv_cdf((1 + confidence) / 2) * np.sqrt(n * time) / 2
    rank = int((n + 1) / 2 - reach)  # of the lower end, counted from 1
    if rank < 1:
        return Precision(median, None, None, None, n / time, False)
    ends = np.partition(values, (rank - 1, n - rank))
    low, high = float(ends[rank - 1]), float(ends[n - rank])
    half_width = (high - low) / 2 / median if median > 0 else None
    reached = half_width is not None and half_width <= target and n / time >= least
    return Precision(median, low, high, half_width, n / time, reached)


def autocorrelation_time(values: FloatArray, *, fitted: int = 1) -> float:
    """Integrated autocorrelation time τ, in samples, at least 1.

    n values know their mean as well as n / τ independent ones. Twice the sum of the autocorrelations, cut where
    pairs of them stop being positive and made monotone (Geyer, Statistical Science 7, 1992, pp. 473–483, §3.3).

    Args:
        fitted: parameters taken out of the values, the mean (taken out here) included. Each lowers every
            autocorrelation by about τ / n (for the mean: Marriott and Pope, Biometrika 41, 1954, pp. 390–402),
            so τ is raised by the factor 1 + 2 ``fitted`` τ / n.

    Returns:
        1 for constant values.
    """
    centred = values - values.mean()
    n = centred.size
    variance = float(centred @ centred)
    if variance <= 0:
        return 1.0
    total, previous = -1.0, float("inf")
    for lag in range(0, n - 1, 2):
        sums = centred[: n - lag] @ centred[lag:] + centred[: n - lag - 1] @ centred[lag + 1 :]
        pair = float(sums) / variance
        if pair <= 0:
            break
        previous = min(pair, previous)
        total += 2 * previous
    return float(max(total * (1 + 2 * fitted * total / n), 1.0)) if total > 0 else 1.0


def clock_step(values: Samples, jitter: float = 0.0) -> float | None:
    """The step of the clock that took ``values``, as far as they tell: hardly less than it, and at times more.

    A time is the difference of two readings and thus a whole multiple of the step, an outlier too. So it is the
    largest of which all are multiples among the smallest difference between values, its half, its third and so on.
    Where there is none (a fine clock, or too much jitter) it is the smallest difference that is no jitter: at
    least a step, less the jitter of both.

    Args:
        values: In any unit, as the clock gave them.
        jitter: Of a reading, in the same unit. Steps of less than 50 times as much are known by a difference only.

    Returns:
        None where all values are equal, or differ by no more than jitter may make: they tell nothing.
    """
    levels = np.unique(np.asarray(values, dtype=np.float64))
    apart = 2.5 * jitter  # two, and rounding
    beyond = np.searchsorted(levels, levels + apart, side="right")
    told = beyond < levels.size
    if not told.any():
        return None
    smallest = float((levels[beyond[told]] - levels[told]).min())
    groups = np.split(levels, np.flatnonzero(np.diff(levels) > apart) + 1)
    if max(float(group[-1] - group[0]) for group in groups) > apart:
        return smallest
    centres = np.array([group[0] + (group[-1] - group[0]) / 2 for group in groups])
    gap = float(np.diff(centres).min())
    multiples = np.array([gap, *(centres[1:] - centres[0]), centres[0]])
    steps = (_fitted(gap / parts, multiples, jitter) for parts in range(1, _MOST_PARTS + 1))
    return next((step for step in steps if step is not None), smallest)


def _fitted(step: float, multiples: FloatArray, jitter: float) -> float | None:
    """The step near ``step`` of which all ``multiples`` are whole ones, as far as they can tell; else None.

    Args:
        multiples: The first is one for certain, and tells about how large the step is.
    """
    reach, end = float(multiples[0]), 0.0
    while reach > end and step >= _LEAST_STEP * jitter:
        # Of n steps nobody knows how many they are where a step is known to a part in n only: the largest so far
        # says how well it is.
        with np.errstate(all="ignore"):  # values may be as large or as small as can be
            end, near = reach, multiples[8 * jitter * multiples <= reach * step]
            counts = np.round(near / step)
            step = float(counts @ near / (counts @ counts))
            fits = np.abs(near - counts * step) <= 3 * jitter + _ROUNDED * near
        if not fits.all() or not near.size:
            return None
        reach = float(near.max())
    return step if end else None


def check(samples: Samples, quantum: float = 0.0, jitter: float = 0.0) -> Check:
    """Look for what makes the series' median untrue; see :class:`Check`, whose ``flags`` sum it up:

    - ``invalid``: a sample is negative or not finite; the rest is judged without it;
    - ``stuck``: a sample is zero, or three or more are all equal although the quantum is below 1 % of them;
    - ``coarse``: values repeat, and differ by steps of at least 1 % of the median, or tell no step and the quantum
      is as large; or three or more are all equal, and the quantum is as large;
    - ``drift``: the level changes from the first third to the last by at least 1 %, and noise would not
      (:func:`trend`);
    - ``outliers``: more than 5 % of the samples, and more than one, are far out (Tukey, Exploratory Data
      Analysis, 1977, ch. 2, on logs);
    - ``correlated``: 30 samples or more are worth fewer than 10 independent ones;
    - ``bimodal``: a hint, not a test: splitting into two groups of at least a tenth explains 80 % of the
      variance of the logs (more in a short series). No symmetric distribution with one mode exceeds 75 %, the
      uniform's share, being a mixture of uniforms: with half-width u the share is (E u)² · ¾ / E u². Two equal
      modes reach 80 % when four of their standard deviations apart.

    Args:
        samples: times in one unit, in the order taken.
        quantum: the smallest step in which they can differ, as far as is known.
        jitter: of the clock's readings.
    """
    raw = np.asarray(samples, dtype=np.float64)
    good = np.isfinite(raw) & (raw >= 0)
    values = raw[good]
    zeros = int((values == 0).sum())
    levels = np.unique(values)
    step = clock_step(values, jitter)
    flags: list[Flag] = ["invalid"] if not good.all() else []
    equal = values.size >= 3 and levels.size == 1
    if zeros or equal:
        flags.append("coarse" if not zeros and quantum >= COARSE_STEP * float(levels[0]) else "stuck")
    facts = raw.size, int(raw.size - values.size), zeros, int(levels.size), step
    if values.size < ENOUGH or zeros or equal:
        return Check(*facts, None, None, None, None, None, tuple(flags))
    # Beside a step that is told the quantum is of no account: it may be what a reading costs, or a maker's bound.
    tick = (quantum if step is None else step) / float(np.median(values))
    if levels.size <= values.size / 2 and tick >= COARSE_STEP:
        flags.append("coarse")
    logs = np.log(values)
    tick = float(np.log1p(tick))
    tame, outliers = _fenced(logs, tick)
    if sum(outliers) > max(1.0, OUTLIER_SHARE * logs.size):
        flags.append("outliers")
    centred = tame - tame.mean()
    variance = float(centred @ centred)
    autocorrelation = float(centred[1:] @ centred[:-1]) / variance if variance > 0 else 0.0
    effective = logs.size / autocorrelation_time(np.sign(logs - np.median(logs)))
    if logs.size >= _PLENTY and effective < LEAST_EFFECTIVE:
        flags.append("correlated")
    drift = trend(logs)
    if drift is not None and drift.p_value <= DRIFT_ALPHA and abs(drift.change) >= LEAST_DRIFT:
        flags.append("drift")
    two_modes = None
    if logs.size >= _PLENTY and not {"coarse", "drift"} & set(flags):
        two_modes, gap = _two_groups(tame)
        # Two neighbouring ticks of a clock are not two modes.
        if two_modes >= TWO_MODES + 0.5 / np.sqrt(logs.size) and gap > 3 * tick:
            flags.append("bimodal")
    return Check(*facts, outliers, autocorrelation, effective, drift, two_modes, tuple(flags))


def trend(logs: FloatArray) -> Drift | None:
    """Test a series for a trend (a ramp, a step, a warm-up that has not ended), robust to autocorrelation.

    Kendall's tau of the medians of batches against time (Mann, Econometrica 13, 1945, pp. 245–259; exact
    distribution). Batches are at least five autocorrelation times long, so that their medians are all but
    independent. The time is estimated from what is left of each quarter of the series after a parabola of its
    own is taken out, and the median of the four is used: otherwise a trend would be read as autocorrelation and
    excuse itself. None when the series is too short for six such batches, and below 12 samples; with 12 to 29
    samples autocorrelation cannot be judged and independence is assumed.
    """
    n = logs.size
    if n < 2 * _LEAST_BATCHES:
        return None
    batches = _LEAST_BATCHES
    if n >= _PLENTY:
        batches = min(int(n / (_SPACING * _local_time(logs))), _MOST_BATCHES)
        if batches < _LEAST_BATCHES:
            return None
    length = n // batches
    start = (n - length * batches) // 2
    medians = np.median(logs[start : start + length * batches].reshape(batches, length), axis=1)
    third = n // 3
    change = float(np.expm1(np.median(logs[-third:]) - np.median(logs[:third])))
    return Drift(change, _kendall(medians))


def _local_time(logs: FloatArray) -> float:
    """Median over the quarters of the autocorrelation time of what a parabola of its own leaves of each."""
    length = logs.size // _SEGMENTS
    quarters = logs[logs.size - length * _SEGMENTS :].reshape(_SEGMENTS, length)
    shapes, _ = np.linalg.qr(np.vander(np.linspace(-1, 1, length), 3))
    residuals = quarters - quarters @ shapes @ shapes.T
    return float(np.median([autocorrelation_time(residual, fitted=3) for residual in residuals]))


def _kendall(values: FloatArray) -> float:
    """Exact two-sided p-value of Kendall's tau against the index; ties count half, to the safe side."""
    early, late = np.triu_indices(values.size, 1)
    signs = np.sign(values[late] - values[early])
    discordant = float((signs < 0).sum() + 0.5 * (signs == 0).sum())
    fewer = min(discordant, early.size - discordant)
    return min(1.0, 2 * float(_inversions(values.size)[int(np.ceil(fewer))]))


@lru_cache(maxsize=_MOST_BATCHES)
def _inversions(n: int) -> FloatArray:
    """P(inversions ≤ k) of a random permutation of n, for k = 0 … n(n − 1)/2."""
    density = np.ones(1)
    for i in range(2, n + 1):
        density = np.convolve(density, np.full(i, 1 / i))
    return np.cumsum(density)


def _fenced(logs: FloatArray, step: float) -> tuple[FloatArray, tuple[int, int]]:
    """The logs with far-out values moved to the fences, and how many lay below and above.

    Args:
        step: the timer's, on logs: when most values are equal the quartiles are too, and one step is not far
            out.
    """
    lower, upper = np.quantile(logs, [0.25, 0.75])
    reach = _FENCE * max(float(upper - lower), step)
    below, above = int((logs < lower - reach).sum()), int((logs > upper + reach).sum())
    return np.clip(logs, lower - reach, upper + reach), (below, above)


def _two_groups(logs: FloatArray) -> tuple[float, float]:
    """The best cut that leaves each group a tenth: its share of the variance, and how far the means are apart."""
    ordered = np.sort(logs)
    centred = ordered - ordered.mean()
    total = float(centred @ centred)
    if total <= 0:
        return 0.0, 0.0
    n = ordered.size
    below = np.arange(int(np.ceil(_LEAST_MODE * n)), n - int(np.ceil(_LEAST_MODE * n)) + 1)
    sums = np.cumsum(centred)[below - 1]
    between = sums**2 * n / (below * (n - below))
    best = int(np.argmax(between))
    gap = float(abs(sums[best]) * n / (below[best] * (n - below[best])))
    return float(between[best]) / total, gap
