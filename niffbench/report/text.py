"""Numbers and words as people read them: three significant digits, a unit, nothing that a terminal would obey."""

from __future__ import annotations

import hashlib
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from functools import lru_cache
from math import isfinite
from typing import TYPE_CHECKING

from niffbench.errors import plural as plural
from niffbench.units import MISSING as MISSING
from niffbench.units import digits as digits
from niffbench.units import percent as percent
from niffbench.units import scaled
from niffbench.units import size_of as size_of

if TYPE_CHECKING:
    from niffbench.results import Metric
    from niffbench.stats.intervals import Interval

LONGEST = 120
"""Characters of a name or a reason that are shown; records come from strangers."""

_SECONDS = ((1.0, "s"), (1e-3, "ms"), (1e-6, "µs"), (1e-9, "ns"))
_DECIMAL = ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"), (1.0, ""))


def seconds(value: float | None) -> str:
    """A time: ``1.23 ms``."""
    return scaled(value, _SECONDS)


def flops(value: float | None) -> str:
    """Real FLOPs: ``1.23 GFLOP``."""
    return scaled(value, _DECIMAL, "FLOP")


def rate(value: float | None, unit: str) -> str:
    """Something per second: ``81.5 GFLOP/s``."""
    return scaled(value, _DECIMAL, unit)


def count(value: float | None) -> str:
    """A number of things: ``2.36 M``."""
    return scaled(value, _DECIMAL)


def could_show(half: float, most: float) -> str:
    """The smallest slowdowns that half, and nine of ten, of the latencies would have shown, as a clause."""
    if not isfinite(half):
        return "no slowdown could have been shown: too few rounds, or too much noise"
    rest = f"one of {percent(most)} in nine of ten" if isfinite(most) else "none in nine of ten"
    return f"a slowdown of {percent(half)} could have been shown in half of the latencies, {rest}"


def plain(value: float | None) -> str:
    """A number without a unit."""
    return MISSING if value is None else digits(value)


def quantity(value: float | None, unit: str) -> str:
    """A value with a metric's unit, as that unit is read: ``1.23 ms``, ``35 %``, ``2.1·10⁻⁷``, ``1980 MHz``."""
    shown = _UNITS.get(unit)
    return shown(value) if shown else f"{plain(value)} {clean(unit, 20)}" if value is not None else MISSING


def times(value: float | None) -> str:
    """A ratio: ``0.345×``."""
    return MISSING if value is None or not isfinite(value) else f"{digits(value)}×"


def power_of_ten(value: float | None) -> str:
    """A small number: ``2.1·10⁻⁷``."""
    if value is None or not isfinite(value):
        return MISSING
    mantissa, exponent = f"{value:.1e}".split("e")
    return f"{mantissa}·10{exponent_digits(int(exponent))}" if value else "0"


_UNITS: dict[str, Callable[[float | None], str]] = {
    "": plain,
    "s": seconds,
    "B": size_of,
    "FLOP": flops,
    "J": lambda value: rate(value, "J"),
    "W": lambda value: rate(value, "W"),
    "images/s": plain,
    "count": count,
    "share": percent,
    "error": lambda value: power_of_ten(value),
}


def best(metric: Metric) -> str:
    """What the best in a metric is called: ``fastest``."""
    words = {"latency": "fastest", "memory": "leanest", "flops": "cheapest", "bytes": "lightest"}
    return words.get(metric.family) or f"{'most' if metric.better == 'higher' else 'least'} {metric.title}"


def exponent_digits(exponent: int) -> str:
    """An exponent in superscript digits."""
    return str(exponent).translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))


def brackets(interval: Interval | None) -> str:
    """The ends of an interval of ratios or plain numbers, ``[0.33, 0.36]``; empty where it has none or no width.

    The ends get as many decimals as it takes to tell them apart, three significant digits at least.
    """
    if interval is None or interval.low is None or interval.high is None or interval.low == interval.high:
        return ""
    if interval.method == "counted":  # its ends are all values there were
        return ""
    if not interval.is_determined:
        return "[not determined]"
    for significant in (3, 4, 5):
        low, high = digits(interval.low, significant), digits(interval.high, significant)
        if low != high:
            return f"[{low}, {high}]"
    return ""


def ratio(interval: Interval | None) -> str:
    """A ratio with its interval: ``0.345× [0.331, 0.360]``."""
    if interval is None:
        return MISSING
    return f"{times(interval.estimate)} {brackets(interval)}".rstrip()


def clean(text: object, longest: int = LONGEST) -> str:
    """Text from a record made fit to show: one line, no control or direction characters, not endless."""
    return _clean(str(text), longest)


@lru_cache(maxsize=8192)  # the same few labels, thousands of times
def _clean(text: str, longest: int) -> str:
    line = "".join(" " if char.isspace() else char for char in text)
    line = "".join(char for char in line if unicodedata.category(char) not in ("Cc", "Cf", "Cs", "Co", "Cn"))
    line = " ".join(line.split())
    return line if len(line) <= longest else line[: longest - 1] + "…"


NAME = 60
"""Characters of an operator's name that are shown."""


def short_names(labels: Iterable[str]) -> dict[str, str]:
    """What each of ``labels`` is called where there is little room: cut short, and never such that two become one.

    Those that would be alike keep beginning and end, where their settings are, and have a mark each, which is the
    same in every run.
    """
    shown = {label: clean(label, NAME) for label in labels}
    times = Counter(shown.values())
    return {label: name if times[name] == 1 else _marked(label) for label, name in shown.items()}


def _marked(label: str) -> str:
    mark = hashlib.sha256(label.encode(errors="backslashreplace")).hexdigest()[:6]
    whole = clean(label, len(label))
    ends = whole if len(whole) <= NAME - 8 else f"{whole[:31]}…{whole[-20:]}"
    return f"{ends} #{mark}"


_SPECIAL = str.maketrans(
    {char: f"\\{char}" for char in "\\`*_{}[]()#+-!|~$"} | {"<": "&lt;", ">": "&gt;", "&": "&amp;", "@": "&#64;"}
)


def markdown(text: object, longest: int = LONGEST) -> str:
    """Text escaped for GitHub's Markdown, inside a table too; it mentions nobody and links nowhere."""
    return clean(text, longest).translate(_SPECIAL).replace("://", "&#58;//").replace("www.", "www&#46;")


def listing(names: Sequence[str], most: int = 3) -> str:
    """``a, b and c``; beyond ``most`` names the rest are counted."""
    shown = list(names[:most]) if len(names) <= most else [*names[: most - 1], f"{len(names) - most + 1} others"]
    return shown[0] if len(shown) == 1 else ", ".join(shown[:-1]) + " and " + shown[-1] if shown else "none"


def capital(sentence: str) -> str:
    """The sentence with a capital first letter, the rest as it is."""
    return sentence[:1].upper() + sentence[1:]


def of_problems(some: int, all_: int) -> str:
    """``2 of 3 problems``, ``both problems``."""
    if some < all_:
        return f"{some} of {all_} problems"
    return "the one problem" if all_ == 1 else f"all {all_} problems" if all_ > 2 else "both problems"


def others(undecided: int, uncompared: int) -> str:
    """What follows when that was said of some problems: of how many others it is not known, and why."""
    if undecided and uncompared:
        return f", undecided at {undecided}, not compared at {uncompared}"
    number = undecided + uncompared
    what = "undecided" if undecided else "not compared"
    return f", {what} at the other{f' {number}' if number > 1 else ''}" if number else ""


def left_out(number: int, noun: str) -> str:
    """The sentence that goes on a caption where something has no room: `` 1 problem is left out for space.``"""
    return f" {plural(number, noun)} {'is' if number == 1 else 'are'} left out for space." if number > 0 else ""


def duration(seconds: float) -> str:
    """A time for people who wait: ``45 s``, ``3 min``, ``2 h 10 min``."""
    if seconds < 99.5:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 100 else f"{minutes // 60} h {minutes % 60} min"


def rounds(counts: tuple[int, int]) -> str:
    """Least and most rounds: ``3 rounds``, ``1 to 3 rounds``."""
    least, most = counts
    return plural(most, "round") if least == most else f"{least:,} to {plural(most, 'round')}"


def intervals(counts: tuple[int, int]) -> str:
    """What the intervals over least and most so many rounds are, or that there are none."""
    return f"95 % intervals over {rounds(counts)}" if counts[1] > 1 else "no intervals, there was one round"
