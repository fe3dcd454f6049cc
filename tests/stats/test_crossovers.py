"""Crossovers: planted ones are bracketed by measured values at the stated confidence; none is made up."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from scipy.stats import binom

from niffbench.stats.crossovers import LOOKS, Cliff, Crossover, Point, compare, lattice, wanted
from niffbench.stats.intervals import ONE_ROUND
from niffbench.stats.refining import CURVES, Row, simulate

KERNELS = [3, 5, 7, 11, 15, 21, 31]


def points(costs: dict[int, Any], rival: Any = (1.0, 1.0, 1.0)) -> list[Point]:
    """The form's costs by round at each value, the rival's the same at all."""
    return [Point(at, dict(enumerate(some)), dict(enumerate(rival))) for at, some in costs.items()]


def noisy(ratios: dict[int, float], rounds: int, *, sd: float = 0.01, seed: int = 0) -> list[Point]:
    generator = np.random.default_rng(seed)
    costs = {at: ratio * np.exp(sd * generator.standard_normal(rounds)) for at, ratio in ratios.items()}
    return points(costs, np.ones(rounds))


@pytest.fixture(scope="module")
def rows() -> dict[str, Row]:
    return {f"{curve.name} {curve.grid}": simulate(curve, curves=60) for curve in CURVES}


def test_what_is_said_is_right_as_often_as_is_stated(rows: dict[str, Row]) -> None:
    for row in rows.values():
        assert row.wrong * row.curves <= binom.ppf(0.999, row.curves, 0.05), row
    crossing = [row for row in rows.values() if "no crossover" not in row.name]
    assert sum(row.wrong * row.curves for row in crossing) <= 1  # 0.1 % of a crossover's brackets are wrong


def test_a_cliff_is_bracketed_by_neighbours_and_every_crossover_is_found(rows: dict[str, Row]) -> None:
    for row in rows.values():
        assert row.open <= 0.2, row
    cliff = rows["cliff (7, 31)"]
    assert cliff.adjacent >= 0.9
    assert cliff.values <= 4
    for name, adjacent, values in (("smooth, as k² (7, 31)", 0.4, 5), ("smooth, as k² (3, 111)", 0.25, 8)):
        assert rows[name].adjacent >= adjacent, rows[name]
        assert rows[name].values <= values, rows[name]


@pytest.mark.parametrize("rounds", [2, 3, 8])
def test_operators_that_do_not_cross_are_not_said_to(rounds: int) -> None:
    """Identical ones, and the form better by a hair: a made-up crossover in at most 5 %."""
    for gap in (0.0, 0.02):
        ratios = dict.fromkeys(KERNELS, np.exp(-gap))
        made_up = sum(
            bool(compare(noisy(ratios, rounds, sd=0.03, seed=seed), lattice("kernel", KERNELS)).crossovers)
            for seed in range(100)
        )
        assert made_up <= 0.05 * 100


@pytest.mark.parametrize(("step", "outcome"), [(0.0, "crossover"), (0.05, "undecided"), (0.01, "crossover")])
def test_what_differs_by_one_step_of_the_clock_is_a_tie(step: float, outcome: str) -> None:
    some = [replace(point, step=step) for point in points({3: [1.0 / 1.05] * 5, 5: [1.05] * 5}, [1.0] * 5)]
    assert compare(some, [3, 5]).outcome == outcome
    asked = wanted([replace(point, form={k: v for k, v in point.form.items() if k < 3}) for point in some], [3, 5])
    assert asked == (dict.fromkeys((3, 5), LOOKS[1]) if outcome == "undecided" else {})


@pytest.mark.parametrize("rounds", [3, 9])
def test_equal_costs_at_many_values_are_not_taken_for_a_crossover(rounds: int) -> None:
    ratios = {at: np.exp(-1.0 * (at <= 5)) for at in range(1, 21)}
    made_up = sum(
        bool(compare(noisy(ratios, rounds, sd=0.03, seed=seed), sorted(ratios)).crossovers) for seed in range(100)
    )
    assert made_up <= 0.05 * 100


def test_both_bounds_of_a_crossover_were_measured_and_their_names_say_who_is_better() -> None:
    result = compare(noisy({7: 2.0, 13: 1.5, 15: 0.7, 31: 0.4}, 5), lattice("kernel", [7, 31]))
    assert result.outcome == "crossover"
    assert result.crossovers == (Crossover(13, 15, "form", True, (), 0.95),)
    assert result.crossovers[0].bounds == {"rival_better_to": 13, "form_better_from": 15}
    assert [order.better for order in result.orders] == ["rival", "rival", "form", "form"]
    back = compare(noisy({7: 0.4, 31: 2.0}, 5), lattice("kernel", [7, 31]))
    assert [crossover.bounds for crossover in back.crossovers] == [{"form_better_to": 7, "rival_better_from": 31}]
    assert not back.crossovers[0].adjacent


def test_a_tie_between_neighbours_is_named_and_the_bracket_is_not_adjacent() -> None:
    result = compare(noisy({11: 2.0, 13: 1.0, 15: 0.5}, 9, sd=0.03, seed=1), [11, 13, 15])
    assert result.crossovers == (Crossover(11, 15, "form", False, (13,), 0.95),)


def test_several_crossovers_are_all_given() -> None:
    result = compare(noisy({1: 2, 2: 1.7, 4: 0.5, 8: 0.4, 16: 3, 32: 4}, 5), [1, 2, 4, 8, 16, 32])
    assert result.outcome == "several"
    assert [(one.below, one.above, one.better_above) for one in result.crossovers] == [
        (2, 4, "form"),
        (8, 16, "rival"),
    ]


def test_who_is_better_throughout_is_said_and_needs_every_value() -> None:
    assert compare(noisy(dict.fromkeys(KERNELS, 0.5), 3), []).better == "form"
    assert compare(noisy(dict.fromkeys(KERNELS, 2.0), 3), []).better == "rival"
    one_tie = compare(noisy({3: 0.5, 5: 1.0, 7: 0.5}, 3, sd=0.05), [])
    assert (one_tie.outcome, one_tie.better, one_tie.reason) == (
        "undecided", None, "at some values the two cannot be told apart",
    )  # fmt: skip
    same = compare(points({3: (1.0, 1.1, 0.9), 5: (0.9, 1.0, 1.1)}), [])
    assert same.reason == "throughout the two cannot be told apart"


def test_a_jump_beyond_flops_is_a_cliff_of_the_side_that_jumps() -> None:
    form, below, above = (
        {0: 390.0, 1: 391.0, 2: 389.0},
        {0: 364.0, 1: 365.0, 2: 363.0},
        dict.fromkeys(range(3), 3e4),
    )
    flops = (10.0, 169.0), (10.0, 225.0)
    result = compare([Point(13, form, below, flops[0]), Point(15, form, above, flops[1])], [13, 15])
    cliff = result.crossovers[0].cliff
    assert cliff == Cliff("rival", pytest.approx(3e4 / 364), pytest.approx(225 / 169))
    smooth = [Point(k, {0: 1.0}, {0: k * k}, (1.0, k * k)) for k in (0.5, 31.0)]
    assert compare(smooth, [], exact=True).crossovers[0].cliff is None
    flatter = [Point(k, {0: 2.0}, {0: k**0.5}, (1.0, k * k)) for k in (1.0, 9.0)]
    assert compare(flatter, [], exact=True).crossovers[0].cliff is None


def test_exact_costs_need_one_round_and_no_test() -> None:
    parabola = [Point(k, {0: 128.0}, {0: 2.0 * k * k}) for k in KERNELS]
    assert [one.bounds for one in compare(parabola, KERNELS, exact=True).crossovers] == [
        {"rival_better_to": 7, "form_better_from": 11}
    ]
    through = compare([Point(k, {0: 25.0}, {0: k * k}) for k in (3, 5, 7)], [3, 5, 7], exact=True)
    assert [(one.bounds, one.ties) for one in through.crossovers] == [
        ({"rival_better_to": 3, "form_better_from": 7}, (5,))
    ]
    equal = compare([Point(k, {0: k}, {0: k}) for k in (3, 5, 7)], [3, 5, 7], exact=True)
    assert equal.outcome == "undecided"
    chosen_anew = [Point(3, {0: 1.0, 1: 9.0}, {0: 5.0, 1: 5.0}), Point(5, {0: 9.0, 1: 9.0}, {0: 5.0, 1: 5.0})]
    assert [order.better for order in compare(chosen_anew, [3, 5], exact=True).orders] == [None, "rival"]


def test_a_bracket_of_exact_costs_is_measured_whole_and_no_crossover_in_it_is_missed() -> None:
    truth = {27: 1.2, 31: 1.1, 33: 0.9, 35: 1.05, 37: 0.95, 41: 0.8}  # what a library's memory does at 64@56
    seen = points({at: [truth[at]] for at in (27, 31, 41)}, [1.0])
    admissible = [float(at) for at in truth]
    more = wanted(seen, admissible, exact=True)
    assert more == {33: 1, 35: 1, 37: 1}
    comparison = compare(points({at: [cost] for at, cost in truth.items()}, [1.0]), admissible, exact=True)
    assert [crossover.bounds for crossover in comparison.crossovers] == [
        {"rival_better_to": 31, "form_better_from": 33},
        {"form_better_to": 33, "rival_better_from": 35},
        {"rival_better_to": 35, "form_better_from": 37},
    ]
    wide = wanted(points({3: [1.2], 111: [0.8]}, [1.0]), lattice("kernel", (3, 111)), exact=True)
    assert wide == {57: 1}, "a wide one is bisected first"


def test_a_value_with_one_round_takes_nothing_from_those_with_more() -> None:
    clear = noisy({3: 0.5, 7: 0.5}, 3)
    assert compare([*clear, *points({5: [1.1]}, [1.0])], [3, 5, 7]).better == "form"
    crossing = noisy({3: 2.0, 7: 0.5}, 5)
    [crossover] = compare([*crossing, *points({5: [1.1]}, [1.0])], [3, 5, 7]).crossovers
    assert (crossover.ties, crossover.adjacent) == ((5,), False)


def test_rounds_are_paired_where_both_sides_have_them() -> None:
    """The machine is 1.5 times slower in every other round: pairs see through it, unpaired rounds do not."""
    machine = [1.0, 1.5] * 4
    form = {place: 1.02 * slow * (1 + 0.001 * place) for place, slow in enumerate(machine)}
    rival = dict(enumerate(machine))
    shifted = {place + 100: cost for place, cost in rival.items()}
    at_both = [Point(3, dict.fromkeys(rival, 0.5), rival), Point(5, form, rival)]
    assert [order.better for order in compare(at_both, [3, 5]).orders] == ["form", "rival"]
    apart = [at_both[0], Point(5, form, shifted)]
    assert [order.better for order in compare(apart, [3, 5]).orders] == ["form", None]


def test_one_round_decides_nothing_and_what_is_missing_is_left_out() -> None:
    one = compare([Point(k, {0: 64.0}, {0: k * k}) for k in KERNELS], KERNELS)
    assert (one.outcome, one.crossovers, one.reason) == ("undecided", (), ONE_ROUND)
    holed = points({3: (2.0, 2.1, np.nan, 2.05), 5: (0.5, 0.51, 0.5, 0.49)}, (1.0, 1.0, 1.0, 1.0))
    assert [order.rounds for order in compare(holed, [3, 5]).orders] == [3, 4]
    assert "1 value measured for both" in (
        compare([Point(3, {0: 1.0}, {}), Point(5, {0: 1.0}, {0: 1.0})], []).reason or ""
    )
    assert "zero or negative" in (compare(points({3: (0.0, 0.0), 5: (0.0, 0.0)}), []).reason or "")
    with pytest.raises(ValueError, match="different"):
        compare([Point(3, {0: 1.0}, {0: 1.0})] * 2, [3])


def test_the_lattice_is_odd_kernels_or_multiples_of_what_divides_all() -> None:
    assert lattice("kernel", [7, 13]) == (7, 9, 11, 13)
    assert lattice("size", [56, 14, 28]) == (14, 28, 42, 56)
    assert lattice("batch", [1, 4]) == (1, 2, 3, 4)
    assert lattice("size", [10.5, 20.0]) == (10.5, 20.0)
    assert len(lattice("kernel", [3, 2**24 - 1])) < 5000, "a run may come from anyone"


def test_probes_go_to_the_middle_of_a_bracket_and_end_at_neighbours() -> None:
    admissible = lattice("kernel", [7, 31])
    costs = {7: 2.0, 31: 0.4}
    probed = []
    while more := wanted(noisy(costs, 5), admissible):
        ((at, rounds),) = more.items()
        assert rounds == LOOKS[0]
        costs[int(at)] = 2.0 if at <= 13 else 0.4
        probed.append(at)
    assert len(probed) == 4
    assert compare(noisy(costs, 5), admissible).crossovers[0].bounds == {
        "rival_better_to": 13,
        "form_better_from": 15,
    }


def test_what_is_undecided_is_looked_at_again_and_then_both_sides_of_the_tie_are_bisected() -> None:
    admissible = lattice("kernel", [7, 31])
    for rounds, look in ((3, 5), (5, 9)):
        undecided = noisy({7: 3.0, 31: 0.3}, rounds) + noisy({19: 1.0}, rounds, sd=0.03)
        assert wanted(undecided, admissible) == {19: look}
    tie = noisy({7: 3.0, 31: 0.3}, 9) + noisy({19: 1.0}, 9, sd=0.03)
    assert wanted(tie, admissible) == {13: 3, 25: 3}
    assert wanted(noisy({7: 3.0, 31: 2.0}, 3), admissible) == {}
    assert wanted(noisy({7: 3.0, 31: 0.3}, 1), admissible) == {7: 3, 31: 3}
    slow_once = [Point(7, {0: 3.0, 1: 3.0, 2: 3.0}, {0: 1.0, 1: 1.0, 2: 300.0}), *noisy({31: 0.3}, 3)]
    assert wanted(slow_once, admissible) == {7: 5}


def test_exact_quantities_are_probed_once_each_and_unmeasurable_values_are_gone_around() -> None:
    steps = [Point(k, {0: 3.0}, {0: 1.5 if k < 15 else 4.5}) for k in (7, 31)]
    assert wanted(steps, lattice("kernel", [7, 31]), exact=True) == {19: 1}
    assert wanted(steps, [7, 9, 31], exact=True) == {9: 1}
    assert wanted(steps, [7, 31], exact=True) == {}


@example(seed=124, rounds=2, at=14.75)
@given(seed=st.integers(0, 10_000), rounds=st.integers(1, 9), at=st.floats(2.0, 40.0))
def test_same_input_same_answer_and_sides_may_be_swapped(seed: int, rounds: int, at: float) -> None:
    generator = np.random.default_rng(seed)
    some = points(
        {k: (k / at) * np.exp(0.1 * generator.standard_normal(rounds)) for k in KERNELS},
        np.exp(0.1 * generator.standard_normal(rounds)),
    )
    admissible = lattice("kernel", KERNELS)
    result = compare(some, admissible)
    assert compare(some[::-1], admissible) == result
    swapped = compare([Point(point.at, point.rival, point.form) for point in some], admissible)
    other = {"form": "rival", "rival": "form", None: None}
    assert (swapped.outcome, swapped.better) == (result.outcome, other[result.better])
    assert [replace(one, better_above=other[one.better_above]) for one in swapped.crossovers] == list(
        result.crossovers
    )
    assert wanted([Point(point.at, point.rival, point.form) for point in some], admissible) == wanted(
        some, admissible
    )
    measured = {point.at for point in some}
    for one in result.crossovers:
        assert {one.below, one.above, *one.ties} <= measured
