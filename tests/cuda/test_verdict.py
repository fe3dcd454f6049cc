"""The script that asks a GPU for its verdict, rehearsed on a CPU: every step, what it writes, being cut."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Any

import gpu_verdict
import pytest

from niffbench.results import read
from niffbench.suite import available


def _script(out: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, gpu_verdict.__file__, "--dry-run", "--out", str(out), *arguments],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=500,
        check=False,
    )


@pytest.fixture(scope="module")
def rehearsed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, subprocess.CompletedProcess[str]]:
    """Where a whole rehearsal left its results, and what it said."""
    out = tmp_path_factory.mktemp("verdict")
    return out, _script(out)


def _steps(out: Path) -> dict[str, dict[str, Any]]:
    return {step["name"]: step for step in json.loads((out / "steps.json").read_text())}


def test_every_step_is_done(rehearsed: tuple[Path, subprocess.CompletedProcess[str]]) -> None:
    out, done = rehearsed
    assert done.returncode == 0, done.stdout + done.stderr
    steps = _steps(out)
    assert set(steps) == {*gpu_verdict.ORDER, "gather"}
    assert {step["status"] for step in steps.values()} == {"done"}
    assert "skipped" in steps["tests"]["detail"]
    assert all(f"done    {name}" in done.stdout for name in steps)


def test_the_plan_fits_its_time_and_names_suites_that_exist() -> None:
    other = 30 + 270 + 100 + 50 + 60  # doctor, tests, aa, profile, assumptions
    assert sum(plan.seconds for plan in gpu_verdict.PLANS) + other <= 60 * gpu_verdict.MINUTES - gpu_verdict.GRACE
    assert {plan.suite for plan in gpu_verdict.PLANS} <= set(available())
    asked = {"stages", "resolution", "channels", "kernels", "networks", "training", "full"}
    assert asked == {plan.suite for plan in gpu_verdict.PLANS}


def test_runs_are_kept_compressed_and_can_be_read(
    rehearsed: tuple[Path, subprocess.CompletedProcess[str]],
) -> None:
    out, _ = rehearsed
    for plan in gpu_verdict.PLANS:
        place = out / "runs" / plan.name
        assert not (place / "records.jsonl").exists()
        run = read(place)
        assert {record.status for record in run.records} == {"ok"}
        assert len(run.records) == len(run.manifest.suite.cases)
    layouts = read(out / "runs" / "stages-layouts")
    problems = {(r.case.problem.dtype, r.case.problem.memory_format) for r in layouts.records}
    assert len(problems) == 6
    assert {record.case.problem.batch for record in read(out / "runs" / "kernels").records} == {32}


def test_the_verdict_has_figures_crossovers_and_every_assumption(
    rehearsed: tuple[Path, subprocess.CompletedProcess[str]],
) -> None:
    from gpu_assumptions import CHECKS

    out, done = rehearsed
    text = (out / "verdict.md").read_text()
    assert text in done.stdout
    assert "no figure here is one of a GPU" in text
    for operator in (*gpu_verdict.NIFF, *gpu_verdict.SPATIAL):
        assert f"| {operator} |" in text
    assert "B8 512@7 training" in text
    crossovers = text.partition("## Crossover")[2].partition("## Assumptions")[0]
    assert "niff-depthwise/published" in crossovers
    assert "FLOPs" in crossovers
    findings = json.loads((out / "assumptions.json").read_text())
    assert [finding["claim"] for finding in findings] == list(CHECKS)
    for finding in findings:
        # On a CPU nothing about CUDA is confirmed, and no check breaks.
        assert finding["verdict"] == "not checked"
        assert "the check failed" not in finding["evidence"], finding
        assert finding["claim"] in text


def test_what_is_packed_names_no_host_and_holds_no_trace(
    rehearsed: tuple[Path, subprocess.CompletedProcess[str]],
) -> None:
    out, _ = rehearsed
    with tarfile.open(out / "gathered.tar.gz") as archive:
        names = archive.getnames()
        host = socket.gethostname().encode()
        for entry in archive.getmembers():
            if entry.name.endswith((".json", ".md")):
                file = archive.extractfile(entry)
                assert file is not None
                assert len(host) <= 3 or host not in file.read()
    assert {
        "verdict.md",
        "steps.json",
        "tests.xml",
        "runs/stages/records.jsonl.gz",
        "profile/profile.json",
    } <= set(names)
    assert not [name for name in names if "trace-" in name or name.startswith("logs")]


def test_a_step_that_fails_is_said_and_stops_no_other(tmp_path: Path) -> None:
    done = _script(
        tmp_path, "--steps", "channels", "stages-tf32", NIFFBENCH_EXTRA_OPERATORS="there_is_no_such_module"
    )
    assert done.returncode == 1
    steps = _steps(tmp_path)
    assert {steps[name]["status"] for name in ("channels", "stages-tf32")} == {"failed"}
    assert "there_is_no_such_module" in steps["channels"]["detail"]
    assert steps["gather"]["status"] == "done"
    # Done again, one of them, it takes the failure's place; the other's stays.
    again = _script(tmp_path, "--steps", "channels")
    assert again.returncode == 1
    assert (_steps(tmp_path)["channels"]["status"], _steps(tmp_path)["stages-tf32"]["status"]) == (
        "done",
        "failed",
    )


def test_without_time_steps_are_cut_and_said_to_be(tmp_path: Path) -> None:
    done = _script(tmp_path, "--minutes", "0.1")
    assert done.returncode == 0
    steps = _steps(tmp_path)
    assert {step["status"] for name, step in steps.items() if name != "gather"} == {"cut"}
    assert "The suite was not measured." in (tmp_path / "verdict.md").read_text()
