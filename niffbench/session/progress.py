"""How far a run has come, told at once, however many records there are."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from niffbench.errors import UsageError
from niffbench.results import RECORDS, Manifest, read_manifest

_CHUNK = 2**20


@dataclass(frozen=True)
class RunProgress:
    """A run's directory and manifest, and how many records are ``kept`` in it."""

    directory: Path
    manifest: Manifest
    kept: int

    @property
    def missing(self) -> int:
        """Records that are not there yet."""
        return len(self.manifest.suite.cases) * self.manifest.rounds - self.kept


def standing(directory: Path) -> RunProgress:
    """The journal's lines are counted, not understood. Raises UsageError when ``directory`` is no run."""
    manifest = read_manifest(directory)
    kept = 0
    try:
        with (directory / RECORDS).open("rb") as journal:
            while chunk := journal.read(_CHUNK):
                kept += chunk.count(b"\n")
    except FileNotFoundError:
        pass
    except OSError as error:
        raise UsageError(f"{directory / RECORDS}: cannot be read ({error.strerror})") from error
    return RunProgress(directory, manifest, kept)
