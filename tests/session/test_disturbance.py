"""Several devices of one machine: each measures its part, at once where they do not disturb each other."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from cli_in_process import Call
from cli_in_process import call as call
from launchers import stub
from run_session import Attempt, all_keys, asked, keys, suite_of

from niffbench.device import host, pin, several
from niffbench.errors import FingerprintsDiffer, UsageError
from niffbench.launch import launcher, local
from niffbench.launch.base import Request
from niffbench.report.digest import gather
from niffbench.report.facts import facts, notices
from niffbench.results import MANIFEST, Run, read
from niffbench.results.fleet import fleet
from niffbench.session import disturbance as checking
from niffbench.session.lock import device_lock
from niffbench.session.worker_session import TaskRefused

SUITE = suite_of(rounds=4)


def begin(attempt: Attempt, *, resume: bool = False) -> Run:
    """A run, or what is left of one, on the devices that it asks for."""
    with launcher("devices").open(Request(attempt.place, attempt.overrides.device)):
        return attempt.resume() if resume else attempt.begin()


@pytest.fixture
def stubs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Workers that are there in milliseconds and make their latencies up."""
    monkeypatch.setattr(local, "LAUNCHER", stub.LAUNCHER)


def disturbed(place: Path, factor: float, at_once: bool | None = None, devices: str = "0-1") -> Attempt:
    """A run on devices that are ``factor`` slower beside another than alone."""
    place.mkdir(exist_ok=True)
    script = {"disturbed": factor, "folder": str(place)}
    return Attempt(place / "run", SUITE, script, asked("devices", f"cpu:{devices}", at_once=at_once, seed=3))


def test_every_device_measures_its_part_and_is_known_by_its_number(tmp_path: Path, stubs: None) -> None:
    run = begin(disturbed(tmp_path, 1.0, devices="0-2"))
    assert keys(run) == all_keys(SUITE)
    assert {record.status for record in run.records} == {"ok"}
    assert [one.name for one in fleet(run).members] == ["fake:0", "fake:1", "fake:2"]
    assert {record.node for record in run.records} == {None}
    beside = run.manifest.disturbance
    assert beside is not None
    assert (beside.devices, beside.in_turn) == (3, False)
    assert beside.ratio == pytest.approx(1.0)
    assert "card" not in (run.path / MANIFEST).read_text().replace('"gpu_id": "card 0"', "")  # the survey's own
    assert dict(facts(gather(run)))["side by side"].startswith("beside 2 other devices one is 0.0 %")


@pytest.mark.parametrize(("at_once", "said"), [(None, "in turn"), (True, "put up with")])
def test_devices_that_disturb_each_other_are_measured_on_in_turn(
    tmp_path: Path, stubs: None, at_once: bool | None, said: str
) -> None:
    """Planted: 8 % slower beside another. In turn no record shows it; put up with, some do."""
    attempt = disturbed(tmp_path, 1.08, at_once)
    attempt.script["pause"] = 0.02
    run = begin(attempt)
    assert keys(run) == all_keys(SUITE)
    assert len({record.device_id for record in run.records}) == 2
    beside = run.manifest.disturbance
    assert beside is not None
    assert beside.in_turn
    assert beside.ratio == pytest.approx(1.08)
    samples = {sample for record in run.records for sample in record.latency["steady"].samples}
    assert samples == {0.001} if at_once is None else 0.001 * 1.08 in samples
    [notice] = [
        one for one in notices(gather(run)) if one.startswith("Devices disturb each other: beside 1 other")
    ]
    assert said in notice


def test_who_measures_on_a_device_that_is_measured_on_is_told(tmp_path: Path, stubs: None) -> None:
    """Whichever of them it is."""
    with device_lock("card 1") as note:
        assert note is None
        run = begin(disturbed(tmp_path, 1.0, at_once=False))
    assert [one for one in run.manifest.notes if "another niffbench" in one]
    assert not [
        one for one in begin(disturbed(tmp_path / "b", 1.0, at_once=False)).manifest.notes if "another" in one
    ]


def test_who_wants_it_in_turn_needs_no_check(tmp_path: Path, stubs: None) -> None:
    run = begin(disturbed(tmp_path, 1.5, at_once=False))
    assert run.manifest.disturbance is None
    assert {sample for record in run.records for sample in record.latency["steady"].samples} == {0.001}


def test_a_resumed_run_goes_on_as_it_began(tmp_path: Path, stubs: None) -> None:
    attempt = disturbed(tmp_path, 1.08)
    run = begin(attempt)
    journal = run.path / "records.jsonl"
    journal.write_bytes(b"".join(journal.read_bytes().splitlines(keepends=True)[:-5]))
    again = begin(attempt, resume=True)
    assert keys(again) == all_keys(SUITE)
    assert again.manifest.disturbance == run.manifest.disturbance
    assert again.manifest.devices == run.manifest.devices
    assert {sample for record in again.records for sample in record.latency["steady"].samples} == {0.001}


@pytest.mark.parametrize(
    ("regime", "seconds"), [("steady", 1e-3), ("cold", 1e-5), ("first", 1e-3)], ids=["steady", "cold", "first"]
)
def test_devices_of_a_replay_disturb_each_other(
    regime: str, seconds: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As it was planted, for real workers on which time passes; the second is a straggler, too.

    The other is busy for as long as it takes, however soon all its samples are taken, and where none is.
    """
    monkeypatch.setattr(checking, "PAIRS", 2)
    monkeypatch.setattr(checking, "MOST_CASES", 1)
    series = {"median": seconds, "sigma": 0.001, "between": 0.0005}
    trace = {"cases": [{"latency": {regime: series}}], "pace": 1.0, "slow": [1.0, 1.4], "disturbed": 1.05}
    (tmp_path / "r.json").write_text(json.dumps(trace))
    suite = suite_of(sizes=(14,), rounds=4, regimes=f'["{regime}"]', min_time=0.02, max_time=0.02, case_timeout=60)
    device = f"replay:{tmp_path / 'r.json'}:0-1"
    run = begin(Attempt(tmp_path / "run", suite, overrides=asked("devices", device, seed=3)))
    assert keys(run) == all_keys(suite)
    beside = run.manifest.disturbance
    assert beside is not None
    assert beside.in_turn
    assert beside.ratio == pytest.approx(1.05, abs=0.01)
    assert [one.name for one in fleet(run).stragglers] == ["replay:1"]
    assert str(tmp_path) not in (run.path / MANIFEST).read_text()


def test_a_device_that_is_not_there_is_told_before_anything_is_measured(tmp_path: Path, stubs: None) -> None:
    attempt = disturbed(tmp_path, 1.0, devices="0-2")
    attempt.script["absent"] = 2
    with pytest.raises(TaskRefused, match="there is no fake:2"):
        begin(attempt)
    assert read(attempt.place).records == ()


def test_unlike_cards_are_told_before_anything_is_measured(tmp_path: Path, stubs: None) -> None:
    attempt = disturbed(tmp_path, 1.0, devices="0-2")
    attempt.script["other"] = 2
    with pytest.raises(FingerprintsDiffer, match="cpu:2 is unlike cpu:0: device 'fake' and 'another'"):
        begin(attempt)
    assert read(attempt.place).records == ()


@pytest.mark.parametrize(
    "spec", ["cuda", "cuda:", "cuda:0-", "cuda:0,0", "cuda:a", "auto", "gpu:0-1", "cuda:0-9999", ":0-1"]
)
def test_what_names_no_devices_is_one_clear_message(spec: str) -> None:
    with pytest.raises(UsageError, match=f"--devices {spec}: "):
        several(spec)


def test_a_worker_keeps_to_its_share_of_the_cores() -> None:
    """Its own where it is told its place; all where there are too few."""
    before = os.sched_getaffinity(0)
    try:
        for place, share in enumerate(host.shares([[], []], host.allowed())):
            pin(["cpu", "cpu"], place)
            assert os.sched_getaffinity(0) == set(share or before)
            os.sched_setaffinity(0, before)
    finally:
        os.sched_setaffinity(0, before)


def test_devices_are_named_by_their_numbers() -> None:
    assert several("cuda:0-2,5") == ["cuda:0", "cuda:1", "cuda:2", "cuda:5"]
    assert several("replay:a:b.json:1,0") == ["replay:a:b.json:1", "replay:a:b.json:0"]


@pytest.mark.parametrize("options", [{"gpus": 1}, {"cpus": 2}, {"options": {"partition": "gpu"}}], ids=str)
def test_what_only_engines_know_is_refused(tmp_path: Path, options: dict[str, Any]) -> None:
    with (
        pytest.raises(UsageError, match="goes with --on ray or --on slurm"),
        launcher("devices").open(Request(tmp_path, "cpu:0-1", **options)),
    ):
        pass


def test_cards_that_are_not_there_are_one_clear_message(tmp_path: Path, call: Call) -> None:
    """Said by real workers, as of one card."""
    alone, several = (
        call("run", "smoke", *card) for card in (["--device", "cuda:98"], ["--devices", "cuda:98-99"])
    )
    assert alone.stderr.startswith("niffbench: --device cuda:98: torch ")
    assert (several.returncode, several.stderr) == (2, alone.stderr)


def test_devices_and_another_place_or_device_are_one_too_many(tmp_path: Path, call: Call) -> None:
    for more in (["--device", "cpu"], ["--on", "ray"]):
        done = call("run", "smoke", "--devices", "cuda:0-1", *more, "--out", "new")
        assert done.returncode == 2
        assert f"--devices cuda:0-1: names devices of this machine, so leave out {more[0]}" in done.stderr
    assert not Path("new").exists()
