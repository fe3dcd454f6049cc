"""Energy, ceilings and the check-up of the machine."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator

import pytest
import torch
from run_worker import case_of

from niffbench.case import Problem
from niffbench.device import Block, Device, Runner
from niffbench.device.cpu import CpuDevice
from niffbench.device.replay import CaseTrace, ReplayDevice, ReplayRunner, Trace
from niffbench.results import Map
from niffbench.worker import ceilings, energy
from niffbench.worker import health_check as health_check


@pytest.fixture(scope="module")
def cpu() -> Iterator[CpuDevice]:
    before = torch.get_num_threads()
    yield CpuDevice(threads=1)
    torch.set_num_threads(before)


def _runner(nominal: float) -> ReplayRunner:
    case = case_of("depthwise", 3)
    return ReplayRunner(case=case, round=0, entry=CaseTrace(), nominal=nominal, peak=1, kept=1, begun=True)


class Card:
    """A card whose calls keep the host for ``launch`` and the card for ``run`` seconds.

    It takes 100 W when idle and 500 W when busy; its counter of energy moves every ``step`` seconds.
    """

    def __init__(self, launch: float, run: float, step: float) -> None:
        self.launch, self.run, self.step = launch, run, step
        self.now, self.used = 50.03, 0.0
        self.shown, self.shown_at = 0.0, 50.0

    def _pass(self, seconds: float, watts: float) -> None:
        while (left := self.shown_at + self.step - self.now) <= seconds:
            self.now, self.used, seconds = self.now + left, self.used + left * watts, seconds - left
            self.shown, self.shown_at = self.used, self.now
        self.now, self.used = self.now + seconds, self.used + seconds * watts

    def clock(self) -> float:
        return self.now

    def rest(self, seconds: float) -> None:
        self._pass(seconds, 100.0)

    def joules(self) -> float:
        self._pass(2e-4, 100.0)
        return self.shown

    def timed(self, runner: object, calls: int = 1) -> tuple[float, object]:
        """What an event would say of the calls is their run alone; the wall is that of the launches if longer."""
        busy, wall = self.run * calls, max(self.launch, self.run) * calls
        self._pass(wall, 100.0 + 400.0 * busy / wall)
        return busy, None


@pytest.mark.parametrize("step", [0.02, 0.1])
@pytest.mark.parametrize(("launch", "run"), [(1e-4, 1e-5), (1e-5, 1e-3), (1e-5, 0.04), (1e-5, 0.3), (1e-5, 2.0)])
def test_energy_is_power_times_the_wall_of_a_call_and_takes_little_of_it(
    launch: float, run: float, step: float
) -> None:
    card = Card(launch, run, step)
    begun, wall = card.now, max(launch, run)
    joules = energy.per_call(card, _runner(1e-3))  # type: ignore[arg-type]
    expected = wall * 100.0 + run * 400.0
    assert joules == pytest.approx(expected, rel=0.05 if run < 0.1 else 0.1)
    assert card.now - begun < max(0.75, 2 * run + 0.3)


def test_without_a_counter_or_with_one_that_stands_still_there_is_no_energy() -> None:
    assert energy.per_call(ReplayDevice(Trace()), _runner(1e-3)) is None
    assert energy.per_call(ReplayDevice(Trace(watts=0.0)), _runner(1e-3)) is None


@pytest.mark.parametrize(
    ("before", "after"),
    [(5.0, None), (5.0, math.nan), (math.nan, 5.0), (5.0, math.inf), (-math.inf, 5.0), (5.0, 4.0), (-1.0, -1.0)],
)
def test_a_counter_that_fails_or_goes_backwards_gives_no_energy(
    monkeypatch: pytest.MonkeyPatch, before: float, after: float | None
) -> None:
    device, readings = (
        ReplayDevice(Trace(watts=300.0)),
        itertools.chain((before - 1, before), itertools.repeat(after)),
    )
    monkeypatch.setattr(device, "joules", lambda: next(readings))
    assert energy.per_call(device, _runner(1e-3)) is None


def test_ceilings_are_rates_of_what_was_asked_for(cpu: CpuDevice, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ceilings, "LARGEST_COPY", 2**22)
    monkeypatch.setattr(ceilings, "MATMUL_SIDES", (64, 128))
    monkeypatch.setattr(ceilings, "FFT_SHAPES", ((4, 32, 32),))
    monkeypatch.setattr(ceilings, "MAPS_BUDGET", math.inf)
    maps = [Map("float32", 4, 7, 7), Map("float64", 2, 8, 6), Map("float32", 3, 1, 1)]
    result = ceilings.measure(cpu, torch.device("cpu"), {"float32", "float64", "bfloat16", "tf32"}, maps)
    assert set(result.matmul) == {"float32", "float64", "bfloat16"}
    assert set(result.fft) == {"float32", "float64"}
    assert result.copy_bandwidth == result.copy_by_size[2**22] > 1e7
    assert list(result.copy_by_size) == [2**power for power in range(14, 23)]
    assert min(*result.matmul.values(), *result.fft.values()) > 1e5
    for shape in (Problem(2, 2, 2, 7, 7), Problem(1, 4, 4, 7, 7, "bfloat16"), Problem(1, 2, 2, 8, 6, "float64")):
        assert (result.fft_of(shape) or 0) > 1e4
    for shape in (Problem(2, 2, 2, 7, 8), Problem(1, 2, 2, 8, 6), Problem(3, 1, 1, 1, 1)):
        assert result.fft_of(shape) is None


def test_a_ceiling_is_work_over_the_shortest_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a device that takes one second for everything, rates are the work itself."""

    class Second(CpuDevice):
        def timed(self, runner: Runner, calls: int = 1) -> tuple[float, object]:
            return 1.0, None

        def samples(self, runner: Runner, regime: object, calls: int, count: int) -> Block:
            return Block((3.0, 1.0, 2.0))

    threads = torch.get_num_threads()
    device = Second(threads=1, cache=2**24)
    torch.set_num_threads(threads)
    monkeypatch.setattr(ceilings, "LARGEST_COPY", 2**28)
    result = ceilings.measure(device, torch.device("cpu"), {"float32"})
    assert result.copy_by_size == {size: size for size in (2**power for power in range(14, 28))}
    assert result.copy_bandwidth == 2**27
    assert result.matmul == {"float32": 2 * ceilings.MATMUL_SIDES[0] ** 3}
    planes, height, width = ceilings.FFT_SHAPES[0]
    assert result.fft == {"float32": planes * 5 * height * width * 12}
    assert height * width == 2**12


def test_what_is_copied_is_not_zeros_and_no_cache_holds_the_largest(
    cpu: CpuDevice, monkeypatch: pytest.MonkeyPatch
) -> None:
    copied: dict[int, float] = {}

    def best(device: Device, call: Callable[[], torch.Tensor]) -> float:
        target = call()
        copied[8 * target.numel()] = float(target.std())
        return 1.0

    monkeypatch.setattr(ceilings, "_best", best)
    monkeypatch.setattr(cpu, "cache", 5 * 2**20)
    monkeypatch.setattr(ceilings, "LARGEST_COPY", 2**27)
    ceilings._copies(cpu, torch.device("cpu"))
    assert max(copied) == 2**26 >= ceilings.CACHES * cpu.cache
    assert min(copied.values()) > 0.2


def test_products_grow_while_their_rate_rises(cpu: CpuDevice, monkeypatch: pytest.MonkeyPatch) -> None:
    """A quick one always; one that takes long only after a rise, and never into calls of seconds."""

    def tried(seconds: Callable[[int], float]) -> list[int]:
        sides: list[int] = []

        def best(device: Device, call: Callable[[], object]) -> float:
            return seconds(sides[-1])

        def probe(side: int) -> tuple[Callable[[], object], int]:
            sides.append(side)
            return (lambda: None), side**3

        monkeypatch.setattr(ceilings, "_best", best)
        rate = ceilings._grown(cpu, (2, 4, 8, 16, 32), probe)
        assert rate == max(side**3 / seconds(side) for side in sides)
        return sides

    assert tried(lambda side: 1e-4) == [2, 4, 8, 16, 32]
    assert tried(lambda side: 0.01 * side**3 / 512) == [2, 4, 8], "8 takes long, and rises no more"
    assert tried(lambda side: 0.01 * side**2.5 / 8**2.5) == [2, 4, 8, 16], "still rising, until calls are too long"
    assert tried(lambda side: 1.0) == [2]


def test_a_dtype_the_device_lacks_is_left_out(cpu: CpuDevice, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(a: torch.Tensor, *_: object, **__: object) -> None:
        raise RuntimeError(f"\"addmm\" not implemented for '{a.dtype}'")

    monkeypatch.setattr(ceilings, "LARGEST_COPY", 2**20)
    monkeypatch.setattr(torch, "mm", refuse)
    monkeypatch.setattr(ceilings, "FFT_SHAPES", ((1, 8, 8),))
    assert ceilings.measure(cpu, torch.device("cpu"), {"float32"}).matmul == {}


def test_a_size_that_does_not_fit_costs_no_rate(cpu: CpuDevice, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ceilings, "LARGEST_COPY", 2**20)
    monkeypatch.setattr(ceilings, "MATMUL_SIDES", (64, 2**30))
    monkeypatch.setattr(ceilings, "FFT_SHAPES", ((1, 8, 8), (2**20, 2**20, 2**20)))
    result = ceilings.measure(cpu, torch.device("cpu"), {"float32"})
    assert result.matmul["float32"] > 0
    assert result.fft["float32"] > 0


def test_every_counter_is_called_and_a_broken_one_is_told(cpu: CpuDevice, monkeypatch: pytest.MonkeyPatch) -> None:
    result = {counter.name: counter for counter in health_check.check_counters(cpu)}
    assert [name for name, counter in result.items() if not counter.works] == ["energy"]
    monkeypatch.setattr(
        health_check.fvcore, "trace", lambda module, x: (_ for _ in ()).throw(ImportError("no fvcore"))
    )
    broken = {counter.name: counter for counter in health_check.check_counters(cpu)}
    assert broken["FLOPs, fvcore with handlers"].detail == "ImportError: no fvcore"
    monkeypatch.setattr(cpu, "usage", lambda runner: type("Usage", (), {"peak": 5})())
    lying = {counter.name: counter for counter in health_check.check_counters(cpu)}
    assert lying["memory of a call"].detail == f"said 5 bytes instead of {2**20}"


def test_a_noisy_machine_is_told_why(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(health_check, "_others", lambda: 0.0)
    monkeypatch.setattr(health_check, "_samples", lambda: [1.0, 1.01] * 50)
    assert health_check.quiet("performance").remarks == ()
    assert health_check.quiet(None).remarks == ()
    monkeypatch.setattr(health_check, "_others", lambda: 0.3)
    monkeypatch.setattr(health_check, "_samples", lambda: [1.0, 1.4] * 50)
    remarks = " | ".join(health_check.quiet("powersave").remarks)
    assert "30 %" in remarks
    assert "varies" in remarks
    assert "powersave" in remarks
