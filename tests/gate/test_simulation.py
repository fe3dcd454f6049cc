"""Simulation: our rule keeps its error rates; the rules of other tools raise the alarms known of them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from scipy.stats import binom

from niffbench.gate.simulation import RULES, RUN_SDS, SCENARIOS, Row, _within, ours, ours_paired, simulate, table
from niffbench.stats.power import detection

ALPHA = 0.01
STEADY = [scenario for scenario in SCENARIOS if scenario.machine_drift == 0]
"""Those in which nothing that is compared differs, but what controls share."""
NAMED = {scenario.name: scenario for scenario in SCENARIOS}
THEIRS = {rule.name: rule for rule in RULES}


@pytest.mark.parametrize("scenario", STEADY, ids=lambda scenario: scenario.name)
@pytest.mark.parametrize("rule", [ours(), ours_paired()], ids=lambda rule: rule.name)
def test_our_false_alarms_are_within_alpha(rule, scenario) -> None:  # type: ignore[no-untyped-def]
    suites = 400
    rows = [simulate(rule, scenario, sd, suites=suites, effects=()) for sd in (0.005, 0.05)]
    alarms = [round(row.suite_alarms * suites) for row in rows]
    assert max(alarms) <= binom.ppf(0.9999, suites, ALPHA)
    assert sum(alarms) <= binom.ppf(0.999, suites * len(rows), ALPHA)


@pytest.mark.parametrize("name", ["log-normal", "autocorrelated"])
@pytest.mark.parametrize("rule", [ours(min_effect=0.0), ours_paired(min_effect=0.0)], ids=lambda rule: rule.name)
def test_the_tests_alone_hold_alpha_without_a_minimum_effect(rule, name) -> None:  # type: ignore[no-untyped-def]
    suites = 400
    alarms = sum(
        round(simulate(rule, NAMED[name], sd, suites=suites, effects=()).suite_alarms * suites)
        for sd in (0.0, 0.02)
    )
    assert 0 < alarms <= binom.ppf(0.999, suites * 2, ALPHA)


@pytest.mark.parametrize("name", ["log-normal", "autocorrelated", "drifting"])
def test_our_power_is_what_is_promised(name: str) -> None:
    rows = {sd: simulate(ours(controls=0), NAMED[name], sd, suites=200) for sd in RUN_SDS[:5]}
    for sd in (0.0, 0.0025, 0.005):
        three, five, ten, _ = rows[sd].power
        assert 0.35 <= three <= 0.65, "an effect of the minimum is a toss-up"
        assert five >= 0.97
        assert ten >= 0.99
    assert rows[0.01].power[1] >= 0.9
    assert rows[0.02].power[2] >= 0.95


def test_power_is_what_the_formula_predicts() -> None:
    within = 0.005 * np.sqrt(np.pi / 2 / 15)  # of the median of 15 samples, nearly
    for sd in (0.01, 0.02):
        row = simulate(ours(controls=0), NAMED["log-normal"], sd, suites=600, effects=(0.04, 0.06))
        for effect, result in zip(row.effects, row.power, strict=True):
            assert result == pytest.approx(detection(effect, float(np.hypot(sd, within)), 8, cases=60), abs=0.08)


@pytest.mark.parametrize(
    ("name", "rates"),
    [
        ("google/benchmark", (0.04, 0.23, 0.48, 0.71)),
        ("asv", (0.0, 0.0, 0.0, 0.0)),
        ("pyperf", (0.05, 0.10, 0.17, 0.23)),
        ("criterion-like", (0.0, 0.0, 0.10, 0.42)),
    ],
)
def test_other_rules_raise_the_alarms_known_of_them(name: str, rates: tuple[float, ...]) -> None:
    result = [
        simulate(THEIRS[name], NAMED["log-normal"], sd, suites=60, effects=()).case_alarms for sd in RUN_SDS[:4]
    ]
    assert result == pytest.approx(rates, abs=0.025)


def test_three_rounds_would_be_fooled_by_modes_and_five_are_not() -> None:
    """Why fewest_rounds is five at 0.01: two even modes fool three rounds a side in every seventh suite."""
    three, five = (
        simulate(
            ours(rounds=n, min_effect=0.0, controls=0), NAMED["bimodal"], 0.0, suites=400, effects=()
        ).suite_alarms
        for n in (3, 5)
    )
    assert three > 0.08
    assert five <= binom.ppf(0.999, 400, ALPHA) / 400


def test_a_warming_machine_fools_two_runs_and_not_abba_pairs() -> None:
    warming = NAMED["warming machine"]
    rules = ours(controls=0), ours_paired(controls=0), ours()
    apart, paired, controlled = (simulate(rule, warming, 0.005, suites=100) for rule in rules)
    assert apart.suite_alarms > 0.9
    assert controlled.suite_alarms <= 0.03
    assert paired.suite_alarms <= 0.03
    assert paired.power[1] > 0.9


@pytest.mark.parametrize("scenario", STEADY, ids=lambda scenario: scenario.name)
def test_samples_are_as_their_scenario_says(scenario) -> None:  # type: ignore[no-untyped-def]
    logs = _within(np.random.default_rng(0), scenario, (20, 10, 10, 50)).astype(np.float64)
    spread = {"log-normal": 0.005, "autocorrelated": 0.005, "drifting": np.hypot(0.005, 0.02 / 3)}
    if scenario.name in spread:
        assert logs.std() == pytest.approx(spread[scenario.name], rel=0.05)
    lag_one = np.corrcoef(logs[..., :-1].ravel(), logs[..., 1:].ravel())[0, 1]
    assert (lag_one > 0.5) == (scenario.name in ("autocorrelated", "drifting"))
    assert (np.median(logs, axis=-1).max() > 0.03) == (scenario.name == "bimodal")
    assert np.abs(logs[..., 0]).max() < 0.08


def test_controls_take_out_what_all_share_and_give_power_back() -> None:
    """Half of the variance is shared by a round, and everything of HEAD is 5 % slower."""
    with_, without = (
        simulate(rule, NAMED["shifted machine"], 0.02, suites=200) for rule in (ours(), ours(controls=0))
    )
    assert without.suite_alarms > 0.9
    assert with_.suite_alarms <= 0.02
    unshifted = [simulate(rule, NAMED["log-normal"], 0.02, suites=400) for rule in (ours(), ours(controls=0))]
    assert unshifted[0].power[1] >= 0.8
    assert unshifted[1].power[1] <= 0.5


def test_abba_order_alternates_who_meets_the_drift_first() -> None:
    seen = []

    def look(base, head, base_first):  # type: ignore[no-untyped-def]
        seen.append((head - base).mean(axis=(0, 1)) * np.where(base_first, 1, -1))
        return base[..., 0] > np.inf, base[..., 0] > np.inf

    simulate(replace(ours_paired(), judge=look), NAMED["warming machine"], 0.0, suites=50, effects=())
    assert seen[0] == pytest.approx(np.full(8, 0.08 / 16), abs=3e-4)


def test_rows_are_reproducible_and_depend_on_the_seed() -> None:
    scenario = NAMED["bimodal"]
    first, again, other = (simulate(THEIRS["pyperf"], scenario, 0.01, suites=20, seed=seed) for seed in (0, 0, 1))
    assert first == again
    assert first != other


def test_table_has_a_row_for_everything() -> None:
    rows = table(suites=1, effects=(0.1,))
    assert all(isinstance(row, Row) for row in rows)
    assert {(row.rule, row.scenario, row.run_sd) for row in rows} == {
        (rule.name, scenario.name, sd) for rule in RULES for scenario in SCENARIOS for sd in RUN_SDS
    }
    assert len(rows) == len(RULES) * len(SCENARIOS) * len(RUN_SDS)
