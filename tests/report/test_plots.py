"""Plots: palette, ticks, fronts, labels that do not touch, and what each plot needs to be drawn at all."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import pairwise

import matplotlib
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from synthetic import CROSSOVER, FAULTS, WORLD, Law, Planted, World, digest_of

from niffbench.report import text
from niffbench.report.digest import Digest, gather
from niffbench.report.plots import maps
from niffbench.report.plots.canvas import Plot, log_ticks, settings, thin, trim
from niffbench.report.plots.dots import overview
from niffbench.report.plots.palette import COLOURS, Style, family_colours, styles
from niffbench.report.plots.roofline import roofline
from niffbench.report.plots.scaling import _chosen, apart, scaling
from niffbench.report.plots.steps import steps
from niffbench.report.plots.tradeoffs import errors, front, pareto
from niffbench.report.slices import representative, slices

FAMILIES = tuple(dict.fromkeys(operator.family for operator in WORLD))


@pytest.fixture(autouse=True)
def _house_style() -> Iterator[None]:
    with matplotlib.rc_context(dict(settings())):
        yield


def _styles(digest: Digest) -> dict[str, Style]:
    return dict(styles((row.label, row.traits.family) for row in digest.rows))


def _words(plot: Plot) -> str:
    return " ".join(
        "".join(element.itertext()) for element in ET.fromstring(plot.svg).iter() if element.tag.endswith("text")
    )


def test_families_have_colours_of_their_own() -> None:
    colours = family_colours(FAMILIES)
    assert len(set(colours.values())) == len(FAMILIES)
    assert set(colours.values()) <= set(COLOURS)


def test_a_family_keeps_its_colour_whoever_else_is_there() -> None:
    for family in FAMILIES:
        assert family_colours([family]) == {family: family_colours(FAMILIES)[family]}


@given(st.lists(st.text(max_size=8), max_size=30))
def test_any_families_get_colours(families: list[str]) -> None:
    assert set(family_colours(families)) == set(families)


def test_palette_survives_colour_blindness() -> None:
    """Deuteranopia and protanopia (Machado, Oliveira and Fernandes 2009, severity 1): colours stay apart."""
    blind = {
        "deuteranopia": [[0.3673, 0.8606, -0.2280], [0.2801, 0.6725, 0.0474], [-0.0118, 0.0429, 0.9689]],
        "protanopia": [[0.1523, 1.0526, -0.2049], [0.1145, 0.7863, 0.0992], [-0.0039, -0.0481, 1.0520]],
    }  # fmt: skip
    rgb = np.array([[int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)] for colour in COLOURS])
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    for matrix in blind.values():
        seen = np.clip(linear @ np.array(matrix).T, 0, 1) ** (1 / 2.2)
        distance = np.linalg.norm(seen[:, None] - seen[None], axis=-1)
        assert distance[~np.eye(len(COLOURS), dtype=bool)].min() > 0.1


def test_operators_of_a_family_differ_in_dash_and_marker() -> None:
    drawn = styles([(f"niff/{i}", "niff") for i in range(4)])
    assert len({style.colour for style in drawn.values()}) == 1
    assert len({(style.dash, style.marker) for style in drawn.values()}) == 4


@given(st.floats(1e-9, 1e9), st.floats(1.3, 1e6), st.sampled_from([2, 10]))
def test_ticks_lie_inside_and_are_not_too_many(low: float, factor: float, base: int) -> None:
    ticks = log_ticks(low, low * factor, base=base)
    assert len(ticks) <= 12
    assert all(low * 0.99 <= tick <= low * factor * 1.01 for tick in ticks)
    assert ticks == sorted(set(ticks))


def test_ticks_read_as_exact_values() -> None:
    assert [trim(text.seconds(tick)) for tick in log_ticks(8e-6, 2e-3)] == ["10 µs", "100 µs", "1 ms"]
    assert [trim(text.power_of_ten(tick)) for tick in (1e-6, 2.5e-7, 1e-10)] == ["1·10⁻⁶", "2.5·10⁻⁷", "1·10⁻¹⁰"]
    assert [trim(text.size_of(tick)) for tick in log_ticks(2.0**20, 2.0**23, base=2)] == [
        "1 MiB",
        "2 MiB",
        "4 MiB",
        "8 MiB",
    ]


@pytest.mark.parametrize("factor", [1.08, 1.2, 1.5, 1.9, 2.5])
def test_even_a_narrow_axis_of_bytes_has_ticks_to_read_it_by(factor: float) -> None:
    for low in (2.05 * 2**20, 3.9 * 2**20, 1000.0):
        assert len(log_ticks(low, low * factor, base=2)) >= 2


def test_thinning_keeps_both_ends() -> None:
    ticks = thin([3, 5, 7, 9, 11, 13, 15, 31], 4)
    assert (ticks[0], ticks[-1]) == (3, 31)
    assert all(b / a >= (31 / 3) ** (1 / 4) * 0.999 for a, b in pairwise(ticks))


@given(st.lists(st.tuples(st.integers(1, 50), st.integers(1, 50)), min_size=1, max_size=40))
def test_nothing_beats_the_pareto_front(points: list[tuple[int, int]]) -> None:
    edge = front([(float(x), float(y)) for x, y in points])
    for point in points:
        beaten = any(a <= point[0] and b <= point[1] and (a, b) != point for a, b in edge)
        assert beaten != (point in edge)


@given(st.lists(st.floats(0, 100), min_size=1, max_size=12))
def test_labels_are_pushed_apart_in_order(places: list[float]) -> None:
    moved = apart(sorted(places), 9.0, 0.0, 150.0)
    assert all(b - a >= 9.0 - 1e-9 for a, b in pairwise(moved))


def test_representative_slices_show_another_mode_too() -> None:
    result = slices(
        digest_of(World(modes=("inference", "training"), channels=(8, 16, 32, 64), sizes=(14, 28, 56))), "size"
    )
    assert [slice_.fixed for slice_ in representative(result)] == [
        "B1, 8 channels, inference", "B1, 64 channels, inference", "B1, 8 channels, training",
    ]  # fmt: skip


def test_the_overview_names_every_measured_operator_and_problem() -> None:
    digest = digest_of(World(sizes=(14, 112)))
    plot = overview(digest, _styles(digest))
    assert plot is not None
    words = _words(plot)
    for name in ("B1 64@14", "B1 64@112", "niff-depthwise/rfft", "attention", "Steady latency", "FLOPs"):
        assert name in words
    assert "strip-k31" not in words  # planted: wrong everywhere


def test_the_map_draws_its_line_around_the_planted_crossover() -> None:
    digest = digest_of(World(sizes=(28, 56), faults=(), kernels={"depthwise": (9, 11, 13, 15, 17)}))
    kernels = [9, 11, 13, 15, 17]
    table = maps._ratios(digest, "depthwise", digest.metrics[0])
    best = CROSSOVER * 0.7**0.5  # the cached form takes 0.7 of rfft
    for size in (28.0, 56.0):
        values = np.log2([table[size, kernel] for kernel in kernels])
        [(below, above)] = maps.brackets(values)
        assert kernels[below] < best < kernels[above]


@pytest.mark.parametrize(
    ("draw", "world"),
    [
        (lambda d: maps.winners(d), World(sizes=(14, 28))),
        (lambda d: maps.ratios(d), World(sizes=(28,))),
    ],
    ids=["one channel count", "one size"],
)
def test_a_plot_without_its_data_is_left_out(draw: Callable[[Digest], Plot | None], world: World) -> None:
    assert draw(digest_of(world)) is None


def test_the_wall_is_drawn_at_what_was_available() -> None:
    """And an operator that fitted nowhere is named too."""
    for faults, drawn in ((FAULTS, True), ((), False)):
        digest = digest_of(World(faults=faults))
        plot = scaling(slices(digest, "size"), [], digest, _styles(digest))
        assert plot is not None
        assert ("available, 40.0 GiB" in _words(plot)) == drawn
        assert ("Crosses did not fit" in plot.caption) == drawn
        assert "attention" in _words(plot)


def test_the_roofline_names_its_measured_ceilings() -> None:
    digest = digest_of(World())
    plot = roofline(digest, _styles(digest))
    assert plot is not None
    for ceiling in ("copy, 30.0 GB/s", "matrix product, 3.00 TFLOP/s", "bare FFT, 60.0 GFLOP/s"):
        assert ceiling in _words(plot)


def test_steps_and_tradeoffs_are_drawn() -> None:
    digest = digest_of(World(sizes=(14, 28)))
    result = [steps(digest), pareto(digest, _styles(digest)), errors(digest, _styles(digest))]
    names = [plot.name for plot in result if plot]
    assert names == ["steps", "pareto", "error"]


def test_inline_plots_take_the_page_s_colours_and_ids_of_their_own() -> None:
    digest = digest_of(World(sizes=(14,)))
    plot = overview(digest, _styles(digest))
    assert plot is not None
    inline = plot.inline("r1-")
    assert "currentColor" in inline
    assert "#1f2429" not in inline
    ids = {element.get("id") for element in ET.fromstring(inline).iter() if element.get("id")}
    assert ids
    assert all(id_.startswith("r1-overview-") for id_ in ids if id_)


def test_networks_have_the_colours_of_the_layers_in_them() -> None:
    networks = tuple(
        Planted(
            f"network/resnet18{tail}",
            "network",
            "circular" if tail == "-split" else "zero",
            tail,
            Law(1e-9),
            Law(8.0),
        )
        for tail in ("", "-split", "-k31", "-kmap")
    )
    digest = digest_of(World(sizes=(28,), operators=networks, faults=(), baseline="network/resnet18"))
    assert [row.kin for row in digest.rows] == ["dense", "niff", "depthwise", "depthwise"]


def test_a_crowded_overview_shows_each_mode_at_the_same_problems() -> None:
    digest = digest_of(World(modes=("inference", "training"), sizes=tuple(range(8, 40))))
    plot = overview(digest, _styles(digest))
    assert plot is not None
    words = _words(plot)
    shown = [size for size in range(8, 40) if f"B1 64@{size} training" in words]
    assert (len(shown), shown[0], shown[-1]) == (8, 8, 39)
    assert words.count("B1 64@") == 16


def test_a_line_goes_through_what_was_measured_for_crossovers() -> None:
    """Between kernels 7 and 21 the suite has none: a straight line would show no cliff."""
    world = World(sizes=(56,), kernels={"depthwise": (3, 7, 11, 15, 21, 31)}, faults=(), rounds=3)
    run = digest_of(world).run
    between = [record for record in run.records if record.case.kernel in (11, 15)]
    others = tuple(record for record in run.records if record not in between)
    probes = tuple(replace(record, round=record.round + 3) for record in between)
    digest = gather(replace(run, records=others, probes=probes))
    (slice_, *_) = slices(digest, "kernel")
    plot = scaling([slice_], [], digest, _styles(digest))
    assert plot is not None
    assert "was measured for the crossovers" in plot.caption
    assert "slope" not in plot.caption
    assert [point.at for point in slice_.curves["depthwise"]] == [3, 7, 21, 31]
    assert [point.at for point in _chosen(slice_, digest.probes)["depthwise"]] == [3, 7, 11, 15, 21, 31]
