"""The journal keeps every record that append returned from, and mends what a cut left behind."""

from __future__ import annotations

import errno
import os
import resource
import signal
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from synthetic import World, make

from niffbench.case import Case, Problem
from niffbench.results import RECORDS, Latency, Record, Traits, dump, parse, read_manifest
from niffbench.session.directory import write_manifest
from niffbench.session.journal import Journal, JournalLost


def record(number: int, samples: int = 3) -> Record:
    case = Case("depthwise", Problem(1, 4, 4, 14, 14), 7)
    return Record(
        case=case,
        id=case.id,
        round=number,
        status="ok",
        traits=Traits(label="depthwise-k7", family="depthwise", boundary="zero", equivalence="d"),
        latency={"steady": Latency(samples=[1e-3 / (i + 1) for i in range(samples)])},
    )


class Disk:
    """What the journal asks of the system, in order; ``fault`` (an errno) befalls who syncs a directory."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, fault: int | None = None) -> None:
        self.asked: list[str] = []
        write, fsync = os.write, os.fsync

        def see_write(descriptor: int, data: bytes) -> int:
            self.asked.append("write")
            return write(descriptor, data)

        def see_fsync(descriptor: int) -> None:
            directory = stat.S_ISDIR(os.fstat(descriptor).st_mode)
            self.asked.append("sync directory" if directory else "sync")
            if directory and fault is not None:
                raise OSError(fault, os.strerror(fault))
            fsync(descriptor)

        monkeypatch.setattr(os, "write", see_write)
        monkeypatch.setattr(os, "fsync", see_fsync)


def written(directory: Path) -> list[Record]:
    return [parse(line) for line in (directory / RECORDS).read_bytes().splitlines()]


def test_records_are_on_the_disk_in_order(tmp_path: Path) -> None:
    with Journal(tmp_path) as journal:
        for number in range(5):
            journal.append(record(number))
            assert written(tmp_path) == [record(i) for i in range(number + 1)]
    with Journal(tmp_path) as journal:
        assert journal.repair() is None
        journal.append(record(5))
    assert [one.round for one in written(tmp_path)] == list(range(6))


def test_a_record_is_on_the_disk_before_it_counts_as_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A power cut takes what was only written: every record is synced, and the journal's name before the first."""
    disk = Disk(monkeypatch)
    with Journal(tmp_path) as journal:
        for number in range(2):
            disk.asked.append("append")
            journal.append(record(number))
    assert disk.asked == ["sync directory", *["append", "write", "sync"] * 2]


@pytest.mark.parametrize("fault", [errno.EINVAL, errno.ENOTSUP])
def test_a_directory_that_cannot_be_synced_ends_no_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: int
) -> None:
    """As on some network file systems."""
    disk = Disk(monkeypatch, fault)
    (tmp_path / RECORDS).write_bytes(b"torn")
    with Journal(tmp_path) as journal:
        assert journal.repair() is not None
        journal.append(record(0))
    assert disk.asked.count("sync directory") == 2
    assert written(tmp_path) == [record(0)]
    write_manifest(tmp_path, make(World(sizes=(14,), rounds=1, faults=()), tmp_path).manifest)
    assert read_manifest(tmp_path).rounds == 1


def test_a_directory_that_is_broken_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Disk(monkeypatch, errno.EIO)
    with pytest.raises(JournalLost, match=r"records.jsonl: cannot be written \(Input/output error\)"):
        Journal(tmp_path)


@given(whole=st.integers(0, 3), cut=st.integers(1, 400), long=st.booleans())
@settings(max_examples=40, deadline=None)
def test_a_torn_line_is_cut_off_and_kept(
    tmp_path_factory: pytest.TempPathFactory, whole: int, cut: int, long: bool
) -> None:
    directory = tmp_path_factory.mktemp("run")
    last = dump(record(9, samples=9000 if long else 3))  # longer than a chunk of the search
    torn = last[: -min(cut, len(last) - 1)]
    content = b"".join(dump(record(i)) for i in range(whole)) + torn
    (directory / RECORDS).write_bytes(content)
    with Journal(directory) as journal:
        mended = journal.repair()
        assert mended is not None
        assert mended.bytes == len(torn)
        journal.append(record(7))
    rounds = [one.round for one in written(directory)]
    if mended.side_file is None:  # whole but for its newline
        assert cut == 1
        assert rounds == [*range(whole), 9, 7]
    else:
        assert mended.side_file.read_bytes() == torn
        assert rounds == [*range(whole), 7]


@pytest.mark.parametrize("rubbish", [b"\0" * 70_000, b"\0" * 512, b"{}", b'{"case":'])
def test_what_a_power_cut_leaves(tmp_path: Path, rubbish: bytes) -> None:
    (tmp_path / RECORDS).write_bytes(dump(record(0)) + rubbish)
    with Journal(tmp_path) as journal:
        mended = journal.repair()
    assert mended is not None
    assert mended.side_file is not None
    assert mended.side_file.read_bytes() == rubbish
    assert written(tmp_path) == [record(0)]


@pytest.mark.parametrize("line", [b"\0" * 512 + b"\n", b'{"of a newer version": 1}\n'])
def test_a_line_with_its_newline_is_not_torn(tmp_path: Path, line: bytes) -> None:
    content = dump(record(0)) + line
    (tmp_path / RECORDS).write_bytes(content)
    with Journal(tmp_path) as journal:
        assert journal.repair() is None
    assert [path.name for path in tmp_path.iterdir()] == [RECORDS]
    assert (tmp_path / RECORDS).read_bytes() == content


def test_an_earlier_torn_line_is_not_written_over(tmp_path: Path) -> None:
    for torn in (b"one", b"two"):
        with (tmp_path / RECORDS).open("ab") as file:
            file.write(torn)
        with Journal(tmp_path) as journal:
            journal.repair()
    assert {path.read_bytes() for path in tmp_path.glob(f"{RECORDS}.torn-*")} == {b"one", b"two"}


def test_an_empty_journal_needs_no_repair(tmp_path: Path) -> None:
    with Journal(tmp_path) as journal:
        assert journal.repair() is None


def test_a_file_that_may_not_grow_leaves_no_torn_line(tmp_path: Path) -> None:
    """A full disk, as a limit on the file's size: some of a line can be written, then none."""
    with Journal(tmp_path) as journal:
        journal.append(record(0))
        size = (tmp_path / RECORDS).stat().st_size
        previous = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (size + 100, hard))
        try:
            with pytest.raises(JournalLost, match=r"records.jsonl: cannot be written \(File too large\)"):
                journal.append(record(1))
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
            signal.signal(signal.SIGXFSZ, previous)
        assert (tmp_path / RECORDS).stat().st_size == size
        journal.append(record(1))
    assert written(tmp_path) == [record(0), record(1)]


def test_a_disk_that_is_full(tmp_path: Path) -> None:
    (tmp_path / RECORDS).symlink_to("/dev/full")
    with Journal(tmp_path) as journal, pytest.raises(JournalLost, match="No space left on device"):
        journal.append(record(0))


@pytest.mark.parametrize("whole", [True, False])
def test_a_directory_or_file_that_is_removed(tmp_path: Path, whole: bool) -> None:
    place = tmp_path / "run"
    place.mkdir()
    with Journal(place) as journal:
        journal.append(record(0))
        (place / RECORDS).unlink()
        if whole:
            place.rmdir()
        with pytest.raises(JournalLost, match="removed while the run was writing"):
            journal.append(record(1))


def test_what_cannot_be_opened(tmp_path: Path) -> None:
    (tmp_path / RECORDS).mkdir()
    with pytest.raises(JournalLost, match="Is a directory"):
        Journal(tmp_path)


def test_records_survive_the_death_of_their_writer(tmp_path: Path) -> None:
    code = (
        "import os, sys, pathlib\n"
        "sys.path[:0] = sys.argv[2:]\n"
        "from test_journal import Journal, record\n"
        "journal = Journal(pathlib.Path(sys.argv[1]))\n"
        "for i in range(20): journal.append(record(i))\n"
        "os.kill(os.getpid(), 9)\n"
    )
    arguments = [
        sys.executable,
        "-c",
        code,
        str(tmp_path),
        str(Path(__file__).parent),
        str(Path(__file__).parents[1]),
    ]
    assert subprocess.run(arguments, check=False, env={**os.environ, "OMP_NUM_THREADS": "1"}).returncode == -9
    assert [one.round for one in written(tmp_path)] == list(range(20))
