"""What a run was asked to do, beside its suite."""

from __future__ import annotations

from dataclasses import dataclass

from niffbench.device import devices
from niffbench.errors import UsageError
from niffbench.suite import DeviceType, Measure, Suite


@dataclass(frozen=True)
class Overrides:
    """What the command line overrides; None leaves the suite's own. Times in seconds, memory in bytes."""

    device: str = "auto"
    rounds: int | None = None
    seed: int = 0
    precision: float | None = None
    min_time: float | None = None
    max_time: float | None = None
    case_timeout: float | None = None
    threads: int | None = None
    memory_limit: int | None = None
    budget: float | None = None


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


def resolve(suite: Suite, overrides: Overrides) -> Settings:
    """The suite's settings with the overrides in their place; one end of the sampling time moves the other.

    Raises UsageError when the two ends are wished the wrong way round.
    """
    least, most = overrides.min_time, overrides.max_time
    if least is not None and most is not None and least > most:
        raise UsageError(f"--min-time {least:g} s is longer than --max-time {most:g} s")
    changed = {
        "precision": overrides.precision,
        "min_time": least if least is not None or most is None else min(suite.measure.min_time, most),
        "max_time": most if most is not None or least is None else max(suite.measure.max_time, least),
        "case_timeout": overrides.case_timeout,
        "threads": overrides.threads,
    }
    return Settings(
        device=overrides.device,
        rounds=suite.rounds if overrides.rounds is None else overrides.rounds,
        seed=overrides.seed,
        measure=suite.measure.model_copy(update={k: v for k, v in changed.items() if v is not None}),
        memory_limit=overrides.memory_limit,
        budget=overrides.budget,
    )


def kind_of(device: object) -> DeviceType | None:
    """The kind of device that ``--device`` or a fingerprint names; None where neither does."""
    kind = str(device or "auto").partition(":")[0]
    return kind if kind in devices() else None
