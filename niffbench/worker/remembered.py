"""What was traced and counted of cases of our operators, kept in a file from one worker to the next.

It depends on nothing but the case and what a hash in the file's name is of: the sources of this package, torch and
what else traces and counts, threads and processor. The file is a cache: it may be deleted, and what cannot be read
of it counts as not there. Where :func:`niffbench.niff.tuning.is_off` it is neither read nor written.
"""

from __future__ import annotations

import functools
import hashlib
import sys
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TypeVar

import torch
from pydantic import TypeAdapter, ValidationError

from niffbench.case import Case
from niffbench.niff import tuning
from niffbench.niff.native import build
from niffbench.operators.base import Operator
from niffbench.operators.fft import PACKAGE

MOST_BYTES, MOST_FILES = 2**24, 4
"""No more is written to one file; of older code and machines so many files are left."""

T = TypeVar("T")


def remembered(kind: type[T], operator: Operator, case: Case, make: Callable[[], T]) -> T:
    """What ``make`` gives, or gave in another process; of others' operators, whose code may change, it is anew."""
    path = file_for(operator, case)
    if path is None:
        return make()
    try:
        lines = _lines(path)
    except OSError:
        return make()
    key = hashlib.sha256(f"{kind.__name__}\0{case.id}\0{operator!r}".encode()).hexdigest()[:32]
    adapter = TypeAdapter(kind)
    if key in lines:
        try:
            return adapter.validate_json(lines[key])
        except ValidationError:
            pass
    value = make()
    lines[key] = adapter.dump_json(value).decode()
    try:
        with path.open("a", encoding="utf-8") as file:
            if file.tell() < MOST_BYTES:
                file.write(f"{key} {lines[key]}\n")
    except OSError:
        pass
    return value


def file_for(operator: Operator, case: Case) -> Path | None:
    """Where what is traced of a case is kept for other processes; None where nothing is."""
    is_ours = type(operator).__module__.startswith("niffbench.operators.") and operator.cost(case) is not None
    if not is_ours or tuning.is_off():
        return None
    try:
        return _path(torch.get_num_threads())
    except (OSError, build.Unavailable):
        return None


@functools.cache
def _lines(path: Path) -> dict[str, str]:
    """What is in the file, by key; where it is new, files that others have long made room for go."""
    if not path.exists():
        others = sorted(path.parent.glob("traced-*.jsonl"), key=lambda other: other.stat().st_mtime)
        for other in others[: max(0, len(others) - MOST_FILES + 1)]:
            other.unlink(missing_ok=True)
        return {}
    entries = (line.partition(" ") for line in path.read_text(encoding="utf-8", errors="replace").splitlines())
    return {key: value for key, _, value in entries}


@functools.cache
def _path(threads: int) -> Path:
    parts = [sys.version, torch.__version__, str(threads), build.cpu(), str(build.tuning())]
    for name in ("torchvision", "fvcore", "numpy", "triton", PACKAGE.replace("_", "-")):
        try:
            parts.append(version(name))
        except PackageNotFoundError:
            parts.append("")
    parts.append(tuning.code(Path(__file__).parents[1]))
    return build.cache() / f"traced-{hashlib.sha256(chr(0).join(parts).encode()).hexdigest()[:16]}.jsonl"
