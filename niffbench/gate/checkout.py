"""Checkouts: the code an A/B run compares, as a revision, a directory or an interpreter."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from niffbench.errors import HeadFails, UsageError, did_you_mean

# A hook of the user's repository (post-checkout) must not run on our account, nor a prompt wait for an answer.
_GIT = ("git", "-c", "core.hooksPath=/dev/null", "-c", "advice.detachedHead=false")
_GIT_VARIABLES = {"GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE", "GIT_PREFIX", "GIT_COMMON_DIR"}
_TIMEOUT = 300.0


@dataclass(frozen=True)
class Code:
    """Code that can be run: an interpreter, and a directory put before everything else it imports from.

    ``name`` is for people; ``path`` is None where the interpreter's own installation is meant. ``dirty``: the code
    has changes beside ``commit``; ``left_out``: the working tree has, but this is a checkout of the commit alone.
    """

    name: str
    python: str
    path: Path | None = None
    commit: str | None = None
    dirty: bool = False
    left_out: bool = False

    def environment(self) -> dict[str, str]:
        """The environment of a process that runs this code."""
        given = dict(os.environ)
        before = given.pop("PYTHONPATH", "")  # would shadow an interpreter's own installation
        if self.path is not None:
            given["PYTHONPATH"] = os.pathsep.join(filter(None, (str(self.path), before)))
        return given

    def check(self) -> None:
        """Raise UsageError unless the interpreter really imports niffbench, and from ``path``.

        Raises HeadFails where the code that is to be judged cannot be imported.
        """
        answer = _output(
            [self.python, "-P", "-c", _WHERE], env=self.environment(), cwd=Path(tempfile.gettempdir())
        )
        if isinstance(answer, _Failure):
            last = answer.message.strip().rpartition("\n")[2]
            broken = HeadFails if self.name.startswith("HEAD") and self.path is not None else UsageError
            raise broken(f"{self.name}: {self.python} cannot import niffbench ({last[:300]})")
        where = Path(answer.strip())
        if self.path is not None and self.path.resolve() not in where.resolve().parents:
            raise UsageError(f"{self.name}: {self.python} imports niffbench from elsewhere, not from {self.path}")


_WHERE = "import niffbench; print(niffbench.__file__)"


@dataclass(frozen=True)
class _Failure:
    message: str


def _output(argv: list[str], *, cwd: Path, env: Mapping[str, str]) -> str | _Failure:
    try:
        done = subprocess.run(
            argv,
            cwd=cwd,
            env=dict(env),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=_TIMEOUT,
            check=False,
            start_new_session=True,  # a Ctrl-C at the terminal is ours to handle, not git's
        )
    except OSError as error:
        return _Failure(str(error.strerror))
    except subprocess.TimeoutExpired:
        return _Failure(f"no answer within {_TIMEOUT:.0f} s")
    return done.stdout if done.returncode == 0 else _Failure(done.stderr or done.stdout)


def _git(repository: Path, *arguments: str) -> str | _Failure:
    # Inside a hook, git's own variables point at the user's index, which a checkout would write to.
    clean = {key: value for key, value in os.environ.items() if key not in _GIT_VARIABLES}
    return _output([*_GIT, *arguments], cwd=repository, env=clean | {"GIT_TERMINAL_PROMPT": "0"})


def repository_of(directory: Path) -> Path | None:
    """The top of the working tree that ``directory`` is in, or None outside of one."""
    answer = _git(directory, "rev-parse", "--show-toplevel")
    return None if isinstance(answer, _Failure) else Path(answer.strip())


def is_dirty(repository: Path) -> bool:
    """Whether the working tree has uncommitted changes to tracked files, or files git does not know."""
    answer = _git(repository, "status", "--porcelain", "--untracked-files=normal")
    return bool(isinstance(answer, str) and answer.strip())


@contextmanager
def checked_out(text: str, role: str, here: Path) -> Iterator[Code]:
    """The code that ``text`` names: an interpreter, a directory, or a revision of the repository around ``here``.

    A revision is checked out as a git worktree outside the repository and removed on the way out, however that is
    (SIGTERM included, where :func:`terminable` is in force); the user's working tree and index stay
    as they are. A name that is both a directory and a revision is refused.

    Raises UsageError.
    """
    if not text.strip():
        raise UsageError(f"{role} is empty; name a revision, a directory or a Python interpreter")
    path = Path(text).expanduser()
    interpreter = _interpreter(path)
    if interpreter is not None:
        yield Code(f"{role} ({text})", str(interpreter))
        return
    repository = repository_of(here)
    commit = _commit(repository, text)
    plain = path.is_dir() and (path / "niffbench" / "__init__.py").is_file()
    if plain and commit is not None:
        raise UsageError(f"{role} '{text}' is a directory and a revision; write './{text}' or 'refs/heads/{text}'")
    if plain:
        whole = path.resolve()
        tree = repository_of(whole)
        head = None if tree is None else _commit(tree, "HEAD")
        yield Code(f"{role} ({text})", sys.executable, whole, head, tree is not None and is_dirty(tree))
    elif commit is not None and repository is not None:
        with _worktree(repository, commit, role) as tree:
            # Of a branch or tag it is plain that the working tree is not meant; of HEAD it is not.
            left_out = commit == _commit(repository, "HEAD") and is_dirty(repository)
            yield Code(f"{role} ({text})", sys.executable, tree, commit, left_out=left_out)
    else:
        raise _no_such(text, role, path, repository)


def _interpreter(path: Path) -> Path | None:
    """The Python meant by an executable file or by a virtual environment's directory. Links stay as they are."""
    candidate = path / "bin" / "python" if (path / "pyvenv.cfg").is_file() else path
    return candidate.absolute() if candidate.is_file() and os.access(candidate, os.X_OK) else None


def _commit(repository: Path | None, revision: str) -> str | None:
    # "./x" and "-x" are never revisions, and git would take the second for an option.
    if repository is None or revision.startswith(("-", ".", "/", "~")):
        return None
    answer = _git(repository, "rev-parse", "--verify", "--quiet", f"{revision}^{{commit}}")
    return None if isinstance(answer, _Failure) else answer.strip()


def _no_such(text: str, role: str, path: Path, repository: Path | None) -> Exception:
    if path.exists():
        return UsageError(
            f"{role} '{text}' is there, but is neither a Python interpreter, nor a virtual environment, nor a "
            "directory that holds niffbench/"
        )
    if repository is None:
        return UsageError(f"{role} '{text}': no such file, and this is no git repository, so no revision either")
    names = _git(repository, "for-each-ref", "--format=%(refname:short)")
    depth = _git(repository, "rev-parse", "--is-shallow-repository")
    shallow = "; this clone is shallow: git fetch --unshallow" if depth == "true\n" else ""
    branches = names.split() if isinstance(names, str) else []
    return UsageError(
        f"{role} '{text}': no such revision, directory or interpreter{did_you_mean(text, branches)}{shallow}"
    )


@contextmanager
def _worktree(repository: Path, commit: str, role: str) -> Iterator[Path]:
    place: Path | None = None
    try:
        # Half a worktree could not be removed in the regular way, so making one is not interrupted.
        with unhurried():
            place = Path(tempfile.mkdtemp(prefix=f"niffbench-{role.lower()}-"))
            made = _git(repository, "worktree", "add", "--quiet", "--detach", str(place / "tree"), commit)
        if isinstance(made, _Failure):
            raise UsageError(f"{role}: git cannot check out {commit[:12]}: {made.message.strip()[:300]}")
        if not (place / "tree" / "niffbench" / "__init__.py").is_file():
            raise UsageError(f"{role}: revision {commit[:12]} has no niffbench/ to run")
        yield place / "tree"
    finally:
        with unhurried():
            if place is not None:
                _git(repository, "worktree", "remove", "--force", str(place / "tree"))
                shutil.rmtree(place, ignore_errors=True)


_ENDINGS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@contextmanager
def unhurried() -> Iterator[None]:
    """Hold back signals that would end the process until the block is done (main thread)."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _ENDINGS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextmanager
def terminable() -> Iterator[None]:
    """Turn SIGTERM and SIGHUP into KeyboardInterrupt, so that what must be undone is undone (main thread)."""

    def interrupt(number: int, frame: object) -> None:
        raise KeyboardInterrupt

    wanted = [n for n in (signal.SIGTERM, signal.SIGHUP) if signal.getsignal(n) is not signal.SIG_IGN]
    before = {number: signal.signal(number, interrupt) for number in wanted}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
