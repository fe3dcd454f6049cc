"""Crossovers: planted ones are found with intervals that cover; none is made up."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from niffbench.stats.crossovers import Crossover, crossover
from niffbench.stats.intervals import ONE_ROUND

KERNELS = [3, 5, 7, 11, 15, 21, 31]


def planted(
    generator: np.random.Generator,
    at: float,
    rounds: int,
    *,
    sd: float = 0.02,
    slope: float = 1.0,
    shared: bool = True,
    exclude: int | None = None,
) -> Crossover:
    """A costs as much as B at kernel ``at``; in shared rounds a factor hits all of a round."""
    machine = 0.05 * generator.standard_normal(rounds) if shared else np.zeros(rounds)
    a = [(k / at) ** slope * np.exp(machine + sd * generator.standard_normal(rounds)) for k in KERNELS]
    b = [np.exp(machine + sd * generator.standard_normal(rounds)) for _ in KERNELS]
    return crossover(KERNELS, a, b, shared=shared)


@pytest.mark.parametrize(("rounds", "shared"), [(3, True), (8, True), (5, False)])
def test_interval_covers_the_planted_crossover(rounds: int, shared: bool) -> None:
    generator = np.random.default_rng(rounds)
    trials, found, hits = 1000, 0, 0
    for _ in range(trials):
        at = float(np.exp(generator.uniform(np.log(5), np.log(21))))
        result = planted(generator, at, rounds, shared=shared)
        if result.outcome == "crossover":
            (crossing,) = result.crossings
            assert crossing.low <= crossing.size <= crossing.high
            assert crossing.cheaper_above == "b"
            found += 1
            hits += crossing.low <= at <= crossing.high
    assert found > 0.97 * trials
    assert 0.93 <= hits / found <= 0.975


@pytest.mark.parametrize("rounds", [2, 3, 8])
def test_operators_that_do_not_cross_are_not_said_to(rounds: int) -> None:
    """Identical ones, and A cheaper by a hair: a made-up crossover in at most 5 %."""
    generator = np.random.default_rng(rounds)
    for gap in (0.0, 0.02):
        made_up = 0
        for _ in range(400):
            a = [np.exp(-gap + 0.02 * generator.standard_normal(rounds)) for _ in KERNELS]
            b = [np.exp(0.02 * generator.standard_normal(rounds)) for _ in KERNELS]
            made_up += bool(crossover(KERNELS, a, b).crossings)
        assert made_up <= 0.05 * 400


@pytest.mark.parametrize("rounds", [3, 8])
def test_equal_costs_over_many_sizes_are_not_taken_for_a_crossover(rounds: int) -> None:
    """A is far cheaper at small sizes and exactly as dear at the other fifteen: B is never cheaper."""
    generator = np.random.default_rng(rounds)
    sizes = np.arange(1, 21)
    trials, made_up = 400, 0
    for _ in range(trials):
        a = [np.exp(-1.0 * (n <= 5) + 0.02 * generator.standard_normal(rounds)) for n in sizes]
        b = [np.exp(0.02 * generator.standard_normal(rounds)) for _ in sizes]
        made_up += bool(crossover(sizes.tolist(), a, b).crossings)
    assert made_up <= 0.05 * trials


def test_none_names_who_is_cheaper_throughout() -> None:
    generator = np.random.default_rng(0)
    beyond = planted(generator, 60.0, 5)
    assert (beyond.outcome, beyond.cheaper, beyond.crossings) == ("none", "a", ())
    assert [(part.start, part.end, part.cheaper) for part in beyond.stretches] == [(3.0, 31.0, "a")]
    before = planted(generator, 1.5, 5)
    assert (before.outcome, before.cheaper) == ("none", "b")


def test_undecided_says_where_it_is_decided() -> None:
    """A is cheaper for small kernels; for large ones the noise hides who is."""
    rounds = [[0.5, 0.51, 0.49], [0.7, 0.71, 0.69], [0.9, 1.15, 1.0], [0.9, 1.2, 1.0]]
    found = crossover([3, 5, 7, 9], rounds, [[1.0, 1.01, 0.99]] * 4, shared=False)
    assert (found.outcome, found.cheaper, found.crossings) == ("undecided", None, ())
    assert found.stretches[0].cheaper == "a"
    assert found.stretches[-1].cheaper is None
    assert found.reason == "in part of the range the two cannot be told apart"
    same = crossover([3, 5], [[1.0, 1.1, 0.9]] * 2, [[1.0, 0.9, 1.1]] * 2)
    assert same.reason == "throughout the two cannot be told apart"


def test_several_crossovers_are_all_given() -> None:
    ratios = [0.5, 0.8, 1.5, 2.0, 0.6, 0.5]
    generator = np.random.default_rng(1)
    a = [ratio * np.exp(0.01 * generator.standard_normal(5)) for ratio in ratios]
    found = crossover([1, 2, 4, 8, 16, 32], a, [np.exp(0.01 * generator.standard_normal(5))] * 6)
    assert found.outcome == "several"
    assert [crossing.cheaper_above for crossing in found.crossings] == ["b", "a"]
    assert 2 < found.crossings[0].size < 4
    assert 8 < found.crossings[1].size < 16
    assert [part.cheaper for part in found.stretches] == ["a", None, "b", None, "a"]


def test_one_round_points_but_does_not_claim() -> None:
    found = crossover(KERNELS, [[k**2] for k in KERNELS], [[64.0]] * 7)
    assert (found.outcome, found.crossings, found.reason) == ("undecided", (), ONE_ROUND)
    assert found.estimates == pytest.approx((8.0,))


def test_exact_costs_cross_at_a_point() -> None:
    found = crossover(KERNELS, [[2.0 * k * k] for k in KERNELS], [[128.0]] * 7, exact=True)
    assert found.outcome == "crossover"
    (crossing,) = found.crossings
    assert crossing.size == crossing.low == crossing.high == pytest.approx(8.0)
    at_a_size = crossover([3, 5, 7], [[9], [25], [49]], [[25]] * 3, exact=True)
    assert at_a_size.crossings[0].size == pytest.approx(5.0)
    equal = crossover([3, 5, 7], [[9], [25], [49]], [[9], [25], [49]], exact=True)
    assert equal.outcome == "undecided"


def test_missing_values_and_sizes_are_left_out() -> None:
    generator = np.random.default_rng(2)
    a = [(k / 9) * np.exp(0.01 * generator.standard_normal(5)) for k in KERNELS]
    b = [np.exp(0.01 * generator.standard_normal(5)) for _ in KERNELS]
    holed = [row.copy() for row in a]
    holed[3][1] = np.nan
    assert crossover(KERNELS, holed, b).outcome == "crossover"
    without = [*a[:-1], np.full(5, np.nan)]
    assert crossover(KERNELS, without, b).stretches[-1].end == 21
    assert "1 size measured for both" in (crossover([3, 5], [[1.0], [None]], [[1.0], [1.0]]).reason or "")
    assert "zero or negative" in (crossover([3, 5], [[0.0, 0.0]] * 2, [[1.0, 1.0]] * 2).reason or "")


def test_bad_arguments_raise() -> None:
    with pytest.raises(ValueError, match="different"):
        crossover([3, 3], [[1.0]] * 2, [[1.0]] * 2)
    with pytest.raises(ValueError, match="2 sizes"):
        crossover([3, 5], [[1.0]] * 3, [[1.0]] * 2)
    with pytest.raises(ValueError, match="equally many"):
        crossover([3, 5], [[1.0, 2.0]] * 2, [[1.0]] * 2)


@given(st.integers(0, 10_000), st.integers(1, 5), st.floats(2.0, 40.0), st.booleans())
def test_same_input_same_answer_and_sides_may_be_swapped(seed: int, rounds: int, at: float, shared: bool) -> None:
    generator = np.random.default_rng(seed)
    a = [(k / at) * np.exp(0.1 * generator.standard_normal(rounds)) for k in KERNELS]
    b = [np.exp(0.1 * generator.standard_normal(rounds)) for _ in KERNELS]
    found = crossover(KERNELS, a, b, shared=shared)
    assert crossover(KERNELS[::-1], a[::-1], b[::-1], shared=shared) == found
    swapped = crossover(KERNELS, b, a, shared=shared)
    assert swapped.outcome == found.outcome
    assert [part.size for part in swapped.crossings] == pytest.approx([part.size for part in found.crossings])
    assert {"a": "b", "b": "a", None: None}[found.cheaper] == swapped.cheaper
    if found.stretches:
        assert (found.stretches[0].start, found.stretches[-1].end) == (3, 31)
        for before, after in zip(found.stretches, found.stretches[1:], strict=False):
            assert before.end == after.start
            assert before.cheaper != after.cheaper
