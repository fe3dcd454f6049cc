"""The machines and devices of a run, numbered as they are met: what is written of them is anonymous."""

from __future__ import annotations

import hashlib
from typing import TypedDict

from niffbench import protocol
from niffbench.results import Manifest


class Whereabouts(TypedDict, total=False):
    """What a record says of where it was measured."""

    node: int | None
    device_id: str | None


class Nodes:
    """Knows the nodes of a run by what an engine calls them, which is never written, and devices by their ids.

    Args:
        manifest: The run's. Nodes that are in it already and are met again by an unknown name get new numbers.
    """

    def __init__(self, manifest: Manifest) -> None:
        self.fingerprints = list(manifest.nodes)
        self.devices = dict(manifest.devices)
        self._salt = f"{manifest.started} {manifest.seed} "
        self._numbers: dict[str, int] = {}

    def of(self, hello: protocol.Hello | None) -> Whereabouts:
        """Where the worker is that said ``hello``; the fingerprint of a node that is new is noted."""
        if hello is None:
            return {}
        if hello.node is not None and hello.node not in self._numbers:
            self._numbers[hello.node] = len(self.fingerprints)
            self.fingerprints.append(hello.fingerprint)
        card = hello.fingerprint.should.get("gpu_id")
        digest = card and hashlib.sha256(f"{self._salt}{card}".encode()).hexdigest()[:12]
        if digest and hello.device is not None:
            self.devices[digest] = hello.device
        node = None if hello.node is None else self._numbers[hello.node]
        return {"node": node, "device_id": digest or None}
