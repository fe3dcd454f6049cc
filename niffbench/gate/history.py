"""Histories: runs kept in a directory in the order of their arrival, and which of them came before a run."""

from __future__ import annotations

import gzip
import hashlib
import os
import re
import shutil
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

from niffbench.errors import NothingMeasured, UsageError
from niffbench.gate.case_results import RunCases
from niffbench.results import COMPRESSED, MANIFEST, Manifest, Run, dump, read, read_manifest
from niffbench.session.lock import Lock
from niffbench.suite import Selection

_SAFE = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,63}")
_ENTRY = re.compile(r"(\d{6,})-.*-([0-9a-f]{8})")
"""The name of a run that is kept: number of its arrival, time, commit, digest. Older ones have no number."""
_STAGING = ".new-"


@dataclass(frozen=True)
class Stored:
    """A run's place and manifest; its records are not read yet.

    Attributes:
        arrival: its number in a history; 0 for what was kept before there were numbers, or is in no history.
    """

    path: Path
    manifest: Manifest
    arrival: int

    @property
    def started(self) -> datetime:
        """When it began."""
        return datetime.fromisoformat(self.manifest.started)


@dataclass(frozen=True)
class Earlier:
    """The runs before one, of its suite and on one fingerprint, the newest first; and notes on the others.

    Attributes:
        changed_environment: none was on the run's own fingerprint, so these are of the last one before it.
        unreadable: the places of runs of its suite in a history that cannot be read, and why.
    """

    runs: tuple[Stored, ...]
    notes: tuple[str, ...]
    changed_environment: bool = False
    unreadable: Mapping[Path, str] = field(default_factory=dict)

    def read(self, notes: dict[Path, str], *, oldest_first: bool = False) -> Iterator[tuple[int, Run]]:
        """Each run that can be read, with how many runs ago it was; of what cannot be ``notes`` says why."""
        numbered = list(enumerate(self.runs, start=1))
        for age, stored in reversed(numbered) if oldest_first else numbered:
            try:
                yield age, read(stored.path)
            except UsageError as error:
                notes[stored.path] = f"passed over: {error}"


def stored_in(directory: Path) -> Iterator[tuple[Path, Stored | UsageError]]:
    """Every run at or below ``directory``, in no particular order; what cannot be read with its error.

    Links are not followed.

    Raises:
        UsageError: when there is no such directory.
    """
    for folder in places(directory):
        try:
            yield folder, Stored(folder, read_manifest(folder), arrival(folder))
        except UsageError as error:
            yield folder, error


def places(directory: Path) -> Iterator[Path]:
    """The directories of all runs at or below ``directory``, and those of a history that lost their run.

    Raises:
        UsageError: when there is no such directory.
    """
    if not directory.is_dir():
        raise UsageError(f"{directory}: there is no such directory")
    for folder, below, files in os.walk(directory):
        if MANIFEST in files or (  # a folder with runs below it is only named like one of a history
            _ENTRY.fullmatch(Path(folder).name) and not any(MANIFEST in names for *_, names in os.walk(folder))
        ):
            below.clear()
            yield Path(folder)
        below[:] = [name for name in below if not name.startswith(_STAGING)]  # what others are just keeping


def arrival(folder: Path) -> int:
    """A run's number in its history, 0 without one."""
    entry = _ENTRY.fullmatch(folder.name)
    return int(entry[1]) if entry else 0


def keep(directory: Path, run: Run) -> Path:
    """Copy a run (manifest and packed records, no report) into a history; return its place. Twice is once.

    It stands at ``<fingerprint>/<suite>/<number>-<time>-<commit>-<digest>``. The number, which alone gives the
    order, is drawn under a lock, so that any number of processes may keep runs at a time.

    Raises:
        UsageError: when the history cannot be written.
        NothingMeasured: for a run without any measurement.
    """
    if not any(record.status == "ok" for record in run.records):
        raise NothingMeasured(f"{run.name} measured nothing, so it is not kept in {directory}")
    manifest = run.manifest
    content = manifest.model_dump_json(indent=1).encode()
    lines = [dump(record) for record in (*run.records, *run.probes)]
    digest = hashlib.sha256(b"".join((content, *lines))).hexdigest()[:8]
    commit = (manifest.commit or "no-commit")[:12] + ("-dirty" if manifest.dirty else "")
    name = component(f"{re.sub(r'[^0-9T]', '', manifest.started[:19])}-{commit}")
    room = directory / manifest.fingerprint.hash / component(manifest.suite.name)
    try:
        room.mkdir(parents=True, exist_ok=True)
        with Lock(directory, wait=True):
            alike = (path for path in room.iterdir() if path.name.endswith(f"-{digest}") or path.name == name)
            for path in alike:
                if path.name != name or read_manifest(path) == manifest:
                    return path
            number = 1 + max((int(entry[1]) for entry in _entries(directory)), default=0)
            with tempfile.TemporaryDirectory(dir=room, prefix=_STAGING) as staging:
                whole = Path(staging, "run")
                whole.mkdir()
                (whole / MANIFEST).write_bytes(content)
                # Without a time in the header, equal runs are equal files.
                with gzip.GzipFile(whole / COMPRESSED, "wb", mtime=0) as journal:
                    journal.writelines(lines)
                return whole.rename(room / f"{number:06}-{name}-{digest}")
    except OSError as error:
        raise UsageError(f"{directory}: the run cannot be kept there ({error.strerror})") from error


def prune(directory: Path, run: Run, newest: int) -> int:
    """Remove old runs of ``run``'s suite and fingerprint; returns how many.

    What stays are the ``newest``, and of each case those in which more rounds had a value of a metric, or a ratio
    to the baseline operator, than in any before: one of them is its accepted level, at any alpha.

    Raises:
        UsageError: when the history cannot be written.
    """
    with Lock(directory, wait=True):
        stored = of_suite(directory, run.manifest.suite.name, run.manifest.fingerprint.hash).runs
        most: dict[tuple[str, str], int] = {}
        removed = 0
        for one in reversed(stored[newest:]):
            try:
                rounds = RunCases(read(one.path), Selection(())).rounds
            except UsageError:
                continue  # nobody knows what it is
            if all(number <= most.get(key, 0) for key, number in rounds.items()):
                try:
                    shutil.rmtree(one.path)
                except OSError as error:
                    raise UsageError(f"{one.path}: cannot be removed ({error.strerror})") from error
                removed += 1
            most |= {key: max(number, most.get(key, 0)) for key, number in rounds.items()}
    return removed


def _entries(directory: Path) -> Iterator[re.Match[str]]:
    return (entry for path in directory.glob("*/*/*") if (entry := _ENTRY.fullmatch(path.name)))


def component(text: str) -> str:
    """A name that is one harmless path component, whatever the manifest says."""
    return text if _SAFE.fullmatch(text) else hashlib.sha256(text.encode()).hexdigest()[:12]


def before(directory: Path, head: Run, *, by_arrival: bool, across_machines: bool = False) -> Earlier:
    """The runs of ``head``'s suite that were there before it.

    Args:
        by_arrival: the directory is a history, whose order is that of arrival, whatever clocks said; else the
            order is that in which runs began, and what began after ``head`` is passed over.
        across_machines: any fingerprint will do. ``head`` itself is not before itself, nor is a copy of it.

    Raises:
        NothingMeasured: when there is none, saying what there is instead.
        UsageError: when there are only some that cannot be read, or that began later.
    """
    suite, fingerprint = head.manifest.suite.name, head.manifest.fingerprint
    passed: Counter[str] = Counter()
    notes: list[str] = []
    unreadable: dict[Path, str] = {}
    runs: list[Stored] = []
    own: list[int] = []
    for folder, item in stored_in(directory) if not by_arrival or directory.exists() else ():
        if isinstance(item, UsageError):
            if by_arrival and folder.parent.name == component(suite):
                unreadable[folder] = f"passed over: {item}"
            else:
                notes.append(f"passed over: {item}")
        elif item.manifest.suite.name != suite:
            passed[f"of another suite than '{suite}'"] += 1
        elif item.path.resolve() == head.path.resolve() or same(item.manifest, head.manifest):
            own.append(item.arrival)
        else:
            runs.append(item)
    runs.sort(key=lambda item: (item.arrival, item.started) if by_arrival else (0, item.started), reverse=True)
    moment = Stored(head.path, head.manifest, 0).started
    if by_arrival:
        runs = [item for item in runs if not own or item.arrival < max(own) or _unnumbered(item, own, moment)]
    elif later := [item for item in runs if item.started > moment]:
        notes.append(
            f"passed over: {len(later)} of {len(runs)} runs that began after {head.name}, as "
            f"{later[0].path.name} on {later[0].manifest.started}"
        )
        runs = [item for item in runs if item.started <= moment]
        if not runs:
            raise UsageError(
                f"{directory}: every run of '{suite}' began after {head.name} ({head.manifest.started}); "
                "if its clock was wrong, name BASE by hand"
            )
    alike = [item for item in runs if across_machines or item.manifest.fingerprint.hash == fingerprint.hash]
    if alike:
        return Earlier(tuple(alike), tuple(notes), unreadable=unreadable)
    if runs:
        last = runs[0].manifest.fingerprint
        changed = tuple(item for item in runs if item.manifest.fingerprint.hash == last.hash)
        return Earlier(changed, tuple(notes), changed_environment=True, unreadable=unreadable)
    if unreadable:
        raise UsageError(f"no run of the history can be read: {'; '.join(unreadable.values())[:500]}")
    others = [f"{number} {what}" for what, number in passed.items()] + [f"{len(notes)} passed over"] * bool(notes)
    raise NothingMeasured(f"{directory}: no baseline yet for {head.name} (runs: {', '.join(others) or 'none'})")


def _unnumbered(item: Stored, own: Sequence[int], moment: datetime) -> bool:
    """Whether a run that was kept without a number came before one that was, too."""
    return item.arrival == max(own) == 0 and item.started < moment


def same(one: Manifest, two: Manifest) -> bool:
    """Whether two manifests are of one run, kept in two places; it may have been resumed since."""
    changing = {"finished", "wall", "ceilings", "notes", "refining"}
    return one.model_dump(exclude=changing) == two.model_dump(exclude=changing)


def of_suite(directory: Path, suite: str | None = None, fingerprint: str | None = None) -> Earlier:
    """A history's runs of one suite and fingerprint.

    Left out, suite and fingerprint are those of the newest run.

    Raises:
        NothingMeasured: for an empty history.
    """
    notes: list[str] = []
    runs: list[Stored] = []
    for _, item in stored_in(directory):
        if isinstance(item, UsageError):
            notes.append(f"passed over: {item}")
        else:
            runs.append(item)
    if not runs:
        raise NothingMeasured(f"{directory}: no run is kept there" + (f" ({notes[0]})" if notes else ""))
    runs.sort(key=lambda item: (item.arrival, item.started), reverse=True)
    newest = runs[0].manifest
    suite, fingerprint = suite or newest.suite.name, fingerprint or newest.fingerprint.hash
    meant = (r for r in runs if (r.manifest.suite.name, r.manifest.fingerprint.hash) == (suite, fingerprint))
    return Earlier(tuple(meant), tuple(notes))
