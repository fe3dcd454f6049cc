"""Launchers: each module that is no helper is one, found by its name, and offers it as ``LAUNCHER``."""

from __future__ import annotations

import importlib
import pkgutil

from niffbench.errors import UsageError, did_you_mean
from niffbench.launch.base import Launcher

HELPERS = frozenset({"base", "engine", "forks", "relay"})


def launchers() -> list[str]:
    """The names that :func:`launcher` knows; none of them is imported."""
    return sorted(module.name for module in pkgutil.iter_modules(__path__) if module.name not in HELPERS)


def launcher(name: str) -> Launcher:
    """The launcher of that name.

    Raises:
        UsageError: when there is none.
    """
    if name not in launchers():
        raise UsageError(f"no launcher is named '{name}'{did_you_mean(name, launchers())}")
    one: Launcher = importlib.import_module(f"{__name__}.{name}").LAUNCHER
    return one
