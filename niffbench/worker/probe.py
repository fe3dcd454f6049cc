"""A probe: a plain function that a device runs as it runs a case."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import ClassVar

import torch


@dataclass(frozen=True)
class Probe:
    """Runs ``call`` in inference mode; leaves nothing behind."""

    call: Callable[[], object]
    unrolled: ClassVar[int] = 1

    def scope(self) -> AbstractContextManager[object]:
        return torch.inference_mode()

    def reset(self) -> None:
        """There is nothing to drop."""
