"""What the host tells of itself, from files that lie, lack or limit."""

from __future__ import annotations

import resource
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest

from niffbench.device import Processor, host
from niffbench.device.base import LEAST_WATCHED


def _cache(folder: Path, cpu: int = 0, shared: str = "0", **sizes: str) -> Path:
    for name, text in sizes.items():
        place = folder / f"cpu{cpu}" / "cache" / name
        place.mkdir(parents=True)
        (place / "size").write_text(text)
        (place / "shared_cpu_list").write_text(shared)
    return folder


@pytest.mark.parametrize(
    ("sizes", "expected"),
    [
        ({"index0": "48K\n", "index2": "1024K\n", "index3": "32M\n"}, 32 * 2**20),
        ({"index0": "32768\n"}, 32768),
        ({"index0": "what\n", "index1": "\n"}, 0),
        ({}, 0),
    ],
)
def test_the_largest_cache_is_found_and_nonsense_is_none(
    tmp_path: Path, sizes: dict[str, str], expected: int
) -> None:
    assert host.last_level_cache(_cache(tmp_path, **sizes), [0]) == expected


def test_every_last_level_cache_counts_once(tmp_path: Path) -> None:
    """Two dies of two cores: the process has the cores of both, or of one alone."""
    for cpu, shared in enumerate(["0-1\n", "0-1\n", "2-3\n", "2-3\n"]):
        _cache(tmp_path, cpu, shared, index0="48K\n", index3="32M\n")
    assert host.last_level_cache(tmp_path, range(4)) == 64 * 2**20
    assert host.last_level_cache(tmp_path, [1, 2]) == 64 * 2**20
    assert host.last_level_cache(tmp_path, [2, 3]) == 32 * 2**20


def test_free_memory_is_the_containers_where_that_is_less(tmp_path: Path) -> None:
    (tmp_path / "memory.max").write_text("3000000\n")
    (tmp_path / "memory.current").write_text("2500000\n")
    (tmp_path / "memory.stat").write_text("anon 1\ninactive_file 400000\nfile 7\n")
    assert host.free_memory(tmp_path) == 900_000


def test_limits_of_old_control_groups_and_of_nested_new_ones_are_facts(tmp_path: Path) -> None:
    """Docker's of version 1; and Slurm's or systemd's, where a group around the process's own has the limit."""
    own = tmp_path / "own"
    old = tmp_path / "v1"
    for name, text in {
        "memory/job/memory.limit_in_bytes": f"{2**29}",
        "memory/job/memory.usage_in_bytes": f"{2**28}",
        "memory/memory.limit_in_bytes": f"{2**63 - 4096}",
        "cpu/job/cpu.cfs_quota_us": "50000",
        "cpu/job/cpu.cfs_period_us": "100000",
        "cpu/cpu.cfs_quota_us": "-1",
    }.items():
        _write(old / name, text)
    own.write_text("4:memory:/job\n3:cpu,cpuacct:/job\n1:name=systemd:/x\n")
    assert host.limits(old, own) == {"memory_limit_gib": 0.5, "cpu_quota": 0.5}
    assert host.free_memory(old, own) <= 2**28
    new = tmp_path / "v2"
    for name, text in {
        "slurm/job/memory.max": f"{2**29}",
        "slurm/job/memory.current": f"{2**27}",
        "slurm/job/cpu.max": "75000 100000",
        "slurm/job/step/memory.max": "max",
        "slurm/job/step/cpu.max": "max 100000",
    }.items():
        _write(new / name, text)
    own.write_text("0::/slurm/job/step\n")
    assert host.limits(new, own) == {"memory_limit_gib": 0.5, "cpu_quota": 0.75}
    assert host.free_memory(new, own) <= 2**29 - 2**27
    assert host.limits(tmp_path / "none", own) == {}


def test_a_container_without_limit_leaves_the_machines_memory(tmp_path: Path) -> None:
    (tmp_path / "memory.max").write_text("max\n")
    (tmp_path / "memory.current").write_text("2500000\n")
    assert 0 < host.free_memory(tmp_path) <= psutil.virtual_memory().total


def test_free_memory_is_what_the_limit_on_the_address_space_leaves(tmp_path: Path) -> None:
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (psutil.Process().memory_info().vms + 2**26, before[1]))
    try:
        assert 0 < host.free_memory(tmp_path) <= 2**26
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)


def test_there_is_at_least_one_core_and_a_fine_timer() -> None:
    assert 1 <= host.cores() <= (psutil.cpu_count() or 1)
    assert host.load() >= 0
    assert 0 < host.quantum() < 1e-3


@pytest.mark.parametrize(("step", "cost"), [(64e-6, 5e-8), (1e-6, 5e-8), (1e-9, 5e-8)])
def test_a_clocks_step_is_that_between_readings_whatever_interrupts_one(step: float, cost: float) -> None:
    """Each reading takes so long, but one takes 20 ms."""
    for interrupted in (1500, 1999):
        moments = (cost * n + 0.02 * (n >= interrupted) for n in range(2001))
        taken = host.quantum(2000, lambda moments=moments: next(moments) // step * step)  # type: ignore[misc]
        assert taken == pytest.approx(max(step, cost), rel=0.05)


@pytest.mark.parametrize(("allowed", "cores"), [({0, 1, 64, 65}, 2), ({0, 1}, 2), ({1, 65}, 1), ({5}, 1)], ids=str)
def test_two_threads_of_a_core_are_one(allowed: set[int], cores: int, tmp_path: Path) -> None:
    for cpu in (0, 1, 64, 65):
        folder = tmp_path / f"devices/system/cpu/cpu{cpu}/topology"
        folder.mkdir(parents=True)
        (folder / "thread_siblings_list").write_text(f"{cpu % 64},{cpu % 64 + 64}\n")
    assert host._physical(frozenset(allowed), tmp_path) == cores


def test_others_are_what_the_system_used_and_this_process_did_not(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor did what it has started.

    Steal counts, somebody else had it; waiting for a disk does not, nor do guests, who are in ``user``.
    """
    names = ("user", "nice", "system", "idle", "iowait", "irq", "softirq", "steal", "guest")
    counts = (100.0, 5.0, 30.0, 900.0, 7.0, 0.5, 0.5, 2.0, 1.0), (103.0, 5.5, 30.2, 905.0, 8.0, 0.6, 0.7, 3.0, 1.5)
    times = [SimpleNamespace(**dict(zip(names, output, strict=True))) for output in counts]
    monkeypatch.setattr(psutil, "cpu_count", lambda: 4)
    monkeypatch.setattr(host, "allowed", lambda: range(4))
    children = SimpleNamespace(children_user=7.0, children_system=1.0)
    children_later = SimpleNamespace(children_user=7.2, children_system=1.2)
    monkeypatch.setattr("os.times", iter([children, children_later]).__next__)
    for clock, readings in (("process_time", [20.0, 20.6]), ("perf_counter", [1000.0, 1002.0])):
        monkeypatch.setattr(f"time.{clock}", iter(readings).__next__)
    monkeypatch.setattr(psutil, "cpu_times", iter(times).__next__)
    before = host.processor()
    spent = host.processor() - before
    assert spent.others == pytest.approx((3.0 + 0.5 + 0.2 + 0.1 + 0.2 + 1.0 - 1.0) / 4)
    assert spent.watched == pytest.approx(2.0)
    assert spent.share == 0.5


def test_a_platform_that_shows_no_counts_knows_of_no_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host, "allowed", lambda: range(psutil.cpu_count() or 1))
    monkeypatch.setattr(psutil, "cpu_times", lambda: SimpleNamespace(user=0.0, system=0.0, idle=0.0))
    before = host.processor()
    assert (host.processor() - before).share is None


@pytest.mark.parametrize(
    ("spent", "share"),
    [
        (Processor(0.25, 1.0), 0.25),
        (Processor(-0.01, 1.0), 0.0),
        (Processor(1.03, 1.0), 1.0),
        (Processor(0.2, 0.9 * LEAST_WATCHED), None),
        (Processor(), None),
    ],
)
def test_a_share_lies_between_nothing_and_all_and_needs_its_time(spent: Processor, share: float | None) -> None:
    assert spent.share == share


def _write(file: Path, text: str) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text, encoding="utf-8")


def _machine(root: Path, siblings: dict[int, str], **devices: tuple[str, str]) -> Path:
    """A planted /sys: of each core its siblings, of each PCI address its ``local_cpulist`` and ``numa_node``."""
    for cpu, text in siblings.items():
        folder = root / f"devices/system/cpu/cpu{cpu}/topology"
        folder.mkdir(parents=True)
        (folder / "thread_siblings_list").write_text(text + "\n")
    for address, (cpus, node) in devices.items():
        folder = root / "bus/pci/devices" / address
        folder.mkdir(parents=True)
        (folder / "local_cpulist").write_text(cpus + "\n")
        (folder / "numa_node").write_text(node + "\n")
    node = root / "devices/system/node/node1"
    node.mkdir(parents=True)
    (node / "cpulist").write_text("4-7\n")
    return root


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("0-3,8,10-11\n", [0, 1, 2, 3, 8, 10, 11]),
        ("5", [5]),
        ("", []),
        ("\n", []),
        ("a-b", []),
        ("3-", []),
        ("-3", []),
        ("0-99999999999", []),
        ("0-3;4", []),
    ],
)
def test_a_list_of_cores_is_read_or_is_none(text: str, expected: list[int]) -> None:
    assert host.cpu_list(text) == expected


def test_the_cores_near_a_card_are_those_the_kernel_tells(tmp_path: Path) -> None:
    devices = {"0000:17:00.0": ("0-3", "0"), "0000:ca:00.0": ("", "1"), "0000:99:00.0": ("", "-1")}
    root = _machine(tmp_path, {}, **devices)
    assert host.near("0000:17:00.0", root) == [0, 1, 2, 3]
    assert host.near("0000:CA:00.0", root) == [4, 5, 6, 7]  # by its node
    assert host.near("0000:99:00.0", root) == []
    assert host.near("0000:00:00.0", root) == []


def test_workers_share_whole_cores_near_their_cards(tmp_path: Path) -> None:
    """Two sockets of four cores with two threads each: 0-3 and 8-11, 4-7 and 12-15; two cards at the first."""
    siblings = {cpu: f"{cpu % 8},{cpu % 8 + 8}" for cpu in range(16)}
    root = _machine(tmp_path, siblings)
    one, two = [0, 1, 2, 3, 8, 9, 10, 11], [4, 5, 6, 7, 12, 13, 14, 15]
    chosen = host.shares([one, one, two], range(16), root)
    assert [len(cores) for cores in chosen] == [4, 4, 4]
    assert set(chosen[0]) | set(chosen[1]) == set(one)
    assert set(chosen[2]) < set(two)
    for cores in chosen:
        assert {cpu % 8 for cpu in cores} == {cpu % 8 for cpu in cores if cpu >= 8}  # whole cores


@pytest.mark.parametrize(
    ("near", "cpus", "sizes"),
    [
        ([[], []], range(4), [2, 2]),  # nobody knows: all cores, divided
        ([[], [0, 1]], range(4), [2, 2]),  # who can choose among fewer chooses first
        ([[0], [0]], range(4), [0, 0]),  # not enough of them near: nobody is kept to any
        ([[]] * 5, range(4), [0] * 5),
        ([[90, 91]], range(4), [4]),  # none of those may be used
    ],
)
def test_shares_are_alike_and_nobodys_twice(
    tmp_path: Path, near: list[list[int]], cpus: range, sizes: list[int]
) -> None:
    chosen = host.shares(near, cpus, tmp_path)
    assert [len(cores) for cores in chosen] == sizes
    every = [cpu for cores in chosen for cpu in cores]
    assert len(set(every)) == len(every)
    assert set(every) <= set(cpus)


def test_what_goes_on_on_cores_of_others_is_none_of_ones_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker that keeps to cores 0 and 1 of four beside one that is busy on 2 and 3."""
    seconds = [0.0, 1.0, 900.0, 800.0]
    monkeypatch.setattr(psutil, "cpu_count", lambda: 4)
    monkeypatch.setattr(host, "allowed", lambda: {0, 1})
    monkeypatch.setattr(psutil, "cpu_times", lambda percpu=False: [SimpleNamespace(user=each) for each in seconds])
    monkeypatch.setattr(host.time, "process_time", lambda: 0.0)
    monkeypatch.setattr("os.times", lambda: SimpleNamespace(children_user=0.0, children_system=0.0))
    assert host.processor().others == 0.5
