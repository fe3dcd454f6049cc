"""Series: planted faults are flagged, noise is not, and sampling stops when the median is known."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.signal import lfilter
from scipy.stats import binom, kendalltau

from niffbench.stats.series import (
    DRIFT_ALPHA,
    JITTER,
    _kendall,
    autocorrelation_time,
    check,
    clock_step,
    precision,
    trend,
)


def noise(seed: int, n: int, *, rho: float = 0.0, sd: float = 0.01) -> NDArray[np.float64]:
    """Logs of a stationary AR(1) series."""
    raw = np.random.default_rng([seed, n]).standard_normal(n + 200)
    return np.asarray(sd * lfilter([np.sqrt(1 - rho**2)], [1, -rho], raw)[200:])


def test_sound_series_has_no_flags() -> None:
    result = check(1e-3 * np.exp(noise(0, 200)))
    assert result.flags == ()
    assert (result.samples, result.invalid, result.zeros, result.outliers) == (200, 0, 0, (0, 0))
    assert result.effective is not None
    assert 100 < result.effective <= 200
    assert abs(result.autocorrelation or 1) < 0.2


@pytest.mark.parametrize("samples", [[2.0, 2.0, 2.0], [1.0] * 50, [0.0, 1.0, 1.1], [0.0] * 20])
def test_stuck_timer_is_flagged(samples: list[float]) -> None:
    assert "stuck" in check(samples).flags


@pytest.mark.parametrize(("quantum", "flags"), [(0.05, ("coarse",)), (0.01, ("stuck",)), (0.0, ("stuck",))])
def test_samples_that_a_coarse_timer_cannot_tell_apart_are_no_stuck_timer(
    quantum: float, flags: tuple[str, ...]
) -> None:
    assert check([2.0] * 10, quantum).flags == flags


def test_impossible_values_are_flagged_and_the_rest_is_judged() -> None:
    values = 1e-3 * np.exp(noise(1, 100))
    values[[3, 50, 51]] = [np.nan, -1e-3, np.inf]
    result = check(values)
    assert result.flags == ("invalid",)
    assert result.invalid == 3
    assert result.drift is not None


def test_coarse_timer_is_flagged_with_its_step() -> None:
    result = check(np.round(5 * np.exp(noise(2, 100, sd=0.1)) / 0.5) * 0.5)
    assert result.flags == ("coarse",)
    assert result.step == pytest.approx(0.5)


def timed(
    seed: int, n: int, step: float, latency: float, *, outliers: float = 0.0, jitter: float = 0.0
) -> NDArray[np.float64]:
    """Samples in seconds of what takes about ``latency`` steps of a clock and begins at any moment."""
    generator = np.random.default_rng([seed, n])
    times = latency * np.exp(0.003 * generator.standard_normal(n))
    times = np.where(generator.random(n) < outliers, times * generator.uniform(1.2, 4, n), times)
    ticks = np.floor(times + generator.random(n)) * step
    return np.asarray(np.round(1e9 * (ticks + jitter * generator.integers(-1, 2, n))) / 1e9)


@pytest.mark.parametrize("jitter", [0.0, 1e-9])
@pytest.mark.parametrize("outliers", [0.0, 0.05])
@pytest.mark.parametrize("step", [1e-7, 5e-7, 1e-6])
def test_a_clocks_step_is_told_whatever_outliers_and_jitter_there_are(
    step: float, outliers: float, jitter: float
) -> None:
    found = []
    for seed in range(100):
        samples = timed(seed, 30, step, 20.4, outliers=outliers, jitter=jitter)
        result = check(samples, jitter=JITTER)
        found.append("coarse" in result.flags and result.step == pytest.approx(step, rel=0.01))
    assert np.mean(found) >= 0.95


def test_few_samples_never_tell_of_a_step_below_the_clocks_and_seldom_of_a_larger_one() -> None:
    """Nine in ten samples are of one length here, so that differences alone tell of outliers."""
    found = [clock_step(timed(seed, 10, 1e-6, 12.02, outliers=0.1), JITTER) for seed in range(300)]
    known = np.array([step for step in found if step is not None]) * 1e6
    assert known.size > 150
    assert known.min() > 0.99
    assert np.mean(known < 1.01) > 0.7


@pytest.mark.parametrize(
    ("samples", "step"),
    [
        ([10e-6] * 9 + [13e-6], 1e-6),
        ([10e-6] * 9 + [15e-6], 5e-6),  # nothing tells that it is less
        ([10e-6] * 8 + [12e-6, 1.000005], 2e-6),  # that is too far away to tell of anything
        ([10e-6] * 10, None),
    ],
)
def test_an_outlier_is_a_multiple_of_the_step_too(samples: list[float], step: float | None) -> None:
    assert clock_step(samples, JITTER) == (step and pytest.approx(step))


@pytest.mark.parametrize("latency", [20.0, 20.5, 60.2])
def test_a_clock_whose_step_is_no_whole_number_of_nanoseconds_is_coarse_and_has_no_modes(latency: float) -> None:
    """A counter of 24 MHz, of which each reading is told in whole nanoseconds."""
    step = 1 / 24e6

    def told(ticks: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.floor(np.floor(ticks) * step * 1e9 + 1e-6)

    for seed in range(50):
        generator = np.random.default_rng(seed)
        start = 1e7 * generator.random(30)
        length = latency * np.exp(0.003 * generator.standard_normal(30))
        samples = 1e-9 * (told(start + length) - told(start))
        result = check(samples, step, JITTER)
        assert "coarse" in result.flags
        assert not {"bimodal", "outliers"} & set(result.flags)
        assert result.step is None or result.step == pytest.approx(step, abs=2 * JITTER)


def test_what_differs_by_jitter_alone_tells_no_step() -> None:
    samples = [2.000e-6] * 6 + [2.001e-6] * 4
    assert clock_step(samples, JITTER) is None
    assert "coarse" in check(samples, 1 / 24e6, JITTER).flags
    assert "coarse" not in check(samples, 1e-9, JITTER).flags


@pytest.mark.parametrize("n", [10, 12, 30, 200])
@pytest.mark.parametrize("sd", [0.001, 0.01, 0.05])
def test_a_fine_clock_is_not_called_coarse(n: int, sd: float) -> None:
    """Samples of 20 µs on a clock that tells nanoseconds, some of them twice or three times as long."""
    for seed in range(100):
        generator = np.random.default_rng([seed, n])
        times = 20e-6 * np.exp(noise(seed, n, sd=sd)) * np.where(generator.random(n) < 0.1, 2.3, 1.0)
        result = check(np.round(1e9 * times) / 1e9, jitter=JITTER)
        assert "coarse" not in result.flags
        assert result.step is not None


def test_fine_steps_are_neither_coarse_nor_outliers() -> None:
    """Most samples equal, the rest one step of 0.5 % away: quartiles coincide, and still nothing is far out."""
    values = np.where(np.random.default_rng(0).random(200) < 0.25, 1.005, 1.0)
    assert check(values).flags == ()


@pytest.mark.parametrize("n", [60, 300, 2000])
@pytest.mark.parametrize("rho", [0.0, 0.5])
@pytest.mark.parametrize("shape", ["ramp up", "ramp down", "quadratic", "warm-up"])
def test_planted_drift_is_flagged(n: int, rho: float, shape: str) -> None:
    at = np.linspace(0, 1, n)
    planted = {"ramp up": 0.1 * at, "ramp down": -0.1 * at, "quadratic": 0.15 * at**2, "warm-up": np.exp(-4 * at)}
    logs = planted[shape] + noise(3, n, rho=rho)
    result = check(np.exp(logs))
    assert "drift" in result.flags
    assert result.drift is not None
    assert np.sign(result.drift.change) == np.sign(planted[shape][-1] - planted[shape][0])


def test_planted_step_is_flagged_as_a_rule() -> None:
    result = [
        "drift" in check(np.exp(noise(seed, 300, sd=0.005) + 0.03 * (np.arange(300) > 150))).flags
        for seed in range(100)
    ]
    assert np.mean(result) > 0.8


def test_short_series_can_drift_too() -> None:
    assert "drift" in check(1 + 0.05 * np.arange(14)).flags
    assert trend(np.arange(11.0)) is None, "eleven samples are too few"


@pytest.mark.parametrize(
    ("n", "rho"), [(14, 0.0), (29, 0.0), (40, 0.0), (40, 0.5), (200, 0.0), (200, 0.5), (200, 0.8), (1000, 0.9)]
)
def test_noise_drifts_no_more_often_than_alpha(n: int, rho: float) -> None:
    """Whatever the size of the change: the minimum drift would only lower the rate."""
    trials = 1500
    alarms = 0
    for seed in range(trials):
        result = trend(noise(seed, n, rho=rho))
        alarms += result is not None and result.p_value <= DRIFT_ALPHA
    assert alarms <= binom.ppf(0.999, trials, DRIFT_ALPHA)


def test_kendall_is_scipys_exact_test() -> None:
    generator = np.random.default_rng(5)
    for n in (6, 9, 14, 20):
        values = generator.standard_normal(n) + 0.1 * np.arange(n)
        expected = kendalltau(np.arange(n), values, method="exact").pvalue
        assert _kendall(values) == pytest.approx(expected, rel=1e-9)
    assert _kendall(np.zeros(8)) == 1.0


def test_outliers_are_counted_by_side_and_flagged_when_many() -> None:
    values = np.exp(noise(6, 100))
    values[[5, 60]] = [5.0, 0.1]
    assert check(values).outliers == (1, 1)
    assert "outliers" not in check(values).flags
    values[10:90:10] = 3.0
    assert "outliers" in check(values).flags


def test_two_modes_are_hinted_at_and_one_is_not() -> None:
    generator = np.random.default_rng(7)
    slow = generator.random(200) < 0.4
    assert check(np.exp(noise(7, 200) + 0.1 * slow)).flags == ("bimodal",)
    for logs in (noise(8, 200), 0.05 * generator.exponential(size=200), 0.1 * generator.random(200)):
        assert "bimodal" not in check(np.exp(logs)).flags


def test_repeating_samples_are_flagged() -> None:
    result = check(np.exp(noise(9, 60, rho=0.97)))
    assert "correlated" in result.flags
    assert (result.autocorrelation or 0) > 0.7


@pytest.mark.parametrize("rho", [0.0, 0.5, 0.8])
def test_autocorrelation_time_is_that_of_an_ar1(rho: float) -> None:
    result = autocorrelation_time(noise(10, 100_000, rho=rho))
    assert result == pytest.approx((1 + rho) / (1 - rho), rel=0.1)


@given(st.lists(st.floats(allow_nan=True, allow_infinity=True), max_size=60))
def test_any_series_is_checked_without_complaint(samples: list[float]) -> None:
    result = check(samples)
    assert result.samples == len(samples)
    good = sum(np.isfinite(value) and value >= 0 for value in samples)
    assert result.invalid == len(samples) - good
    assert ("invalid" in result.flags) == (good < len(samples))


@pytest.mark.parametrize(
    ("n", "rho", "least"), [(20, 0.0, 0.93), (50, 0.0, 0.93), (200, 0.5, 0.93), (1000, 0.8, 0.92)]
)
def test_precision_covers_the_median(n: int, rho: float, least: float) -> None:
    trials = 1500
    hits = 0
    for seed in range(trials):
        result = precision(np.exp(noise(seed, n, rho=rho)))
        hits += result.low is not None and result.high is not None and result.low <= 1 <= result.high
    assert least <= hits / trials <= 0.985


def test_sampling_stops_sooner_when_quieter_and_later_when_correlated() -> None:
    def samples_needed(rho: float, sd: float) -> int:
        needed = []
        for seed in range(40):
            values = np.exp(noise(seed, 4000, rho=rho, sd=sd))
            needed.append(next(n for n in range(10, 4001, 10) if n == 4000 or precision(values[:n]).reached))
        return int(np.median(needed))

    quiet, noisy, correlated = samples_needed(0, 0.01), samples_needed(0, 0.08), samples_needed(0.8, 0.08)
    assert quiet <= 20
    assert quiet < noisy
    assert 3 * noisy < correlated


def test_stopped_median_is_within_the_target() -> None:
    trials = 400
    hits = 0
    for seed in range(trials):
        values = np.exp(noise(seed, 3000, sd=0.05))
        stop = next(n for n in range(10, 3001, 5) if precision(values[:n]).reached)
        hits += abs(precision(values[:stop]).median - 1) <= 0.02
    assert hits / trials >= 0.93


def test_drifting_samples_are_not_known() -> None:
    values = np.exp(0.3 * np.linspace(0, 1, 400) + noise(11, 400))
    assert not precision(values).reached


def test_equal_samples_are_known_and_few_are_not() -> None:
    assert precision([3.0] * 10).reached
    assert not precision([3.0] * 9).reached
    assert not precision([3.0] * 50, least=100).reached
    short = precision([1.0, 1.0001])
    assert (short.low, short.high, short.reached) == (None, None, False)
    with pytest.raises(ValueError, match="no sample"):
        precision([])
