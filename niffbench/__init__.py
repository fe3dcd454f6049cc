"""niffbench measures what NIFF's FFT convolutions cost against spatial convolutions.

Importing the package loads neither torch nor pandas. For a notebook there are :func:`niffbench.api.measure`,
:func:`~niffbench.api.read` and :func:`~niffbench.api.count`, here as ``niffbench.measure`` and so on; the rooms
have the rest (``niffbench.niff`` the layers, ``niffbench.results`` what a run holds).
"""

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

_API = ("Result", "count", "measure", "read")


def __getattr__(name: str) -> Any:
    if name in _API:
        return getattr(import_module("niffbench.api"), name)
    raise AttributeError(f"module 'niffbench' has no attribute '{name}'")


def __dir__() -> list[str]:
    return sorted((*globals(), *_API))
