"""The host processor: its cores, last-level cache, memory left, load, clock. Torch-free."""

from __future__ import annotations

import ctypes
import functools
import os
import resource
import signal
import sys
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path
from statistics import median_low

import psutil

from niffbench.device.base import Processor
from niffbench.fingerprint import Fact

_SYS = Path("/sys")
_CPUS = _SYS / "devices/system/cpu"
_MOST_CPUS = 2**16
_CGROUP = Path("/sys/fs/cgroup")
_OWN_GROUPS = Path("/proc/self/cgroup")
_BUSY = ("user", "nice", "system", "irq", "softirq", "steal")  # of the kernel's counts; a platform may lack some
_UNITS = {"K": 2**10, "M": 2**20, "G": 2**30}
_PR_SET_PDEATHSIG = 1  # linux/prctl.h


def die_with_parent() -> None:
    """Let the kernel end this process when its parent ends, however that does (Linux)."""
    if sys.platform != "linux":
        return
    parent = os.getppid()
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:  # it ended in between
        os._exit(0)


def cores() -> int:
    """Physical cores this process may run on (logical ones where that is not known), at least 1."""
    return _physical(frozenset(allowed()))


@functools.cache  # reading them takes long beside a block of samples
def _physical(cpus: frozenset[int], root: Path = _SYS) -> int:
    threads = {siblings for cpu in cpus if (siblings := _siblings(cpu, root))}
    return len(threads) or max(1, min(len(cpus), psutil.cpu_count(logical=False) or len(cpus)))


def _siblings(cpu: int, root: Path) -> tuple[int, ...]:
    """The logical cores of the physical one that ``cpu`` is of; none where nobody tells."""
    return tuple(cpu_list(_read(root / f"devices/system/cpu/cpu{cpu}/topology/thread_siblings_list")))


def last_level_cache(folder: Path = _CPUS, cpus: Collection[int] | None = None) -> int:
    """Bytes of the largest caches that ``cpus`` see, each once, together; 0 where the kernel does not tell.

    A processor of several dies, and a machine of several processors, has a last-level cache for each.

    Args:
        cpus: by default those this process may run on.
    """
    caches: dict[str, int] = {}
    for cpu in allowed() if cpus is None else cpus:
        size, sharers = max(
            (
                (_size(path / "size"), _read(path / "shared_cpu_list"))
                for path in folder.glob(f"cpu{cpu}/cache/index*")
            ),
            default=(0, ""),
        )
        caches[sharers] = max(size, caches.get(sharers, 0))
    return sum(caches.values())


def _size(path: Path) -> int:
    """Bytes as the kernel writes them, ``32768K``; 0 for anything else."""
    text = _read(path)
    if text[:-1].isdecimal() and text[-1:] in _UNITS:
        return int(text[:-1]) * _UNITS[text[-1]]
    return int(text) if text.isdecimal() else 0


def allowed() -> Collection[int]:
    """The logical cores this process may run on."""
    return os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else range(os.cpu_count() or 1)


def near(address: str, root: Path = _SYS) -> list[int]:
    """The logical cores next to the device at a PCI address, ``0000:17:00.0``; none where nobody tells.

    Linux, Documentation/ABI/testing/sysfs-bus-pci: ``local_cpulist``, and ``numa_node``, which is -1 where the
    machine has no such nodes.
    """
    device = root / "bus/pci/devices" / address.lower()
    if listed := cpu_list(_read(device / "local_cpulist")):
        return listed
    node = _read(device / "numa_node")
    return cpu_list(_read(root / f"devices/system/node/node{node}/cpulist")) if node.isdecimal() else []


def cpu_list(text: str) -> list[int]:
    """The numbers in a list as the kernel writes them, ``0-3,8,10-11``; none of what is no such list."""
    numbers: list[int] = []
    for part in filter(None, text.strip().split(",")):
        first, dash, last = part.partition("-")
        last = last if dash else first
        if not (first.isdecimal() and last.isdecimal()) or int(last) - int(first) > _MOST_CPUS:
            return []
        numbers += range(int(first), int(last) + 1)
    return numbers


def shares(near: Sequence[Collection[int]], cpus: Collection[int], root: Path = _SYS) -> list[list[int]]:
    """Cores for workers that run at once, near the device of each: equally many, whole ones, and nobody's twice.

    Args:
        near: of each worker's device, the logical cores next to it; empty where that is not known.
        cpus: those that may be used.

    Returns:
        Of each its logical cores; all are empty where there are fewer cores than workers.
    """
    siblings = {cpu: _siblings(cpu, root) or (cpu,) for cpu in sorted(cpus)}
    wanted = [[cpu for cpu in siblings if cpu in cores] or list(siblings) for cores in near]
    # Who can choose among fewer chooses first, and others leave these to it.
    order = sorted(range(len(near)), key=lambda worker: len(wanted[worker]))
    for worker in order:
        narrower = {cpu for one in wanted if len(one) < len(wanted[worker]) for cpu in one}
        wanted[worker].sort(key=lambda cpu, narrower=narrower: cpu in narrower)  # type: ignore[misc]
    chosen: list[list[tuple[int, ...]]] = [[] for _ in near]
    taken: set[int] = set()
    while True:
        picks = {}
        for worker in order:
            core = next((siblings[cpu] for cpu in wanted[worker] if cpu not in taken), None)
            if core is None:
                return [sorted(cpu for core in cores for cpu in core if cpu in siblings) for cores in chosen]
            picks[worker] = core
            taken |= set(core)
        for worker, core in picks.items():
            chosen[worker].append(core)


def free_memory(root: Path = _CGROUP, own: Path = _OWN_GROUPS) -> int:
    """Bytes that can be allocated without swapping: the machine's, or what a group of processes it is in or the
    process's limit on its address space leaves, where that is less.
    """
    free = int(psutil.virtual_memory().available)
    for group in _groups("memory", root, own):
        limit, used, cache = _memory(group)
        if limit is not None and used.isdecimal():
            free = min(free, max(0, limit - int(used) + cache))
    space, _ = resource.getrlimit(resource.RLIMIT_AS)
    if space != resource.RLIM_INFINITY:
        free = min(free, max(0, space - psutil.Process().memory_info().vms))
    return free


def limits(root: Path = _CGROUP, own: Path = _OWN_GROUPS) -> dict[str, Fact]:
    """What a container, a batch system or a service manager allows: memory in GiB, and processors by their quota.

    The least of the group the process is in and of those around it, of both versions of control groups; a limit
    that there is not, or beyond what the machine has, is left out.
    """
    limits: dict[str, Fact] = {}
    memory = [limit for group in _groups("memory", root, own) if (limit := _memory(group)[0]) is not None]
    if memory and min(memory) < psutil.virtual_memory().total:
        limits["memory_limit_gib"] = round(min(memory) / 2**30, 2)
    quotas = [quota for group in _groups("cpu", root, own) if (quota := _quota(group)) is not None]
    if quotas and min(quotas) < (os.cpu_count() or 1):
        limits["cpu_quota"] = round(min(quotas), 2)
    return limits


def _groups(controller: str, root: Path, own: Path) -> Iterator[Path]:
    """The folders of the control groups that limit this process, the innermost first."""
    for line in _read(own).splitlines():
        _, names, path = [*line.split(":", 2), "", ""][:3]
        if names and controller not in names.split(","):
            continue
        top = root / controller if names else root
        inner = top / path.lstrip("/")
        # In a container the path may be one that only the host knows: then the mount is the group itself.
        for folder in (inner, *inner.parents) if inner.is_dir() else (top,):
            yield folder
            if folder == top:
                break


def _memory(group: Path) -> tuple[int | None, str, int]:
    """A group's limit in bytes (None without one), what it uses, and what of that is cache it can give back."""
    new = _read(group / "memory.max")
    limit = new or _read(group / "memory.limit_in_bytes")
    used = _read(group / "memory.current") if new else _read(group / "memory.usage_in_bytes")
    key = "inactive_file" if new else "total_inactive_file"
    lines = (line.partition(" ") for line in _read(group / "memory.stat").splitlines())
    cache = next((int(value) for name, _, value in lines if name == key and value.isdecimal()), 0)
    return int(limit) if limit.isdecimal() and int(limit) < 2**60 else None, used, cache


def _quota(group: Path) -> float | None:
    """How many processors' time a group may use; None without a limit."""
    quota, _, period = _read(group / "cpu.max").partition(" ")
    if not quota:
        quota, period = _read(group / "cpu.cfs_quota_us"), _read(group / "cpu.cfs_period_us")
    both = quota.isdecimal() and period.isdecimal() and int(period) > 0
    return int(quota) / int(period) if both else None


def load() -> float:
    """The one-minute load average per core this process may run on."""
    return os.getloadavg()[0] / cores()


def processor() -> Processor:
    """What the system has used of the logical cores that this process may run on, less what its own threads have.

    And less what processes have that it started (a compiler, say), once they have ended.

    It takes some 20 µs, and a millisecond where these are not all: what goes on on the others is left out.
    """
    number, kept = psutil.cpu_count() or 1, allowed()
    of_cores = [psutil.cpu_times()] if len(kept) >= number else []
    if not of_cores:
        of_cores = [times for core, times in enumerate(psutil.cpu_times(percpu=True)) if core in kept]
        number = max(len(of_cores), 1)
    children = os.times()
    own, now = time.process_time() + children.children_user + children.children_system, time.perf_counter()
    busy = sum(getattr(times, name, 0.0) for times in of_cores for name in _BUSY)
    if not busy:  # a sandbox that shows no counts
        return Processor()
    return Processor((busy - own) / number, now)


def quantum(readings: int = 2000, clock: Callable[[], float] = time.perf_counter) -> float:
    """The step that ``clock`` makes between readings, in seconds: its resolution, or what a reading costs if more.

    It is the lower median of the steps seen, of which there may be two: an interruption makes one longer, nothing
    makes one shorter.
    """
    steps: list[float] = []
    last = clock()
    for _ in range(readings):
        now = clock()
        if now > last:
            steps.append(now - last)
        last = now
    return median_low(steps) if steps else 1e-3


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="ascii").strip()
    except (OSError, UnicodeDecodeError):
        return ""
