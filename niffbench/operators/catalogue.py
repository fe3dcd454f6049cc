"""The catalogue: every operator by name, gathered from the family files of this room."""

from __future__ import annotations

import importlib
import os
import pkgutil
from collections.abc import Mapping
from functools import cache
from importlib.metadata import entry_points
from types import MappingProxyType, ModuleType

from niffbench.errors import UsageError, described, faulty_line
from niffbench.operators.base import Operator

EXTRA = "NIFFBENCH_EXTRA_OPERATORS"
"""Environment variable that names modules with operators of one's own."""

ENTRY_POINTS = "niffbench.operators"
"""The group of entry points by which an installed package brings modules with operators."""

_NOT_FAMILIES = {"base", "catalogue", "kit", "module"}


def catalogue() -> Mapping[str, Operator]:
    """All operators by name, in the order of the family files' names; then those that were declared.

    A family file has its operators in a module-level tuple ``OPERATORS``; adding a file adds them. So do modules
    of one's own: those that an installed package names among its entry points, group ``niffbench.operators``, and
    those in the environment variable ``NIFFBENCH_EXTRA_OPERATORS`` (comma-separated, importable). Loading the
    catalogue does not load torch.

    Raises:
        UsageError: when two modules claim one name, and when a module of one's own cannot be imported.
    """
    return MappingProxyType(_operators())


def add(operators: Mapping[str, Operator]) -> None:
    """Add operators to this process's catalogue, in place of those of the same names."""
    _operators().update(operators)


@cache
def _operators() -> dict[str, Operator]:
    import niffbench.operators as room

    families = [
        importlib.import_module(f"{room.__name__}.{info.name}")
        for info in sorted(pkgutil.iter_modules(room.__path__), key=lambda info: info.name)
        if info.name not in _NOT_FAMILIES
    ]
    every: dict[str, Operator] = {}
    for module in [*families, *_installed(), *_extra()]:
        for operator in module.OPERATORS:
            if operator.name in every:
                raise UsageError(f"operator '{operator.name}' is declared twice, again in {module.__name__}")
            every[operator.name] = operator
    return every


def _installed() -> list[ModuleType]:
    """The modules that installed packages bring."""
    points = sorted(entry_points(group=ENTRY_POINTS), key=lambda point: point.name)
    return [_module(point.module, f"entry point {point.name} = {point.value}") for point in points]


def _extra() -> list[ModuleType]:
    """The modules that ``NIFFBENCH_EXTRA_OPERATORS`` names."""
    names = filter(None, map(str.strip, os.environ.get(EXTRA, "").split(",")))
    return [_module(name, f"{EXTRA}={name}") for name in names]


def _module(name: str, what: str) -> ModuleType:
    """A module with operators; ``what`` says in messages who names it."""
    try:
        module = importlib.import_module(name)
    except (Exception, SystemExit) as error:  # somebody's code
        raise UsageError(f"{what}: {faulty_line(error)}{described(error)}") from error
    if not hasattr(module, "OPERATORS"):
        raise UsageError(f"{what}: the module declares no tuple OPERATORS")
    return module
