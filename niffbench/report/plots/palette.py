"""One colour an operator family, one line style and marker an operator: the same in every plot and table.

Colours are those of M. Okabe and K. Ito ("Color Universal Design", 2008), told apart with any common colour
blindness; its black becomes a grey dark enough to stay clear of the green, its yellow ochre: both show on white
and on dark paper.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

VERMILLION, BLUE, GREEN, ORANGE = "#D55E00", "#0072B2", "#009E73", "#E69F00"
SKY, PURPLE, GREY, OCHRE = "#56B4E9", "#CC79A7", "#5F6770", "#A8930A"
COLOURS = (VERMILLION, BLUE, GREY, GREEN, PURPLE, ORANGE, SKY, OCHRE)

_HOME = {
    "niff": VERMILLION,
    "depthwise": BLUE,
    "dense": GREY,
    "fft": GREEN,
    "global": PURPLE,
    "spectral": ORANGE,
    "strip": SKY,
    "attention": OCHRE,
}

Dash = tuple[float, tuple[float, ...]] | Literal["solid"]
_DASHES: tuple[Dash, ...] = ("solid", (0, (5, 1.6)), (0, (1.2, 1.4)), (0, (6, 1.5, 1.2, 1.5)))
_MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">", "h")


@dataclass(frozen=True)
class Style:
    """How one operator is drawn."""

    colour: str
    dash: Dash
    marker: str


def family_colours(families: Iterable[str]) -> Mapping[str, str]:
    """A colour for each family: its own where it has one, else the next that is free; beyond eight they repeat."""
    names = list(dict.fromkeys(families))
    chosen: dict[str, str] = {}
    for name in names:
        home = next((colour for stem, colour in _HOME.items() if name.startswith(stem)), None)
        if home is not None and home not in chosen.values():
            chosen[name] = home
    free = [colour for colour in COLOURS if colour not in chosen.values()] or list(COLOURS)
    rest = [name for name in names if name not in chosen]
    return chosen | {name: free[place % len(free)] for place, name in enumerate(rest)}


def styles(operators: Iterable[tuple[str, str]]) -> Mapping[str, Style]:
    """The style of each label; ``operators`` are (label, family) pairs in the order of the suite."""
    pairs = list(dict.fromkeys(operators))
    colours = family_colours(family for _, family in pairs)
    place: dict[str, int] = {}
    chosen: dict[str, Style] = {}
    for label, family in pairs:
        index = place[family] = place.get(family, -1) + 1
        shift = list(colours).index(family)  # so that families differ in their first markers too
        chosen[label] = Style(
            colours[family], _DASHES[index % len(_DASHES)], _MARKERS[(index + shift) % len(_MARKERS)]
        )
    return chosen
