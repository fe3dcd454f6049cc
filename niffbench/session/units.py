"""Units of a run: what is still to be measured, in parts that one worker takes, and what becomes of those parts.

It decides and does nothing else, so that a fleet of hundreds can be simulated in a second.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from math import ceil

from niffbench.case import Case, Problem

UNITS_A_WORKER = 3
"""Of several workers each gets about so many units, so that others need not wait long for a slow one."""
LEAST_UNIT = 20.0
"""Seconds of measuring below which a unit is not divided further: a worker takes some to start."""
MAX_LOSSES = 10
"""Workers in a row that may be lost over a case of a unit each, none of them finishing one, before the unit is
given up."""
MAX_BLAMELESS = 5
"""Workers in a row that may be lost over a unit with no case to blame before the run is given up."""


@dataclass
class Unit:
    """A shard of a round: whole problems, whose operators take turns in one worker.

    Attributes:
        missing: the cases that have no record in the round yet, by id.
        losses: workers in a row that were lost over a case each; ``blameless``: over none, in which they had
            ``wasted`` so many seconds.
        tries: how often a case was at work when its worker was taken away.
    """

    round: int
    shard: int
    missing: dict[str, Case]
    losses: int = 0
    blameless: int = 0
    wasted: float = 0.0
    tries: dict[str, int] = field(default_factory=dict)

    def is_tried_again(self, case: str, tries: int) -> bool:
        """Count that a worker was taken away from ``case``, which may happen to fewer than ``tries`` of them."""
        self.tries[case] = self.tries.get(case, 0) + 1
        return self.tries[case] < tries


def shards_for(workers: int, rounds: int, problems: int, seconds: float) -> int:
    """Into how many shards a round is divided: all in one for a single worker.

    Args:
        seconds: that a round is expected to take one worker.
    """
    if workers == 1:
        return 1
    wanted = ceil(UNITS_A_WORKER * workers / rounds)
    worthwhile = max(ceil(workers / rounds), int(seconds / LEAST_UNIT))
    return max(1, min(wanted, worthwhile, problems))


class Units:
    """Deals out units in the order of rounds, and takes back what a lost worker left of one.

    Args:
        missing: the cases that lack a record, by round.
        shards: into how many a round is divided.
    """

    def __init__(self, missing: Mapping[int, Sequence[Case]], shards: int = 1) -> None:
        self._queue: deque[Unit] = deque()
        self._unit: dict[tuple[int, str], Unit] = {}  # by round and case
        for number, cases in sorted(missing.items()):
            units: dict[int, Unit] = {}
            places: dict[Problem, int] = {}  # problems are dealt out in turn, as to the parts of a suite
            for case in cases:
                shard = places.setdefault(case.problem, len(places)) % shards + 1
                unit = units.setdefault(shard, Unit(number, shard, {}))
                unit.missing[case.id] = case
                self._unit[number, case.id] = unit
            self._queue += [unit for _, unit in sorted(units.items())]

    @property
    def waiting(self) -> Sequence[Unit]:
        """The units that wait for a worker, in the order in which they get one."""
        return [unit for unit in self._queue if unit.missing]

    def of_round(self, number: int) -> list[Unit]:
        """The units of a round in which something is missing."""
        units = {id(unit): unit for (round_, _), unit in self._unit.items() if round_ == number}
        return list(units.values())

    @property
    def is_done(self) -> bool:
        """Whether nothing is missing."""
        return not self._unit

    def take(self) -> Unit | None:
        """The next unit for a worker; None while none waits: all is done, or others are at it."""
        while self._queue:
            unit = self._queue.popleft()
            if unit.missing:
                return unit
        return None

    def give_back(self, unit: Unit) -> None:
        """No worker has the unit any more; what is missing of it comes next."""
        if unit.missing:
            self._queue.appendleft(unit)

    def answered(self, number: int, case: str) -> None:
        """There is a record of a case in a round, from whoever."""
        if (unit := self._unit.pop((number, case), None)) is not None:
            del unit.missing[case]


def problems_of(cases: Iterable[Case]) -> int:
    """How many problems there are."""
    return len({case.problem for case in cases})
