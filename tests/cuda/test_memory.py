"""Memory figures on a GPU against cases computed by hand, in bytes, and against what fake tensors predict.

PyTorch's caching allocator hands out multiples of 512 bytes, and beyond 10 MiB may leave up to 1 MiB of a block
unsplit; sizes here are multiples of 2 MiB, and a figure may be high by that.
"""

from __future__ import annotations

import pytest
import torch
from gpu_cases import PLACES, case, names, opened
from torch.nn import functional as F

from niffbench.worker import memory
from niffbench.worker.probe import Probe
from niffbench.worker.torch_evaluator import TorchEvaluator

MIB = 2**20
SIDE = (2, 64, 128, 128)
IMAGE = 8 * MIB
"""Bytes of ``SIDE`` float32 numbers."""
HALF = 2 * 64 * 128 * 65 * 8
"""Bytes of the half-plane spectrum of such an image: 8.125 MiB."""
SLACK = 2 * MIB
SCALARS = 512
"""On a CPU the numbers of ``x + 1`` are tensors too, of a few bytes."""


def _image(place: str) -> torch.Tensor:
    return torch.randn(SIDE, device=place)


@pytest.mark.parametrize("place", PLACES)
def test_an_elementwise_operation_takes_its_output(place: str) -> None:
    x = _image(place)
    usage = opened(place).usage(Probe(lambda: x + 1))
    assert IMAGE <= usage.peak <= IMAGE + SCALARS
    assert usage.kept == IMAGE


@pytest.mark.parametrize("place", PLACES)
def test_a_temporary_counts_while_it_lives(place: str) -> None:
    x = _image(place)
    usage = opened(place).usage(Probe(lambda: (x + 1) * 2))
    assert 2 * IMAGE <= usage.peak <= 2 * IMAGE + SCALARS
    assert usage.kept == IMAGE
    in_place = opened(place).usage(Probe(lambda: (x + 1).mul_(2)))
    assert IMAGE <= in_place.peak <= IMAGE + SCALARS


@pytest.mark.parametrize("place", PLACES)
def test_what_was_there_before_does_not_count(place: str) -> None:
    x, target = _image(place), _image(place)
    assert opened(place).usage(Probe(lambda: torch.add(x, 1, out=target))).peak <= SCALARS
    assert opened(place).usage(Probe(lambda: x.sum())).peak <= SLACK


@pytest.mark.parametrize("place", PLACES)
def test_a_real_fft_takes_its_half_plane(place: str) -> None:
    x = _image(place)
    usage = opened(place).usage(Probe(lambda: torch.fft.rfft2(x)))
    assert HALF <= usage.peak <= 3 * HALF + SLACK
    assert HALF <= usage.kept <= HALF + SLACK


@pytest.mark.parametrize("place", PLACES)
def test_an_inverse_real_fft_clones_its_input(place: str) -> None:
    """c2r destroys what it reads: the output alone would be 8 MiB."""
    spectrum = torch.fft.rfft2(_image(place))
    usage = opened(place).usage(Probe(lambda: torch.fft.irfft2(spectrum, s=SIDE[2:])))
    assert usage.peak >= IMAGE + HALF
    assert IMAGE <= usage.kept <= IMAGE + SLACK


@pytest.mark.cuda
def test_a_native_depthwise_kernel_needs_no_workspace() -> None:
    x, weight = _image("cuda"), torch.randn(64, 1, 7, 7, device="cuda")
    usage = opened("cuda").usage(Probe(lambda: F.conv2d(x, weight, padding=3, groups=64)))
    assert IMAGE <= usage.peak <= IMAGE + SLACK


@pytest.mark.cuda
@pytest.mark.alone
def test_the_pool_and_the_device_grow_at_least_as_much() -> None:
    device, x = opened("cuda"), _image("cuda")
    usage = device.usage(Probe(lambda: torch.fft.irfft2(torch.fft.rfft2(x), s=SIDE[2:])))
    assert usage.reserved is not None
    assert usage.device_delta is not None
    # The pool may use what it had left in segments that live on, but not invent more than a few segments.
    assert usage.reserved <= usage.peak + 64 * MIB
    assert usage.device_delta <= usage.reserved + 64 * MIB


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("mode", ["inference", "training"])
def test_a_cases_parts_are_counted_apart(place: str, mode: str) -> None:
    one = case("depthwise", mode=mode, batch=2, channels=64, size=(128, 128))  # type: ignore[arg-type]
    evaluator, device = TorchEvaluator(opened(place)), opened(place)
    workload = evaluator.workload(one)
    device.timed(workload)
    result = memory.measure(device, workload, evaluator.predict(one))
    weight = 64 * 49 * 4
    gradient = IMAGE if mode == "training" else 0
    assert result.resident == IMAGE + weight + gradient
    assert result.output == IMAGE
    if mode == "inference":
        assert result.saved is None
        assert result.peak >= IMAGE
    else:  # the output, and gradients of input and weight
        assert result.peak >= 2 * IMAGE
        assert result.saved == 0  # input and weight are resident already
    assert result.predicted is not None
    assert result.workspace == result.peak - result.predicted


@pytest.mark.cuda
@pytest.mark.parametrize("mode", ["inference", "training"])
@pytest.mark.parametrize("name", names("cuda"))
def test_the_peak_is_no_less_than_predicted(name: str, mode: str) -> None:
    """Dispatch-visible tensors are a lower bound: what kernels take inside comes on top."""
    channels = 16 if "full" in name or "dense" in name else 64
    size = (32, 32) if name == "attention" else (64, 64)
    one = case(name, mode=mode, batch=8, channels=channels, size=size)  # type: ignore[arg-type]
    evaluator, device = TorchEvaluator(opened("cuda")), opened("cuda")
    workload = evaluator.workload(one)
    device.timed(workload)
    result = memory.measure(device, workload, evaluator.predict(one, evaluator.choice(workload)))
    assert result.predicted is not None
    if name != "attention":  # a fused kernel never makes the scores that the fake one predicts
        assert result.peak >= 0.9 * result.predicted
    assert result.peak >= result.output


@pytest.mark.cuda
def test_forms_rank_as_their_tensors_do() -> None:
    """The published form holds complex full planes, rfft half planes: about half of it."""
    device = opened("cuda")
    evaluator = TorchEvaluator(device)
    peaks = {}
    for form in ("published", "rfft"):
        workload = evaluator.workload(case(f"niff-depthwise/{form}", batch=8, channels=64, size=(128, 128)))
        device.timed(workload)
        peaks[form] = device.usage(workload).peak
    plane = 8 * 64 * 128 * 128 * 8
    assert peaks["published"] >= 2 * plane
    assert peaks["rfft"] < 0.75 * peaks["published"]
