"""What is made from weights and kept until they change."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn

from niffbench.niff.grid import Made, Remembered

_numbers = itertools.count(1)
_changes = 0


def note_change() -> None:
    """Let everybody know who compares :func:`changes`."""
    global _changes
    _changes = next(_numbers)  # No two threads get the same.


def changes() -> int:
    """Another number since something kept was dropped, or a layer's form or last call became another."""
    return _changes


class Cache:
    """Tensors made from one state of some parameters; all are dropped as soon as the parameters differ.

    Parameters count as changed when one is another object, moved, or written in place with autograd's version
    counter told (optimisers, ``load_state_dict``). A write through ``.data`` is not seen: call :meth:`clear`.
    Left behind when the owner is copied or pickled.
    """

    def __init__(self, capacity: int = 4) -> None:
        self._capacity = capacity
        self.clear()

    def clear(self) -> None:
        """Drop everything."""
        note_change()
        self._parameters: tuple[Tensor, ...] = ()
        self._state: tuple[list[int], list[int]] = ([], [])
        self._entries = Remembered(self._capacity)

    def get(self, parameters: tuple[Tensor, ...], key: tuple[object, ...], make: Callable[[], Made]) -> Made:
        """``make()``, or what it returned for ``key`` since the parameters last changed.

        ``torch.compile`` breaks its graph here, since what is kept lives outside any graph.
        """
        for parameter in parameters:
            if parameter.is_inference():  # Such a tensor keeps no version counter.
                return make()
        if torch.compiler.is_compiling():
            made: Made = _outside_any_graph(self, parameters, key, make)
            return made
        return self._look_up(parameters, key, make)

    def at_hand(self, parameters: Iterable[Tensor], key: tuple[object, ...]) -> object:
        """What :meth:`get` would return without making it, outside any graph; else None."""
        versions, addresses = self._state
        for one, before, version, address in zip(parameters, self._parameters, versions, addresses, strict=False):
            if one is not before or one._version != version or one.data_ptr() != address:
                return None
        return self._entries.find(key)

    def _look_up(self, parameters: tuple[Tensor, ...], key: tuple[object, ...], make: Callable[[], Made]) -> Made:
        state = [one._version for one in parameters], list(map(_address, parameters))
        same = len(self._parameters) == len(parameters) and all(map(_is, self._parameters, parameters))
        if not same or state != self._state:
            self.clear()
            self._parameters, self._state = parameters, state
        return self._entries.get(key, make, parameters[0])

    def __deepcopy__(self, memo: dict[int, object]) -> Cache:
        return Cache(self._capacity)

    def __reduce__(self) -> tuple[type[Cache], tuple[int]]:
        return (Cache, (self._capacity,))


def _address(parameter: Tensor) -> int:
    """Where the numbers are; a subclass (a fake tensor, say) has no address."""
    return parameter.data_ptr() if type(parameter) in (nn.Parameter, Tensor) else 0


def _is(one: object, other: object) -> bool:
    return one is other


@torch._disable_dynamo  # type: ignore[attr-defined]  # not torch.compiler.disable, which loads the compiler where nobody compiles
def _outside_any_graph(
    cache: Cache, parameters: tuple[Tensor, ...], key: tuple[object, ...], make: Callable[[], Made]
) -> Made:
    return cache._look_up(parameters, key, make)
