"""A/B runs: two pieces of code measured round by round in turn, each in processes of its own."""

from __future__ import annotations

import hashlib
import json
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from niffbench.device.host import die_with_parent
from niffbench.errors import FingerprintsDiffer, HeadFails, NiffbenchError, NothingMeasured, UsageError
from niffbench.gate.checkout import Code, with_absolute_path
from niffbench.gate.latencies import Pairing
from niffbench.results import MANIFEST, RECORDS, Run, dump, read
from niffbench.suite import read_text

PLAN = "ab.json"
"""In an A/B run's directory: what is compared, and how, for who resumes it."""


@dataclass(frozen=True)
class Orders:
    """What every round of either side is asked to do.

    Attributes:
        suite: A name, and then each side runs its own suite of that name, or a file that both run.
        inside: Where that file is in each side's tree.
        options: Of ``niffbench run``, for every round.
        budget: Seconds for all rounds together.
    """

    suite: str
    device: str
    seed: int
    only: tuple[str, ...] = ()
    inside: str | None = None
    options: tuple[str, ...] = ()
    budget: float | None = None

    def arguments(self, pair: int, code: Code | None = None) -> list[str]:
        """The arguments of one round. Both of a pair get one seed, so that they visit cases in one order."""
        filters = [part for pattern in self.only for part in ("--only", pattern)]
        seed = str(self.seed + pair)
        suite = self.suite
        if self.inside is not None and code is not None and code.path is not None:
            suite = str(code.path / self.inside)
        return [
            *(suite, "--rounds", "1", "--seed", seed, "--device", self.device),
            *("--no-report", "--quiet", *filters, *self.options),
        ]

    def plan(self, base: Code, head: Code, pairs: int) -> str:
        """What must be the same when it is resumed, as JSON."""
        sides = {
            c: (code.commit, code.digest, code.own or code.python) for c, code in (("base", base), ("head", head))
        }
        file = Path(self.suite)
        text = hashlib.sha256(file.read_bytes()).hexdigest() if file.is_file() else None
        return json.dumps({"pairs": pairs, **asdict(self), "text": text, **sides}, indent=1)


def base_first(pair: int) -> bool:
    """ABBA: base leads in every second pair, so that a steady drift of the machine favours neither."""
    return pair % 2 == 0


def abba(base: Run, head: Run) -> Pairing:
    """The pairing of two runs that :func:`measure` made.

    Raises:
        UsageError: for unlike numbers of rounds.
    """
    rounds = base.manifest.rounds, head.manifest.rounds
    if rounds[0] != rounds[1]:
        raise UsageError(f"{base.name} and {head.name} are no pair: they have {rounds[0]} and {rounds[1]} rounds")
    return Pairing(tuple(map(base_first, range(rounds[0]))))


def measure(
    base: Code, head: Code, orders: Orders, pairs: int, out: Path, progress: Callable[[int, str], None]
) -> tuple[Run, Run]:
    """Run ``pairs`` rounds of both sides in ABBA order; returns both as runs of so many rounds.

    The rounds stay under ``out/rounds``; the runs are written to ``out/base`` and ``out/head`` anew after each
    pair, so that an interruption loses at most the round it struck: what is whole there is not measured again.
    ``progress`` is told the number of the pair and the side's name before each round.

    Raises what a round failed with, UsageError when ``out`` holds another comparison, and KeyboardInterrupt.
    """
    if pairs < 1:
        raise UsageError(f"--rounds should be at least 1, got {pairs}")
    plan = orders.plan(base, head, pairs)
    out.mkdir(parents=True, exist_ok=True)
    if (out / PLAN).exists() and read_text(out / PLAN, "the plan of a comparison") != plan:
        raise UsageError(f"{out}: was begun with other code or options; leave --resume out to begin anew")
    (out / PLAN).write_text(plan, encoding="utf-8")
    sides = {"base": base, "head": head}
    ends = None if orders.budget is None else time.monotonic() + orders.budget
    rounds: dict[str, list[Run]] = {name: [] for name in sides}
    for pair in range(pairs):
        for name in ("base", "head") if base_first(pair) else ("head", "base"):
            progress(pair, name)
            left = 2 * pairs - sum(map(len, rounds.values()))
            share = [] if ends is None else ["--time-budget", f"{max(1.0, (ends - time.monotonic()) / left):.1f}s"]
            rounds[name].append(_round(sides[name], orders, out / "rounds" / f"{pair:03}-{name}", pair, share))
        merged = {name: _write(_merged(rounds[name], sides[name], out / name)) for name in sides}
    return merged["base"], merged["head"]


def _round(code: Code, orders: Orders, out: Path, pair: int, share: Sequence[str]) -> Run:
    if (out / MANIFEST).is_file():
        if (run := read(out)).manifest.finished is not None:
            return run
        shutil.rmtree(out)
    try:
        arguments = [*orders.arguments(pair, code), *share]
        return measured(code.python, arguments, out, code.environment(), cwd=code.path or out.parent)
    except NiffbenchError as error:
        kind = type(error)
        if kind is NothingMeasured and code.broken is HeadFails:
            kind = HeadFails
        raise kind(f"{code.name}: {error}") from error


def _merged(rounds: Sequence[Run], code: Code, place: Path) -> Run:
    """Runs of one round each as one run of many, in their order."""
    first, last = rounds[0].manifest, rounds[-1].manifest
    manifest = first.model_copy(
        update={
            "settings": first.settings.model_copy(update={"rounds": len(rounds)}),
            "finished": last.finished,
            "wall": sum(run.manifest.wall or 0.0 for run in rounds),
            # Of a tree, which is a copy; what an interpreter has installed knows its own.
            **({"commit": code.commit, "dirty": code.dirty} if code.path is not None else {}),
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


GRACE = 10.0
"""Seconds an interrupted process has to end by itself before it is killed."""


def measured(
    python: str,
    arguments: Sequence[str],
    out: Path,
    environment: Mapping[str, str],
    *,
    cwd: Path,
    quiet: bool = True,
) -> Run:
    """Run ``niffbench run ARGUMENTS --out OUT`` with the interpreter ``python`` and read what it left in ``out``.

    What the process says goes to a log beside ``out``, or is heard if not ``quiet``. On KeyboardInterrupt it is
    ended as Ctrl-C would end it, and with this process, however that ends, it ends too.

    Raises an error of the same exit code as the process's, with its last lines.
    """
    out.parent.mkdir(parents=True, exist_ok=True)
    log = out.with_name(f"{out.name}.log")
    with log.open("wb") as output:
        process = subprocess.Popen(
            [python, "-P", "-m", "niffbench.cli", "run", *arguments, "--out", str(out.absolute())],
            cwd=cwd,
            # Neither crossovers nor shares of a roofline are judged.
            env={**with_absolute_path(environment), "NIFFBENCH_REFINE": "0", "NIFFBENCH_ROOFLINE": "0"},
            stdin=subprocess.DEVNULL,
            stdout=output if quiet else None,
            stderr=subprocess.STDOUT if quiet else None,
            start_new_session=True,
            preexec_fn=die_with_parent,
        )
        try:
            status = process.wait()
        except BaseException:
            _end(process)
            raise
    if status == 0:
        return read(out)
    if status == NothingMeasured.exit_code and (out / MANIFEST).is_file() and (run := read(out)).records:
        return run  # its records say why
    said = log.read_text(errors="replace").strip().splitlines()
    raise _failure(status, " ".join(line.strip() for line in said[-6:])[-800:] or "it said nothing")


def _failure(status: int, said: str) -> NiffbenchError:
    if status == UsageError.exit_code:
        return UsageError(said)
    if status == FingerprintsDiffer.exit_code:
        return FingerprintsDiffer(said)
    return NothingMeasured(f"niffbench run ended with status {status}: {said}")


def _end(process: subprocess.Popen[bytes]) -> None:
    process.send_signal(signal.SIGINT)
    try:
        with suppress(subprocess.TimeoutExpired):
            process.wait(GRACE)
    finally:  # out of patience, ours or the user's: nothing is left running in its session
        if process.poll() is None:
            process.kill()
            process.wait()
