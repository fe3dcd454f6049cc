"""A run on a GPU from end to end without one: a replayed trace with clocks, throttling, graphs and failures.

``data/replay_cuda.json`` plays the suite ``smoke``. Its entries plant what a card does to a measurement; whatever
they do not name is made up from closed forms. The card's name says that it is none.
"""

from __future__ import annotations

import json
import math
import os
import statistics
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import warm_process

from niffbench.results import REGIMES, Record, Run, read

Cli = Callable[..., subprocess.CompletedProcess[str]]

TRACE = Path(__file__).parents[1] / "data" / "replay_cuda.json"
LARGE, SMALL = "B1 16@14", "B1 8@7"
ROUNDS = 3


def _niffbench(place: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return warm_process.run(arguments, os.environ, place)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("replayed")


@pytest.fixture(scope="module")
def said(place: Path) -> subprocess.CompletedProcess[str]:
    """``niffbench run smoke`` on the replayed card."""
    done = _niffbench(
        place,
        "run",
        "smoke",
        "--rounds",
        str(ROUNDS),
        "--device",
        f"replay:{TRACE}",
        "--out",
        "run",
        "--seed",
        "5",
    )
    assert done.returncode == 0, done.stderr
    return done


@pytest.fixture(scope="module")
def run(place: Path, said: subprocess.CompletedProcess[str]) -> Run:
    return read(place / "run")


def _of(run: Run, label: str, problem: str) -> list[Record]:
    """The records of one case, by round."""
    result = [r for r in run.records if (r.traits.label, r.case.problem.label) == (label, problem)]
    assert len(result) == ROUNDS
    return sorted(result, key=lambda record: record.round)


def _ok(run: Run) -> list[Record]:
    return [record for record in run.records if record.status == "ok"]


def test_every_case_has_a_record_in_every_round_and_failures_are_no_numbers(run: Run) -> None:
    assert len(run.records) == 20 * ROUNDS
    assert len({(record.id, record.round) for record in run.records}) == 20 * ROUNDS
    statuses = {status: sum(r.status == status for r in run.records) for status in {r.status for r in run.records}}
    assert statuses == {"ok": 53, "oom": 3, "skipped": 3, "crashed": 1}
    for record in run.records:
        if record.status in ("oom", "skipped"):
            assert record.reason
            assert not record.latency
            assert record.memory is None


def test_every_regime_of_a_gpu_is_sampled(run: Run) -> None:
    for record in _ok(run):
        assert tuple(record.latency) == REGIMES
        for regime, latency in record.latency.items():
            if "not captured" not in latency.flags:
                assert latency.samples, (record.traits.label, regime)
                assert sum(latency.blocks) == len(latency.samples)


def test_a_graph_takes_the_launches_out(run: Run) -> None:
    for record in _of(run, "niff-depthwise/published", LARGE):
        steady, graph = record.latency["steady"], record.latency["graph"]
        assert statistics.median(graph.samples) == pytest.approx(4e-5, rel=0.03)
        assert statistics.median(steady.samples) == pytest.approx(1e-4, rel=0.03)
        assert graph.launch_share == pytest.approx(0.6, abs=0.02)
        assert steady.launch_share is None
        assert steady.flags == ["launch-bound"]
        assert list(record.latency["first"].samples) == [pytest.approx(0.021, rel=0.1)]
        assert statistics.median(record.latency["cold"].samples) == pytest.approx(1.4e-4, rel=0.03)


def test_samples_are_long_enough_for_the_timer(run: Run) -> None:
    """An event's resolution is half a microsecond: a sample of short calls is the mean of many."""
    for record in _ok(run):
        steady = record.latency["steady"]
        assert steady.calls * statistics.median(steady.samples) >= 1000 * 0.5e-6 * 0.9
        assert record.latency["cold"].calls == 1


def test_a_graph_that_cannot_be_captured_costs_the_other_regimes_nothing(run: Run) -> None:
    for record in _of(run, "niff-depthwise/published", SMALL):
        assert record.status == "ok"
        assert list(record.latency["graph"].samples) == []
        assert record.latency["graph"].flags == ["not captured"]
        assert record.latency["steady"].samples
        assert record.reason == "no graph: CUDA error: operation not permitted when stream is capturing"


def test_a_block_throttled_for_a_while_is_repeated(run: Run) -> None:
    for record in _of(run, "niff-depthwise/rfft", LARGE):
        assert not any("throttled" in latency.flags for latency in record.latency.values())
        assert record.machine is not None
        assert record.machine.throttle == ["hw_thermal_slowdown"]
        assert (record.machine.sm_clock, record.machine.temperature) == (1100, 87)


def test_a_card_that_stays_throttled_is_labelled_and_not_waited_for(run: Run) -> None:
    for record in _of(run, "depthwise-k7", LARGE):
        flagged = {regime for regime, latency in record.latency.items() if "throttled" in latency.flags}
        assert flagged == {"cold", "steady", "wall", "graph"}
        # Three rests of 1, 2 and 4 s a regime, in the replay's time.
        assert 21 <= record.elapsed < 30


@pytest.mark.parametrize(("problem", "throttled"), [(SMALL, False), (f"{SMALL} training", True)])
def test_a_power_cap_counts_as_throttling_when_clocks_are_low(run: Run, problem: str, throttled: bool) -> None:
    for record in _of(run, "depthwise-k7", problem):
        assert record.machine is not None
        assert record.machine.throttle == ["sw_power_cap"]
        assert ("throttled" in record.latency["steady"].flags) is throttled


def test_running_out_of_memory_says_how_much_was_asked_for(run: Run) -> None:
    for record in _of(run, "dense-k3", f"{LARGE} training"):
        assert record.status == "oom"
        assert (record.needed, record.available) == (2**31, 2**30)


def test_what_cannot_fit_is_not_tried(run: Run) -> None:
    for record in _of(run, "dense-k3", f"{SMALL} training"):
        assert record.status == "skipped"
        assert record.needed is not None
        assert record.needed > 10**12
        assert record.available == 84_000_000_000


def test_a_lost_gpu_costs_one_record_and_the_round_goes_on(run: Run) -> None:
    first, lost, last = _of(run, "fft-depthwise-k7", f"{LARGE} training")
    assert (first.status, lost.status, last.status) == ("ok", "crashed", "ok")
    assert lost.reason is not None
    assert "the device is lost" in lost.reason
    assert "an illegal memory access was encountered" in lost.reason
    others = [r for r in run.records if r.round == 1 and r.case.problem == lost.case.problem and r.id != lost.id]
    assert sorted(r.status for r in others) == ["ok", "ok", "ok", "oom"]


def test_memory_of_the_allocator_and_of_the_device_are_both_kept(run: Run) -> None:
    for record in _of(run, "niff-depthwise/rfft", SMALL):
        memory = record.memory
        assert memory is not None
        assert (memory.resident, memory.peak, memory.output) == (2688, 1050624, 1568)
        assert (memory.reserved, memory.device_delta) == (2**21, 2**22)
        assert memory.workspace == memory.peak - 6144


def test_energy_is_the_cards_power_over_the_calls(run: Run) -> None:
    for record in _ok(run):
        if record.round:
            assert record.energy is None
        elif "drift" not in record.latency["steady"].flags:
            expected = 500 * statistics.median(record.latency["steady"].samples)
            assert record.energy == pytest.approx(expected, rel=0.02)


def test_a_series_that_drifts_and_a_timer_that_is_stuck_are_flagged(run: Run) -> None:
    for record in _of(run, "niff-depthwise/rfft", f"{SMALL} training"):
        assert "drift" in record.latency["steady"].flags
        assert "drift" not in record.latency["graph"].flags
    for record in _of(run, "fft-depthwise-k7", f"{SMALL} training"):
        assert "stuck" in record.latency["graph"].flags
        assert "stuck" not in record.latency["steady"].flags


def test_the_fingerprint_is_the_cards_and_says_it_was_replayed(run: Run) -> None:
    must = run.manifest.fingerprint.must
    output = json.loads(TRACE.read_text())["facts"]
    assert {key: must[key] for key in output} == output
    assert must["device"] == "replay of cuda"
    assert run.manifest.ceilings is not None
    assert run.manifest.ceilings.copy_bandwidth == 2.9e12


def test_the_terminal_says_what_was_not_measured_and_why(said: subprocess.CompletedProcess[str]) -> None:
    text = " ".join(said.stdout.split())
    assert "Measured: 17 of 20 cases in every round, 1 in some, 1 oom, 1 skipped" in text
    assert "throttled" in text
    assert "launch-bound" in text
    assert "out of memory: tried to allocate 2147483648 bytes" in text
    assert "the device is lost: CUDA error" in text
    assert "Traceback" not in said.stderr


def test_the_report_shows_the_card_its_failures_and_its_graphs(place: Path, run: Run) -> None:
    html, markdown = (place / "run" / "report.html").read_text(), (place / "run" / "report.md").read_text()
    for text in (html, markdown):
        assert "Replayed GPU 80GB" in text
        assert "throttled" in text
        assert "out of memory" in text
        assert "the device is lost" in text
        assert "graph" in text
        assert "NaN" not in text
    plots = {path.stem for path in (place / "run" / "plots").glob("*.svg")}
    assert {"overview", "pareto"} <= plots
    assert "roofline" not in plots  # its bytes are counted by torch, which a replay does without


def _changed(path: Path, change: Callable[[dict[str, Any]], None]) -> Path:
    """The trace as another card would have played it."""
    trace = json.loads(TRACE.read_text())
    change(trace)
    path.write_text(json.dumps(trace), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def other(place: Path) -> Path:
    """A run on another card, with another driver and half the bandwidth."""

    def change(trace: dict[str, Any]) -> None:
        trace["facts"] |= {"gpu": "Replayed GPU 40GB", "driver": "570.0"}
        trace["bandwidth"] /= 2

    trace = _changed(place / "other.json", change)
    done = _niffbench(
        place,
        "run",
        "smoke",
        "-q",
        "--no-report",
        "--rounds",
        "1",
        "--device",
        f"replay:{trace}",
        "--out",
        "other",
    )
    assert done.returncode == 0, done.stderr
    return place / "other"


def test_two_cards_are_not_judged_against_each_other(place: Path, run: Run, other: Path) -> None:
    done = _niffbench(place, "check", "run", "other")
    assert done.returncode == 4
    assert all(word in done.stdout + done.stderr for word in ("gpu", "driver", "570.0"))


def test_a_broken_trace_is_one_message(place: Path, cli: Cli) -> None:
    path = _changed(place / "broken.json", lambda trace: trace.update(higest_clock=3))
    done = cli("run", "smoke", "--device", f"replay:{path}", "--out", "none")
    assert done.returncode == 2
    assert "higest_clock" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_round_played_again_is_the_same(place: Path, run: Run) -> None:
    arguments = ("--rounds", "1", "--device", f"replay:{TRACE}", "--out", "again", "--seed", "5")
    again = _niffbench(place, "run", "smoke", "-q", "--no-report", *arguments)
    assert again.returncode == 0, again.stderr
    first = {r.id: r for r in run.records if r.round == 0}
    for record in read(place / "again").records:
        assert record.status == first[record.id].status
        for regime, latency in record.latency.items():
            taken = first[record.id].latency[regime].samples
            shared = min(len(taken), len(latency.samples))
            assert latency.samples[:shared] == taken[:shared]
            assert all(math.isfinite(sample) for sample in taken)
