"""Gathering: a run's records brought together into its digest."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

from niffbench.case import Execution, Problem
from niffbench.report.digest import Cells, Digest, Group, Row, Winner, compare
from niffbench.report.text import clean
from niffbench.results import (
    REGISTRY,
    Numerics,
    Reason,
    Record,
    Run,
    Traits,
    attributes,
    in_words,
    main_regime,
    round_value,
)
from niffbench.results.metrics import headline
from niffbench.suite import Regime


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
    base = next((records for records in cases if run.is_baseline(records[0])), None)
    base_cells = None if base is None else Cells(base)
    rows = [
        _row(records, regime, Cells(records, base_cells), None if base is None else base[0].traits)
        for records in cases
    ]
    ranked = (*headline(regime), REGISTRY["bytes_own"])
    return Group(
        problem=problem,
        execution=execution,
        rows=tuple(rows),
        baseline=None if base is None else next(row for row in rows if row.id == base[0].id),
        winners={metric.key: winner for metric in ranked if (winner := _winner(rows, metric.key))},
    )


def _row(records: Sequence[Record], regime: Regime, cells: Cells, base: Traits | None) -> Row:
    measured = [record for record in records if record.status == "ok"]
    best = measured[0] if measured else records[0]
    choices = Counter(words for record in measured if (words := in_words(record.chosen)))
    usual = next((words for words, _ in choices.most_common(1)), None)
    reasons: dict[str, str] = {}
    for record in records:
        if record.status != "ok":
            reasons.setdefault(record.status, clean(record.reason or "no reason was given", 300))
    worst, exact = (_worst(records, key) for key in ("error_gradient_l2", "error_gradient_exact"))
    traits = best.traits
    return Row(
        case=best.case,
        id=best.id,
        attributes=attributes(best),
        traits=traits,
        cells=cells,
        statuses=Counter(record.status for record in records),
        reasons=reasons,
        flags=Counter(clean(flag, 40) for record in measured for flag in _flags(record, regime)),
        choices={clean(words, 60): number for words, number in choices.most_common()},
        cost=next((r.cost for r in records if r.cost and usual in (None, in_words(r.chosen))), None),
        gradient=worst.gradient.name if worst and worst.gradient else None,
        exact_gradient=exact.exact_gradient.name if exact and exact.exact_gradient else None,
        gradients_left_out=next(
            (r.numerics.gradients_left_out for r in records if r.numerics and r.numerics.gradients_left_out), None
        ),
        like_baseline=base is None or (traits.equivalence, traits.boundary) == (base.equivalence, base.boundary),
    )


def _worst(records: Iterable[Record], key: str) -> Numerics | None:
    """The numerics of the round whose error is the largest."""
    errors = [
        (value, record.numerics)
        for record in records
        if not isinstance(value := round_value(record, REGISTRY[key]), Reason)
    ]
    return max(errors, key=lambda error: error[0])[1] if errors else None


def _flags(record: Record, regime: Regime) -> set[str]:
    """What is wrong with a round's main series, and with the machine around it."""
    series = record.latency.get(regime)
    throttled = ["throttled"] if record.machine and record.machine.throttle else []
    return {*(series.flags if series else ()), *throttled}


def _winner(rows: Iterable[Row], key: str) -> Winner | None:
    """The row of least value among those measured, and those whose ratio to it does not exclude 1."""
    having = [row for row in rows if row.ok and key in row.cells]
    if len(having) < 2:
        return None
    best = min(having, key=lambda row: row.cells[key].estimate)
    ratios = [(row, compare(best.cells[key], row.cells[key])) for row in having if row.id != best.id]
    tied = tuple(row for row, ratio in ratios if ratio.low is not None and not ratio.excludes(1.0))
    return Winner(best, tied, certain=all(ratio.low is not None for _, ratio in ratios))
