"""Errors against float64, planted and found."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from niffbench.case import DTYPE_BYTES
from niffbench.measure.numerics import compare, images
from niffbench.measure.tolerance import TOLERANCE, is_wrong, tolerance, verdict
from niffbench.records import Numerics

REFERENCE = torch.randn(2, 3, 5, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


@given(st.floats(1e-9, 1e3))
def test_a_planted_scale_is_the_relative_error(scale: float) -> None:
    found = compare(REFERENCE * (1 + scale), REFERENCE, 1e-5)
    assert found.l2 == pytest.approx(scale, rel=1e-6)
    assert found.max == pytest.approx(scale, rel=1e-6)
    assert is_wrong(found) == (found.l2 > 1e-5)


def test_one_wrong_pixel_shows_in_the_maximum() -> None:
    output = REFERENCE.clone()
    output[1, 2, 3, 4] += 0.5 * float(REFERENCE.abs().max())
    found = compare(output, REFERENCE, 1e-5)
    assert found.max == pytest.approx(0.5)
    assert is_wrong(Numerics(l2=0.0, max=found.max, tolerance=1e-5))


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_an_output_that_is_not_finite_is_wrong(value: float) -> None:
    output = REFERENCE.clone()
    output[0, 0, 0, 0] = value
    found = compare(output, REFERENCE, 1e-5)
    assert math.isinf(found.l2)
    assert is_wrong(found)
    assert "not timed" in verdict(found)


def test_another_shape_is_wrong_even_if_it_broadcasts() -> None:
    assert math.isinf(compare(REFERENCE[:, :1], REFERENCE, 1.0).l2)


def test_a_reference_of_zeros_makes_errors_absolute() -> None:
    zeros = torch.zeros_like(REFERENCE)
    assert compare(zeros, zeros, 1e-5) == Numerics(l2=0.0, max=0.0, tolerance=1e-5)
    assert compare(zeros + 0.25, zeros, 1e-5).max == 0.25


@pytest.mark.parametrize(("batch", "checked"), [(1, 1), (2, 2), (3, 2), (9, 2)])
def test_first_and_last_image_of_a_batch_are_compared(batch: int, checked: int) -> None:
    x = torch.arange(float(batch)).view(batch, 1, 1, 1)
    assert images(x).flatten().tolist() == ([0.0, batch - 1.0] if checked == 2 else [0.0])
    assert not is_wrong(compare(x, images(x).double(), 1e-5))
    broken = x.clone()
    broken[-1] += 1
    assert is_wrong(compare(broken, images(x).double(), 1e-5))


def test_every_dtype_has_a_tolerance_that_its_own_rounding_meets() -> None:
    assert set(TOLERANCE) == set(DTYPE_BYTES)
    for name in TOLERANCE:
        rounded = REFERENCE.to(getattr(torch, name))
        assert not is_wrong(compare(rounded, REFERENCE, tolerance(name)))
        assert is_wrong(compare(REFERENCE * 1.1, REFERENCE, tolerance(name)))


def test_tf32_widens_float32_alone() -> None:
    assert tolerance("float32", tf32=True) > tolerance("float32")
    assert tolerance("float64", tf32=True) == tolerance("float64")
