"""The replay: recorded and made-up samples, entries that match, failures, and files that are none."""

from __future__ import annotations

import contextlib
import json
import math
import os
import signal
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from run_worker import case_of

from niffbench.case import Case
from niffbench.device.replay import CaseTrace, ReplayDevice, ReplayRunner, Trace
from niffbench.errors import UsageError

CASE = case_of("depthwise", 3)


def _device(**trace: Any) -> ReplayDevice:
    return ReplayDevice(Trace.model_validate(trace))


def _runner(device: ReplayDevice, case: Case = CASE, round_: int = 0) -> ReplayRunner:
    entry = device.entry(case, "depthwise-k3", round_)
    return ReplayRunner(case=case, round=round_, entry=entry, nominal=1e-3, peak=10, kept=5)


def _steady(device: ReplayDevice, runner: ReplayRunner, count: int, calls: int = 1) -> list[float]:
    return list(device.samples(runner, "steady", calls, count).samples)


def test_recorded_samples_are_given_in_order_by_round_and_started_over() -> None:
    device = _device(cases=[{"latency": {"steady": {"samples": [[1.0, 2.0, 3.0], [7.0]]}}}])
    runner = _runner(device)
    assert _steady(device, runner, 2) + _steady(device, runner, 3) == [1.0, 2.0, 3.0, 1.0, 2.0]
    assert _steady(device, _runner(device, round_=1), 2) == [7.0, 7.0]
    assert _steady(device, _runner(device, round_=2), 1) == [1.0]


def test_made_up_samples_are_log_normal_around_the_nominal_and_the_same_every_time() -> None:
    device = _device(cases=[{"latency": {"steady": {"sigma": 0.1, "between": 0.0}}}], seed=3)
    samples = _steady(device, _runner(device), 4000)
    logs = [math.log(sample / 1e-3) for sample in samples]
    assert abs(statistics.mean(logs)) < 0.01
    assert statistics.stdev(logs) == pytest.approx(0.1, rel=0.1)
    assert samples == _steady(_device(cases=[{"latency": {"steady": {"sigma": 0.1, "between": 0.0}}}], seed=3),
                              _runner(device), 4000)  # fmt: skip
    assert samples != _steady(device, _runner(device, round_=1), 4000)


def test_rounds_differ_by_as_much_as_was_asked_for() -> None:
    device = _device(cases=[{"latency": {"steady": {"sigma": 0.0, "between": 0.2}}}])
    medians = [_steady(device, _runner(device, round_=round_), 3)[1] for round_ in range(300)]
    assert statistics.stdev(map(math.log, medians)) == pytest.approx(0.2, rel=0.15)


def test_a_drift_is_planted_exactly() -> None:
    device = _device(cases=[{"latency": {"steady": {"median": 1.0, "sigma": 0, "between": 0, "drift": 0.01}}}])
    assert _steady(device, _runner(device), 3) == pytest.approx([1.0, 1.01, 1.02])


def test_the_clock_is_virtual_and_advances_by_the_samples() -> None:
    device = _device(watts=50.0, cases=[{"latency": {"steady": {"samples": [[2.0]]}}}])
    begun, real = device.clock(), time.monotonic()
    _steady(device, _runner(device), 3, calls=10)
    assert device.clock() - begun == 60.0
    assert device.joules() == 3000.0
    device.rest(5.0)
    assert device.clock() - begun == 65.0
    assert time.monotonic() - real < 60  # of the 65 s that passed on the device


@pytest.mark.parametrize("broken", [0.0, float("nan"), float("inf"), -1.0])
def test_a_broken_timer_does_not_stop_virtual_time(broken: float) -> None:
    device = _device(cases=[{"latency": {"steady": {"samples": [[broken]]}}}])
    begun = device.clock()
    _steady(device, _runner(device), 4)
    assert device.clock() - begun == pytest.approx(4e-3)


def test_pace_takes_real_time() -> None:
    device = _device(pace=0.5, cases=[{"latency": {"steady": {"samples": [[0.1]]}}}])
    real = time.monotonic()
    _steady(device, _runner(device), 2)
    assert time.monotonic() - real >= 0.1


def test_the_first_call_is_the_first_regimes_and_later_ones_use_up_no_sample() -> None:
    recorded = {"first": {"samples": [[9.0]]}, "steady": {"samples": [[1.0, 2.0]]}}
    device = _device(cases=[{"latency": recorded}])
    runner = _runner(device)
    assert device.timed(runner) == (9.0, None)
    assert device.timed(runner, 3) == (pytest.approx(3e-3), None)
    assert _steady(device, runner, 2) == [1.0, 2.0]


def test_states_are_read_one_a_time_and_the_last_one_stays() -> None:
    states = [{"sm_clock": 1000.0}, {"sm_clock": 1900.0}]
    device = _device(cases=[{"states": states}])
    assert device.state().sm_clock is None
    runner = _runner(device)
    clocks = []
    for _ in range(3):
        _steady(device, runner, 1)
        clocks.append(device.state().sm_clock)
    assert clocks == [1000.0, 1900.0, 1900.0]


def test_others_use_the_processor_while_a_block_lasts_as_its_state_says() -> None:
    device = _device(cases=[{"states": [{"others": 0.4}, {}, {"others": 0.1}]}])
    runner = _runner(device)
    begun = device.clock()
    for _ in range(4):
        _steady(device, runner, 1000)
        device.state()
    output = device.processor()
    assert output.watched == pytest.approx((device.clock() - begun) * 3 / 4, rel=0.01)
    assert output.share == pytest.approx(0.2, rel=0.02)


@pytest.mark.parametrize(
    ("entry", "fits"),
    [
        ({}, True),
        ({"label": "depthwise-k*"}, True),
        ({"label": "dense*"}, False),
        ({"operator": "depthwise", "problem": "B1 4@8"}, True),
        ({"problem": "B2*"}, False),
        ({"id": CASE.id}, True),
        ({"id": "000000000000"}, False),
        ({"rounds": [0, 2]}, True),
        ({"rounds": [1]}, False),
    ],
)
def test_an_entry_speaks_of_the_cases_that_match_all_it_says(entry: dict[str, Any], fits: bool) -> None:
    assert CaseTrace.model_validate(entry).fits(CASE, "depthwise-k3", 0) is fits


def test_the_first_entry_that_fits_counts() -> None:
    device = _device(cases=[{"label": "x*"}, {"memory": {"peak": 1}}, {"memory": {"peak": 2}}])
    assert device.entry(CASE, "depthwise-k3", 0).memory.peak == 1


@pytest.mark.parametrize("kind", ["oom", "unsupported", "lost", "error"])
def test_failures_happen_at_their_stage_and_not_before(kind: str) -> None:
    device = _device(cases=[{"failure": {"kind": kind, "stage": "steady", "requested": 7, "message": "so it is"}}])
    runner = _runner(device)
    runner.reach("memory")
    device.samples(runner, "cold", 1, 1)
    with pytest.raises(RuntimeError):
        device.samples(runner, "steady", 1, 1)


@pytest.mark.parametrize(
    ("failure", "status"),
    [
        ({"kind": "signal", "signal": "SIGABRT"}, -signal.SIGABRT),
        ({"kind": "signal"}, -signal.SIGSEGV),
        ({"kind": "exit", "status": 7}, 7),
    ],
)
def test_a_process_ends_as_the_file_says(failure: dict[str, Any], status: int) -> None:
    code = f"from niffbench.device.replay import Failure, fail; fail(Failure.model_validate({failure!r}))"
    root = str(Path(__file__).parents[2])
    done = subprocess.run(
        [sys.executable, "-c", code], timeout=30, check=False, env={**os.environ, "PYTHONPATH": root}
    )
    assert done.returncode == status


def test_a_replay_is_never_taken_for_the_real_thing() -> None:
    device = _device(like="cuda", facts={"device": "cuda", "gpu": "H200"})
    assert device.facts() == {"device": "replay of cuda", "gpu": "H200"}
    assert device.capabilities.graphs
    assert not _device().capabilities.graphs


@pytest.mark.parametrize(
    ("text", "output"),
    [
        ("", "the file"),
        ("{", "the file"),
        ('{"nonsense": 1}', "key 'nonsense'"),
        ('{"quantum": 0}', "key 'quantum'"),
        ('{"cases": [{"latency": {"stedy": {}}}]}', "stedy"),
        ('{"cases": [{"latency": {"steady": {"samples": [[]]}}}]}', "samples"),
        ('{"cases": [{"failure": {"kind": "signal", "signal": "SIGFOO"}}]}', "signal"),
        ('{"schema_version": 2}', "schema_version"),
    ],
)
def test_a_file_that_is_none_is_refused_with_its_key(tmp_path: Path, text: str, output: str) -> None:
    path = tmp_path / "trace.json"
    path.write_text(text)
    with pytest.raises(UsageError) as error:
        ReplayDevice.load(str(path))
    assert str(path) in str(error.value)
    assert output in str(error.value)


def test_a_missing_or_oversized_file_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError, match="No such file"):
        ReplayDevice.load(str(tmp_path / "none.json"))
    (tmp_path / "large.json").write_text(json.dumps({"facts": {"x": "y" * 100}}))
    monkeypatch.setattr("niffbench.device.replay.MAX_REPLAY_BYTES", 50)
    with pytest.raises(UsageError, match="larger than 50 bytes"):
        ReplayDevice.load(str(tmp_path / "large.json"))


_keys = st.sampled_from(
    ["cases", "latency", "steady", "samples", "median", "failure", "kind", "facts", "memory", "x"]
)
_json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_keys, inner, max_size=3),
    max_leaves=8,
)


@settings(max_examples=150)
@given(st.dictionaries(_keys, _json, max_size=4))
def test_any_json_is_a_trace_or_one_clear_error(tmp_path_factory: pytest.TempPathFactory, document: Any) -> None:
    path = tmp_path_factory.getbasetemp() / "fuzzed.json"
    path.write_text(json.dumps(document))
    with contextlib.suppress(UsageError):
        assert ReplayDevice.load(str(path)).trace.schema_version == 1
