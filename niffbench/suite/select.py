"""Which cases are meant: the filters of ``--only`` and the conditions of an exclusion."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

from niffbench.case import Case
from niffbench.errors import UsageError, did_you_mean
from niffbench.suite.schema import AXES, Bound, Where


@dataclass(frozen=True)
class Shard:
    """Part ``number`` of ``of`` (from 1) of a suite's cases; written ``2/4``.

    It is made of whole problems, dealt out in turn: operators that are compared stay on one machine.
    """

    number: int
    of: int

    @classmethod
    def parse(cls, text: str) -> Shard:
        """Read ``2/4``.

        Raises:
            UsageError: for anything else.
        """
        match = re.fullmatch(r"(\d{1,6})/(\d{1,6})", text, re.ASCII)
        if match is None or not 1 <= int(match[1]) <= int(match[2]):
            raise UsageError(f"--shard {text}: should be N/M, the Nth of M parts, as 2/4")
        return cls(int(match[1]), int(match[2]))

    def __str__(self) -> str:
        return f"{self.number}/{self.of}"

    def positions(self, cases: Iterable[Case]) -> tuple[int, ...]:
        """Where its cases stand among all of a suite's."""
        cases = tuple(cases)
        problems = list(dict.fromkeys(case.problem for case in cases))
        chosen = set(problems[self.number - 1 :: self.of])
        return tuple(position for position, case in enumerate(cases) if case.problem in chosen)


class Selection:
    """The filters of ``--only``: of one key any may match, of different keys all must.

    ``operator`` patterns stand alone (``niff-*``, ``depthwise-k7``, a case id); others are ``axis=value`` with
    axis one of the suite's axes and size as ``56`` or ``56x40``.

    Raises:
        UsageError: for another key.
    """

    def __init__(self, patterns: Sequence[str]) -> None:
        self._wanted: dict[str, list[str]] = {}
        for pattern in patterns:
            key, mark, value = pattern.partition("=")
            if not mark or key not in AXES:
                # "niff-depthwise/rfft mlp=big" is a row label, not an axis.
                if mark and " " not in key:
                    raise UsageError(f"--only {pattern}: no axis named '{key}'{did_you_mean(key, AXES)}")
                key, value = "operator", pattern
            self._wanted.setdefault(key, []).append(value)

    def takes(self, case: Case, label: str) -> bool:
        """Whether every key has a pattern that fits."""
        return all(any(self._fits(key, v, case, label) for v in values) for key, values in self._wanted.items())

    @staticmethod
    def _fits(key: str, pattern: str, case: Case, label: str) -> bool:
        if key == "operator":
            return any(fnmatchcase(text, pattern) for text in (label, case.operator, case.id))
        if key == "size":
            problem = case.problem
            square = {str(problem.height)} if problem.height == problem.width else set()
            return pattern in {f"{problem.height}x{problem.width}"} | square
        value = field(case, key)
        return fnmatchcase(str(value).lower() if isinstance(value, bool) else str(value), pattern)


def field(case: Case, axis: str) -> Any:
    """The value of one of the suite's axes, all but ``size``, in a case."""
    return getattr(case, axis) if axis in ("kernel", "execution") else getattr(case.problem, axis)


def matches(where: Where, case: Case, label: str) -> bool:
    """Whether a case meets every condition; a bound on ``size`` is one on the shorter side."""
    return all(_meets(key, wanted, case, label) for key, wanted in where.given().items())


def _meets(key: str, wanted: Bound | list[Any], case: Case, label: str) -> bool:
    height, width = case.problem.height, case.problem.width
    value = min(height, width) if key == "size" else None if key == "operator" else field(case, key)
    if isinstance(wanted, Bound):
        return value is not None and _within(value, wanted, height, width)
    if key == "operator":
        return any(fnmatchcase(text, glob) for glob in wanted for text in (label, case.operator))
    if key == "size":
        return [height, width] in wanted or (height == width and height in wanted)
    if key == "kernel":
        return any(value == side(rule, height, width) for rule in wanted)
    return value in wanted


def _within(value: int, bound: Bound, height: int, width: int) -> bool:
    tests = {"gt": value.__gt__, "ge": value.__ge__, "lt": value.__lt__, "le": value.__le__}
    return all(tests[name](side(limit, height, width)) for name, limit in bound.given().items())


def side(kernel: int | str, height: int, width: int) -> int:
    """A kernel's side in pixels on a map of ``height`` × ``width``.

    ``2H-1`` is the largest kernel that still has a tap on the map for every shift, ``H`` the largest odd side that
    is not larger than the map; on a map that is not square, H is the shorter side.
    """
    if isinstance(kernel, int):
        return kernel
    short = min(height, width)
    return 2 * short - 1 if kernel == "2H-1" else short - (short % 2 == 0)
