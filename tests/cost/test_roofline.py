"""Roofline arithmetic on hand-computed machines."""

from __future__ import annotations

import pytest

from niffbench.cost.roofline import (
    bandwidth,
    ceiling,
    floor_time,
    steps_time,
)
from niffbench.results import Ceilings, StepCost


def step(name: str, flops: int, traffic: int) -> StepCost:
    return StepCost(name=name, direction="forward", flops=flops, bytes=traffic)


MACHINE = Ceilings(copy_bandwidth=100.0, matmul={"float32": 1000.0, "float16": 4000.0}, fft={"float32": 200.0})


def test_floor_is_the_slower_of_both() -> None:
    assert floor_time(3000.0, 100.0, 1000.0, 100.0) == 3.0
    assert floor_time(1000.0, 500.0, 1000.0, 100.0) == 5.0


def test_steps_follow_one_another_each_at_its_own_roof() -> None:
    steps = (
        step("forward fft", 400, 100),  # 2 s of FFT
        step("mixing", 1000, 10),  # 1 s of products
        step("shift", 0, 300),  # 3 s of traffic
    )
    assert steps_time(steps, MACHINE, "float32") == 6.0
    # float16: products four times as fast, FFTs in float32.
    assert steps_time(steps, MACHINE, "float16") == 5.25


def test_machine_without_an_fft_ceiling_uses_that_of_products() -> None:
    bare = Ceilings(copy_bandwidth=100.0, matmul={"float32": 1000.0})
    assert steps_time([step("inverse fft", 1000, 0)], bare, "float32") == 1.0


def test_a_step_without_a_roof_of_its_own_is_bounded_by_its_traffic() -> None:
    steps = (step("forward fft", 400, 100), step("mixing", 10**6, 50))
    assert steps_time(steps, MACHINE, "float64") == 1.5


def test_missing_ceilings() -> None:
    assert ceiling(MACHINE.matmul, "bfloat16") == 1000.0  # not float16's: another unit computes it
    with pytest.raises(KeyError):
        ceiling(MACHINE.matmul, "float64")


def test_what_fits_in_a_cache_is_bounded_by_the_cache() -> None:
    """A copy of 1,000 bytes takes 1 s, of 2,000 bytes 4 s, of more 100 bytes a second."""
    machine = Ceilings(copy_bandwidth=100.0, copy_by_size={2000: 500.0, 1000: 1000.0, 10_000: 100.0}, matmul={})
    assert [bandwidth(machine, traffic) for traffic in (10, 1000, 1500, 2000)] == [1000.0, 1000.0, 600.0, 500.0]
    assert 100.0 < bandwidth(machine, 9999) < 101.0
    assert bandwidth(machine, 10_000) == bandwidth(machine, 1e9) == 100.0
    assert bandwidth(MACHINE, 10) == 100.0
    steps = [step("product", 0, 1000), step("product", 0, 20_000)]
    assert steps_time(steps, machine, "float32") == 201.0
