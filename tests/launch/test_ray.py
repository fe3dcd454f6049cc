"""Runs on a real Ray of several nodes in this machine: the records of a local run, whatever is killed."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import random
import re
import shlex
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml
from cli_process import Started, count, interrupt, replay, wait_for
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
    written,
)
from run_worker import QUICK, case_of

import niffbench
from niffbench import protocol
from niffbench.launch.base import Request
from niffbench.launch.ray import RayLauncher, Room, room_for
from niffbench.results import RECORDS, Run, read
from niffbench.session.lock import Lock
from niffbench.suite import Settings

NODE = {"num_cpus": 1, "object_store_memory": 80_000_000}


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """Two nodes of a core each, which talk to nobody but this machine."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")  # then it uses the loopback address
        try:
            from ray.cluster_utils import Cluster
        except ImportError:
            lacking("ray is not installed")
        more = {"ray_client_server_port": free_port()} if importlib.util.find_spec("grpc") else {}
        cluster = Cluster(initialize_head=True, head_node_args={"include_dashboard": False, **more, **NODE})
        try:
            cluster.add_node(**NODE)
            yield cluster
        finally:
            cluster.shutdown()


@pytest.fixture
def on(cluster: Any) -> list[str]:
    return ["--on", "ray", "--cpus-per-worker", "1", "--launcher-option", f"address={cluster.address}"]


@pytest.fixture(scope="module")
def local(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A local run of the same."""
    place = tmp_path_factory.mktemp("local")
    return run_to_the_end(place, prepared(place))


def test_what_its_page_says_has_the_records_of_a_local_run_and_is_judged_like_one(
    tmp_path: Path, cluster: Any, local: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", cluster.address)
    follow("ray", tmp_path)
    run = read(tmp_path / "runs" / "smoke")
    assert keys(run) == keys(local)
    assert {record.status for record in run.records} == {"ok"}
    assert {record.node for record in run.records} <= {0, 1}
    assert len(run.manifest.nodes) == len({record.node for record in run.records})
    assert cluster.address not in written(run.path)
    status, printed = ended(tmp_path, ["check", str(local.path), "runs/smoke"])
    assert status in (0, 5), printed


def relays(cluster: Any) -> list[psutil.Process]:
    """Processes of the cluster's in which a worker's lines are passed on."""
    nodes = {raylet.process.pid for node in cluster.list_all_nodes() for raylet in node.all_processes["raylet"]}
    result = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if process.ppid() in nodes and process.name().startswith("ray::_relay"):
                result.append(process)
    return result


@pytest.mark.parametrize("seed", range(FAULTS))
def test_a_killed_worker_node_or_session_costs_nothing(
    tmp_path: Path, on: list[str], local: Run, cluster: Any, seed: int
) -> None:
    rng = random.Random(seed)

    def kill_worker(started: Started) -> None:
        kill_one(lambda: relays(cluster), rng, started)

    def kill_node(started: Started) -> None:
        [raylet] = node.all_processes["raylet"]
        raylet.process.kill()

    node = cluster.add_node(**NODE)
    try:
        survives(tmp_path, on, rng, rng.sample((kill_worker, kill_node), 2), keys(local))
    finally:
        cluster.remove_node(node, allow_graceful=False)
    wait_for(lambda: not relays(cluster))


@rare
def test_a_node_whose_workers_wait_busily_is_named(tmp_path: Path, on: list[str], cluster: Any) -> None:
    nodes = [cluster.add_node(**NODE), cluster.add_node(env_vars={"TESTS_BUSY": "node-c"}, **NODE)]
    try:
        names_the_slow_node(tmp_path, on)
    finally:
        for node in nodes:
            cluster.remove_node(node, allow_graceful=False)


@rare
def test_a_full_disk_ends_a_run_which_goes_on_when_there_is_room(
    tmp_path: Path, on: list[str], local: Run, cluster: Any
) -> None:
    goes_on_after_a_full_disk(tmp_path, on, keys(local))


@rare
def test_a_second_session_on_a_run_ends_and_the_first_goes_on(
    tmp_path: Path, on: list[str], local: Run, cluster: Any
) -> None:
    second_session_ends(tmp_path, on, keys(local))


@rare
def test_no_worker_is_started_on_a_node_that_is_avoided(tmp_path: Path, cluster: Any) -> None:
    task = protocol.Task(
        kind="round", settings=Settings(device="cpu", rounds=1, measure=QUICK), cases=[case_of("depthwise", 3)]
    )
    launcher = RayLauncher()
    wake, other_end = os.pipe()
    with launcher.open(Request(tmp_path, "cpu", cpus=1, options={"address": cluster.address})):
        first = sorted(launcher.nodes())[0]
        assert launcher.avoid(first)
        assert not launcher.avoid(*launcher.nodes())
        for _ in range(2):
            with launcher.start(task, wake) as worker:
                while not isinstance(hello := worker.next(time.monotonic() + 60), protocol.Hello):
                    pass
                assert hello.node in {*launcher.nodes()} - {first}
    os.close(wake)
    os.close(other_end)


def goes_on_elsewhere(place: Path, on: list[str], local: Run) -> None:
    """Resumed on a Ray of its own, a run loses nothing of what the one that is gone had measured."""
    before = read(place / "out").records
    replay(place)
    run = run_to_the_end(place, ["run", "made-up.toml", "--resume", "out", "--no-report", *on])
    assert keys(run) == keys(local)
    assert run.records[: len(before)] == before
    assert {record.status for record in run.records} == {"ok"}


@rare
def test_a_session_whose_own_raylet_dies_is_resumed(tmp_path: Path, local: Run) -> None:
    from ray.cluster_utils import Cluster

    on = ["--on", "ray", "--cpus-per-worker", "1"]
    doomed = Cluster(initialize_head=True, head_node_args={"include_dashboard": False, **NODE})
    try:
        doomed.add_node(**NODE)
        address = ["--launcher-option", f"address={doomed.address}"]
        with Started(tmp_path, [*prepared(tmp_path, pace=PACE), *on, *address]) as started:
            wait_for(lambda: count(tmp_path / "out") >= 3 or started.process.poll() is not None)
            doomed.head_node.all_processes["raylet"][0].process.kill()
            assert started.end() == 130, started.said()  # something was measured, and it can go on
            printed = started.said()
    finally:
        doomed.shutdown()
    assert "--resume out" in printed
    assert "Traceback" not in printed
    goes_on_elsewhere(tmp_path, on, local)


@rare
def test_a_node_that_stalls_costs_nothing(tmp_path: Path, on: list[str], local: Run, cluster: Any) -> None:
    """It is given up meanwhile, and what it says later is no second record."""
    node = cluster.add_node(**NODE)
    try:
        with Started(tmp_path, [*prepared(tmp_path, pace=PACE, case_timeout=120), *on]) as started:
            wait_for(lambda: count(tmp_path / "out") >= 3 or started.process.poll() is not None)
            raylet = psutil.Process(node.all_processes["raylet"][0].process.pid)
            stalls([raylet, *raylet.children(recursive=True)], 45)
            assert started.end() == 0, started.said()
    finally:
        cluster.remove_node(node, allow_graceful=False)
    run = read(tmp_path / "out")
    assert keys(run) == keys(local)
    assert {record.status for record in run.records} == {"ok"}


@rare
def test_a_worker_that_stalls_costs_at_most_the_case_that_it_was_at(
    tmp_path: Path, on: list[str], local: Run, cluster: Any
) -> None:
    with Started(tmp_path, [*prepared(tmp_path, pace=PACE, case_timeout=8), *on]) as started:
        wait_for(lambda: count(tmp_path / "out") >= 3 or started.process.poll() is not None)
        one = relays(cluster)[0]
        stalls([one, *one.children(recursive=True)], 20)
        assert started.end() == 0, started.said()
    run = read(tmp_path / "out")
    assert keys(run) == keys(local)
    lost = [record.status for record in run.records if record.status != "ok"]
    assert lost in ([], ["timeout"])  # none where it had not begun with any


@rare
def test_a_head_that_is_gone_ends_the_run_which_goes_on_on_another(tmp_path: Path, local: Run) -> None:
    from ray.cluster_utils import Cluster

    doomed = Cluster(initialize_head=True, head_node_args={"include_dashboard": False, **NODE})
    try:
        on = ["--on", "ray", "--cpus-per-worker", "1"]
        address = ["--launcher-option", f"address={doomed.address}"]
        with Started(tmp_path, [*prepared(tmp_path, pace=PACE), *on, *address]) as started:
            wait_for(lambda: count(tmp_path / "out") >= 3 or started.process.poll() is not None)
            doomed.head_node.all_processes["gcs_server"][0].process.kill()
            assert started.end() == 130, started.said()
            printed = started.said()
    finally:
        doomed.shutdown()
    assert "the head of the Ray cluster does not answer any more; " in printed
    assert "--resume out" in printed
    goes_on_elsewhere(tmp_path, on, local)


def cards(cluster: Any) -> list[str]:
    """What workers see of a node's GPUs."""
    result = []
    for relay in relays(cluster):
        with contextlib.suppress(psutil.Error, KeyError):
            result += [worker.environ()["CUDA_VISIBLE_DEVICES"] for worker in relay.children()]
    return result


@rare
def test_a_run_ends_with_the_last_node_that_has_room(
    tmp_path: Path, on: list[str], cluster: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    seconds = {"niffbench.launch.ray.LOOKING": 0.5, "niffbench.launch.ray.HEADLESS": 2.0}
    monkeypatch.setenv("NIFFBENCH_TESTS_CONSTANTS", json.dumps(seconds))
    node = cluster.add_node(num_gpus=1, **NODE)
    try:
        with Started(tmp_path, [*prepared(tmp_path, pace=PACE), *on, "--gpus-per-worker", "1"]) as started:
            wait_for(lambda: count(tmp_path / "out") >= 1 or started.process.poll() is not None)
            node.all_processes["raylet"][0].process.kill()
            assert started.end() == 130, started.said()
            printed = started.said()
    finally:
        cluster.remove_node(node, allow_graceful=False)
    assert "--on ray: no node that is left has 1 core and 1 GPU; " in printed
    assert "--resume out" in printed
    assert {record.status for record in read(tmp_path / "out").records} == {"ok"}


def test_a_run_is_locked_before_a_cluster_is_reached_and_none_is_for_one_that_is_finished(
    tmp_path: Path, local: Run
) -> None:
    place = Path(shutil.copytree(local.path.parent, tmp_path / "run"))
    nowhere = ["--on", "ray", "--launcher-option", "address=127.0.0.1:1"]
    arguments = ["run", "made-up.toml", "--resume", "out", "--no-report", *nowhere]
    assert ended(place, arguments)[0] == 0
    lines = (place / "out" / RECORDS).read_bytes().splitlines(keepends=True)
    (place / "out" / RECORDS).write_bytes(b"".join(lines[:9]))
    with Lock(place / "out"):
        assert "another niffbench" in ended(place, arguments)[1]
    assert "no cluster answers" in ended(place, arguments)[1]


def test_a_node_with_other_code_is_named_before_anything_is_measured(
    tmp_path: Path, on: list[str], cluster: Any
) -> None:
    other = Path(shutil.copytree(Path(niffbench.__file__).parent, tmp_path / "other" / "niffbench"))
    with (other / "__init__.py").open("a") as file:
        file.write('__version__ = "9.9"\n')
    node = cluster.add_node(env_vars={"PYTHONPATH": str(other.parent)}, **NODE)
    try:
        status, printed = ended(tmp_path, [*prepared(tmp_path), *on])
    finally:
        cluster.remove_node(node, allow_graceful=False)
    assert status == 2, printed
    assert printed.count("\n") == 1
    assert re.search(
        r"--on ray: node \d of 3: niffbench is 9\.9 there and [\d.]+ here; niffbench's code is", printed
    )
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("nodes", "asked", "room"),
    [
        ([(8, 0), (8, 0)], {}, Room(2, 8, 0, None)),  # a node each
        ([(4, 0), (16, 0)], {}, Room(5, 4, 0, 4)),  # no thread of one on the cores of another
        ([(64, 8)], {"device": "cuda"}, Room(8, 8, 1, 8)),
        ([(64, 8)], {"device": "cuda", "gpus": 2, "workers": 3}, Room(3, 16, 2, 16)),
        ([(16, 1), (8, 0)], {"device": "cuda"}, Room(1, 16, 1, None)),
        ([(16, 0)], {"cpus": 4}, Room(4, 4, 0, 4)),
    ],
)
def test_workers_have_cores_and_gpus_of_their_own(
    tmp_path: Path, nodes: list[tuple[float, float]], asked: dict[str, Any], room: Room
) -> None:
    assert room_for(Request(tmp_path, **{"device": "cpu"} | asked), nodes) == room


def test_without_an_address_a_ray_of_its_own_is_started_and_ended(tmp_path: Path) -> None:
    run = run_to_the_end(tmp_path, [*prepared(tmp_path, rounds=1), "--on", "ray"])
    assert {record.status for record in run.records} == {"ok"}


def test_a_cluster_is_reached_by_ray_s_client_too(tmp_path: Path, cluster: Any) -> None:
    if (port := cluster.head_node._ray_params.ray_client_server_port) is None:
        lacking("ray[client] is not installed")
    address = f"ray://127.0.0.1:{port}"
    on = ["--on", "ray", "--workers", "1", "--launcher-option", f"address={address}"]
    for attempt in range(3):
        place = tmp_path / str(attempt)
        status, printed = ended(place, [*prepared(place, rounds=1), *on])
        # Ray gives its server half a minute, too little at times, and looks at its process before that is there.
        if "Starting Ray client server failed" not in printed and "start_specific_server" not in printed:
            break
    assert status == 0, printed
    run = read(place / "out")
    assert len(run.records) == 12
    assert {record.status for record in run.records} == {"ok"}
    wait_for(lambda: not relays(cluster))


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--cpus-per-worker", "99"], "--cpus-per-worker 99: no node of the cluster has so many"),
        (["--gpus-per-worker", "1"], "--gpus-per-worker 1: no node of the cluster has so many"),
        (["--launcher-option", "adress=x"], "--launcher-option adress: is none of Ray's; did you mean 'address'?"),
    ],
)
def test_what_the_cluster_has_not_is_one_message(
    tmp_path: Path, cluster: Any, more: list[str], message: str
) -> None:
    address = ["--launcher-option", f"address={cluster.address}"]
    status, printed = ended(tmp_path, [*prepared(tmp_path), "--on", "ray", *address, *more])
    assert (status, printed.count("\n")) == (2, 1), printed
    assert message in printed


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("127.0.0.1:1", "no cluster answers at '127.0.0.1:1'"),
        ("ray://127.0.0.1:1", "no cluster answers at 'ray://127.0.0.1:1'"),
    ],
)
def test_a_cluster_that_cannot_be_had_is_one_message(
    tmp_path: Path, cluster: Any, address: str, message: str
) -> None:
    where = ["--launcher-option", f"address={address}"]
    status, printed = ended(tmp_path, [*prepared(tmp_path), "--on", "ray", *where])
    assert (status, printed.count("\n")) == (2, 1), printed
    assert message in printed


def test_the_job_of_its_page_is_one() -> None:
    from niffbench.commands.run import command

    text = (Path(niffbench.__file__).parent / "docs" / "ray.md").read_text(encoding="utf-8")
    job = yaml.safe_load(text.partition("```yaml\n")[2].partition("```")[0])
    program, run, *arguments = shlex.split(job["spec"]["entrypoint"])
    assert (program, run) == ("niffbench", "run")
    asked = command.make_context("run", arguments).params
    assert (asked["suite"], asked["launcher"], asked["device"]) == ("stages", "ray", "cuda")
    pod = job["spec"]["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]
    assert asked["out"].is_relative_to(pod["containers"][0]["volumeMounts"][0]["mountPath"])


def test_workers_have_a_card_each_and_an_interrupt_cancels_all(
    tmp_path: Path, on: list[str], cluster: Any
) -> None:
    on = [*on[:2], "--gpus-per-worker", "1", *on[2:]]
    node = cluster.add_node(num_gpus=2, **NODE | {"num_cpus": 2})
    try:
        with Started(tmp_path, [*prepared(tmp_path, pace=4 * PACE), *on]) as started:
            wait_for(lambda: sorted(cards(cluster)) == ["0", "1"] or started.process.poll() is not None)
            wait_for(lambda: count(tmp_path / "out") >= 1 or started.process.poll() is not None)
            interrupt(started)
            assert started.process.returncode == 130
            printed = started.said()
        wait_for(lambda: not relays(cluster))
    finally:
        cluster.remove_node(node, allow_graceful=False)  # of which others would hear for a while: this is the last
    assert f"--resume out {' '.join(on)}" in printed
    assert "may still be running" not in printed
