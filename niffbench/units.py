"""Numbers as people read them: three significant digits and a unit."""

from __future__ import annotations

from collections.abc import Sequence
from math import floor, isfinite

MISSING = "–"
NUMBER = r"(\d+(?:\.\d*)?|\.\d+)"
"""A number as people write it, in a regular expression."""

_BYTES = ((2.0**40, "TiB"), (2.0**30, "GiB"), (2.0**20, "MiB"), (2.0**10, "KiB"), (1.0, "B"))


def digits(value: float, significant: int = 3) -> str:
    """``value`` to so many significant digits, never in exponent form below 1e6: 0.0123, 1.23, 123, 12300."""
    if not isfinite(value):
        return MISSING
    if value == 0:
        return "0"
    rounded = f"{value:.{significant - 1}e}"
    magnitude = int(rounded.partition("e")[2])
    if not -5 <= magnitude < 6:
        return rounded
    return f"{float(rounded):.{max(significant - 1 - magnitude, 0)}f}"


def percent(share: float | None) -> str:
    """A share: ``35 %``, with decimals where it is small or nearly all: ``0.4 %``, and 99.97 % is no ``100 %``."""
    if share is None or not isfinite(share):
        return MISSING
    if 0.995 <= share < 1:
        return f"{floor(1000 * share + 1e-9) / 10:g} %"
    return f"{100 * share:.0f} %" if abs(share) >= 0.1 or share == 0 else f"{100 * share:.2g} %"


def percents(share: float) -> str:
    """A share that was asked for, with all of its digits: ``3%``, ``0.5%``, ``99.8%``."""
    return f"{100 * share:.15g}%"


def scaled(value: float | None, units: Sequence[tuple[float, str]], suffix: str = "") -> str:
    """``value`` in the largest of ``units``, pairs of scale and name from large to small, that it reaches."""
    if value is None or not isfinite(value):
        return MISSING
    if value == 0:
        return f"0 {units[-1][1]}{suffix}".rstrip()
    size = abs(value) * (1 + 5e-4)  # 999.9 of a unit is 1.00 of the next
    scale, unit = next(((s, u) for s, u in units if size >= s), units[-1])
    return f"{digits(value / scale)} {unit}{suffix}".rstrip()


def size_of(value: float | None) -> str:
    """Bytes: ``12.5 MiB``."""
    return scaled(value, _BYTES)
