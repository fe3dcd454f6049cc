"""A time budget, shared out so that every case is measured at least once, then as well as time allows."""

from __future__ import annotations

from dataclasses import dataclass

from niffbench.suite import Measure

REPORT_TIME = 10.0
"""Seconds kept for the report."""
LEAST_WINDOW = 0.01
"""Seconds of sampling per regime below which fewer rounds are made instead of shorter ones."""
LEAST_SAMPLES = 3


@dataclass(frozen=True)
class Share:
    """What a budget allows: how many more rounds, and how each case is measured in them."""

    rounds: int
    measure: Measure

    def is_less(self, rounds: int, measure: Measure) -> bool:
        """Whether it is less than what was asked for."""
        return self.rounds < rounds or self.measure != measure


def share(seconds: float, *, rounds: int, cases: int, overhead: float, measure: Measure) -> Share:
    """Divide ``seconds`` over ``rounds`` rounds of ``cases`` cases.

    Args:
        overhead: seconds of a round that are not sampling. Each case gets the same cap on its sampling, never
            more than ``measure.max_time``; when that falls under LEAST_WINDOW, rounds are given up, down to
            one; one round is always made. Where the cap bites, LEAST_SAMPLES samples are enough.
    """
    if not measure.windows or not cases:
        return Share(rounds, measure)
    window = 0.0
    for count in range(rounds, 0, -1):
        window = ((seconds - REPORT_TIME) / count - overhead) / cases / measure.windows
        if window >= LEAST_WINDOW:
            break
    window = max(window, LEAST_WINDOW)
    if window >= measure.max_time:
        return Share(count, measure)
    return Share(
        count,
        measure.model_copy(
            update={
                "max_time": window,
                "min_time": min(measure.min_time, window),
                "min_samples": min(measure.min_samples, LEAST_SAMPLES),
            }
        ),
    )
