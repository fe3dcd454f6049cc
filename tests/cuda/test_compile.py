"""Every operator compiled by ``torch.compile`` on a GPU: the same numbers as in float64, timed as compiled."""

from __future__ import annotations

from collections.abc import Iterator

import gpu_cases
import pytest
import torch
from gpu_cases import case, opened

from niffbench.case import Mode
from niffbench.worker.failures import explain
from niffbench.worker.tolerance import is_wrong, verdict
from niffbench.worker.torch_evaluator import TorchEvaluator

exactly = pytest.fixture(autouse=True)(gpu_cases.exactly)


@pytest.fixture(autouse=True)
def _forgotten() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.mark.cuda
@pytest.mark.parametrize("mode", ["inference", "training"])
@pytest.mark.parametrize("name", gpu_cases.names("cuda"))
def test_compiled_agrees_with_float64(name: str, mode: Mode) -> None:
    device = opened("cuda")
    evaluator = TorchEvaluator(device)
    workload = evaluator.workload(case(name, mode=mode, execution="compiled"))
    try:
        _, output = device.timed(workload)
    except Exception as error:
        failure = explain(error)
        if failure.status == "unsupported":  # recorded as such by a run
            pytest.skip(failure.reason)
        raise
    numerics = evaluator.numerics(workload, output)
    assert not is_wrong(numerics), verdict(numerics)
    block = device.samples(workload, "steady", 2, 3)
    assert len(block.samples) == 3
    assert min(block.samples) > 0


@pytest.mark.cuda
def test_compiling_fuses_what_eager_launches_one_by_one() -> None:
    """A compiled published form needs fewer kernels, so something was compiled."""
    device = opened("cuda")
    evaluator = TorchEvaluator(device)

    def kernels(execution: str) -> int:
        workload = evaluator.workload(case("niff-depthwise/published", execution=execution))  # type: ignore[arg-type]
        for _ in range(3):
            device.timed(workload)
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
            device.timed(workload)
        return sum(event.device_type.name == "CUDA" for event in profile.events() or ())

    assert 0 < kernels("compiled") < kernels("eager")
