"""Reading a run's directory: its manifest and its journal of records, which may come from anyone."""

from __future__ import annotations

import gc
import gzip
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import BinaryIO, cast

from pydantic import ValidationError

from niffbench.errors import UsageError
from niffbench.results.manifest import Manifest, explain, machine_runs, read_manifest
from niffbench.results.record import Record, parse

RECORDS = "records.jsonl"
COMPRESSED = RECORDS + ".gz"
MAX_LINE_BYTES = 32_000_000
MAX_UNPACKED_BYTES = 4_000_000_000
"""Of a packed journal: a thousandth of it can be the file that a stranger sends."""
MOST_PACKED = 100
"""Times that a journal may be larger than its packed file; records are some twenty times."""
MAX_SIDE = 2**24
_CONSTANT = ("id", "traits", "cost", "memory", "numerics")
"""Parts of a record that rarely change from round to round."""


@dataclass(frozen=True)
class Run:
    """A run read from its directory. ``torn`` is the number of bytes of an incomplete last line, left out.

    ``records`` are those of the suite's cases and rounds; ``probes`` those of later rounds, in which crossovers
    were bracketed, of cases that the suite need not have. ``machine`` says of which of its machines the records
    are, where a directory holds those of unlike ones (:func:`niffbench.results.fleet.machines`). ``beside`` are
    the runs of the other machines that this one met.
    """

    path: Path
    manifest: Manifest
    records: tuple[Record, ...]
    torn: int = 0
    probes: tuple[Record, ...] = ()
    machine: str = ""
    beside: tuple[Run, ...] = ()

    @property
    def name(self) -> str:
        """The directory's name, for titles."""
        return self.path.resolve().name + (f" ({self.machine})" if self.machine else "")

    def is_baseline(self, record: Record, baseline: str | None = None) -> bool:
        """Whether it is of ``baseline``, a row's label with its options; left out, the one its suite names."""
        return record.traits.label == (baseline or self.manifest.suite.baseline)


def read(directory: Path | str) -> Run:
    """Read a run, and those of other machines inside it; a journal packed as ``records.jsonl.gz`` is read as well.

    Raises:
        UsageError: for anything that is not a run, naming file and line.
    """
    run = _read(Path(directory))
    return replace(run, beside=tuple(_read(path) for path in machine_runs(run.path)))


def _read(directory: Path) -> Run:
    manifest = read_manifest(directory)
    path = next((p for name in (RECORDS, COMPRESSED) if (p := directory / name).exists() or p.is_symlink()), None)
    if path is not None and not path.is_file():
        raise UsageError(f"{path}: is not a regular file")
    if path is None:
        return Run(directory, manifest, ())
    with _no_collection():
        every, torn = _read_journal(path, manifest)
    records = tuple(record for record in every if record.round < manifest.rounds)
    probes = tuple(record for record in every if record.round >= manifest.rounds)
    return Run(directory, manifest, records, torn, probes)


def _read_journal(path: Path, manifest: Manifest) -> tuple[tuple[Record, ...], int]:
    check = _Checker(manifest)
    records: list[Record] = []
    torn = 0
    try:
        with cast(BinaryIO, gzip.open(path)) if path.suffix == ".gz" else path.open("rb") as file:
            packed = path.stat().st_size
            most = min(MAX_UNPACKED_BYTES, 2**24 + MOST_PACKED * packed) if path.suffix == ".gz" else None
            for number, line in enumerate(lines(file, path, most), start=1):
                if not line.endswith(b"\n"):
                    torn = len(line)
                    break
                try:
                    record = check(parse(line))
                except ValidationError as error:
                    raise UsageError(f"{path}, line {number}: {explain(error)}") from error
                except ValueError as error:
                    raise UsageError(f"{path}, line {number}: {error}") from error
                records.append(record)
    except (EOFError, zlib.error) as error:
        raise UsageError(f"{path}: is damaged ({error})") from error
    except OSError as error:  # gzip.BadGzipFile is one, without strerror
        raise UsageError(f"{path}: cannot be read ({error.strerror or error})") from error
    return tuple(records), torn


def lines(file: BinaryIO, path: Path, most: int | None = None) -> Iterator[bytes]:
    """The lines of a journal, the last perhaps without its newline: then it is torn.

    Raises:
        UsageError: for a line that is too long, and when there are more than ``most`` bytes of them.
    """
    offset = 0
    while line := file.readline(MAX_LINE_BYTES + 1):
        if len(line) > MAX_LINE_BYTES:
            raise UsageError(f"{path}: the line at byte {offset} is longer than {MAX_LINE_BYTES:,} bytes")
        offset += len(line)
        if most is not None and offset > most:
            raise UsageError(f"{path}: holds more than {most:,} bytes")
        yield line


class _Checker:
    """What a journal's records must be together: of the run's cases and rounds, each pair once, ids true.

    Where crossovers are bracketed there may be more rounds, and cases of these.
    """

    def __init__(self, manifest: Manifest) -> None:
        self._rounds = manifest.rounds
        self._refined = manifest.settings.refine is not None
        self._nodes = len(manifest.nodes)
        self._expected = set(manifest.suite.cases)
        self._first: dict[str, Record] = {}  # of each case
        self._seen: set[tuple[str, int]] = set()

    def __call__(self, record: Record) -> Record:
        """The record, sharing with the first of its case what does not change from round to round: memory.

        Raises:
            ValueError: saying what is wrong.
        """
        if (first := self._first.get(record.id)) is None:
            self._admit(record)
            first = self._first[record.id] = record
        elif first.case != record.case:
            raise ValueError(f"key 'id': {record.id} is the id of another case")
        if record.round >= self._rounds and not self._refined:
            raise ValueError(f"key 'round': the run has {self._rounds} rounds, counted from 0, got {record.round}")
        if record.round < self._rounds and record.id not in self._expected:
            raise ValueError(f"key 'id': case {record.id} is not one of the run's suite")
        if record.node is not None and record.node >= self._nodes:
            raise ValueError(f"key 'node': the run has {self._nodes} nodes, counted from 0, got {record.node}")
        if (key := (record.id, record.round)) in self._seen:
            raise ValueError(f"a second record of case {record.id} in round {record.round}")
        self._seen.add(key)
        same = {name: part for name in _CONSTANT if (part := getattr(first, name)) == getattr(record, name)}
        return replace(record, case=first.case, **same)

    def _admit(self, record: Record) -> None:
        problem = record.case.problem
        sides = (problem.batch, problem.channels, problem.channels_out, problem.height, problem.width)
        kernel = record.case.kernel
        if not all(1 <= side <= MAX_SIDE for side in (*sides, 1 if kernel is None else kernel)):
            raise ValueError(f"key 'case': every extent is between 1 and {MAX_SIDE:,}")
        if record.id != record.case.id:
            raise ValueError(f"key 'id': the case's id is {record.case.id}, got {record.id[:40]!r}")


@contextmanager
def _no_collection() -> Iterator[None]:
    """Pause the cycle collector: it walks all of a growing heap again and again, and records have no cycles."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
