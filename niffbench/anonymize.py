"""Texts without what tells whose machine it was: home, user, host, paths, terminal codes."""

from __future__ import annotations

import getpass
import re
import socket
from functools import cache

from niffbench.home import home

_PATH = re.compile(r"(?<![\w./~])/(?:[\w.+@~<>-]+/)+[\w.+@~<>-]+")
_CONTROL = re.compile(r"\x1b\[[0-9;?]*[ -/]*[@-~]|[\x00-\x08\x0b-\x1f\x7f\u202a-\u202e\u2066-\u2069]")


def anonymize(text: str) -> str:
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
    folder, user, host = str(home() or ""), _user(), socket.gethostname()
    named = {
        folder: (_anywhere(folder), "~"),
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
