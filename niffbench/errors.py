"""What can go wrong in a way a user should read, each with the exit code of the command line, and how it reads."""

from __future__ import annotations

import difflib
import sysconfig
from collections.abc import Iterable
from pathlib import Path
from traceback import extract_tb
from typing import Self

INTERRUPTED = 130
"""Exit status after Ctrl-C, SIGTERM or a closed terminal, as shells have it."""


class NiffbenchError(Exception):
    """A condition reported as one message, never as a traceback.

    ``exit_code`` is the process's exit status; the message is written for the person at the terminal.
    """

    exit_code = 2

    def at(self, where: str) -> Self:
        """The same, saying first where it was met."""
        self.args = (f"{where}: {self}",)
        return self

    def _render_traceback_(self) -> list[str]:
        """What a notebook shows of it: the message, no more."""
        return [f"niffbench: {self}"]


class UsageError(NiffbenchError):
    """Bad input: an option, a file or a value; the message names it and says what would be right."""

    exit_code = 2


class HeadFails(NiffbenchError):
    """What is to be judged cannot be measured: its code is broken, which no gate lets pass."""

    exit_code = 1


class NothingMeasured(NiffbenchError):
    """Nothing was measured, or there is no baseline to compare with."""

    exit_code = 3


class FingerprintsDiffer(NiffbenchError):
    """Two runs that must not be compared, or a resume on another machine."""

    exit_code = 4


def plural(number: int, noun: str) -> str:
    """A count for a message: ``1 case``, ``1,234 cases``."""
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


def kind_of(value: object) -> str:
    """What something is, for a message: ``a list``, ``an int``, ``None``."""
    name = type(value).__name__
    return "None" if value is None else f"{'an' if name[0] in 'aeiou' else 'a'} {name}"


def did_you_mean(word: str, names: Iterable[str]) -> str:
    """Say which known word was probably meant, as the tail of a message.

    Returns ``"; did you mean 'x'?"`` for a near miss, else ``"; choose from a, b, c"`` (sorted, at most 40).
    """
    names = sorted(set(names))
    near = difflib.get_close_matches(word, names, n=1, cutoff=0.6)
    if near:
        return f"; did you mean '{near[0]}'?"
    shown = ", ".join(names[:40]) + (", …" if len(names) > 40 else "")
    return f"; choose from {shown}"


def faulty_line(error: BaseException) -> str:
    """File and line of the user's code that ``error`` comes from, as the head of a message; empty without any.

    That is the innermost frame called by this package which belongs neither to it nor to an installed one.
    """
    if isinstance(error, SyntaxError) and error.filename:
        return f"{Path(error.filename).name}, line {error.lineno}: "
    package, frames = f"{Path(__file__).parent}/", list(extract_tb(error.__traceback__))
    called = next((place for place, frame in enumerate(frames) if frame.filename.startswith(package)), 0)
    libraries = (f"{sysconfig.get_path('stdlib')}/", package, "<")
    own = [
        frame
        for frame in frames[called:]
        if not (frame.filename.startswith(libraries) or _INSTALLED.intersection(Path(frame.filename).parts))
    ]
    return f"{Path(own[-1].filename).name}, line {own[-1].lineno}: " if own else ""


_INSTALLED = {"site-packages", "dist-packages"}
"""Folders of installed packages; a whole prefix, as /usr, may hold the user's code as well."""


def described(error: BaseException) -> str:
    """An error in a line: what it is, unless that is an import's, and the beginning of what it says."""
    if isinstance(error, SystemExit):
        return "ends the program"
    text = (str(error).strip().splitlines() or [""])[0][:300]
    return (
        text
        if isinstance(error, ImportError | SyntaxError) and text
        else f"{type(error).__name__}: {text}".removesuffix(": ")
    )
