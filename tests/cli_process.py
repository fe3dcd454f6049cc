"""``niffbench`` as a process that something happens to: started, watched from outside, interrupted."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import psutil
from warm_process import CLI, FORKING, WORKER, load, named, start

from niffbench.results import RECORDS

_MARK = "NIFFBENCH_TEST_MARK"
_TRIES = 120.0  # seconds after which something that was waited for does not happen
_SLACK = 5.0  # seconds by which a process may seem older than it is


def suite(place: Path, sizes: Iterable[int], *, rounds: int = 2, **measure: Any) -> list[str]:
    """Write ``made-up.toml``, three cases a size, and ``r.json``; returns the arguments that run it."""
    settings = {"min_time": 0.01, "max_time": 0.05, "min_samples": 5, "case_timeout": 60, **measure}
    (place / "made-up.toml").write_text(
        'description = "made up"\n'
        'baseline = "depthwise-k3"\n'
        f"rounds = {rounds}\n"
        f"axes = {{channels = 4, size = {list(sizes)}}}\n"
        'operators = [{name = "depthwise", kernel = [3, 5]}, {name = "fft-depthwise-k3"}]\n'
        f"measure = {{{', '.join(f'{key} = {value}' for key, value in settings.items())}}}\n"
    )
    replay(place)
    return ["run", "made-up.toml", "--device", "replay:r.json", "--out", "out", "--seed", "1"]


def replay(place: Path, **trace: Any) -> None:
    """What the device ``replay:r.json`` plays from now on."""
    (place / "r.json").write_text(json.dumps(trace))


class Started:
    """``niffbench`` in a process group of its own, as a terminal would start it; leaving the with block kills it.

    It prints to files, so that nobody has to read while it runs.

    Args:
        limits: of its resources, by their names, as ``FSIZE``.
        ignored: signals that it is told to ignore, as by ``nohup`` or ``trap '' INT``.
        variables: of its environment, beside this process's own.
    """

    def __init__(
        self,
        place: Path,
        arguments: Iterable[str],
        *,
        limits: Mapping[str, int] | None = None,
        ignored: Sequence[int] = (),
        variables: Mapping[str, str] | None = None,
    ) -> None:
        self.mark = uuid.uuid4().hex
        self._began = time.time()
        self._out, self._err = tempfile.TemporaryFile(), tempfile.TemporaryFile()  # noqa: SIM115
        self.process = start(
            [*arguments],
            {**os.environ, "COLUMNS": "200", **(variables or {}), _MARK: self.mark},
            cwd=place,
            stdout=self._out.fileno(),
            stderr=self._err.fileno(),
            tag=self.mark,
            limits=limits,
            ignored=ignored,
        )

    def __enter__(self) -> Started:
        return self

    def __exit__(self, *_: object) -> None:
        for process in self.family():
            with contextlib.suppress(psutil.Error):
                process.kill()
        self.process.wait()

    def out(self) -> str:
        """What it printed so far on standard output."""
        return os.pread(self._out.fileno(), 2**24, 0).decode()

    def err(self) -> str:
        """... and on standard error."""
        return os.pread(self._err.fileno(), 2**24, 0).decode()

    def said(self) -> str:
        """What it printed so far, on one channel and then on the other."""
        return self.out() + self.err()

    def strike(self, number: int) -> None:
        """A signal to the whole group, as from the keyboard."""
        os.killpg(self.process.pid, number)

    def kill(self) -> None:
        """The end of the session alone, without a word; its worker has a group of its own."""
        self.process.kill()
        self.process.wait()

    def end(self) -> int:
        """Wait for it; returns the exit status."""
        return self.process.wait(_TRIES)

    def family(self) -> list[psutil.Process]:
        """What is alive of it and of all that it started, whoever is their parent by now."""
        return self._alive(
            lambda process: (
                process.name() in named(self.mark, CLI, WORKER, FORKING)
                or process.environ().get(_MARK) == self.mark
            )
        )

    def workers(self) -> list[psutil.Process]:
        """Those of the family that are workers, and what is to fork them or be one."""
        return self._alive(
            lambda process: (
                process.name() in named(self.mark, WORKER, FORKING)
                or ({WORKER, FORKING} & {*process.cmdline()} and process.environ().get(_MARK) == self.mark)
            )
        )

    def _alive(self, is_one: Callable[[psutil.Process], bool]) -> list[psutil.Process]:
        result = []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                # Whoever waits asks a hundred times a second: older processes are not looked at.
                young = process.create_time() > self._began - _SLACK
                if young and process.status() != psutil.STATUS_ZOMBIE and is_one(process):
                    result.append(process)
        return result


def wait_for(what: Callable[[], object]) -> None:
    """Until ``what`` is true."""
    end = time.monotonic() + _TRIES
    while time.monotonic() < end:
        if what():
            return
        time.sleep(0.01)
    raise AssertionError("it does not get anywhere")


def count(directory: Path) -> int:
    """Whole records in the journal of ``directory``."""
    try:
        return (directory / RECORDS).read_bytes().count(b"\n")
    except FileNotFoundError:
        return 0


@contextlib.contextmanager
def busy(processes: int) -> Iterator[None]:
    """So many processes that take all of a core each."""
    load()
    spinning = [subprocess.Popen([sys.executable, "-S", "-c", "while True: pass"]) for _ in range(processes)]
    try:
        yield
    finally:
        for process in spinning:
            process.kill()
            process.wait()


def interrupt(started: Started) -> float:
    """Ctrl-C: seconds until the terminal has its prompt back."""
    begun = time.monotonic()
    started.strike(signal.SIGINT)
    started.end()
    return time.monotonic() - begun
