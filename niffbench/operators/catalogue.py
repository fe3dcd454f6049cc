"""The catalogue: every operator by name, gathered from the family files of this room."""

from __future__ import annotations

import importlib
import os
import pkgutil
from collections.abc import Mapping
from functools import cache
from types import MappingProxyType, ModuleType

from niffbench.errors import UsageError
from niffbench.operators.base import Operator

EXTRA = "NIFFBENCH_EXTRA_OPERATORS"
"""Environment variable that names modules with operators of one's own."""

_NOT_FAMILIES = {"base", "catalogue", "kit"}


@cache
def catalogue() -> Mapping[str, Operator]:
    """All operators by name, in the order of the family files' names.

    A family file declares its operators as a module-level tuple ``OPERATORS``; adding a file adds them. So do
    modules of one's own, named in the environment variable ``NIFFBENCH_EXTRA_OPERATORS`` (comma-separated,
    importable). Loading the catalogue does not load torch. Raises ValueError when two files claim one name, and
    UsageError when a module of the variable cannot be imported.
    """
    import niffbench.operators as room

    found: dict[str, Operator] = {}
    families = [
        importlib.import_module(f"{room.__name__}.{info.name}")
        for info in sorted(pkgutil.iter_modules(room.__path__), key=lambda info: info.name)
        if info.name not in _NOT_FAMILIES
    ]
    for module in [*families, *_extra()]:
        for operator in module.OPERATORS:
            if operator.name in found:
                raise ValueError(f"operator '{operator.name}' is declared twice, again in {module.__name__}")
            found[operator.name] = operator
    return MappingProxyType(found)


def _extra() -> list[ModuleType]:
    """The modules that ``NIFFBENCH_EXTRA_OPERATORS`` names."""
    modules = []
    for name in filter(None, map(str.strip, os.environ.get(EXTRA, "").split(","))):
        try:
            module = importlib.import_module(name)
        except ImportError as error:
            raise UsageError(f"{EXTRA}={name}: {error}") from error
        if not hasattr(module, "OPERATORS"):
            raise UsageError(f"{EXTRA}={name}: the module declares no tuple OPERATORS")
        modules.append(module)
    return modules
