"""NVML, the driver's view of a GPU: clocks, throttle reasons, power, energy, settings; whatever fails is None."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import Any, TypeVar

from niffbench.fingerprint import Fact
from niffbench.results import MachineState

T = TypeVar("T")

REASONS: dict[str, int] = {
    # NVML API reference, "NvmlClocksEventReasons". Idle and the user's own clock settings are no throttling.
    "sw_power_cap": 0x4,
    "hw_slowdown": 0x8,
    "sync_boost": 0x10,
    "sw_thermal_slowdown": 0x20,
    "hw_thermal_slowdown": 0x40,
    "hw_power_brake": 0x80,
}


COUNTERS: dict[str, str] = {
    # NVML API reference, field value identifiers: nanoseconds that each reason held the clocks back.
    "sw_power_cap": "NVML_FI_DEV_PERF_POLICY_POWER",
    "sync_boost": "NVML_FI_DEV_PERF_POLICY_SYNC_BOOST",
    "sw_thermal_slowdown": "NVML_FI_DEV_CLOCKS_EVENT_REASON_SW_THERM_SLOWDOWN",
    "hw_thermal_slowdown": "NVML_FI_DEV_CLOCKS_EVENT_REASON_HW_THERM_SLOWDOWN",
    "hw_power_brake": "NVML_FI_DEV_CLOCKS_EVENT_REASON_HW_POWER_BRAKE_SLOWDOWN",
}

NOTICEABLE = 0.01
"""Share of the time since the last reading below which a reason that held the clocks back is of no account."""


def decode(mask: int) -> list[str]:
    """The names of the throttle reasons in NVML's bit mask."""
    return [name for name, bit in REASONS.items() if mask & bit]


class Nvml:
    """One GPU seen through NVML. Methods return None for what this card, driver or container does not tell."""

    def __init__(self, library: Any, handle: Any) -> None:
        self._library = library
        self._handle = handle
        self._held_back = self._read_counters()

    @classmethod
    def open(cls, identity: str | None) -> Nvml | None:
        """NVML for the GPU whose UUID is ``identity`` (as torch tells it, without a prefix).

        A MIG slice is seen through its whole card. None without a driver, the card, or the bindings.
        """
        library: Any = _try(_initialised)
        if library is None or identity is None:
            return None
        handle = _try(lambda: library.nvmlDeviceGetHandleByUUID(f"GPU-{identity}"))
        if handle is None:
            slice_ = _try(lambda: library.nvmlDeviceGetHandleByUUID(f"MIG-{identity}"))
            handle = _try(lambda: library.nvmlDeviceGetDeviceHandleFromMigDeviceHandle(slice_))
        return None if handle is None else cls(library, handle)

    def _ask(self, name: str, *args: Any) -> Any:
        return _try(lambda: getattr(self._library, name)(self._handle, *args))

    def _constant(self, name: str) -> Any:
        return getattr(self._library, name, None)

    def state(self) -> MachineState:
        """SM clock in MHz, temperature in °C, power in watts, throttle reasons.

        Reasons are those of all the time since the last reading where the driver counts it, else of this moment.
        """
        return MachineState(
            sm_clock=_float(self._ask("nvmlDeviceGetClockInfo", self._constant("NVML_CLOCK_SM"))),
            temperature=_float(self._ask("nvmlDeviceGetTemperature", self._constant("NVML_TEMPERATURE_GPU"))),
            power=_scaled(self._ask("nvmlDeviceGetPowerUsage"), 1e-3),
            throttle=self._throttled_since(),
        )

    def _throttled_since(self) -> list[str]:
        before, self._held_back = self._held_back, self._read_counters()
        if before is not None and self._held_back is not None:
            (then, earlier), (now, later) = before, self._held_back
            least = NOTICEABLE * (now - then)
            return [reason for reason in COUNTERS if later[reason] - earlier[reason] > least]
        mask = self._ask("nvmlDeviceGetCurrentClocksEventReasons")
        if mask is None:
            mask = self._ask("nvmlDeviceGetCurrentClocksThrottleReasons")
        return decode(mask) if isinstance(mask, int) else []

    def _read_counters(self) -> tuple[float, dict[str, float]] | None:
        """The time now, and by reason how long it has held the clocks back, in seconds; None without any."""
        fields = [self._constant(name) for name in COUNTERS.values()]
        values = None if None in fields else self._ask("nvmlDeviceGetFieldValues", fields)
        if values is None or len(values) != len(fields) or any(value.nvmlReturn for value in values):
            return None
        seconds = [value.value.ullVal * 1e-9 for value in values]
        return time.monotonic(), dict(zip(COUNTERS, seconds, strict=True))

    def joules(self) -> float | None:
        """Energy used since the driver was loaded, in joules (the counter steps every 20 to 100 ms)."""
        return _scaled(self._ask("nvmlDeviceGetTotalEnergyConsumption"), 1e-3)

    def highest_clock(self) -> float | None:
        """The highest SM clock in MHz that the present settings allow."""
        return _float(self._ask("nvmlDeviceGetMaxClockInfo", self._constant("NVML_CLOCK_SM")))

    def facts(self) -> dict[str, Fact]:
        """Driver, MIG, power limit and clock policy."""
        sm = self._constant("NVML_CLOCK_SM")
        mig = self._ask("nvmlDeviceGetMigMode")
        limit = _scaled(self._ask("nvmlDeviceGetEnforcedPowerLimit"), 1e-3)
        driver: Any = _try(lambda: self._library.nvmlSystemGetDriverVersion())
        return {
            "driver": driver.decode() if isinstance(driver, bytes) else driver,
            "mig": None if mig is None else bool(mig[0]),
            "power_limit_w": None if limit is None else round(limit),
            "sm_clock_max_mhz": self._ask("nvmlDeviceGetMaxClockInfo", sm),
            "sm_clock_application_mhz": self._ask("nvmlDeviceGetApplicationsClock", sm),
            "persistence_mode": _flag(self._ask("nvmlDeviceGetPersistenceMode")),
            "compute_mode": self._ask("nvmlDeviceGetComputeMode"),
            "ecc": _flag((self._ask("nvmlDeviceGetEccMode") or [None])[0]),
        }

    def others(self) -> dict[str, Fact]:
        """Compute processes on the card beside this one: how many, and their memory.

        In a container they may have numbers of another namespace: then one of them is this one, and whose memory
        is whose cannot be told.
        """
        processes = self._ask("nvmlDeviceGetComputeRunningProcesses")
        if processes is None:
            return {"gpu_other_processes": None, "gpu_other_memory_mib": None}
        others = [one for one in processes if one.pid != os.getpid()]
        seen = len(others) < len(processes) or not processes
        sizes = [one.usedGpuMemory for one in others]
        is_complete = seen and None not in sizes
        return {
            "gpu_other_processes": len(others) if seen else len(others) - 1,
            "gpu_other_memory_mib": sum(sizes) // 2**20 if is_complete else None,
        }

    def probe(self) -> dict[str, bool]:
        """Which counters answer, each one really called."""
        state = self.state()
        reasons = self._ask("nvmlDeviceGetCurrentClocksEventReasons")
        return {
            "sm clock": state.sm_clock is not None,
            "temperature": state.temperature is not None,
            "power": state.power is not None,
            "throttle reasons": reasons is not None,
            "energy": self.joules() is not None,
        }


def _initialised() -> Any:
    import pynvml

    pynvml.nvmlInit()
    return pynvml


def _try(ask: Callable[[], T]) -> T | None:
    try:
        return ask()
    except Exception:  # NVMLError_NotSupported and its many kin; ImportError, AttributeError with old bindings
        return None


def _float(value: Any) -> float | None:
    return None if value is None else float(value)


def _scaled(value: Any, factor: float) -> float | None:
    return None if value is None else float(value) * factor


def _flag(value: Any) -> bool | None:
    return None if value is None else bool(value)
