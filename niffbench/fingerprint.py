"""What must match before two runs may be compared, what should, and what is only good to know."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import sys
from collections.abc import Mapping
from math import isfinite
from typing import Annotated, TypeAlias

from pydantic import AfterValidator, BaseModel, ConfigDict


def _finite(value: object) -> object:
    if isinstance(value, float) and not isfinite(value):
        raise ValueError(f"should be finite, not {value}")
    return value


Fact: TypeAlias = Annotated[str | int | float | bool | None, AfterValidator(_finite)]
"""What is known of a machine in one respect; no file and no format of another tool has a word for NaN."""


class Fingerprint(BaseModel):
    """The machine and the settings, in two tiers.

    Attributes:
        must: accelerator, libraries, C compiler, precision and determinism flags, threads; another value makes
            latencies incomparable.
        should: host CPU, kernel, governor, Python, which card of its kind and who else is on it; another value
            is said, not refused. No hostname, user name or path is ever in it: it is meant to be committed.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    must: dict[str, Fact]
    should: dict[str, Fact]

    @property
    def hash(self) -> str:
        """Twelve hexadecimal digits over the ``must`` tier."""
        text = json.dumps(self.must, sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()[:12]

    @property
    def machine(self) -> str:
        """What the machine is called: its GPU, or else its processor; without either, the kind of its device."""
        names = (self.must.get("gpu"), self.must.get("processor"), self.should.get("cpu"), self.must.get("device"))
        return str(next(filter(None, names), "a machine"))


def differences(a: Mapping[str, Fact], b: Mapping[str, Fact]) -> dict[str, tuple[Fact, Fact]]:
    """The keys on which two tiers disagree, with both values; a missing key counts as None."""
    return {k: (a.get(k), b.get(k)) for k in sorted({*a, *b}) if a.get(k) != b.get(k)}


def host_facts() -> dict[str, Fact]:
    """The ``should`` tier of any machine: processor, cores, memory, kernel, governor, Python."""
    import psutil

    return {
        "cpu": _cpu_model(),
        "cores": os.cpu_count(),
        "memory_gib": round(psutil.virtual_memory().total / 2**30),
        "system": platform.system(),
        "kernel": platform.release(),
        "governor": _first_line("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor"),
        "python": platform.python_version(),
        "implementation": sys.implementation.name,
    }


def _cpu_model() -> str:
    info = _read("/proc/cpuinfo")
    names = [line.split(":", 1)[1].strip() for line in info.splitlines() if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def _first_line(path: str) -> str | None:
    return _read(path).partition("\n")[0] or None


def _read(path: str) -> str:
    try:
        with open(path, encoding="utf-8") as file:  # noqa: PTH123 - a pseudo-file
            return file.read()
    except OSError:
        return ""
