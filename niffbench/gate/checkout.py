"""Checkouts: the code an A/B run compares, as a revision, a directory or an interpreter, and its environment."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path

from niffbench.device.host import die_with_parent
from niffbench.errors import HeadFails, UsageError, did_you_mean
from niffbench.home import expanded
from niffbench.session.lock import Lock

# A hook of the user's repository (post-checkout) must not run on our account, nor a prompt wait for an answer.
_GIT = ("git", "-c", "core.hooksPath=/dev/null", "-c", "advice.detachedHead=false")
_GIT_VARIABLES = {"GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE", "GIT_PREFIX", "GIT_COMMON_DIR"}
_TIMEOUT = 300.0
_PACKAGE = Path(__file__).parents[1]
_PREFIX = "niffbench-side-"
ENVIRONMENT = "NIFFBENCH_ENV"
"""The variable that tells a command of ``--setup`` where the environment is to be made."""
_DEPENDENCIES = (
    "*.lock",
    "requirements*.txt",
    "environment*.y*ml",
    "conda-lock.y*ml",
    "pyproject.toml",
    "setup.py",
    "setup.cfg",
)
"""Files of a tree that say what an environment holds: trees in which they are alike share one."""


@dataclass(frozen=True)
class Code:
    """Code that can be run: an interpreter, and a directory put before everything else it imports from.

    Attributes:
        name: for people; ``path`` is None where the interpreter's own installation is meant.
        dirty: the code has changes beside ``commit``.
        left_out: the working tree has, but this is a checkout of the commit alone. ``digest`` tells states of
            a directory apart that have one commit.
        library: the directory with the running niffbench, where ``path`` holds somebody's library that it
            measures.
        own: ``python`` is an environment made for this code.
    """

    name: str
    python: str
    path: Path | None = None
    commit: str | None = None
    dirty: bool = False
    left_out: bool = False
    digest: str | None = None
    library: Path | None = None
    own: bool = False

    def environment(self) -> dict[str, str]:
        """The environment of a process that runs this code."""
        given = with_absolute_path(os.environ)
        before = given.pop("PYTHONPATH", "")  # would shadow an interpreter's own installation
        if self.path is not None:
            folders = [self.library, self.path, self.path / "src"] if self.library else [self.path]
            given["PYTHONPATH"] = os.pathsep.join(
                [*map(str, folders), *([before] if before and not self.own else [])]
            )
        return given

    def check(self, modules: Sequence[str] = ()) -> bool:
        """Raise UsageError unless the interpreter imports niffbench, and the ``modules`` of a suite, from here.

        Args:
            modules: names, or files, which are looked for in ``path`` too. Returns whether any of them is in
                ``path``.

        Raises:
            HeadFails: where the niffbench that is to be judged cannot be imported.
        """
        packages = sorted({module.partition(".")[0] for module in modules if not module.endswith(".py")})
        answer = _output(
            [self.python, "-P", "-c", _WHERE, *packages], env=self.environment(), cwd=Path(tempfile.gettempdir())
        )
        if isinstance(answer, _Failure):
            last = answer.message.strip().rpartition("\n")[2]
            broken = self.broken if self.path is not None and self.library is None else UsageError
            raise broken(f"{self.name}: {self.python} cannot import niffbench ({last[:300]})")
        places = json.loads(answer.strip().rpartition("\n")[2])
        origins = {name: Path(origin).resolve() for name, origin in places.items() if origin}
        if self.path is None:
            return False
        expected = self.library / "niffbench" if self.library else self.path
        if not origins.pop("niffbench").is_relative_to(expected.resolve()):
            raise UsageError(f"{self.name}: {self.python} imports niffbench from elsewhere, not from {expected}")
        tree = self.path.resolve()
        for package, origin in origins.items():
            held = [*tree.rglob(f"{package}/__init__.py"), *tree.rglob(f"{package}.py")]
            if held and not origin.is_relative_to(tree):
                raise UsageError(
                    f"{self.name}: '{package}' is imported from {origin}, not from the tree, which holds "
                    f"{held[0].relative_to(tree)}; give --repo the folder it is imported from"
                )
        files = [module for module in modules if module.endswith(".py")]
        return any(map(list, (tree.rglob(Path(file).name) for file in files))) or any(
            origin.is_relative_to(tree) for origin in origins.values()
        )

    @property
    def broken(self) -> type[HeadFails | UsageError]:
        """What it is when this code does not work: of HEAD a failure of what is judged."""
        return HeadFails if self.name.startswith("HEAD") else UsageError


_WHERE = """
import importlib.util, json, sys, niffbench
specs = {name: importlib.util.find_spec(name) for name in sys.argv[1:]}
origins = {n: s and (s.origin or next(iter(s.submodule_search_locations or ()), None)) for n, s in specs.items()}
print(json.dumps({**origins, "niffbench": niffbench.__file__}))
"""


def with_absolute_path(environment: Mapping[str, str]) -> dict[str, str]:
    """``environment`` with the folders of PYTHONPATH as seen from here, for a process that is elsewhere."""
    given = dict(environment)
    if folders := given.get("PYTHONPATH"):
        given["PYTHONPATH"] = os.pathsep.join(map(os.path.abspath, folders.split(os.pathsep)))
    return given


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
def checked_out(text: str, role: str, here: Path, *, library: bool = False) -> Iterator[Code]:
    """The code that ``text`` names: an interpreter, a directory, or a revision of the repository around ``here``.

    A revision is checked out as a git worktree outside the repository, a directory is copied as it is now, and
    either is removed on the way out, however that is (SIGTERM included, where :func:`terminable` is in force); the
    user's working tree and index stay as they are. A name that is both a directory and a revision is refused.

    Args:
        role: ``BASE`` or ``HEAD``.
        here: What ``.`` stands for.
        library: ``here`` holds somebody's library, which the running niffbench measures.

    Raises:
        UsageError: for anything else.
    """
    if not text.strip():
        raise UsageError(f"{role} is empty; name a revision, a directory or a Python interpreter")
    path = here if text == "." else expanded(text)
    interpreter = _interpreter(path)
    if interpreter is not None:
        yield Code(f"{role} ({text})", str(interpreter))
        return
    repository = repository_of(here)
    commit = _commit(repository, text)
    plain = path.is_dir() and (library or (path / "niffbench" / "__init__.py").is_file())
    if plain and commit is not None:
        raise UsageError(f"{role} '{text}' is a directory and a revision; write './{text}' or 'refs/heads/{text}'")
    if not plain and (commit is None or repository is None):
        raise _no_such(text, role, path, repository)
    with _temporary(role) as place:
        if plain:
            whole = path.resolve()
            around = repository_of(whole)
            head = None if around is None else _commit(around, "HEAD")
            code = Code(
                f"{role} ({text})",
                sys.executable,
                place / "tree",
                head,
                dirty=around is not None and is_dirty(around),
                digest=_copy(whole, place / "tree"),
            )
        else:
            assert repository is not None
            assert commit is not None
            with unhurried():  # half a worktree could not be removed in the regular way
                made = _git(repository, "worktree", "add", "--quiet", "--detach", str(place / "tree"), commit)
            if isinstance(made, _Failure):
                raise UsageError(f"{role}: git cannot check out {commit[:12]}: {made.message.strip()[:300]}")
            tree = place / "tree" / here.resolve().relative_to(repository.resolve()) if library else place / "tree"
            if not (tree.is_dir() if library else (tree / "niffbench" / "__init__.py").is_file()):
                raise UsageError(
                    f"{role}: revision {commit[:12]} has no {here.name if library else 'niffbench'}/ to run"
                )
            # Of a branch or tag it is plain that the working tree is not meant; of HEAD it is not.
            left_out = commit == _commit(repository, "HEAD") and is_dirty(repository)
            code = Code(f"{role} ({text})", sys.executable, tree, commit, left_out=left_out)
        yield replace(code, library=_linked(place / "niffbench")) if library else code


def _linked(folder: Path) -> Path:
    """Make ``folder``, from which the running niffbench, its suites, and nothing beside them can be imported."""
    folder.mkdir()
    for path in (_PACKAGE, _PACKAGE.parent / "suites"):
        (folder / path.name).symlink_to(path.resolve())
    return folder


def _copy(whole: Path, tree: Path) -> str:
    """Copy a directory as it is; returns a digest of its content.

    Of a git repository what it tracks or does not ignore, and single ignored files of code, as extensions that
    were built in place; of another directory all but what is hidden and virtual environments.
    """
    digest = hashlib.sha256()
    for name in sorted(_files(whole)):
        source, copy = whole / name, tree / name
        copy.parent.mkdir(parents=True, exist_ok=True)
        if source.is_file() or source.is_symlink():  # neither deleted, nor a submodule
            shutil.copy2(source, copy, follow_symlinks=False)
            digest.update(f"{name}\0".encode())
            digest.update(copy.read_bytes() if copy.is_file() else b"")
    return digest.hexdigest()


def _files(whole: Path) -> Iterator[str]:
    listed = _git(whole, "ls-files", "-z", "--cached", "--others", "--exclude-standard")
    if isinstance(listed, str):
        ignored = _git(whole, "ls-files", "-z", "--others", "--ignored", "--exclude-standard", "--directory")
        built = ignored.split("\0") if isinstance(ignored, str) else []
        yield from filter(None, listed.split("\0"))
        yield from (name for name in built if name.endswith((".py", ".so", ".pyd")))
        return
    for folder, below, names in os.walk(whole):
        hidden = {"pyvenv.cfg"} & set(names)
        below[:] = [] if hidden else [name for name in below if not name.startswith((".", "__pycache__"))]
        yield from (str(Path(folder, name).relative_to(whole)) for name in names if not hidden)


def set_up(code: Code, commands: Sequence[str], cache: Path) -> Code:
    """Run ``commands`` in a side's tree; returns the side with the interpreter of the environment they made.

    A command that names ``$NIFFBENCH_ENV`` makes a virtual environment there, once below ``cache`` for all trees
    with the same lock files and declared dependencies. Any other command is run in each tree, as to build an
    extension. Raises what :attr:`Code.broken` says for a command that fails.
    """
    if code.path is None:
        raise UsageError(f"{code.name}: is an interpreter, which needs no --setup")
    making = [command for command in commands if ENVIRONMENT in command]
    files = sorted({path for pattern in _DEPENDENCIES for path in code.path.glob(pattern) if path.is_file()})
    digest = hashlib.sha256(repr((making, platform.python_version(), platform.machine())).encode())
    for path in files:
        digest.update(f"{path.name}\0".encode() + path.read_bytes())
    key = digest.hexdigest()[:16] if files else None
    place = cache / key if key else code.path.parent / "environment"
    environment, made = place / "env", place / "made"
    if making:
        place.mkdir(parents=True, exist_ok=True)
        with Lock(place, wait=True):
            if not made.exists():
                shutil.rmtree(environment, ignore_errors=True)
                for command in making:
                    _command(code, command, environment)
            made.touch()  # it is in use
        if key:
            _prune(cache)
    for command in commands:
        if command not in making:
            _command(code, command, environment)
    python = environment / "bin" / "python"
    if making and not python.exists():
        raise UsageError(f"--setup: {making[-1]!r} made no virtual environment in ${ENVIRONMENT} (no bin/python)")
    return replace(code, python=str(python), own=True) if making else code


MOST_ENVIRONMENTS = 10
_IN_USE = 24 * 3600.0
"""Seconds after which nobody measures any more in an environment that was asked for."""


def _prune(cache: Path) -> None:
    """Remove all environments but the newest, and those that somebody may be measuring in."""
    ages = {}
    for made in cache.glob("*/made"):
        with suppress(OSError):  # another comparison has just removed it
            ages[made.parent] = time.time() - made.stat().st_mtime
    for place in sorted(ages, key=ages.__getitem__)[MOST_ENVIRONMENTS:]:
        if ages[place] > _IN_USE:
            with suppress(UsageError, OSError), Lock(place):  # else it is being made, or another's
                shutil.rmtree(place)


def _command(code: Code, command: str, environment: Path) -> None:
    variables = {**code.environment(), ENVIRONMENT: str(environment)}
    with tempfile.TemporaryFile() as output:
        process = subprocess.Popen(
            ["sh", "-c", command],
            cwd=code.path,
            env=variables,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            preexec_fn=die_with_parent,
        )
        try:
            status = process.wait()
        except BaseException:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            raise
        if status:
            output.seek(0)
            said = output.read().decode(errors="replace").strip().splitlines()[-6:]
            raise code.broken(
                f"{code.name}: --setup {command!r} ended with status {status}: {' '.join(said)[-800:]}"
            )


def _interpreter(path: Path) -> Path | None:
    """The Python meant by an executable file or by a virtual environment's directory. Links stay as they are."""
    candidate = path / "bin" / "python" if (path / "pyvenv.cfg").is_file() else path
    return candidate.absolute() if candidate.is_file() and os.access(candidate, os.X_OK) else None


def _commit(repository: Path | None, revision: str) -> str | None:
    # "./x" and "-x" are never revisions, and git would take the second for an option.
    one, dots, two = revision.partition("...")
    if repository is None or any(side.startswith(("-", ".", "/", "~")) for side in (one, two)):
        return None
    if dots:
        answer = _git(repository, "merge-base", "--", one or "HEAD", two or "HEAD")
        return None if isinstance(answer, _Failure) else answer.strip()
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
def _temporary(role: str) -> Iterator[Path]:
    """A folder for a side's tree, which is removed with the worktree that was made in it.

    It is locked meanwhile, so that the next comparison can tell what a killed one left and remove that.
    """
    with ExitStack() as undone:
        with unhurried():
            for left in Path(tempfile.gettempdir()).glob(f"{_PREFIX}*"):
                with suppress(UsageError, OSError), Lock(left):  # else it is held, or another's
                    _remove(left)
            new = Path(tempfile.mkdtemp(prefix="niffbench+"))
            undone.enter_context(Lock(new))
            place = new.rename(new.with_name(f"{_PREFIX}{role.lower()}-{new.name.partition('+')[2]}"))
            undone.callback(_remove, place)
        yield place


def _remove(place: Path) -> None:
    with unhurried():
        pointer = place / "tree" / ".git"
        if pointer.is_file() and not pointer.is_symlink():  # gitdir: REPOSITORY/.git/worktrees/NAME
            repository = Path(pointer.read_text(encoding="utf-8").partition(":")[2].strip()).parents[1]
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
