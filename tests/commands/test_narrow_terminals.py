"""The commands themselves where little fits: 80 columns, which is what a pipe gets, and 60."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from cli_process import suite
from synthetic import World, write
from warm_process import run

WORLD = World(rounds=8, sizes=(14, 28))
Call = Callable[..., str]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two runs that differ, and a suite to measure."""
    folder = tmp_path_factory.mktemp("narrow")
    write(folder / "base", WORLD)
    write(folder / "head", replace(WORLD, seed=1, slower={"global-filter": 1.1, "attention": 0.8}))
    suite(folder, [8, 12])
    return folder


@pytest.fixture(params=[80, 60])
def printed(request: pytest.FixtureRequest, place: Path) -> Call:
    """What a command prints for people, held to the width: the terminal's, or 80 in a pipe."""
    width: int = request.param
    environment = {key: value for key, value in os.environ.items() if key != "COLUMNS"}
    environment |= {"COLUMNS": str(width)} if width != 80 else {}

    def call(*arguments: str) -> str:
        done = run(arguments, environment, place)
        assert done.returncode in (0, 1, 5), done.stderr
        assert max(map(len, done.stdout.splitlines())) <= width, done.stdout
        assert "…" not in done.stdout
        return done.stdout

    return call


def _squashed(output: str) -> str:
    return "".join(output.split())


def _is_read(name: str, output: str) -> bool:
    """Whether ``name`` stands at the beginning of a line, or of several below each other."""
    lines = [line.split() for line in output.splitlines()]
    for start in range(len(lines)):
        rest = _squashed(name)
        for tokens in lines[start : start + 8]:
            for token in tokens:
                if not token or not rest.startswith(token):
                    break
                rest = rest[len(token) :]
            if not rest:
                return True
    return False


def _column(output: str, start: int, end: int) -> str:
    return _squashed("".join(line[start:end] for line in output.splitlines()))


def test_check_shows_every_verdict_beside_the_beginning_of_its_name(printed: Call, place: Path) -> None:
    output = printed("check", "base", "head", "--all")
    done = run(["check", "base", "head", "--json"], os.environ, place)
    findings = json.loads(done.stdout)["findings"]
    verdicts = [line for line in output.splitlines() if line[:2] in ("✗ ", "? ", "– ", "✓ ", "+ ", "= ")]
    assert len(verdicts) == len(findings)
    for line, finding in zip(verdicts, findings, strict=True):
        assert line[2:].startswith(finding["verdict"])
        beginning = line[2 + len(finding["verdict"]) :].split()[0]
        assert finding["label"].startswith(beginning)
    head = next(line for line in output.splitlines() if line.startswith("verdict"))
    cases = _column(output, head.index("case"), head.index("quantity"))
    for finding in findings:
        assert _squashed(f"{finding['label']} ({finding['problem']})") in cases
        if finding["p_adjusted"] is not None:
            assert f"{100 * (finding['ratio'] - 1):+.1f} %" in output


def test_aa_names_every_case_and_what_the_gates_see(printed: Call) -> None:
    output = printed("aa", "--run", "base")
    head = next(line for line in output.splitlines() if line.startswith("case"))
    names = _column(output, 0, head.index("latency"))
    for label in ("niff-depthwise/published", "fft-depthwise-k31", "global-filter"):
        for problem in ("B1 64@14", "B1 64@28"):
            assert _squashed(f"{label} ({problem})") in names


def test_list_tells_every_form_of_an_operator_apart(printed: Call) -> None:
    for what in ("operators", "suites"):
        head, *lines = printed("list", what).splitlines()
        end = head.index(head.split()[1])
        beside = "\n".join(line for line in lines if not line.startswith("  "))
        for entry in json.loads(printed_json(what)):
            assert _squashed(entry[what[:-1]]) in _column(beside, 0, end)


def printed_json(what: str) -> str:
    """The same list as data."""
    return run(["list", what, "--json"], os.environ, Path.cwd()).stdout


def test_plan_and_run_show_every_case_and_its_figures(printed: Call, place: Path) -> None:
    output = printed("plan", "made-up.toml", "--device", "replay:r.json")
    for name in ("depthwise-k3", "depthwise-k5", "fft-depthwise-k3", "B1 4@8", "B1 4@12", "FLOP", "KiB"):
        assert name in output
    out = f"out-{len(list(place.iterdir()))}"
    output = printed("run", "made-up.toml", "--device", "replay:r.json", "--no-report", "--out", out)
    for name in ("depthwise-k3", "depthwise-k5", "fft-depthwise-k3", "B1 4@8", "B1 4@12"):
        assert _is_read(name, output)
    assert "latency" in output
    assert "★" in output  # of memory: one round decides no latency
