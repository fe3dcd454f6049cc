"""Filter generation: two small MLPs map frequency coordinates to the real and imaginary part of every plane.

The published MLPs are chains of 1×1 convolutions with bias, SiLU between layers and none after the last (NIFF,
section "Modules"). Here both MLPs are stored together, index 0 the real and index 1 the imaginary one, so that a
layer of both is one batched matrix product.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from niffbench.niff import grid as grids
from niffbench.niff import hermitian
from niffbench.niff.autograd import compiling, watched, without_autocast
from niffbench.niff.cache import Cache
from niffbench.niff.catalogue import GRIDS, HIDDEN_WIDTHS, one_of
from niffbench.niff.steps import step


def written(module: nn.Module, name: str) -> nn.Parameter:
    """The parameter of that name, to be written in place.

    Raises:
        ValueError: where it is made of others, and what is written would be lost.
    """
    parameter = module._parameters.get(name)
    if parameter is None:
        raise ValueError(
            f"{name} of this {type(module).__name__} is made of other weights (parametrized, pruned, normed), and "
            "what is written to it would be lost: load or scale first"
        )
    return parameter


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

    weight1: nn.Parameter
    bias1: nn.Parameter

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
        self.mlp = one_of(mlp, HIDDEN_WIDTHS, "filter MLP")
        self._convention = one_of(grid, GRIDS, "grid")
        widths = (2, *HIDDEN_WIDTHS[mlp], self.planes)
        self.depth = len(widths) - 1
        for index, (fan_in, fan_out) in enumerate(itertools.pairwise(widths), start=1):
            weight = torch.empty(2, fan_out, fan_in, device=device, dtype=dtype)
            bias = torch.empty(2, fan_out, device=device, dtype=dtype)
            self.register_parameter(f"weight{index}", nn.Parameter(weight))
            self.register_parameter(f"bias{index}", nn.Parameter(bias))
        self._names = tuple(self._parameters)
        self._grids = grids.Remembered()
        self._cache = Cache()
        self.reset_parameters()

    @property
    def grid(self) -> str:
        """The grid's name; on another the weights would mean nothing."""
        return self._convention

    def reset_parameters(self) -> None:
        """Draw the weights as ``nn.Conv2d`` does: uniform within ±1/√fan_in, bias too."""
        for weight, bias in self._layers():
            bound = 1 / math.sqrt(weight.shape[-1])
            nn.init.uniform_(weight, -bound, bound)
            nn.init.uniform_(bias, -bound, bound)

    @torch.no_grad()
    def level(self, height: int, width: int, power: float) -> None:
        """Scale the last layer of both MLPs so that the mean of |W|² over planes and frequencies is ``power``.

        What the filters look like, their scale apart, stays as it is.

        Raises:
            ValueError: if weights of the last layer are made of others (parametrized, say).
        """
        last = [written(self, f"{name}{self.depth}") for name in ("weight", "bias")]
        dtype = torch.promote_types(last[0].dtype, torch.float32)  # Sums over frequencies are large.
        with without_autocast(last[0]):
            *inner, weight, bias = self._cast_layers(dtype)
            hidden = grids.plane(height, width, self.grid, device=weight.device, dtype=dtype).flatten(1)
            hidden = hidden.expand(2, -1, -1)
            for matrix, offset in zip(inner[::2], inner[1::2], strict=True):
                hidden = F.silu(torch.baddbmm(offset[:, :, None], matrix, hidden))
            # W is linear in the last hidden layer and a constant: no plane need be made to know their mean square.
            hidden = torch.cat((hidden, torch.ones_like(hidden[:, :1])), dim=1)
            planes = torch.cat((weight, bias[:, :, None]), dim=2)
            square = ((planes.mT @ planes) * (hidden @ hidden.mT)).sum() / (self.planes * height * width)
        for tensor in last:
            tensor.mul_((power / square).sqrt())

    @property
    def dtype(self) -> torch.dtype:
        """The parameters' dtype."""
        return self.sources()[0].dtype

    def extra_repr(self) -> str:
        return f"{' × '.join(map(str, self.shape))} planes, mlp={self.mlp!r}, grid={self.grid!r}"

    def published(self, height: int, width: int, dtype: torch.dtype) -> Tensor:
        """The filter as the original generates it: two chains of 1×1 convolutions, zero frequency in the middle.

        Returns complex ``(*shape, height, width)``. In training the grid asks for a gradient too, as the
        original's does: nobody uses it, but its cost belongs to the original.
        """
        grid = self._grid(grids.shifted_plane, height, width, dtype)[None]
        if self.learns() and not compiling() and not watched():
            grid = grid.detach().requires_grad_()
        layers = self._cast_layers(dtype)
        parts = []
        for part in (0, 1):
            hidden = grid
            for weight, bias in zip(layers[::2], layers[1::2], strict=True):
                if hidden is not grid:
                    hidden = F.silu(hidden)
                hidden = F.conv2d(hidden, weight[part, :, :, None, None], bias[part])
            parts.append(hidden)
        return torch.complex(parts[0], parts[1]).view(*self.shape, height, width)

    def full_plane(self, height: int, width: int, dtype: torch.dtype) -> Tensor:
        """The filter at every frequency in unshifted order; complex ``(*shape, height, width)``."""
        grid = self._grid(grids.plane, height, width, dtype)
        layers = self._cast_layers(dtype)
        values = grid.flatten(1).expand(2, -1, -1)
        for index in range(0, len(layers), 2):
            if index:
                values = F.silu(values)
            values = torch.baddbmm(layers[index + 1][:, :, None], layers[index], values)
        real, imaginary = values
        return torch.complex(real, imaginary).view(*self.shape, height, width)

    def half_plane(self, height: int, width: int, dtype: torch.dtype) -> Tensor:
        """The filter's Hermitian part on the real FFT's half plane; complex ``(*shape, height, width // 2 + 1)``.

        By ordinary operations; see :mod:`niffbench.niff.hermitian`.
        """
        return self._half(hermitian.generate_plainly, height, width, dtype, 1.0)

    def scaled_half_plane(self, height: int, width: int, dtype: torch.dtype) -> Tensor:
        """:meth:`half_plane` with the inverse FFT's 1 / (H·W) in it, and as fast as it can be made."""
        return self._half(hermitian.generate, height, width, dtype, 1 / (height * width))

    def half_ingredients(
        self, height: int, width: int, dtype: torch.dtype
    ) -> tuple[Tensor, hermitian.Layers, float]:
        """What :mod:`niffbench.niff.native.generated` makes :meth:`scaled_half_plane` of, where it is needed."""
        grid = self._grid(grids.mirrored_columns, height, width, dtype)
        return grid, self._cast_layers(dtype), 1 / (height * width)

    def _half(
        self,
        generate: Callable[[Tensor, hermitian.Layers, float], Tensor],
        height: int,
        width: int,
        dtype: torch.dtype,
        scale: float,
    ) -> Tensor:
        grid = self._grid(grids.mirrored_half_plane, height, width, dtype).flatten(2)
        half = generate(grid, self._cast_layers(dtype), scale)
        return half.view(*self.shape, height, width // 2 + 1)

    def half_matrices(self, height: int, width: int, dtype: torch.dtype) -> tuple[Tensor, ...]:
        """A full layer's :meth:`half_plane` as one matrix a frequency; complex ``(frequencies, in, out)``, alone.

        In the order in which channels are contracted, and so worth keeping.
        """
        half = self.half_plane(height, width, dtype)
        return (half.flatten(2).permute(2, 0, 1).clone(memory_format=torch.contiguous_format),)

    def half_factors(self, height: int, width: int, dtype: torch.dtype) -> tuple[Tensor, ...]:
        """What a full layer's half plane, with 1 / (H·W) in it, would be made of.

        Returns the ``features``, ``mixing`` and ``constant`` of :func:`niffbench.niff.factored.convolve`.
        """
        grid = self._grid(grids.mirrored_half_plane, height, width, dtype).flatten(2)
        features, weight, bias = hermitian.factors(grid, self._cast_layers(dtype), 1 / (height * width))
        twice = features[..., None].expand(*features.shape, 2).flatten(2)
        mixing = weight.view(2, *self.shape, -1).permute(2, 1, 0, 3).clone(memory_format=torch.contiguous_format)
        return twice, mixing.flatten(1), bias.view(self.shape).T

    def cached(self, key: tuple[object, ...], make: Callable[[], grids.Made]) -> grids.Made:
        """``make()``, cached for ``key`` until the weights change: see :class:`niffbench.niff.cache.Cache`.

        Where the result needs a gradient to these weights nothing is kept, and ``make`` builds a fresh graph.
        """
        if self.learns():
            return make()
        return self._cache.get(self.sources(), key, make)

    def at_hand(self, key: tuple[object, ...]) -> Any:
        """What :meth:`cached` would return without making it; else None, and where it :attr:`derives` always."""
        if self._modules or self._forward_pre_hooks:
            return None
        return self._cache.at_hand(self._parameters.values(), key)  # type: ignore[arg-type]

    def weights(self) -> tuple[Tensor, ...]:
        """Weights and biases of the layers in turn, as a parametrization or a hook, say, makes them."""
        if tuple(self._parameters) == self._names:  # Who takes one away and puts it back moves it.
            return tuple(self._parameters.values())  # type: ignore[arg-type]
        for hook in self._forward_pre_hooks.values():  # Nobody calls this module, whose hooks would run then.
            hook(self, ())
        return tuple(tensor for layer in self._layers() for tensor in layer)

    def with_weights(self, weights: Sequence[Tensor]) -> FilterGenerator:
        """A generator like this one of other :meth:`weights`; what it keeps it keeps for itself."""
        names = [f"{name}{index}" for index in range(1, self.depth + 1) for name in ("weight", "bias")]
        twin = FilterGenerator.__new__(FilterGenerator)
        twin.__dict__.update((name, value) for name, value in self.__dict__.items() if name not in names)
        twin.__dict__["_parameters"] = dict(zip(names, weights, strict=True))
        twin._cache = Cache()
        return twin

    def forget(self) -> None:
        """Drop every cached filter."""
        self._cache.clear()

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> FilterGenerator:
        self.forget()  # A parameter moved by .to() keeps its version and may even get its old address back.
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        return self

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        super()._load_from_state_dict(*args, **kwargs)
        self.forget()  # Who asks :func:`niffbench.niff.cache.changes` looks at no weight.

    def learns(self) -> bool:
        """Whether what is generated now needs a gradient to these weights."""
        return torch.is_grad_enabled() and any(parameter.requires_grad for parameter in self.sources())

    def keeps(self) -> bool:
        """Whether :meth:`cached` keeps what it makes now: tensors of inference mode have no versions."""
        sources = self.sources()
        return not self.learns() and not any(one.is_inference() for one in sources)

    @property
    def derives(self) -> bool:
        """Whether weights are made of others: in a module inside (a parametrization), or by a hook (pruning)."""
        return bool(self._modules or self._forward_pre_hooks)

    def sources(self) -> tuple[Tensor, ...]:
        """What the weights are, or are made of."""
        return (*self.parameters(), *self.buffers()) if self.derives else self.weights()

    def _layers(self) -> Iterator[tuple[Tensor, Tensor]]:
        for index in range(1, self.depth + 1):
            yield getattr(self, f"weight{index}"), getattr(self, f"bias{index}")

    def _cast_layers(self, dtype: torch.dtype) -> tuple[Tensor, ...]:
        """Weights and biases in turn, in the dtype of the arithmetic."""
        layers = self.weights()
        if layers[0].dtype == dtype:
            return layers
        with step("cast"):
            return tuple(tensor.to(dtype) for tensor in layers)

    def _grid(self, make: Callable[..., Tensor], height: int, width: int, dtype: torch.dtype) -> Tensor:
        """One of the grids of :mod:`niffbench.niff.grid`, remembered."""
        weight = self.sources()[0]
        device = weight.device
        return self._grids.get(
            (make, height, width, dtype, device),
            lambda: make(height, width, self.grid, device=device, dtype=dtype),
            weight,
        )
