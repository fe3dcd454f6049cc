"""Ctrl-C, SIGTERM and a closed terminal: first a request, the second time the end."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from types import FrameType, TracebackType
from typing import Any

from niffbench.errors import INTERRUPTED, NiffbenchError

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Interrupted(NiffbenchError):
    """The person at the terminal, or the system, asked for the end."""

    exit_code = INTERRUPTED


class _Torn(BaseException):
    """Leaves work in the middle.

    It is not KeyboardInterrupt: code that an extension module evaluates would be left by that with a mark, and the
    process would end by the signal instead of with its exit status.
    """


def _report(otherwise: Callable[[sys.UnraisableHookArgs], object], unraisable: sys.UnraisableHookArgs) -> None:
    """Say nothing where a signal came in the middle of what cannot raise, a finaliser say; work goes on a bit."""
    if not isinstance(unraisable.exc_value, _Torn):
        otherwise(unraisable)


class Interrupts:
    """While entered, a first signal only sets ``requested`` and makes ``descriptor`` readable.

    Nothing is torn in the middle of a write that way; whoever sleeps on ``descriptor`` wakes at once, and work
    that may be torn is done in :meth:`at_any_moment`. A second signal calls what :meth:`killing` was given and
    ends the process with status 130; a first that is not Ctrl-C, for a terminal that is gone say, calls what
    :meth:`leaving` was given.
    """

    def __init__(self) -> None:
        self.requested = False
        self._signalled = False
        self._kills: list[Callable[[], None]] = []
        self._leaves: list[Callable[[], None]] = []
        self._tearing = False
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> Interrupts:
        self.descriptor, self._write = os.pipe()
        os.set_blocking(self.descriptor, False)
        os.set_blocking(self._write, False)
        # Python hands signals to the main thread alone.
        for number in _SIGNALS if threading.current_thread() is threading.main_thread() else ():
            # What was inherited as ignored stays so: `nohup`, and `trap '' INT`, mean that a run is to go on.
            if signal.getsignal(number) is not signal.SIG_IGN:
                self._previous[number] = signal.signal(number, self._handle)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        os.close(self.descriptor)
        os.close(self._write)

    @contextmanager
    def killing(self, kill: Callable[[], None]) -> Iterator[None]:
        """What a second signal calls before it ends the process."""
        self._kills.append(kill)
        try:
            yield
        finally:
            self._kills.remove(kill)

    @contextmanager
    def leaving(self, leave: Callable[[], None]) -> Iterator[None]:
        """What a first signal calls of those that do not mean the end of work elsewhere."""
        self._leaves.append(leave)
        try:
            yield
        finally:
            self._leaves.remove(leave)

    def _request(self) -> None:
        self.requested = True
        os.write(self._write, b"!")

    @contextmanager
    def calling_off(self) -> Iterator[Callable[[], None]]:
        """For threads that work together: yields what ends all of them, until they are left, as a signal would."""
        try:
            yield self._request
        finally:
            if not self._signalled:
                self.requested = False
                with suppress(BlockingIOError):
                    while os.read(self.descriptor, 4096):
                        pass

    @contextmanager
    def at_any_moment(self) -> Iterator[None]:
        """For long work that may be left wherever it is: raises Interrupted out of the middle of it."""
        unraisable = sys.unraisablehook
        try:
            sys.unraisablehook = partial(_report, unraisable)
            self._tearing = True
            if self.requested:
                raise _Torn
            yield
            if self.requested:  # a library may have caught what _handle raised
                raise _Torn
        except _Torn:
            raise Interrupted("interrupted") from None
        except Exception:
            if not self.requested:
                raise
            # A library that was torn in its middle may raise something of its own instead.
            raise Interrupted("interrupted") from None
        finally:
            self._tearing = False
            sys.unraisablehook = unraisable

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self._signalled:
            for kill in tuple(self._kills):
                kill()
            os._exit(INTERRUPTED)
        self._signalled = True
        for leave in () if number == signal.SIGINT else tuple(self._leaves):
            leave()
        self._request()
        if self._tearing:
            raise _Torn
