"""A run as data: for spreadsheets, scripts and other tools."""

from __future__ import annotations

import io
import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from math import isfinite
from typing import TYPE_CHECKING, Any

from niffbench import __version__
from niffbench.errors import NothingMeasured, UsageError
from niffbench.report import text
from niffbench.report.digest import CONFIDENCE, Cell, Digest, Group, Row, gather, over_floor
from niffbench.report.trends import Rivalry, rivalries
from niffbench.report.writers.csv import records, safe
from niffbench.results import REGIME_ORDER, REGISTRY, Metric, Reason, Run, frame, round_value
from niffbench.results.fleet import Fleet, FleetMember, machines
from niffbench.results.metrics import dictionary
from niffbench.stats.crossovers import Crossover
from niffbench.stats.intervals import COUNTED, EXACT, Interval
from niffbench.suite.pairs import Axis

if TYPE_CHECKING:
    import pandas as pd

    from niffbench.report.view import View

FINDINGS_SCHEMA = 1
_MOVED: Mapping[Axis, tuple[str, ...]] = {
    "kernel": (),
    "size": ("height", "width"),
    "channels": ("channels", "channels_out"),
    "batch": ("batch",),
}
"""What of a problem is no part of a slice along an axis."""
_SCALES = {"s": ("ms", 1e3), "B": ("MiB", 2.0**-20), "FLOP": ("MFLOP", 1e-6)}
"""Units of the action's figures, for those of the registry that are too large or too small for it."""
_ROUNDING = 1e-9
"""A relative half-width below this is float64's, not the measurement's."""


def export(run: Run, format_: str) -> bytes:
    """``run`` as the bytes of one of EXPORTS.

    ``csv``, ``parquet``: the frame, one row a case and round, base units, with the run and the machine, and the
    intervals of the case's rounds as ``_low`` and ``_high``; Parquet's metadata hold unit and meaning of each
    column, and the data dictionary. ``pytest-benchmark``: its saved JSON, version 5, all samples of all rounds,
    one benchmark a case and regime. ``github-action-benchmark``: the list of ``customSmallerIsBetter``, medians
    with their intervals. ``bencher``: Bencher Metric Format. ``openmetrics``: the text format of that name,
    version 1.0. The last three say how often a case failed, too.

    Raises:
        UsageError: when a library is missing.
        NothingMeasured: for others than the frame without a measured case.
    """
    if format_ == "csv":
        return _with_intervals(run).map(safe).to_csv(index=False, lineterminator="\n").encode()
    if format_ == "parquet":
        return _parquet(run)
    digest = gather(run)
    if not any(row.ok for row in digest.rows):
        raise NothingMeasured(f"{run.path}: no case was measured, so there is nothing to export")
    if format_ == "openmetrics":
        return _openmetrics(digest).encode()
    write = {"pytest-benchmark": _pytest_benchmark, "bencher": _bencher, "github-action-benchmark": _github_action}
    content = write[format_](digest)
    return (json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False) + "\n").encode()


def origin(run: Run) -> dict[str, str | int | None]:
    """Where figures come from, as columns: run, machine, torch, threads, niffbench."""
    manifest = run.manifest
    facts = {**manifest.fingerprint.should, **manifest.fingerprint.must}
    threads = facts.get("threads")
    return {
        "run": text.clean(run.name),
        "machine": text.clean(manifest.fingerprint.machine),
        "torch": text.clean(facts.get("torch", ""), 40),
        "threads": int(str(threads)) if str(threads).isdecimal() else None,
        "niffbench": text.clean(manifest.niffbench, 40),
    }


def _with_intervals(run: Run) -> pd.DataFrame:
    """The frame with where it comes from, and beside each round the ends of the interval over all of them."""
    import pandas as pd

    rows = {row.id: row for row in gather(run).rows}
    table = frame(run, origin(run))
    ends: dict[str, list[float | None]] = {}
    for metric in REGISTRY.values():
        bands = {id_: cell.value for id_, row in rows.items() if (cell := row.cells.get(metric.key))}
        bands = {id_: band for id_, band in bands.items() if _is_confidence(band) and band.low is not None}
        for end in ("low", "high") if bands else ():
            ends[f"{metric.key}_{end}"] = [getattr(bands.get(id_), end, None) for id_ in table["case"]]
    return pd.concat([table, pd.DataFrame(ends, index=table.index, dtype=float)], axis="columns")


def _parquet(run: Run) -> bytes:
    try:
        import pyarrow as pa
        from pyarrow import parquet
    except ImportError as error:
        raise UsageError("--format parquet needs pyarrow, which is not installed: pip install pyarrow") from error
    table = pa.Table.from_pandas(_with_intervals(run), preserve_index=False)
    fields = []
    for column in table.schema:
        metric = REGISTRY.get(column.name.removesuffix("_low").removesuffix("_high"))
        fields.append(column.with_metadata({"unit": metric.unit, "meaning": metric.meaning}) if metric else column)
    facts = {"niffbench": json.dumps(origin(run)), "dictionary": data_dictionary()}
    out = io.BytesIO()
    parquet.write_table(table.cast(pa.schema(fields, {**(table.schema.metadata or {}), **facts})), out)
    return out.getvalue()


def _pytest_benchmark(digest: Digest) -> dict[str, Any]:
    """What ``pytest-benchmark compare`` reads. Hostname and user are left out, as everywhere."""
    from pytest_benchmark.stats import Stats

    new_stats: Callable[[], Any] = Stats
    manifest = digest.run.manifest
    samples: dict[tuple[str, str], list[float]] = {}
    calls: dict[tuple[str, str], int] = {}
    for record in digest.run.records:
        for regime, series in record.latency.items():
            if not isinstance(round_value(record, REGISTRY[f"latency_{regime}"]), Reason):
                samples.setdefault((record.id, regime), []).extend(series.samples)
                calls.setdefault((record.id, regime), series.calls)
    benchmarks = []
    for group in digest.groups:
        for row in group.rows:
            for regime in REGIME_ORDER:
                if (row.id, regime) not in samples:
                    continue
                stats: Any = new_stats()
                stats.data.extend(samples[row.id, regime])
                statistics = stats.as_dict() | {"data": stats.data, "iterations": calls[row.id, regime]}
                benchmarks.append(_benchmark(row, group, regime, statistics))
    facts = {**manifest.fingerprint.should, **manifest.fingerprint.must}
    return {
        "machine_info": {
            "node": "",
            "machine": text.clean(manifest.fingerprint.machine),
            "python_implementation": text.clean(facts.get("implementation", "")),
            "python_version": text.clean(facts.get("python", "")),
            "cpu": {"brand_raw": text.clean(facts.get("cpu", ""))},
            "niffbench": facts,
        },
        "commit_info": {"id": manifest.commit or "", "dirty": bool(manifest.dirty), "time": manifest.started},
        "benchmarks": benchmarks,
        "datetime": manifest.started,
        "version": _format_version(),
    }


def _benchmark(row: Row, group: Group, regime: str, stats: dict[str, Any]) -> dict[str, Any]:
    name = f"{row.label}[{group.label} {regime}]"
    return {
        "group": f"{group.label} {regime}",
        "name": name,
        "fullname": f"niffbench::{name}",
        "params": {"case": row.id, "regime": regime},
        "param": f"{row.id}-{regime}",
        "extra_info": case_facts(row),
        "options": {"timer": "niffbench", "warmup": True},
        "stats": stats,
    }


def case_facts(row: Row) -> dict[str, Any]:
    """One case for a machine: what it is, and every metric that it has a value of, over its rounds."""
    facts = {name: text.clean(fact) if isinstance(fact, str) else fact for name, fact in row.attributes.items()}
    return facts | {key: cell.estimate for key, cell in row.cells.items()}


def cases_for_machines(run: Run) -> list[dict[str, Any]]:
    """Every case of a run over its rounds, as ``run --json`` prints them: every metric, None without a value.

    ``machine`` says of which, where there are several; ``records`` counts rounds by status, ``reasons`` says why
    some failed, ``unusable`` why a metric that was measured has no value in some rounds.
    """
    return [
        {
            **({"machine": kind.machine} if kind.machine else {}),
            **case_facts(row),
            **{key: row.value(key) for key in REGISTRY},
            "records": dict(row.statuses),
            "reasons": sorted(row.reasons.values()),
            "unusable": {key: why for key in REGISTRY if (why := row.cells.why_not(key))},
        }
        for kind in machines(run)
        for row in gather(kind).rows
    ]


def findings_of(run: Run, views: Sequence[View] = ()) -> dict[str, Any]:
    """``findings.json``: what the first screen of a report says, for machines.

    ==================== ======================================================================================
    key                  what it holds
    ==================== ======================================================================================
    ``schema``           1; a change that takes something away or gives it another meaning raises it
    ``confidence``       of every interval; what ``decided`` means of latencies
    ``estimator``        what stands for the rounds of a noisy quantity, and for its ratio
    ``crossovers``       one entry each, none for a pair without; see below
    ``winners``          of each problem and quantity: the best operator's value, and the ``ties`` with it
    ``ratios``           of each case and quantity: its ratio to the baseline of its problem
    ``fleet``            of each device, where there are several; see below
    ``machines``         instead of all that, one such document for each kind of machine, where nodes are unlike
    ==================== ======================================================================================

    A crossover: ``quantity`` (``flops``, ``memory`` in total, ``latency`` in its ``regime``) and ``metric``, its
    key in the data dictionary; ``slice``, all that is held fixed; ``form`` and ``rival``, operators as in records,
    with their ``_options`` and ``_kernel`` (None along the kernel); ``axis``; two neighbouring measured values of
    it, ``rival_better_to`` and ``form_better_from``, or ``form_better_to`` and ``rival_better_from``; whether
    there is no admissible value between them (``adjacent``); ``ties``, undecided values there;
    ``decided``, always true, at the joint ``confidence`` of both; ``cliff``, by how much the side ``cliff_side``
    jumps between them where its FLOPs do not, else None; ``probes``, at how many values both were measured beside
    the suite's.

    A device: ``node``, its number, and ``device_id``; how many ``cases`` and ``records`` it has, how many of these
    ``failed`` and are ``flagged``; ``value``, the ratio of its latency to that of the others, of whom there are
    ``fellows``; ``slowest_in``, in how many of ``compared`` cases it was slower than each of them; whether it is a
    ``straggler``, and then the ``sentence``; the medians ``sm_clock`` (MHz) and ``temperature`` (°C), and
    ``throttled``, a share.

    ``value``, ``low`` and ``high`` are in ``unit``; the ends are None where there is no interval: the quantity was
    counted, or there was one round. ``rounds`` have a value. ``decided`` says whether rounds leave no doubt.

    Args:
        views: of each machine of the run, where they are worked out already.
    """
    if len(kinds := machines(run)) > 1:
        head = {"schema": FINDINGS_SCHEMA, "niffbench": __version__, "run": text.clean(run.name)}
        return {**head, "machines": [findings_of(kind, views[at : at + 1]) for at, kind in enumerate(kinds)]}
    digest = views[0].digest if views else gather(run)
    rivals = views[0].rivalries if views else rivalries(digest)
    refine = run.manifest.settings.refine
    return {
        "schema": FINDINGS_SCHEMA,
        "niffbench": __version__,
        "run": digest.name,
        "suite": run.manifest.suite.name,
        "baseline": digest.baseline,
        "regime": digest.regime,
        "confidence": CONFIDENCE if refine is None else refine.confidence,
        "estimator": "median of round medians; a ratio is the quotient of two",
        "crossovers": [_crossover(one, crossover) for one in rivals for crossover in one.crossovers],
        "winners": [
            {
                **_quantity(REGISTRY[key]),
                "problem": _problem(group),
                "operator": winner.row.case.operator,
                "label": winner.row.label,
                **_figures(winner.row.cells[key].value, len(winner.row.cells[key].rounds)),
                "decided": winner.decided,
                "ties": [row.label for row in winner.tied],
            }
            for group in digest.groups
            for key, winner in group.winners.items()
            if REGISTRY[key] in digest.metrics
        ],
        "ratios": [
            {
                **_quantity(metric),
                "unit": "",
                "problem": _problem(group),
                "operator": row.case.operator,
                "label": row.label,
                "baseline": group.baseline.label,
                **_figures(cell.ratio, min(len(cell.rounds), len(group.baseline.cells[metric.key].rounds))),
                "decided": cell.ratio.excludes(1.0),
                "alike": row.like_baseline,
            }
            for group in digest.groups
            for row in group.rows
            for metric in digest.metrics
            if row.ok and group.baseline and row is not group.baseline
            if (cell := row.cells.get(metric.key)) and cell.ratio
        ],
        "fleet": [_device(digest.fleet, one) for one in digest.fleet.members],
    }


def _device(fleet: Fleet, one: FleetMember) -> dict[str, Any]:
    shift = one.shift
    return {
        "node": one.member[0],
        "device_id": one.member[1] or None,
        "name": one.name,
        **{key: getattr(one, key) for key in ("cases", "records", "failed", "flagged")},
        **({"value": None, "low": None, "high": None} if shift is None else _ends(shift.ratio)),
        "fellows": shift.fellows if shift else 0,
        "compared": shift.cases if shift else 0,
        "slowest_in": shift.slowest_in if shift else 0,
        "straggler": one.is_straggler,
        "sentence": fleet.sentence(one),
        **{key: getattr(one, key) for key in ("sm_clock", "temperature", "throttled")},
    }


def written(findings: Mapping[str, Any]) -> str:
    """``findings.json`` as it is written."""
    return json.dumps(findings, indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def _crossover(rivalry: Rivalry, crossover: Crossover) -> dict[str, Any]:
    pair, cliff = rivalry.compared.pair, crossover.cliff
    jumps = cliff is not None and cliff.ratio > cliff.expected
    return {
        **_quantity(rivalry.metric),
        "slice": {key: value for key, value in _problem(rivalry.group).items() if key not in _MOVED[rivalry.axis]},
        **{
            key: value
            for side, case in (("form", pair.form), ("rival", pair.rival))
            for key, value in (
                (side, case.operator),
                (f"{side}_options", dict(case.options)),
                (f"{side}_kernel", None if rivalry.axis == "kernel" else case.kernel),
            )
        },
        "alike": rivalry.alike,
        "axis": rivalry.axis,
        **{key: int(bound) for key, bound in crossover.bounds.items()},
        "adjacent": crossover.adjacent,
        "ties": [int(tie) for tie in crossover.ties],
        "undecided": [int(order.at) for order in rivalry.compared.comparison.orders if order.better is None],
        "decided": True,
        "confidence": crossover.confidence,
        "cliff": cliff.ratio if cliff and jumps else None,
        "cliff_side": cliff.side if cliff and jumps else None,
        "probes": rivalry.compared.probes,
    }


def _quantity(metric: Metric) -> dict[str, Any]:
    return {"quantity": metric.family, "metric": metric.key, "unit": metric.unit, "regime": metric.regime}


def _problem(group: Group) -> dict[str, Any]:
    return {**asdict(group.problem), "execution": group.execution}


def _figures(interval: Interval, rounds: int) -> dict[str, Any]:
    return {**_ends(interval), "rounds": rounds}


def _ends(interval: Interval) -> dict[str, float | None]:
    low, high = (interval.low, interval.high) if _is_confidence(interval) else (None, None)
    return {"value": interval.estimate, "low": low, "high": high}


def _is_confidence(interval: Interval) -> bool:
    """Whether its ends are those of a confidence interval."""
    return interval.method not in (EXACT, COUNTED)


def data_dictionary() -> str:
    """What every metric's column is, as a table in Markdown.

    ``_low`` and ``_high`` after a metric's name are the ends of its 95 % interval over rounds.
    """
    rows = dictionary()
    lines = [list(rows[0]), ["---"] * len(rows[0])]
    for row in (*rows, *({**dict.fromkeys(rows[0], ""), **place} for place in PLACES)):
        lines.append([f"`{row['metric']}`", *map(text.markdown, list(row.values())[1:])])
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


PLACES = (
    {"metric": "node", "title": "node", "summary": "number of the machine that measured, where there are several"},
    {"metric": "device_id", "title": "device", "summary": "tells a run's devices apart, and nothing else of them"},
)
"""Columns of the frame that say where a round was measured, which is no metric."""


def _format_version() -> str:
    from importlib.metadata import version

    return version("pytest-benchmark")


def _github_action(digest: Digest) -> list[dict[str, Any]]:
    """Entries of ``customSmallerIsBetter``: name, unit, value, and where known range and extra."""
    entries: list[dict[str, Any]] = []
    names = _names(digest)
    for group in digest.groups:
        for row in group.rows:
            for metric in digest.shown("terminal"):
                cell = row.cells.get(metric.key)
                if cell is None or not row.ok or metric.better != "lower":
                    continue
                unit, scale = _SCALES.get(metric.unit, (metric.unit, 1.0))
                entry: dict[str, Any] = {
                    "name": f"{names[row.id]} / {metric.title}",
                    "unit": unit,
                    "value": cell.estimate * scale,
                }
                half = cell.value.half_width or 0.0
                if half > _ROUNDING:
                    entry["range"] = f"± {text.digits(half * cell.estimate * scale)}"
                certainty = "exact" if cell.exact else text.plural(len(cell.rounds), "round")
                entry["extra"] = f"case {row.id}\n{certainty}\nniffbench {__version__}"
                entries.append(entry)
            failed, why = _failures(row)
            name = f"{names[row.id]} / failed rounds"
            entries.append({"name": name, "unit": "rounds", "value": float(failed), "extra": why})
    return entries


def _names(digest: Digest) -> dict[str, str]:
    """Each case's name in another tool; with its id where a label, which is cut, is not its own."""
    names = {row.id: f"{row.label} / {group.label}" for group in digest.groups for row in group.rows}
    times = Counter(names.values())
    return {id_: name if times[name] == 1 else f"{name} ({id_})" for id_, name in names.items()}


def _failures(row: Row) -> tuple[int, str]:
    """In how many rounds a case failed, and why: dashboards pass over what is not there."""
    failed = sum(number for status, number in row.statuses.items() if status != "ok")
    return failed, text.clean("; ".join(row.reasons.values()), 300) or f"case {row.id}"


def _bencher(digest: Digest) -> dict[str, dict[str, dict[str, float]]]:
    """Benchmarks, their measures and the value of each with its bounds; latencies in nanoseconds."""
    content: dict[str, dict[str, dict[str, float]]] = {}
    names = _names(digest)
    for group in digest.groups:
        for row in group.rows:
            measures = content.setdefault(names[row.id], {})
            for metric, interval in _exported(row):
                scale = 1e9 if metric.unit == "s" else 1.0
                figures = zip(("value", "lower_value", "upper_value"), _with_ends(interval), strict=False)
                measures[metric.key.replace("_", "-")] = {name: figure * scale for name, figure in figures}
            measures["failed-rounds"] = {"value": float(_failures(row)[0])}
    return content


def _exported(row: Row) -> Iterator[tuple[Metric, Interval]]:
    """The metrics of a case that has any, of which less is better, and their values."""
    for key, cell in row.cells.items():
        if row.ok and REGISTRY[key].better == "lower":
            yield REGISTRY[key], cell.value


def _with_ends(interval: Interval) -> list[float]:
    """The estimate, and the ends of its confidence interval if it has one; no format has a word for infinity."""
    figures = [interval.estimate, *([interval.low, interval.high] if _is_confidence(interval) else [])]
    return [float(figure) for figure in figures if figure is not None and isfinite(figure)]


_SUFFIXES = {"s": "seconds", "B": "bytes", "J": "joules"}


def _openmetrics(digest: Digest) -> str:
    """A family for each metric and each end of its interval, a sample a case."""
    manifest = digest.run.manifest
    families: dict[str, tuple[str, str, list[str]]] = {}
    for group in digest.groups:
        for row in group.rows:
            labels = {"suite": manifest.suite.name, "operator": row.label, "problem": group.label, "case": row.id}
            for metric, interval in _exported(row):
                unit = _SUFFIXES.get(metric.unit, "")
                for end, value in zip(("", "_low", "_high"), _with_ends(interval), strict=False):
                    name = "_".join(filter(None, ["niffbench", metric.key + end, unit]))
                    family = families.setdefault(name, (unit, metric.title, []))
                    family[2].append(f"{name}{_labels(labels)} {value!r}")
            failed, _ = _failures(row)
            family = families.setdefault("niffbench_failed_rounds", ("", "rounds in which a case failed", []))
            family[2].append(f"niffbench_failed_rounds{_labels(labels)} {failed}")
    run = {
        "suite": manifest.suite.name,
        "device": manifest.device,
        "fingerprint": manifest.fingerprint.hash,
        "commit": manifest.commit or "",
        "started": manifest.started,
    }
    lines = ["# TYPE niffbench_run info", "# HELP niffbench_run the run that was exported"]
    lines.append(
        f"niffbench_run_info{_labels({'suite': manifest.suite.name, **run, 'device': manifest.device})} 1"
    )
    for name, (unit, title, samples) in families.items():
        lines.append(f"# TYPE {name} gauge")
        lines += [f"# UNIT {name} {unit}"] if unit else []
        lines += [f"# HELP {name} {title}", *samples]
    return "\n".join([*lines, "# EOF"]) + "\n"


def _labels(labels: Mapping[str, str]) -> str:
    quoted = {
        key: text.clean(value, 400).replace("\\", "\\\\").replace('"', '\\"') for key, value in labels.items()
    }
    return "{" + ",".join(f'{key}="{value}"' for key, value in quoted.items()) + "}"


def spreadsheet(digests: Sequence[Digest]) -> str:
    """``table.csv``: all cases of all runs, a column for every metric of the registry, in its base unit.

    ``_low`` and ``_high`` are 95 % intervals over rounds, ``_ratio`` is that to the baseline.
    """
    lines = [_line(digest, row) for digest in digests for row in digest.rows]
    return records(lines, list(lines[0]) if lines else ["run", "case"])


def _line(digest: Digest, row: Row) -> dict[str, object]:
    line: dict[str, object] = {
        **origin(digest.run),
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
    return line


def _columns(metric: Metric, cell: Cell | None) -> dict[str, object]:
    """A metric's columns, the same whether it was measured or not."""
    if not metric.compared:
        return {metric.key: cell.estimate if cell else None}
    intervals = {metric.key: cell.value if cell else None, f"{metric.key}_ratio": cell.ratio if cell else None}
    return {
        name + end: getattr(interval, bound) if interval and (not end or _is_confidence(interval)) else None
        for name, interval in intervals.items()
        for end, bound in (("", "estimate"), ("_low", "low"), ("_high", "high"))
    }
