"""A task's way to a node of an engine's, and there: the very worker of a local run does it.

Its lines are passed on; how they travel is the engine's.
"""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter

import niffbench
from niffbench import protocol
from niffbench.device import portable
from niffbench.fingerprint import differences
from niffbench.launch.base import WorkerBroken, WorkerEnd
from niffbench.launch.local import LocalLauncher

SHARED_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")
"""Variables that engines set of themselves; a worker finds them as the session does instead, and all whose names
begin with ``NIFFBENCH_``."""
_LONG = 3600.0


class Parcel(BaseModel):
    """A task with what a worker finds elsewhere as it would here: ``folder`` and ``variables``; ``environment``,
    of which the ``files`` are a part, is what must be the same there.
    """

    model_config = ConfigDict(frozen=True)

    task: protocol.Task
    folder: str
    variables: dict[str, str | None]
    environment: dict[str, str]
    files: tuple[Path, ...] = ()


class At(BaseModel):
    """The first line: the task has begun, on the machine that the engine calls ``node``."""

    type: Literal["at"] = "at"
    node: str


class Gone(BaseModel):
    """The last line: how the worker ended."""

    type: Literal["gone"] = "gone"
    cause: str
    last_lines: tuple[str, ...] = ()
    taken: bool = False
    recalled: bool = False
    node: str | None = None


LINE: TypeAdapter[At | Gone] = TypeAdapter(Annotated[At | Gone, Field(discriminator="type")])
"""Those of the relay's own."""


def environment(files: Sequence[Path] = ()) -> dict[str, str]:
    """What must be the same on all machines of a run: the code that measures, torch and ``files``, the user's."""
    facts = {"niffbench": niffbench.__version__, "niffbench's code": _code()}
    for package in ("torch", "torchvision"):
        try:
            facts[package] = version(package)
        except PackageNotFoundError:
            facts[package] = "not installed"
    for file in files:
        try:
            facts[file.name] = hashlib.sha256(file.read_bytes()).hexdigest()[:12]
        except OSError:
            facts[file.name] = "missing"
    return facts


def _code() -> str:
    """A digest of the package's source files."""
    digest = hashlib.sha256()
    root = Path(__file__).parents[1]
    for path in sorted(root.rglob("*.py")):
        digest.update(str(path.relative_to(root)).encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:12]


def unlike(theirs: Mapping[str, str], ours: Mapping[str, str]) -> str | None:
    """What of a machine's environment differs from the session's, in words; None: nothing."""
    changes = differences(theirs, ours)
    return "; ".join(f"{key} is {there} there and {here} here" for key, (there, here) in changes.items()) or None


def pack(task: protocol.Task, ours: Mapping[str, str], files: Sequence[Path], threads: int | None) -> bytes:
    """``task`` as it travels to machines whose environment, with ``files``, is to be ``ours``.

    Args:
        threads: of operations on a CPU, where the task says nothing of them.
    """
    measure = task.settings.measure
    measure = measure.model_copy(update={"threads": measure.threads or threads})
    update = {"device": portable(task.settings.device), "measure": measure}
    settings = task.settings.model_copy(update=update)
    variables = {name: value for name, value in os.environ.items() if name.startswith("NIFFBENCH_")}
    parcel = Parcel(
        task=task.model_copy(update={"settings": settings}),
        folder=str(Path.cwd()),
        variables={**dict.fromkeys(SHARED_VARIABLES), **variables, **_set(SHARED_VARIABLES)},
        environment=dict(ours),
        files=tuple(files),
    )
    return parcel.model_dump_json().encode()


def _set(names: tuple[str, ...]) -> dict[str, str]:
    return {name: os.environ[name] for name in names if name in os.environ}


def relay(parcel: bytes, node: str) -> Iterator[bytes]:
    """Run the worker of a parcel here, on what the engine calls ``node``; yields its lines as they come."""
    sent = Parcel.model_validate_json(parcel)
    yield protocol.write(At(node=node))
    if difference := unlike(environment(sent.files), sent.environment):
        yield protocol.write(protocol.Refused(message=difference))
        return
    here = LocalLauncher(folder=sent.folder, variables={**sent.variables, protocol.NODE: node})
    silent, other_end = os.pipe()
    try:
        with here.start(sent.task, silent) as worker:
            while not isinstance(message := worker.next(time.monotonic() + _LONG), WorkerEnd):
                if message is not None:
                    yield protocol.write(message)
        yield protocol.write(Gone(cause=message.cause, last_lines=message.last_lines, taken=message.taken))
    except WorkerBroken as error:
        yield protocol.write(Gone(cause=f"could not be started: {error}"))
    finally:
        os.close(silent)
        os.close(other_end)
