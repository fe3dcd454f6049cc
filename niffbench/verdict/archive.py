"""All that a verdict has gathered, in one archive that is replaced whole: no end loses what was there."""

from __future__ import annotations

import io
import socket
import tarfile
import zlib
from pathlib import Path

from niffbench.anonymize import anonymize
from niffbench.errors import UsageError

NAME = "gathered.tar.gz"
MOST_BYTES = 64 * 2**20
"""Of one file; a trace that is larger stays behind."""

_LOGS = {".txt", ".xml"}


def save(path: Path, content: bytes) -> None:
    """Write ``path`` so that a reader sees the old content or the new one.

    Raises:
        UsageError: when it cannot be written.
    """
    draft = path.with_name(f"{path.name}.part")
    try:
        draft.write_bytes(content)
        draft.replace(path)
    except OSError as error:
        raise UsageError(f"{path}: cannot be written ({error.strerror})") from error


def pack(folder: Path, out: Path) -> None:
    """Pack all of ``folder`` into ``out``'s archive, without what tells whose machine it was."""
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz", compresslevel=5) as archive:
        for path in sorted(folder.rglob("*")):
            if not path.is_file():
                continue
            try:
                facts = path.stat()
                if facts.st_size > MOST_BYTES:
                    continue
                content = _cleaned(path)
            except FileNotFoundError:  # whose draft it was has renamed it
                continue
            entry = tarfile.TarInfo(path.relative_to(folder).as_posix())
            entry.size, entry.mtime = len(content), int(facts.st_mtime)
            archive.addfile(entry, io.BytesIO(content))
    save(out / NAME, packed.getvalue())


def unpack(out: Path, folder: Path) -> None:
    """Put into ``folder`` what an earlier call gathered in ``out``.

    Raises:
        UsageError: for what is no archive.
    """
    if not (out / NAME).exists():
        return
    try:
        with tarfile.open(out / NAME) as archive:
            archive.extractall(folder, filter="data")
    except (OSError, EOFError, zlib.error, tarfile.TarError) as error:
        raise UsageError(f"{out / NAME}: cannot be unpacked ({error}); name another --out") from error


def _cleaned(path: Path) -> bytes:
    """A file as it may be shown: logs without paths, users and hosts, all others without the host's name."""
    content = path.read_bytes()
    if path.suffix in _LOGS:
        text = anonymize(content.decode("utf-8", errors="replace"))
        if path.suffix == ".xml":  # what stands in for a name must not look like a tag
            text = text.replace("<host>", "(host)").replace("<user>", "(user)")
        return text.encode()
    host = socket.gethostname().encode()
    return content.replace(host, b"<host>") if len(host) > 4 else content
