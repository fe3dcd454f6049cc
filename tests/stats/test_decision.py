"""Decisions: identical code raises no alarm, planted changes are found, nothing is claimed without ground."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.stats import binom, ttest_ind, ttest_rel

from niffbench.stats.contrasts import contrast
from niffbench.stats.decision import Decision, decide, fewest_rounds, holm, judge

ABBA = (True, False) * 4


def rounds(seed: int, cases: int, n: int = 8, *, sd: float = 0.005) -> list[NDArray[np.float64]]:
    logs = sd * np.random.default_rng(seed).standard_normal((cases, n))
    return list(np.exp(logs) * np.geomspace(1e-5, 1e-1, cases)[:, None])


def verdicts(base: Sequence[NDArray[np.float64]], head: Sequence[NDArray[np.float64]]) -> list[str]:
    return [decision.verdict for decision in decide(base, head)]


def test_identical_code_is_equivalent() -> None:
    assert set(verdicts(rounds(0, 60), rounds(1, 60))) == {"equivalent"}


def test_planted_slowdown_is_found_in_the_right_case_only() -> None:
    base, head = rounds(2, 60), rounds(3, 60)
    head[17] = head[17] * 1.1
    head[40] = head[40] / 1.2
    result = decide(base, head)
    assert [i for i, decision in enumerate(result) if decision.verdict == "regressed"] == [17]
    assert [i for i, decision in enumerate(result) if decision.verdict == "improved"] == [40]
    assert result[17].ratio.estimate == pytest.approx(1.1, rel=0.01)
    assert result[17].p_adjusted is not None
    assert result[17].p_adjusted <= 0.01
    assert "at least 3 %" in result[17].reason


def test_p_values_are_those_of_the_textbook_tests() -> None:
    base, head = rounds(4, 5), rounds(5, 5)
    for one, two, decision in zip(base, head, decide(base, head), strict=True):
        expected = ttest_ind(np.log(two), np.log(one), equal_var=False).pvalue
        assert decision.p_value == pytest.approx(expected)
    for one, two, decision in zip(base, head, decide(base, head, paired=True), strict=True):
        assert decision.p_value == pytest.approx(ttest_rel(np.log(two), np.log(one)).pvalue)


def test_holm_steps_down() -> None:
    adjusted = holm(np.array([0.04, 0.01, np.nan, 0.03, 0.005]))
    assert adjusted == pytest.approx([0.06, 0.03, np.nan, 0.06, 0.02], nan_ok=True)
    rows = np.array([[0.5, 0.9], [0.001, 0.02]])
    assert holm(rows) == pytest.approx(np.array([[1.0, 1.0], [0.002, 0.02]]))


@given(st.lists(st.floats(0, 1), min_size=1, max_size=40))
def test_holm_lies_between_plain_and_bonferroni_in_the_same_order(p_values: list[float]) -> None:
    plain = np.array(p_values)
    adjusted = holm(plain)
    assert (adjusted >= plain - 1e-15).all()
    assert (adjusted <= np.minimum(plain * plain.size, 1.0) + 1e-15).all()
    order = np.argsort(plain, kind="stable")
    assert (np.diff(adjusted[order]) >= 0).all()


def test_significant_but_small_is_not_called() -> None:
    base, head = rounds(6, 3, sd=0.001), rounds(7, 3, sd=0.001)
    head[1] = head[1] * 1.015
    decision = decide(base, head)[1]
    assert decision.p_adjusted is not None
    assert decision.p_adjusted < 0.01
    assert decision.verdict == "equivalent"
    assert decide(base, head, min_effect=[0.03, 0.01, 0.03])[1].verdict == "regressed"


def test_significant_near_the_margin_is_inconclusive() -> None:
    base, head = rounds(8, 1, sd=0.004), rounds(9, 1, sd=0.004)
    head[0] = base[0] * 1.027 * np.exp(np.log(head[0]) - np.log(base[0]) - np.mean(np.log(head[0] / base[0])))
    (decision,) = decide(base, head)
    assert decision.verdict == "inconclusive"
    assert "neither at least 3 % nor shown to be less" in decision.reason


def test_noise_is_inconclusive_not_equivalent() -> None:
    result = decide(rounds(10, 20, sd=0.05), rounds(11, 20, sd=0.05))
    assert {decision.verdict for decision in result} == {"inconclusive"}
    assert "neither a change nor its absence" in result[0].reason


def test_equivalence_is_falsely_claimed_in_at_most_alpha() -> None:
    """A true slowdown of exactly the margin: 'equivalent' would hide it."""
    generator = np.random.default_rng(12)
    trials = 40_000
    groups = [0.005 * generator.standard_normal((trials, 1, 6)) for _ in range(2)]
    result = judge(
        contrast([groups[0], groups[1] + np.log(1.03)], (-1.0, 1.0), shared=False), alpha=0.01, min_effect=0.03
    )
    assert result.equivalent.sum() <= binom.ppf(0.999, trials, 0.01)
    assert result.equivalent.sum() >= 0.004 * trials, "the bound is the test's, not an empty claim"


@pytest.mark.parametrize("cases", [1, 20])
def test_false_alarms_of_a_suite_are_within_alpha(cases: int) -> None:
    """Without a minimum effect, so that Holm and Welch alone must hold the line."""
    generator = np.random.default_rng(cases)
    suites = 6000
    machine = 0.01 * generator.standard_normal((2, suites, 1, 6))
    groups = [0.01 * generator.standard_normal((suites, cases, 6)) + shift for shift in machine]
    result = judge(contrast(groups, (-1.0, 1.0), shared=False), alpha=0.01, min_effect=0.0)
    assert (result.higher | result.lower).any(axis=-1).sum() <= binom.ppf(0.999, suites, 0.01)


def test_few_rounds_are_inconclusive_whatever_they_show() -> None:
    assert [fewest_rounds(alpha) for alpha in (0.05, 0.01, 0.001)] == [4, 5, 7]
    assert [fewest_rounds(alpha, paired=True) for alpha in (0.05, 0.01)] == [6, 8]
    with pytest.raises(ValueError, match="alpha"):
        fewest_rounds(0.0)
    for n in (2, 3, 4):
        (decision,) = decide([np.full(n, 1.0) + 0.001 * np.arange(n)], [np.full(n, 2.0) + 0.001 * np.arange(n)])
        assert decision.verdict == "inconclusive"
        assert decision.reason == f"{n} rounds a side, at least 5 are needed"
        assert decision.ratio.low is not None, "what was seen is still said"
        assert decision.p_value is None
    (called,) = decide([[1.0, 1.001, 1.002]], [[2.0, 2.001, 2.002]], fewest=2)
    assert called.verdict == "regressed"


def test_one_round_and_no_round_are_inconclusive_and_leave_the_others_alone() -> None:
    base, head = rounds(13, 4), rounds(14, 4)
    head[0] = head[0] * 1.2
    alone = decide(base[:1], head[:1])[0]
    result = decide([*base[:1], [1.0], [], [0.0] * 8], [*head[:1], [2.0], [1.0] * 8, [1.0] * 8])
    assert [decision.verdict for decision in result] == ["regressed"] + ["inconclusive"] * 3
    assert result[0].p_adjusted == alone.p_adjusted, "cases without a test do not count against the others"
    assert result[1].ratio.estimate == pytest.approx(2.0)
    assert "one round" in result[1].reason
    assert "no round" in result[2].reason
    assert "zero or negative" in result[3].reason


def test_failed_rounds_are_left_out() -> None:
    base, head = rounds(15, 1, 7), rounds(16, 1, 7)
    holed = [np.append(base[0], np.nan)], [np.append(head[0], np.nan)]
    assert decide(*holed) == decide(base, head)
    assert decide(*holed, paired=True, fewest=2) == decide(base, head, paired=True, fewest=2)


def test_pairs_cancel_what_neighbours_share_and_order_what_drifts() -> None:
    """A machine that warms by 20 % from first to last, and by 2 % within a pair; head is 5 % slower."""
    generator = np.random.default_rng(17)
    time = np.arange(16) * 0.02
    base_at = [2 * i + (0 if first else 1) for i, first in enumerate(ABBA)]
    head_at = [2 * i + (1 if first else 0) for i, first in enumerate(ABBA)]
    base = np.exp(time[base_at] + 0.003 * generator.standard_normal(8))
    head = 1.05 * np.exp(time[head_at] + 0.003 * generator.standard_normal(8))
    (unpaired,) = decide([base], [head])
    (paired,) = decide([base], [head], paired=True)
    (ordered,) = decide([base], [head], paired=True, base_first=ABBA)
    assert unpaired.verdict == "inconclusive"
    assert ordered.verdict == "regressed"
    assert ordered.ratio.half_width is not None
    assert paired.ratio.half_width is not None
    assert ordered.ratio.half_width < 0.4 * paired.ratio.half_width
    assert not ordered.ratio.excludes(1.05)


def test_order_of_a_lost_pair_is_lost_with_it() -> None:
    base, head = rounds(18, 1, 9), rounds(19, 1, 9)
    base[0][4] = np.nan
    order = [True, False, False, True, True, False, False, True, True]
    others = [i for i in range(9) if i != 4]
    whole = decide(base, head, paired=True, base_first=order)
    fewer = decide([base[0][others]], [head[0][others]], paired=True, base_first=[order[i] for i in others])
    assert whole == fewer
    with pytest.raises(ValueError, match="orders"):
        decide(base, head, paired=True, base_first=order[:-1])


def test_identical_values_are_equivalent() -> None:
    same = [np.full(5, 5.0)]
    (equal,) = decide(same, same)
    assert (equal.verdict, equal.p_value) == ("equivalent", 1.0)


@pytest.mark.parametrize("alpha", [0.01, 0.05, 0.4])
@pytest.mark.parametrize("paired", [False, True])
def test_one_step_of_a_coarse_clock_is_no_change(alpha: float, paired: bool) -> None:
    """However well the rounds agree; two steps are one, since the truth lies within half a step on either side."""
    tick, rounds = 0.032e-6, 12

    def judged(*ticks: float, step: float = 0.032) -> Decision:
        base, head = np.full(rounds, 1e-6), 1e-6 + tick * np.resize(ticks, rounds)
        return decide([base], [head], paired=paired, alpha=alpha, steps=[step])[0]

    one = judged(1)
    assert one.verdict == "inconclusive"
    assert "a step of the clock, 3.2 %" in one.reason
    assert not one.ratio.excludes(1.0)
    assert judged(1, 1, 1, 0).verdict == "inconclusive"
    assert judged(2, 2, 2, 1).verdict == "regressed"
    assert judged(1, step=0.001).verdict == "regressed"
    assert judged(0).verdict == "inconclusive"
    assert judged(0, step=0.01).verdict == "equivalent"


def test_an_effect_of_exactly_the_margin_reaches_it() -> None:
    quiet = 1 + np.array([-2e-6, -1e-6, 0.0, 1e-6, 2e-6])
    assert decide([quiet], [1.03 * quiet])[0].verdict == "regressed"
    assert decide([1.03 * quiet], [quiet])[0].verdict == "improved"
    assert decide([quiet], [1.0299 * quiet])[0].verdict == "equivalent"


def test_bad_arguments_raise_and_an_empty_suite_is_empty() -> None:
    assert decide([], []) == ()
    with pytest.raises(ValueError, match="cases in base"):
        decide([[1.0]], [])
    with pytest.raises(ValueError, match="negative"):
        decide([[1.0]], [[1.0]], min_effect=-0.1)
