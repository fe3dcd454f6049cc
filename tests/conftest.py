"""Fixtures every test may use: the command line as a subprocess, and skips that give their reason."""

from __future__ import annotations

import fcntl
import gc
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import warm_process
from hypothesis import HealthCheck, settings

if TYPE_CHECKING:
    from niffbench.device.cpu import CpuDevice
    from niffbench.worker.torch_evaluator import TorchEvaluator

# A machine that is busy with something else makes drawing slow, which says nothing of what is tested.
EXAMPLES = int(os.environ.get("NIFFBENCH_TESTS_EXAMPLES", "30"))  # more, where there is time
settings.register_profile(
    "any machine", deadline=None, suppress_health_check=[HealthCheck.too_slow], max_examples=EXAMPLES
)
settings.load_profile("any machine")
# There, threads of OpenMP that wait for each other by spinning make a small operation a hundred times slower.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
# Hundreds of processes are started: with it each would compile the package anew, which takes seconds.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False
# Commands set these where libraries are loaded, and in this process they stay set.
os.environ.setdefault("KINETO_LOG_LEVEL", "99")
os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
os.environ["NIFFBENCH_TUNING"] = "0"  # No test chooses by what was chosen here before, or leaves a choice.
# A shell lets its background jobs ignore Ctrl-C, and what they start inherits that: tests mean a terminal.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:  # nohup's
    signal.signal(signal.SIGHUP, signal.SIG_DFL)

# Tests that run side by side measure on one device, and would be told of each other.
os.environ.setdefault("PYTEST_DEBUG_TEMPROOT", tempfile.gettempdir())
# Not one inside another's: paths of sockets are short.
_own = tempfile.TemporaryDirectory(prefix="niffbench-tests-", dir=os.environ["PYTEST_DEBUG_TEMPROOT"])
tempfile.tempdir = os.environ["TMPDIR"] = _own.name

# Side by side, too, there is one folder of what is made once, by the number that pytest-xdist gives all of them.
_run = os.environ.get("PYTEST_XDIST_TESTRUNUID")
_shared = Path(_own.name if _run is None else f"{os.environ['PYTEST_DEBUG_TEMPROOT']}/niffbench-tests-{_run}")
_shared.mkdir(exist_ok=True)
os.environ[warm_process.SHARED] = str(_shared)
# What torch compiles once is there for all processes of the tests; and none starts others to compile in.
os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(_shared / "inductor"))
os.environ.setdefault("TORCHINDUCTOR_COMPILE_THREADS", "1")

Cli = Callable[..., subprocess.CompletedProcess[str]]
BROWSERS = ("chromium", "chromium-browser", "google-chrome")


LOCK = "NIFFBENCH_TESTS_LOCK"
"""The beginning of the paths of the locks of pytest processes that were started side by side, without ``-n``."""
SHARE = "NIFFBENCH_TESTS_SHARE"
"""Which of the tests one of them runs: ``2/6`` the second, eighth, … one."""


def pytest_configure(config: pytest.Config) -> None:
    """What many tests fork is loaded while tests are collected."""
    if hasattr(config, "workerinput"):
        warm_process.load()


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Take this process's share of the tests; skip what this machine cannot run, saying what it lacks."""
    if SHARE in os.environ:
        place, _, count = os.environ[SHARE].partition("/")
        taken = items[int(place) - 1 :: int(count)]
        config.hook.pytest_deselected(items=[item for item in items if item not in taken])
        items[:] = taken
    lacking = {}
    if any(item.get_closest_marker("cuda") for item in items):
        import torch

        if not torch.cuda.is_available():
            lacking["cuda"] = "torch sees no CUDA device here"
        elif torch.cuda.get_device_name().startswith("Stub"):  # what it counts would take minutes to print
            torch.Tensor.__repr__ = lambda x, **_: f"a tensor of {tuple(x.shape)}"  # type: ignore[method-assign]
    if not any(map(shutil.which, BROWSERS)):
        lacking["browser"] = f"none of {', '.join(BROWSERS)} is installed"
    if os.environ.get("PYTEST_XDIST_WORKER") and "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(1)  # side by side, threads of small operations wait for each other
    for item in items:
        for mark, reason in lacking.items():
            if item.get_closest_marker(mark):
                item.add_marker(pytest.mark.skip(reason=reason))
    items.sort(key=lambda item: not _is_alone(item))  # one after the other: each wait is for whatever is running


def pytest_collection_finish() -> None:
    """What is loaded by now stays: nobody need look through it for garbage time and again."""
    gc.collect()
    gc.freeze()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item, nextitem: pytest.Item | None) -> Iterator[None]:
    """With several processes, a test marked ``alone`` has the machine to itself, its fixtures too."""
    run = getattr(item.config, "workerinput", {}).get("testrunuid")
    lock = os.environ.get(LOCK) if run is None else _lock(run)
    if lock is None or _is_skipped(item):
        return (yield)
    alone = _is_alone(item)
    if not _rooms:
        # Who waits to be alone holds the door, or the others would take turns for ever.
        with _locked(Path(f"{lock}.door"), fcntl.LOCK_EX):
            _rooms.append(_locked(Path(f"{lock}.room"), fcntl.LOCK_EX if alone else fcntl.LOCK_SH))
            _rooms[-1].__enter__()
    try:
        return (yield)
    finally:
        if not (alone and nextitem is not None and _is_alone(nextitem)):
            _rooms.pop().__exit__(None, None, None)


_rooms: list[AbstractContextManager[None]] = []


def _is_alone(item: pytest.Item) -> bool:
    return item.get_closest_marker("alone") is not None and not _is_skipped(item)


def _is_skipped(item: pytest.Item) -> bool:
    return any(item.iter_markers("skip")) or any(mark.args[0] for mark in item.iter_markers("skipif"))


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Who started the processes removes what they shared."""
    controller = session.config.pluginmanager.get_plugin("dsession")
    if controller is not None:
        lock = _lock(controller.nodemanager.testrunuid)
        for name in ("door", "room"):
            Path(f"{lock}.{name}").unlink(missing_ok=True)
        shutil.rmtree(lock, ignore_errors=True)


def _lock(run: str) -> str:
    return str(Path(os.environ["PYTEST_DEBUG_TEMPROOT"], f"niffbench-tests-{run}"))


@contextmanager
def _locked(path: Path, how: int) -> Iterator[None]:
    """Hold a lock that other processes mind."""
    with path.open("ab") as file:
        fcntl.flock(file, how)
        try:
            yield
        finally:
            fcntl.flock(file, fcntl.LOCK_UN)  # a process that a test has left behind may have the file open, too


@pytest.fixture
def browser_path() -> str:
    """The Chromium to drive."""
    return next(path for name in BROWSERS if (path := shutil.which(name)))


@pytest.fixture
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """For tests of what stands beside plots: these are put together, and their files are blank."""
    from matplotlib.figure import Figure

    blank = {"svg": '<svg width="72pt" height="72pt"></svg>', "png": b""}
    monkeypatch.setattr(Figure, "savefig", lambda self, file, format, **_: file.write(blank[format]))


@pytest.fixture
def untimed_guards(monkeypatch: pytest.MonkeyPatch) -> None:
    """For tests that compile often: torch flushes all caches to time what guards each graph, and only logs it."""
    import torch._dynamo.guards

    monkeypatch.setattr(torch._dynamo.guards, "profile_guard_manager", lambda *_: 0.0, raising=False)


@pytest.fixture(scope="module")
def device() -> Iterator[CpuDevice]:
    """The CPU as a device, with one thread."""
    import torch

    from niffbench.device.cpu import CpuDevice

    before = torch.get_num_threads()
    yield CpuDevice(threads=1)
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def evaluator(device: CpuDevice) -> TorchEvaluator:
    """What measures cases, on ``device``."""
    from niffbench.worker.torch_evaluator import TorchEvaluator

    return TorchEvaluator(device)


@pytest.fixture
def cli(tmp_path: Path) -> Cli:
    """Run ``niffbench`` for real, in an empty directory; give arguments, get the finished process."""

    def run(
        *args: str, cwd: Path = tmp_path, timeout: float = 120, env: dict[str, str] | None = None
    ) -> subprocess.CompletedProcess[str]:
        done = warm_process.run(args, os.environ | {"COLUMNS": "100", "NO_COLOR": "1"} | (env or {}), cwd, timeout)
        assert "Warning: " not in done.stderr, done.stderr  # a library's, which no user can do anything about
        return done

    return run
