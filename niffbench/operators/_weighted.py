"""A module for operators that need no class of their own: a function and its parameters."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn


class Weighted(nn.Module):
    """Calls ``forward(x, **parameters)``; the parameters are registered under their names.

    Copies share the function, which must therefore keep no tensors; what it wants to remember between calls
    belongs into a :class:`niffbench.niff.kept.Kept`.
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
