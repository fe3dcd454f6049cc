"""The end of an interrupted run: its report, written by a process of its own, after which nobody looks."""

from __future__ import annotations

import io
import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TextIO

import pytest
from synthetic import World, make, save

from niffbench import report
from niffbench.commands.run_output import Screen, _write_aside
from niffbench.results import RECORDS, Run
from niffbench.session.interrupts import INTERRUPTED, Interrupted, Interrupts
from niffbench.session.lock import Lock
from niffbench.session.progress import standing

Draw = Callable[[Run], dict[str, str]]


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return save(make(World(sizes=(14,), rounds=1, samples=4), tmp_path / "run"))


def written(run: Run, monkeypatch: pytest.MonkeyPatch, draw: Draw) -> bool:
    """Whether it says that the report is there; ``draw`` takes the place of the seconds that drawing takes."""
    monkeypatch.setattr(report, "draw", draw)
    _, status = os.waitpid(_write_aside(run.path), 0)
    assert (run.path / "report.html").exists() is (status == 0)
    return status == 0


def test_it_is_there_when_the_process_says_so(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    assert written(run, monkeypatch, lambda found: {"report.html": str(len(found.records))})
    assert (run.path / "report.html").read_text() == str(len(run.records))
    assert not (run.path / ".lock").exists()


def test_a_report_that_cannot_be_drawn_is_not_done(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(found: Run) -> dict[str, str]:
        raise MemoryError

    assert not written(run, monkeypatch, broken)


def test_a_run_that_is_going_on_keeps_its_report(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    with Lock(run.path):
        assert not written(run, monkeypatch, lambda found: {"report.html": "old"})


def test_a_run_that_has_gone_on_keeps_its_report(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def late(found: Run) -> dict[str, str]:
        with (found.path / RECORDS).open("ab") as journal:
            journal.write(b"another record\n")
        return {"report.html": "old"}

    assert not written(run, monkeypatch, late)


def part(run: Run, out: TextIO, err: TextIO) -> int:
    """The exit status of one who is patient, though interrupted."""
    if (child := os.fork()) == 0:
        try:
            sys.stdout, sys.stderr = out, err
            with Interrupts() as stop:
                stop.when = time.monotonic() + 60
                screen = Screen(as_json=True, quiet=False, report=True)
                screen.part(standing(run.path), Interrupted("interrupted"), None, stop)
        finally:
            os._exit(1)
    _, status = os.waitpid(child, 0)
    return os.waitstatus_to_exitcode(status)


def parted(run: Run) -> tuple[dict[str, Any], list[str]]:
    """What one is told who is patient: the result as JSON, and lines on standard error."""
    out, err = run.path.with_name("out"), run.path.with_name("err")
    with out.open("w") as told, err.open("w") as said:
        assert part(run, told, said) == INTERRUPTED
    return json.loads(out.read_text()), err.read_text().splitlines()


def test_who_is_interrupted_is_told_of_the_report_and_of_what_was_measured(run: Run) -> None:
    told, lines = parted(run)
    page = run.path / "report.html"
    assert page.exists()
    assert lines[0].startswith(f"interrupted; {len(run.records)} records kept, 0 missing; go on with:")
    assert (lines[-1], told["report"]) == (f"report: {page}", str(page))
    assert sum(told["records"].values()) == told["kept"] == len(run.records)
    assert {case["case"] for case in told["cases"]} == set(run.manifest.suite.cases)
    assert sum(sum(case["records"].values()) for case in told["cases"]) == told["kept"]
    assert all(case["latency_steady"] > 0 for case in told["cases"] if "ok" in case["records"])


def test_one_record_is_one_record(run: Run) -> None:
    first = (run.path / RECORDS).read_bytes().splitlines(keepends=True)[0]
    (run.path / RECORDS).write_bytes(first)
    _, lines = parted(run)
    assert lines[0].startswith(f"interrupted; 1 record kept, {len(run.records) - 1} missing; go on with:")


def test_a_result_that_nobody_reads_any_more_changes_no_exit_status(run: Run) -> None:
    """More than Python buffers, so that writing it fails and not only flushing it."""
    parted(run)
    assert run.path.with_name("out").stat().st_size > io.DEFAULT_BUFFER_SIZE
    reader, writer = os.pipe()
    os.close(reader)
    with run.path.with_name("err").open("w") as said:
        assert part(run, os.fdopen(writer, "w"), said) == INTERRUPTED


def test_a_report_that_could_not_be_written_is_not_said_to_be_there(run: Run) -> None:
    """Nor are records that cannot be read: what is told then is what the manifest and the lines say."""
    with (run.path / RECORDS).open("ab") as journal:
        journal.write(b"no record\n")
    told, lines = parted(run)
    again = f"niffbench report {run.path}"
    assert lines[-1] == f"the report could not be written; when that is mended: {again}"
    assert (told["report"], told["kept"]) == (None, len(run.records) + 1)
    assert "cases" not in told
