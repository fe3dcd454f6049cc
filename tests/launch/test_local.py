"""Workers on this machine that are forks of a process which has loaded what they load, or that process itself."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Literal

import psutil
from run_worker import QUICK, case_of

from niffbench import protocol
from niffbench.launch.base import Request, Worker, WorkerEnd
from niffbench.launch.local import LocalLauncher
from niffbench.suite import Settings


def _task(round_: int, kind: Literal["survey", "round"] = "round") -> protocol.Task:
    settings = Settings(device="cpu", rounds=1, measure=QUICK)
    return protocol.Task(kind=kind, settings=settings, cases=[case_of("depthwise", 3)], round=round_)


def _said(worker: Worker) -> list[str]:
    """The types of all its messages; of a worker that ends before it says so, the cause."""
    said: list[str] = []
    while said[-1:] != ["end"]:
        message = worker.next(time.monotonic() + 60)
        assert message is not None
        if isinstance(message, WorkerEnd):
            return [*said, message.cause]
        said.append(message.type)
    return said


def test_surveys_and_probes_are_forked_whatever_becomes_of_one_or_of_what_forks_them(tmp_path: Path) -> None:
    launcher, here = LocalLauncher(), psutil.Process()
    wake, other_end = os.pipe()
    before = set(here.children(recursive=True))
    with launcher.open(Request(tmp_path)):
        with launcher.start(_task(0, "survey"), wake) as worker:
            (loaded,) = set(here.children()) - before
            assert len(loaded.children()) == 1
            assert _said(worker)[-2:] == ["predicted", "end"]
        for is_first in (True, False):  # no round of the suite is a fork, but the first has loaded all before
            with launcher.start(_task(0), wake) as worker:
                (process,) = set(here.children(recursive=True)) - before
                assert (process == loaded) is is_first
                assert _said(worker)[-2:] == ["finished", "end"]
            assert set(here.children(recursive=True)) <= before
        with launcher.start(_task(1), wake) as worker:
            (loaded,) = set(here.children()) - before
            (probe,) = loaded.children()
            assert _said(worker)[-2:] == ["finished", "end"]
        with launcher.start(_task(2), wake) as worker:
            (another,) = loaded.children()
            assert another != probe
            another.kill()
            assert "was killed by SIGKILL" in _said(worker)[-1]
        with launcher.start(_task(3), wake) as worker:
            loaded.kill()
            assert "was killed by SIGKILL" in _said(worker)[-1]
        with launcher.start(_task(4), wake) as worker:
            assert _said(worker)[-2:] == ["finished", "end"]
    assert set(here.children(recursive=True)) <= before
    os.close(wake)
    os.close(other_end)
