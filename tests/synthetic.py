"""Made-up runs with a planted truth: the data that report, regress and statistics are tested on.

Latencies are log-normal around power laws with stated exponents, FLOPs are those of the textbook formulas, rounds
differ by a random factor, and a set of faults puts every status into the run. Equal arguments give equal runs.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from math import exp, log2, prod
from pathlib import Path
from typing import Literal

from niffbench.case import Case, DType, Mode, Problem
from niffbench.fingerprint import Fact, Fingerprint
from niffbench.report.digest import Digest, gather
from niffbench.results import (
    MANIFEST,
    RECORDS,
    Ceilings,
    CostRecord,
    ExcludedCase,
    GradientError,
    Latency,
    MachineState,
    Manifest,
    Memory,
    Numerics,
    Record,
    Run,
    Status,
    StepCost,
    SuiteEcho,
    Traits,
    dump,
)
from niffbench.suite import Measure, Regime

CROSSOVER = 13.0
"""Kernel side at which ``depthwise`` takes as long as ``niff-depthwise/rfft``, at every size, width and batch."""

RFFT_SCALE = 2.0e-9
"""Seconds per element of ``niff-depthwise/rfft`` at 1×1; its latency grows with size², channels¹, batch¹."""


@dataclass(frozen=True)
class Law:
    """A power law in batch, channels, size (geometric mean of height and width) and kernel side."""

    scale: float
    batch: float = 1.0
    channels: float = 1.0
    size: float = 2.0
    kernel: float = 0.0

    def at(self, case: Case) -> float:
        """The law's value for one case."""
        problem = case.problem
        side = (problem.height * problem.width) ** 0.5
        factors = (self.scale, problem.batch**self.batch, problem.channels**self.channels, side**self.size)
        return float(prod(factors) * (case.kernel or 1) ** self.kernel)


@dataclass(frozen=True)
class Planted:
    """One operator of the made-up world; ``kernels`` is empty for an operator that has no kernel."""

    operator: str
    family: str
    boundary: Literal["circular", "zero", "none"]
    equivalence: str
    latency: Law  # seconds, steady
    memory: Law  # bytes of the peak
    kernels: tuple[int, ...] = ()
    missed: tuple[str, ...] = ()  # ops that stock counters count as nothing
    base: str | None = None
    chosen: tuple[str, ...] = ()  # what each of its layers chose
    options: tuple[tuple[str, str], ...] = ()  # none at its default

    def flops(self, case: Case) -> dict[str, int]:
        """Forward FLOPs by step."""
        problem = case.problem
        points = problem.height * problem.width
        planes = problem.batch * problem.channels
        spectrum = log2(points) if points > 1 else 0.0
        if self.operator == "dense":
            return {"convolution": 2 * (case.kernel or 1) ** 2 * planes * problem.channels_out * points}
        if self.operator in ("depthwise", "strip"):
            taps = 2 * (case.kernel or 1) if self.operator == "strip" else (case.kernel or 1) ** 2
            return {"convolution": 2 * taps * planes * points}
        if self.operator == "attention":
            return {"mixing": 4 * problem.batch * points**2 * problem.channels}
        half = 2 if self.operator == "niff-depthwise/published" else 1
        steps = {
            "filter generation": points * (192 + 16 * problem.channels),
            "forward fft": round(half * 2.5 * planes * points * spectrum),
            "product": half * 3 * planes * points,
            "inverse fft": round(half * 2.5 * planes * points * spectrum),
        }
        if not self.operator.startswith("niff") or self.operator.endswith("cached"):
            del steps["filter generation"]
        return steps


_FFT_OPS = ("fft_rfft2", "fft_irfft2", "mul (complex)")
_IO = Law(8.0)

WORLD: tuple[Planted, ...] = (
    Planted(
        "niff-depthwise/published",
        "niff",
        "circular",
        "niff-depthwise",
        Law(3.4 * RFFT_SCALE),
        Law(48.0),
        missed=(*_FFT_OPS, "fft_fftshift"),
    ),
    Planted(
        "niff-depthwise/rfft", "niff", "circular", "niff-depthwise", Law(RFFT_SCALE), Law(24.0), missed=_FFT_OPS
    ),
    Planted(
        "niff-depthwise/cached",
        "niff",
        "circular",
        "niff-depthwise",
        Law(0.7 * RFFT_SCALE),
        Law(18.0),
        missed=_FFT_OPS,
    ),
    Planted(
        "depthwise",
        "depthwise",
        "zero",
        "depthwise",
        Law(RFFT_SCALE / CROSSOVER**2, kernel=2.0),
        _IO,
        kernels=(3, 7, 15, 31),
    ),
    Planted(
        "strip", "strip", "zero", "strip", Law(2 * RFFT_SCALE / CROSSOVER**2, kernel=1.0), Law(12.0), kernels=(31,)
    ),
    Planted("dense", "dense", "zero", "dense", Law(1.2e-12, channels=2.0, kernel=2.0), _IO, kernels=(3, 7)),
    Planted(
        "fft-depthwise",
        "fft",
        "circular",
        "depthwise-circular",
        Law(0.9 * RFFT_SCALE),
        Law(28.0),
        kernels=(31,),
        missed=_FFT_OPS,
    ),
    Planted(
        "global-filter",
        "global-filter",
        "circular",
        "global-filter",
        Law(0.65 * RFFT_SCALE),
        Law(20.0),
        missed=_FFT_OPS,
    ),
    Planted(
        "attention", "attention", "none", "attention", Law(1.5e-12, size=4.0), Law(4.0, channels=0.0, size=4.0)
    ),
)


FEW = tuple(p for p in WORLD if p.operator in ("depthwise", "dense", "global-filter", "attention"))
"""Some of them, for tests of many runs: two are torch's own, in six cases."""

NETWORKS: tuple[Planted, ...] = (
    Planted("network/resnet18", "network", "zero", "network-resnet18", Law(2e-6), _IO),
    Planted(
        "network/resnet18-split",
        "network",
        "circular",
        "network-resnet18-split",
        Law(5e-6),
        _IO,
        base="network/resnet18",
        chosen=("native",) * 12 + ("dft",),
    ),
    Planted("network/convnext_tiny", "network", "zero", "network-convnext_tiny", Law(4e-6), _IO),
    Planted(
        "network/convnext_tiny-niff",
        "network",
        "circular",
        "network-convnext_tiny-niff",
        Law(5e-6),
        _IO,
        base="network/convnext_tiny",
    ),
    Planted(
        "network/convnext_tiny-k31",
        "network",
        "zero",
        "network-convnext_tiny-k31",
        Law(12e-6),
        _IO,
        base="network/convnext_tiny",
    ),
)
"""Two originals, and what was made from them."""


@dataclass(frozen=True)
class Fault:
    """What goes wrong, and where: None matches anything; ``size`` is the smallest height that is hit."""

    status: Status
    reason: str
    operator: str
    kernel: int | None = None
    size: int = 0
    round: int | None = None
    needed: int | None = None
    available: int | None = None

    def hits(self, case: Case, round_: int) -> bool:
        """Whether this fault befalls ``case`` in round ``round_``."""
        return (
            case.operator == self.operator
            and self.kernel in (None, case.kernel)
            and case.problem.height >= self.size
            and self.round in (None, round_)
        )


FAULTS: tuple[Fault, ...] = (
    Fault(
        "oom",
        "CUDA out of memory <b>while</b> allocating",
        "attention",
        size=112,
        needed=60 * 2**30,
        available=40 * 2**30,
    ),
    Fault(
        "skipped",
        "predicted 2.0 TiB does not fit into 40 GiB",
        "dense",
        kernel=7,
        size=112,
        needed=2 * 2**40,
        available=40 * 2**30,
    ),
    Fault("timeout", "no answer within 300 s", "dense", kernel=3, size=112),
    Fault(
        "crashed",
        "signal SIGSEGV; last words: <script>alert(1)</script> | table ` broken",
        "depthwise",
        kernel=31,
        size=56,
        round=1,
    ),
    Fault("wrong", "relative L2 error 0.31 is above the tolerance 1e-05", "strip"),
    Fault("unsupported", "cuFFT takes powers of two only in half precision", "fft-depthwise", size=112),
)


@dataclass(frozen=True)
class Noise:
    """Relative standard deviations: between rounds, and between the samples of one round."""

    between: float = 0.01
    within: float = 0.005


@dataclass(frozen=True)
class World:
    """Everything a made-up run is drawn from; its product of axes is the suite."""

    name: str = "synthetic"
    device: Literal["cpu", "cuda"] = "cpu"
    seed: int = 0
    rounds: int = 3
    samples: int = 12
    sizes: tuple[int | tuple[int, int], ...] = (14, 28, 56, 112)
    channels: tuple[int, ...] = (64,)
    batches: tuple[int, ...] = (1,)
    dtypes: tuple[DType, ...] = ("float32",)
    modes: tuple[Mode, ...] = ("inference",)
    operators: tuple[Planted, ...] = WORLD
    kernels: Mapping[str, tuple[int, ...]] = field(default_factory=dict)  # operator → other kernels
    faults: tuple[Fault, ...] = FAULTS
    slower: Mapping[str, float] = field(default_factory=dict)  # operator → factor on its latency
    noise: Noise = Noise()
    baseline: str = "depthwise-k7"
    torch: str = "2.15.0"
    nodes: tuple[float, ...] = ()  # how slow each machine of a fleet is; they take the rounds in turn
    sharded: bool = False  # a round's problems are on several of them
    older: tuple[int, ...] = ()  # nodes whose torch is another

    def node(self, case: Case, round_: int) -> int | None:
        """Which machine of the fleet measures ``case`` in a round."""
        if not self.nodes:
            return None
        return (round_ + (case.problem.height // 7 if self.sharded else 0)) % len(self.nodes)

    def cases(self) -> Iterator[tuple[Planted, Case]]:
        """The suite: every operator at every problem."""
        axes = itertools.product(self.batches, self.channels, self.sizes, self.dtypes, self.modes)
        for batch, channels, size, dtype, mode in axes:
            height, width = (size, size) if isinstance(size, int) else size
            problem = Problem(batch, channels, channels, height, width, dtype, mode=mode)
            for planted in self.operators:
                for kernel in self.kernels.get(planted.operator, planted.kernels) or (None,):
                    yield planted, Case(planted.operator, problem, kernel, planted.options)


def make(world: World, path: Path) -> Run:
    """Draw the run; nothing is written. ``path`` is only its name and place."""
    drawn = list(world.cases())
    records = tuple(
        _record(world, planted, case, round_) for round_ in range(world.rounds) for planted, case in drawn
    )
    return Run(path, _manifest(world, [case.id for _, case in drawn], records), records)


def digest_of(world: World) -> Digest:
    """What a report works out of a made-up run."""
    return gather(make(world, Path("made-up")))


def save(run: Run) -> Run:
    """Write the run's two files into its directory, and return it."""
    run.path.mkdir(parents=True, exist_ok=True)
    (run.path / MANIFEST).write_text(run.manifest.model_dump_json(indent=1))
    with (run.path / RECORDS).open("wb") as journal:
        journal.writelines(dump(record) for record in run.records)
    return run


def write(path: Path, world: World | None = None) -> Run:
    """Draw a run and write it."""
    return save(make(world or World(), path))


def truth(world: World, planted: Planted, case: Case) -> float:
    """The planted steady latency of a case in seconds, before any noise."""
    training = 3.0 if case.problem.mode == "training" else 1.0
    speed = 0.1 if world.device == "cuda" else 1.0
    return planted.latency.at(case) * training * speed * world.slower.get(planted.operator, 1.0)


def _label(case: Case) -> str:
    kernel = f"-k{case.kernel}" if case.kernel is not None else ""
    return " ".join([case.operator + kernel, *(f"{name}={value}" for name, value in case.options)])


def _record(world: World, planted: Planted, case: Case, round_: int) -> Record:
    traits = Traits(
        label=_label(case),
        family=planted.family,
        boundary=planted.boundary,
        equivalence=planted.equivalence,
        base=planted.base,
    )
    fault = next((f for f in world.faults if f.hits(case, round_)), None)
    problem = case.problem
    training = problem.mode == "training"
    passes: list[tuple[Literal["forward", "backward"], int]] = [("forward", 1), ("backward", 2)]
    passes = passes[: 2 if training else 1]
    share = sum(factor for _, factor in passes)
    forward = planted.flops(case)
    elements = problem.batch * problem.channels * problem.height * problem.width * problem.element_bytes
    total = sum(forward.values())
    stock = total if not planted.missed else forward.get("filter generation", 0)
    cost = CostRecord(
        closed=total * share,
        closed_forward=total,
        steps=[
            StepCost(name=name, direction=direction, flops=factor * flops, bytes=2 * factor * elements)
            for direction, factor in passes
            for name, flops in forward.items()
        ],
        counted=total * share,
        fvcore=total,
        stock_torch=stock * share,
        stock_fvcore=stock,
        missed=list(planted.missed),
        bytes_floor=2 * elements,
        bytes_own=2 * elements * len(forward),
        largest_prime_factor=7,
    )
    if fault is not None:
        return Record(
            case=case,
            id=case.id,
            round=round_,
            status=fault.status,
            reason=fault.reason,
            traits=traits,
            cost=cost,
            needed=fault.needed,
            available=fault.available,
            elapsed=0.4,
            numerics=Numerics(l2=0.31, max=0.7, tolerance=1e-5) if fault.status == "wrong" else None,
            node=world.node(case, round_),
        )
    draw = random.Random(f"{world.seed}/{case.id}/{round_}")
    node = world.node(case, round_)
    slow = 1.0 if node is None else world.nodes[node]
    median = truth(world, planted, case) * slow * exp(draw.gauss(0.0, world.noise.between))
    latency: dict[Regime, Latency] = {
        "first": Latency(samples=[20.0 * median], stopped="single"),
        "cold": _series(draw, 1.3 * median, world, 1),
        "steady": _series(draw, median, world, 8),
    }
    if world.device == "cuda":
        latency["graph"] = _series(draw, 0.8 * median, world, 8, launch_share=0.2)
    peak = round(planted.memory.at(case)) * problem.element_bytes // 4 * share
    planes = problem.channels
    measuring = sum(sum(series.samples) * series.calls for series in latency.values())
    return Record(
        case=case,
        id=case.id,
        round=round_,
        status="ok",
        traits=traits,
        chosen=list(planted.chosen) or None,
        parameters=120 + 10 * planes if planted.family == "niff" else planes * (case.kernel or 1) ** 2,
        cost=cost,
        latency=latency,
        memory=Memory(peak=peak, resident=elements, output=elements, predicted=peak, workspace=0),
        numerics=Numerics(
            l2=2e-7 * (1 + len(forward)),
            max=1e-6,
            tolerance=1e-5,
            gradient=GradientError(name="weight", l2=3e-6, max=4e-6, tolerance=3e-5)
            if problem.mode == "training"
            else None,
        ),
        machine=MachineState(load=0.1, sm_clock=None if node is None else 1755 / slow),
        elapsed=measuring + 0.02,
        measuring=measuring,
        node=node,
    )


def _series(
    draw: random.Random, median: float, world: World, calls: int, launch_share: float | None = None
) -> Latency:
    samples = [median * exp(draw.gauss(0.0, world.noise.within)) for _ in range(world.samples)]
    return Latency(
        samples=samples, calls=calls, blocks=[world.samples], stopped="precision", launch_share=launch_share
    )


def _manifest(world: World, ids: Sequence[str], records: Sequence[Record]) -> Manifest:
    cuda = world.device == "cuda"
    must: dict[str, Fact] = {"torch": world.torch, "threads": 2, "deterministic": False, "tf32": False}
    if cuda:
        must |= {
            "gpu": "NVIDIA H100 80GB HBM3",
            "gpu_memory_gib": 80,
            "driver": "580.10",
            "cuda": "13.0",
            "cudnn": "9.15",
        }
    should: dict[str, Fact] = {"cpu": "AMD EPYC 9554 64-Core", "cores": 2, "kernel": "6.1.0", "python": "3.11.2"}
    fast = 10.0 if cuda else 1.0
    return Manifest(
        niffbench="0.1.0",
        suite=SuiteEcho(
            name=world.name,
            description="Made-up numbers with a planted truth.",
            baseline=world.baseline,
            source_hash="0" * 64,
            measure=Measure(),
            cases=list(ids),
            excluded=[ExcludedCase(label="dense-k31", problem="B1 64@14", reason="larger than the map")],
        ),
        rounds=world.rounds,
        seed=world.seed,
        device=world.device,
        fingerprint=Fingerprint(must=must, should=should),
        nodes=[
            Fingerprint(must=must | ({"torch": "2.11.0"} if number in world.older else {}), should=should)
            for number in range(len(world.nodes))
        ],
        argv=["niffbench", "run", world.name],
        commit="0123456789abcdef",
        dirty=False,
        started="2026-01-02T03:04:05Z",
        finished="2026-01-02T03:14:05Z",
        wall=sum(record.elapsed for record in records) + 5.0,
        ceilings=Ceilings(
            copy_bandwidth=3e10 * fast, matmul={"float32": 3e12 * fast}, fft={"float32": 6e10 * fast}
        ),
    )
