"""A suite: a TOML file of axes, operators, exclusions and a baseline, expanded into cases. No code in it."""

from __future__ import annotations

import hashlib
import itertools
import tomllib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Annotated, Any, Literal, Protocol, cast

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from niffbench.case import Case, DType, Execution, MemoryFormat, Mode, OptionValue, Problem
from niffbench.errors import UsageError, did_you_mean

MAX_SUITE_BYTES = 1_000_000
MAX_CASES = 100_000
MAX_AXIS = 2**24

Regime = Literal["first", "cold", "steady", "graph"]
KernelRule = Literal["H", "2H-1"]


class OperatorInfo(Protocol):
    """What a suite must know of an operator; :class:`niffbench.operators.base.Operator` satisfies it."""

    @property
    def takes_kernel(self) -> bool: ...
    @property
    def dtypes(self) -> frozenset[str]: ...
    @property
    def options(self) -> Mapping[str, Any]: ...
    def refusal(self, case: Case) -> str | None: ...
    def label(self, case: Case) -> str: ...


def _listed(value: object) -> object:
    """A single value stands for a list of one."""
    return value if isinstance(value, list) else [value]


Positive = Annotated[int, Field(ge=1, le=MAX_AXIS, strict=True)]
Size = Positive | Annotated[list[Positive], Field(min_length=2, max_length=2)]
Kernel = Positive | KernelRule


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


def _axis(kind: Any) -> Any:
    return Annotated[list[kind] | None, BeforeValidator(_listed), Field(min_length=1)]


class Axes(_Model):
    """Values of each axis; None means the axis keeps its default."""

    batch: _axis(Positive) = None  # type: ignore[valid-type]
    channels: _axis(Positive) = None  # type: ignore[valid-type]
    channels_out: _axis(Positive) = None  # type: ignore[valid-type]
    size: _axis(Size) = None  # type: ignore[valid-type]
    kernel: _axis(Kernel) = None  # type: ignore[valid-type]
    dtype: _axis(DType) = None  # type: ignore[valid-type]
    memory_format: _axis(MemoryFormat) = None  # type: ignore[valid-type]
    mode: _axis(Mode) = None  # type: ignore[valid-type]
    execution: _axis(Execution) = None  # type: ignore[valid-type]

    def given(self) -> dict[str, list[Any]]:
        """The axes that were set, in the order of their declaration."""
        return {name: value for name in type(self).model_fields if (value := getattr(self, name)) is not None}


AXES = tuple(Axes.model_fields)
_DEFAULTS: dict[str, Any] = {
    "batch": 1,
    "channels_out": None,
    "kernel": None,
    "dtype": "float32",
    "memory_format": "contiguous",
    "mode": "inference",
    "execution": "eager",
}


class OperatorEntry(Axes):
    """One operator of a suite: its name, its options, and axes that override the suite's for it alone."""

    name: str
    options: dict[str, str | bool | int | float] = {}


class Bound(_Model):
    """A condition on a number: all given comparisons must hold."""

    gt: Kernel | None = None
    ge: Kernel | None = None
    lt: Kernel | None = None
    le: Kernel | None = None


class Exclusion(_Model):
    """Cases that are left out, and why. ``where`` maps ``operator`` (a glob) or an axis to what it must be."""

    where: dict[str, Any]
    reason: Annotated[str, Field(min_length=3)]


class Measure(_Model):
    """How each case is measured; the command line may override any of it.

    Times in seconds. ``min_time`` and ``max_time`` bound the sampling of one regime of one case in one
    round; sampling stops between them once the median is known to ``precision`` (relative half-width of
    its 95 % interval).
    """

    regimes: Annotated[list[Regime], Field(min_length=1)] = ["first", "cold", "steady"]
    precision: Annotated[float, Field(gt=0, lt=1)] = 0.02
    min_time: Annotated[float, Field(ge=0)] = 0.1
    max_time: Annotated[float, Field(gt=0)] = 2.0
    min_samples: Annotated[int, Field(ge=1, le=100_000)] = 10
    case_timeout: Annotated[float, Field(gt=0)] = 300.0
    threads: Annotated[int, Field(ge=1, le=4096)] | None = None


class SuiteFile(_Model):
    """The file as written."""

    description: str
    baseline: str
    rounds: Annotated[int, Field(ge=1, le=1000)] = 3
    axes: Axes = Axes()
    zip: list[Axes] = []
    operators: Annotated[list[OperatorEntry], Field(min_length=1)]
    exclude: list[Exclusion] = []
    measure: Measure = Measure()


@dataclass(frozen=True)
class Excluded:
    """A case that the suite itself leaves out."""

    case: Case
    label: str
    reason: str


@dataclass(frozen=True)
class Suite:
    """A suite as resolved: its file's settings and the cases they stand for, in the file's order."""

    name: str
    description: str
    baseline: str
    rounds: int
    measure: Measure
    cases: tuple[Case, ...]
    labels: Mapping[str, str]  # case id → row label
    excluded: tuple[Excluded, ...]
    source_hash: str  # SHA-256 of the file's text: an edited suite is another suite


def folders() -> list[Path]:
    """Where suites are looked for by name: inside an installed package, else beside it in a checkout."""
    package = Path(__file__).parent
    return [folder for folder in (package / "suites", package.parent / "suites") if folder.is_dir()]


def available() -> dict[str, Path]:
    """The named suites and their files, sorted by name."""
    found: dict[str, Path] = {}
    for folder in folders():
        for path in sorted(folder.glob("*.toml")):
            found.setdefault(path.stem, path)
    return dict(sorted(found.items()))


def find(name_or_path: str) -> Path:
    """The file of a suite given by name or by path.

    Raises UsageError when there is none, naming the suites there are.
    """
    known = available()
    if name_or_path in known:
        return known[name_or_path]
    path = Path(name_or_path)
    if path.suffix == ".toml" or "/" in name_or_path:
        if path.is_file():
            return path
        raise UsageError(f"suite file {name_or_path}: there is no such file")
    raise UsageError(f"no suite named '{name_or_path}'{did_you_mean(name_or_path, known)}")


def load(name_or_path: str, catalogue: Mapping[str, OperatorInfo], *, only: Sequence[str] = ()) -> Suite:
    """Read, check and expand a suite.

    ``catalogue`` maps operator names to operators; ``only`` are filters as of ``--only``. Raises UsageError
    naming the file, the key and what would be right.
    """
    path = find(name_or_path)
    text = _read(path)
    entry = parse(text, str(path))
    return expand(entry, path.stem, str(path), text, catalogue, only=only)


def _read(path: Path) -> str:
    try:
        if path.stat().st_size > MAX_SUITE_BYTES:
            raise UsageError(f"{path}: larger than {MAX_SUITE_BYTES:,} bytes, so not a suite")
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise UsageError(f"{path}: cannot be read ({error.strerror})") from error
    except UnicodeDecodeError as error:
        raise UsageError(f"{path}: is not UTF-8 text (byte {error.start})") from error


def parse(text: str, where: str) -> SuiteFile:
    """Parse a suite's text; ``where`` names it in messages. Raises UsageError."""
    try:
        document = tomllib.loads(text)
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise UsageError(f"{where}: not valid TOML: {error}") from error
    try:
        return SuiteFile.model_validate(document)
    except ValidationError as error:
        raise UsageError(f"{where}: {_explain(error)}") from error


def _explain(error: ValidationError) -> str:
    """The first fault of a validation, as key, what is wrong and what would be right."""
    # A union reports one fault per member; the deepest location is the member that fitted best.
    fault = max(error.errors(), key=lambda e: (e["type"] == "extra_forbidden", len(e["loc"])))
    loc = [part for part in fault["loc"] if not (isinstance(part, str) and ("[" in part or part in _UNION_TAGS))]
    key = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in loc).lstrip(".") or "the file"
    if fault["type"] == "extra_forbidden":
        return f"unknown key '{key}'{did_you_mean(str(loc[-1]), _fields_at(loc[:-1]))}"
    if fault["type"] == "missing":
        return f"key '{key}' is missing"
    choices = [
        e["ctx"]["expected"]
        for e in error.errors()
        if e["type"] == "literal_error" and e["loc"][:-1] == fault["loc"][:-1]
    ]
    rule = f"Input should be {choices[0]}" if fault["type"] == "literal_error" and choices else fault["msg"]
    return f"key '{key}': {rule.replace('Input should', 'should')}, got {_shorten(fault['input'])}"


_UNION_TAGS = {"int", "float", "str", "bool", "constrained-int", "list", "function-before"}


def _shorten(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "…"


def _fields_at(loc: Sequence[object]) -> list[str]:
    heads: dict[object, type[BaseModel]] = {
        "axes": Axes, "zip": Axes, "operators": OperatorEntry, "exclude": Exclusion, "measure": Measure,
    }  # fmt: skip
    return list((heads[loc[0]] if loc and loc[0] in heads else SuiteFile).model_fields)


def expand(
    file: SuiteFile,
    name: str,
    where: str,
    text: str,
    catalogue: Mapping[str, OperatorInfo],
    *,
    only: Sequence[str] = (),
) -> Suite:
    """Turn a parsed file into cases. Raises UsageError for anything no operator can make sense of."""
    _check_axes(file, where)
    rules = [(_conditions(rule, where, i), rule.reason) for i, rule in enumerate(file.exclude)]
    chosen = Selection(only)
    cases: dict[str, Case] = {}
    labels: dict[str, str] = {}
    excluded: list[Excluded] = []
    for index, entry in enumerate(file.operators):
        operator, kernel = operator_of(entry.name, catalogue, f"{where}: operators[{index}].name")
        for case in _cases_of(file, entry, operator, kernel, catalogue[operator], f"{where}: operators[{index}]"):
            label = catalogue[operator].label(case)
            if case.id in cases or not chosen.takes(case, label):
                continue
            reason = next((r for conditions, r in rules if _matches(conditions, case, label)), None)
            if reason is not None:
                excluded.append(Excluded(case, label, reason))
                continue
            if refusal := _kernel_fault(case) or catalogue[operator].refusal(case):
                raise UsageError(f"{where}: operators[{index}] '{label}' at {case.problem.label}: {refusal}")
            cases[case.id], labels[case.id] = case, label
            if len(cases) > MAX_CASES:
                raise UsageError(f"{where}: more than {MAX_CASES:,} cases; narrow an axis")
    if not cases:
        what = f"--only {' '.join(only)} matches no case of {name}" if only else f"{where}: every case is excluded"
        known = sorted({e.name for e in file.operators})
        raise UsageError(f"{what}; its operators are {', '.join(known)}")
    base, base_kernel = operator_of(file.baseline, catalogue, f"{where}: baseline")
    if not any(e_name == base for e_name, _ in (operator_of(e.name, catalogue, where) for e in file.operators)):
        raise UsageError(f"{where}: baseline '{file.baseline}' is not one of its operators")
    if catalogue[base].takes_kernel and base_kernel is None:
        raise UsageError(f"{where}: baseline '{file.baseline}' needs its kernel size, as in '{base}-k7'")
    return Suite(
        name=name,
        description=file.description,
        baseline=file.baseline,
        rounds=file.rounds,
        measure=file.measure,
        cases=tuple(cases.values()),
        labels=labels,
        excluded=tuple(excluded),
        source_hash=hashlib.sha256(text.encode()).hexdigest(),
    )


def operator_of(text: str, catalogue: Mapping[str, OperatorInfo], where: str) -> tuple[str, int | None]:
    """Split ``depthwise-k31`` into its catalogue name and kernel size; a plain name has None.

    Raises UsageError for a name that is not in the catalogue.
    """
    if text in catalogue:
        return text, None
    stem, mark, tail = text.rpartition("-k")
    if mark and tail.isdecimal() and stem in catalogue:
        return stem, int(tail)
    raise UsageError(f"{where}: no operator named '{text}'{did_you_mean(stem if mark else text, catalogue)}")


def _check_axes(file: SuiteFile, where: str) -> None:
    seen: dict[str, str] = dict.fromkeys(file.axes.given(), "axes")
    for i, group in enumerate(file.zip):
        given = group.given()
        lengths = {axis: len(values) for axis, values in given.items()}
        if len(set(lengths.values())) > 1:
            told = ", ".join(f"{axis} has {n}" for axis, n in lengths.items())
            raise UsageError(f"{where}: zip[{i}]: axes that walk together need equally many values: {told}")
        if not given:
            raise UsageError(f"{where}: zip[{i}] names no axis{did_you_mean('', AXES)}")
        for axis in given:
            if axis in seen:
                raise UsageError(f"{where}: axis '{axis}' is given in {seen[axis]} and again in zip[{i}]")
            seen[axis] = f"zip[{i}]"
    for axis in ("channels", "size"):
        for i, entry in enumerate(file.operators):
            if axis not in seen and axis not in entry.given():
                raise UsageError(f"{where}: axis '{axis}' has no values (axes.{axis}, or operators[{i}].{axis})")


def _points(file: SuiteFile, entry: OperatorEntry) -> Iterator[dict[str, Any]]:
    """Every combination of axis values for one operator; its own axes replace the suite's."""
    own = {axis: values for axis, values in entry.given().items() if axis in AXES}
    groups: list[list[dict[str, Any]]] = []
    for group in file.zip:
        given = {axis: values for axis, values in group.given().items() if axis not in own}
        if given:
            columns = zip(*given.values(), strict=True)
            groups.append([dict(zip(given, row, strict=True)) for row in dict.fromkeys(map(_hashable, columns))])
    product = {axis: values for axis, values in file.axes.given().items() if axis not in own} | own
    groups += [[{axis: value} for value in values] for axis, values in product.items()]
    for combination in itertools.product(*groups):
        point = dict(_DEFAULTS)
        for part in combination:
            point |= part
        yield point


def _hashable(row: Iterable[Any]) -> tuple[Any, ...]:
    return tuple(tuple(v) if isinstance(v, list) else v for v in row)


def _cases_of(
    file: SuiteFile, entry: OperatorEntry, operator: str, kernel: int | None, info: OperatorInfo, where: str
) -> Iterator[Case]:
    options = _options(entry, info, where)
    if kernel is not None and entry.kernel is not None:
        raise UsageError(f"{where}: '{entry.name}' fixes the kernel size, and .kernel gives it again")
    for key in ("kernel",) if not info.takes_kernel else ():
        if kernel is not None or key in entry.given():
            raise UsageError(f"{where}: operator '{operator}' has no kernel size; leave '{key}' out")
    for point in _points(file, entry):
        height, width = (point["size"], point["size"]) if isinstance(point["size"], int) else point["size"]
        if point["dtype"] not in info.dtypes:
            raise UsageError(
                f"{where}: '{operator}' has no {point['dtype']}; it takes {', '.join(sorted(info.dtypes))}"
            )
        yield Case(
            operator=operator,
            problem=Problem(
                batch=point["batch"],
                channels=point["channels"],
                channels_out=point["channels_out"] or point["channels"],
                height=height,
                width=width,
                dtype=cast(DType, point["dtype"]),
                memory_format=cast(MemoryFormat, point["memory_format"]),
                mode=cast(Mode, point["mode"]),
            ),
            kernel=_kernel(kernel or point["kernel"], height, width, where, operator)
            if info.takes_kernel
            else None,
            options=options,
            execution=cast(Execution, point["execution"]),
        )


def _options(entry: OperatorEntry, info: OperatorInfo, where: str) -> tuple[tuple[str, OptionValue], ...]:
    values: dict[str, OptionValue] = {key: option.default for key, option in info.options.items()}
    for key, value in entry.options.items():
        if key not in values:
            tail = did_you_mean(key, values) if values else "; it has none"
            raise UsageError(f"{where}.options: '{entry.name}' has no option '{key}'{tail}")
        choices = info.options[key].choices
        if (choices is not None and value not in choices) or type(value) is not type(values[key]):
            allowed = ", ".join(map(repr, choices)) if choices else f"a {type(values[key]).__name__}"
            raise UsageError(f"{where}.options.{key}: should be {allowed}, got {value!r}")
        values[key] = value
    return tuple(sorted(values.items()))


def _kernel(value: int | str | None, height: int, width: int, where: str, operator: str) -> int:
    if value is None:
        raise UsageError(f"{where}: '{operator}' needs a kernel size: axes.kernel, or a name like '{operator}-k7'")
    return value if isinstance(value, int) else _extent(value, height, width)


def _kernel_fault(case: Case) -> str | None:
    """A kernel side is odd and at most 2·min(H, W) − 1, beyond which every tap lies outside the map."""
    if case.kernel is None:
        return None
    height, width = case.problem.height, case.problem.width
    if case.kernel % 2 == 0:
        return f"kernel size {case.kernel} is even; kernels are odd, so that they have a centre"
    if case.kernel > (largest := _extent("2H-1", height, width)):
        return (
            f"kernel size {case.kernel} is larger than 2H−1 = {largest} at {height}×{width}; "
            'lower it, or exclude it with where = {kernel = {gt = "2H-1"}}'
        )
    return None


def _extent(rule: str, height: int, width: int) -> int:
    """``2H-1``: the largest kernel that still has a tap on the map everywhere; ``H``: the largest odd side ≤ H."""
    short = min(height, width)
    return 2 * short - 1 if rule == "2H-1" else short - (short % 2 == 0) if short > 1 else 1


class Selection:
    """The filters of ``--only``: of one key any may match, of different keys all must.

    ``operator`` patterns stand alone (``niff-*``, ``depthwise-k7``, a case id); others are ``axis=value``
    with axis one of the suite's axes and size as ``56`` or ``56x40``. Raises UsageError for another key.
    """

    def __init__(self, patterns: Sequence[str]) -> None:
        self._wanted: dict[str, list[str]] = {}
        for pattern in patterns:
            key, mark, value = pattern.partition("=")
            if not mark or key not in AXES:
                if mark and " " not in key:
                    raise UsageError(f"--only {pattern}: no axis named '{key}'{did_you_mean(key, AXES)}")
                key, value = "operator", pattern
            self._wanted.setdefault(key, []).append(value)

    def takes(self, case: Case, label: str) -> bool:
        """Whether every key has a pattern that fits."""
        return all(any(self._fits(key, v, case, label) for v in values) for key, values in self._wanted.items())

    @staticmethod
    def _fits(key: str, pattern: str, case: Case, label: str) -> bool:
        if key == "operator":
            return any(fnmatchcase(text, pattern) for text in (label, case.operator, case.id))
        problem = case.problem
        if key == "size":
            shapes = {f"{problem.height}x{problem.width}"} | (
                {str(problem.height)} if problem.height == problem.width else set()
            )
            return pattern in shapes
        return fnmatchcase(str(_field(case, key)), pattern)


def _field(case: Case, axis: str) -> Any:
    return getattr(case, axis) if axis in ("kernel", "execution") else getattr(case.problem, axis)


def _conditions(rule: Exclusion, where: str, index: int) -> dict[str, Any]:
    checked: dict[str, Any] = {}
    for key, wanted in rule.where.items():
        at = f"{where}: exclude[{index}].where"
        if key not in (*AXES, "operator"):
            raise UsageError(f"{at}: no axis named '{key}'{did_you_mean(key, (*AXES, 'operator'))}")
        if isinstance(wanted, dict):
            try:
                checked[key] = Bound.model_validate(wanted)
            except ValidationError as error:
                raise UsageError(f"{at}.{key}: {_explain(error)}; a bound has gt, ge, lt or le") from error
        else:
            checked[key] = wanted if isinstance(wanted, list) else [wanted]
    if not checked:
        raise UsageError(f"{where}: exclude[{index}].where is empty and would exclude everything")
    return checked


def _matches(conditions: Mapping[str, Any], case: Case, label: str) -> bool:
    return all(_meets(key, wanted, case, label) for key, wanted in conditions.items())


def _meets(key: str, wanted: Any, case: Case, label: str) -> bool:
    problem = case.problem
    if key == "operator":
        return any(fnmatchcase(text, str(glob)) for glob in wanted for text in (label, case.operator))
    value = min(problem.height, problem.width) if key == "size" else _field(case, key)
    if isinstance(wanted, Bound):
        if value is None:
            return False
        limits = {
            name: limit if isinstance(limit, int) else _extent(limit, problem.height, problem.width)
            for name in Bound.model_fields
            if (limit := getattr(wanted, name)) is not None
        }
        tests = {"gt": value.__gt__, "ge": value.__ge__, "lt": value.__lt__, "le": value.__le__}
        return all(tests[name](limit) for name, limit in limits.items())
    if key == "size":
        shapes: list[object] = [[problem.height, problem.width]]
        shapes += [problem.height] if problem.height == problem.width else []
        return any(shape in wanted for shape in shapes)
    return value in wanted


__all__ = [
    "AXES",
    "Excluded",
    "Measure",
    "Selection",
    "Suite",
    "SuiteFile",
    "available",
    "expand",
    "find",
    "load",
    "operator_of",
    "parse",
]
