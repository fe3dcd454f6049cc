"""The report of an interrupted run, written by a process of its own, after which nobody looks."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from synthetic import World, make, save

from niffbench import report
from niffbench.commands.closing import _write_aside
from niffbench.records import RECORDS, Run
from niffbench.runner.lock import Lock

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
