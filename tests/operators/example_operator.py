"""An operator outside the package: a Fourier unit, as in fast Fourier convolution (Chi et al., NeurIPS 2020).

Measure it beside others: ``NIFFBENCH_EXTRA_OPERATORS=example_operator niffbench run suite.toml``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from niffbench.case import Case
from niffbench.cost.closed import Cost, half_plane, inverse_real_fft, layer_cost, product, real_fft
from niffbench.operators.base import Operator
from niffbench.results import Role

if TYPE_CHECKING:
    from torch import Tensor, nn


@dataclass(frozen=True)
class FourierUnit(Operator):
    """A real linear map over the real and imaginary parts of all channels, the same at every frequency."""

    role: Role = "spectral"

    def equivalence(self, case: Case) -> str:
        return "fourier-unit"

    def cost(self, case: Case) -> Cost:
        p, points, weights = case.problem, case.problem.height * case.problem.width, self._shape(case)
        parts = {
            "forward fft": real_fft(points, p.batch * p.channels),
            "mixing": product(2 * p.batch * half_plane(p.height, p.width) * weights[0] * weights[1]),
            "inverse fft": inverse_real_fft(points, p.batch * p.channels_out),
        }
        return layer_cost(p, parts, weights[0] * weights[1], (p.height, p.width))

    def build(self, case: Case) -> nn.Module:
        import torch

        from niffbench.niff import step
        from niffbench.operators.kit import Weighted, uniform

        def forward(x: Tensor, weight: Tensor) -> Tensor:
            with step("forward fft"):
                spectrum = torch.fft.rfft2(x)
            with step("mixing"):
                parts = torch.cat((spectrum.real, spectrum.imag), 1)
                real, imaginary = torch.nn.functional.conv2d(parts, weight[:, :, None, None]).chunk(2, 1)
            with step("inverse fft"):
                return torch.fft.irfft2(torch.complex(real, imaginary), s=x.shape[-2:])

        return Weighted(forward, weight=uniform(*self._shape(case), fan_in=2 * case.problem.channels))

    def reference(self, case: Case, state: Mapping[str, Tensor], x: Tensor) -> Tensor:
        """By a complex FFT of the whole plane, whose other half mirrors the one that is mapped."""
        import torch

        from niffbench.operators.kit import full_plane

        spectrum = torch.fft.fft2(x)[..., : x.shape[-1] // 2 + 1]
        parts = torch.einsum("bihw,oi->bohw", torch.cat((spectrum.real, spectrum.imag), 1), state["weight"])
        return torch.fft.ifft2(full_plane(torch.complex(*parts.chunk(2, 1)), x.shape[-1])).real

    @staticmethod
    def _shape(case: Case) -> tuple[int, int]:
        return 2 * case.problem.channels_out, 2 * case.problem.channels


OPERATORS = (FourierUnit("fourier-unit", "ffc", "one linear map over the parts of all frequencies", "circular"),)
