"""Writing, resuming, loading and reporting grow as the number of records.

``python tests/results/test_scale.py`` prints it: of 1,000 and 10,000 records, and loading up to 100,000, and
fails when that takes more than is promised. Appending takes as long as the disk takes to be sure of so many lines:
see its processor time for what is ours.
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import tempfile
import time
import tracemalloc
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from types import FrameType
from typing import TypeVar

import pytest
from run_session import Attempt, all_keys, keys, suite_of
from synthetic import WORLD, World, make, save

import niffbench
from niffbench import report
from niffbench.case import Case, Problem
from niffbench.report import view
from niffbench.results import MANIFEST, RECORDS, Record, Run, dump, frame, read
from niffbench.session.interrupts import Interrupts
from niffbench.session.journal import Journal
from niffbench.session.opening import begin

SAMPLES = 60
ROUNDS = 5
MOST_SECONDS, MOST_MEMORY = 10.0, 1.0  # and GB: what loading 100,000 records may take on two cores
PACKAGE = str(Path(niffbench.__file__).parent)
Result = TypeVar("Result")


def write(directory: Path, count: int) -> None:
    """A run of ``count`` records with 60 samples each in steady and cold, some 3 kB a record."""
    run = pattern(directory)
    record = typical(run)
    cases = [replace(record.case, problem=Problem(1, 1 + i, 1 + i, 14, 14)) for i in range(count // ROUNDS)]
    echo = run.manifest.suite.model_copy(update={"cases": [case.id for case in cases]})
    settings = run.manifest.settings.model_copy(update={"rounds": ROUNDS})
    manifest = run.manifest.model_copy(update={"suite": echo, "settings": settings})
    (directory / MANIFEST).write_text(manifest.model_dump_json())
    with (directory / RECORDS).open("wb") as journal:
        journal.writelines(dump(each) for each in repeated(record, cases))


def pattern(directory: Path) -> Run:
    """A run of one problem and one round; nothing is written."""
    return make(World(sizes=(14,), rounds=1, samples=SAMPLES, faults=()), directory)


def typical(run: Run) -> Record:
    return next(record for record in run.records if record.case.kernel == 7)


def repeated(record: Record, cases: Iterable[Case]) -> Iterator[Record]:
    """The same of every case in every round."""
    for number in range(ROUNDS):
        for case in cases:
            yield replace(record, case=case, id=case.id, round=number)


def interrupted(directory: Path, count: int) -> tuple[Attempt, list[Record]]:
    """A run that was begun and nothing of which is there yet, and the records it shall have, but for the last."""
    attempt = Attempt(directory, suite_of(range(16, 16 + count // ROUNDS), kernels=(7,), rounds=ROUNDS))
    with Interrupts() as stop, begin(directory, attempt.prepare(stop), ["niffbench", "run"], 0.0):
        pass
    return attempt, list(repeated(typical(pattern(directory)), attempt.suite.cases))[:-1]


def append(directory: Path, records: Iterable[Record]) -> None:
    with Journal(directory) as journal:
        for record in records:
            journal.append(record)


def reported(directory: Path, problems: int) -> Run:
    """A run of eight operators at so many problems, read from where it was written."""
    channels = tuple(8 * (1 + i) for i in range(-(-problems // 4)))
    operators = tuple(one for one in WORLD if one.operator in ("niff-depthwise/rfft", "depthwise", "dense"))
    kernels = {"dense": (3, 7, 15)}
    save(
        make(
            World(channels=channels, rounds=ROUNDS, samples=SAMPLES, operators=operators, kernels=kernels),
            directory,
        )
    )
    return read(directory)


def load(directory: Path) -> tuple[Run, float]:
    begun = time.process_time()
    run = read(directory)
    return run, time.process_time() - begun


def test_loading_is_linear(tmp_path: Path) -> None:
    seconds = []
    for count in (500, 5000):
        place = tmp_path / str(count)
        place.mkdir()
        write(place, count)
        run, spent = load(place)
        assert len(run.records) == count
        seconds.append(spent)
    assert seconds[1] < 30 * seconds[0]  # a quadratic cost would be a hundred times


def test_a_record_takes_little_more_memory_than_its_samples(tmp_path: Path) -> None:
    """A run of 100,000 records then fits in a third of a gigabyte; as lists, the samples alone took more."""
    write(tmp_path, 1000)
    read(tmp_path)  # what is imported and cached is not the records'
    tracemalloc.start()
    run = read(tmp_path)
    taken = tracemalloc.get_traced_memory()[0] / len(run.records)
    tracemalloc.stop()
    samples = sum(8 * len(series.samples) for series in run.records[0].latency.values())
    print(f"{taken:.0f} bytes a record, {samples} of them samples")
    assert taken < 4 * samples


@pytest.mark.benchmark(group="loading")
def test_loading_a_thousand_records(benchmark: object, tmp_path: Path) -> None:
    write(tmp_path, 1000)
    run = benchmark(read, tmp_path)  # type: ignore[operator]
    assert len(run.records) == 1000
    assert isinstance(run.records[0].case, Case)


def calls(work: Callable[[], object]) -> int:
    """How often ``work`` calls functions, in the package's own code: of any language, but not what those call."""
    made = 0

    def see(frame: FrameType, event: str, _: object) -> None:
        nonlocal made
        made += event in ("call", "c_call") and frame.f_code.co_filename.startswith(PACKAGE)

    sys.setprofile(see)
    try:
        work()
    finally:
        sys.setprofile(None)
    return made


GROWTH = 6
"""Of four times as many records at most: sorting is a little more than four times, what is quadratic sixteen."""


def test_a_resumed_run_does_so_much_for_each_record(tmp_path: Path) -> None:
    made = []
    for count in (200, 800):
        attempt, records = interrupted(tmp_path / str(count), count)
        with (attempt.place / RECORDS).open("wb") as journal:
            journal.writelines(map(dump, records))
        made.append(calls(attempt.resume))
        assert keys(read(attempt.place)) == all_keys(attempt.suite)
    print(made)
    assert made[1] < GROWTH * made[0]


PLOTS = ("overview", "scaling", "steps", "roofline", "pareto", "errors")
MAPS = ("winners", "ratios")


def test_a_report_does_so_much_for_each_record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """But for its plots: their number is fixed, and a call of matplotlib's says little."""
    for name in PLOTS:
        monkeypatch.setattr(view, name, lambda *_: None)
    for name in MAPS:
        monkeypatch.setattr(view.maps, name, lambda *_: None)
    made = []
    for problems in (4, 16):
        run = reported(tmp_path / str(problems), problems)
        made.append(calls(lambda run=run: report.draw(run)))  # type: ignore[misc]
    print(made)
    assert made[1] < GROWTH * made[0]


@dataclass(frozen=True)
class Step:
    """What was done with so many records, in seconds of wall and processor time."""

    name: str
    records: int
    megabytes: float
    wall: float
    processor: float
    peak: float  # of the process's memory until now, in GB


def timed(name: str, directory: Path, work: Callable[[], Result]) -> tuple[Result, Step]:
    wall, processor = time.perf_counter(), time.process_time()
    result = work()
    wall, processor = time.perf_counter() - wall, time.process_time() - processor
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    content = (directory / RECORDS).read_bytes()
    return result, Step(name, content.count(b"\n"), len(content) / 1e6, wall, processor, peak)


def measure(name: str, count: int) -> list[Step]:
    """Do it with ``count`` records, in this fresh process."""
    with tempfile.TemporaryDirectory() as place:
        directory = Path(place) / "run"
        directory.mkdir()
        if name == "append":
            attempt, records = interrupted(directory, count)
            _, written = timed("append", directory, lambda: append(directory, records))
            _, resumed = timed("resume", directory, attempt.resume)
            return [written, resumed]
        if name == "report":
            run = reported(directory, count // (8 * ROUNDS))
            return [timed("report", directory, lambda: report.draw(run))[1]]
        subprocess.run([sys.executable, __file__, "write", str(directory), str(count)], check=True)
        run, loaded = timed("load", directory, lambda: read(directory))
        return [loaded, timed("frame", directory, lambda: frame(run))[1]]


def main() -> int:
    """Each step of each size in a process of its own, and its growth from the size before; the exit status."""
    if sys.argv[1:2] == ["write"]:
        write(Path(sys.argv[2]), int(sys.argv[3]))
        return 0
    if len(sys.argv) == 3:
        print(json.dumps([asdict(step) for step in measure(sys.argv[1], int(sys.argv[2]))]))
        return 0
    before: dict[str, Step] = {}
    for name, counts in (
        ("append", (1000, 10_000)),
        ("load", (1000, 10_000, 100_000)),
        ("report", (1000, 10_000)),
    ):
        for count in counts:
            command = [sys.executable, __file__, name, str(count)]
            done = subprocess.run(command, check=True, stdout=subprocess.PIPE)
            for step in (Step(**output) for output in json.loads(done.stdout)):
                print(_line(step, before.get(step.name)), flush=True)
                before[step.name] = step
    loaded = before["load"]
    holds = loaded.wall <= MOST_SECONDS and loaded.peak <= MOST_MEMORY
    if not holds:
        print(f"the promise for {loaded.records:,} records is {MOST_SECONDS:g} s and {MOST_MEMORY:g} GB")
    return 0 if holds else 1


def _line(step: Step, smaller: Step | None) -> str:
    output = (
        f"{step.name:6} {step.records:7,} records {step.megabytes:6.1f} MB  {step.wall:7.2f} s, "
        f"{step.processor:6.2f} s of a processor, peak {step.peak:.2f} GB"
    )
    if smaller is None:
        return output
    growth = step.records / smaller.records
    wall, processor = step.wall / smaller.wall, step.processor / smaller.processor
    return f"{output}; {growth:.0f} times the records: {wall:.1f} times, {processor:.1f} of a processor"


if __name__ == "__main__":
    sys.exit(main())
