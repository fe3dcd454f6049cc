"""A run measured by a process of its own: another interpreter's, or another version's, command line."""

from __future__ import annotations

import signal
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from niffbench.errors import FingerprintsDiffer, NiffbenchError, NothingMeasured, UsageError
from niffbench.results import MANIFEST, Run, read

GRACE = 10.0
"""Seconds an interrupted process has to end by itself before it is killed."""


def measured(
    python: str, arguments: Sequence[str], out: Path, environment: Mapping[str, str], *, quiet: bool = True
) -> Run:
    """Run ``niffbench run ARGUMENTS --out OUT`` with the interpreter ``python`` and read what it left in ``out``.

    What the process says goes to a log beside ``out``, or is heard if not ``quiet``. On KeyboardInterrupt it is
    ended as Ctrl-C would end it.

    Raises an error of the same exit code as the process's, with its last lines.
    """
    out.parent.mkdir(parents=True, exist_ok=True)
    log = out.with_name(f"{out.name}.log")
    with log.open("wb") as output, tempfile.TemporaryDirectory(prefix="niffbench-cwd-") as nowhere:
        process = subprocess.Popen(
            [python, "-P", "-m", "niffbench.cli", "run", *arguments, "--out", str(out.absolute())],
            cwd=nowhere,  # nothing there that could be imported by accident
            env=dict(environment),
            stdin=subprocess.DEVNULL,
            stdout=output if quiet else None,
            stderr=subprocess.STDOUT if quiet else None,
            start_new_session=True,
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
