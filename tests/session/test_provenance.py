"""What is written down of where a run comes from, and what is not."""

from __future__ import annotations

import socket
import subprocess
from pathlib import Path

import pytest
from cli_in_process import git
from run_session import Attempt

from niffbench import anonymize as anonymizing
from niffbench.anonymize import anonymize
from niffbench.operators.catalogue import catalogue
from niffbench.operators.module import declare
from niffbench.session.provenance import Revision, ci, located, reduced, revision
from niffbench.suite import load


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("run", "run"),
        ("quick", "quick"),
        ("niff-depthwise/rfft", "niff-depthwise/rfft"),
        ("suites/mine.toml", "suites/mine.toml"),
        ("/home/ada/mine.toml", "mine.toml"),
        ("~/mine.toml", "mine.toml"),
        ("../ada/mine.toml", "mine.toml"),
        ("--out=/home/ada/runs/1", "--out=1"),
        ("replay:/home/ada/r.json", "replay:r.json"),
        ("--device=replay:/home/ada/r.json", "--device=replay:r.json"),
    ],
)
def test_paths_in_a_command_line_are_reduced(given: str, expected: str) -> None:
    assert reduced([given]) == [expected]


def test_a_command_line_names_no_user(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOGNAME", "ada")
    anonymizing._secrets.cache_clear()
    try:
        assert reduced(["ada/mine.toml", "--out=runs/of-ada", "--only", "niff-*/adaptive"]) == [
            "<user>/mine.toml", "--out=runs/of-<user>", "--only", "niff-*/adaptive",
        ]  # fmt: skip
    finally:
        anonymizing._secrets.cache_clear()


def test_text_is_made_anonymous(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Path, "home", lambda: Path("/home/ada"))
    monkeypatch.setattr(socket, "gethostname", lambda: "rack-17")
    monkeypatch.setenv("LOGNAME", "ada")
    anonymizing._secrets.cache_clear()
    try:
        text = (
            'File "/opt/torch/conv.py" on rack-17, in /home/ada/src/a.py \x1b[31mred\x1b[0m\x07, 3/4 of niff/rfft'
        )
        assert anonymize(text) == 'File "conv.py" on <host>, in ~/src/a.py red, 3/4 of niff/rfft'
    finally:
        anonymizing._secrets.cache_clear()


def test_a_short_host_name_is_hidden_where_it_stands_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket, "gethostname", lambda: "ci")
    monkeypatch.setattr(Path, "home", lambda: Path("/"))
    monkeypatch.setenv("LOGNAME", "root")
    anonymizing._secrets.cache_clear()
    try:
        assert anonymize("on ci: a precise circle, ci.local, niff/rfft") == (
            "on <host>: a precise circle, <host>.local, niff/rfft"
        )
    finally:
        anonymizing._secrets.cache_clear()


@pytest.mark.parametrize(
    ("user", "given", "expected"),
    [
        ("ada", "in /tmp/torchinductor_ada/a.py", "in a.py"),
        ("ada", "no room in /tmp/torchinductor_ada", "no room in torchinductor_<user>"),
        ("ada", "/scratch/ada is full", "<user> is full"),
        ("ada", "/scratch/ada/run/a.py by ada_2: adapted, Canada", "a.py by <user>_2: adapted, Canada"),
        ("ubuntu", "cc 13.2.0-4ubuntu3 of ubuntu", "cc 13.2.0-4ubuntu3 of <user>"),
        ("root", "/root is at the root", "/root is at the root"),
        ("a", "a plan b", "a plan b"),
    ],
)
def test_a_users_name_is_hidden_where_it_stands_alone(
    monkeypatch: pytest.MonkeyPatch, user: str, given: str, expected: str
) -> None:
    monkeypatch.setattr(socket, "gethostname", lambda: "rack-17")
    monkeypatch.setattr(Path, "home", lambda: Path("/"))
    monkeypatch.setenv("LOGNAME", user)
    anonymizing._secrets.cache_clear()
    try:
        assert anonymize(given) == expected
    finally:
        anonymizing._secrets.cache_clear()


def test_a_user_whom_the_system_does_not_know_is_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown() -> str:
        raise KeyError("getpwuid(): uid not found: 1234")

    monkeypatch.setattr("getpass.getuser", unknown)
    anonymizing._secrets.cache_clear()
    try:
        assert anonymize("on niff/rfft") == "on niff/rfft"
    finally:
        anonymizing._secrets.cache_clear()


@pytest.fixture
def code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file of Python, not yet in any repository."""
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    (tmp_path / "lib").mkdir()
    (tmp_path / "lib" / "ops.py").write_text("1")
    return tmp_path / "lib" / "ops.py"


def committed(code: Path, *names: str) -> str:
    top = code.parents[1]
    git(top, "init", "-q")
    git(top, "add", *names)
    git(top, "commit", "-q", "-m", "a")
    done = subprocess.run(["git", "rev-parse", "HEAD"], cwd=top, check=True, capture_output=True, text=True)
    return done.stdout.strip()


def test_the_revision_of_code_and_whether_it_was_changed(code: Path) -> None:
    assert revision(code, {}) == Revision()
    git(code.parents[1], "init", "-q")
    assert revision(code, {}) == Revision()  # no commit yet
    commit = committed(code, "lib")
    assert revision(code, {}) == Revision(commit, dirty=False)
    (code.parents[1] / "notes.txt").write_text("2")
    assert revision(code, {}) == Revision(commit, dirty=False)
    new = code.with_name("new_operator.py")
    new.write_text("2")
    assert revision(code, {}) == Revision(commit, dirty=True)
    new.unlink()
    code.write_text("2", encoding="utf-8")
    assert revision(code, {}) == Revision(commit, dirty=True)


def test_a_repository_that_code_merely_lies_in_is_not_its_own(code: Path) -> None:
    """As of a package that is installed into an environment inside somebody's working tree."""
    (code.parents[1] / "readme").write_text("theirs")
    committed(code, "readme")
    assert revision(code, {}) == Revision()


def test_a_ci_systems_word_is_of_its_own_checkout_alone(code: Path) -> None:
    """What is installed elsewhere is not the commit that a job of somebody's checked out."""
    job = {"GITHUB_SHA": "a" * 40}
    assert revision(code, job) == Revision()
    assert revision(code, job | {"GITHUB_WORKSPACE": str(code.parents[1] / "other")}) == Revision()
    (code.parents[1] / "readme").write_text("theirs")
    committed(code, "readme")
    inside = revision(code, job | {"GITHUB_WORKSPACE": str(code.parents[1])})  # as in its .venv
    assert inside.commit == "a" * 40
    assert "GITHUB_SHA stands in" in (inside.note or "")


def test_where_the_working_directory_is_plays_no_part(code: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    commit = committed(code, "lib")
    monkeypatch.chdir("/")
    assert revision(code, {}).commit == commit


@pytest.mark.parametrize("key", ["GITHUB_SHA", "CI_COMMIT_SHA", "GIT_COMMIT"])
def test_without_git_a_ci_systems_word_stands_in(code: Path, monkeypatch: pytest.MonkeyPatch, key: str) -> None:
    monkeypatch.setenv("PATH", "")
    alone = revision(code, {})
    assert alone.commit is None
    assert "git is not installed" in (alone.note or "")
    stood_in = revision(code, {key: "a" * 40})
    assert stood_in.commit == "a" * 40
    assert key in (stood_in.note or "")


def test_a_repository_of_somebody_else_has_gits_reason_and_a_remedy(
    code: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    committed(code, "lib")
    monkeypatch.setenv("GIT_TEST_ASSUME_DIFFERENT_OWNER", "1")
    refused = revision(code, {})
    assert refused.commit is None
    assert "safe.directory" in (refused.note or "")
    assert str(code.parents[1]) not in (refused.note or "")


def test_ci_keys_without_the_runners_name() -> None:
    given = {"GITHUB_SHA": "abc", "GITHUB_REF_NAME": "", "RUNNER_NAME": "host", "HOME": "/home/ada"}
    assert ci(given) == {"GITHUB_SHA": "abc"}


def test_a_module_of_ones_own_is_found_without_importing_it(tmp_path: Path) -> None:
    package = tmp_path / "src" / "waves"
    (package / "deep").mkdir(parents=True)
    for name in ("__init__.py", "layers.py", "deep/__init__.py"):
        (package / name).write_text("raise RuntimeError('imported')")
    (tmp_path / "ops.py").touch()
    folders = (str(tmp_path), str(tmp_path / "src"))
    assert located("waves.layers", folders) == package / "layers.py"
    assert located("waves.deep", folders) == package / "deep" / "__init__.py"
    assert located("ops.py", folders) == located("ops", folders) == tmp_path / "ops.py"
    assert located("waves.nothing", folders) is located("nowhere.py", folders) is None


def test_the_code_and_its_suite_have_each_their_own_commit(tmp_path: Path) -> None:
    """A suite that lies in another repository than the module it measures."""
    commits = {}
    for name, file, text in (
        ("library", "ops.py", "from torch import nn\n\n\nclass Mix(nn.Identity):\n    pass\n"),
        (
            "suites",
            "mine.toml",
            'description = "x"\nbaseline = "ops:Mix"\naxes = { channels = 2, size = 4 }\n'
            'operators = [{ module = "ops:Mix" }]\n',
        ),
    ):
        (tmp_path / name).mkdir()
        (tmp_path / name / file).write_text(text)
        git(tmp_path / name, "init", "-q")
        git(tmp_path / name, "add", ".")
        git(tmp_path / name, "commit", "-qm", name)
        commits[name] = git(tmp_path / name, "rev-parse", "HEAD")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path / "library")
        suite = load(str(tmp_path / "suites" / "mine.toml"), catalogue(), declare=declare)
        manifest = Attempt(tmp_path / "run", suite).begin().manifest
    assert manifest.subject is not None
    assert (manifest.subject.module, manifest.commit) == ("ops", commits["library"])
    assert manifest.suite.commit == commits["suites"]
