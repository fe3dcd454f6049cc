"""Roofline arithmetic: what a machine with given ceilings could do at best (S. Williams, A. Waterman and
D. Patterson, "Roofline", Communications of the ACM 52(4), 2009).

FLOPs are real FLOPs, rates FLOP/s and bytes/s, times seconds.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import pairwise
from math import inf
from typing import Protocol

TRANSFORM_STEPS = frozenset({"forward fft", "inverse fft"})
"""The steps that are bounded by the rate of a bare FFT and not by that of a matrix product."""


class Ceilings(Protocol):
    """The machine's measured rates; :class:`niffbench.results.Ceilings` satisfies it."""

    @property
    def copy_bandwidth(self) -> float: ...
    @property
    def copy_by_size(self) -> dict[int, float]: ...
    @property
    def matmul(self) -> dict[str, float]: ...
    @property
    def fft(self) -> dict[str, float]: ...


class StepLike(Protocol):
    """A step with its cost; a closed form's and a record's both satisfy it."""

    @property
    def name(self) -> str: ...
    @property
    def flops(self) -> int: ...
    @property
    def bytes(self) -> int: ...


def bandwidth(ceilings: Ceilings, traffic: float) -> float:
    """Bytes/s of a copy that moves ``traffic`` bytes again and again, and so finds them in a cache if they fit.

    Between two sizes that were measured the time of the copy is interpolated; beyond them the nearest rate holds.
    """
    times = sorted((size, size / rate) for size, rate in ceilings.copy_by_size.items())
    if not times or traffic >= times[-1][0]:
        return ceilings.copy_bandwidth
    if traffic <= times[0][0]:
        return times[0][0] / times[0][1]
    (below, sooner), (above, later) = next(pair for pair in pairwise(times) if traffic <= pair[1][0])
    return traffic / (sooner + (later - sooner) * (traffic - below) / (above - below))


def floor_time(flops: float, traffic: float, peak: float, bandwidth: float) -> float:
    """The least time for that many FLOPs and that much traffic, both at full rate and wholly overlapped."""
    return max(flops / peak, traffic / bandwidth)


def steps_time(steps: Iterable[StepLike], ceilings: Ceilings, dtype: str, own_fft: float | None = None) -> float:
    """The least time of a form that makes its steps one after the other, each at its own roof.

    What a step moves is in a cache if a copy of as much is, see :func:`bandwidth`. FFTs are bounded by the rate of
    a bare FFT, ``own_fft`` where one of their size was measured. A dtype without its own ceiling takes that of the
    nearest wider one (half-precision FFTs are computed in float32); where there is none, traffic alone bounds the
    step.
    """
    products = _roof(ceilings.matmul, dtype)
    transforms = own_fft or _roof(ceilings.fft or ceilings.matmul, dtype)
    total = 0.0
    for step in steps:
        peak = transforms if step.name in TRANSFORM_STEPS else products
        total += floor_time(step.flops, step.bytes, peak, bandwidth(ceilings, step.bytes))
    return total


def _roof(rates: dict[str, float], dtype: str) -> float:
    try:
        return ceiling(rates, dtype)
    except KeyError:
        return inf


_NEAREST = {
    "bfloat16": ("bfloat16", "tf32", "float32", "float64"),
    "float16": ("float16", "tf32", "float32", "float64"),
    "tf32": ("tf32", "float32", "float64"),
    "float32": ("float32", "float64"),
    "float64": ("float64",),
}


def ceiling(rates: dict[str, float], dtype: str) -> float:
    """The rate of ``dtype`` (or ``tf32``), or that of the nearest wider one there is.

    Raises:
        KeyError: when ``rates`` has no dtype as wide.
    """
    for candidate in _NEAREST[dtype]:
        if candidate in rates:
            return rates[candidate]
    raise KeyError(dtype)
