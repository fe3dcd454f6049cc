"""A check-up of the machine: is it quiet, how fine is its timer, which counters really work. For ``doctor``."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from time import perf_counter, sleep

import torch
from torch import nn

from niffbench.cost import counters, fvcore
from niffbench.device import Device, host
from niffbench.fingerprint import Fact
from niffbench.niff.native import build
from niffbench.results import is_busy
from niffbench.stats.intervals import spread
from niffbench.units import percent
from niffbench.worker.probe import Probe

WATCHED = 1.0
"""Seconds in which other processes' use of the processor is watched."""

SHAKY = 0.10
"""The jitter from which a machine is called noisy."""

_WORK = 300  # samples of the fixed piece of work


@dataclass(frozen=True)
class Quiet:
    """How quiet a machine is.

    Attributes:
        others: share of all cores that other processes use (None: the platform does not tell).
        jitter: 5 % to 95 % range of a fixed piece of work's time, relative to its median.
        worst: the slowest sample relative to the median.
    """

    load: float
    others: float | None
    jitter: float
    worst: float
    governor: str | None
    remarks: tuple[str, ...]


@dataclass(frozen=True)
class Counter:
    """A counter that was really called: whether it told the truth, and what it said if it did not."""

    name: str
    works: bool
    detail: str


def quiet(governor: str | None) -> Quiet:
    """Watch the machine for a second, then time a fixed piece of work."""
    others = _others()
    samples = _samples()
    taken = spread(samples)
    jitter, worst = (taken.high - taken.low) / taken.median, max(samples) / taken.median
    remarks = []
    if others is not None and is_busy(others):
        remarks.append(f"other processes use {percent(others)} of the processor")
    if jitter > SHAKY:
        remarks.append(f"a fixed piece of work varies by {percent(jitter)}")
    if governor not in (None, "performance"):
        remarks.append(f"the frequency governor is '{governor}', not 'performance'")
    return Quiet(host.load(), others, jitter, worst, governor, tuple(remarks))


_REMEDIES = {
    "other processes": "end them, or measure with `niffbench ab`, which has both sides meet the same load",
    "a fixed piece": "stop what wakes up beside it, or raise --rounds; `niffbench aa` says what can be seen",
    "the frequency": "cpupower frequency-set -g performance; and turn turbo off for figures that repeat",
}


def unfit(quiet: Quiet, surroundings: Mapping[str, Fact]) -> dict[str, str]:
    """Why a gate would not be reliable here, each reason with what to do about it."""
    reasons = {
        remark: next((remedy for start, remedy in _REMEDIES.items() if remark.startswith(start)), "mend it")
        for remark in quiet.remarks
    }
    if others := surroundings.get("gpu_other_processes"):
        reasons[f"{others} other processes are on the card"] = "end them, or take another card"
    return reasons


def _others() -> float | None:
    """Other processes' share of all cores while this one sleeps."""
    before = host.processor()
    sleep(WATCHED)
    return (host.processor() - before).share


def _samples() -> list[float]:
    """Seconds of a piece of work that needs neither memory nor a second thread: about 0.3 ms each."""
    taken: list[float] = []
    for _ in range(_WORK):
        begun = perf_counter()
        sum(range(10_000))
        taken.append(perf_counter() - begun)
    return taken


def resolution() -> float:
    """The host timer's smallest step in seconds."""
    return host.quantum()


def compiler() -> str | None:
    """The C++ compiler torch.compile would use on a CPU; None when there is none."""
    return next((name for name in ("c++", "g++", "clang++") if shutil.which(name)), None)


def kernel() -> str:
    """Whether NIFF's C kernel, which auto and native go by on a CPU, can be compiled here; if not, why."""
    why = build.unavailable()
    return "works" if why is None else f"none, so auto is slower: {why}"


def check_counters(device: Device) -> list[Counter]:
    """Call every counter once on something whose answer is known."""
    checks: list[tuple[str, Callable[[], str | None]]] = [
        ("FLOPs, FlopCounterMode with formulas", _flop_counter),
        ("FLOPs, fvcore with handlers", _fvcore),
        ("memory of a call", lambda: _memory(device)),
        ("saved tensors", _saved),
        ("timer of the device", lambda: _timer(device)),
        ("energy", lambda: None if device.joules() is not None else "no energy counter"),
    ]
    results: list[Counter] = []
    for name, check in checks:
        try:
            fault = check()
        except Exception as error:  # whatever a library raises is what is to be told
            fault = f"{type(error).__name__}: {error}".splitlines()[0]
        results.append(Counter(name, fault is None, fault or "works"))
    return results


def _convolution() -> tuple[nn.Module, torch.Tensor, int]:
    """A convolution, an input, and its real FLOPs."""
    return nn.Conv2d(4, 8, 3, padding=1, bias=False), torch.zeros(1, 4, 10, 10), 2 * 9 * 4 * 8 * 100


def _flop_counter() -> str | None:
    module, x, expected = _convolution()
    with torch.no_grad():
        flops = counters.count(lambda: module(x)).flops
    return None if flops == expected else f"said {flops} instead of {expected}"


def _fvcore() -> str | None:
    module, x, expected = _convolution()
    flops = fvcore.trace(module, x).flops
    return None if flops == expected else f"said {flops} instead of {expected}"


def _memory(device: Device) -> str | None:
    expected = 2**20
    usage = device.usage(Probe(lambda: torch.empty(expected, dtype=torch.uint8, device=device.place)))
    return None if usage.peak == expected else f"said {usage.peak} bytes instead of {expected}"


def _saved() -> str | None:
    saved: list[torch.Tensor] = []

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        saved.append(tensor)
        return tensor

    x = torch.ones(4, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        x.exp()
    return None if len(saved) == 1 else f"saw {len(saved)} tensors instead of 1"


def _timer(device: Device) -> str | None:
    x = torch.ones(2**20, device=device.place)
    taken = device.samples(Probe(lambda: x + 1), "steady", 10, 5).samples
    return None if min(taken) > 0 else "a million additions take no time"
