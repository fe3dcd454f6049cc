"""Trends: how each operator scales along each axis, and where NIFF and the spatial operators change places."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from niffbench.report.digest import CONFIDENCE, Cell, Digest, Row, aligned
from niffbench.report.slices import AXES, Axis, Point, Slice, evenly, slices
from niffbench.results import REGISTRY, Metric
from niffbench.stats import crossovers
from niffbench.stats.crossovers import Comparison
from niffbench.stats.exponents import Scaling, scaling
from niffbench.stats.intervals import Rounds

MOST_SLICES, MOST_POINTS = 12, 5000
"""Slices of one axis that are looked at, spread evenly, and points in them: who says everything says nothing."""


@dataclass(frozen=True)
class Growth:
    """How one quantity of one operator grows along a slice.

    Its theory is the closed-form FLOPs for latency, and the peak predicted from fake tensors for memory; FLOPs are
    theory themselves.
    """

    slice: Slice
    operator: str
    metric: Metric
    scaling: Scaling


@dataclass(frozen=True)
class Exchange:
    """Where a NIFF form (``niff``) and a spatial operator (``spatial``) change places in one quantity along a
    slice.

    ``alike``: both compute one function at one boundary.
    """

    slice: Slice
    niff: str
    spatial: str
    metric: Metric
    comparison: Comparison
    alike: bool


def all_slices(digest: Digest) -> dict[Axis, tuple[Slice, ...]]:
    """The slices of each axis that varies, the largest first."""
    found: dict[Axis, tuple[Slice, ...]] = {}
    for axis in AXES:
        if every := slices(digest, axis):
            room = MOST_POINTS // len(every[0].points)
            found[axis] = tuple(evenly(every, max(2, min(MOST_SLICES, room))))
    return found


def growths(digest: Digest, slice_: Slice) -> list[Growth]:
    """The exponents of every curve of a slice in latency, memory and FLOPs."""
    found: list[Growth] = []
    for operator, curve in slice_.curves.items():
        measured = [point for point in curve if point.row.ok]
        if len(measured) < 2:
            continue
        for metric in digest.metrics:
            cells = [point.row.cells.get(metric.key) for point in measured]
            if any(cells):
                fit = scaling(
                    [point.at for point in measured],
                    _rounds(cells, exact=metric.exact),
                    lengths=[_length(point.row) for point in measured] if slice_.axis == "size" else None,
                    theory=[_theory(point.row, metric) for point in measured],
                    exact=metric.exact,
                    confidence=CONFIDENCE,
                )
                found.append(Growth(slice_, operator, metric, fit))
    return found


def exchanges(digest: Digest, slice_: Slice) -> list[Exchange]:
    """Each NIFF form compared with each spatial operator along a slice, in four quantities."""
    curves = dict(slice_.curves)
    places = slice_.positions
    for name, point in slice_.level.items():
        curves[name] = tuple(Point(at, point.row, point.group) for at in places)
    found: list[Exchange] = []
    for niff, ours in curves.items():
        for spatial, theirs in curves.items():
            if is_niff(ours[0].row) and is_spatial(theirs[0].row):
                found += _exchange(digest, slice_, (niff, ours), (spatial, theirs))
    return found


def is_niff(row: Row) -> bool:
    """Whether a row is a form of NIFF."""
    return row.traits.family == "niff"


def is_spatial(row: Row) -> bool:
    """Whether a row is a convolution with a spatial kernel: dense, depthwise, strip."""
    return row.traits.role == "spatial"


def _exchange(
    digest: Digest, slice_: Slice, niff: tuple[str, Sequence[Point]], spatial: tuple[str, Sequence[Point]]
) -> list[Exchange]:
    ours, theirs = ({p.at: p.row for p in curve if p.row.ok} for curve in (niff[1], spatial[1]))
    both = sorted(ours.keys() & theirs.keys())
    if len(both) < 2:
        return []
    found: list[Exchange] = []
    for metric in (*digest.metrics, REGISTRY["bytes_own"]):
        points = [_point(at, ours[at], theirs[at], metric) for at in both]
        if all(points):
            comparison = crossovers.compare(
                [point for point in points if point],
                crossovers.lattice(slice_.axis, both),
                exact=metric.exact or metric.family == "memory",
                confidence=CONFIDENCE,
            )
            alike = all(_same(ours[at], theirs[at]) for at in both)
            found.append(Exchange(slice_, niff[0], spatial[0], metric, comparison, alike))
    return found


def _point(at: float, ours: Row, theirs: Row, metric: Metric) -> crossovers.Point | None:
    """Both rows in one metric at one value of an axis; None where either has none."""
    cells = ours.cells.get(metric.key), theirs.cells.get(metric.key)
    if cells[0] is None or cells[1] is None:
        return None
    theory = (ours.cost.closed, theirs.cost.closed) if ours.cost and theirs.cost else None
    return crossovers.Point(at, cells[0].rounds, cells[1].rounds, theory)


def _same(one: Row, two: Row) -> bool:
    return (one.traits.equivalence, one.traits.boundary) == (two.traits.equivalence, two.traits.boundary)


def _rounds(cells: Sequence[Cell | None], *, exact: bool) -> Sequence[Rounds]:
    """The cells' rounds side by side; what is zero has no logarithm and is left out."""
    rounds = [[cell.estimate if cell else None] for cell in cells] if exact else aligned(*cells)
    return [[value or None for value in values] for values in rounds]


def _theory(row: Row, metric: Metric) -> float:
    """The theoretical cost that a quantity's exponent is held against; 0 where there is none."""
    if metric.family == "latency" and row.cost:
        return row.cost.flops
    if metric.family != "memory" or (predicted := row.value("memory_predicted")) is None:
        return 0
    return predicted + (row.value("memory_resident") or 0)


def _length(row: Row) -> int:
    """The FFT length's largest prime factor, which alone decides its class; 1 where no FFT is taken."""
    factor = row.cost.largest_prime_factor if row.cost else None
    return max(factor or 1, 1)
