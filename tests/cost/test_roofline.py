"""Roofline arithmetic on hand-computed machines."""

from __future__ import annotations

from math import inf

import pytest

from niffbench.cost.closed import Step
from niffbench.cost.roofline import arithmetic_intensity, attainable, ceiling, floor_time, ridge, steps_time
from niffbench.results import Ceilings

MACHINE = Ceilings(copy_bandwidth=100.0, matmul={"float32": 1000.0, "float16": 4000.0}, fft={"float32": 200.0})


def test_intensity() -> None:
    assert arithmetic_intensity(6.0, 3.0) == 2.0
    assert arithmetic_intensity(6.0, 0.0) == inf


def test_roof_meets_its_ridge() -> None:
    corner = ridge(1000.0, 100.0)
    assert corner == 10.0
    assert attainable(corner, 1000.0, 100.0) == 1000.0
    assert attainable(corner / 2, 1000.0, 100.0) == 500.0
    assert attainable(inf, 1000.0, 100.0) == 1000.0


def test_floor_is_the_slower_of_both() -> None:
    assert floor_time(3000.0, 100.0, 1000.0, 100.0) == 3.0
    assert floor_time(1000.0, 500.0, 1000.0, 100.0) == 5.0


def test_steps_follow_one_another_each_at_its_own_roof() -> None:
    steps = (
        Step("forward fft", "forward", 400, 100),  # 2 s of FFT
        Step("mixing", "forward", 1000, 10),  # 1 s of products
        Step("shift", "forward", 0, 300),  # 3 s of traffic
    )
    assert steps_time(steps, MACHINE, "float32") == 6.0
    # float16: products four times as fast, FFTs in float32.
    assert steps_time(steps, MACHINE, "float16") == 5.25


def test_machine_without_an_fft_ceiling_uses_that_of_products() -> None:
    bare = Ceilings(copy_bandwidth=100.0, matmul={"float32": 1000.0})
    assert steps_time([Step("inverse fft", "forward", 1000, 0)], bare, "float32") == 1.0


def test_a_step_without_a_roof_of_its_own_is_bounded_by_its_traffic() -> None:
    steps = (Step("forward fft", "forward", 400, 100), Step("mixing", "forward", 10**6, 50))
    assert steps_time(steps, MACHINE, "float64") == 1.5


def test_missing_ceilings() -> None:
    assert ceiling(MACHINE.matmul, "bfloat16") == 1000.0  # not float16's: another unit computes it
    with pytest.raises(KeyError):
        ceiling(MACHINE.matmul, "float64")
