"""Where a run comes from: command, commit, CI job. Nothing in it tells who ran it or on which host."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from niffbench.anonymize import anonymize
from niffbench.fingerprint import Fact

_CI_KEYS = (
    "GITHUB_REPOSITORY",
    "GITHUB_SHA",
    "GITHUB_REF_NAME",
    "GITHUB_EVENT_NAME",
    "GITHUB_WORKFLOW",
    "GITHUB_RUN_ID",
    "GITHUB_RUN_ATTEMPT",
    "CI_PROJECT_PATH",
    "CI_COMMIT_SHA",
    "CI_COMMIT_REF_NAME",
    "CI_PIPELINE_ID",
    "CI_JOB_NAME",
)


@dataclass(frozen=True)
class Checkout:
    """The git checkout of the current directory; None where there is none."""

    commit: str | None = None
    dirty: bool | None = None


def checkout() -> Checkout:
    """Commit of the current directory, and whether tracked files differ from it."""
    commit = _git("rev-parse", "HEAD")
    if not commit:
        return Checkout()
    status = _git("status", "--porcelain", "--untracked-files=no")
    return Checkout(commit, None if status is None else bool(status))


def _git(*arguments: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", *arguments],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=10,
            check=True,
            env={**os.environ, "GIT_OPTIONAL_LOCKS": "0"},
        )
    except (OSError, ValueError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


def ci(environment: Mapping[str, str]) -> dict[str, Fact]:
    """What the CI system says of the job, by its own variables' names."""
    return {key: environment[key] for key in _CI_KEYS if environment.get(key)}


def reduced(argv: Sequence[str]) -> list[str]:
    """The command line, anonymized, with paths outside the current directory reduced to their last part."""
    return [anonymize(_reduced(argument)) for argument in argv]


def _reduced(argument: str) -> str:
    option, equals, value = argument.partition("=") if argument.startswith("-") else ("", "", argument)
    scheme, colon, rest = value.partition(":") if value.startswith("replay:") else ("", "", value)
    if rest.startswith(("/", "~", "..")):
        rest = Path(rest).name
    return option + equals + scheme + colon + rest
