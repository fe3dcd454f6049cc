"""Dense convolution, k×k over all channels: what NIFF's full layer is an alternative to."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from niffbench.case import Case
from niffbench.cost.closed import Cost, layer_cost, product
from niffbench.operators.base import Operator
from niffbench.results import Role

if TYPE_CHECKING:
    from torch import Tensor, nn


@dataclass(frozen=True)
class Dense(Operator):
    """``F.conv2d`` without bias, stride 1, "same" size; the weight is ``(channels_out, channels, k, k)``.

    Circular: the input is first padded as ``nn.Conv2d(padding_mode="circular")`` does it, by a copy.
    """

    shortfall: ClassVar[float] = 0.6  # a convolution that is transformed takes less
    takes_kernel: bool = True
    role: Role = "spatial"

    def equivalence(self, case: Case) -> str:
        return f"dense-{self.boundary}-k{case.kernel}"

    def cost(self, case: Case) -> Cost:
        p, k = case.problem, case.kernel or 1
        weights = p.channels_out * p.channels * k * k
        return layer_cost(p, {"convolution": product(2 * weights * p.batch * p.height * p.width)}, weights)

    def build(self, case: Case) -> nn.Module:
        from torch.nn import functional as F

        from niffbench.niff.steps import step
        from niffbench.operators.kit import Weighted, uniform

        p, k = case.problem, case.kernel or 1
        half = k // 2

        def zero(x: Tensor, weight: Tensor) -> Tensor:
            with step("convolution"):
                return F.conv2d(x, weight, padding=half)

        def circular(x: Tensor, weight: Tensor) -> Tensor:
            with step("padding"):
                x = F.pad(x, (half, half, half, half), mode="circular") if half else x
            with step("convolution"):
                return F.conv2d(x, weight)

        weight = uniform(p.channels_out, p.channels, k, k, fan_in=p.channels * k * k)
        return Weighted(circular if self.boundary == "circular" else zero, weight=weight)

    def reference(self, case: Case, state: Mapping[str, Tensor], x: Tensor) -> Tensor:
        from niffbench.operators.kit import convolve

        return convolve(x, state["weight"], circular=self.boundary == "circular")


OPERATORS = (
    Dense("dense", "dense", "k×k convolution over all channels, zero padding (F.conv2d)", "zero"),
    Dense(
        "dense-circular",
        "dense",
        "k×k convolution over all channels, circular padding by a copy",
        "circular",
    ),
)
