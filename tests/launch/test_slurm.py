"""Runs on a real Slurm of four nodes in this machine: the records of a local run, whatever is killed."""

from __future__ import annotations

import contextlib
import getpass
import importlib.util
import json
import os
import random
import re
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from cli_process import Started, count, interrupt, wait_for
from launch.engines import (
    FAULTS,
    PACE,
    ended,
    follow,
    free_port,
    goes_on_after_a_full_disk,
    keys,
    kill_one,
    lacking,
    names_the_slow_node,
    prepared,
    rare,
    run_to_the_end,
    second_session_ends,
    stalls,
    survives,
    unlike,
    written,
)

from niffbench.results import RECORDS, Run, read

CONFIGURATION = """\
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={port}
AuthType=auth/munge
AuthInfo=socket={place}/munge.socket
CryptoType=crypto/munge
ProctrackType=proctrack/linuxproc
ReturnToService=2
SlurmctldPidFile={place}/slurmctld.pid
SlurmdPidFile={place}/%n.pid
SlurmdSpoolDir={place}/%n
StateSaveLocation={place}/state
SlurmUser={user}
SlurmdUser={user}
SlurmdParameters=config_overrides
TaskPlugin=task/none
SchedulerType=sched/backfill
SchedulerParameters=sched_interval=1,bf_interval=1,batch_sched_delay=0
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SlurmctldLogFile={place}/slurmctld.log
SlurmdLogFile={place}/%n.log
KillWait=2
MinJobAge=60
GresTypes=gpu
PreemptType=preempt/partition_prio
PreemptMode=CANCEL
PartitionName=debug Nodes=node-a,node-b,node-c,node-d Default=YES MaxTime=INFINITE State=UP
PartitionName=first Nodes=node-a,node-b,node-c,node-d MaxTime=INFINITE PriorityTier=9 State=UP
PartitionName=short Nodes=node-a,node-b,node-c,node-d MaxTime=1 State=UP
PartitionName=gpu Nodes=node-e MaxTime=INFINITE State=DOWN
"""
NODE = (
    "NodeName={name} NodeHostname={host} NodeAddr=127.0.0.1 Port={port} CPUs={cpus} RealMemory=500 {more} "
    "State=UNKNOWN\n"
)
NODES = ["node-a", "node-b", "node-c", "node-d", "node-e"]
CARDS = {"node-e": {"cpus": 2, "more": "Gres=gpu:2"}}


SECONDS = {
    f"niffbench.launch.slurm.{name}": value
    for name, value in {"LOOKING": 0.3, "WAITING": 1.0, "PAUSES": [0.3] * 4}.items()
}


@pytest.fixture(scope="module")
def cluster() -> Iterator[Path]:
    """Its folder; ``SLURM_CONF`` leads every program to it."""
    for program in ("slurmctld", "slurmd", "munged", "sbatch"):
        if shutil.which(program) is None:
            lacking(f"{program} is not installed")
    if importlib.util.find_spec("submitit") is None:
        lacking("submitit is not installed")
    place = Path(tempfile.mkdtemp(prefix="slurm-", dir="/tmp"))  # paths of sockets are short
    for folder in ("state", *NODES):
        (place / folder).mkdir()
    (place / "munge.key").write_bytes(os.urandom(128))
    (place / "munge.key").chmod(0o400)
    configuration = place / "slurm.conf"
    host, user = socket.gethostname().partition(".")[0], getpass.getuser()
    nodes = "".join(
        NODE.format(name=name, host=host, port=free_port(), **CARDS.get(name, {"cpus": 1, "more": ""}))
        for name in NODES
    )
    (place / "gres.conf").write_text("NodeName=node-e Name=gpu File=/dev/null,/dev/zero\n")  # any two devices
    common = CONFIGURATION.format(host=host, user=user, place=place, port=free_port())
    configuration.write_text(f"{common}{nodes}")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SLURM_CONF", str(configuration))
        patch.setenv("NIFFBENCH_TESTS_CONSTANTS", json.dumps(SECONDS))
        patch.setenv("PATH", f"/usr/sbin:/sbin:{os.environ['PATH']}")
        kept = {name: f"--{name}-file={place}/munge.{name}" for name in ("key", "log", "pid", "seed")}
        munged = ["munged", "--force", f"--socket={place}/munge.socket", *kept.values()]
        try:
            for command in (munged, ["slurmctld"], *(["slurmd", "-N", name] for name in NODES)):
                subprocess.run(command, check=True, capture_output=True, timeout=60)
            wait_for(lambda: {*slurm("sinfo", "--noheader", "--Node", "--format=%t").split()} == {"idle"})
            yield place
        finally:
            slurm("scancel", "--user", user)
            for pid in place.glob("*.pid"):
                with contextlib.suppress(psutil.Error, ValueError):
                    psutil.Process(int(pid.read_text())).kill()
            shutil.rmtree(place, ignore_errors=True)


def slurm(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False).stdout


ON = ["--on", "slurm", "--workers", "2", "--cpus-per-worker", "1"]


@pytest.fixture(scope="module")
def local(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A local run of the same."""
    place = tmp_path_factory.mktemp("local")
    return run_to_the_end(place, prepared(place))


def jobs() -> list[str]:
    """What is in the queue."""
    return slurm("squeue", "--noheader", "--array", "--format=%i|%T|%j").splitlines()


def running() -> list[str]:
    """The ids of what runs."""
    return [line.partition("|")[0] for line in jobs() if "RUNNING" in line]


def cards() -> list[str]:
    """What workers see of a node's GPUs."""
    result = []
    for worker in workers():
        with contextlib.suppress(psutil.Error, KeyError):
            result.append(worker.environ()["CUDA_VISIBLE_DEVICES"])
    return result


def workers() -> list[psutil.Process]:
    """Workers of this machine that a task of Slurm's runs."""
    result = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if (
                "niffbench.worker.main" in process.cmdline()
                and os.environ["SLURM_CONF"] in process.environ().values()
            ):
                result.append(process)
    return result


def test_what_its_page_says_has_the_records_of_a_local_run_and_is_judged_like_one(
    tmp_path: Path, cluster: Path, local: Run
) -> None:
    follow("slurm", tmp_path)
    run = read(tmp_path / "runs" / "smoke")
    assert keys(run) == keys(local) == keys(read(tmp_path / "runs" / "both"))
    assert {record.status for record in run.records} == {"ok"}
    assert {record.node for record in run.records} <= {*range(4)}
    assert len(run.manifest.nodes) == len({record.node for record in run.records})
    assert not [name for name in NODES if name in written(run.path)]
    assert not (run.path / "slurm").exists()
    assert not jobs()
    assert not list(tmp_path.glob(".*"))
    status, printed = ended(tmp_path, ["check", str(local.path), "runs/smoke"])
    assert status in (0, 5), printed


@pytest.mark.parametrize("seed", range(FAULTS))
def test_a_killed_worker_task_or_session_costs_nothing(
    tmp_path: Path, cluster: Path, local: Run, seed: int
) -> None:
    """The array goes on without its session, which is killed, or ends as with its terminal, and says so.

    When the run is resumed, elsewhere or not, what is through is taken over, and what is not is ended.
    """
    rng = random.Random(seed)

    def kill_worker(started: Started) -> None:  # as the kernel does when memory runs out
        kill_one(workers, rng, started)

    def kill_task(started: Started) -> None:
        jobs_now: list[str] = []
        wait_for(lambda: jobs_now.extend(running()) or jobs_now or started.process.poll() is not None)
        job = rng.choice(jobs_now)
        if seed % 2 == 0:
            slurm("scancel", "--signal=KILL", job)
        else:  # somebody with more right to its node comes
            node = slurm("squeue", f"--jobs={job}", "--noheader", "--format=%N").strip()
            slurm("srun", "--partition=first", f"--nodelist={node}", "true")

    def kill_session(started: Started) -> None:
        nonlocal recorded
        if seed % 2 != 0:
            started.kill()
            return
        started.process.send_signal(signal.SIGTERM)
        assert started.end() == 130, started.said()
        [name] = {line.split("|")[2] for line in jobs()}
        assert f"scancel --me --name={name}` ends them" in started.said()
        assert f"--resume out {' '.join(ON)}" in started.said()
        recorded, left = count(tmp_path / "out"), len(jobs())
        wait_for(lambda: len(jobs()) < left)

    recorded = 48
    here = ["--on", "local"] if seed % 2 == 0 else None
    kills = [*rng.sample((kill_worker, kill_task), 2), kill_session]
    run = survives(tmp_path, ON, rng, kills, keys(local), here)
    assert here is None or [record for record in run.records[recorded:] if record.node is not None]
    assert not jobs()
    assert not (tmp_path / "out" / "slurm").exists()


def test_a_node_whose_workers_wait_busily_is_named(tmp_path: Path, cluster: Path) -> None:
    names_the_slow_node(tmp_path, [*ON[:2], "--workers", "4", "--cpus-per-worker", "1"])


@rare
def test_a_worker_that_stalls_costs_at_most_the_case_that_it_was_at(
    tmp_path: Path, cluster: Path, local: Run
) -> None:
    """What it says later is no second record, whoever reads the run's folder by then."""
    with Started(tmp_path, [*prepared(tmp_path, pace=PACE, case_timeout=8), *ON]) as started:
        wait_for(lambda: count(tmp_path / "out") >= 3 or started.process.poll() is not None)
        wait_for(workers)
        stalls(workers()[:1], 20)
        assert started.end() == 0, started.said()
    run = read(tmp_path / "out")
    assert keys(run) == keys(local)
    lost = [record.status for record in run.records if record.status != "ok"]
    assert lost in ([], ["timeout"])  # none where it had not begun with any


@rare
def test_a_node_on_which_tasks_never_say_a_word_is_left_out(
    tmp_path: Path, cluster: Path, local: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Slurm takes them to be running."""
    monkeypatch.setenv("NIFFBENCH_TESTS_CONSTANTS", '{"niffbench.launch.slurm.STARTING": 20}')
    spool = cluster / NODES[2]
    spool.rename(cluster / "away")
    spool.touch()
    try:
        run = run_to_the_end(tmp_path, [*prepared(tmp_path), *ON[:2], "--workers", "4"])
    finally:
        spool.unlink()
        (cluster / "away").rename(spool)
    assert keys(run) == keys(local)
    assert {record.status for record in run.records} == {"ok"}
    assert [note for note in run.manifest.notes if " was left out: the worker ran for 20 s" in note]


@rare
def test_a_full_disk_ends_a_run_which_goes_on_when_there_is_room(
    tmp_path: Path, cluster: Path, local: Run
) -> None:
    """Tasks are as limited as the session is."""
    goes_on_after_a_full_disk(tmp_path, ON, keys(local))
    assert not jobs()


@rare
def test_a_task_whose_time_is_up_is_submitted_again(tmp_path: Path, cluster: Path) -> None:
    """It has twelve cases of seconds, and less than a minute for them."""
    arguments = prepared(tmp_path, rounds=1, pace=300 * PACE)
    more = ["--workers", "1", "--cpus-per-worker", "1", "--launcher-option", "time=1"]
    submitted: set[str] = set()
    with Started(tmp_path, [*arguments, *ON[:2], *more]) as started:
        wait_for(lambda: time.sleep(1) or submitted.update(running()) or started.process.poll() is not None)
        assert started.end() == 0, started.said()
    run = read(tmp_path / "out")
    assert len(run.records) == 12
    assert {record.status for record in run.records} == {"ok"}
    assert len(submitted) > 2  # a survey, the task, and what was left of it


@rare
def test_an_interrupt_ends_a_session_whose_controller_is_silent(
    tmp_path: Path, cluster: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NIFFBENCH_TESTS_CONSTANTS", json.dumps({**SECONDS, "niffbench.launch.slurm.ANSWERING": 4}))
    controller = psutil.Process(int((cluster / "slurmctld.pid").read_text()))
    with Started(tmp_path, [*prepared(tmp_path, pace=PACE), *ON]) as started:
        wait_for(lambda: count(tmp_path / "out") >= 2 or started.process.poll() is not None)
        controller.suspend()
        try:
            interrupt(started)
        finally:
            controller.resume()
        assert started.process.returncode == 130
        printed = started.said()
    assert "--resume out" in printed
    [command] = re.findall(r"may still be running: .*`(scancel [^`]*)` ends them", printed)
    slurm(*command.split())
    wait_for(lambda: not jobs())


BUSY = """#!/bin/sh
echo >> {calls}
case $(wc -l < {calls}) in
{busy}) echo "sbatch: error: Batch job submission failed: Socket timed out on send/recv operation" >&2; exit 1;;
esac
exec {sbatch} "$@"
"""


def is_busy(place: Path, at: str) -> str:
    """A ``PATH`` with which the controller does not take some submissions: 1 is the survey, 2 the array."""
    sbatch = place / "bin" / "sbatch"
    sbatch.parent.mkdir()
    sbatch.write_text(BUSY.format(calls=place / "calls", busy=at, sbatch=shutil.which("sbatch")))
    sbatch.chmod(0o755)
    return f"{sbatch.parent}:{os.environ['PATH']}"


def test_what_waits_says_why_has_a_card_of_its_own_and_is_cancelled_by_an_interrupt(
    tmp_path: Path, cluster: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Though the controller is too busy to take all tasks as one array."""
    monkeypatch.setenv("PATH", is_busy(tmp_path, at="2"))
    on = [*ON[:4], "--gpus-per-worker", "1", *ON[4:], "--launcher-option", "partition=gpu"]
    with Started(tmp_path, [*prepared(tmp_path, pace=4 * PACE), *on]) as started:
        wait_for(lambda: "queued: PartitionDown (1 task)" in started.said() or started.process.poll() is not None)
        slurm("scontrol", "update", "PartitionName=gpu", "State=UP")
        wait_for(lambda: sorted(cards()) == ["0", "1"] or started.process.poll() is not None)
        assert started.process.poll() is None, started.said()
        wait_for(lambda: count(tmp_path / "out") >= 1 or started.process.poll() is not None)
        interrupt(started)
        assert started.process.returncode == 130
        printed = started.said()
    assert f"--resume out {' '.join(on)}" in printed
    assert not jobs()
    assert "may still be running" not in printed


def test_a_second_session_on_a_run_ends_and_the_first_goes_on(
    tmp_path: Path, cluster: Path, local: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Though a node turns out to be unlike, and the controller too busy to take again what that did not do."""
    monkeypatch.setenv("PATH", is_busy(tmp_path, at="3"))
    monkeypatch.setenv("PYTHONPATH", unlike(tmp_path, tmp_path / "out" / RECORDS))
    run = second_session_ends(tmp_path, ON, keys(local))
    [note] = [note for note in run.manifest.notes if "left out" in note]
    where, _, why = note.partition(" was left out: ")
    assert where in {"a node without records", *(f"node {record.node}" for record in run.records)}
    assert why.startswith("torch is 1.0 there and ")


@rare
def test_a_controller_that_takes_no_more_tasks_ends_a_run_which_goes_on_when_it_does(
    tmp_path: Path, cluster: Path, local: Run
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PATH", is_busy(tmp_path, at="[3-9]"))
        with Started(tmp_path, [*prepared(tmp_path, pace=PACE), *ON]) as started:
            wait_for(lambda: count(tmp_path / "out") >= 2 or started.process.poll() is not None)
            slurm("scancel", "--signal=KILL", running()[0])
            assert started.end() == 130, started.said()
            printed = started.said()
    assert "sbatch takes no task: Batch job submission failed: Socket timed out" in printed
    assert "--resume out" in printed
    assert not jobs()
    before = read(tmp_path / "out").records
    run = run_to_the_end(tmp_path, ["run", "made-up.toml", "--resume", "out", "--no-report", *ON])
    assert keys(run) == keys(local)
    assert run.records[: len(before)] == before


def test_a_node_with_another_torch_is_named_before_anything_is_measured(
    tmp_path: Path, cluster: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", unlike(tmp_path, tmp_path / "sitecustomize.py"))
    arguments = [*prepared(tmp_path), *ON, "--launcher-option", "nodelist=node-a"]
    status, printed = ended(tmp_path, arguments)
    assert (status, printed.count("\n")) == (2, 1), printed
    assert re.search(r"node 0: torch is 1\.0 there and [\d.+a-z]+ here\n", printed)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["partition=nowhere"], "invalid partition specified: nowhere"),
        (["time=never"], "Invalid --time specification"),
        (["partition=short"], "a task would wait for ever: PartitionTimeLimit"),
    ],
)
def test_what_sbatch_does_not_take_is_one_message(
    tmp_path: Path, cluster: Path, more: list[str], message: str
) -> None:
    options = [text for option in more for text in ("--launcher-option", option)]
    status, printed = ended(tmp_path, [*prepared(tmp_path), *ON, *options])
    assert (status, printed.count("\n")) == (2, 1), printed
    assert message in printed
    assert not (tmp_path / "out").exists()


def test_a_controller_that_does_not_answer_is_one_message(
    tmp_path: Path, cluster: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dead = re.sub("SlurmctldPort=.*", "SlurmctldPort=1", (cluster / "slurm.conf").read_text())
    (tmp_path / "dead.conf").write_text(dead)
    monkeypatch.setenv("SLURM_CONF", str(tmp_path / "dead.conf"))
    status, printed = ended(tmp_path, [*prepared(tmp_path), *ON])
    assert (status, printed.count("\n")) == (2, 1), printed
    assert "--on slurm: no controller answers" in printed


def test_a_folder_in_which_nothing_arrives_is_one_message(tmp_path: Path, cluster: Path) -> None:
    """As where nodes do not see it: here their python does not start."""
    broken = ["--launcher-option", "export=ALL,PYTHONHOME=/nowhere"]
    status, printed = ended(tmp_path, [*prepared(tmp_path), *ON, *broken])
    assert (status, printed.count("\n")) == (2, 1), printed
    assert "left nothing in the run's folder; is that on a file system that every node sees" in printed
    assert not (tmp_path / "out").exists()
