"""``niffbench plan``: what a run would do, without doing it."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from niffbench.commands.options import (
    loader,
    measure_options,
    operator_option,
    overrides_of,
    request_of,
    shard_option,
    suite_options,
)

if TYPE_CHECKING:
    from rich.console import Console

    from niffbench.report.table import Table
    from niffbench.session.budget import Share
    from niffbench.session.opening import Prepared
    from niffbench.session.plan import Forecast, Plan
    from niffbench.suite import Settings, Suite

_FEW = 3
"""Excluded cases that are named for one reason."""


@click.command()
@click.argument("suite")
@suite_options
@shard_option
@operator_option
@measure_options
@click.option("--json", "as_json", is_flag=True, help="Print the plan as JSON.")
def command(suite: str, as_json: bool, **overrides: Any) -> int:
    """Say what a run would do, need and take.

    SUITE is the name of a suite or the path of one. A worker process measures what the machine can do at best (a
    few seconds) and predicts the memory of every case from its shapes; no case is run and nothing is written.
    Times are estimates from the roofline, within a factor of two or three.
    """
    from niffbench.launch import launcher
    from niffbench.session.interrupts import Interrupts
    from niffbench.session.opening import prepare

    load = loader(suite, *(overrides.pop(name) for name in ("only", "shard", "added")))
    asked = overrides_of(overrides)
    with Interrupts() as stop, launcher(asked.launcher).open(request_of(overrides, Path("plan"), load)):
        prepared = prepare(load, asked, stop, counts_ahead=False)
    allowed = _allowed(prepared)
    if as_json:
        sys.stdout.write(json.dumps(_as_json(prepared, allowed), indent=1) + "\n")
    else:
        from niffbench.report.writers.terminal import console

        _show(console(), prepared, allowed)
    return 0


def _allowed(prepared: Prepared) -> Share | None:
    """What a time budget allows; None without one, or when it allows everything or nothing is measured."""
    from niffbench.session.budget import share

    settings, plan = prepared.settings, prepared.plan
    if settings.budget is None or not plan.tried:
        return None
    left = share(
        settings.budget, rounds=settings.rounds, cases=plan.tried, overhead=plan.overhead, measure=settings.measure
    )
    return left if left.is_less(settings.rounds, settings.measure) else None


def _show(console: Console, prepared: Prepared, allowed: Share | None) -> None:
    from rich.text import Text

    from niffbench.report import text
    from niffbench.report.writers.terminal import Terminal

    suite, settings, plan = prepared.suite, prepared.settings, prepared.plan
    console.print(Terminal(_table(prepared)))
    lines = [
        f"{suite.name}: {text.plural(len(plan.forecasts), 'case')}, {text.plural(settings.rounds, 'round')}, "
        f"{plan.skipped} skipped, "
        f"{len(suite.excluded)} excluded by the suite"
    ]
    lines += _exclusions(suite)
    if plan.available is not None:
        lines.append(f"memory: {text.size_of(plan.available)} available")
    if not plan.tried:
        lines.append("nothing would be measured: every case is skipped")
    else:
        lines += _times(settings, plan, allowed)
    for line in lines:
        console.print(Text(text.clean(line, 1000)))


def _times(settings: Settings, plan: Plan, allowed: Share | None) -> list[str]:
    """How long it takes, where anything is measured."""
    from niffbench.commands.progress import expected
    from niffbench.report import text

    lines = []
    estimated = sum(forecast.is_estimated for forecast in plan.forecasts)
    if estimated:
        lines.append(f"estimated: the time of {text.plural(estimated, 'case')}, whose bytes could not be counted")
    lines.append(
        f"time: {text.duration(plan.seconds / plan.rounds)} a round, in all {expected(plan.seconds, plan)}"
    )
    if settings.refine is not None:
        lines.append(
            f"refine: up to {text.duration(settings.refine.budget)} more, "
            f"to bracket crossovers along {settings.refine.axis}"
        )
    if allowed is not None:
        lines.append(
            f"budget: {text.duration(settings.budget or 0.0)} are enough for {allowed.rounds} of "
            f"{text.plural(settings.rounds, 'round')} "
            f"with {text.seconds(allowed.measure.max_time)} of sampling a regime; the run will say which cases "
            f"that did not let reach ±{text.percent(settings.measure.precision)}"
        )
    return lines


def _exclusions(suite: Suite) -> list[str]:
    """A line for each reason of the suite: how many cases, and the first few."""
    by_reason: dict[str, list[str]] = {}
    for one in suite.excluded:
        by_reason.setdefault(one.reason, []).append(f"{one.label} at {one.case.problem.label}")
    lines = []
    for reason, cases in by_reason.items():
        more = f" and {len(cases) - _FEW} more" if len(cases) > _FEW else ""
        lines.append(f"  excluded: {', '.join(cases[:_FEW])}{more}: {reason}")
    return lines


def _table(prepared: Prepared) -> Table:
    from niffbench.report import text
    from niffbench.report.table import Column, Entry, Table, row_of

    columns = (
        Column("problem", "group"),
        Column("operator"),
        Column("memory", "figure", unit="B"),
        Column("FLOPs", "figure", unit="FLOP", importance=5),
        Column("a round", "figure", unit="s"),
        Column("why not", "prose"),
    )
    problems = dict.fromkeys(forecast.case.problem for forecast in prepared.plan.forecasts)
    order = {problem: place for place, problem in enumerate(problems)}
    rows = tuple(
        row_of(
            forecast.case.problem.label,
            text.clean(forecast.label),
            Entry(text.size_of(forecast.needed), value=forecast.needed),
            Entry(text.flops(forecast.cost.flops()), value=forecast.cost.flops()),
            text.MISSING if forecast.skip else Entry(text.seconds(forecast.seconds), value=forecast.seconds),
            text.clean(_reason(forecast), 300),
        )
        for forecast in sorted(prepared.plan.forecasts, key=lambda forecast: order[forecast.case.problem])
    )
    table = Table("plan", "", columns, rows)
    return table if any(row.entries[-1].text for row in rows) else table.without("why not")


def _reason(forecast: Forecast) -> str:
    """Why a case will not be measured, or may turn out not to fit."""
    if forecast.skip:
        return forecast.skip.reason
    if forecast.predicted is not None and forecast.predicted.reason:
        return f"no prediction: {forecast.predicted.reason}"
    return ""


def _as_json(prepared: Prepared, allowed: Share | None) -> dict[str, Any]:
    """The plan for a machine: bytes, real FLOPs, seconds."""
    suite, settings, plan = prepared.suite, prepared.settings, prepared.plan
    return {
        "suite": suite.name,
        "device": settings.device,
        "fingerprint": prepared.survey.fingerprint.hash,
        "rounds": settings.rounds,
        "available": plan.available,
        "seconds": plan.seconds,
        "crowded": plan.crowded,
        "measure": settings.measure.model_dump(),
        "budget": settings.budget,
        "refine": settings.refine and settings.refine.model_dump(),
        "allowed": allowed and {"rounds": allowed.rounds, "measure": allowed.measure.model_dump()},
        "cases": [
            {
                "id": forecast.case.id,
                "label": forecast.label,
                "problem": forecast.case.problem.label,
                "flops": forecast.cost.flops(),
                "bytes": forecast.bytes,
                "estimated": forecast.is_estimated,
                "parameters": forecast.cost.parameters,
                "needed": forecast.needed,
                "seconds": forecast.seconds,
                "skipped": forecast.skip and forecast.skip.reason,
            }
            for forecast in plan.forecasts
        ],
        "excluded": [
            {"label": one.label, "problem": one.case.problem.label, "reason": one.reason} for one in suite.excluded
        ],
    }
