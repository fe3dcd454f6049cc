"""Operators that misbehave, for tests: load them with ``NIFFBENCH_EXTRA_OPERATORS=hostile_operators``.

Each computes a plain 1×1 sum over a scaled input, and goes wrong in one way when it is called.
"""

from __future__ import annotations

import ctypes
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from niffbench.case import Case
from niffbench.cost.closed import Cost, layer_cost
from niffbench.operators.base import Operator

if TYPE_CHECKING:
    from torch import Tensor, nn


@dataclass(frozen=True)
class Doubling(Operator):
    """``2 x``, with ``fault`` applied to the result on the way, and ``weigh`` to the weight."""

    fault: Callable[[Tensor], Tensor] = lambda y: y
    weigh: Callable[[Tensor], Tensor] = lambda weight: weight

    def equivalence(self, case: Case) -> str:
        return "doubling"

    def cost(self, case: Case) -> Cost:
        p = case.problem
        pixels = p.batch * p.channels * p.height * p.width
        return layer_cost(p, {"product": (pixels, pixels)}, 1)

    def build(self, case: Case) -> nn.Module:
        import torch
        from torch import nn

        fault, weigh = self.fault, self.weigh

        class Module(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.weight = nn.Parameter(torch.tensor(2.0))

            def forward(self, x: Tensor) -> Tensor:
                y = x * weigh(self.weight)
                # Only on real tensors: predictions and counters run fake ones and traces.
                return fault(y) if type(y) is torch.Tensor and not torch.jit.is_tracing() else y

        return Module()

    def reference(self, case: Case, state: Mapping[str, Tensor], x: Tensor) -> Tensor:
        return x * state["weight"]


def _wrong(y: Tensor) -> Tensor:
    return y * 1.001


def _one_wrong_pixel(y: Tensor) -> Tensor:
    z = y.clone()
    z[0, 0, 0, 0] += 0.1
    return z


def _not_a_number(y: Tensor) -> Tensor:
    return y / 0 * 0


def _backwards(change: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """Leaves the result alone, and changes the gradient on its way back."""

    def fault(y: Tensor) -> Tensor:
        if y.requires_grad:
            y.register_hook(change)
        return y

    return fault


def _segfault(y: Tensor) -> Tensor:
    ctypes.string_at(0)
    return y


def _hang(y: Tensor) -> Tensor:
    time.sleep(3600)
    return y


def _hungry(y: Tensor) -> Tensor:
    import torch

    return y + torch.ones(2**31, dtype=torch.uint8)[0] * 0


def _ravenous(y: Tensor) -> Tensor:
    import torch

    return y + torch.empty(2**37, dtype=torch.uint8)[0] * 0


def _unsupported(y: Tensor) -> Tensor:
    raise RuntimeError("\"doubling_cpu\" not implemented for 'Half'")


def _broken(y: Tensor) -> Tensor:
    raise ValueError("a mistake of the operator's own")


def _named(name: str, fault: Callable[[Tensor], Tensor]) -> Doubling:
    return Doubling(f"hostile/{name}", "hostile", "doubles its input, or not", "none", fault=fault)


OPERATORS = (
    _named("fine", lambda y: y),
    _named("wrong", _wrong),
    _named("pixel", _one_wrong_pixel),
    _named("nan", _not_a_number),
    _named("gradient-scaled", _backwards(lambda gradient: gradient * 1.01)),
    _named("gradient-shifted", _backwards(lambda gradient: gradient.roll(1, -1))),
    _named("gradient-transposed", _backwards(lambda gradient: gradient.mT)),
    _named(
        "gradient-rounded", _backwards(lambda gradient: gradient + 1 - 1)
    ),  # as where it is computed beside images
    _named("gradient-nan", _backwards(_not_a_number)),
    Doubling(
        "hostile/gradient-missing", "hostile", "its weight learns nothing", "none", weigh=lambda w: w.detach()
    ),
    _named("segfault", _segfault),
    _named("hang", _hang),
    _named("hungry", _hungry),
    _named("ravenous", _ravenous),
    _named("unsupported", _unsupported),
    _named("broken", _broken),
)
