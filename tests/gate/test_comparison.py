"""The rule: what is found between two runs whose truth was planted, and what is left alone."""

from __future__ import annotations

import math
import random
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from synthetic import NETWORKS, Fault, Noise, World, make

from niffbench.errors import FingerprintsDiffer, NothingMeasured, UsageError
from niffbench.gate.comparison import compare
from niffbench.gate.findings import Comparison, Finding
from niffbench.gate.latencies import Pairing
from niffbench.gate.rules import Rules
from niffbench.results import Latency, Manifest, Memory, Record, Run, is_control

QUIET = World(rounds=8, sizes=(14, 28), faults=())


def base(world: World = QUIET) -> Run:
    return make(world, Path("base"))


def head(world: World = QUIET, seed: int = 1) -> Run:
    return make(replace(world, seed=seed), Path("head"))


def changed(run: Run, change: Callable[[Record], Record | None]) -> Run:
    records = tuple(new for record in run.records if (new := change(record)) is not None)
    return replace(run, records=records)


def remade(run: Run, **fields: object) -> Run:
    return replace(run, manifest=Manifest.model_validate({**run.manifest.model_dump(), **fields}))


def result(comparison: Comparison, quantity: str, label: str | None = None) -> list[Finding]:
    return [f for f in comparison.findings if f.quantity == quantity and label in (None, f.label)]


def verdicts(findings: list[Finding]) -> set[str]:
    return {finding.verdict for finding in findings}


def test_identical_code_passes_and_every_case_is_judged() -> None:
    comparison = compare(base(), head(), Rules())
    assert comparison.exit_code == 0
    assert not comparison.failing
    cases = {finding.case for finding in comparison.findings}
    assert len(cases) == len(base().manifest.suite.cases)
    for quantity in (
        "coverage",
        "latency_cold",
        "latency_steady",
        "flops",
        "flops_counted",
        "parameters",
        "memory_peak",
    ):
        assert len(result(comparison, quantity)) == len(cases)
    assert not result(comparison, "latency_first")


def test_a_planted_slowdown_is_found_in_its_cases_only() -> None:
    slow = replace(QUIET, slower={"global-filter": 1.10})
    comparison = compare(base(), head(slow), Rules())
    assert comparison.exit_code == 1
    assert {finding.label for finding in comparison.failing} == {"global-filter"}
    assert {finding.quantity for finding in comparison.failing} == {"latency_cold", "latency_steady"}
    for finding in comparison.failing:
        assert finding.low is not None
        assert finding.high is not None
        assert 1.03 < finding.low < 1.10 < finding.high < 1.15


def test_an_improvement_is_reported_and_never_fails() -> None:
    fast = replace(QUIET, slower={"global-filter": 0.85})
    comparison = compare(base(), head(fast), Rules())
    assert comparison.exit_code == 0
    assert verdicts(result(comparison, "latency_steady", "global-filter")) == {"improved"}


def test_a_change_below_the_minimum_effect_is_not_called_however_certain() -> None:
    still = replace(QUIET, noise=Noise(1e-4, 1e-4), slower={"global-filter": 1.02})
    comparison = compare(base(replace(still, slower={})), head(still), Rules())
    assert verdicts(result(comparison, "latency_steady", "global-filter")) == {"equivalent"}
    assert compare(base(replace(still, slower={})), head(still), Rules(min_effect=0.01)).exit_code == 1


def test_too_few_rounds_conclude_nothing_about_latency_and_say_so() -> None:
    few = replace(QUIET, rounds=3)
    comparison = compare(base(few), head(replace(few, slower={"global-filter": 1.5})), Rules())
    assert comparison.exit_code == 5
    assert verdicts(result(comparison, "latency_steady")) == {"inconclusive"}
    assert verdicts(result(comparison, "flops")) == {"equivalent"}
    assert any("too few" in note and "at least 5" in note for note in comparison.notes)


def test_one_round_a_side_still_judges_what_is_exact() -> None:
    one = replace(QUIET, rounds=1)
    worse = changed(head(one), lambda r: replace(r, parameters=(r.parameters or 0) + 1))
    comparison = compare(base(one), worse, Rules())
    assert comparison.exit_code == 1
    assert {finding.quantity for finding in comparison.failing} == {"parameters"}


def test_noise_that_could_hide_a_slowdown_is_inconclusive_not_fine() -> None:
    loud = replace(QUIET, noise=Noise(0.15, 0.01))
    comparison = compare(base(loud), head(loud), Rules())
    assert comparison.exit_code == 5
    assert comparison.blind
    assert "could hide" in comparison.headline
    assert compare(base(loud), head(loud), Rules(rule_out=5.0)).exit_code == 0


@pytest.mark.parametrize("delta", [-1, 1])
def test_flops_are_exact_in_both_directions(delta: int) -> None:
    def more(record: Record) -> Record:
        assert record.cost is not None
        return replace(record, cost=replace(record.cost, counted=(record.cost.counted or 0) + delta))

    comparison = compare(base(), changed(head(), more), Rules())
    assert verdicts(result(comparison, "flops_counted")) == {"regressed" if delta > 0 else "improved"}
    assert verdicts(result(comparison, "flops")) == {"equivalent"}
    assert comparison.exit_code == (1 if delta > 0 else 0)


@pytest.mark.parametrize("before", [None, ["dft"]])
def test_flops_of_another_choice_are_no_change_of_the_code(before: list[str] | None) -> None:
    """Nor are those of a run from before choices were recorded; the same choice is judged as ever."""

    def chose(engine: list[str] | None, more: int) -> Callable[[Record], Record]:
        def change(record: Record) -> Record:
            assert record.cost is not None
            return replace(record, chosen=engine, cost=replace(record.cost, closed=record.cost.closed + more))

        return change

    old, new = changed(base(), chose(before, 0)), changed(head(), chose(["native"], 9))
    comparison = compare(old, new, Rules())
    for quantity in ("flops", "flops_counted"):
        assert verdicts(result(comparison, quantity)) == {"incomparable"}
    assert f"BASE chose {before[0] if before else 'nothing'}" in result(comparison, "flops")[0].reason
    assert comparison.exit_code == 0
    same = compare(changed(base(), chose(["native"], 0)), new, Rules())
    assert verdicts(result(same, "flops")) == {"regressed"}


@pytest.mark.parametrize(
    ("factor", "tolerance", "verdict"),
    [(1.009, 0.01, "equivalent"), (1.02, 0.01, "regressed"), (1.02, 0.05, "equivalent"), (0.9, 0.01, "improved")],
)
def test_memory_has_a_tolerance(factor: float, tolerance: float, verdict: str) -> None:
    def grown(record: Record) -> Record:
        assert record.memory is not None
        return replace(record, memory=replace(record.memory, peak=round(record.memory.peak * factor)))

    comparison = compare(base(), changed(head(), grown), Rules(memory_tolerance=tolerance))
    assert verdicts(result(comparison, "memory_peak")) == {verdict}
    assert verdicts(result(comparison, "memory_resident")) == {"equivalent"}


def test_memory_that_varies_from_round_to_round_is_not_called() -> None:
    def unsteady(record: Record) -> Record:
        assert record.memory is not None
        return replace(record, memory=replace(record.memory, peak=record.memory.peak * (1 + record.round % 2)))

    comparison = compare(base(), changed(head(), unsteady), Rules())
    assert verdicts(result(comparison, "memory_peak")) == {"inconclusive"}


def test_memory_from_nothing_is_a_regression() -> None:
    def nothing(record: Record) -> Record:
        return replace(record, memory=Memory(peak=0, resident=1, output=1))

    comparison = compare(changed(base(), nothing), head(), Rules())
    assert verdicts(result(comparison, "memory_peak")) == {"regressed"}
    assert '"ratio":null' in comparison.model_dump_json()


def test_a_case_that_newly_fails_is_a_regression_of_coverage() -> None:
    broken = replace(QUIET, faults=(Fault("oom", "no memory", "attention"),))
    comparison = compare(base(), head(broken), Rules())
    assert comparison.exit_code == 1
    assert {(f.label, f.quantity, f.verdict) for f in comparison.failing} == {
        ("attention", "coverage", "regressed")
    }
    assert "oom" in comparison.failing[0].reason
    assert not result(comparison, "latency_steady", "attention")
    assert compare(base(broken), head(), Rules()).exit_code == 0


def test_a_failure_in_one_round_is_a_regression_too() -> None:
    flaky = replace(QUIET, faults=(Fault("crashed", "SIGSEGV", "attention", round=2),))
    comparison = compare(base(), head(flaky), Rules())
    assert verdicts(result(comparison, "coverage", "attention")) == {"regressed"}
    assert "1 of 8 rounds" in result(comparison, "coverage", "attention")[0].reason
    assert verdicts(result(compare(base(flaky), head(flaky), Rules()), "coverage", "attention")) == {
        "inconclusive"
    }


def test_a_round_short_of_time_is_no_failure() -> None:
    hurried = replace(QUIET, faults=(Fault("skipped", "the time budget is spent", "attention", round=7),))
    comparison = compare(base(), head(hurried), Rules())
    assert comparison.exit_code == 0
    assert {f.rounds for f in result(comparison, "latency_steady", "attention")} == {(8, 7)}
    never = replace(QUIET, faults=(Fault("skipped", "predicted 2 TiB", "attention"),))
    assert verdicts(result(compare(base(), head(never), Rules()), "coverage", "attention")) == {"regressed"}


def test_cases_that_fail_on_both_sides_are_incomparable_and_do_not_fail() -> None:
    broken = replace(QUIET, faults=(Fault("oom", "no memory", "attention"),))
    comparison = compare(base(broken), head(broken), Rules())
    assert comparison.exit_code == 0
    assert verdicts(result(comparison, "coverage", "attention")) == {"incomparable"}


def test_a_case_that_vanished_is_missing_and_a_new_one_is_new() -> None:
    smaller = replace(QUIET, sizes=(14,))
    comparison = compare(base(), head(smaller), Rules())
    assert comparison.exit_code == 1
    assert verdicts(list(comparison.failing)) == {"missing"}
    assert all("28" in finding.problem for finding in comparison.failing)
    other = compare(base(smaller), head(), Rules())
    assert other.exit_code == 0
    assert {f.verdict for f in other.findings if "@28" in f.problem} == {"new"}


def test_an_unfinished_head_misses_what_it_did_not_reach() -> None:
    whole = head()
    torn = remade(changed(whole, lambda r: r if r.case.operator != "dense" else None), finished=None)
    comparison = compare(base(), torn, Rules())
    assert comparison.exit_code == 1
    assert {(f.label.split("-")[0], f.verdict) for f in comparison.failing} == {("dense", "missing")}
    assert "interrupted" in comparison.failing[0].reason
    assert any("unfinished" in note for note in comparison.notes)


def test_a_quantity_that_vanished_is_missing() -> None:
    without = changed(head(), lambda r: replace(r, memory=None))
    comparison = compare(base(), without, Rules())
    assert comparison.exit_code == 1
    assert {finding.quantity for finding in comparison.failing} == {"memory_peak", "memory_resident"}
    steady_only = changed(head(), lambda r: replace(r, latency={"steady": r.latency["steady"]}))
    assert {f.quantity for f in compare(base(), steady_only, Rules()).failing} == {"latency_cold"}


def test_stuck_and_throttled_rounds_are_left_out_and_that_is_said() -> None:
    def spoiled(record: Record) -> Record:
        if record.round != 3:
            return record
        slow = [10 * sample for sample in record.latency["steady"].samples]
        return replace(record, latency={**record.latency, "steady": Latency(samples=slow, flags=["throttled"])})

    comparison = compare(base(), changed(head(), spoiled), Rules())
    assert comparison.exit_code == 0
    assert all("round 3 is throttled" in finding.reason for finding in result(comparison, "latency_steady"))
    assert {finding.rounds for finding in result(comparison, "latency_steady")} == {(8, 7)}


@pytest.mark.parametrize("samples", [[0.0] * 5, [], [1.0, float("nan"), 1.0], [float("inf")] * 5, [-1.0] * 5])
def test_times_that_cannot_be_are_incomparable_and_leave_the_gate_open_to_doubt(samples: list[float]) -> None:
    def stuck(record: Record) -> Record:
        return replace(record, latency={**record.latency, "steady": Latency(samples=samples)})

    comparison = compare(base(), changed(head(), stuck), Rules())
    assert verdicts(result(comparison, "latency_steady")) == {"incomparable"}
    assert comparison.exit_code == 5


def test_one_step_of_a_coarse_timer_is_no_change() -> None:
    def steps(seconds: float) -> Callable[[Record], Record]:
        coarse = Latency(samples=[seconds] * 9, flags=["coarse"])
        return lambda record: replace(record, latency={**record.latency, "steady": coarse})

    comparison = compare(changed(base(), steps(5e-6)), changed(head(), steps(5.5e-6)), Rules())
    judged = result(comparison, "latency_steady")
    assert verdicts(judged) == {"incomparable"}
    assert all("timer cannot tell apart" in finding.reason for finding in judged)


@pytest.mark.parametrize(("ticks", "verdict"), [(1, "inconclusive"), (2, "regressed")])
@pytest.mark.parametrize("paired", [False, True])
def test_medians_on_either_side_of_one_step_are_no_change(ticks: int, verdict: str, paired: bool) -> None:
    """What each median is of is known, though what controls share is taken out of them."""

    def sampled(seconds: list[float]) -> Callable[[Record], Record]:
        coarse = Latency(samples=seconds, flags=["coarse"])
        return lambda r: replace(r, latency=r.latency | {"cold": coarse}) if r.case.operator == "strip" else r

    world, step = replace(QUIET, rounds=10, noise=Noise(0.002, 0.002)), 0.5e-6
    order = Pairing(tuple(i % 2 == 0 for i in range(10))) if paired else None
    one = [5e-6] * 5 + [5e-6 + step] * 4
    sides = changed(base(world), sampled(one)), changed(head(world), sampled([s + ticks * step for s in one]))
    judged = result(compare(*sides, Rules(), pairing=order), "latency_cold", "strip-k31")
    assert verdicts(judged) == {verdict}


def test_a_rare_outlier_does_not_make_the_clocks_step_larger() -> None:
    """All but one sample of each round are alike, two steps apart on both sides; the outlier is five away."""

    def sampled(seconds: float) -> Callable[[Record], Record]:
        series = Latency(samples=[seconds] * 9 + [15e-6], flags=["coarse"])
        return lambda r: replace(r, latency=r.latency | {"cold": series}) if r.case.operator == "strip" else r

    sides = changed(base(), sampled(10e-6)), changed(head(), sampled(12e-6))
    assert verdicts(result(compare(*sides, Rules()), "latency_cold", "strip-k31")) == {"regressed"}


@pytest.mark.parametrize(("ticks", "verdict"), [(25, "inconclusive"), (28, "regressed")])
def test_the_steps_of_two_machines_clocks_are_known_apart(ticks: int, verdict: str) -> None:
    """Of 100 and of 83⅓ ns: 4 % is less than either."""

    def sampled(one: float, two: float) -> Callable[[Record], Record]:
        series = Latency(samples=[one] * 6 + [two] * 4, flags=["coarse"])
        return lambda r: replace(r, latency=r.latency | {"cold": series}) if r.case.operator == "strip" else r

    world, step = replace(QUIET, noise=Noise(1e-4, 1e-4)), 1e-6 / 12
    other = head(replace(world, torch="2.14.0"))
    sides = changed(base(world), sampled(2e-6, 2.1e-6)), changed(other, sampled(ticks * step, (ticks + 1) * step))
    comparison = compare(*sides, Rules(min_effect=0.02), across_machines=True)
    assert verdicts(result(comparison, "ratio_cold", "strip-k31")) == {verdict}


def test_unlike_fingerprints_are_refused_with_the_fields() -> None:
    with pytest.raises(FingerprintsDiffer) as refusal:
        compare(base(), head(replace(QUIET, torch="2.14.0")), Rules())
    assert refusal.value.exit_code == 4
    assert "torch: 2.15.0 in base, 2.14.0 in head" in str(refusal.value)
    assert "--across-machines" in str(refusal.value)


def test_a_fact_that_only_one_run_has_makes_fingerprints_unlike() -> None:
    """A variable of the environment, say, that was not set for the other."""
    run = head()
    must = {**run.manifest.fingerprint.must, "nvidia_tf32_override": "0"}
    with pytest.raises(FingerprintsDiffer, match="nvidia_tf32_override"):
        compare(base(), remade(run, fingerprint={**run.manifest.fingerprint.model_dump(), "must": must}), Rules())


def test_across_machines_judges_ratios_within_runs_and_what_is_exact() -> None:
    still = replace(QUIET, noise=Noise(0.003, 0.003))
    faster = replace(still, torch="2.14.0", slower=dict.fromkeys((p.operator for p in QUIET.operators), 0.5))
    comparison = compare(base(still), head(faster), Rules(), across_machines=True)
    assert comparison.exit_code == 0
    assert not [f for f in comparison.findings if f.quantity.startswith("latency_")]
    assert verdicts(result(comparison, "ratio_steady")) == {"equivalent"}
    assert not result(comparison, "ratio_steady", "depthwise-k7")
    assert verdicts(result(comparison, "memory_peak")) == {"equivalent"}
    assert ("must", "torch") in {(d.tier, d.field) for d in comparison.differences}
    one = replace(faster, slower={**faster.slower, "global-filter": 0.6})
    worse = compare(base(still), head(one), Rules(), across_machines=True)
    assert {finding.label for finding in worse.failing} == {"global-filter"}


def test_a_baseline_with_an_option_is_found_beside_the_same_operator_without() -> None:
    """As in the suite ``training``; across machines nothing but the ratios to it tells of time."""
    original, made = NETWORKS[:2]
    sgd = (("optimiser", "sgd"),)
    networks = (original, replace(original, options=sgd), replace(made, options=sgd))
    world = replace(QUIET, operators=networks, baseline="network/resnet18 optimiser=sgd")
    slow = replace(world, torch="2.14.0", slower={made.operator: 1.2})
    comparison = compare(base(world), head(slow), Rules(), across_machines=True)
    assert {f.label for f in result(comparison, "ratio_steady")} == {
        "network/resnet18",
        "network/resnet18-split optimiser=sgd",
    }
    assert {finding.label for finding in comparison.failing} == {"network/resnet18-split optimiser=sgd"}


def test_across_machines_the_baseline_need_not_be_selected() -> None:
    slow = replace(QUIET, torch="2.14.0", slower={"global-filter": 1.5})
    comparison = compare(base(), head(slow), Rules(), across_machines=True, only=("global-filter",))
    assert {f.label for f in comparison.findings} == {"global-filter"}
    assert verdicts(result(comparison, "ratio_steady")) == {"regressed"}


def test_memory_of_unlike_devices_is_incomparable() -> None:
    comparison = compare(base(), head(replace(QUIET, device="cuda")), Rules(), across_machines=True)
    assert verdicts(result(comparison, "memory_peak")) == {"incomparable"}


def test_another_suite_is_nothing_to_compare() -> None:
    with pytest.raises(UsageError, match=r"suite 'synthetic'.*of 'other'"):
        compare(base(), head(replace(QUIET, name="other")), Rules())


def test_a_base_that_measured_nothing_is_none_and_a_head_that_did_not_is_a_regression() -> None:
    everything = tuple(Fault("crashed", "boom", planted.operator) for planted in QUIET.operators)
    nothing = replace(QUIET, faults=everything)
    with pytest.raises(NothingMeasured, match="BASE") as refusal:
        compare(base(nothing), head(), Rules())
    assert refusal.value.exit_code == 3
    assert compare(base(), head(nothing), Rules()).exit_code == 1
    assert compare(base(), replace(head(), records=()), Rules()).exit_code == 1


def test_a_run_compared_with_itself_is_told() -> None:
    assert any("the same run" in note for note in compare(base(), base(), Rules()).notes)
    assert not any("the same run" in note for note in compare(base(), head(), Rules()).notes)


def test_the_witnesses_of_flops_are_judged_each_by_itself() -> None:
    """One that falls does not make up for one that rises."""

    def shifted(record: Record) -> Record:
        assert record.cost is not None
        cost = record.cost
        return replace(record, cost=replace(cost, counted=(cost.counted or 0) - 5, fvcore=(cost.fvcore or 0) + 1))

    comparison = compare(base(), changed(head(), shifted), Rules())
    assert {finding.quantity for finding in comparison.failing} == {"flops_fvcore"}
    assert verdicts(result(comparison, "flops_counted")) == {"improved"}


def test_a_narrowed_head_misses_nothing_that_it_was_not_asked_for() -> None:
    echo = {"cases": [r.id for r in head().records if r.case.operator == "dense"], "only": ["dense-*"]}
    narrowed = changed(head(), lambda r: r if r.case.operator == "dense" else None)
    suite = {**narrowed.manifest.suite.model_dump(), **echo}
    comparison = compare(base(), remade(narrowed, suite=suite), Rules())
    assert comparison.exit_code == 0
    assert {f.label for f in comparison.findings} == {"dense-k3", "dense-k7"}
    assert any("narrowed by --only dense-*" in note for note in comparison.notes)
    back = compare(remade(narrowed, suite=suite), head(), Rules())
    assert back.exit_code == 5
    assert {f.label for f in back.findings if f.verdict == "uncovered"} >= {"global-filter"}


def test_only_narrows_what_is_judged() -> None:
    comparison = compare(base(), head(replace(QUIET, sizes=(14,))), Rules(), only=["size=14", "niff-*"])
    assert comparison.exit_code == 0
    assert {finding.problem for finding in comparison.findings} == {"B1 64@14"}
    assert all(finding.label.startswith("niff-") for finding in comparison.findings)
    with pytest.raises(UsageError, match=r"--only nothing-\*"):
        compare(base(), head(), Rules(), only=["nothing-*"])


def test_pairs_cancel_a_drift_that_two_runs_would_show() -> None:
    others = tuple(planted for planted in QUIET.operators if planted.family not in ("dense", "depthwise"))
    world = replace(QUIET, rounds=10, noise=Noise(0.003, 0.003), operators=others)

    def drifting(run: Run, offset: int) -> Run:
        def slower(record: Record) -> Record:
            # ABBA: base runs at 0, 3, 4, 7 …, head at 1, 2, 5, 6 …
            place = 2 * record.round + (offset ^ (record.round % 2))
            steady = [sample * 1.05**place for sample in record.latency["steady"].samples]
            return replace(record, latency={"steady": Latency(samples=steady)})

        return changed(run, slower)

    order = Pairing(tuple(i % 2 == 0 for i in range(10)))
    sides = drifting(base(world), 0), drifting(head(world), 1)
    paired = compare(*sides, Rules(regimes=("steady",)), pairing=order)
    assert verdicts(result(paired, "latency_steady")) == {"equivalent"}
    alone = compare(*sides, Rules(regimes=("steady",)))
    assert verdicts(result(alone, "latency_steady")) == {"inconclusive"}


def shaken(run: Run, sd: float, shift: float = 1.0, seed: int = 0) -> Run:
    """The run of a machine whose speed differs from round to round for all alike, and by ``shift`` altogether."""

    def slower(record: Record) -> Record:
        factor = shift * math.exp(random.Random(f"{seed}/{record.round}").gauss(0.0, sd))
        series = record.latency.items()
        latency = {regime: replace(one, samples=[factor * s for s in one.samples]) for regime, one in series}
        return replace(record, latency=latency)

    return changed(run, slower)


def test_what_everything_shares_is_the_machines_and_no_cases() -> None:
    """A slow machine is no regression in 26 cases, nor does it hide one."""
    slow = shaken(head(), 0.0, 1.05)
    comparison = compare(base(), slow, Rules())
    assert not comparison.failing
    assert comparison.exit_code == 5
    assert "the machine or torch" in comparison.headline
    (shared,) = result(comparison, "shared_steady")
    assert shared.verdict == "shifted"
    assert shared.ratio == pytest.approx(1.05, abs=0.01)
    hidden = compare(base(), shaken(head(replace(QUIET, slower={"global-filter": 1.1})), 0.0, 0.95), Rules())
    assert {finding.label for finding in hidden.failing} == {"global-filter"}
    assert compare(base(), shaken(head(), 0.0, 0.95), Rules()).exit_code == 0


def lacking(run: Run, *, few: bool) -> Run:
    """The run in which each control was throttled in another round, or all but two in one."""
    ids = list(dict.fromkeys(record.id for record in run.records if is_control(record.traits)))

    def throttled(record: Record) -> Record:
        place = ids.index(record.id) if record.id in ids else None
        if place is None or (place < 2 or record.round != 3 if few else record.round != place % 8):
            return record
        latency = {regime: replace(one, flags=["throttled"]) for regime, one in record.latency.items()}
        return replace(record, latency=latency)

    return changed(run, throttled)


@pytest.mark.parametrize("few", [False, True])
@pytest.mark.parametrize("machine", [1.08, 0.92])
def test_the_machine_is_known_though_every_control_lacks_a_round(machine: float, few: bool) -> None:
    slow = shaken(head(replace(QUIET, slower={"global-filter": 1.1})), 0.0, machine)
    for sides in ((base(), lacking(slow, few=few)), (lacking(base(), few=few), slow)):
        comparison = compare(*sides, Rules(regimes=("steady",)))
        assert {finding.label for finding in comparison.failing} == {"global-filter"}
        (shared,) = result(comparison, "shared_steady")
        assert shared.ratio == pytest.approx(machine, abs=0.015)
        rounds = {finding.rounds for finding in result(comparison, "latency_steady", "global-filter")}
        assert rounds == {(8, 8) if not few else (8, 7) if sides[0] == base() else (7, 8)}


@pytest.mark.parametrize("told", [0, 2])
def test_rounds_that_too_few_controls_tell_of_show_no_slowdown_and_it_is_said_why(told: int) -> None:
    """However few remain, and though none does: it may be the machine's, as it is here."""

    def throttled(record: Record) -> Record:
        if not is_control(record.traits) or record.round < told:
            return record
        return replace(record, latency={r: replace(o, flags=["throttled"]) for r, o in record.latency.items()})

    world = replace(QUIET, rounds=5)
    comparison = compare(base(world), changed(shaken(head(world), 0.0, 1.2), throttled), Rules())
    assert not comparison.failing
    assert comparison.exit_code == 5
    (own,) = result(comparison, "latency_steady", "attention")[:1]
    assert own.rounds == (5 if told else 0, told)
    assert own.verdict == ("inconclusive" if told else "incomparable")
    assert own.blind
    assert f"{'HEAD' if told else 'BASE'} round {told} has fewer than three controls" in own.reason


def test_controls_that_were_never_measured_are_none() -> None:
    """As on a timer that is too coarse for them."""

    def stuck(record: Record) -> Record:
        if not is_control(record.traits):
            return record
        return replace(record, latency={r: replace(o, flags=["stuck"]) for r, o in record.latency.items()})

    sides = changed(base(), stuck), changed(head(replace(QUIET, slower={"global-filter": 1.1})), stuck)
    assert {finding.label for finding in compare(*sides, Rules()).failing} == {"global-filter"}


def test_noise_that_is_shared_hides_no_slowdown() -> None:
    slow = replace(QUIET, slower={"global-filter": 1.06})
    sides = shaken(base(), 0.04), shaken(head(slow), 0.04, seed=1)
    assert {finding.label for finding in compare(*sides, Rules()).failing} == {"global-filter"}


def test_controls_are_judged_by_each_other() -> None:
    comparison = compare(base(), head(replace(QUIET, slower={"dense": 1.1})), Rules())
    assert {finding.label for finding in comparison.failing} == {"dense-k3", "dense-k7"}


def test_of_pairs_what_slows_everything_is_heads(tmp_path: Path) -> None:
    """Both sides had the same machine."""
    world = replace(QUIET, rounds=10)
    order = Pairing(tuple(i % 2 == 0 for i in range(10)))
    sides = base(world), shaken(head(world), 0.0, 1.05)
    comparison = compare(*sides, Rules(), pairing=order)
    assert comparison.exit_code == 1
    assert {finding.quantity for finding in comparison.failing} == {"shared_cold", "shared_steady"}
    assert " of 26 case" not in comparison.headline
    for limit, code in (("+4%", 1), ("+8%", 0)):
        accept = tmp_path / "accept.toml"
        accept.write_text(f"[[accept]]\nquantities = ['shared_*']\nup_to = '{limit}'\nreason = 'x'\n")
        assert compare(*sides, Rules().reading(None, accept), pairing=order).exit_code == code


@pytest.mark.parametrize("paired", [False, True])
@pytest.mark.parametrize(
    ("machine", "slower", "limit", "verdict"),
    [
        (1.08, 1.15, "+20%", "accepted"),
        (0.92, 1.28, "+20%", "regressed"),
        (1.0, 1.15, "1 ns", "regressed"),
        (1.0, 1.15, "1 s", "accepted"),
    ],
)
def test_a_relative_limit_is_one_of_what_the_machine_has_no_part_in(
    tmp_path: Path, paired: bool, machine: float, slower: float, limit: str, verdict: str
) -> None:
    world = replace(QUIET, rounds=10, noise=Noise(0.005, 0.005))
    sides = base(world), shaken(head(replace(world, slower={"global-filter": slower})), 0.0, machine)
    accept = tmp_path / "accept.toml"
    accept.write_text(
        "[[accept]]\nquantities = ['shared_*']\nup_to = '+10%'\nreason = 'x'\n"
        f"[[accept]]\ncases = ['global-filter']\nquantities = ['latency_*']\nup_to = '{limit}'\nreason = 'x'\n"
    )
    order = Pairing(tuple(i % 2 == 0 for i in range(10))) if paired else None
    comparison = compare(*sides, Rules().reading(None, accept), pairing=order)
    assert verdicts(result(comparison, "latency_steady", "global-filter")) == {verdict}
    assert comparison.exit_code == (verdict == "regressed")


def test_a_baseline_that_slows_makes_no_other_operator_faster_across_machines() -> None:
    still = replace(QUIET, noise=Noise(0.003, 0.003))
    slow = changed(
        head(replace(still, torch="2.16.0")),
        lambda r: (
            replace(r, latency={k: replace(v, samples=[1.3 * s for s in v.samples]) for k, v in r.latency.items()})
            if r.traits.label == "depthwise-k7"
            else r
        ),
    )
    comparison = compare(base(still), slow, Rules(), across_machines=True)
    assert "improved" not in verdicts(result(comparison, "ratio_steady"))
    assert re.search(r"baseline operator depthwise-k7 changed by \+(29|30)\.", comparison.headline)
    assert comparison.exit_code == 5


def test_a_pair_lacking_a_round_is_left_out() -> None:
    def lost(record: Record) -> Record:
        return replace(record, latency={}) if record.round == 4 and record.case.operator == "dense" else record

    world = replace(QUIET, rounds=10)
    order = Pairing(tuple(i % 2 == 0 for i in range(10)))
    comparison = compare(base(world), changed(head(world), lost), Rules(), pairing=order)
    assert comparison.exit_code == 0
    assert verdicts(result(comparison, "latency_steady", "dense-k3")) == {"equivalent"}
    assert {f.rounds for f in result(comparison, "latency_steady", "dense-k3")} == {(10, 9)}


def test_notes_state_edited_suites_torn_lines_and_dirty_trees() -> None:
    other = remade(head(), suite={**head().manifest.suite.model_dump(), "source_hash": "1" * 64}, dirty=True)
    notes = " | ".join(compare(base(), replace(other, torn=17), Rules()).notes)
    assert "was edited" in notes
    assert "17 bytes" in notes
    assert "uncommitted" in notes


@settings(max_examples=40, deadline=None)
@given(
    seeds=st.tuples(st.integers(0, 50), st.integers(51, 99)),
    factor=st.floats(0.5, 2.0),
    dropped=st.integers(0, 7),
    rounds=st.integers(1, 9),
)
def test_any_pair_of_runs_gets_one_verdict_per_case_and_quantity(
    seeds: tuple[int, int], factor: float, dropped: int, rounds: int
) -> None:
    world = World(rounds=rounds, sizes=(14, 112), samples=3)
    one = make(replace(world, seed=seeds[0]), Path("base"))
    two = make(replace(world, seed=seeds[1], slower={"strip": factor}), Path("head"))
    two = changed(two, lambda r: None if r.round == dropped and r.case.operator == "dense" else r)
    if not two.records:
        return
    comparison = compare(one, two, Rules())
    keys = [(finding.case, finding.quantity) for finding in comparison.findings]
    assert len(keys) == len(set(keys))
    assert comparison.exit_code in (0, 1, 5)
    assert (comparison.exit_code == 1) == any(f.verdict in ("regressed", "missing") for f in comparison.findings)
    assert Comparison.model_validate_json(comparison.model_dump_json()).counts == comparison.counts
