"""Profiles kept inside a run's directory: what ``niffbench profile --out RUN/…`` measured, step by step."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from niffbench.case import Problem
from niffbench.report.plots.canvas import Plot
from niffbench.report.plots.measured_steps import Bar, measured_steps
from niffbench.report.text import clean

PROFILE = "profile.json"
MAX_BYTES = 20_000_000
MOST_CASES = 12

Seconds = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class _Model(BaseModel):
    model_config = ConfigDict(extra="ignore", frozen=True)


class _Phase(_Model):
    name: str
    direction: str
    seconds: Seconds


class _Case(_Model):
    problem: Problem


class _Profiled(_Model):
    label: str
    case: _Case
    phases: list[_Phase]
    remainder: Seconds


class _Document(_Model):
    cases: Annotated[list[_Profiled], Field(min_length=1)]


def measured_phases(directory: Path) -> Plot | None:
    """The plot of the first readable profile in ``directory`` or one level below it; None where there is none.

    A file that is no profile is passed over: it is not part of the run.
    """
    for path in sorted([directory / PROFILE, *directory.glob(f"*/{PROFILE}")]):
        if path.is_file() and path.stat().st_size <= MAX_BYTES:
            try:
                found = _Document.model_validate_json(path.read_bytes())
            except (ValidationError, OSError):
                continue
            return measured_steps(
                [_bar(case) for case in found.cases[:MOST_CASES]], found.cases[0].case.problem.label
            )
    return None


def _bar(case: _Profiled) -> Bar:
    forward, backward = (
        tuple((clean(phase.name, 30), phase.seconds) for phase in case.phases if phase.direction == direction)
        for direction in ("forward", "backward")
    )
    return Bar(clean(case.label, 60), forward, backward, case.remainder)
