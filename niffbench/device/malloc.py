"""The C library's allocator: on a CPU it keeps what is freed, as torch's allocator does on a GPU. Torch-free.

As glibc comes, a call's larger tensors may go back to the system when they are freed, and their pages be faulted
in again by the next call. Whether they do depends on what the process has freed before (mallopt(3): the thresholds
move), hence on which cases came first: on two cores of an AMD EPYC a 7×7 depthwise convolution of 64 planes of 56²
took 0.2 ms or 1 ms.
"""

from __future__ import annotations

import ctypes
import os
import resource

_TRIM_THRESHOLD, _MMAP_MAX = -1, -4  # malloc.h
_OTHERS = {
    "mallctl": "jemalloc",
    "tc_version": "tcmalloc",
    "mi_version": "mimalloc",
    "scalable_malloc": "tbbmalloc",
}
_NAMES = ("trim_threshold", "mmap_threshold", "mmap_max")


def keep_freed() -> str | None:
    """Have this process keep the memory that its main thread frees, until :func:`give_back`.

    It does not where its user has set when glibc does, nor where the address space is limited: of what is given
    back addresses may stay.

    Returns:
        Whose allocator it is and whether it keeps what is freed: ``glibc, kept``, ``glibc``, ``jemalloc``; None
        where neither is known.
    """
    library = ctypes.CDLL(None)
    for symbol, name in _OTHERS.items():
        if hasattr(library, symbol):  # loaded in front of the C library's
            return name
    if not (hasattr(library, "mallopt") and hasattr(library, "gnu_get_libc_version")):
        return None
    limits = (resource.getrlimit(which)[0] for which in (resource.RLIMIT_AS, resource.RLIMIT_DATA))
    if any(map(_is_set, _NAMES)) or any(limit != resource.RLIM_INFINITY for limit in limits):
        return "glibc"
    kept = library.mallopt(_MMAP_MAX, 0) and library.mallopt(_TRIM_THRESHOLD, -1)
    return "glibc, kept" if kept else "glibc"


def give_back() -> None:
    """Return freed memory to the system, where glibc is the allocator; it takes 0.1 ms, or what there is takes."""
    library = ctypes.CDLL(None)
    if hasattr(library, "malloc_trim"):
        library.malloc_trim(ctypes.c_size_t(0))


def _is_set(name: str) -> bool:
    """Whether a variable of the environment has it."""
    return f"MALLOC_{name.upper()}_" in os.environ or f"glibc.malloc.{name}" in os.environ.get(
        "GLIBC_TUNABLES", ""
    )
