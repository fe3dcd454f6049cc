"""Strip convolution: a k×1 kernel after a 1×k kernel in each channel, a separable large kernel at 4k a pixel."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from niffbench.case import Case
from niffbench.cost.closed import NOTHING, Cost, bilinear, floor_bytes, steps
from niffbench.cost.parts import circular_padding
from niffbench.operators.base import Operator

if TYPE_CHECKING:
    from torch import Tensor, nn


@dataclass(frozen=True)
class Strip(Operator):
    """Two depthwise convolutions in sequence, as in SegNeXt's attention (Guo et al., NeurIPS 2022), without bias.

    ``row`` is ``(C, 1, 1, k)`` and comes first, ``column`` ``(C, 1, k, 1)``. Together they are the depthwise
    convolution with the outer product of both. Circular: each is padded along its own axis, by a copy.
    """

    takes_kernel: bool = True

    def refusal(self, case: Case) -> str | None:
        p = case.problem
        if p.channels_out != p.channels:
            return f"needs channels_out = channels ({p.channels}), got {p.channels_out}"
        return None

    def equivalence(self, case: Case) -> str:
        return f"strip-{self.boundary}-k{case.kernel}"

    def cost(self, case: Case) -> Cost:
        p, k = case.problem, case.kernel or 1
        planes, margin, real = p.batch * p.channels, k // 2 if self.boundary == "circular" else 0, p.element_bytes
        image = planes * p.height * p.width * real
        padding, unpadding, forward, backward = 4 * (NOTHING,)
        for rows, columns in ((0, margin), (margin, 0)):
            pad, unpad = circular_padding(planes, p.height, p.width, rows, columns, real)
            read = planes * (p.height + 2 * rows) * (p.width + 2 * columns) * real
            one, back = bilinear(2 * k * planes * p.height * p.width, read, p.channels * k * real, image)
            padding, unpadding = padding + pad, unpadding + unpad
            forward, backward = forward + one, backward + back
        return Cost(
            steps=steps(
                p.mode,
                {"padding": padding, "convolution": forward},
                {"convolution": backward, "padding": unpadding},
            ),
            bytes_floor=floor_bytes(p, 2 * p.channels * k),
            parameters=2 * p.channels * k,
        )

    def build(self, case: Case) -> nn.Module:
        from torch.nn import functional as F

        from niffbench.niff.steps import step
        from niffbench.operators._weighted import Weighted, uniform

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
        from niffbench.operators._direct import convolve

        kernel = state["column"] * state["row"]
        return convolve(x, kernel, circular=self.boundary == "circular", depthwise=True)


OPERATORS = (
    Strip("strip", "strip", "1×k, then k×1 convolution of each channel, zero padding", "zero"),
    Strip("strip-circular", "strip", "1×k, then k×1 convolution of each channel, circular padding", "circular"),
)
