"""The one test with a clock: our steady median against ``torch.utils.benchmark.Timer``, in one process.

Blocks of both alternate, so that whatever else the machine does befalls both alike; one thread each.
"""

from __future__ import annotations

from collections.abc import Iterator
from statistics import median

import pytest
import torch
from torch.utils.benchmark import Timer
from working import case_of

from niffbench.device.cpu import CpuDevice
from niffbench.measure.latency import Sampler
from niffbench.measure.subject import TorchSubject
from niffbench.measure.torch_bench import TorchBench
from niffbench.suite import Measure

WITHIN = 0.05
ATTEMPTS = 6
BLOCKS = 8
MEASURE = Measure(min_time=0.08, max_time=10.0, min_samples=10_000, threads=1)


@pytest.fixture(scope="module")
def bench() -> Iterator[TorchBench]:
    before = torch.get_num_threads()
    yield TorchBench(CpuDevice(threads=1))
    torch.set_num_threads(before)


def _ratio(bench: TorchBench, subject: TorchSubject) -> float:
    """Our median over the Timer's, of blocks that alternate; each takes the lead in turn."""
    ours = Sampler(bench.device, subject, "steady", MEASURE)
    ours.step()
    timer = Timer("call()", globals={"call": subject.call}, num_threads=1)
    theirs: list[float] = []
    ratios: list[float] = []
    for block in range(BLOCKS):
        before = len(ours._samples)
        if block % 2:
            ours.step()
        with subject.scope():
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
def test_our_steady_median_is_the_timers(bench: TorchBench, operator: str, kernel: int | None, size: int) -> None:
    subject = bench.subject(case_of(operator, kernel, channels=32, size=size))
    ratios: list[float] = []
    while not any(abs(ratio - 1) <= WITHIN for ratio in ratios) and len(ratios) < ATTEMPTS:
        ratios.append(_ratio(bench, subject))
    assert abs(ratios[-1] - 1) <= WITHIN, ratios


def test_the_test_could_fail(bench: TorchBench) -> None:
    """A call that is a fifth longer for the one than for the other is told apart."""
    subject = bench.subject(case_of("depthwise", 7, channels=32, size=28))
    plain = subject.call
    twice = [True]

    def now_and_then() -> object:
        twice[0] = not twice[0]
        if twice[0]:
            plain()
        return plain()

    longer = Sampler(bench.device, subject, "steady", MEASURE)
    longer.step()
    honest = longer.median()
    subject.call = now_and_then  # type: ignore[assignment]
    slower = Sampler(bench.device, subject, "steady", MEASURE)
    slower.step()
    assert slower.median() > (1 + 2 * WITHIN) * honest
