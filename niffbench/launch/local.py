"""One worker process, seen from the manager: its messages, its silence, its death."""

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
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from pydantic import ValidationError

from niffbench import protocol
from niffbench.anonymize import anonymize
from niffbench.errors import NiffbenchError

WORKER = (sys.executable, "-P", "-m", "niffbench.worker.main")
"""The worker's command line; ``-P`` keeps a stray ``random.py`` of the current directory out of it."""

_MAX_LINE = 64_000_000
_MAX_OUTPUT = 65536  # bytes of the worker's output that are kept
_LAST_LINES = 6
_LINE_LENGTH = 300
_PATIENCE = 1.0  # seconds a killed process gets to be gone


class WorkerBroken(NiffbenchError):
    """No worker can be started, or none that works."""

    exit_code = 3


@dataclass(frozen=True)
class Death:
    """The worker ended: of what, and the last lines it wrote anywhere."""

    cause: str
    last_lines: tuple[str, ...]

    def __str__(self) -> str:
        said = f"; its last lines: {' | '.join(self.last_lines)}" if self.last_lines else ""
        return self.cause + said


class Worker:
    """A worker process in a session of its own, so that a signal to the terminal does not reach it.

    Its task is its standard input, its answers come through a pipe of their own, and whatever libraries print is
    kept for :class:`Death`. ``wake`` is a descriptor that ends a wait when it becomes readable. Leaving the with
    block kills the process and all it started. Raises WorkerBroken when it cannot be started.
    """

    def __init__(self, task: protocol.Task, wake: int, command: Sequence[str] = WORKER) -> None:
        self._replies: deque[protocol.Reply] = deque()
        self._partial = bytearray()
        self._output: deque[bytes] = deque()
        self._ended = self._killed = False
        self._fault: str | None = None
        self._selector = selectors.DefaultSelector()
        self._reply, theirs = os.pipe()
        try:
            with tempfile.TemporaryFile() as stdin:  # a file: a pipe would block until the worker reads
                stdin.write(protocol.write(task))
                stdin.seek(0)
                self._process = subprocess.Popen(
                    [*command, "--reply-fd", str(theirs)],
                    stdin=stdin,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.STDOUT,
                    pass_fds=(theirs,),
                    start_new_session=True,
                    env=_environment(),
                )
        except OSError as error:
            os.close(self._reply)
            raise WorkerBroken(f"a worker process could not be started ({error.strerror})") from error
        finally:
            os.close(theirs)
        assert self._process.stdout is not None
        self._listen(self._reply, self._hear)
        self._listen(self._process.stdout.fileno(), self._overhear)
        self._exit: int | None = None
        if hasattr(os, "pidfd_open"):  # Linux; elsewhere the end of the reply pipe tells of the worker's
            self._exit = os.pidfd_open(self._process.pid)
            self._selector.register(self._exit, selectors.EVENT_READ, self._end)
        self._selector.register(wake, selectors.EVENT_READ, None)

    def __enter__(self) -> Worker:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.kill()
        self._selector.close()
        os.close(self._reply)
        if self._exit is not None:
            os.close(self._exit)
        assert self._process.stdout is not None
        self._process.stdout.close()

    def next(self, deadline: float) -> protocol.Reply | Death | None:
        """Sleep until the next message, the worker's death, ``deadline`` (``time.monotonic``) or a wake-up.

        The last two give None.
        """
        while not self._replies and not self._ended:
            ready = self._selector.select(max(0.0, deadline - time.monotonic()))
            for key, _ in ready:
                if key.data is None:
                    return None
                key.data()
            if not ready:
                return None
        return self._replies.popleft() if self._replies else self._death()

    def unheard(self) -> list[protocol.Reply]:
        """The messages that have arrived already, which :meth:`next` would give one by one."""
        if not self._ended:
            self._hear()
        arrived = list(self._replies)
        self._replies.clear()
        return arrived

    def kill(self) -> None:
        """End the process and everything it started, now."""
        if self._killed:  # its number may be another's by now
            return
        self._killed = True
        with contextlib.suppress(ProcessLookupError, PermissionError):  # macOS: the latter for a dead group
            os.killpg(self._process.pid, signal.SIGKILL)
        with contextlib.suppress(subprocess.TimeoutExpired):  # stuck in a driver: nothing more can be done
            self._process.wait(_PATIENCE)

    def last_lines(self) -> tuple[str, ...]:
        """The end of what the worker printed, fit to be kept."""
        text = anonymize(b"".join(self._output).decode("utf-8", "replace"))
        lines = [line.strip()[:_LINE_LENGTH] for line in text.splitlines() if line.strip()]
        return tuple(lines[-_LAST_LINES:])

    def _listen(self, descriptor: int, heard: Callable[[], object]) -> None:
        os.set_blocking(descriptor, False)
        self._selector.register(descriptor, selectors.EVENT_READ, heard)

    def _hear(self) -> bool:
        """Read replies; False when there is nothing to read now."""
        if not (data := self._read(self._reply)):
            if self._reply not in self._selector.get_map():
                self._end()
            return False
        *whole, rest = data.split(b"\n")
        for piece in whole:
            self._partial += piece
            self._understand(bytes(self._partial))
            self._partial.clear()
        self._partial += rest
        if len(self._partial) > _MAX_LINE:
            self._accuse(f"sent a message of more than {_MAX_LINE:,} bytes")
        return True

    def _understand(self, line: bytes) -> None:
        try:
            self._replies.append(protocol.read(line))
        except ValidationError as error:
            fault = error.errors(include_url=False, include_input=False)[0]
            key = ".".join(str(part) for part in fault["loc"])
            self._accuse(f"sent what is no message ({key}: {fault['msg']})")

    def _accuse(self, fault: str) -> None:
        self._fault = self._fault or fault
        self._partial.clear()
        self._end()

    def _overhear(self) -> bool:
        """Read what was printed, and keep the end of it; False when there is nothing to read now."""
        assert self._process.stdout is not None
        if not (data := self._read(self._process.stdout.fileno())):
            return False
        self._output.append(data)
        while sum(map(len, self._output)) - len(self._output[0]) > _MAX_OUTPUT:
            self._output.popleft()
        return True

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
                self._process.wait(_PATIENCE)
        self.kill()
        watched = self._selector.get_map()
        assert self._process.stdout is not None
        while self._fault is None and self._reply in watched and self._hear():
            pass
        while self._process.stdout.fileno() in watched and self._overhear():
            pass

    def _death(self) -> Death:
        status = self._process.poll()
        if self._fault:
            cause = f"the worker {self._fault}"
        elif status is None:
            cause = "the worker hangs in a driver and cannot be killed"
        elif status < 0:
            cause = f"the worker was killed by {_signal_name(-status)}"
        else:
            cause = f"the worker exited with status {status}"
        return Death(cause, self.last_lines())


def _signal_name(number: int) -> str:
    try:
        name = signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
    return f"{name} (so the kernel ends a process when memory runs out)" if name == "SIGKILL" else name


def _environment() -> dict[str, str]:
    """The manager's own, and the way to this very package where it is not installed but run from a checkout."""
    root = str(Path(__file__).parents[2])
    if root in (*site.getsitepackages(), site.getusersitepackages()):
        return dict(os.environ)
    path = os.pathsep.join(filter(None, (root, os.environ.get("PYTHONPATH"))))
    return {**os.environ, "PYTHONPATH": path}
