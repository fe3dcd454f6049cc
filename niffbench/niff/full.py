"""The full layer: one frequency filter for every pair of an input and an output channel."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from niffbench.niff import factored, spectral
from niffbench.niff.autograd import exporting
from niffbench.niff.layer import FilteringLayer
from niffbench.niff.steps import step

ENGINES = ("rfft", "factored")
"""What contracts the channels, by the filter or without one; ``auto`` is the first where it cannot measure."""


class NiffFull(FilteringLayer):
    """A dense circular convolution as large as the image, by its frequency filter; without bias.

    ``(B, Ci, H, W)`` to ``(B, Co, H, W)``: ``W`` is ``(Ci, Co, H, W)`` and channels are contracted at every
    frequency. With the published ``tiny`` MLP it has 48 + 18·Ci·Co parameters, twice a dense 3×3. The form
    ``factored`` never makes ``W``, which is most of the layer's time and memory where the images are few.

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
        if exporting():
            return self._convolve(x, self._filters(x, "factored"), "factored")
        if self.form == "published":
            return spectral.published_full(x, self._published_filter(x))
        if self.form == "fft":
            return spectral.complex_full(x, self._full_plane(x))
        if not self.chooses:
            return self._convolve(x, self._filters(x, self._how.engine), self._how.engine)
        engine = self._fastest(x)
        filters = self._filters(x, engine)
        with step("convolution", whole=True):
            return self._convolve(x, filters, engine)

    def when_compiled(self) -> str:
        return ENGINES[0]

    def _filters(self, x: Tensor, engine: str | None) -> tuple[Tensor, ...]:
        """What ``engine`` needs of the weights, kept between calls if the form says so."""
        if engine == "rfft" and not self._how.keeps_filter:
            return (self._half_plane(x),)
        if engine == "factored":
            return self._made("factors", x, self.generator.half_factors)
        return self._made("matrices", x, self.generator.half_matrices)

    def _convolve(self, x: Tensor, filters: tuple[Tensor, ...], engine: str | None) -> Tensor:
        if engine == "factored":
            return factored.convolve(x, *filters)
        return (spectral.real_matrices if self._how.keeps_filter else spectral.real_full)(x, *filters)

    def _engines(self, x: Tensor) -> Sequence[str]:
        return ENGINES
