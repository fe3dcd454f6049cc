"""The journal: a run's records, one line each, on the disk before the next case is measured."""

from __future__ import annotations

import contextlib
import errno
import os
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from pydantic import ValidationError

from niffbench.errors import NiffbenchError
from niffbench.results import RECORDS, Record, dump, parse

_CHUNK = 65536


class JournalLost(NiffbenchError):
    """What was measured can no longer be written: a full disk, a removed directory, a read-only file."""

    exit_code = 2


@dataclass(frozen=True)
class Torn:
    """The end of a journal that was cut while being written, and what became of it.

    ``side_file`` is the file beside it that holds its bytes, or None when the line was whole but for its newline.
    """

    bytes: int
    side_file: Path | None


class Journal:
    """``records.jsonl``, opened for appending; created when there is none. Close it, or use it in a ``with``."""

    def __init__(self, directory: Path) -> None:
        self._path = directory / RECORDS
        try:
            self._descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
            sync_directory(directory)
        except OSError as error:
            raise self._lost(error) from error

    def __enter__(self) -> Journal:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        os.close(self._descriptor)

    def append(self, record: Record) -> None:
        """Write one record, which then survives a power cut.

        Raises:
            JournalLost: when it cannot be; no torn line is left.
        """
        try:
            start = os.fstat(self._descriptor).st_size
            try:
                self._write(dump(record))
            except OSError:
                with contextlib.suppress(OSError):
                    os.ftruncate(self._descriptor, start)
                raise
            if os.fstat(self._descriptor).st_nlink == 0 or not self._path.exists():
                raise FileNotFoundError(errno.ENOENT, "it was removed while the run was writing to it")
        except OSError as error:
            raise self._lost(error) from error

    def repair(self) -> Torn | None:
        """Cut a torn last line off, its bytes kept in a side file; complete one that lacks only its newline.

        A line that has its newline was written whole: what is wrong with it is not for this to mend.
        """
        try:
            return self._repair()
        except OSError as error:
            raise self._lost(error) from error

    def _repair(self) -> Torn | None:
        size = os.fstat(self._descriptor).st_size
        start = self._line_start(size)
        tail = os.pread(self._descriptor, size - start, start)
        if not tail or tail.endswith(b"\n"):
            return None
        if _is_record(tail):
            self._write(b"\n")
            return Torn(len(tail), None)
        side_file = self._side_file()
        side_file.write_bytes(tail)
        with side_file.open("rb") as file:
            os.fsync(file.fileno())
        sync_directory(side_file.parent)
        os.ftruncate(self._descriptor, start)
        os.fsync(self._descriptor)
        return Torn(len(tail), side_file)

    def _write(self, data: bytes) -> None:
        view = memoryview(data)
        while view:
            view = view[os.write(self._descriptor, view) :]
        os.fsync(self._descriptor)

    def _line_start(self, size: int) -> int:
        """Where the last line begins, whether or not it has its newline."""
        end = size - 1  # a newline at the very end belongs to the last line
        while end > 0:
            begin = max(0, end - _CHUNK)
            if (newline := os.pread(self._descriptor, end - begin, begin).rfind(b"\n")) >= 0:
                return begin + newline + 1
            end = begin
        return 0

    def _side_file(self) -> Path:
        """The first name that is free, so that no earlier torn line is written over."""
        number = 1
        while (path := self._path.with_name(f"{RECORDS}.torn-{number}")).exists():
            number += 1
        return path

    def _lost(self, error: OSError) -> JournalLost:
        rest = "" if error.errno == errno.ENOENT else "; what it held before is kept"
        return JournalLost(f"{self._path}: cannot be written ({error.strerror}){rest}")


def _is_record(line: bytes) -> bool:
    try:
        parse(line)
    except ValidationError:
        return False
    return True


def sync_directory(directory: Path) -> None:
    """Make a new name in a directory survive a power cut, where the file system can."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # some network and user-space file systems
            raise
    finally:
        os.close(descriptor)
