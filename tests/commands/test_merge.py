"""``run --shard`` and ``merge``: a suite measured in parts is the suite measured at once."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from niffbench.case import Case, Problem
from niffbench.results import read
from niffbench.suite import Shard

SUITE = """
description = "Made up"
baseline = "depthwise-k3"
rounds = 2
axes = {channels = [2, 4], size = [8, 12, 16]}
operators = [{name = "depthwise", kernel = [3, 5]}, {name = "niff-depthwise/rfft"}]
measure = {regimes = ["steady"], min_time = 0.01, max_time = 0.02}
"""


def niffbench(place: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """The command line in ``place``."""
    command = [sys.executable, "-m", "niffbench.cli", *arguments]
    return subprocess.run(command, cwd=place, capture_output=True, text=True, timeout=300, check=False)


@given(st.integers(1, 40), st.integers(1, 12), st.integers(1, 5))
def test_the_parts_are_whole_problems_and_together_everything(problems: int, of: int, operators: int) -> None:
    cases = [
        Case(operator="depthwise", kernel=2 * kernel + 1, problem=Problem(1, channels, channels, 8, 8))
        for kernel in range(operators)
        for channels in range(1, problems + 1)
    ]
    parts = [Shard(number, of).positions(cases) for number in range(1, of + 1)]
    assert sorted(position for part in parts for position in part) == list(range(len(cases)))
    owners = [{cases[position].problem for position in part} for part in parts]
    assert sum(map(len, owners)) == problems
    assert max(map(len, owners)) - min(map(len, owners)) <= 1


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a suite measured whole and in three parts."""
    place = tmp_path_factory.mktemp("shards")
    (place / "s.toml").write_text(SUITE)
    (place / "r.json").write_text(json.dumps({"cases": [{"latency": {"steady": {"median": 0.001}}}]}))
    common = ["run", "s.toml", "--device", "replay:r.json", "--no-report", "--quiet"]
    assert niffbench(place, *common, "--out", "whole").returncode == 0
    for number in (1, 2, 3):
        done = niffbench(place, *common, "--out", f"part{number}", "--shard", f"{number}/3")
        assert done.returncode == 0, done.stderr
    return place


@pytest.fixture
def place(measured: Path, tmp_path: Path) -> Path:
    """A copy of ``measured``."""
    return Path(shutil.copytree(measured, tmp_path / "copy"))


def test_parts_merged_are_the_whole(place: Path) -> None:
    done = niffbench(place, "merge", "part2", "part3", "part1", "--out", "deep/merged")
    assert done.returncode == 0, done.stderr
    merged, whole = read(place / "deep" / "merged"), read(place / "whole")
    assert merged.manifest.suite == whole.manifest.suite
    assert merged.manifest.finished
    pairs = [(record.round, record.id) for record in merged.records]
    assert sorted(pairs) == sorted((record.round, record.id) for record in whole.records)
    ids = merged.manifest.suite.cases
    assert pairs == sorted(pairs, key=lambda pair: (pair[0], ids.index(pair[1])))
    by_key = {(record.id, record.round): record for n in (1, 2, 3) for record in read(place / f"part{n}").records}
    assert all(by_key[record.id, record.round] == record for record in merged.records)
    assert niffbench(place, "report", "deep/merged").returncode == 0
    check = niffbench(place, "check", "whole", "deep/merged", "--json")
    assert check.returncode in (0, 1, 5), check.stderr  # judged, as runs that are alike; two rounds decide little
    assert not {finding["verdict"] for finding in json.loads(check.stdout)["findings"]} & {"missing", "new"}
    assert niffbench(place, "merge", "part2", "part3", "part1", "--out", "deep/merged").returncode == 2


def test_a_part_is_resumed_as_that_part(place: Path) -> None:
    records = place / "part2" / "records.jsonl"
    lines = records.read_bytes().splitlines(keepends=True)
    records.write_bytes(b"".join(lines[:3]))
    done = niffbench(place, "merge", "part1", "part2", "part3", "--out", "merged")
    assert done.returncode == 2
    assert f"part2: lacks {len(lines) - 3} records of {len(lines)}" in done.stderr
    done = niffbench(
        place, "run", "s.toml", "--resume", "part2", "--device", "replay:r.json", "--no-report", "--quiet"
    )
    assert done.returncode == 0, done.stderr
    assert niffbench(place, "merge", "part1", "part2", "part3", "--out", "merged").returncode == 0
    assert len(read(place / "merged").records) == len(read(place / "whole").records)


def _edit(place: Path, **changes: object) -> None:
    manifest = json.loads((place / "run.json").read_text())
    for path, value in changes.items():
        *keys, last = path.split("__")
        part = manifest
        for key in keys:
            part = part[key]
        part[last] = value
    (place / "run.json").write_text(json.dumps(manifest))


@pytest.mark.parametrize(
    ("parts", "changes", "status", "message"),
    [
        (["part1", "part2"], {}, 2, "part 3/3 of 's' is missing"),
        (["part1", "part2", "part3", "part2"], {}, 2, "part2: is part 2/3, and so is part2"),
        (["part1", "whole"], {}, 2, "whole: is no part of a suite"),
        (["part1", "part2", "part3"], {"suite__source_hash": "0" * 64}, 2, "part3: the text of the suite is"),
        (["part1", "part2", "part3"], {"suite__shard__name": "3/4"}, 2, "part3: the number of parts is '4'"),
        (["part1", "part2", "part3"], {"fingerprint__must__torch": "1.0"}, 4, "part1 and part3 were measured on"),
        (["part1", "nowhere"], {}, 2, "nowhere: there is no such directory"),
    ],
)
def test_what_is_no_whole_is_refused_by_name(
    place: Path, parts: list[str], changes: dict[str, object], status: int, message: str
) -> None:
    _edit(place / "part3", **changes)
    done = niffbench(place, "merge", *parts, "--out", "merged")
    assert (done.returncode, done.stderr.count("\n")) == (status, 1)
    assert message in done.stderr
    assert not (place / "merged").exists()
    assert not list(place.glob(".merged*"))


@pytest.mark.parametrize(
    ("shard", "message"),
    [
        ("0/3", "should be N/M"),
        ("4/3", "should be N/M"),
        ("1", "should be N/M"),
        ("7/9", "s has fewer problems than that"),
    ],
)
def test_a_part_that_is_none_is_refused(place: Path, shard: str, message: str) -> None:
    done = niffbench(place, "run", "s.toml", "--shard", shard, "--device", "replay:r.json", "--out", "new")
    assert done.returncode == 2
    assert f"--shard {shard}: {message}" in done.stderr
    assert not (place / "new").exists()
