"""The suite file as written: its keys, their types, and how a fault in it is explained."""

from __future__ import annotations

import ast
import json
import re
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from math import isfinite
from pathlib import Path
from typing import Annotated, Any, Literal, TypeAlias, TypeVar, get_args

from pydantic import BaseModel, BeforeValidator, ConfigDict, Discriminator, Field, StrictBool, Tag, ValidationError

from niffbench.case import DType, Execution, MemoryFormat, Mode, OptionValue, Regime
from niffbench.errors import UsageError, did_you_mean
from niffbench.home import expanded
from niffbench.suite.pairs import Axis
from niffbench.units import NUMBER

MAX_AXIS = 2**24
MOST_DOTS = 200
"""On one line of a TOML file."""

MAX_TIME = 7 * 86_400.0
"""Seconds that anything may be told to take: a week. What is longer is a slip, and sums of it say nothing."""

WALL_SHARE = 0.25
"""Of a regime's time for sampling what ``wall`` gets: a sample is one call, and there are enough in a few ms."""
KernelRule = Literal["H", "2H-1"]
DeviceType = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]*$")]
"""A kind of device by its name; which there are, :func:`niffbench.suite.load` is told."""

Quantity: TypeAlias = Literal["flops", "memory", "latency"]
"""In what a form and a rival may change places."""

_Value = TypeVar("_Value")


_SECONDS = {"": 1.0, "ms": 1e-3, "s": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0}


def seconds_of(text: str) -> float | None:
    """A time as people write it (``90``, ``500ms``, ``10m``, ``1h30m``) in seconds; None if it is none."""
    joined = re.sub(r"(?<=[a-z]) +| +(?=[a-z])", "", text.strip())
    parts = re.findall(NUMBER + r"(ms|s|min|m|h|)", joined)
    whole = "".join(number + unit for number, unit in parts) == joined
    return sum(float(number) * _SECONDS[unit] for number, unit in parts) if whole and parts else None


def _duration(value: object) -> object:
    if isinstance(value, str):
        if (seconds := seconds_of(value)) is None:
            raise ValueError("should be a time above zero, as 90s, 500ms or 10m")
        return seconds
    return value


def _listed(value: object) -> object:
    """A single value stands for a list of one."""
    return value if isinstance(value, list) else [value]


def _scalar(value: object) -> object:
    if isinstance(value, float) and not isfinite(value):
        raise ValueError("should be a finite number")
    if not isinstance(value, str | int | float):
        raise ValueError("should be a string, a number or a boolean")
    return value


def _literal(value: object) -> object:
    """An argument; a list of such is kept as text, which :func:`argument_of` reads again."""
    if not isinstance(value, list):
        return _scalar(value)
    for leaf in _leaves(value):
        _scalar(leaf)
    return json.dumps(value)


def argument_of(value: object) -> object:
    """An argument as it was written: of a text that begins with a bracket the list or tuple, else itself."""
    if isinstance(value, str) and value.startswith(("[", "(")):
        for read in (json.loads, ast.literal_eval):  # [true] of a suite's file, ['same'] of a line
            with suppress(ValueError, SyntaxError, RecursionError, MemoryError):
                return read(value)
    return value


def words_in(arguments: Mapping[str, OptionValue]) -> set[str]:
    """The texts among arguments, those in their lists too."""
    return {leaf for value in arguments.values() for leaf in _leaves(argument_of(value)) if isinstance(leaf, str)}


def _leaves(value: object) -> Iterator[object]:
    if isinstance(value, list | tuple):
        for one in value:
            yield from _leaves(one)
    else:
        yield value


# A union without a discriminator would report one fault per member; with one, only the member that was meant. The
# tags appear in pydantic's locations, hence the marks that no key of a sensible file has.
_PAIR, _SIDE, _RULE, _BOUND, _LIST = "<pair>", "<side>", "<rule>", "<bound>", "<list>"
_TAGS = {_PAIR, _SIDE, _RULE, _BOUND, _LIST}

Positive = Annotated[int, Field(ge=1, le=MAX_AXIS, strict=True)]
Pair = Annotated[list[Positive], Field(min_length=2, max_length=2)]
Size = Annotated[
    Annotated[Positive, Tag(_SIDE)] | Annotated[Pair, Tag(_PAIR)],
    Discriminator(lambda value: _PAIR if isinstance(value, list | tuple) else _SIDE),
]
"""A square map's side, or height and width."""
Kernel = Annotated[
    Annotated[Positive, Tag(_SIDE)] | Annotated[KernelRule, Tag(_RULE)],
    Discriminator(lambda value: _RULE if isinstance(value, str) else _SIDE),
]
"""A kernel's side, or the rule that gives it at each map."""
Values = Annotated[list[_Value], BeforeValidator(_listed), Field(min_length=1, max_length=10_000)]


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Axes(_Model):
    """Values of each axis; None means the axis keeps its default."""

    batch: Values[Positive] | None = None
    channels: Values[Positive] | None = None
    channels_out: Values[Positive] | None = None
    size: Values[Size] | None = None
    kernel: Values[Kernel] | None = None
    dtype: Values[DType] | None = None
    tf32: Values[StrictBool] | None = None
    memory_format: Values[MemoryFormat] | None = None
    mode: Values[Mode] | None = None
    execution: Values[Execution] | None = None

    def given(self) -> dict[str, list[Any]]:
        """The axes that were set, in the order of their declaration."""
        return {name: value for name in AXES if (value := getattr(self, name)) is not None}


AXES = tuple(Axes.model_fields)


Scalars = dict[str, Annotated[OptionValue, BeforeValidator(_scalar)]]
Literals = dict[str, Annotated[OptionValue, BeforeValidator(_literal)]]

LIBRARIES = ("torchvision", "timm")
"""Whose networks a row may name: ``torchvision:efficientnet_b0``."""

REPLACE = "replace."
"""Before a layer's name, where a row is written in a line: ``my_nets.py:Net replace.conv3x3=split``."""

WORDS = ("channels", "channels_out", "height", "width", "batch", "kernel")
"""What a module's arguments may say instead of a number: the case's own."""


def nameless(source: str) -> str | None:
    """What is wrong with ``my_ops.py`` where ``my_ops.py:NAME`` is wanted; None of any other text.

    Names what the file defines, which is read and not imported.
    """
    file = source.removesuffix(":")
    if ":" in file or not file.endswith(".py"):
        return None
    try:
        parts = ast.parse(expanded(file).read_bytes()).body
    except (OSError, SyntaxError, ValueError, RecursionError, MemoryError):
        parts = []  # what is wrong with the file itself is said where it is imported
    kinds = (ast.ClassDef, ast.FunctionDef)
    names = [part.name for part in parts if isinstance(part, kinds) and not part.name.startswith("_")]
    known = f" (it defines {', '.join(names[:40])})" if names else ""
    return f"should have a name after a colon, as {file}:{names[0] if names else 'NAME'}{known}"


def _sourced(pattern: str) -> BeforeValidator:
    """A callable's place, as ``my_ops.py:MyConv``."""

    def check(value: object) -> object:
        if isinstance(value, str) and re.fullmatch(pattern, value) is None:
            raise ValueError(nameless(value) or "should be FILE.py:NAME, or MODULE:NAME of what can be imported")
        return value

    return BeforeValidator(check)


_SOURCE = r"[^\s:]([^:]*[^\s:])?:[\w.]+"


class OperatorEntry(Axes):
    """One operator of a suite, and axes that override the suite's for it alone.

    Either ``name``, of the catalogue, with its ``options``; or ``module``, a callable of the user's that returns
    an ``nn.Module``, with its ``arguments``; or ``model``, a network of torchvision, timm or the user's, with
    ``replace``, what becomes of its layers, and the option ``execution``, how these then execute. Of a module
    ``like`` is the operator whose function it claims to compute, ``reference`` a callable that computes it in
    float64; ``label`` is what a row is called in tables.
    """

    name: str | None = None
    options: Scalars = {}
    module: Annotated[str, _sourced(_SOURCE + r"(-k\d+)?")] | None = None
    arguments: Literals = {}
    model: Annotated[str, _sourced(_SOURCE)] | None = None
    replace: dict[str, str] = {}
    like: Annotated[str, Field(pattern=r"\S")] | None = None
    reference: Annotated[str, _sourced(_SOURCE)] | None = None
    label: Annotated[str, Field(pattern=r"^\S(.*\S)?$", max_length=60)] | None = None

    @property
    def row(self) -> str:
        """What is looked up: a name, or a module as cases call it, without a path that tells whose it is."""
        text = self.name or self.module or self.model or ""
        where, mark, attribute = text.rpartition(":")
        return f"{Path(where).name}{mark}{attribute}" if where.startswith(("/", "~", "..")) else text


class UserModule(_Model):
    """A module of the user's, as a row of a suite names it.

    Attributes:
        operator: its name in cases; ``source`` may have a path before it.
        source: ``my_ops.py:MyConv``, or ``my_ops:MyConv`` of what can be imported.
        folders: where it is looked for before installed packages.
        arguments: by name, sorted; strings of :data:`WORDS` stand for the case's, one that begins with a bracket
            for a tuple.
        kernel: whether its cases have a kernel size.
        network: whether it is a whole network; ``arguments`` then say what becomes of its layers.
        like, reference, label: as :class:`OperatorEntry`.
    """

    operator: str
    source: str
    folders: tuple[str, ...]
    arguments: tuple[tuple[str, OptionValue], ...] = ()
    kernel: bool = False
    network: bool = False
    like: str | None = None
    reference: str | None = None
    label: str | None = None


def entry_of(text: str) -> OperatorEntry:
    """The entry that a text stands for: ``niff-depthwise/rfft mlp=big``, ``my_ops.py:MyConv groups=4 label=mine``.

    Raises:
        UsageError: for a text without a name, or of a file alone, and where what follows the name is no option.
    """
    if not text.split():
        raise UsageError("a row has no name; give one as 'niff-depthwise/rfft mlp=big' or my_ops.py:MyConv")
    name, *pairs = words_of(text)
    if lack := nameless(name):
        raise UsageError(f"'{name}' {lack}")
    settings = dict(setting_of(pair, text, lists=":" in name) for pair in pairs)
    if ":" not in name:
        return OperatorEntry(name=name, options=settings)
    own: dict[str, Any] = {key: settings.pop(key) for key in ("like", "reference", "label") if key in settings}
    layers = {key: str(settings.pop(key)) for key in list(settings) if key.startswith(REPLACE)}
    if layers or name.partition(":")[0] in LIBRARIES:
        replaced = {key.removeprefix(REPLACE): value for key, value in layers.items()}
        own |= {"model": name, "replace": replaced, "options": settings}
    else:
        own |= {"module": name, "arguments": settings}
    try:
        return OperatorEntry.model_validate(own)
    except ValidationError as error:
        raise UsageError(f"{text}: {_explain(error)}") from error


def words_of(row: str) -> list[str]:
    """A row's name and the settings after it; the path of a file may have spaces."""
    path = re.match(r"\s*[^:=]+\.py(:\S*|(?!\S))", row)
    end = path.end() if path else 0
    return [*([row[:end].strip()] if end else []), *row[end:].split()]


def setting_of(text: str, where: str, *, lists: bool = False) -> tuple[str, OptionValue]:
    """An option and its value: ``mlp=big``; a number or a boolean where JSON says so, of ``lists`` their text.

    Raises:
        UsageError: for what has no such form.
    """
    key, mark, written = text.partition("=")
    if not (key and mark):
        raise UsageError(f"{where}: should be NAME=VALUE, as mlp=big")
    try:
        value: object = json.loads(written)
    except (ValueError, RecursionError):
        value = written
    if lists and isinstance(value, list):
        try:
            value = _literal(value)
        except ValueError as error:
            raise UsageError(f"{where}: {key}: each of a list {error}, got {written}") from error
    if not isinstance(value, str | int | float):
        raise UsageError(f"{where}: should be a string, a number or a boolean, got {written}")
    return key, value


class Bound(_Model):
    """A condition on a number: all given comparisons must hold."""

    gt: Kernel | None = None
    ge: Kernel | None = None
    lt: Kernel | None = None
    le: Kernel | None = None

    def given(self) -> dict[str, int | KernelRule]:
        """The comparisons that were set."""
        return {name: limit for name in type(self).model_fields if (limit := getattr(self, name)) is not None}


_Condition = Annotated[
    Annotated[Bound, Tag(_BOUND)] | Annotated[Values[_Value], Tag(_LIST)],
    Discriminator(lambda value: _BOUND if isinstance(value, dict | Bound) else _LIST),
]


class Where(_Model):
    """Which cases are meant: every key given must fit. ``operator`` holds globs of names or row labels."""

    operator: Values[str] | None = None
    batch: _Condition[Positive] | None = None
    channels: _Condition[Positive] | None = None
    channels_out: _Condition[Positive] | None = None
    size: _Condition[Size] | None = None
    kernel: _Condition[Kernel] | None = None
    dtype: Values[DType] | None = None
    tf32: Values[StrictBool] | None = None
    memory_format: Values[MemoryFormat] | None = None
    mode: Values[Mode] | None = None
    execution: Values[Execution] | None = None

    def given(self) -> dict[str, Bound | list[Any]]:
        """The conditions that were set."""
        return {name: value for name in type(self).model_fields if (value := getattr(self, name)) is not None}


class Exclusion(_Model):
    """Cases that are left out, and why; with ``device``, only on that kind of device."""

    where: Where
    reason: Annotated[str, Field(min_length=3)]
    device: DeviceType | None = None


class Measure(_Model):
    """How each case is measured; the command line may override any of it.

    Times in seconds.

    Attributes:
        precision: what is asked of a latency: the relative half-width of its 95 % interval over rounds; a run
            says where it is wider. Rounds differ more than samples of one process suggest (in variance about
            11 times), so time goes into rounds: ``min_time`` and ``max_time`` bound the sampling of one regime
            of one case in one round, which stops between them once its own median is known as well.
        energy: whether the first round also counts the energy of a call, where the device has a counter; it
            takes some 0.6 s a case.
    """

    regimes: Annotated[list[Regime], Field(min_length=1, max_length=5)] = ["first", "cold", "steady", "wall"]
    precision: Annotated[float, Field(gt=0, lt=1)] = 0.02
    min_time: Annotated[float, Field(ge=0, le=MAX_TIME, allow_inf_nan=False)] = 0.05
    max_time: Annotated[float, Field(gt=0, le=MAX_TIME, allow_inf_nan=False)] = 0.2
    min_samples: Annotated[int, Field(ge=1, le=100_000)] = 5
    case_timeout: Annotated[float, Field(gt=0, le=MAX_TIME, allow_inf_nan=False)] = 300.0
    threads: Annotated[int, Field(ge=1, le=4096)] | None = None
    energy: bool = True

    @property
    def windows(self) -> float:
        """How often ``max_time`` fits into the sampling of a case in a round, on a device with all the regimes."""
        shares: dict[Regime, float] = {"first": 0.0, "wall": WALL_SHARE}
        return sum(shares.get(regime, 1.0) for regime in self.regimes)


class Refine(_Model):
    """Crossovers are bracketed by measuring: between the suite's values of ``axis``, once all rounds are made.

    Attributes:
        quantities: in which orders may change.
        confidence: of what is then said of a crossover.
        budget: of wall time, in seconds.
    """

    axis: Axis
    quantities: Annotated[list[Quantity], Field(min_length=1)] = list(get_args(Quantity))
    confidence: Annotated[float, Field(gt=0.5, lt=1)] = 0.95
    budget: Annotated[float, BeforeValidator(_duration), Field(gt=0, le=MAX_TIME, allow_inf_nan=False)] = 300.0


class SuiteFile(_Model):
    """The file as written."""

    description: str
    baseline: Annotated[str, Field(min_length=1, pattern=r"\S")]
    rounds: Annotated[int, Field(ge=1, le=1000, strict=True)] = 3
    axes: Axes = Axes()
    zip: list[Axes] = []
    operators: Annotated[list[OperatorEntry], Field(min_length=1, max_length=1000)]
    exclude: Annotated[list[Exclusion], Field(max_length=1000)] = []
    measure: Measure = Measure()
    refine: Refine | None = None


def parse(text: str, where: str) -> SuiteFile:
    """Parse a suite's text.

    Args:
        where: what messages call it.

    Raises:
        UsageError: for anything but a suite.
    """
    return validate(parse_toml(text, where), where)


def parse_toml(text: str, where: str) -> dict[str, Any]:
    """Parse TOML that may come from anyone.

    Args:
        where: what messages call it.

    Raises:
        UsageError: for anything but TOML.
    """
    for number, line in enumerate(text.split("\n"), start=1):
        if line.count(".") > MOST_DOTS:  # the parser's time is the square of a key's parts
            raise UsageError(
                f"{where}, line {number}: has more than {MOST_DOTS} dots, which no key or value needs"
            )
    try:
        return tomllib.loads(text)
    except (ValueError, RecursionError) as error:  # ValueError: TOMLDecodeError, and integers of too many digits
        raise UsageError(f"{where}: not valid TOML: {str(error).partition(';')[0]}") from error


def validate(document: Mapping[str, Any], where: str, *, is_file: bool = True) -> SuiteFile:
    """Check what a suite's text says, or whoever makes a suite without one.

    Args:
        is_file: whether keys are called as in a file, ``axes.size[0]``, or as arguments, ``size``.

    Raises:
        UsageError: for a key or value that is wrong.
    """
    try:
        file = SuiteFile.model_validate(document)
    except ValidationError as error:
        raise UsageError(f"{where}: {_explain(error, is_file=is_file)}") from error
    for index, entry in enumerate(file.operators):
        check_entry(entry, f"{where}: operators[{index}]")
    if file.measure.min_time > file.measure.max_time:
        raise UsageError(
            f"{where}: key 'measure.min_time': should be at most measure.max_time ({file.measure.max_time:g} s), "
            f"got {file.measure.min_time:g}"
        )
    return file


_OWNERS = {
    "options": ("name", "model"),
    "arguments": ("module",),
    "replace": ("model",),
    "like": ("module",),
    "reference": ("module",),
    "label": ("module", "model"),
}
"""Which keys of a row go with which way of saying whose it is."""


def check_entry(entry: OperatorEntry, where: str) -> None:
    """Raise UsageError for keys that do not go together."""
    given = [key for key in ("name", "module", "model") if getattr(entry, key) is not None]
    if len(given) != 1:
        raise UsageError(
            f"{where}: needs one of name, of the catalogue; module, as 'my_ops.py:MyConv'; or model, as "
            "'torchvision:efficientnet_b0'"
        )
    for key, owners in _OWNERS.items():
        if getattr(entry, key) and given[0] not in owners:
            raise UsageError(f"{where}.{key}: goes with {' or '.join(owners)}, not with {given[0]}")
    if entry.like is not None and entry.reference is not None:
        raise UsageError(f"{where}: give like or reference, not both: each says what it is held to")


def _explain(error: ValidationError, *, is_file: bool = True) -> str:
    """One fault of a validation, an unknown key first, as key, what is wrong and what would be right."""
    fault = max(error.errors(include_url=False), key=lambda e: e["type"] == "extra_forbidden")
    loc = fault["loc"]
    named = [part for part in loc if part not in _TAGS]
    if not is_file and named[0] in ("axes", "measure"):
        named = [part for part in named[1:] if part != 0]  # a single value is checked as a list of one
    key = "".join(f"[{part}]" if isinstance(part, int) else f".{_key(part)}" for part in named).lstrip(".")
    key = key or "the file"
    if fault["type"] == "extra_forbidden":
        return f"unknown key '{key}'{did_you_mean(str(loc[-1]), _fields_at(loc[:-1]))}"
    if fault["type"] == "missing":
        return f"key '{key}' is missing"
    if fault["type"] in ("too_long", "too_short") and loc[-1] == _PAIR:
        return f"key '{key}': should be one side, or [height, width], got {_shorten(fault['input'])}"
    rule = fault["msg"].removeprefix("Value error, ").replace("Input should", "should")
    if fault["type"] == "int_type" and isinstance(fault["input"], str) and fault["input"].isdecimal():
        rule += " without quotation marks"
    return f"key '{key}': {rule}, got {_shorten(fault['input'])}"


def _key(name: str) -> str:
    """A key as it may be shown: a strange one quoted, a long one cut."""
    return name if name.isprintable() and 0 < len(name) <= 40 else _shorten(name)


def _shorten(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "…"


_MODELS: dict[str | int, type[BaseModel]] = {
    "axes": Axes,
    "zip": Axes,
    "operators": OperatorEntry,
    "exclude": Exclusion,
    "where": Where,
    "measure": Measure,
    "refine": Refine,
    _BOUND: Bound,
}


def _fields_at(loc: Sequence[str | int]) -> list[str]:
    """The keys that are known at a location of the file."""
    model: type[BaseModel] = SuiteFile
    for part in loc:
        model = _MODELS.get(part, model)
    return list(model.model_fields)
