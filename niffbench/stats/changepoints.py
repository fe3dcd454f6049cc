"""Change points: when did the level of a history of medians change?

The history is cut so that the squared distances of the logs from their segments' means, plus a penalty for
each cut, are least: the criterion of PELT (Killick, Fearnhead and Eckley, Journal of the American Statistical
Association 107, 2012, pp. 1590–1598), minimised exactly by optimal partitioning (Jackson et al., IEEE Signal
Processing Letters 12, 2005, pp. 105–108); for the hundreds of runs of a history the quadratic time is
milliseconds and PELT's pruning would save nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from math import sqrt

import numpy as np
from scipy.special import stdtrit

from niffbench.errors import plural
from niffbench.stats.contrasts import FloatArray
from niffbench.stats.decision import ALPHA, MIN_EFFECT
from niffbench.stats.intervals import NOT_POSITIVE, Interval, Rounds, ratio

FEWEST_RUNS = 10
"""Runs a history needs: from fewer, the noise between runs cannot be told from their changes."""
LEAST_SEGMENT = 3
"""Runs a level must hold to be called one; a single odd run is not a change."""

_TAME = 3.0  # standard deviations from the running median beyond which a run is pulled in
_WINDOW = 5
_EFFICIENCY = 0.6  # of the noise estimate, in degrees of freedom per run


@dataclass(frozen=True)
class Segment:
    """Runs ``start`` to ``end`` (exclusive) at one ``level``, the median of their values."""

    start: int
    end: int
    level: float


@dataclass(frozen=True)
class Change:
    """A change of level.

    Its interval takes the place of the cut as given although it was chosen to look best, so it is too narrow by
    some: a description, not a test (the penalty was the test).

    Attributes:
        run: the first at the new level.
        ratio: new over old level, Welch on logs.
    """

    run: int
    ratio: Interval


@dataclass(frozen=True)
class History:
    """A history cut into levels.

    Attributes:
        sd: noise between runs, of the logs.
        reason: why nothing could be looked for, or None.
    """

    segments: tuple[Segment, ...]
    changes: tuple[Change, ...]
    sd: float | None
    reason: str | None = None


def change_points(
    medians: Rounds, *, alpha: float = ALPHA, min_effect: float = MIN_EFFECT, confidence: float = 0.95
) -> History:
    """Find the runs at which the level of a history changed by at least ``min_effect`` (relative).

    The penalty is the square of the t quantile at ``alpha`` / runs (Bonferroni over the places of a cut) times
    the noise variance, which is estimated from how the differences of neighbours deviate from their median: a
    few changes hardly move it, nor does a steady creep. Where most neighbours are equal (bytes, FLOPs) it is
    zero, and every lasting difference is a change. Histories of normal noise show a change in at most ``alpha``
    of the cases (simulated from 10 runs on). Runs are taken as independent and of one mode: of histories whose
    runs are in either of two modes 10 % apart, as chance has it, up to 10 % of 24 runs show one, 12 % of 40 and
    18 % of 60 where ``alpha`` is a sixtieth of 0.01; most where one run in ten or in five is slow, so that a few
    of them in a row look like a level. Single odd runs are pulled in to 3 sd of the running median first.

    Args:
        medians: one positive value a run, oldest first; None or NaN for a run without one (indices count
            them).
    """
    values = np.asarray(medians, dtype=np.float64)
    runs = np.flatnonzero(np.isfinite(values))
    values = values[runs]
    if runs.size < FEWEST_RUNS:
        return History((), (), None, f"{plural(runs.size, 'run')}, at least {FEWEST_RUNS} are needed")
    if (values <= 0).any():
        return History((), (), None, NOT_POSITIVE)
    if np.ptp(values) == 0:
        return History((Segment(int(runs[0]), int(runs[-1]) + 1, float(values[0])),), (), 0.0)
    logs = np.log(values)
    sd = _noise(logs)
    freedom = _EFFICIENCY * (runs.size - 1)
    critical = float(stdtrit(freedom, 1 - alpha / (2 * runs.size)))
    cuts = _partition(_tamed(logs, sd), max((critical * sd) ** 2, 1e-18))
    cuts = _large(logs, cuts, float(np.log1p(min_effect)))
    bounds = [0, *cuts, runs.size]
    segments = tuple(
        Segment(int(runs[start]), int(runs[end - 1]) + 1, float(np.median(values[start:end])))
        for start, end in pairwise(bounds)
    )
    changes = tuple(
        Change(int(runs[cut]), ratio(values[before:cut], values[cut:after], paired=False, confidence=confidence))
        for before, cut, after in zip(bounds, cuts, bounds[2:], strict=False)
    )
    return History(segments, changes, sd)


def _noise(logs: FloatArray) -> float:
    """Standard deviation from the differences of neighbours, of which changes touch few.

    They are taken from their own median, so that a steady creep does not count as noise (normal: the upper
    quartile of |d − median d| is 1.1503 √2 sd, the median 0.6745 √2 sd). Not their median is looked at, unless
    it is nothing: of runs that are in either of two modes it is that of neighbours in the same. Of a dozen runs,
    though, an odd one and a step are more than a quarter of the differences, so the oddest run is pulled in first.
    """
    median, _ = _deviations(logs)
    least = median / (0.674490 * sqrt(2))
    if least == 0:
        return 0.0
    oddest = int(np.argmax(np.abs(logs - _centre(logs))))
    pulled = logs.copy()
    pulled[oddest] = _tamed(logs, least)[oddest]
    _, quartile = _deviations(pulled)
    return quartile / (1.150349 * sqrt(2))


def _deviations(logs: FloatArray) -> tuple[float, float]:
    """The median and the upper quartile of how far the differences of neighbours are from their median."""
    steps = np.diff(logs)
    median, quartile = np.quantile(np.abs(steps - np.median(steps)), [0.5, 0.75])
    return float(median), float(quartile)


def _centre(logs: FloatArray) -> FloatArray:
    """The running median."""
    windows = np.lib.stride_tricks.sliding_window_view(np.pad(logs, _WINDOW // 2, mode="reflect"), _WINDOW)
    return np.asarray(np.median(windows, axis=1))


def _tamed(logs: FloatArray, sd: float) -> FloatArray:
    centre = _centre(logs)
    return np.clip(logs, centre - _TAME * sd, centre + _TAME * sd)


def _partition(logs: FloatArray, penalty: float) -> list[int]:
    """Starts of all segments but the first, of the cut into segments with least squares plus penalties."""
    n = logs.size
    centred = logs - logs.mean()
    sums, squares = np.concatenate([[0.0], np.cumsum(centred)]), np.concatenate([[0.0], np.cumsum(centred**2)])
    best = np.full(n + 1, np.inf)
    best[0] = -penalty
    last = np.zeros(n + 1, dtype=int)
    for end in range(LEAST_SEGMENT, n + 1):
        starts = np.arange(0, end - LEAST_SEGMENT + 1)
        within = squares[end] - squares[starts] - (sums[end] - sums[starts]) ** 2 / (end - starts)
        total = best[starts] + within + penalty
        last[end] = int(np.argmin(total))
        best[end] = total[last[end]]
    cuts: list[int] = []
    end = int(last[n])
    while end > 0:
        cuts.append(end)
        end = int(last[end])
    return cuts[::-1]


def _large(logs: FloatArray, cuts: list[int], least: float) -> list[int]:
    """Drop the smallest change and join its segments until all are at least ``least``."""
    cuts = list(cuts)
    while cuts:
        bounds = [0, *cuts, logs.size]
        levels = np.array([np.median(logs[start:end]) for start, end in pairwise(bounds)])
        sizes = np.abs(np.diff(levels))
        smallest = int(np.argmin(sizes))
        if sizes[smallest] >= least:
            break
        del cuts[smallest]
    return cuts
