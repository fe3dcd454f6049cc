"""What a run was asked to do, beside its suite."""

from __future__ import annotations

from dataclasses import dataclass

from niffbench.suite import Measure


@dataclass(frozen=True)
class Settings:
    """``device`` as for ``--device``; ``memory_limit`` in bytes, None for the device's free memory;
    ``budget`` in seconds of wall time, None for as long as it takes.
    """

    device: str
    rounds: int
    seed: int
    measure: Measure
    memory_limit: int | None = None
    budget: float | None = None
