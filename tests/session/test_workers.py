"""Every case has a record in every round, whatever becomes of the workers."""

from __future__ import annotations

import resource
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import psutil
import pytest
from run_session import Attempt, all_keys, asked, keys, suite_of

from niffbench import protocol
from niffbench.errors import FingerprintsDiffer
from niffbench.launch import stub
from niffbench.launch.base import WorkerBroken
from niffbench.launch.local import LocalLauncher
from niffbench.results import Record, Run
from niffbench.session.worker_session import Observer, TaskRefused


def statuses(run: Run) -> dict[str, int]:
    return dict(Counter(record.status for record in run.records))


def only(run: Run, status: str) -> Record:
    (record,) = [record for record in run.records if record.status == status]
    return record


def test_every_case_in_every_round(tmp_path: Path) -> None:
    suite = suite_of(rounds=3)
    run = Attempt(tmp_path, suite).begin()
    assert keys(run) == all_keys(suite)
    assert statuses(run) == {"ok": 12}
    assert run.manifest.finished
    assert run.manifest.wall
    assert run.manifest.ceilings
    assert run.manifest.suite.cases == [case.id for case in suite.cases]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["records.jsonl", "run.json"]


@pytest.mark.parametrize(
    ("what", "output"),
    [
        ("kill", "killed by SIGKILL (so the kernel ends a process when memory runs out) during steady; its last"),
        ("segv", "killed by SIGSEGV during steady"),
        ("exit", "exited with status 3 during steady; its last lines: giving up in ~/secret/file.py"),
        ("flood", "exited with status 4 during steady; its last lines: xxx"),
        ("garbage", "the worker sent what is no message"),
    ],
)  # fmt: skip
def test_a_death_costs_the_case_it_struck(tmp_path: Path, what: str, output: str) -> None:
    suite = suite_of(rounds=2)
    run = Attempt(tmp_path, suite, {"faults": [{"kernel": 7, "height": 14, "round": 1, "do": what}]}).begin()
    assert keys(run) == all_keys(suite)
    assert statuses(run) == {"ok": 7, "crashed": 1}
    lost = only(run, "crashed")
    assert (lost.case.kernel, lost.case.problem.height, lost.round) == (7, 14, 1)
    assert output in str(lost.reason)
    assert len(str(lost.reason)) < 3000
    assert lost.traits.label == "depthwise-k7"
    assert not lost.latency


def test_a_hang_ends_after_the_time_a_case_has(tmp_path: Path) -> None:
    suite = suite_of(rounds=1, case_timeout=0.3)
    begun = time.monotonic()
    run = Attempt(tmp_path, suite, {"faults": [{"kernel": 3, "height": 28, "do": "hang"}]}).begin()
    assert time.monotonic() - begun < 60  # the worker hangs for an hour
    lost = only(run, "timeout")
    assert lost.reason == "took longer than 0.3 s (in steady)"
    assert lost.elapsed >= 0.3
    assert statuses(run) == {"ok": 3, "timeout": 1}


def test_the_time_of_a_case_is_the_sum_of_its_stages(tmp_path: Path) -> None:
    # Each case takes 0.2 s, so that a timeout that added up all cases would strike the second.
    run = Attempt(tmp_path, suite_of(rounds=1, case_timeout=0.35), {"pause": 0.2}).begin()
    assert statuses(run) == {"ok": 4}


def test_a_round_of_nothing_but_deaths_is_given_up(tmp_path: Path) -> None:
    suite = suite_of(sizes=range(8, 23), kernels=(3,), rounds=1)
    run = Attempt(tmp_path, suite, {"faults": [{"do": "segv"}]}).begin()
    assert keys(run) == all_keys(suite)
    assert statuses(run) == {"crashed": 10, "skipped": 5}
    output = next(record.reason for record in run.records if record.status == "skipped")
    assert "10 workers in a row were lost" in str(output)
    assert "SIGSEGV" in str(output)
    assert any("was given up" in note for note in run.manifest.notes)


@pytest.mark.parametrize("what", ["end", "stranger"])
def test_workers_that_are_lost_over_no_case_end_the_run(tmp_path: Path, what: str) -> None:
    attempt = Attempt(tmp_path, suite_of(), {"faults": [{"round": 1, "do": what}]})
    with pytest.raises(WorkerBroken, match="5 workers in a row were lost, over no case"):
        attempt.begin()
    attempt.script = {}
    assert keys(attempt.resume()) == all_keys(attempt.suite)


@pytest.mark.parametrize(
    ("script", "text"),
    [
        (
            {"start": "exit"},
            "no worker process can be started: the worker exited with status 3; its last lines: giving",
        ),
        ({"start": "segv"}, "SIGSEGV"),
        ({"start": "garbage"}, "what is no message"),
    ],
)
def test_a_worker_that_cannot_start_is_one_clear_error(tmp_path: Path, script: dict[str, str], text: str) -> None:
    place = tmp_path / "run"
    with pytest.raises(WorkerBroken, match=text):
        Attempt(place, suite_of(), script).begin()
    assert not place.exists()


def test_a_command_that_does_not_exist(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stub, "LAUNCHER", LocalLauncher((str(tmp_path / "nothing"),)))
    with pytest.raises(WorkerBroken, match="No such file"):
        Attempt(tmp_path / "run", suite_of()).begin()


def test_a_refusal_is_passed_on(tmp_path: Path) -> None:
    with pytest.raises(TaskRefused, match="no such device") as caught:
        Attempt(tmp_path / "run", suite_of(), {"refuse": "no such device"}).begin()
    assert caught.value.exit_code == 2
    assert not (tmp_path / "run").exists()


def test_a_machine_that_changes_in_the_middle(tmp_path: Path) -> None:
    class OtherMachine(Observer):
        def record(self, record: Record) -> None:
            attempt.script["must"] = {"device": "other"}
            import json
            import os

            os.environ["STUB_WORKER"] = json.dumps(attempt.script)

    attempt = Attempt(tmp_path, suite_of(), observer=OtherMachine())
    with pytest.raises(FingerprintsDiffer, match="device was 'fake' and is 'other'"):
        attempt.begin()


def test_what_is_predicted_not_to_fit_is_skipped(tmp_path: Path) -> None:
    script = {"predict": {"depthwise": 5000}, "free": 10**9}
    run = Attempt(tmp_path / "a", suite_of(), script, asked(memory_limit=4000)).begin()
    assert keys(run) == all_keys(suite_of())
    assert statuses(run) == {"skipped": 8}
    assert {(record.needed, record.available) for record in run.records} == {(5000, 4000)}
    assert {record.reason for record in run.records} == {"needs 4.88 KiB by prediction, 3.91 KiB available"}
    assert statuses(Attempt(tmp_path / "b", suite_of(), script).begin()) == {"ok": 8}


def test_what_is_larger_than_an_out_of_memory_is_skipped_in_later_rounds(tmp_path: Path) -> None:
    suite = suite_of(sizes=(14, 28, 56), kernels=(3, 7), rounds=2)
    script = {"faults": [{"kernel": 3, "height": 28, "do": "oom"}]}
    run = Attempt(tmp_path, suite, script).begin()
    assert keys(run) == all_keys(suite)
    second = {
        (record.case.kernel, record.case.problem.height): record for record in run.records if record.round == 1
    }
    assert {key: record.status for key, record in second.items()} == {
        (3, 14): "ok",
        (7, 14): "ok",
        (3, 28): "oom",
        (7, 28): "skipped",
        (3, 56): "skipped",
        (7, 56): "skipped",
    }
    assert "depthwise-k3 at B1 4@28" in str(second[7, 56].reason)
    assert (second[3, 28].needed, second[3, 28].available) == (9, 3)


class Spy(Observer):
    """Reads what the worker of the second round was sent."""

    def __init__(self) -> None:
        self.sent: list[protocol.Task] = []

    def record(self, record: Record) -> None:
        if record.round == 1 and not self.sent:
            path = Path(f"/proc/{stubs()[0]}/fd/0")
            self.sent.append(protocol.Task.model_validate_json(path.read_bytes()))


def test_what_depends_on_the_case_alone_is_found_out_once(tmp_path: Path) -> None:
    """Predictions come from the survey, numerics and costs from the first round that has them."""
    spy = Spy()
    script = {"predict": {"depthwise": 5000}, "cost": True, "pause": 0.05}
    run = Attempt(tmp_path, suite_of(), script, observer=spy).begin()
    assert {prediction.peak for prediction in spy.sent[0].predictions} == {5000}
    checked = spy.sent[0].checked
    assert len(checked) == 4
    for record in run.records:
        [check] = checked[record.id]
        assert (check.engines, check.numerics, check.cost) == (None, record.numerics, record.cost)


def test_what_was_checked_is_handed_on_with_the_choice_it_holds_for(tmp_path: Path) -> None:
    """Another round may choose otherwise."""
    spy = Spy()
    script = {"cost": True, "pause": 0.05, "chosen": {"depthwise": ["native"]}}
    Attempt(tmp_path, suite_of(), script, observer=spy).begin()
    assert {tuple(check.engines or ()) for checks in spy.sent[0].checked.values() for check in checks} == {
        ("native",)
    }


def test_what_workers_note_is_said_once_and_without_whose_machine_it_is(tmp_path: Path) -> None:
    note = f"{Path.home()}/bin/cc could not compile the kernel"
    run = Attempt(tmp_path, suite_of(rounds=2), {"note": note}).begin()
    assert keys(run) == all_keys(suite_of(rounds=2))
    assert run.manifest.notes == ["~/bin/cc could not compile the kernel"]


def stubs() -> list[int]:
    """Process ids of this process's stub workers."""
    children = psutil.Process().children(recursive=True)
    return [child.pid for child in children if stub.COMMAND[-1] in child.cmdline()]


def test_the_order_comes_from_the_seed(tmp_path: Path) -> None:
    def order(name: str, seed: int) -> list[tuple[str, int]]:
        run = Attempt(tmp_path / name, suite_of(kernels=(3, 5, 7)), overrides=asked(seed=seed)).begin()
        assert run.manifest.seed == seed
        return [(record.id, record.round) for record in run.records]

    assert order("a", 1) == order("b", 1) != order("c", 2)


def test_a_budget_measures_every_case_once_and_says_what_it_cut(tmp_path: Path) -> None:
    suite = suite_of(rounds=3)
    run = Attempt(tmp_path, suite, {"pause": 0.05}, asked(budget=0.2)).begin()
    assert keys(run) == all_keys(suite)
    assert {record.status for record in run.records if record.round == 0} == {"ok"}
    assert {record.reason for record in run.records if record.round > 0} == {
        "the time budget of 0.2 s was used up"
    }
    assert any("time budget" in note for note in run.manifest.notes)
    assert run.manifest.settings.budget == 0.2


def test_what_only_a_first_round_takes_is_not_expected_of_later_ones(tmp_path: Path) -> None:
    suite = suite_of(rounds=3)
    run = Attempt(tmp_path, suite, {"slow": {"0": 1000.0}}, asked(budget=100.0)).begin()
    assert keys(run) == all_keys(suite)
    assert {record.status for record in run.records} == {"ok"}


def test_a_session_sleeps_while_a_worker_measures(tmp_path: Path) -> None:
    spent: list[float] = []

    class Meter(Observer):
        interval = 1.0

        def stage(self, case: object, stage: str, round_: int) -> None:
            self.note()

        def record(self, record: Record) -> None:
            self.note()

        def note(self) -> None:
            usage = resource.getrusage(resource.RUSAGE_SELF)
            spent.append(usage.ru_utime + usage.ru_stime)

    begun = time.monotonic()
    Attempt(tmp_path, suite_of(kernels=(3,), rounds=1), {"pause": 1.5}, observer=Meter()).begin()
    assert time.monotonic() - begun > 3.0
    assert spent[-1] - spent[0] < 0.6  # a session that polls would spend all of the three seconds


def test_a_session_loads_no_torch() -> None:
    code = "import sys, niffbench.session.opening; print(sorted({'torch', 'pandas'} & set(sys.modules)))"
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "[]"


def test_nothing_is_left_running(tmp_path: Path) -> None:
    script = {"faults": [{"kernel": 3, "do": "hang"}]}
    Attempt(tmp_path, suite_of(rounds=1, case_timeout=0.2), script).begin()
    assert stubs() == []
