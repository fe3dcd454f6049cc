"""The user's home directory and cache, where there are any: a container may be run by a number without a name."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path


def home() -> Path | None:
    """The user's home directory; None where neither the environment nor the system names one."""
    try:
        return Path.home()
    except RuntimeError:
        return None


def expanded(path: str | Path) -> Path:
    """``path`` with the home directory for a leading ``~`` or ``~name``; as it is where there is no such home."""
    try:
        return Path(path).expanduser()
    except RuntimeError:
        return Path(path)


def user_cache() -> Path:
    """Where files of this user's that can be made again are kept; it need not be there."""
    if named := os.environ.get("XDG_CACHE_HOME"):
        return Path(named) / "niffbench"
    at_home = home()
    return shared_cache() if at_home is None else at_home / ".cache" / "niffbench"


def shared_cache() -> Path:
    """The same among temporary files, where others may write too."""
    return Path(tempfile.gettempdir(), f"niffbench-{os.geteuid()}")
