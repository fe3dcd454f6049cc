"""Checkouts: what a name may mean, that worktrees go away, and that the user's tree is left alone."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from cli_in_process import git

from niffbench.errors import HeadFails, UsageError
from niffbench.gate.checkout import checked_out, repository_of


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
