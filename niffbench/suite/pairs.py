"""Pairs: a form of NIFF and a rival along one axis, everything else held fixed; and where cases lie on an axis."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from math import sqrt
from typing import Literal, Protocol, get_args

from niffbench.case import Case, Contender

Axis = Literal["kernel", "size", "channels", "batch"]
PAIR_AXES: tuple[Axis, ...] = get_args(Axis)


class HasRole(Protocol):
    """An operator, or a record's traits of one."""

    @property
    def family(self) -> str: ...
    @property
    def role(self) -> str: ...


def side_of(operator: HasRole) -> Contender | None:
    """On which side of a crossover an operator is: a form of NIFF, or a convolution in space; None: on neither."""
    if operator.family == "niff":
        return "form"
    return "rival" if operator.role == "spatial" else None


def position(case: Case, axis: Axis) -> float | None:
    """Where a case lies on an axis, None without a kernel; a map's size is the geometric mean of its sides."""
    problem = case.problem
    if axis == "size":
        return sqrt(problem.height * problem.width)
    if axis == "kernel":
        return None if case.kernel is None else float(case.kernel)
    return float(problem.batch if axis == "batch" else problem.channels)


def fixed(case: Case, axis: Axis) -> tuple[object, ...]:
    """All that cases of one slice share beside their operator: the problem without the axis, and the execution."""
    problem = case.problem
    same = problem.channels == problem.channels_out
    return (
        None if axis == "batch" else problem.batch,
        None if axis == "channels" else problem.channels,
        "same" if same else problem.channels_out,
        problem.height / problem.width if axis == "size" else (problem.height, problem.width),
        problem.precision,
        problem.memory_format,
        problem.mode,
        case.execution,
    )


def curve(case: Case, axis: Axis) -> tuple[object, ...]:
    """What cases of one curve of a slice share: operator, options, and the kernel where it is not the axis."""
    return case.operator, case.options, None if axis == "kernel" else case.kernel


def moved(case: Case, axis: Axis, value: int) -> Case:
    """The case at another value of an axis; one without a kernel stays where the axis is the kernel's."""
    problem = case.problem
    match axis:
        case "kernel":
            return case if case.kernel is None else replace(case, kernel=value)
        case "size":
            return replace(case, problem=replace(problem, height=value, width=value))
        case "batch":
            return replace(case, problem=replace(problem, batch=value))
        case "channels":
            out = value if problem.channels_out == problem.channels else problem.channels_out
            return replace(case, problem=replace(problem, channels=value, channels_out=out))


@dataclass(frozen=True)
class Pair:
    """A form and a rival of one slice, as cases of it.

    Attributes:
        values: the places on ``axis`` that both have.
    """

    axis: Axis
    form: Case
    rival: Case
    values: tuple[float, ...]

    def at(self, value: float) -> tuple[Case, Case]:
        """Form and rival at a value of the axis."""
        return moved(self.form, self.axis, int(value)), moved(self.rival, self.axis, int(value))


def pairs(cases: Iterable[Case], axis: Axis, side: Callable[[Case], Contender | None]) -> list[Pair]:
    """Every form with every rival of its slice, where both have at least two values of ``axis`` in common.

    A form without a kernel has every value of the axis ``kernel`` that its rival has. Maps that are not square
    have no place on the axis ``size``. The order is that of ``cases``.
    """
    slices: dict[tuple[object, ...], dict[Contender, dict[tuple[object, ...], dict[float | None, Case]]]] = {}
    for case in cases:
        if (which := side(case)) is None or (axis == "size" and case.problem.height != case.problem.width):
            continue
        sides = slices.setdefault(fixed(case, axis), {"form": {}, "rival": {}})
        sides[which].setdefault(curve(case, axis), {})[position(case, axis)] = case
    every: list[Pair] = []
    for sides in slices.values():
        for form in sides["form"].values():
            for rival in sides["rival"].values():
                places = rival.keys() if None in form else rival.keys() & form.keys()
                values = sorted(place for place in places if place is not None)
                if len(values) > 1:
                    every.append(Pair(axis, next(iter(form.values())), next(iter(rival.values())), tuple(values)))
    return every
