"""Sessions with the stub worker: whole runs in a fraction of a second, with whatever is to go wrong."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from niffbench import launch
from niffbench.operators.catalogue import catalogue
from niffbench.results import Record, Run, read
from niffbench.session.interrupts import Interrupts
from niffbench.session.opening import Prepared, begin, prepare, resume
from niffbench.session.worker_session import Observer
from niffbench.suite import DeviceType, Overrides, Suite, expand, parse

launch.__path__.append(str(Path(__file__).with_name("launchers")))


def suite_of(
    sizes: Sequence[int] = (14, 28),
    kernels: Sequence[int] = (3, 7),
    rounds: int = 2,
    dtypes: Sequence[str] = ("float32",),
    **measure: Any,
) -> Suite:
    """A suite of depthwise convolutions: sizes × dtypes × kernels cases."""
    settings = "\n".join(f"{key} = {value}" for key, value in measure.items())
    text = f"""
        description = "made up"
        baseline = "depthwise-k{kernels[0]}"
        rounds = {rounds}
        axes = {{channels = 4, size = {list(sizes)}, dtype = {list(dtypes)}}}
        operators = [{{name = "depthwise", kernel = {list(kernels)}}}]
        [measure]
        {settings}
    """
    return expand(parse(text, "made-up.toml"), "made-up", "made-up.toml", text, catalogue())


def asked(launcher: str = "stub", device: str = "cpu", **overrides: Any) -> Overrides:
    """Overrides of a run that measures nothing."""
    return Overrides(launcher=launcher, device=device, **overrides)


class StopAfter(Observer):
    """Asks for the end once so many records are there."""

    def __init__(self, records: int, number: int = signal.SIGINT) -> None:
        self.left = records
        self.number = number

    def record(self, record: Record) -> None:
        self.left -= 1
        if self.left == 0:
            os.kill(os.getpid(), self.number)


@dataclass
class Attempt:
    """One try at a suite in ``place``; ``script`` is the stub worker's."""

    place: Path
    suite: Suite
    script: dict[str, Any] = field(default_factory=dict)
    overrides: Overrides = field(default_factory=asked)
    observer: Observer | None = None

    def load(self, kind: DeviceType | None) -> Suite:
        return self.suite

    def prepare(self, stop: Interrupts) -> Prepared:
        os.environ["STUB_WORKER"] = json.dumps(self.script)
        return prepare(self.load, self.overrides, stop)

    def begin(self, stop: Interrupts | None = None) -> Run:
        """A new run; returns it as read from its directory."""
        if stop is None:
            with Interrupts() as stop:
                return self.begin(stop)
        began = time.monotonic()
        with begin(self.place, self.prepare(stop), ["niffbench", "run"], began) as session:
            session.measure(stop, self.observer)
        return read(self.place)

    def resume(self, stop: Interrupts | None = None) -> Run:
        """Go on with the run in ``place``."""
        if stop is None:
            with Interrupts() as stop:
                return self.resume(stop)
        os.environ["STUB_WORKER"] = json.dumps(self.script)
        began = time.monotonic()
        moved = self.overrides.device if self.overrides.device.startswith("replay:") else None
        with resume(self.place, self.load, stop, began, device=moved) as session:
            session.measure(stop, self.observer)
        return read(self.place)


def keys(run: Run) -> list[tuple[str, int]]:
    """Case and round of every record, sorted."""
    return sorted((record.id, record.round) for record in run.records)


def all_keys(suite: Suite) -> list[tuple[str, int]]:
    """What :func:`keys` of a complete run is."""
    return sorted((case.id, number) for case in suite.cases for number in range(suite.rounds))
