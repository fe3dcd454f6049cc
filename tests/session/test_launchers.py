"""A launcher is one file: found by its name, and all that a session needs of where workers run."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import Cli
from run_session import Attempt, all_keys, asked, keys, suite_of

from niffbench import launch, protocol
from niffbench.errors import UsageError
from niffbench.launch import relay
from niffbench.results import read_manifest
from niffbench.session.interrupts import Interrupts

PLANTED = '''
"""Workers that are no processes: their replies are made up where they are asked for."""
import os
from dataclasses import dataclass, field

from niffbench import protocol
from niffbench.fingerprint import Fingerprint
from niffbench.launch.base import Launcher, WorkerEnd
from niffbench.results import Record, Traits


@dataclass
class Planted(Launcher):
    """Is lost over the first case of the second round."""

    replies: list = field(default_factory=list)
    is_queued = False

    def start(self, task, wake):
        return Planted([
            protocol.Hello(fingerprint=Fingerprint(must={"device": "planted"}, should={}), free_memory=2**30),
            *(self.answer(task, case) for case in task.cases),
            *([protocol.Roofline(reason="not here")] if task.ceilings else []),
            protocol.End(),
        ]) if task.round != 1 or len(task.cases) < 4 else Planted([
            protocol.Hello(fingerprint=Fingerprint(must={"device": "planted"}, should={})),
            protocol.Begin(case=task.cases[0].id, stage="steady"),
            WorkerEnd("was preempted"),
        ])

    def answer(self, task, case):
        if task.kind == "survey":
            return protocol.Predicted(case=case.id, resident=1, peak=2)
        traits = Traits(label="planted", family="depthwise", boundary="zero", equivalence="planted")
        measured = Record(case=case, id=case.id, round=task.round, status="ok", traits=traits)
        return protocol.Finished(record=measured)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.kill()

    def next(self, deadline):
        return self.replies.pop(0)

    def arrived(self):
        return []

    def kill(self):
        self.replies.clear()


LAUNCHER = Planted()
'''


@pytest.fixture
def planted(tmp_path: Path) -> Iterator[None]:
    """One more place to find launchers in."""
    folder = tmp_path / "launchers"
    folder.mkdir()
    (folder / "planted.py").write_text(PLANTED)
    launch.__path__.append(str(folder))
    yield
    launch.__path__.remove(str(folder))


def test_a_launcher_is_one_file(tmp_path: Path, planted: None) -> None:
    """Survey, rounds and the loss of a worker, with no process anywhere."""
    assert {"local", "planted"} <= set(launch.launchers())
    run = Attempt(tmp_path / "run", suite_of(), overrides=asked(launcher="planted")).begin()
    assert keys(run) == all_keys(suite_of())
    [lost] = [record for record in run.records if record.status != "ok"]
    assert (lost.round, lost.status, lost.reason) == (1, "crashed", "the worker was preempted during steady")
    assert run.manifest.fingerprint.must == {"device": "planted"}
    assert read_manifest(tmp_path / "run").settings.launcher == "planted"


def test_a_launcher_that_is_not_there_is_one_clear_message(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"no launcher is named 'locl'; did you mean 'local'\?"):
        Attempt(tmp_path / "run", suite_of(), overrides=asked(launcher="locl")).begin()
    assert not (tmp_path / "run").exists()


def test_no_engine_is_imported_before_it_is_asked_for() -> None:
    """Not even by the files of the launchers."""
    code = (
        "import sys; from niffbench import launch; import niffbench.commands.run, niffbench.session.opening; "
        "[launch.launcher(name) for name in launch.launchers()]; "
        "print(sorted({'ray', 'submitit', 'torch'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_a_machine_with_another_file_of_the_users_or_none_refuses(tmp_path: Path) -> None:
    files = [tmp_path / "mine.py", tmp_path / "other.py"]
    for file in files:
        file.write_text("before")
    with Interrupts() as stop:
        settings = Attempt(tmp_path / "run", suite_of()).prepare(stop).settings
    task = protocol.Task(kind="round", settings=settings, cases=[])
    parcel = relay.pack(task, relay.environment(files), files, None)
    files[0].write_text("after")
    files[1].unlink()
    _, line = relay.relay(parcel, "node")
    refused = protocol.read(line)
    assert isinstance(refused, protocol.Refused)
    assert re.fullmatch(
        r"mine\.py is \w{12} there and \w{12} here; other\.py is missing there and \w{12} here", refused.message
    )


@pytest.mark.parametrize(("launcher", "module"), [("ray", "ray"), ("slurm", "submitit")])
def test_an_engine_that_is_not_installed_is_one_message(
    cli: Cli, tmp_path: Path, launcher: str, module: str
) -> None:
    (tmp_path / f"{module}.py").write_text("raise ImportError('planted')")
    path = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
    done = cli("run", "smoke", "--device", "cpu", "--on", launcher, env={"PYTHONPATH": path})
    assert (done.returncode, done.stderr.count("\n")) == (2, 1), done.stderr
    assert f"pip install 'niffbench[{launcher}]'" in done.stderr
    assert not (tmp_path / "reports").exists()


@pytest.mark.parametrize("option", [["--workers", "2"], ["--launcher-option", "partition=gpu"]])
def test_what_only_an_engine_has_is_refused_here(cli: Cli, option: list[str]) -> None:
    done = cli("run", "smoke", "--device", "cpu", *option)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1), done.stderr
    assert f"{option[0]}: 'local' runs one worker at a time; take --on ray or --on slurm" in done.stderr
