"""Histories that made a gate go green although HEAD is worse: whatever came before, it says 1 or 5, never 0."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import pytest
from cli_in_process import Call, call
from synthetic import FEW, Fault, World, make, save

from niffbench.results import Record, Run
from niffbench.suite import Selection

__all__ = ["call"]

GOOD = World(rounds=8, sizes=(14,), samples=3, faults=(), operators=FEW)
SLOW = replace(GOOD, slower={"global-filter": 1.2})
BROKEN = tuple(Fault("crashed", "boom", planted.operator) for planted in GOOD.operators)


def run_of(
    day: int, world: World = GOOD, change: Callable[[Record], Record] | None = None, **fields: object
) -> Run:
    """The run of one commit a day, ``run-DAY``, written to the current directory."""
    run = make(replace(world, seed=day), Path(f"run-{day}"))
    update = {"started": f"2026-03-{day:02}T10:00:00Z", "commit": f"{day:040x}", **fields}
    manifest = run.manifest.model_copy(update=update)
    return save(
        replace(run, manifest=manifest, records=tuple(map(change, run.records)) if change else run.records)
    )


def narrowed(run: Run, *only: str) -> Run:
    """The same as ``--only`` would have made it."""
    selection = Selection(only)
    records = tuple(r for r in run.records if selection.takes(r.case, r.traits.label))
    echo = run.manifest.suite.model_copy(
        update={"only": list(only), "cases": list(dict.fromkeys(r.id for r in records))}
    )
    return save(replace(run, manifest=run.manifest.model_copy(update={"suite": echo}), records=records))


def doubled_flops(record: Record) -> Record:
    cost = record.cost
    assert cost is not None
    if record.case.operator != "global-filter":
        return record
    return replace(record, cost=replace(cost, closed=2 * cost.closed, counted=2 * (cost.counted or 0)))


def memory(factor: float) -> Callable[[Record], Record]:
    def more(record: Record) -> Record:
        assert record.memory is not None
        return replace(record, memory=replace(record.memory, peak=round(record.memory.peak * factor)))

    return more


@pytest.fixture(params=["history", "baseline"])
def gate(request: pytest.FixtureRequest, call: Call) -> Callable[[Run], tuple[int, dict[str, object]]]:
    """Judge a run by what came before it, kept in a history or lying about; returns exit code and JSON."""

    def judge(run: Run) -> tuple[int, dict[str, object]]:
        where = ["--history", "kept"] if request.param == "history" else ["--baseline", "."]
        done = call("check", str(run.path), *where, "--json")
        return done.returncode, json.loads(done.stdout)

    return judge


Gate = Callable[[Run], tuple[int, dict[str, object]]]


def failing(outcome: dict[str, object]) -> set[tuple[str, str]]:
    findings = outcome["findings"]
    assert isinstance(findings, list)
    return {(f["label"], f["quantity"]) for f in findings if f["verdict"] in ("regressed", "missing")}


@pytest.mark.parametrize("worse", ["flops", "latency", "memory"])
def test_a_narrowed_run_hides_nothing(gate: Gate, worse: str) -> None:
    assert gate(run_of(1))[0] == 3
    assert gate(narrowed(run_of(2), "dense-k3"))[0] == 0
    bad = {
        "flops": lambda: run_of(3, change=doubled_flops),
        "latency": lambda: run_of(3, SLOW),
        "memory": lambda: run_of(3, change=memory(3.0)),
    }[worse]()
    code, outcome = gate(bad)
    assert code == 1
    assert ("global-filter", "memory_peak" if worse == "memory" else next(iter(failing(outcome)))[1]) in failing(
        outcome
    )
    findings = outcome["findings"]
    assert isinstance(findings, list)
    assert {f["run"][-5:] for f in findings if f["label"] == "dense-k3"} != {
        f["run"][-5:] for f in findings if f["label"] == "global-filter"
    }


def test_only_narrowed_runs_before_leave_the_rest_uncovered(gate: Gate) -> None:
    assert gate(narrowed(run_of(1), "dense-k3"))[0] == 3
    code, outcome = gate(run_of(2, SLOW))
    assert code == 5
    assert outcome["counts"]["uncovered"] >= 5  # type: ignore[index]
    assert "nothing to be compared with" in str(outcome["headline"])


def test_a_regression_behind_a_failing_commit_is_one(gate: Gate) -> None:
    failed = replace(GOOD, faults=(Fault("crashed", "boom", "global-filter"),))
    codes = [gate(run_of(1))[0], gate(run_of(2, failed))[0]]
    code, outcome = gate(run_of(3, SLOW))
    assert [*codes, code] == [3, 1, 1]
    assert ("global-filter", "latency_steady") in failing(outcome)


def test_a_limit_of_memory_before_leaves_no_hole(gate: Gate) -> None:
    skipped = replace(GOOD, faults=(Fault("skipped", "predicted 2 GiB", "global-filter"),))
    gate(run_of(1, skipped))
    code, outcome = gate(run_of(2, SLOW))
    assert code == 5
    assert outcome["counts"]["uncovered"] == 1  # type: ignore[index]


def test_a_run_of_too_few_rounds_is_no_baseline_where_a_better_one_is(gate: Gate) -> None:
    gate(run_of(1))
    gate(run_of(2, replace(GOOD, rounds=2)))
    code, outcome = gate(run_of(3, SLOW))
    assert code == 1
    assert ("global-filter", "latency_steady") in failing(outcome)


def test_a_clock_from_the_future_poisons_nothing(gate: Gate) -> None:
    gate(run_of(1))
    gate(run_of(2, started="2099-01-01T00:00:00Z"))
    assert gate(run_of(3, SLOW))[0] == 1
    gate(run_of(4))
    assert gate(run_of(5))[0] == 0


def test_a_clock_of_the_past_is_not_the_first_run(call: Call) -> None:
    run_of(1)
    done = call("check", run_of(2, SLOW, started="1970-01-01T00:00:00Z").path.name, "--baseline", ".")
    assert done.returncode == 2
    assert "1970" in done.stderr
    history = [run_of(1), run_of(3, SLOW, started="1970-01-01T00:00:00Z")]
    assert codes(call, *history) == [3, 1]


def test_a_case_that_vanished_is_missing_until_that_is_accepted(call: Call) -> None:
    runs = [run_of(1), *(run_of(day, replace(GOOD, operators=GOOD.operators[:-1])) for day in (2, 3, 4))]
    codes = [call("check", run.path.name, "--history", "kept").returncode for run in runs[:3]]
    assert codes == [3, 1, 1]
    Path("accept.toml").write_text(
        "[[accept]]\nquantities = ['coverage']\nreason = 'not sold'\n", encoding="utf-8"
    )
    accepted = call("check", "run-4", "--history", "kept", "--accept", "accept.toml")
    assert accepted.returncode == 0, accepted.stdout
    assert "not sold" in accepted.stdout


@pytest.mark.parametrize("what", ["latency_steady", "memory_peak"])
def test_a_creep_is_found_with_its_total(call: Call, what: str) -> None:
    """Each step is too small to be called by itself."""
    for day in range(1, 12):
        factor = 1.008**day
        world = replace(GOOD, noise=replace(GOOD.noise, between=0.002, within=0.002))
        if what == "memory_peak":
            run = run_of(day, world, memory(factor))
        else:
            run = run_of(day, replace(world, slower={"global-filter": factor}))
        done = call("check", run.path.name, "--history", "kept", "--json")
        if day == 2:
            assert done.returncode == 0, done.stdout
    assert done.returncode == 1
    (finding, *_) = [
        f for f in json.loads(done.stdout)["findings"] if f["quantity"] == what and f["label"] == "global-filter"
    ]
    assert finding["verdict"] == "regressed"
    assert finding["ratio"] == pytest.approx(1.008**10, rel=0.01)
    assert finding["run"].startswith("000001-")
    assert "accepted level" in finding["reason"]


def test_an_alert_stays_open_until_it_is_gone_or_accepted(call: Call) -> None:
    def judged(day: int, world: World, *options: str) -> int:
        return call("check", run_of(day, world).path.name, "--history", "kept", *options).returncode

    assert [judged(1, GOOD), judged(2, GOOD), judged(3, SLOW), judged(4, SLOW)] == [3, 0, 1, 1]
    accept = (
        "[[accept]]\ncases = ['global-filter']\nquantities = ['latency_*']\nup_to = '+30%'\nreason = 'known'\n"
    )
    Path("accept.toml").write_text(accept, encoding="utf-8")
    assert judged(5, SLOW, "--accept", "accept.toml") == 0
    worse = replace(GOOD, slower={"global-filter": 1.2 * 1.15})
    # +15 % of the last run, but +38 % of the accepted level.
    assert judged(6, worse, "--accept", "accept.toml") == 1
    Path("accept.toml").write_text(accept + "until = 2026-01-31\n", encoding="utf-8")
    assert judged(7, SLOW, "--accept", "accept.toml") == 1
    assert judged(8, GOOD) == 0


def test_a_reference_named_by_hand_is_the_accepted_level(call: Call) -> None:
    run_of(1), run_of(2, SLOW), run_of(3, SLOW)
    assert call("check", "run-2", "run-3").returncode == 0
    done = call("check", "run-2", "run-3", "--reference", "run-1")
    assert done.returncode == 1
    assert "global-filter" in done.stdout


def test_a_step_fails_while_it_stands_if_asked_to(call: Call) -> None:
    for day in range(1, 15):
        world = SLOW if day >= 8 else GOOD
        done = call("check", run_of(day, world).path.name, "--history", "kept", "--accept", _accepting())
    assert done.returncode == 0, done.stdout
    assert call("check", "--history", "kept").returncode == 0
    failed = call("check", "--history", "kept", "--fail-on-step", "--json")
    refused = call("check", "--history", "kept", "--junit", "out/j.xml")
    assert refused.returncode == 2
    assert "HEAD" in refused.stderr
    assert failed.returncode == json.loads(failed.stdout)["exit_code"] == 1
    assert (
        call(
            "check",
            "run-14",
            "--history",
            "kept",
            "--accept",
            _accepting(),
            "--fail-on-step",
            "--junit",
            "out/j.xml",
        ).returncode
        == 1
    )
    assert set(junit("failure")) == {"global-filter latency_cold step", "global-filter latency_steady step"}


def test_a_slower_machine_is_a_step_until_it_is_accepted(call: Call) -> None:
    """And of no case, whose regressions it does not excuse."""
    everything = {planted.operator: 1.08 for planted in GOOD.operators}
    Path("machine.toml").write_text(
        "[[accept]]\nquantities = ['shared_*']\nup_to = '+10%'\nreason = 'another room'\n", encoding="utf-8"
    )
    for day in range(1, 15):
        world = replace(GOOD, slower=everything if day >= 9 else {})
        call("check", run_of(day, world).path.name, "--history", "kept")
    accepting = ("--accept", "machine.toml")
    failed = call("check", "run-14", "--history", "kept", "--fail-on-step", "--json")
    assert failed.returncode == 1
    assert {step["label"] for step in json.loads(failed.stdout)["steps"] if step["open"]} == {"everything"}
    assert call("check", "run-14", "--history", "kept", "--fail-on-step", *accepting).returncode == 0
    assert call("check", "--history", "kept", "--fail-on-step").returncode == 1
    assert call("check", "--history", "kept", "--fail-on-step", *accepting).returncode == 0
    for day in range(15, 20):
        call(
            "check",
            run_of(day, replace(GOOD, slower=everything | {"global-filter": 1.2})).path.name,
            "--history",
            "kept",
        )
    assert call("check", "--history", "kept", "--fail-on-step", *accepting).returncode == 1


def _accepting() -> str:
    Path("all.toml").write_text(
        "[[accept]]\nquantities = ['latency_*']\nup_to = '+30%'\nreason = 'all'\n", encoding="utf-8"
    )
    return "all.toml"


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("[[accept]]\nquantities = ['latency_*']\nreason = 'x'", "accept[0].up_to"),
        ("[[accept]]\nquantities = ['coverage']\nreason = 'x'\nup_to = '+3%'", "accept[0].up_to"),
        ("[[accept]]\nquantities = ['latencies']\nreason = 'x'\nup_to = '+3%'", "no quantity named"),
        ("[[accept]]\nquantities = ['flops']\nup_to = '+3%'", "'accept[0].reason' is missing"),
        ("[[accept]]\nquantities = ['flops']\nreason = 'x'\nup_to = '3 parsec'", "'+20%', '1.3 ms'"),
        ("[[accept]]\nquantities = ['latency_*']\nreason = 'x'\nup_to = '12 MiB'", "not that of latency_cold"),
        ("[[accept]]\nquantities = ['latency_*']\nreason = 'x'\nup_to = 3", "not that of latency_cold"),
        ("[[accept]]\nquantities = ['memory_*', 'flops']\nreason = 'x'\nup_to = '1 MiB'", "not that of flops"),
        ("[[accept]]\nquantities = ['ratio_*']\nreason = 'x'\nup_to = 1.2", "not that of ratio_cold"),
        ("[[accept]]\nquantities = ['flops']\nreason = 'x'\nup_to = '+3%'\nuntl = 1", "did you mean 'until'"),
        ("[[environment]]\nfingerprint = 'x'\nreason = 'x'", "fingerprint"),
    ],
)
def test_a_faulty_file_of_accepted_changes_is_refused(call: Call, text: str, complaint: str) -> None:
    run_of(1), run_of(2)
    Path("accept.toml").write_text(text, encoding="utf-8")
    done = call("check", "run-1", "run-2", "--accept", "accept.toml")
    assert done.returncode == 2
    assert complaint in done.stderr
    assert "accept.toml" in done.stderr


def test_what_is_accepted_for_no_case_is_said(call: Call) -> None:
    run_of(1), run_of(2)
    entry = "[[accept]]\ncases = ['{}']\nquantities = ['flops']\nup_to = 1e9\nreason = 'x'\n"
    Path("accept.toml").write_text(entry.format("dense-k3") + entry.format("dense-k33"), encoding="utf-8")
    done = call("check", "run-1", "run-2", "--accept", "accept.toml", "--json")
    assert [note for note in json.loads(done.stdout)["notes"] if "fits no case" in note] == [
        "accept.toml: accept[1] fits no case of either run"
    ]


def test_a_changed_environment_is_said_and_passes_only_when_acknowledged(gate: Gate, call: Call) -> None:
    gate(run_of(1))
    new = replace(GOOD, torch="2.16.0")
    code, outcome = gate(run_of(2, new, doubled_flops))
    assert code == 1
    assert ("global-filter", "flops") in failing(outcome)
    fine = run_of(3, replace(new, torch="2.17.0"))
    code, outcome = gate(fine)
    assert code == 5
    assert "torch" in str(outcome["headline"])
    assert {d["field"] for d in outcome["differences"]} == {"torch"}  # type: ignore[attr-defined]


def test_a_changed_environment_hides_nothing_later(call: Call) -> None:
    new = replace(GOOD, torch="2.16.0")
    for folder, change, codes in (("worse", doubled_flops, [3, 1, 1]), ("alike", None, [3, 5, 5])):
        runs = [run_of(1), run_of(2, new, change), run_of(3, new, change)]
        assert [call("check", run.path.name, "--history", folder).returncode for run in runs] == codes
    environment = runs[-1].manifest.fingerprint.hash
    Path("accept.toml").write_text(
        f"[[environment]]\nfingerprint = '{environment}'\nreason = 'torch 2.16'\n", encoding="utf-8"
    )
    assert call("check", "run-3", "--history", "alike", "--accept", "accept.toml").returncode == 0


def codes(call: Call, *runs: Run, options: tuple[str, ...] = ()) -> list[int]:
    """The exit codes of one run after the other, kept in one history."""
    return [call("check", str(run.path), "--history", "kept", *options).returncode for run in runs]


def test_a_slowdown_that_came_with_another_environment_stays_one(call: Call) -> None:
    new, slow = replace(GOOD, torch="2.16.0"), replace(SLOW, torch="2.16.0")
    assert codes(call, run_of(1), run_of(2, slow), run_of(3, slow), run_of(4, slow)) == [3, 1, 1, 1]
    fingerprint = run_of(5, slow).manifest.fingerprint.hash
    environment = f"[[environment]]\nfingerprint = '{fingerprint}'\nreason = 'torch 2.16'\n"
    Path("accept.toml").write_text(environment, encoding="utf-8")
    options = ("--accept", "accept.toml")
    assert codes(call, run_of(6, slow), options=options) == [1], "an acknowledged environment excuses no case"
    Path("accept.toml").write_text(environment + "up_to = '+30%'\n", encoding="utf-8")
    assert codes(call, run_of(7, slow), options=options) == [0]
    slower = replace(new, slower={"global-filter": 1.5})
    assert codes(call, run_of(8, slower), run_of(9, slower), options=options) == [1, 1]
    Path("accept.toml").write_text(environment, encoding="utf-8")
    assert codes(call, run_of(10, new), options=options) == [0], "it is gone"


def test_an_open_alert_outlives_a_change_of_the_environment(call: Call) -> None:
    """The newest run before was as slow."""
    new = replace(SLOW, torch="2.16.0")
    assert codes(call, run_of(1), run_of(2, SLOW), run_of(3, new), run_of(4, new)) == [3, 1, 1, 1]
    across = call("check", run_of(5, SLOW).path.name, "--history", "kept", "--across-machines")
    assert across.returncode == 1


def test_a_failing_or_narrowed_run_in_another_environment_hides_no_slowdown(call: Call) -> None:
    failing_there = replace(GOOD, torch="2.16.0", faults=(Fault("crashed", "boom", "global-filter"),))
    slow = replace(SLOW, torch="2.16.0")
    assert codes(call, run_of(1), run_of(2, failing_there), run_of(3, slow)) == [3, 1, 1]
    # Without the baseline operator beside it a case has no ratio.
    alone = narrowed(run_of(11), "global-filter")
    codes_of_narrowed = [
        call("check", str(run.path), "--history", "other").returncode
        for run in (alone, run_of(12), narrowed(run_of(13), "global-filter"), run_of(14, slow))
    ]
    assert codes_of_narrowed == [3, 5, 0, 1]


def test_a_baseline_that_is_renamed_makes_no_ratio_better(gate: Gate) -> None:
    """Over a slower operator every ratio is smaller."""
    gate(run_of(1))
    code, outcome = gate(run_of(2, replace(SLOW, torch="2.16.0", baseline="depthwise-k31")))
    assert code == 1
    assert ("global-filter", "ratio_steady") in failing(outcome)


def test_what_slows_everything_stays_open_until_it_is_accepted(call: Call) -> None:
    def all_slower(factor: float) -> World:
        return replace(GOOD, slower={planted.operator: factor for planted in GOOD.operators})

    assert codes(call, run_of(1), *(run_of(day, all_slower(1.08)) for day in (2, 3, 4))) == [3, 5, 5, 5]
    Path("accept.toml").write_text(
        "[[accept]]\nquantities = ['shared_*']\nup_to = '+10%'\nreason = 'a slower clock'\n", encoding="utf-8"
    )
    options = ("--accept", "accept.toml")
    assert codes(call, run_of(5, all_slower(1.08)), run_of(6, all_slower(1.2)), options=options) == [0, 5]


def test_a_baseline_operator_that_slows_is_accepted_up_to_where_it_may_go(call: Call) -> None:
    """In another environment that is a smaller ratio of all others to it."""

    def slow(record: Record) -> Record:
        if record.traits.label != GOOD.baseline:
            return record
        series = record.latency.items()
        slower = {regime: replace(one, samples=[1.5 * s for s in one.samples]) for regime, one in series}
        return replace(record, latency=slower)

    run_of(1), run_of(2, replace(GOOD, torch="2.16.0"), slow)
    for limit, code in ((10, 5), (60, 0)):
        Path("accept.toml").write_text(
            f"[[accept]]\nquantities = ['shared_*']\nup_to = '+{limit}%'\nreason = 'a slower depthwise'\n",
            encoding="utf-8",
        )
        done = call("check", "run-1", "run-2", "--across-machines", "--accept", "accept.toml")
        assert done.returncode == code, done.stdout


def test_a_machine_that_creeps_is_said(call: Call) -> None:
    quiet = replace(GOOD, noise=replace(GOOD.noise, between=0.002, within=0.002))
    runs = [
        run_of(day, replace(quiet, slower={planted.operator: 1.008**day for planted in GOOD.operators}))
        for day in range(1, 10)
    ]
    ends = codes(call, *runs)
    assert ends[:2] == [3, 0]
    assert ends[-1] == 5


def test_a_run_of_the_history_that_cannot_be_read_is_no_reason_to_pass(call: Call) -> None:
    assert codes(call, run_of(1), run_of(2)) == [3, 0]
    (first,) = Path("kept").rglob("000001-*")
    (first / "records.jsonl.gz").write_bytes(b"damaged")
    done = call("check", run_of(3, SLOW).path.name, "--history", "kept", "--json")
    assert done.returncode == 1
    done = call("check", run_of(4).path.name, "--history", "kept", "--json")
    assert done.returncode == 5
    outcome = json.loads(done.stdout)
    assert "1 run of the history cannot be read" in outcome["headline"]
    (unreadable,) = (finding for finding in outcome["findings"] if finding["verdict"] == "uncovered")
    assert unreadable["case"] == f"shared {first.name}"
    assert "records.jsonl.gz" in unreadable["reason"]
    (first / "run.json").unlink()
    assert codes(call, run_of(5)) == [5]
    for place in Path("kept").rglob("00000?-*"):
        (place / "run.json").write_text("{")
    assert codes(call, run_of(6)) == [2], "that is not the same as no baseline yet"
    assert len(list(Path("kept").rglob("00000[6]-*"))) == 1, "the history can recover"


def test_what_is_removed_from_a_history_is_no_accepted_level(call: Call) -> None:
    """The first run has too few rounds to be one."""
    few = replace(GOOD, rounds=2)
    options = ("--keep", "1")
    ends = codes(call, run_of(1, few), run_of(2), run_of(3), run_of(4, SLOW), run_of(5, SLOW), options=options)
    assert ends == [3, 5, 0, 1, 1]
    assert len(list(Path("kept").rglob("run.json"))) == 3


def test_a_case_that_came_later_is_missed_for_good(call: Call) -> None:
    few = replace(GOOD, operators=GOOD.operators[:-1])
    runs = [run_of(1, few), run_of(2), run_of(3, few), run_of(4, few)]
    codes = [call("check", run.path.name, "--history", "kept").returncode for run in runs]
    assert codes == [3, 0, 1, 1]


@pytest.mark.parametrize("what", ["latency_steady", "memory_peak"])
def test_a_metric_that_vanished_is_missing_until_that_is_accepted(call: Call, what: str) -> None:
    def without(record: Record) -> Record:
        if record.case.operator != "global-filter":
            return record
        if what == "memory_peak":
            return replace(record, memory=None)
        return replace(record, latency={k: series for k, series in record.latency.items() if k != "steady"})

    runs = [run_of(1), run_of(2, change=without), run_of(3, change=without)]
    codes = [call("check", run.path.name, "--history", "kept").returncode for run in runs]
    assert codes == [3, 1, 1]
    Path("accept.toml").write_text(
        "[[accept]]\nquantities = ['coverage']\nreason = 'not measured here'\n", encoding="utf-8"
    )
    assert call("check", "run-3", "--history", "kept", "--accept", "accept.toml").returncode == 0


def test_options_for_a_changed_environment(call: Call) -> None:
    run_of(1)
    run = run_of(2, replace(GOOD, torch="2.16.0"))
    assert call("check", "run-1", "run-2").returncode == 4
    arguments = ("check", "run-2", "--baseline", ".")
    assert call(*arguments).returncode == 5
    assert call(*arguments, "--fail-on-environment").returncode == 1
    Path("accept.toml").write_text(
        f"[[environment]]\nfingerprint = '{run.manifest.fingerprint.hash}'\nreason = 'torch 2.16'\n",
        encoding="utf-8",
    )
    done = call(*arguments, "--accept", "accept.toml")
    assert done.returncode == 0
    assert "torch 2.16" in done.stdout


def junit(*kinds: str) -> list[str]:
    """The names of the test cases of out/j.xml with a child of one of these kinds."""
    cases = ElementTree.parse("out/j.xml").getroot().iter("testcase")
    return [case.get("name", "") for case in cases if any(child.tag in kinds for child in case)]


def test_whatever_fails_or_is_not_judged_is_no_passed_test_of_junit(call: Call) -> None:
    run_of(1), run_of(2, replace(GOOD, torch="2.16.0"))
    arguments = ("check", "run-2", "--baseline", ".", "--fail-on-environment", "--json", "--junit", "out/j.xml")
    outcome = json.loads(call(*arguments).stdout)
    assert "environment" in junit("failure")
    assert "no regression" not in outcome["headline"]
    call("check", narrowed(run_of(3), "dense-k3").path.name, "--history", "kept")
    assert call("check", run_of(4).path.name, "--history", "kept", "--junit", "out/j.xml").returncode == 5
    assert "global-filter coverage" in junit("skipped")
    root = ElementTree.parse("out/j.xml").getroot()
    assert int(root.get("skipped", "")) == len(junit("skipped"))


def test_notes_are_about_the_runs_that_served(gate: Gate) -> None:
    gate(run_of(1))
    gate(run_of(2, replace(GOOD, rounds=2)))
    _, outcome = gate(run_of(3))
    notes = outcome["notes"]
    assert isinstance(notes, list)
    assert not any("too few" in note for note in notes)
    assert any("chosen case by case" in note and ("run-1" in note or "000001-" in note) for note in notes)


OUTPUTS = ("--json", "--markdown", "out/s.md", "--junit", "out/j.xml")


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (("run-1", "run-2"), 0),
        (("run-1", "slow"), 1),
        (("run-1", "nowhere"), 2),
        (("run-1", "run-2", "--only", "nothing"), 2),
        (("run-1", "run-2", "--alpha", "0.7"), 2),
        (("run-1", "run-2", "--alpha", "much"), 2),
        (("run-1", "run-2", "--regime", "hot"), 2),
        (("run-1", "run-2", "--keep", "-1"), 2),
        (("run-1", "run-2", "--no-such-option", "1"), 2),
        (("run-1", "run-2", "--thresholds", "."), 2),
        (("run-1", "run-2", "--plot", "x.gif"), 2),
        (("run-1", "--history", "new"), 3),
        (("run-1", "other"), 4),
        (("run-1", "few"), 5),
        (("broken", "--history", "new"), 1),
        (("run-1", "broken"), 1),
        (("broken", "broken"), 1),
    ],
)
def test_every_exit_writes_what_was_asked_for(call: Call, arguments: tuple[str, ...], code: int) -> None:
    run_of(1), run_of(2)
    for name, day, world in (
        ("slow", 3, SLOW),
        ("other", 4, replace(GOOD, torch="2.16.0")),
        ("few", 5, replace(GOOD, rounds=3)),
        ("broken", 6, replace(GOOD, faults=BROKEN)),
    ):
        save(replace(run_of(day, world), path=Path(name)))
    _wrote(call("check", *arguments, *OUTPUTS), code)


@pytest.mark.parametrize(
    ("arguments", "fault"),
    [
        (("check", *OUTPUTS, "run-1", "run-2", "--alpha"), "--alpha"),
        (("ab", *OUTPUTS), "SUITE"),
        (("ab", "smoke", *OUTPUTS), "--base"),
        (("ab", "smoke", "--base", "main", "--rounds", "few", *OUTPUTS), "--rounds"),
        (("ab", "smoke", "--base", "main", "--min-time", "soon", *OUTPUTS), "--min-time"),
    ],
)
def test_a_command_line_that_cannot_be_parsed_is_said_where_it_was_asked_to(
    call: Call, arguments: tuple[str, ...], fault: str
) -> None:
    assert fault in str(_wrote(call(*arguments), 2)["headline"])


def test_one_output_that_cannot_be_written_takes_no_other_with_it(call: Call) -> None:
    run_of(1), run_of(2)
    Path("out").mkdir()
    Path("file").touch()
    done = call("check", "run-1", "run-2", "--json", "--markdown", "file/s.md", "--junit", "out/j.xml")
    assert done.returncode == json.loads(done.stdout)["exit_code"] == 2
    assert junit("error") == ["comparison"]
    done = call("aa", "--json", "--run", "run-1", "--rounds", "few")
    assert done.returncode == json.loads(done.stdout)["exit_code"] == 2


def _wrote(done: subprocess.CompletedProcess[str], code: int) -> dict[str, object]:
    """What a command wrote in all forms; returns its JSON."""
    assert done.returncode == code, done.stderr
    outcome = json.loads(done.stdout)
    assert isinstance(outcome, dict)
    assert outcome["exit_code"] == code
    assert outcome["headline"]
    assert isinstance(outcome["counts"], dict)
    assert Path("out/s.md").read_text(encoding="utf-8").startswith("### niffbench: ")
    root = ElementTree.parse("out/j.xml").getroot()
    assert int(root.get("failures", "")) + int(root.get("errors", "")) > 0 or code in (0, 5)
    return outcome
