"""The machine's roofline, measured in the run: copies, a matrix product per dtype, a bare FFT.

It takes two or three seconds.

Each ceiling is the best of a few tries: it is what the machine can do, not what it does on average.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from math import inf
from typing import TypeAlias

import torch
from torch import Tensor

from niffbench.device import Device
from niffbench.lengths import fft_flops
from niffbench.results import Ceilings
from niffbench.worker.failures import explain
from niffbench.worker.probe import Probe

BUDGET = 0.25
"""Seconds spent on growing one probe."""

SMALLEST_COPY, LARGEST_COPY = 2**16, 2**30
"""Bytes that a copy reads and writes."""

CACHES = 8
"""A copy of so many times the last-level cache goes to memory and back."""

SAMPLE_TIME = 5e-4
"""Seconds of a sample that coarse timers can tell."""

MATMUL_SIDES = (256, 512, 1024, 2048, 4096, 8192, 16384)
FFT_SHAPES = ((64, 64, 64), (256, 64, 64), (16, 256, 256), (256, 256, 256))
"""Planes, height, width: from what a cache holds to what fills a GPU."""

Probing: TypeAlias = Callable[..., tuple[Callable[[], object], int]]  # a size → what to call, and its FLOPs

TRYING_TIME = 0.01
"""Seconds of samples where one is short: the shorter, the sooner somebody else is in the way of it."""

_LEAST_TRIES, _MOST_TRIES = 3, 20
_COMPLEX = {"float32": torch.complex64, "float64": torch.complex128}


def measure(device: Device, place: torch.device, dtypes: Iterable[str]) -> Ceilings:
    """Bytes/s of copies (read and write both counted); nominal FLOP/s by dtype of a square product and a 2-D FFT.

    ``dtypes`` may hold ``tf32``. The FFT is complex, in float32 and float64 alone (5 N log2 N). A dtype the device
    lacks is left out.
    """
    copies = _copies(device, place)
    wanted = sorted(dtypes)
    transformed = sorted({"float32", *wanted} & set(_COMPLEX))
    products = {dtype: rate for dtype in wanted if (rate := _matmul(device, place, dtype))}
    transforms = {dtype: rate for dtype in transformed if (rate := _fft(device, place, dtype))}
    device.release()
    return Ceilings(copy_bandwidth=copies[max(copies)], copy_by_size=copies, matmul=products, fft=transforms)


def _copies(device: Device, place: torch.device) -> dict[int, float]:
    """By bytes read and written, each size twice the one before, up to what no cache holds.

    Of random numbers: memory that is full of zeros may be compressed on its way.
    """
    largest = min(LARGEST_COPY, max(LARGEST_COPY // 4, 1 << (CACHES * device.cache - 1).bit_length()))
    source = torch.rand(largest // 8, device=place)
    target = torch.empty_like(source)
    rates: dict[int, float] = {}
    shortest, size = inf, largest
    while size >= SMALLEST_COPY:
        part = slice(size // 8)
        shortest = min(shortest, _best(device, partial(target[part].copy_, source[part])))  # less is never longer
        rates[size] = size / shortest
        size //= 2
    return dict(sorted(rates.items()))


def _matmul(device: Device, place: torch.device, dtype: str) -> float:
    kind = torch.float32 if dtype == "tf32" else getattr(torch, dtype)

    def probe(side: int) -> tuple[Callable[[], object], int]:
        a = torch.randn(side, side, device=place).to(kind)
        b = torch.randn(side, side, device=place).to(kind)
        out = torch.empty_like(a)
        return (lambda: torch.mm(a, b, out=out)), 2 * side**3

    try:
        with device.arithmetic(tf32=dtype == "tf32"):
            return _grown(device, MATMUL_SIDES, probe)
    except NotImplementedError:
        return 0.0


def _fft(device: Device, place: torch.device, dtype: str) -> float:
    def probe(shape: tuple[int, int, int]) -> tuple[Callable[[], object], int]:
        x: Tensor = torch.randn(shape, dtype=_COMPLEX[dtype], device=place)
        return (lambda: torch.fft.fft2(x)), fft_flops(shape[1] * shape[2], transforms=shape[0])

    return _grown(device, FFT_SHAPES, probe)


def _grown(device: Device, sizes: Iterable[object], probe: Probing) -> float:
    """The highest rate over ``sizes``, ascending, until one takes longer than the budget allows or fails.

    Zero where the smallest fails: the device lacks the dtype, or all memory.
    """
    rate = 0.0
    for size in sizes:
        try:
            call, flops = probe(size)
            seconds = _best(device, call)
        except Exception as error:  # whatever a device lacks; DeviceLost goes on
            explain(error)
            break
        rate = max(rate, flops / seconds)
        if seconds * (_LEAST_TRIES + 2) * 8 > BUDGET:
            break
    return rate


def _best(device: Device, call: Callable[[], object]) -> float:
    """Seconds of a call in the fastest of a few samples, the first calls not counted."""
    runner = Probe(call)
    device.timed(runner)
    seconds, _ = device.timed(runner)
    calls = device.calls_lasting(runner, SAMPLE_TIME, seconds)
    tries = min(_MOST_TRIES, max(_LEAST_TRIES, int(TRYING_TIME / (seconds * calls))))
    return min(device.samples(runner, "steady", calls, tries).samples)
