"""Closed forms: units, primitives, and the figures that NIFF's cost table states."""

from __future__ import annotations

from math import log2

import pytest
from hypothesis import given
from hypothesis import strategies as st

from niffbench.case import Case, Mode, Problem
from niffbench.cost.closed import (
    Cost,
    Direction,
    Step,
    fft_flops,
    floor_bytes,
    half_plane,
    product,
    step_costs,
    steps,
)
from niffbench.cost.memory import predict
from niffbench.lengths import fast_length, in_bounds_share, largest_prime_factor
from niffbench.operators.catalogue import catalogue


def case(
    name: str, kernel: int | None = None, *, out: int | None = None, mode: Mode = "inference", **options: str
) -> Case:
    """One operator at 8 × 64@56, with its default options."""
    problem = Problem(8, 64, out or 64, 56, 56, mode=mode)
    settings = {key: option.default for key, option in catalogue()[name].options.items()} | options
    return Case(name, problem, kernel, tuple(sorted(settings.items())))


def cost(name: str, kernel: int | None = None, **settings: str) -> Cost:
    return catalogue()[name].cost(case(name, kernel, **settings))  # type: ignore[arg-type]


def traffic(name: str, kernel: int | None = None) -> int:
    """Bytes counted, without those that make the filter."""
    counted = predict(catalogue()[name], case(name, kernel)).traffic
    return sum(moved for (step, _), moved in counted.items() if step != "filter generation")


def step(cost: Cost, name: str, direction: str = "forward") -> Step:
    return next(s for s in cost.steps if (s.name, s.direction) == (name, direction))


def test_fft_flops_are_nominal() -> None:
    assert fft_flops(1024) == 5 * 1024 * 10
    assert fft_flops(1024, 3, real=True) == 3 * 25 * 1024
    assert fft_flops(1, 7) == 0
    assert fft_flops(56 * 56) == round(5 * 3136 * log2(3136))


def test_steps_that_cost_nothing_are_left_out() -> None:
    parts = {"a": (1, 3), "b": (0, 0), "c": (2, 0)}
    assert steps(Problem(1, 1, 1, 1, 1, mode="forward"), parts) == (
        Step("a", "forward", 1),
        Step("c", "forward", 2),
    )
    training = steps(Problem(1, 1, 1, 1, 1, mode="training"), parts)
    assert training[2:] == (Step("a", "backward", 3),)
    total = Cost(training, 5, 6)
    assert (total.flops(), total.flops("backward")) == (6, 3)


def test_flops_and_counted_bytes_join_by_step() -> None:
    cost = Cost((Step("a", "forward", 1), Step("a", "backward", 3)), 5, 6)
    counted: dict[tuple[str, Direction], int] = {("cast", "forward"): 7, ("a", "forward"): 8, ("a", "backward"): 9}
    joined = [(s.name, s.direction, s.flops, s.bytes) for s in step_costs(cost, counted)]
    assert joined == [("cast", "forward", 0, 7), ("a", "forward", 1, 8), ("a", "backward", 3, 9)]
    assert [(s.flops, s.bytes) for s in step_costs(cost, None)] == [(1, None), (3, None)]


def test_a_product_is_made_twice_more_in_backward() -> None:
    assert product(10) == (10, 20)


def test_floor_counts_each_tensor_once() -> None:
    assert floor_bytes(Problem(2, 3, 5, 7, 11), 13) == 4 * (2 * 77 * 8 + 13)
    assert floor_bytes(Problem(2, 3, 5, 7, 11, "float16", mode="training"), 13) == 2 * 2 * (2 * 77 * 8 + 13)


@pytest.mark.parametrize(("side", "percent"), [(16, 27), (32, 58), (64, 77)])
def test_share_of_taps_inside_the_image(side: int, percent: int) -> None:
    assert 100 * in_bounds_share(side, side, 31) == pytest.approx(percent, abs=0.6)


@given(st.integers(1, 9), st.integers(1, 9), st.integers(0, 8))
def test_share_of_taps_is_what_counting_gives(height: int, width: int, half: int) -> None:
    def inside(side: int) -> int:
        return sum(0 <= at + tap < side for at in range(side) for tap in range(-half, half + 1))

    kernel = 2 * half + 1
    counted = inside(height) * inside(width) / (height * width * kernel**2)
    assert in_bounds_share(height, width, kernel) == pytest.approx(counted)


@given(st.integers(1, 3000))
def test_lengths(number: int) -> None:
    largest = largest_prime_factor(number)
    assert number % largest == 0
    assert all(largest % divisor for divisor in range(2, largest))
    rest = number
    while rest % largest == 0 and largest > 1:
        rest //= largest
    assert largest_prime_factor(rest) < largest or number == 1
    fast = fast_length(number)
    assert fast >= number
    assert largest_prime_factor(fast) <= 7
    assert all(largest_prime_factor(length) > 7 for length in range(number, fast))


class TestTable:
    """The table "Costs" of NIFF's description, at C = 64, 56 × 56, B = 8."""

    pixels, elements, log = 56 * 56, 8 * 64 * 56 * 56, log2(56 * 56)

    def test_convolutions(self) -> None:
        assert cost("dense", 7).flops() == 2 * 49 * 64 * self.elements
        assert cost("depthwise", 31).flops() == 2 * 31**2 * self.elements
        assert cost("strip", 31).flops() == 4 * 31 * self.elements
        assert cost("dense", 3, mode="training").flops("backward") == 2 * cost("dense", 3).flops()

    @pytest.mark.parametrize(
        ("mlp", "flops", "biases"),
        [("tiny", 64 + 32 * 64, 8 + 64), ("small", 192 + 16 * 64, 12 + 64), ("big", 24704 + 128 * 64, 176 + 64)],
    )
    def test_generation_is_its_own_term(self, mlp: str, flops: int, biases: int) -> None:
        published = cost("niff-depthwise/published", mlp=mlp)
        assert step(published, "filter generation").flops == self.pixels * flops
        training = cost("niff-depthwise/published", mlp=mlp, mode="training")
        backward = step(training, "filter generation", "backward").flops
        assert backward == 2 * self.pixels * (flops + biases), "two products a layer, and the bias's sum"

    @pytest.mark.parametrize("mlp", ["tiny", "small", "big"])
    @pytest.mark.parametrize("kind", ["depthwise", "full", "split"])
    def test_a_biass_gradient_counts_the_same_in_every_form(self, kind: str, mlp: str) -> None:
        """``fft`` differs from ``published`` in one thing: its coordinates ask for no gradient."""

        def generation(form: str) -> int:
            training = cost(f"niff-{kind}/{form}", mlp=mlp, mode="training")
            return step(training, "filter generation", "backward").flops

        first = {"tiny": 8, "small": 8, "big": 16}[mlp]
        assert generation("published") - generation("fft") == self.pixels * 2 * 2 * 2 * first

    def test_published_depthwise(self) -> None:
        total = cost("niff-depthwise/published")
        within = total.flops() - step(total, "filter generation").flops
        assert within == pytest.approx(self.elements * (10 * self.log + 6), rel=1e-5)
        training = cost("niff-depthwise/published", mode="training")
        assert step(training, "product", "backward").flops == 14 * self.elements

    def test_rfft_depthwise(self) -> None:
        cached = cost("niff-depthwise/cached").flops()
        assert cached == pytest.approx(self.elements * (5 * self.log + 6 * 29 / 56), rel=1e-5)
        # torch's r2c goes back through a complex FFT.
        training = cost("niff-depthwise/rfft", mode="training")
        assert step(training, "forward fft", "backward").flops == 8 * 64 * fft_flops(self.pixels)

    def test_full(self) -> None:
        published = cost("niff-full/published", out=32)  # type: ignore[arg-type]
        within = published.flops() - step(published, "filter generation").flops
        assert within == pytest.approx(8 * self.pixels * (5 * self.log * 96 + 8 * 64 * 32), rel=1e-5)
        half = cost("niff-full/cached", out=32).flops()  # type: ignore[arg-type]
        assert half == pytest.approx(
            8 * self.pixels * (2.5 * self.log * 96 + 4 * 64 * 32), rel=0.03
        )  # 29 columns of 56 are more than half

    def test_pointwise(self) -> None:
        published = cost("niff-pointwise/published", out=256).flops()  # type: ignore[arg-type]
        assert published == pytest.approx(8 * self.pixels * (4 * 64 * 256 + 5 * self.log * 320), rel=1e-5)
        elided = cost("niff-pointwise/elided", out=256).flops()  # type: ignore[arg-type]
        assert elided == 8 * self.pixels * 2 * 64 * 256

    @pytest.mark.parametrize(
        ("kind", "mlp", "parameters"),
        [
            ("depthwise", "small", 120 + 10 * 64),
            ("depthwise", "big", 12704 + 66 * 64),
            ("full", "tiny", 48 + 18 * 64 * 32),
            ("pointwise", None, 64 * 32),
            ("split", "small", 120 + 10 * 64 + 64 * 32),
        ],
    )
    def test_parameters(self, kind: str, mlp: str | None, parameters: int) -> None:
        options = {"mlp": mlp} if mlp else {}
        out = 64 if kind == "depthwise" else 32
        assert cost(f"niff-{kind}/published", out=out, **options).parameters == parameters  # type: ignore[arg-type]

    def test_bytes_per_element(self) -> None:
        """204 as published, 32 with real FFTs, 24 with 1/N folded into the filter, 8 at best; filters apart."""
        published = traffic("niff-depthwise/published")
        assert published == 204 * self.elements + 8 * 64 * self.pixels
        half = 8 * 64 * half_plane(56, 56)
        spare = 4 * 8 * (half - 4 * 64 * self.pixels)  # four passes over 58 numbers a row, not 56
        assert traffic("niff-depthwise/cached") == 32 * self.elements + spare + half
        assert traffic("fft-depthwise", 9) == 24 * self.elements + spare + half
        cheapest = cost("niff-depthwise/published")
        assert cheapest.bytes_floor == 8 * self.elements + 4 * cheapest.parameters

    def test_full_filter_at_every_resnet_stage(self) -> None:
        """The generated filter of a full layer, written once: 102.8 MB."""
        for channels, side in ((64, 56), (128, 28), (256, 14), (512, 7)):
            assert 8 * channels**2 * side**2 == pytest.approx(102.8e6, rel=1e-3)

    @pytest.mark.parametrize(
        ("side", "published", "rfft"), [(7, 5.6, 4.0), (28, 7.1, 5.1), (56, 7.8, 5.5), (112, 8.4, 6.0)]
    )
    def test_flop_crossovers_against_depthwise(self, side: int, published: float, rfft: float) -> None:
        """The kernel side at which 2k² equals the FLOPs an element, the filter made beforehand."""
        problem = Problem(1, 64, 64, side, side)
        options = (("grid", "paper"), ("mlp", "small"))
        for form, expected in (("published", published), ("cached", rfft)):
            name = f"niff-depthwise/{form}"
            total = catalogue()[name].cost(Case(name, problem, options=options))
            flops = sum(s.flops for s in total.steps if s.name != "filter generation")
            assert (flops / (64 * side**2) / 2) ** 0.5 == pytest.approx(expected, abs=0.06)
