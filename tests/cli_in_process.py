"""The command line called in this process: a hundred times faster than the ``cli`` fixture's subprocess."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from niffbench.cli import main

_IDENTITY = ("-c", "user.name=t", "-c", "user.email=t@example.invalid", "-c", "commit.gpgsign=false")


def git(place: Path, *arguments: str) -> str:
    """Run git in ``place`` as somebody; returns what it prints."""
    command = ["git", *_IDENTITY, *arguments]
    return subprocess.run(command, cwd=place, check=True, capture_output=True, text=True).stdout.strip()


Call = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def call(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Call:
    """Give arguments, get what a finished process would show; runs in an empty directory."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.setenv("NO_COLOR", "1")

    def run(*args: str) -> subprocess.CompletedProcess[str]:
        capsys.readouterr()
        status = main(args)
        said = capsys.readouterr()
        return subprocess.CompletedProcess(list(args), status, said.out, said.err)

    return run
