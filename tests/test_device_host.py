"""What the host tells of itself, from files that lie, lack or limit."""

from __future__ import annotations

from pathlib import Path

import psutil
import pytest

from niffbench.device import host, timer


def _cache(folder: Path, **sizes: str) -> Path:
    for name, text in sizes.items():
        (folder / name).mkdir()
        (folder / name / "size").write_text(text)
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
    assert host.last_level_cache(_cache(tmp_path, **sizes)) == expected


def test_free_memory_is_the_containers_where_that_is_less(tmp_path: Path) -> None:
    (tmp_path / "memory.max").write_text("3000000\n")
    (tmp_path / "memory.current").write_text("2500000\n")
    (tmp_path / "memory.stat").write_text("anon 1\ninactive_file 400000\nfile 7\n")
    assert host.free_memory(tmp_path) == 900_000


def test_a_container_without_limit_leaves_the_machines_memory(tmp_path: Path) -> None:
    (tmp_path / "memory.max").write_text("max\n")
    (tmp_path / "memory.current").write_text("2500000\n")
    assert 0 < host.free_memory(tmp_path) <= psutil.virtual_memory().total


def test_there_is_at_least_one_core_and_a_fine_timer() -> None:
    assert 1 <= host.cores() <= (psutil.cpu_count() or 1)
    assert host.load() >= 0
    assert 0 < timer.quantum() < 1e-3
