"""Spatial kernels convolved by FFT: the same functions as ``depthwise`` and ``dense``, at a cost without k².

The rivals that separate what NIFF owes to the FFT from what it owes to its generated filter. Written as well as
one can with torch's FFTs: real transforms, the kernel folded into place before its own transform, and 1/N folded
into it, so that the inverse transform needs no scaling pass.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from niffbench.case import Case
from niffbench.cost.closed import NOTHING, Cost, Work, floor_bytes, steps
from niffbench.cost.lengths import fast_length
from niffbench.cost.parts import Transform, casts, compute_bytes, contraction, spectral_product
from niffbench.operators.base import Operator, Option

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
    options: Mapping[str, Option] = field(default_factory=lambda: {"cached": CACHED}, hash=False)
    depthwise: bool = True

    def refusal(self, case: Case) -> str | None:
        p = case.problem
        if self.depthwise and p.channels_out != p.channels:
            return f"needs channels_out = channels ({p.channels}), got {p.channels_out}"
        return None

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
        real = compute_bytes(p)
        transform = Transform(*self.size(case), real)
        into, out = p.batch * p.channels, p.batch * p.channels_out
        filters = p.channels if self.depthwise else p.channels * p.channels_out
        image = p.height * p.width * real
        keeps = p.mode == "inference" and bool(case.option("cached"))
        generation, regeneration = (NOTHING, NOTHING) if keeps else self._generation(case, filters, transform)
        if self.depthwise:
            product, unproduct = spectral_product(p.batch, p.channels, transform.half, transform.complex)
        else:
            product, unproduct = contraction(p, transform.half, transform.complex)
        padding, unpadding, cropping, uncropping = 4 * (NOTHING,)
        if transform.points != p.height * p.width:
            padding = unpadding = Work(0, into * image + transform.images(into))
            cropping = Work(0, 2 * out * image)
            wide = p.height * transform.width * real  # backward first along the width, then along the height
            uncropping = Work(0, out * (image + 2 * wide) + transform.images(out))
        cast, uncast = casts(p, 0 if keeps else filters * k * k)
        return Cost(
            steps=steps(
                p.mode,
                {
                    "cast": cast,
                    "filter generation": generation,
                    "padding": padding + cropping,
                    "forward fft": transform.r2c(into),
                    "product" if self.depthwise else "mixing": product,
                    "inverse fft": transform.c2r(out, scaled=False),
                },
                {
                    "padding": uncropping + unpadding,
                    "inverse fft": transform.c2r_backward(out, scaled=False),
                    "product" if self.depthwise else "mixing": unproduct,
                    "forward fft": transform.r2c_backward(into),
                    "filter generation": regeneration,
                    "cast": uncast,
                },
            ),
            bytes_floor=floor_bytes(p, filters * k * k),
            parameters=filters * k * k,
            transform_lengths=transform.lengths,
        )

    def _generation(self, case: Case, filters: int, transform: Transform) -> tuple[Work, Work]:
        """The kernel flipped and scaled, folded into place along both axes, and transformed; and the gradient."""
        k = case.kernel or 1
        rows, columns = transform.height, transform.width
        # Backward a depthwise kernel's gradient is also spread over its axis of one input channel.
        moved, gathered = 4 * k * k, (6 if self.depthwise else 4) * k * k
        for kept, side in ((k, columns), (columns, rows)):
            moved += kept * (3 * side - k if k <= side else 5 * side + k)
            gathered += kept * (6 * k if k <= side else 2 * side + 7 * k)  # two spread over zeros, one sum
        placing, gathering = (Work(0, filters * numbers * transform.real) for numbers in (moved, gathered))
        return placing + transform.r2c(filters), gathering + transform.r2c_backward(filters)

    def build(self, case: Case) -> nn.Module:
        import torch
        from torch.nn import functional as F

        from niffbench.niff.kept import Kept
        from niffbench.niff.steps import step
        from niffbench.operators._weighted import Weighted, uniform

        p, k = case.problem, case.kernel or 1
        rows, columns = self.size(case)
        down, right = (0, 0) if self.boundary == "circular" else (rows - p.height, columns - p.width)
        depthwise, keep, kept = self.depthwise, bool(case.option("cached")), Kept(capacity=1)

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
                filter_ = kept.get((weight,), key, make) if keep and not learns else make()
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
        from niffbench.operators._direct import convolve

        return convolve(x, state["weight"], circular=self.boundary == "circular", depthwise=self.depthwise)


OPERATORS = tuple(
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
