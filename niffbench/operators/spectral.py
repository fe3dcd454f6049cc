"""Truncated-mode spectral convolution: the Fourier neural operator's layer (Li et al., ICLR 2021)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar

from niffbench.case import Case
from niffbench.cost.closed import Cost, contraction, inverse_real_fft, layer_cost, real_fft
from niffbench.operators.base import Operator, Option
from niffbench.results import Role

if TYPE_CHECKING:
    from torch import Tensor, nn

MODES = Option(12, None, "frequencies kept along each axis: the lowest ones, of both signs along the height")


@dataclass(frozen=True)
class Spectral(Operator):
    """The lowest ``modes`` frequencies, each with its own complex matrix over the channels; the rest are dropped.

    The weight is ``(2, channels, channels_out, modes, modes, 2)``: first the block of non-negative vertical
    frequencies, then that of negative ones; last real and imaginary parts. float16 and bfloat16 are computed in
    float32.
    """

    shortfall: ClassVar[float] = 7.0
    role: Role = "spectral"
    options: Mapping[str, Option] = field(default_factory=lambda: {"modes": MODES}, hash=False)

    def refusal(self, case: Case) -> str | None:
        p, modes = case.problem, int(case.option("modes"))
        fitting = min(p.height // 2, p.width // 2 + 1)
        if not 1 <= modes <= fitting:
            most = f"at most {fitting}" if fitting else "none: the height is 1"
            return f"modes={modes} do not fit into {p.height}×{p.width} pixels; there are {most}"
        return None

    def equivalence(self, case: Case) -> str:
        return f"spectral-modes{case.option('modes')}"

    def cost(self, case: Case) -> Cost:
        p, points = case.problem, case.problem.height * case.problem.width
        low = 2 * int(case.option("modes")) ** 2
        parts = {
            "forward fft": real_fft(points, p.batch * p.channels),
            "mixing": contraction(p, low),
            "inverse fft": inverse_real_fft(points, p.batch * p.channels_out),
        }
        return layer_cost(p, parts, 2 * p.channels * p.channels_out * low, (p.height, p.width))

    def build(self, case: Case) -> nn.Module:
        import torch

        from niffbench.niff.steps import step
        from niffbench.operators.kit import Weighted, hermitian_columns

        p, modes = case.problem, int(case.option("modes"))
        height, width = p.height, p.width

        def forward(x: Tensor, weight: Tensor) -> Tensor:
            given = x.dtype
            if given.itemsize < 4:
                with step("cast"):
                    x, weight = x.float(), weight.float()
            with step("forward fft"):
                spectrum = torch.fft.rfft2(x)
            with step("mixing"):
                low, high = torch.view_as_complex(weight).unbind(0)
                mixed = spectrum.new_zeros(x.shape[0], p.channels_out, height, width // 2 + 1)
                mixed[:, :, :modes, :modes] = torch.einsum("bihw,iohw->bohw", spectrum[:, :, :modes, :modes], low)
                mixed[:, :, -modes:, :modes] = torch.einsum(
                    "bihw,iohw->bohw", spectrum[:, :, -modes:, :modes], high
                )
            with step("inverse fft"):
                y: Tensor = torch.fft.irfft2(mixed, s=(height, width))
            if given.itemsize < 4:
                with step("cast"):
                    y = y.to(given)
            return y

        # The published code's scale.
        drawn = torch.rand(2, p.channels, p.channels_out, modes, modes, 2) / (p.channels * p.channels_out)
        blocks = torch.view_as_complex(drawn)
        for column in {0, width // 2} & set(range(modes)) if width % 2 == 0 else {0}:
            rows = blocks.new_zeros(p.channels, p.channels_out, height, 1)
            rows[:, :, :modes, 0], rows[:, :, -modes:, 0] = blocks[0, ..., column], blocks[1, ..., column]
            if 2 * modes < height:
                rows[:, :, -modes] = 0  # Its mirror image is not among the modes.
            hermitian_columns(rows, 1)
            blocks[0, ..., column], blocks[1, ..., column] = rows[:, :, :modes, 0], rows[:, :, -modes:, 0]
        return Weighted(forward, weight=drawn)

    def reference(self, case: Case, state: Mapping[str, Tensor], x: Tensor) -> Tensor:
        import torch

        from niffbench.operators.kit import full_plane

        p, modes = case.problem, int(case.option("modes"))
        weight = torch.view_as_complex(state["weight"].contiguous())
        low = torch.fft.fft2(x)[..., :modes]
        # The filter is zero elsewhere, and what stands for a filter's half plane stands for the product's too.
        half = low.new_zeros(x.shape[0], p.channels_out, p.height, p.width // 2 + 1)
        half[..., :modes, :modes] = torch.einsum("bihw,iohw->bohw", low[..., :modes, :], weight[0])
        half[..., p.height - modes :, :modes] = torch.einsum(
            "bihw,iohw->bohw", low[..., p.height - modes :, :], weight[1]
        )
        y: Tensor = torch.fft.ifft2(full_plane(half, p.width)).real
        return y


OPERATORS = (
    Spectral(
        name="spectral",
        family="spectral",
        summary="the lowest modes mixed over channels, the rest dropped, as FNO's",
        boundary="circular",
    ),
)
