"""Closed-form cost: the units, the primitives every operator's formula is made of, and their sums.

Unit: real FLOPs, nominal; one multiply-add is 2, a complex multiplication 6, a complex addition 2.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import log2
from typing import Literal

Direction = Literal["forward", "backward"]


@dataclass(frozen=True, slots=True)
class Step:
    """One step of a form: real FLOPs, and the bytes it reads and writes itself (its own traffic)."""

    name: str
    direction: Direction
    flops: int
    bytes: int


@dataclass(frozen=True, slots=True)
class Cost:
    """All of an operator's cost for one case, in the case's mode (backward steps only in ``training``).

    ``bytes_floor``: each input and weight read once, each output written once. ``parameters``: learnable scalars.
    ``transform_lengths``: the FFT lengths per axis in use, so that a large prime factor can be stated beside them.
    """

    steps: tuple[Step, ...]
    bytes_floor: int
    parameters: int
    transform_lengths: tuple[int, ...] = ()

    def flops(self, direction: Direction | None = None) -> int:
        """Real FLOPs, of one direction or of both."""
        return sum(s.flops for s in self.steps if direction in (None, s.direction))

    @property
    def bytes_own(self) -> int:
        """The form's own traffic in bytes, over all its steps."""
        return sum(s.bytes for s in self.steps)


def fft_flops(points: int, transforms: int = 1, *, real: bool = False) -> int:
    """Nominal FLOPs of ``transforms`` FFTs of ``points`` points: 5 N log2 N, half of it for real data.

    benchFFT's convention (M. Frigo and S. G. Johnson, "FFTW", Proc. IEEE 93(2), 2005, sec. VI). ``points`` is the
    product of the transformed lengths. Nominal: lengths with a large prime factor really cost several times more.
    """
    return round((2.5 if real else 5.0) * points * log2(points)) * transforms if points > 1 else 0
