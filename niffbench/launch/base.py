"""What a session needs of a place where workers run, whatever engine starts them there."""

from __future__ import annotations

from dataclasses import dataclass
from types import TracebackType
from typing import Protocol, Self

from niffbench import protocol
from niffbench.errors import NiffbenchError


class WorkerBroken(NiffbenchError):
    """No worker can be started, or none that works."""

    exit_code = 3


@dataclass(frozen=True)
class WorkerEnd:
    """The worker is gone: the ``cause``, as the predicate of a sentence, and the last lines it printed."""

    cause: str
    last_lines: tuple[str, ...] = ()

    def during(self, stage: str | None = None) -> str:
        """The cause, what the worker was doing, and its last lines."""
        where = f" during {stage}" if stage else ""
        lines = f"; its last lines: {' | '.join(self.last_lines)}" if self.last_lines else ""
        return f"the worker {self.cause}{where}{lines}"


class Worker(Protocol):
    """A worker that was given one task. Leaving the with block ends it and all that it started."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...

    def next(self, deadline: float) -> protocol.Reply | WorkerEnd | None:
        """Sleep until there is a message, and return it.

        Returns the worker's end once all its messages were given out, None at ``deadline`` (``time.monotonic``)
        and when the descriptor given to :meth:`Launcher.start` became readable.
        """

    def arrived(self) -> list[protocol.Reply]:
        """The messages that :meth:`next` would give without sleeping."""

    def kill(self) -> None:
        """End the worker and all that it started, now. Called from a signal handler, and more than once."""


class Launcher(Protocol):
    """Starts workers in one kind of place."""

    def start(self, task: protocol.Task, wake: int) -> Worker:
        """Start a worker on ``task``; ``wake`` is a descriptor that ends its :meth:`Worker.next` when readable.

        Raises:
            WorkerBroken: when none can be started.
        """
