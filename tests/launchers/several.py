"""The launcher ``several``: three workers of ``stub_worker.py`` at once, as on as many machines of an engine."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from launchers.stub import COMMAND

from niffbench import protocol
from niffbench.launch.base import Request
from niffbench.launch.local import LocalLauncher


@dataclass(frozen=True)
class Several(LocalLauncher):
    """Remembers what a session told it; ``left`` is what it says was left behind."""

    workers = 3
    is_here = False
    tries = 3
    announced: list[protocol.Task] = field(default_factory=list)
    left: list[list[protocol.Reply]] = field(default_factory=list)
    avoided: list[str] = field(default_factory=list)

    @contextmanager
    def open(self, request: Request) -> Iterator[None]:
        yield

    def announce(self, tasks: Sequence[protocol.Task]) -> None:
        self.announced[:] = tasks

    def left_behind(self, directory: Path) -> Iterable[Sequence[protocol.Reply]]:
        return self.left

    def avoid(self, node: str) -> bool:
        self.avoided.append(node)
        return len(self.avoided) < 3


LAUNCHER = Several(COMMAND)
