"""The machine as a run states it: the fingerprint that workers begin with, and ``doctor`` and ``profile`` show."""

from __future__ import annotations

from niffbench.anonymize import anonymize
from niffbench.device import Device
from niffbench.fingerprint import Fact, Fingerprint, host_facts
from niffbench.niff.native import build


def fingerprint(device: Device) -> Fingerprint:
    """The fingerprint of measurements on ``device``; on a CPU NIFF's C kernel is compiled to find out about it."""
    kernel = kernel_facts() if device.capabilities.host else {}
    return Fingerprint(must={**device.facts(), **kernel}, should={**host_facts(), **device.surroundings()})


def kernel_facts() -> dict[str, Fact]:
    """What NIFF's C kernel, mostly the fastest on a CPU, was compiled with: the compiler by its name and version.

    ``c_kernel`` is the flags that tune it to the machine, or False where it does not run. Old runs say True.
    Why it does not is no fact: a compiler's complaint differs from one time to the next. ``doctor`` tells it.
    """
    compiler = build.compiler()
    return {
        "c_kernel": build.tuning() or False,
        "c_compiler": None if compiler is None else anonymize(compiler),
    }
