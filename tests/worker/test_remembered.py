"""What was traced of a case is traced once on a machine, and again where what it depends on is another."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
from run_worker import case_of

from niffbench.device.cpu import CpuDevice
from niffbench.niff import tuning
from niffbench.niff.native import build
from niffbench.operators.catalogue import catalogue
from niffbench.worker import remembered
from niffbench.worker.torch_evaluator import TorchEvaluator


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where they are kept, as by a process that has read none."""
    monkeypatch.setattr(build, "cache", lambda: tmp_path)
    monkeypatch.setenv(tuning.SWITCH, "1")
    _begin_anew()
    return tmp_path


def _begin_anew() -> None:
    remembered._lines.cache_clear()
    remembered._path.cache_clear()


def test_what_another_process_traced_is_taken_unless_that_is_not_wanted(
    files: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = case_of("niff-depthwise/rfft")
    evaluator = TorchEvaluator(CpuDevice(1))
    predicted, cost = evaluator.predict(case), evaluator.cost(case, None)
    [file] = files.glob("traced-*.jsonl")
    assert len(file.read_text().splitlines()) == 2
    file.write_text(file.read_text().replace(f'"peak":{predicted.peak}', '"peak":7'))
    _begin_anew()
    assert (evaluator.predict(case).peak, evaluator.cost(case, None)) == (7, cost)
    monkeypatch.setenv(tuning.SWITCH, "0")
    assert evaluator.predict(case) == predicted
    monkeypatch.setenv(tuning.SWITCH, "1")
    for torn in (file.read_text()[:-40], "\0\n", ""):
        file.write_text(torn)
        _begin_anew()
        assert evaluator.cost(case, None) == cost
    monkeypatch.setattr(tuning, "code", lambda folder: "other sources")
    _begin_anew()
    assert evaluator.predict(case) == predicted


def test_what_is_remembered_is_bounded_and_never_of_anybody_elses_operator(
    files: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    evaluator = TorchEvaluator(CpuDevice(1))
    for number in range(9):
        (files / f"traced-{number}.jsonl").touch()
    monkeypatch.setattr(remembered, "MOST_BYTES", 1)
    for operator in ("depthwise", "strip"):
        evaluator.predict(case_of(operator, 3))
    assert len(list(files.iterdir())) == remembered.MOST_FILES
    case, operator, values = case_of("depthwise", 3), copy.copy(catalogue()["depthwise"]), iter((1, 2, 3))
    assert remembered.remembered(int, operator, case, lambda: next(values)) == 1
    assert remembered.remembered(int, operator, case, lambda: next(values)) == 1
    object.__setattr__(operator, "__class__", type("Mine", (type(operator),), {"__module__": "mine"}))
    assert remembered.remembered(int, operator, case, lambda: next(values)) == 2
    assert remembered.remembered(int, operator, case, lambda: next(values)) == 3
    [own] = [file for file in files.iterdir() if len(file.stem) > len("traced-0")]
    assert len(own.read_text().splitlines()) == 1
