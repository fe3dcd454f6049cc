"""``niffbench run`` as a person meets it, replayed where the figures do not matter, on the CPU where they do."""

from __future__ import annotations

import contextlib
import csv
import json
import os
import pty
import re
import shutil
import signal
from pathlib import Path
from typing import Any

import psutil
import pytest
from cli_process import Started, count, wait_for
from conftest import Cli
from warm_process import start

from niffbench.errors import plural
from niffbench.results import RECORDS, Run, read

SUITE = """
description = "made up"
baseline = "depthwise-k3"
rounds = 2
axes = {channels = 4, size = [9, 14, 28], mode = ["inference", "training"]}
operators = [{name = "depthwise", kernel = [3, 5]}, {name = "fft-depthwise-k3"}]
measure = {min_time = 0.01, max_time = 0.05, min_samples = 5, case_timeout = 20}
"""
CASES = 18


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "made-up.toml").write_text(SUITE)
    replay(tmp_path)
    monkeypatch.setenv("NIFFBENCH_ROOFLINE", "0")  # seconds, of what nothing here is held against
    return tmp_path


def replay(directory: Path, **trace: Any) -> None:
    """What the device ``replay:r.json`` plays."""
    (directory / "r.json").write_text(json.dumps(trace))


RUN = ("run", "made-up.toml", "--device", "replay:r.json", "--out", "out")


def complete(run: Run) -> bool:
    expected = {(case, number) for case in run.manifest.suite.cases for number in range(run.manifest.rounds)}
    return {(record.id, record.round) for record in run.records} == expected and len(run.records) == len(expected)


def test_a_run_ends_with_a_table_and_a_report(cli: Cli, place: Path) -> None:
    done = cli(*RUN)
    assert done.returncode == 0, done.stderr
    run = read(place / "out")
    assert complete(run)
    assert len(run.records) == 2 * CASES
    assert {record.status for record in run.records} == {"ok"}
    assert run.manifest.finished
    assert "depthwise-k5" in done.stdout
    assert "of it sampling" in done.stdout
    page = Path(re.search(r"report: (\S+)", done.stderr)[1])  # type: ignore[index]
    assert (place / page).read_text().lstrip().lower().startswith("<!doctype html")
    assert {"report.html", "report.md", "table.csv", "run.json", RECORDS} <= {
        p.name for p in (place / "out").iterdir()
    }
    assert "\x1b" not in done.stdout + done.stderr  # no terminal, so no colours and no bar


def test_a_broken_clock_is_flagged_and_its_result_is_json_all_the_same(cli: Cli, place: Path) -> None:
    """A first call that took no number of seconds."""
    replay(place, cases=[{"label": "depthwise-k5", "latency": {"first": {"samples": [[float("nan")]]}}}])
    done = cli(*RUN, "--json", "--no-report", "--rounds", "1", "--only", "size=9", "--only", "mode=inference")
    assert done.returncode == 0, done.stderr
    output = json.loads(done.stdout, parse_constant=pytest.fail)
    assert output["records"] == {"ok": 3}
    assert 0 < output["measuring_share"] < 1e9
    broken = next(case for case in output["cases"] if case["label"] == "depthwise-k5")
    assert broken["latency_first"] is None
    assert broken["unusable"] == {"latency_first": "invalid"}
    assert min(broken["latency_cold"], broken["latency_steady"]) > 0
    records = read(place / "out").records
    assert all("invalid" in r.latency["first"].flags for r in records if r.traits.label == "depthwise-k5")


def test_json_is_all_there_is_on_standard_output(cli: Cli, place: Path) -> None:
    replay(
        place, cases=[{"label": "depthwise-k5", "problem": "* 4@28", "failure": {"kind": "oom", "requested": 9}}]
    )
    done = cli(*RUN, "--json", "--no-report", "--seed", "5", "--rounds", "1")
    output = json.loads(done.stdout)
    assert done.returncode == 0
    assert (output["directory"], output["report"], output["seed"], output["complete"]) == ("out", None, 5, True)
    assert output["resume"] is None
    assert output["records"] == {"ok": CASES - 1, "oom": 1}
    failed = next(case for case in output["cases"] if case["records"] == {"oom": 1})
    assert failed["latency_steady"] is None
    assert failed["memory_peak"] is None
    assert "out of memory" in failed["reasons"][0]
    measured = next(case for case in output["cases"] if case["records"] == {"ok": 1})
    assert measured["latency_steady"] > 0
    assert not (place / "out" / "report.html").exists()


def test_quiet_is_quiet(cli: Cli, place: Path) -> None:
    done = cli(*RUN, "--quiet", "--only", "depthwise-k3", "--rounds", "1")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert (place / "out" / "report.html").exists()


def test_the_default_place_is_below_reports(cli: Cli, place: Path) -> None:
    for _ in range(2):
        arguments = ("run", "made-up.toml", "--device", "replay:r.json", "--only", "depthwise-k3", "--rounds", "1")
        assert cli(*arguments, "--no-report", "--quiet").returncode == 0
    made = sorted(path.name for path in (place / "reports").iterdir())
    assert len(made) == 2
    assert all(re.fullmatch(r"made-up-\d{8}-\d{6}-[0-9a-f]{4}", name) for name in made)


def test_when_nothing_could_be_measured(cli: Cli, place: Path) -> None:
    replay(place, cases=[{"failure": {"kind": "error", "stage": "build", "message": "no luck"}}])
    done = cli(*RUN, "--rounds", "1")
    assert done.returncode == 3
    assert "nothing could be measured" in done.stderr
    assert "no luck" in done.stderr
    assert {record.status for record in read(place / "out").records} == {"crashed"}


def test_of_a_plan_without_a_case_that_fits_no_time_is_foretold(cli: Cli, place: Path) -> None:
    arguments = ("plan", "made-up.toml", "--device", "replay:r.json", "--time-budget", "10m")
    assert "in all about" in cli(*arguments).stdout
    done = cli(*arguments, "--memory-limit", "1")
    assert done.returncode == 0, done.stderr
    assert "nothing would be measured: every case is skipped" in done.stdout
    assert "about" not in done.stdout
    said = cli("run", *arguments[1:], "--memory-limit", "1", "--out", "out").stderr
    assert f"{CASES} cases will be skipped; nothing will be measured" in said


def test_overrides_are_recorded(cli: Cli, place: Path) -> None:
    options = ("--precision", "7%", "--max-time", "80ms", "--case-timeout", "1m", "--threads", "1")
    limits = ("--memory-limit", "1GiB", "--time-budget", "5m", "--only", "size=9", "--rounds", "1")
    assert cli(*RUN, *options, *limits, "--quiet", "--no-report").returncode == 0
    manifest = read(place / "out").manifest
    measure = manifest.suite.measure
    assert (measure.precision, measure.max_time, measure.case_timeout, measure.threads) == (0.07, 0.08, 60, 1)
    assert (manifest.settings.memory_limit, manifest.settings.budget, manifest.suite.only) == (
        2**30,
        300,
        ["size=9"],
    )
    assert manifest.argv[:3] == ["niffbench", "run", "made-up.toml"]


def test_the_precision_that_was_not_reached_is_said(cli: Cli, place: Path) -> None:
    replay(place, cases=[{"label": "depthwise-k5", "latency": {"steady": {"median": 0.01, "sigma": 1.0}}}])
    done = cli(*RUN, "--rounds", "2", "--no-report")
    assert done.returncode == 0
    said = r"precision: \d+ of \d+ latencies are not known to ±2 % over their rounds; the widest interval is"
    assert re.search(said, " ".join(done.stdout.split()))


def test_busy_neighbours_are_said_at_the_end_and_in_the_result(cli: Cli, place: Path) -> None:
    """Cases of one problem take turns, so they have their neighbours in common."""
    replay(place, cases=[{"problem": "B1 4@9", "states": [{"others": 0.37}]}, {"states": [{"others": 0.01}]}])
    options = ("--rounds", "1", *("--only", "size=9"), *("--only", "size=14"), *("--only", "mode=inference"))
    options = (*options, "--min-time", "500ms", "--max-time", "1s", "--no-report")
    done = cli(*RUN, *options)
    assert done.returncode == 0, done.stderr
    output = "Other processes used up to 37 % of the processor while 3 of 6 cases were sampled"
    assert output in " ".join(done.stdout.split())
    done = cli(*RUN[:-1], "json", *options, "--json")
    others = {(case["height"], case["others"]) for case in json.loads(done.stdout)["cases"]}
    assert others == {(9, 0.37), (14, 0.01)}


def test_an_interrupted_run_says_how_to_go_on(cli: Cli, place: Path) -> None:
    """Ctrl-C: the end in a moment, with no report; what it prints resumes the run, and draws the report."""
    replay(place, pace=2.0)
    with Started(place, [*RUN, "--json"]) as started:
        wait_for(lambda: count(place / "out") >= 4)
        started.process.send_signal(signal.SIGINT)
        assert started.end() == 130, started.said()
        result, output = json.loads(started.out()), started.err()
    recorded = len(read(place / "out").records)
    assert (result["kept"], result["missing"], result["complete"]) == (recorded, 2 * CASES - recorded, False)
    assert f"interrupted; {plural(recorded, 'record')} kept, {2 * CASES - recorded} missing; go on with:" in output
    assert not (place / "out" / "report.html").exists()
    assert cli(*output.splitlines()[-1].split()[1:]).returncode == 0
    assert (place / "out" / "report.html").exists()
    command = next(line.strip() for line in output.splitlines() if "--resume" in line)
    assert result["resume"] == command == "niffbench run made-up.toml --resume out"
    replay(place)
    resumed = cli(*command.split()[1:], "--quiet", "--no-report")
    assert resumed.returncode == 0, resumed.stderr
    assert complete(read(place / "out"))


def test_a_directory_that_is_removed_is_one_clear_message(place: Path) -> None:
    replay(place, pace=2.0)
    with Started(place, RUN) as started:
        wait_for(lambda: count(place / "out") >= 2)
        shutil.rmtree(place / "out")
        assert started.end() == 2, started.said()
        output = started.err()
    assert "removed while the run was writing to it" in output
    assert "Traceback" not in output
    assert not (place / "out").exists()


def test_a_directory_that_is_removed_while_the_report_is_drawn_is_not_made_anew(place: Path) -> None:
    manifest, lock = place / "out" / "run.json", place / "out" / ".lock"
    with Started(place, [*RUN, "--rounds", "1"]) as started:
        # The lock goes before the report is drawn; not while its directory is removed, or that would fail.
        wait_for(lambda: manifest.exists() and json.loads(manifest.read_text())["finished"] and not lock.exists())
        shutil.rmtree(place / "out")
        assert (started.end(), started.out()) == (2, ""), started.said()
        output = started.err()
    honest = r"was removed|there is no such directory|is not a run|records\.jsonl: cannot be read"
    assert re.fullmatch(rf"niffbench: out(: |/)({honest}).*", output.splitlines()[-1])
    assert "Traceback" not in output
    assert not (place / "out").exists()


def test_a_terminal_gets_a_progress_bar_with_the_time_left(place: Path) -> None:
    replay(place, pace=1.0)
    leader, follower = pty.openpty()
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": "160", "LINES": "40"}
    with Path(os.devnull).open("wb") as nobody:
        arguments = [*RUN, "--no-report", "--rounds", "1"]
        begun = start(arguments, environment, cwd=place, stdout=nobody.fileno(), stderr=follower)
    os.close(follower)
    seen = b""
    with contextlib.suppress(OSError):  # the end of a pseudo-terminal
        while data := os.read(leader, 65536):
            seen += data
    os.close(leader)
    assert begun.wait() == 0
    text = seen.decode()
    assert re.search(r"round 1: \S+ B1 4@\d+", text)
    assert re.search(rf"\d+/{CASES}\b", text)
    assert re.search(r"about \d+ s left", text)
    assert text.count("\x1b[?25l") == text.count("\x1b[?25h") == 1  # the cursor comes back


def test_a_real_run_survives_the_death_of_its_worker(place: Path) -> None:
    """On the CPU, with torch: the worker is killed while it measures."""
    small = ("--only", "size=9", "--only", "mode=inference", "--rounds", "1", "--no-report", "--json")
    arguments = ("run", "made-up.toml", "--device", "cpu", "--out", "out", *small)
    with Started(place, arguments) as started:
        wait_for(lambda: count(place / "out") >= 1)
        for worker in started.workers():
            with contextlib.suppress(psutil.Error):
                worker.kill()
        assert started.end() == 0, started.said()
        output = json.loads(started.out())["records"]
    assert complete(read(place / "out"))
    assert output["ok"] >= 2
    assert output["ok"] + output.get("crashed", 0) == 3


def test_a_real_run_of_networks_tells_images_per_second_and_what_auto_chose(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NIFFBENCH_ROOFLINE", "0")
    (tmp_path / "networks.toml").write_text(
        """
        description = "made up"
        baseline = "network/resnet18"
        rounds = 1
        axes = {channels = 3, channels_out = 10, size = 32}
        [[operators]]
        name = "network/resnet18"
        [[operators]]
        name = "network/resnet18-split"
        options = {execution = "auto-cached"}
        [measure]
        regimes = ["steady"]
        min_time = 0.01
        max_time = 0.02
        min_samples = 3
        """
    )
    done = cli("run", "networks.toml", "--device", "cpu", "--out", "out")
    assert done.returncode == 0, done.stderr
    assert "images/s" in done.stdout
    with (tmp_path / "out" / "table.csv").open() as file:
        original, niff = csv.DictReader(file)
    assert float(niff["images_per_second"]) == pytest.approx(1 / float(niff["latency_steady"]))
    assert original["chosen"] == ""
    engines = dict(part.split() for part in niff["chosen"].split(", "))
    assert engines.keys() <= {"native", "features", "dft", "fused"}
    assert sum(map(int, engines.values())) == 13
    report = (tmp_path / "out" / "report.md").read_text().replace("\\", "")
    assert f"network/resnet18-split execution=auto-cached chose {niff['chosen']} at the one problem." in report
    assert "the total memory of network/resnet18" in report
    plotted = cli("plot", "out", "--x", "label", "--y", "images_per_second", "--out", "fig.svg")
    assert plotted.returncode == 0, plotted.stderr
    assert "images/s" in (tmp_path / "fig.svg").read_text()
