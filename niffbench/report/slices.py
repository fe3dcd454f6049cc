"""Slices of a run: rows that differ in one axis only, so that a curve over that axis means something."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from niffbench.report.digest import Digest, Group, Row
from niffbench.suite.pairs import Axis, fixed, position
from niffbench.suite.pairs import curve as curve_of

MOST_SHOWN = 3
"""Slices that stand for all of an axis."""

AXES: dict[Axis, str] = {
    "size": "resolution (side in pixels)",
    "channels": "channels",
    "batch": "batch size",
    "kernel": "kernel size (side in pixels)",
}

FEWEST: dict[Axis, int] = {"size": 3, "channels": 3, "batch": 3, "kernel": 2}
"""Places that some curve of a slice must have. Two make no trend, but two kernel sizes can bracket a crossover."""

WORDS: dict[Axis, str] = {
    "size": "resolution",
    "channels": "channel count",
    "batch": "batch size",
    "kernel": "kernel size",
}


@dataclass(frozen=True)
class Point:
    """One row at its place on the slice's axis, and the group it is compared in."""

    at: float
    row: Row
    group: Group


@dataclass(frozen=True)
class Slice:
    """Curves over one axis, everything else held fixed as ``fixed`` says.

    Attributes:
        setting: the part of it that is no extent: dtype, memory format, mode, execution.
        curves: by operator, ascending in the axis.
        level: on the kernel axis, operators that have no kernel, one point each, at no place on the axis.
    """

    axis: Axis
    fixed: str
    setting: tuple[str, ...]
    curves: Mapping[str, tuple[Point, ...]]
    level: Mapping[str, Point]

    @property
    def positions(self) -> list[float]:
        """The places on the axis, ascending."""
        return sorted({point.at for points in self.curves.values() for point in points})

    @property
    def points(self) -> list[Point]:
        """Every point, those without a place on the axis too."""
        return [*(point for points in self.curves.values() for point in points), *self.level.values()]


def slices(digest: Digest, axis: Axis) -> tuple[Slice, ...]:
    """All slices along ``axis`` in which it takes values enough (FEWEST), the largest first."""
    grouped: dict[tuple[object, ...], list[Point]] = {}
    for group in digest.groups:
        for row in group.rows:
            at = position(row.case, axis)
            grouped.setdefault(fixed(row.case, axis), []).append(Point(at if at is not None else 0.0, row, group))
    made = [_slice(axis, points) for points in grouped.values()]
    long_enough = [slice_ for slice_ in made if max(map(len, slice_.curves.values()), default=0) >= FEWEST[axis]]
    return tuple(sorted(long_enough, key=lambda s: -len(s.points)))


def _slice(axis: Axis, points: Sequence[Point]) -> Slice:
    """Curves are told apart by what their cases are, and named by their labels, which need not be unique."""
    curves: dict[tuple[object, ...], list[Point]] = {}
    level: dict[tuple[object, ...], Point] = {}
    for point in points:
        case = point.row.case
        if axis == "kernel" and case.kernel is None:
            level[case.operator, case.options] = point
        else:
            curves.setdefault(curve_of(case, axis), []).append(point)
    named: dict[str, tuple[Point, ...]] = {}
    for curve in curves.values():
        if len(curve) > 1:
            row = curve[0].row
            name = _unused(row.without_kernel if axis == "kernel" else row.label, named)
            named[name] = tuple(sorted(curve, key=lambda point: point.at))
    named_level: dict[str, Point] = {}
    for point in level.values():
        named_level[_unused(point.row.label, {**named, **named_level})] = point
    group = points[0].group
    return Slice(axis, describe(group, axis), group.setting, named, named_level)


def _unused(name: str, taken: Mapping[str, object]) -> str:
    """``name``, or the first of ``name (2)``, ``name (3)`` … that is not taken."""
    candidates = itertools.chain([name], (f"{name} ({number})" for number in itertools.count(2)))
    return next(candidate for candidate in candidates if candidate not in taken)


def describe(group: Group, axis: Axis) -> str:
    """What a slice holds fixed: ``B1, 64 channels, inference``."""
    problem = group.problem
    parts = [f"B{problem.batch}"] if axis != "batch" else []
    if axis != "channels":
        same = problem.channels == problem.channels_out
        parts.append(
            f"{problem.channels} channels" if same else f"{problem.channels}→{problem.channels_out} channels"
        )
    if axis != "size":
        square = problem.height == problem.width
        parts.append(f"{problem.height}²" if square else f"{problem.height}×{problem.width}")
    parts.append(problem.mode)
    parts += [problem.precision] if problem.precision != "float32" else []
    parts += [problem.memory_format] if problem.memory_format != "contiguous" else []
    parts += [group.execution] if group.execution != "eager" else []
    return ", ".join(parts)


def evenly(items: Sequence[Any], most: int) -> list[Any]:
    """At most ``most`` of some items, the first and the last among them."""
    if len(items) <= most:
        return list(items)
    places = sorted({round(i * (len(items) - 1) / (most - 1)) for i in range(most)})
    return [items[place] for place in places]


def representative(slices: Sequence[Slice]) -> list[Slice]:
    """A few slices that stand for all: spread over the largest's setting (mode, dtype …), and one of another."""
    settings = {
        slice_.setting: [other for other in slices if other.setting == slice_.setting] for slice_ in slices
    }
    first, *others = settings.values()
    return [*evenly(first, MOST_SHOWN - 1), others[0][0]] if others else evenly(first, MOST_SHOWN)
