"""The host's clock: its resolution, measured."""

from __future__ import annotations

from time import perf_counter


def quantum(readings: int = 2000) -> float:
    """The smallest step that ``perf_counter`` was seen to make, in seconds: resolution and cost of a reading."""
    steps: list[float] = []
    last = perf_counter()
    for _ in range(readings):
        now = perf_counter()
        if now > last:
            steps.append(now - last)
        last = now
    return sorted(steps)[len(steps) // 2] if steps else 1e-3
