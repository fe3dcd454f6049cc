"""``niffbench`` and its workers, forked from a process that has loaded what they load: milliseconds, not seconds.

That process has called nothing of torch, so that a fork finds no threads, and each fork is as fresh as a process
that a terminal starts: its own session, folder, environment and files, and its workers are forks, too. Who needs
one that has loaded nothing, or whose libraries read the environment when they are loaded, starts Python.
"""

from __future__ import annotations

import fcntl
import gc
import importlib
import io
import json
import os
import pkgutil
import resource
import runpy
import select
import signal
import socket
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import cache, partial
from math import inf
from pathlib import Path
from typing import Any
from zlib import crc32

ROOT = Path(__file__).parents[1]
CLI, WORKER, ON_STUB_CARD = "niffbench.cli", "niffbench.worker.main", "on_stub_card"
FORKING = "niffbench.worker.forking"
NAMES = {
    CLI: "nb-",
    WORKER: "nw-",
    FORKING: "nf-",
    ON_STUB_CARD: "nc-",
    **{f"niffbench.verdict.{name}": "nv-" for name in ("ahead", "assumptions", "witnesses")},
}
"""What the names of processes begin with, which tell whose a process is where its environment does not."""
REPLY = ("--reply-fd", "3")
"""A worker's arguments here: its fourth file is the line to its session."""
CONSTANTS = "NIFFBENCH_TESTS_CONSTANTS"
"""A variable: names of constants of modules with what they are in forks, as JSON, so that nobody waits long."""
LOADS = ("PYTHON", "OMP_", "MKL_", "OPENBLAS_", "KMP_", "GOMP_", "LD_", "TORCH", "TRITON", "KINETO", "LC_", "LANG")
"""Beginnings of variables that are read before anything is run."""
Beside = tuple[tuple[str, str], ...]
"""Variables and what they are."""
SHARED = "NIFFBENCH_TESTS_SHARED"
"""A variable: the folder that all processes of pytest which run side by side have in common."""
MORE = ("matplotlib.pyplot", "seaborn", "scipy.stats", "jinja2", "rich.progress", "fvcore.nn", "torchvision")
"""Libraries that are loaded only where they are used."""


def is_alike(environment: Mapping[str, str], beside: Beside = ()) -> bool:
    """Whether a fork is as good as a process that is started in ``environment``.

    It is where nothing but ``beside`` is asked for that this process does not have itself. That is compared as it
    is now, whatever tests have left there since the server was started: or all after them would start processes.
    """
    return sys.platform == "linux" and _loaded(environment) == _loaded({**os.environ, **dict(beside)})


def _loaded(environment: Mapping[str, str]) -> list[tuple[str, str]]:
    """What of it is read before anything is run."""
    names = {name for name in environment if name.startswith(LOADS)} - {"PYTHONPATH", "PYTHONDONTWRITEBYTECODE"}
    return sorted((name, environment[name]) for name in names)


def start(
    arguments: Sequence[str],
    environment: Mapping[str, str],
    *,
    cwd: Path,
    stdout: int,
    stderr: int,
    tag: str = "",
    limits: Mapping[str, int] | None = None,
    ignored: Sequence[int] = (),
    module: str = CLI,
    beside: Beside = (),
) -> Forked | subprocess.Popen[bytes]:
    """``niffbench`` in a session of its own, without input: a fork where that is as good as any process.

    Args:
        module: what is run in its place.
        beside: see :func:`_server`.
        stdout: a descriptor, as ``stderr`` is.
        tag: by which :func:`named` knows a fork and its workers.
        limits: see :func:`prepared`, and ``ignored``.
    """
    with Path(os.devnull).open("rb") as nothing:
        if is_alike(environment, beside):
            standard = (nothing.fileno(), stdout, stderr)
            prepare = {"limits": limits, "ignored": [*ignored]}
            return Forked(
                module, arguments, standard, environment, cwd=cwd, tag=tag, prepare=prepare, beside=beside
            )
        return subprocess.Popen(
            [sys.executable, "-m", module, *arguments],
            env=environment,
            cwd=cwd,
            stdin=nothing,
            stdout=stdout,
            stderr=stderr,
            start_new_session=True,
            preexec_fn=partial(prepared, limits, ignored),
        )


def run(
    arguments: Sequence[str], environment: Mapping[str, str], cwd: Path, timeout: float = 120.0, **how: Any
) -> subprocess.CompletedProcess[str]:
    """Run ``niffbench`` to its end; ``how`` as for :func:`start`."""
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        process = start(arguments, environment, cwd=cwd, stdout=out.fileno(), stderr=err.fileno(), **how)
        try:
            status = process.wait(timeout)
        finally:
            process.kill()
        printed = [os.pread(file.fileno(), 2**24, 0).decode() for file in (out, err)]
    return subprocess.CompletedProcess([*arguments], status, *printed)


class Forked:
    """A fork that runs ``module`` as a program, with as much of :class:`subprocess.Popen` as tests need.

    Args:
        module: one of NAMES.
        standard: descriptors of its standard input, output and error, and of files that it has as 3, 4, …
        tag: by which :func:`named` knows the process, and its workers.
        prepare: is called in it first: see :func:`prepared`.
        beside: see :func:`_server`.
    """

    def __init__(
        self,
        module: str,
        arguments: Sequence[str],
        standard: Sequence[int],
        environment: Mapping[str, str],
        *,
        cwd: Path | None = None,
        tag: str = "",
        prepare: Mapping[str, Any] | None = None,
        beside: Beside = (),
    ) -> None:
        self.returncode: int | None = None
        self._line, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        request = {
            "module": module,
            "arguments": [*arguments],
            "environment": dict(environment),
            "cwd": str(cwd or Path.cwd()),
            "tag": tag,
            "prepare": dict(prepare or {}),
        }
        with theirs:
            socket.send_fds(_server(beside), [json.dumps(request).encode()], [theirs.fileno(), *standard])
        self.pid = int(self._line.recv(64))

    def wait(self, timeout: float | None = None) -> int:
        """Its exit status, negative where a signal ended it."""
        if self.returncode is None:
            self._line.settimeout(timeout)
            try:
                self.returncode = int(self._line.recv(64))
            except (TimeoutError, BlockingIOError):
                raise subprocess.TimeoutExpired("niffbench", timeout or 0.0) from None
            self._line.close()
        return self.returncode

    def poll(self) -> int | None:
        """Its exit status, None while it runs."""
        with suppress(subprocess.TimeoutExpired):
            return self.wait(0.0)
        return None

    def send_signal(self, number: int) -> None:
        """Send it a signal, unless it has ended."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        """End it at once."""
        self.send_signal(signal.SIGKILL)


def named(tag: str, *modules: str) -> set[str]:
    """The names of processes that run one of ``modules`` for ``tag``."""
    return {f"{NAMES[module]}{tag[:11]}" for module in modules}


def prepared(limits: Mapping[str, int] | None = None, ignored: Sequence[int] = (), code: str = "") -> None:
    """What a shell does before it starts a program.

    Args:
        limits: by the names of resources, as ``FSIZE``.
        ignored: signals that the process does not hear.
        code: Python to run.
    """
    for name, value in (limits or {}).items():
        resource.setrlimit(getattr(resource, f"RLIMIT_{name}"), (value, value))
    for number in (signal.SIGHUP, signal.SIGTERM):  # a background job's may be ignored
        signal.signal(number, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for number in ignored:
        signal.signal(number, signal.SIG_IGN)
    exec(code)


def load() -> None:
    """Load what is to be forked, before there is a hurry."""
    if sys.platform == "linux":
        _server(())


@cache
def _server(beside: Beside) -> socket.socket:
    """The line to it; it was started in the environment of this process, with variables ``beside``.

    Processes of pytest that run side by side have one, which is started by who needs it first.
    """
    environment = {**os.environ, **dict(beside)}
    place = Path(environment[SHARED], f"server-{crc32(repr(_loaded(environment)).encode()):08x}")
    line = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with _locked(place):
        try:
            line.connect(str(place))
        except FileNotFoundError:
            _start_server(place, environment)
            line.connect(str(place))
    return line


def _start_server(place: Path, environment: Mapping[str, str]) -> None:
    paths = os.pathsep.join(filter(None, (str(ROOT), environment.get("PYTHONPATH"))))
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as door:
        door.bind(str(place))
        door.listen()
        subprocess.Popen(
            [sys.executable, "-P", __file__, str(door.fileno()), str(place)],
            pass_fds=(door.fileno(),),
            env={**environment, "PYTHONPATH": paths, "KINETO_LOG_LEVEL": "99"},
            start_new_session=True,
        )


@contextmanager
def _locked(place: Path) -> Iterator[None]:
    with place.with_suffix(".lock").open("ab") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _serve(door: socket.socket, place: Path) -> None:
    """Fork for whoever asks, until nobody is there any more who might."""
    import niffbench

    for module in pkgutil.walk_packages(niffbench.__path__, "niffbench."):
        if not module.name.endswith(("__main__", "triton_kernels", "pytest_plugin")):
            importlib.import_module(module.name)
    for name in MORE:
        importlib.import_module(name)
    gc.collect()
    gc.freeze()  # or a fork would copy all of it when it collects
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for those who wait
    lines = [door.accept()[0]]
    while True:
        for line in select.select([door, *lines], [], [])[0]:
            if line is door:
                lines.append(door.accept()[0])
                continue
            request, descriptors, _, _ = socket.recv_fds(line, 2**20, 8)
            if not request:
                line.close()
                lines.remove(line)
                continue
            if os.fork() == 0:
                for each in (door, *lines):
                    each.close()
                _watch(json.loads(request), *descriptors)
            for descriptor in descriptors:
                os.close(descriptor)
        if not lines and not _is_asked(door, place):
            return


def _is_asked(door: socket.socket, place: Path) -> bool:
    """Whether somebody is at the door; if not, nobody finds it any more."""
    with suppress(FileNotFoundError), _locked(place):  # the folder goes with the tests
        if select.select([door], [], [], 0.0)[0]:
            return True
        place.unlink()
    return False


def _watch(request: dict[str, Any], line: int, *standard: int) -> None:
    """Fork the program, and tell its number and at last its exit status."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    child = os.fork()
    if child == 0:
        _end_with(lambda: _program(request, *standard))
    for descriptor in standard:
        os.close(descriptor)
    with suppress(OSError), socket.socket(fileno=line) as answer:  # who asked may be gone
        answer.send(str(child).encode())
        _, status = os.waitpid(child, 0)
        answer.send(str(os.waitstatus_to_exitcode(status)).encode())
    os._exit(0)


def _end_with(run: Callable[[], object]) -> None:
    """End this process with the status in which ``run`` ends, whatever is above it on the stack."""
    status: object = 0
    try:
        run()
    except SystemExit as end:
        status = end.code
    except BaseException:
        traceback.print_exc()
        status = 1
    finally:
        with suppress(OSError):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(status if isinstance(status, int) else int(status is not None))


def _program(request: dict[str, Any], *standard: int) -> None:
    module, tag = request["module"], request["tag"]
    _begin(standard, request["environment"], request["cwd"], module, tag)
    prepared(**request["prepare"])
    for name, value in json.loads(os.environ.pop(CONSTANTS, "{}")).items():
        holder, _, constant = name.rpartition(".")
        setattr(sys.modules[holder], constant, value)
    subprocess.Popen = _popen(tag)  # type: ignore[misc]
    _run(module, request["arguments"])


def _run(module: str, arguments: Sequence[str]) -> None:
    """As ``python -m`` does."""
    sys.argv = [module, *arguments]
    sys.modules.pop(module, None)
    runpy.run_module(module, run_name="__main__", alter_sys=True)


def _begin(
    standard: Sequence[int], environment: Mapping[str, str], folder: str | None, module: str, tag: str
) -> None:
    """Make of this fork what a new process is, with no files open but ``standard``, numbered from 0."""
    os.setsid()
    out_of_the_way = [fcntl.fcntl(descriptor, fcntl.F_DUPFD, 256) for descriptor in standard]
    for place, descriptor in enumerate(out_of_the_way):
        os.dup2(descriptor, place)
    os.closerange(len(standard), 2**16)
    if folder is not None:
        os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    sys.dont_write_bytecode = bool(environment.get("PYTHONDONTWRITEBYTECODE"))
    tempfile.tempdir = None
    paths = environment.get("PYTHONPATH", "").split(os.pathsep)
    sys.path[:0] = [*([] if module in (WORKER, FORKING) else [str(Path.cwd())]), *filter(None, paths)]
    encoding = sys.stdout.encoding
    sys.stdin = open(0, encoding=encoding, closefd=False)  # noqa: SIM115
    for name, place, errors in (("stdout", 1, "strict"), ("stderr", 2, "backslashreplace")):
        file = io.BufferedWriter(io.FileIO(place, "wb", closefd=False))
        lines = place == 2 or os.isatty(place)
        setattr(sys, name, io.TextIOWrapper(file, encoding=encoding, errors=errors, line_buffering=lines))
    Path("/proc/self/comm").write_text(f"{NAMES[module]}{tag[:11]}", encoding="utf-8")


def _popen(tag: str) -> type[subprocess.Popen[Any]]:
    """What takes the place of Popen in a fork: of our programs it makes forks, too."""

    class Popen(subprocess.Popen[Any]):
        def __new__(cls, command: Sequence[str], *more: Any, **how: Any) -> Any:
            match [] if isinstance(command, str | Path) else [*map(str, command)]:
                case [sys.executable, "-P", "-m", module, *arguments] if module in NAMES:
                    pass
                case [sys.executable, "-m", module, *arguments] if module in NAMES:
                    pass
                case _:
                    return super().__new__(cls)
            if not _leads_here(how.get("env") or os.environ):
                return super().__new__(cls)
            return _Fork(module, arguments, tag, **how)

    return Popen


def _leads_here(environment: Mapping[str, str]) -> bool:
    """Whether it is this very package that a process in ``environment`` finds."""
    packages = (Path(path, "niffbench") for path in environment.get("PYTHONPATH", "").split(os.pathsep) if path)
    ours = ROOT / "niffbench"
    return next((package for package in packages if package.is_dir()), ours).resolve() == ours


class _Fork:
    """What a fork starts, as another fork; it has of :class:`subprocess.Popen` what this package uses."""

    def __init__(self, module: str, arguments: Sequence[str], tag: str, **how: Any) -> None:
        self.returncode: int | None = None
        self.args = arguments
        read, write = os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            with Path(os.devnull).open("rb") as nothing:
                given, output = how.get("stdin"), how.get("stdout")
                is_open = isinstance(given, int) and given >= 0  # and not what stands for no input
                source = given if is_open else getattr(given, "fileno", nothing.fileno)()
                target = output.fileno() if hasattr(output, "fileno") else write
                standard = (source, target, target, *how.get("pass_fds", ()))
                _end_with(lambda: self._run(module, arguments, tag, standard, how))
        os.close(write)
        self.stdout = os.fdopen(read, "rb", buffering=0)

    @staticmethod
    def _run(
        module: str, arguments: Sequence[str], tag: str, standard: Sequence[int], how: Mapping[str, Any]
    ) -> None:
        ignored = [number for number in (signal.SIGINT, signal.SIGHUP) if _is_ignored(number)]
        _begin(standard, dict(how.get("env") or os.environ), how.get("cwd"), module, tag)
        prepared(ignored=ignored)
        how.get("preexec_fn", int)()
        _run(module, REPLY if module == WORKER else arguments)

    def poll(self) -> int | None:
        if self.returncode is None:
            ended, status = os.waitpid(self.pid, os.WNOHANG)
            self.returncode = os.waitstatus_to_exitcode(status) if ended else None
        return self.returncode

    def wait(self, timeout: float = inf) -> int:
        ends = time.monotonic() + timeout
        while (status := self.poll()) is None:
            if time.monotonic() > ends:
                raise subprocess.TimeoutExpired("niffbench", timeout)
            time.sleep(0.002)
        return status

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


def _is_ignored(number: int) -> bool:
    return signal.getsignal(number) is signal.SIG_IGN


if __name__ == "__main__":
    _serve(socket.socket(fileno=int(sys.argv[1])), Path(sys.argv[2]))
    os._exit(0)  # taken down, libraries are slow, and loud
