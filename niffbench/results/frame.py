"""A run as a data frame."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields
from math import isfinite, nan
from statistics import median
from typing import TYPE_CHECKING, Any

from niffbench.results.reading import Run
from niffbench.results.record import REGIMES, Memory, Record, in_words, main_regime

if TYPE_CHECKING:
    import pandas as pd

_MEMORY = tuple(part.name for part in fields(Memory))
_NUMERIC = {
    "kernel", "parameters", "energy", "energy_per_image", "others", "elapsed", "measuring", "needed", "available",
    "images_per_second",
}  # fmt: skip
_NUMERIC_PREFIXES = ("latency_", "samples_", "memory_", "flops", "bytes_", "error_")


def row(record: Record) -> dict[str, Any]:
    """One record as a flat row of the frame; see :func:`frame` for the columns."""
    problem, cost, numerics = record.case.problem, record.cost, record.numerics
    gradient = numerics.gradient if numerics else None
    exact = numerics.exact_gradient if numerics else None
    flat: dict[str, Any] = {
        "case": record.id,
        "round": record.round,
        "status": record.status,
        "reason": record.reason,
        "label": record.traits.label,
        "operator": record.case.operator,
        "family": record.traits.family,
        "boundary": record.traits.boundary,
        "equivalence": record.traits.equivalence,
        "base": record.traits.base,
        "problem": problem.label,
        "kernel": record.case.kernel,
        "batch": problem.batch,
        "channels": problem.channels,
        "channels_out": problem.channels_out,
        "height": problem.height,
        "width": problem.width,
        "size": (problem.height * problem.width) ** 0.5,
        "dtype": problem.dtype,
        "tf32": problem.tf32,
        "memory_format": problem.memory_format,
        "mode": problem.mode,
        "execution": record.case.execution,
        "options": ", ".join(f"{key}={value}" for key, value in record.case.options),
        "parameters": record.parameters,
        "chosen": in_words(record.chosen),
        "energy": record.energy,
        "energy_per_image": None if record.energy is None else record.energy / problem.batch,
        "others": record.machine.others if record.machine else None,
        "elapsed": record.elapsed,
        "measuring": record.measuring,
        "needed": record.needed,
        "available": record.available,
    }
    for regime in REGIMES:
        series = record.latency.get(regime)
        flat[f"latency_{regime}"] = _median(series.samples) if series and series.samples else None
        flat[f"samples_{regime}"] = len(series.samples) if series else None
        flat[f"flags_{regime}"] = ", ".join(series.flags) if series else ""
    for key in _MEMORY:
        flat[f"memory_{key}"] = getattr(record.memory, key) if record.memory else None
    return flat | {
        "flops": cost.closed if cost else None,
        "flops_forward": cost.closed_forward if cost else None,
        "flops_counted": cost.counted if cost else None,
        "flops_fvcore": cost.fvcore if cost else None,
        "flops_stock_torch": cost.stock_torch if cost else None,
        "flops_stock_fvcore": cost.stock_fvcore if cost else None,
        "bytes_floor": cost.bytes_floor if cost else None,
        "bytes_own": cost.bytes_own if cost else None,
        "error_l2": numerics.l2 if numerics else None,
        "error_max": numerics.max if numerics else None,
        "error_gradient_l2": gradient.l2 if gradient else None,
        "error_gradient_max": gradient.max if gradient else None,
        "error_gradient_exact": exact.l2 if exact else None,
        "gradient": gradient.name if gradient else None,
        "gradients_left_out": numerics.gradients_left_out if numerics else None,
    }


def _median(samples: Sequence[float]) -> float:
    """NaN when a sample is none: sorting NaNs would give any value."""
    return median(samples) if isfinite(sum(samples)) else nan


def frame(run: Run, extra: Mapping[str, Any] | None = None) -> pd.DataFrame:
    """The run as a data frame: one row per case and round.

    Latencies (``latency_<regime>``, the round's median) in seconds, memory and bytes in bytes, FLOPs real and
    for the whole mode; ``others`` is other processes' share of the processor, 0 to 1; ``images_per_second`` is
    batch over latency in the run's main regime (steady, else cold, else graph, else first); ``gradient`` names the
    worst gradient, whose errors are ``error_gradient_l2`` and ``_max``; ``error_gradient_exact`` is that of the
    operator run in float64, where units switch. What was not measured is NaN or None.
    ``energy`` is in joules of a call, ``energy_per_image`` that over the batch. ``extra`` adds constant columns (a
    run's name).
    """
    import pandas as pd

    main = f"latency_{main_regime(run.records)}"
    columns: dict[str, list[Any]] = {}
    for record in run.records:
        flat = row(record)
        flat["images_per_second"] = flat["batch"] / flat[main] if flat[main] else None
        for name, value in flat.items():
            columns.setdefault(name, []).append(value)
    series = {}
    for name in list(columns):  # each list is dropped as soon as its series is there
        values = pd.Series(columns.pop(name))
        series[name] = pd.to_numeric(values) if _is_numeric(name) else values
    table = pd.DataFrame(series, copy=False)
    return table.assign(**(extra or {}))


def _is_numeric(name: str) -> bool:
    return name in _NUMERIC or (name.startswith(_NUMERIC_PREFIXES) and name != "memory_format")
