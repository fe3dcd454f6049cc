"""A disk that is full, at whatever is written: one clear message, and what was measured can be gone on with."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from cli_process import Started, suite

from niffbench.results import read

SIZES = (9, 14, 28)
RECORDS_OF_ALL = 9
BRIEF = {"rounds": 1, "precision": 0.5, "min_time": 0.0001, "max_time": 0.002}  # a journal smaller than the report
RESUME = ("run", "made-up.toml", "--resume", "out")
FULL = "(No space left on device)"


def refused(place: Path, arguments: list[str], **limits: int) -> str:
    """Run it; returns its one message."""
    # Python would not notice that it wrote but half of a file of bytecode.
    with Started(place, arguments, limits=limits, variables={"PYTHONDONTWRITEBYTECODE": "1"}) as started:
        status, said = started.end(), started.said()
    assert status == 2, said
    assert "Traceback" not in said
    [message] = [line for line in said.splitlines() if line.startswith("niffbench: ")]
    assert said.splitlines()[-1] == message
    return message


def goes_on(place: Path, *, report: bool = False) -> None:
    """What was measured is still there, the rest is measured, and no half-written file is left."""
    before = read(place / "out")
    assert before.torn == 0
    with Started(place, [*RESUME, "--report" if report else "--no-report"]) as resumed:
        assert resumed.end() == 0, resumed.said()
    after = read(place / "out").records
    assert after[: len(before.records)] == before.records
    assert len({(record.id, record.round) for record in after}) == len(after) == RECORDS_OF_ALL
    assert (place / "out" / "report.html").exists() is report
    assert not [path.name for path in (place / "out").rglob(".*")]


def test_a_journal_that_may_not_grow(tmp_path: Path) -> None:
    message = refused(tmp_path, suite(tmp_path, SIZES, **BRIEF), FSIZE=8 * 1024)
    assert message.startswith("niffbench: out/records.jsonl: cannot be written (File too large)")
    assert 0 < len(read(tmp_path / "out").records) < RECORDS_OF_ALL
    goes_on(tmp_path)


def test_a_report_that_may_not_grow(tmp_path: Path) -> None:
    message = refused(tmp_path, suite(tmp_path, SIZES, **BRIEF), FSIZE=100 * 1024)
    assert re.match(r"niffbench: out/(plots/\S+|report.html): cannot be written \(File too large\); ", message)
    assert message.endswith("the records are kept, so when that is mended: niffbench report out")
    assert len(read(tmp_path / "out").records) == RECORDS_OF_ALL
    goes_on(tmp_path, report=True)


class Disk:
    """A file system of some kilobytes, mounted at ``path``."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def resize(self, kilobytes: int, *how: str) -> bool:
        """Make it so large; whether that is allowed."""
        options = ["-o", ",".join((f"size={kilobytes}k", *how))]
        command = ["mount", "-t", "tmpfs", *options, "tmpfs", str(self.path)]
        return subprocess.run(command, check=False, capture_output=True).returncode == 0

    def fill(self) -> None:
        """Leave no byte of it."""
        with suppress(OSError), (self.path / "ballast").open("wb", buffering=0) as file:
            while True:
                file.write(bytes(4096))


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    """Mounted where runs go."""
    made = Disk(tmp_path / "disk")
    made.path.mkdir()
    if os.geteuid() != 0 or not made.resize(10_000):
        pytest.skip("only root may mount a small disk, and not everywhere")
    try:
        yield made
    finally:
        subprocess.run(["umount", "-l", made.path], check=True)


@pytest.mark.parametrize("kilobytes", [0, 16, 400], ids=["at-once", "journal", "report"])
def test_a_disk_that_fills_up(disk: Disk, kilobytes: int) -> None:
    """``kilobytes``: what is free when the run begins."""
    arguments = suite(disk.path, SIZES, **BRIEF)
    disk.fill()
    size = sum(path.stat().st_blocks // 2 for path in disk.path.iterdir())
    assert disk.resize(size + kilobytes, "remount")
    message = refused(disk.path, arguments)
    assert FULL in message
    assert message.startswith("niffbench: out") or "--out out" in message
    assert disk.resize(20_000, "remount")
    if kilobytes == 0:
        assert not (disk.path / "out" / "run.json").exists()
        with Started(disk.path, [*arguments, "--no-report"]) as again:
            assert again.end() == 0, again.said()
    goes_on(disk.path, report=kilobytes == 400)
