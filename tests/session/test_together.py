"""Several workers at once: the records of one after another, whatever becomes of any of them."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from dataclasses import replace
from pathlib import Path

import cli_process
import pytest
from cli_in_process import Call, call
from run_session import Attempt, StopAfter, all_keys, asked, keys, suite_of

from niffbench import protocol
from niffbench.errors import FingerprintsDiffer
from niffbench.launch import several
from niffbench.launch.base import WorkerBroken
from niffbench.results import MANIFEST, RECORDS, Record, Run, dump, read
from niffbench.results.fleet import machines
from niffbench.session.directory import progress_of
from niffbench.session.interrupts import Interrupted
from niffbench.session.worker_session import Observer, SourcesDiffer, TaskRefused

__all__ = ["call"]
SUITE = suite_of(sizes=range(8, 17), kernels=(3, 7), rounds=4)  # 72 records of 9 problems


def statuses(run: Run) -> dict[str, int]:
    return dict(Counter(record.status for record in run.records))


@pytest.fixture(autouse=True)
def fresh() -> None:
    several.LAUNCHER.__init__()  # type: ignore[misc]


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


def test_a_worker_that_is_preempted_costs_nothing_however_often(tmp_path: Path) -> None:
    several.LAUNCHER.recalls = 60
    assert statuses(attempt(tmp_path / "run").begin()) == {"ok": 72}
    assert several.LAUNCHER.recalls == 0


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


@pytest.mark.parametrize("devices", [{}, {"0123456789ab": "cuda:0"}])
def test_of_what_was_measured_at_once_a_resumed_run_does_not_count_the_time_twice(
    tmp_path: Path, devices: dict[str, str]
) -> None:
    """Of a session that was killed only the records know how long it took: together, or one after another."""
    one = attempt(tmp_path, budget=100.0)
    whole = one.begin()
    manifest = json.loads((tmp_path / MANIFEST).read_text())
    killed = {"wall": None, "finished": None, "devices": devices}
    (tmp_path / MANIFEST).write_text(json.dumps(manifest | killed))
    (tmp_path / RECORDS).write_bytes(b"".join(dump(replace(record, elapsed=5.0)) for record in whole.records[:30]))
    run = one.resume()
    assert keys(run) == all_keys(SUITE)
    assert ("skipped" in statuses(run)) == (not devices)


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


RACKS = {"a": {"device": "x"}, "b": {"device": "y"}, "c": {"device": "x"}, "d": {"device": "z"}}


def test_unlike_machines_are_measured_apart_and_put_side_by_side(
    tmp_path: Path, call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each has all records of the suite, and a run that was cut anywhere has them when it was resumed."""
    monkeypatch.setenv("STUB_WORKER", json.dumps({"racks": RACKS}))
    several.LAUNCHER.rack = list(RACKS)
    suite = [*cli_process.suite(tmp_path, range(8, 14))[:2], "--on", "several", "--no-report"]
    done = call(*suite, "--device", "cpu", "--out", "out", "--rounds", "3")
    assert done.returncode == 0, done.stderr
    run = read("out")
    runs = machines(run)
    devices = [kind.manifest.fingerprint.must["device"] for kind in runs]
    assert (devices[0], set(devices[1:])) == ("x", {"y", "z"})
    assert all(keys(kind) == keys(run) for kind in runs)
    assert len(run.records) == run.manifest.records == 54
    assert len(run.manifest.nodes) in (1, 2)
    assert [len(kind.manifest.nodes) for kind in runs[1:]] == [1, 1]
    assert "device was 'x' and is 'y'" in " ".join(done.stdout.split())
    assert [f"machine-{number} (" in done.stdout for number in (1, 2, 3)] == [False, True, True]
    whole = [kind.records for kind in runs]
    shutil.rmtree("out/machine-3")
    for cut in (Path("out/machine-2"), Path("out")):
        manifest = json.loads((cut / MANIFEST).read_text())
        (cut / MANIFEST).write_text(json.dumps(manifest | {"finished": None}))
        lines = (cut / RECORDS).read_bytes().splitlines(keepends=True)
        (cut / RECORDS).write_bytes(b"".join(lines[:20]))
        assert progress_of(Path("out")).missing == 54 + (34 if cut.name == "machine-2" else 68)
    several.LAUNCHER.started.clear()
    done = call(*suite, "--resume", "out")
    assert done.returncode == 0, done.stderr
    again = machines(read("out"))
    assert [keys(kind) for kind in again] == [keys(run)] * 3
    assert [kind.records[:20] for kind in again[:2]] == [records[:20] for records in whole[:2]]
    nodes = [next(name for name, must in RACKS.items() if must["device"] == device) for device in devices]
    last = {name: place for place, name in enumerate(several.LAUNCHER.started)}
    first = max(last.get(name, -1) for name in "ac")
    assert first < last[nodes[1]] < last[nodes[2]]
    # Whose nodes are known is not asked on others' behalf.
    assert nodes[1] not in several.LAUNCHER.started[:first]


def test_without_a_node_of_its_machine_a_run_ends_and_says_what_it_met(tmp_path: Path) -> None:
    one = attempt(tmp_path / "run", {"racks": RACKS})
    several.LAUNCHER.rack = ["a"]
    one.begin()
    (tmp_path / "run" / RECORDS).unlink()
    several.LAUNCHER.rack = ["b", "d"]
    with pytest.raises(FingerprintsDiffer, match=r"device was 'x' and is '[yz]'"):
        one.resume()


def test_a_node_that_refuses_a_run_that_has_begun_is_left_out(tmp_path: Path) -> None:
    """Before anything is measured it ends the run: then it can still be mended."""
    several.LAUNCHER.rack = ["a", "c", "e"]
    one = attempt(tmp_path / "run", {"racks": RACKS | {"e": RACKS["a"]}})
    before = one.begin()
    lines = (tmp_path / "run" / RECORDS).read_bytes().splitlines(keepends=True)
    (tmp_path / "run" / RECORDS).write_bytes(b"".join(lines[:30]))
    one.script |= {"refusing": {"a": "torch is 1.0 there", "c": "there is no cuda device"}}
    run = one.resume()
    assert keys(run) == keys(before)
    notes = [note.partition(" was left out: ") for note in run.manifest.notes if "left out" in note]
    assert {why for _, _, why in notes} <= {*one.script["refusing"].values()}
    numbers = {None, *(record.node for record in before.records)}
    assert {where for where, _, _ in notes} <= {
        "a node without records" if number is None else f"node {number}" for number in numbers
    }
    assert {record.node for record in run.records[30:]} == {record.node for record in run.records[30:31]}
    several.LAUNCHER.avoided.clear()
    several.LAUNCHER.rack = ["a"]
    (tmp_path / "run" / RECORDS).write_bytes(b"".join(lines[:30]))
    with pytest.raises(TaskRefused, match=r"torch is 1\.0 there"):
        one.resume()


def test_a_node_on_which_workers_end_without_a_word_is_left_out_where_there_are_others(tmp_path: Path) -> None:
    several.LAUNCHER.rack, several.LAUNCHER.silent = ["a", "b", "c"], {"b", "c"}
    run = attempt(tmp_path / "run").begin()
    assert statuses(run) == {"ok": 72}
    assert "a node without records was left out: the worker left nothing" in run.manifest.notes
    several.LAUNCHER.rack = ["a"]
    assert not several.LAUNCHER.avoid("a")  # or nothing could be started any more
    assert several.LAUNCHER.avoided == {"b", "c"}


def test_a_node_with_another_file_of_the_users_measures_nothing_and_is_named(tmp_path: Path) -> None:
    several.LAUNCHER.rack = ["a", "b"]
    one = attempt(tmp_path / "run", {"modules": {"a": ["1"], "b": ["2"]}, "pause": 5})
    with pytest.raises(SourcesDiffer, match=r"node \d: mine\.py is another there than where the run was begun"):
        one.begin()
    assert not read(tmp_path / "run").records


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
