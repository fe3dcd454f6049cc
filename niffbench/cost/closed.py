"""Closed-form cost: the units, the primitives every operator's formula is made of, and their sums.

Unit: real FLOPs, nominal. What counts: transforms (:func:`fft_flops`), convolutions and matrix products (a
multiply-add is 2, a complex one 8), products of two tensors element by element (1, complex × real 2, complex 6)
and the additions of a sum that ends a contraction (1 for each element that enters it, complex 2). What counts
nothing, as in every FLOP counter: activations, normalisations, elementwise sums, scaling by a constant, copies,
an optimiser's update of the weights.

Bytes: the form's own traffic. Each step reads what it is given once and writes what it makes once, whatever
passes its library makes inside, with three exceptions that are passes of their own on a GPU: a roll makes one
pass for each rolled dimension, a scaled transform makes one more over its result (torch runs cuFFT unscaled and
multiplies afterwards), and a backward product first copies each factor that it conjugates.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import log2
from typing import Literal

from niffbench.case import Mode, Problem

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


@dataclass(frozen=True, slots=True)
class Work:
    """FLOPs and bytes of a part of a step; parts add up, and multiply by a count."""

    flops: int = 0
    bytes: int = 0

    def __add__(self, other: Work) -> Work:
        return Work(self.flops + other.flops, self.bytes + other.bytes)

    def __mul__(self, times: int) -> Work:
        return Work(self.flops * times, self.bytes * times)

    __rmul__ = __mul__


NOTHING = Work()


def steps(mode: Mode, forward: Mapping[str, Work], backward: Mapping[str, Work]) -> tuple[Step, ...]:
    """Name the parts: forward always, backward in ``training`` only; parts without any work are left out."""
    directions: list[tuple[Direction, Mapping[str, Work]]] = [("forward", forward)]
    if mode == "training":
        directions.append(("backward", backward))
    return tuple(
        Step(name, direction, work.flops, work.bytes)
        for direction, parts in directions
        for name, work in parts.items()
        if work != NOTHING
    )


def floor_bytes(problem: Problem, parameters: int) -> int:
    """Bytes that any implementation moves: each input and weight read once, each output written once.

    In training the gradient of the output is read too, and the gradients of input and weights are written.
    """
    pixels = problem.batch * problem.height * problem.width
    once = pixels * (problem.channels + problem.channels_out) + parameters
    return once * problem.element_bytes * (2 if problem.mode == "training" else 1)


def fft_flops(points: int, transforms: int = 1, *, real: bool = False) -> int:
    """Nominal FLOPs of ``transforms`` FFTs of ``points`` points: 5 N log2 N, half of it for real data.

    benchFFT's convention (M. Frigo and S. G. Johnson, "The Design and Implementation of FFTW3", Proc. IEEE
    93(2), 2005). ``points`` is the product of the transformed lengths. Nominal: lengths with a large prime
    factor really cost several times more.
    """
    return round((2.5 if real else 5.0) * points * log2(points)) * transforms if points > 1 else 0


def bilinear(flops: int, left: int, right: int, out: int) -> tuple[Work, Work]:
    """A convolution or matrix product, forward and backward; ``left``, ``right`` and ``out`` in bytes.

    Backward is one product of the same size for the gradient of each factor.
    """
    forward = Work(flops, left + right + out)
    return forward, 2 * forward


def in_bounds_share(height: int, width: int, kernel: int) -> float:
    """Share of a zero-padded "same" convolution's multiply-adds that meet the image rather than the padding.

    ``kernel`` is odd. The nominal 2k² a pixel counts them all; at k = 31 only 27 %, 58 % and 77 % meet a square
    image of side 16, 32 and 64.
    """
    return _axis_share(height, kernel) * _axis_share(width, kernel)


def _axis_share(side: int, kernel: int) -> float:
    """One axis: pairs of pixel and tap at most ``kernel // 2`` and less than ``side`` apart, over all pairs."""
    reach = min(kernel // 2, side - 1)
    inside = side * (2 * reach + 1) - reach * (reach + 1)
    return inside / (side * kernel)
