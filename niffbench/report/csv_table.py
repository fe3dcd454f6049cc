"""``table.csv``: the digest as numbers in base units, one line a case, for spreadsheets and scripts."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence

from niffbench.report import text
from niffbench.report.digest import Cell, Digest, Group, Row
from niffbench.report.machine import over_floor
from niffbench.results import REGIME_ORDER

_KEYS = ("latency", "memory", "flops", "bytes")


def csv_table(digests: Sequence[Digest]) -> str:
    """All cases of all runs. Seconds, bytes, real FLOPs; ``_low`` and ``_high`` are 95 % intervals over rounds.

    Text that a spreadsheet would take for a formula gets an apostrophe in front.
    """
    out = io.StringIO()
    lines = [_line(digest, group, row) for digest in digests for group in digest.groups for row in group.rows]
    names = list(lines[0]) if lines else ["run", "case"]
    writer = csv.DictWriter(out, names, lineterminator="\n")
    writer.writeheader()
    writer.writerows(lines)
    return out.getvalue()


def _line(digest: Digest, group: Group, row: Row) -> dict[str, object]:
    problem = group.problem
    line: dict[str, object] = {
        "run": digest.name,
        "case": row.id,
        "label": row.label,
        "operator": row.case.operator,
        "family": row.traits.family,
        "boundary": row.traits.boundary,
        "equivalence": row.traits.equivalence,
        "kernel": row.case.kernel,
        "batch": problem.batch,
        "channels": problem.channels,
        "channels_out": problem.channels_out,
        "height": problem.height,
        "width": problem.width,
        "dtype": problem.dtype,
        "tf32": problem.tf32,
        "memory_format": problem.memory_format,
        "mode": problem.mode,
        "execution": group.execution,
        "status": row.status,
        "reason": "; ".join(row.reasons.values()),
        "baseline": digest.baseline,
        "like_baseline": row.like_baseline,
        "regime": digest.regime,
        "flags": ", ".join(sorted(row.flags)),
    }
    for key in _KEYS:
        line |= _cell(key, row.cells.get(key))  # type: ignore[call-overload]
    for regime in REGIME_ORDER:
        line[f"latency_{regime}"] = row.regimes.get(regime)
    line |= {
        "images_per_second": row.images_per_second,
        "chosen": row.chosen,
        "parameters": row.parameters,
        "error_l2": row.error,
        "error_gradient_l2": row.gradient.l2 if row.gradient else None,
        "error_gradient_exact": row.exact_gradient.l2 if row.exact_gradient else None,
        "gradient": row.gradient.name if row.gradient else None,
        "gradients_left_out": row.gradients_left_out,
        "energy": row.energy,
        "energy_per_image": row.energy_per_image,
        "stock_counter_share": row.stock_share,
        "over_floor": over_floor(row, digest),
        "needed": row.needed,
        "available": row.available,
    }
    return {name: _safe(value) for name, value in line.items()}


def _cell(key: str, cell: Cell | None) -> dict[str, object]:
    """A quantity's columns, the same whether it was measured or not."""
    value, ratio = (cell.value, cell.ratio) if cell else (None, None)
    found: dict[str, object] = {}
    for name, interval in ((key, value), (f"{key}_ratio", ratio)):
        found[name] = interval.estimate if interval else None
        found[f"{name}_low"] = interval.low if interval else None
        found[f"{name}_high"] = interval.high if interval else None
    return found


def _safe(value: object) -> object:
    if isinstance(value, str):
        value = text.clean(value, 400)
        return f"'{value}" if value.startswith(("=", "+", "-", "@")) else value
    return value
