"""A run's manifest, ``run.json``: everything about a run that is not a record."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from typing import Annotated, Any, NamedTuple

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    ValidationError,
    model_serializer,
    model_validator,
)

from niffbench.case import Problem
from niffbench.errors import UsageError
from niffbench.fingerprint import Fact, Fingerprint
from niffbench.suite import Measure, Settings, Shard

SCHEMA = 8
"""Of what is written. A new field raises it, so that a niffbench that does not know the field says so."""
OLDEST_SCHEMA = 1
"""That is still read: every field it lacks has a default."""
MANIFEST = "run.json"
_MACHINE = "machine-"
MAX_MANIFEST_BYTES = 64_000_000

Seconds = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Rate = Annotated[float, Field(gt=0, allow_inf_nan=False)]


def _moment(text: str) -> str:
    """The text itself.

    Raises:
        ValueError: unless it is a date and time with its offset.
    """
    try:
        aware = datetime.fromisoformat(text).tzinfo is not None
    except ValueError:
        aware = False
    if not aware or len(text) > 40:
        raise ValueError(f"should be a time like 2026-01-31T12:00:00+00:00, not {text[:40]!r}")
    return text


def _part(text: str) -> str:
    """The text itself.

    Raises:
        ValueError: unless it is what ``--shard`` takes.
    """
    try:
        canonical = str(Shard.parse(text))
    except UsageError:
        canonical = ""
    if text != canonical:
        raise ValueError(f"should be a part of a suite like 2/4, not {text[:40]!r}")
    return text


Moment = Annotated[str, AfterValidator(_moment)]


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, ser_json_inf_nan="constants")


class ExcludedCase(_Model):
    """A case the suite itself leaves out, and why."""

    label: str
    problem: str
    reason: str


class ShardEcho(_Model):
    """Which part of the suite was measured, as 2/4, and where its cases stand among those of all parts."""

    name: Annotated[str, AfterValidator(_part)]
    positions: list[Annotated[int, Field(ge=0)]]

    @property
    def count(self) -> str:
        """The number of parts there are."""
        return self.name.partition("/")[2]


class SuiteEcho(_Model):
    """The suite as resolved when the run began; a resumed run must resolve to the same.

    ``measure`` is what was measured with, the command line's overrides included; ``only`` the filters that
    narrowed the suite, ``added`` the rows that were added to its own, ``commit`` that of the suite's file,
    and ``text`` what is in it, anonymized.
    """

    name: str
    description: str
    baseline: str
    source_hash: str
    measure: Measure
    cases: list[str]  # ids, in the suite's order
    excluded: list[ExcludedCase] = []
    only: list[str] = []
    shard: ShardEcho | None = None
    added: list[str] = []
    commit: str | None = None
    text: str = ""

    @property
    def narrowed(self) -> str:
        """By which options a part of the suite was measured; empty for all of it."""
        part = f"--shard {self.shard.name}" if self.shard else ""
        return " ".join(filter(None, [part, *(f"--only {pattern}" for pattern in self.only)]))


class ModuleSource(_Model):
    """Where a module of the user's is from: its file's name and SHA-256, its package's version if it has one."""

    operator: str
    file: str | None = None
    sha256: str | None = None
    version: str | None = None


class SubjectSource(_Model):
    """The module that is measured, whose ``commit`` the manifest has, and its version if it says one."""

    module: str
    version: str | None = None


class Map(NamedTuple):
    """All maps of a batch, as they are transformed."""

    dtype: str
    planes: int
    height: int
    width: int

    @property
    def points(self) -> int:
        """Pixels of all."""
        return self.planes * self.height * self.width

    @classmethod
    def of(cls, problem: Problem) -> Map:
        """What a problem's FFT transforms; half precisions are transformed in float32."""
        dtype = "float64" if problem.dtype == "float64" else "float32"
        return cls(dtype, problem.batch * problem.channels, problem.height, problem.width)


class MapRate(_Model):
    """Nominal FLOP/s of a bare real FFT of maps."""

    dtype: str
    planes: Annotated[int, Field(gt=0)]
    height: Annotated[int, Field(gt=0)]
    width: Annotated[int, Field(gt=0)]
    rate: Rate


class Ceilings(_Model):
    """The machine's measured roofline: bytes/s of a copy; FLOP/s of a matrix product and a bare FFT, per dtype.

    ``copy_bandwidth`` is that of the largest copy, so that of memory; ``copy_by_size`` has smaller ones too, by
    the bytes that are read and written, again and again: up to a cache's size they stay in it. ``fft`` is the best
    of a few sizes, ``fft_by_map`` that at the sizes of the maps that spectral operators see, as time allows.

    Attributes:
        others: the share of the processor that other processes used meanwhile, 0 to 1; None where nobody knows.
    """

    copy_bandwidth: Rate
    copy_by_size: Annotated[dict[Annotated[int, Field(gt=0)], Rate], Field(max_length=100)] = {}
    matmul: dict[str, Rate]
    fft: dict[str, Rate] = {}
    fft_by_map: Annotated[list[MapRate], Field(max_length=10_000)] = []
    others: Annotated[float, Field(ge=0, le=1)] | None = None

    def fft_of(self, problem: Problem) -> float | None:
        """The rate of a bare FFT of the problem's own maps, where it was measured."""
        own = Map.of(problem)
        rates = (one.rate for one in self.fft_by_map if (one.dtype, one.planes, one.height, one.width) == own)
        return next(rates, None)


class Disturbance(_Model):
    """How much slower a device is beside the others of its machine than alone, over pairs of both.

    Attributes:
        ratio: beside the others over alone, in the case that is disturbed most, with its 95 % interval.
        in_turn: they disturb each other by more than is tolerated, so that one is to be measured on at a time.
    """

    devices: Annotated[int, Field(gt=1)]
    cases: Annotated[int, Field(gt=0)]
    pairs: Annotated[int, Field(gt=0)]
    ratio: Rate
    low: Rate | None = None
    high: Rate | None = None
    in_turn: bool


class Manifest(_Model):
    """``run.json``: everything about a run that is not a record.

    ``settings`` are those it was begun with. ``started`` and ``finished`` are ISO 8601 in UTC, ``finished`` None
    while records are missing; ``wall`` is the wall time that was spent on it, in seconds, ``refining`` the part of
    it after all rounds in which crossovers were bracketed. ``commit`` and ``dirty`` are those of what is measured,
    ``niffbench_commit`` and ``niffbench_dirty`` niffbench's own. ``nodes`` are the fingerprints of the machines
    that measured, in the order of their numbers, where there are several, ``unlike`` those of the machines that
    were met beside them, each of which has a run of its own. ``devices`` says by its id how
    ``--devices`` names a device, and ``disturbance`` whether these disturb each other.
    """

    schema_version: int = SCHEMA
    niffbench: str
    suite: SuiteEcho
    settings: Settings
    fingerprint: Fingerprint
    argv: list[str]
    subject: SubjectSource | None = None
    commit: str | None = None
    dirty: bool | None = None
    niffbench_commit: str | None = None
    niffbench_dirty: bool | None = None
    started: Moment
    finished: Moment | None = None
    wall: Seconds | None = None
    refining: Seconds | None = None
    ceilings: Ceilings | None = None
    notes: list[str] = []
    modules: list[ModuleSource] = []
    nodes: list[Fingerprint] = []
    unlike: list[Fingerprint] = []
    devices: dict[str, Annotated[str, Field(pattern=r"^[a-z]{1,20}:\d{1,6}$")]] = {}
    disturbance: Disturbance | None = None
    ci: dict[str, Fact] = {}

    @model_validator(mode="before")
    @classmethod
    def _gather_settings(cls, data: Any) -> Any:
        """Runs of schema 1 and 2 have no ``settings``: they are in keys of their own and in the suite's echo."""
        if not isinstance(data, dict):
            return data
        rest = {key: value for key, value in data.items() if key not in _ALONE}
        if "settings" not in data:
            echo = data.get("suite")
            measure = echo.get("measure", {}) if isinstance(echo, dict) else getattr(echo, "measure", {})
            rest["settings"] = {key: data[key] for key in _ALONE if key in data} | {"measure": measure}
        return rest

    @model_serializer(mode="wrap")
    def _repeat_settings(self, write: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """``run.json`` still has the keys that stood for the settings before ``settings`` did."""
        return {**write(self), **{key: getattr(self.settings, key) for key in _ALONE}}

    @property
    def device(self) -> str:
        """What ``--device`` said, or ``auto`` chose."""
        return self.settings.device

    @property
    def rounds(self) -> int:
        """How many a complete run has."""
        return self.settings.rounds

    @property
    def seed(self) -> int:
        """Of the random order."""
        return self.settings.seed

    @property
    def records(self) -> int:
        """How many a complete run has, without probes: one of each case in each round."""
        return len(self.suite.cases) * self.rounds


_ALONE = ("device", "rounds", "seed", "memory_limit", "budget")
"""Settings that ``run.json`` also has as keys of their own."""


def machine_runs(directory: Path) -> list[Path]:
    """The directories of the runs, inside that of a run, in which other machines are measured that it met."""
    runs = (path.parent for path in directory.glob(f"{_MACHINE}*/{MANIFEST}"))
    return sorted(runs, key=lambda path: (len(path.name), path.name))


def next_machine(directory: Path) -> Path:
    """Where the run of another machine goes, inside the directory of the run that met it."""
    number = 2
    while (path := directory / f"{_MACHINE}{number}" / MANIFEST).exists():
        number += 1
    return path.parent


class _Version(BaseModel):
    schema_version: int


def read_manifest(directory: Path) -> Manifest:
    """Read ``run.json``.

    Raises:
        UsageError: when ``directory`` is not a run, or one of another schema.
    """
    path = directory / MANIFEST
    try:
        if not directory.is_dir():
            raise UsageError(f"{directory}: there is no such directory")
        if not path.is_file():
            raise UsageError(f"{directory}: is not a run (it has no {MANIFEST})")
        with path.open("rb") as file:
            text = file.read(MAX_MANIFEST_BYTES + 1)
    except OSError as error:
        raise UsageError(f"{path}: cannot be read ({error.strerror})") from error
    if len(text) > MAX_MANIFEST_BYTES:
        raise UsageError(f"{path}: larger than {MAX_MANIFEST_BYTES:,} bytes, so not a manifest")
    try:
        version = _Version.model_validate_json(text).schema_version
        if version > SCHEMA:
            raise UsageError(
                f"{path}: schema {version} is newer than this niffbench knows ({SCHEMA}); upgrade niffbench"
            )
        if version < OLDEST_SCHEMA:
            raise UsageError(f"{path}: schema {version} is older than this niffbench reads ({OLDEST_SCHEMA})")
        return Manifest.model_validate_json(text)
    except ValidationError as error:
        raise UsageError(f"{path}: {explain(error)}") from error


def explain(error: ValidationError) -> str:
    """The first fault of a validation: which key, and what is wrong with it."""
    fault = error.errors(include_url=False, include_input=False)[0]
    key = ".".join(str(part) for part in fault["loc"])
    return f"key '{key}': {fault['msg']}" if key else fault["msg"]
