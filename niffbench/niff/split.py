"""The split layer: depthwise, then pointwise, with one FFT pair around both."""

from __future__ import annotations

import math
from typing import Unpack

import torch
from torch import Tensor, nn

from niffbench.niff import spectral
from niffbench.niff.autograd import exporting
from niffbench.niff.depthwise import NiffDepthwise
from niffbench.niff.layer import FilteringLayer, Settings


class NiffSplit(FilteringLayer):
    """A depthwise frequency filter followed by a linear map over channels, as a separable convolution.

    ``(B, Ci, H, W)`` to ``(B, Co, H, W)``; the parameters of both parts: 120 + 10·Ci + Ci·Co with the small
    MLP. The linear map needs no FFT, so ``elided`` is the depthwise layer and an ordinary 1×1 convolution.

    Args:
        in_channels: Ci.
        out_channels: Co.
        mlp, grid, device, dtype: as in :class:`~niffbench.niff.NiffDepthwise`.
        form: one of ``forms_of("split")``, ``rfft`` unless given.

    Raises:
        ValueError: for an unknown MLP, grid or form, or what NIFF does not define, ``stride`` say; in ``forward``
            for an input that does not fit.
    """

    kind = "split"

    def __init__(self, in_channels: int, out_channels: int, **settings: Unpack[Settings]) -> None:
        super().__init__(in_channels, out_channels, **settings)
        weight = torch.empty(out_channels, in_channels, device=settings.get("device"), dtype=settings.get("dtype"))
        self.weight = nn.Parameter(weight)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the linear map's weight as ``nn.Linear`` does; the filter's are the ``generator``'s to draw."""
        bound = 1 / math.sqrt(self.in_channels)
        nn.init.uniform_(self.weight, -bound, bound)

    @property
    def elides(self) -> bool:
        """Whether the form does the linear map on images, not on their spectra."""
        return self.form not in ("published", "fft", "rfft", "cached")

    def filtering(self) -> NiffDepthwise:
        """The depthwise layer that the first half of such a form is, of the same parameters."""
        form = "rfft" if self.form == "elided" else self.form
        layer = NiffDepthwise(self.in_channels, mlp=self.generator.mlp, form=form, device="meta")
        layer.generator, layer._fixed = self.generator, self._fixed
        return layer.train(self.training)

    def _execute(self, x: Tensor) -> Tensor:
        weight = self.weight.to(x.dtype)
        if exporting():
            return spectral.real_split(x, self._half_plane(x), weight)
        if self.form == "published":
            return spectral.published_split(x, self._published_filter(x), weight)
        if self.form == "fft":
            return spectral.complex_split(x, self._full_plane(x), weight)
        if not self.elides:
            return spectral.real_split(x, self._half_plane(x), weight)
        return self._finish(self._depthwise(x))

    def _finish(self, filtered: Tensor) -> Tensor:
        return spectral.mix_images(filtered, self.weight.to(filtered.dtype))
