"""Records and runs: what one round learned of one case, and the directory that holds them."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from niffbench.case import Case
from niffbench.errors import UsageError
from niffbench.fingerprint import Fact, Fingerprint
from niffbench.suite import Measure, Regime

if TYPE_CHECKING:
    import pandas as pd

SCHEMA = 1
MANIFEST = "run.json"
RECORDS = "records.jsonl"
MAX_LINE_BYTES = 32_000_000
MAX_MANIFEST_BYTES = 64_000_000

Status = Literal["ok", "oom", "timeout", "crashed", "unsupported", "skipped", "wrong"]
REGIMES: tuple[Regime, ...] = ("first", "cold", "steady", "graph")
Count = Annotated[int, Field(ge=0)]


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, ser_json_inf_nan="constants")


class Traits(_Model):
    """What tables need to know of an operator without asking the catalogue."""

    label: str
    family: str
    boundary: Literal["circular", "zero", "none"]
    equivalence: str


class Latency(_Model):
    """Samples of one regime, in seconds per call, in the order they were taken.

    ``calls`` is the number of back-to-back calls one sample is the mean of (1 for cold and first); ``blocks``
    the lengths of the interleaved blocks the series consists of; ``stopped`` what ended the sampling;
    ``flags`` what is wrong with the series (``drift``, ``stuck``, ``throttled``, ``noisy`` …).
    ``launch_share`` (graph regime): the share of the eager time that the launches took.
    """

    samples: list[float]
    calls: Annotated[int, Field(ge=1)] = 1
    blocks: list[int] = []
    stopped: Literal["precision", "time", "count", "single"] = "count"
    flags: list[str] = []
    launch_share: float | None = None


class Memory(_Model):
    """Bytes. ``peak`` is above ``resident`` (inputs, weights and, in training, gradients present before the call).

    ``saved`` is what autograd kept for backward, ``output`` the result. ``predicted`` is the dispatch-visible
    peak from fake tensors; ``workspace`` = peak − predicted is what kernels took inside. ``reserved`` and
    ``device_delta`` are CUDA's.
    """

    peak: Count
    resident: Count
    output: Count
    saved: Count | None = None
    predicted: Count | None = None
    workspace: int | None = None
    reserved: Count | None = None
    device_delta: int | None = None


class StepCost(_Model):
    """Closed-form cost of one step of one direction: real FLOPs and the form's own traffic in bytes."""

    name: str
    direction: Literal["forward", "backward"]
    flops: Count
    bytes: Count


class CostRecord(_Model):
    """The three witnesses, in real FLOPs (multiply-add = 2), for the whole of the case's mode.

    ``closed``: closed form; ``counted``: FlopCounterMode with our formulas; ``fvcore``: ×2, with handlers,
    forward only (so beside ``closed_forward``). ``stock_torch`` and ``stock_fvcore``: what the stock counters
    say (fvcore ×2), ``missed`` the ops they count as nothing. ``disagreement`` names a known reason
    why witnesses differ, or is None when they agree.
    """

    closed: Count
    closed_forward: Count
    steps: list[StepCost]
    counted: Count | None = None
    fvcore: Count | None = None
    stock_torch: Count | None = None
    stock_fvcore: Count | None = None
    missed: list[str] = []
    disagreement: str | None = None
    bytes_floor: Count
    bytes_own: Count
    largest_prime_factor: int | None = None


class Numerics(_Model):
    """Error of the output against float64: relative L2, and maximum relative to the reference's largest value."""

    l2: float
    max: float
    tolerance: float


class MachineState(_Model):
    """The machine around a case: load average per core, SM clock in MHz, °C, watts and throttle reasons."""

    load: float | None = None
    sm_clock: float | None = None
    temperature: float | None = None
    power: float | None = None
    throttle: list[str] = []


class Record(_Model):
    """What one round learned of one case, or why it could not.

    ``status`` other than ``ok`` comes with ``reason``; then what was not measured is None, never 0.
    ``needed`` and ``available`` (bytes) explain ``oom`` and ``skipped``. ``elapsed`` is the wall time of the case
    in this round in seconds, ``measuring`` the part of it inside sampling.
    """

    case: Case
    id: str
    round: Count
    status: Status
    reason: str | None = None
    traits: Traits
    parameters: Count | None = None
    cost: CostRecord | None = None
    latency: dict[Regime, Latency] = {}
    memory: Memory | None = None
    numerics: Numerics | None = None
    energy: float | None = None  # joules per call
    machine: MachineState | None = None
    needed: Count | None = None
    available: Count | None = None
    elapsed: float = 0.0
    measuring: float = 0.0


class ExcludedCase(_Model):
    """A case the suite itself leaves out, and why."""

    label: str
    problem: str
    reason: str


class SuiteEcho(_Model):
    """The suite as resolved when the run began; a resumed run must resolve to the same."""

    name: str
    description: str
    baseline: str
    source_hash: str
    measure: Measure
    cases: list[str]  # ids, in the suite's order
    excluded: list[ExcludedCase] = []


class Ceilings(_Model):
    """The machine's measured roofline: bytes/s of a copy; FLOP/s of a matrix product and a bare FFT, per dtype."""

    copy_bandwidth: float
    matmul: dict[str, float]
    fft: dict[str, float] = {}


class Manifest(_Model):
    """``run.json``: everything about a run that is not a record."""

    schema_version: int = SCHEMA
    niffbench: str
    suite: SuiteEcho
    rounds: int
    seed: int
    device: str
    fingerprint: Fingerprint
    argv: list[str]
    commit: str | None = None
    dirty: bool | None = None
    started: str  # ISO 8601, UTC
    finished: str | None = None
    wall: float | None = None  # seconds, all sittings
    ceilings: Ceilings | None = None
    notes: list[str] = []
    ci: dict[str, Fact] = {}


@dataclass(frozen=True)
class Run:
    """A run read from its directory. ``torn`` is the number of bytes of an incomplete last line, left out."""

    path: Path
    manifest: Manifest
    records: tuple[Record, ...]
    torn: int = 0

    @property
    def name(self) -> str:
        """The directory's name, for titles."""
        return self.path.resolve().name


def read_manifest(directory: Path) -> Manifest:
    """Read ``run.json``. Raises UsageError when ``directory`` is not a run, or one of a newer schema."""
    path = directory / MANIFEST
    if not directory.is_dir():
        raise UsageError(f"{directory}: there is no such directory")
    if not path.is_file():
        raise UsageError(f"{directory}: is not a run (it has no {MANIFEST})")
    if path.stat().st_size > MAX_MANIFEST_BYTES:
        raise UsageError(f"{path}: larger than {MAX_MANIFEST_BYTES:,} bytes, so not a manifest")
    try:
        text = path.read_bytes()
    except OSError as error:
        raise UsageError(f"{path}: cannot be read ({error.strerror})") from error
    _check_schema(text, path)
    try:
        return Manifest.model_validate_json(text)
    except ValidationError as error:
        raise UsageError(f"{path}: {_fault(error)}") from error


def _check_schema(text: bytes, path: Path) -> None:
    class Schema(BaseModel):
        schema_version: int

    try:
        version = Schema.model_validate_json(text).schema_version
    except ValidationError as error:
        raise UsageError(f"{path}: {_fault(error)}") from error
    if version > SCHEMA:
        raise UsageError(
            f"{path}: schema {version} is newer than this niffbench knows ({SCHEMA}); upgrade niffbench"
        )
    if version < SCHEMA:
        raise UsageError(f"{path}: schema {version} is older than this niffbench reads ({SCHEMA})")


def _fault(error: ValidationError) -> str:
    first = error.errors()[0]
    key = ".".join(str(part) for part in first["loc"]) or "the file"
    return f"key '{key}': {first['msg']}"


def lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """The complete lines of a journal with their byte offsets; a torn last line is not yielded."""
    offset = 0
    with path.open("rb") as file:
        while line := file.readline(MAX_LINE_BYTES + 1):
            if len(line) > MAX_LINE_BYTES:
                raise UsageError(f"{path}: a line at byte {offset} is longer than {MAX_LINE_BYTES:,} bytes")
            if not line.endswith(b"\n"):
                return
            yield offset, line
            offset += len(line)


def read(directory: Path | str) -> Run:
    """Read a run. Raises UsageError for anything that is not one, naming file and line."""
    directory = Path(directory)
    manifest = read_manifest(directory)
    path = directory / RECORDS
    if not path.exists():
        return Run(directory, manifest, ())
    records: list[Record] = []
    end = 0
    for number, (offset, line) in enumerate(lines(path), start=1):
        try:
            records.append(Record.model_validate_json(line))
        except ValidationError as error:
            raise UsageError(f"{path}, line {number}: {_fault(error)}") from error
        end = offset + len(line)
    return Run(directory, manifest, tuple(records), os.path.getsize(path) - end)  # noqa: PTH202


def row(record: Record) -> dict[str, Any]:
    """One record as a flat row of the frame; see :func:`frame` for the columns."""
    problem = record.case.problem
    flat: dict[str, Any] = {
        "case": record.id,
        "round": record.round,
        "status": record.status,
        "reason": record.reason,
        "label": record.traits.label,
        "operator": record.case.operator,
        "family": record.traits.family,
        "boundary": record.traits.boundary,
        "equivalence": record.traits.equivalence,
        "problem": problem.label,
        "kernel": record.case.kernel,
        "batch": problem.batch,
        "channels": problem.channels,
        "channels_out": problem.channels_out,
        "height": problem.height,
        "width": problem.width,
        "size": (problem.height * problem.width) ** 0.5,
        "dtype": problem.dtype,
        "memory_format": problem.memory_format,
        "mode": problem.mode,
        "execution": record.case.execution,
        "options": ", ".join(f"{key}={value}" for key, value in record.case.options),
        "parameters": record.parameters,
        "energy": record.energy,
        "elapsed": record.elapsed,
        "measuring": record.measuring,
        "needed": record.needed,
        "available": record.available,
    }
    for regime in REGIMES:
        series = record.latency.get(regime)
        flat[f"latency_{regime}"] = _median(series.samples) if series and series.samples else None
        flat[f"samples_{regime}"] = len(series.samples) if series else None
        flat[f"flags_{regime}"] = ", ".join(series.flags) if series else ""
    for key in Memory.model_fields:
        flat[f"memory_{key}"] = getattr(record.memory, key) if record.memory else None
    cost = record.cost
    flat |= {
        "flops": cost.closed if cost else None,
        "flops_forward": cost.closed_forward if cost else None,
        "flops_counted": cost.counted if cost else None,
        "flops_fvcore": cost.fvcore if cost else None,
        "flops_stock_torch": cost.stock_torch if cost else None,
        "flops_stock_fvcore": cost.stock_fvcore if cost else None,
        "bytes_floor": cost.bytes_floor if cost else None,
        "bytes_own": cost.bytes_own if cost else None,
        "error_l2": record.numerics.l2 if record.numerics else None,
        "error_max": record.numerics.max if record.numerics else None,
    }
    return flat


def _median(values: list[float]) -> float:
    ordered = sorted(values)
    middle = len(ordered) // 2
    return ordered[middle] if len(ordered) % 2 else (ordered[middle - 1] + ordered[middle]) / 2


def frame(run: Run, extra: Mapping[str, Any] | None = None) -> pd.DataFrame:
    """The run as a data frame: one row per case and round.

    Latencies (``latency_<regime>``, the round's median) in seconds, memory and bytes in bytes, FLOPs real and
    for the whole mode. What was not measured is NaN or None. ``extra`` adds constant columns (a run's name).
    """
    import pandas as pd

    table = pd.DataFrame([row(record) for record in run.records])
    numeric = [
        c for c in table.columns if c.startswith(("latency_", "memory_", "flops", "bytes_", "error_", "samples_"))
    ]
    numeric = [c for c in numeric if c != "memory_format"] + [
        "parameters",
        "energy",
        "needed",
        "available",
        "kernel",
    ]
    present = [c for c in numeric if c in table.columns]
    table[present] = table[present].apply(pd.to_numeric)
    return table.assign(**(extra or {}))
