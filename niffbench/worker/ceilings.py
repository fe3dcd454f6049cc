"""The machine's roofline, measured in the run: a copy, a matrix product per dtype, a bare FFT. A second or two.

Each ceiling is the best of a few tries: it is what the machine can do, not what it does on average.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TypeAlias

import torch
from torch import Tensor

from niffbench.cost.closed import fft_flops
from niffbench.device import Device
from niffbench.results import Ceilings
from niffbench.worker.failures import explain
from niffbench.worker.probe import Probe

BUDGET = 0.25
"""Seconds spent on growing one probe."""

COPY_BYTES = {"cpu": 128 * 2**20, "cuda": 512 * 2**20}
MATMUL_SIDES = (256, 512, 1024, 2048, 4096, 8192)
FFT_SHAPES = ((64, 64, 64), (256, 64, 64), (16, 256, 256), (256, 256, 256))
"""Planes, height, width: from what a cache holds to what fills a GPU."""

Probing: TypeAlias = Callable[..., tuple[Callable[[], object], int]]  # a size → what to call, and its FLOPs

_TRIES = 3
_COMPLEX = {"float32": torch.complex64, "float64": torch.complex128}


def measure(device: Device, place: torch.device, dtypes: Iterable[str]) -> Ceilings:
    """Bytes/s of a copy (read and write both counted); nominal FLOP/s by dtype of a square product and a 2-D FFT.

    The FFT is complex, in float32 and float64 alone (5 N log2 N). A dtype the device lacks is left out.
    """
    bandwidth = _copy(device, place)
    wanted = sorted(dtypes)
    transformed = sorted({"float32", *wanted} & set(_COMPLEX))
    products = {dtype: rate for dtype in wanted if (rate := _matmul(device, place, dtype))}
    transforms = {dtype: rate for dtype in transformed if (rate := _fft(device, place, dtype))}
    device.release()
    return Ceilings(copy_bandwidth=bandwidth, matmul=products, fft=transforms)


def _copy(device: Device, place: torch.device) -> float:
    source = torch.zeros(COPY_BYTES[place.type] // 4, device=place)
    target = torch.empty_like(source)
    return 2 * source.nbytes / _best(device, lambda: target.copy_(source))


def _matmul(device: Device, place: torch.device, dtype: str) -> float:
    def probe(side: int) -> tuple[Callable[[], object], int]:
        a = torch.randn(side, side, device=place).to(getattr(torch, dtype))
        b = torch.randn(side, side, device=place).to(getattr(torch, dtype))
        out = torch.empty_like(a)
        return (lambda: torch.mm(a, b, out=out)), 2 * side**3

    return _grown(device, MATMUL_SIDES, probe)


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
        if seconds * (_TRIES + 1) * 8 > BUDGET:
            break
    return rate


def _best(device: Device, call: Callable[[], object]) -> float:
    """Seconds of the fastest of a few calls, the first not counted."""
    runner = Probe(call)
    device.timed(runner)
    return min(device.samples(runner, "steady", 1, _TRIES).samples)
