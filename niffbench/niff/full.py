"""The full layer: one frequency filter for every pair of an input and an output channel."""

from __future__ import annotations

import torch
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
        mlp, grid: as in :class:`~niffbench.niff.NiffDepthwise`.
        form: one of ``forms_of("full")``.

    Raises:
        ValueError: for an unknown MLP, grid or form; in ``forward`` for an input that does not fit.
    """

    kind = "full"

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        mlp: str = "tiny",
        grid: str = "paper",
        form: str = "rfft",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        shape = (in_channels, out_channels)
        super().__init__(in_channels, out_channels, form, shape, mlp=mlp, grid=grid, device=device, dtype=dtype)

    def _execute(self, x: Tensor) -> Tensor:
        if self.form == "published":
            return spectral.published_full(x, self._published_filter(x))
        if self.form == "fft":
            return spectral.complex_full(x, self._full_plane(x))
        return spectral.real_full(x, self._half_plane(x))
