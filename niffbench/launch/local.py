"""Workers as processes of this machine."""

from __future__ import annotations

import contextlib
import os
import selectors
import signal
import site
import subprocess
import sys
import tempfile
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType

from pydantic import ValidationError

from niffbench import protocol
from niffbench.anonymize import anonymize
from niffbench.device import is_forkable
from niffbench.launch.base import Launcher, Request, WorkerBroken, WorkerEnd
from niffbench.launch.forks import PATIENCE, Forked, Forks

_MAX_LINE = 64_000_000
_MAX_OUTPUT = 65536  # bytes of the worker's output that are kept
_LAST_LINES = 6
_LINE_LENGTH = 300


@dataclass(frozen=True)
class LocalLauncher(Launcher):
    """Starts ``command`` with ``--reply-fd N``; ``-P`` keeps a stray ``random.py`` of this directory out of it.

    While it is open, surveys and rounds of probes on a CPU, which are short, are forks where that is possible. The
    process that a survey was forked from is the next round's, which need not load all once more.

    Attributes:
        folder: where it runs, if that is there; None: here.
        variables: of its environment, in the place of the session's own; None for one that it is not to have.
    """

    command: Sequence[str] = (sys.executable, "-P", "-m", "niffbench.worker.main")
    folder: str | None = None
    variables: Mapping[str, str | None] = field(default_factory=dict)
    _forks: list[Forks] = field(default_factory=list, init=False, compare=False)

    @contextlib.contextmanager
    def open(self, request: Request) -> Iterator[None]:
        """Refuse what is nothing of this launcher's; end afterwards what forks workers."""
        with super().open(request):
            if sys.platform == "linux" and self.command == type(self).command:
                self._forks.append(Forks())
            try:
                yield
            finally:
                while self._forks:
                    self._forks.pop().close()

    def start(self, task: protocol.Task, wake: int) -> LocalWorker:
        """Start a worker process on ``task``.

        Raises:
            WorkerBroken: when that fails.
        """
        variables = {**_environment(), **self.variables}
        environment = {name: value for name, value in variables.items() if value is not None}
        folder = self.folder if self.folder is not None and Path(self.folder).is_dir() else None
        forks = self._forks[-1] if self._forks and is_forkable(task.settings.device) else None
        return LocalWorker(self.command, task, wake, folder, environment, forks)


LAUNCHER = LocalLauncher()


class LocalWorker:
    """A process in a session of its own, so that a signal to the terminal does not reach it.

    Its task is its standard input, its replies come through a pipe of their own, and the end of what it prints is
    kept for :class:`WorkerEnd`.
    """

    is_queued = False

    def __init__(
        self,
        command: Sequence[str],
        task: protocol.Task,
        wake: int,
        folder: str | None,
        environment: Mapping[str, str],
        forks: Forks | None = None,
    ) -> None:
        self._replies: deque[protocol.Reply] = deque()
        self._partial = bytearray()
        self._output = b""
        self._ended = self._killed = False
        self._fault: str | None = None
        self._process: subprocess.Popen[bytes] | Forked
        self._selector = selectors.DefaultSelector()
        self._reply, theirs = os.pipe()
        try:
            with tempfile.TemporaryFile() as stdin:  # a file: a pipe would block until the worker reads
                stdin.write(protocol.write(task))
                stdin.seek(0)
                is_of_suite = task.kind == "round" and task.round < task.settings.rounds
                wish = protocol.ITSELF if is_of_suite else protocol.FORK
                loaded = None if forks is None else forks.worker(wish, stdin.fileno(), theirs, environment, wake)
                self._process = loaded or subprocess.Popen(
                    [*command, "--reply-fd", str(theirs)],
                    stdin=stdin,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.STDOUT,
                    pass_fds=(theirs,),
                    start_new_session=True,
                    cwd=folder,
                    env=environment,
                )
        except OSError as error:
            os.close(self._reply)
            raise WorkerBroken(f"a worker process could not be started ({error.strerror})") from error
        finally:
            os.close(theirs)
        assert self._process.stdout is not None
        self._printed = self._process.stdout.fileno()
        self._opened = [self._reply]
        self._watch(self._reply, self._read_replies)
        self._watch(self._printed, self._read_output)
        if hasattr(os, "pidfd_open"):  # Linux; elsewhere the end of the reply pipe tells of the worker's
            self._opened.append(os.pidfd_open(self._process.pid))
            self._selector.register(self._opened[-1], selectors.EVENT_READ, self._end)
        self._selector.register(wake, selectors.EVENT_READ, None)

    def __enter__(self) -> LocalWorker:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.kill()
        self._selector.close()
        for descriptor in self._opened:
            os.close(descriptor)
        assert self._process.stdout is not None
        self._process.stdout.close()

    def next(self, deadline: float) -> protocol.Reply | WorkerEnd | None:
        """The next message, the worker's end, or None at ``deadline`` or a wake-up."""
        while not self._replies and not self._ended:
            ready = self._selector.select(max(0.0, deadline - time.monotonic()))
            for key, _ in ready:
                if key.data is None:
                    return None
                key.data()
            if not ready:
                return None
        return self._replies.popleft() if self._replies else self._worker_end()

    def arrived(self) -> list[protocol.Reply]:
        """The messages that are there already."""
        if not self._ended:
            self._read_replies()
        replies = list(self._replies)
        self._replies.clear()
        return replies

    def kill(self) -> None:
        """End the process and everything it started, now."""
        if self._killed:  # its number may be another's by now
            return
        self._killed = True
        with contextlib.suppress(ProcessLookupError, PermissionError):  # macOS: the latter for a dead group
            os.killpg(self._process.pid, signal.SIGKILL)
        with contextlib.suppress(subprocess.TimeoutExpired):  # stuck in a driver: nothing more can be done
            self._process.wait(PATIENCE)

    def _watch(self, descriptor: int, read: Callable[[], object]) -> None:
        os.set_blocking(descriptor, False)
        self._selector.register(descriptor, selectors.EVENT_READ, read)

    def _read_replies(self) -> bool:
        """Read replies; False when there is nothing to read now."""
        if not (data := self._read(self._reply)):
            if self._reply not in self._selector.get_map():
                self._end()
            return False
        *whole, rest = data.split(b"\n")
        for piece in whole:
            self._partial += piece
            self._parse(bytes(self._partial))
            self._partial.clear()
        self._partial += rest
        if len(self._partial) > _MAX_LINE:
            self._break_off(f"sent a message of more than {_MAX_LINE:,} bytes")
        return True

    def _parse(self, line: bytes) -> None:
        try:
            self._replies.append(protocol.read(line))
        except ValidationError as error:
            fault = error.errors(include_url=False, include_input=False)[0]
            key = ".".join(str(part) for part in fault["loc"])
            self._break_off(f"sent what is no message ({key}: {fault['msg']})")

    def _break_off(self, fault: str) -> None:
        self._fault = self._fault or fault
        self._partial.clear()
        self._end()

    def _read_output(self) -> bool:
        """Read what was printed, and keep the end of it; False when there is nothing to read now."""
        data = self._read(self._printed)
        self._output = (self._output + data)[-_MAX_OUTPUT:]
        return bool(data)

    def _read(self, descriptor: int) -> bytes:
        try:
            data = os.read(descriptor, _MAX_OUTPUT)
        except BlockingIOError:
            return b""
        if not data and descriptor in self._selector.get_map():  # else read to its end when the process ended
            self._selector.unregister(descriptor)
        return data

    def _end(self) -> None:
        """The process is going, or must go: kill what it leaves behind, then take what is still in the pipes."""
        if self._ended:
            return
        self._ended = True
        if self._fault is None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(PATIENCE)
        self.kill()
        watched = self._selector.get_map()
        while self._fault is None and self._reply in watched and self._read_replies():
            pass
        while self._printed in watched and self._read_output():
            pass

    def _worker_end(self) -> WorkerEnd:
        status = self._process.poll()
        if self._fault:
            cause = self._fault
        elif status is None:
            cause = "hangs in a driver and cannot be killed"
        elif status < 0:
            cause = f"was killed by {_signal_name(-status)}"
        else:
            cause = f"exited with status {status}"
        text = anonymize(self._output.decode("utf-8", "replace"))
        lines = [line.strip()[:_LINE_LENGTH] for line in text.splitlines() if line.strip()]
        # Whoever kills so, the kernel for want of memory say, asks no case first.
        return WorkerEnd(cause, tuple(lines[-_LAST_LINES:]), taken=status == -signal.SIGKILL)


def _signal_name(number: int) -> str:
    try:
        name = signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
    return f"{name} (so the kernel ends a process when memory runs out)" if name == "SIGKILL" else name


def _environment() -> dict[str, str | None]:
    """The session's own, and the way to this very package where it is not installed but run from a checkout."""
    root = str(Path(__file__).parents[2])
    if root in (*site.getsitepackages(), site.getusersitepackages()):
        return dict(os.environ)
    path = os.pathsep.join(filter(None, (root, os.environ.get("PYTHONPATH"))))
    return {**os.environ, "PYTHONPATH": path}
