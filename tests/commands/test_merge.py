"""``run --shard`` and ``merge``: a suite measured in parts is the suite measured at once."""

from __future__ import annotations

import csv
import io
import json
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import chdir, redirect_stderr, redirect_stdout
from dataclasses import replace
from pathlib import Path

import pytest
from cli_in_process import Call
from cli_in_process import call as call
from hypothesis import given
from hypothesis import strategies as st
from launchers.inline import InlineWorker
from synthetic import FEW, World, make, save

from niffbench.case import Case, Problem
from niffbench.cli import main
from niffbench.launch import local
from niffbench.report.exports import findings_of
from niffbench.results import ShardEcho, read
from niffbench.results.fleet import machines
from niffbench.suite import Shard

SUITE = """
description = "Made up"
baseline = "depthwise-k3"
rounds = 2
axes = {channels = [2, 4], size = [8, 12, 16]}
operators = [{name = "depthwise", kernel = [3, 5]}, {name = "niff-depthwise/rfft"}]
measure = {regimes = ["steady"], min_time = 0.01, max_time = 0.02}
"""


@pytest.fixture(scope="module", autouse=True)
def inline() -> Iterator[None]:
    """Workers are no processes: nothing here depends on it, and a run takes milliseconds."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(local, "LAUNCHER", InlineWorker())
        yield


def niffbench(place: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """The command line in ``place``."""
    out, err = io.StringIO(), io.StringIO()
    with chdir(place), redirect_stdout(out), redirect_stderr(err):
        status = main(arguments)
    return subprocess.CompletedProcess(arguments, status, out.getvalue(), err.getvalue())


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
        (["part3"], {"suite__shard__name": "3/999999"}, 2, "part 1/999999, 2/999999, 4/999999, "),
        (["part3"], {"suite__shard__name": "1/999999999"}, 2, "part3/run.json: key 'suite.shard.name'"),
        (["part3"], {"suite__shard__name": "1/x"}, 2, "part3/run.json: key 'suite.shard.name'"),
        (["part3"], {"suite__shard__name": "4/3"}, 2, "part3/run.json: key 'suite.shard.name'"),
        (["part3"], {"fingerprint__must__x": float("nan")}, 2, "part3/run.json: key 'fingerprint.must.x'"),
        (["part3"], {"ci": {"x": float("inf")}}, 2, "part3/run.json: key 'ci.x'"),
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


AMD = "AMD EPYC 9554 64-Core"
WORLD = World(sizes=(14, 28), rounds=3, operators=FEW, faults=(), samples=4)


def node(place: Path, number: int, factor: float = 1.0, torch: str = "2.15.0") -> str:
    """A whole run of one machine, ``factor`` slower than others, in which nothing is said of nodes."""
    run = make(replace(WORLD, nodes=(factor,), seed=number, torch=torch), place / f"n{number}")
    records = tuple(replace(record, node=None) for record in run.records)
    save(replace(run, records=records, manifest=run.manifest.model_copy(update={"nodes": [], "seed": number})))
    return f"n{number}"


def test_whole_runs_of_several_nodes_are_one_that_names_the_slow_one(tmp_path: Path, call: Call) -> None:
    runs = [node(tmp_path, number, factor) for number, factor in enumerate((1.0, 1.005, 1.2, 0.995, 1.002))]
    refused = call("merge", *runs, "--out", "merged")
    assert refused.returncode == 2
    assert "n0: is no part of a suite (it was measured without --shard); --fleet takes whole" in refused.stderr
    assert call("merge", *runs, "--fleet", "--out", "merged").returncode == 0
    merged = read(tmp_path / "merged")
    assert len(merged.records) == merged.manifest.records == 5 * len(read(tmp_path / "n0").records)
    assert {record.round: record.node for record in merged.records} == {
        number: number // 3 for number in range(15)
    }
    table = call("table", "merged", "--per-node", "--format", "csv")
    names = [line["device"] for line in csv.DictReader(table.stdout.splitlines())]
    assert names == ["node 0", "node 1", "node 2, straggler", "node 3", "node 4"]
    shown = call("table", "merged", "--per-node").stdout
    assert "device" in shown
    assert [one["straggler"] for one in findings_of(merged)["fleet"]] == [False, False, True, False, False]
    notes = json.loads(call("check", "merged", "merged", "--json").stdout)["notes"]
    assert [note for note in notes if "node 2 is" in note and "slower than the other four" in note]
    assert call("export", "merged", "--format", "csv", "--out", "x.csv").returncode == 0
    alone = call("table", "n0", "--per-node")
    assert (alone.returncode, "--per-node needs several" in alone.stderr) == (2, True)


def test_a_merged_fleet_can_be_merged_with_more_of_it(tmp_path: Path, call: Call) -> None:
    runs = [node(tmp_path, number) for number in range(3)]
    assert call("merge", *runs[:2], "--fleet", "--out", "two").returncode == 0
    assert call("merge", "two", runs[2], "--fleet", "--out", "three").returncode == 0
    merged = read(tmp_path / "three")
    assert {record.round: record.node for record in merged.records} == {number: number // 3 for number in range(9)}
    assert merged.manifest.rounds == 9


def test_parts_that_engines_measured_keep_their_nodes_apart(tmp_path: Path, call: Call) -> None:
    """Without --fleet too: node 0 of one part is not that of the other."""
    whole = make(replace(WORLD, nodes=(1.0, 1.0)), tmp_path)
    for number, size in enumerate((14, 28), start=1):
        records = tuple(record for record in whole.records if record.case.problem.height == size)
        ids = list(dict.fromkeys(record.id for record in records))
        positions = [whole.manifest.suite.cases.index(id_) for id_ in ids]
        shard = ShardEcho(name=f"{number}/2", positions=positions)
        suite = whole.manifest.suite.model_copy(update={"cases": ids, "shard": shard})
        part = whole.manifest.model_copy(update={"suite": suite, "seed": number})
        save(replace(whole, path=tmp_path / f"p{number}", records=records, manifest=part))
    assert call("merge", "p1", "p2", "--out", "merged").returncode == 0
    merged = read(tmp_path / "merged")
    assert len(merged.manifest.nodes) == 4
    nodes = {record.case.problem.height: set() for record in merged.records}
    for record in merged.records:
        nodes[record.case.problem.height].add(record.node)
    assert nodes == {14: {0, 1}, 28: {2, 3}}


def test_unlike_machines_are_put_side_by_side(tmp_path: Path, call: Call) -> None:
    runs = [node(tmp_path, number, torch="2.15.0" if number < 2 else "2.11.0") for number in range(4)]
    assert call("merge", *runs, "--fleet", "--out", "merged").returncode == 0
    names = [kind.name for kind in machines(read(tmp_path / "merged"))]
    assert [name.rpartition(", ")[0] for name in names] == [f"merged ({AMD}, nodes {n}" for n in (0, 2)]
    per_node = call("table", "merged", "--per-node", "--format", "csv").stdout.splitlines()[1:]
    assert [line.partition(",")[0] for line in per_node] == ["node 0", "node 1", "node 2", "node 3"]
    done = call("check", "merged", "n0")
    assert (done.returncode, "holds 2 machines that are unlike" in done.stderr) == (4, True)


def test_of_unlike_machines_each_needs_all_parts_and_none_twice(place: Path, call: Call) -> None:
    parts = [str(place / f"part{number}") for number in (1, 2, 3)]
    for number in (1, 2, 3):
        shutil.copytree(place / f"part{number}", place / f"other{number}")
        _edit(place / f"other{number}", fingerprint__must__torch="1.0")
    others = [str(place / f"other{number}") for number in (1, 2, 3)]
    done = call("merge", *parts, *others[:2], "--fleet", "--out", "merged")
    assert (done.returncode, "part 3/3 of 's' is missing on" in done.stderr) == (2, True)
    done = call("merge", *parts, parts[0], "--fleet", "--out", "merged")
    assert (done.returncode, "part1: is there twice" in done.stderr) == (2, True)
    done = call("merge", *parts, *others, "--fleet", "--out", "merged")
    assert done.returncode == 0, done.stderr
    merged = read(Path("merged"))
    assert merged.manifest.rounds == 4
    assert [fingerprint.must.get("torch") == "1.0" for fingerprint in merged.manifest.nodes] == [False] * 3 + [
        True
    ] * 3
