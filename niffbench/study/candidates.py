"""What a NIFF layer could be replaced by in a trained network, and how wrong each replacement is.

A candidate is either exact (a form of the layer) or another kernel: cut to k×k, of rank one (two strips), made of
a few shared kernels, or none at all. How wrong it is, is measured at the layer's output on real activations.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from scipy.fft import next_fast_len
from torch import Tensor, nn
from torch.nn import functional as F

from niffbench.niff.layer import FilteringLayer
from niffbench.niff.split import NiffSplit
from niffbench.study.effective import crop, truncated

Kind = Literal["form", "kernel", "fitted", "strip", "basis", "identity"]
Boundary = Literal["circular", "zeros"]

RANKS = (1, 2, 4, 8)
"""How many shared kernels a basis has."""

LARGEST_FITTED = {"circular": 15, "zeros": 7}
"""Side of the largest kernel that is fitted: the equations have its square of unknowns."""
WORTH_FITTING = 0.95
"""Of the error that the middle of the layer's own kernel makes, what a fitted kernel must stay below."""
EXACTLY = 1e-4
"""Relative error below which nothing is fitted."""
RIDGE = 1e-7
"""Of the images' power, added to it: what they do not show is not fitted."""
PADDED = 16
"""Images on which zero-padded candidates are compared with their layer."""


@dataclass(frozen=True)
class Candidate:
    """One replacement of a layer.

    Attributes:
        kind: ``form`` computes what the layer does; ``kernel`` is an ordinary k×k convolution with the middle of
            the layer's own kernel; ``fitted`` one that comes closest to the layer's output on what it is given;
            ``strip`` a k×1 after a 1×k in each channel; ``basis`` a k×k convolution whose kernels are sums of
            ``rank`` shared ones; ``identity`` passes its input on (a split layer still mixes channels).
        side: k; None for a form and the identity.
        form: the form's name.
        parameters: learnable scalars of the replacement.
        weights: of a fitted one, centred, ``(C, k, k)``.
    """

    kind: Kind
    parameters: int
    side: int | None = None
    boundary: Boundary = "circular"
    rank: int | None = None
    form: str | None = None
    weights: Tensor | None = field(default=None, compare=False, repr=False)

    @property
    def name(self) -> str:
        """As tables show it: ``auto-cached``, ``k7``, ``k7 zeros``, ``strip k7``, ``basis k7 r4``."""
        if self.kind in ("form", "identity"):
            return self.form or self.kind
        words: list[str] = [] if self.kind == "kernel" else [self.kind]
        words += [f"k{self.side}"] + ([f"r{self.rank}"] if self.rank else [])
        return " ".join(words + (["zeros"] if self.boundary == "zeros" else []))

    @property
    def exact(self) -> bool:
        """Whether it computes the same function as the layer."""
        return self.kind == "form"


def candidates(layer: FilteringLayer, height: int, width: int, forms: Iterable[str]) -> tuple[Candidate, ...]:
    """Every replacement of ``layer`` on an H×W grid, those in ``forms`` first."""
    count = layer.generator.planes
    mixing = layer.in_channels * layer.out_channels if isinstance(layer, NiffSplit) else 0
    own = sum(parameter.numel() for parameter in layer.parameters())
    result = [Candidate("form", own, form=form) for form in forms]
    boundaries: tuple[Boundary, ...] = ("circular", "zeros")
    if layer.in_channels == layer.out_channels or mixing:
        result.append(Candidate("identity", mixing))
    for side in range(1, min(height, width) + 1, 2):
        # One tap reaches over no border.
        some = boundaries if side > 1 else boundaries[1:]
        result += [Candidate("kernel", count * side**2 + mixing, side, boundary) for boundary in some]
        if layer.kind != "full" and side > 1:
            result += [Candidate("strip", 2 * count * side + mixing, side, boundary) for boundary in boundaries]
            result += [
                Candidate("basis", rank * (count + side**2) + mixing, side, rank=rank)
                for rank in RANKS
                if rank < min(count, side**2)
            ]
    return tuple(result)


def kernel_of(candidate: Candidate, kernel: Tensor) -> Tensor:
    """The centred kernel that ``candidate`` applies in place of the layer's own centred ``kernel``.

    ``kernel`` is real, ``(C, H, W)``, or ``(in, out, H, W)`` of a full layer. The result has the candidate's side.
    """
    match candidate.kind:
        case "form":
            return kernel
        case "identity":
            ones = torch.ones(kernel.shape[0], dtype=kernel.dtype, device=kernel.device)
            return (ones if kernel.dim() == 3 else torch.diag(ones))[..., None, None]
        case "fitted":
            assert candidate.weights is not None
            return candidate.weights
    assert candidate.side is not None
    small = crop(kernel, candidate.side)
    if candidate.kind == "kernel":
        return small
    if candidate.kind == "strip":
        left, values, right = torch.linalg.svd(small, full_matrices=False)
        outer: Tensor = values[:, :1, None] * left[:, :, :1] * right[:, :1, :]
        return outer
    weights, shared = basis(small, candidate.rank or 1)
    return torch.einsum("cr,rhw->chw", weights, shared)


def basis(kernels: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """The best ``rank`` kernels ``(r, k, k)`` and weights ``(C, r)`` for ``(C, k, k)``, in least squares.

    By the singular value decomposition of the kernels as rows (Eckart and Young, Psychometrika 1, 1936).
    """
    left, values, right = torch.linalg.svd(kernels.flatten(1), full_matrices=False)
    return left[:, :rank] * values[:rank], right[:rank].unflatten(1, kernels.shape[1:])


class Basis(nn.Module):
    """A depthwise convolution whose kernels are sums of a few shared ones: ``weights @ shared``."""

    def __init__(self, weights: Tensor, shared: Tensor) -> None:
        super().__init__()
        self.weights = nn.Parameter(weights.contiguous())
        self.shared = nn.Parameter(shared.flip(-2, -1).contiguous())

    def forward(self, x: Tensor) -> Tensor:
        """``(B, C, H, W)`` to the same, circular."""
        kernel = torch.einsum("cr,rhw->chw", self.weights, self.shared)[:, None]
        half = kernel.shape[-1] // 2
        return F.conv2d(F.pad(x, (half,) * 4, mode="circular"), kernel, groups=x.shape[1])


def build(candidate: Candidate, layer: FilteringLayer, height: int, width: int) -> nn.Module:
    """The module that takes the place of ``layer`` on an H×W grid, with weights of its own."""
    if candidate.form is not None:
        return layer.with_form(candidate.form)
    if candidate.weights is not None:
        return _convolution(candidate.weights[:, None], candidate.boundary, layer.in_channels)
    if candidate.kind == "kernel":
        return truncated(layer, candidate.side or 1, height, width, boundary=candidate.boundary)
    with torch.no_grad():
        spatial = _spatial(candidate, layer.spatial_kernel(height, width))
        if not isinstance(layer, NiffSplit):
            return spatial
        mixing = _convolution(layer.weight[:, :, None, None], "zeros", 1)
    return mixing if isinstance(spatial, nn.Identity) else nn.Sequential(spatial, mixing)


def _spatial(candidate: Candidate, kernel: Tensor) -> nn.Module:
    if candidate.kind == "identity":
        return nn.Identity()
    small = crop(kernel, candidate.side or 1)
    if candidate.kind == "basis":
        return Basis(*basis(small, candidate.rank or 1))
    left, values, right = torch.linalg.svd(small, full_matrices=False)
    rows, columns = right[:, 0], left[:, :, 0] * values[:, :1]
    return nn.Sequential(
        _convolution(rows[:, None, None, :], candidate.boundary, kernel.shape[0]),
        _convolution(columns[:, None, :, None], candidate.boundary, kernel.shape[0]),
    )


def _convolution(weight: Tensor, boundary: Boundary, groups: int) -> nn.Conv2d:
    """``weight``, ``(out, in / groups, h, w)``, as a convolution, which correlates: flipped."""
    outputs, inputs, height, width = weight.shape
    module = nn.Conv2d(
        inputs * groups,
        outputs,
        (height, width),
        padding=(height // 2, width // 2),
        padding_mode=boundary,
        groups=groups,
        bias=False,
        device="meta",
    )
    module.weight = nn.Parameter(weight.flip(-2, -1).contiguous())
    return module


class Errors:
    """Adds up, batch by batch, how far each candidate's output is from the layer's: ``‖y - y'‖ / ‖y‖``.

    Nothing of a batch is kept but sums, and no error costs more for a larger kernel. Of a depthwise layer what is
    circular needs the power at each frequency alone (Parseval), of others the spectra; what is zero-padded is
    convolved by FFTs of padded images, of :data:`PADDED` images at most.
    """

    def __init__(self, layer: FilteringLayer, chosen: Sequence[Candidate]) -> None:
        self._layer = layer
        self._circular = [one for one in chosen if not one.exact and one.boundary == "circular"]
        self._zeros = [one for one in chosen if not one.exact and one.boundary == "zeros"]
        self._exact = [one for one in chosen if one.exact]
        self._squares = dict.fromkeys((*self._circular, *self._zeros), 0.0)
        self._size = self._size_padded = 0.0
        self._images = 0
        self._power: Tensor | None = None
        self._windows: tuple[Tensor, Tensor] | None = None

    def add(self, x: Tensor) -> None:
        """Take the layer's input ``(B, C, H, W)`` of a batch into account."""
        height, width = x.shape[-2:]
        with torch.no_grad():
            kernel = self._layer.spatial_kernel(height, width)
            x = x.to(kernel.dtype)
            self._kernel, self._grid = kernel, (height, width)
            spectrum = torch.fft.rfft2(x)
            full = _transfer(kernel, height, width)
            if self._layer.kind == "depthwise":
                power = torch.view_as_real(spectrum).double().square().sum((0, -1))
                self._power = power if self._power is None else self._power + power
            else:
                self._size += _energy(self._apply(spectrum, full), width)
                for one in self._circular:
                    difference = full - _transfer(kernel_of(one, kernel), height, width)
                    self._squares[one] += _energy(self._apply(spectrum, difference), width)
            some = max(PADDED - self._images, 0)
            self._images += len(x)
            if some and self._zeros:
                truth = torch.fft.irfft2(self._apply(spectrum[:some], full), s=(height, width))
                self._size_padded += _square(truth)
                largest = max((kernel_of(one, kernel) for one in self._zeros), key=Tensor.numel)
                padded = self._spectra(x[:some], largest)
                for one in self._zeros:
                    self._squares[one] += self._padded(padded, kernel_of(one, kernel), truth)
                if self._layer.kind == "depthwise":
                    self._note_windows(x[:some], truth)

    def result(self) -> dict[Candidate, float]:
        """The relative error of every candidate over all batches; 0 where the layer gives nothing."""
        if self._power is not None:
            full = _transfer(self._kernel, *self._grid)
            self._size = self._filtered(full)
            for one in self._circular:
                self._squares[one] = self._filtered(full - _transfer(kernel_of(one, self._kernel), *self._grid))
            for one in self._fitted(full):
                square = self._filtered(full - _transfer(kernel_of(one, self._kernel), *self._grid))
                self._take(one, square, self._size)
            for one, square in self._fitted_in_zeros():
                self._take(one, square, self._size_padded)
        errors = {
            one: (square / ((self._size_padded if one.boundary == "zeros" else self._size) or 1.0)) ** 0.5
            for one, square in self._squares.items()
        }
        return dict.fromkeys(self._exact, 0.0) | errors

    def _take(self, fitted: Candidate, square: float, size: float) -> None:
        """Take a fitted kernel in, with its error, if that is well below the cropped one's and no rounding."""
        cropped = self._squares.get(Candidate("kernel", fitted.parameters, fitted.side, fitted.boundary), 0.0)
        if square < WORTH_FITTING**2 * cropped > EXACTLY**2 * size:
            self._squares[fitted] = square

    def _fitted(self, full: Tensor) -> Iterator[Candidate]:
        """The kernels, circular, that come closest to a depthwise layer on all that it was given: least squares.

        Their normal equations have the autocorrelation of the images, which their power at each frequency tells.
        """
        assert self._power is not None
        height, width = self._grid
        images = torch.fft.irfft2(self._power, s=(height, width))
        target = torch.fft.irfft2(self._power * full.to(torch.complex128), s=(height, width))
        for side in range(3, min(height, width, LARGEST_FITTED["circular"]) + 1, 2):
            offsets = torch.arange(side, device=images.device) - side // 2
            rows, columns = offsets.repeat_interleave(side), offsets.repeat(side)
            down, along = (rows[:, None] - rows) % height, (columns[:, None] - columns) % width
            solved = []
            for own, wanted in zip(images, target[:, rows % height, columns % width], strict=True):
                matrix = own[down, along]  # of one channel at a time: it has k⁴ entries
                matrix.diagonal().add_(RIDGE * own[0, 0] + torch.finfo(torch.float64).tiny)
                solved.append(torch.linalg.solve(matrix, wanted))
            weights = torch.stack(solved).view(-1, side, side).to(self._kernel.dtype)
            yield Candidate("fitted", weights.numel(), side, weights=weights)

    def _note_windows(self, x: Tensor, truth: Tensor) -> None:
        """Add up the equations of fitted kernels that meet zeros: of the windows they see and what is wanted."""
        largest = min(*self._grid, LARGEST_FITTED["zeros"])
        largest -= 1 - largest % 2
        matrices, wanted = [], []
        for channel in range(x.shape[1]):  # one at a time: the windows are the square of their side of the images
            windows = F.unfold(x[:, channel, None], largest, padding=largest // 2)
            rows = windows.transpose(0, 1).flatten(1).double()
            matrices.append(rows @ rows.T)
            wanted.append(rows @ truth[:, channel].flatten().double())
        sums = torch.stack(matrices), torch.stack(wanted)
        before = self._windows
        self._windows = sums if before is None else (before[0] + sums[0], before[1] + sums[1])

    def _fitted_in_zeros(self) -> Iterator[tuple[Candidate, float]]:
        """The kernels that come closest to the layer where they meet zeros, and Σ|y - y'|² of each."""
        if self._windows is None:
            return
        matrices, wanted = self._windows
        largest = round(wanted.shape[1] ** 0.5)
        every = torch.arange(largest**2, device=wanted.device).view(largest, largest)
        for side in range(3, largest + 1, 2):
            places = crop(every, side).flatten()
            own, target = matrices[:, places[:, None], places], wanted[:, places]
            ridge = RIDGE * own[:, side**2 // 2, side**2 // 2] + torch.finfo(torch.float64).tiny
            diagonal = torch.diag_embed(ridge[:, None].expand(-1, side**2))
            weights = torch.linalg.solve(own + diagonal, target)
            met = torch.einsum("ci,cij,cj->", weights, own, weights) - 2 * (weights * target).sum()
            kernel = weights.view(-1, side, side).flip(-2, -1).to(self._kernel.dtype)
            candidate = Candidate("fitted", kernel.numel(), side, "zeros", weights=kernel)
            yield candidate, max(self._size_padded + float(met), 0.0)

    def _filtered(self, transfer: Tensor) -> float:
        """Σ|y|², up to a factor, of all images filtered by a depthwise ``transfer`` function."""
        assert self._power is not None
        weighted = self._power * torch.view_as_real(transfer).double().square().sum(-1)
        return float(_doubled(weighted.sum((0, 1)), self._grid[1]).sum())

    def _spectra(self, x: Tensor, kernel: Tensor) -> tuple[Tensor, int, int]:
        """Spectra of the images ``x`` among zeros enough for ``kernel`` and smaller ones, and their grid."""
        rows, columns = (
            next_fast_len(side + taps // 2, real=True)
            for side, taps in zip(x.shape[-2:], kernel.shape[-2:], strict=True)
        )
        return torch.fft.rfft2(x, s=(rows, columns)), rows, columns

    def _padded(self, padded: tuple[Tensor, int, int], kernel: Tensor, truth: Tensor) -> float:
        """Σ|y - y'|² where ``kernel`` meets zeros around the images with these spectra."""
        spectrum, rows, columns = padded
        own = torch.fft.irfft2(self._apply(spectrum, _transfer(kernel, rows, columns)), s=(rows, columns))
        return _square(truth - own[..., : truth.shape[-2], : truth.shape[-1]])

    def _apply(self, spectrum: Tensor, transfer: Tensor) -> Tensor:
        """What the layer makes of a spectrum ``(B, C, H, W')`` with this transfer function."""
        if transfer.dim() == 4:
            return torch.einsum("bihw,iohw->bohw", spectrum, transfer)
        filtered: Tensor = spectrum * transfer
        if isinstance(self._layer, NiffSplit):
            filtered = torch.einsum("bihw,oi->bohw", filtered, self._layer.weight.to(filtered.dtype))
        return filtered


def _transfer(kernel: Tensor, height: int, width: int) -> Tensor:
    """The half plane of a centred kernel on an H×W grid, which it fits."""
    rows, columns = kernel.shape[-2:]
    padded = F.pad(kernel, (0, width - columns, 0, height - rows))
    half: Tensor = torch.fft.rfft2(torch.roll(padded, (-(rows // 2), -(columns // 2)), (-2, -1)))
    return half


def _energy(half: Tensor, width: int) -> float:
    """Σ|y|², up to a factor, of the real images with these half planes."""
    power = torch.view_as_real(half).double().square().sum((-1, -3)).flatten(0, -2).sum(0)
    return float(_doubled(power, width).sum())


def _doubled(columns: Tensor, width: int) -> Tensor:
    """The power in each column of a half plane, ``(W',)``; inner ones stand for two (Parseval)."""
    columns[1 : (width + 1) // 2] *= 2
    return columns


def _square(y: Tensor) -> float:
    return float(torch.linalg.vector_norm(y, dtype=torch.float64)) ** 2
