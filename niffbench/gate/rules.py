"""Rules: what counts as a change, for all cases or for some, from the command line and from a TOML file."""

from __future__ import annotations

import tomllib
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from niffbench.case import Case
from niffbench.errors import UsageError, did_you_mean
from niffbench.gate.case_results import quantities
from niffbench.results import REGIMES, REGISTRY, Metric
from niffbench.suite import Regime, Selection

MAX_BYTES = 1_000_000

JUDGED: tuple[Regime, ...] = ("cold", "steady", "graph")
"""Regimes that are judged unless others are asked for. ``first`` is one sample a process, with plans and caches of
the system in it: it is recorded and reported, but a gate on it cries wolf."""


def chosen(regimes: Sequence[str]) -> tuple[Regime, ...]:
    """The regimes to judge, in their usual order: those named, or :data:`JUDGED` when none is."""
    return tuple(regime for regime in REGIMES if regime in regimes) or JUDGED


def fraction(value: object) -> float:
    """A share of one from ``0.03`` or ``"3%"``. Raises ValueError unless it lies in [0, 10)."""
    try:
        if isinstance(value, bool):
            raise TypeError
        if isinstance(value, str) and value.strip().endswith("%"):
            number = float(value.strip()[:-1]) / 100
        else:
            number = float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        raise ValueError(f"should be a share like 0.03 or '3%', not {value!r}") from None
    if not 0 <= number < 10:
        raise ValueError(f"should be a share from 0 up to 10 (1000%), not {value!r}")
    return number


Fraction = Annotated[float, BeforeValidator(fraction)]


class Entry(BaseModel):
    """One ``[[threshold]]`` of the file. ``cases`` are filters as of ``--only``, ``quantities`` globs of names."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    cases: Annotated[list[str], Field(min_length=1)] = ["*"]
    quantities: Annotated[list[str], Field(min_length=1)] = ["*"]
    min_effect: Fraction | None = None
    memory_tolerance: Fraction | None = None


class ThresholdFile(BaseModel):
    """The file as written: thresholds, of which a later one overrules an earlier one."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    threshold: Annotated[list[Entry], Field(min_length=1)]


@dataclass(frozen=True)
class Threshold:
    """Other limits for the cases that ``takes`` selects and the quantities whose names fit."""

    takes: Selection
    entry: Entry
    where: str

    def fits(self, case: Case, label: str, quantity: str) -> bool:
        """Whether this threshold speaks of that quantity of that case."""
        named = any(fnmatchcase(quantity, glob) for glob in self.entry.quantities)
        return named and self.takes.takes(case, label)


@dataclass(frozen=True)
class Rules:
    """How two sides are judged.

    ``alpha``: bound on the chance of any false alarm in the suite (Holm). ``min_effect``: least relative change of
    a latency that is called. ``memory_tolerance``: the same for bytes. ``rule_out``: the slowdown that must be
    excluded for every latency before a comparison counts as conclusive. FLOPs and parameters are exact.
    """

    alpha: float = 0.01
    min_effect: float = 0.03
    memory_tolerance: float = 0.01
    rule_out: float = 0.10
    regimes: tuple[Regime, ...] = JUDGED
    thresholds: tuple[Threshold, ...] = field(default=(), repr=False)

    @property
    def tested(self) -> tuple[Metric, ...]:
        """The metrics that are tested on rounds: latencies in the regimes asked for, and what else is noisy."""
        return tuple(
            metric
            for metric in REGISTRY.values()
            if metric.gate == "test" and (metric.regime is None or metric.regime in self.regimes)
        )

    def min_effect_of(self, case: Case, label: str, quantity: str) -> float:
        """The minimum effect for one latency: that of the last threshold that names it, else the general one."""
        return self._last(case, label, quantity, "min_effect", self.min_effect)

    def memory_tolerance_of(self, case: Case, label: str, quantity: str) -> float:
        """The tolerance for one memory figure."""
        return self._last(case, label, quantity, "memory_tolerance", self.memory_tolerance)

    def _last(self, case: Case, label: str, quantity: str, limit: str, general: float) -> float:
        fitting = (t for t in reversed(self.thresholds) if t.fits(case, label, quantity))
        values: list[float | None] = [getattr(threshold.entry, limit) for threshold in fitting]
        return next((value for value in values if value is not None), general)

    def unused(self, cases: Sequence[tuple[Case, str]]) -> tuple[str, ...]:
        """Where thresholds stand that select none of ``cases`` (case and label): likely a misspelt pattern."""
        return tuple(t.where for t in self.thresholds if not any(t.takes.takes(*case) for case in cases))

    def reading(self, path: Path | None) -> Rules:
        """These rules with the thresholds of a file. Raises UsageError naming file, key and what is right."""
        return self if path is None else replace(self, thresholds=read_thresholds(path))


def read_thresholds(path: Path) -> tuple[Threshold, ...]:
    """Read a file of thresholds::

        [[threshold]]
        cases = ["niff-*", "mode=training"]   # filters as of --only: any of one key, all of different keys
        quantities = ["latency_*"]            # globs of quantity names; all when left out
        min_effect = "5%"
        memory_tolerance = 0.02

    Raises UsageError naming file, key and what would be right.
    """
    try:
        if path.stat().st_size > MAX_BYTES:
            raise UsageError(f"{path}: larger than {MAX_BYTES:,} bytes, so not a file of thresholds")
        document = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"{path}: cannot be read ({error.strerror})") from error
    except UnicodeDecodeError as error:
        raise UsageError(f"{path}: is not UTF-8 text (byte {error.start})") from error
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise UsageError(f"{path}: not valid TOML: {error}") from error
    try:
        entries = ThresholdFile.model_validate(document).threshold
    except ValidationError as error:
        raise UsageError(f"{path}: {_explain(error)}") from error
    return tuple(_threshold(entry, f"{path}: threshold[{i}]") for i, entry in enumerate(entries))


def _threshold(entry: Entry, where: str) -> Threshold:
    if entry.min_effect is None and entry.memory_tolerance is None:
        raise UsageError(f"{where} sets nothing; give min_effect or memory_tolerance")
    names = quantities()
    for glob in entry.quantities:
        if not any(fnmatchcase(name, glob) for name in names):
            raise UsageError(f"{where}.quantities: no quantity named '{glob}'{did_you_mean(glob, names)}")
    try:
        return Threshold(Selection(entry.cases), entry, where)
    except UsageError as error:
        raise UsageError(f"{where}.cases: {str(error).removeprefix('--only ')}") from error


def _explain(error: ValidationError) -> str:
    # An unknown key explains the one that is missing.
    fault: Any = max(error.errors(), key=lambda found: found["type"] == "extra_forbidden")
    key = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in fault["loc"]).lstrip(".")
    if fault["type"] == "extra_forbidden":
        known = Entry.model_fields if len(fault["loc"]) > 1 else ThresholdFile.model_fields
        return f"unknown key '{key}'{did_you_mean(str(fault['loc'][-1]), known)}"
    if fault["type"] == "missing":
        return f"key '{key}' is missing; the file is a list of [[threshold]]"
    message = fault["msg"].removeprefix("Value error, ").replace("Input should", "should")
    return f"key '{key or 'the file'}': {message}"
