"""Intervals: 95 % means 95 %, few rounds say what they can, and one round says nothing of the next."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from niffbench.stats.contrasts import contrast, in_order
from niffbench.stats.intervals import (
    ONE_ROUND,
    combination,
    exactly,
    median_of_rounds,
    ratio,
    spread,
)

TRIALS = 3000  # the standard error of a coverage of 95 % is then 0.4 %
Draw = Callable[[np.random.Generator, int], NDArray[np.float64]]

times = st.floats(1e-9, 1e3)


def gaussian(generator: np.random.Generator, n: int) -> NDArray[np.float64]:
    return 0.01 * generator.standard_normal(n)


def skewed(generator: np.random.Generator, n: int) -> NDArray[np.float64]:
    return 0.02 * (generator.exponential(size=n) - np.log(2))


@pytest.mark.parametrize(
    ("rounds", "draw"),
    [(n, gaussian) for n in (2, 3, 5, 9, 10, 14, 25)] + [(n, skewed) for n in (10, 13, 20)],
)
def test_median_interval_covers(rounds: int, draw: Draw) -> None:
    generator = np.random.default_rng(rounds)
    hits = 0
    for _ in range(TRIALS):
        result = median_of_rounds(2e-3 * np.exp(draw(generator, rounds)))
        assert result.low is not None
        assert result.high is not None
        hits += result.low <= 2e-3 <= result.high
    assert 0.93 <= hits / TRIALS <= 0.97


@pytest.mark.parametrize(
    ("base", "other", "noisier"), [(3, 3, 1.0), (4, 4, 1.0), (5, 5, 3.0), (8, 8, 1.0), (5, 8, 1.0), (8, 5, 2.0)]
)
def test_ratio_interval_covers(base: int, other: int, noisier: float) -> None:
    generator = np.random.default_rng([base, other])
    hits = 0
    for _ in range(TRIALS):
        one = np.exp(0.01 * generator.standard_normal(base))
        two = 1.25 * np.exp(0.01 * noisier * generator.standard_normal(other))
        result = ratio(one, two, paired=False)
        assert result.low is not None
        assert result.high is not None
        hits += result.low <= 1.25 <= result.high
    assert 0.93 <= hits / TRIALS <= 0.97


@pytest.mark.parametrize(("base", "other"), [(2, 2), (2, 8), (3, 20), (20, 2), (5, 20)])
def test_ratio_of_few_and_unequal_rounds_errs_to_the_wide_side(base: int, other: int) -> None:
    generator = np.random.default_rng(7)
    groups = [0.01 * generator.standard_normal((20_000, n)) for n in (base, other)]
    low, high = contrast(groups, (-1.0, 1.0), shared=False).band(0.95)
    assert np.mean((low <= 0) & (high >= 0)) >= 0.945


@pytest.mark.parametrize("rounds", [2, 3, 5, 8])
def test_paired_ratio_covers_and_cancels_what_rounds_share(rounds: int) -> None:
    generator = np.random.default_rng(rounds)
    hits = narrower = 0
    for _ in range(TRIALS):
        machine = 0.1 * generator.standard_normal(rounds)
        one = np.exp(machine + 0.01 * generator.standard_normal(rounds))
        two = 0.8 * np.exp(machine + 0.01 * generator.standard_normal(rounds))
        result, apart = (ratio(one, two, paired=paired) for paired in (True, False))
        assert result.half_width is not None
        assert apart.half_width is not None
        hits += not result.excludes(0.8)
        narrower += result.half_width < apart.half_width
    assert 0.93 <= hits / TRIALS <= 0.97
    assert narrower / TRIALS > (0.7 if rounds == 2 else 0.95)


def test_one_round_has_an_estimate_and_no_interval() -> None:
    for result in (median_of_rounds([2.0]), median_of_rounds([None, 2.0, float("nan")])):
        assert (result.estimate, result.low, result.high, result.rounds) == (2.0, None, None, 1)
        assert result.reason == ONE_ROUND
    result = ratio([1.0], [3.0], paired=True)
    assert result.estimate == pytest.approx(3.0)
    assert (result.low, result.high, result.half_width, result.reason) == (None, None, None, ONE_ROUND)
    assert not result.excludes(1.0), "without an interval nothing is excluded"


def test_one_round_on_one_side_gives_no_interval() -> None:
    result = ratio([1.0], [2.0, 2.1, 2.2], paired=False)
    assert result.low is None
    assert result.reason == ONE_ROUND


def test_two_rounds_are_nine_standard_deviations_wide() -> None:
    result = median_of_rounds([1.0, np.exp(0.02)])
    sd = 0.02 / np.sqrt(2)
    assert result.low is not None
    assert result.high is not None
    assert np.log(result.high / result.low) / 2 == pytest.approx(12.7062 * sd / np.sqrt(2), rel=1e-4)


def test_nothing_measured_and_not_positive_are_said() -> None:
    assert median_of_rounds([]).estimate is None
    assert "no round" in (ratio([None], [1.0], paired=True).reason or "")
    zero = ratio([0.0, 1.0], [1.0, 1.0], paired=True)
    assert zero.estimate is None
    assert "zero or negative" in (zero.reason or "")
    peak = median_of_rounds([0.0, 0.0])
    assert (peak.estimate, peak.low) == (0.0, None)


def test_missing_rounds_are_left_out_with_their_partner() -> None:
    whole = ratio([1.0, 1.1, 1.2], [2.0, 2.3, 2.4], paired=True)
    holed = ratio([1.0, None, 1.1, None, 1.2], [2.0, 2.2, 2.3, 2.5, 2.4], paired=True)
    assert (holed.low, holed.high, holed.rounds) == (whole.low, whole.high, whole.rounds)
    assert (whole.estimate, holed.estimate) == (2.3 / 1.1, 2.3 / 1.1)  # of all rounds that a side has


@pytest.mark.parametrize(
    ("kind", "value", "quotient"),
    [
        ("log-normal", {3: 0.95, 5: 0.95, 10: 0.95, 20: 0.95}, {3: 0.95, 5: 0.95, 10: 0.95, 20: 0.95}),
        ("slow", {3: 0.97, 5: 0.97, 10: 0.95, 20: 0.95}, {3: 0.96, 5: 0.97, 10: 0.97, 20: 0.91}),
        ("bimodal", {3: 0.80, 5: 0.93, 10: 0.91, 20: 0.96}, {3: 0.85, 5: 0.93, 10: 0.95, 20: 0.95}),
    ],
)
def test_intervals_cover_as_their_table_says(
    kind: str, value: dict[int, float], quotient: dict[int, float]
) -> None:
    """The truth is the median of what rounds are drawn from; the ratio's other side is quiet."""
    generator = np.random.default_rng(len(kind))

    def draw(rounds: int) -> NDArray[np.float64]:
        logs = 0.02 * generator.standard_normal(rounds)
        if kind == "slow":
            logs += np.log(1.3) * (generator.random(rounds) < 0.1)
        if kind == "bimodal":
            logs += np.log(1.15) * (generator.random(rounds) < 0.5)
        return np.exp(logs)

    truth = float(np.sqrt(1.15) if kind == "bimodal" else np.median(draw(200_001)))
    trials = 500
    for rounds in value:
        quiet = np.exp(0.02 * generator.standard_normal((trials, rounds)))
        sides = [draw(rounds) for _ in range(trials)]
        held = np.mean([not median_of_rounds(side).excludes(truth) for side in sides])
        of_ratio = np.mean(
            [not ratio(base, side, paired=True).excludes(truth) for base, side in zip(quiet, sides, strict=True)]
        )
        assert held == pytest.approx(value[rounds], abs=0.05)  # four standard deviations of 500 draws at 0.9
        assert of_ratio == pytest.approx(quotient[rounds], abs=0.05)


def test_paired_sides_of_unlike_length_are_refused() -> None:
    with pytest.raises(ValueError, match="equally many"):
        ratio([1.0, 2.0], [1.0], paired=True)


def test_identical_rounds_have_no_width() -> None:
    exact = ratio([4.0] * 3, [5.0] * 5, paired=False)
    assert exact.low == exact.high == exact.estimate == pytest.approx(1.25)
    assert ratio([0.1] * 3, [0.1] * 4, paired=False).excludes(1.0) is False
    median = median_of_rounds([5.0] * 3)
    assert (median.low, median.high) == pytest.approx((5.0, 5.0))


def test_median_outside_the_t_interval_stretches_it() -> None:
    result = median_of_rounds([1.0] * 5 + [2.0] * 4)  # two modes
    assert result.low == result.estimate == 1.0
    assert result.high is not None
    assert result.high > 1.5


@given(st.lists(times, min_size=2, max_size=30), st.floats(1e-3, 1e3))
def test_median_interval_holds_its_estimate_and_scales(values: list[float], factor: float) -> None:
    result, scaled = median_of_rounds(values), median_of_rounds([factor * value for value in values])
    assert result.low is not None
    assert result.high is not None
    assert result.low <= float(np.median(values)) <= result.high
    assert scaled.low == pytest.approx(factor * result.low, rel=1e-6)
    assert scaled.high == pytest.approx(factor * result.high, rel=1e-6)


@given(st.lists(st.tuples(times, times), min_size=2, max_size=12), st.booleans())
def test_ratio_turned_round_is_its_inverse(pairs: list[tuple[float, float]], paired: bool) -> None:
    one, two = zip(*pairs, strict=True)
    there, back = combination((one, two), (-1, 1), shared=paired), combination((two, one), (-1, 1), shared=paired)
    assert there.low is not None
    assert back.high is not None
    assert there.low == pytest.approx(-back.high, rel=1e-6, abs=1e-9)
    assert there.estimate == pytest.approx(np.mean(np.log(two)) - np.mean(np.log(one)), rel=1e-6, abs=1e-9)


def test_exact_values_are_known_without_error() -> None:
    flops = exactly(1.5, 0.95)
    assert flops.excludes(1.0)
    assert flops.half_width == 0


def test_spread_is_quantiles_of_one_process() -> None:
    result = spread([*np.linspace(1, 2, 101), float("nan")])
    assert (result.low, result.lower_quartile, result.median) == pytest.approx((1.05, 1.25, 1.5))
    assert (result.upper_quartile, result.high, result.samples) == pytest.approx((1.75, 1.95, 101))
    with pytest.raises(ValueError, match="at least one"):
        spread([float("nan")])


def test_order_takes_a_steady_drift_out_of_pairs() -> None:
    generator = np.random.default_rng(0)
    base_first = np.array([True, False, False, True, True, False, False, True])
    noise = 0.005 * generator.standard_normal((20_000, 8))
    drifting = noise + np.where(base_first, 0.03, -0.03) + 0.02
    result = in_order(drifting, base_first)
    plain = contrast([drifting], [1.0], shared=True)
    low, high = result.band(0.95)
    assert 0.93 <= np.mean((low <= 0.02) & (high >= 0.02)) <= 0.97
    assert np.median(result.error) < 0.3 * np.median(plain.error)


def test_order_covers_when_the_orders_are_unequally_many() -> None:
    base_first = np.array([True, True, True, True, True, False])
    noise = 0.01 * np.random.default_rng(1).standard_normal((20_000, 6))
    low, high = in_order(noise + np.where(base_first, 0.05, -0.05), base_first).band(0.95)
    assert 0.93 <= np.mean((low <= 0) & (high >= 0)) <= 0.97


@pytest.mark.parametrize("order", [[True, True, True], [True, False]])
def test_order_needs_three_pairs_and_both_orders(order: list[bool]) -> None:
    with pytest.raises(ValueError, match="both orders"):
        in_order(np.zeros(len(order)), order)


def test_contrast_refuses_a_single_round() -> None:
    with pytest.raises(ValueError, match="two rounds"):
        contrast([np.zeros(1), np.zeros(3)], (-1.0, 1.0), shared=False)
