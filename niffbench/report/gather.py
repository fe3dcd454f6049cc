"""Gathering: a run's records brought together into its digest."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from math import isfinite
from statistics import median

from niffbench.case import Execution, Problem
from niffbench.report import metrics
from niffbench.report.digest import CONFIDENCE, Cell, Digest, Group, Row, Winner, compare
from niffbench.report.metrics import Key
from niffbench.report.text import clean
from niffbench.results import REGIME_ORDER, GradientError, Record, Run, in_words, main_regime
from niffbench.stats.intervals import exactly, median_of_rounds
from niffbench.suite import Regime

_COMPARED: tuple[Key, ...] = ("latency", "memory", "flops", "bytes")

_ABSURD = 1e30
"""An error that no arithmetic makes; NaN and infinity, which one does, are not below it either."""


def gather(run: Run) -> Digest:
    """Digest a run. Time and memory are linear in its records."""
    regime = main_regime(run.records)
    by_case: dict[str, list[Record]] = {}
    for record in run.records:
        by_case.setdefault(record.id, []).append(record)
    order = {case: place for place, case in enumerate(run.manifest.suite.cases)}
    groups: dict[tuple[Problem, Execution], list[list[Record]]] = {}
    for id_ in sorted(by_case, key=lambda id_: order.get(id_, len(order))):
        case = by_case[id_][0].case
        groups.setdefault((case.problem, case.execution), []).append(by_case[id_])
    return Digest(
        run=run,
        name=clean(run.name),
        regime=regime,
        groups=tuple(
            _group(run, problem, execution, cases, regime) for (problem, execution), cases in groups.items()
        ),
        missing=max(len(order) * run.manifest.rounds - len(run.records), 0),
    )


def _group(
    run: Run, problem: Problem, execution: Execution, cases: Sequence[Sequence[Record]], regime: Regime
) -> Group:
    rows = [_row(records, regime) for records in cases]
    base = next((row for row, records in zip(rows, cases, strict=True) if run.is_baseline(records[0])), None)
    if base is not None:
        rows = [_against(row, base) for row in rows]
    return Group(
        problem=problem,
        execution=execution,
        rows=tuple(rows),
        baseline=None if base is None else next(row for row in rows if row.id == base.id),
        winners={key: winner for key in _COMPARED if (winner := _winner(rows, key))},
    )


def _row(records: Sequence[Record], regime: Regime) -> Row:
    measured = [record for record in records if record.status == "ok"]
    best = measured[0] if measured else records[0]
    choices = Counter(words for record in measured if (words := in_words(record.chosen)))
    usual = next((words for words, _ in choices.most_common(1)), None)
    numerics = [record.numerics for record in records if record.numerics]
    reasons: dict[str, str] = {}
    for record in records:
        if record.status != "ok":
            reasons.setdefault(record.status, clean(record.reason or "no reason was given", 300))
    return Row(
        case=best.case,
        id=best.id,
        traits=best.traits,
        cells={key: cell for key in _COMPARED if (cell := _cell(records, key, regime))},
        regimes=_regimes(measured),
        statuses=Counter(record.status for record in records),
        reasons=reasons,
        flags=Counter(clean(flag, 40) for record in measured for flag in _flags(record, regime)),
        choices={clean(words, 60): number for words, number in choices.most_common()},
        cost=next((r.cost for r in records if r.cost and usual in (None, in_words(r.chosen))), None),
        parameters=best.parameters,
        error=max((found.l2 for found in numerics if found.l2 < _ABSURD), default=None),
        gradient=_worst(found.gradient for found in numerics),
        exact_gradient=_worst(found.exact_gradient for found in numerics),
        gradients_left_out=next(
            (found.gradients_left_out for found in numerics if found.gradients_left_out), None
        ),
        energy=_typical(record.energy for record in measured),
        launch_share=_typical(r.latency["graph"].launch_share for r in measured if "graph" in r.latency),
        memory=best.memory,
        needed=next((record.needed for record in records if record.needed is not None), None),
        available=next((record.available for record in records if record.available is not None), None),
    )


def _worst(gradients: Iterable[GradientError | None]) -> GradientError | None:
    known = [gradient for gradient in gradients if gradient is not None and gradient.l2 < _ABSURD]
    return max(known, key=lambda gradient: gradient.l2, default=None)


def _cell(records: Iterable[Record], key: Key, regime: Regime) -> Cell | None:
    found = {record.round: metrics.value(record, key, regime) for record in records}
    rounds = {round_: value for round_, value in found.items() if value is not None}
    if not rounds:
        return None
    # What is chosen by measuring may differ from round to round, and its closed form then does.
    if exact := key in metrics.EXACT and len(set(rounds.values())) == 1:
        return Cell(rounds, exactly(median(rounds.values()), CONFIDENCE), exact)
    return Cell(rounds, median_of_rounds(list(rounds.values()), confidence=CONFIDENCE), exact)


def _against(row: Row, base: Row) -> Row:
    """The row with its ratios to the baseline, and whether they compare like with like."""
    cells = dict(row.cells)
    for key, cell in row.cells.items():
        if key in base.cells:
            relative = compare(base.cells[key], cell)
            cells[key] = replace(cell, ratio=relative if relative.estimate is not None else None)
    one, two = row.traits, base.traits
    return replace(
        row, cells=cells, like_baseline=(one.equivalence, one.boundary) == (two.equivalence, two.boundary)
    )


def _regimes(measured: Sequence[Record]) -> Mapping[Regime, float]:
    found: dict[Regime, float] = {}
    for regime in REGIME_ORDER:
        typical = _typical(metrics.latency_of(record, regime) for record in measured)
        if typical is not None:
            found[regime] = typical
    return found


def _flags(record: Record, regime: Regime) -> set[str]:
    """What is wrong with a round's main series, and with the machine around it."""
    series = record.latency.get(regime)
    throttled = ["throttled"] if record.machine and record.machine.throttle else []
    return {*(series.flags if series else ()), *throttled}


def _typical(values: Iterable[float | None]) -> float | None:
    present = [value for value in values if value is not None and isfinite(value)]
    return median(present) if present else None


def _winner(rows: Iterable[Row], key: Key) -> Winner | None:
    """The row of least value among those measured, and those whose ratio to it does not exclude 1."""
    having = [row for row in rows if row.ok and key in row.cells]
    if len(having) < 2:
        return None
    best = min(having, key=lambda row: row.cells[key].estimate)
    ratios = [(row, compare(best.cells[key], row.cells[key])) for row in having if row.id != best.id]
    tied = tuple(row for row, ratio in ratios if ratio.low is not None and not ratio.excludes(1.0))
    return Winner(best, tied, certain=all(ratio.low is not None for _, ratio in ratios))
