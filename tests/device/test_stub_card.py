"""The CUDA code on torch's real allocator, streams, events and graphs, with a card that is not there.

Nothing is computed and no time means anything; these tests hold what does not depend on that.
"""

from __future__ import annotations

import json
import tarfile
from pathlib import Path
from typing import Any

import pytest
import stub_card
from warm_process import CLI, ON_STUB_CARD

from niffbench.results import read

MIB = 2**20
IMAGE = 8 * MIB
HALF = 2 * 64 * 128 * 65 * 8
"""Bytes of the half-plane spectrum of such an image: 8.125 MiB."""


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The stub, built once; skips where it cannot be."""
    try:
        return stub_card.build(tmp_path_factory.mktemp("card"))
    except stub_card.Unavailable as why:
        pytest.skip(f"no stub card: {why}")


@pytest.fixture(scope="module")
def result(library: Path) -> Any:
    """What the programs that share a process found, by name."""
    return _run(library, "places", "peaks", "training", "captures", "uncapturable")


@pytest.fixture(scope="module")
def graphs(library: Path) -> Any:
    """What the programs about clocks and graphs found, by name; and a profile after them."""
    return _run(library, "after_a_failed_capture", "unrolled", "chosen", "profiled")


@pytest.fixture(scope="module")
def full(library: Path) -> Any:
    """What the programs on a card that is too small for them found, by name."""
    return _run(library, "out_of_memory", "roofline", CARD_TOTAL_MIB="700")


def _run(library: Path, *programs: str, **settings: str) -> Any:
    done = stub_card.run(library, ON_STUB_CARD, *programs, **settings)
    assert done.stdout, done.stderr[-2000:]
    return json.loads(done.stdout.splitlines()[-1])


def test_every_operator_keeps_output_and_gradients_on_the_card(result: Any) -> None:
    assert result["places"]["elsewhere"] == []
    assert result["places"]["operators"] > 30


def test_peaks_are_those_computed_by_hand(result: Any) -> None:
    assert result["peaks"] == {
        "add": IMAGE,
        "add, multiply": 2 * IMAGE,
        "in place": 0,
        "rfft2": HALF,
        "irfft2": IMAGE + HALF,  # c2r clones what it would destroy
        "depthwise": IMAGE,
    }


def test_training_takes_its_output_and_its_gradients(result: Any) -> None:
    weight = 64 * 49 * 4
    call = result["training"]
    assert call["resident"] == 2 * IMAGE + weight
    assert call["predicted"] == 2 * IMAGE + weight
    assert 0 <= call["peak"] - call["predicted"] < 512  # the allocator's blocks
    assert call["saved"] == 0


def test_whatever_was_measured_before_a_case_can_be_captured_and_leaves_nothing(result: Any) -> None:
    captures = result["captures"]
    assert captures["failed"] == []
    assert captures["grown"] == [0] * 4
    assert captures["streams"] == []


def test_what_cannot_be_captured_is_unsupported_and_the_card_goes_on(result: Any) -> None:
    assert result["uncapturable"] == {"status": "unsupported", "at home": True, "again": True}


def test_a_capture_that_failed_leaves_random_numbers_and_memory_as_they_were(graphs: Any) -> None:
    """Up to torch 2.11 it leaves the generator capturing, in graphs captured before too, and keeps its memory."""
    assert graphs["after_a_failed_capture"]["drawn"]
    assert graphs["after_a_failed_capture"]["kept"] < 64 * MIB


def test_a_graph_of_short_calls_holds_many_in_the_memory_of_one(graphs: Any) -> None:
    result = graphs["unrolled"]
    assert result["short"] > 1
    assert result["lasts"] > 40e-6
    assert result["long"] == 1
    assert result["taken"] < 64 * MIB


def test_auto_chooses_by_the_clock_that_is_asked_for(graphs: Any) -> None:
    assert graphs["chosen"] == {"host": "slow on the card", "device": "slow to enqueue"}


def test_a_profile_that_saw_no_kernel_says_so(graphs: Any) -> None:
    profiled = graphs["profiled"]
    assert profiled["status"] == 3
    assert "saw none of its kernels" in profiled["said"]
    assert "fault of niffbench" not in profiled["said"]


def test_out_of_memory_is_a_record_and_the_other_cases_run(full: Any) -> None:
    by_channels = {record["channels"]: record for record in full["out_of_memory"]}
    statuses = {channels: record["status"] for channels, record in by_channels.items()}
    assert statuses == {8: "ok", 16: "ok", 512: "oom"}
    assert by_channels[8]["graph"]
    assert by_channels[16]["graph"]
    assert by_channels[512]["needed"] == 256 * MIB
    assert by_channels[16]["sampled"] == ["first", "cold", "steady", "wall", "graph"]


def test_a_card_too_full_for_the_ceilings_says_so(full: Any) -> None:
    [said] = full["roofline"]
    assert said["ceilings"] is None
    assert said["reason"].startswith("CUDA out of memory")


def test_a_card_that_is_lost_is_said_to_be(library: Path) -> None:
    assert "illegal memory access" in _run(library, "lost", CARD_LOSE_AFTER="300")["lost"]["lost"]


def test_a_card_that_computes_nothing_is_wrong_and_not_timed(library: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    arguments = ("--only", "mode=inference", "--only", "depthwise-k7", "--only", "dense-k3", "--no-report")
    arguments += ("--rounds", "1")
    done = stub_card.run(library, CLI, "run", "smoke", "--device", "cuda", "--out", str(out), *arguments)
    assert done.returncode == 3, done.stderr[-2000:]
    records = [json.loads(line) for line in (out / "records.jsonl").read_text().splitlines()]
    assert {record["status"] for record in records} == {"wrong"}
    assert not any(record.get("latency") for record in records)
    assert "Stub H100" in (out / "run.json").read_text()


SMALL = """
description = "A case of each kind"
baseline = "depthwise-k7"
rounds = 1

[axes]
channels = 8
size = 14

[[operators]]
name = "niff-depthwise/rfft"

[[operators]]
name = "depthwise-k7"

[measure]
regimes = ["cold", "steady", "graph", "wall"]
min_time = 0.005
max_time = 0.02
"""


def test_what_a_card_is_asked_for_a_verdict_runs(library: Path, tmp_path: Path) -> None:
    """Paths that only a GPU takes: its ceilings, graphs and plans; and other clocks where they cannot work."""
    suite, out = tmp_path / "small.toml", tmp_path / "out"
    suite.write_text(SMALL)
    only = ("--only", "assumptions", "--only", "suite-small", "--only", "witnesses", "--minutes", "60")
    command = ("gpu-verdict", *only, "--suite", str(suite), "--out", str(out))
    done = stub_card.run(library, CLI, *command, NIFFBENCH_EXTRA_OPERATORS="lenient")
    assert done.returncode == 0, done.stdout + done.stderr
    with tarfile.open(out / "gathered.tar.gz") as archive:
        archive.extractall(tmp_path / "unpacked", filter="data")
    findings = json.loads((tmp_path / "unpacked" / "assumptions.json").read_text())
    assert {finding["verdict"] for finding in findings} <= {"confirmed", "corrected"}
    run = read(tmp_path / "unpacked" / "runs" / "suite-small")
    assert run.manifest.ceilings is not None
    assert [record.status for record in run.records] == ["ok", "ok"]
    assert {regime for record in run.records for regime in record.latency} == {"cold", "steady", "graph", "wall"}
    rows = json.loads((tmp_path / "unpacked" / "witnesses.json").read_text())
    compared = {row["operator"] for row in rows if row["ours"] is not None}
    assert {"niff-depthwise/rfft", "depthwise-k7", "copy"} <= compared
    assert all(row["reason"] or row["theirs"] for row in rows)
