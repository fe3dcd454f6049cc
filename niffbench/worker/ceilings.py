"""The machine's roofline, measured in the run: copies, a matrix product per dtype, bare FFTs of the maps too.

It takes two or three seconds.

Each ceiling is the best of a few tries: it is what the machine can do, not what it does on average.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from functools import partial
from math import inf, prod
from typing import TypeAlias

import torch
from torch import Tensor

from niffbench.device import Device
from niffbench.lengths import fft_flops
from niffbench.results import Ceilings, Map, MapRate
from niffbench.worker.failures import explain
from niffbench.worker.probe import Probe

BUDGET = 0.25
"""Seconds spent on growing one probe."""

RISE = 1.03
"""A probe that rose so many times grows once more, however long it took: up to LONGEST seconds a call."""

LONGEST = 0.15

MAPS_BUDGET = 0.5
"""Seconds spent on FFTs of the maps' own sizes, small ones first."""

SMALLEST_COPY, LARGEST_COPY = 2**14, 2**30
"""Bytes that a copy reads and writes: from what any first-level cache holds."""

CACHES = 8
"""A copy of so many times the last-level cache goes to memory and back."""

BLOCK = 2**20
"""Random numbers that are drawn, of all there are in a probe."""

SAMPLE_TIME = 5e-4
"""Seconds of a sample that coarse timers can tell."""

MATMUL_SIDES = (256, 512, 1024, 2048, 4096, 8192, 16384)
FFT_SHAPES = ((64, 64, 64), (256, 64, 64), (16, 256, 256), (128, 256, 256), (256, 256, 256))
"""Planes, height, width: from what a cache holds to what fills a GPU."""

Probing: TypeAlias = Callable[..., tuple[Callable[[], object], int]]  # a size → what to call, and its FLOPs

TRYING_TIME = 0.01
"""Seconds of samples where one is short: the shorter, the sooner somebody else is in the way of it."""

_LEAST_TRIES, _MOST_TRIES = 3, 20
_COMPLEX = {"float32": torch.complex64, "float64": torch.complex128}


def measure(device: Device, place: torch.device, dtypes: Iterable[str], maps: Iterable[Map] = ()) -> Ceilings:
    """Bytes/s of copies (read and write both counted); nominal FLOP/s by dtype of a square product and a 2-D FFT.

    ``dtypes`` may hold ``tf32``. The FFT is complex, in float32 and float64 alone (5 N log2 N), those of ``maps``
    are real (half of it). A dtype the device lacks is left out, and of maps those for which there is no time.
    """
    copies = _copies(device, place)
    wanted = sorted(dtypes)
    transformed = sorted({"float32", *wanted} & set(_COMPLEX))
    products = {dtype: rate for dtype in wanted if (rate := _matmul(device, place, dtype))}
    transforms = {dtype: rate for dtype in transformed if (rate := _fft(device, place, dtype))}
    own = list(_of_maps(device, place, maps))
    device.release()
    return Ceilings(
        copy_bandwidth=copies[max(copies)], copy_by_size=copies, matmul=products, fft=transforms, fft_by_map=own
    )


def _copies(device: Device, place: torch.device) -> dict[int, float]:
    """By bytes read and written, each size twice the one before, up to what no cache holds.

    Of random numbers: memory that is full of zeros may be compressed on its way.
    """
    largest = min(LARGEST_COPY, max(LARGEST_COPY // 4, 1 << (CACHES * device.cache - 1).bit_length()))
    source = _random((largest // 8,), place)
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
        a, b = (_random((side, side), place).to(kind) for _ in range(2))
        out = torch.empty_like(a)
        return (lambda: torch.mm(a, b, out=out)), 2 * side**3

    try:
        with device.arithmetic(tf32=dtype == "tf32"):
            return _grown(device, MATMUL_SIDES, probe)
    except NotImplementedError:
        return 0.0


def _fft(device: Device, place: torch.device, dtype: str) -> float:
    def probe(shape: tuple[int, int, int]) -> tuple[Callable[[], object], int]:
        x = _random(shape, place, _COMPLEX[dtype])
        return (lambda: torch.fft.fft2(x)), fft_flops(shape[1] * shape[2], transforms=shape[0])

    return _grown(device, FFT_SHAPES, probe)


def _of_maps(device: Device, place: torch.device, maps: Iterable[Map]) -> Iterator[MapRate]:
    """A real FFT of as many random maps of the size; the rest is left out when time is up or memory fails."""
    until = device.clock() + MAPS_BUDGET
    for kind in sorted(set(maps), key=lambda kind: kind.points):
        if device.clock() >= until:
            return
        try:
            x = _random((kind.planes, kind.height, kind.width), place, getattr(torch, kind.dtype))
            seconds = _best(device, partial(torch.fft.rfft2, x))
        except Exception as error:  # DeviceLost goes on
            explain(error)
            return
        if flops := fft_flops(kind.height * kind.width, kind.planes, real=True):
            yield MapRate(**kind._asdict(), rate=flops / seconds)


def _random(shape: tuple[int, ...], place: torch.device, dtype: torch.dtype = torch.float32) -> Tensor:
    """Random numbers, the same again after :data:`BLOCK`: to draw more takes longer than what they are for."""
    count = prod(shape)
    block = torch.randn(min(count, BLOCK), dtype=dtype, device=place)
    return block.repeat(-(-count // BLOCK))[:count].view(shape)


def _grown(device: Device, sizes: Iterable[object], probe: Probing) -> float:
    """The highest rate over ``sizes``, ascending, until it rises no more or one takes too long or fails.

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
        is_rising, rate = flops / seconds > RISE * rate, max(rate, flops / seconds)
        is_cheap = seconds * (_LEAST_TRIES + 2) * 8 <= BUDGET
        if not is_cheap and (not is_rising or 8 * seconds > LONGEST):
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
