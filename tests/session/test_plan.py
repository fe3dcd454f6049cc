"""What is planned: which cases fit, how long it takes, and what a time budget allows."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from run_session import suite_of

from niffbench.device import kind_of
from niffbench.errors import UsageError
from niffbench.fingerprint import Fingerprint
from niffbench.operators.catalogue import catalogue
from niffbench.protocol import Predicted
from niffbench.results import Ceilings, StepCost
from niffbench.session.budget import LEAST_WINDOW, REPORT_TIME, share
from niffbench.session.plan import Plan, make
from niffbench.session.survey import Survey
from niffbench.suite import WALL_SHARE, Measure, Overrides, Suite, resolve

CEILINGS = Ceilings(copy_bandwidth=1e10, matmul={"float32": 1e11}, fft={"float32": 1e10})


def planned(
    suite: Suite, needs: dict[tuple[int, int], int | None], available: int | None, scale: float = 1.0
) -> Plan:
    """``needs``: predicted peak by size and kernel; None where there is no prediction."""
    predictions = {
        case.id: Predicted(case=case.id, resident=0, peak=needs.get((case.problem.height, case.kernel or 0)))
        for case in suite.cases
    }
    ceilings = CEILINGS.model_copy(update={"copy_bandwidth": 1e10 / scale, "matmul": {"float32": 1e11 / scale}})
    survey = Survey(Fingerprint(must={}, should={}), available, predictions, ceilings)
    return make(suite, survey, catalogue(), resolve(suite, Overrides()))


def skipped(plan: Plan) -> dict[tuple[int, int | None], str]:
    return {
        (forecast.case.problem.height, forecast.case.kernel): forecast.skip.reason
        for forecast in plan.forecasts
        if forecast.skip
    }


SUITE = suite_of(sizes=(14, 28, 56), kernels=(3, 7))


def test_what_needs_more_than_there_is_is_skipped_with_both_figures() -> None:
    plan = planned(SUITE, {(56, 7): 2048, (28, 7): 1024}, 1024)
    assert skipped(plan) == {(56, 7): "needs 2.00 KiB by prediction, 1.00 KiB available"}
    (output,) = [forecast.skip for forecast in plan.forecasts if forecast.skip]
    assert (output.needed, output.available) == (2048, 1024)


def test_what_has_no_prediction_and_dominates_one_that_does_not_fit_is_skipped() -> None:
    reasons = skipped(planned(SUITE, {(28, 3): 2048}, 1024))
    assert set(reasons) == {(28, 3), (28, 7), (56, 3), (56, 7)}
    assert reasons[56, 7] == "at least as large as depthwise-k3 at B1 4@28, which does not fit in memory"


def test_a_prediction_that_fits_is_believed_against_dominance() -> None:
    assert set(skipped(planned(SUITE, {(28, 3): 2048, (56, 3): 10, (28, 7): 10, (56, 7): 10}, 1024))) == {(28, 3)}


def test_where_the_memory_is_not_known_nothing_is_skipped() -> None:
    assert skipped(planned(SUITE, {(28, 3): 10**15}, None)) == {}


def test_bytes_are_counted_or_the_time_is_estimated() -> None:
    """Without counted bytes a case moves what any implementation would; a form that moves more takes longer."""
    case = SUITE.cases[0]
    cost = catalogue()[case.operator].cost(case)
    steps = [StepCost(name="convolution", direction="forward", flops=cost.flops(), bytes=10**9)]
    forecasts = []
    for counted in (None, steps):
        predictions = {case.id: Predicted(case=case.id, resident=0, peak=1, steps=counted)}
        survey = Survey(Fingerprint(must={}, should={}), None, predictions, CEILINGS)
        forecasts.append(make(SUITE, survey, catalogue(), resolve(SUITE, Overrides())).forecasts[0])
    estimated, sure = forecasts
    assert (estimated.is_estimated, estimated.bytes) == (True, cost.bytes_floor)
    assert (sure.is_estimated, sure.bytes) == (False, 10**9)
    assert sure.call > 0.1 > estimated.call > 0


def test_time_grows_with_the_work_and_without_what_is_skipped() -> None:
    fast, slow = planned(SUITE, {}, None), planned(SUITE, {}, None, scale=1e6)
    assert slow.seconds > 2 * fast.seconds
    assert fast.seconds > SUITE.rounds * len(SUITE.cases) * 2 * SUITE.measure.min_time
    few = planned(SUITE, {(14, 3): 2048}, 1024)
    assert few.seconds < fast.seconds
    assert all(forecast.cost.flops() > 0 for forecast in fast.forecasts)


@given(
    seconds=st.floats(1, 1e5),
    rounds=st.integers(1, 8),
    cases=st.integers(1, 1000),
    overhead=st.floats(0, 1000),
    max_time=st.floats(0.02, 10),
)
def test_a_share_keeps_to_the_budget_and_to_what_was_asked(
    seconds: float, rounds: int, cases: int, overhead: float, max_time: float
) -> None:
    measure = Measure(max_time=max_time, min_time=min(0.1, max_time), min_samples=10)
    got = share(seconds, rounds=rounds, cases=cases, overhead=overhead, measure=measure)
    assert 1 <= got.rounds <= rounds
    assert got.measure.min_time <= got.measure.max_time <= max(max_time, LEAST_WINDOW)
    assert got.measure.min_samples <= 10
    regimes = 2 + WALL_SHARE  # cold, steady and wall
    needed = REPORT_TIME + got.rounds * (overhead + cases * regimes * got.measure.max_time)
    # One round is always made, however short the time.
    assert needed <= seconds * (1 + 1e-9) or (got.rounds == 1 and got.measure.max_time == LEAST_WINDOW)
    if got.rounds < rounds:
        longer = ((seconds - REPORT_TIME) / (got.rounds + 1) - overhead) / cases / regimes
        assert longer < LEAST_WINDOW  # another round would have been too short
    assert got.is_less(rounds, measure) == (got.rounds < rounds or got.measure != measure)


def test_ample_time_changes_nothing() -> None:
    measure = Measure()
    got = share(1e6, rounds=3, cases=10, overhead=1.0, measure=measure)
    assert not got.is_less(3, measure)


@pytest.mark.parametrize(
    ("overrides", "least", "most"),
    [
        (Overrides(), 0.05, 0.2),
        (Overrides(max_time=0.02), 0.02, 0.02),
        (Overrides(min_time=5.0), 5.0, 5.0),
        (Overrides(min_time=0.2, max_time=0.3), 0.2, 0.3),
    ],
)
def test_one_end_of_the_sampling_time_moves_the_other(overrides: Overrides, least: float, most: float) -> None:
    measure = resolve(SUITE, overrides).measure
    assert (measure.min_time, measure.max_time) == (least, most)


def test_ends_the_wrong_way_round() -> None:
    with pytest.raises(UsageError, match=r"--min-time 2 s is longer than --max-time 1 s"):
        resolve(SUITE, Overrides(min_time=2.0, max_time=1.0))


@pytest.mark.parametrize(
    ("device", "kind"),
    [
        ("cpu", "cpu"),
        ("cuda", "cuda"),
        ("cuda:1", "cuda"),
        ("auto", None),
        ("replay:x", "replay"),
        ("replay of cpu", None),
    ],
)
def test_kinds_of_devices(device: str, kind: str | None) -> None:
    assert kind_of(device) == kind
