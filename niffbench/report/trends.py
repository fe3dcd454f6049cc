"""Trends: how each operator scales along each axis, and where NIFF and the spatial operators change places.

Crossovers are those of :mod:`niffbench.stats.crossovers`: two measured values, never one in between.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from niffbench.operators.catalogue import catalogue
from niffbench.report.digest import CONFIDENCE, Cell, Digest, Group, Row, aligned
from niffbench.report.slices import AXES, Slice, describe, evenly, slices
from niffbench.results import Metric
from niffbench.session.refine import Compared, comparisons
from niffbench.stats.crossovers import Crossover
from niffbench.stats.exponents import Scaling, scaling
from niffbench.stats.intervals import Rounds
from niffbench.suite.pairs import Axis

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
class Rivalry:
    """A NIFF form and a spatial operator along an axis in one quantity, as all records of a run show them.

    ``form`` and ``rival`` are names, without a kernel size where that is the axis.

    Attributes:
        group: the first that the form is in.
        fixed: what is held fixed.
        alike: both compute one function at one boundary.
    """

    compared: Compared
    form: str
    rival: str
    group: Group
    fixed: str
    alike: bool

    @property
    def axis(self) -> Axis:
        """Along which the two may change places."""
        return self.compared.pair.axis

    @property
    def metric(self) -> Metric:
        """In which they are compared."""
        return self.compared.metric

    @property
    def crossovers(self) -> tuple[Crossover, ...]:
        """Where they change places."""
        return self.compared.comparison.crossovers


def all_slices(digest: Digest) -> dict[Axis, tuple[Slice, ...]]:
    """The slices of each axis that varies, the largest first."""
    by_axis: dict[Axis, tuple[Slice, ...]] = {}
    for axis in AXES:
        if every := slices(digest, axis):
            room = MOST_POINTS // len(every[0].points)
            by_axis[axis] = tuple(evenly(every, max(2, min(MOST_SLICES, room))))
    return by_axis


def growths(digest: Digest, slice_: Slice) -> list[Growth]:
    """The exponents of every curve of a slice in latency, memory and FLOPs."""
    every: list[Growth] = []
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
                every.append(Growth(slice_, operator, metric, fit))
    return every


def rivalries(digest: Digest) -> tuple[Rivalry, ...]:
    """Each NIFF form against each spatial operator along every axis, in latency, memory and FLOPs."""
    places = {row.case: (row, group) for group in digest.groups for row in group.rows}
    every: list[Rivalry] = []
    for compared in comparisons(digest.run, catalogue()):
        (form, group), (rival, _) = places[compared.pair.form], places[compared.pair.rival]
        names = [row.without_kernel if compared.pair.axis == "kernel" else row.label for row in (form, rival)]
        fixed = describe(group, compared.pair.axis)
        every.append(Rivalry(compared, names[0], names[1], group, fixed, _same(form, rival)))
    return tuple(every)


def is_niff(row: Row) -> bool:
    """Whether a row is a form of NIFF."""
    return row.traits.family == "niff"


def is_spatial(row: Row) -> bool:
    """Whether a row is a convolution with a spatial kernel: dense, depthwise, strip."""
    return row.traits.role == "spatial"


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
