"""Units of rounds and shards: what is dealt out to workers, and a fleet of hundreds that loses some of them."""

from __future__ import annotations

import heapq
import random
import sys
import tracemalloc

from hypothesis import given
from hypothesis import strategies as st

from niffbench.case import Case, Problem
from niffbench.session.units import LEAST_UNIT, Unit, Units, problems_of, shards_for


def cases_of(problems: int, operators: int) -> list[Case]:
    return [
        Case(operator="depthwise", kernel=2 * kernel + 1, problem=Problem(1, channels, channels, 8, 8))
        for channels in range(1, problems + 1)
        for kernel in range(operators)
    ]


def dealt(units: Units) -> list[Unit]:
    return list(iter(units.take, None))


@given(st.integers(1, 20), st.integers(1, 3), st.integers(1, 4), st.integers(1, 9))
def test_units_are_whole_problems_and_together_all_that_is_missing(
    problems: int, operators: int, rounds: int, shards: int
) -> None:
    cases = cases_of(problems, operators)
    units = dealt(Units(dict.fromkeys(range(rounds), cases), shards))
    assert sorted((unit.round, case) for unit in units for case in unit.missing) == sorted(
        (number, case.id) for number in range(rounds) for case in cases
    )
    assert [unit.round for unit in units] == sorted(unit.round for unit in units)
    for number in range(rounds):
        owners = [problems_of(unit.missing.values()) for unit in units if unit.round == number]
        assert sum(owners) == problems
        assert len(owners) == min(shards, problems)


def test_what_a_lost_worker_left_comes_next_and_what_was_answered_does_not_come_again() -> None:
    cases = cases_of(4, 2)
    units = Units({0: cases, 1: cases}, 2)
    first, second = units.take(), units.take()
    assert first is not None
    assert second is not None
    for case in list(second.missing):
        units.answered(0, case)
    left = list(first.missing)[1:]
    units.answered(0, next(iter(first.missing)))
    units.give_back(second)
    units.give_back(first)
    again = units.take()
    assert again is first
    assert list(again.missing) == left
    assert [unit.round for unit in dealt(units)] == [1, 1]
    assert not units.is_done  # the first has a worker
    for number, case in [(0, case) for case in left] + [(1, case.id) for case in cases]:
        units.answered(number, case)
    units.give_back(first)
    assert units.is_done
    assert units.take() is None


def test_one_worker_measures_a_round_at_once_and_many_wait_for_none_that_is_slow() -> None:
    assert shards_for(1, 3, 100, 1e6) == 1
    assert shards_for(2, 1, 1, 1e6) == 1  # one problem
    assert shards_for(4, 2, 100, 1.0) == 2  # each has one, however short
    assert shards_for(4, 2, 100, 4 * LEAST_UNIT) == 4  # and no unit is shorter than is worth a worker
    assert shards_for(512, 8, 1250, 1e6) == 192


class Fleet:
    """Workers that finish a case after its time, or are taken away; time is a number here."""

    START = 8.0

    def __init__(self, workers: int, units: Units, failures: float, rng: random.Random) -> None:
        self.units, self.rng, self.failures = units, rng, failures
        self.idle = workers
        self.events: list[tuple[float, int, Unit, list[str]]] = []
        self.records: list[tuple[int, str]] = []
        self.now = 0.0
        self.tasks = self.lost = 0

    def cost(self, case: str) -> float:
        return 1.0 + int(case[:4], 16) / 0xFFFF * 2.0

    def start(self) -> None:
        while self.idle and (unit := self.units.take()) is not None:
            self.idle -= 1
            self.tasks += 1
            cases = list(unit.missing)
            fails = self.rng.random() < self.failures
            done = cases[: self.rng.randrange(len(cases))] if fails else cases
            end = self.now + self.START + sum(map(self.cost, done))
            self.lost += fails
            heapq.heappush(self.events, (end, self.tasks, unit, done))

    def run(self) -> float:
        self.start()
        while self.events:
            self.now, _, unit, done = heapq.heappop(self.events)
            for case in done:
                self.records.append((unit.round, case))
                self.units.answered(unit.round, case)
            self.units.give_back(unit)
            self.idle += 1
            self.start()
        return self.now


WORKERS = 64 * 8


def simulate(problems: int, failures: float = 0.01) -> tuple[Fleet, float, float]:
    """A fleet on four operators a problem in eight rounds; its makespan, and the ideal one."""
    cases, rounds = cases_of(problems, 4), 8
    rng = random.Random(problems)
    shards = shards_for(WORKERS, rounds, problems, 2.0 * len(cases))
    fleet = Fleet(WORKERS, Units(dict.fromkeys(range(rounds), cases), shards), failures, rng)
    makespan = fleet.run()
    ideal = rounds * sum(fleet.cost(case.id) for case in cases) / WORKERS
    assert sorted(fleet.records) == sorted((number, case.id) for number in range(rounds) for case in cases)
    assert fleet.units.is_done
    return fleet, makespan, ideal


def test_a_fleet_of_512_loses_no_record_and_little_time() -> None:
    fleet, makespan, ideal = simulate(1250)
    assert len(fleet.records) == 40_000
    assert 5 < fleet.lost < 50
    # Three units a worker, each with a start; a failure costs a unit's rest.
    assert makespan < 1.6 * (ideal + 3 * Fleet.START)


def test_the_driver_takes_so_much_for_each_record() -> None:
    """Four times the records take about four times the calls, and the memory."""
    calls, memory = [], []
    for problems in (75, 300):
        cases = cases_of(problems, 4)
        for case in cases:
            assert case.id  # worked out once, whoever asks
        number = 0

        def count(*_: object) -> None:
            nonlocal number
            number += 1

        tracemalloc.start()
        sys.setprofile(count)
        try:
            units = Units(dict.fromkeys(range(8), cases), 50)
            while (unit := units.take()) is not None:
                for case in list(unit.missing):
                    units.answered(unit.round, case)
                units.give_back(unit)
        finally:
            sys.setprofile(None)
            memory.append(tracemalloc.get_traced_memory()[1])
            tracemalloc.stop()
        calls.append(number)
    assert calls[1] < 5 * calls[0]
    assert memory[1] < 6 * memory[0]
