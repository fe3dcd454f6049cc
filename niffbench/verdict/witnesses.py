"""Our clocks beside two others' on the same calls: Triton's ``do_bench`` and NVBench (``cuda-bench``), if there.

Each is compared with the regime that it means: what empties the L2 cache before a call with ``cold``, what calls
again and again with ``steady``, what replays a CUDA graph with ``graph``.
"""

from __future__ import annotations

import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import torch

from niffbench.device import Device, open_device
from niffbench.device.base import Runner
from niffbench.operators.catalogue import catalogue
from niffbench.suite import Measure, Regime, expand, parse
from niffbench.verdict.archive import save
from niffbench.worker.latency import Sampler
from niffbench.worker.probe import Probe
from niffbench.worker.torch_evaluator import TorchEvaluator

SUITE = """
description = "Operators whose latency others measure too"
baseline = "depthwise-k7"

[axes]
batch = {batch}
channels = {channels}
size = {size}

[[operators]]
name = "niff-depthwise/published"

[[operators]]
name = "niff-depthwise/rfft"

[[operators]]
name = "niff-depthwise/native-cached"

[[operators]]
name = "depthwise-k7"

[[operators]]
name = "dense-k3"
"""
PROBLEM = {"batch": 32, "channels": 64, "size": 56}
SMALL = {"batch": 1, "channels": 8, "size": 14}
"""Where there is no GPU, so that nothing can be compared."""

REGIMES: tuple[Regime, ...] = ("cold", "steady", "graph")

ENQUEUED = 10
"""Calls by which the host's time is told."""

Measured = TypeVar("Measured")
Times = Mapping[str, float]
"""Seconds by operator."""


@dataclass(frozen=True)
class Witness:
    """One operator in one regime: our median and another's in seconds; ``reason`` says why one is missing.

    Attributes:
        host: seconds in which the host enqueues a call. Where it is longer than the call, whoever lets the
            queue run dry measures the host.
    """

    operator: str
    regime: Regime
    ours: float | None
    host: float | None
    tool: str
    theirs: float | None
    reason: str | None = None

    @property
    def difference(self) -> float | None:
        """Of the other's from ours, relative to ours."""
        return None if self.theirs is None or self.ours is None else self.theirs / self.ours - 1


@dataclass(frozen=True)
class Clocked:
    """Our medians of an operator by regime, and the time in which the host enqueues a call; seconds."""

    medians: Mapping[Regime, float]
    host: float

    def beside(
        self, operator: str, regime: Regime, tool: str, theirs: float | None, reason: str | None
    ) -> Witness:
        """One of them beside another tool's."""
        return Witness(operator, regime, self.medians[regime], self.host, tool, theirs, reason)


def runners(device: Device) -> dict[str, Runner]:
    """What is timed, by name: five operators at one problem, and a copy of their input."""
    problem = SMALL if device.capabilities.host else PROBLEM
    text = SUITE.format(**problem)
    suite = expand(parse(text, "witnesses"), "witnesses", "witnesses", text, catalogue())
    evaluator = TorchEvaluator(device)
    runners: dict[str, Runner] = {suite.labels[case.id]: evaluator.workload(case) for case in suite.cases}
    shape = (problem["batch"], problem["channels"], problem["size"], problem["size"])
    source = torch.randn(shape, device=device.place)
    runners["copy"] = Probe(partial(torch.empty_like(source).copy_, source))
    return runners


def ours(device: Device, runner: Runner) -> Clocked:
    """Our medians, sampled as a run samples; without ``graph`` where there is none."""
    measure = Measure(regimes=list(REGIMES), precision=0.005, min_time=0.05, max_time=0.3, min_samples=20)
    medians: dict[Regime, float] = {}
    for regime in REGIMES:
        if regime == "graph" and not device.capabilities.graphs:
            continue
        timed = device.capture(runner) if regime == "graph" else runner
        sampler = Sampler(device, timed, regime, measure)
        while not sampler.done:
            sampler.step()
        medians[regime] = sampler.median()
    return Clocked(medians, _host_time(device, runner))


def _host_time(device: Device, runner: Runner) -> float:
    """Seconds in which the host enqueues one of a few calls; the queue holds more than those."""
    device.timed(runner)  # leaves the device idle
    with runner.scope():
        begun = time.perf_counter()
        for _ in range(ENQUEUED):
            runner.call()
        taken = time.perf_counter() - begun
    device.timed(runner)
    return taken / ENQUEUED


def do_bench(runner: Runner) -> float:
    """Triton's: L2 emptied before each call, events around it."""
    from triton.testing import do_bench as bench

    with runner.scope():
        return float(bench(runner.call, warmup=50, rep=200, return_mode="median")) * 1e-3


def do_bench_cudagraph(runner: Runner) -> float:
    """Triton's: many calls in one graph."""
    from triton.testing import do_bench_cudagraph as bench

    with runner.scope():
        return float(bench(runner.call, rep=50, return_mode="median")) * 1e-3


TRITON: Mapping[str, tuple[Regime, Callable[[Runner], float]]] = {
    "triton.testing.do_bench": ("cold", do_bench),
    "triton.testing.do_bench_cudagraph": ("graph", do_bench_cudagraph),
}


def nvbench(timed: Mapping[str, Runner], place: str) -> tuple[Times, Times]:
    """NVBench's medians of isolated calls with an emptied L2 cache, and means of its batches of calls.

    ``place`` is the card that holds the tensors. NVBench has one registry a process and runs all of it at once.
    """
    from cuda import bench
    from cuda.bench.results import BenchmarkResult

    card = torch.device(place)

    def benchmark(runner: Runner) -> Callable[[Any], None]:
        def launch(launched: Any) -> None:
            address = launched.get_stream().addressof()
            stream = torch.cuda.ExternalStream(address, device=card)  # type: ignore[no-untyped-call]
            with torch.cuda.stream(stream):
                runner.call()

        def timed(state: Any) -> None:
            with runner.scope():
                state.exec(launch, batched=True)

        return timed

    for name, runner in timed.items():
        bench.register(benchmark(runner)).set_name(name)
    cold: dict[str, float] = {}
    batch: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as place:
        out = str(Path(place) / "nvbench.json")
        limits = [
            "--timeout",
            "1.5",
            "--min-samples",
            "20",
            "--cold-warmup-runs",
            "5",
            "--batch-target-time",
            "0.2",
        ]
        bench.run_all_benchmarks(["nvbench", "--devices", str(card.index), *limits, "--jsonbin", out])
        for name, result in BenchmarkResult.from_json(out).items():
            for state in result.states:
                mean = state.summaries.get("nv/batch/time/gpu/mean")
                if state.samples:
                    cold[name] = statistics.median(state.samples)
                if mean is not None and mean.value is not None:
                    batch[name] = float(mean.value)
    return cold, batch


def witnesses(device: Device) -> Iterator[Witness]:
    """Every pair of figures, Triton's before NVBench's; what fails has its reason instead and loses no other."""
    timed: dict[str, Runner] = {}
    clocked: dict[str, Clocked] = {}
    for name, runner in runners(device).items():
        medians, reason = _tried(partial(ours, device, runner))
        if medians is None:
            yield Witness(name, "steady", None, None, "niffbench", None, reason)
        else:
            timed[name], clocked[name] = runner, medians
    for name, runner in timed.items():
        for tool, (regime, measure) in TRITON.items():
            if regime in clocked[name].medians:
                theirs, reason = _elsewhere(partial(measure, runner), device)
                yield clocked[name].beside(name, regime, tool, theirs, reason)
    figures, reason = _elsewhere(partial(nvbench, timed, device.place), device)
    cold, batch = figures or ({}, {})
    for name, one in clocked.items():
        for regime, tool, times in (("cold", "cold", cold), ("steady", "batch", batch)):
            failure = None if name in times else reason or "it ended without a figure"
            yield one.beside(name, regime, f"cuda.bench, {tool}", times.get(name), failure)


def _elsewhere(measure: Callable[[], Measured], device: Device) -> tuple[Measured | None, str | None]:
    """What another tool gives, or why it gives nothing."""
    return (None, "it measures on a GPU only") if device.capabilities.host else _tried(measure)


def _tried(measure: Callable[[], Measured]) -> tuple[Measured | None, str | None]:
    """What ``measure`` gives, or the error it ended with."""
    try:
        return measure(), None
    except Exception as error:  # another's program, which may lack anything
        return None, f"{type(error).__name__}: {str(error)[:200]}"


def main(place: str, out: Path) -> None:
    """Hold our clocks beside the others' on the device ``place``; writes to ``out`` what there is so far."""
    rows: list[dict[str, object]] = []
    for witness in witnesses(open_device(place)):
        rows.append({**asdict(witness), "difference": witness.difference})
        save(out, json.dumps(rows, indent=1).encode())


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
