"""What this project assumes of CUDA, checked on the card at hand: each claim is confirmed or corrected.

The same code runs on a CPU as a rehearsal; its answers are then said to be unchecked, whatever they are.
"""

from __future__ import annotations

import json
import math
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from niffbench.device import Device, open_device
from niffbench.lengths import fft_flops
from niffbench.niff import NiffDepthwise
from niffbench.results import Ceilings
from niffbench.verdict.archive import save
from niffbench.worker import ceilings
from niffbench.worker.probe import Probe

Verdict = Literal["confirmed", "corrected", "not checked"]
MIB = 2**20


@dataclass(frozen=True)
class Finding:
    """One claim and what the card says to it."""

    claim: str
    verdict: Verdict
    evidence: str


@dataclass(frozen=True)
class Card:
    """The device as a device, as a place of tensors, and its measured ceilings."""

    device: Device
    place: torch.device
    ceilings: Ceilings

    @property
    def real(self) -> bool:
        """Whether this is a GPU, or a CPU on which the checks are rehearsed."""
        return not self.device.capabilities.host

    def many(self, number: int) -> int:
        """``number`` on a GPU, one on a CPU: a rehearsal is to be short."""
        return number if self.real else 1

    def seconds(self, call: Callable[[], object]) -> float:
        """Median time of a warm call on the device's own clock."""
        probe = Probe(call)
        self.device.timed(probe, 3)
        return statistics.median(self.device.samples(probe, "steady", 1, self.many(15)).samples)

    def peak(self, call: Callable[[], object]) -> int:
        """Bytes a warm call allocates at its worst moment."""
        return self.device.usage(Probe(call)).peak

    def randn(self, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.randn(shape, device=self.place).to(dtype)


def check_all(card: Card) -> Iterator[Finding]:
    """Every check; one that fails in itself is a finding that says so."""
    for claim, check in CHECKS.items():
        try:
            holds, evidence = check(card)
        except Exception as error:
            yield Finding(claim, "not checked", f"the check failed: {type(error).__name__}: {str(error)[:200]}")
            continue
        verdict: Verdict = "not checked" if not card.real else "confirmed" if holds else "corrected"
        yield Finding(claim, verdict, evidence if card.real else f"rehearsed on a CPU: {evidence}")


Checked = tuple[bool, str]
CHECKS: dict[str, Callable[[Card], Checked]] = {}


def _check(claim: str) -> Callable[[Callable[[Card], Checked]], Callable[[Card], Checked]]:
    def register(check: Callable[[Card], Checked]) -> Callable[[Card], Checked]:
        CHECKS[claim] = check
        return check

    return register


@_check("On the roofline rfft becomes cheaper than depthwise from k of about 13 to 15 on")
def _roofline_rfft(card: Card) -> Checked:
    k = roofline_crossover(32, card.ceilings)
    return 12 <= k <= 16, f"k = {k:.1f} from the measured copy bandwidth and float32 matrix product"


@_check("On the roofline the published form becomes cheaper than depthwise from k of about 38 on")
def _roofline_published(card: Card) -> Checked:
    k = roofline_crossover(204, card.ceilings)
    return 34 <= k <= 42, f"k = {k:.1f} from the measured copy bandwidth and float32 matrix product"


def roofline_crossover(bytes_per_element: float, ceilings: Ceilings) -> float:
    """The k at which 2k² FLOPs per element take as long as that many bytes."""
    return math.sqrt(bytes_per_element / ceilings.copy_bandwidth * ceilings.matmul["float32"] / 2)


@_check("cuFFT's workspace comes from torch's caching allocator, and so is counted")
def _workspace(card: Card) -> Checked:
    """Some sides need one (on an H200, 127 does not); what none of them takes from the pool is not seen."""
    beyond, outside = {}, 0
    for side in (127, 211, 509, 1021):
        x = card.randn(card.many(64), side, side).to(torch.complex64)
        usage = card.device.usage(Probe(partial(torch.fft.fft2, x)))
        beyond[side] = (usage.peak - x.nbytes) / x.nbytes
        outside = max(outside, (usage.device_delta or 0) - (usage.reserved or 0))
    peaks = ", ".join(f"{extra:.2f}× at {side}²" for side, extra in beyond.items())
    return (
        max(beyond.values()) > 0.1 and outside < 8 * MIB,
        f"above its output a transform peaks by, of that, {peaks}; the device lost at most "
        f"{outside / MIB:.1f} MiB beyond the allocator's pool",
    )


@_check("cuFFT in half precision takes powers of two only")
def _half(card: Card) -> Checked:
    sides = (32, 56, 64, 127, 128)
    taken = [
        side for side in sides if _works(partial(torch.fft.rfft2, card.randn(4, side, side, dtype=torch.float16)))
    ]
    return taken == [32, 64, 128], f"of sides {sides} float16 takes {taken}"


def _works(call: Callable[[], object]) -> bool:
    try:
        call()
    except RuntimeError:
        return False
    return True


@_check("c2r clones its input, always")
def _clone(card: Card) -> Checked:
    beyond = {}
    for side in (56, 64, 127):
        spectrum = torch.fft.rfft2(card.randn(card.many(16), card.many(64), side, side))
        output = 4 * spectrum.shape[0] * spectrum.shape[1] * side * side
        peak = card.peak(partial(torch.fft.irfft2, spectrum, s=(side, side)))
        beyond[side] = (peak - output) / spectrum.nbytes
    peaks = ", ".join(f"{extra:.2f}× its input at {side}²" for side, extra in beyond.items())
    return min(beyond.values()) > 0.9, f"beyond the output it takes {peaks}"


@_check("The cuFFT plan cache holds 4096 plans, keyed by batch, strides and dtype")
def _plans(card: Card) -> Checked:
    if not card.real:
        torch.fft.fft2(card.randn(3, 60, 60))
        return False, "no plan cache"
    cache = torch.backends.cuda.cufft_plan_cache[card.place.index or 0]
    cache.clear()
    sizes = []
    for x in (
        card.randn(3, 60, 60),
        card.randn(3, 60, 60),
        card.randn(4, 60, 60),
        card.randn(3, 60, 60, dtype=torch.float64),
        card.randn(60, 60, 3).permute(2, 0, 1),
    ):
        torch.fft.rfft2(x)
        sizes.append(cache.size)
    first, again, *others = sizes
    new = again == first and others == sorted(set(others)) and others[0] > again
    return cache.max_size == 4096 and new, f"it holds {cache.max_size}; after same, batch, dtype, strides: {sizes}"


@_check("With cudnn.benchmark the first call allocates the largest candidate workspace")
def _benchmark(card: Card) -> Checked:
    channels = card.many(128)
    x, weight = card.randn(card.many(8), channels, 56, 56), card.randn(channels, channels, 3, 3)

    def call() -> Tensor:
        return F.conv2d(x, weight, padding=1)

    peaks = []
    before = torch.backends.cudnn.benchmark
    torch.backends.cudnn.benchmark = True
    try:
        for _ in range(2):
            card.device.release()
            if card.real:
                base = torch.cuda.memory_allocated()
                torch.cuda.reset_peak_memory_stats()
                call()
                torch.cuda.synchronize()
                peaks.append((torch.cuda.max_memory_allocated() - base) / MIB)
            else:
                peaks.append(card.peak(call) / MIB)
    finally:
        torch.backends.cudnn.benchmark = before
    return peaks[0] > peaks[1], f"first call {peaks[0]:.1f} MiB, second {peaks[1]:.1f} MiB"


@_check("Depthwise: NCHW float32 and bfloat16 run torch's native kernel, channels_last runs cuDNN")
def _native(card: Card) -> Checked:
    native: dict[str, bool] = {}
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        for layout in (torch.contiguous_format, torch.channels_last):
            name = f"{str(dtype).removeprefix('torch.')} {'NHWC' if layout is torch.channels_last else 'NCHW'}"
            native[name] = _is_native(card, dtype, layout, 7)
    expected = {name: "NCHW" in name for name in native}
    return native == expected, "native: " + (", ".join(name for name, is_ in native.items() if is_) or "none")


@_check("Depthwise float16 NCHW runs torch's native kernel from k = 7 on only")
def _native_half(card: Card) -> Checked:
    native = {k: _is_native(card, torch.float16, torch.contiguous_format, k) for k in (3, 5, 7, 9)}
    return native == {
        3: False,
        5: False,
        7: True,
        9: True,
    }, f"native at k = {[k for k, is_ in native.items() if is_]}"


def _is_native(card: Card, dtype: torch.dtype, layout: torch.memory_format, k: int) -> bool:
    channels = card.many(64)
    x = card.randn(card.many(8), channels, 56, 56, dtype=dtype).to(memory_format=layout)
    weight = card.randn(channels, 1, k, k, dtype=dtype).to(memory_format=layout)
    names = _names(card, lambda: F.conv2d(x, weight, padding=k // 2, groups=channels))
    return any("conv_depthwise2d" in name for name in names)


def _names(card: Card, call: Callable[[], object]) -> list[str]:
    """Kernels and operators behind a call."""
    call()
    kinds = [torch.profiler.ProfilerActivity.CPU]
    kinds += [torch.profiler.ProfilerActivity.CUDA] if card.real else []
    with torch.profiler.profile(activities=kinds) as profile:
        call()
        if card.real:
            torch.cuda.synchronize()
    return [event.key for event in profile.key_averages()]


@_check("From a large prime side on an FFT costs several times nominal (127: about 5.3 times)")
def _prime(card: Card) -> Checked:
    rates = {}
    for side in (127, 128):
        x = card.randn(card.many(256), side, side).to(torch.complex64)
        rates[side] = card.seconds(partial(torch.fft.fft2, x)) / fft_flops(side * side)
    factor = rates[127] / rates[128]
    return 3 <= factor <= 8, f"127² takes {factor:.1f} times as long a nominal FLOP as 128²"


@_check("The backward pass of r2c in torch is a complex FFT")
def _backward(card: Card) -> Checked:
    x = card.randn(4, 8, 56, 56).requires_grad_()

    def call() -> None:
        torch.fft.rfft2(x).abs().sum().backward()

    names = _names(card, call)
    return "aten::_fft_c2c" in names, "it calls " + ", ".join(sorted(n for n in names if "_fft_" in n))


@_check("The complex storage behind .real stays alive")
def _storage(card: Card) -> Checked:
    image = torch.real(torch.fft.ifft2(torch.fft.fft2(card.randn(4, 56, 56))))
    ratio = image.untyped_storage().nbytes() / (image.numel() * image.element_size())
    return ratio == 2, f"its storage is {ratio:g} times its own bytes"


@_check("irfft2 ignores imaginary parts at zero and Nyquist, as on a CPU")
def _imaginary(card: Card) -> Checked:
    spectrum = torch.fft.rfft2(torch.randn(4, 56, 56))
    spectrum[:, 0, 0] += 5j
    spectrum[:, 28, 28] += 5j
    spectrum[:, 3, 0] += 5j
    here, there = (torch.fft.irfft2(spectrum.to(place), s=(56, 56)).cpu() for place in (card.place, "cpu"))
    difference = float((here - there).norm() / there.norm())
    return difference < 1e-5, f"relative difference to the CPU's library {difference:.1e}"


@_check("Events around an op of many small kernels hold launch gaps that a graph does not")
def _gaps(card: Card) -> Checked:
    layer = NiffDepthwise(card.many(64), form="published").to(card.place)
    x = card.randn(1, card.many(64), 14, 14)
    probe = Probe(lambda: layer(x))
    wall, _ = card.device.timed(probe, 20)
    if not card.real:
        return False, f"{wall / 20 * 1e6:.0f} µs a call"
    naive = []
    for _ in range(20):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
        torch.cuda.synchronize()
        with probe.scope():
            start.record()
            probe.call()
            end.record()
        end.synchronize()
        naive.append(start.elapsed_time(end) * 1e-3)
    filled = statistics.median(card.device.samples(probe, "steady", 1, 20).samples)
    graph = statistics.median(card.device.samples(card.device.capture(probe), "steady", 1, 20).samples)
    idle = statistics.median(naive)
    return (
        idle > 1.2 * graph,
        f"events on an idle queue {idle * 1e6:.0f} µs, on a filled one {filled * 1e6:.0f} µs, "
        f"in a graph {graph * 1e6:.0f} µs",
    )


@_check("NVML's energy counter steps every 20 to 100 ms")
def _energy_steps(card: Card) -> Checked:
    steps: list[float] = []
    last, since, until = card.device.joules(), time.perf_counter(), time.perf_counter() + 1.5
    if last is None:
        return False, "there is no energy counter"
    while time.perf_counter() < until:
        now = card.device.joules()
        if now != last:
            steps.append(time.perf_counter() - since)
            last, since = now, time.perf_counter()
    step = statistics.median(steps[1:]) if len(steps) > 2 else math.inf
    return 0.01 <= step <= 0.12, f"median step {step * 1e3:.0f} ms"


def main(place: str, out: Path) -> None:
    """Check every assumption on the device ``place`` and write the findings to ``out``, each as it is made."""
    device = open_device(place)
    there = torch.device(device.place)
    findings: list[dict[str, str]] = []
    if device.capabilities.host:
        measured = Ceilings(copy_bandwidth=1e10, matmul={"float32": 5e10}, fft={"float32": 1e10})
    else:
        measured = ceilings.measure(device, there, ["float32"])
    for finding in check_all(Card(device, there, measured)):
        findings.append(asdict(finding))
        save(out, json.dumps(findings, indent=1).encode())


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
