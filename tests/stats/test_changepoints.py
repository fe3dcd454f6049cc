"""Change points: planted steps are found where they are, and noise has none."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binom

from niffbench.stats.changepoints import LEAST_SEGMENT, _partition, change_points


@pytest.mark.parametrize("n", [10, 12, 20, 50, 150])
@pytest.mark.parametrize("heavy", [False, True])
def test_pure_noise_has_no_change(n: int, heavy: bool) -> None:
    """Without a minimum effect, so that the penalty alone must hold the line."""
    generator = np.random.default_rng(n)
    trials = 800
    alarms = 0
    for _ in range(trials):
        logs = generator.standard_t(4, size=n) if heavy else generator.standard_normal(n)
        alarms += bool(change_points(np.exp(0.01 * logs), min_effect=0.0).changes)
    assert alarms <= binom.ppf(0.999, trials, 0.01)


@pytest.mark.parametrize(
    ("n", "slow"),
    [(12, 0.3), (12, 0.5), (24, 0.1), (24, 0.2), (24, 0.3), (24, 0.5), (40, 0.3), (60, 0.3), (60, 0.5)],
)
def test_runs_in_either_of_two_modes_are_no_changes(n: int, slow: float) -> None:
    """Of a suite of 60 cases; as when two machines share a history, or a plan is chosen by timing."""
    generator = np.random.default_rng(n)
    trials = 200
    alarms = 0
    for _ in range(trials):
        logs = 0.005 * generator.standard_normal(n) + 0.1 * (generator.random(n) < slow)
        alarms += bool(change_points(np.exp(logs), alpha=0.01 / 60).changes)
    assert alarms / trials <= 0.1


def test_a_step_is_seen_in_a_short_history_of_a_suite() -> None:
    generator = np.random.default_rng(0)
    step = 0.05 * (np.arange(12) >= 6)
    noise = 0.005 * generator.standard_normal((200, 12))
    seen = [change_points(np.exp(logs + step), alpha=0.01 / 60).changes for logs in noise]
    assert np.mean([len(changes) == 1 and changes[0].run == 6 for changes in seen]) >= 0.7


@pytest.mark.parametrize(
    ("n", "odd", "step", "least"), [(12, 1, 0.3, 0.9), (15, 2, 0.3, 0.75), (20, 2, 0.1, 0.75)]
)
def test_a_step_is_seen_in_a_short_history_with_odd_runs(n: int, odd: int, step: float, least: float) -> None:
    """Of a suite of 60 cases, at 1 % of noise."""
    generator = np.random.default_rng(n)
    trials = 200
    seen = 0
    for _ in range(trials):
        logs = 0.01 * generator.standard_normal(n) + np.log1p(step) * (np.arange(n) >= n // 2)
        logs[generator.choice(n, odd, replace=False)] += np.log(1.4)
        changes = change_points(np.exp(logs), alpha=0.01 / 60).changes
        seen += any(abs(change.run - n // 2) <= 1 for change in changes)
    assert seen / trials >= least


@pytest.mark.parametrize(
    ("runs", "steps"),
    [
        ([100] * 2 + [300] + [100] * 3 + [200] * 4, [6]),
        ([100] * 4 + [130] + [100] * 3 + [110] * 4, [8]),
        ([100] * 4 + [130] + [100] * 4 + [110] * 4, [9]),
        ([100] * 3 + [120] * 3 + [100] * 3 + [120] * 3, [3, 6, 9]),
        ([100] * 5 + [120] * 4 + [100] * 4, [5, 9]),
    ],
)
def test_bytes_that_change_for_three_runs_or_more_are_steps_whatever_else_changes(
    runs: list[float], steps: list[int]
) -> None:
    assert [change.run for change in change_points(runs, alpha=0.01 / 60).changes] == steps


@pytest.mark.parametrize(
    ("n", "at", "step", "sd"),
    [
        (20, 10, 0.1, 0.01),
        (20, 17, 0.1, 0.01),
        (40, 20, -0.05, 0.01),
        (100, 50, 0.06, 0.02),
        (100, 97, 0.15, 0.02),
    ],
)
def test_planted_step_is_found_in_its_place(n: int, at: int, step: float, sd: float) -> None:
    generator = np.random.default_rng(n + at)
    trials = 200
    right = 0
    for _ in range(trials):
        logs = sd * generator.standard_normal(n)
        logs[at:] += np.log1p(step)
        logs[generator.integers(n)] += 0.5  # one run on a busy machine
        result = change_points(3e-3 * np.exp(logs))
        right += len(result.changes) == 1 and abs(result.changes[0].run - at) <= 1
    assert right / trials >= 0.93


def test_two_steps_make_three_segments() -> None:
    logs = 0.005 * np.random.default_rng(0).standard_normal(60)
    logs[20:40] += np.log(1.2)
    result = change_points(2.0 * np.exp(logs))
    assert [(segment.start, segment.end) for segment in result.segments] == [(0, 20), (20, 40), (40, 60)]
    assert [segment.level for segment in result.segments] == pytest.approx([2.0, 2.4, 2.0], rel=0.01)
    assert [change.run for change in result.changes] == [20, 40]
    assert result.changes[0].ratio.estimate == pytest.approx(1.2, rel=0.01)
    assert result.changes[0].ratio.excludes(1.0)
    assert result.sd == pytest.approx(0.005, rel=0.5)


def test_a_ramp_is_no_noise() -> None:
    """20 % over the fewest runs, at 1 % of noise."""
    generator = np.random.default_rng(5)
    ramp = np.linspace(0, np.log(1.2), 10)
    trials = 100
    result = [change_points(np.exp(ramp + 0.01 * generator.standard_normal(10))).changes for _ in range(trials)]
    assert sum(any(change.ratio.estimate > 1.03 for change in changes) for changes in result) / trials >= 0.8


def test_small_changes_are_joined() -> None:
    logs = 0.001 * np.random.default_rng(1).standard_normal(60)
    logs[30:] += np.log(1.015)
    assert change_points(np.exp(logs)).changes == ()
    assert [change.run for change in change_points(np.exp(logs), min_effect=0.01).changes] == [30]


def test_deterministic_history_is_cut_exactly() -> None:
    result = change_points([5.0] * 10 + [6.0] * 5)
    assert [change.run for change in result.changes] == [10]
    assert change_points([5.0] * 15).changes == ()


def test_runs_without_a_value_keep_their_index() -> None:
    result = change_points([1.0, None, 1.0, 1.0, 1.0, float("nan"), 1.0, 2.0, 2.0, None, 2.0, 2.0, 2.0])
    assert [change.run for change in result.changes] == [7]
    assert [(segment.start, segment.end) for segment in result.segments] == [(0, 7), (7, 13)]


def test_short_or_impossible_histories_have_a_reason() -> None:
    short = change_points([1.0] * 9)
    assert (short.segments, short.changes, short.reason) == ((), (), "9 runs, at least 10 are needed")
    assert "zero or negative" in (change_points([0.0] * 10).reason or "")


@settings(max_examples=30)
@given(st.lists(st.floats(-3, 3), min_size=6, max_size=12), st.floats(0.01, 20))
def test_partition_is_the_cheapest_of_all(values: list[float], penalty: float) -> None:
    logs = np.array(values)

    def cost(cuts: tuple[int, ...]) -> float:
        bounds = [0, *cuts, logs.size]
        parts = [logs[start:end] for start, end in itertools.pairwise(bounds)]
        return sum(float(((part - part.mean()) ** 2).sum()) for part in parts) + penalty * len(cuts)

    legal = (
        cuts
        for k in range(logs.size // LEAST_SEGMENT)
        for cuts in itertools.combinations(range(1, logs.size), k)
        if all(end - start >= LEAST_SEGMENT for start, end in itertools.pairwise([0, *cuts, logs.size]))
    )
    assert cost(tuple(_partition(logs, penalty))) == pytest.approx(min(map(cost, legal)), abs=1e-9)
