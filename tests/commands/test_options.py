"""Numbers as people write them."""

from __future__ import annotations

import click
import pytest
from hypothesis import given
from hypothesis import strategies as st

from niffbench.commands.options import duration, share, size

CONTEXT, OPTION = click.Context(click.Command("x")), click.Option(["--x"])


@pytest.mark.parametrize(("text", "value"), [("2%", 0.02), ("0.02", 0.02), (".5", 0.5), (" 99.5 % ", 0.995)])
def test_shares(text: str, value: float) -> None:
    assert share(CONTEXT, OPTION, text) == pytest.approx(value)


@pytest.mark.parametrize(
    ("text", "value"),
    [("90", 90), ("90s", 90), ("500ms", 0.5), ("10m", 600), ("1h30m", 5400), ("1 h 5 min", 3900), ("1.5h", 5400)],
)
def test_durations(text: str, value: float) -> None:
    assert duration(CONTEXT, OPTION, text) == pytest.approx(value)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("8GiB", 2**33),
        ("8gib", 2**33),
        ("8G", 8 * 10**9),
        ("500MB", 5 * 10**8),
        ("1048576", 2**20),
        ("1.5TiB", 1.5 * 2**40),
    ],
)
def test_sizes(text: str, value: float) -> None:
    assert size(CONTEXT, OPTION, text) == value


@pytest.mark.parametrize("reader", [share, duration, size])
@pytest.mark.parametrize(
    "text", ["", "x", "-1", "0", "nan", "inf", "1e400", "1 2", "2%%", "5 parsecs", "0x10", "9" * 400]
)
def test_what_is_no_number_is_told_what_would_be(reader: object, text: str) -> None:
    with pytest.raises(click.BadParameter, match="should be"):
        reader(CONTEXT, OPTION, text)  # type: ignore[operator]


def test_what_is_not_given_stays_so() -> None:
    assert share(CONTEXT, OPTION, None) is duration(CONTEXT, OPTION, None) is size(CONTEXT, OPTION, None) is None


@given(st.text(max_size=12))
def test_any_text_is_a_number_or_refused(text: str) -> None:
    for reader in (share, duration, size):
        try:
            value = reader(CONTEXT, OPTION, text)
        except click.BadParameter:
            continue
        assert value is not None
        assert value > 0
