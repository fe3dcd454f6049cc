"""Intervals of shares and of their paired differences: what they cover where the truth is planted."""

from __future__ import annotations

import numpy as np
import pytest

from niffbench.stats.proportions import difference, share


def test_what_they_are_worked_out_by_hand() -> None:
    half = share(50, 100)
    assert half.low == pytest.approx(0.4038, abs=1e-4)  # Wilson's, as tabulated
    assert half.high == pytest.approx(0.5962, abs=1e-4)
    lost = difference(6, 2, 100)
    assert lost.estimate == pytest.approx(0.04)
    assert lost.low == pytest.approx((4 - 1.95996 * (9 - 16 / 102) ** 0.5) / 102, abs=1e-5)


def test_a_network_that_differs_nowhere_still_has_an_interval() -> None:
    same = difference(0, 0, 450)
    assert same.estimate == 0
    assert same.low is not None
    assert same.high is not None
    assert -0.006 < same.low < 0 < same.high < 0.006
    every = share(450, 450)
    assert every.high == 1
    assert every.low is not None
    assert 0.98 < every.low < 1


def test_nothing_is_said_of_no_image() -> None:
    assert share(0, 0).estimate is None
    assert difference(0, 0, 0).reason == "no image"


@pytest.mark.parametrize(("worse", "better"), [(0.01, 0.01), (0.03, 0.01), (0.002, 0.0)])
def test_a_planted_difference_lies_in_nineteen_intervals_of_twenty(worse: float, better: float) -> None:
    draws = np.random.default_rng(0).multinomial(360, [worse, better, 1 - worse - better], size=1500)
    hits = [not difference(int(lost), int(gained), 360).excludes(worse - better) for lost, gained, _ in draws]
    assert np.mean(hits) >= 0.93


@pytest.mark.parametrize("truth", [0.9, 0.98])
def test_a_planted_share_lies_in_nineteen_intervals_of_twenty(truth: float) -> None:
    rights = np.random.default_rng(0).binomial(450, truth, size=1500)
    assert np.mean([not share(int(right), 450).excludes(truth) for right in rights]) >= 0.93
