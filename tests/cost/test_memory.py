"""The memory prediction against hand-computed cases; nothing is allocated."""

from __future__ import annotations

import resource
from collections.abc import Mapping
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from niffbench.case import Case, Mode, Problem
from niffbench.cost.call import fake
from niffbench.cost.closed import Cost
from niffbench.cost.memory import Prediction, follow, predict, saved
from niffbench.cost.traffic import Traffic
from niffbench.operators.catalogue import catalogue

IMAGE = 2 * 3 * 8 * 8 * 4  # bytes of one input of PROBLEM


def problem(mode: Mode = "inference", **settings: int) -> Problem:
    shape = {"batch": 2, "channels": 3, "channels_out": 3, "height": 8, "width": 8} | settings
    return Problem(**shape, mode=mode)


class Planted:
    """An operator whose module is given."""

    def __init__(self, module: type[nn.Module]) -> None:
        self.module = module

    def cost(self, case: Case) -> Cost:
        return Cost((), bytes_floor=0, parameters=0)

    def build(self, case: Case) -> nn.Module:
        return self.module()


class Chain(nn.Module):
    """Two activations one after the other: at most two results are alive at once, beside the input."""

    def forward(self, x: Tensor) -> Tensor:
        return F.silu(F.silu(F.silu(x)))


class Keeping(nn.Module):
    """Makes something at the first call and keeps it."""

    double: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        if self.double is None:
            self.double = x.detach().repeat(2, 1, 1, 1)
        return x * self.double[:2]


class Convolution(nn.Module):
    """A dense 3×3 with a weight of 81 numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(3, 3, 3, 3))

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.weight, padding=1)


NONE: Traffic = {}
"""What is moved is another test's."""


def predicted(module: type[nn.Module], mode: Mode) -> Prediction:
    return replace(predict(Planted(module), Case("planted", problem(mode))), traffic=NONE)


def kept_for_backward(module: type[nn.Module], mode: Mode) -> int | None:
    with fake(Planted(module), Case("planted", problem(mode))) as call:
        return saved(call)


def test_results_die_when_nobody_holds_them() -> None:
    assert predicted(Chain, "inference") == Prediction(resident=IMAGE, peak=2 * IMAGE, output=IMAGE, traffic=NONE)
    assert kept_for_backward(Chain, "inference") is None


def test_autograd_keeps_the_inputs_of_activations() -> None:
    """Saved beside the input, which is resident: two intermediate results."""
    assert predicted(Chain, "forward") == Prediction(resident=IMAGE, peak=3 * IMAGE, output=IMAGE, traffic=NONE)
    assert kept_for_backward(Chain, "forward") == 2 * IMAGE


def test_training_adds_gradients() -> None:
    """Resident: input, weight, gradient of the output. Peak: output, and gradients of input and weight."""
    weight = 81 * 4
    assert predicted(Convolution, "training") == Prediction(
        resident=2 * IMAGE + weight, peak=2 * IMAGE + weight, output=IMAGE, traffic=NONE
    )
    assert kept_for_backward(Convolution, "training") == 0


def test_what_is_kept_between_calls_is_resident() -> None:
    assert predicted(Keeping, "inference") == Prediction(
        resident=3 * IMAGE, peak=IMAGE, output=IMAGE, traffic=NONE
    )


@pytest.mark.parametrize("mode", ["inference", "training"])
@pytest.mark.parametrize("name", ["niff-depthwise/rfft", "niff-depthwise/cached", "niff-full/factored"])
def test_what_a_first_call_makes_to_keep_is_resident_and_no_part_of_a_call(name: str, mode: Mode) -> None:
    operator = catalogue()[name]
    options = tuple(sorted((key, option.default) for key, option in operator.options.items()))
    case = Case(name, problem(mode), options=options)
    with fake(operator, case) as call:  # has been called
        warm = follow(call)
    first = predict(operator, case)
    assert (first.peak, first.traffic) == (warm.peak, warm.traffic)
    if name == "niff-depthwise/cached" and mode == "inference":
        assert first.resident - warm.resident >= 3 * 8 * 5 * 8, "the filter's half plane is there before a call"


def test_circular_padding_is_a_copy() -> None:
    operators = catalogue()
    zero = predict(operators["depthwise"], Case("depthwise", problem(), 7))
    circular = predict(operators["depthwise-circular"], Case("depthwise-circular", problem(), 7))
    assert zero.peak == IMAGE
    assert circular.peak == IMAGE + 2 * 3 * 14 * 14 * 4


def test_published_form_needs_more_than_the_cached_one() -> None:
    options: Mapping[str, str] = {"grid": "paper", "mlp": "small"}
    large = problem(channels=64, channels_out=64, height=56, width=56)
    image = 2 * 64 * 56 * 56 * 4
    peaks = {
        form: predict(
            catalogue()[f"niff-depthwise/{form}"],
            Case(f"niff-depthwise/{form}", large, options=tuple(sorted(options.items()))),
        ).peak
        for form in ("published", "rfft", "cached")
    }
    # Two complex spectra of 2 images each and the filter, against the half plane in place and the result.
    assert peaks["published"] >= 4 * image
    assert peaks["cached"] <= 3.2 * image
    assert peaks["cached"] < peaks["rfft"] < peaks["published"]


@pytest.mark.parametrize("mode", ["inference", "training"])
def test_a_full_layer_without_its_filter_needs_no_memory_for_one(mode: Mode) -> None:
    """256 channels at 14²: the filter alone has 256² half planes of 14 × 8 complex numbers."""

    def peak(form: str, batch: int) -> int:
        name = f"niff-full/{form}"
        options = tuple(sorted((key, option.default) for key, option in catalogue()[name].options.items()))
        shape = problem(mode, batch=batch, channels=256, channels_out=256, height=14, width=14)
        return predict(catalogue()[name], Case(name, shape, options=options)).peak

    assert peak("rfft", 1) > 256**2 * 14 * 8 * 8 > 2 * peak("factored", 1)
    # More images are done in pieces: what grows are images and spectra.
    images = 24 * 256 * 14 * 16 * 4
    assert peak("factored", 32) - peak("factored", 8) < 6 * images


@pytest.mark.parametrize(
    "name", ["niff-full/rfft", "niff-depthwise/published", "fft-depthwise-padded", "attention"]
)
@pytest.mark.parametrize("mode", ["inference", "training"])
def test_nothing_is_allocated(name: str, mode: Mode) -> None:
    operator = catalogue()[name]
    huge = Problem(1, 1024, 1024, 4096, 4096, mode=mode)
    options = tuple(sorted((key, option.default) for key, option in operator.options.items()))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    foreseen = predict(operator, Case(name, huge, 31 if operator.takes_kernel else None, options))
    assert foreseen.resident >= 1024 * 4096**2 * 4
    assert foreseen.peak >= 1024 * 4096**2 * 4
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 500_000  # KiB
