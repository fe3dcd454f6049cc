"""A suite: a TOML file of axes, operators, exclusions and a baseline, expanded into cases. No code in it."""

from __future__ import annotations

from niffbench.case import Regime
from niffbench.suite.expand import Excluded, OperatorInfo, Suite, expand, load, of_values, operator_of
from niffbench.suite.locate import available, find
from niffbench.suite.locate import read as read_text
from niffbench.suite.pairs import PAIR_AXES, Axis, Pair, Side, curve, fixed, moved, pairs, position, side_of
from niffbench.suite.schema import (
    AXES,
    WALL_SHARE,
    DeviceType,
    Measure,
    Quantity,
    Refine,
    SuiteFile,
    parse,
    parse_toml,
)
from niffbench.suite.select import Selection, Shard
from niffbench.suite.settings import Overrides, Settings, resolve

__all__ = [
    "AXES",
    "PAIR_AXES",
    "WALL_SHARE",
    "Axis",
    "DeviceType",
    "Excluded",
    "Measure",
    "OperatorInfo",
    "Overrides",
    "Pair",
    "Quantity",
    "Refine",
    "Regime",
    "Selection",
    "Settings",
    "Shard",
    "Side",
    "Suite",
    "SuiteFile",
    "available",
    "curve",
    "expand",
    "find",
    "fixed",
    "load",
    "moved",
    "of_values",
    "operator_of",
    "pairs",
    "parse",
    "parse_toml",
    "position",
    "read_text",
    "resolve",
    "side_of",
]
