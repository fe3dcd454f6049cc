"""A/B runs: two pieces of code measured round by round in turn, each in processes of its own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from niffbench.errors import NiffbenchError, UsageError
from niffbench.gate.checkout import Code
from niffbench.gate.latencies import Pairing
from niffbench.gate.spawned import measured
from niffbench.results import MANIFEST, RECORDS, Run, dump


@dataclass(frozen=True)
class Orders:
    """What every round of either side is asked to do.

    ``suite`` is a name, and then each side runs its own suite of that name, or a file that both run.
    """

    suite: str
    device: str
    seed: int
    only: tuple[str, ...] = ()

    def arguments(self, pair: int) -> list[str]:
        """The arguments of one round. Both of a pair get one seed, so that they visit cases in one order."""
        filters = [part for pattern in self.only for part in ("--only", pattern)]
        seed = str(self.seed + pair)
        return [
            *(self.suite, "--rounds", "1", "--seed", seed, "--device", self.device),
            *("--no-report", "--quiet", *filters),
        ]


def base_first(pair: int) -> bool:
    """ABBA: base leads in every second pair, so that a steady drift of the machine favours neither."""
    return pair % 2 == 0


def abba(base: Run, head: Run) -> Pairing:
    """The pairing of two runs that :func:`measure` made. Raises UsageError for unlike numbers of rounds."""
    rounds = base.manifest.rounds, head.manifest.rounds
    if rounds[0] != rounds[1]:
        raise UsageError(f"{base.name} and {head.name} are no pair: they have {rounds[0]} and {rounds[1]} rounds")
    return Pairing(tuple(map(base_first, range(rounds[0]))))


def measure(
    base: Code, head: Code, orders: Orders, pairs: int, out: Path, progress: Callable[[int, str], None]
) -> tuple[Run, Run]:
    """Run ``pairs`` rounds of both sides in ABBA order; returns both as runs of so many rounds.

    The rounds stay under ``out/rounds``; the runs are written to ``out/base`` and ``out/head`` anew after each
    pair, so that an interruption loses at most the pair it struck. ``progress`` is told the number of the pair
    and the side's name before each round.

    Raises what a round failed with, and KeyboardInterrupt.
    """
    if pairs < 1:
        raise UsageError(f"--rounds should be at least 1, got {pairs}")
    sides = {"base": base, "head": head}
    rounds: dict[str, list[Run]] = {name: [] for name in sides}
    for pair in range(pairs):
        for name in ("base", "head") if base_first(pair) else ("head", "base"):
            progress(pair, name)
            rounds[name].append(_round(sides[name], orders, out / "rounds" / f"{pair:03}-{name}", pair))
        merged = {name: _write(_merged(rounds[name], sides[name], out / name)) for name in sides}
    return merged["base"], merged["head"]


def _round(code: Code, orders: Orders, out: Path, pair: int) -> Run:
    try:
        return measured(code.python, orders.arguments(pair), out, code.environment())
    except NiffbenchError as error:
        raise type(error)(f"{code.name}: {error}") from error


def _merged(rounds: Sequence[Run], code: Code, place: Path) -> Run:
    """Runs of one round each as one run of many, in their order."""
    first, last = rounds[0].manifest, rounds[-1].manifest
    manifest = first.model_copy(
        update={
            "settings": first.settings.model_copy(update={"rounds": len(rounds)}),
            "finished": last.finished,
            "wall": sum(run.manifest.wall or 0.0 for run in rounds),
            "commit": code.commit,
            "dirty": code.dirty,
        }
    )
    records = [replace(record, round=i) for i, run in enumerate(rounds) for record in run.records]
    return Run(place, manifest, tuple(records))


def _write(run: Run) -> Run:
    run.path.mkdir(parents=True, exist_ok=True)
    (run.path / MANIFEST).write_text(run.manifest.model_dump_json(indent=1), encoding="utf-8")
    with (run.path / RECORDS).open("wb") as journal:
        journal.writelines(map(dump, run.records))
    return run
