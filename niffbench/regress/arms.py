"""Arms: the two pieces of code of an A/B run, measured round by round in turn, each in processes of its own."""

from __future__ import annotations

import signal
import subprocess
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from niffbench.errors import NiffbenchError, NothingMeasured, UsageError
from niffbench.records import MANIFEST, RECORDS, Run, dump, read
from niffbench.regress.checkout import Code
from niffbench.regress.latencies import Pairing

GRACE = 10.0
"""Seconds an interrupted round has to end by itself before it is killed."""


@dataclass(frozen=True)
class Orders:
    """What every round of either arm is asked to do.

    ``suite`` is a name, and then each arm runs its own suite of that name, or a file that both run.
    """

    suite: str
    device: str
    seed: int
    only: tuple[str, ...] = ()

    def argv(self, code: Code, out: Path, pair: int) -> list[str]:
        """The command line of one round. Both rounds of a pair get one seed, so they visit the cases in one order."""
        filters = [part for pattern in self.only for part in ("--only", pattern)]
        return [
            *(code.python, "-P", "-m", "niffbench.cli", "run", self.suite),
            *("--rounds", "1", "--seed", str(self.seed + pair), "--device", self.device, "--out", str(out)),
            *filters,
        ]


def base_first(pair: int) -> bool:
    """ABBA: base leads in every second pair, so a steady drift of the machine favours neither."""
    return pair % 2 == 0


def measure(
    base: Code, head: Code, orders: Orders, pairs: int, out: Path, progress: Callable[[int, str], None]
) -> tuple[Run, Run, Pairing]:
    """Run ``pairs`` rounds of both arms in ABBA order; returns both as runs of so many rounds, and their pairing.

    The rounds stay under ``out/rounds``, the runs are written to ``out/base`` and ``out/head`` as soon as
    there is a pair, so that an interruption loses at most the pair it struck. ``progress`` is told the number of
    the pair and the arm's name before each round.

    Raises what a round failed with (UsageError, NothingMeasured), and KeyboardInterrupt.
    """
    if pairs < 1:
        raise UsageError(f"--rounds should be at least 1, got {pairs}")
    done: list[tuple[Run, Run]] = []
    for pair in range(pairs):
        arms = {"base": base, "head": head}
        rounds: dict[str, Run] = {}
        for name in ("base", "head") if base_first(pair) else ("head", "base"):
            progress(pair, name)
            rounds[name] = _round(arms[name], orders, out / "rounds" / f"{pair:03}-{name}", pair)
        done.append((rounds["base"], rounds["head"]))
        both = (_write(_merged([rounds[i] for rounds in done], out / name)) for i, name in enumerate(arms))
        merged = next(both), next(both)
    return *merged, Pairing(tuple(map(base_first, range(pairs))))


def _merged(rounds: Sequence[Run], place: Path) -> Run:
    """Runs of one round each as one run of many, in their order."""
    first, last = rounds[0].manifest, rounds[-1].manifest
    manifest = first.model_copy(update={"rounds": len(rounds), "finished": last.finished, "wall": None})
    records = [replace(record, round=i) for i, run in enumerate(rounds) for record in run.records]
    return Run(place, manifest, tuple(records))


def _write(run: Run) -> Run:
    run.path.mkdir(parents=True, exist_ok=True)
    (run.path / MANIFEST).write_text(run.manifest.model_dump_json(indent=1), encoding="utf-8")
    with (run.path / RECORDS).open("wb") as journal:
        journal.writelines(map(dump, run.records))
    return run


def _round(code: Code, orders: Orders, out: Path, pair: int) -> Run:
    out.parent.mkdir(parents=True, exist_ok=True)
    log = out.with_suffix(".log")
    with log.open("wb") as output, tempfile.TemporaryDirectory(prefix="niffbench-cwd-") as nowhere:
        process = subprocess.Popen(
            orders.argv(code, out.absolute(), pair),
            cwd=nowhere,  # nothing there to import by accident
            env=code.environment(),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            status = process.wait()
        except BaseException:
            _end(process)
            raise
    if status == 0:
        return read(out)
    said = log.read_text(errors="replace").strip().splitlines()
    raise _failure(
        status, f"{code.name}: its round {pair} ended with status {status}: {' '.join(said[-3:])[-600:]}"
    )


def _failure(status: int, message: str) -> NiffbenchError:
    return NothingMeasured(message) if status != 2 else UsageError(message)


def _end(process: subprocess.Popen[bytes]) -> None:
    """Ask the round to end, as Ctrl-C would, and kill it when it does not."""
    process.send_signal(signal.SIGINT)
    try:
        process.wait(GRACE)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
