"""Where a run comes from: command, commit, CI job. Nothing in it tells who ran it or on which host."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.machinery import PathFinder
from pathlib import Path

from niffbench.anonymize import anonymize
from niffbench.fingerprint import Fact
from niffbench.home import expanded

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


_STAND_INS = ("GITHUB_SHA", "CI_COMMIT_SHA", "GIT_COMMIT")
"""Variables in which CI systems say the commit, where git does not."""

_CHECKOUTS = ("GITHUB_WORKSPACE", "CI_PROJECT_DIR")
"""Variables in which they say the folder that holds that commit."""


@dataclass(frozen=True)
class Revision:
    """The revision of some code: its commit, whether what is there differs from it, and why either is not known.

    ``commit`` is None where there is none: the code is in no repository, or in one that does not track it.
    """

    commit: str | None = None
    dirty: bool | None = None
    note: str | None = None


def revision(code: Path, environment: Mapping[str, str]) -> Revision:
    """The revision of the file ``code`` and of the repository that tracks it.

    A repository that it merely lies in, as what is installed into an environment inside a working tree, says
    nothing of it. New files of Python that git does not know count as changes. Where git cannot answer, its reason
    is the note, and a CI system's variable stands in; so it does for code that lies in that system's checkout.
    """
    folder = code.resolve().parent
    answer = _git(folder, "rev-parse", "HEAD")
    if isinstance(answer, _Refusal):
        return _stood_in(answer.reason, folder, environment)
    if isinstance(_git(folder, "ls-files", "--error-unmatch", "--", code.name), _Refusal):
        if isinstance(_git(folder, "ls-files", "--error-unmatch", "--", "."), _Refusal):
            return _stood_in("", folder, environment)
        return Revision(answer, dirty=True)
    changed = _git(folder, "status", "--porcelain", "--untracked-files=no")
    new = _git(folder, "ls-files", "--others", "--exclude-standard", "--", "*.py")
    if isinstance(changed, _Refusal) or isinstance(new, _Refusal):
        return Revision(answer)
    return Revision(answer, bool(changed or new))


def _stood_in(reason: str, folder: Path, environment: Mapping[str, str]) -> Revision:
    """The commit by a CI system's word, where git has none of the code in ``folder``, for a ``reason`` or none."""
    checkouts = [Path(environment[key]).resolve() for key in _CHECKOUTS if environment.get(key)]
    inside = any(folder.is_relative_to(checkout) for checkout in checkouts)
    keys = [key for key in _STAND_INS if environment.get(key)] if reason or inside else []
    if not (reason or keys):
        return Revision()
    said = f"; {keys[0]} stands in for it" if keys else ""
    note = f"the commit is not known: {reason or 'git does not track this code'}{said}"
    return Revision(environment[keys[0]][:40] if keys else None, None, note)


def located(module: str, folders: Sequence[str]) -> Path | None:
    """The file of ``my_ops.py``, or of the importable ``my_lib.layers``, looked for in ``folders`` first.

    Nothing is imported. None where there is no such file.
    """
    if module.endswith(".py"):
        return next((path for folder in folders if (path := Path(folder, expanded(module))).is_file()), None)
    top, *parts = module.split(".")
    spec = PathFinder.find_spec(top, [*folders, *sys.path])
    if spec is None:
        return None
    if not spec.submodule_search_locations:
        return Path(spec.origin) if spec.origin else None
    for location in spec.submodule_search_locations:
        for path in (Path(location, *parts, "__init__.py"), Path(location, *parts).with_suffix(".py")):
            if path.is_file():
                return path
    return None


@dataclass(frozen=True)
class _Refusal:
    """Why git did not answer; empty where there is simply no repository, or no commit in it yet."""

    reason: str


def _git(folder: Path, *arguments: str) -> str | _Refusal:
    # A hook's variables, or a user's, would have git speak of another repository.
    inherited = {key: value for key, value in os.environ.items() if key not in ("GIT_DIR", "GIT_WORK_TREE")}
    try:
        done = subprocess.run(
            ["git", *arguments],
            cwd=folder,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=10,
            check=False,
            env={**inherited, "GIT_OPTIONAL_LOCKS": "0", "LC_ALL": "C"},
        )
    except FileNotFoundError:
        return _Refusal("git is not installed")
    except (OSError, ValueError, subprocess.SubprocessError) as error:
        return _Refusal(f"git gives no answer ({type(error).__name__})")
    if done.returncode == 0:
        return done.stdout.strip()
    said = done.stderr.strip().partition("\n")[0]
    if "dubious ownership" in said:
        return _Refusal(
            "git does not trust the repository's owner (dubious ownership); "
            "git config --global --add safe.directory and its path mends that"
        )
    harmless = ("not a git repository", "unknown revision", "ambiguous argument 'HEAD'", "did not match any file")
    return _Refusal("" if any(text in said for text in harmless) else anonymize(said)[:200])


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
