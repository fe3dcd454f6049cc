"""Our steady median against ``torch.utils.benchmark.Timer``, in one process.

Blocks of both alternate, so that whatever else the machine does befalls both alike; one thread each.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from statistics import median

import pytest
from run_worker import case_of
from torch.utils.benchmark import Timer

from niffbench.suite import Measure
from niffbench.worker.latency import Sampler
from niffbench.worker.torch_evaluator import TorchEvaluator
from niffbench.worker.workload import TorchWorkload

pytestmark = [
    pytest.mark.alone,
    pytest.mark.skipif(
        "NIFFBENCH_TESTS_TIMING" not in os.environ,
        reason="times calls to a few per cent: set NIFFBENCH_TESTS_TIMING=1 on a quiet machine",
    ),
]

WITHIN = 0.05
ATTEMPTS = (3, 9)
"""At least, so that no lucky one decides, and at most: a busy machine may need more for a steady median."""
BLOCKS = 8
MEASURE = Measure(min_time=0.08, max_time=10.0, min_samples=10_000, threads=1)


def _agreed(
    evaluator: TorchEvaluator, workload: TorchWorkload, timed: Callable[[], object]
) -> tuple[bool, list[float]]:
    """Whether the median of several ratios is within the bound, and the ratios."""
    ratios: list[float] = []
    while len(ratios) < ATTEMPTS[1]:
        ratios.append(_ratio(evaluator, workload, timed))
        if len(ratios) >= ATTEMPTS[0] and abs(median(ratios) - 1) <= WITHIN:
            return True, ratios
    return False, ratios


def _ratio(evaluator: TorchEvaluator, workload: TorchWorkload, timed: Callable[[], object]) -> float:
    """Our median of ``workload`` over the Timer's of ``timed``, of blocks that alternate and lead in turn."""
    ours = Sampler(evaluator.device, workload, "steady", MEASURE)
    ours.step()
    timer = Timer("call()", globals={"call": timed}, num_threads=1)
    theirs: list[float] = []
    ratios: list[float] = []
    for block in range(BLOCKS):
        before = len(ours._samples)
        if block % 2:
            ours.step()
        with workload.scope():
            theirs = [timer.timeit(ours.calls).median for _ in range(20)]
        if not block % 2:
            ours.step()
        ratios.append(median(ours._samples[before:]) / median(theirs))
    return median(ratios)


@pytest.mark.parametrize(
    ("operator", "kernel", "size"),
    [
        ("niff-depthwise/published", None, 28),
        ("niff-depthwise/rfft", None, 28),
        ("depthwise", 7, 28),
        ("dense", 3, 14),
        ("fft-depthwise", 7, 28),
    ],
)
def test_our_steady_median_is_the_timers(
    evaluator: TorchEvaluator, operator: str, kernel: int | None, size: int
) -> None:
    workload = evaluator.workload(case_of(operator, kernel, channels=32, size=size))
    agreed, ratios = _agreed(evaluator, workload, workload.call)
    assert agreed, ratios


def test_the_test_could_fail(evaluator: TorchEvaluator) -> None:
    """A call that every fifth time is made twice, for the one and not for the other, is told apart."""
    workload = evaluator.workload(case_of("depthwise", 7, channels=32, size=28))
    made = [0]

    def now_and_then() -> object:
        made[0] += 1
        if made[0] % 5 == 0:
            workload.call()
        return workload.call()

    agreed, ratios = _agreed(evaluator, workload, now_and_then)
    assert not agreed, ratios
