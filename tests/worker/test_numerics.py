"""Errors against float64, planted and found."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from niffbench.case import DTYPE_BYTES, DType, Problem
from niffbench.results import GradientError, Numerics
from niffbench.worker.numerics import compare, compare_gradients, copies, counts, images
from niffbench.worker.tolerance import TOLERANCE, is_wrong, tolerance, tolerance_of_gradients, verdict

REFERENCE = torch.randn(2, 3, 5, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


@given(st.floats(1e-9, 1e3))
def test_a_planted_scale_is_the_relative_error(scale: float) -> None:
    result = compare(REFERENCE * (1 + scale), REFERENCE, 1e-5)
    assert result.l2 == pytest.approx(scale, rel=1e-6)
    assert result.max == pytest.approx(scale, rel=1e-6)
    assert is_wrong(result) == (result.l2 > 1e-5)


def test_one_wrong_pixel_shows_in_the_maximum() -> None:
    output = REFERENCE.clone()
    output[1, 2, 3, 4] += 0.5 * float(REFERENCE.abs().max())
    result = compare(output, REFERENCE, 1e-5)
    assert result.max == pytest.approx(0.5)
    assert is_wrong(Numerics(l2=0.0, max=result.max, tolerance=1e-5))


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_an_output_that_is_not_finite_is_wrong(value: float) -> None:
    output = REFERENCE.clone()
    output[0, 0, 0, 0] = value
    result = compare(output, REFERENCE, 1e-5)
    assert math.isinf(result.l2)
    assert is_wrong(result)
    assert "not timed" in verdict(result)


def test_another_shape_is_wrong_even_if_it_broadcasts() -> None:
    assert math.isinf(compare(REFERENCE[:, :1], REFERENCE, 1.0).l2)


def test_a_reference_of_zeros_makes_errors_absolute() -> None:
    zeros = torch.zeros_like(REFERENCE)
    assert compare(zeros, zeros, 1e-5) == Numerics(l2=0.0, max=0.0, tolerance=1e-5)
    assert compare(zeros + 0.25, zeros, 1e-5).max == 0.25


@pytest.mark.parametrize("batch", [1, 2, 3, 9])
def test_every_image_of_a_batch_is_compared_with_a_reference_of_two(batch: int) -> None:
    x = torch.rand(batch, 2, 3, 3)
    compared = copies(x)
    assert compared.shape == x.shape
    assert torch.equal(images(compared), images(x))
    assert not is_wrong(compare(compared, images(x).double(), 1e-5))
    for place in range(batch):
        broken = compared.clone()
        broken[place] += 1
        assert is_wrong(compare(broken, images(x).double(), 1e-5)), place
    assert counts(batch).sum() == batch


def test_complex_numbers_are_compared_whole() -> None:
    truth = torch.complex(REFERENCE, REFERENCE)
    assert compare(truth.to(torch.complex64), truth, 1e-5).l2 < 1e-6
    assert compare(truth.conj().to(torch.complex64), truth, 1e-5).l2 > 1
    assert compare(truth.real, truth, 1e-5).l2 == math.inf


TRUTH = {"input": REFERENCE, "weight": REFERENCE[0] * 3, "bias": torch.full((4,), 1e-12, dtype=torch.float64)}


def test_the_worst_gradient_is_named() -> None:
    result = compare_gradients({**TRUTH, "weight": TRUTH["weight"] * 1.01}, TRUTH, 1e-4)
    assert result.name == "weight"
    assert (result.l2, result.max) == (pytest.approx(0.01), pytest.approx(0.01))
    assert result.tolerance == 1e-4


@pytest.mark.parametrize("name", TRUTH)
@pytest.mark.parametrize("value", [None, torch.full((), math.nan, dtype=torch.float64)])
def test_a_gradient_that_is_missing_or_no_number_is_wrong(name: str, value: Tensor | None) -> None:
    broken = None if value is None else TRUTH[name] * value
    result = compare_gradients({**TRUTH, name: broken}, TRUTH, 1e3)
    assert (result.name, result.l2) == (name, math.inf)
    assert is_wrong(Numerics(l2=0.0, max=0.0, tolerance=1.0, gradient=result))


def test_where_units_switch_the_largest_error_does_not_count() -> None:
    switched = TRUTH["weight"].clone().flatten()
    switched[switched.abs().argmax()] = 0
    gradients = {**TRUTH, "weight": switched.view_as(TRUTH["weight"])}
    right = Numerics(l2=0, max=0, tolerance=1)
    assert is_wrong(replace(right, gradient=compare_gradients(gradients, TRUTH, 0.5)))
    result = compare_gradients(gradients, TRUTH, 0.5, switches=True)
    assert (result.name, result.max) == ("weight", None)
    assert not is_wrong(replace(right, gradient=result))
    assert "largest" not in verdict(replace(right, gradient=replace(result, l2=0.6)))


def test_no_gradient_is_right_where_there_is_none() -> None:
    zero = {"weight": REFERENCE, "unused": torch.zeros(3, dtype=torch.float64)}
    assert compare_gradients({"weight": REFERENCE}, zero, 1e-5).l2 == 0.0


def test_a_parameters_gradient_that_is_0_but_for_rounding_is_measured_by_the_others() -> None:
    typical = float(torch.cat([TRUTH["weight"].flatten(), TRUTH["bias"]]).square().mean().sqrt())
    result = compare_gradients({**TRUTH, "bias": -TRUTH["bias"]}, TRUTH, 1e-5)
    assert (result.name, result.l2) == ("bias", pytest.approx(2e-12 / typical))
    shifted = compare_gradients({**TRUTH, "bias": TRUTH["bias"] + typical}, TRUTH, 1e-5)
    assert (shifted.name, shifted.l2) == ("bias", pytest.approx(1.0))


def test_a_verdict_names_what_is_wrong() -> None:
    gradient = GradientError(name="weight", l2=0.5, max=0.25, tolerance=1e-4)
    right = Numerics(l2=1e-7, max=1e-7, tolerance=1e-5, gradient=replace(gradient, l2=1e-5, max=1e-5))
    assert not is_wrong(right)
    assert verdict(replace(right, gradient=gradient)) == (
        "gradient of weight: error against float64 beyond the tolerance of 1e-04: relative L2 5.00e-01, "
        "largest 2.50e-01; not timed"
    )
    assert verdict(replace(right, gradient=gradient, l2=1.0)).startswith("error against float64")


def test_gradients_may_be_off_by_more_the_longer_their_sums_are() -> None:
    def bound(size: int, dtype: DType, switches: bool = False) -> float:
        problem = Problem(2, 8, 8, size, size, dtype)
        return tolerance_of_gradients(tolerance(dtype), problem, images=2, switches=switches)

    assert 2e-5 < bound(14, "float32") < bound(224, "float32") < 1e-3
    assert bound(14, "bfloat16") == bound(224, "bfloat16") == 2 * tolerance("bfloat16")
    assert bound(14, "float32", switches=True) > 10 * bound(14, "float32")


def test_every_dtype_has_a_tolerance_that_its_own_rounding_meets() -> None:
    assert set(TOLERANCE) == set(DTYPE_BYTES)
    for name in TOLERANCE:
        rounded = REFERENCE.to(getattr(torch, name))
        assert not is_wrong(compare(rounded, REFERENCE, tolerance(name)))
        assert is_wrong(compare(REFERENCE * 1.1, REFERENCE, tolerance(name)))


def test_tf32_widens_float32_alone() -> None:
    assert tolerance("float32", tf32=True) > tolerance("float32")
    assert tolerance("float64", tf32=True) == tolerance("float64")
