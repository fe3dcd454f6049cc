"""The layers of the paper as plug-and-play modules, each with several forms that share its weights."""

from __future__ import annotations

import copy
from typing import ClassVar, Self

import torch
from torch import Tensor, nn

from niffbench.niff import spectral
from niffbench.niff.catalogue import form_of
from niffbench.niff.filters import FilterGenerator
from niffbench.niff.steps import step


class SpectralLayer(nn.Module):
    """What the layers have in common: the choice of form, checks of the input, the dtype of the arithmetic.

    Arithmetic is done in float32, or float64 where the input or the weights are; float16 and bfloat16 input is
    cast up and the result cast back (half-precision FFTs exist on some devices and for powers of two only).
    Autocast is switched off inside.
    """

    kind: ClassVar[str]

    def __init__(self, in_channels: int, out_channels: int, form: str) -> None:
        super().__init__()
        self.in_channels = in_channels
        self.out_channels = out_channels
        self.form = form

    @property
    def form(self) -> str:
        """How the layer executes; assign another name of ``forms_of(layer.kind)`` to change it."""
        return self._form

    @form.setter
    def form(self, name: str) -> None:
        self._form = form_of(self.kind, name).name

    def with_form(self, form: str) -> Self:
        """The same layer, sharing every parameter, executing as ``form``."""
        twin = copy.copy(self)
        for registry in ("_parameters", "_buffers", "_modules"):
            twin.__dict__[registry] = self.__dict__[registry].copy()
        twin.form = form
        return twin

    def forward(self, x: Tensor) -> Tensor:
        self._check(x)
        weights = self._weights_dtype()
        compute = torch.promote_types(torch.promote_types(x.dtype, weights), torch.float32)
        if compute == x.dtype and not torch.is_autocast_enabled(x.device.type):
            return self._execute(x)
        with torch.autocast(x.device.type, enabled=False):
            with step("cast"):
                wide = x.to(compute)
            result = self._execute(wide)
            with step("cast"):
                return result.to(x.dtype)

    def _check(self, x: Tensor) -> None:
        channel = self._channel_dimension()
        if x.dim() != 4 or not x.is_floating_point():
            raise ValueError(f"expected a real 4-d input, got {x.dtype} of shape {tuple(x.shape)}")
        if x.shape[channel] != self.in_channels:
            raise ValueError(
                f"expected {self.in_channels} channels in dimension {channel % 4}, got shape {tuple(x.shape)}"
            )

    def _channel_dimension(self) -> int:
        return 1

    def _weights_dtype(self) -> torch.dtype:
        raise NotImplementedError

    def _execute(self, x: Tensor) -> Tensor:
        raise NotImplementedError


class NiffDepthwise(SpectralLayer):
    """One frequency filter per channel: ``ifft2(W · fft2(x)).real``, circular, without bias.

    ``(B, C, H, W)`` to ``(B, C, H, W)``, any H and W. Parameters: ``small`` 120 + 10·C, ``big`` 12704 + 66·C,
    ``tiny`` 48 + 18·C (Grabinski, Keuper and Keuper, TMLR 2024).

    Args:
        channels: C.
        mlp: the filter MLP, ``tiny``, ``small`` (ResNet, DenseNet, MobileNet) or ``big`` (ConvNeXt).
        grid: ``paper`` or ``centred``; see :mod:`niffbench.niff.grid`.
        form: one of ``forms_of("depthwise")``.

    Raises:
        ValueError: for an unknown MLP, grid or form; in ``forward`` for an input that does not fit.
    """

    kind = "depthwise"

    def __init__(
        self,
        channels: int,
        *,
        mlp: str = "small",
        grid: str = "paper",
        form: str = "rfft",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(channels, channels, form)
        self.generator = FilterGenerator((channels,), mlp=mlp, grid=grid, device=device, dtype=dtype)

    def extra_repr(self) -> str:
        return f"{self.in_channels}, form={self.form!r}"

    def filter(self, height: int, width: int) -> Tensor:
        """W at every frequency in unshifted order; complex ``(C, height, width)``."""
        return self.generator.full_plane(height, width, torch.promote_types(self.generator.dtype, torch.float32))

    def spatial_kernel(self, height: int, width: int) -> Tensor:
        """The equivalent circular convolution kernel ``Re ifft2(W)``, centred; real ``(C, height, width)``.

        The tap at ``[c, height // 2 + i, width // 2 + j]`` multiplies ``x[c, y - i, z - j]``.
        """
        kernel = torch.fft.ifft2(self.filter(height, width)).real
        return torch.roll(kernel, (height // 2, width // 2), dims=(-2, -1))

    def _weights_dtype(self) -> torch.dtype:
        return self.generator.dtype

    def _execute(self, x: Tensor) -> Tensor:
        height, width = x.shape[-2:]
        if self.form == "published":
            with step("filter generation"):
                centred = self.generator.published(height, width, x.dtype)
            return spectral.published_depthwise(x, centred)
        if self.form == "fft":
            with step("filter generation"):
                plane = self.generator.full_plane(height, width, x.dtype)
            return spectral.complex_depthwise(x, plane)
        with step("filter generation"):
            half = self._half(height, width, x.dtype)
        return spectral.real_depthwise(x, half)

    def _half(self, height: int, width: int, dtype: torch.dtype) -> Tensor:
        def make() -> Tensor:
            return self.generator.half_plane(height, width, dtype)

        if self.form == "cached":
            # Cloned, because torch.compile cannot take a complex view of a real tensor as an input.
            return self.generator.kept(("half", height, width, dtype), lambda: make().clone())
        return make()
