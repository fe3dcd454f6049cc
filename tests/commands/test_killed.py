"""The real command, its real worker and its journal on a replay, killed at random moments: nothing is lost."""

from __future__ import annotations

import contextlib
import os
import random
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import psutil
from cli_process import Started, count, replay, suite, wait_for

from niffbench.results import MANIFEST, Record, Run, read, read_manifest

PACE = 0.3
RESUME = ("run", "made-up.toml", "--resume", "out")
KILLS = int(os.environ.get("NIFFBENCH_TESTS_KILLS", "6"))  # six times LIVES; more, where there is time
LIVES = KILLS // 6


def contents(run: Run) -> dict[tuple[str, int], Record]:
    """The records by case and round, without what depends on when they were made and in which company."""
    result = {(record.id, record.round): replace(record, elapsed=0.0, measuring=0.0) for record in run.records}
    assert len(result) == len(run.records)  # none is there twice
    return result


def uninterrupted(place: Path, arguments: list[str]) -> dict[tuple[str, int], Record]:
    with Started(place, [*arguments, "--no-report"]) as started:
        assert started.end() == 0, started.said()
    whole = contents(read(place / "out"))
    assert {record.status for record in whole.values()} == {"ok"}
    return whole


def measured(out: Path) -> int:
    """Records of whole measurements in the journal of a run that may have only begun."""
    return sum(record.status == "ok" for record in read(out).records) if count(out) else 0


class Lives:
    """A run that is killed again and again, until it is whole. Six cases, two rounds."""

    def __init__(self, place: Path, seed: int) -> None:
        place.mkdir()
        self.place, self.out = place, place / "out"
        self.arguments = suite(place, (9, 14))
        replay(place, pace=PACE)
        self.rng = random.Random(seed)
        self.kills = 0

    def start(self) -> Started:
        return Started(self.place, RESUME if (self.out / MANIFEST).exists() else self.arguments)

    def killed(self, reached: Callable[[], object], within: float) -> None:
        """One life that ends within so many seconds after ``reached`` is true."""
        with self.start() as started:
            wait_for(lambda: reached() or started.process.poll() is not None)
            time.sleep(self.rng.uniform(0.0, within))
            self.kills += started.process.poll() is None
            started.kill()
            wait_for(lambda: not started.family())  # no orphan is left
            assert "Traceback" not in started.said()

    def more(self, records: int) -> Callable[[], bool]:
        """Whether there are so many records more than now."""
        before = count(self.out)
        return lambda: count(self.out) >= before + records

    def spend(self) -> None:
        """In the survey, while measuring, between rounds, again, and in the writing of the report."""
        self.killed(self.more(0), 1.2)
        self.killed(self.more(1), 0.3)
        self.killed(self.more(6 - count(self.out)), 0.4)
        self.killed(self.more(0), 0.8)
        self.killed(self.more(1), 0.3)
        while self.kills < 6:
            self.killed(lambda: read_manifest(self.out).finished, 2.0)


def test_a_session_is_killed_at_random_moments(tmp_path: Path) -> None:
    (tmp_path / "whole").mkdir()
    whole = uninterrupted(tmp_path / "whole", suite(tmp_path / "whole", (9, 14)))
    runs = [Lives(tmp_path / str(seed), seed) for seed in range(LIVES)]
    with ThreadPoolExecutor(2) as both:
        list(both.map(Lives.spend, runs))
    assert sum(run.kills for run in runs) == KILLS
    for run in runs:
        assert contents(read(run.out)) == whole
    with runs[0].start() as last:
        assert last.end() == 0, last.said()
    assert (runs[0].out / "report.html").exists()


def test_workers_are_killed_at_random_moments(tmp_path: Path) -> None:
    """A kill costs the case it struck, and none when it struck a worker that was only starting."""
    (tmp_path / "whole").mkdir()
    (tmp_path / "cli_process").mkdir()
    whole = uninterrupted(tmp_path / "whole", suite(tmp_path / "whole", range(8, 22), rounds=3))
    arguments = suite(tmp_path / "cli_process", range(8, 22), rounds=3)
    replay(tmp_path / "cli_process", pace=PACE)
    out, rng = tmp_path / "cli_process" / "out", random.Random(7)
    killed: set[int] = set()
    with Started(tmp_path / "cli_process", [*arguments, "--no-report"]) as started:
        while len(killed) < KILLS and started.process.poll() is None:
            if len(killed) % 3 == 0:  # wherever it is, the first time in the survey
                wait_for(started.workers)
                time.sleep(rng.uniform(0.0, 1.0))
            else:  # at work, as only a worker is whose case before was measured; a kill writes a record too
                before = measured(out)
                wait_for(lambda before=before: measured(out) > before or started.process.poll() is not None)
                time.sleep(rng.uniform(0.0, 0.15))
            for worker in started.workers():
                with contextlib.suppress(psutil.Error):
                    worker.kill()
                    killed.add(worker.pid)
        assert started.end() == 0, started.said()
    assert len(killed) == KILLS
    result = contents(read(out))
    assert result.keys() == whole.keys()
    lost = {key: record for key, record in result.items() if record.status != "ok"}
    assert KILLS // 3 <= len(lost) <= KILLS
    assert {record.status for record in lost.values()} == {"crashed"}
    assert all("killed by SIGKILL" in str(record.reason) for record in lost.values())
    assert all(record == whole[key] for key, record in result.items() if key not in lost)
