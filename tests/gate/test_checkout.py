"""Checkouts: what a name may mean, that worktrees go away, and that the user's tree is left alone."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from cli_in_process import git

from niffbench.errors import HeadFails, UsageError
from niffbench.gate.checkout import MOST_ENVIRONMENTS, checked_out, repository_of, set_up
from niffbench.session.lock import Lock


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """Two commits of a package that is only named like ours."""
    root = tmp_path / "repository"
    (root / "niffbench").mkdir(parents=True)
    git(root, "init", "--quiet", "--initial-branch=main")
    for version in ("1", "2"):
        (root / "niffbench" / "__init__.py").write_text(f"VERSION = {version}\n")
        git(root, "add", ".")
        git(root, "commit", "--quiet", "-m", version)
        git(root, "tag", f"v{version}")
    return root


def state(repository: Path) -> tuple[str, ...]:
    """Everything of a user's repository that a comparison must not touch."""
    return (
        git(repository, "status", "--porcelain"),
        git(repository, "worktree", "list"),
        git(repository, "rev-parse", "HEAD"),
        git(repository, "for-each-ref"),
        git(repository, "stash", "list"),
        (repository / "niffbench" / "__init__.py").read_text(),
    )


def test_a_revision_is_checked_out_elsewhere_and_removed(repository: Path) -> None:
    (repository / "niffbench" / "__init__.py").write_text("edited\n")
    (repository / "untracked").write_text("mine")
    before = state(repository)
    with checked_out("v1", "BASE", repository) as code:
        assert code.path is not None
        assert (code.path / "niffbench" / "__init__.py").read_text() == "VERSION = 1\n"
        assert repository not in code.path.parents
        assert code.commit == git(repository, "rev-parse", "v1")
        assert not code.dirty
        assert not code.left_out
        code.check()
    assert not code.path.parent.exists()
    assert state(repository) == before


def test_the_working_directory_is_measured_as_it_is(repository: Path) -> None:
    (repository / "niffbench" / "__init__.py").write_text("VERSION = 3\n")
    with checked_out(str(repository), "HEAD", repository) as code:
        assert code.path is not None
        assert code.dirty
        assert code.environment()["PYTHONPATH"].split(os.pathsep)[0] == str(code.path)
        (repository / "niffbench" / "__init__.py").write_text("edited while it is measured\n")
        assert (code.path / "niffbench" / "__init__.py").read_text() == "VERSION = 3\n"
    assert repository.exists()


def test_head_given_as_a_revision_of_a_dirty_tree_says_what_is_left_out(repository: Path) -> None:
    (repository / "niffbench" / "__init__.py").write_text("VERSION = 3\n")
    with checked_out("HEAD", "HEAD", repository) as code:
        assert code.left_out
        assert code.path is not None
        assert "2" in (code.path / "niffbench" / "__init__.py").read_text()


@pytest.mark.parametrize("inside", [KeyboardInterrupt, RuntimeError, SystemExit])
def test_worktrees_go_whatever_happens(repository: Path, inside: type[BaseException]) -> None:
    before = state(repository)
    with pytest.raises(inside), checked_out("v1", "BASE", repository):
        raise inside
    assert state(repository) == before


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_worktrees_go_on_a_signal(repository: Path, tmp_path: Path, number: signal.Signals) -> None:
    code = f"""
import time
from pathlib import Path
from niffbench.gate.checkout import checked_out, terminable
here = Path({str(repository)!r})
with terminable(), checked_out("v1", "BASE", here), checked_out("v2", "HEAD", here):
    print("ready", flush=True)
    time.sleep(60)
"""
    before = state(repository)
    process = subprocess.Popen(
        [sys.executable, "-c", code],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env={**os.environ, "TMPDIR": str(tmp_path)},
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    assert len(git(repository, "worktree", "list").splitlines()) == 3
    process.send_signal(number)
    time.sleep(0.02)
    process.send_signal(number)  # impatience does not stop the clearing up
    assert process.wait(30) != 0
    assert state(repository) == before
    assert not list(tmp_path.glob("niffbench-*"))


def test_variables_of_a_surrounding_hook_do_not_mislead_git(
    repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = state(repository)
    index = (repository / ".git" / "index").read_bytes()
    with monkeypatch.context() as hook:
        hook.setenv("GIT_INDEX_FILE", str(repository / ".git" / "index"))
        hook.setenv("GIT_DIR", str(tmp_path / "nowhere"))
        with checked_out("v1", "BASE", repository) as code:
            assert code.path is not None
    assert (repository / ".git" / "index").read_bytes() == index
    assert state(repository) == before


def test_no_hook_of_the_repository_runs(repository: Path) -> None:
    hook = repository / ".git" / "hooks" / "post-checkout"
    hook.parent.mkdir(exist_ok=True)
    hook.write_text(f"#!/bin/sh\ntouch {repository.parent}/ran\n")
    hook.chmod(0o755)
    with checked_out("v1", "BASE", repository):
        pass
    assert not (repository.parent / "ran").exists()


def test_a_revision_that_does_not_exist_is_a_usage_error(repository: Path) -> None:
    with (
        pytest.raises(UsageError, match="did you mean 'main'") as refusal,
        checked_out("mian", "BASE", repository),
    ):
        pass
    assert refusal.value.exit_code == 2


def test_a_revision_without_the_package_is_a_usage_error(repository: Path) -> None:
    git(repository, "rm", "-r", "--quiet", "niffbench")
    git(repository, "commit", "--quiet", "-m", "gone")
    before = git(repository, "worktree", "list")
    with pytest.raises(UsageError, match="has no niffbench/"), checked_out("main", "BASE", repository):
        pass
    assert git(repository, "worktree", "list") == before


def test_a_name_that_means_two_things_is_refused(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (repository / "v1" / "niffbench").mkdir(parents=True)
    (repository / "v1" / "niffbench" / "__init__.py").touch()
    monkeypatch.chdir(repository)
    with pytest.raises(UsageError, match=r"'\./v1'"), checked_out("v1", "BASE", repository):
        pass
    with checked_out("./v1", "BASE", repository) as code:
        assert code.commit == git(repository, "rev-parse", "HEAD")


@pytest.mark.parametrize("text", ["--help", "-x", "", "HEAD; rm -rf /", "a\nb", "main..v1", "HEAD^{tree}", "@{u}"])
def test_odd_revisions_are_one_message(repository: Path, text: str) -> None:
    before = state(repository)
    with pytest.raises(UsageError), checked_out(text, "BASE", repository):
        pass
    assert state(repository) == before


def test_outside_of_a_repository_a_revision_is_a_usage_error(tmp_path: Path) -> None:
    assert repository_of(tmp_path) is None
    with pytest.raises(UsageError, match="no git repository"), checked_out("main", "BASE", tmp_path):
        pass


def test_a_directory_that_holds_no_package_is_a_usage_error(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="holds niffbench/"), checked_out(str(tmp_path), "BASE", tmp_path):
        pass


def test_an_interpreter_is_itself_and_a_foreign_path_does_not_leak_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", "/elsewhere")
    with checked_out(sys.executable, "HEAD", tmp_path) as code:
        assert code.python == sys.executable
        assert code.path is None
        assert "PYTHONPATH" not in code.environment()


def test_a_head_that_cannot_be_imported_fails_and_a_base_is_a_usage_error(repository: Path) -> None:
    (repository / "niffbench" / "__init__.py").write_text("raise RuntimeError('broken here')\n")
    for role, kind, exit_code in (("HEAD", HeadFails, 1), ("BASE", UsageError, 2)):
        with (
            checked_out(str(repository), role, repository) as code,
            pytest.raises(kind, match="broken here") as error,
        ):
            code.check()
        assert error.value.exit_code == exit_code


def test_three_dots_mean_where_a_branch_began(repository: Path) -> None:
    git(repository, "checkout", "-qb", "mine", "v1")
    git(repository, "commit", "--allow-empty", "-qm", "mine")
    with checked_out("main...mine", "BASE", repository) as code:
        assert code.commit == git(repository, "rev-parse", "v1")
    with pytest.raises(UsageError), checked_out("main...nowhere", "BASE", repository):
        pass


def test_a_snapshot_holds_what_was_built_in_place_and_no_environment(repository: Path) -> None:
    (repository / ".gitignore").write_text("*.so\n.venv/\nresults/\n")
    (repository / "niffbench" / "kernel.so").write_bytes(b"built")
    for name in (".venv", "results"):
        (repository / name).mkdir()
        (repository / name / "x.py").touch()
    with checked_out(".", "HEAD", repository) as code:
        assert code.path is not None
        copied = {str(path.relative_to(code.path)) for path in code.path.rglob("*") if path.is_file()}
        digest = code.digest
    assert copied == {".gitignore", "niffbench/__init__.py", "niffbench/kernel.so"}
    (repository / "niffbench" / "kernel.so").write_bytes(b"built anew")
    with checked_out(".", "HEAD", repository) as code:
        assert code.digest != digest


def test_environments_are_made_once_for_all_trees_of_one_lock_file(repository: Path, tmp_path: Path) -> None:
    log = tmp_path / "log"
    make = f"mkdir -p $NIFFBENCH_ENV/bin; ln -s {sys.executable} $NIFFBENCH_ENV/bin/python; echo made >> {log}"
    build = f"echo built > extension.txt; echo built >> {log}"
    (repository / "uv.lock").write_text("torch 2.15")
    for revision in ("one", "two"):
        git(repository, "add", ".")
        git(repository, "commit", "-q", "--allow-empty", "-m", revision)
        git(repository, "tag", revision)
    (repository / "uv.lock").write_text("torch 2.16")
    pythons = []
    for text in ("one", "two", "."):
        with checked_out(text, "BASE", repository, library=True) as code:
            code = set_up(code, (make, build), tmp_path / "cache")
            assert code.path is not None
            assert (code.path / "extension.txt").exists()
            code.check()
            pythons.append(code.python)
    assert pythons[0] == pythons[1] != pythons[2]
    assert log.read_text().split() == ["made", "built", "built", "made", "built"]
    with checked_out(".", "HEAD", repository, library=True) as code:
        with pytest.raises(HeadFails, match="status 3: no compiler"):
            set_up(code, ("echo no compiler; exit 3",), tmp_path / "cache")
        with pytest.raises(UsageError, match="made no virtual environment"):
            set_up(code, ("mkdir $NIFFBENCH_ENV",), tmp_path / "cache")


def test_old_environments_are_removed_unless_somebody_may_be_measuring_in_them(
    repository: Path, tmp_path: Path
) -> None:
    make = f"mkdir -p $NIFFBENCH_ENV/bin; ln -s {sys.executable} $NIFFBENCH_ENV/bin/python"
    cache = tmp_path / "cache"
    two_days_ago = time.time() - 2 * 24 * 3600
    for number in range(MOST_ENVIRONMENTS + 4):
        made = cache / f"{number:02}" / "made"
        made.parent.mkdir(parents=True)
        made.touch()
        if number < 3:
            os.utime(made, (two_days_ago - number, two_days_ago - number))
    (repository / "uv.lock").write_text("torch 2.15")
    with checked_out(".", "BASE", repository, library=True) as code, Lock(cache / "01"):
        python = Path(set_up(code, (make,), cache).python)
    assert python.exists()
    left = {path.name for path in cache.iterdir()}
    assert left == {python.parts[-4], "01", *(f"{number:02}" for number in range(3, MOST_ENVIRONMENTS + 4))}


def test_comparisons_that_remove_old_environments_at_a_time_do_not_stumble(
    repository: Path, tmp_path: Path
) -> None:
    cache = tmp_path / "cache"
    for number in range(300):
        made = cache / f"{number:03}" / "made"
        made.parent.mkdir(parents=True)
        made.touch()
        os.utime(made, (number, number))
    (repository / "uv.lock").write_text("torch 2.15")
    make = f"mkdir -p $NIFFBENCH_ENV/bin; ln -s {sys.executable} $NIFFBENCH_ENV/bin/python; true "
    with checked_out(".", "BASE", repository, library=True) as code, ThreadPoolExecutor(4) as pool:
        sides = list(pool.map(lambda number: set_up(code, (f"{make}{number}",), cache), range(4)))
        left = set(cache.iterdir())
        set_up(code, ("true",), cache)
    assert len({side.python for side in sides}) == 4
    assert set(cache.iterdir()) == left, "a command that makes no environment leaves none"


def test_a_library_that_is_imported_from_elsewhere_is_not_compared_with_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    installed, tree = tmp_path / "installed", tmp_path / "tree"
    for place in (installed / "waves", tree / "python" / "waves"):
        place.mkdir(parents=True)
        (place / "__init__.py").touch()
    monkeypatch.setenv("PYTHONPATH", f"{installed}{os.pathsep}{os.environ.get('PYTHONPATH', '')}")
    with checked_out(".", "HEAD", tree, library=True) as code, pytest.raises(UsageError, match="from the tree"):
        code.check(["waves.layers"])
    with checked_out(".", "HEAD", tree / "python", library=True) as code:
        assert code.check(["waves.layers"])
        assert not code.check(["json"])
