"""Intervals of shares and of their paired differences: what they cover where the truth is planted."""

from __future__ import annotations

import numpy as np
import pytest

from niffbench.stats.contrasts import FloatArray
from niffbench.stats.proportions import difference, expected_loss, share


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


def margins(rng: np.random.Generator, images: int) -> FloatArray:
    """Of a network that names 97 % rightly: most by far, some hardly, and some wrongly."""
    far, near = rng.normal(5.5, 0.8, images), rng.normal(2.0, 2.2, images)
    return np.where(rng.random(images) < 0.15, near, far)


def moved(rng: np.random.Generator, before: FloatArray, how: str, size: float) -> FloatArray:
    """Margins after a network was changed: by noise, by noise that is at times large, for the worse, or most so
    where an image is hard."""
    noise = rng.standard_t(3, len(before)) / 3**0.5 if how == "at times" else rng.normal(size=len(before))
    if how == "worse":
        noise = noise / 2 - 0.5
    if how == "hard":
        noise = noise * np.where(before < 3, 2.0, 0.7)
    return before + size * noise


BUDGET = 0.002


@pytest.fixture(scope="module", params=["noise", "at times", "worse", "hard"])
def too_much(request: pytest.FixtureRequest) -> tuple[str, float]:
    """A way in which margins move, and how far, so that just the budget is lost."""
    rng = np.random.default_rng(1)
    before = margins(rng, 400_000)
    low, high = 0.01, 2.0
    for _ in range(12):
        middle = (low * high) ** 0.5
        after = moved(np.random.default_rng(2), before, request.param, middle)
        low, high = (low, middle) if np.mean((before > 0) & (after <= 0)) > BUDGET else (middle, high)
    return request.param, high


@pytest.mark.parametrize("images", [240, 600])
def test_a_network_that_loses_the_budget_is_taken_for_better_once_in_twenty(
    too_much: tuple[str, float], images: int
) -> None:
    """And one that loses a quarter of it is so mostly, where counting images could never say it."""
    how, size = too_much
    taken = {1.0: 0, 0.25: 0}
    for draw in range(1000):
        rng = np.random.default_rng(draw)
        before = margins(rng, images)
        for share_of_it in taken:
            after = moved(rng, before, how, share_of_it * size)
            taken[share_of_it] += (expected_loss(before, after).high or 0.0) <= BUDGET
    assert taken[1.0] <= 60
    assert taken[0.25] >= 800


def test_what_rises_makes_up_for_nothing_and_no_change_is_no_loss() -> None:
    before = np.array([-1.0, 0.5, 4.0, 5.0])
    assert expected_loss(before, before).high == 0.0
    assert expected_loss(before, before + 1).estimate == 0.0
    fallen = expected_loss(before, np.array([-1.0, -0.5, 9.0, 9.0]))
    assert fallen.estimate == pytest.approx(0.25 * 0.5763, abs=0.001)  # Φ of ±0.5 / (0.25 · 2.5), of four images
    assert (fallen.high or 0) > 1.5 * fallen.estimate
    assert expected_loss(before[:0], before[:0]).reason == "no image"
