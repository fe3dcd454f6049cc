"""Exponents: how a cost grows along an axis, as slopes on log–log scales.

An exponent here is the least-squares slope of the logs over the sizes measured, and its interval is over
rounds: it says how well that slope is known, not that one power law holds (``misfit`` says how far the points
are from one). The theoretical exponent is the same slope through the theoretical costs at the same sizes, so an
N² log N is not held against a pure power.

FFTs are fast on lengths made of small primes and several times slower on others. A sweep that mixes them would
read the one as scaling of the other, so exponents use FFT-friendly sizes only, large-prime sizes get an
exponent of their own where there are enough, and each is compared with its friendly neighbours (``penalties``).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import numpy as np

from niffbench.errors import plural
from niffbench.lengths import FAST_PRIMES, largest_prime_factor
from niffbench.stats.contrasts import FloatArray
from niffbench.stats.intervals import Interval, Rounds, combination, exactly, exponential, finite

FRIENDLY_UP_TO = FAST_PRIMES[-1]
"""The largest prime factor of an FFT-friendly length: the radices that cuFFT, MKL and pocketfft all have."""
FEWEST_SIZES = 3
"""Sizes that an exponent over the whole range needs; between two sizes it is a local one."""

SizeClass = Literal["friendly", "large prime"]
Length = int | tuple[int, ...]
Theory = Callable[[float], float] | Sequence[float] | FloatArray


@dataclass(frozen=True)
class Exponent:
    """A log–log slope over the sizes ``start`` to ``end``.

    Attributes:
        slope: the measured slope; without an estimate its ``reason`` says why.
        theory: the theoretical one over the same sizes, or None.
        misfit: the largest relative distance of a point from the fitted line (0.1: 10 %), None for two points,
            which a line always meets.
    """

    slope: Interval
    theory: float | None
    start: float | None
    end: float | None
    sizes: int
    misfit: float | None


@dataclass(frozen=True)
class Penalty:
    """What a large-prime size costs, relative to the log–log interpolation of its friendly neighbours."""

    size: float
    largest_prime_factor: int
    factor: Interval


@dataclass(frozen=True)
class Scaling:
    """How a quantity scales.

    ``overall`` and ``steps`` (from each size to the next) are of FFT-friendly sizes, which is all of them where
    no FFT length was given; ``large_prime`` is the exponent of the others, None when there are none.
    """

    overall: Exponent
    steps: tuple[Exponent, ...]
    large_prime: Exponent | None
    penalties: tuple[Penalty, ...]


def size_class(length: Length) -> SizeClass:
    """Whether FFTs of this length (or of all these lengths) are fast: see FRIENDLY_UP_TO."""
    return "friendly" if _largest(length) <= FRIENDLY_UP_TO else "large prime"


def scaling(
    sizes: Sequence[float],
    rounds: Sequence[Rounds],
    *,
    lengths: Sequence[Length] | None = None,
    theory: Theory | None = None,
    shared: bool = True,
    exact: bool = False,
    confidence: float = 0.95,
) -> Scaling:
    """Fit the exponents of a quantity along an axis.

    Args:
        sizes: the axis, positive and all different, in any order.
        rounds: per size the round medians of the quantity (positive), None or NaN where a round has none. A
            size without any value is left out.
        lengths: per size the length (or lengths) of the FFT where the axis sets it; None where it does not
            (channels, batch), and then all sizes are of one class.
        theory: theoretical costs per size, or a function of the size.
        shared: value i of every size comes from the same round.
        exact: the quantity has no error (FLOPs), and one number a size is enough.

    Raises:
        ValueError: for sizes that repeat or are not positive, or arguments of unlike length.
    """
    axis = np.asarray(sizes, dtype=np.float64)
    given = [len(rounds), *([] if lengths is None else [len(lengths)])]
    if axis.ndim != 1 or any(n != axis.size for n in given):
        raise ValueError(f"{axis.size} sizes but {given} values")
    if (axis <= 0).any() or np.unique(axis).size != axis.size:
        raise ValueError("sizes must be positive and all different")
    costs = np.full(axis.size, np.nan) if theory is None else _costs(axis, theory)
    order = [int(i) for i in np.argsort(axis) if finite(rounds[i]).size]
    friendly = [i for i in order if lengths is None or size_class(lengths[i]) == "friendly"]
    primes = [i for i in order if i not in set(friendly)]

    def fit(chosen: Sequence[int], least: int) -> Exponent:
        at = list(chosen)
        return _exponent(axis[at], [rounds[i] for i in at], costs[at], least, shared, exact, confidence)

    return Scaling(
        fit(friendly, FEWEST_SIZES),
        tuple(fit(pair, 2) for pair in pairwise(friendly)),
        fit(primes, FEWEST_SIZES) if primes else None,
        tuple(
            Penalty(
                float(axis[i]),
                _largest(lengths[i]),
                _penalty(i, friendly, axis, rounds, shared, exact, confidence),
            )
            for i in primes
            if lengths is not None
        ),
    )


def _largest(length: Length) -> int:
    return max(largest_prime_factor(n) for n in (length if isinstance(length, tuple) else (length,)))


def _costs(axis: FloatArray, theory: Theory) -> FloatArray:
    values = [theory(size) for size in axis.tolist()] if callable(theory) else theory
    costs = np.asarray(values, dtype=np.float64)
    if costs.shape != axis.shape:
        raise ValueError(f"{axis.size} sizes but {costs.size} theoretical costs")
    return costs


def _exponent(
    axis: FloatArray,
    rounds: Sequence[Rounds],
    costs: FloatArray,
    least: int,
    shared: bool,
    exact: bool,
    confidence: float,
) -> Exponent:
    start, end = (float(axis[0]), float(axis[-1])) if axis.size else (None, None)
    if axis.size < least:
        reason = f"{plural(axis.size, 'size')} measured, at least {least} are needed"
        unknown = Interval(None, None, None, confidence, 0, "none", reason)
        return Exponent(unknown, None, start, end, axis.size, None)
    position = np.log(axis) - np.log(axis).mean()
    weights = position / (position @ position)
    slope = _combined(rounds, weights.tolist(), shared, exact, confidence)
    theory = float(weights @ np.log(costs)) if (costs > 0).all() else None
    misfit = None
    if slope.estimate is not None and axis.size > 2:
        means = np.array([np.log(finite(values)).mean() for values in rounds])
        misfit = float(np.expm1(np.abs(means - means.mean() - slope.estimate * position).max()))
    return Exponent(slope, theory, start, end, axis.size, misfit)


def _penalty(
    prime: int,
    friendly: Sequence[int],
    axis: FloatArray,
    rounds: Sequence[Rounds],
    shared: bool,
    exact: bool,
    confidence: float,
) -> Interval:
    below = [i for i in friendly if axis[i] < axis[prime]]
    above = [i for i in friendly if axis[i] > axis[prime]]
    if not below or not above:
        return Interval(None, None, None, confidence, 0, "none", "no FFT-friendly size on both sides of it")
    low, high = below[-1], above[0]
    toward = float(np.log(axis[prime] / axis[low]) / np.log(axis[high] / axis[low]))
    parts, weights = [rounds[prime], rounds[low], rounds[high]], [1.0, toward - 1.0, -toward]
    return exponential(_combined(parts, weights, shared, exact, confidence))


def _combined(
    parts: Sequence[Rounds], weights: Sequence[float], shared: bool, exact: bool, confidence: float
) -> Interval:
    combined = combination(parts, weights, shared=shared and not exact, confidence=confidence)
    return exactly(combined.estimate, confidence) if exact and combined.estimate is not None else combined
