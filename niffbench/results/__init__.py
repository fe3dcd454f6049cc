"""Records and runs: what one round learned of one case, and the directory that holds them."""

from __future__ import annotations

from niffbench.case import REGIMES
from niffbench.results.background_load import BackgroundLoad, background_load, is_busy
from niffbench.results.frame import attributes, frame
from niffbench.results.manifest import (
    MANIFEST,
    SCHEMA,
    Ceilings,
    ExcludedCase,
    Manifest,
    ModuleSource,
    ShardEcho,
    SubjectSource,
    SuiteEcho,
    read_manifest,
)
from niffbench.results.metrics import REGISTRY, Metric, Reason, key_of, over_rounds, round_value
from niffbench.results.reading import COMPRESSED, RECORDS, Run, read
from niffbench.results.record import (
    REGIME_ORDER,
    CostRecord,
    GradientError,
    Latency,
    MachineState,
    Memory,
    Numerics,
    Record,
    Role,
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
    "REGISTRY",
    "SCHEMA",
    "BackgroundLoad",
    "Ceilings",
    "CostRecord",
    "ExcludedCase",
    "GradientError",
    "Latency",
    "MachineState",
    "Manifest",
    "Memory",
    "Metric",
    "ModuleSource",
    "Numerics",
    "Reason",
    "Record",
    "Role",
    "Run",
    "ShardEcho",
    "Status",
    "StepCost",
    "SubjectSource",
    "SuiteEcho",
    "Traits",
    "attributes",
    "background_load",
    "dump",
    "frame",
    "in_words",
    "is_busy",
    "key_of",
    "main_regime",
    "over_rounds",
    "parse",
    "read",
    "read_manifest",
    "round_value",
]
