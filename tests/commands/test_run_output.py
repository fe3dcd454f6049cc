"""The end of a run that was interrupted, or stopped by an error: what it says, and that it can go on."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from synthetic import World, make, save

from niffbench.commands.run_output import Screen
from niffbench.errors import INTERRUPTED, FingerprintsDiffer
from niffbench.launch.base import WorkerBroken
from niffbench.results import RECORDS, Run
from niffbench.session.directory import progress_of
from niffbench.session.interrupts import Interrupted, Interrupts


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return save(make(World(sizes=(14,), rounds=1, samples=4), tmp_path / "run"))


def keep(run: Run, records: int) -> None:
    """Leave so many records in the journal."""
    lines = (run.path / RECORDS).read_bytes().splitlines(keepends=True)
    (run.path / RECORDS).write_bytes(b"".join(lines[:records]))


def interrupted(run: Run, *, as_json: bool = False, quiet: bool = False) -> list[str]:
    """The lines of the message."""
    screen = Screen(as_json=as_json, quiet=quiet, report=True, suite="my suite.toml")
    with pytest.raises(Interrupted) as caught:
        screen.interrupted(progress_of(run.path), Interrupted("interrupted"))
    assert caught.value.exit_code == INTERRUPTED
    return str(caught.value).splitlines()


def test_an_interrupted_run_says_how_to_go_on_and_draws_nothing(
    run: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    keep(run, 1)
    assert interrupted(run, quiet=True) == [
        f"interrupted; 1 record kept, {len(run.records) - 1} missing; go on with:",
        f"  niffbench run 'my suite.toml' --resume {run.path}",
        "draw the report of what is there with:",
        f"  niffbench report {run.path}",
    ]
    assert not (run.path / "report.html").exists()
    assert capsys.readouterr().out == ""


def test_without_a_record_there_is_no_report_to_draw(run: Run) -> None:
    (run.path / RECORDS).unlink()
    assert interrupted(run)[1:] == [f"  niffbench run 'my suite.toml' --resume {run.path}"]


def test_as_json_it_tells_of_the_run_as_a_whole_though_a_record_cannot_be_read(
    run: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    with (run.path / RECORDS).open("ab") as journal:
        journal.write(b"no record\n")
    interrupted(run, as_json=True)
    result = json.loads(capsys.readouterr().out)
    assert (result["report"], result["kept"], result["missing"]) == (None, len(run.records) + 1, 0)
    assert "cases" not in result


@pytest.mark.parametrize(
    ("stopped", "status"), [(WorkerBroken("no luck"), INTERRUPTED), (FingerprintsDiffer("another machine"), 4)]
)
def test_a_run_that_an_error_stopped_has_its_report_and_goes_on(
    run: Run, capsys: pytest.CaptureFixture[str], stopped: WorkerBroken, status: int
) -> None:
    keep(run, len(run.records) - 1)
    screen = Screen(as_json=False, quiet=False, report=True, suite=None)
    with Interrupts() as stop:
        assert screen.finish(progress_of(run.path), stopped, stop) == status
    assert (run.path / "report.html").exists()
    lines = capsys.readouterr().err.splitlines()
    assert lines[-2] == f"{stopped}; {len(run.records) - 1} records kept, 1 missing; go on with:"
    assert lines[-1] == f"  niffbench run {run.manifest.suite.name} --resume {run.path}"
