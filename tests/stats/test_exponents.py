"""Exponents: planted powers are found, their intervals cover, and a size effect is not read as scaling."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from niffbench.stats.exponents import scaling, size_class

FRIENDLY = [14, 28, 32, 56, 64, 112, 128]


def measured(
    generator: np.random.Generator,
    costs: NDArray[np.float64],
    rounds: int,
    *,
    sd: float = 0.01,
    machine: float = 0.05,
) -> list[NDArray[np.float64]]:
    """Round medians per size: one factor a round that all sizes share, and noise of each."""
    shared = machine * generator.standard_normal(rounds)
    return [cost * np.exp(shared + sd * generator.standard_normal(rounds)) for cost in costs]


def test_size_classes_are_those_of_fft_libraries() -> None:
    assert [size_class(n) for n in (1, 7, 56, 60, 224, 512)] == ["friendly"] * 6
    assert [size_class(n) for n in (11, 22, 97, 127, 254)] == ["large prime"] * 5
    assert size_class((56, 97)) == "large prime"
    with pytest.raises(ValueError, match="prime factors"):
        size_class(0)


@pytest.mark.parametrize(("rounds", "shared"), [(2, True), (3, True), (8, True), (3, False), (8, False)])
def test_slope_intervals_cover(rounds: int, shared: bool) -> None:
    generator = np.random.default_rng(rounds)
    trials, hits, local, locals_seen = 1000, 0, 0, 0
    costs = 1e-6 * np.array(FRIENDLY, dtype=float) ** 2.1
    for _ in range(trials):
        result = scaling(
            FRIENDLY, measured(generator, costs, rounds, machine=0.05 if shared else 0.0), shared=shared
        )
        hits += not result.overall.slope.excludes(2.1)
        local += sum(not step.slope.excludes(2.1) for step in result.steps)
        locals_seen += len(result.steps)
    assert 0.93 <= hits / trials <= 0.97
    assert 0.93 <= local / locals_seen <= 0.97


def test_theory_is_the_same_slope_through_the_theoretical_costs() -> None:
    sizes = np.array(FRIENDLY, dtype=float)
    theory = 5 * sizes**2 * np.log2(sizes**2)
    rounds = [[3e-9 * cost] * 3 for cost in theory]
    by_array = scaling(FRIENDLY, rounds, theory=theory)
    by_call = scaling(FRIENDLY, rounds, theory=lambda n: float(5 * n**2 * np.log2(n**2)))
    assert by_array == by_call
    assert by_array.overall.theory == pytest.approx(by_array.overall.slope.estimate, abs=1e-9)
    assert by_array.overall.theory is not None
    assert 2.1 < by_array.overall.theory < 2.4, "N² log N is steeper than N²"
    for step in by_array.steps:
        assert step.theory == pytest.approx(step.slope.estimate, abs=1e-9)
    assert by_array.steps[0].theory > by_array.steps[-1].theory > 2  # type: ignore[operator]
    assert by_array.overall.misfit is not None
    assert 0 < by_array.overall.misfit < 0.1


def test_large_primes_are_not_read_as_scaling() -> None:
    """Primes cost five times as much: friendly sizes still scale as N², and the factor is named."""
    sizes = [16, 32, 61, 64, 97, 112, 127, 128, 251, 256]
    prime = np.array([size_class(n) == "large prime" for n in sizes])
    costs = np.array(sizes, dtype=float) ** 2 * np.where(prime, 5.0, 1.0)
    result = scaling(sizes, measured(np.random.default_rng(0), costs, 5), lengths=sizes)
    assert not result.overall.slope.excludes(2.0)
    assert result.overall.slope.estimate == pytest.approx(2.0, abs=0.02)
    assert result.overall.sizes == 6
    assert [step.start for step in result.steps] == [16, 32, 64, 112, 128]
    assert result.large_prime is not None
    assert result.large_prime.slope.estimate == pytest.approx(2.0, abs=0.1)
    assert [penalty.size for penalty in result.penalties] == [61, 97, 127, 251]
    assert [penalty.largest_prime_factor for penalty in result.penalties] == [61, 97, 127, 251]
    for penalty in result.penalties:
        assert penalty.factor.estimate == pytest.approx(5.0, rel=0.05)
        assert penalty.factor.excludes(1.0)
    mixed = scaling(sizes, measured(np.random.default_rng(0), costs, 5))
    assert mixed.overall.slope.excludes(2.0), "without the lengths the primes bend the slope"
    assert mixed.large_prime is None
    assert mixed.penalties == ()


def test_penalty_covers_and_needs_neighbours() -> None:
    generator = np.random.default_rng(3)
    sizes, trials, hits = [96, 97, 128], 1500, 0
    costs = np.array(sizes, dtype=float) ** 2 * np.array([1.0, 4.0, 1.0])
    for _ in range(trials):
        (penalty,) = scaling(sizes, measured(generator, costs, 4), lengths=sizes).penalties
        hits += not penalty.factor.excludes(4.0)
    assert 0.93 <= hits / trials <= 0.97
    (outside,) = scaling([64, 96, 97], [[1.0, 1.1]] * 3, lengths=[64, 96, 97]).penalties
    assert outside.factor.estimate is None
    assert "both sides" in (outside.factor.reason or "")


def test_too_few_points_give_a_reason() -> None:
    two = scaling([7, 14], [[1.0, 1.1], [4.0, 4.2]])
    assert two.overall.slope.estimate is None
    assert two.overall.slope.reason == "2 sizes measured, at least 3 are needed"
    assert two.steps[0].slope.estimate == pytest.approx(2.0, abs=0.1)
    none = scaling([7, 14, 28], [[None], [float("nan")], []])
    assert none.overall.slope.reason == "0 sizes measured, at least 3 are needed"
    assert none.overall.start is None
    assert none.steps == ()
    primes = scaling([97, 128], [[1.0], [1.0]], lengths=[97, 128])
    assert primes.large_prime is not None
    assert "1 size measured" in (primes.large_prime.slope.reason or "")


def test_one_round_gives_slopes_without_intervals() -> None:
    result = scaling(FRIENDLY, [[n**1.5] for n in FRIENDLY])
    assert result.overall.slope.estimate == pytest.approx(1.5)
    assert result.overall.slope.low is None
    assert "one round" in (result.overall.slope.reason or "")


def test_exact_costs_need_one_number_a_size() -> None:
    result = scaling(FRIENDLY, [[2 * n**2] for n in FRIENDLY], exact=True)
    assert result.overall.slope.low == result.overall.slope.high == pytest.approx(2.0)
    assert result.overall.slope.excludes(1.9)
    assert result.overall.misfit == pytest.approx(0.0, abs=1e-9)


def test_sizes_that_failed_and_rounds_with_holes_are_left_out() -> None:
    rounds = [[n**2.0, 1.1 * n**2.0, 0.9 * n**2.0] for n in FRIENDLY]
    holed: list[list[float | None]] = [list(row) for row in rounds]
    holed[0][1] = None  # one round lost this size: that round is not used
    holed[-1] = [None, None, None]  # out of memory
    result = scaling(FRIENDLY[::-1], holed[::-1])
    assert result.overall.end == 112
    assert result.overall.slope.rounds == 2
    assert result.overall.slope.estimate == pytest.approx(2.0)


def test_nothing_positive_has_a_reason_and_bad_axes_raise() -> None:
    zero = scaling([1, 2, 4], [[0.0, 0.0], [1.0, 1.0], [2.0, 2.0]])
    assert "zero or negative" in (zero.overall.slope.reason or "")
    with pytest.raises(ValueError, match="different"):
        scaling([7, 7], [[1.0], [1.0]])
    with pytest.raises(ValueError, match="3 sizes"):
        scaling([7, 8, 9], [[1.0], [1.0]])
    with pytest.raises(ValueError, match="theoretical"):
        scaling([7, 8, 9], [[1.0]] * 3, theory=[1.0])
