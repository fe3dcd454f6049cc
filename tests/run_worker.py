"""A worker driven by hand: one task in, its replies out."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from operator_cases import case_at
from warm_process import REPLY, WORKER, Beside, Forked

from niffbench import protocol
from niffbench.case import Case, DType, Execution, Mode, Problem
from niffbench.operators.catalogue import catalogue
from niffbench.results import Record
from niffbench.suite import Measure, Settings

TESTS = Path(__file__).parent
QUICK = Measure(regimes=["first", "cold", "steady"], min_time=0.01, max_time=0.05, min_samples=3, threads=1)


def case_of(
    operator: str,
    kernel: int | None = None,
    *,
    channels: int = 4,
    size: int | tuple[int, int] = 8,
    batch: int = 1,
    mode: Mode = "inference",
    dtype: DType = "float32",
    execution: Execution = "eager",
) -> Case:
    """A case with default options; unknown operators get none."""
    height, width = (size, size) if isinstance(size, int) else size
    problem = Problem(batch, channels, channels, height, width, dtype, "contiguous", mode)
    if operator not in catalogue():
        return Case(operator, problem, kernel, execution=execution)
    return replace(case_at(operator, problem, kernel), execution=execution)


@dataclass(frozen=True)
class Said:
    """What a worker said: messages in order, its exit status, what it printed."""

    status: int
    messages: tuple[Any, ...]
    printed: str

    @property
    def records(self) -> list[Record]:
        return [m.record for m in self.messages if m.type == "finished"]

    def of(self, kind: str) -> list[Any]:
        return [m for m in self.messages if m.type == kind]

    def only(self) -> Record:
        [record] = self.records
        return record


def work(
    cases: Sequence[Case],
    *,
    device: str = "cpu",
    kind: str = "round",
    measure: Measure = QUICK,
    seed: int = 0,
    memory_limit: int | None = None,
    hostile: bool = False,
    prelude: str = "",
    beside: Beside = (),
    **task: Any,
) -> Said:
    """Run one task in a worker of its own.

    Args:
        prelude: is Python that it runs first.
        beside: variables that its libraries read when they are loaded.
    """
    settings = Settings(device=device, rounds=1, seed=seed, measure=measure, memory_limit=memory_limit)
    sent = protocol.Task(kind=kind, settings=settings, cases=list(cases), **task)
    read, write = os.pipe()
    paths = [str(TESTS.parent), str(TESTS), os.environ.get("PYTHONPATH", "")]
    environment = {**os.environ, **dict(beside), "PYTHONPATH": os.pathsep.join(filter(None, paths))}
    if hostile:
        environment["NIFFBENCH_EXTRA_OPERATORS"] = "hostile_operators"
    with tempfile.TemporaryFile() as given, tempfile.TemporaryFile() as printed:
        given.write(protocol.write(sent))
        given.seek(0)
        standard = (given.fileno(), printed.fileno(), printed.fileno(), write)
        process = Forked(WORKER, REPLY, standard, environment, prepare={"code": prelude}, beside=beside)
        os.close(write)
        try:
            with os.fdopen(read, "rb") as lines:
                heard = tuple(protocol.read(line) for line in lines)
        finally:
            status = process.wait(timeout=60)
        printed.seek(0)
        return Said(status, heard, printed.read().decode())
