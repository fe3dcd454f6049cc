"""Bytes by step as the dispatcher sees them: operations by hand, and whose step each of them is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from operator_cases import LAYERS, case_at
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional as F

from niffbench.case import Mode, Problem
from niffbench.cost.call import fake
from niffbench.cost.counters import count
from niffbench.cost.memory import predict
from niffbench.cost.traffic import Dispatched, Traffic
from niffbench.niff.steps import recording, step
from niffbench.operators.catalogue import catalogue

PROBLEM = Problem(2, 8, 8, 12, 10)


def numbers(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.empty(*shape, dtype=dtype, requires_grad=True)  # empty: made without any traffic


def spectrum(*shape: int) -> Tensor:
    return numbers(*shape, dtype=torch.complex64)


def traffic(function: Callable[[], object]) -> Traffic:
    with recording(), Dispatched() as dispatched:
        function()
    return dispatched.traffic


@pytest.mark.parametrize(
    ("function", "bytes_"),
    [
        (lambda: numbers(4, 5) + numbers(5), 4 * (20 + 5 + 20)),
        (lambda: numbers(4, 5).t(), 0),
        (lambda: numbers(4, 5).clone(), 4 * 40),
        (lambda: numbers(4, 5).sum(0), 4 * 25),
        (lambda: numbers(5).expand(4, 5) + numbers(4, 5), 4 * (5 + 20 + 20)),  # an expanded tensor is read once
        (lambda: torch.fft.fft2(spectrum(4, 4)), 8 * 32),
        (lambda: torch.fft.ifft2(spectrum(4, 4)), 8 * 64),  # scaled: a pass more
        (lambda: torch.roll(spectrum(4, 4), (1, 2), (0, 1)), 8 * 64),  # a pass for each dimension
        (lambda: numbers(4, 5).detach().clone().mul_(2), 4 * 80),
        (lambda: torch.zeros(4, 5).copy_(numbers(4, 5)), 4 * 60),  # filled; then one read, one write
    ],
)
def test_traffic(function: Callable[[], Tensor], bytes_: int) -> None:
    assert sum(traffic(function).values()) == bytes_


class Steps(nn.Module):
    """Two named steps of one layer, one of its own backward, and something outside of all."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(8, 8))

    def forward(self, x: Tensor) -> Tensor:
        with step("mixing"):
            x = x @ self.weight
        x = x.exp()
        x = _Own.apply(x)
        with step("padding"):
            return F.pad(x, (1, 1))


class _Own(torch.autograd.Function):
    @staticmethod
    def forward(ctx: object, x: Tensor) -> Tensor:
        with step("shift"):
            return x.roll(1, 0)

    @staticmethod
    def backward(ctx: object, *gradients: Tensor) -> Tensor:
        with step("cast"):
            return gradients[0].roll(-1, 0).double().float()


def test_every_operation_is_in_the_step_that_took_it_or_made_its_node() -> None:
    with FakeTensorMode():
        layer, x = Steps(), torch.empty(4, 8, requires_grad=True)
        gradient = torch.empty(4, 10)
        image, padded, weight = 4 * 4 * 8, 4 * 4 * 10, 4 * 8 * 8
        moved = traffic(lambda: layer(x).backward(gradient))
    assert moved == {
        ("mixing", "forward"): 2 * image + weight,
        ("other", "forward"): 2 * image,  # exp
        ("shift", "forward"): 2 * image,
        ("padding", "forward"): image + padded,
        ("padding", "backward"): image + padded,
        ("cast", "backward"): 2 * image + 2 * 3 * image,
        ("product", "backward"): 3 * image,  # of exp's gradient
        ("mixing", "backward"): 4 * image + 2 * weight,
    }


def test_what_arrives_at_a_leaf_is_not_the_forms() -> None:
    """A gradient that is added to one that is there, or put in order for its leaf."""
    with FakeTensorMode():
        x = torch.empty(4, 8, requires_grad=True)
        x.grad = torch.empty(4, 8)
        assert traffic(lambda: x.t().backward(torch.empty(8, 4))) == {}


@pytest.mark.parametrize("mode", ["inference", "training"])
@pytest.mark.parametrize("name", LAYERS)
def test_bytes_of_every_operator_are_counted_under_its_own_steps(name: str, mode: Mode) -> None:
    """Whatever costs FLOPs moves bytes; no operation of ours lies outside a step, but for casts of weights."""
    operator = catalogue()[name]
    for dtype in ("float32", "bfloat16"):
        problem = replace(PROBLEM, mode=mode, dtype=dtype)  # type: ignore[arg-type]
        case = case_at(name, problem, 5, **({"modes": 4} if name == "spectral" else {}))
        counted = predict(operator, case).traffic
        assert {(s.name, s.direction) for s in operator.cost(case).steps} <= set(counted)
        assert all(moved > 0 for moved in counted.values())
        outside = sum(moved for (step, _), moved in counted.items() if step == "other")
        assert outside <= (0 if dtype == "float32" else 2 * (2 + 4) * operator.cost(case).parameters)
    with fake(operator, case) as call:  # the last one, which casts too
        assert count(call).traffic == counted, "composite or not, with a FLOP counter or without"


@pytest.mark.parametrize("form", ["native", "native-cached", "features-cached"])
def test_a_kernel_of_ours_moves_what_it_reads_and_writes(form: str) -> None:
    """Four hidden features of either MLP at 72 frequencies, and the weights and biases of the last layer."""
    operator, image = catalogue()[f"niff-depthwise/{form}"], 4 * 2 * 8 * 12 * 10
    made_of = 4 * (2 * 4 * 72 + 2 * 8 * 4 + 2 * 8)
    counted = predict(operator, case_at(operator.name, replace(PROBLEM, mode="training"))).traffic
    assert counted["convolution", "forward"] == 2 * image + made_of
    assert counted["convolution", "backward"] == 3 * image + 2 * made_of
    counted = predict(operator, case_at(operator.name, PROBLEM)).traffic
    assert counted["convolution", "forward"] == 2 * image + (8 * 8 * 72 if form == "native-cached" else made_of)
