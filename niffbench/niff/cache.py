"""What is made from weights and kept until they change."""

from __future__ import annotations

import ctypes
import itertools
import operator
import threading
import zlib
from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor, nn

from niffbench.niff.autograd import transformed
from niffbench.niff.grid import Made, Remembered
from niffbench.niff.native import build

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
        self._begin((), ([], []))

    def _begin(self, parameters: tuple[Tensor, ...], state: tuple[list[int], list[int]]) -> Remembered:
        """Drop everything at once, as other threads may look; what is made from now on is of this state."""
        entries = Remembered(self._capacity)
        self._current = parameters, state, entries
        note_change()
        return entries

    def get(self, parameters: tuple[Tensor, ...], key: tuple[object, ...], make: Callable[[], Made]) -> Made:
        """``make()``, or what it returned for ``key`` since the parameters last changed.

        Under ``torch.func`` and forward differentiation it is made in every call.
        ``torch.compile`` breaks its graph here, since what is kept lives outside any graph.
        """
        if transformed():  # What is made then may belong to the transform, as the parameters may.
            return make()
        for parameter in parameters:
            if parameter.is_inference():  # Such a tensor keeps no version counter.
                return make()
        if torch.compiler.is_compiling():
            made: Made = _outside_any_graph(self, parameters, key, make)
            return made
        return self._look_up(parameters, key, make)

    def at_hand(self, parameters: Iterable[Tensor], key: tuple[object, ...]) -> object:
        """What :meth:`get` would return without making it, outside any graph; else None."""
        before, state, entries = self._current
        for one, other, version, address in zip(parameters, before, *state, strict=False):
            if one is not other or one._version != version or one.data_ptr() != address:
                return None
        return entries.find(key)

    def _look_up(self, parameters: tuple[Tensor, ...], key: tuple[object, ...], make: Callable[[], Made]) -> Made:
        state = [one._version for one in parameters], list(map(_address, parameters))
        before, state_before, entries = self._current
        if not _are(before, parameters) or state != state_before:
            entries = self._begin(parameters, state)
        return entries.get(key, make, parameters[0])

    def __deepcopy__(self, memo: dict[int, object]) -> Cache:
        return Cache(self._capacity)

    def __reduce__(self) -> tuple[type[Cache], tuple[int]]:
        return (Cache, (self._capacity,))


class Watch:
    """Looks whether the weights of a network on a CPU, and what is around them, are what they were.

    Beyond what :class:`Cache` sees it sees their numbers change: by a sum over all bits, which other numbers share
    by accident only (one of 2^64, of 2^32 without the C kernel). Left behind when the owner is copied or pickled.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._before: tuple[Sequence[object], Sequence[int]] = (), ()
        self._sum: tuple[Callable[[], int], int] = int, 0

    def look(self, around: Sequence[object], weights: Sequence[Tensor], changed: Callable[[], None]) -> None:
        """Call ``changed`` if an object, or a weight's version, address or number, was another at last."""
        with self._lock:  # Who comes meanwhile waits until what was made of other weights is dropped.
            if any(weight.is_inference() for weight in weights):  # Such a tensor keeps no version counter.
                self._before = (), ()
                changed()
                return
            objects = (*around, *weights)
            state = [*(weight._version for weight in weights), *map(_address, weights)]
            before, state_before = self._before
            give, was = self._sum
            if _are(objects, before) and state == state_before:
                if (now := give()) != was:
                    self._sum = give, now
                    changed()
                return
            give = _sum_of([one for one in weights if one.is_cpu and _address(one)])
            self._before, self._sum = (objects, state), (give, give())
            changed()

    def __deepcopy__(self, memo: dict[int, object]) -> Watch:
        return Watch()

    def __reduce__(self) -> tuple[type[Watch], tuple[()]]:
        return (Watch, ())


def _sum_of(tensors: Sequence[Tensor]) -> Callable[[], int]:
    """What gives a sum over all bits of tensors on a CPU, which somebody keeps where they are.

    Of what lies between the numbers of one that is not contiguous too, which changes nothing that matters.
    """
    count = len(tensors)
    places = [one.data_ptr() for one in tensors]
    lengths = [_span(one) * one.itemsize for one in tensors]
    try:
        library = build.load("float")
    except build.Unavailable:
        return lambda: _checksum(places, lengths)
    addresses, sizes = (ctypes.c_void_p * count)(*places), (ctypes.c_int64 * count)(*lengths)
    return lambda: int(library.niff_sum(count, addresses, sizes))


def _span(tensor: Tensor) -> int:
    """Numbers from the first in memory to the last."""
    return 1 + sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))


def _checksum(places: Sequence[int], lengths: Sequence[int]) -> int:
    total = 0
    for place, length in zip(places, lengths, strict=True):
        total = zlib.crc32(ctypes.string_at(place, length), total)
    return total


def _address(parameter: Tensor) -> int:
    """Where the numbers are; a subclass (a fake tensor, say) has no address."""
    return parameter.data_ptr() if type(parameter) in (nn.Parameter, Tensor) else 0


def _are(some: Sequence[object], others: Sequence[object]) -> bool:
    """Whether they are the same objects."""
    return len(some) == len(others) and all(map(operator.is_, some, others))


@torch._disable_dynamo  # type: ignore[attr-defined]  # not torch.compiler.disable, which loads the compiler where nobody compiles
def _outside_any_graph(
    cache: Cache, parameters: tuple[Tensor, ...], key: tuple[object, ...], make: Callable[[], Made]
) -> Made:
    return cache._look_up(parameters, key, make)
