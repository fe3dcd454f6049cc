"""An operator outside the package, as the contributing page shows it, measured beside ours by one command."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
import warm_process

from niffbench.results import Run, read

SUITE = """
description = "somebody's layer beside ours"
baseline = "dense-k3"
rounds = 1

[axes]
channels = 4
channels_out = 6
size = [[10, 7]]
mode = ["inference", "training"]

[[operators]]
name = "fourier-unit"

[[operators]]
name = "dense-k3"

[measure]
min_time = 0.01
max_time = 0.02
"""


def niffbench(place: Path, *arguments: str, extra: str = "example_operator") -> subprocess.CompletedProcess[str]:
    """The command, with operators of modules that are not in the package."""
    paths = os.pathsep.join([str(Path(__file__).parent), str(place), os.environ.get("PYTHONPATH", "")])
    variables = {"NIFFBENCH_EXTRA_OPERATORS": extra, "PYTHONPATH": paths, "NIFFBENCH_ROOFLINE": "0"}
    return warm_process.run(arguments, os.environ | variables, place)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    place = tmp_path_factory.mktemp("mine")
    (place / "suite.toml").write_text(SUITE)
    done = niffbench(place, "run", "suite.toml", "--device", "cpu", "--no-report", "--out", "run")
    assert done.returncode == 0, done.stderr
    return read(place / "run")


def test_it_is_right_and_measured_beside_ours(run: Run) -> None:
    assert [record.status for record in run.records] == ["ok"] * 4
    assert {record.traits.label for record in run.records} == {"fourier-unit", "dense-k3"}
    mine = [record for record in run.records if record.case.operator == "fourier-unit"]
    assert {record.traits.role for record in mine} == {"spectral"}
    assert all(record.latency and record.memory and record.numerics for record in mine)


def test_its_cost_is_held_to_the_counters_step_by_step(run: Run) -> None:
    for record in run.records:
        cost = record.cost
        assert cost is not None
        assert (cost.disagreement, cost.notes) == (None, [])
        assert cost.counted == cost.closed > 0
        assert cost.fvcore == cost.closed_forward
        assert cost.bytes_own is not None
        assert cost.bytes_own >= cost.bytes_floor
        assert all(step.bytes for step in cost.steps)


def test_it_is_listed(tmp_path: Path) -> None:
    done = niffbench(tmp_path, "list", "operators", "--json")
    assert done.returncode == 0, done.stderr
    assert '"fourier-unit"' in done.stdout


@pytest.mark.parametrize(
    ("text", "said"),
    [("", "declares no tuple OPERATORS"), ("import nowhere_to_be_found", "No module named 'nowhere_to_be_found'")],
)
def test_a_module_without_operators_is_one_clear_message(tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "other_operators.py").write_text(text)
    done = niffbench(tmp_path, "list", "operators", extra="other_operators")
    assert done.returncode == 2
    assert "NIFFBENCH_EXTRA_OPERATORS=other_operators: " in done.stderr
    assert said in done.stderr
    assert "Traceback" not in done.stderr
