"""What strangers may send: nested values with anything in any place, as TOML and JSON."""

from __future__ import annotations

import string
from typing import Any

from hypothesis import strategies as st

JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | st.text(max_size=6),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)


def mutate(document: Any, data: st.DataObject) -> None:
    """Replace or remove something, somewhere."""
    container, key = data.draw(st.sampled_from(spots(document)))
    if data.draw(st.booleans()):
        container[key] = data.draw(JSON)
    else:
        del container[key]


def toml(value: Any) -> str:
    """Any JSON-like value as inline TOML."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{quoted(key)} = {toml(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(toml, value)) + "]"
    if isinstance(value, bool):
        return str(value).lower()
    return quoted(value) if isinstance(value, str) else repr(value)


def quoted(text: str) -> str:
    return (
        '"'
        + "".join(c if c in string.ascii_letters + string.digits + "-_ " else f"\\U{ord(c):08x}" for c in text)
        + '"'
    )


def spots(value: Any) -> list[tuple[Any, Any]]:
    """Every place of a nested value, as container and key."""
    if isinstance(value, dict):
        keys: list[Any] = list(value)
    elif isinstance(value, list):
        keys = list(range(len(value)))
    else:
        return []
    return [(value, key) for key in keys] + [spot for key in keys for spot in spots(value[key])]
