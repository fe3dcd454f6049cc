"""Error rates of decision rules as tables: what each cries wolf at, and what it sees."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from niffbench.report.table import Column, Table, row_of
from niffbench.stats import refining
from niffbench.stats.simulation import CASES, Row


def tables(rows: Sequence[Row]) -> tuple[Table, Table]:
    """False alarms, and power: a line per rule and scenario, a column per run-to-run standard deviation."""
    effects = " / ".join(f"{effect:.0%}" for effect in rows[0].effects)
    return (
        _table(
            "alarms",
            f"False alarms: share of suites of {CASES} unchanged cases with any (share of cases)",
            rows,
            lambda row: f"{_share(row.suite_alarms)} ({_share(row.case_alarms)})",
        ),
        _table(
            "power",
            f"Power: share of suites in which one case slowed down by {effects} is called slower",
            rows,
            lambda row: " / ".join(map(_share, row.power)),
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
                *(_share(getattr(row, share)) for share in shares),
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


def _share(value: float) -> str:
    """Two decimals of a share, without the zero in front; ``0`` and ``1`` only where it is exactly that."""
    if value in (0, 1):
        return f"{value:.0f}"
    if not 0.005 <= value < 0.995:
        return "<.01" if value < 0.5 else ">.99"
    return f"{value:.2f}".removeprefix("0")
