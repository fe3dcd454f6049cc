"""What needs at least as much of everything as a case that did not fit."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from run_worker import case_of

from niffbench.case import Case
from niffbench.worker.dominance import dominated, dominates

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


def test_the_first_dominated_case_is_named() -> None:
    large = _with(SMALL, height=100, width=100)
    assert dominated(large, [_with(SMALL, batch=50), SMALL]) is SMALL
    assert dominated(SMALL, [large]) is None
    assert dominated(SMALL, []) is None


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
