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
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._pytree import tree_leaves

from niffbench.case import Case
from niffbench.cost.call import Call, Costed, prepare
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
    with FakeTensorMode():
        return follow(prepare(operator, case, warm=False))


def follow(call: Call) -> Prediction:
    """Run a call twice, the second time warm, and follow its storages; the tensors may be fake."""
    given = _given(call)
    with _Watch(given) as cold:
        call()
    call.reset()
    kept = cold.alive  # What the form keeps, and in training the gradient of the output.
    with recording(), _Watch(given, kept) as warm:
        out = call()
    call.reset()
    output = _Storages()
    output.add(out)
    return Prediction(given.bytes + kept.bytes, warm.peak, output.bytes, warm.traffic)


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
        if key in self._sizes or any(key in other for other in self._others):
            return
        self._sizes[key] = storage.nbytes()
        self._watchers[key] = weakref.ref(storage, lambda _: self._forget(key))
        self.bytes += self._sizes[key]

    def _forget(self, key: int) -> None:
        self.bytes -= self._sizes.pop(key)
        del self._watchers[key]

    def __contains__(self, key: int) -> bool:
        return key in self._sizes


class _Watch(Dispatched):  # type: ignore[no-untyped-call]
    """Follows the storages that operations make, beside ``others``; ``peak`` is the largest sum of living ones."""

    def __init__(self, *others: _Storages) -> None:
        super().__init__()
        self.alive = _Storages(*others)
        self.peak = 0

    def made(self, out: Any) -> None:
        self.alive.add_all(out)
        self.peak = max(self.peak, self.alive.bytes)
