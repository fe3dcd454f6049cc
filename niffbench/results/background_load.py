"""BackgroundLoad: what other processes had of the processor while cases were sampled."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from niffbench.errors import plural
from niffbench.results.record import Record
from niffbench.units import percent

BUSY_OTHERS = 0.05
"""Other processes' share of the processor from which a machine is called busy."""


def is_busy(others: float | None) -> bool:
    """Whether other processes use so much of the processor that a latency is in doubt; no, where nobody knows."""
    return others is not None and others > BUSY_OTHERS


@dataclass(frozen=True, slots=True)
class BackgroundLoad:
    """``busy`` of ``sampled`` cases had busy neighbours in at least one round; ``most`` is their largest share."""

    sampled: int
    busy: int
    most: float

    def __str__(self) -> str:
        return (
            f"other processes used up to {percent(self.most)} of the processor "
            f"while {self.busy} of {plural(self.sampled, 'case')} {'was' if self.sampled == 1 else 'were'} sampled"
        )


def most(shares: Iterable[float | None]) -> float | None:
    """The largest of the shares that are known; None where none is."""
    return max((share for share in shares if share is not None), default=None)


def most_others(records: Iterable[Record]) -> float | None:
    """The largest share of the processor that others used while any case was sampled; None where nobody knows."""
    return most(record.machine.others for record in records if record.machine is not None)


def calm_cases(records: Iterable[Record]) -> set[str]:
    """Ids of the cases that were measured while others were not busy, as far as anybody knows.

    One that was sampled for too short a time to know is judged by the busiest of the others.
    """
    cases: dict[str, list[Record]] = {}
    for record in records:
        cases.setdefault(record.id, []).append(record)
    shares = {id_: most_others(own) for id_, own in cases.items()}
    worst = most(shares.values())
    return {id_ for id_, share in shares.items() if not is_busy(worst if share is None else share)}


def background_load(records: Iterable[Record]) -> BackgroundLoad | None:
    """The busy neighbours of a run's cases; None where there were none, or nobody knows."""
    sampled: set[str] = set()
    shares: dict[str, float] = {}
    for record in records:
        if record.status == "ok":
            sampled.add(record.id)
            others = record.machine.others if record.machine else None
            if others is not None and is_busy(others):
                shares[record.id] = max(others, shares.get(record.id, 0.0))
    return BackgroundLoad(len(sampled), len(shares), max(shares.values())) if shares else None
