"""From a suite's file to its cases."""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from math import prod
from pathlib import Path
from typing import Any, Protocol

from niffbench.case import Case, OptionValue, Problem
from niffbench.errors import UsageError, did_you_mean
from niffbench.suite.locate import find, read
from niffbench.suite.pairs import Axis, pairs, position, side_of
from niffbench.suite.schema import (
    AXES,
    DeviceType,
    Exclusion,
    Measure,
    OperatorEntry,
    Refine,
    SuiteFile,
    UserModule,
    check_entry,
    entry_of,
    nameless,
    parse,
    validate,
    words_in,
    words_of,
)
from niffbench.suite.select import Selection, Shard, matches, side

MAX_CASES = 100_000
MAX_COMPARISONS = 20_000_000
"""Of a case with a condition of an exclusion: some seconds. The suites of this package need a few thousand."""

_DEFAULTS: dict[str, Any] = {
    "batch": 1,
    "channels_out": None,
    "kernel": None,
    "dtype": "float32",
    "tf32": False,
    "memory_format": "contiguous",
    "mode": "inference",
    "execution": "eager",
}


class OperatorInfo(Protocol):
    """What a suite must know of an operator; :class:`niffbench.operators.base.Operator` satisfies it."""

    @property
    def family(self) -> str: ...
    @property
    def role(self) -> str: ...
    @property
    def takes_kernel(self) -> bool: ...
    @property
    def dtypes(self) -> frozenset[str]: ...
    @property
    def options(self) -> Mapping[str, Any]: ...
    def refusal(self, case: Case) -> str | None: ...
    def label(self, case: Case) -> str: ...


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
    baseline: str  # the row label of the baseline operator
    rounds: int
    measure: Measure
    cases: tuple[Case, ...]
    labels: Mapping[str, str]  # case id → row label
    excluded: tuple[Excluded, ...]
    source_hash: str  # SHA-256 of the file's text: an edited suite is another suite
    only: tuple[str, ...] = ()  # the filters that narrowed it
    shard: Shard | None = None  # the part of what is left that this is
    positions: tuple[int, ...] = ()  # of a shard's cases among those of all shards
    refine: Refine | None = None
    rules: tuple[Exclusion, ...] = ()  # by which it leaves cases out on this kind of device
    added: tuple[str, ...] = ()  # rows that were added to the file's
    modules: tuple[UserModule, ...] = ()  # of the user's, which are rows of it
    file: Path | None = None
    text: str = ""  # of that file

    def refusal(self, case: Case, operator: OperatorInfo) -> str | None:
        """Why a case cannot be of the suite, or None: its exclusions, or the operator's own word."""
        return _exclusion(self.rules, case, operator.label(case)) or _refusal(case, operator)


Declare = Callable[[Sequence[UserModule]], Mapping[str, OperatorInfo]]
"""Makes operators of modules of the user's, by name."""


def load(
    name_or_path: str,
    catalogue: Mapping[str, OperatorInfo],
    *,
    only: Sequence[str] = (),
    shard: Shard | None = None,
    device: DeviceType | None = None,
    devices: Collection[DeviceType] | None = None,
    added: Sequence[str] = (),
    declare: Declare | None = None,
) -> Suite:
    """Read, check and expand a suite.

    Args:
        catalogue: operators by name.
        only: filters as of ``--only``.
        shard: the part of what these leave.
        device: the kind of device it will run on; with None no exclusion that names a device applies.
        devices: all kinds there are; None: any may be named.
        added: more rows, as of ``--operator``.
        declare: of modules of the user's; None where there may be none.

    Raises:
        UsageError: naming the file, the key and what would be right.
    """
    path = find(name_or_path)
    text = read(path)
    file = parse(text, str(path))
    _check_devices(file, str(path), devices)
    folders = (str(path.parent.resolve()), str(Path.cwd()))
    suite = expand(
        file,
        path.stem,
        str(path),
        text,
        catalogue,
        only=only,
        shard=shard,
        device=device,
        added=added,
        declare=declare,
        folders=folders,
    )
    return replace(suite, file=path)


def cases_of(
    rows: Sequence[OperatorEntry | Mapping[str, Any]],
    axes: Mapping[str, Any],
    where: str,
    catalogue: Mapping[str, OperatorInfo],
    declare: Declare | None = None,
    *,
    folders: Sequence[str] = (),
    keys: Mapping[str, Any] | None = None,
) -> Suite:
    """A suite of single rows on the problems of ``axes``, the first its baseline unless ``keys`` say otherwise.

    Args:
        folders: where modules are looked for before the current one.
        keys: more of a suite's file.

    Raises:
        UsageError: for anything no operator can make sense of.
    """
    written = [row.model_dump(exclude_unset=True) if isinstance(row, OperatorEntry) else row for row in rows]
    document = {"description": where, "baseline": where, "axes": axes, "operators": written, **(keys or {})}
    text = json.dumps(document, sort_keys=True)
    file = validate(document, where, is_file=False)
    if not (keys and "baseline" in keys):
        file = file.model_copy(update={"baseline": ""})
    return expand(file, where, where, text, catalogue, declare=declare, folders=(*folders, str(Path.cwd())))


def expand(
    file: SuiteFile,
    name: str,
    where: str,
    text: str,
    catalogue: Mapping[str, OperatorInfo],
    *,
    only: Sequence[str] = (),
    shard: Shard | None = None,
    device: DeviceType | None = None,
    added: Sequence[str] = (),
    declare: Declare | None = None,
    folders: tuple[str, ...] = (),
) -> Suite:
    """Turn a parsed file into cases; arguments as of :func:`load`, ``folders`` are where modules are looked for.

    Raises:
        UsageError: for anything no operator can make sense of.
    """
    file = _with_added(file, added, where)
    modules = user_modules(file.operators, folders)
    if modules and declare is not None:
        catalogue = {**catalogue, **declare(modules)}
    _check_exclusions(file, where, _check_axes(file, where))
    baseline = _baseline(file, where, catalogue) if file.baseline else None
    rules = [rule for rule in file.exclude if rule.device in (None, device)]
    chosen = Selection(only)
    rows: dict[str, None] = {}
    names: set[str] = set()
    cases: dict[str, Case] = {}
    every: list[Case] = []  # what --only leaves out too
    labels: dict[str, str] = {}
    excluded: dict[str, Excluded] = {}
    of_file = len(file.operators) - len(added)
    for index, entry in enumerate(file.operators):
        key = "name" if entry.name else "module" if entry.module else "model"
        at = f"{where}: operators[{index}]" if index < of_file else f"--operator {added[index - of_file]}"
        operator, kernel = operator_of(entry.row, catalogue, f"{at}.{key}" if index < of_file else at)
        info = catalogue[operator]
        for case in _cases_of(file, entry, operator, kernel, info, at):
            label = info.label(case)
            rows[label] = None
            names |= {label, operator}
            every.append(case)
            if not chosen.takes(case, label):
                continue
            if (reason := _exclusion(rules, case, label)) is not None:
                excluded.setdefault(case.id, Excluded(case, label, reason))
            elif refusal := _refusal(case, info):
                raise UsageError(f"{at} '{label}' at {case.problem.label}: {refusal}")
            else:
                cases[case.id], labels[case.id] = case, label
    _check_patterns(file.exclude, names, where)
    if file.refine is not None:
        _check_refine(file.refine.axis, every, catalogue, where)
    if baseline is None:
        baseline = next(iter(rows))
    if baseline not in rows:
        near = did_you_mean(baseline, rows)
        raise UsageError(f"{where}: baseline '{file.baseline}' is not one of its rows{near}")
    if not cases:
        what = f"--only {' '.join(only)}" if only else where
        if excluded:
            reason = next(iter(excluded.values())).reason
            raise UsageError(f"{what}: every case it selects is excluded by the suite ({reason})")
        shown = ", ".join(sorted(rows)[:40])
        near = next((did_you_mean(word, names) for word in only if "=" not in word), "")
        hint = near if "did you mean" in near else f"; its rows are {shown}, its axes {', '.join(AXES)}"
        raise UsageError(f"{what}: matches no case of {name}{hint}")
    whole = tuple(cases.values())
    positions = shard.positions(whole) if shard else ()
    if shard and not positions:
        raise UsageError(f"--shard {shard}: {name} has fewer problems than that, so nothing is left for this part")
    return Suite(
        name=name,
        description=file.description,
        baseline=baseline,
        rounds=file.rounds,
        measure=file.measure,
        cases=tuple(whole[position] for position in positions) if shard else whole,
        labels=labels,
        excluded=tuple(excluded.values()),
        source_hash=hashlib.sha256("\n".join([text, *added]).encode()).hexdigest(),
        only=tuple(only),
        shard=shard,
        positions=positions,
        refine=file.refine,
        rules=tuple(rules),
        added=tuple(added),
        modules=modules,
        text=text,
    )


def _with_added(file: SuiteFile, added: Sequence[str], where: str) -> SuiteFile:
    """The file with the rows of ``--operator`` beside its own."""
    if not added:
        return file
    for text in added:
        check_entry(entry_of(text), f"--operator {text}")
    return file.model_copy(update={"operators": [*file.operators, *map(entry_of, added)]})


def user_modules(entries: Sequence[OperatorEntry], folders: tuple[str, ...]) -> tuple[UserModule, ...]:
    """The modules of the user's among a suite's rows."""
    modules = []
    for entry in entries:
        if entry.name is not None:
            continue
        source, kernel = split_kernel(entry.module or entry.model or "")
        modules.append(
            UserModule(
                operator=split_kernel(entry.row)[0],
                source=source,
                folders=folders,
                arguments=_arguments(entry),
                kernel=_takes_kernel(entry, kernel),
                network=entry.model is not None,
                like=entry.like,
                reference=entry.reference,
                label=entry.label,
            )
        )
    return tuple(modules)


def _arguments(entry: OperatorEntry) -> tuple[tuple[str, OptionValue], ...]:
    """What tells rows of one module or network apart, in a fixed order."""
    return tuple(sorted((entry.arguments | entry.replace | entry.options).items()))


def _takes_kernel(entry: OperatorEntry, kernel: int | None) -> bool:
    """Whether a module's cases have a kernel size: in its name, of its own, or asked for by an argument."""
    return kernel is not None or entry.kernel is not None or "kernel" in words_in(entry.arguments)


def split_kernel(text: str) -> tuple[str, int | None]:
    """``depthwise-k31`` as its name and kernel size; None where it ends in none."""
    stem, mark, tail = text.rpartition("-k")
    numbered = bool(mark) and tail.isascii() and tail.isdecimal() and len(tail) < 10
    return (stem, int(tail)) if numbered else (text, None)


def operator_of(text: str, catalogue: Mapping[str, OperatorInfo], where: str) -> tuple[str, int | None]:
    """Split ``depthwise-k31`` into its catalogue name and kernel size; a plain name has None.

    Raises:
        UsageError: for a name that is not in the catalogue.
    """
    if text in catalogue:
        return text, None
    stem, kernel = split_kernel(text)
    if stem in catalogue:
        return stem, kernel
    if lack := nameless(text):
        raise UsageError(f"{where}: '{text}' {lack}")
    raise UsageError(f"{where}: no operator named '{text}'{did_you_mean(stem, catalogue)}")


def _baseline(file: SuiteFile, where: str, catalogue: Mapping[str, OperatorInfo]) -> str:
    """The baseline's row label, spelt as labels are."""
    if any(entry.label and file.baseline.startswith(entry.label) for entry in file.operators):
        return file.baseline
    name, *options = words_of(file.baseline)
    operator, kernel = operator_of(name, catalogue, f"{where}: baseline")
    if catalogue[operator].takes_kernel:
        if kernel is None:
            raise UsageError(f"{where}: baseline '{file.baseline}' needs its kernel size, as in '{operator}-k7'")
        name = f"{operator}-k{kernel}"
    return " ".join([name, *options])


def _check_axes(file: SuiteFile, where: str) -> int:
    """How many cases the axes multiply to, with those that are left out or the same."""
    seen: dict[str, str] = dict.fromkeys(file.axes.given(), "axes")
    for i, group in enumerate(file.zip):
        given = group.given()
        if not given:
            raise UsageError(f"{where}: zip[{i}] names no axis; an axis is one of {', '.join(AXES)}")
        lengths = {axis: len(values) for axis, values in given.items()}
        if len(set(lengths.values())) > 1:
            counts = ", ".join(f"{axis} has {n}" for axis, n in lengths.items())
            raise UsageError(f"{where}: zip[{i}]: axes that walk together need equally many values: {counts}")
        for axis in given:
            if axis in seen:
                raise UsageError(f"{where}: axis '{axis}' is given in {seen[axis]} and again in zip[{i}]")
            seen[axis] = f"zip[{i}]"
    total = 0
    for i, entry in enumerate(file.operators):
        for axis in ("channels", "size"):
            if axis not in seen and axis not in entry.given():
                raise UsageError(f"{where}: axis '{axis}' has no values (axes.{axis}, or operators[{i}].{axis})")
        total += prod(len(group) for group in _groups(file, entry))
        if total > MAX_CASES:  # at once: a file may name a thousand operators
            raise UsageError(
                f"{where}: its axes multiply to {total:,} cases, more than {MAX_CASES:,}; narrow an axis"
            )
    return total


def _check_exclusions(file: SuiteFile, where: str, cases: int) -> None:
    conditions = 0
    for i, rule in enumerate(file.exclude):
        given = rule.where.given()
        if not given:
            raise UsageError(f"{where}: exclude[{i}].where is empty and would exclude everything")
        conditions += sum(len(wanted) if isinstance(wanted, list) else 1 for wanted in given.values())
    if cases * conditions > MAX_COMPARISONS:
        raise UsageError(
            f"{where}: {conditions:,} conditions of exclusions are too many for {cases:,} cases; narrow an axis"
        )


def _check_devices(file: SuiteFile, where: str, devices: Collection[DeviceType] | None) -> None:
    """An exclusion on a kind of device that there is not is a misspelling."""
    for i, rule in enumerate(file.exclude):
        if devices is not None and rule.device is not None and rule.device not in devices:
            hint = did_you_mean(rule.device, devices)
            raise UsageError(f"{where}: exclude[{i}].device: there is no device '{rule.device}'{hint}")


def _check_refine(axis: Axis, cases: Sequence[Case], catalogue: Mapping[str, OperatorInfo], where: str) -> None:
    """A crossover needs a form of NIFF and a rival, and two values of the axis to look between."""
    sides = {case: side_of(catalogue[case.operator]) for case in cases}
    for which, what in (("form", "form of NIFF"), ("rival", "spatial convolution to compare it with")):
        if which not in sides.values():
            raise UsageError(f"{where}: key 'refine': the suite has no {what}, so no crossover to look for")
    if not pairs(cases, axis, sides.__getitem__):
        rivals = [case for case in cases if sides[case] == "rival"]
        without = next((case.operator for case in rivals if position(case, axis) is None), None)
        why = f"'{without}' has none" if without else "the suite has but one value of it for each form and rival"
        raise UsageError(
            f"{where}: key 'refine.axis': crossovers along {axis} need two values of it to look between; {why}"
        )


def _check_patterns(rules: Sequence[Exclusion], names: set[str], where: str) -> None:
    """An exclusion that names an operator the suite does not have is a misspelling."""
    for i, rule in enumerate(rules):
        for glob in rule.where.operator or ():
            if not any(fnmatchcase(name, glob) for name in names):
                at = f"{where}: exclude[{i}].where.operator"
                raise UsageError(f"{at}: no row of the suite is called '{glob}'{did_you_mean(glob, names)}")


def _groups(file: SuiteFile, entry: OperatorEntry) -> list[list[dict[str, Any]]]:
    """The independent parts of one operator's grid, each a list of partial points.

    Its own axes replace the suite's; one that overrides an axis of a zipped group keeps the others of that group.
    """
    own = entry.given()
    groups: list[list[dict[str, Any]]] = []
    for zipped in file.zip:
        given = {axis: values for axis, values in zipped.given().items() if axis not in own}
        if given:
            groups.append([dict(zip(given, row, strict=True)) for row in zip(*given.values(), strict=True)])
    product = {axis: values for axis, values in file.axes.given().items() if axis not in own} | own
    return groups + [[{axis: value} for value in values] for axis, values in product.items()]


def _cases_of(
    file: SuiteFile, entry: OperatorEntry, operator: str, kernel: int | None, info: OperatorInfo, where: str
) -> Iterator[Case]:
    """Every case of one entry, each once, valid or not."""
    if entry.name is not None:
        options, takes_kernel = _options(entry, info, where), info.takes_kernel
    else:
        options, takes_kernel = _arguments(entry), _takes_kernel(entry, kernel)
    if kernel is not None and entry.kernel is not None:
        raise UsageError(f"{where}: '{entry.row}' fixes the kernel size, and kernel = … gives it again")
    if not takes_kernel and (kernel is not None or entry.kernel is not None):
        raise UsageError(f"{where}: operator '{operator}' has no kernel size; leave it out")
    seen: set[Case] = set()
    for parts in itertools.product(*_groups(file, entry)):
        point = dict(_DEFAULTS)
        for part in parts:
            point |= part
        height, width = (point["size"], point["size"]) if isinstance(point["size"], int) else point["size"]
        rule = kernel if kernel is not None else point["kernel"]
        if takes_kernel and rule is None:
            raise UsageError(
                f"{where}: '{operator}' needs a kernel size: axes.kernel, or a name like '{operator}-k7'"
            )
        case = Case(
            operator=operator,
            problem=Problem(
                batch=point["batch"],
                channels=point["channels"],
                channels_out=point["channels_out"] or point["channels"],
                height=height,
                width=width,
                dtype=point["dtype"],
                tf32=point["tf32"] and point["dtype"] == "float32",  # which other dtypes never are
                memory_format=point["memory_format"],
                mode=point["mode"],
            ),
            kernel=side(rule, height, width) if takes_kernel else None,
            options=options,
            execution=point["execution"],
        )
        if case not in seen:
            seen.add(case)
            yield case


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


def _exclusion(rules: Sequence[Exclusion], case: Case, label: str) -> str | None:
    return next((rule.reason for rule in rules if matches(rule.where, case, label)), None)


def _refusal(case: Case, info: OperatorInfo) -> str | None:
    """Why a case cannot be: its dtype, its kernel (odd, at most 2·min(H, W) − 1), or the operator's own word."""
    problem, kernel = case.problem, case.kernel
    if problem.dtype not in info.dtypes:
        return f"'{case.operator}' has no {problem.dtype}; it takes {', '.join(sorted(info.dtypes))}"
    if kernel is not None and kernel % 2 == 0:
        return f"kernel size {kernel} is even; kernels are odd, so that they have a centre"
    if kernel is not None and kernel > (largest := side("2H-1", problem.height, problem.width)):
        return (
            f"kernel size {kernel} is larger than 2H−1 = {largest} at {problem.height}×{problem.width}; "
            'lower it, or exclude it with where = {kernel = {gt = "2H-1"}}'
        )
    return info.refusal(case)
