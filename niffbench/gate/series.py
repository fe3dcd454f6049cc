"""Series: all that a history holds of one suite on one machine, read once and remembered in an index."""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, cast

from pydantic import TypeAdapter

from niffbench import __version__
from niffbench.device.host import cores
from niffbench.errors import FingerprintsDiffer, NothingMeasured, UsageError
from niffbench.gate.case_results import RunCases
from niffbench.gate.history import arrival, places
from niffbench.gate.rules import Rules
from niffbench.gate.trend import Moment, Trend, followed, of_values, values_of
from niffbench.results import Run, read
from niffbench.results.fleet import of_one_machine
from niffbench.results.reading import MOST_PACKED, lines
from niffbench.suite import Selection

INDEX = "index.jsonl.gz"
_FORMAT = {"index": 4, "niffbench": __version__}
_WORTH_PROCESSES = 40
"""Runs from which several processes read faster than one."""


@dataclass(frozen=True)
class Entry:
    """What is remembered of a run: where it is in the history, where it is from, and its values."""

    place: str
    started: str
    commit: str | None
    suite: str
    fingerprint: str
    is_scattered: bool
    controls: tuple[str, ...]
    values: dict[str, dict[str, list[float]]]

    @property
    def moment(self) -> Moment:
        """When it was."""
        return Moment(self.started, self.commit, self.is_scattered, self.controls)


@dataclass(frozen=True)
class Series:
    """The runs of one suite on one machine, oldest first, the newest as it is, and the trends of its cases."""

    entries: tuple[Entry, ...]
    newest: Run
    trends: tuple[Trend, ...]

    @property
    def name(self) -> str:
        """The suite's."""
        return self.entries[0].suite


def collect(history: Path, index: Path, rules: Rules, notes: list[str]) -> Iterator[Series]:
    """Every series of a history, by suite and fingerprint; what cannot be read is appended to ``notes``.

    Each run is read once: what was learned of it is in ``index``, which is written anew.

    Raises:
        UsageError: when either directory cannot be used.
        NothingMeasured: for an empty history.
    """
    remembered = {entry.place: entry for entry in _remembered(index)}
    folders = sorted(places(history), key=lambda folder: (arrival(folder), folder.name))
    new = [folder for folder in folders if str(folder.relative_to(history)) not in remembered]
    for folder, entry in zip(new, _read_all(new, history), strict=True):
        if isinstance(entry, str):
            notes.append(entry)
        else:
            remembered[str(folder.relative_to(history))] = entry
    entries = [remembered[name] for folder in folders if (name := str(folder.relative_to(history))) in remembered]
    if not entries:
        raise NothingMeasured(f"{history}: no run is kept there")
    if new or len(entries) < len(remembered):
        _remember(index, entries)
    series: dict[tuple[str, str], list[Entry]] = {}
    for entry in entries:
        series.setdefault((entry.suite, entry.fingerprint), []).append(entry)
    for _, members in sorted(series.items()):
        newest = RunCases(read(history / members[-1].place), Selection(()))
        moments = [entry.moment for entry in members]
        trends = of_values(newest, moments, [entry.values for entry in members], rules)
        yield Series(tuple(members), newest.run, trends)


def _read_all(folders: Sequence[Path], history: Path) -> Iterable[Entry | str]:
    if len(folders) < _WORTH_PROCESSES:
        return [_read(folder, history) for folder in folders]
    with ProcessPoolExecutor(min(cores(), 8)) as pool:
        return list(pool.map(_read, folders, [history] * len(folders), chunksize=8))


def _read(folder: Path, history: Path) -> Entry | str:
    try:
        run = of_one_machine(read(folder))
    except (UsageError, FingerprintsDiffer) as error:
        return f"passed over: {error}"
    manifest = run.manifest
    values = values_of(run, followed(Rules()))
    # Of what is the same in every round once is enough.
    shorter = {
        id_: {key: list(rounds if len(set(rounds)) > 1 else rounds[:1]) for key, rounds in metrics.items()}
        for id_, metrics in values.items()
    }
    place = str(folder.relative_to(history))
    moment, name, machine = Moment.of(run), manifest.suite.name, manifest.fingerprint.hash
    controls = tuple(moment.controls)
    return Entry(place, moment.started, moment.commit, name, machine, moment.is_scattered, controls, shorter)


_ENTRY: TypeAdapter[Entry] = TypeAdapter(Entry)


def _remembered(index: Path) -> Iterator[Entry]:
    """The entries of an index of this format; none of another, or of one that is damaged or no regular file."""
    try:
        most = 2**24 + MOST_PACKED * index.stat().st_size
        if index.is_file():
            with cast(BinaryIO, gzip.open(index)) as file:
                entries = lines(file, index, most)
                if json.loads(next(entries)) == _FORMAT:
                    yield from [_ENTRY.validate_json(line) for line in entries]
    except (OSError, EOFError, zlib.error, ValueError, UsageError, RecursionError, StopIteration):
        return


def _remember(index: Path, entries: Iterable[Entry]) -> None:
    draft = index.with_suffix(".new")
    try:
        with gzip.open(draft, "wb", compresslevel=1) as file:
            file.write(json.dumps(_FORMAT).encode() + b"\n")
            file.writelines(_ENTRY.dump_json(entry) + b"\n" for entry in entries)
        draft.replace(index)
    except OSError as error:
        raise UsageError(f"{index}: cannot be written ({error.strerror})") from error
