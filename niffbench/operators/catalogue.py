"""The catalogue: every operator by name, gathered from the family files of this room."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Mapping
from functools import cache
from types import MappingProxyType

from niffbench.operators.base import Operator

_NOT_FAMILIES = {"base", "catalogue"}


@cache
def catalogue() -> Mapping[str, Operator]:
    """All operators by name, in the order of the family files' names.

    A family file declares its operators as a module-level tuple ``OPERATORS``; adding a file adds them.
    Loading the catalogue does not load torch. Raises ValueError when two files claim one name.
    """
    import niffbench.operators as room

    found: dict[str, Operator] = {}
    for info in sorted(pkgutil.iter_modules(room.__path__), key=lambda info: info.name):
        if info.name in _NOT_FAMILIES or info.name.startswith("_"):
            continue
        module = importlib.import_module(f"{room.__name__}.{info.name}")
        for operator in getattr(module, "OPERATORS", ()):
            if operator.name in found:
                raise ValueError(f"operator '{operator.name}' is declared twice, again in {module.__name__}")
            found[operator.name] = operator
    return MappingProxyType(found)
