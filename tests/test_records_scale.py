"""Loading grows as the number of records; ``python tests/test_records_scale.py`` prints it, up to 100,000."""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import tempfile
import time
import tracemalloc
from dataclasses import replace
from pathlib import Path

import pytest
from synthetic import World, make

from niffbench.case import Case, Problem
from niffbench.records import MANIFEST, RECORDS, Run, dump, frame, read

SAMPLES = 60


def write(directory: Path, count: int) -> None:
    """A run of ``count`` records with 60 samples each in steady and cold, some 3 kB a record."""
    rounds = 5
    pattern = make(World(sizes=(14,), rounds=1, samples=SAMPLES, faults=()), directory)
    record = next(record for record in pattern.records if record.case.kernel == 7)
    cases = [replace(record.case, problem=Problem(1, 1 + i, 1 + i, 14, 14)) for i in range(count // rounds)]
    echo = pattern.manifest.suite.model_copy(update={"cases": [case.id for case in cases]})
    manifest = pattern.manifest.model_copy(update={"suite": echo, "rounds": rounds})
    (directory / MANIFEST).write_text(manifest.model_dump_json())
    with (directory / RECORDS).open("wb") as journal:
        for number in range(rounds):
            for case in cases:
                journal.write(dump(replace(record, case=case, id=case.id, round=number)))


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


def measure(count: int) -> dict[str, float]:
    """Load ``count`` records in this fresh process; seconds and the process's peak in GB."""
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        subprocess.run([sys.executable, __file__, "write", name, str(count)], check=True)
        run, loading = load(directory)
        begun = time.process_time()
        table = frame(run)
        framing = time.process_time() - begun
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
        size = (directory / RECORDS).stat().st_size / 1e6
        return {"records": len(table), "MB": size, "load s": loading, "frame s": framing, "peak GB": peak}


def main() -> None:
    if sys.argv[1:2] == ["write"]:
        write(Path(sys.argv[2]), int(sys.argv[3]))
    elif sys.argv[1:2] == ["load"]:
        print(json.dumps(measure(int(sys.argv[2]))))
    else:
        for count in (1000, 10_000, 100_000):
            out = subprocess.run([sys.executable, __file__, "load", str(count)], check=True, capture_output=True)
            print("  ".join(f"{key} {value:.3g}" for key, value in json.loads(out.stdout).items()), flush=True)


if __name__ == "__main__":
    main()
