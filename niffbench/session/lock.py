"""A lock that keeps two runs out of one directory, and that a killed run does not leave behind."""

from __future__ import annotations

import fcntl
import os
import re
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import TracebackType

from niffbench.errors import UsageError

LOCK = ".lock"


@contextmanager
def device_lock(name: str | None) -> Iterator[str | None]:
    """Hold a device of this machine while something is measured on it; None holds nothing.

    Yields a note where another run of the same user holds it already: both go on, but not unknowingly.
    """
    if name is None:
        yield None
        return
    folder = Path(tempfile.gettempdir()) / f"niffbench-{os.getuid()}" / re.sub(r"[^\w-]", "_", name)
    with ExitStack() as held:
        note = None
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            held.enter_context(Lock(folder))
        except UsageError as error:
            holder = re.search(r"process \d+", str(error))
            if holder:
                note = f"another niffbench ({holder[0]}) was measuring on this device when this run began"
        except OSError:
            pass  # no folder for temporary files: then nobody is told
        yield note


class Lock:
    """While entered, no other process holds ``directory``.

    The kernel drops the lock with its holder, so a stale file stops nobody. With ``wait``, another holder is
    waited for; without, it raises UsageError naming the process that is writing there.
    """

    def __init__(self, directory: Path, *, wait: bool = False) -> None:
        self._directory = directory
        self._operation = fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB)
        self._path = directory / LOCK

    def __enter__(self) -> Lock:
        while True:
            try:
                self._descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT, 0o644)
            except OSError as error:
                raise UsageError(f"{self._directory}: cannot be locked ({error.strerror})") from error
            try:
                fcntl.flock(self._descriptor, self._operation)
            except BlockingIOError:
                holder = os.read(self._descriptor, 32).decode("ascii", "replace").strip() or "unknown"
                os.close(self._descriptor)
                raise UsageError(
                    f"{self._directory}: another niffbench (process {holder}) is writing there; wait for it to end"
                ) from None
            except OSError as error:
                os.close(self._descriptor)
                raise UsageError(f"{self._directory}: cannot be locked ({error.strerror})") from error
            if self._is_current():
                break
            os.close(self._descriptor)  # its last holder removed it between our open and our lock
        try:
            os.ftruncate(self._descriptor, 0)
            os.pwrite(self._descriptor, f"{os.getpid()}\n".encode(), 0)
        except OSError as error:
            self.__exit__(None, None, None)
            raise UsageError(f"{self._directory}: cannot be locked ({error.strerror})") from error
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._path.unlink(missing_ok=True)
        os.close(self._descriptor)

    def _is_current(self) -> bool:
        try:
            return os.path.samestat(os.fstat(self._descriptor), self._path.stat())
        except FileNotFoundError:
            return False
