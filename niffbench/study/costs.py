"""What replacements of layers, and whole networks, cost on this machine: measured by rounds in fresh processes."""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from niffbench import __version__
from niffbench.case import Case, DType, MemoryFormat, Problem
from niffbench.fingerprint import Fingerprint
from niffbench.niff import tuning
from niffbench.niff.layer import FilteringLayer
from niffbench.niff.split import NiffSplit
from niffbench.operators.catalogue import catalogue
from niffbench.operators.module import declare
from niffbench.results import (
    REGISTRY,
    Reason,
    Record,
    Run,
    calm_cases,
    most,
    most_others,
    over_rounds,
    read,
    round_value,
)
from niffbench.session.interrupts import Interrupts
from niffbench.session.opening import begin, prepare
from niffbench.session.run_session import RunSession
from niffbench.session.survey import survey
from niffbench.session.worker_session import Observer
from niffbench.study.candidates import Candidate
from niffbench.suite import Overrides, Suite, resolve
from niffbench.suite import cases_of as suite_of

OBJECTIVES: Mapping[str, str] = {
    "latency": "latency_steady",
    "memory": "memory_total",
    "energy": "energy",
    "parameters": "parameters",
}
"""What can be made small → the metric that says how large it is."""

_MOST_REMEMBERED = 20_000
_MOST_ROWS = 900
_OF_LAYERS = {"regimes": ["steady"], "min_time": 0.01, "max_time": 0.06, "precision": 0.03, "energy": False}
_ANY_ROW = {"name": "dense", "kernel": [1], "channels": 1, "size": [[8, 8]]}
_OF_NETWORKS = {"regimes": ["steady"], "min_time": 0.2, "max_time": 1.5, "precision": 0.001}

Watch = Callable[[RunSession], AbstractContextManager[Observer]]
"""Shows how a session goes while it measures."""


def quietly(_: RunSession) -> AbstractContextManager[Observer]:
    """Show nothing."""
    return nullcontext(Observer())


@dataclass(frozen=True)
class Measuring:
    """How it is measured; ``cache`` is the folder where layers' figures are kept, None where they are not."""

    stop: Interrupts
    device: str = "auto"
    rounds: int = 3
    seed: int = 0
    threads: int | None = None
    cache: Path | None = None
    watch: Watch = quietly

    def run(
        self, rows: Sequence[Mapping[str, Any]], measure: Mapping[str, Any], folders: Sequence[str] = ()
    ) -> Run:
        """Measure rows of a suite, each with axes of its own.

        Raises:
            UsageError, Interrupted, WorkerBroken: as a run.
        """
        suite = _suite(rows, measure, folders)
        with tempfile.TemporaryDirectory(prefix="niffbench-") as scratch:
            prepared = prepare(lambda kind: suite, self.overrides, self.stop, ceilings=False)
            out = Path(scratch) / "run"
            began = time.monotonic()
            with begin(out, prepared, ["niffbench", "shrink"], began) as session, self.watch(session) as observer:
                session.measure(self.stop, observer)
            return read(out)

    @cached_property
    def machine(self) -> Fingerprint:
        """The machine's, asked of a worker once."""
        settings = resolve(_suite([_ANY_ROW], _OF_LAYERS), self.overrides)
        return survey([], settings, self.stop, ceilings=False).fingerprint

    @property
    def overrides(self) -> Overrides:
        """The same as an override of a suite's settings."""
        return Overrides(device=self.device, rounds=self.rounds, seed=self.seed, threads=self.threads)


def _suite(rows: Sequence[Mapping[str, Any]], measure: Mapping[str, Any], folders: Sequence[str] = ()) -> Suite:
    return suite_of(rows, {}, "shrink", catalogue(), declare, folders=folders, keys={"measure": measure})


def cases_of(
    candidate: Candidate,
    layer: FilteringLayer,
    batch: int,
    height: int,
    width: int,
    memory_format: MemoryFormat = "contiguous",
) -> list[Case] | None:
    """The operators of the harness whose costs add up to the candidate's; none for the identity.

    None of a basis: it makes the kernel of its side first and then does what that does, so that it is nobody's
    choice where time or memory of a call counts.
    """
    if candidate.kind == "basis":
        return None
    dtype: DType = "float64" if "64" in str(layer.generator.dtype) else "float32"
    same = Problem(batch, layer.in_channels, layer.in_channels, height, width, dtype, memory_format)
    mixed = replace(same, channels_out=layer.out_channels)
    if candidate.form is not None:
        operator = catalogue()[f"niff-{layer.kind}/{candidate.form}"]
        settings = {"mlp": layer.generator.mlp, "grid": layer.generator.grid}
        options = {name: settings.get(name, option.default) for name, option in operator.options.items()}
        return [Case(operator.name, mixed, options=tuple(sorted(options.items())))]
    circular = "-circular" if candidate.boundary == "circular" else ""
    cases = [Case("dense", mixed, kernel=1)] if isinstance(layer, NiffSplit) else []
    if candidate.kind == "identity":
        return cases
    if layer.kind == "full":
        return [Case(f"dense{circular}", mixed, kernel=candidate.side)]
    name = "strip" if candidate.kind == "strip" else "depthwise"
    return [Case(f"{name}{circular}", same, kernel=candidate.side), *cases]


@dataclass(frozen=True)
class Costs:
    """Figures by case and metric, medians over rounds.

    Attributes:
        lost: cases without a figure, and why.
        measured: how many were measured now; the others were remembered.
        machine: what the machine is, where anything was asked of it.
        others: the largest share of the processor, 0 to 1, that other processes used meanwhile; None where
            nothing was measured now, or nobody knows.
    """

    figures: Mapping[str, Mapping[str, float]]
    lost: Mapping[str, str] = field(default_factory=dict)
    measured: int = 0
    machine: Mapping[str, object] = field(default_factory=dict)
    others: float | None = None

    def joined(self, other: Costs) -> Costs:
        """Both together."""
        return Costs(
            {**self.figures, **other.figures},
            {**self.lost, **other.lost},
            self.measured + other.measured,
            other.machine or self.machine,
            most((self.others, other.others)),
        )

    def of(self, cases: Iterable[Case], objective: str) -> float | None:
        """The sum over ``cases`` of what ``objective`` names (of memory, the largest); None where one is lost."""
        values = [self.figures.get(case.id, {}).get(OBJECTIVES[objective]) for case in cases]
        numbers = [value for value in values if value is not None]
        if len(numbers) < len(values):
            return None
        return max(numbers, default=0.0) if objective == "memory" else sum(numbers)


def measure(cases: Iterable[Case], measuring: Measuring, *, energy: bool = False) -> Costs:
    """Figures of all ``cases``; those that are remembered are not measured again.

    What is remembered belongs to one machine (its fingerprint), one niffbench and its kernels. What was measured
    beside busy neighbours is not.

    Raises:
        UsageError, Interrupted, WorkerBroken: as a run.
    """
    wanted = {case.id: case for case in cases}
    if not wanted:
        return Costs({})
    settings = {**_OF_LAYERS, "energy": energy}
    machine = measuring.machine
    store = _Store(measuring.cache, f"{machine.hash}-{measuring.rounds}-{measuring.threads}-{energy}")
    figures = {id_: store.figures[id_] for id_ in wanted if id_ in store.figures}
    missing = [case for id_, case in wanted.items() if id_ not in figures]
    lost: dict[str, str] = {}
    every: list[Record] = []
    rows = _rows(missing)
    for start in range(0, len(rows), _MOST_ROWS):
        records = measuring.run(rows[start : start + _MOST_ROWS], settings).records
        every += records
        for case in {record.case.id: record.case for record in records}.values():
            own = [record for record in records if record.id == case.id]
            figures[case.id] = {
                key: value for key, value in over_rounds(own).items() if key in OBJECTIVES.values()
            }
            if OBJECTIVES["latency"] not in figures[case.id]:
                lost[case.id] = next((record.reason for record in own if record.reason), "no round has a figure")
    calm = calm_cases(every) - lost.keys()
    store.add({case.id: figures[case.id] for case in missing if case.id in calm})
    return Costs(figures, lost, len(missing), machine.must, most_others(every))


def _rows(cases: Sequence[Case]) -> list[dict[str, Any]]:
    """Rows of a suite that stand for exactly these cases: those that differ in their kernel alone are one."""
    rows: dict[Case, dict[str, Any]] = {}
    for case in cases:
        problem = case.problem
        plain = Case(case.operator, problem, None, case.options)
        row = rows.setdefault(
            plain,
            {
                "name": case.operator,
                "options": dict(case.options),
                "batch": problem.batch,
                "channels": problem.channels,
                "channels_out": problem.channels_out,
                "size": [[problem.height, problem.width]],
                "dtype": problem.dtype,
                "memory_format": problem.memory_format,
            },
        )
        if case.kernel is not None:
            row.setdefault("kernel", []).append(case.kernel)
    return list(rows.values())


class _Store:
    """A file of figures of one machine; one that cannot be read or written is as good as none."""

    def __init__(self, cache: Path | None, machine: str) -> None:
        self._path = None if cache is None else cache / f"costs-{machine}-{__version__}-{tuning.code()[:16]}.json"
        self.figures: dict[str, dict[str, float]] = {}
        if self._path is None:
            return
        try:
            content = json.loads(self._path.read_bytes())
            self.figures = {
                str(id_): {str(key): float(value) for key, value in row.items()} for id_, row in content.items()
            }
        except (OSError, ValueError, AttributeError, TypeError):
            self.figures = {}

    def add(self, figures: Mapping[str, Mapping[str, float]]) -> None:
        """Remember these too, and forget the oldest of too many."""
        if self._path is None or not figures:
            return
        every = {**self.figures, **{id_: dict(row) for id_, row in figures.items()}}
        try:
            tuning.write_whole(self._path, json.dumps(dict(list(every.items())[-_MOST_REMEMBERED:])).encode())
        except OSError:
            return


@dataclass(frozen=True)
class NetworkFigures:
    """A whole network's rounds: seconds of a call by round, None where a round failed, bytes of memory and joules.

    ``reason``: why there is no figure. ``channels_last``: whether it had its channels last in memory.
    ``others``: as of :class:`Costs`.
    """

    latency: tuple[float | None, ...]
    memory: float | None
    energy: float | None = None
    reason: str | None = None
    channels_last: bool = False
    others: float | None = None


def measure_networks(
    networks: Mapping[str, Path],
    shape: tuple[int, int, int, int],
    classes: int,
    measuring: Measuring,
    channels_last: Collection[str] = (),
) -> dict[str, NetworkFigures]:
    """Whole networks side by side, each in every round, so that what a round does to all of them cancels.

    Args:
        networks: by name the files of ``torch.save`` that hold them.
        shape: of the input, ``(B, C, H, W)``.
        classes: columns of the output.
        channels_last: names of those that have their channels last in memory.

    Raises:
        UsageError, Interrupted, WorkerBroken: as a run.
    """
    batch, channels, height, width = shape
    with tempfile.TemporaryDirectory(prefix="niffbench-") as scratch:
        lines = ["import torch"]
        rows = []
        for number, (name, file) in enumerate(networks.items()):
            lines.append(
                f"def network{number}():\n"
                f"    return torch.load({str(file)!r}, weights_only=False, map_location='cpu')"
            )
            rows.append(
                {
                    "model": f"shrunk_networks.py:network{number}",
                    "label": name,
                    "batch": batch,
                    "channels": channels,
                    "channels_out": classes,
                    "size": [[height, width]],
                    "memory_format": "channels_last" if name in channels_last else "contiguous",
                }
            )
        (Path(scratch) / "shrunk_networks.py").write_text("\n\n\n".join(lines) + "\n", encoding="utf-8")
        run = measuring.run(rows, _OF_NETWORKS, [scratch, str(Path.cwd())])
    figures = {}
    for number, name in enumerate(networks):
        own = [record for record in run.records if record.case.operator == f"shrunk_networks.py:network{number}"]
        values = [round_value(record, REGISTRY["latency_steady"]) for record in own]
        figures[name] = NetworkFigures(
            tuple(None if isinstance(value, Reason) else value for value in values),
            over_rounds(own).get("memory_total"),
            over_rounds(own).get("energy"),
            next((record.reason for record in own if record.reason), None),
            name in channels_last,
            most_others(own),
        )
    return figures
