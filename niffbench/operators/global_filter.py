"""A learned global filter: GFNet's layer (Rao et al., "Global Filter Networks", NeurIPS 2021)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from niffbench.case import Case
from niffbench.cost.closed import Cost, half_plane, inverse_real_fft, layer_cost, real_fft, spectral_product
from niffbench.operators.base import Operator, same_channels
from niffbench.results import Role

if TYPE_CHECKING:
    from torch import Tensor, nn


@dataclass(frozen=True)
class GlobalFilter(Operator):
    """``irfft2(rfft2(x) · W)`` with a free complex number for each channel and frequency of the half plane.

    Orthonormal transforms, as in GFNet; the weight is ``(C, H · (W // 2 + 1), 2)``, real and imaginary parts. It
    is as large as the image, and bound to its size. float16 and bfloat16 are computed in float32.
    """

    role: Role = "spectral"

    def refusal(self, case: Case) -> str | None:
        return same_channels(case)

    def equivalence(self, case: Case) -> str:
        return "global-filter"

    def cost(self, case: Case) -> Cost:
        p, points = case.problem, case.problem.height * case.problem.width
        half = half_plane(p.height, p.width)
        parts = {
            "forward fft": real_fft(points, p.batch * p.channels),
            "product": spectral_product(p.batch, p.channels, half),
            "inverse fft": inverse_real_fft(points, p.batch * p.channels),
        }
        return layer_cost(p, parts, 2 * p.channels * half, (p.height, p.width))

    def build(self, case: Case) -> nn.Module:
        import torch

        from niffbench.niff.steps import step
        from niffbench.operators.kit import Weighted, hermitian_columns

        p = case.problem
        height, width = p.height, p.width

        def forward(x: Tensor, weight: Tensor) -> Tensor:
            given = x.dtype
            if given.itemsize < 4:
                with step("cast"):
                    x, weight = x.float(), weight.float()
            with step("forward fft"):
                spectrum = torch.fft.rfft2(x, norm="ortho")
            with step("product"):
                filter_ = torch.view_as_complex(weight).view(-1, height, width // 2 + 1)
                spectrum = spectrum * filter_ if torch.is_grad_enabled() else spectrum.mul_(filter_)
            with step("inverse fft"):
                y: Tensor = torch.fft.irfft2(spectrum, s=(height, width), norm="ortho")
            if given.itemsize < 4:
                with step("cast"):
                    y = y.to(given)
            return y

        # GFNet's own scale, as small as a position embedding's.
        drawn = 0.02 * torch.randn(p.channels, height, width // 2 + 1, 2)
        hermitian_columns(torch.view_as_complex(drawn), width)
        return Weighted(forward, weight=drawn.flatten(1, 2))

    def reference(self, case: Case, state: Mapping[str, Tensor], x: Tensor) -> Tensor:
        import torch

        from niffbench.operators.kit import filtered, full_plane

        p = case.problem
        half = torch.view_as_complex(state["weight"].contiguous()).view(-1, p.height, p.width // 2 + 1)
        return filtered(x, full_plane(half, p.width))


OPERATORS = (
    GlobalFilter(
        name="global-filter",
        family="global-filter",
        summary="a free complex filter on the half plane, as GFNet's",
        boundary="circular",
    ),
)
