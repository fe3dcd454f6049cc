"""Compiling and loading the C kernel: once for each source, compiler, CPU and element type."""

from __future__ import annotations

import ctypes
import functools
import hashlib
import os
import platform
import shlex
import shutil
import stat
import subprocess
import sys
import tempfile
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from niffbench.home import shared_cache, user_cache

SOURCES = tuple(Path(__file__).with_name(name) for name in ("convolve.c", "features.c", "calls.h", "vectors.h"))
FLAGS = ("-O3", "-std=gnu11", "-fno-math-errno", "-fPIC")
TUNINGS = (("-march=native",), ("-mcpu=native",), ())
"""Tried in turn, the best first: compilers have different ways to say "this CPU", or none."""
REALS = {"float": 4, "double": 8}
"""C's element types and their sizes in bytes."""

_RUNTIME = ("GOMP_parallel", "omp_get_thread_num", "omp_get_num_threads")
"""By which the kernel shares its work out: functions of the OpenMP runtime of GCC, which LLVM's has as well."""

_lock = threading.Lock()
_sharing: set[ctypes.CDLL] = set()


class Unavailable(NotImplementedError):
    """The kernel cannot be built or loaded here; the message says why."""


@dataclass(frozen=True)
class Kernel:
    """The loaded library, and which of :data:`TUNINGS` it was compiled with."""

    library: ctypes.CDLL
    tuning: tuple[str, ...]


def unavailable() -> str | None:
    """Why the kernel cannot be used on this machine, or ``None`` if it can (it is compiled to find out)."""
    try:
        load("float")
    except Unavailable as error:
        return str(error)
    return None


def tuning() -> str | None:
    """The flags that fit the kernel to this machine, in one line, or ``none``; ``None`` if there is no kernel."""
    with _lock:
        outcome = _outcome("float")
    return None if isinstance(outcome, str) else " ".join(outcome.tuning) or "none"


def compiler() -> str | None:
    """The C compiler's name and version, the first line of what it says of itself; ``None`` if there is none."""
    try:
        return _version(_command()).partition("\n")[0].strip() or None
    except (Unavailable, OSError):
        return None


def load(real: str) -> ctypes.CDLL:
    """The kernel for one element type of :data:`REALS`; the outcome is remembered for the process.

    It works in torch's own threads, if torch is loaded and has such of OpenMP; else in the one that calls.

    Raises:
        Unavailable: if there is no compiler, or it fails.
    """
    with _lock:  # Two threads would compile twice.
        outcome = _outcome(real)
    if isinstance(outcome, str):
        raise Unavailable(outcome)
    if outcome.library not in _sharing and (runtime := _runtime()) is not None:
        outcome.library.niff_use_runtime(*runtime)
        _sharing.add(outcome.library)
    return outcome.library


def _runtime() -> tuple[int | None, ...] | None:
    """Addresses of the functions of :data:`_RUNTIME`; None where no such runtime is loaded, torch's say."""
    process = ctypes.CDLL(None)
    if not all(hasattr(process, name) for name in _RUNTIME):
        return None
    return tuple(ctypes.cast(getattr(process, name), ctypes.c_void_p).value for name in _RUNTIME)


@functools.cache
def _outcome(real: str) -> Kernel | str:
    """The kernel with the best tuning that works now, or why there is none.

    A worse one that was compiled before is not stuck to: what failed then may have been installed since.
    """
    failure = ""
    for tuning in TUNINGS:
        try:
            return Kernel(declared(_built(real, tuning)), tuning)
        except (OSError, RuntimeError) as error:  # Unavailable; or no more threads may be started
            failure = str(error)
    return failure


def _built(real: str, tuning: tuple[str, ...]) -> Path:
    command = _command()
    name = f"convolve-{real}-{_identity(command, tuning)}.so"
    directory = cache()
    if (directory / name).exists():
        return directory / name
    with tempfile.TemporaryDirectory(dir=directory) as scratch:
        made = compiled(Path(scratch), real, tuning)
        made.replace(directory / name)  # Atomic: other processes may be building the same file.
    return directory / name


def compiled(folder: Path, real: str, tuning: tuple[str, ...]) -> Path:
    """The kernel for one element type of :data:`REALS`, compiled into ``folder`` with more flags, file by file.

    Raises:
        Unavailable: if there is no compiler, or it fails.
    """
    command = _command()
    arguments = [*command, *FLAGS, *tuning, f"-DREAL={real}", f"-DREAL_BYTES={REALS[real]}"]
    sources = [source for source in SOURCES if source.suffix == ".c"]
    objects = [folder / f"{source.stem}.o" for source in sources]
    compiles = [[*arguments, "-c", "-o", made, source] for made, source in zip(objects, sources, strict=True)]
    with ThreadPoolExecutor(len(compiles)) as compilers:
        list(compilers.map(_run, compiles))
    made = folder / f"{real}.so"
    _run([*arguments, "-shared", "-o", made, *objects])
    return made


def _run(command: Sequence[str | Path]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
    if done.returncode != 0:
        message = done.stderr.strip().splitlines()[-1:] or ["no message"]
        raise Unavailable(f"{command[0]} could not compile the kernel: {message[0]}")


def _command() -> list[str]:
    """What the environment's CC names, with what it gives it; else ``cc``, or else the one in Zig's package.

    Raises:
        Unavailable: if there is none.
    """
    try:
        command = shlex.split(os.environ.get("CC", "cc"))
    except ValueError as error:
        raise Unavailable(f"the environment's CC cannot be read ({error}): {os.environ['CC']}") from error
    compiler = shutil.which(command[0]) if command else None
    if compiler is not None:
        return [compiler, *command[1:]]
    if "CC" not in os.environ and find_spec("ziglang") is not None:
        return [sys.executable, "-m", "ziglang", "cc"]
    raise Unavailable(
        "no C compiler was found: install one (cc, or pip install 'niffbench[compiler]'), or name it in the "
        "environment's CC"
    )


def _version(command: list[str]) -> str:
    asked = [*command, "--version"]
    return subprocess.run(asked, capture_output=True, text=True, errors="replace", check=False).stdout


def _identity(command: list[str], tuning: tuple[str, ...]) -> str:
    """A name for all that the compiled file depends on."""
    parts = [
        *(source.read_text(encoding="utf-8") for source in SOURCES),
        _version(command),
        *command,
        *FLAGS,
        *tuning,
        platform.machine(),
        cpu(),
    ]
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]


def cpu() -> str:
    """What this CPU can do, as far as the system tells: a home directory may be shared by unlike machines."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return platform.processor()
    return "\n".join(line for line in lines[:64] if line.startswith(("flags", "Features", "model name")))


@functools.cache
def cache() -> Path:
    """A directory of this user's for compiled files; among the temporary ones if the cache cannot be written.

    Raises:
        Unavailable: if neither can, or others may put files into the latter.
    """
    shared = shared_cache()
    for directory in (user_cache(), shared):
        try:
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            if directory == shared and not _private(directory):
                continue
            with tempfile.TemporaryFile(dir=directory):
                return directory
        except OSError:
            continue
    raise Unavailable(
        "there is no directory to compile the kernel in: neither a cache nor a temporary one of ours"
    )


def _private(directory: Path) -> bool:
    """Whether nobody else can have put files there; root may."""
    status = directory.lstat()
    return stat.S_ISDIR(status.st_mode) and status.st_uid == os.geteuid() and not status.st_mode & 0o077


def declared(path: Path) -> ctypes.CDLL:
    """The compiled file, loaded, with the types of its functions.

    Raises:
        OSError: if it cannot be loaded.
    """
    library = ctypes.CDLL(str(path))
    pointer, large, small, real = (ctypes.c_void_p,), (ctypes.c_int64,), (ctypes.c_int,), (ctypes.c_double,)
    layers = pointer + large + small + pointer * 2 + real
    declared = {
        "niff_use_runtime": pointer * 3,
        "niff_cache": (),
        "niff_workspace": small * 4 + pointer * 2,
        "niff_takes": small,
        "niff_sum": small + pointer * 2,
        "niff_convolve": pointer * 5,
        "niff_gradient": pointer * 10,
        "niff_features_workspace": small + pointer + small,
        "niff_features": layers + pointer * 2 + small,
        "niff_features_gradient": layers + pointer * 3 + small,
        "niff_generate": pointer * 8,
        "niff_generate_gradients": pointer * 10,
    }
    results = {
        "workspace": ctypes.c_int64,
        "takes": ctypes.c_int,
        "cache": ctypes.c_int64,
        "sum": ctypes.c_uint64,
    }
    for name, types in declared.items():
        function = getattr(library, name)
        function.argtypes = types
        function.restype = results.get(name.rpartition("_")[2])
    return library
