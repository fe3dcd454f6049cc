"""Power: predictions agree with simulation of the rule itself, and verdicts on machines with their noise."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import nct
from scipy.stats import t as student

from niffbench.stats.contrasts import contrast, in_order
from niffbench.stats.decision import judge
from niffbench.stats.power import (
    Noise,
    detection,
    fitness,
    noise,
    paired_noise,
    rounds_needed,
    smallest_effect,
)


@pytest.mark.parametrize(
    ("n", "sd", "effect", "cases", "min_effect"),
    [
        (5, 0.005, 0.03, 60, 0.0),
        (8, 0.01, 0.03, 60, 0.0),
        (8, 0.02, 0.07, 60, 0.03),
        (5, 0.01, 0.035, 1, 0.03),
        (20, 0.02, 0.04, 300, 0.03),
    ],
)
def test_detection_is_what_the_rule_does(n: int, sd: float, effect: float, cases: int, min_effect: float) -> None:
    generator = np.random.default_rng(n)
    trials = 40_000
    groups = [sd * generator.standard_normal((trials, 1, n)) for _ in range(2)]
    # The one changed case of many is tested at alpha / cases by Holm.
    result = judge(
        contrast([groups[0], groups[1] + np.log1p(effect)], (-1.0, 1.0), shared=False),
        alpha=0.01 / cases,
        min_effect=min_effect,
    )
    predicted = detection(effect, sd, n, cases=cases, min_effect=min_effect)
    assert 0.05 < predicted < 0.999
    assert result.higher.mean() == pytest.approx(predicted, abs=0.01)


def test_paired_detection_is_what_the_rule_does() -> None:
    generator = np.random.default_rng(0)
    order = np.arange(10) % 2 == 0
    logs = 0.02 * generator.standard_normal((40_000, 1, 10)) + np.log(1.05) + np.where(order, 0.1, -0.1)
    result = judge(in_order(logs, order), alpha=0.01, min_effect=0.03)
    assert result.higher.mean() == pytest.approx(detection(0.05, 0.02, 10, paired=True), abs=0.01)


def test_without_a_minimum_effect_pairs_follow_the_noncentral_t() -> None:
    shift = np.log1p(0.02) / (0.01 / np.sqrt(10))
    expected = nct.sf(student.isf(0.005, 8), 8, shift)
    assert detection(0.02, 0.01, 10, min_effect=0.0, paired=True) == pytest.approx(expected, abs=2e-3)


def test_detection_grows_with_effect_and_rounds_and_falls_with_noise() -> None:
    effects = [detection(effect, 0.01, 8, cases=60) for effect in (0.03, 0.04, 0.06, 0.1)]
    rounds = [detection(0.05, 0.02, n, cases=60) for n in (5, 8, 16, 40)]
    noises = [detection(0.05, sd, 8, cases=60) for sd in (0.03, 0.02, 0.01, 0.0)]
    for values in (effects, rounds, noises):
        assert values == sorted(values)
        assert values[0] < values[-1]


def test_an_effect_of_the_minimum_is_found_half_of_the_time() -> None:
    assert detection(0.03, 0.002, 30) == pytest.approx(0.5, abs=0.01)
    assert rounds_needed(0.03, 0.002) is None
    assert detection(0.03, 0.0, 8) == 1.0
    assert detection(0.029, 0.0, 8) == 0.0
    assert smallest_effect(0.0, 8) == 0.03


def test_too_few_rounds_detect_nothing() -> None:
    assert detection(1.0, 0.001, 4) == 0.0
    assert smallest_effect(0.001, 4) is None
    assert detection(1.0, 0.001, 7, paired=True) == 0.0
    assert detection(1.0, 0.001, 8, paired=True) > 0.99


@pytest.mark.parametrize("paired", [True, False])
@pytest.mark.parametrize("sd", [0.002, 0.01, 0.03])
def test_smallest_effect_and_rounds_needed_agree(sd: float, paired: bool) -> None:
    effect = smallest_effect(sd, 12, cases=60, paired=paired)
    assert effect is not None
    assert detection(effect, sd, 12, cases=60, paired=paired) == pytest.approx(0.9, abs=1e-3)
    needed = rounds_needed(effect * 1.001, sd, cases=60, paired=paired)
    assert needed is not None
    assert needed <= 12
    assert detection(effect * 1.001, sd, needed, cases=60, paired=paired) >= 0.9
    if needed > (8 if paired else 5):
        assert detection(effect * 1.001, sd, needed - 1, cases=60, paired=paired) < 0.9


def test_rounds_out_of_reach_are_not_counted() -> None:
    assert rounds_needed(0.035, 0.5) is None


def test_noise_is_estimated_without_bias_and_its_interval_covers() -> None:
    generator = np.random.default_rng(1)
    trials, hits, squares = 3000, 0, 0.0
    for _ in range(trials):
        shift = generator.normal()  # between the two sets the machine may change
        result = noise(
            [np.exp(0.01 * generator.standard_normal(5)), np.exp(shift + 0.01 * generator.standard_normal(4))]
        )
        assert result.freedom == 7
        hits += result.low <= 0.01 <= result.high
        squares += result.sd**2
    assert 0.93 <= hits / trials <= 0.97
    assert squares / trials == pytest.approx(1e-4, rel=0.05)


def test_paired_noise_leaves_order_and_lost_pairs_out() -> None:
    generator = np.random.default_rng(2)
    order = [True, False, False, True, True, False, False, True]
    squares, trials = 0.0, 3000
    for _ in range(trials):
        base = np.exp(generator.normal(0, 0.1, 8))
        head = base * np.exp(0.01 * generator.standard_normal(8) + np.where(order, 0.05, -0.05))
        head[2] = np.nan
        result = paired_noise(base, head, order)
        assert (result.freedom, result.paired) == (5, True)
        squares += result.sd**2
    assert squares / trials == pytest.approx(1e-4, rel=0.05)


def test_noise_needs_two_rounds() -> None:
    with pytest.raises(ValueError, match="two rounds"):
        noise([[1.0], [2.0, None]])
    assert noise([[1.0, 1.0]]).sd == 0.0


def test_machines_are_judged_by_what_their_noise_allows() -> None:
    def machine(sd: float, cases: int = 20) -> list[Noise]:
        generator = np.random.default_rng(3)
        return [noise([np.exp(sd * generator.standard_normal(8)) for _ in range(2)]) for _ in range(cases)]

    quiet = fitness(machine(0.003), 8)
    assert quiet.verdict == "fit"
    assert set(quiet.cases) == {"fit"}
    assert all(result.effect is not None and 0.03 < result.effect < 0.05 for result in quiet.detectable)
    assert all(needed == 5 for needed in quiet.needed)
    assert "in 20 of 20 cases" in quiet.reason
    loud = fitness(machine(0.05), 8)
    assert loud.verdict == "unfit"
    assert all(needed is not None and needed > 8 for needed in loud.needed)
    assert fitness(machine(0.01), 8).verdict == "unknown"
    spoiled = fitness([*machine(0.003, 19), *machine(0.1, 1)], 8)
    assert spoiled.verdict == "fit", "one bad case in twenty does not spoil the machine"
    assert spoiled.cases[-1] == "unfit"
    few = fitness(machine(0.003), 4)
    assert few.verdict == "unfit"
    assert few.detectable[0].effect is None
    with pytest.raises(ValueError, match="no case"):
        fitness([], 8)
