"""A suite: a TOML file of axes, operators, exclusions and a baseline, expanded into cases. No code in it."""

from __future__ import annotations

from niffbench.case import Regime
from niffbench.suite.expand import Excluded, OperatorInfo, Suite, expand, load, of_values, operator_of
from niffbench.suite.locate import available, find
from niffbench.suite.locate import read as read_text
from niffbench.suite.schema import AXES, WALL_SHARE, DeviceType, Measure, SuiteFile, parse, parse_toml
from niffbench.suite.select import Selection, Shard
from niffbench.suite.settings import Overrides, Settings, resolve

__all__ = [
    "AXES",
    "WALL_SHARE",
    "DeviceType",
    "Excluded",
    "Measure",
    "OperatorInfo",
    "Overrides",
    "Regime",
    "Selection",
    "Settings",
    "Shard",
    "Suite",
    "SuiteFile",
    "available",
    "expand",
    "find",
    "load",
    "of_values",
    "operator_of",
    "parse",
    "parse_toml",
    "read_text",
    "resolve",
]
