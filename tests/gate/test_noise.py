"""A/A: noise that was planted is found, and the verdict follows it."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path
from statistics import median

import cli_process
import pytest
from cli_in_process import Call, call
from synthetic import Noise, World, make, save

import niffbench
from niffbench.errors import HeadFails
from niffbench.gate.comparison import compare
from niffbench.gate.noise import Aim, assess
from niffbench.gate.rules import Rules
from niffbench.report import fitness
from niffbench.report.digest import gather
from niffbench.report.facts import facts
from niffbench.report.text import seconds
from niffbench.report.verdicts import document
from niffbench.results import Latency, Record, Run, read
from niffbench.session.provenance import revision

__all__ = ["call"]

STEADY = Rules(regimes=("steady",))


def run_with(sd: float, rounds: int = 40) -> Run:
    return make(World(rounds=rounds, sizes=(14, 28), samples=5, faults=(), noise=Noise(sd, 1e-4)), Path("aa"))


@pytest.mark.parametrize("sd", [0.002, 0.01, 0.05])
def test_planted_noise_is_estimated(sd: float) -> None:
    result = assess(run_with(sd), STEADY, Aim())
    estimates = [case.rounds.sd for case in result.cases]
    assert sum(estimates) / len(estimates) == pytest.approx(sd, rel=0.1)
    inside = [case.rounds.low <= sd <= case.rounds.high for case in result.cases]
    assert sum(inside) >= 0.8 * len(inside)
    paired = [case.paired.sd for case in result.cases if case.paired]
    assert sum(paired) / len(paired) == pytest.approx(sd * 2**0.5, rel=0.1)


def test_the_median_of_an_even_number_of_rounds_lies_between_two() -> None:
    assessment = assess(run_with(0.2, rounds=2), STEADY, Aim())
    shown = [row.entries[2].text for row in fitness.table(assessment).rows]
    assert shown == [seconds(median(case.medians)) for case in assessment.cases]


def test_a_quiet_machine_is_fit_and_a_loud_one_is_not() -> None:
    quiet, loud = assess(run_with(0.002), STEADY, Aim()), assess(run_with(0.10), STEADY, Aim())
    assert quiet.fit
    assert quiet.check.verdict == "fit"
    assert not loud.fit
    assert loud.check.verdict == "unfit"
    assert quiet.ab is not None
    worst = [detectable.effect or 9.0 for detectable in loud.check.detectable]
    best = [detectable.effect or 9.0 for detectable in quiet.check.detectable]
    assert min(worst) > max(best)
    assert all((needed or 9999) > 8 for needed in loud.check.needed)


def test_two_rounds_leave_it_unknown_or_unfit_and_one_round_is_nothing() -> None:
    few = assess(run_with(0.002, rounds=2), STEADY, Aim())
    assert few.ab is None
    assert not few.fit
    assert few.alarms == ()
    with pytest.raises(HeadFails, match="two rounds"):
        assess(run_with(0.002, rounds=1), STEADY, Aim())


def test_a_run_whose_timer_was_stuck_says_that_its_rounds_were_left_out() -> None:
    def stuck(record: Record) -> Record:
        series = {name: replace(one, flags=["stuck"]) for name, one in record.latency.items()}
        return replace(record, latency=series)

    run = run_with(0.002, rounds=2)
    spoiled = replace(run, records=tuple(map(stuck, run.records)))
    with pytest.raises(HeadFails, match=r"two rounds.*rounds left out, as round 0 is stuck"):
        assess(spoiled, STEADY, Aim())


def test_the_same_code_judged_against_itself_raises_no_alarm() -> None:
    result = assess(run_with(0.01), STEADY, Aim())
    assert len(result.alarms) == len(result.cases)
    assert result.false_alarms == 0


@pytest.mark.parametrize(("ticks", "alarms"), [(1, 0), (3, 1)])
def test_medians_on_either_side_of_one_step_of_the_clock_are_no_alarm(ticks: int, alarms: int) -> None:
    """Whatever made the second of each pair's sides a step longer than the first."""

    def sampled(record: Record) -> Record:
        longer = ticks * (record.round % 4 in (1, 2))  # rounds are read as base, head, head, base
        samples = [1e-6 * (10 + longer)] * 6 + [1e-6 * (11 + longer)] * 4
        return replace(record, latency={"steady": Latency(samples=samples, flags=["coarse"])})

    run = run_with(0.002)
    records = (sampled(r) if r.traits.label == "dense-k3" else r for r in run.records)
    result = assess(replace(run, records=tuple(records)), STEADY, Aim())
    assert result.false_alarms == alarms * sum(case.results.label == "dense-k3" for case in result.cases)


def test_a_drift_is_no_noise_of_pairs() -> None:
    world = World(rounds=32, sizes=(14,), samples=5, faults=(), noise=Noise(0.002, 1e-4))
    steady = make(world, Path("aa"))

    def slower(record: Record) -> Record:
        samples = [sample * 1.02**record.round for sample in record.latency["steady"].samples]
        return replace(record, latency={"steady": Latency(samples=samples)})

    result = assess(replace(steady, records=tuple(map(slower, steady.records))), STEADY, Aim())
    assert all(case.paired is not None and case.paired.sd < 0.01 < case.rounds.sd for case in result.cases)
    assert result.false_alarms == 0


def test_the_command_assesses_a_run_and_says_whether_it_is_fit(call: Call, tmp_path: Path) -> None:
    save(replace(run_with(0.002), path=tmp_path / "quiet"))
    save(replace(run_with(0.15, rounds=8), path=tmp_path / "loud"))
    quiet = call("aa", "--run", "quiet")
    assert quiet.returncode == 0, quiet.stderr
    assert "check: fit" in quiet.stdout
    assert "0 false alarms" in quiet.stdout
    loud = call("aa", "--run", "loud", "--json", "--only", "dense-k3")
    assert loud.returncode == 5, loud.stderr
    output = json.loads(loud.stdout)
    assert output["gates"]["check"]["verdict"] != "fit"
    assert {case["label"] for case in output["cases"]} == {"dense-k3"}


@pytest.mark.parametrize(
    ("arguments", "code"),
    [(("--only", "nothing"), 2), (("--run", "nowhere"), 2), ((), 1)],
)
def test_every_exit_writes_the_json_it_was_asked_for(
    call: Call, tmp_path: Path, arguments: tuple[str, ...], code: int
) -> None:
    once = make(World(rounds=1, sizes=(14,)), tmp_path / "once")
    save(once)
    done = call("aa", "--run", "once", "--json", *arguments)
    assert done.returncode == code
    written = json.loads(done.stdout)
    assert written["exit_code"] == code
    assert written["headline"] in done.stderr


def test_what_a_comparison_could_have_shown_is_what_it_shows_nine_times_of_ten(tmp_path: Path) -> None:
    """Planted slowdowns of the size that is said are called; of half of it they are mostly not."""
    calls = {}
    worlds = [World(rounds=10, sizes=(14,), samples=3, faults=(), noise=Noise(0.03, 1e-4), seed=n) for n in (1, 2)]
    runs = [make(world, tmp_path / "same") for world in worlds]
    said = compare(*runs, STEADY).could_show
    assert said is not None
    half, most = said
    assert 0.03 < half <= most < 0.3
    assert f"a slowdown of {100 * half:.2g} %" in document(compare(*runs, STEADY))
    for share in (1.0, 0.5):
        slower = {"strip": 1 + share * half}
        heads = [make(replace(worlds[1], seed=100 + seed, slower=slower), tmp_path / "head") for seed in range(12)]
        findings = [
            next(f for f in compare(runs[0], head, STEADY).findings if f.label == "strip-k31" and f.p_adjusted)
            for head in heads
        ]
        calls[share] = sum(finding.verdict == "regressed" for finding in findings)
    assert calls[1.0] >= 8
    assert calls[0.5] <= 6


@pytest.mark.parametrize(("rounds", "said"), [(5, "in half of the latencies"), (1, "no slowdown could")])
def test_a_report_says_what_its_own_run_could_have_shown(tmp_path: Path, rounds: int, said: str) -> None:
    run = make(World(rounds=rounds, sizes=(14,), faults=()), tmp_path / "run")
    assert said in dict(facts(gather(run)))["could show"]


def test_a_run_of_the_same_code_names_its_commit(call: Call, tmp_path: Path) -> None:
    """Measured for real, by replay."""
    arguments = cli_process.suite(tmp_path, [8])[1:4]
    done = call("aa", *arguments, "--rounds", "2", "--out", "out")
    assert done.returncode in (0, 5), done.stderr
    manifest = read(tmp_path / "out").manifest
    expected = revision(Path(niffbench.__file__), os.environ)
    assert (manifest.commit, manifest.dirty) == (expected.commit, expected.dirty)
    assert manifest.rounds == 2


@pytest.mark.parametrize(
    ("arguments", "output"),
    [
        ([], "SUITE"),
        (["smoke", "--run", "x"], "SUITE"),
        (["--run", "nowhere"], "no such directory"),
        (["smokee"], "smokee"),
        (["--run", "x", "--effect", "-3"], "--effect"),
        (["--run", "x", "--rounds", "1"], "--rounds"),
    ],
)
def test_bad_input_is_one_message(call: Call, arguments: list[str], output: str) -> None:
    done = call("aa", *arguments)
    assert done.returncode == 2
    assert output in done.stderr
    assert "Traceback" not in done.stderr
