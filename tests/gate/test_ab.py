"""A/B runs from end to end, with interpreters that copy made-up rounds in place of measuring."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
from cli_in_process import Call, call, git
from conftest import Cli
from synthetic import Fault, Noise, World, make, save

from niffbench.gate.ab import measured
from niffbench.gate.checkout import checked_out
from niffbench.results import read

__all__ = ["call"]

PAIRS = 10
WORLD = World(rounds=1, sizes=(14,), samples=5, faults=(), noise=Noise(0.01, 0.005))


def interpreter(folder: Path, name: str, world: World, script: str = "") -> Path:
    """A stand-in for a Python with niffbench: its run number N is a made-up round with seed N."""
    for seed in range(PAIRS):
        # The machine is warming up: every pair is 4 % slower than the one before it.
        slower = {p.operator: world.slower.get(p.operator, 1.0) * 1.04**seed for p in world.operators}
        save(
            make(
                replace(world, seed=1000 * len(name) + seed, slower=slower), folder / f"{name}-rounds" / str(seed)
            )
        )
    path = folder / name
    path.write_text(
        f"""#!/bin/sh
case "$*" in *"-P -c"*) echo '{{"niffbench": "/nowhere/niffbench/__init__.py"}}'; exit 0;; esac
echo "{name} $*" >> {folder}/log
{script}
while [ $# -gt 0 ]; do
  case "$1" in --out) out="$2";; --seed) seed="$2";; esac
  shift
done
mkdir -p "$out" && cp {folder}/{name}-rounds/"$seed"/* "$out"/
"""
    )
    path.chmod(0o755)
    return path


@pytest.fixture
def suite(tmp_path: Path) -> Path:
    """A file that need only exist: the stand-ins do not read it."""
    path = tmp_path / "synthetic.toml"
    path.touch()
    return path


def ab(call: Call, suite: Path, base: Path, head: Path, *more: str) -> subprocess.CompletedProcess[str]:
    return call("ab", str(suite), "--base", str(base), "--head", str(head), "--rounds", str(PAIRS), *more)


def test_a_planted_slowdown_is_found_on_a_warming_machine(call: Call, tmp_path: Path, suite: Path) -> None:
    base = interpreter(tmp_path, "old", WORLD)
    head = interpreter(tmp_path, "newer", replace(WORLD, slower={"strip": 1.15}))
    out = tmp_path / "result"
    files = ("--markdown", str(tmp_path / "s.md"), "--junit", str(tmp_path / "j.xml"))
    done = ab(call, suite, base, head, "--out", str(out), "--json", *files)
    assert done.returncode == 1, done.stderr
    comparison = json.loads(done.stdout)
    failing = {(f["label"], f["quantity"]) for f in comparison["findings"] if f["verdict"] == "regressed"}
    assert failing == {("strip-k31", "latency_cold"), ("strip-k31", "latency_steady")}
    assert "ABBA" in comparison["method"]
    assert "strip" in (tmp_path / "s.md").read_text()
    assert "strip" in (tmp_path / "j.xml").read_text()
    again = call("check", "--paired", str(out / "base"), str(out / "head"), "--json")
    assert json.loads(again.stdout)["findings"] == comparison["findings"]
    both = [read(out / side) for side in ("base", "head")]
    assert [run.manifest.rounds for run in both] == [PAIRS, PAIRS]
    assert all(len(run.records) == PAIRS * len(run.manifest.suite.cases) for run in both)


def test_rounds_alternate_and_a_pair_shares_its_seed(call: Call, tmp_path: Path, suite: Path) -> None:
    same = interpreter(tmp_path, "same", WORLD), interpreter(tmp_path, "again", WORLD)
    (tmp_path / "my_ops.py").touch()
    rows = ("--operator", "my_ops.py:Mine groups=2", "--operator", "my_ops:Mine", "--operator", "copy:Mine")
    done = ab(call, suite, *same, "--only", "niff-*", *rows, "--device", "cpu", "--out", str(tmp_path / "result"))
    assert done.returncode == 0, done.stdout + done.stderr
    lines = [line.split() for line in (tmp_path / "log").read_text().splitlines()]
    assert [line[0] for line in lines[:8]] == ["same", "again", "again", "same"] * 2
    seeds = [line[line.index("--seed") + 1] for line in lines]
    assert seeds == [str(i // 2) for i in range(2 * PAIRS)]
    for line in lines:
        assert line[1:6] == ["-P", "-m", "niffbench.cli", "run", str(suite)]
        assert line[line.index("--rounds") + 1] == "1"
        assert line[line.index("--only") + 1] == "niff-*"
        mine = f"--operator={tmp_path / 'my_ops.py'}:Mine"
        assert line[-6:-2] == [mine, "groups=2", mine, "--operator=copy:Mine"]


def test_libraries_may_differ_between_interpreters_and_that_is_told(
    call: Call, tmp_path: Path, suite: Path
) -> None:
    base, head = (
        interpreter(tmp_path, "old", WORLD),
        interpreter(tmp_path, "newer", replace(WORLD, torch="2.16.0")),
    )
    done = ab(call, suite, base, head, "--out", str(tmp_path / "result"))
    assert done.returncode == 0, done.stdout + done.stderr
    assert "torch differs" in done.stdout


def test_a_side_that_lost_a_case_fails_the_gate(call: Call, tmp_path: Path, suite: Path) -> None:
    base = interpreter(tmp_path, "old", WORLD)
    head = interpreter(tmp_path, "newer", replace(WORLD, faults=(Fault("crashed", "SIGSEGV", "attention"),)))
    done = ab(call, suite, base, head, "--out", str(tmp_path / "result"))
    assert done.returncode == 1
    assert "SIGSEGV" in done.stdout


@pytest.mark.parametrize(("status", "expected"), [(2, 2), (3, 3), (70, 3), (130, 3)])
def test_a_round_that_ends_badly_is_told_with_its_last_words(
    call: Call, tmp_path: Path, suite: Path, status: int, expected: int
) -> None:
    base = interpreter(tmp_path, "old", WORLD, f"echo 'niffbench: no operator named x' >&2; exit {status}")
    done = ab(call, suite, base, base, "--out", str(tmp_path / "result"))
    assert done.returncode == expected
    assert "no operator named x" in done.stderr
    assert "BASE" in done.stderr


def test_a_head_that_cannot_be_measured_fails_and_says_so_everywhere(
    call: Call, tmp_path: Path, suite: Path
) -> None:
    """Green would hide that its code is broken; of BASE it only means that there is nothing to compare with."""
    base = interpreter(tmp_path, "old", WORLD)
    broken = interpreter(tmp_path, "newer", WORLD, "echo 'ImportError: no kernel' >&2; exit 3")
    files = ("--markdown", str(tmp_path / "s.md"), "--junit", str(tmp_path / "j.xml"))
    done = ab(call, suite, base, broken, "--out", str(tmp_path / "one"), "--json", *files)
    assert done.returncode == json.loads(done.stdout)["exit_code"] == 1
    assert all("no kernel" in (tmp_path / name).read_text() for name in ("s.md", "j.xml"))
    done = ab(call, suite, broken, base, "--out", str(tmp_path / "two"), "--json")
    assert done.returncode == json.loads(done.stdout)["exit_code"] == 3


@pytest.mark.parametrize(
    ("arguments", "status", "output"),
    [
        (["--base", "no-such-revision"], 2, "no git repository"),
        (["--base", "{python}", "--rounds", "0"], 2, "--rounds"),
        (["--base", "{python}", "--alpha", "7"], 2, "--alpha"),
        (["--base", "{python}", "--out", "{full}"], 2, "not empty"),
        (["--base", "{python}", "--thresholds", "nowhere.toml"], 2, "nowhere.toml"),
        ([], 2, "--base"),
    ],
)
def test_bad_input_is_one_message_and_nothing_runs(
    call: Call, tmp_path: Path, suite: Path, arguments: list[str], status: int, output: str
) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine").touch()
    filled = [text.format(python=sys.executable, full=tmp_path / "full") for text in arguments]
    done = call("ab", str(suite), *filled)
    assert done.returncode == status
    assert output in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "reports").exists()


def test_a_suite_that_does_not_exist_is_a_usage_error(call: Call) -> None:
    done = call("ab", "smokee", "--base", sys.executable)
    assert done.returncode == 2
    assert "smokee" in done.stderr


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interruption_ends_the_round_and_removes_the_worktree(
    tmp_path: Path, suite: Path, number: signal.Signals
) -> None:
    repository, process = measuring(tmp_path, suite)
    assert len(git(repository, "worktree", "list").splitlines()) == 2
    process.send_signal(number)
    _, said = process.communicate(timeout=300)
    assert process.returncode == 130, said
    assert len(git(repository, "worktree", "list").splitlines()) == 1
    assert not list(tmp_path.glob("niffbench-side-*"))
    with pytest.raises(ProcessLookupError):
        os.kill(int((tmp_path / "pid").read_text()), 0)


def measuring(tmp_path: Path, suite: Path) -> tuple[Path, subprocess.Popen[str]]:
    """A repository, and an ``ab`` in the middle of its first round, which hangs."""
    repository = tmp_path / "repository"
    (repository / "niffbench").mkdir(parents=True)
    (repository / "niffbench" / "__init__.py").touch()
    for command in (("init", "-q"), ("add", "."), ("commit", "-qm", "one")):
        git(repository, *command)
    slow = interpreter(tmp_path, "slow", WORLD, f"echo $$ > {tmp_path}/pid; exec sleep 60")
    process = subprocess.Popen(
        [sys.executable, "-P", "-m", "niffbench.cli", "ab", str(suite), "--base", str(slow), "--head", "HEAD"],
        cwd=repository,
        env={**os.environ, "TMPDIR": str(tmp_path)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    wait_for(tmp_path / "pid")
    return repository, process


def wait_for(path: Path) -> None:
    deadline = time.monotonic() + 60
    while not path.exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    time.sleep(0.2)


def test_a_killed_comparison_leaves_nothing_measuring_and_the_next_clears_up(
    tmp_path: Path, suite: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    repository, process = measuring(tmp_path, suite)
    process.kill()
    process.wait()
    assert len(git(repository, "worktree", "list").splitlines()) == 2
    with checked_out("HEAD", "BASE", repository):
        assert len(git(repository, "worktree", "list").splitlines()) == 2
    assert len(git(repository, "worktree", "list").splitlines()) == 1
    pid = int((tmp_path / "pid").read_text())
    deadline = time.monotonic() + 30
    while psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE:
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_what_was_interrupted_goes_on_and_says_what_the_whole_would(
    call: Call, tmp_path: Path, suite: Path
) -> None:
    """A machine that goes down in the fifth pair costs the round it struck."""
    down = f"case \"$*\" in *'--seed 4'*) [ -e {tmp_path}/up ] || exit 70;; esac"
    base = interpreter(tmp_path, "old", WORLD, down)
    head = interpreter(tmp_path, "newer", replace(WORLD, slower={"strip": 1.15}))
    options = ("--only", "*", "--threads", "1", "--min-time", "250ms", "--time-budget", "10m")
    assert ab(call, suite, base, head, *options, "--out", str(tmp_path / "result")).returncode == 3
    (tmp_path / "up").touch()
    measured_before = len((tmp_path / "log").read_text().splitlines())
    assert ab(call, suite, base, head, "--resume", str(tmp_path / "result")).returncode == 2  # other options
    done = ab(call, suite, base, head, *options, "--resume", str(tmp_path / "result"), "--json")
    assert done.returncode == 1, done.stderr
    lines = (tmp_path / "log").read_text().splitlines()
    assert len(lines) == 2 * PAIRS + 1
    assert measured_before == 9
    assert all("--threads=1 --min-time=0.25s --time-budget" in line for line in lines)
    whole = ab(call, suite, base, head, *options, "--out", str(tmp_path / "whole"), "--json")
    assert json.loads(done.stdout)["findings"] == json.loads(whole.stdout)["findings"]


def test_a_relative_path_of_python_is_that_of_the_caller(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    python = interpreter(tmp_path, "same", WORLD, f'printf "$PYTHONPATH" > {tmp_path}/path')
    (tmp_path / "elsewhere").mkdir()
    environment = {**os.environ, "PYTHONPATH": f"src{os.pathsep}/opt/x"}
    measured(str(python), ["--seed", "0"], tmp_path / "out", environment, cwd=tmp_path / "elsewhere")
    assert (tmp_path / "path").read_text() == f"{tmp_path}/src{os.pathsep}/opt/x"


LAYERS = """
import time
from torch import nn


class Wait(nn.Module):
    def forward(self, x):
        time.sleep({seconds})
        return x * 2
"""
OWN_SUITE = """
description = "a library of somebody's own"
baseline = "waves.layers:Wait"
axes = { channels = 2, size = 4 }
operators = [{ module = "waves.layers:Wait" }]
measure = { regimes = ["steady"], min_time = 0.1, max_time = 0.3, min_samples = 5, threads = 1 }
"""


def test_a_slowdown_of_a_library_of_ones_own_is_found(cli: Cli, tmp_path: Path) -> None:
    """Real rounds: of where the branch began, and of the working tree with what is not committed yet."""
    repository = tmp_path / "repository"
    package = repository / "src" / "waves"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("__version__ = '1.0'")
    (package / "layers.py").write_text(LAYERS.format(seconds=0.010))
    (repository / "bench.toml").write_text(OWN_SUITE)
    commands = (("init", "-q", "-b", "main"), ("add", "."), ("commit", "-qm", "one"), ("checkout", "-qb", "mine"))
    for command in commands:
        git(repository, *command)
    (package / "__init__.py").write_text("__version__ = '1.1'")
    (package / "layers.py").write_text(LAYERS.format(seconds=0.012))
    sides = ("--repo", str(repository), "--base", "main...mine", "--device", "cpu", "--out", "out")
    few = ("--rounds", "3", "--alpha", "0.3", "--json")
    done = cli("ab", str(repository / "bench.toml"), *sides, *few)
    assert done.returncode == 1, done.stderr
    regressed = [f for f in json.loads(done.stdout)["findings"] if f["verdict"] == "regressed"]
    assert [(f["label"], f["quantity"]) for f in regressed] == [("waves.layers:Wait", "latency_steady")]
    assert regressed[0]["ratio"] == pytest.approx(1.2, abs=0.07)
    for side, version, dirty in (("base", "1.0", False), ("head", "1.1", True)):
        manifest = read(tmp_path / "out" / side).manifest
        assert manifest.subject is not None
        assert (manifest.subject.module, manifest.subject.version) == ("waves.layers", version)
        assert (manifest.commit, manifest.dirty) == (git(repository, "rev-parse", "main"), dirty)
