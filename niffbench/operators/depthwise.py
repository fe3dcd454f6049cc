"""Depthwise convolution, one k×k kernel a channel: what NIFF's depthwise layer is an alternative to."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from niffbench.case import Case
from niffbench.cost.closed import Cost, layer_cost, product
from niffbench.operators.base import Operator, same_channels
from niffbench.results import Role

if TYPE_CHECKING:
    from torch import Tensor, nn


@dataclass(frozen=True)
class Depthwise(Operator):
    """``F.conv2d`` with as many groups as channels, without bias, "same" size; the weight is ``(C, 1, k, k)``.

    Circular: the input is first padded as ``nn.Conv2d(padding_mode="circular")`` does it, by a copy.
    """

    shortfall: ClassVar[float] = 5.0
    takes_kernel: bool = True
    role: Role = "spatial"

    def refusal(self, case: Case) -> str | None:
        return same_channels(case)

    def equivalence(self, case: Case) -> str:
        return f"depthwise-{self.boundary}-k{case.kernel}"

    def cost(self, case: Case) -> Cost:
        p, k = case.problem, case.kernel or 1
        weights = p.channels * k * k
        return layer_cost(p, {"convolution": product(2 * weights * p.batch * p.height * p.width)}, weights)

    def build(self, case: Case) -> nn.Module:
        from torch.nn import functional as F

        from niffbench.niff.steps import step
        from niffbench.operators.kit import Weighted, uniform

        channels, k = case.problem.channels, case.kernel or 1
        half = k // 2

        def zero(x: Tensor, weight: Tensor) -> Tensor:
            with step("convolution"):
                return F.conv2d(x, weight, padding=half, groups=channels)

        def circular(x: Tensor, weight: Tensor) -> Tensor:
            if half:
                with step("padding"):
                    x = F.pad(x, (half, half, half, half), mode="circular")
            with step("convolution"):
                return F.conv2d(x, weight, groups=channels)

        return Weighted(
            circular if self.boundary == "circular" else zero, weight=uniform(channels, 1, k, k, fan_in=k * k)
        )

    def reference(self, case: Case, state: Mapping[str, Tensor], x: Tensor) -> Tensor:
        from niffbench.operators.kit import convolve

        return convolve(x, state["weight"], circular=self.boundary == "circular", depthwise=True)


OPERATORS = (
    Depthwise("depthwise", "depthwise", "k×k convolution of each channel, zero padding (F.conv2d)", "zero"),
    Depthwise(
        "depthwise-circular",
        "depthwise",
        "k×k convolution of each channel, circular padding by a copy",
        "circular",
    ),
)
