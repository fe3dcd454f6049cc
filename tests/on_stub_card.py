"""What the tests of the stub card run on it, in a process of its own.

``python on_stub_card.py NAME…`` prints what the programs named found, as JSON.
"""

from __future__ import annotations

import contextlib
import gc
import io
import json
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import lenient
import torch
from gpu_cases import case, names, opened

from niffbench import protocol
from niffbench.cli import main
from niffbench.niff import auto
from niffbench.results import REGIMES, Record
from niffbench.suite import Measure, Settings
from niffbench.worker import memory
from niffbench.worker.failures import DeviceLost, explain
from niffbench.worker.main import survey
from niffbench.worker.probe import Probe
from niffbench.worker.round import Round
from niffbench.worker.torch_evaluator import TorchEvaluator

SIDE = (2, 64, 128, 128)
"""8 MiB of float32."""


def places() -> object:
    """Of every operator and mode what has a tensor elsewhere than on the card, or none at all, and the count."""
    evaluator, device, result = TorchEvaluator(opened("cuda")), opened("cuda"), []
    # NVIDIA's bindings, by which the native form reaches the driver, take no stub for one; nor does Triton.
    tried = [name for name in names("cuda") if "/native" not in name and "/triton" not in name]
    for name in tried:
        for mode in ("inference", "training"):
            workload = evaluator.workload(case(name, mode=mode))  # type: ignore[arg-type]
            _, output = device.timed(workload)
            made = {"output": output, **(workload.gradients() if mode == "training" else {})}
            result += [
                f"{name} {mode} {what}"
                for what, tensor in made.items()
                if not isinstance(tensor, torch.Tensor) or tensor.device.type != "cuda"
            ]
    return {"elsewhere": result, "operators": len(tried)}


def peaks() -> object:
    """Peaks in bytes of calls whose figures follow from their tensors alone."""
    device = opened("cuda")
    x, weight = torch.zeros(SIDE, device="cuda"), torch.zeros(64, 1, 7, 7, device="cuda")
    spectrum = torch.zeros(2, 64, 128, 65, dtype=torch.complex64, device="cuda")
    calls: dict[str, Callable[[], object]] = {
        "add": lambda: x + 1,
        "add, multiply": lambda: (x + 1) * 2,
        "in place": lambda: x.add_(1),
        "rfft2": lambda: torch.fft.rfft2(x),
        "irfft2": lambda: torch.fft.irfft2(spectrum, s=(128, 128)),
        "depthwise": lambda: torch.nn.functional.conv2d(x, weight, padding=3, groups=64),
    }
    return {name: device.usage(Probe(call)).peak for name, call in calls.items()}


def training() -> object:
    """Bytes of a training call of depthwise convolution, as a record has them."""
    device = opened("cuda")
    evaluator = TorchEvaluator(device)
    one = case("depthwise", mode="training", batch=2, channels=64, size=(128, 128))
    workload = evaluator.workload(one)
    device.timed(workload)
    result = memory.measure(device, workload, evaluator.predict(one))
    return {"peak": result.peak, "predicted": result.predicted, "resident": result.resident, "saved": result.saved}


def captures() -> object:
    """Graphs after all that comes before them in a round: what fails, what they leave, what they hold back."""
    lenient.judge_nothing()
    device = opened("cuda")
    evaluator = TorchEvaluator(device)
    failed, left = [], []
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        for name in ("niff-depthwise/rfft", "fft-depthwise"):  # with cuBLAS and without
            for mode in ("inference", "training"):
                one = case(name, mode=mode)  # type: ignore[arg-type]
                for _ in range(3):
                    workload = evaluator.workload(one)
                    _, output = device.timed(workload)
                    evaluator.numerics(workload, output)
                    memory.measure(device, workload, evaluator.predict(one))
                    device.samples(workload, "steady", 1, 3)
                    del output
                    try:
                        graph = device.capture(workload)
                        device.samples(graph, "graph", 1, 3)
                        device.timed(workload)  # as for the launch share
                        del graph
                    except RuntimeError as error:
                        failed.append(f"{name} {mode}: {error}"[:200])
                    workload.reset()
                    del workload
                    device.release()
                    gc.collect()
                    left.append(torch.cuda.memory_allocated())
    streams = [str(one.message)[:100] for one in warned if "stream" in str(one.message)]
    return {"failed": failed, "grown": [left[i + 2] - left[i] for i in range(0, len(left), 3)], "streams": streams}


def uncapturable() -> object:
    """What becomes of a call that waits for the card when it is captured, and of the card."""
    device, x = opened("cuda"), torch.zeros(8, device="cuda")
    try:
        device.capture(Probe(lambda: float((x + 1).sum())))
        status = "captured"
    except RuntimeError as error:
        status = explain(error).status
    at_home = torch.cuda.current_stream() == torch.cuda.default_stream()
    again = device.timed(device.capture(Probe(lambda: x + 1)))[0] > 0
    return {"status": status, "at home": at_home, "again": again}


def after_a_failed_capture() -> object:
    """Whether random numbers can be drawn as before, and how much memory a capture that failed keeps."""
    device, x = opened("cuda"), torch.zeros(8, device="cuda")
    drawing = Probe(lambda: torch.randn(8, device="cuda"))
    earlier = device.capture(drawing)
    device.release()
    before = torch.cuda.memory_reserved()

    def waits() -> float:
        return float(torch.zeros(64 * 2**20, device="cuda").sum())

    for _ in range(3):
        try:
            device.capture(Probe(waits))
        except RuntimeError:
            device.release()
    kept = torch.cuda.memory_reserved() - before
    torch.cuda.manual_seed(1)
    torch.randn(8, device="cuda")
    device.timed(earlier)
    device.timed(device.capture(drawing))
    device.timed(device.capture(Probe(lambda: x + 1)))
    return {"kept": kept, "drawn": True}


def unrolled() -> object:
    """How many calls a graph holds, how long it lasts in seconds, and the bytes it takes beyond those of one."""
    device, x = opened("cuda"), torch.zeros(SIDE, device="cuda")
    device.release()
    before = torch.cuda.memory_reserved()
    short = device.capture(Probe(lambda: (x[:1, :1, :8] + 1) * 2))
    [lasts, *_] = sorted(device.samples(short, "graph", 1, 5).samples)
    long = device.capture(Probe(lambda: (torch.cuda._sleep(1_000_000), x + 1)[1]))  # type: ignore[no-untyped-call]
    return {
        "short": short.unrolled,
        "lasts": lasts * short.unrolled,
        "long": long.unrolled,
        "taken": torch.cuda.memory_reserved() - before,
    }


def chosen() -> object:
    """Which of two engines is chosen by whose clock: one is slow to enqueue, the other slow on the card."""

    def enqueued_slowly() -> torch.Tensor:
        time.sleep(0.3e-3)
        return torch.zeros(8, device="cuda")

    def slow_on_the_card() -> torch.Tensor:
        torch.cuda._sleep(200_000)  # type: ignore[no-untyped-call]
        return torch.zeros(8, device="cuda")

    x, result = torch.zeros(1, 1, 8, 8, device="cuda"), {}
    for clock in ("host", "device", "host"):
        auto.judge_by(clock)  # type: ignore[arg-type]
        result[clock] = auto.choose(
            x,
            lambda: [x],
            lambda _: {"slow to enqueue": enqueued_slowly, "slow on the card": slow_on_the_card},
            auto.Constants(),
            otherwise="none",
            what=(clock,),
        )
    return result


def out_of_memory() -> object:
    """The records of a round on a card that is too small for the middle one; nobody predicts what does not fit."""
    return [
        {
            "channels": record.case.problem.channels,
            "status": record.status,
            "graph": "graph" in record.latency and bool(record.latency["graph"].samples),
            "sampled": [regime for regime, series in record.latency.items() if series.samples],
            "needed": record.needed,
        }
        for record in _round([8, 512, 16])
    ]


def lost() -> object:
    """What a round raises when the card is lost on the way."""
    try:
        _round([8])
    except DeviceLost as error:
        return {"lost": str(error)}
    return {}


def profiled() -> object:
    """Status and message of a profile where CUPTI tells of no kernel: it has no driver here."""
    lenient.judge_nothing()
    said = io.StringIO()
    with tempfile.TemporaryDirectory() as place, contextlib.redirect_stderr(said):
        out = str(Path(place) / "profile")
        status = main(
            ["profile", "depthwise-k7", "--channels", "8", "--size", "14", "--device", "cuda", "--out", out]
        )
    return {"status": status, "said": said.getvalue()}


def roofline() -> object:
    """What a survey says of the ceilings on a card that is too full for them."""
    sent: list[object] = []
    task = protocol.Task(kind="survey", settings=Settings(device="cuda", rounds=1), cases=[], ceilings=["float32"])
    survey(task, TorchEvaluator(opened("cuda")), SimpleNamespace(send=sent.append))  # type: ignore[arg-type]
    return [message.model_dump() for message in sent if isinstance(message, protocol.Roofline)]


def _round(channels: list[int]) -> list[Record]:
    """The records of one round of depthwise convolution; what is computed is not judged."""
    lenient.judge_nothing()
    cases = [case("depthwise", channels=count, size=(256, 256)) for count in channels]
    measure = Measure(regimes=[*REGIMES], min_time=0.005, max_time=0.02, min_samples=3)
    sent: list[object] = []
    settings = Settings(device="cuda", rounds=1, measure=measure, memory_limit=2**50)
    task = protocol.Task(kind="round", settings=settings, cases=cases)
    Round(task, TorchEvaluator(opened("cuda")), sent.append).run()
    return [message.record for message in sent if isinstance(message, protocol.Finished)]


PROGRAMS = {
    program.__name__: program
    for program in (
        places,
        peaks,
        training,
        captures,
        uncapturable,
        after_a_failed_capture,
        unrolled,
        chosen,
        out_of_memory,
        roofline,
        lost,
        profiled,
    )
}

if __name__ == "__main__":
    print(json.dumps({name: PROGRAMS[name]() for name in sys.argv[1:]}))
