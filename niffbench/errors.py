"""What can go wrong in a way a user should read, each with the exit code of the command line, and how it reads."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class NiffbenchError(Exception):
    """A condition reported as one message, never as a traceback.

    ``exit_code`` is the process's exit status; the message is written for the person at the terminal.
    """

    exit_code = 2


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


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Say which known word was probably meant, as the tail of a message.

    Returns ``"; did you mean 'x'?"`` for a near miss, else ``"; choose from a, b, c"`` (sorted, at most 40).
    """
    names = sorted(set(known))
    near = difflib.get_close_matches(word, names, n=1, cutoff=0.6)
    if near:
        return f"; did you mean '{near[0]}'?"
    shown = ", ".join(names[:40]) + (", …" if len(names) > 40 else "")
    return f"; choose from {shown}"
