"""Power: what could have been seen? Noise, the smallest detectable effect, and the rounds an effect needs.

Everything here asks about the rule of :mod:`niffbench.stats.decision` as it is: Welch's (or the paired) test
at Holm's level for one changed case among many, *and* an estimate of at least the minimum effect. The
probability of both is the mean, over the distribution of the estimated variances, of the normal probability
that the estimate passes the larger of the two thresholds. Without a minimum effect and with pairs that is the
noncentral t distribution (Johnson, Kotz and Balakrishnan, Continuous Univariate Distributions 2, 2nd ed., Wiley
1995, ch. 31).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from math import ceil, inf
from typing import Literal

import numpy as np
from scipy.optimize import brentq
from scipy.special import chdtri, ndtr, stdtrit

from niffbench.stats.contrasts import FloatArray, in_order
from niffbench.stats.decision import ALPHA, MIN_EFFECT, fewest_rounds
from niffbench.stats.intervals import Rounds, log_groups

POWER = 0.9
"""Probability with which an effect must be found to count as detectable."""
MOST_ROUNDS = 1000
"""Rounds beyond which an effect is called out of reach."""
FIT_SHARE = 0.9
"""Share of the cases that must be fit for the machine to be."""

_POINTS = 40  # quadrature points for each estimated variance
_LARGEST = 3.0  # log of the largest effect looked for, a factor of 20


@dataclass(frozen=True)
class Noise:
    """Standard deviation of the log of a round median, or of a pair's difference if ``paired``.

    0.01 is about 1 %.

    Attributes:
        low: of its 95 % interval (chi-squared, so for normal logs).
        high: the interval's other end.
        freedom: degrees of freedom.
    """

    sd: float
    low: float
    high: float
    freedom: int
    paired: bool


@dataclass(frozen=True)
class Detectable:
    """The smallest relative effect found with the power asked for.

    At the noise estimated and at both ends of its interval. None: even a factor of 20 would not be found.
    """

    effect: float | None
    low: float | None
    high: float | None


Verdict = Literal["fit", "unfit", "unknown"]


@dataclass(frozen=True)
class Fitness:
    """Whether a machine can gate on an effect.

    A case is fit when the effect is detectable even at the upper end of its noise's interval, unfit when not even
    at the lower end, and unknown in between; the machine is fit or unfit when that is so of 90 % of the cases
    (unfit: of more than the 10 % it may miss).

    Attributes:
        needed: rounds a side (pairs) each case needs at its estimated noise, None: more than 1000 or never.
    """

    verdict: Verdict
    reason: str
    cases: tuple[Verdict, ...]
    detectable: tuple[Detectable, ...]
    needed: tuple[int | None, ...]


def noise(sides: Sequence[Rounds]) -> Noise:
    """Round-to-round noise of one case, from sets of rounds of the same code: a run, or both sides of an A/A.

    Each set has a mean of its own, so a machine that changed between them adds nothing.

    Args:
        sides: round medians, positive, None or NaN for a round that failed.

    Raises:
        ValueError: when no set has two rounds, or a value is not positive.
    """
    logs = [group for group in log_groups(sides, shared=False) if group.size > 1]
    freedom = sum(group.size - 1 for group in logs)
    if freedom < 1:
        raise ValueError("noise between rounds needs two rounds")
    return _noise(sum(float(group.var()) * group.size for group in logs) / freedom, freedom, paired=False)


def paired_noise(base: Rounds, head: Rounds, base_first: Sequence[bool]) -> Noise:
    """Noise of the differences of an A/A in ABBA order, the order taken out.

    Args:
        base: positive; value i of both sides are neighbours in time.
        head: the other side.
        base_first: per pair, which side ran first.

    Raises:
        ValueError: for fewer than three complete pairs, for pairs of one order only, or a value that is not
            positive.
    """
    one, two = log_groups((base, head), shared=True)
    there = np.isfinite(np.asarray(base, dtype=np.float64)) & np.isfinite(np.asarray(head, dtype=np.float64))
    order = np.asarray(base_first, dtype=bool)[there]
    difference = in_order(two - one, order)
    forth = int(order.sum())
    variance = 4 * float(difference.error) ** 2 / (1 / forth + 1 / (order.size - forth))
    return _noise(variance, order.size - 2, paired=True)


def _noise(variance: float, freedom: int, *, paired: bool) -> Noise:
    low, high = (float(np.sqrt(variance * freedom / chdtri(freedom, tail))) for tail in (0.025, 0.975))
    return Noise(float(np.sqrt(variance)), low, high, freedom, paired)


def detection(
    effect: float,
    sd: float,
    rounds: int,
    *,
    alpha: float = ALPHA,
    cases: int = 1,
    min_effect: float = MIN_EFFECT,
    paired: bool = False,
) -> float:
    """Probability that a slowdown is called regressed.

    Args:
        effect: relative (0.05: 5 % slower).
        sd: of the logs, as in :class:`Noise`.
        rounds: a side, or pairs (in ABBA order, so with rounds − 2 degrees of freedom).
        cases: size of the suite, of which this case alone has changed, so that Holm tests it at alpha / cases.

    Returns:
        Zero below the rounds that the rule needs.
    """
    if rounds < fewest_rounds(alpha, paired=paired):
        return 0.0
    shift, margin = np.log1p(effect), np.log1p(min_effect)
    error = np.sqrt((1.0 if paired else 2.0) / rounds)
    if sd == 0:
        return float(shift >= margin)
    threshold = np.maximum(_critical(rounds, alpha / cases, paired), margin / sd)
    return float(ndtr((shift / sd - threshold) / error).mean())


def smallest_effect(
    sd: float,
    rounds: int,
    *,
    alpha: float = ALPHA,
    power: float = POWER,
    cases: int = 1,
    min_effect: float = MIN_EFFECT,
    paired: bool = False,
) -> float | None:
    """The smallest slowdown called regressed with probability ``power``; arguments as in :func:`detection`.

    None when even a factor of 20 is not.
    """

    def missing(log_effect: float) -> float:
        power_at = detection(
            float(np.expm1(log_effect)), sd, rounds, alpha=alpha, cases=cases, min_effect=min_effect, paired=paired
        )
        return power_at - power

    if missing(_LARGEST) < 0:
        return None
    if sd == 0:
        return min_effect
    return float(np.expm1(brentq(missing, 0.0, _LARGEST, xtol=1e-6)))


def half_and_most(effects: Sequence[float | None]) -> tuple[float, float] | None:
    """The smallest effects that half, and nine of ten, of the cases show, inf for none; None without cases."""
    if not effects:
        return None
    ordered = sorted(inf if effect is None else effect for effect in effects)
    return ordered[(len(ordered) - 1) // 2], ordered[ceil(FIT_SHARE * len(ordered)) - 1]


def rounds_needed(
    effect: float,
    sd: float,
    *,
    alpha: float = ALPHA,
    power: float = POWER,
    cases: int = 1,
    min_effect: float = MIN_EFFECT,
    paired: bool = False,
) -> int | None:
    """The fewest rounds a side (pairs) that find a slowdown of ``effect`` with probability ``power``.

    None when that takes more than 1000, or is out of reach: an effect no larger than the minimum effect is
    found half of the time at best, however many rounds there are.
    """

    def enough(rounds: int) -> bool:
        return (
            detection(effect, sd, rounds, alpha=alpha, cases=cases, min_effect=min_effect, paired=paired) >= power
        )

    low = fewest_rounds(alpha, paired=paired)
    if enough(low):
        return low
    high = low
    while not enough(high):
        if high == MOST_ROUNDS:
            return None
        low, high = high, min(2 * high, MOST_ROUNDS)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if enough(middle) else (middle, high)
    return high


def fitness(
    noises: Sequence[Noise],
    rounds: int,
    *,
    effect: float = 0.05,
    alpha: float = ALPHA,
    power: float = POWER,
    min_effect: float = MIN_EFFECT,
) -> Fitness:
    """Judge whether a machine with this noise (one entry a case) can gate on ``effect`` with ``rounds`` a side.

    Raises:
        ValueError: when there is no case.
    """
    if not noises:
        raise ValueError("no case has been measured in two rounds")
    cases = len(noises)
    detectable: list[Detectable] = []
    needed: list[int | None] = []
    verdicts: list[Verdict] = []
    for case in noises:
        at = [
            smallest_effect(
                sd, rounds, alpha=alpha, power=power, cases=cases, min_effect=min_effect, paired=case.paired
            )
            for sd in (case.sd, case.low, case.high)
        ]
        detectable.append(Detectable(*at))
        needed.append(
            rounds_needed(
                effect, case.sd, alpha=alpha, power=power, cases=cases, min_effect=min_effect, paired=case.paired
            )
        )
        _, best, worst = (size is not None and size <= effect for size in at)
        verdicts.append("fit" if worst else "unknown" if best else "unfit")
    fit, unfit = verdicts.count("fit"), verdicts.count("unfit")
    verdict: Verdict = (
        "fit" if fit >= FIT_SHARE * cases else "unfit" if unfit > (1 - FIT_SHARE) * cases else "unknown"
    )
    unit = "pairs" if noises[0].paired else "rounds a side"
    reason = (
        f"a change of {100 * effect:g} % would be detectable with probability {power:g} by {rounds} {unit} in "
        f"{fit} of {cases} cases, and would not in {unfit}"
    )
    return Fitness(verdict, reason, tuple(verdicts), tuple(detectable), tuple(needed))


@lru_cache(maxsize=256)
def _critical(rounds: int, level: float, paired: bool) -> FloatArray:
    """Significance thresholds of the estimate, in units of the sd, over equally likely values of the variance
    estimates."""
    middle = (np.arange(_POINTS**2 if paired else _POINTS) + 0.5) / (_POINTS**2 if paired else _POINTS)
    freedom = rounds - (2 if paired else 1)
    variance = chdtri(freedom, middle) / freedom
    if paired:
        return np.asarray(stdtrit(freedom, 1 - level / 2) * np.sqrt(variance / rounds))
    one, two = variance[:, None], variance[None, :]
    welch = freedom * (one + two) ** 2 / (one**2 + two**2)
    return np.asarray(stdtrit(welch, 1 - level / 2) * np.sqrt((one + two) / rounds))
