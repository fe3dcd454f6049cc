"""What cases of one equivalence class share at one shape: weights, and a float64 reference made from them."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import TypeAlias

from torch import Tensor

from niffbench.case import Case, Problem

Made: TypeAlias = tuple[Tensor, Mapping[str, Tensor]]
"""A reference, and the gradients of what went into it."""

CACHED_BYTES = 256 * 2**20
"""Weights and references kept for later problems of the same shape, which differ in the mode only."""


@dataclass
class Shared:
    """Weights in float32 on the CPU; ``reference`` and ``gradients`` once somebody asked for them."""

    weights: Mapping[str, Tensor]
    reference: Tensor | None = None
    gradients: Mapping[str, Tensor] | None = None

    @property
    def bytes(self) -> int:
        """Bytes of all."""
        references = [] if self.reference is None else [self.reference]
        tensors = [*self.weights.values(), *references, *(self.gradients or {}).values()]
        return sum(tensor.nbytes for tensor in tensors)


class Store:
    """Shared things by class and shape; :meth:`trim` drops the oldest."""

    def __init__(self) -> None:
        self._entries: OrderedDict[tuple[str, Problem], Shared] = OrderedDict()

    def find(self, case: Case, equivalence: str) -> Shared | None:
        """What ``case``, of class ``equivalence``, shares with those before it."""
        return self._entries.get(_key(case, equivalence))

    def add(self, case: Case, equivalence: str, weights: Mapping[str, Tensor]) -> None:
        """Share copies of ``weights`` with the cases to come."""
        copies = {name: value.detach().clone() for name, value in weights.items()}
        self._entries[_key(case, equivalence)] = Shared(copies)

    def reference(self, case: Case, equivalence: str, make: Callable[[Mapping[str, Tensor]], Tensor]) -> Tensor:
        """The reference; ``make`` computes it from the weights when it is not there yet."""
        shared = self._entries[_key(case, equivalence)]
        if shared.reference is None:
            shared.reference = make(shared.weights)
        return shared.reference

    def gradients(self, case: Case, equivalence: str, make: Callable[[Mapping[str, Tensor]], Made]) -> Made:
        """The reference with its gradients, by name; what ``make`` computes when they are not there yet."""
        shared = self._entries[_key(case, equivalence)]
        if shared.reference is None or shared.gradients is None:
            shared.reference, shared.gradients = make(shared.weights)
        return shared.reference, shared.gradients

    def trim(self) -> None:
        """Keep the latest, :data:`CACHED_BYTES` of them."""
        while sum(shared.bytes for shared in self._entries.values()) > CACHED_BYTES:
            self._entries.popitem(last=False)


def _key(case: Case, equivalence: str) -> tuple[str, Problem]:
    return equivalence, replace(case.problem, mode="inference", memory_format="contiguous", tf32=False)
