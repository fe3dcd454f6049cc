"""A fleet: intervals hold the truth over devices and not only over rounds, and only who is odd is named.

``NIFFBENCH_TESTS_FLEETS=2000`` simulates as many fleets of every kind, where CI takes a few.
"""

from __future__ import annotations

import os
from collections.abc import Sequence

import numpy as np
import pytest
from numpy.typing import NDArray

from niffbench.stats.fleet import TRIFLING, Shift, replicates, shifts
from niffbench.stats.intervals import median_of_rounds, ratio

ASKED = os.environ.get("NIFFBENCH_TESTS_FLEETS")
TRIALS = int(ASKED or 300)

EVEN, UNEVEN, PAIR = [4] * 4, [8, 2, 2, 1, 1], [4, 4]
Floats = NDArray[np.float64]


def nested(generator: np.random.Generator, rounds: Sequence[int], between: float, within: float) -> list[Floats]:
    """The logs of each member's rounds; ``between`` members and ``within`` one, standard deviations."""
    return [between * generator.standard_normal() + within * generator.standard_normal(n) for n in rounds]


def series(logs: Sequence[Floats]) -> tuple[dict[int, float], dict[int, int]]:
    """Values by round, and whose each round is."""
    flat = [(member, value) for member, values in enumerate(logs) for value in np.exp(values).tolist()]
    return {n: value for n, (_, value) in enumerate(flat)}, {n: member for n, (member, _) in enumerate(flat)}


@pytest.mark.parametrize("rounds", [EVEN, UNEVEN, PAIR, [1] * 8, [3] * 12], ids=str)
@pytest.mark.parametrize("between", [0.0, 0.005, 0.03])
def test_an_interval_holds_what_the_next_device_would_be_drawn_around(
    rounds: Sequence[int], between: float
) -> None:
    """Of one value, and of the ratio of two operators whose devices differ in it, too."""
    generator = np.random.default_rng([len(rounds), round(1e4 * between)])
    hits = ratio_hits = 0
    for _ in range(TRIALS):
        shared = nested(generator, rounds, between, 0.01)
        own = nested(generator, rounds, between / 3, 0.005)
        base, members = series(shared)
        other, _ = series([one + two + np.log(1.2) for one, two in zip(shared, own, strict=True)])
        value = median_of_rounds(list(replicates([base], [members])[0].values()))
        sides = replicates([base, other], [members, members])
        relative = ratio(*(list(side.values()) for side in sides), paired=True)
        hits += not value.excludes(1.0)
        ratio_hits += not relative.excludes(1.2)
    # Three standard errors below what is promised; above it nobody is hurt.
    least = 0.95 - 3 * (0.95 * 0.05 / TRIALS) ** 0.5
    assert min(hits, ratio_hits) / TRIALS >= least


def test_rounds_taken_for_devices_would_hold_it_far_too_rarely() -> None:
    generator = np.random.default_rng(1)
    runs = [list(series(nested(generator, EVEN, 0.03, 0.01))[0].values()) for _ in range(TRIALS)]
    assert sum(not median_of_rounds(run).excludes(1.0) for run in runs) / TRIALS < 0.75


def test_what_one_device_measured_stays_as_it_is() -> None:
    rounds = {0: 3.0, 4: 1.0, 7: 2.0}
    assert replicates([rounds], [{}]) == [rounds]
    assert replicates([rounds], [dict.fromkeys(rounds, "a")]) == [rounds]
    several = replicates([rounds, {4: 5.0}], [{0: "a", 4: "b", 7: "a"}, {4: "b"}])
    assert several == [{0: 2.5, 1: 1.0}, {1: 5.0}]


def fleet(
    generator: np.random.Generator,
    members: int,
    *,
    between: float = 0.01,
    cases: int = 20,
    rounds: int = 2,
    slower: dict[int, float] | None = None,
    outliers: float = 0.0,
    measured: float = 1.0,
) -> list[tuple[int, int, str, float]]:
    """A fleet whose members differ by ``between``, some of them ``slower``; rounds and cases have noise, too.

    Args:
        outliers: share of the values that are 1.5 times what they should be.
        measured: share of the cases that a member measures in a round.
    """
    offsets = between * generator.standard_normal(members)
    for member, factor in (slower or {}).items():
        offsets[member] = np.log(factor)
    scales = np.exp(generator.uniform(-9, -3, cases))
    values = []
    for member in range(members):
        for number in range(rounds):
            shift = offsets[member] + 0.004 * generator.standard_normal()
            logs = shift + 0.01 * generator.standard_normal(cases)
            logs += np.log(1.5) * (generator.random(cases) < outliers)
            for case in np.flatnonzero(generator.random(cases) < measured):
                value = float(scales[case] * np.exp(logs[case]))
                values.append((member, rounds * member + number, f"c{case}", value))
    return values


def named(result: dict[int, Shift]) -> list[int]:
    return [member for member, shift in result.items() if shift.is_straggler]


@pytest.mark.parametrize(
    ("members", "between", "measured", "fleets"),
    [(8, 0.02, 0.4, 200), (2, 0.02, 1.0, 40), (3, 0.02, 1.0, 100), (8, 0.0, 1.0, 40), (16, 0.01, 0.3, 40)],
)
def test_of_fleets_without_a_straggler_few_have_one_named(
    members: int, between: float, measured: float, fleets: int
) -> None:
    """In 5 % of them at most; a binomial share of so many fleets may be two standard errors above."""
    generator = np.random.default_rng([members, round(1e4 * between), round(10 * measured)])
    fleets = int(ASKED or fleets)
    drawn = (
        fleet(generator, members, between=between, measured=measured, cases=10, outliers=0.02)
        for _ in range(fleets)
    )
    share = sum(bool(named(shifts(one))) for one in drawn) / fleets
    assert share <= 0.05 + 2 * (0.05 * 0.95 / fleets) ** 0.5


def test_a_straggler_is_named_with_how_much_slower_it_is() -> None:
    generator = np.random.default_rng(3)
    times = hits = 0
    for _ in range(50):
        result = shifts(fleet(generator, 8, between=0.005, slower={3: 1.061}, outliers=0.1))
        times += named(result) == [3]
        low, high = result[3].ratio.low, result[3].ratio.high
        assert low is not None
        assert high is not None
        # The fellows are not exactly alike: what is held is how far they are from it on average.
        hits += low <= 1.061 <= high
        assert result[3].fellows == 7
        assert result[3].cases == 20
    assert times >= 48
    assert hits >= 42


def test_it_need_not_be_slower_in_every_case() -> None:
    generator = np.random.default_rng(4)
    values = [
        (member, number, case, value / 1.08 if member == 2 and int(case[1:]) >= 40 else value)
        for member, number, case, value in fleet(generator, 6, between=0.003, cases=60, slower={2: 1.08})
    ]
    shift = shifts(values)[2]
    assert shift.is_straggler
    assert 38 <= shift.slowest_in <= 48
    assert shift.cases == 60


def test_two_that_are_slow_hide_neither_and_are_compared_with_the_others() -> None:
    result = shifts(fleet(np.random.default_rng(5), 9, between=0.004, slower={1: 1.1, 6: 1.11}))
    assert named(result) == [1, 6]
    assert result[1].fellows == result[6].fellows == 7
    assert result[0].fellows == 6
    assert result[1].ratio.estimate == pytest.approx(1.1, abs=0.02)


def test_who_measured_which_cases_moves_nobody() -> None:
    """A member that got the slow cases is not slow; one that is slow is, whatever it got."""
    generator = np.random.default_rng(6)
    values = [
        one
        for one in fleet(generator, 6, between=0.003, cases=30, slower={5: 1.2})
        if (int(one[2][1:]) - 5 * one[0]) % 30 < 14
    ]
    result = shifts(values)
    assert named(result) == [5]
    assert all(result[member].ratio.estimate == pytest.approx(1.0, abs=0.03) for member in range(5))


def test_members_that_share_no_case_are_not_compared() -> None:
    values = [(0, 0, "a", 1.0), (1, 1, "a", 1.1), (2, 2, "b", 9.0), (3, 3, "b", 1.0), (4, 4, "c", 1.0)]
    result = shifts(values)
    assert result.keys() == {0, 1, 2, 3}
    assert result[0].ratio.estimate == pytest.approx(1 / 1.1)
    assert result[3].ratio.estimate == pytest.approx(1 / 9)
    assert result[3].ratio.low is None
    assert named(result) == []
    assert shifts([]) == {}
    assert shifts([(0, 0, "a", 1.0), (0, 1, "a", 1.0)]) == {}


@pytest.mark.parametrize(("factor", "expected"), [(1.05, []), (1.25, [1])])
def test_of_two_only_a_large_difference_makes_one_the_straggler(factor: float, expected: list[int]) -> None:
    result = shifts(fleet(np.random.default_rng(7), 2, rounds=4, slower={0: 1.0, 1: factor}))
    assert named(result) == expected
    assert result[1].ratio.excludes(1.0)
    assert (result[0].cases, result[0].slowest_in) == (20, 0)
    assert (result[1].cases, result[1].slowest_in) == (20, 20)


def test_what_nobody_would_mind_is_not_named() -> None:
    values = [
        (member, 2 * member + number, f"c{case}", 1.0 + 1e-4 * (member % 3) + (TRIFLING / 2) * (member == 4))
        for member in range(8)
        for number in range(2)
        for case in range(10)
    ]
    assert named(shifts(values)) == []
