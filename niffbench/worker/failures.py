"""What an exception of a case means for its record. Loads no torch: exceptions are told by type name and text."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

from niffbench.errors import faulty_line
from niffbench.results import Status

MAX_REASON = 500

_UNITS = {"bytes": 1, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30, "TiB": 2**40}
_SIZE = r"([\d.]+) (bytes|KiB|MiB|GiB|TiB)"
_REQUESTED = (
    re.compile(rf"[Tt]ried to allocate {_SIZE}"),  # torch.OutOfMemoryError, and the CPU's "you tried to allocate"
)
_FREE = re.compile(rf"of which {_SIZE} is free")
_MEMORY = re.compile(
    r"out of memory|DefaultCPUAllocator|can't allocate memory|[Cc]annot allocate memory|std::bad_alloc|"
    r"ALLOC_FAILED|[Mm]emory allocation fail|could not create a memory object|hugetlb"
)
_UNSUPPORTED = re.compile(
    r"not implemented for|[Uu]nsupported dtype|not supported|only supports|does not support|"
    r"No working C\+\+ compiler|[Gg]raph break"
)
_CAPTURE = re.compile(r"captur")
"""No graph holds the call ("CUDA error: operation not permitted when stream is capturing"); the device lives."""
_LOST = re.compile(r"CUDA error|EXECUTION_FAILED|EXEC_FAILED|INTERNAL_ERROR|NVML_ERROR|device-side assert")


ENDS = (Exception, SystemExit, KeyboardInterrupt)
"""What a case may raise; a worker hears no keyboard, so that an interrupt is the case's own."""


class DeviceLost(Exception):
    """The accelerator's context is gone: no later call of this process can succeed."""


class Wrong(Exception):
    """What a case does cannot be right, whatever it computes."""


@dataclass(frozen=True, slots=True)
class Failure:
    """A status with its reason; ``needed`` and ``available`` in bytes where memory ran out."""

    status: Status
    reason: str
    needed: int | None = None
    available: int | None = None


def explain(error: BaseException, free: Callable[[], int | None] | None = None) -> Failure:
    """What ``error`` says of the case; ``free`` tells the memory available when the error does not say.

    It is asked only where memory ran out: a lost device would answer with another error.

    Raises:
        DeviceLost: for errors after which the process is of no use, and one that was raised before as it is:
            its shortened text may not tell any more what it was.
    """
    if isinstance(error, DeviceLost):
        raise error
    if isinstance(error, Wrong):
        return Failure("wrong", f"{error}; not timed")
    text = " ".join(str(error).split())
    name = type(error).__name__
    if isinstance(error, MemoryError) or name == "OutOfMemoryError" or _MEMORY.search(text):
        needed, available = requested(error, text)
        if available is None and free is not None:
            available = free()
        return Failure("oom", _short(text or "out of memory"), needed, available)
    if _CAPTURE.search(text):
        return Failure("unsupported", _short(text))
    if _LOST.search(text) or name == "AcceleratorError":
        raise DeviceLost(_short(text)) from error
    if isinstance(error, NotImplementedError) or name == "Unsupported" or _UNSUPPORTED.search(text):
        return Failure("unsupported", _short(faulty_line(error) + (text or name)))
    return Failure("crashed", _short(f"{faulty_line(error)}{name}: {text}".removesuffix(": ")))


def requested(error: BaseException, text: str) -> tuple[int | None, int | None]:
    """Bytes asked for and bytes free, as far as an out-of-memory error tells."""
    stated = getattr(error, "requested", None), getattr(error, "available", None)
    if stated != (None, None):
        return stated
    asked = next((match for pattern in _REQUESTED if (match := pattern.search(text))), None)
    free = _FREE.search(text)
    return (None if asked is None else _bytes(asked)), (None if free is None else _bytes(free))


def _bytes(match: re.Match[str]) -> int:
    return round(float(match[1].rstrip(".")) * _UNITS[match[2]])


def _short(text: str) -> str:
    return text if len(text) <= MAX_REASON else text[: MAX_REASON - 1] + "…"
