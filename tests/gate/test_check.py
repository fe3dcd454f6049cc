"""``niffbench check`` as a person meets it: arguments, outputs, exit codes, and files that are not runs."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from cli_in_process import Call, call
from conftest import Cli
from synthetic import FEW, World, make, save

from niffbench.results import Run

SMALL = World(rounds=8, sizes=(14,), samples=5, faults=(), operators=FEW)
SLOW = replace(SMALL, slower={"global-filter": 1.2})


def written(path: Path, day: int = 1, world: World = SMALL) -> Run:
    run = make(replace(world, seed=day), path)
    update = {"started": f"2026-03-{day:02}T10:00:00Z", "commit": f"{day:040x}"}
    return save(replace(run, manifest=run.manifest.model_copy(update=update)))


__all__ = ["call"]


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    """``base``, the same code again as ``same``, and ``slow`` with a planted regression."""
    written(tmp_path / "base", 1)
    written(tmp_path / "same", 2)
    written(tmp_path / "slow", 3, SLOW)
    return tmp_path


def test_exit_codes_of_a_comparison(call: Call, runs: Path) -> None:
    assert call("check", "base", "same").returncode == 0
    slow = call("check", "base", "slow")
    assert slow.returncode == 1
    assert "global-filter" in slow.stdout
    assert "regressed" in slow.stdout
    faster = call("check", "slow", "base")
    assert faster.returncode == 0
    assert "improved" in faster.stdout


def test_thresholds_of_a_file_overrule_the_general_ones(call: Call, runs: Path) -> None:
    (runs / "t.toml").write_text("[[threshold]]\ncases = ['global-filter']\nmin_effect = '30%'\n")
    assert call("check", "base", "slow", "--thresholds", "t.toml").returncode == 0
    (runs / "t.toml").write_text("[[threshold]]\ncases = ['global-filtre']\nmin_effect = '30%'\n")
    missed = call("check", "base", "slow", "--thresholds", "t.toml")
    assert missed.returncode == 1
    assert "fits no case" in missed.stdout


def test_outputs_go_where_they_are_asked_to(call: Call, runs: Path) -> None:
    done = call("check", "base", "slow", "--json", "--markdown", "out/s.md", "--junit", "out/j.xml")
    output = json.loads(done.stdout)
    assert {f["verdict"] for f in output["findings"]} == {"regressed", "equivalent"}
    assert (runs / "out" / "s.md").read_text().startswith("### niffbench: 2 regressions")
    assert b"<failure" in (runs / "out" / "j.xml").read_bytes()


def test_the_baseline_is_the_newest_matching_run(call: Call, runs: Path) -> None:
    done = call("check", "slow", "--baseline", ".", "--json")
    assert done.returncode == 1
    outcome = json.loads(done.stdout)
    assert outcome["base"]["name"] == "same"
    assert {finding["run"] for finding in outcome["findings"]} == {"same"}
    only = call("check", "slow", "--baseline", "slow")
    assert only.returncode == 3
    assert "no baseline" in only.stderr


def test_unlike_fingerprints_exit_4_unless_across_machines(call: Call, runs: Path) -> None:
    written(runs / "other", 4, replace(SMALL, torch="2.14.0"))
    refused = call("check", "base", "other")
    assert refused.returncode == 4
    assert "torch" in refused.stderr
    assert call("check", "base", "other", "--across-machines").returncode == 0


def test_a_history_keeps_every_run_and_judges_against_the_last(call: Call, tmp_path: Path) -> None:
    for day in range(1, 13):
        written(tmp_path / f"run-{day}", day, SLOW if day >= 7 else SMALL)
    first = call("check", "run-1", "--history", "kept", "--trend", "global-filter", "--plot", "first.svg")
    assert first.returncode == 3
    assert "no baseline yet" in first.stderr
    assert "1 run of synthetic" in first.stderr
    assert (tmp_path / "first.svg").exists()
    codes = [call("check", f"run-{day}", "--history", "kept").returncode for day in range(2, 12)]
    assert codes == [0] * 5 + [1] * 5
    last = call("check", "run-12", "--history", "kept", "--trend", "global-filter", "--plot", "t.svg", "--json")
    assert last.returncode == 1, last.stderr  # until it is accepted
    steps = json.loads(last.stdout)["steps"]
    assert {(step["label"], step["commit"]) for step in steps} == {("global-filter", f"{7:040x}")}
    assert (tmp_path / "t.svg").read_text().startswith("<?xml")
    shown = call("check", "--history", "kept")
    assert shown.returncode == 0
    assert "global-filter" in shown.stdout
    assert "12 runs" in shown.stderr
    assert json.loads(call("check", "--history", "kept", "--json").stdout)["steps"] == steps


@pytest.mark.parametrize(
    ("arguments", "status", "output"),
    [
        ([], 2, "BASE and HEAD"),
        (["base"], 2, "with what"),
        (["base", "same", "slow"], 2, "3 runs"),
        (["base", "same", "--baseline", "."], 2, "not both"),
        (["same", "--baseline", ".", "--paired"], 2, "--paired needs"),
        (["base", "nowhere"], 2, "no such directory"),
        (["base", "empty"], 2, "is not a run"),
        (["base", "garbled"], 2, "garbled/run.json"),
        (["base", "newer"], 2, "newer than this niffbench"),
        (["base", "foreign"], 2, "foreign/run.json"),
        (["base", "damaged"], 2, "records.jsonl, line 1"),
        (["base", "no-records"], 1, "regressions"),
        (["base", "other-suite"], 2, "suite 'synthetic'"),
        (["base", "same", "--only", "nothing"], 2, "--only nothing"),
        (["base", "same", "--only", "kernal=3"], 2, "did you mean 'kernel'"),
        (["base", "same", "--min-effect", "much"], 2, "--min-effect"),
        (["base", "same", "--alpha", "0"], 2, "--alpha"),
        (["base", "same", "--trend", "x"], 2, "--history"),
        (["base", "same", "--history", "h", "--trend", "x", "--plot", "x.pdf"], 2, ".svg or .png"),
        (["base", "same", "--history", "h", "--trend", "dense-k33"], 2, "did you mean 'dense-k3'"),
        (["same", "--baseline", "nowhere"], 2, "nowhere"),
        (["--history", "nowhere"], 2, "nowhere"),
        (["--history", "empty"], 3, "no run is kept"),
        (["base", "same", "--markdown", "base/run.json/x.md"], 2, "cannot be written"),
    ],
)
def test_bad_input_is_one_message_with_the_right_code(
    call: Call, runs: Path, arguments: list[str], status: int, output: str
) -> None:
    (runs / "empty").mkdir()
    for name, text in (("garbled", "{"), ("newer", '{"schema_version": 99}'), ("foreign", '{"a": 1}')):
        (runs / name).mkdir()
        (runs / name / "run.json").write_text(text)
    written(runs / "damaged", 5)
    (runs / "damaged" / "records.jsonl").write_text('{"case": 1}\n')
    written(runs / "no-records", 6)
    (runs / "no-records" / "records.jsonl").unlink()
    written(runs / "other-suite", 7, replace(SMALL, name="other"))
    done = call("check", *arguments)
    assert done.returncode == status, done.stderr
    assert output in done.stderr + done.stdout
    assert "Traceback" not in done.stderr


def test_a_torn_last_line_is_left_out_and_told(call: Call, runs: Path) -> None:
    with (runs / "same" / "records.jsonl").open("ab") as journal:
        journal.write(b'{"case": {"oper')
    done = call("check", "base", "same")
    assert done.returncode == 0
    assert "torn line of 15 bytes" in done.stdout


def test_the_command_line_passes_the_exit_code_on(cli: Cli, runs: Path) -> None:
    assert cli("check", "base", "slow").returncode == 1


def test_rates_reproduces_a_row_and_refuses_what_is_not_there(call: Call) -> None:
    arguments = ("rates", "--rule", "niffbench check", "--scenario", "bimodal", "--suites", "20", "--json")
    one, two = call(*arguments), call(*arguments)
    assert one.returncode == 0, one.stderr
    assert one.stdout == two.stdout
    assert {row["rule"] for row in json.loads(one.stdout)} == {"niffbench check"}
    wrong = call("rates", "--rule", "niffbench chekc")
    assert wrong.returncode == 2
    assert "did you mean 'niffbench check'" in wrong.stderr
