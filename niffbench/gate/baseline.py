"""The baseline of a run: the newest run in a directory that it may be compared with."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from niffbench.errors import NothingMeasured, UsageError
from niffbench.fingerprint import differences
from niffbench.results import MANIFEST, Manifest, Run, read, read_manifest


@dataclass(frozen=True)
class Stored:
    """A run's place and manifest; its records are not read yet."""

    path: Path
    manifest: Manifest


def stored_in(directory: Path) -> Iterator[Stored | UsageError]:
    """Every run at or below ``directory``, in no particular order; what cannot be read comes as its error.

    Links are not followed. Raises UsageError when there is no such directory.
    """
    if not directory.is_dir():
        raise UsageError(f"{directory}: there is no such directory")
    for folder, below, files in os.walk(directory):
        if MANIFEST in files:
            below.clear()
            try:
                yield Stored(Path(folder), read_manifest(Path(folder)))
            except UsageError as error:
                yield error


def newest_matching(directory: Path, head: Run, *, across_machines: bool = False) -> tuple[Run, tuple[str, ...]]:
    """The newest finished run of the same suite and fingerprint that measured something; and notes on the way.

    ``head`` itself is no baseline of itself. ``across_machines``: any fingerprint will do.

    Raises NothingMeasured when there is none, saying what there is instead.
    """
    suite, fingerprint = head.manifest.suite.name, head.manifest.fingerprint
    own = head.path.resolve()
    passed: Counter[str] = Counter()
    notes: list[str] = []
    fitting: list[Stored] = []
    fields: Counter[str] = Counter()
    for found in stored_in(directory):
        if isinstance(found, UsageError):
            notes.append(f"passed over: {found}")
        elif found.manifest.suite.name != suite:
            passed[f"of another suite than '{suite}'"] += 1
        elif not across_machines and found.manifest.fingerprint.hash != fingerprint.hash:
            passed["with another fingerprint"] += 1
            fields.update(differences(found.manifest.fingerprint.must, fingerprint.must))
        elif found.manifest.finished is None:
            passed["unfinished"] += 1
        elif found.path.resolve() != own and not _same(found.manifest, head.manifest):
            fitting.append(found)
    for candidate in sorted(fitting, key=lambda found: found.manifest.started, reverse=True):
        try:
            run = read(candidate.path)
        except UsageError as error:
            notes.append(f"passed over: {error}")
            continue
        if any(record.status == "ok" for record in run.records):
            return run, tuple(notes)
        passed["that measured nothing"] += 1
    told = [f"{number} {what}" for what, number in passed.items()] + [f"{len(notes)} unreadable"] * bool(notes)
    unlike = f"; fingerprints differ in {', '.join(sorted(fields)[:12])}" if fields else ""
    raise NothingMeasured(
        f"{directory}: no baseline for {head.name} there (runs: {', '.join(told) or 'none'}){unlike}"
    )


def _same(one: Manifest, two: Manifest) -> bool:
    """Whether two manifests are of one run, kept in two places."""
    return (one.started, one.seed, one.commit) == (two.started, two.seed, two.commit)
