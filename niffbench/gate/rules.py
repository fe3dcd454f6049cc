"""Rules: what counts as a change and which is accepted, from the command line and from TOML files."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, date, datetime
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from niffbench.case import Case
from niffbench.errors import UsageError, did_you_mean
from niffbench.gate.case_results import quantities
from niffbench.results import REGIMES, REGISTRY, Metric
from niffbench.suite import Regime, Selection, parse_toml, read_text

JUDGED: tuple[Regime, ...] = ("cold", "steady", "graph")
"""Regimes that are judged unless others are asked for. ``first`` is one sample a process, with plans and caches of
the system in it: it is recorded and reported, but a gate on it cries wolf."""


def chosen(regimes: Sequence[str]) -> tuple[Regime, ...]:
    """The regimes to judge, in their usual order: those named, or :data:`JUDGED` when none is."""
    return tuple(regime for regime in REGIMES if regime in regimes) or JUDGED


def fraction(value: object) -> float:
    """A share of one from ``0.03`` or ``"3%"``.

    Raises:
        ValueError: unless it lies in [0, 10).
    """
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
        raise ValueError(f"should be a share below 10 (1000%), as 5% or 0.05, not {value!r}")
    return number


Fraction = Annotated[float, BeforeValidator(fraction)]


@dataclass(frozen=True)
class Limit:
    """How far an accepted change may go.

    Attributes:
        value: a factor of the accepted level if ``relative``, else in the base unit ``unit``, which is empty where
            none was given.
    """

    value: float
    relative: bool
    unit: str = ""

    def suits(self, quantity: str) -> bool:
        """Whether it can be a limit of a quantity; what is not counted needs a unit."""
        metric = REGISTRY.get(quantity)
        if self.relative or metric is None:
            return self.relative
        return metric.unit in ((self.unit,) if self.unit else ("count", "FLOP"))


_UNITS = {"": 1.0, "ns": 1e-9, "us": 1e-6, "µs": 1e-6, "ms": 1e-3, "s": 1.0, "B": 1.0, "FLOP": 1.0}
_UNITS |= {f"{prefix}{unit}": 1000.0**power for power, prefix in enumerate("kMGTP", 1) for unit in ("B", "FLOP")}
_UNITS |= {f"{prefix}iB": 1024.0**power for power, prefix in enumerate("KMGTP", 1)}


def limit(value: object) -> Limit | None:
    """A limit from ``"+20%"``, ``"1.3 ms"``, ``"12 MiB"`` or a number.

    Raises:
        ValueError: for anything else.
    """
    if value is None or isinstance(value, Limit):
        return value
    match = re.fullmatch(r"(\+?)(\d+(?:\.\d*)?(?:[eE][+-]?\d+)?)\s*(%|[A-Za-zµ]*)", str(value).strip()[:40])
    if (
        match is None
        or isinstance(value, bool)
        or match[3] not in {"%", *_UNITS}
        or (match[1] and match[3] != "%")
    ):
        raise ValueError(f"should be a limit like '+20%', '1.3 ms', '12 MiB' or a number, not {str(value)[:40]!r}")
    number = float(match[2])
    if match[3] == "%":
        return Limit(1 + number / 100, True)
    unit = next((unit for unit in ("FLOP", "B", "s") if match[3].endswith(unit)), "")
    return Limit(number * _UNITS[match[3]], False, unit)


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


class Grant(BaseModel):
    """What is accepted: up to where, why, and until when."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    up_to: Annotated[Limit | None, BeforeValidator(limit)] = None
    reason: Annotated[str, Field(min_length=1, max_length=300)]
    until: date | None = None

    def covers(self, head: float | None, level: float | None) -> bool:
        """Whether ``head`` is within the limit; ``level`` is the one that it is beyond. Coverage has no limit."""
        bound = self.up_to
        if bound is None:
            return True
        if head is None or (bound.relative and level is None):
            return False
        return head <= (bound.value * (level or 0.0) if bound.relative else bound.value)


class Change(Grant):
    """One ``[[accept]]``: what may be beyond its level."""

    cases: Annotated[list[str], Field(min_length=1)] = ["*"]
    quantities: Annotated[list[str], Field(min_length=1)]


class Environment(Grant):
    """One ``[[environment]]``: a fingerprint whose first run may pass without a baseline of its own.

    ``up_to`` is how far ratios to the baseline operator may be beyond those of the environments before, for good.
    """

    fingerprint: Annotated[str, Field(pattern=r"^[0-9a-f]{12}$")]


class AcceptanceFile(BaseModel):
    """The file as written."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    accept: list[Change] = []
    environment: list[Environment] = []


@dataclass(frozen=True)
class Acceptance:
    """A change that is accepted in the cases that ``takes`` selects."""

    takes: Selection
    change: Change
    where: str

    def fits(self, case: Case | None, label: str, quantity: str) -> bool:
        """Whether it speaks of that quantity of that case, in time or not; without a case, of all."""
        named = any(fnmatchcase(quantity, glob) for glob in self.change.quantities)
        return named and (self.change.cases == ["*"] if case is None else self.takes.takes(case, label))


@dataclass(frozen=True)
class Accepted:
    """What a file accepts, on the day that is ``today``."""

    changes: tuple[Acceptance, ...] = ()
    environments: tuple[Environment, ...] = ()
    today: date = date.min

    def is_over(self, until: date | None) -> bool:
        """Whether what was accepted until a day is so no longer; that day still counts."""
        return until is not None and self.today > until

    def environment(self, fingerprint: str) -> Environment | None:
        """The entry for a fingerprint that is still in force."""
        fitting = (one for one in self.environments if one.fingerprint == fingerprint)
        return next((one for one in fitting if not self.is_over(one.until)), None)


@dataclass(frozen=True)
class Rules:
    """How two sides are judged.

    Attributes:
        alpha: bound on the chance of any false alarm in the suite (Holm), against each level by itself: BASE, a
            history's accepted level, and that of another environment.
        min_effect: least relative change of a latency that is called.
        memory_tolerance: the same for bytes.
        rule_out: the slowdown that must be excluded for every latency before a comparison counts as
            conclusive. FLOPs and parameters are exact.
    """

    alpha: float = 0.01
    min_effect: float = 0.03
    memory_tolerance: float = 0.01
    rule_out: float = 0.10
    regimes: tuple[Regime, ...] = JUDGED
    thresholds: tuple[Threshold, ...] = field(default=(), repr=False)
    accepted: Accepted = field(default_factory=Accepted, repr=False)

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

    def least_change(self, case: Case, label: str, metric: Metric) -> float:
        """The least relative change of a metric that counts; 0 where any does."""
        if metric.gate == "tolerance":
            return self.memory_tolerance_of(case, label, metric.key)
        return 0.0 if metric.exact else self.min_effect_of(case, label, metric.key)

    def _last(self, case: Case, label: str, quantity: str, limit: str, general: float) -> float:
        fitting = (t for t in reversed(self.thresholds) if t.fits(case, label, quantity))
        values: list[float | None] = [getattr(threshold.entry, limit) for threshold in fitting]
        return next((value for value in values if value is not None), general)

    def unused(self, cases: Sequence[tuple[Case, str]]) -> tuple[str, ...]:
        """Where entries stand that select none of ``cases`` (case and label): likely a misspelt pattern."""
        entries: tuple[Threshold | Acceptance, ...] = (*self.thresholds, *self.accepted.changes)
        return tuple(entry.where for entry in entries if not any(entry.takes.takes(*case) for case in cases))

    def reading(self, thresholds: Path | None, accepted: Path | None = None) -> Rules:
        """These rules with what two files say.

        Raises:
            UsageError: naming file, key and what is right.
        """
        rules = self if thresholds is None else replace(self, thresholds=read_thresholds(thresholds))
        return rules if accepted is None else replace(rules, accepted=read_accepted(accepted))


def read_thresholds(path: Path) -> tuple[Threshold, ...]:
    """Read a file of thresholds::

        [[threshold]]
        cases = ["niff-*", "mode=training"]   # filters as of --only: any of one key, all of different keys
        quantities = ["latency_*"]            # globs of quantity names; all when left out
        min_effect = "5%"
        memory_tolerance = 0.02

    A limit that cannot apply to a quantity that is named beside it is refused, as is whatever else makes no sense.

    Raises:
        UsageError: naming file, key and what would be right.
    """
    entries = read_toml(path, ThresholdFile, Entry, "a file of thresholds").threshold
    return tuple(_threshold(entry, f"{path}: threshold[{i}]") for i, entry in enumerate(entries))


def read_accepted(path: Path) -> Accepted:
    """Read a file of accepted changes, which is meant to be committed beside what it excuses::

        [[accept]]
        cases = ["niff-*"]               # filters as of --only; all when left out
        quantities = ["latency_*"]       # globs of quantity names
        up_to = "+20%"                   # of the accepted level; or "1.3 ms", "12 MiB"; none for "coverage",
                                         # which is also what a metric has lost that is measured no more
        reason = "padding copies its input"
        until = 2027-01-31               # that day included; for good when left out

        [[environment]]
        fingerprint = "0123456789ab"     # of the machine whose first run may pass
        reason = "torch 2.15"
        up_to = "+20%"                   # of ratios to the baseline operator before, if some are larger there

    Raises:
        UsageError: naming file, key and what would be right.
    """
    file = read_toml(path, AcceptanceFile, Change, "a file of accepted changes")
    changes = []
    for i, change in enumerate(file.accept):
        where = f"{path}: accept[{i}]"
        named = {name for glob in change.quantities for name in check_named(glob, where)}
        if (change.up_to is None) != (named == {"coverage"}):
            right = "coverage has no limit, so it stands alone" if change.up_to else "say up to where, as '+20%'"
            raise UsageError(f"{where}.up_to: {right}")
        unlike = [name for name in sorted(named) if change.up_to and not change.up_to.suits(name)]
        if unlike:
            raise UsageError(
                f"{where}.up_to: its unit is not that of {unlike[0]}; latencies take '1.3 ms', memory '12 MiB', "
                "FLOPs and parameters a number, and every quantity a share like '+20%'"
            )
        changes.append(Acceptance(selection(change.cases, where), change, where))
    for i, one in enumerate(file.environment):
        if one.up_to is not None and not one.up_to.relative:
            raise UsageError(f"{path}: environment[{i}].up_to: ratios take a share, as '+20%'")
    return Accepted(tuple(changes), tuple(file.environment), datetime.now(UTC).date())


def _threshold(entry: Entry, where: str) -> Threshold:
    if entry.min_effect is None and entry.memory_tolerance is None:
        raise UsageError(f"{where} sets nothing; give min_effect or memory_tolerance")
    for glob in entry.quantities:
        named = check_named(glob, where)
        takes = {limit for name in named if (limit := _limit_of(name))}
        given = {limit for limit in ("min_effect", "memory_tolerance") if getattr(entry, limit) is not None}
        if glob != "*" and (useless := given - takes if len(entry.quantities) == 1 else not given & takes):
            limits = " and ".join(sorted(useless if isinstance(useless, set) else given))
            right = f"it takes {' or '.join(sorted(takes))}" if takes else "any difference of it counts"
            if glob.startswith("shared_"):
                right = "what all share is judged by --min-effect"
            raise UsageError(f"{where}: {limits} cannot apply to the quantity '{glob}'; {right}")
    return Threshold(selection(entry.cases, where), entry, where)


def check_named(glob: str, where: str) -> tuple[str, ...]:
    """The quantities that a glob names.

    Raises:
        UsageError: when there is none.
    """
    names = quantities()
    named = tuple(name for name in names if fnmatchcase(name, glob))
    if not named:
        raise UsageError(f"{where}.quantities: no quantity named '{glob}'{did_you_mean(glob, names)}")
    return named


def selection(cases: Sequence[str], where: str) -> Selection:
    """The filters of an entry's ``cases``.

    Raises:
        UsageError: for one that is none.
    """
    try:
        return Selection(cases)
    except UsageError as error:
        raise UsageError(f"{where}.cases: {str(error).removeprefix('--only ')}") from error


def _limit_of(quantity: str) -> str | None:
    """Which limit a quantity has; None for one of which any difference counts."""
    metric = REGISTRY.get(quantity)
    if metric is None:
        return "min_effect" if quantity.startswith("ratio_") else None
    return {"test": "min_effect", "tolerance": "memory_tolerance"}.get(metric.gate or "")


File = TypeVar("File", bound=BaseModel)


def read_toml(path: Path, model: type[File], entry: type[BaseModel], what: str) -> File:
    """Read a TOML file of tables as ``model``.

    Raises:
        UsageError: naming file, key and what would be right.
    """
    try:
        return model.model_validate(parse_toml(read_text(path, what), str(path)))
    except ValidationError as error:
        raise UsageError(f"{path}: {_explain(error, model, entry)}") from error


def _explain(error: ValidationError, model: type[BaseModel], entry: type[BaseModel]) -> str:
    # An unknown key explains the one that is missing.
    fault: Any = max(error.errors(), key=lambda error: error["type"] == "extra_forbidden")
    key = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in fault["loc"]).lstrip(".")
    if fault["type"] == "extra_forbidden":
        keys = entry.model_fields if len(fault["loc"]) > 1 else model.model_fields
        return f"unknown key '{key}'{did_you_mean(str(fault['loc'][-1]), keys)}"
    if fault["type"] == "missing":
        return f"key '{key}' is missing; the file is a list of [[{']] or [['.join(model.model_fields)}]]"
    message = fault["msg"].removeprefix("Value error, ").replace("Input should", "should")
    return f"key '{key or 'the file'}': {message}"
