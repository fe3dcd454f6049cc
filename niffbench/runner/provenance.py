"""Where a run comes from: command, commit, CI job. Nothing in it tells who ran it or on which host."""

from __future__ import annotations

import getpass
import os
import re
import socket
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

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
_PATH = re.compile(r"(?<![\w./~])/(?:[\w.+@~<>-]+/)+[\w.+@~<>-]+")
_CONTROL = re.compile(r"\x1b\[[0-9;?]*[ -/]*[@-~]|[\x00-\x08\x0b-\x1f\x7f]")


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
    """The command line, discreet, with paths outside the current directory reduced to their last part."""
    return [discreet(_reduced(argument)) for argument in argv]


def _reduced(argument: str) -> str:
    option, equals, value = argument.partition("=") if argument.startswith("-") else ("", "", argument)
    scheme, colon, rest = value.partition(":") if value.startswith("replay:") else ("", "", value)
    if rest.startswith(("/", "~", "..")):
        rest = Path(rest).name
    return option + equals + scheme + colon + rest


def discreet(text: str) -> str:
    """``text`` without terminal codes, and without the paths and names that tell whose machine it was."""
    text = _CONTROL.sub("", text)
    for secret, stand_in in _secrets():
        text = secret.sub(stand_in, text)
    return _PATH.sub(lambda match: match[0].rpartition("/")[2], text)


@cache
def _secrets() -> tuple[tuple[re.Pattern[str], str], ...]:
    """What is hidden and what stands in for it, the longest first.

    A short name ("gpu", "ci") may be part of another word, and is hidden where it stands alone. So is a user's of
    any length ("ubuntu" is in a compiler's version), which an underscore joins to others: ``torchinductor_ada``.
    """
    home, user, host = str(Path.home()), _user(), socket.gethostname()
    named = {
        home: (_anywhere(home), "~"),
        user: (_alone(user, r"[^\W_]"), "<user>"),
        host: (_anywhere(host), "<host>"),
    }
    return tuple(named[secret] for secret in sorted(named, key=len, reverse=True) if secret not in ("", "/"))


def _anywhere(secret: str) -> re.Pattern[str]:
    return re.compile(re.escape(secret)) if len(secret) > 4 else _alone(secret, r"\w")


def _alone(name: str, letter: str) -> re.Pattern[str]:
    return re.compile(rf"(?<!{letter}){re.escape(name)}(?!{letter})")


def _user() -> str:
    """The user's name; empty where there is none, or one that tells nothing."""
    try:
        name = getpass.getuser()
    except (OSError, KeyError, ImportError):  # an account that the system does not know
        return ""
    return name if len(name) > 1 and name != "root" else ""
