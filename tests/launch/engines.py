"""Real engines on this machine: what tests ask of runs on them, and the skip where they are not there."""

from __future__ import annotations

import contextlib
import os
import random
import re
import shlex
import socket
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NoReturn

import psutil
import pytest
from cli_process import Started, count, replay, suite, wait_for

import niffbench
from niffbench.results import MANIFEST, RECORDS, Run, read
from niffbench.results.fleet import fleet

REQUIRED = os.environ.get("NIFFBENCH_TESTS_ENGINES") == "1"
"""Whether engines must be there, as in CI."""
FAULTS = int(os.environ.get("NIFFBENCH_TESTS_FAULTS", "2"))
"""How often each kind of process is killed."""
PACE = 0.3
rare = pytest.mark.skipif(FAULTS < 3, reason="takes minutes; NIFFBENCH_TESTS_FAULTS=20 asks for it")


def lacking(what: str) -> NoReturn:
    """Skip, or fail where engines must be there."""
    if REQUIRED:
        pytest.fail(what)
    pytest.skip(what)


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


def prepared(place: Path, *, rounds: int = 4, pace: float = 0.0, **measure: Any) -> list[str]:
    """A suite of twelve cases on a replay in ``place``; the arguments that run it, without ``--on``."""
    place.mkdir(parents=True, exist_ok=True)
    arguments = suite(place, range(9, 13), rounds=rounds, **measure)
    replay(place, pace=pace)
    return [*arguments, "--no-report"]


def keys(run: Run) -> list[tuple[str, int]]:
    """Case and round of every record, sorted."""
    return sorted((record.id, record.round) for record in run.records)


def ended(place: Path, arguments: Iterable[str]) -> tuple[int, str]:
    """Run niffbench to its end, which nothing outlives; returns its exit status and what it printed."""
    with Started(place, arguments) as started:
        status = started.end()
        wait_for(lambda: not started.family())
        return status, started.said()


def run_to_the_end(place: Path, arguments: Iterable[str]) -> Run:
    status, printed = ended(place, arguments)
    assert status == 0, printed
    return read(place / "out")


def survives(
    place: Path,
    on: list[str],
    rng: random.Random,
    kills: Sequence[Callable[[Started], object]],
    whole: list[tuple[str, int]],
    resumed_on: list[str] | None = None,
) -> Run:
    """A run that ``kills`` strike at random moments, one after another, and at last the end of its session.

    What was in the journal then is there, as it was, when the run has been resumed, and nothing is missing or has
    failed. It is resumed where it was begun unless that is said.
    """
    arguments = prepared(place, pace=8 * PACE)  # On a busy machine too it must last until the last of the kills.
    out = place / "out"
    with Started(place, [*arguments, *on]) as started:
        for kill in kills:
            more = count(out) + 2
            wait_for(lambda more=more: count(out) >= more or started.process.poll() is not None)
            time.sleep(rng.uniform(0.0, 0.7))
            assert started.process.poll() is None, started.said()
            kill(started)
        started.kill()
        assert "Traceback" not in started.said()
    before = read(out).records
    replay(place)
    arguments = ["run", "made-up.toml", "--resume", "out", "--no-report", *(resumed_on or on)]
    run = run_to_the_end(place, arguments)
    assert keys(run) == whole
    assert run.records[: len(before)] == before
    assert {record.status for record in run.records} == {"ok"}
    return run


def kill_one(find: Callable[[], list[psutil.Process]], rng: random.Random, started: Started) -> None:
    """Kill one of the processes that ``find`` finds, as soon as there is one."""

    def killed() -> bool:
        with contextlib.suppress(psutil.Error, IndexError):
            rng.choice(find()).kill()
            return True
        return started.process.poll() is not None

    wait_for(killed)


def stalls(processes: Iterable[psutil.Process], seconds: float) -> None:
    """Nothing is heard of ``processes`` for a while, and then they go on."""
    stopped = list(processes)
    for process in stopped:
        process.suspend()
    time.sleep(seconds)
    for process in stopped:
        with contextlib.suppress(psutil.Error):  # it was ended meanwhile
            process.resume()


def goes_on_after_a_full_disk(place: Path, on: list[str], whole: list[tuple[str, int]]) -> None:
    """A run whose session may write no large files ends, and when there is room it goes on."""
    plain = {"PYTHONDONTWRITEBYTECODE": "1"}
    with Started(place, [*prepared(place), *on], limits={"FSIZE": 60 * 1024}, variables=plain) as started:
        assert started.end() == 2, started.said()
        assert "cannot be written (File too large)" in started.said()
        assert "Traceback" not in started.said()
    before = read(place / "out").records
    assert 0 < len(before) < 48
    run = run_to_the_end(place, ["run", "made-up.toml", "--resume", "out", "--no-report", *on])
    assert keys(run) == whole
    assert run.records[: len(before)] == before


def second_session_ends(place: Path, on: list[str], whole: list[tuple[str, int]]) -> Run:
    """Another session on a run's directory is refused, and the first one goes on."""
    with Started(place, [*prepared(place, pace=PACE), *on]) as started:
        wait_for(lambda: count(place / "out") >= 2 or started.process.poll() is not None)
        status, printed = ended(place, ["run", "made-up.toml", "--resume", "out", *on])
        assert status == 2, printed
        assert "another niffbench" in printed
        assert started.end() == 0, started.said()
    run = read(place / "out")
    assert keys(run) == whole
    assert {record.status for record in run.records} == {"ok"}
    return run


UNLIKE = """
import importlib.metadata, os

version, marker = importlib.metadata.version, {marker!r}


def lies(name):
    if name == "torch" and os.path.exists(marker) and os.path.getsize(marker):
        return "1.0"
    return version(name)


if os.environ.get("SLURMD_NODENAME") == "node-a":
    importlib.metadata.version = lies
"""


def unlike(place: Path, marker: Path) -> str:
    """A ``PYTHONPATH`` with which node-a has another torch as soon as ``marker`` holds anything."""
    (place / "sitecustomize.py").write_text(UNLIKE.format(marker=str(marker)))
    return os.pathsep.join([str(place), str(Path(niffbench.__file__).parents[1])])


BUSY = 0.005  # seconds, a hundred times what the layer takes
LAYER = """
import os, time
from torch import nn

BUSY = 0.005 if "node-c" in (os.environ.get("TESTS_BUSY"), os.environ.get("SLURMD_NODENAME")) else 0.0


class Layer(nn.Conv2d):
    def __init__(self, channels):
        super().__init__(channels, channels, 3, padding=1)

    def forward(self, x):
        ends = time.perf_counter() + BUSY
        while time.perf_counter() < ends:
            pass
        return super().forward(x)
"""
LAYERS = """
description = "A layer that is slow on nodes that are told to wait"
baseline = "layer"
rounds = 4
axes = {channels = [1, 2, 3, 4, 5], size = 8}
operators = [{module = "layer.py:Layer", label = "layer"}]
measure = {regimes = ["steady"], min_time = 0.01, max_time = 0.02, min_samples = 5, threads = 1}
"""


def names_the_slow_node(place: Path, on: list[str]) -> None:
    """Really measured, a round on each of four nodes, whose workers wait busily on one."""
    (place / "layer.py").write_text(LAYER)
    (place / "layers.toml").write_text(LAYERS)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NIFFBENCH_ROOFLINE", "0")  # nobody asks what the machine can do
        run = run_to_the_end(place, ["run", "layers.toml", "--out", "out", "--device", "cpu", "--no-report", *on])
    waited = {record.node for record in run.records if min(record.latency["steady"].samples) >= BUSY}
    [slow] = fleet(run).stragglers
    assert waited == {slow.member[0]}
    assert slow.shift is not None
    assert slow.shift.ratio.excludes(2.0)
    assert "slower than the other three" in fleet(run).sentences()[0]
    status, printed = ended(place, ["table", "out", "--per-node"])
    assert status == 0, printed
    assert f"{slow.name}, straggler" in printed


def written(out: Path) -> str:
    """All that a run wrote for others to read."""
    return (out / MANIFEST).read_text() + (out / RECORDS).read_text()


def follow(page: str, place: Path) -> None:
    """Do what a page of the documentation says, on a small suite in the place of ``smoke``."""
    prepared(place)
    text = (Path(niffbench.__file__).parent / "docs" / f"{page}.md").read_text(encoding="utf-8")
    lines = [line for block in re.findall(r"```sh\n(.*?)```", text, re.DOTALL) for line in block.splitlines()]
    assert lines
    for line in lines:
        program, *arguments = shlex.split(line)
        assert program == "niffbench"
        arguments = ["made-up.toml" if argument == "smoke" else argument for argument in arguments]
        if arguments[0] == "run":
            arguments += ["--device", "replay:r.json"]
        status, printed = ended(place, arguments)
        assert status == 0, (line, printed)
