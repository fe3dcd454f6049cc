"""Taking a case apart: steps found, backward attributed, the sum reconciled, no host in the trace."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from run_worker import case_of
from torch.autograd import DeviceType
from torch.autograd.profiler_util import EventList, FunctionEvent

from niffbench.case import Case
from niffbench.cost.closed import step_costs
from niffbench.cost.witness import witnesses
from niffbench.niff.native import kernel
from niffbench.niff.steps import PREFIX, STEPS
from niffbench.operators.catalogue import catalogue
from niffbench.results import StepCost
from niffbench.worker import phases
from niffbench.worker.phases import CALL, Phases, library, profile, take_apart
from niffbench.worker.probe import Probe
from niffbench.worker.torch_evaluator import TorchEvaluator

SIZE = 16


def uncounted(case: Case) -> list[StepCost]:
    """What the closed form alone says of a case's steps."""
    return step_costs(catalogue()[case.operator].cost(case), None)


def _profiled(
    evaluator: TorchEvaluator, operator: str, kernel: int | None = None, trace: Path | None = None, **axes: object
) -> Phases:
    case = case_of(operator, kernel, channels=8, size=SIZE, **axes)  # type: ignore[arg-type]
    workload = evaluator.workload(case)
    return profile(evaluator.device, workload, evaluator.cost(case, None).steps, trace)


@pytest.fixture(scope="module")
def training(evaluator: TorchEvaluator) -> Phases:
    return _profiled(evaluator, "niff-depthwise/published", mode="training")


def test_the_steps_of_the_published_form_are_found_in_their_order(evaluator: TorchEvaluator) -> None:
    result = _profiled(evaluator, "niff-depthwise/published")
    assert [phase.name for phase in result.phases] == [
        "filter generation",
        "forward fft",
        "shift",
        "product",
        "inverse fft",
        "real part",
    ]
    assert {phase.direction for phase in result.phases} == {"forward"}
    assert set(STEPS) >= {phase.name for phase in result.phases}


def test_a_kernel_that_is_called_as_an_operator_is_work_of_its_step(
    evaluator: TorchEvaluator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a GPU, whose profiler knows kernels by the operator that launched them."""
    monkeypatch.setattr(kernel, "_is_seen", lambda _: True)
    x = torch.randn(2, 8, 14, 14, requires_grad=True)
    half = torch.fft.rfft2(torch.randn(8, 14, 14)).requires_grad_()

    def call() -> None:
        with torch.inference_mode(False):
            kernel.convolve(x, half).sum().backward()

    workload: Any = Probe(call)
    result = profile(evaluator.device, workload, ())
    assert [(phase.name, phase.direction) for phase in result.phases] == [
        ("convolution", "forward"),
        ("convolution", "backward"),
    ]
    for phase, name in zip(result.phases, ("convolution", "convolution_gradients"), strict=True):
        assert f"niffbench::circular_{name}" in {one.name for one in phase.kernels if one.library == "niffbench"}


def test_backward_work_is_attributed_to_the_step_that_caused_it(training: Phases) -> None:
    backward = {phase.name: phase for phase in training.phases if phase.direction == "backward"}
    assert {"filter generation", "forward fft", "shift", "product", "inverse fft"} <= set(backward)
    assert any("_fft_c2c" in kernel.name for kernel in backward["forward fft"].kernels)
    assert any("roll" in kernel.name for kernel in backward["shift"].kernels)
    assert not any("_fft" in kernel.name for kernel in backward["product"].kernels)


@pytest.mark.parametrize("form", ["fused", "dft", "native", "auto"])
def test_the_backward_of_a_form_with_its_own_is_no_forward_work(evaluator: TorchEvaluator, form: str) -> None:
    """What these forms do backward are steps inside a node that no step made, or in auto the convolution's own."""
    case = case_of(f"niff-depthwise/{form}", channels=8, size=SIZE, mode="training")
    workload = evaluator.workload(case)
    evaluator.device.timed(workload)
    choice = evaluator.choice(workload)
    steps = evaluator.cost(case, choice).steps
    result = profile(evaluator.device, workload, steps)
    rows = {(phase.name, phase.direction): phase for phase in result.phases}
    assert {(step.name, step.direction) for step in steps if step.flops} <= set(rows)
    assert sum(step.flops for step in steps) == sum(phase.flops or 0 for phase in result.phases)
    for (name, direction), phase in rows.items():
        assert direction == "backward" or not any("vecdot" in kernel.name for kernel in phase.kernels)
        if form == "fused" and name in ("forward fft", "inverse fft"):
            assert any("_fft_" in kernel.name for kernel in phase.kernels), "in both directions"


def test_a_step_inside_another_steps_node_is_that_ones(evaluator: TorchEvaluator) -> None:
    """Backward auto takes fused's steps in its own node, and its memory is counted once."""
    cost = uncounted(case_of("niff-depthwise/auto", channels=8, size=SIZE))
    node = "autograd::engine::evaluate_function: _ConvolutionBackward"
    spans = [
        (CALL, 0, 100, -1),
        (PREFIX + "convolution", 10, 40, -1),
        ("_Convolution", 11, 39, 5),
        (node, 50, 90, 5),
        (PREFIX + "forward fft", 55, 65, -1),
        ("aten::_fft_r2c", 56, 64, -1),
    ]
    [forward, backward] = take_apart(_recorded(spans, [_Allocated(60, 64, CPU)]), False, 1e-4, cost).phases
    assert (forward.name, forward.direction) == ("convolution", "forward")
    assert (backward.name, backward.direction) == ("convolution", "backward")
    assert (forward.seconds, backward.seconds) == pytest.approx((30e-6, 40e-6))
    assert "aten::_fft_r2c" in [kernel.name for kernel in backward.kernels]
    assert (backward.peak, backward.kept) == (64, 64)


NODE = "autograd::engine::evaluate_function: "
OWN_BACKWARD = [
    (CALL, 0, 100, -1),
    ("_Convolution", 5, 40, 5),
    (PREFIX + "forward fft", 6, 15, -1),
    ("aten::_fft_r2c", 7, 14, -1),
    (PREFIX + "inverse fft", 20, 39, -1),
    ("aten::_fft_c2r", 21, 38, -1),
    (NODE + "_ConvolutionBackward", 50, 80, 5),
    ("_ConvolutionBackward", 51, 79, 5),
    (PREFIX + "product", 52, 60, -1),
    ("aten::linalg_vecdot", 53, 59, -1),
    (PREFIX + "inverse fft", 62, 78, -1),
    ("aten::irfft2", 63, 77, -1),
    (NODE + "torch::autograd::AccumulateGrad", 82, 90, -1),
    ("aten::detach", 83, 89, -1),
]
"""A training step on a GPU of a form with its own autograd: the node is made outside the steps, which it takes
itself. Times are the host's; the kernels, which run whenever the GPU gets to them, hang on what launched them."""
LAUNCHED = {
    PREFIX + "forward fft": [(PREFIX + "forward fft", 300)],  # the range's own double on the GPU's timeline
    PREFIX + "inverse fft": [(PREFIX + "inverse fft", 700)],
    "aten::_fft_r2c": [("regular_fft", 30)],
    "aten::_fft_c2r": [("regular_fft", 20)],
    "aten::linalg_vecdot": [("at::native::mul", 200), ("at::native::reduce", 50)],
    "aten::irfft2": [("vector_fft", 400)],
    "aten::detach": [("at::native::copy", 10)],
}


@pytest.mark.parametrize("elsewhere", [None, 50])
def test_a_backward_kernel_finds_the_step_its_own_node_launched_it_in(elsewhere: int | None) -> None:
    """Whichever thread autograd runs the node in."""
    cost = uncounted(case_of("niff-depthwise/fused", mode="training"))
    result = take_apart(_recorded(OWN_BACKWARD, [], LAUNCHED, elsewhere), True, 1e-3, cost)
    assert {(phase.name, phase.direction): round(phase.seconds * 1e6) for phase in result.phases} == {
        ("forward fft", "forward"): 30,
        ("inverse fft", "forward"): 20,
        ("product", "backward"): 250,
        ("inverse fft", "backward"): 400,
    }
    assert [kernel.name for kernel in result.phases[-2].kernels] == ["at::native::mul", "at::native::reduce"]
    assert result.remainder == pytest.approx(10e-6)
    assert [kernel.name for kernel in result.outside] == ["at::native::copy"]
    assert (result.whole, result.gap) == pytest.approx((710e-6, 0))


def test_flops_are_the_closed_forms_and_bytes_are_counted(training: Phases) -> None:
    case = case_of("niff-depthwise/published", channels=8, size=SIZE, mode="training")
    closed = {(s.name, s.direction): (s.flops, s.bytes) for s in witnesses(catalogue()[case.operator], case).steps}
    output = {(p.name, p.direction): (p.flops, p.bytes) for p in training.phases if p.flops is not None}
    assert output == {key: closed[key] for key in output}
    assert sum(flops for flops, _ in closed.values()) == sum(flops or 0 for flops, _ in output.values())


def test_the_sum_is_reconciled_with_the_whole(training: Phases) -> None:
    parts = sum(phase.seconds for phase in training.phases)
    assert training.instrumented == pytest.approx(parts + training.remainder)
    assert 0 <= training.remainder < training.instrumented
    assert abs(training.gap) < 0.01
    assert training.steady > 0
    for phase in training.phases:
        assert phase.seconds >= 0
        assert sum(kernel.seconds for kernel in phase.kernels) <= phase.seconds * 1.5


def test_a_part_that_is_lost_is_a_gap(monkeypatch: pytest.MonkeyPatch) -> None:
    cost = uncounted(case_of("niff-depthwise/published", channels=8, size=SIZE))
    assert take_apart(_recorded(), False, 1e-4, cost).gap == pytest.approx(0)
    every = phases._Timeline.parts
    lost = ("forward fft", "forward")
    monkeypatch.setattr(
        phases._Timeline, "parts", lambda timeline: [part for part in every(timeline) if part.step != lost]
    )
    result = take_apart(_recorded(), False, 1e-4, cost)
    assert result.whole == pytest.approx(100e-6)
    assert result.gap == pytest.approx(0.2)


def test_memory_of_a_step_is_what_it_allocates(evaluator: TorchEvaluator) -> None:
    """A complex FFT of C·H·W floats: a complex copy of the input, and the result that stays."""
    result = {phase.name: phase for phase in _profiled(evaluator, "niff-depthwise/fft").phases}
    spectrum = 8 * SIZE * SIZE * 8
    assert result["forward fft"].kept == spectrum
    assert result["forward fft"].peak == 2 * spectrum
    assert result["real part"].peak == 0


@dataclass(frozen=True)
class _Allocated:
    """An allocator's event as a profile holds it; ``moment`` in µs from the profile's start."""

    moment: int
    size: int
    device: DeviceType

    def name(self) -> str:
        return "[memory]"

    def start_ns(self) -> int:
        return BEGUN + 1000 * self.moment

    def nbytes(self) -> int:
        return self.size

    def device_type(self) -> DeviceType:
        return self.device


BEGUN = 10**15
CPU, CUDA = DeviceType.CPU, DeviceType.CUDA
ALLOCATED = [
    _Allocated(20, 999_424, CUDA),  # of an earlier call
    _Allocated(111, 1024, CUDA),
    _Allocated(112, 48, CPU),
    _Allocated(115, 512, CUDA),
    _Allocated(116, -48, CPU),
    _Allocated(120, -512, CUDA),
    _Allocated(125, 16, CPU),
    _Allocated(135, 4096, CUDA),  # between the steps
    _Allocated(152, -4096, CUDA),
    _Allocated(148, -1024, CUDA),  # a profile is not sorted
    _Allocated(145, 2048, CUDA),
    _Allocated(155, 200, CPU),
    _Allocated(172, 3072, CUDA),
    _Allocated(175, -2048, CUDA),
]


SPANS = [
    (CALL, 0, 100, -1),
    (PREFIX + "forward fft", 10, 30, -1),
    (CALL, 100, 200, -1),
    (PREFIX + "forward fft", 110, 130, -1),
    (PREFIX + "product", 140, 160, -1),
    ("aten::mul", 141, 159, 7),
    ("autograd::engine::evaluate_function: MulBackward0", 170, 190, 7),
]
"""Name, begin and end in µs, and number of the node: two calls, the second a training step."""


def _recorded(
    spans: Sequence[tuple[str, int, int, int]] = SPANS,
    allocated: Sequence[_Allocated] = ALLOCATED,
    kernels: Mapping[str, Sequence[tuple[str, int]]] | None = None,
    elsewhere: int | None = None,
) -> Any:
    """A finished profile. ``kernels``: what each operation launched, as the profiler attached it, with its µs;
    ``elsewhere``: from when on spans are another thread's."""
    thread = {False: 1, True: 2}
    events = EventList(
        [
            FunctionEvent(i, name, thread[elsewhere is not None and a >= elsewhere], a, b, sequence_nr=n)
            for i, (name, a, b, n) in enumerate(spans)
        ]
    )
    for event in events:
        for name, duration in (kernels or {}).get(event.name, ()):
            event.append_kernel(name, 0, duration)
    events._build_tree()  # type: ignore[no-untyped-call]
    results = SimpleNamespace(trace_start_ns=lambda: BEGUN, events=lambda: allocated)
    return SimpleNamespace(events=lambda: events, profiler=SimpleNamespace(kineto_results=results))


@pytest.mark.parametrize(
    ("on_gpu", "expected"),
    [
        # the FFT's 1024 and 512 above nothing; the product's 2048 - 1024 - 4096; its gradient's 3072 - 2048
        (True, [(1536, 1024), (2048, -3072), (3072, 1024)]),
        (False, [(48, 16), (200, 200), (0, 0)]),
    ],
)
def test_the_memory_of_a_step_is_that_of_the_device_it_runs_on(
    on_gpu: bool, expected: list[tuple[int, int]]
) -> None:
    case = case_of("niff-depthwise/published", channels=8, size=SIZE, mode="training")
    result = take_apart(_recorded(), on_gpu, 1e-4, uncounted(case)).phases
    steps = [("forward fft", "forward"), ("product", "forward"), ("product", "backward")]
    assert [(phase.name, phase.direction) for phase in result] == steps
    assert [(phase.peak, phase.kept) for phase in result] == expected


def test_a_convolution_is_one_step_by_its_own_kernel(evaluator: TorchEvaluator) -> None:
    result = _profiled(evaluator, "depthwise", 3)
    [phase] = result.phases
    assert phase.name == "convolution"
    assert any("conv" in kernel.name for kernel in phase.kernels)
    assert phase.peak is not None
    assert phase.peak >= 8 * SIZE * SIZE * 4


def test_the_trace_opens_as_chromes_and_says_not_whose_machine_it_was(
    evaluator: TorchEvaluator, tmp_path: Path
) -> None:
    path = tmp_path / "trace.json"
    _profiled(evaluator, "niff-depthwise/rfft", trace=path)
    text = path.read_text()
    document = json.loads(text)
    names = {event.get("name") for event in document["traceEvents"]}
    assert {"niffbench::forward fft", "niffbench::call", "aten::_fft_r2c"} <= names
    assert "host_name" not in document
    assert os.uname().nodename not in document.values()
    assert str(tmp_path) not in text


@pytest.mark.parametrize(
    ("name", "origin"),
    [
        ("aten::mkldnn_convolution", "oneDNN"),
        ("aten::_fft_r2c", "MKL"),
        ("aten::mul", "native"),
        ("void at::native::(anonymous namespace)::conv_depthwise2d_forward_kernel<3, float, int>", "native"),
        ("void cudnn::ops::nchwToNhwcKernel<float, float, float, false, true>", "cuDNN"),
        ("sm90_xmma_fprop_implicit_gemm_f32f32_tf32f32_f32_nhwckrsc_nchw", "cuDNN or cuBLAS"),
        ("void regular_fft<56u, EPT<7u>, 8u>", "cuFFT"),
        ("ampere_sgemm_128x64_tn", "cuBLAS"),
        ("triton_poi_fused_mul_0", "Triton"),
        ("convolve", "niffbench"),
        ("features_gradient", "niffbench"),
        ("niffbench::circular_convolution", "niffbench"),
    ],
)
def test_kernels_are_told_by_library(monkeypatch: pytest.MonkeyPatch, name: str, origin: str) -> None:
    monkeypatch.setattr(torch.backends.mkl, "is_available", lambda: True)
    assert library(name) == origin


@pytest.mark.parametrize(("name", "origin"), [("aten::_fft_c2c", "PocketFFT"), ("aten::mm", "BLAS")])
def test_without_mkl_nothing_is_said_to_be_its(monkeypatch: pytest.MonkeyPatch, name: str, origin: str) -> None:
    monkeypatch.setattr(torch.backends.mkl, "is_available", lambda: False)
    assert library(name) == origin
