"""What a machine can show, on a terminal and as JSON."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from niffbench.gate.noise import Assessment, Noisy
from niffbench.report.text import MISSING, clean, percent, plural, seconds
from niffbench.stats.power import Detectable, Fitness

_COLOURS = {"fit": "green", "unfit": "red", "unknown": "yellow"}


def show(found: Assessment, console: Console) -> None:
    """Print one line per latency, then the verdict on either gate."""
    aim = found.aim
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("case", overflow="fold")
    table.add_column("latency")
    for heading in ("median", "noise", "(95 %)"):
        table.add_column(heading, justify="right", no_wrap=True)
    for gate in ("check", "ab") if found.ab else ("check",):
        table.add_column(f"{gate} sees", justify="right", no_wrap=True)
        table.add_column(f"{gate} needs", justify="right", no_wrap=True)
    for number, case in enumerate(found.cases):
        table.add_row(*_cells(found, number, case))
    console.print(table)
    unit = f"{aim.rounds} rounds a side or {aim.rounds} pairs"
    console.print(
        f"\nnoise: standard deviation between rounds. sees: the smallest slowdown found with probability "
        f"{aim.power:.0%} by {unit}. needs: rounds a side (check) or pairs (ab) to find {percent(aim.effect)}.",
        style="dim",
    )
    _verdict(console, "check", found.check)
    if found.ab is None:
        console.print("ab: too few rounds to tell; measure at least 6", style="yellow")
    else:
        _verdict(console, "ab", found.ab)
    if found.alarms:
        style = "red" if found.false_alarms else "green"
        told = f"{plural(found.false_alarms, 'false alarm')} in {plural(len(found.alarms), 'judgement')}"
        console.print(f"judged as an A/B run of the code with itself: {told}", style=style)


def _cells(found: Assessment, number: int, case: Noisy) -> list[str | Text]:
    values = sorted(value for value in case.medians if value == value)
    cells: list[str | Text] = [
        f"{clean(case.results.label)} {clean(case.results.problem)}",
        case.quantity.removeprefix("latency_"),
        seconds(values[len(values) // 2]),
        _noise(case.rounds.sd),
        f"{_noise(case.rounds.low)} to {_noise(case.rounds.high)}",
    ]
    for fitness in (found.check, found.ab) if found.ab else (found.check,):
        colour = _COLOURS[fitness.cases[number]]
        cells += [Text(_effect(fitness.detectable[number]), style=colour), _rounds(fitness.needed[number])]
    return cells


def _noise(sd: float) -> str:
    return f"{100 * sd:.2g} %"


def _effect(found: Detectable) -> str:
    return MISSING if found.effect is None else f"{100 * found.effect:.1f} %"


def _rounds(needed: int | None) -> str:
    return "> 1000" if needed is None else str(needed)


def _verdict(console: Console, gate: str, fitness: Fitness) -> None:
    console.print(Text(f"{gate}: {fitness.verdict}: {fitness.reason}", style=f"bold {_COLOURS[fitness.verdict]}"))


def plain(found: Assessment) -> dict[str, Any]:
    """The same for a machine; relative numbers as shares of one."""
    gates = {"check": found.check, "ab": found.ab}
    return {
        "run": found.run.name,
        "rounds": found.run.manifest.rounds,
        "aim": {"effect": found.aim.effect, "power": found.aim.power, "rounds": found.aim.rounds},
        "alpha": found.rules.alpha,
        "min_effect": found.rules.min_effect,
        "fit": found.fit,
        "gates": {name: {"verdict": f.verdict, "reason": f.reason} if f else None for name, f in gates.items()},
        "false_alarms": found.false_alarms if found.alarms else None,
        "cases": [
            {
                "case": case.results.any.id,
                "label": case.results.label,
                "problem": case.results.problem,
                "quantity": case.quantity,
                "noise": case.rounds.sd,
                "noise_interval": [case.rounds.low, case.rounds.high],
                "paired_noise": case.paired.sd if case.paired else None,
                **{
                    name: {"verdict": f.cases[i], "detectable": f.detectable[i].effect, "needed": f.needed[i]}
                    for name, f in gates.items()
                    if f
                },
            }
            for i, case in enumerate(found.cases)
        ],
    }
