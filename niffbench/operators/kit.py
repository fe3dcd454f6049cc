"""What an operator needs to build its module and to write down its reference. Loads torch: import it inside both.

Modules: :class:`Weighted` makes one of a function and its parameters; :func:`uniform` and
:func:`hermitian_columns` draw weights. References in float64, written independently of the operators:
:func:`convolve` (a direct sum), :func:`filtered` and :func:`full_plane` (complex FFTs of full planes); they run on
the device that their arguments are on. The steps of a module are named with :func:`niffbench.niff.step`, closed
forms made with :mod:`niffbench.cost.closed`.
"""

from __future__ import annotations

from collections.abc import Callable
from math import log2, prod
from typing import Any

import torch
from torch import Tensor, nn

from niffbench.lengths import fast_length


class Weighted(nn.Module):
    """Calls ``forward(x, **parameters)``; the parameters are registered under their names.

    Copies share the function, which must therefore keep no tensors; what it wants to remember between calls
    belongs into a :class:`niffbench.niff.cache.Cache`.
    """

    def __init__(self, forward: Callable[..., Tensor], **parameters: Tensor) -> None:
        super().__init__()
        self._function = forward
        self._names = tuple(parameters)
        for name, value in parameters.items():
            self.register_parameter(name, nn.Parameter(value))

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self._function(x, **{name: getattr(self, name) for name in self._names})
        return out


def uniform(*shape: int, fan_in: int) -> Tensor:
    """Weights as ``nn.Conv2d`` and ``nn.Linear`` draw theirs: uniform within ±1/√fan_in."""
    bound = fan_in**-0.5
    return torch.empty(*shape).uniform_(-bound, bound)


def hermitian_columns(half: Tensor, width: int) -> Tensor:
    """A half plane ``(…, H, width // 2 + 1)`` made Hermitian where it is its own mirror image, in place.

    Of column 0 and, for even ``width``, of the last column a real image sees only the Hermitian part. Libraries
    differ in what they do with the rest, so operators start without any.
    """
    mirror = -torch.arange(half.shape[-2]) % half.shape[-2]
    for column in {0, width // 2} if width % 2 == 0 else {0}:
        half[..., column] = (half[..., column] + half[..., mirror, column].conj()) / 2
    return half


TRANSFORM_WEIGHT = {"depthwise": 0.4, "dense": 8}
"""How much longer one operation of the transform takes than a multiply-add of the direct sum, roughly: a dense
direct sum is a matrix product for each tap, which no library runs slower than a complex contraction."""


def convolve(x: Tensor, weight: Tensor, *, circular: bool, depthwise: bool = False) -> Tensor:
    """Convolution ("cross-correlation") of size "same", stride 1, circular or zero boundary.

    ``x`` is ``(B, Ci, H, W)``, ``weight`` ``(Co, Ci, k, l)`` with k and l odd, or ``(C, 1, k, l)`` when
    ``depthwise``; all float64. ``y[b, o, h, w] = Σ weight[o, i, m, n] · x[b, i, h + m - k//2, w + n - l//2]``.
    The sum costs k² passes over the image; where that is the slower way it is taken by real FFTs, long enough that
    nothing wraps.
    """
    direct = x.shape[0] * weight.numel() * x.shape[-2] * x.shape[-1]
    points = prod(_transformed(*(n + k - 1 for n, k in zip(x.shape[-2:], weight.shape[-2:], strict=True))))
    planes = weight.shape[0] * weight.shape[1]
    transform = points / 2 * (planes * (4 * x.shape[0] + 5 * log2(points)) + 10 * x.shape[1] * log2(points))
    way = by_sum if direct <= transform * TRANSFORM_WEIGHT["depthwise" if depthwise else "dense"] else by_transform
    return way(x, weight, circular=circular, depthwise=depthwise)


def by_sum(x: Tensor, weight: Tensor, *, circular: bool, depthwise: bool) -> Tensor:
    """The definition, one row of taps after the other."""
    padded = _extended(x, weight.shape[-2] // 2, weight.shape[-1] // 2, circular)
    y: Tensor = _Sum.apply(padded, weight, depthwise)
    return y


class _Sum(torch.autograd.Function):
    """The sum over the taps of an extended image; of its gradients too, each is a sum like it.

    Written out because autograd would keep a copy of the image for every tap, and clear a gradient of the
    whole image and of the whole kernel for each.
    """

    @staticmethod
    def forward(ctx: Any, padded: Tensor, weight: Tensor, depthwise: bool) -> Tensor:
        ctx.save_for_backward(padded, weight)
        ctx.depthwise = depthwise
        k, l = weight.shape[-2:]  # noqa: E741 - the kernel's sides
        height, width = padded.shape[-2] - k + 1, padded.shape[-1] - l + 1
        y = padded.new_zeros(padded.shape[0], weight.shape[0], height, width)
        for m in range(k):
            band = padded[..., m : m + height, :]
            if not depthwise:  # a row of taps at once: one large matrix product
                y += torch.einsum("bihwn,oin->bohw", band.unfold(-1, l, 1), weight[..., m, :])
                continue
            for n in range(l):
                y.addcmul_(band[..., n : n + width], weight[:, 0, m, n, None, None])
        return y

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, None]:
        padded, weight = ctx.saved_tensors
        (to_y,) = gradients
        height, width = to_y.shape[-2:]
        to_padded, to_weight = torch.zeros_like(padded), torch.empty_like(weight)
        for m in range(weight.shape[-2]):
            band, to_band = padded[..., m : m + height, :], to_padded[..., m : m + height, :]
            if not ctx.depthwise:
                taps = band.unfold(-1, weight.shape[-1], 1)
                to_weight[..., m, :] = torch.einsum("bohw,bihwn->oin", to_y, taps)
                to_taps = torch.einsum("bohw,oin->nbihw", to_y, weight[..., m, :])
            for n in range(weight.shape[-1]):
                if not ctx.depthwise:
                    to_band[..., n : n + width] += to_taps[n]
                    continue
                to_band[..., n : n + width].addcmul_(to_y, weight[:, 0, m, n, None, None])
                to_weight[:, 0, m, n] = torch.einsum("bchw,bchw->c", to_y, band[..., n : n + width])
        return to_padded, to_weight, None


def by_transform(x: Tensor, weight: Tensor, *, circular: bool, depthwise: bool) -> Tensor:
    """The same sum: the extended image times the kernel, both transformed at a size at which no image wraps."""
    *_, height, width = x.shape
    padded = _extended(x, weight.shape[-2] // 2, weight.shape[-1] // 2, circular)
    size = _transformed(*padded.shape[-2:])
    spectrum = torch.fft.rfft2(padded, s=size)
    # Conjugated, because tap (m, n) meets the extended image m rows down and n columns right: a correlation.
    kernel = torch.fft.rfft2(weight, s=size).conj()
    mixed = spectrum * kernel[:, 0] if depthwise else torch.einsum("bihw,oihw->bohw", spectrum, kernel)
    full: Tensor = torch.fft.irfft2(mixed, s=size)
    return full[..., :height, :width]


def _transformed(height: int, width: int) -> tuple[int, int]:
    """The size at which an extended image is transformed: no tap leads beyond it from where an image begins."""
    return fast_length(height), fast_length(width)


def _extended(x: Tensor, rows: int, columns: int, circular: bool) -> Tensor:
    """``x`` with ``rows`` and ``columns`` more on each side: of itself, or of zeros."""
    *_, height, width = x.shape
    if circular:
        down = torch.arange(-rows, height + rows, device=x.device) % height
        right = torch.arange(-columns, width + columns, device=x.device) % width
        return x[..., down[:, None], right]
    extended = x.new_zeros(*x.shape[:-2], height + 2 * rows, width + 2 * columns)
    extended[..., rows : rows + height, columns : columns + width] = x
    return extended


def filtered(x: Tensor, spectrum: Tensor) -> Tensor:
    """``Re ifft2(W · fft2(x))`` with a full-plane filter in unshifted order.

    ``x`` is ``(B, Ci, H, W)`` float64; ``spectrum`` complex128, ``(C, H, W)`` for one filter a channel or
    ``(Ci, Co, H, W)`` to contract the channels.
    """
    image = torch.fft.fft2(x)
    mixed = image * spectrum if spectrum.dim() == 3 else torch.einsum("bihw,iohw->bohw", image, spectrum)
    y: Tensor = torch.fft.ifft2(mixed).real
    return y


def full_plane(half: Tensor, width: int) -> Tensor:
    """The filter that ``irfft2`` sees in a half plane ``(…, H, width // 2 + 1)``, on every frequency.

    The missing columns mirror the given ones. Column 0 and, for even ``width``, the last one are their own
    mirror images: of those a real result sees only the Hermitian part.
    """
    mirror = -torch.arange(half.shape[-2], device=half.device) % half.shape[-2]
    opposite = half[..., mirror, :].conj()
    columns = torch.arange(half.shape[-1], device=half.device)
    own = (columns == 0) | (2 * columns == width)
    missing = opposite[..., width - torch.arange(half.shape[-1], width, device=half.device)]
    return torch.cat((torch.where(own, (half + opposite) / 2, half), missing), -1)
