"""Memory that a case will need, from fake tensors: what the dispatcher sees, with nothing allocated.

Buffers inside an operation (an inverse FFT's clone, a convolution's reordered weights) are not seen: the
difference to a measured peak is the kernels' workspace.
"""

from __future__ import annotations

import weakref
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from niffbench.case import Case
from niffbench.cost.call import Call, Costed, prepare
from niffbench.cost.fakes import Fakes
from niffbench.cost.traffic import Dispatched, Traffic
from niffbench.niff.steps import recording


@dataclass(frozen=True, slots=True)
class Prediction:
    """Bytes of a warm call.

    ``peak`` is above resident, ``output`` the result. In training the gradients are made by the call, so they are
    part of the peak. ``traffic`` is what each step reads and writes.

    Attributes:
        resident: input and weights, and what the form keeps between calls.
    """

    resident: int
    peak: int
    output: int
    traffic: Traffic


@lru_cache(maxsize=4096)
def predict(operator: Costed, case: Case) -> Prediction:
    """The memory of one warm call of ``case``, on whatever device."""
    with Fakes():
        return follow(prepare(operator, case, warm=False))


def follow(call: Call) -> Prediction:
    """Run a call, and follow its storages; the tensors may be fake.

    A second time, warm, where the first left something behind that it did not say is made once.
    """
    given = _given(call)
    watch = _Watch(given)
    output = _output(call, watch)
    if watch.alive.bytes:
        given.take(watch.kept, watch.alive)
        watch = _Watch(given)
        _output(call, watch)
    return Prediction(given.bytes + watch.kept.bytes, watch.peak, output, watch.traffic)


def _output(call: Call, watch: _Watch) -> int:
    """Run a call, watched, and drop what it gives; returns the bytes of that."""
    with recording(), watch:
        out = call()
    call.reset()
    output = _Storages()
    output.add(out)
    return output.bytes


def saved(call: Call) -> int | None:
    """Bytes that one forward pass leaves for backward, beside what is given to it; None in inference."""
    if call.mode == "inference":
        return None
    kept = _Storages(_given(call))

    def pack(tensor: Tensor) -> Tensor:
        kept.add(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        out = call.forward()
    total = kept.bytes
    del out  # Until here it holds the graph, and the graph what it saved.
    return total


def _given(call: Call) -> _Storages:
    """What is there before a call: input, weights and buffers."""
    given = _Storages()
    given.add_all((call.x, *call.module.parameters(), *call.module.buffers()))
    return given


class _Storages:
    """Distinct storages that are none of ``others``, and their bytes; one that dies is forgotten."""

    def __init__(self, *others: _Storages) -> None:
        self._others = others
        self._sizes: dict[int, int] = {}
        self._watchers: dict[int, weakref.ref[torch.UntypedStorage]] = {}
        self.bytes = 0

    def add_all(self, values: object) -> None:
        """Add every tensor in a nest of them."""
        for leaf in (values,) if isinstance(values, Tensor) else tree_leaves(values):
            if isinstance(leaf, Tensor):
                self.add(leaf)

    def add(self, tensor: Tensor) -> None:
        """Count the tensor's storage unless it is known."""
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key not in self._sizes and not any(key in other for other in self._others):
            self._add(key, storage)

    def _add(self, key: int, storage: torch.UntypedStorage) -> None:
        self._sizes[key] = storage.nbytes()
        self._watchers[key] = weakref.ref(storage, lambda _: self._forget(key))
        self.bytes += self._sizes[key]

    def take(self, *others: _Storages) -> None:
        """Take over what these have."""
        for other in others:
            for key, watcher in list(other._watchers.items()):
                if (storage := watcher()) is not None and key not in self._sizes:
                    self._add(key, storage)

    def _forget(self, key: int) -> None:
        self.bytes -= self._sizes.pop(key)
        del self._watchers[key]

    def __contains__(self, key: int) -> bool:
        return key in self._sizes


class _Watch(Dispatched):  # type: ignore[no-untyped-call]
    """Follows the storages that operations make, beside what is ``given``.

    Attributes:
        kept: those made to be kept by the form, and in training the gradient of the output.
        alive: the others.
        peak: the largest sum of these at any time.
    """

    def __init__(self, given: _Storages) -> None:
        super().__init__()
        self.kept = _Storages(given)
        self.alive = _Storages(given, self.kept)
        self.peak = 0

    def made(self, out: Any) -> None:
        self.alive.add_all(out)
        self.peak = max(self.peak, self.alive.bytes)

    def made_once(self, out: Any) -> None:
        self.kept.add_all(out)
