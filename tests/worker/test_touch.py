"""Every operator is called once at a toy size before anything is timed, where what it needs is loaded lazily."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from pydantic import BaseModel
from run_worker import QUICK, case_of

from niffbench import protocol
from niffbench.case import Case
from niffbench.device.cpu import CpuDevice
from niffbench.device.replay import ReplayDevice, Trace
from niffbench.niff.native import build
from niffbench.operators.catalogue import catalogue
from niffbench.suite import Settings
from niffbench.worker.replay_evaluator import ReplayEvaluator
from niffbench.worker.round import Round, toy
from niffbench.worker.torch_evaluator import TorchEvaluator

CASES = [
    case_of("depthwise", 7, channels=64, size=56, batch=32),
    case_of("depthwise", 7, channels=128, size=48),
    case_of("depthwise", 7, channels=512, size=7),
    case_of("depthwise", 31, channels=64, size=(40, 56)),
    case_of("niff-depthwise/rfft", channels=64, size=56, mode="training"),
    case_of("niff-depthwise/rfft", channels=64, size=28),
]


class Touched(ReplayEvaluator):
    """Writes down what it is told to touch, and that anything is built."""

    def __init__(self, device: ReplayDevice) -> None:
        super().__init__(device, 0)
        self.touched: list[Case] = []

    def touch(self, case: Case) -> None:
        assert not self.device.clock()
        self.touched.append(case)
        if case.kernel == 31:
            raise RuntimeError("cannot be called so small")


@pytest.mark.parametrize("lazily", [True, False])
def test_operators_are_touched_once_each_before_anything_is_timed(
    lazily: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    device = ReplayDevice(Trace())
    monkeypatch.setattr(device, "capabilities", replace(device.capabilities, lazy_loading=lazily))
    evaluator = Touched(device)
    sent: list[BaseModel] = []
    task = protocol.Task(kind="round", settings=Settings(rounds=1, measure=QUICK), cases=CASES)
    Round(task, evaluator, sent.append).run()
    assert len(evaluator.touched) == len(set(evaluator.touched)) == (5 if lazily else 0)
    assert all(case.problem.channels <= 8 and case.problem.batch == 1 for case in evaluator.touched)
    assert {m.record.status for m in sent if isinstance(m, protocol.Finished)} == {"ok"}


@pytest.mark.parametrize("name", ["depthwise", "dense", "fft-depthwise", "niff-full/rfft", "attention"])
def test_a_toy_is_a_case_of_its_operator(name: str) -> None:
    operator = next(operator for label, operator in catalogue().items() if label.startswith(name))
    case = case_of(operator.name, 63 if operator.takes_kernel else None, channels=96, size=(33, 32), batch=8)
    small = toy(replace(case, execution="compiled"))
    assert operator.refusal(small) is None
    threads = torch.get_num_threads()
    TorchEvaluator(CpuDevice(threads=1)).touch(small)
    torch.set_num_threads(threads)


LAZILY = """
import gc, sys
from niffbench import protocol
from niffbench.device.cpu import CpuDevice
from niffbench.operators.catalogue import catalogue
from niffbench.worker import main, memory
from niffbench.suite import Settings
from run_worker import QUICK, case_of

device, evaluators = CpuDevice(1), []
main.survey = lambda task, evaluator, line: evaluators.append(evaluator)
task = protocol.Task(kind="survey", settings=Settings(rounds=1, measure=QUICK), cases=[])
gc.disable()
main.work(task, device, type("", (), {"send": lambda self, message: None})())
assert gc.isenabled() and gc.get_freeze_count() > 10_000  # and no collection looks through torch
for mode in ("inference", "training"):
    for name, operator in catalogue().items():
        case = case_of(name, 7 if operator.takes_kernel else None, channels=8, size=32, mode=mode)
        if "triton" in name or operator.role == "network" or operator.refusal(case) is not None:
            continue
        workload = evaluators[0].workload(case)
        before = set(sys.modules)
        device.timed(workload)
        if new := set(sys.modules) - before:
            print(name, mode, len(new), sorted(new)[:5])
        workload.checked()
        memory.measure(device, workload, None)
assert "torch._dynamo" not in sys.modules
"""


@pytest.mark.skipif(build.unavailable() is not None, reason="there is no C compiler here")
def test_no_first_call_loads_a_module_and_no_memory_the_compiler() -> None:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, (*sys.path,)))}
    done = subprocess.run(
        [sys.executable, "-c", LAZILY], env=environment, capture_output=True, text=True, check=False, timeout=300
    )
    assert (done.returncode, done.stdout) == (0, ""), done.stderr
