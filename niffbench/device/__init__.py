"""Where cases run: each module of this package that is no helper is a kind of device, kind by its name.

It offers ``KIND``, a :class:`~niffbench.device.base.Kind`. Nobody else knows which devices there are, or asks a
device for its name: what it can do stands in its :class:`~niffbench.device.base.Capabilities`.
"""

from __future__ import annotations

import importlib
import os
import pkgutil
from collections.abc import Sequence
from pathlib import Path

from niffbench.device.base import Block, Capabilities, Device, Kind, Processor, Runner, Usage
from niffbench.device.host import allowed, cpu_list, shares
from niffbench.errors import UsageError, did_you_mean

__all__ = [
    "Block",
    "Capabilities",
    "Device",
    "Processor",
    "Runner",
    "Usage",
    "devices",
    "forms",
    "is_forkable",
    "kind",
    "kind_of",
    "open_computing",
    "open_device",
    "pin",
    "portable",
    "several",
    "uses_accelerator",
]

HELPERS = frozenset({"base", "host", "malloc", "nvml", "settings"})

MOST_DEVICES = 256
"""That one run has workers on at once."""

DRIVERS = ("nvidiactl", "kfd", "dxg")
"""Where the drivers of accelerators show under ``/dev``."""

ON_THE_HOST = frozenset({"cpu", "replay"})
"""Kinds for which an engine need reserve no accelerator."""

UNWRITTEN = ("hpu", "mps", "mtia", "npu", "tpu", "xla", "xpu")
"""Accelerators that torch knows, and nobody has written a file for."""


def devices() -> list[str]:
    """The names of all kinds of devices; none of them is imported."""
    return sorted(module.name for module in pkgutil.iter_modules(__path__) if module.name not in HELPERS)


def kind_of(device: object) -> str | None:
    """The kind of device that ``--device`` or a fingerprint names; None where neither does."""
    name = str(device or "auto").partition(":")[0]
    return name if name in devices() else None


def kind(name: str) -> Kind:
    """The kind of device of that name, which loads what it needs.

    Raises:
        KeyError: when there is none.
    """
    if name not in devices():
        raise KeyError(name)
    kind: Kind = importlib.import_module(f"{__name__}.{name}").KIND
    return kind


def forms(*, computing: bool = False) -> str:
    """How devices are asked for, in words; with ``computing`` only those that cases are run on."""
    return ", ".join(one.forms for one in map(kind, devices()) if one.computes or not computing)


def is_forkable(spec: str) -> bool:
    """Whether a process that has loaded what ``--device`` needs can be forked: no driver's state is lost by it."""
    return spec == "cpu" or (spec == "auto" and not any(Path("/dev", name).exists() for name in DRIVERS))


def uses_accelerator(spec: str) -> bool | None:
    """Whether ``--device`` asks for more than the host's processor; None where that is not known.

    It loads no torch.
    """
    name = kind_of(spec)
    return None if name is None else name not in ON_THE_HOST


def open_device(spec: str = "auto", threads: int | None = None) -> Device:
    """The device that ``spec`` names (``cpu``, ``cuda``, ``cuda:N``, ``replay:FILE``), on ``threads`` of the host.

    ``threads`` None: the physical cores. ``auto`` is the first accelerator that can be used, else the CPU. A
    replay loads no torch.

    Raises:
        UsageError: when no kind of device has the name (saying which file would be one), and for what the kind
            itself refuses: a card that is not there, a replay file that cannot be read.
    """
    name, mark, which = spec.partition(":")
    if spec == "auto":
        usable = (one for one in map(kind, devices()) if one.rank and one.is_usable())
        return max(usable, key=lambda one: one.rank).open("", threads)
    if name in UNWRITTEN and name not in devices():
        raise UsageError(
            f"--device {spec}: {name} is not implemented; its file would be niffbench/device/{name}.py, "
            "as niffbench/device/cpu.py is the CPU's"
        )
    if name not in devices():
        hint = did_you_mean(name, ("auto", *devices()))
        near = hint if "did you mean" in hint else ""
        raise UsageError(f"--device {spec}: should be auto, {forms()}{near}")
    one = kind(name)
    if bool(mark) != bool(which):
        raise UsageError(f"--device {spec}: should be {one.forms}")
    return one.open(which, threads)


def open_computing(spec: str, threads: int | None, purpose: str) -> Device:
    """A device that cases are run on, for ``purpose`` ("to examine").

    Raises:
        UsageError: for a replay too.
    """
    name = kind_of(spec)
    if name is not None and not kind(name).computes:
        raise UsageError(f"--device {spec}: a {name} has nothing {purpose}; take auto, {forms(computing=True)}")
    return open_device(spec, threads)


def several(spec: str) -> list[str]:
    """The devices that ``--devices`` names, each as ``--device`` does: ``cuda:0-2,5``, ``replay:FILE:0-3``.

    Raises:
        UsageError: for anything else.
    """
    name, _, numbers = spec.rpartition(":")
    listed = cpu_list(numbers)
    if not name or not listed or len(set(listed)) < len(listed) or kind_of(name) is None:
        raise UsageError(
            f"--devices {spec}: should name devices of one kind by their numbers, as cuda:0-7 or cuda:0,2"
        )
    if len(listed) > MOST_DEVICES:
        raise UsageError(f"--devices {spec}: names {len(listed):,} devices; {MOST_DEVICES} is the most")
    return [f"{name}:{number}" for number in listed]


def pin(specs: Sequence[str], place: int) -> None:
    """Keep this process on its share of the cores, near the device that is number ``place`` of ``specs``.

    All of them are worked on at once. Nothing is done where there are too few cores, or no way to keep to them.
    """
    if not hasattr(os, "sched_setaffinity"):
        return
    near = [kind(name).near(which) for name, _, which in (spec.partition(":") for spec in specs)]
    if cores := shares(near, allowed())[place]:
        os.sched_setaffinity(0, cores)


def portable(spec: str | None) -> str:
    """``--device`` as another working directory understands it: a relative path of a replay made whole."""
    name, _, path = (spec or "auto").partition(":")
    return f"{name}:{Path(path).resolve()}" if name == "replay" and path else spec or "auto"
