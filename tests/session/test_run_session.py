"""A run that is interrupted, at whatever moment, ends as if it had not been."""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import os
import random
import shutil
import signal
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path

import psutil
import pytest
from run_session import Attempt, StopAfter, all_keys, asked, keys, suite_of

from niffbench import anonymize as anonymizing
from niffbench.commands.progress import expected
from niffbench.errors import FingerprintsDiffer, UsageError
from niffbench.fingerprint import Fingerprint
from niffbench.launch import local, stub
from niffbench.results import MANIFEST, RECORDS, Record, dump, read, read_manifest
from niffbench.session.directory import check_vacant, progress_of, write_manifest
from niffbench.session.interrupts import Interrupted, Interrupts
from niffbench.session.opening import Prepared, begin, resume
from niffbench.session.plan import Plan
from niffbench.session.survey import Survey, survey
from niffbench.session.worker_session import Observer
from niffbench.suite import resolve

SUITE = suite_of(sizes=range(8, 18), kernels=(3, 5, 7), rounds=2)  # 60 records


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_an_interrupted_run_is_resumed_to_the_same_records(tmp_path: Path, number: int) -> None:
    attempt = Attempt(tmp_path, SUITE, observer=StopAfter(17, number))
    with pytest.raises(Interrupted):
        attempt.begin()
    interrupted = read(tmp_path)
    assert 17 <= len(interrupted.records) < 60
    assert interrupted.manifest.finished is None
    attempt.observer = None
    run = attempt.resume()
    assert keys(run) == all_keys(SUITE)
    assert run.records[: len(interrupted.records)] == interrupted.records
    assert run.manifest.finished
    assert run.manifest.wall > interrupted.manifest.wall  # type: ignore[operator]


@pytest.mark.alone
def test_an_interruption_ends_a_hanging_worker_at_once(tmp_path: Path) -> None:
    attempt = Attempt(tmp_path, SUITE, {"faults": [{"kernel": 5, "do": "hang"}]})
    threading.Timer(1.0, os.kill, (os.getpid(), signal.SIGINT)).start()
    begun = time.monotonic()
    with pytest.raises(Interrupted):
        attempt.begin()
    assert time.monotonic() - begun < 60  # the worker hangs for an hour
    assert not stubs()


def stubs() -> list[psutil.Process]:
    """Stub workers of this process that are still alive."""
    result = []
    for child in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.Error):
            if stub.COMMAND[-1] in child.cmdline() and child.status() != psutil.STATUS_ZOMBIE:
                result.append(child)
    return result


@pytest.mark.alone
def test_an_interruption_of_the_survey_leaves_nothing(tmp_path: Path) -> None:
    place = tmp_path / "run"
    attempt = Attempt(place, SUITE, {"faults": [{"do": "hang"}], "survey_faults": True})
    threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGINT)).start()
    with pytest.raises(Interrupted, match="before anything was measured"):
        attempt.begin()
    assert not place.exists()


@pytest.mark.parametrize(
    ("what", "output"),
    [
        ("kill", "killed by SIGKILL"),
        ("exit", "status 3"),
        ("hang", "was silent for 1 s"),
        ("fail", "out of memory"),
    ],
)
def test_ceilings_that_cannot_be_measured_cost_no_case(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str, output: str
) -> None:
    monkeypatch.setattr("niffbench.session.worker_session.CEILINGS", 1.0)
    suite = suite_of()
    run = Attempt(tmp_path, suite, {"ceilings": what}).begin()
    assert keys(run) == all_keys(suite)
    assert {record.status for record in run.records} == {"ok"}
    assert run.manifest.ceilings is None
    [note] = run.manifest.notes
    assert note.startswith("the machine's roofline could not be measured: ")
    assert output in note


def test_a_death_in_the_survey_costs_no_ceiling(tmp_path: Path) -> None:
    """The worker that goes on is asked for the last case alone, and for the ceilings of all."""
    suite = suite_of(sizes=(14,), kernels=(3,), dtypes=("float64", "float32"))
    fault = {"dtype": "float32", "do": "kill", "once": str(tmp_path / "killed")}
    run = Attempt(tmp_path / "run", suite, {"faults": [fault], "survey_faults": True}).begin()
    assert keys(run) == all_keys(suite)
    assert run.manifest.ceilings is not None
    assert run.manifest.ceilings.matmul.keys() == {"float32", "float64"}


@pytest.mark.parametrize("what", [None, "kill"])
def test_ceilings_are_asked_for_when_the_cases_have_used_up_all_attempts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str | None
) -> None:
    suite = suite_of(sizes=(8, 9, 10, 11), kernels=(3,))
    script = {"faults": [{"do": "kill"}], "survey_faults": True, "ceilings": what}
    monkeypatch.setenv("STUB_WORKER", json.dumps(script))
    with Interrupts() as stop:
        result = survey(list(suite.cases), resolve(suite, asked()), stop)
    assert len(result.predictions) == 3
    assert (result.ceilings is None) is (what is not None)
    assert (result.note is None) is (what is None)


@pytest.mark.parametrize(("others", "crowded"), [(None, False), (0.01, False), (0.62, True)])
def test_a_roofline_measured_beside_busy_neighbours_is_told(
    tmp_path: Path, others: float | None, crowded: bool
) -> None:
    """It is too low, and the times that are expected from it are far too long."""
    attempt = Attempt(tmp_path, suite_of(sizes=(8,), kernels=(3,)), {"others": others})
    with Interrupts() as stop:
        plan = attempt.prepare(stop).plan
    assert ("far less" in expected(plan.seconds, plan)) is crowded
    output = (
        "other processes used 62 % of the processor while the machine's roofline was measured: it may be too low, "
        "so no latency is held against it"
    )
    assert attempt.begin().manifest.notes == ([output] if crowded else [])


def test_a_second_interruption_ends_the_process_at_once() -> None:
    def stubborn() -> None:
        with Interrupts() as stop:
            with stop.killing(lambda: None):
                os.kill(os.getpid(), signal.SIGINT)
                assert stop.requested
                os.kill(os.getpid(), signal.SIGINT)
            os._exit(1)

    process = multiprocessing.get_context("fork").Process(target=stubborn)
    process.start()
    process.join()
    assert process.exitcode == 130


def test_signals_are_as_before_afterwards() -> None:
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)]
    with Interrupts():
        assert signal.getsignal(signal.SIGINT) != before[0]
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)] == before


def test_a_resumed_run_measures_just_what_is_missing(tmp_path: Path) -> None:
    whole = Attempt(tmp_path, SUITE).begin()
    lines = (tmp_path / RECORDS).read_bytes().splitlines(keepends=True)
    random.Random(3).shuffle(lines)
    (tmp_path / RECORDS).write_bytes(b"".join(lines[:-7]) + lines[-7][:50])
    seen: list[tuple[str, int]] = []

    class Seen(Observer):
        def record(self, record: Record) -> None:
            seen.append((record.id, record.round))

    run = Attempt(tmp_path, SUITE, observer=Seen()).resume()
    assert keys(run) == keys(whole)
    assert len(seen) == 7
    assert any("torn (50 bytes, kept in records.jsonl.torn-1)" in note for note in run.manifest.notes)


def test_nothing_is_missing(tmp_path: Path) -> None:
    before = Attempt(tmp_path, SUITE).begin()
    # No worker is asked anything: this one could not even start.
    after = Attempt(tmp_path, SUITE, {"start": "exit"}).resume()
    assert after.records == before.records


def test_settings_are_those_the_run_was_begun_with(tmp_path: Path) -> None:
    overrides = asked(seed=11, rounds=2, precision=0.5, memory_limit=10**6)
    attempt = Attempt(tmp_path, SUITE, overrides=overrides, observer=StopAfter(5))
    with pytest.raises(Interrupted):
        attempt.begin()
    run = Attempt(tmp_path, SUITE).resume()
    assert (run.manifest.seed, run.manifest.rounds, run.manifest.settings.memory_limit) == (11, 2, 10**6)
    assert run.manifest.suite.measure.precision == 0.5


def interrupted(place: Path, script: dict[str, object] | None = None) -> Attempt:
    attempt = Attempt(place, SUITE, script or {}, observer=StopAfter(3))
    with pytest.raises(Interrupted):
        attempt.begin()
    attempt.observer = None
    return attempt


@contextlib.contextmanager
def nothing_changed(place: Path, torn: bytes = b'{"case": {"oper') -> Iterator[None]:
    """No byte of a run whose last line is ``torn``, which would be mended if the run could be gone on with."""
    with (place / RECORDS).open("ab") as journal:
        journal.write(torn)

    def tree() -> dict[str, bytes]:
        return {path.name: path.read_bytes() for path in place.iterdir()}

    before = tree()
    yield
    assert tree() == before


def test_another_machine_is_refused(tmp_path: Path) -> None:
    attempt = interrupted(tmp_path)
    attempt.script = {"must": {"device": "other"}}
    message = "device was 'fake' and is 'other'"
    with nothing_changed(tmp_path), pytest.raises(FingerprintsDiffer, match=message) as caught:
        attempt.resume()
    assert caught.value.exit_code == 4


def test_an_edited_suite_is_refused(tmp_path: Path) -> None:
    attempt = interrupted(tmp_path)
    attempt.suite = suite_of(sizes=range(8, 18), kernels=(3, 5, 9), rounds=2)
    message = "suite 'made-up' was edited since the run began"
    with nothing_changed(tmp_path), pytest.raises(UsageError, match=message) as caught:
        attempt.resume()
    assert caught.value.exit_code == 2


def test_an_edited_module_of_the_users_is_refused(tmp_path: Path) -> None:
    attempt = interrupted(tmp_path, {"modules": {"": ["before"]}})
    attempt.script = {"modules": {"": ["after"]}}
    message = "mine.py was edited since the run began; begin a new run"
    with nothing_changed(tmp_path), pytest.raises(UsageError, match=message) as caught:
        attempt.resume()
    assert caught.value.exit_code == 2


def test_a_record_that_a_newer_version_wrote_is_refused_and_kept(tmp_path: Path) -> None:
    attempt = interrupted(tmp_path)
    last = (tmp_path / RECORDS).read_bytes().splitlines(keepends=True)[-1]
    newer = last.replace(b'"case":', b'"colour":"red","case":', 1)
    with nothing_changed(tmp_path, newer), pytest.raises(UsageError, match="key 'colour'"):
        attempt.resume()


def test_an_overlong_line_is_refused_and_kept(tmp_path: Path) -> None:
    attempt = interrupted(tmp_path)
    with nothing_changed(tmp_path, b"x" * 32_000_001), pytest.raises(UsageError, match="is longer than"):
        attempt.resume()


def test_an_interruption_of_a_resumed_survey_changes_nothing(tmp_path: Path) -> None:
    attempt = interrupted(tmp_path)
    attempt.script = {"faults": [{"do": "hang"}], "survey_faults": True}
    threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGINT)).start()
    with nothing_changed(tmp_path), pytest.raises(Interrupted):
        attempt.resume()
    assert progress_of(tmp_path).records == len(read(tmp_path).records)


def test_what_was_torn_is_noted_even_if_the_run_is_killed_at_once(tmp_path: Path) -> None:
    attempt = interrupted(tmp_path)
    with (tmp_path / RECORDS).open("ab") as journal:
        journal.write(b"torn")
    os.environ["STUB_WORKER"] = "{}"
    with Interrupts() as stop, resume(tmp_path, attempt.load, stop, 0.0):
        assert any("torn (4 bytes" in note for note in read_manifest(tmp_path).notes)


def test_a_last_record_without_its_newline_is_kept_and_not_measured_again(tmp_path: Path) -> None:
    Attempt(tmp_path, SUITE).begin()
    content = (tmp_path / RECORDS).read_bytes()
    (tmp_path / RECORDS).write_bytes(content[:-1])
    run = Attempt(tmp_path, SUITE).resume()
    assert (tmp_path / RECORDS).read_bytes() == content
    assert any("completed" in note for note in run.manifest.notes)


def test_an_interruption_ends_thousands_of_skips(tmp_path: Path) -> None:
    """Records of cases that no worker gets: none is written after the end was asked for."""
    attempt = Attempt(tmp_path, SUITE, {"predict": {"depthwise": 10}}, asked(memory_limit=1), StopAfter(3))
    with pytest.raises(Interrupted):
        attempt.begin()
    assert len(read(tmp_path).records) == 3


def test_what_was_finished_before_the_interruption_is_kept(tmp_path: Path) -> None:
    """The worker has sent all its records by the time the first of them is heard."""

    class Slow(StopAfter):
        def record(self, record: Record) -> None:
            if self.left == 1:
                time.sleep(1.0)
            super().record(record)

    suite = suite_of(rounds=1)
    with pytest.raises(Interrupted):
        Attempt(tmp_path, suite, observer=Slow(1)).begin()
    assert keys(read(tmp_path)) == all_keys(suite)


OLD = sorted((Path(__file__).parents[2] / "reports").glob("*/run.json"))


@pytest.mark.parametrize("path", OLD, ids=lambda path: path.parent.name)
def test_a_manifest_of_before_keeps_its_keys(path: Path) -> None:
    """The settings are read from them, and they are written beside ``settings``."""
    old = json.loads(path.read_text(encoding="utf-8"))
    manifest = read_manifest(path.parent)
    new = json.loads(manifest.model_dump_json())
    assert old.keys() <= new.keys()
    for key in ("rounds", "seed", "device", "budget", "memory_limit"):
        assert old[key] == new[key] == new["settings"][key]
    assert (
        new["settings"]["measure"] == new["suite"]["measure"] == new["suite"]["measure"] | old["suite"]["measure"]
    )


def test_a_run_begun_before_the_manifest_had_settings_is_resumed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    attempt = Attempt(tmp_path, SUITE, overrides=asked(seed=11, memory_limit=10**6), observer=StopAfter(3))
    with pytest.raises(Interrupted):
        attempt.begin()
    manifest = json.loads((tmp_path / MANIFEST).read_text())
    del manifest["settings"]
    (tmp_path / MANIFEST).write_text(json.dumps(manifest | {"schema_version": 2}))
    monkeypatch.setattr(local, "LAUNCHER", stub.LAUNCHER)  # a run of before was always local
    run = Attempt(tmp_path, SUITE).resume()
    assert keys(run) == all_keys(SUITE)
    settings = run.manifest.settings
    assert (settings.launcher, settings.seed, settings.memory_limit, settings.rounds) == ("local", 11, 10**6, 2)
    assert settings.measure == SUITE.measure


def test_another_version_is_refused(tmp_path: Path) -> None:
    attempt = interrupted(tmp_path)
    manifest = read_manifest(tmp_path)
    write_manifest(tmp_path, manifest.model_copy(update={"niffbench": "0.0.1"}))
    with pytest.raises(UsageError, match=r"begun with niffbench 0\.0\.1"):
        attempt.resume()


def test_a_packed_run_is_refused(tmp_path: Path) -> None:
    attempt = interrupted(tmp_path)
    (tmp_path / RECORDS).rename(tmp_path / f"{RECORDS}.gz")
    with pytest.raises(UsageError, match="its records are packed"):
        attempt.resume()


def test_a_directory_that_fills_up_in_the_meantime(tmp_path: Path) -> None:
    place = tmp_path / "run"
    place.mkdir()
    (place / "mine.txt").write_text("mine")
    with pytest.raises(UsageError, match="is not empty any more"):
        Attempt(place, SUITE).begin()
    assert sorted(path.name for path in place.iterdir()) == ["mine.txt"]


def test_a_kill_before_the_manifest_was_there_is_no_hindrance(tmp_path: Path) -> None:
    (tmp_path / ".lock").write_text("12345\n")
    (tmp_path / "run.tmp").write_text("half of a manif")
    check_vacant(tmp_path)
    assert keys(Attempt(tmp_path, SUITE).begin()) == all_keys(SUITE)


def test_the_manifest_is_replaced_whole(tmp_path: Path) -> None:
    Attempt(tmp_path, suite_of()).begin()
    manifest = read_manifest(tmp_path)
    (tmp_path / "run.tmp").write_text("half of a manif")  # a kill in the middle of writing leaves this
    assert read_manifest(tmp_path) == manifest
    write_manifest(tmp_path, manifest)
    assert not (tmp_path / "run.tmp").exists()


def test_nothing_tells_who_ran_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import socket

    monkeypatch.setenv("LOGNAME", "ada_lovelace")
    anonymizing._secrets.cache_clear()
    try:
        Attempt(tmp_path, suite_of(), {"faults": [{"kernel": 7, "do": "exit"}]}).begin()
    finally:
        anonymizing._secrets.cache_clear()
    manifest = read(tmp_path).manifest
    assert 'description = "made up"' in manifest.suite.text  # with what a reader needs to measure it again
    text = (tmp_path / MANIFEST).read_text() + (tmp_path / RECORDS).read_text()
    secrets = {str(Path.home()) + "/", socket.gethostname(), "ada_lovelace"}
    assert [secret for secret in secrets if secret in text] == []
    assert "secret/file.py torchinductor_<user> <user>" in text  # what the worker said is there, not whose it is


def child(place: Path, resume: bool) -> None:
    """A session in a process of its own, to be killed."""
    os.setsid()
    attempt = Attempt(place, SUITE, {"pause": 0.004})
    with contextlib.suppress(BaseException):
        attempt.resume() if resume else attempt.begin()
        os._exit(0)
    os._exit(1)


def test_a_session_is_killed_at_ten_random_moments(tmp_path: Path) -> None:
    """Every other time once it measures, else wherever it is."""
    rng = random.Random(2024)
    context = multiprocessing.get_context("fork")
    kills = grown = 0
    place, copy = tmp_path / "run", 0
    while kills < 10:
        before = count(place)
        session = context.Process(target=child, args=(place, (place / MANIFEST).exists()))
        session.start()
        while kills % 2 and session.is_alive() and count(place) == before:
            time.sleep(0.002)
        session.join(rng.uniform(0.0, 0.05) if kills % 2 else rng.uniform(0.01, 0.4))
        if session.is_alive():
            os.kill(session.pid, signal.SIGKILL)  # type: ignore[arg-type]
            kills += 1
            session.join()
            time.sleep(0.02)  # its worker notices that nobody listens
            grown += count(place) > before
        else:
            assert session.exitcode == 0
            assert keys(read(place)) == all_keys(SUITE)
            place, copy = tmp_path / f"run{copy}", copy + 1
    assert grown >= 2  # the kills struck runs that were measuring
    if (place / MANIFEST).exists():
        run = Attempt(place, SUITE).resume()
    else:
        shutil.rmtree(place, ignore_errors=True)
        run = Attempt(place, SUITE).begin()
    assert keys(run) == all_keys(SUITE)
    assert {record.status for record in run.records} == {"ok"}
    for torn in place.glob(f"{RECORDS}.torn-*"):
        assert torn.stat().st_size > 0


def count(place: Path) -> int:
    return (place / RECORDS).read_bytes().count(b"\n") if (place / RECORDS).exists() else 0


def test_workers_are_killed_at_ten_random_moments(tmp_path: Path) -> None:
    suite = suite_of(sizes=range(8, 18), kernels=(3, 5, 7), rounds=2)  # 60 records
    rng = random.Random(7)
    at_work, done = threading.Event(), threading.Event()
    killed: list[int] = []

    def killer() -> None:
        while len(killed) < 10:
            at_work.wait()
            time.sleep(rng.uniform(0.0, 0.06))
            if done.is_set():
                return
            at_work.clear()
            for victim in stubs():
                with contextlib.suppress(psutil.Error):
                    victim.kill()
                    killed.append(victim.pid)

    class AtWork(Observer):
        def stage(self, case: object, stage: str, round_: int) -> None:
            at_work.set()

    thread = threading.Thread(target=killer)
    thread.start()
    try:
        run = Attempt(tmp_path, suite, {"pause": 0.02}, observer=AtWork()).begin()
    finally:
        done.set()
        at_work.set()
        thread.join()
    assert keys(run) == all_keys(suite)
    lost = [record for record in run.records if record.status != "ok"]
    assert len(killed) == 10
    # A kill costs the one case it struck; one that struck between cases costs none.
    assert len(killed) // 2 <= len(lost) <= len(killed)
    assert {record.status for record in lost} == {"crashed"}
    assert all("SIGKILL" in str(record.reason) for record in lost)


def test_resuming_over_many_records_is_linear(tmp_path: Path) -> None:
    """10,000 records are read, checked and planned over in a time that grows as their number."""

    one = Attempt(tmp_path / "one", suite_of(rounds=1)).begin()

    def resumed(cases: int) -> float:
        suite = suite_of(sizes=range(8, 8 + cases // 5), kernels=(3, 5, 7, 9, 11), rounds=2)
        place = tmp_path / str(cases)
        surveyed = Survey(one.manifest.fingerprint)
        with begin(place, Prepared(suite, resolve(suite, asked()), surveyed, Plan((), 2)), [], 0.0):
            pass
        every = (replace(one.records[0], case=case, id=case.id, round=i) for case in suite.cases for i in range(2))
        (place / RECORDS).write_bytes(b"".join(map(dump, islice(every, 1, None))))
        begun = time.process_time()
        assert keys(Attempt(place, suite).resume()) == all_keys(suite)
        return time.process_time() - begun

    small, large = resumed(500), resumed(5000)
    print(f"resumed over 1,000 records in {small:.2f} s, over 10,000 in {large:.2f} s of processor time")
    assert large < 30 * small  # a quadratic cost would be a hundred times


def test_the_manifest_says_what_was_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GITHUB_SHA", "abc")
    monkeypatch.setenv("RUNNER_NAME", "a-host")
    run = Attempt(tmp_path, suite_of()).begin()
    assert run.manifest.ci["GITHUB_SHA"] == "abc"
    assert "a-host" not in run.manifest.model_dump_json()
    assert run.manifest.fingerprint == Fingerprint(must={"device": "fake"}, should={})
    assert run.manifest.argv == ["niffbench", "run"]


def test_what_a_library_raises_when_it_is_torn_is_an_interruption() -> None:
    def library() -> None:
        try:
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(5)
        except BaseException:
            raise TypeError("expected something else") from None

    with Interrupts() as stop, pytest.raises(Interrupted), stop.at_any_moment():
        library()


def test_a_signal_in_the_middle_of_a_finaliser_prints_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    class Last:
        def __del__(self) -> None:
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(5)

    printed: list[object] = []
    monkeypatch.setattr(sys, "unraisablehook", printed.append)
    with Interrupts() as stop, pytest.raises(Interrupted), stop.at_any_moment():
        Last()
    assert not printed
    assert sys.unraisablehook == printed.append
