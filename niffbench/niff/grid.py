"""Frequency coordinates: what a filter MLP is evaluated on.

A grid is ``(2, height, width)``: channel 0 runs along the last dimension, channel 1 along the one before it;
raw integers or half-integers, not normalised (as in the paper's code). Two conventions:

- ``paper``: the entry at shifted index ``i`` of an axis of ``n`` is ``i - n / 2``, so on an odd axis zero
  frequency, which sits at index ``n // 2``, has coordinate -0.5;
- ``centred``: ``i - n // 2``, so zero frequency has coordinate 0 on every axis. On even axes both agree.

Everything here is in the FFT's own (unshifted) order unless it says "shifted".
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any, Self, TypeVar

import torch
from torch import Tensor

from niffbench.niff.autograd import transformed
from niffbench.niff.steps import once

Made = TypeVar("Made", Tensor, tuple[Tensor, ...])
"""What is made at once: one tensor, or several."""


def axis(n: int, grid: str, *, device: torch.device, dtype: torch.dtype) -> Tensor:
    """Coordinates of the ``n`` frequencies of one axis in unshifted order; shape ``(n,)``."""
    return torch.roll(shifted_axis(n, grid, device=device, dtype=dtype), -(n // 2))


def shifted_axis(n: int, grid: str, *, device: torch.device, dtype: torch.dtype) -> Tensor:
    """Coordinates of one axis with zero frequency in the middle (index ``n // 2``); shape ``(n,)``."""
    start = -n / 2 if grid == "paper" else -(n // 2)
    return torch.arange(n, device=device, dtype=dtype) + start


def shifted_plane(height: int, width: int, grid: str, *, device: torch.device, dtype: torch.dtype) -> Tensor:
    """The grid with zero frequency in the middle, ``(2, height, width)``."""
    return _cross(
        shifted_axis(height, grid, device=device, dtype=dtype),
        shifted_axis(width, grid, device=device, dtype=dtype),
    )


def plane(height: int, width: int, grid: str, *, device: torch.device, dtype: torch.dtype) -> Tensor:
    """The grid in unshifted order, ``(2, height, width)``."""
    return _cross(axis(height, grid, device=device, dtype=dtype), axis(width, grid, device=device, dtype=dtype))


def mirrored_half_plane(height: int, width: int, grid: str, *, device: torch.device, dtype: torch.dtype) -> Tensor:
    """Coordinates of the real FFT's half plane and of its mirror image, ``(2, 2, height, width // 2 + 1)``.

    ``[:, 0]`` holds the coordinates of frequency ``k``, ``[:, 1]`` those of ``-k mod N``. The mirror is looked up
    and not negated: on an even axis the Nyquist frequency is its own mirror image, and on an odd axis the paper's
    grid is not symmetric about zero.
    """
    rows = axis(height, grid, device=device, dtype=dtype)
    columns = axis(width, grid, device=device, dtype=dtype)
    half = width // 2 + 1
    here = _cross(rows, columns[:half])
    there = _cross(_mirror(rows), _mirror(columns)[:half])
    return torch.stack((here, there), dim=1)


def mirrored_columns(height: int, width: int, grid: str, *, device: torch.device, dtype: torch.dtype) -> Tensor:
    """:func:`mirrored_half_plane` column by column, ``(2, 2, width // 2 + 1, height)``."""
    return mirrored_half_plane(height, width, grid, device=device, dtype=dtype).transpose(2, 3).contiguous()


def _mirror(values: Tensor) -> Tensor:
    """``values`` at ``-k mod n`` for every ``k``."""
    return torch.roll(values.flip(0), 1)


def _cross(rows: Tensor, columns: Tensor) -> Tensor:
    shape = (rows.numel(), columns.numel())
    return torch.stack((columns.expand(shape), rows[:, None].expand(shape)))


def _fake_mode(tensor: Tensor) -> object:
    """The mode that a fake tensor belongs to, None for a real one."""
    return getattr(tensor, "fake_mode", None)


def _is_constant(made: Tensor, weight: Tensor) -> bool:
    """Whether ``made`` is no more than its numbers: no subclass, but for a fake like ``weight``."""
    return type(made) is Tensor or (_fake_mode(made) is not None and _fake_mode(made) is _fake_mode(weight))


class Remembered:
    """The last few constant tensors that a layer needed, by size, device and dtype.

    They belong to no state dict, are made outside inference mode (so that a first call there does not spoil a
    later training step), and are left behind when the owner is copied or pickled: they are cheap to make again.
    Nothing is kept while ``torch.compile`` traces, or ``torch.func`` transforms and so may wrap what is made, nor
    of a tensor's subclasses, but for fakes among fake weights.
    """

    def __init__(self, capacity: int = 8) -> None:
        self._capacity = capacity
        self._entries: OrderedDict[tuple[object, ...], Any] = OrderedDict()

    def get(self, key: tuple[object, ...], make: Callable[[], Made], weight: Tensor) -> Made:
        """What ``key`` stands for, made by ``make`` if it is not at hand; ``weight`` is one of the layer's."""
        if torch.compiler.is_compiling():
            return make()
        entry: Made | None = self._entries.get(key)
        if entry is not None:
            return entry
        kept_as_a_fake = once() if _fake_mode(weight) is not None else nullcontext()
        with torch.inference_mode(False), torch.no_grad(), kept_as_a_fake:
            made = make()
        every = made if isinstance(made, tuple) else (made,)
        if not transformed() and all(_is_constant(one, weight) for one in every):
            self._entries[key] = made
            while len(self._entries) > self._capacity:
                self._entries.popitem(last=False)
        return made

    def find(self, key: tuple[object, ...]) -> object:
        """What ``key`` stands for, if it is at hand."""
        return self._entries.get(key)

    def __len__(self) -> int:
        return len(self._entries)

    def __deepcopy__(self, memo: dict[int, object]) -> Self:
        return type(self)(self._capacity)

    def __reduce__(self) -> tuple[type[Self], tuple[int]]:
        return (type(self), (self._capacity,))
