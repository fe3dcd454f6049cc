"""What :mod:`niffbench.niff.auto` has chosen, kept in a file from one process to the next.

An entry's key is a hash of all that the choice may depend on: the kind of call, the machine, torch, niffbench and
the sources of its engines. The file is a cache: it may be deleted, and one that cannot be read counts as empty.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
import tempfile
from pathlib import Path

import torch
from torch import Tensor

from niffbench import __version__
from niffbench.niff.native import build

SWITCH = "NIFFBENCH_TUNING"
"""The environment's variable that keeps the file from being read and written when it is ``0``."""

MOST = 1000
"""Entries; the oldest ones go first."""


def is_off() -> bool:
    """Whether the user wants no process to know what another has found out."""
    return os.environ.get(SWITCH) == "0"


def remembered(kind: tuple[object, ...], x: Tensor) -> str | None:
    """The engine that was chosen for such calls on such a machine; None if none is known."""
    return None if is_off() else _read().get(_key(kind, x))


def remember(kind: tuple[object, ...], x: Tensor, engine: str) -> None:
    """Write a choice down; where that fails the next process chooses again."""
    if is_off():
        return
    entries = _read()  # Others may have added to it meanwhile.
    entries.pop(_key(kind, x), None)
    entries[_key(kind, x)] = engine
    try:
        write_whole(_path(), json.dumps(dict(list(entries.items())[-MOST:])).encode())
    except (OSError, build.Unavailable):
        return


def write_whole(path: Path, content: bytes) -> None:
    """Write a file of a cache whole or not at all, since other processes may be reading it.

    Raises:
        OSError: when that fails; what was there before is still there then.
    """
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        draft = Path(folder, path.name)
        draft.touch(mode=0o600)
        draft.write_bytes(content)
        draft.replace(path)


def _read() -> dict[str, str]:
    try:
        entries = json.loads(_path().read_bytes())
    except (OSError, ValueError, build.Unavailable):
        return {}
    if not isinstance(entries, dict) or not all(isinstance(engine, str) for engine in entries.values()):
        return {}
    return entries


def _path() -> Path:
    return build.cache() / "choices.json"


def _key(kind: tuple[object, ...], x: Tensor) -> str:
    return hashlib.sha256(
        f"{_machine(torch.cuda.get_device_name(x.device) if x.is_cuda else '')}\0{kind!r}".encode()
    ).hexdigest()[:32]


@functools.cache
def _machine(gpu: str) -> str:
    """The processor that calls go to, and everything on it that engines are made of."""
    return "\0".join((__version__, torch.__version__, code(), build.cpu(), str(build.tuning()), gpu))


def code(folder: Path = Path(__file__).parent) -> str:
    """A hash of the sources in a folder, by default of engines and kernels."""
    sources = sorted(path for path in folder.rglob("*.*") if path.suffix in (".py", ".c", ".h"))
    return hashlib.sha256("\0".join(source.read_text(encoding="utf-8") for source in sources).encode()).hexdigest()
