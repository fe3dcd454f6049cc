"""A table for a paper: metrics of a run, its cases spread over rows and columns."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from niffbench.errors import UsageError, did_you_mean
from niffbench.report import text
from niffbench.report.digest import Digest, Group, Row, gather
from niffbench.report.table import SIGNS, UNLIKE, Column, Entry, Table, row_of
from niffbench.report.tables import ratio_entry, value_entry
from niffbench.results import REGISTRY, Metric, Run
from niffbench.results.metrics import SHORT, key_of

_NO_AXES = ("case", "label", "output")
RATIO = "_ratio"
"""The end of a value's name that asks for its ratio to the baseline: ``latency_ratio``."""

Place = tuple[str, ...]
"""The values of the columns that make a row, or a column, of the table."""


def pivot(run: Run, rows: Sequence[str], columns: Sequence[str], values: Sequence[str]) -> Table:
    """Every case of ``run`` in its row and column, with the metrics ``values``.

    ``rows`` and ``columns`` name columns of the frame; ``operator`` is the row's name in other tables, kernel
    included.

    Raises:
        UsageError: for a name that is none, and where several cases would share a cell.
    """
    digest = gather(run)
    if not any(row.ok for row in digest.rows):
        raise UsageError(f"{run.path}: nothing was measured in it")
    _check(digest, rows, columns)
    metrics = [(_metric(name, digest), name.endswith(RATIO)) for name in values]
    cells: dict[tuple[Place, Place], tuple[Group, Row]] = {}
    for group, case in _cases(digest):
        place = _place(group, case, rows), _place(group, case, columns)
        if place in cells:
            raise UsageError(_shared(rows, columns, place, cells[place], (group, case)))
        cells[place] = group, case
    down = dict.fromkeys(row for row, _ in cells)
    across = dict.fromkeys(column for _, column in cells)
    heads = [
        Column(
            ", ".join(filter(None, (*place, _title(metric, is_ratio) if len(metrics) > 1 or not place else ""))),
            "figure",
            " ".join((*place, metric.key + (RATIO if is_ratio else ""))),
            "" if is_ratio else metric.unit,
        )
        for place in across
        for metric, is_ratio in metrics
    ]
    lines = [
        row_of(
            *row,
            *(
                _entry(digest, cells.get((row, place)), metric, is_ratio)
                for place in across
                for metric, is_ratio in metrics
            ),
        )
        for row in down
    ]
    marks = {mark for line in lines for entry in line.entries for mark in entry.marks}
    machine = text.clean(run.manifest.fingerprint.machine)
    legend = [f"Measured on {machine}, with {text.intervals(digest.round_counts)}."]
    legend += [f"Ratios are to {digest.baseline}."] * any(is_ratio for _, is_ratio in metrics)
    legend += [f"{SIGNS['tied']}the rounds do not tell it from the best."] * ("tied" in marks)
    legend += [f"{UNLIKE} another function than the baseline's."] * ("unlike" in marks)
    return Table(
        "values",
        f"{text.clean(run.manifest.suite.name)}: {text.listing([_title(*metric) for metric in metrics], 9)}",
        (*(Column(name, key=name) for name in rows), *heads),
        tuple(lines),
        " ".join(legend),
    )


def _cases(digest: Digest) -> Iterator[tuple[Group, Row]]:
    return ((group, case) for group in digest.groups for case in group.rows)


def _attributes(group: Group, case: Row) -> Mapping[str, object]:
    """What tells a case from another; its operator and problem as tables name them."""
    return {**case.attributes, "operator": case.label, "label": case.label, "problem": group.label}


def _place(group: Group, case: Row, names: Sequence[str]) -> Place:
    attributes = _attributes(group, case)
    return tuple(_word(attributes[name]) for name in names)


def _word(value: object) -> str:
    if value is None:
        return text.MISSING
    return f"{value:g}" if isinstance(value, float) else text.clean(value, 60)


def _check(digest: Digest, rows: Sequence[str], columns: Sequence[str]) -> None:
    names = digest.rows[0].attributes
    for option, given in (("--rows", rows), ("--columns", columns)):
        for name in given:
            if name not in names:
                raise UsageError(f"{option}: no column named '{name}'{did_you_mean(name, names)}")
    if both := set(rows) & set(columns):
        raise UsageError(f"--columns: '{min(both)}' makes the rows already")


def _metric(name: str, digest: Digest) -> Metric:
    key = key_of(name.removesuffix(RATIO), digest.regime)
    if key not in REGISTRY:
        raise UsageError(f"--values: no metric named '{name}'{did_you_mean(name, [*REGISTRY, *SHORT])}")
    if not any(key in case.cells for case in digest.rows):
        measured = sorted({key for case in digest.rows for key in case.cells})
        raise UsageError(f"--values: '{name}' was not measured in this run; choose from {', '.join(measured)}")
    return REGISTRY[key]


def _title(metric: Metric, is_ratio: bool) -> str:
    return f"{metric.title} ×" if is_ratio else metric.title


def _entry(digest: Digest, cell: tuple[Group, Row] | None, metric: Metric, is_ratio: bool) -> Entry:
    if cell is None:
        return Entry(text.MISSING)
    group, case = cell
    if not case.ok:
        return Entry(case.status, marks=("failed",))
    return (ratio_entry if is_ratio else value_entry)(group, case, metric)


def _shared(
    rows: Sequence[str],
    columns: Sequence[str],
    place: tuple[Place, Place],
    one: tuple[Group, Row],
    other: tuple[Group, Row],
) -> str:
    """The message on two cases that would be in one cell."""
    first, second = _attributes(*one), _attributes(*other)
    differing = [name for name in first if first[name] != second[name] and name not in _NO_AXES]
    cell = " and ".join(
        f"{name} {value}" for name, value in zip((*rows, *columns), place[0] + place[1], strict=True)
    )
    return (
        f"several cases would be in the cell of {cell}: add one of {', '.join(differing)} to --rows or --columns, "
        "or choose with --only"
    )
