"""Opening a device by what the user asked for."""

from __future__ import annotations

import re

from niffbench.device.base import Device
from niffbench.errors import UsageError, did_you_mean

FORMS = "auto, cpu, cuda, cuda:N or replay:FILE"


def open_device(spec: str = "auto", threads: int | None = None) -> Device:
    """The device for ``auto``, ``cpu``, ``cuda``, ``cuda:N`` or ``replay:FILE``, on ``threads`` host threads.

    ``threads`` None: the physical cores. ``auto`` is the first GPU, else the CPU. A replay loads no torch.
    Raises UsageError when the name is none of these, when CUDA is asked for and absent (saying what torch
    sees), and for a replay file that cannot be read.
    """
    kind, _, rest = spec.partition(":")
    if kind == "replay" and rest:
        from niffbench.device.replay import ReplayDevice

        return ReplayDevice.load(rest)
    if not re.fullmatch(r"auto|cpu|cuda(:\d{1,3})?", spec):
        raise UsageError(f"--device {spec}: should be {FORMS}{_near(kind)}")
    if spec == "cpu":
        return _cpu(threads)
    from niffbench.device import cuda

    if spec == "auto" and not cuda.usable():
        return _cpu(threads)
    index = int(rest or 0)
    if not cuda.usable() or index >= cuda.count():
        raise UsageError(f"--device {spec}: {cuda.describe()}; use --device cpu")
    return cuda.CudaDevice(index, threads)


def _cpu(threads: int | None) -> Device:
    from niffbench.device.cpu import CpuDevice

    return CpuDevice(threads)


def _near(word: str) -> str:
    hint = did_you_mean(word, ("auto", "cpu", "cuda", "replay"))
    return hint if "did you mean" in hint else ""
