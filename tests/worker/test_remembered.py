"""What was traced of a case is traced once on a machine, and again where what it depends on is another."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from run_worker import QUICK, case_of

from niffbench import protocol
from niffbench.cost import memory, witness
from niffbench.device.cpu import CpuDevice
from niffbench.niff import tuning
from niffbench.niff.native import build
from niffbench.operators.base import Choice
from niffbench.operators.catalogue import catalogue
from niffbench.operators.niff import Niff
from niffbench.suite import Settings
from niffbench.worker import remembered
from niffbench.worker.main import survey
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


@pytest.mark.skipif(build.unavailable() is not None, reason="there is no C compiler here")
@pytest.mark.parametrize(
    ("name", "engines"),
    [
        ("niff-depthwise/rfft", [None]),
        ("niff-depthwise/auto", ["native"]),
        ("niff-depthwise/auto-cached", ["features", "native"]),
        ("niff-full/auto", ["factored", "rfft"]),
    ],
)
def test_a_survey_counts_what_rounds_will_ask_for(
    name: str, engines: list[str | None], files: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    case, operator = case_of(name), catalogue()[name]
    assert isinstance(operator, Niff)
    choices = [
        None if engine is None else Choice((engine,), replace(operator, engine=engine)) for engine in engines
    ]
    evaluator = TorchEvaluator(CpuDevice(1))
    right = [(evaluator.cost(case, one), evaluator.predict(case, one)) for one in choices]
    for file in files.iterdir():
        file.unlink()
    _begin_anew()
    settings = Settings(rounds=1, measure=QUICK)
    for counts_ahead, kept in ((False, 1), (True, 2 if choices == [None] else 1 + 2 * len(choices))):
        task = protocol.Task(kind="survey", settings=settings, cases=[case], counts_ahead=counts_ahead)
        survey(task, evaluator, SimpleNamespace(send=lambda message: None))  # type: ignore[arg-type]
        [file] = files.glob("traced-*.jsonl")
        assert len(file.read_text().splitlines()) == kept
    _begin_anew()
    monkeypatch.setattr(witness, "witnesses", None)
    monkeypatch.setattr(memory, "predict", None)
    assert [(evaluator.cost(case, one), evaluator.predict(case, one)) for one in choices] == right


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
