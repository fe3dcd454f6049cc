"""What a session needs of a place where workers run, whatever engine starts them there."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Protocol, Self

from niffbench import protocol
from niffbench.errors import NiffbenchError, UsageError


class WorkerBroken(NiffbenchError):
    """No worker can be started, or none that works."""

    exit_code = 3


@dataclass(frozen=True)
class WorkerEnd:
    """The worker is gone: the ``cause``, as the predicate of a sentence, and the last lines it printed.

    Attributes:
        taken: it was taken away, with its machine or by whoever lent that; no case is to blame, and another
            worker may fare better.
        recalled: ... by whoever lent that, who may do so as often as they like.
        node: what an engine calls a machine on which workers end without a word.
    """

    cause: str
    last_lines: tuple[str, ...] = ()
    taken: bool = False
    recalled: bool = False
    node: str | None = None

    def during(self, stage: str | None = None) -> str:
        """The cause, what the worker was doing, and its last lines."""
        where = f" during {stage}" if stage else ""
        lines = f"; its last lines: {' | '.join(self.last_lines)}" if self.last_lines else ""
        return f"the worker {self.cause}{where}{lines}"


class Worker(Protocol):
    """A worker that was given one task. Leaving the with block ends it and all that it started.

    Attributes:
        is_queued: whether it still waits for a place to run in.
    """

    @property
    def is_queued(self) -> bool: ...

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...

    def next(self, deadline: float) -> protocol.Reply | WorkerEnd | None:
        """Sleep until there is a message, and return it.

        Returns the worker's end once all its messages were given out, None at ``deadline`` (``time.monotonic``),
        when it is queued no more, and when the descriptor given to :meth:`Launcher.start` became readable.
        """

    def arrived(self) -> list[protocol.Reply]:
        """The messages that :meth:`next` would give without sleeping."""

    def kill(self) -> None:
        """End the worker and all that it started, now. Called from a signal handler, and more than once."""


@dataclass(frozen=True)
class Request:
    """What a run asks of the place where its workers run; None is what the launcher thinks best.

    Attributes:
        directory: the run's, which need not be there yet.
        device: as ``--device`` says it.
        workers: how many run at once. Each has ``gpus`` and ``cpus`` for itself.
        options: the engine's own, from ``--launcher-option``.
        files: of the user's, which must be the same wherever workers run.
        say: shows the person at the terminal a line.
    """

    directory: Path
    device: str = "auto"
    workers: int | None = None
    gpus: int | None = None
    cpus: int | None = None
    options: Mapping[str, str] = field(default_factory=dict)
    files: Sequence[Path] = ()
    say: Callable[[str], None] = field(default=lambda line: None)


class Launcher:
    """Starts workers in one kind of place, while it is open.

    Attributes:
        workers: how many it runs at once.
        devices: of this machine, on which it does, where these are several.
        is_here: whether they run on this machine.
        tries: so many of them may be taken away from a case before it is given up in a round.
    """

    workers = 1
    devices: Sequence[str] = ()
    is_here = True
    tries = 1

    @contextmanager
    def open(self, request: Request) -> Iterator[None]:
        """Make ready to start what a run requests; leaving the with block gives back all that was taken for it.

        Raises:
            UsageError: when that cannot be had, or a machine that workers would run on is not fit for it.
        """
        refuse_options(request, type(self).__module__.rpartition(".")[2])
        yield

    def announce(self, tasks: Sequence[protocol.Task]) -> None:
        """Tasks that will be started in this order unless something goes wrong: they may be submitted at once."""

    def left_behind(self, directory: Path) -> Iterable[Sequence[protocol.Reply]]:
        """What workers of earlier sessions of a run said that nobody heard, of each worker from its hello on.

        Asked of one that is not open, by who has the run's lock: what still runs of them is ended.
        """
        return ()

    def forget(self, directory: Path) -> None:
        """Remove what :meth:`left_behind` would read of a run, which is finished."""

    def nodes(self) -> Collection[str] | None:
        """The names of all nodes on which workers may be started; None while the engine does not say."""
        return ()

    def avoid(self, *nodes: str) -> bool:
        """Start no more workers on nodes, by the names workers say; False, and no change, where none is left."""
        return False

    def end_all(self) -> None:
        """End all workers, now. Called from a signal handler."""

    def leave_all(self) -> None:
        """Leave workers that can go on without the session when it ends. Called from a signal handler."""

    @property
    def leftovers(self) -> str | None:
        """What of it still runs now that it is closed, in words."""
        return None

    def start(self, task: protocol.Task, wake: int) -> Worker:
        """Start a worker on ``task``; ``wake`` is a descriptor that ends its :meth:`Worker.next` when readable.

        Called in any thread.

        Raises:
            WorkerBroken: when none can be started.
        """
        raise NotImplementedError


def refuse_options(request: Request, name: str) -> None:
    """Raise UsageError for what is asked of a launcher that has nothing of it."""
    asked = {
        "--workers": request.workers,
        "--gpus-per-worker": request.gpus,
        "--cpus-per-worker": request.cpus,
        "--launcher-option": request.options or None,
    }
    for option, value in asked.items():
        if value is not None:
            raise UsageError(f"{option}: '{name}' runs one worker at a time; take --on ray or --on slurm")
