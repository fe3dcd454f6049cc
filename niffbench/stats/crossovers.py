"""Crossovers: from which size on is one operator cheaper than another?

The ratio of two costs is interpolated between the sizes measured, linearly on log–log scales; a crossover is
where it is one. Its interval comes from inverting the test "the ratio is one here" at every point of the range
(as Fieller does for a ratio of means: Quarterly Journal of Pharmacy and Pharmacognosy 17, 1944, pp. 117–123):
it holds the places where the ratio's interval contains one. So it covers the crossover of the interpolated
curves as often as the ratio's interval covers the ratio, needs no resampling, and is the same every time. That
there *is* a crossover is claimed more carefully, since a range holds many points: each side must be shown
cheaper at a measured size at the one-sided level (1 − confidence) / sizes, so that operators that do not cross
are said to in at most 1 − confidence of the cases. Who is cheaper *throughout* needs no such care: every point
must show it. The curve between two sizes is not measured: the interval is about noise, not about what lies
between.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import numpy as np

from niffbench.errors import plural
from niffbench.stats.contrasts import FloatArray, contrast
from niffbench.stats.intervals import NOT_POSITIVE, ONE_ROUND, NotPositive, Rounds, log_groups

Side = Literal["a", "b"]
Outcome = Literal["crossover", "several", "none", "undecided"]

_CUTS = 32  # points per measured segment at which the band is evaluated; its edges are then found by interpolation


@dataclass(frozen=True)
class Crossing:
    """One crossover at ``size``, with its interval. ``cheaper_above``: who is cheaper beyond it.

    ``size`` is where the interpolated ratio is one; where it touches one several times inside one interval, the
    middle of these places.
    """

    size: float
    low: float
    high: float
    cheaper_above: Side


@dataclass(frozen=True)
class Stretch:
    """A part of the range in which ``cheaper`` is shown to be cheaper, or neither is (None)."""

    start: float
    end: float
    cheaper: Side | None


@dataclass(frozen=True)
class Crossover:
    """What the range measured shows.

    ``outcome``: ``crossover`` (one), ``several``, ``none`` (``cheaper`` is cheaper throughout) or
    ``undecided``, with the ``reason``. ``stretches`` tile the range. ``estimates``: all places where the
    interpolated ratio is one, shown or not; for drawing, not for claims.
    """

    outcome: Outcome
    crossings: tuple[Crossing, ...]
    cheaper: Side | None
    stretches: tuple[Stretch, ...]
    estimates: tuple[float, ...]
    confidence: float
    reason: str | None = None


def crossover(
    sizes: Sequence[float],
    a: Sequence[Rounds],
    b: Sequence[Rounds],
    *,
    shared: bool = True,
    exact: bool = False,
    confidence: float = 0.95,
) -> Crossover:
    """Find where A and B change places along an axis.

    ``sizes``: kernel size, resolution, channels or batch; positive, all different, in any order. ``a``, ``b``:
    per size the round medians of each operator's cost (latency, memory, FLOPs, bytes; positive; less is
    better), None or NaN where a round has none; a size without a value on both sides is left out. ``shared``:
    value i of everything comes from the same round. ``exact``: costs without error (FLOPs), one number a size.

    With one round the interpolated places are given in ``estimates``, and the outcome is undecided.
    Raises ValueError for sizes that repeat or are not positive, or arguments of unlike length.
    """
    axis = np.asarray(sizes, dtype=np.float64)
    if axis.ndim != 1 or len(a) != axis.size or len(b) != axis.size:
        raise ValueError(f"{axis.size} sizes but {len(a)} and {len(b)} values")
    if (axis <= 0).any() or np.unique(axis).size != axis.size:
        raise ValueError("sizes must be positive and all different")

    def undecided(reason: str, estimates: tuple[float, ...] = ()) -> Crossover:
        return Crossover("undecided", (), None, (), estimates, confidence, reason)

    joint = shared and not exact
    order = [int(i) for i in np.argsort(axis) if _measured(a[i], b[i], joint)]
    if len(order) < 2:
        return undecided(f"{plural(len(order), 'size')} measured for both, at least 2 are needed")
    try:
        segments = [
            _segment(axis[[i, j]], (a[i], b[i], a[j], b[j]), joint, exact, confidence) for i, j in pairwise(order)
        ]
    except NotPositive:
        return undecided(NOT_POSITIVE)
    band = _Band(*(np.concatenate([getattr(part, name) for part in segments]) for name in _BAND))
    roots = _roots(band)
    if np.isinf(band.high).all():
        return undecided(ONE_ROUND, roots)
    stretches = _stretches(band)
    if len(stretches) == 1 and stretches[0].cheaper is not None:
        return Crossover("none", (), stretches[0].cheaper, stretches, roots, confidence)
    stretches = _confirmed(stretches, band, 2 * (1 - confidence) / len(order))
    crossings = _crossings(stretches, roots)
    if crossings:
        outcome: Outcome = "crossover" if len(crossings) == 1 else "several"
        return Crossover(outcome, crossings, None, stretches, roots, confidence)
    where = "in part of the range" if any(stretch.cheaper for stretch in stretches) else "throughout"
    return Crossover("undecided", (), None, stretches, roots, confidence, f"{where} the two cannot be told apart")


@dataclass(frozen=True)
class _Band:
    """log(a/b) along the range: position (log size), estimate, both ends of its interval and the p-value of
    zero.

    Every segment between two sizes has ``_CUTS`` + 1 points, its ends included.
    """

    position: FloatArray
    estimate: FloatArray
    low: FloatArray
    high: FloatArray
    p_value: FloatArray


_BAND = ("position", "estimate", "low", "high", "p_value")


def _measured(one: Rounds, two: Rounds, joint: bool) -> bool:
    first, second = np.asarray(one, dtype=np.float64), np.asarray(two, dtype=np.float64)
    if joint and first.shape != second.shape:
        raise ValueError(f"shared rounds must be equally many, not {first.size} and {second.size}")
    there = np.isfinite(first), np.isfinite(second)
    return bool((there[0] & there[1]).any() if joint else there[0].any() and there[1].any())


def _segment(ends: FloatArray, groups: Sequence[Rounds], joint: bool, exact: bool, confidence: float) -> _Band:
    """The band between two sizes. Where a side has fewer than two rounds it is infinitely wide."""
    toward = np.linspace(0, 1, _CUTS + 1)
    position = np.log(ends[0]) * (1 - toward) + np.log(ends[1]) * toward
    weights = (1 - toward, toward - 1, toward, -toward)
    logs = log_groups(groups, shared=joint)
    fewest = min(group.size for group in logs)
    if fewest >= 2 and not exact:
        found = contrast(logs, weights, shared=joint)
        return _Band(position, found.estimate, *found.band(confidence), found.p_value())
    # No round may have both ends: then each end has rounds of its own, and they still say where to look.
    means = [group.mean() for group in (logs if fewest else log_groups(groups, shared=False))]
    estimate = np.asarray(sum(weight * mean for weight, mean in zip(weights, means, strict=True)))
    if exact:
        return _Band(position, estimate, estimate, estimate, np.zeros_like(estimate))
    return _Band(position, estimate, estimate - np.inf, estimate + np.inf, np.ones_like(estimate))


def _roots(band: _Band) -> tuple[float, ...]:
    """The sizes at which the interpolated ratio is one."""
    at, value = band.position, band.estimate
    inside = np.flatnonzero(value[:-1] * value[1:] < 0)
    crossed = at[inside] + (at[inside + 1] - at[inside]) * value[inside] / (value[inside] - value[inside + 1])
    return tuple(sorted({_size(place) for place in (*crossed, *at[value == 0])}))


def _size(position: float) -> float:
    """Back from logs, without the last digits that the way there and back costs."""
    return float(f"{np.exp(position):.12g}")


def _stretches(band: _Band) -> tuple[Stretch, ...]:
    """Tile the range by who is shown to be cheaper; edges are where the band's end passes zero."""
    sides: list[Side | None] = [
        "a" if high < 0 else "b" if low > 0 else None for low, high in zip(band.low, band.high, strict=True)
    ]
    tiles: list[Stretch] = []
    start = float(band.position[0])

    def close(side: Side | None, end: float) -> None:
        nonlocal start
        if end > start or not tiles:
            tiles.append(Stretch(_size(start), _size(end), side))
        start = max(end, start)

    for i, (here, there) in enumerate(pairwise(sides)):
        if here == there:
            continue
        if here is not None:
            close(here, _edge(band, i, here))
        if there is not None:
            close(None, _edge(band, i, there))
    close(sides[-1], float(band.position[-1]))
    return tuple(tiles)


def _confirmed(stretches: Sequence[Stretch], band: _Band, level: float) -> tuple[Stretch, ...]:
    """Keep a side only where it is shown at a measured size at ``level``; join what is left undecided."""
    ends = np.arange(band.position.size) % (_CUTS + 1) % _CUTS == 0
    sizes, shown = np.exp(band.position[ends]), band.p_value[ends] <= level
    kept: list[Stretch] = []
    for stretch in stretches:
        inside = (sizes >= stretch.start * (1 - 1e-9)) & (sizes <= stretch.end * (1 + 1e-9))
        side = stretch.cheaper if (inside & shown).any() else None
        if kept and kept[-1].cheaper == side:
            kept[-1] = Stretch(kept[-1].start, stretch.end, side)
        else:
            kept.append(Stretch(stretch.start, stretch.end, side))
    return tuple(kept)


def _edge(band: _Band, i: int, side: Side) -> float:
    """Where, between points i and i + 1, the end of the band that decides for ``side`` passes zero."""
    ends = band.high if side == "a" else band.low
    here, there = float(ends[i]), float(ends[i + 1])
    toward = here / (here - there) if np.isfinite(here) and np.isfinite(there) else float(np.isfinite(here))
    return float(band.position[i] + toward * (band.position[i + 1] - band.position[i]))


def _crossings(stretches: Sequence[Stretch], roots: Sequence[float]) -> tuple[Crossing, ...]:
    found: list[Crossing] = []
    for before, after in pairwise([stretch for stretch in stretches if stretch.cheaper is not None]):
        if before.cheaper == after.cheaper or after.cheaper is None:
            continue
        low, high = before.end, after.start
        between = [root for root in roots if low * (1 - 1e-9) <= root <= high * (1 + 1e-9)]
        size = float(np.median(between)) if len(between) % 2 else float(np.sqrt(low * high))
        found.append(Crossing(min(max(size, low), high), low, high, after.cheaper))
    return tuple(found)
