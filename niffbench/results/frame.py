"""A run as a data frame."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from niffbench.case import REGIMES
from niffbench.results.metrics import REGISTRY, Reason, round_value
from niffbench.results.reading import Run
from niffbench.results.record import Record, in_words

if TYPE_CHECKING:
    import pandas as pd


def attributes(record: Record) -> dict[str, Any]:
    """What tells a case from any other, as flat columns."""
    case, traits, problem = record.case, record.traits, record.case.problem
    return {
        "case": record.id,
        "label": traits.label,
        "operator": case.operator,
        "family": traits.family,
        "role": traits.role,
        "layers": traits.layers,
        "published": traits.published,
        "boundary": traits.boundary,
        "equivalence": traits.equivalence,
        "reference": traits.reference,
        "base": traits.base,
        "problem": problem.label,
        "kernel": case.kernel,
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
        "execution": case.execution,
        "output": None if record.output is None else "×".join(map(str, record.output)),
        "options": ", ".join(f"{key}={value}" for key, value in case.options),
    }


def _remarks(record: Record) -> dict[str, str | None]:
    """What a round says in words."""
    numerics = record.numerics
    gradient = numerics.gradient if numerics else None
    return {
        "chosen": in_words(record.chosen),
        "gradient": gradient.name if gradient else None,
        "gradients_left_out": numerics.gradients_left_out if numerics else None,
        "throttle": ", ".join(record.machine.throttle) if record.machine else "",
        **{
            f"flags_{regime}": ", ".join(record.latency[regime].flags) if regime in record.latency else ""
            for regime in REGIMES
        },
    }


def frame(run: Run, extra: Mapping[str, Any] | None = None) -> pd.DataFrame:
    """The run as a data frame: one row per case and round.

    Columns: what tells a case from another, the round's status and reason, a column for every metric of
    :data:`~niffbench.results.metrics.REGISTRY` (``niffbench list metrics`` says what each is), and what the round
    says in words: ``chosen``, ``gradient`` (the name of the worst), ``flags_<regime>`` and the like, and on which
    ``node`` and ``device_id`` it was. What has no value, for whatever reason, is NaN. ``extra`` adds constant
    columns (a run's name).
    """
    import pandas as pd

    columns: dict[str, list[Any]] = {}
    for record in run.records:
        status = {
            "round": record.round,
            "node": record.node,
            "device_id": record.device_id,
            "status": record.status,
            "reason": record.reason,
        }
        for name, value in (attributes(record) | status | _remarks(record)).items():
            columns.setdefault(name, []).append(value)
        for metric in REGISTRY.values():
            value = round_value(record, metric)
            columns.setdefault(metric.key, []).append(None if isinstance(value, Reason) else value)
    series = {}
    for name in list(columns):  # each list is dropped as soon as its series is there
        values = pd.Series(columns.pop(name))
        series[name] = pd.to_numeric(values) if name in REGISTRY or name in ("kernel", "node") else values
    table = pd.DataFrame(series, copy=False)
    return table.assign(**(extra or {}))
