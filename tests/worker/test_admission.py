"""What needs at least as much of everything as a case that did not fit."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from run_worker import case_of

from niffbench.case import Case
from niffbench.operators.catalogue import catalogue
from niffbench.worker.admission import dominates, refusal

SMALL = case_of("depthwise", 7, channels=8, size=14, batch=2)


def _with(case: Case, **changes: object) -> Case:
    kernel = changes.pop("kernel", case.kernel)
    return replace(case, problem=replace(case.problem, **changes), kernel=kernel)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "changes",
    [{"batch": 3}, {"channels": 9}, {"channels_out": 9}, {"height": 15}, {"width": 15}, {"kernel": 9}, {}],
)
def test_larger_in_any_axis_dominates(changes: dict[str, int]) -> None:
    assert dominates(_with(SMALL, **changes), SMALL)


@pytest.mark.parametrize("changes", [{"batch": 1}, {"channels": 7}, {"width": 13}, {"kernel": 5}])
def test_smaller_in_one_axis_does_not(changes: dict[str, int]) -> None:
    assert not dominates(_with(SMALL, **{"height": 99, **changes}), SMALL)


@pytest.mark.parametrize(
    "other",
    [
        replace(SMALL, operator="dense"),
        replace(SMALL, execution="compiled"),
        replace(SMALL, kernel=None),
        replace(SMALL, options=(("mlp", "big"),)),
        _with(SMALL, mode="training"),
        _with(SMALL, memory_format="channels_last"),
    ],
)
def test_another_operator_setting_or_mode_says_nothing(other: Case) -> None:
    assert not dominates(other, SMALL)
    assert not dominates(SMALL, other)


def test_a_wider_dtype_dominates_a_narrower_one() -> None:
    half = _with(SMALL, dtype="float16")
    assert dominates(SMALL, half)
    assert not dominates(half, SMALL)


def test_a_case_is_refused_for_what_it_dominates_but_never_for_itself() -> None:
    large = _with(SMALL, height=100, width=100)
    skip = refusal(large, catalogue(), needed=5, available=10, unfit=[_with(SMALL, batch=50), SMALL])
    assert skip is not None
    assert skip.reason == "at least as large as depthwise-k7 at B2 8@14, which does not fit in memory"
    assert (skip.needed, skip.available) == (None, None)
    assert refusal(SMALL, catalogue(), unfit=[large]) is None
    assert refusal(SMALL, catalogue(), unfit=[SMALL]) is None
    assert refusal(SMALL, catalogue()) is None


def test_a_case_is_refused_for_a_prediction_of_more_than_there_is() -> None:
    skip = refusal(SMALL, catalogue(), needed=2**21, available=2**20)
    assert skip is not None
    assert (skip.reason, skip.needed, skip.available) == (
        "needs 2.00 MiB by prediction, 1.00 MiB available",
        2**21,
        2**20,
    )
    assert refusal(SMALL, catalogue(), needed=2**20, available=2**20) is None
    assert refusal(SMALL, catalogue(), needed=2**60) is None


cases = st.builds(
    lambda batch, channels, size, kernel: case_of("depthwise", kernel, channels=channels, size=size, batch=batch),
    st.integers(1, 3),
    st.integers(1, 3),
    st.tuples(st.integers(1, 3), st.integers(1, 3)),
    st.sampled_from([1, 3, 5]),
)


@given(cases, cases, cases)
def test_dominance_is_a_partial_order(a: Case, b: Case, c: Case) -> None:
    assert dominates(a, a)
    assert not (dominates(a, b) and dominates(b, a)) or a == b
    assert not (dominates(a, b) and dominates(b, c)) or dominates(a, c)
