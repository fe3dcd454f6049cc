"""Decisions: has a case changed between two sets of rounds? Regressed, improved, equivalent, or not known.

The rule, for a positive quantity of which less is better (latency):

1. the unit is the round's median; the test is Welch's on logs, or Student's t on paired differences (ABBA);
2. p-values are corrected across the suite by Holm (Scandinavian Journal of Statistics 6, 1979, pp. 65–70),
   which bounds the chance of *any* false alarm by ``alpha`` however the cases depend on each other;
3. a change is called only if it is also at least the minimum effect m (as criterion.rs does with its noise
   threshold), a ratio of 1 + m or more, or 1 / (1 + m) or less: what is significant need not matter;
4. a case is called equivalent only if that was shown: two one-sided tests (Schuirmann, Journal of
   Pharmacokinetics and Biopharmaceutics 15, 1987, pp. 657–680), each at ``alpha``, put it inside the margin
   ±minimum effect;
5. a median lies within half a step of what a better clock would show, so what is tested is whether the difference
   is more than one step, however well rounds agree, and interval and margin allow for as much;
6. everything else is inconclusive, and so are fewer rounds than can support ``alpha`` (:func:`fewest_rounds`).

The tests are two-sided although only a regression fails the gate: improvements are reported too, in the same
words, and a one-sided test would report them without any bound on their error. The price is that a gate at
``alpha`` raises a false *regression* in at most ``alpha`` / 2 of the suites when errors are symmetric.

The minimum effect compares with the estimate, so a true change of exactly that size is called half of the time
at best; :mod:`niffbench.stats.power` says which changes are seen reliably.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import comb
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from niffbench.stats.contrasts import BoolArray, Contrast, FloatArray, contrast, in_order
from niffbench.stats.intervals import (
    Interval,
    Rounds,
    combination,
    exponential,
    log_groups,
    of_contrast,
    widened,
)

Verdict = Literal["regressed", "improved", "equivalent", "inconclusive"]

ALPHA = 0.01
MIN_EFFECT = 0.03


@dataclass(frozen=True)
class Decision:
    """The verdict on one case.

    Attributes:
        ratio: head/base with its interval at the confidence asked for (uncorrected: it describes one case).
        p_value: two-sided; None where no test was possible.
        p_adjusted: Holm's; None where no test was possible.
        min_effect: the relative change below which nothing is called.
        reason: the verdict's ground in words.
    """

    verdict: Verdict
    ratio: Interval
    p_value: float | None
    p_adjusted: float | None
    min_effect: float
    reason: str


@dataclass(frozen=True)
class Judgement:
    """Arrays of one shape: which cases are called higher, lower or equivalent, and both p-values."""

    higher: BoolArray
    lower: BoolArray
    equivalent: BoolArray
    p_value: FloatArray
    p_adjusted: FloatArray


def fewest_rounds(alpha: float, *, paired: bool = False) -> int:
    """The rounds a side below which no verdict other than inconclusive is given.

    Processes often land in one of two modes (an allocation's alignment, a plan chosen by timing). Then a few
    rounds agree among themselves by luck, and a t test takes the luck for precision: with three rounds a side,
    two even modes separate the sides completely in 1 of 32 comparisons of identical code. So a level ``alpha``
    must be reachable without assuming normality, by the permutation test at its best: 2 / C(2n, n) ≤ alpha for
    two sides of n rounds, 2 / 2ⁿ ≤ alpha for n pairs (Fisher, The Design of Experiments, 1935, §21). At 0.01
    that is 5 rounds a side or 8 pairs. (Simulated suites of 60 bimodal cases, no minimum effect: a false alarm
    in 15 % of them with three rounds a side, in 1 % with five.)
    """
    if not 0 < alpha < 1:
        raise ValueError(f"alpha must lie between 0 and 1, not {alpha}")
    n = 2
    while 2 / (2**n if paired else comb(2 * n, n)) > alpha:
        n += 1
    return n


def holm(p_values: FloatArray) -> FloatArray:
    """Holm's adjusted p-values along the last axis; NaN (a case without a test) is not counted."""
    order = np.argsort(p_values, axis=-1)  # NaN sorts last
    ordered = np.take_along_axis(p_values, order, axis=-1)
    tested = np.isfinite(p_values).sum(axis=-1, keepdims=True)
    steps = np.maximum(tested - np.arange(p_values.shape[-1]), 1)
    adjusted = np.minimum(np.maximum.accumulate(ordered * steps, axis=-1), 1.0)
    result = np.empty_like(adjusted)
    np.put_along_axis(result, order, adjusted, axis=-1)
    return result


def judge(
    difference: Contrast, *, alpha: float, min_effect: float | FloatArray, step: float | FloatArray = 0.0
) -> Judgement:
    """Apply the module's rule along the last axis, which is the suite; leading axes are more suites.

    Args:
        difference: log(head) − log(base). A NaN estimate is a case without a test: nothing is called.
        step: the clock's, of the logs.
    """
    margin = np.log1p(np.asarray(min_effect, dtype=np.float64))
    p_value = np.where(np.isfinite(difference.estimate), difference.beyond(step).p_value(), np.nan)
    adjusted = holm(p_value)
    low, high = difference.band(1 - 2 * alpha)
    with np.errstate(invalid="ignore"):
        significant = adjusted <= alpha
        # Rounding of the logs must not turn an effect of exactly the margin into one below it.
        reached = 1 - 1e-12
        higher = significant & (difference.estimate >= margin * reached)
        lower = significant & (difference.estimate <= -margin * reached)
        equivalent = (low - step >= -margin) & (high + step <= margin) & ~higher & ~lower
    return Judgement(higher, lower, equivalent, p_value, adjusted)


def shared_shift(base: FloatArray, head: FloatArray) -> tuple[FloatArray, FloatArray]:
    """What every round has in common with the other cases measured in it: the machine's part of its noise.

    Args:
        base: Logs of shape (…, controls, rounds); controls are cases whose code is the same on both sides. NaN
            where a control lacks a round; each has some on either side.
        head: The same of the other side; the numbers of rounds may differ.

    Returns:
        The shift of each round of base and of head, of shape (…, rounds): the median over the controls of how far
        each is from its own centre, half way between its means of both sides. One odd control moves it little.
    """
    whole = not (np.isnan(base).any() or np.isnan(head).any())
    mean, middle = (np.mean, np.median) if whole else (np.nanmean, np.nanmedian)  # these are many times slower
    centre = (mean(base, axis=-1, keepdims=True) + mean(head, axis=-1, keepdims=True)) / 2
    return middle(base - centre, axis=-2), middle(head - centre, axis=-2)


def decide(
    base: Sequence[Rounds],
    head: Sequence[Rounds],
    *,
    paired: bool = False,
    base_first: Sequence[bool] | None = None,
    alpha: float = ALPHA,
    min_effect: float | Sequence[float] = MIN_EFFECT,
    confidence: float = 0.95,
    fewest: int | None = None,
    steps: Sequence[float] | None = None,
    unit: Sequence[str] | None = None,
) -> tuple[Decision, ...]:
    """Judge a suite: one decision a case, in the order given.

    Args:
        base: per case the round medians (positive, one unit; None or NaN for a round that failed).
        head: those of the other side.
        paired: value i of both sides are neighbours in time, as in ABBA.
        base_first: of each pair whether base ran first; a steady drift of the machine is then taken out
            (:func:`niffbench.stats.contrasts.in_order`).
        min_effect: relative, one for all or one a case.
        fewest: rounds (pairs) below which a case is inconclusive, by default :func:`fewest_rounds`; two is the
            least.
        steps: of each case the clock's step, relative to the values; where left out it does not matter.
        unit: of each case, what its values are one of; rounds, or pairs, where left out.

    Raises:
        ValueError: for sides of unlike length, or an ``alpha`` or effect that is out of range.
    """
    if len(base) != len(head):
        raise ValueError(f"{len(base)} cases in base but {len(head)} in head")
    effects = np.broadcast_to(np.asarray(min_effect, dtype=np.float64), len(base))
    if (effects < 0).any():
        raise ValueError("a minimum effect cannot be negative")
    needed = fewest_rounds(alpha, paired=paired) if fewest is None else max(fewest, 2)
    units = unit or ["pairs" if paired else "rounds"] * len(base)
    known = [0.0] * len(base) if steps is None else steps
    evidence = [
        _evidence(one, two, paired, base_first, needed, confidence, step, of)
        for one, two, step, of in zip(base, head, known, units, strict=True)
    ]
    judged = judge(
        Contrast(*(np.array([getattr(one.contrast, name) for one in evidence]) for name in _FIELDS)),
        alpha=alpha,
        min_effect=effects,
        step=np.array([one.step for one in evidence]),
    )
    return tuple(_decision(one, judged, index, float(effects[index]), alpha) for index, one in enumerate(evidence))


_SIGNS = (-1.0, 1.0)
_FIELDS = ("estimate", "error", "freedom")
_UNTESTED = Contrast(*(np.asarray(np.nan) for _ in _FIELDS))


@dataclass(frozen=True)
class _Evidence:
    contrast: Contrast
    ratio: Interval
    refusal: str | None
    step: float = 0.0  # of the clock, on logs


def _evidence(
    base: Rounds,
    head: Rounds,
    paired: bool,
    base_first: Sequence[bool] | None,
    needed: int,
    confidence: float,
    step: float,
    unit: str,
) -> _Evidence:
    sides = (base, head)
    plain = combination(sides, _SIGNS, shared=paired, confidence=confidence)
    if plain.low is None:
        lone = unit == "devices" and plain.rounds == 1
        reason = "one device on a side: what another would give is unknown" if lone else plain.reason
        return _Evidence(_UNTESTED, exponential(plain), reason)
    logs = log_groups(sides, shared=paired)
    on_logs = float(np.log1p(step))
    method, difference = plain.method, contrast(logs, _SIGNS, shared=paired)
    if paired and base_first is not None:
        order = _order_of_pairs(base, head, base_first)
        if order.size > 2 and order.any() and not order.all():
            method = "paired t on logs, order taken out"
            difference = in_order(logs[1] - logs[0], order)
    band = of_contrast(difference, confidence, plain.rounds, method)
    interval = widened(exponential(band), step)
    if plain.rounds < needed:
        side = "" if paired else " a side"
        return _Evidence(_UNTESTED, interval, f"{plain.rounds} {unit}{side}, at least {needed} are needed")
    return _Evidence(difference, interval, None, on_logs)


def _order_of_pairs(base: Rounds, head: Rounds, base_first: Sequence[bool]) -> NDArray[np.bool_]:
    one, two = np.asarray(base, dtype=np.float64), np.asarray(head, dtype=np.float64)
    order = np.asarray(base_first, dtype=bool)
    if order.shape != one.shape:
        raise ValueError(f"{one.size} pairs but {order.size} orders")
    return order[np.isfinite(one) & np.isfinite(two)]


def _decision(evidence: _Evidence, judged: Judgement, index: int, effect: float, alpha: float) -> Decision:
    if evidence.refusal is not None:
        return Decision("inconclusive", evidence.ratio, None, None, effect, evidence.refusal)
    p_value, adjusted = float(judged.p_value[index]), float(judged.p_adjusted[index])
    size = f"{100 * effect:g} %"
    verdict: Verdict
    if judged.higher[index] or judged.lower[index]:
        verdict = "regressed" if judged.higher[index] else "improved"
        reason = f"significant across the suite (p {_shown(adjusted)}) and at least {size} in size"
    elif judged.equivalent[index]:
        verdict = "equivalent"
        reason = f"shown to be within ±{size}"
    elif evidence.contrast.estimate and not evidence.contrast.beyond(evidence.step).estimate:
        verdict = "inconclusive"
        reason = f"they differ by no more than a step of the clock, {100 * np.expm1(evidence.step):.2g} %"
    elif adjusted <= alpha:
        verdict = "inconclusive"
        reason = f"significant (p {_shown(adjusted)}), but neither at least {size} nor shown to be less"
    else:
        verdict = "inconclusive"
        reason = f"neither a change nor its absence is shown (p {_shown(adjusted)} across the suite)"
    return Decision(verdict, evidence.ratio, p_value, adjusted, effect, reason)


def _shown(p: float) -> str:
    return "< 0.0001" if p < 1e-4 else f"= {p:.2g}"
