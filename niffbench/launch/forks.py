"""Workers that are forks of a process which has loaded what they load."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping
from typing import IO

from niffbench import protocol

PATIENCE = 1.0
"""Seconds a killed process gets to be gone."""
_LOADING = 300.0  # seconds that a process which is to fork workers may take to load what these need


class Forks:
    """A process that forks workers (:mod:`niffbench.worker.forking`), one at a time, and may be the last of them.

    It is started when a fork is needed.
    """

    def __init__(self) -> None:
        self._is_broken = False
        self._process: subprocess.Popen[bytes] | None = None
        self._environment: Mapping[str, str] = {}
        self._last: Forked | None = None

    def worker(
        self, wish: bytes, task: int, reply: int, environment: Mapping[str, str], wake: int
    ) -> subprocess.Popen[bytes] | Forked | None:
        """A worker that has these descriptors; None where that fails, another one is running, or none is there.

        Args:
            wish: ``protocol.FORK``, or ``ITSELF``: the process of which forks were made, if there is one.
            wake: when readable, nobody waits for a worker any more.
        """
        if self._is_broken or (self._last is not None and self._last.poll() is None):
            return None
        if self._process is None or self._process.poll() is not None or self._environment != environment:
            self.close()
            if wish == protocol.ITSELF:
                return None
            self._line, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            with theirs:
                self._process = subprocess.Popen(
                    [sys.executable, "-P", "-m", "niffbench.worker.forking"],
                    stdin=theirs.fileno(),
                    stdout=subprocess.DEVNULL,
                    stderr=subprocess.DEVNULL,
                    start_new_session=True,
                    env=environment,
                )
            self._environment = environment
        output, written = os.pipe()
        try:
            socket.send_fds(self._line, [wish], [task, written, reply])
            ready, _, _ = select.select([self._line.fileno(), wake], [], [], _LOADING)
            number = self._line.recv(32) if self._line.fileno() in ready else b""
        except OSError:
            number = b""
        finally:
            os.close(written)
        if not number:
            os.close(output)
            self.close()
            self._is_broken = True
            return None
        stdout = os.fdopen(output, "rb", buffering=0)
        if wish == protocol.FORK:
            self._last = Forked(int(number), self._line, stdout)
            return self._last
        worker = self._process
        worker.stdout = stdout
        self._line.close()
        self._process = self._last = None
        return worker

    def close(self) -> None:
        """End the process, and the worker that it may have."""
        if self._process is not None:
            self._process.kill()
            self._process.wait(PATIENCE)
            self._line.close()
        self._process = self._last = None


class Forked:
    """A worker that another process forked, with as much of :class:`subprocess.Popen` as a launcher needs."""

    def __init__(self, pid: int, line: socket.socket, stdout: IO[bytes]) -> None:
        self.pid, self.stdout = pid, stdout
        self._line = line
        self._status: int | None = None

    def wait(self, timeout: float) -> int:
        """Its exit status; that of a process which was killed where the one that knows it is gone."""
        if self._status is None:
            try:
                self._line.settimeout(timeout)
                said = self._line.recv(32)
            except (TimeoutError, BlockingIOError):
                raise subprocess.TimeoutExpired("a worker", timeout) from None
            except OSError:
                said = b""
            self._status = int(said) if said else -signal.SIGKILL
        return self._status

    def poll(self) -> int | None:
        """Its exit status, None while it runs."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            return self.wait(0.0)
        return None
