"""Error rates of decision rules as tables: what each cries wolf at, and what it sees."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from rich.console import Console
from rich.table import Table

from niffbench.stats.simulation import CASES, Row

Cell = Callable[[Row], str]


def _alarms(row: Row) -> str:
    return f"{_share(row.suite_alarms)} ({_share(row.case_alarms)})"


def _power(row: Row) -> str:
    return " / ".join(map(_share, row.power))


def _share(value: float) -> str:
    """Two decimals of a share, without the zero in front; ``0`` and ``1`` only where it is exactly that."""
    if value in (0, 1):
        return f"{value:.0f}"
    if not 0.005 <= value < 0.995:
        return "<.01" if value < 0.5 else ">.99"
    return f"{value:.2f}".removeprefix("0")


def _captions(rows: Sequence[Row]) -> tuple[tuple[str, Cell], ...]:
    effects = " / ".join(f"{effect:.0%}" for effect in rows[0].effects)
    return (
        (f"False alarms: share of suites of {CASES} unchanged cases with any (share of cases)", _alarms),
        (f"Power: share of suites in which one case slowed down by {effects} is called slower", _power),
    )


def _lines(rows: Sequence[Row], cell: Cell) -> tuple[list[str], list[list[str]]]:
    """Headings, and one line per rule and scenario with a column per run-to-run standard deviation."""
    deviations = sorted({row.run_sd for row in rows})
    found = {(row.rule, row.scenario, row.run_sd): cell(row) for row in rows}
    pairs = dict.fromkeys((row.rule, row.scenario) for row in rows)
    headings = ["rule", "samples", *(f"run-to-run sd {100 * sd:g} %" for sd in deviations)]
    return headings, [[*pair, *(found.get((*pair, sd), "") for sd in deviations)] for pair in pairs]


def show(rows: Sequence[Row]) -> None:
    """Print both tables."""
    console = Console()
    for caption, cell in _captions(rows):
        headings, lines = _lines(rows, cell)
        table = Table(title=caption, box=None, title_justify="left", pad_edge=False)
        for number, heading in enumerate(headings):
            table.add_column(heading, justify="left" if number < 2 else "right")
        for line in lines:
            table.add_row(*line)
        console.print(table)
        console.print()


def markdown(rows: Sequence[Row]) -> str:
    """Both tables as Markdown."""
    parts: list[str] = []
    for caption, cell in _captions(rows):
        headings, lines = _lines(rows, cell)
        parts += [f"{caption}:", "", _line(headings), "|---|---|" + "--:|" * (len(headings) - 2)]
        parts += [_line(line) for line in lines] + [""]
    return "\n".join(parts)


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"
