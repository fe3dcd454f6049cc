"""``table.csv``: the digest as numbers in base units, one line a case, for spreadsheets and scripts."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence

from niffbench.report import text
from niffbench.report.digest import Cell, Digest, Row
from niffbench.report.machine import over_floor
from niffbench.results import REGISTRY, Metric


def csv_table(digests: Sequence[Digest]) -> str:
    """All cases of all runs, a column for every metric of the registry, in its base unit.

    ``_low`` and ``_high`` are 95 % intervals over rounds, ``_ratio`` is that to the baseline. Text that a
    spreadsheet would take for a formula gets an apostrophe in front.
    """
    out = io.StringIO()
    lines = [_line(digest, row) for digest in digests for row in digest.rows]
    names = list(lines[0]) if lines else ["run", "case"]
    writer = csv.DictWriter(out, names, lineterminator="\n")
    writer.writeheader()
    writer.writerows(lines)
    return out.getvalue()


def _line(digest: Digest, row: Row) -> dict[str, object]:
    line: dict[str, object] = {
        "run": digest.name,
        **row.attributes,
        "status": row.status,
        "reason": "; ".join(row.reasons.values()),
        "baseline": digest.baseline,
        "like_baseline": row.like_baseline,
        "regime": digest.regime,
        "flags": ", ".join(sorted(row.flags)),
        "chosen": row.chosen,
        "gradient": row.gradient,
        "gradients_left_out": row.gradients_left_out,
        "over_floor": over_floor(row, digest),
    }
    for metric in REGISTRY.values():
        line |= _columns(metric, row.cells.get(metric.key))
    return {name: _safe(value) for name, value in line.items()}


def _columns(metric: Metric, cell: Cell | None) -> dict[str, object]:
    """A metric's columns, the same whether it was measured or not."""
    if not metric.compared:
        return {metric.key: cell.estimate if cell else None}
    intervals = {metric.key: cell.value if cell else None, f"{metric.key}_ratio": cell.ratio if cell else None}
    return {
        name + end: getattr(interval, bound) if interval else None
        for name, interval in intervals.items()
        for end, bound in (("", "estimate"), ("_low", "low"), ("_high", "high"))
    }


def _safe(value: object) -> object:
    if isinstance(value, str):
        value = text.clean(value, 400)
        return f"'{value}" if value.startswith(("=", "+", "-", "@")) else value
    return value
