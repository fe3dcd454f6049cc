"""The full layer: one frequency filter for every pair of an input and an output channel."""

from __future__ import annotations

from torch import Tensor

from niffbench.niff import spectral
from niffbench.niff.layer import FilteringLayer


class NiffFull(FilteringLayer):
    """A dense circular convolution as large as the image, by its frequency filter; without bias.

    ``(B, Ci, H, W)`` to ``(B, Co, H, W)``: ``W`` is ``(Ci, Co, H, W)`` and channels are contracted at every
    frequency. With the published ``tiny`` MLP it has 48 + 18·Ci·Co parameters, twice a dense 3×3.

    Args:
        in_channels: Ci.
        out_channels: Co.
        mlp: the filter MLP, ``tiny`` unless given.
        grid, device, dtype: as in :class:`~niffbench.niff.NiffDepthwise`.
        form: one of ``forms_of("full")``, ``rfft`` unless given.

    Raises:
        ValueError: for an unknown MLP, grid or form, or what NIFF does not define, ``stride`` say; in ``forward``
            for an input that does not fit.
    """

    kind = "full"
    default_mlp = "tiny"

    def _planes(self) -> tuple[int, ...]:
        return self.in_channels, self.out_channels

    def _execute(self, x: Tensor) -> Tensor:
        if self.form == "published":
            return spectral.published_full(x, self._published_filter(x))
        if self.form == "fft":
            return spectral.complex_full(x, self._full_plane(x))
        return spectral.real_full(x, self._half_plane(x))
