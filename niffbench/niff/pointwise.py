"""The pointwise layer: a 1×1 convolution, in the published code done between an FFT and its inverse."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from niffbench.niff import spectral
from niffbench.niff.autograd import autocasts
from niffbench.niff.catalogue import LAYOUTS, one_of
from niffbench.niff.layer import SpectralLayer
from niffbench.niff.steps import step


class NiffPointwise(SpectralLayer):
    """One real bias-free linear map over channels, the same at every frequency; Ci·Co parameters.

    Because the map is the same everywhere it commutes with the FFT, and the layer equals an ordinary 1×1
    convolution: that is the form ``elided``. ``(B, Ci, H, W)`` to ``(B, Co, H, W)``, or with channels last.

    ``elided`` computes in the dtype of its input and weights, or the wider one where they differ; under autocast
    it computes, and returns, the lower precision, as an ordinary 1×1 convolution does. The other forms compute in
    at least float32. All return the input's dtype otherwise.

    Args:
        in_channels: Ci.
        out_channels: Co.
        layout: ``nchw``, or ``nhwc`` for ConvNeXt's ``(B, H, W, Ci)``.
        form: one of ``forms_of("pointwise")``.

    Raises:
        ValueError: for an unknown layout or form, or what NIFF does not define, ``stride`` say; in ``forward``
            for an input that does not fit.
    """

    kind = "pointwise"

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        layout: str = "nchw",
        form: str = "rfft",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        **undefined: object,
    ) -> None:
        super().__init__(in_channels, out_channels, form, **undefined)
        self.layout = one_of(layout, LAYOUTS, "layout")
        self.channel_dimension = 1 if layout == "nchw" else 3
        self.weight = nn.Parameter(torch.empty(out_channels, in_channels, device=device, dtype=dtype))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the weight as ``nn.Linear`` does: uniform within ±1/√in_channels."""
        bound = 1 / math.sqrt(self.in_channels)
        nn.init.uniform_(self.weight, -bound, bound)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, layout={self.layout!r}"

    def _compute(self, x: Tensor) -> Tensor:
        if self.form != "elided":
            return super()._compute(x)
        images: Tensor = x
        weight: Tensor = self.weight
        differ = x.dtype != weight.dtype and not autocasts(x)
        if differ:
            wide = torch.promote_types(x.dtype, weight.dtype)
            with step("cast"):
                images, weight = x.to(wide), weight.to(wide)
        with step("mixing"):
            if self.layout == "nhwc":
                result = F.linear(images, weight)
            else:
                result = F.conv2d(images, weight.view(self.out_channels, self.in_channels, 1, 1))
        if not differ:
            return result
        with step("cast"):
            return result.to(x.dtype)

    def _weights_dtype(self) -> torch.dtype:
        return self.weight.dtype

    def _execute(self, x: Tensor) -> Tensor:
        weight = self.weight.to(x.dtype)
        if self.form == "published":
            nhwc = self.layout == "nhwc"
            result = spectral.published_pointwise(x.permute(0, 3, 1, 2) if nhwc else x, weight)
            return result.permute(0, 2, 3, 1) if nhwc else result
        dimensions = (1, 2) if self.layout == "nhwc" else (2, 3)
        if self.form == "fft":
            return spectral.complex_pointwise(x, weight, dimensions)
        return spectral.real_pointwise(x, weight, dimensions)
