"""What a run was asked to do beside its cases: a suite's settings, the command line's in their place."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

from niffbench.errors import UsageError
from niffbench.suite.expand import Suite
from niffbench.suite.schema import Measure, Refine


class Settings(BaseModel):
    """The settings of a run, whole in its manifest and in each task of its workers.

    Attributes:
        device: ``cpu``, ``cuda``, ``cuda:1``, ``replay:FILE``, or ``auto`` until a worker has chosen one.
        launcher: where workers are started, a name of :mod:`niffbench.launch`.
        seed: of the random order.
        memory_limit: in bytes; None for what is free on the device.
        budget: in seconds of wall time; None for as long as it takes.
        refine: how crossovers are looked for after the rounds; None: they are not.
        at_once: whether several devices of one machine are measured on at once; None: unless they disturb each
            other.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    device: str = "auto"
    launcher: str = "local"
    rounds: Annotated[int, Field(ge=1, le=1_000_000)]
    seed: int = 0
    measure: Measure = Measure()
    memory_limit: Annotated[int, Field(ge=0)] | None = None
    budget: Annotated[float, Field(ge=0, allow_inf_nan=False)] | None = None
    refine: Refine | None = None
    at_once: bool | None = None


@dataclass(frozen=True)
class Overrides:
    """What the command line overrides; None leaves the suite's own. Times in seconds, memory in bytes."""

    device: str = "auto"
    launcher: str = "local"
    rounds: int | None = None
    seed: int = 0
    precision: float | None = None
    min_time: float | None = None
    max_time: float | None = None
    case_timeout: float | None = None
    threads: int | None = None
    memory_limit: int | None = None
    budget: float | None = None
    refine: bool | None = None
    at_once: bool | None = None


def resolve(suite: Suite, overrides: Overrides) -> Settings:
    """The suite's settings with the overrides in their place; one end of the sampling time moves the other.

    Raises:
        UsageError: when the two ends are given the wrong way round, or a suite without ``[refine]`` is to be
            refined.
    """
    least, most = overrides.min_time, overrides.max_time
    if least is not None and most is not None and least > most:
        raise UsageError(f"--min-time {least:g} s is longer than --max-time {most:g} s")
    if overrides.refine and suite.refine is None:
        raise UsageError(f"--refine: suite '{suite.name}' has no [refine] table, which says along which axis")
    measure = {
        "precision": overrides.precision,
        "min_time": least if least is not None or most is None else min(suite.measure.min_time, most),
        "max_time": most if most is not None or least is None else max(suite.measure.max_time, least),
        "case_timeout": overrides.case_timeout,
        "threads": overrides.threads,
    }
    return Settings(
        device=overrides.device,
        launcher=overrides.launcher,
        rounds=suite.rounds if overrides.rounds is None else overrides.rounds,
        seed=overrides.seed,
        measure=suite.measure.model_copy(update={k: v for k, v in measure.items() if v is not None}),
        memory_limit=overrides.memory_limit,
        budget=overrides.budget,
        refine=None if overrides.refine is False else suite.refine,
        at_once=overrides.at_once,
    )
