"""Named steps of a layer, for profiles of where its time and memory go.

Every form wraps what it does in ``with step(name):``. A step is a shared null context, so it costs next to
nothing and leaves ``torch.compile`` alone, unless the calling thread is inside ``with recording():``; then it
is a ``torch.profiler.record_function`` range called ``niffbench::<name>``.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager

import torch

STEPS = (
    "filter generation",
    "forward fft",
    "shift",
    "product",
    "inverse fft",
    "real part",
    "mixing",
    "padding",
    "cast",
    "convolution",
    "attention",
)
"""Every step's name; a name outside this list is refused while recording."""

PREFIX = "niffbench::"
"""What a recorded range's name starts with."""


class _Switch(threading.local):
    """Whether this thread records its steps, and whether it makes what will be kept."""

    on: bool = False
    once: bool = False


_switch = _Switch()
_OFF: AbstractContextManager[None] = contextlib.nullcontext()


def step(name: str, *, whole: bool = False) -> AbstractContextManager[object]:
    """A context around one step of a layer; recorded only inside :func:`recording`.

    A ``whole`` step is recorded as one, without the steps inside it. Under ``torch.compile`` it is always the null
    context, so that tracing never breaks on it.

    Raises:
        ValueError: while recording, if ``name`` is not one of :data:`STEPS`.
    """
    if torch.compiler.is_compiling() or not _switch.on:
        return _OFF
    if name not in STEPS:
        raise ValueError(f"{name!r} is not a step; the steps are {', '.join(STEPS)}")
    return _as_one(name) if whole else torch.profiler.record_function(PREFIX + name)


def is_recording() -> bool:
    """Whether this thread records its steps."""
    return _switch.on


@contextlib.contextmanager
def _as_one(name: str) -> Iterator[None]:
    with torch.profiler.record_function(PREFIX + name):
        _switch.on = False
        try:
            yield
        finally:
            _switch.on = True


@contextlib.contextmanager
def recording() -> Iterator[None]:
    """Record the steps that this thread takes inside the block (other threads are not affected).

    A backward pass that it begins runs in it, too: on an accelerator autograd has threads of its own, where the
    steps of a form's own backward would not be recorded. What the accelerator does stays the same.
    """
    before = _switch.on
    _switch.on = True
    try:
        with torch.autograd.set_multithreading_enabled(False):
            yield
    finally:
        _switch.on = before


@contextlib.contextmanager
def once() -> Iterator[None]:
    """What is made inside is kept, so that no later call makes it: a count of one call leaves it out."""
    before = _switch.once
    _switch.once = True
    try:
        yield
    finally:
        _switch.once = before


def is_once() -> bool:
    """Whether this thread makes what will be kept."""
    return _switch.once
