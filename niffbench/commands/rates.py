"""``niffbench rates``: how often the gate cries wolf, and what it sees, beside other tools' rules."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, TypeVar

import click


class _Named(Protocol):
    @property
    def name(self) -> str: ...


Item = TypeVar("Item", bound=_Named)


@click.command("rates")
@click.option(
    "--suites", default=400, show_default=True, metavar="N", help="Simulated suites of 60 cases per row."
)
@click.option("--seed", default=0, show_default=True, help="Equal seeds give equal tables.")
@click.option(
    "--scenario", "scenarios", multiple=True, metavar="NAME", help="These scenarios only.  [default: all]"
)
@click.option("--rule", "rules", multiple=True, metavar="NAME", help="These rules only.  [default: all]")
@click.option("--crossovers", is_flag=True, help="Simulate the refining of crossovers instead of the gate.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of a table.")
@click.option("--markdown", is_flag=True, help="Print a Markdown table.")
def command(
    suites: int,
    seed: int,
    scenarios: tuple[str, ...],
    rules: tuple[str, ...],
    crossovers: bool,
    as_json: bool,
    markdown: bool,
) -> None:
    """Simulate decision rules on samples whose truth is known.

    False alarms: the share of suites of unchanged code in which a rule calls any case changed, and the share of
    cases. Power: the share of suites in which one case, slowed down among 59 unchanged ones, is called slower.
    The rules of `niffbench check` and `niffbench ab` are the code that judges real runs. Makes the README's table.
    With --crossovers it is --suites made-up curves of each kind whose crossovers are bracketed.
    """
    import json
    from dataclasses import asdict

    from niffbench.errors import UsageError
    from niffbench.gate import simulation
    from niffbench.report import fitness
    from niffbench.report.writers.markdown import write
    from niffbench.report.writers.terminal import Terminal, console
    from niffbench.stats import refining

    if suites < 1:
        raise UsageError(f"--suites should be at least 1, got {suites}")
    chosen_rules = _chosen(simulation.RULES, rules, "--rule")
    chosen = _chosen(simulation.SCENARIOS, scenarios, "--scenario")
    rows: tuple[simulation.Row, ...] | tuple[refining.Row, ...]
    if crossovers:
        rows = refining.table(curves=suites, seed=seed)
        tables = [fitness.crossovers(rows)]
    else:
        rows = simulation.table(rules=chosen_rules, scenarios=chosen, suites=suites, seed=seed)
        tables = list(fitness.tables(rows))
    if as_json:
        click.echo(json.dumps([asdict(row) for row in rows], indent=1))
    elif markdown:
        for table in tables:
            click.echo(f"{table.title}:\n\n{write(table)}\n")
    else:
        for table in tables:
            console().print(Terminal(table), "")


def _chosen(items: Sequence[Item], names: Sequence[str], option: str) -> tuple[Item, ...]:
    """The items of these names, all without any.

    Raises:
        UsageError: for a name that is none.
    """
    from niffbench.errors import UsageError, did_you_mean

    by_name = {item.name: item for item in items}
    for name in names:
        if name not in by_name:
            raise UsageError(f"{option} {name}: there is none{did_you_mean(name, by_name)}")
    return tuple(by_name[name] for name in names) or tuple(items)
