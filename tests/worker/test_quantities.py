"""Energy, ceilings and the check-up of the machine."""

from __future__ import annotations

import math
from collections.abc import Iterator

import pytest
import torch
from run_worker import case_of

from niffbench.device.cpu import CpuDevice
from niffbench.device.replay import CaseTrace, ReplayDevice, ReplayRunner, Trace
from niffbench.worker import ceilings, energy
from niffbench.worker import health_check as health_check
from niffbench.worker.energy import LEAST_TIME


@pytest.fixture(scope="module")
def cpu() -> Iterator[CpuDevice]:
    before = torch.get_num_threads()
    yield CpuDevice(threads=1)
    torch.set_num_threads(before)


def _runner(nominal: float) -> ReplayRunner:
    case = case_of("depthwise", 3)
    return ReplayRunner(case=case, round=0, entry=CaseTrace(), nominal=nominal, peak=1, kept=1, begun=True)


@pytest.mark.parametrize("nominal", [1e-4, 0.3, 2.0])
@pytest.mark.parametrize("guess", [0.5, 1.0, 3.0])
def test_energy_is_power_times_the_time_of_a_call(nominal: float, guess: float) -> None:
    device = ReplayDevice(Trace(watts=300.0))
    assert energy.per_call(device, _runner(nominal), nominal * guess) == pytest.approx(300.0 * nominal)
    assert device.clock() >= LEAST_TIME * min(1.0, 1 / guess) * 0.99


def test_without_a_counter_or_with_one_that_stands_still_there_is_no_energy() -> None:
    assert energy.per_call(ReplayDevice(Trace()), _runner(1e-3), 1e-3) is None
    assert energy.per_call(ReplayDevice(Trace(watts=0.0)), _runner(1e-3), 1e-3) is None
    for broken in (0.0, float("nan"), float("inf")):
        assert energy.per_call(ReplayDevice(Trace(watts=1.0)), _runner(1e-3), broken) is None


@pytest.mark.parametrize(
    ("before", "after"),
    [(5.0, None), (5.0, math.nan), (math.nan, 5.0), (5.0, math.inf), (-math.inf, 5.0), (5.0, 4.0), (-1.0, -1.0)],
)
def test_a_counter_that_fails_or_goes_backwards_gives_no_energy(
    monkeypatch: pytest.MonkeyPatch, before: float, after: float | None
) -> None:
    device, readings = ReplayDevice(Trace(watts=300.0)), iter((before, after))
    monkeypatch.setattr(device, "joules", lambda: next(readings))
    assert energy.per_call(device, _runner(1e-3), 1e-3) is None


def test_ceilings_are_rates_of_what_was_asked_for(cpu: CpuDevice, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ceilings, "COPY_BYTES", {"cpu": 2**22})
    monkeypatch.setattr(ceilings, "MATMUL_SIDES", (64, 128))
    monkeypatch.setattr(ceilings, "FFT_SHAPES", ((4, 32, 32),))
    found = ceilings.measure(cpu, torch.device("cpu"), {"float32", "float64", "bfloat16"})
    assert set(found.matmul) == {"float32", "float64", "bfloat16"}
    assert set(found.fft) == {"float32", "float64"}
    assert found.copy_bandwidth > 1e7
    assert min(*found.matmul.values(), *found.fft.values()) > 1e5


def test_a_ceiling_is_work_over_the_shortest_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a device that takes one second for everything, rates are the work itself."""

    class Second:
        def timed(self, runner: object, calls: int = 1) -> tuple[float, object]:
            return 1.0, None

        def samples(self, runner: object, regime: str, calls: int, count: int) -> object:
            from niffbench.device.base import Block

            return Block((3.0, 1.0, 2.0))

        def release(self) -> None: ...

    found = ceilings.measure(Second(), torch.device("cpu"), {"float32"})  # type: ignore[arg-type]
    assert found.copy_bandwidth == 2 * ceilings.COPY_BYTES["cpu"]
    assert found.matmul == {"float32": 2 * ceilings.MATMUL_SIDES[0] ** 3}
    planes, height, width = ceilings.FFT_SHAPES[0]
    assert found.fft == {"float32": planes * 5 * height * width * 12}
    assert height * width == 2**12


def test_a_dtype_the_device_lacks_is_left_out(cpu: CpuDevice, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(a: torch.Tensor, *_: object, **__: object) -> None:
        raise RuntimeError(f"\"addmm\" not implemented for '{a.dtype}'")

    monkeypatch.setattr(ceilings, "COPY_BYTES", {"cpu": 2**20})
    monkeypatch.setattr(torch, "mm", refuse)
    monkeypatch.setattr(ceilings, "FFT_SHAPES", ((1, 8, 8),))
    assert ceilings.measure(cpu, torch.device("cpu"), {"float32"}).matmul == {}


def test_a_size_that_does_not_fit_costs_no_rate(cpu: CpuDevice, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ceilings, "COPY_BYTES", {"cpu": 2**20})
    monkeypatch.setattr(ceilings, "MATMUL_SIDES", (64, 2**30))
    monkeypatch.setattr(ceilings, "FFT_SHAPES", ((1, 8, 8), (2**20, 2**20, 2**20)))
    found = ceilings.measure(cpu, torch.device("cpu"), {"float32"})
    assert found.matmul["float32"] > 0
    assert found.fft["float32"] > 0


def test_every_counter_is_called_and_a_broken_one_is_told(cpu: CpuDevice, monkeypatch: pytest.MonkeyPatch) -> None:
    found = {counter.name: counter for counter in health_check.check_counters(cpu)}
    assert [name for name, counter in found.items() if not counter.works] == ["energy"]
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
    assert "30%" in remarks
    assert "varies" in remarks
    assert "powersave" in remarks
