"""What a machine can show of a change, and how often decision rules are wrong."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from statistics import median
from typing import Any

from rich.console import Group, RenderableType
from rich.text import Text

from niffbench.gate.noise import Assessment
from niffbench.gate.simulation import CASES, Row
from niffbench.report.table import Column, Entry, Mark, Table, row_of
from niffbench.report.text import clean, percent, plural, seconds
from niffbench.report.writers.terminal import STYLES, Terminal
from niffbench.stats import refining
from niffbench.stats.power import Fitness
from niffbench.units import percents

_MARKS: dict[str, tuple[Mark]] = {"fit": ("passed",), "unfit": ("failed",), "unknown": ("undecided",)}


def terminal(assessment: Assessment) -> RenderableType:
    """One line per latency, then the verdict on either gate."""
    aim = assessment.aim
    of_fleet = any(case.of_devices for case in assessment.cases)
    one = "devices" if of_fleet else "rounds"
    unit = f"{aim.rounds} {one} a side or {aim.rounds} pairs"
    parts: list[RenderableType] = [
        Terminal(table(assessment)),
        Text(
            f"\nnoise: standard deviation between {one}. sees: the smallest slowdown found with probability "
            f"{percents(aim.power)} by {unit}. needs: {one} a side (check) or pairs (ab) to find "
            f"{percent(aim.effect)}.",
            style="dim",
        ),
        _verdict("check", assessment.check),
    ]
    if of_fleet:
        parts.append(Text("ab: runs on one device", style="yellow"))
    elif assessment.ab is None:
        parts.append(Text("ab: too few rounds to tell; measure at least 6", style="yellow"))
    else:
        parts.append(_verdict("ab", assessment.ab))
    if assessment.alarms:
        alarms = plural(assessment.false_alarms, "false alarm")
        judged = f"judged as an A/B run of the code with itself: {alarms} in "
        style = "red" if assessment.false_alarms else "green"
        parts.append(Text(judged + plural(len(assessment.alarms), "judgement"), style=style))
    return Group(*parts)


def table(assessment: Assessment) -> Table:
    """Noise of each latency, and what either gate sees of it."""
    gates = [("check", assessment.check), *([("ab", assessment.ab)] if assessment.ab else [])]
    columns = [Column("case"), Column("latency"), Column("median", "figure", importance=5),
               Column("noise (95 %)", "figure", importance=8)]  # fmt: skip
    for name, _ in gates:
        columns += [Column(f"{name} sees", "figure"), Column(f"{name} needs", "figure", importance=7)]
    rows = []
    for number, case in enumerate(assessment.cases):
        medians = [value for value in case.medians if value == value]
        noise = case.rounds
        entries = [
            Entry(clean(case.results.label), clean(case.results.problem)),
            Entry(case.quantity.removeprefix("latency_")),
            Entry(seconds(median(medians))),
            Entry(percent(noise.sd), f"{percent(noise.low)} to {percent(noise.high)}"),
        ]
        for _, fitness in gates:
            sees, needs = fitness.detectable[number], fitness.needed[number]
            entries.append(Entry(percent(sees.effect), marks=_MARKS[fitness.cases[number]]))
            entries.append(Entry("> 1000" if needs is None else str(needs)))
        rows.append(row_of(*entries))
    return Table("noise", "", tuple(columns), tuple(rows))


def _verdict(gate: str, fitness: Fitness) -> Text:
    return Text(f"{gate}: {fitness.verdict}: {fitness.reason}", style=STYLES[_MARKS[fitness.verdict][0]])


def plain(assessment: Assessment) -> dict[str, Any]:
    """The same for a machine; relative numbers as shares of one."""
    gates = {"check": assessment.check, "ab": assessment.ab}
    verdicts = [gate.verdict for gate in gates.values() if gate]
    return {
        "headline": "; ".join(f"{name}: {gate.reason}" for name, gate in gates.items() if gate),
        "counts": {verdict: verdicts.count(verdict) for verdict in dict.fromkeys(verdicts)},
        "run": assessment.run.name,
        "rounds": assessment.run.manifest.rounds,
        "aim": {"effect": assessment.aim.effect, "power": assessment.aim.power, "rounds": assessment.aim.rounds},
        "alpha": assessment.rules.alpha,
        "min_effect": assessment.rules.min_effect,
        "fit": assessment.fit,
        "gates": {name: {"verdict": f.verdict, "reason": f.reason} if f else None for name, f in gates.items()},
        "false_alarms": assessment.false_alarms if assessment.alarms else None,
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
            for i, case in enumerate(assessment.cases)
        ],
    }


def tables(rows: Sequence[Row]) -> tuple[Table, Table]:
    """False alarms, and power: a line per rule and scenario, a column per run-to-run standard deviation."""
    effects = " / ".join(f"{percents(effect)}" for effect in rows[0].effects)
    return (
        _table(
            "alarms",
            f"False alarms: share of suites of {CASES} unchanged cases with any (share of cases)",
            rows,
            lambda row: f"{_share(row.suite_alarms, row.suites)} ({_share(row.case_alarms, row.suites * CASES)})",
        ),
        _table(
            "power",
            f"Power: share of suites in which one case slowed down by {effects} is called slower",
            rows,
            lambda row: " / ".join(_share(power, row.suites) for power in row.power),
        ),
    )


def crossovers(rows: Sequence[refining.Row]) -> Table:
    """What became of made-up curves whose crossovers were bracketed: a line per kind."""
    shares = ("adjacent", "tied", "open", "wrong")
    return Table(
        "crossovers",
        f"Crossovers of {rows[0].curves} made-up curves a kind, ratios with a standard deviation of "
        f"{100 * refining.SD:g} % from round to round",
        (
            Column("curve"),
            Column("measured before"),
            Column("between neighbours", "figure"),
            Column("with a tie", "figure"),
            Column("not found", "figure"),
            Column("wrong", "figure"),
            Column("values added", "figure"),
            Column("rounds added", "figure"),
        ),
        tuple(
            row_of(
                row.name,
                ", ".join(map(str, row.grid)),
                *(_share(getattr(row, share), row.curves) for share in shares),
                f"{row.values:.1f}",
                f"{row.rounds:.0f}",
            )
            for row in rows
        ),
    )


def _table(name: str, title: str, rows: Sequence[Row], cell: Callable[[Row], str]) -> Table:
    deviations = sorted({row.run_sd for row in rows})
    shown = {(row.rule, row.scenario, row.run_sd): cell(row) for row in rows}
    pairs = dict.fromkeys((row.rule, row.scenario) for row in rows)
    return Table(
        name,
        title,
        (
            Column("rule"),
            Column("samples"),
            *(
                Column(f"run-to-run sd {100 * sd:g} %", "figure", importance=8 - place)
                for place, sd in enumerate(deviations)
            ),
        ),
        tuple(row_of(*pair, *(shown.get((*pair, sd), "") for sd in deviations)) for pair in pairs),
    )


def _share(value: float, trials: int) -> str:
    """Two decimals of a share, without the zero in front.

    ``1`` only where it is exactly that. None in so many trials is not zero but less than three in as many, the
    95 % limit of a probability of which nothing was seen.
    """
    if value == 0:
        return f"<{3 / trials:.2g}".replace("<0.", "<.")
    if value == 1:
        return "1"
    if not 0.005 <= value < 0.995:
        return "<.01" if value < 0.5 else ">.99"
    return f"{value:.2f}".removeprefix("0")
