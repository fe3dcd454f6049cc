"""Writing files whole or not at all."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from niffbench.errors import UsageError


def make_directory(path: Path) -> None:
    """Make ``path``, and what it is in, where it is not there. Raises UsageError when it cannot be made."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"{path}: cannot be made ({error.strerror or error})") from error


def write_whole(path: Path, content: str | bytes) -> None:
    """Write ``path`` by way of a temporary file beside it, so that an interrupt leaves the old file or the new
    one.

    Raises UsageError when the place cannot be written, or is not there.
    """
    data = content.encode() if isinstance(content, str) else content
    temporary = None
    try:
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        with os.fdopen(handle, "wb") as file:
            file.write(data)
        Path(temporary).chmod(0o644)
        Path(temporary).replace(path)
    except OSError as error:
        raise UsageError(f"{path}: cannot be written ({error.strerror or error})") from error
    finally:
        if temporary is not None:
            Path(temporary).unlink(missing_ok=True)
