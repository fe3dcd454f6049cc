"""The archive: a history of runs in a directory, by fingerprint, suite and commit."""

from __future__ import annotations

import gzip
import hashlib
import re
import tempfile
from collections.abc import Sequence
from pathlib import Path

from niffbench.errors import NothingMeasured, UsageError
from niffbench.gate.baseline import Stored, stored_in
from niffbench.results import COMPRESSED, MANIFEST, Manifest, Run, dump, read

_SAFE = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,63}")


def place(manifest: Manifest) -> Path:
    """Where a run stands, relative to the archive: ``<fingerprint>/<suite>/<time>-<commit>``."""
    commit = (manifest.commit or "no-commit")[:12] + ("-dirty" if manifest.dirty else "")
    moment = re.sub(r"[^0-9T]", "", manifest.started[:19]) or "undated"
    return Path(manifest.fingerprint.hash, _component(manifest.suite.name), _component(f"{moment}-{commit}"))


def _component(text: str) -> str:
    """A name that is one harmless path component, whatever the manifest says."""
    return text if _SAFE.fullmatch(text) else hashlib.sha256(text.encode()).hexdigest()[:12]


def keep(directory: Path, run: Run) -> Path:
    """Copy a run (manifest and packed records, no report) into the archive; return its place. Twice is once.

    Raises UsageError when the archive cannot be written, and NothingMeasured for a run without any measurement.
    """
    if not any(record.status == "ok" for record in run.records):
        raise NothingMeasured(f"{run.name} measured nothing, so it is not kept in {directory}")
    target = directory / place(run.manifest)
    if target.exists():
        return target
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=target.parent, prefix=".new-") as staging:
            whole = Path(staging, "run")
            whole.mkdir()
            (whole / MANIFEST).write_text(run.manifest.model_dump_json(indent=1), encoding="utf-8")
            # Without a time in the header, equal runs are equal files.
            with gzip.GzipFile(whole / COMPRESSED, "wb", mtime=0) as journal:
                journal.writelines(map(dump, run.records))
            whole.rename(target)
    except OSError as error:
        raise UsageError(f"{directory}: the run cannot be kept there ({error.strerror})") from error
    return target


def history(
    directory: Path, suite: str | None = None, fingerprint: str | None = None
) -> tuple[Sequence[Run], tuple[str, ...]]:
    """The archive's runs of one suite and fingerprint, oldest first, and notes on what could not be read.

    Left out, suite and fingerprint are those of the newest run. Raises NothingMeasured for an empty archive.
    """
    notes: list[str] = []
    found: list[Stored] = []
    for item in stored_in(directory):
        if isinstance(item, UsageError):
            notes.append(f"passed over: {item}")
        else:
            found.append(item)
    if not found:
        raise NothingMeasured(f"{directory}: no run is kept there" + (f" ({notes[0]})" if notes else ""))
    found.sort(key=lambda item: item.manifest.started)
    newest = found[-1].manifest
    suite, fingerprint = suite or newest.suite.name, fingerprint or newest.fingerprint.hash
    runs: list[Run] = []
    for item in found:
        if item.manifest.suite.name == suite and item.manifest.fingerprint.hash == fingerprint:
            try:
                runs.append(read(item.path))
            except UsageError as error:
                notes.append(f"passed over: {error}")
    return runs, tuple(notes)
