"""The launcher ``several``: three workers of ``stub_worker.py`` at once, as on as many machines of an engine."""

from __future__ import annotations

import itertools
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from launchers.stub import COMMAND

from niffbench import protocol
from niffbench.launch.base import Request, Worker, WorkerEnd
from niffbench.launch.engine import EngineLauncher
from niffbench.launch.local import LocalLauncher


@dataclass
class SilentWorker:
    """Its end is all that is heard of it."""

    end: WorkerEnd
    is_queued = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()

    def next(self, deadline: float) -> WorkerEnd:
        return self.end

    def arrived(self) -> list[protocol.Reply]:
        return []

    def kill(self) -> None:
        pass


class Several(EngineLauncher):
    """Remembers what a session told it.

    Attributes:
        left: what it says was left behind.
        rack: the names of its nodes, on which workers are started in turn; without, nobody names any.
        started: the nodes on which they were.
        silent: nodes on which they end without a word.
        recalls: so many of the next workers are preempted before they say one.
    """

    workers = 3

    def __init__(self) -> None:
        super().__init__()
        self.announced: list[protocol.Task] = []
        self.left: list[list[protocol.Reply]] = []
        self.rack: Sequence[str] = ()
        self.started: list[str] = []
        self.silent: set[str] = set()
        self.recalls = 0
        self._turn = itertools.count()

    @contextmanager
    def open(self, request: Request) -> Iterator[None]:
        self.avoided.clear()
        yield

    def announce(self, tasks: Sequence[protocol.Task]) -> None:
        self.announced[:] = tasks

    def left_behind(self, directory: Path) -> Iterable[Sequence[protocol.Reply]]:
        return self.left

    def nodes(self) -> Collection[str]:
        return self.rack

    def start(self, task: protocol.Task, wake: int) -> Worker:
        fit = [node for node in self.rack if node not in self.avoided]
        node = fit[next(self._turn) % len(fit)] if fit else None
        self.started += [node] if node else []
        if self.recalls and task.kind == "round":
            self.recalls -= 1
            return SilentWorker(WorkerEnd("was preempted", taken=True, recalled=True))
        if node in self.silent:
            return SilentWorker(WorkerEnd("left nothing", taken=True, node=node))
        return LocalLauncher(COMMAND, variables={"STUB_NODE": node}).start(task, wake)


LAUNCHER = Several()
