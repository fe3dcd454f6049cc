"""Strip convolution: a k×1 kernel after a 1×k kernel in each channel, a separable large kernel at 4k a pixel."""

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
class Strip(Operator):
    """Two depthwise convolutions in sequence, as in SegNeXt's attention (Guo et al., NeurIPS 2022), without bias.

    ``row`` is ``(C, 1, 1, k)`` and comes first, ``column`` ``(C, 1, k, 1)``. Together they are the depthwise
    convolution with the outer product of both. Circular: each is padded along its own axis, by a copy.
    """

    shortfall: ClassVar[float] = 12.0
    takes_kernel: bool = True
    role: Role = "spatial"

    def refusal(self, case: Case) -> str | None:
        return same_channels(case)

    def equivalence(self, case: Case) -> str:
        return f"strip-{self.boundary}-k{case.kernel}"

    def cost(self, case: Case) -> Cost:
        p, k = case.problem, case.kernel or 1
        weights = 2 * p.channels * k
        return layer_cost(p, {"convolution": product(2 * weights * p.batch * p.height * p.width)}, weights)

    def build(self, case: Case) -> nn.Module:
        from torch.nn import functional as F

        from niffbench.niff.steps import step
        from niffbench.operators.kit import Weighted, uniform

        channels, k = case.problem.channels, case.kernel or 1
        half = k // 2

        def zero(x: Tensor, row: Tensor, column: Tensor) -> Tensor:
            with step("convolution"):
                return F.conv2d(
                    F.conv2d(x, row, padding=(0, half), groups=channels),
                    column,
                    padding=(half, 0),
                    groups=channels,
                )

        def circular(x: Tensor, row: Tensor, column: Tensor) -> Tensor:
            for weight, margins in ((row, (half, half, 0, 0)), (column, (0, 0, half, half))):
                if half:
                    with step("padding"):
                        x = F.pad(x, margins, mode="circular")
                with step("convolution"):
                    x = F.conv2d(x, weight, groups=channels)
            return x

        return Weighted(
            circular if self.boundary == "circular" else zero,
            row=uniform(channels, 1, 1, k, fan_in=k),
            column=uniform(channels, 1, k, 1, fan_in=k),
        )

    def reference(self, case: Case, state: Mapping[str, Tensor], x: Tensor) -> Tensor:
        from niffbench.operators.kit import convolve

        kernel = state["column"] * state["row"]
        return convolve(x, kernel, circular=self.boundary == "circular", depthwise=True)


OPERATORS = (
    Strip("strip", "strip", "1×k, then k×1 convolution of each channel, zero padding", "zero"),
    Strip("strip-circular", "strip", "1×k, then k×1 convolution of each channel, circular padding", "circular"),
)
