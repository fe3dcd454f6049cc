"""Two runs never write into one directory, and a dead one does not keep it."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from niffbench.errors import UsageError
from niffbench.session.lock import LOCK, Lock, device_lock

HOLD = (
    "import sys, pathlib, time\nfrom niffbench.session.lock import Lock\n"
    "with Lock(pathlib.Path(sys.argv[1])):\n  print('held', flush=True)\n  time.sleep(60)\n"
)


def test_the_second_is_told_who_the_first_is(tmp_path: Path) -> None:
    holder = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert holder.stdout is not None
    try:
        assert holder.stdout.readline() == "held\n"
        with (
            pytest.raises(UsageError, match=rf"another niffbench \(process {holder.pid}\) is writing there"),
            Lock(tmp_path),
        ):
            pass
    finally:
        holder.kill()
        holder.wait()
        holder.stdout.close()
    assert (tmp_path / LOCK).exists()
    with Lock(tmp_path):  # the kernel let go of it when the holder was killed
        pass
    assert not (tmp_path / LOCK).exists()


def test_two_runs_on_one_device_know_of_each_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with device_lock("card") as first, device_lock("other") as elsewhere:
        assert (first, elsewhere) == (None, None)
        with device_lock("card") as second:
            assert f"process {os.getpid()}" in (second or "")
        with device_lock(None) as replay:
            assert replay is None
    with device_lock("card") as again:
        assert again is None


def test_it_can_be_taken_again_and_again(tmp_path: Path) -> None:
    for _ in range(3):
        with Lock(tmp_path), pytest.raises(UsageError), Lock(tmp_path):
            pass


def test_a_directory_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot be locked"), Lock(tmp_path / "nothing"):
        pass
