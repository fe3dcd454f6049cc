"""The host processor: its cores, last-level cache, memory left, load. Torch-free."""

from __future__ import annotations

import os
import resource
import time
from collections.abc import Collection
from pathlib import Path

import psutil

from niffbench.device.base import Processor

_CPUS = Path("/sys/devices/system/cpu")
_CGROUP = Path("/sys/fs/cgroup")
_BUSY = ("user", "nice", "system", "irq", "softirq", "steal")  # of the kernel's counts; a platform may lack some
_UNITS = {"K": 2**10, "M": 2**20, "G": 2**30}


def cores() -> int:
    """Physical cores this process may run on (logical ones where that is not known), at least 1."""
    logical = len(allowed())
    return max(1, min(logical, psutil.cpu_count(logical=False) or logical))


def last_level_cache(folder: Path = _CPUS, cpus: Collection[int] | None = None) -> int:
    """Bytes of the largest caches that ``cpus`` see, each once, together; 0 where the kernel does not tell.

    A processor of several dies, and a machine of several processors, has a last-level cache for each. ``cpus``: by
    default those this process may run on.
    """
    found: dict[str, int] = {}
    for cpu in allowed() if cpus is None else cpus:
        size, sharers = max(
            (
                (_size(path / "size"), _read(path / "shared_cpu_list"))
                for path in folder.glob(f"cpu{cpu}/cache/index*")
            ),
            default=(0, ""),
        )
        found[sharers] = max(size, found.get(sharers, 0))
    return sum(found.values())


def _size(path: Path) -> int:
    """Bytes as the kernel writes them, ``32768K``; 0 for anything else."""
    text = _read(path)
    if text[:-1].isdecimal() and text[-1:] in _UNITS:
        return int(text[:-1]) * _UNITS[text[-1]]
    return int(text) if text.isdecimal() else 0


def allowed() -> Collection[int]:
    """The logical cores this process may run on."""
    return os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else range(os.cpu_count() or 1)


def free_memory(cgroup: Path = _CGROUP) -> int:
    """Bytes that can be allocated without swapping: the machine's, or the container's or what the process's limit
    on its address space leaves, where that is less.
    """
    free = int(psutil.virtual_memory().available)
    limit, used = _read(cgroup / "memory.max"), _read(cgroup / "memory.current")
    if limit.isdecimal() and used.isdecimal():
        free = min(free, max(0, int(limit) - int(used) + _reclaimable(cgroup)))
    space, _ = resource.getrlimit(resource.RLIMIT_AS)
    if space != resource.RLIM_INFINITY:
        free = min(free, max(0, space - psutil.Process().memory_info().vms))
    return free


def _reclaimable(cgroup: Path) -> int:
    """Page cache that a container gives back under pressure."""
    for line in _read(cgroup / "memory.stat").splitlines():
        key, _, value = line.partition(" ")
        if key == "inactive_file" and value.isdecimal():
            return int(value)
    return 0


def load() -> float:
    """The one-minute load average per core this process may run on."""
    return os.getloadavg()[0] / cores()


def processor() -> Processor:
    """What the system has used of all logical cores less what this process and its threads have: some 20 µs."""
    times, own, now = psutil.cpu_times(), time.process_time(), time.perf_counter()
    busy = sum(getattr(times, name, 0.0) for name in _BUSY)
    if not busy:  # a sandbox that shows no counts
        return Processor()
    return Processor((busy - own) / (psutil.cpu_count() or 1), now)


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="ascii").strip()
    except (OSError, UnicodeDecodeError):
        return ""
