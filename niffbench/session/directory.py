"""A run's directory: where it may be made, its manifest, and how far the run in it has come."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from secrets import token_hex

from niffbench.errors import UsageError
from niffbench.results import MANIFEST, RECORDS, Manifest, machine_runs, read_manifest
from niffbench.session.journal import JournalLost, sync_directory
from niffbench.session.lock import LOCK

_CHUNK = 2**20
_DRAFT = Path(MANIFEST).with_suffix(".tmp").name


def default(name: str) -> Path:
    """``reports/NAME-TIME-ID``; the short id tells runs apart that begin in one second."""
    return Path("reports") / f"{name}-{datetime.now():%Y%m%d-%H%M%S}-{token_hex(2)}"


def is_vacant(directory: Path) -> bool:
    """Whether it holds nothing, or only what a run leaves that was killed before its manifest was there."""
    return all(path.name in (LOCK, _DRAFT) for path in directory.iterdir())


def check_vacant(directory: Path) -> None:
    """Raise UsageError unless ``directory`` is empty, or can be made; nothing is written."""
    try:
        if directory.is_dir():
            if not is_vacant(directory):
                raise UsageError(f"--out {directory}: is not empty; name a new directory, or --resume it")
        elif directory.exists() or directory.is_symlink():
            raise UsageError(f"--out {directory}: is not a directory")
        ancestor = next(path for path in (directory, *directory.absolute().parents) if path.exists())
    except OSError as error:
        raise UsageError(f"--out {directory}: cannot be used ({error.strerror})") from error
    if not ancestor.is_dir():
        raise UsageError(f"--out {directory}: {ancestor} is not a directory")
    if not os.access(ancestor, os.W_OK | os.X_OK):
        raise UsageError(f"--out {directory}: {ancestor} cannot be written to")


def make(directory: Path) -> None:
    """Make ``directory``.

    Raises:
        UsageError: when that fails.
    """
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"--out {directory}: cannot be made ({error.strerror})") from error


def write_manifest(directory: Path, manifest: Manifest) -> None:
    """Write ``run.json`` whole or not at all: a reader sees the old one or the new one.

    Raises:
        JournalLost: when it cannot be written.
    """
    path = directory / MANIFEST
    draft = directory / _DRAFT
    try:
        with draft.open("w", encoding="utf-8") as file:
            file.write(manifest.model_dump_json(indent=1) + "\n")
            file.flush()
            os.fsync(file.fileno())
        draft.replace(path)
        sync_directory(directory)
    except OSError as error:
        raise JournalLost(f"{path}: cannot be written ({error.strerror})") from error


@dataclass(frozen=True)
class RunProgress:
    """A run's directory and manifest, and the number of ``records`` in it, those of probes included.

    Attributes:
        missing: records of the suite that are not there yet; probes come after all of them.
    """

    directory: Path
    manifest: Manifest
    records: int
    missing: int

    @classmethod
    def of(cls, directory: Path, manifest: Manifest, records: int) -> RunProgress:
        """That of a run with so many records."""
        return cls(directory, manifest, records, max(manifest.records - records, 0))


def progress_of(directory: Path) -> RunProgress:
    """How far a run has come, and those of the other machines that it met; lines are counted, not parsed.

    Raises:
        UsageError: when ``directory`` is no run.
    """
    progress = _progress_of(directory)
    every = [progress, *map(_progress_of, machine_runs(directory))]
    begun = {one.manifest.fingerprint.hash for one in every}
    unlike = {fingerprint.hash for one in every for fingerprint in one.manifest.unlike}
    missing = sum(one.missing for one in every) + len(unlike - begun) * progress.manifest.records
    return replace(progress, records=sum(one.records for one in every), missing=missing)


def _progress_of(directory: Path) -> RunProgress:
    manifest = read_manifest(directory)
    records = 0
    try:
        with (directory / RECORDS).open("rb") as journal:
            while chunk := journal.read(_CHUNK):
                records += chunk.count(b"\n")
    except FileNotFoundError:
        pass
    except OSError as error:
        raise UsageError(f"{directory / RECORDS}: cannot be read ({error.strerror})") from error
    return RunProgress.of(directory, manifest, records)
