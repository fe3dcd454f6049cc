"""Numbers and words: units, significant digits, and text from strangers made harmless."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from niffbench.report import text
from niffbench.stats.intervals import Interval


def _interval(low: float, high: float) -> Interval:
    return Interval((low + high) / 2, low, high, 0.95, 3, "made up")


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (1.5, "1.50 s"),
        (0.0123, "12.3 ms"),
        (999.7e-6, "1.00 ms"),
        (4e-6, "4.00 µs"),
        (2.5e-8, "25.0 ns"),
        (None, "–"),
    ],
)
def test_seconds_get_the_unit_that_fits(value: float | None, shown: str) -> None:
    assert text.seconds(value) == shown


def test_bytes_are_binary_and_flops_decimal() -> None:
    assert text.size_of(3 * 2**20) == "3.00 MiB"
    assert text.size_of(0) == "0 B"
    assert text.flops(3.5e9) == "3.50 GFLOP"
    assert text.rate(8.15e10, "B/s") == "81.5 GB/s"


@pytest.mark.parametrize(
    ("share", "shown"),
    [
        (0.0, "0 %"),
        (0.004, "0.4 %"),
        (0.0312, "3.1 %"),
        (0.354, "35 %"),
        (0.99, "99 %"),
        (0.994, "99 %"),
        (0.996, "99.6 %"),
        (0.999999, "99.9 %"),
        (1.0, "100 %"),
        (1.204, "120 %"),
        (-1.5, "-150 %"),
        (None, "–"),
    ],
)
def test_a_share_of_almost_all_is_not_all_nor_one_of_little_none(share: float | None, shown: str) -> None:
    assert text.percent(share) == shown


@given(st.floats(1e-30, 1e30))
def test_three_digits_are_right_to_half_a_percent(value: float) -> None:
    assert float(text.digits(value)) == pytest.approx(value, rel=5.1e-3)


def test_brackets_tell_close_ends_apart_and_hide_what_has_no_width() -> None:
    assert text.brackets(_interval(0.3301, 0.3599)) == "[0.330, 0.360]"
    assert text.brackets(_interval(1.0001, 1.0004)) == "[1.0001, 1.0004]"
    assert text.brackets(_interval(2.0, 2.0)) == ""
    assert text.brackets(Interval(2.0, None, None, 0.95, 1, "none", "one round")) == ""


@given(st.text(max_size=400))
def test_cleaned_text_is_one_short_line_without_controls(raw: str) -> None:
    shown = text.clean(raw)
    assert len(shown) <= text.LONGEST
    assert shown.isprintable()


def test_cleaning_drops_escape_codes_and_direction_marks() -> None:
    assert text.clean("a\x1b[31mred\u202eb\nc") == "a[31mredb c"


@pytest.mark.parametrize(
    ("raw", "escaped"),
    [
        ("a|b", r"a\|b"),
        ("<img src=x>", "&lt;img src=x&gt;"),
        ("@someone", "&#64;someone"),
        ("[x](y)", r"\[x\]\(y\)"),
        ("`code`", r"\`code\`"),
        ("https://example.org", "https&#58;//example.org"),
    ],
)
def test_markdown_is_inert(raw: str, escaped: str) -> None:
    assert text.markdown(raw) == escaped


def test_listing_counts_what_it_leaves_out() -> None:
    assert text.listing(["a"]) == "a"
    assert text.listing(["a", "b", "c"]) == "a, b and c"
    assert text.listing(["a", "b", "c", "d", "e"]) == "a, b and 3 others"
