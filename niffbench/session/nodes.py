"""The machines and devices of a run, numbered as they are met: what is written of them is anonymous."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from secrets import token_hex
from typing import TypedDict

from niffbench import protocol
from niffbench.launch.base import Launcher
from niffbench.results import Manifest, Record

NODES = ".nodes"


class Whereabouts(TypedDict, total=False):
    """What a record says of where it was measured."""

    node: int | None
    device_id: str | None


class Nodes:
    """Knows the nodes of a run by what an engine calls them, which is never written, and devices by their ids.

    In the run's directory there is a file for this alone, which goes nowhere with the run: digests of those names
    by a key of its own, so that a resumed run knows its nodes again.

    Args:
        manifest: The run's.
        directory: Its directory.
        done: Its records so far: by a device a node is known again, too.
    """

    def __init__(self, manifest: Manifest, directory: Path, done: Iterable[Record] = ()) -> None:
        self.fingerprints = list(manifest.nodes)
        self.devices = dict(manifest.devices)
        self._salt = f"{manifest.started} {manifest.seed} "
        self._file = directory / NODES
        self._key, self._numbers = _remembered(self._file)
        self._of_device = {
            record.device_id: record.node for record in done if record.device_id and record.node is not None
        }

    def of(self, hello: protocol.Hello | None) -> Whereabouts:
        """Where the worker is that said ``hello``; the fingerprint of a node that is new is noted."""
        if hello is None:
            return {}
        card = hello.fingerprint.should.get("gpu_id")
        device = hashlib.sha256(f"{self._salt}{card}".encode()).hexdigest()[:12] if card else None
        if device is not None and hello.device is not None:
            self.devices[device] = hello.device
        if hello.node is None:
            return {"node": None, "device_id": device}
        name = _digest(self._key, hello.node)
        number = self._of_device.get(device or "", self._numbers.get(name, len(self.fingerprints)))
        if number >= len(self.fingerprints):
            number = len(self.fingerprints)
            self.fingerprints.append(hello.fingerprint)
        if device is not None:
            self._of_device[device] = number
        if self._numbers.get(name) != number:
            self._numbers[name] = number
            with suppress(OSError):  # then a resumed run gives it a new number
                draft = self._file.with_name(f"{self._file.name}.tmp")
                draft.write_text(json.dumps({"key": self._key, "numbers": self._numbers}))
                draft.replace(self._file)
        return {"node": number, "device_id": device}

    def name(self, node: str) -> str:
        """What to call a node, as records do, or say that there are none of it."""
        number = self._numbers.get(_digest(self._key, node))
        return "a node without records" if number is None else f"node {number}"


def avoid_those_of(runs: Iterable[Path], launcher: Launcher) -> None:
    """Start no workers on nodes that measured any of ``runs``, which are other machines'."""
    every = launcher.nodes() or ()
    for key, numbers in (_remembered(run / NODES) for run in runs):
        if theirs := [node for node in every if _digest(key, node) in numbers]:
            launcher.avoid(*theirs)


def _digest(key: str, node: str) -> str:
    return hashlib.sha256(f"{key} {node}".encode()).hexdigest()


def _remembered(file: Path) -> tuple[str, dict[str, int]]:
    """The key, and the numbers of nodes by their names' digests; a new key where nothing can be used."""
    try:
        written = json.loads(file.read_text(encoding="utf-8"))
        return str(written["key"]), {str(name): int(number) for name, number in written["numbers"].items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return token_hex(16), {}
