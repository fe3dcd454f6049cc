"""A suite: a TOML file of axes, operators, exclusions and a baseline, expanded into cases. No code in it."""

from __future__ import annotations

from niffbench.case import Contender, Regime
from niffbench.suite.expand import Excluded, OperatorInfo, Suite, cases_of, expand, load, operator_of, user_modules
from niffbench.suite.locate import available, find
from niffbench.suite.locate import read as read_text
from niffbench.suite.pairs import PAIR_AXES, Axis, Pair, curve, fixed, moved, pairs, position, side_of
from niffbench.suite.schema import (
    AXES,
    WALL_SHARE,
    DeviceType,
    Measure,
    OperatorEntry,
    Quantity,
    Refine,
    SuiteFile,
    UserModule,
    entry_of,
    nameless,
    parse,
    parse_toml,
    setting_of,
    words_of,
)
from niffbench.suite.select import Selection, Shard
from niffbench.suite.settings import Overrides, Settings, resolve

__all__ = [
    "AXES",
    "PAIR_AXES",
    "WALL_SHARE",
    "Axis",
    "Contender",
    "DeviceType",
    "Excluded",
    "Measure",
    "OperatorEntry",
    "OperatorInfo",
    "Overrides",
    "Pair",
    "Quantity",
    "Refine",
    "Regime",
    "Selection",
    "Settings",
    "Shard",
    "Suite",
    "SuiteFile",
    "UserModule",
    "available",
    "cases_of",
    "curve",
    "entry_of",
    "expand",
    "find",
    "fixed",
    "load",
    "moved",
    "nameless",
    "operator_of",
    "pairs",
    "parse",
    "parse_toml",
    "position",
    "read_text",
    "resolve",
    "setting_of",
    "side_of",
    "user_modules",
    "words_of",
]
