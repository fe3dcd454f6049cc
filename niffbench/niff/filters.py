"""Filter generation: two small MLPs map frequency coordinates to the real and imaginary part of every plane.

The published MLPs are chains of 1×1 convolutions with bias, SiLU between layers and none after the last (NIFF,
section "Modules"). Here both MLPs are stored together, index 0 the real and index 1 the imaginary one, so that a
layer of both is one batched matrix product.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from niffbench.niff import grid as grids
from niffbench.niff.catalogue import GRIDS, HIDDEN_WIDTHS, known
from niffbench.niff.steps import step


class FilterGenerator(nn.Module):
    """The complex frequency filter ``W = complex(mlp_real(g), mlp_imag(g))`` of one layer.

    Args:
        shape: the filter's leading dimensions: ``(C,)`` for depthwise, ``(in, out)`` for full.
        mlp: ``tiny`` (2→8→P), ``small`` (2→8→4→P) or ``big`` (2→16→128→32→P), P the number of planes.
        grid: ``paper`` or ``centred``; see :mod:`niffbench.niff.grid`.

    Parameters are ``weight1 … weightN`` of shape ``(2, out, in)`` and ``bias1 … biasN`` of shape ``(2, out)``,
    drawn as ``nn.Conv2d`` draws its own.

    Raises:
        ValueError: for an unknown MLP or grid, or a shape that is not positive.
    """

    def __init__(
        self,
        shape: tuple[int, ...],
        *,
        mlp: str,
        grid: str = "paper",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        if any(size < 1 for size in shape):
            raise ValueError(f"a layer needs at least one channel, got {' × '.join(map(str, shape))}")
        self.shape = tuple(shape)
        self.planes = math.prod(shape)
        self.mlp = known(mlp, HIDDEN_WIDTHS, "filter MLP")
        self.grid = known(grid, GRIDS, "grid")
        widths = (2, *HIDDEN_WIDTHS[mlp], self.planes)
        self.depth = len(widths) - 1
        for index, (fan_in, fan_out) in enumerate(itertools.pairwise(widths), start=1):
            weight = torch.empty(2, fan_out, fan_in, device=device, dtype=dtype)
            bias = torch.empty(2, fan_out, device=device, dtype=dtype)
            self.register_parameter(f"weight{index}", nn.Parameter(weight))
            self.register_parameter(f"bias{index}", nn.Parameter(bias))
        self._coordinates = grids.Remembered()
        self._filters = _KeptFilter()
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the weights as ``nn.Conv2d`` does: uniform within ±1/√fan_in, bias too."""
        for index in range(1, self.depth + 1):
            weight, bias = self._layer(index)
            bound = 1 / math.sqrt(weight.shape[-1])
            nn.init.uniform_(weight, -bound, bound)
            nn.init.uniform_(bias, -bound, bound)

    @property
    def dtype(self) -> torch.dtype:
        """The parameters' dtype."""
        return self._layer(1)[0].dtype

    def extra_repr(self) -> str:
        return f"{' × '.join(map(str, self.shape))} planes, mlp={self.mlp!r}, grid={self.grid!r}"

    def published(self, height: int, width: int, dtype: torch.dtype) -> Tensor:
        """The filter as the original generates it: two chains of 1×1 convolutions, zero frequency in the middle.

        Returns complex ``(*shape, height, width)``. In training the grid asks for a gradient too, as the
        original's does: nobody uses it, but its cost belongs to the original.
        """
        key = ("shifted", height, width, dtype, self._layer(1)[0].device)
        grid = self._coordinates.get(
            key, lambda: self._grid(grids.shifted_plane, height, width, dtype)[None], self._layer(1)[0]
        )
        if self._learns() and not torch.compiler.is_compiling():
            grid = grid.detach().requires_grad_()
        parts = [self._convolutions(part, grid, dtype) for part in (0, 1)]
        return torch.complex(parts[0], parts[1]).view(*self.shape, height, width)

    def full_plane(self, height: int, width: int, dtype: torch.dtype) -> Tensor:
        """The filter at every frequency in unshifted order; complex ``(*shape, height, width)``."""
        key = ("plane", height, width, dtype, self._layer(1)[0].device)
        grid = self._coordinates.get(
            key, lambda: self._grid(grids.plane, height, width, dtype).flatten(1), self._layer(1)[0]
        )
        hidden = self._hidden(grid, dtype)
        weight, bias = self._cast_layer(self.depth, dtype)
        real, imaginary = torch.baddbmm(bias[:, :, None], weight, hidden)
        return torch.complex(real, imaginary).view(*self.shape, height, width)

    def half_plane(self, height: int, width: int, dtype: torch.dtype, scale: float = 1.0) -> Tensor:
        """The filter's Hermitian part on the real FFT's half plane; complex ``(*shape, height, width // 2 + 1)``.

        ``Wh(k) = (W(k) + conj W(-k mod N)) / 2``, the only part of W that a real output sees (NIFF, "Exact
        equivalences"). The last layer is linear, so the average is taken on the hidden layer: of the real MLP its
        even part, of the imaginary one its odd part, whose bias cancels. One product then makes real and imaginary
        parts side by side, as a complex tensor stores them. ``scale`` multiplies the result.
        """
        columns = width // 2 + 1
        basis = self._half_basis(height, width, dtype, scale)
        weight, bias = self._cast_layer(self.depth, dtype)
        rows = torch.cat((weight[0], weight[1], bias[0, :, None]), dim=1)
        both = (rows @ basis.flatten(1)).view(*self.shape, height, columns, 2)
        return torch.view_as_complex(both)

    def kept(self, what: tuple[object, ...], make: Callable[[], Tensor]) -> Tensor:
        """``make()``, remembered until the weights change, one tensor for each ``what`` (a few sizes).

        Where the result needs a gradient to these parameters nothing is kept, and ``make`` builds a fresh
        graph. Weights count as changed when a parameter is another object, moved, or written in place with
        autograd's version counter told (optimisers, ``load_state_dict``); a write through ``.data`` is not
        seen: call :meth:`forget` after one. ``torch.compile`` breaks its graph here, since what is kept lives
        outside any graph.
        """
        if self._learns():
            return make()
        parameters = tuple(self.parameters())
        for parameter in parameters:
            # An inference tensor keeps no version counter.
            if parameter.is_inference():
                return make()
        return _look_up(self._filters, parameters, what, make)

    def forget(self) -> None:
        """Drop every kept filter."""
        self._filters.clear()

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> FilterGenerator:
        self.forget()  # A parameter moved by .to() keeps its version and may even get its old address back.
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        return self

    def _learns(self) -> bool:
        """Whether what is generated now needs a gradient to these weights."""
        return torch.is_grad_enabled() and any(parameter.requires_grad for parameter in self.parameters())

    def _layer(self, index: int) -> tuple[Tensor, Tensor]:
        weight, bias = getattr(self, f"weight{index}"), getattr(self, f"bias{index}")
        return weight, bias

    def _cast_layer(self, index: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        weight, bias = self._layer(index)
        if weight.dtype == dtype:
            return weight, bias
        with step("cast"):
            return weight.to(dtype), bias.to(dtype)

    def _grid(self, make: Callable[..., Tensor], height: int, width: int, dtype: torch.dtype) -> Tensor:
        return make(height, width, self.grid, device=self._layer(1)[0].device, dtype=dtype)

    def _convolutions(self, part: int, grid: Tensor, dtype: torch.dtype) -> Tensor:
        hidden = grid
        for index in range(1, self.depth + 1):
            weight, bias = self._cast_layer(index, dtype)
            hidden = F.conv2d(hidden, weight[part, :, :, None, None], bias[part])
            if index < self.depth:
                hidden = F.silu(hidden)
        return hidden

    def _hidden(self, coordinates: Tensor, dtype: torch.dtype) -> Tensor:
        """Both MLPs up to the last layer: coordinates ``(2, N)`` to ``(2, width of the last hidden layer, N)``."""
        hidden = coordinates.expand(2, *coordinates.shape)
        for index in range(1, self.depth):
            weight, bias = self._cast_layer(index, dtype)
            hidden = F.silu(torch.baddbmm(bias[:, :, None], weight, hidden))
        return hidden

    def _half_basis(self, height: int, width: int, dtype: torch.dtype, scale: float) -> Tensor:
        """What the last layer's rows multiply: ``(2·K + 1, N, 2)`` over the N frequencies of the half plane.

        The K even hidden parts stand in the real column, the K odd ones in the imaginary column, and the constant
        that carries the real bias is last.
        """
        key = ("half", height, width, dtype, self._layer(1)[0].device)
        grid = self._coordinates.get(
            key, lambda: self._grid(grids.mirrored_half_plane, height, width, dtype).flatten(1), self._layer(1)[0]
        )
        hidden = self._hidden(grid, dtype)
        here, there = hidden.view(2, hidden.shape[1], 2, -1).unbind(2)
        even = (here[0] + there[0]) * (scale / 2)
        odd = (here[1] - there[1]) * (scale / 2)
        zero = torch.zeros_like(even)
        constant = torch.stack((torch.full_like(even[:1], scale), zero[:1]), dim=-1)
        return torch.cat((torch.stack((even, zero), -1), torch.stack((zero, odd), -1), constant))


def _address(parameter: Tensor) -> int:
    """Where the numbers are; a subclass (a fake tensor, say) has no address."""
    return parameter.data_ptr() if type(parameter) in (nn.Parameter, Tensor) else 0


class _KeptFilter:
    """Filters made from one state of the weights; all are dropped as soon as the weights differ."""

    def __init__(self) -> None:
        self._state: tuple[tuple[Tensor, int, int], ...] = ()
        self._entries = grids.Remembered(capacity=4)

    def get(self, parameters: tuple[Tensor, ...], what: tuple[object, ...], make: Callable[[], Tensor]) -> Tensor:
        state = tuple((parameter, parameter._version, _address(parameter)) for parameter in parameters)
        if not self._same(state):
            self.clear()
            self._state = state
        return self._entries.get(what, make, parameters[0])

    def clear(self) -> None:
        self._state = ()
        self._entries = grids.Remembered(capacity=4)

    def _same(self, state: tuple[tuple[Tensor, int, int], ...]) -> bool:
        return len(state) == len(self._state) and all(
            old[0] is new[0] and old[1:] == new[1:] for old, new in zip(self._state, state, strict=True)
        )

    def __deepcopy__(self, memo: dict[int, object]) -> _KeptFilter:
        return _KeptFilter()

    def __reduce__(self) -> tuple[type[_KeptFilter], tuple[()]]:
        return (_KeptFilter, ())


def _look_up_now(
    filters: _KeptFilter, parameters: tuple[Tensor, ...], what: tuple[object, ...], make: Callable[[], Tensor]
) -> Tensor:
    return filters.get(parameters, what, make)


_look_up: Callable[..., Tensor] = torch.compiler.disable(_look_up_now)  # type: ignore[no-untyped-call]
