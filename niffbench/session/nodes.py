"""The machines and devices of a run, numbered as they are met: what is written of them is anonymous."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from typing import TypedDict

from niffbench import protocol
from niffbench.results import Manifest, Record


class Whereabouts(TypedDict, total=False):
    """What a record says of where it was measured."""

    node: int | None
    device_id: str | None


class Nodes:
    """Knows the nodes of a run by what an engine calls them, which is never written, and devices by their ids.

    Args:
        manifest: The run's.
        done: Its records so far: by a device a node is known again in a resumed run. One without any gets
            a new number there, as nobody knows its name any more.
    """

    def __init__(self, manifest: Manifest, done: Iterable[Record] = ()) -> None:
        self.fingerprints = list(manifest.nodes)
        self.devices = dict(manifest.devices)
        self._salt = f"{manifest.started} {manifest.seed} "
        self._numbers: dict[str, int] = {}
        self._of_device = {record.device_id: record.node for record in done if record.device_id}

    def of(self, hello: protocol.Hello | None) -> Whereabouts:
        """Where the worker is that said ``hello``; the fingerprint of a node that is new is noted."""
        if hello is None:
            return {}
        card = hello.fingerprint.should.get("gpu_id")
        digest = hashlib.sha256(f"{self._salt}{card}".encode()).hexdigest()[:12] if card else None
        if digest is not None and hello.device is not None:
            self.devices[digest] = hello.device
        if hello.node is None:
            return {"node": None, "device_id": digest}
        if hello.node not in self._numbers:
            before = None if digest is None else self._of_device.get(digest)
            self._numbers[hello.node] = len(self.fingerprints) if before is None else before
            self.fingerprints += [hello.fingerprint] if before is None else []
        return {"node": self._numbers[hello.node], "device_id": digest}
