"""Memory of a call, held to cases worked out by hand. N is the bytes of one image batch."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from run_worker import case_of
from torch import Tensor, nn

from niffbench.case import Mode
from niffbench.device.cpu import CpuDevice
from niffbench.niff import auto
from niffbench.niff.native import build
from niffbench.protocol import Predicted
from niffbench.results import Memory
from niffbench.worker import memory
from niffbench.worker.torch_evaluator import TorchEvaluator
from niffbench.worker.workload import TorchWorkload

SIZE = 16
N = 4 * SIZE * SIZE * 4  # four channels of float32

needs_kernel = pytest.mark.skipif(build.unavailable() is not None, reason="there is no C compiler here")


class Function(nn.Module):
    """A function as a module, with one weight of N bytes."""

    def __init__(self, function: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1, 4, SIZE, SIZE))
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x, self.weight)


def _measured(device: CpuDevice, mode: Mode, function: Callable[[Tensor, Tensor], Tensor]) -> Memory:
    case = case_of("dense", 1, channels=4, size=SIZE, mode=mode)
    workload = TorchWorkload(case, Function(function), torch.ones(1, 4, SIZE, SIZE), torch.device("cpu"))
    device.timed(workload)
    return memory.measure(device, workload, Predicted(case="", resident=2 * N, peak=N))


def test_inference_of_one_product(device: CpuDevice) -> None:
    """Resident: input and weight. The product is the output and all there is."""
    result = _measured(device, "inference", lambda x, w: x * w)
    assert result == Memory(
        peak=N, resident=2 * N, output=N, kept=0, saved=None, predicted=N, workspace=0, reserved=None,
        device_delta=None,
    )  # fmt: skip


def test_temporaries_count_while_they_live(device: CpuDevice) -> None:
    """x·w and its double are there together (2 N); the former is dropped before the sum of two (again 2 N)."""

    def function(x: Tensor, w: Tensor) -> Tensor:
        y = x * w
        z = y + y
        del y
        return z + z

    result = _measured(device, "inference", function)
    assert (result.peak, result.output, result.workspace) == (2 * N, N, N)


def test_a_view_keeps_its_whole_storage(device: CpuDevice) -> None:
    """The real part of a complex result is N bytes of 2 N that stay."""
    result = _measured(device, "inference", lambda x, w: torch.complex(x, w).real)
    assert (result.peak, result.output) == (2 * N, 2 * N)


def test_an_output_that_is_the_input_takes_nothing(device: CpuDevice) -> None:
    result = _measured(device, "inference", lambda x, w: x.view(x.shape))
    assert (result.peak, result.output, result.resident) == (0, 0, 2 * N)


def test_a_forward_pass_keeps_what_backward_needs(device: CpuDevice) -> None:
    """exp saves its result; the product saves exp's result again and the weight: N beside output and residents."""
    result = _measured(device, "forward", lambda x, w: torch.exp(x) * w)
    assert (result.peak, result.output, result.saved, result.resident) == (2 * N, N, N, 2 * N)


def test_saved_leaves_out_what_is_resident_or_the_output(device: CpuDevice) -> None:
    """A product saves its factors, both resident; exp saves its own output."""
    assert _measured(device, "forward", lambda x, w: x * w).saved == 0
    assert _measured(device, "forward", lambda x, w: torch.exp(x)).saved == 0


def test_training_makes_its_gradients_in_the_call(device: CpuDevice) -> None:
    """Resident: input, weight, output's gradient. Peak: output and the gradients of both factors."""
    result = _measured(device, "training", lambda x, w: x * w)
    assert (result.resident, result.peak, result.output, result.saved) == (3 * N, 3 * N, N, 0)


def test_calls_do_not_pile_up(device: CpuDevice) -> None:
    """The second measurement of one training workload says the same as the first."""
    case = case_of("dense", 1, channels=4, size=SIZE, mode="training")
    workload = TorchWorkload(case, Function(lambda x, w: x * w), torch.ones(1, 4, SIZE, SIZE), torch.device("cpu"))
    first = memory.measure(device, workload, None)
    for _ in range(3):
        workload.call()
    assert memory.measure(device, workload, None) == first
    assert first.predicted is first.workspace is None


@pytest.mark.parametrize(
    ("form", "keeping"),
    [
        ("rfft", "cached"),
        pytest.param("native", "native-cached", marks=needs_kernel),
        pytest.param("native", "features-cached", marks=needs_kernel),
        ("auto", "auto-cached"),
    ],
)
def test_what_a_form_keeps_between_calls_is_resident(
    device: CpuDevice, monkeypatch: pytest.MonkeyPatch, form: str, keeping: str
) -> None:
    """Beside input and weights a half plane, C·H·(W/2+1) complex numbers, or four real features of either MLP."""
    monkeypatch.setattr(auto, "candidates", lambda x: ["fused"])  # Another might hold constants of its own.
    auto.forget()
    evaluator = TorchEvaluator(device)
    result = {}
    for name in (form, keeping):
        workload = evaluator.workload(case_of(f"niff-depthwise/{name}", channels=4, size=SIZE))
        device.timed(workload)
        result[name] = memory.measure(device, workload, None)
    half = SIZE * (SIZE // 2 + 1) * (4 * 8 if keeping != "features-cached" else 2 * 4 * 4)
    auto.forget()
    assert result[keeping].resident == N + 4 * workload.parameters + half
    if keeping != "native-cached":  # What native makes column by column is less than what is kept.
        assert result[keeping].peak < result[form].peak


@needs_kernel
@pytest.mark.parametrize("form", ["native", "auto"])
@pytest.mark.parametrize(("channels", "size"), [(64, 56), (128, 28), (512, 7)])
def test_the_kernel_needs_half_the_memory_of_the_published_form_at_most(
    device: CpuDevice, form: str, channels: int, size: int
) -> None:
    """The peak above input and weights, at stages of ResNet, one image: counted, not timed."""
    evaluator = TorchEvaluator(device)
    peaks = {}
    for name in ("published", form):
        workload = evaluator.workload(case_of(f"niff-depthwise/{name}", channels=channels, size=size))
        device.timed(workload)
        peaks[name] = device.usage(workload).peak
    assert peaks[form] <= 0.5 * peaks["published"]


def test_a_compiled_forward_pass_tells_saved_by_what_stays(
    device: CpuDevice, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its saved tensors are the compiler's own choice, which no hook sees."""
    case = case_of("dense", 1, channels=4, size=SIZE, mode="forward", execution="compiled")
    monkeypatch.setattr("niffbench.worker.workload.compiled", lambda module, name: module)
    workload = TorchWorkload(
        case, Function(lambda x, w: torch.exp(x) * w), torch.ones(1, 4, SIZE, SIZE), torch.device("cpu")
    )
    result = memory.measure(device, workload, None)
    assert (result.saved, result.output) == (N, N)
