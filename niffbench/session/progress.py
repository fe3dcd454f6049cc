"""How far a run has come, said at once, however many records there are."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from niffbench.errors import UsageError
from niffbench.results import RECORDS, Manifest, read_manifest

_CHUNK = 2**20


@dataclass(frozen=True)
class RunProgress:
    """A run's directory and manifest, and the number of ``records`` in it, those of probes included."""

    directory: Path
    manifest: Manifest
    records: int

    @property
    def missing(self) -> int:
        """Records of the suite that are not there yet; probes come after all of them."""
        return max(self.manifest.records - self.records, 0)


def progress_of(directory: Path) -> RunProgress:
    """The journal's lines are counted, not parsed. Raises UsageError when ``directory`` is no run."""
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
    return RunProgress(directory, manifest, records)
