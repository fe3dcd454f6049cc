"""Spatial kernels convolved by FFT: the same functions as ``depthwise`` and ``dense``, at a cost without k².

The rivals that separate what NIFF owes to the FFT from what it owes to its generated filter. Written as well as
one can with torch's FFTs: real transforms, the kernel folded into place before its own transform, and 1/N folded
into it, so that the inverse transform needs no scaling pass.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.util import find_spec
from typing import TYPE_CHECKING

from niffbench.case import Case
from niffbench.cost.closed import (
    NOTHING,
    Cost,
    added,
    contraction,
    half_plane,
    inverse_real_fft,
    layer_cost,
    real_fft,
    spectral_product,
)
from niffbench.lengths import fast_length
from niffbench.operators.base import Operator, Option, same_channels
from niffbench.results import Role

if TYPE_CHECKING:
    from torch import Tensor, nn

CACHED = Option(False, (False, True), "keep the kernel's spectrum between calls, wherever it needs no gradient")


@dataclass(frozen=True)
class SpatialFFT(Operator):
    """A k×k kernel applied by real FFTs.

    Circular: transforms of the image's own size; a kernel larger than the image wraps around. Zero boundary: both
    are padded to the smallest fast length (no prime factor above 7) of at least H + ⌊k/2⌋, from where on the
    result is exact, and the result is cropped by a copy. float16 and bfloat16 are computed in float32.
    """

    takes_kernel: bool = True
    role: Role = "spectral"
    options: Mapping[str, Option] = field(default_factory=lambda: {"cached": CACHED}, hash=False)
    depthwise: bool = True

    def refusal(self, case: Case) -> str | None:
        return same_channels(case) if self.depthwise else None

    def equivalence(self, case: Case) -> str:
        return f"{'depthwise' if self.depthwise else 'dense'}-{self.boundary}-k{case.kernel}"

    def size(self, case: Case) -> tuple[int, int]:
        """The size of the transforms."""
        p, k = case.problem, case.kernel or 1
        if self.boundary == "circular":
            return p.height, p.width
        return fast_length(p.height + k // 2), fast_length(p.width + k // 2)

    def cost(self, case: Case) -> Cost:
        p, k = case.problem, case.kernel or 1
        height, width = self.size(case)
        points, half = height * width, half_plane(height, width)
        filters = p.channels if self.depthwise else p.channels * p.channels_out
        keeps = p.mode == "inference" and bool(case.option("cached"))
        product = spectral_product(p.batch, p.channels, half) if self.depthwise else contraction(p, half)
        parts = {
            "filter generation": NOTHING if keeps else real_fft(points, filters),
            "forward fft": real_fft(points, p.batch * p.channels),
            "product" if self.depthwise else "mixing": product,
            "inverse fft": inverse_real_fft(points, p.batch * p.channels_out),
        }
        return layer_cost(p, parts, filters * k * k, (height, width))

    def build(self, case: Case) -> nn.Module:
        import torch
        from torch.nn import functional as F

        from niffbench.niff.cache import Cache
        from niffbench.niff.steps import step
        from niffbench.operators.kit import Weighted, uniform

        p, k = case.problem, case.kernel or 1
        rows, columns = self.size(case)
        down, right = (0, 0) if self.boundary == "circular" else (rows - p.height, columns - p.width)
        depthwise, keep, cache = self.depthwise, bool(case.option("cached")), Cache(capacity=1)

        def place(kernel: Tensor, dim: int, side: int) -> Tensor:
            """Put a flipped kernel's centre at 0 on a circle of ``side`` points, what is before it at the end."""
            after = kernel.narrow(dim, k // 2, k - k // 2)
            before = kernel.narrow(dim, 0, k // 2)
            if k <= side:
                gap = list(kernel.shape)
                gap[dim] = side - k
                return torch.cat((after, kernel.new_zeros(gap), before), dim)
            margins = [0, 0] * (kernel.dim() - 1 - dim)
            return F.pad(after, [*margins, 0, side - after.shape[dim]]) + F.pad(
                before, [*margins, side - before.shape[dim], 0]
            )

        def spectrum_of(weight: Tensor) -> Tensor:
            kernel = (weight[:, 0] if depthwise else weight).flip(-2, -1) * (1 / (rows * columns))
            kernel = place(place(kernel, kernel.dim() - 1, columns), kernel.dim() - 2, rows)
            spectrum: Tensor = torch.fft.rfft2(kernel)
            return spectrum

        def forward(x: Tensor, weight: Tensor) -> Tensor:
            given = x.dtype
            if given.itemsize < 4:
                with step("cast"):
                    x = x.float()
            with step("filter generation"):

                def make() -> Tensor:
                    return spectrum_of(weight.float() if weight.dtype.itemsize < 4 else weight)

                learns = torch.is_grad_enabled() and weight.requires_grad
                key = (x.dtype, weight.dtype, weight.device)
                filter_ = cache.get((weight,), key, make) if keep and not learns else make()
            if down or right:
                with step("padding"):
                    x = F.pad(x, (0, right, 0, down))
            with step("forward fft"):
                spectrum = torch.fft.rfft2(x)
            if depthwise:
                with step("product"):
                    spectrum = spectrum * filter_ if torch.is_grad_enabled() else spectrum.mul_(filter_)
            else:
                with step("mixing"):
                    spectrum = torch.einsum("bihw,oihw->bohw", spectrum, filter_)
            with step("inverse fft"):
                y: Tensor = torch.fft.irfft2(spectrum, s=(rows, columns), norm="forward")
            if down or right:
                with step("padding"):
                    y = y[..., : p.height, : p.width].contiguous()
            if given.itemsize < 4:
                with step("cast"):
                    y = y.to(given)
            return y

        shape = (p.channels, 1) if depthwise else (p.channels_out, p.channels)
        return Weighted(forward, weight=uniform(*shape, k, k, fan_in=shape[1] * k * k))

    def reference(self, case: Case, state: Mapping[str, Tensor], x: Tensor) -> Tensor:
        from niffbench.operators.kit import convolve

        return convolve(x, state["weight"], circular=self.boundary == "circular", depthwise=self.depthwise)


PACKAGE = "subquadratic_ops_torch"


@dataclass(frozen=True)
class FusedFFT(SpatialFFT):
    """NVIDIA's one kernel for it, ``fused_fft_conv2d`` of subquadratic-ops-torch 0.3: on GPUs, sides up to 64.

    It transforms squares of a power of two, at least twice the image's side, in the image's own dtype; convolves
    (so the kernel is flipped) and crops at half that square (so the kernel is moved there by padding).
    """

    options: Mapping[str, Option] = field(default_factory=dict, hash=False)

    def refusal(self, case: Case) -> str | None:
        p, k = case.problem, case.kernel or 1
        if max(p.height, p.width, k // 2 + 1) > 64:
            return f"needs sides up to 64 and kernels up to 127, got {p.height}×{p.width} and {k}"
        return same_channels(case)

    def size(self, case: Case) -> tuple[int, int]:
        p, k = case.problem, case.kernel or 1
        side = max(8, 2 << (max(p.height, p.width, k // 2 + 1) - 1).bit_length())
        return side, side

    def cost(self, case: Case) -> Cost:
        p, k = case.problem, case.kernel or 1
        side, _ = self.size(case)
        points, maps = side * side, p.batch * p.channels
        parts = {
            "filter generation": real_fft(points, p.channels),
            "convolution": added(
                real_fft(points, maps),
                spectral_product(p.batch, p.channels, half_plane(side, side)),
                inverse_real_fft(points, maps),
            ),
        }
        return layer_cost(p, parts, p.channels * k * k, (side, side))

    def build(self, case: Case) -> nn.Module:
        from importlib import import_module

        from torch.nn import functional as F

        from niffbench.niff.steps import step
        from niffbench.operators.kit import Weighted, uniform

        channels, k = case.problem.channels, case.kernel or 1
        side, _ = self.size(case)
        convolve = import_module(f"{PACKAGE}.fused_fft_conv2d").fused_fft_conv2d

        def forward(x: Tensor, weight: Tensor) -> Tensor:
            with step("padding"):
                kernel = weight[:, 0].flip(-2, -1)
                before = side // 2 - k // 2
                kernel = F.pad(kernel, (before, 0, before, 0))[None].contiguous()
            with step("convolution"):
                y: Tensor = convolve(x.contiguous(), kernel, fft_size=side)
                return y

        return Weighted(forward, weight=uniform(channels, 1, k, k, fan_in=k * k))


OPERATORS: tuple[SpatialFFT, ...] = tuple(
    SpatialFFT(
        name=f"fft-{kind}{suffix}",
        family="fft",
        summary=f"k×k {kind} convolution by real FFTs{text}",
        boundary="circular" if not suffix else "zero",
        depthwise=kind == "depthwise",
    )
    for kind in ("depthwise", "dense")
    for suffix, text in (("", ", circular"), ("-padded", " at the exact padded size, zero boundary"))
)
if find_spec(PACKAGE) is not None:
    OPERATORS += (
        FusedFFT(
            name="fft-depthwise-fused",
            family="fft",
            summary="k×k depthwise convolution by one FFT kernel of subquadratic-ops-torch, zero boundary",
            boundary="zero",
        ),
    )
