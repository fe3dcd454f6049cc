"""Records and runs: what one round learned of one case, and the directory that holds them."""

from __future__ import annotations

from niffbench.records.frame import frame, row
from niffbench.records.manifest import MANIFEST, SCHEMA, Ceilings, ExcludedCase, Manifest, SuiteEcho, read_manifest
from niffbench.records.neighbours import Neighbours, is_busy, neighbours
from niffbench.records.reading import COMPRESSED, RECORDS, Run, read
from niffbench.records.record import (
    REGIME_ORDER,
    REGIMES,
    CostRecord,
    GradientError,
    Latency,
    MachineState,
    Memory,
    Numerics,
    Record,
    Status,
    StepCost,
    Traits,
    dump,
    in_words,
    main_regime,
    parse,
)

__all__ = [
    "COMPRESSED",
    "MANIFEST",
    "RECORDS",
    "REGIMES",
    "REGIME_ORDER",
    "SCHEMA",
    "Ceilings",
    "CostRecord",
    "ExcludedCase",
    "GradientError",
    "Latency",
    "MachineState",
    "Manifest",
    "Memory",
    "Neighbours",
    "Numerics",
    "Record",
    "Run",
    "Status",
    "StepCost",
    "SuiteEcho",
    "Traits",
    "dump",
    "frame",
    "in_words",
    "is_busy",
    "main_regime",
    "neighbours",
    "parse",
    "read",
    "read_manifest",
    "row",
]
