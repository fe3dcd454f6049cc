"""NVML through a made-up library: everything answers, or nothing does, and nothing ever raises."""

from __future__ import annotations

import os
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from niffbench.device import nvml
from niffbench.device.base import is_throttled
from niffbench.device.nvml import COUNTERS, REASONS, Nvml, decode
from niffbench.device.replay import ReplayDevice, Trace
from niffbench.results import MachineState


def _library(**changes: Any) -> Any:
    functions: dict[str, Any] = {
        "NVML_CLOCK_SM": 1,
        "NVML_TEMPERATURE_GPU": 0,
        "nvmlDeviceGetCurrentClocksEventReasons": lambda handle: 0x4 | 0x40 | 0x1,
        "nvmlDeviceGetClockInfo": lambda handle, kind: 1410,
        "nvmlDeviceGetMaxClockInfo": lambda handle, kind: 1980,
        "nvmlDeviceGetTemperature": lambda handle, sensor: 61,
        "nvmlDeviceGetPowerUsage": lambda handle: 350_500,
        "nvmlDeviceGetTotalEnergyConsumption": lambda handle: 12_345,
        "nvmlDeviceGetMigMode": lambda handle: [1, 0],
        "nvmlDeviceGetEnforcedPowerLimit": lambda handle: 700_000,
        "nvmlDeviceGetApplicationsClock": lambda handle, kind: 1980,
        "nvmlDeviceGetPersistenceMode": lambda handle: 1,
        "nvmlDeviceGetComputeMode": lambda handle: 0,
        "nvmlDeviceGetEccMode": lambda handle: [1, 1],
        "nvmlSystemGetDriverVersion": lambda: b"580.1",
    }
    return SimpleNamespace(**{**functions, **changes})


def test_figures_are_in_the_units_said() -> None:
    gpu = Nvml(_library(), "handle")
    state = gpu.state()
    assert (state.sm_clock, state.temperature, state.power) == (1410.0, 61.0, 350.5)
    assert state.throttle == ["sw_power_cap", "hw_thermal_slowdown"]
    assert gpu.joules() == 12.345
    assert gpu.highest_clock() == 1980
    facts = gpu.facts()
    assert (facts["driver"], facts["mig"], facts["power_limit_w"], facts["ecc"]) == ("580.1", True, 700, True)
    assert all(gpu.probe().values())


@pytest.mark.parametrize(
    ("processes", "others", "mebibytes"),
    [
        ([], 0, 0),
        ([(os.getpid(), 2**30)], 0, 0),
        ([(os.getpid(), 2**30), (-5, 3 * 2**20), (-6, 2**20)], 2, 4),
        ([(os.getpid(), None), (-5, None)], 1, None),
        ([(-5, 2**20)], 0, None),  # this very process, in a container
        ([(-5, 2**20), (-6, 2**20)], 1, None),
    ],
)
def test_others_on_the_card_are_counted_and_not_named(
    processes: list[tuple[int, int | None]], others: int, mebibytes: int | None
) -> None:
    running = [SimpleNamespace(pid=pid, usedGpuMemory=used) for pid, used in processes]
    library = _library(nvmlDeviceGetComputeRunningProcesses=lambda handle: running)
    assert Nvml(library, "handle").others() == {"gpu_other_processes": others, "gpu_other_memory_mib": mebibytes}


def test_old_bindings_have_the_reasons_under_another_name() -> None:
    library = _library(nvmlDeviceGetCurrentClocksThrottleReasons=lambda handle: 0x8)
    del library.nvmlDeviceGetCurrentClocksEventReasons
    assert Nvml(library, "handle").state().throttle == ["hw_slowdown"]


def _counted(*readings: list[int], wrong: int = 0) -> Any:
    """A library that counts how long each reason held the clocks back, in ns, one list a reading."""
    left = iter(readings)

    def read(handle: str, fields: list[int]) -> list[Any]:
        assert fields == list(range(len(COUNTERS)))
        return [SimpleNamespace(nvmlReturn=wrong, value=SimpleNamespace(ullVal=value)) for value in next(left)]

    fields = {name: place for place, name in enumerate(COUNTERS.values())}
    return _library(nvmlDeviceGetFieldValues=read, **fields)


def test_what_held_the_clocks_back_between_two_readings_is_told_though_it_is_over() -> None:
    before, after = [5, 5, 5, 5, 5], [5, 5, 5 + 10**12, 5, 5]
    gpu = Nvml(_counted(before, after, after), "handle")
    assert gpu.state().throttle == ["sw_thermal_slowdown"]
    assert gpu.state().throttle == []


def test_where_the_time_is_not_counted_the_reasons_of_the_moment_are_told() -> None:
    gpu = Nvml(_counted([0] * 5, [0] * 5, wrong=3), "handle")
    assert gpu.state().throttle == ["sw_power_cap", "hw_thermal_slowdown"]


def _refuse(*arguments: Any) -> Any:
    raise RuntimeError("NVMLError_NotSupported")


def test_a_card_that_tells_nothing_breaks_nothing() -> None:
    names = [name for name in vars(_library()) if name.startswith("nvml")]
    silent = Nvml(_library(**dict.fromkeys(names, _refuse)), "handle")
    assert silent.state() == MachineState()
    assert silent.joules() is silent.highest_clock() is None
    assert set(silent.facts().values()) == set(silent.others().values()) == {None}
    assert not any(silent.probe().values())
    assert Nvml(SimpleNamespace(), "handle").state() == MachineState()


@pytest.mark.parametrize("identity", [None, "00000000-0000-0000-0000-000000000000"])
def test_without_a_driver_or_the_card_there_is_no_nvml(identity: str | None) -> None:
    assert Nvml.open(identity) is None


def test_a_mig_slice_is_seen_through_its_card(monkeypatch: pytest.MonkeyPatch) -> None:
    def by_uuid(uuid: str) -> str:
        if uuid != "MIG-abc":
            raise RuntimeError("NVMLError_NotFound")
        return "slice"

    library = _library(
        nvmlDeviceGetHandleByUUID=by_uuid,
        nvmlDeviceGetDeviceHandleFromMigDeviceHandle=lambda handle: {"slice": "card"}[handle],
    )
    monkeypatch.setattr(nvml, "_initialised", lambda: library)
    opened = Nvml.open("abc")
    assert opened is not None
    assert opened._handle == "card"
    assert Nvml.open("def") is None


@given(st.integers(0, 2**32))
def test_every_mask_decodes_to_the_reasons_it_holds(mask: int) -> None:
    names = decode(mask)
    assert sum(REASONS[name] for name in names) == mask & sum(REASONS.values())


@pytest.mark.parametrize(
    ("state", "throttled"),
    [
        (MachineState(sm_clock=1980), False),
        (MachineState(sm_clock=1980, throttle=["hw_thermal_slowdown"]), True),
        (MachineState(throttle=["hw_power_brake"]), True),
        (MachineState(sm_clock=1900, throttle=["sw_power_cap"]), False),
        (MachineState(sm_clock=1000, throttle=["sw_power_cap"]), True),
        (MachineState(sm_clock=300), False),  # idle already, and nothing held it back
        (MachineState(), False),
    ],
)
def test_a_capped_card_is_throttled_only_when_its_clock_is_low(state: MachineState, throttled: bool) -> None:
    assert is_throttled(ReplayDevice(Trace(highest_clock=1980)), state) is throttled
