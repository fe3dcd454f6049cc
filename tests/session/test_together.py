"""Several workers at once: the records of one after another, whatever becomes of any of them."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from run_session import Attempt, StopAfter, all_keys, asked, keys, suite_of

from niffbench import protocol
from niffbench.errors import FingerprintsDiffer
from niffbench.launch import several
from niffbench.launch.base import WorkerBroken
from niffbench.results import RECORDS, Record, Run, read
from niffbench.session.interrupts import Interrupted
from niffbench.session.worker_session import Observer, TaskRefused

SUITE = suite_of(sizes=range(8, 17), kernels=(3, 7), rounds=4)  # 72 records of 9 problems


def statuses(run: Run) -> dict[str, int]:
    return dict(Counter(record.status for record in run.records))


@pytest.fixture(autouse=True)
def fresh() -> Iterator[None]:
    yield
    for remembered in (several.LAUNCHER.announced, several.LAUNCHER.left, several.LAUNCHER.avoided):
        remembered.clear()


def attempt(place: Path, script: dict[str, object] | None = None, **overrides: object) -> Attempt:
    return Attempt(place, SUITE, script or {}, asked(launcher="several", **overrides))


def test_several_workers_make_the_records_of_one(tmp_path: Path) -> None:
    run = attempt(tmp_path / "run", {"cost": True}).begin()
    assert keys(run) == all_keys(SUITE)
    assert statuses(run) == {"ok": 72}
    announced = [(task.round, case.id) for task in several.LAUNCHER.announced for case in task.cases]
    assert sorted((case, number) for number, case in announced) == all_keys(SUITE)


def test_a_round_is_divided_where_there_are_more_workers_and_operators_of_a_problem_stay_together(
    tmp_path: Path,
) -> None:
    suite = suite_of(sizes=range(8, 17), kernels=(3, 7), rounds=1)
    run = Attempt(tmp_path / "run", suite, {}, asked(launcher="several")).begin()
    assert keys(run) == all_keys(suite)
    tasks = several.LAUNCHER.announced
    assert len(tasks) == 3
    owners = Counter(problem for task in tasks for problem in {case.problem for case in task.cases})
    assert set(owners.values()) == {1}


def test_a_worker_that_is_taken_away_costs_nothing_and_one_that_always_is_three_tries(tmp_path: Path) -> None:
    fault = {"kernel": 7, "height": 14, "round": 1, "do": "kill"}
    once = attempt(tmp_path / "once", {"faults": [{**fault, "once": str(tmp_path / "killed")}]}).begin()
    assert statuses(once) == {"ok": 72}
    always = attempt(tmp_path / "always", {"faults": [fault]}).begin()
    assert keys(always) == all_keys(SUITE)
    assert statuses(always) == {"ok": 71, "crashed": 1}
    [lost] = [record for record in always.records if record.status != "ok"]
    assert "killed by SIGKILL" in str(lost.reason)
    segv = attempt(tmp_path / "segv", {"faults": [{**fault, "do": "segv"}]}).begin()
    assert statuses(segv) == {"ok": 71, "crashed": 1}  # its own fault: not tried again


def test_what_ends_one_worker_for_good_ends_all_and_the_run_can_go_on(tmp_path: Path) -> None:
    one = attempt(tmp_path / "run", {"pause": 0.01, "faults": [{"round": 2, "do": "end"}]})
    with pytest.raises(WorkerBroken, match="5 workers in a row were lost, over no case"):
        one.begin()
    kept = read(tmp_path / "run").records
    assert kept
    one.script = {}
    run = one.resume()
    assert keys(run) == all_keys(SUITE)
    assert run.records[: len(kept)] == kept


def test_a_refusal_is_the_runs(tmp_path: Path) -> None:
    one = attempt(tmp_path / "run", {"refuse": "node 3: torch is 1.0 there and 2.0 here"})
    with pytest.raises(TaskRefused, match="node 3: torch is"):
        one.begin()


def test_an_interruption_ends_all_workers_and_keeps_what_they_finished(tmp_path: Path) -> None:
    one = attempt(tmp_path / "run", {"pause": 0.02})
    one.observer = StopAfter(5)
    with pytest.raises(Interrupted):
        one.begin()
    before = read(tmp_path / "run")
    assert before.manifest.finished is None
    one.script, one.observer = {}, None
    run = one.resume()
    assert keys(run) == all_keys(SUITE)
    assert run.records[: len(before.records)] == before.records


def test_a_budget_is_kept_by_all(tmp_path: Path) -> None:
    run = attempt(tmp_path / "run", {"pause": 0.2}, budget=14.0).begin()
    assert keys(run) == all_keys(SUITE)
    assert {record.round for record in run.records if record.status == "ok"} >= {0}
    assert {record.round for record in run.records if record.status == "skipped"} >= {3}  # it takes 4.8 s, not 4
    assert not several.LAUNCHER.announced  # how long a case is sampled depends on the time that is left


def test_an_observer_hears_of_each_record_once(tmp_path: Path) -> None:
    class Seen(Observer):
        def __init__(self) -> None:
            self.records: list[tuple[str, int]] = []

        def record(self, record: Record) -> None:
            self.records.append((record.id, record.round))

    one, seen = attempt(tmp_path / "run"), Seen()
    one.observer = seen
    one.begin()
    assert sorted(seen.records) == all_keys(SUITE)


def test_an_unlike_node_is_left_out_and_said_and_without_another_the_run_ends(tmp_path: Path) -> None:
    """What it would have measured is measured elsewhere, not pooled with it."""
    fake, other = {"device": "fake"}, {"device": "other"}
    one = attempt(tmp_path / "run", {"nodes": ["a", "a", "b", "a"], "musts": [fake, fake, other, fake]})
    with pytest.raises(FingerprintsDiffer, match="device was 'fake' and is 'other'"):
        one.begin()
    assert several.LAUNCHER.avoided[:3] == ["b", "b", "b"]
    [note] = {note for note in read(tmp_path / "run").manifest.notes if "left out" in note}
    assert "device was 'fake' and is 'other'" in note
    assert {record.round for record in read(tmp_path / "run").records if record.node is not None} <= {0, 1, 3}


def test_what_workers_finished_after_their_session_is_taken_over(tmp_path: Path) -> None:
    """But not from another machine, and nothing twice."""
    whole = attempt(tmp_path, {"nodes": ["a"]}).begin()
    kept = {(record.id, record.round) for record in whole.records[:20]}
    lines = (tmp_path / RECORDS).read_bytes().splitlines(keepends=True)
    (tmp_path / RECORDS).write_bytes(b"".join(lines[:20]))
    like = protocol.Hello(fingerprint=whole.manifest.fingerprint, node="z")
    other = like.model_copy(update={"fingerprint": like.fingerprint.model_copy(update={"must": {"device": "no"}})})
    some = [protocol.Finished(record=replace(record, node=None, elapsed=77.0)) for record in whole.records]
    several.LAUNCHER.left[:] = [[like, *some[:40]], [other, *some[40:60]], [like, *some[30:50]]]
    again = attempt(tmp_path, {"nodes": ["a"]}).resume()
    assert keys(again) == all_keys(SUITE)
    taken = {(record.id, record.round) for record in again.records if record.elapsed == 77.0}
    assert taken == {(one.record.id, one.record.round) for one in some[:50]} - kept
    assert {record.node for record in again.records if record.elapsed == 77.0} == {1}


def test_everything_that_can_go_wrong_at_once(tmp_path: Path) -> None:
    faults = [
        {"kernel": 3, "height": 9, "do": "segv"},
        {"kernel": 7, "height": 12, "round": 2, "do": "kill"},
        {"kernel": 3, "height": 14, "round": 0, "do": "oom"},
        {"kernel": 7, "height": 16, "round": 3, "do": "garbage"},
    ]
    run = attempt(tmp_path / "run", {"faults": faults}).begin()
    assert keys(run) == all_keys(SUITE)
    assert json.loads((tmp_path / "run" / "run.json").read_text())["finished"]
    assert set(statuses(run)) == {"ok", "crashed", "oom", "skipped"}
