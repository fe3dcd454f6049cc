"""The depthwise layer: one frequency filter per channel."""

from __future__ import annotations

from typing import Unpack

import torch
from torch import Tensor
from torch.nn import functional as F

from niffbench.niff import native, spectral
from niffbench.niff.autograd import compiling, exporting, hooks_of_all, unobserved, watched
from niffbench.niff.catalogue import IN_C
from niffbench.niff.layer import UNLIMITED, FilteringLayer, Limits, Settings
from niffbench.niff.native import kernel


class NiffDepthwise(FilteringLayer):
    """``ifft2(W · fft2(x)).real``, W of shape ``(C, H, W)``: circular, as large as the image, without bias.

    ``(B, C, H, W)`` to ``(B, C, H, W)``, any H and W. Parameters: ``small`` 120 + 10·C, ``big`` 12704 + 66·C,
    ``tiny`` 48 + 18·C (Grabinski, Keuper and Keuper, TMLR 2024).

    Args:
        channels: C.
        mlp: the filter MLP, ``tiny``, ``small`` (ResNet, DenseNet, MobileNet; the default) or ``big`` (ConvNeXt).
        grid: ``paper`` (the default) or ``centred``; see :mod:`niffbench.niff.grid`.
        form: one of ``forms_of("depthwise")``, ``rfft`` unless given.
        device, dtype: of the weights.

    Raises:
        ValueError: for an unknown MLP, grid or form, or what NIFF does not define, ``stride`` say; in ``forward``
            for an input that does not fit.
        niffbench.niff.native.build.Unavailable: in ``forward``, for the form ``native`` without a C compiler, and
            for ``triton`` where Triton does not run.
    """

    kind = "depthwise"

    def __init__(self, channels: int, **settings: Unpack[Settings]) -> None:
        super().__init__(channels, channels, **settings)

    def extra_repr(self) -> str:
        return f"{self.in_channels}, form={self.form!r}"

    def surrounded(
        self, x: Tensor, shift: Tensor | None, limits: Limits | None = None, *, in_place: bool = False
    ) -> Tensor:
        """The layer with what is around it, which the C kernel does where it costs nothing.

        Args:
            x: images, whose numbers are brought within the limits first.
            shift: is added, a number for each channel.
            limits: least and largest of what enters, then of what leaves; at a limit the gradient is 0, as ReLU's.
            in_place: nobody needs ``x`` any more: the result may lie there.
        """
        hooked = self._forward_hooks or self._forward_pre_hooks or hooks_of_all()
        if not (torch.is_grad_enabled() or hooked) and unobserved(x):
            wide = shift is None or shift.dtype == torch.promote_types(x.dtype, torch.float32)
            again = self._again(x, shift, limits, in_place=in_place) if wide else None
            if again is not None:
                return again
        entering, leaving = (limits[:2], limits[2:]) if limits else (UNLIMITED, UNLIMITED)
        result: Tensor = self(x if entering == UNLIMITED else F.hardtanh(x, *entering))
        if shift is not None:
            result = result + shift.to(result.dtype)[:, None, None]
        return result if leaving == UNLIMITED else F.hardtanh(result, *leaving)

    def _takes(self, x: Tensor, compute: torch.dtype) -> bool:
        """Half precision that the kernel reads and writes itself, if one is to be the engine."""
        if super()._takes(x, compute):
            return True
        if compute != torch.float32 or compiling() or watched():
            return False
        if not x.is_cpu or x.dtype not in kernel.HALVES or native.unavailable("cpu") or not kernel.takes(x):
            return False
        return (self._fastest(x) if self.chooses else self._how.engine) in IN_C

    def _execute(self, x: Tensor) -> Tensor:
        if exporting():
            return self._depthwise(x)
        if self.form == "published":
            return spectral.published_depthwise(x, self._published_filter(x))
        if self.form == "fft":
            return spectral.complex_depthwise(x, self._full_plane(x))
        return self._depthwise(x)
