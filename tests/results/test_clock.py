"""The clock's step: what is known of it where samples of several clocks are compared."""

from __future__ import annotations

import numpy as np
import pytest

from niffbench.results import Latency
from niffbench.results.clock import relative_step


def timed(step: float, seed: int, latency: float = 2e-6) -> Latency:
    """Thirty samples of about ``latency`` as a clock of that step tells them, in whole nanoseconds."""
    generator = np.random.default_rng(seed)
    ticks = np.floor(latency / step * np.exp(0.05 * generator.standard_normal(30)) + generator.random(30))
    return Latency(samples=(np.round(ticks * step * 1e9) / 1e9).tolist(), flags=["coarse"])


@pytest.mark.parametrize("other", [1e-9 * 1000 / 12, 5e-7])
def test_the_step_of_unlike_clocks_is_the_larger_one(other: float) -> None:
    """What both told are multiples of a far smaller one, or of the smaller."""
    base, head = (None, timed(1e-7, 0)), (None, timed(other, 1))
    step = max(1e-7, other) / 2e-6
    assert relative_step([base], [head]) == pytest.approx(step, rel=0.2)
    members = [((node, ""), series) for node, (_, series) in enumerate((base, head))]
    assert relative_step(members) == pytest.approx(step, rel=0.2)


def test_samples_that_are_all_alike_tell_a_step_together_with_others() -> None:
    one, two = (Latency(samples=[seconds] * 10, flags=["coarse"]) for seconds in (2e-6, 2.1e-6))
    assert relative_step([(None, one)], [(None, two)]) == pytest.approx(0.05)
    assert relative_step([(None, one)]) == 0


def test_an_odd_short_sample_makes_no_step_larger() -> None:
    series = Latency(samples=[20e-6] * 5 + [21e-6] * 4 + [1e-6], flags=["coarse"])
    assert relative_step([(None, series)]) == pytest.approx(0.05)
