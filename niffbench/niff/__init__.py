"""NIFF, neural implicit frequency filters: the layers and networks of the paper.

Grabinski, Keuper and Keuper, "As large as it gets", TMLR 2024 (arXiv 2307.10001). The names of what exists are in
:mod:`niffbench.niff.catalogue`, which needs no torch; everything else here is loaded when it is first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from niffbench.niff.catalogue import form_of, forms_of

if TYPE_CHECKING:
    from niffbench.niff.checkpoint import load_published
    from niffbench.niff.depthwise import NiffDepthwise
    from niffbench.niff.full import NiffFull
    from niffbench.niff.inference import folded
    from niffbench.niff.pointwise import NiffPointwise
    from niffbench.niff.split import NiffSplit
    from niffbench.niff.steps import recording, step

_HOME = {
    "NiffDepthwise": "depthwise",
    "NiffFull": "full",
    "NiffPointwise": "pointwise",
    "NiffSplit": "split",
    "folded": "inference",
    "load_published": "checkpoint",
    "recording": "steps",
    "step": "steps",
}

__all__ = [
    "NiffDepthwise",
    "NiffFull",
    "NiffPointwise",
    "NiffSplit",
    "folded",
    "form_of",
    "forms_of",
    "load_published",
    "recording",
    "step",
]


def __getattr__(name: str) -> object:
    home = _HOME.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{home}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOME})
