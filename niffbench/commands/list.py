"""``niffbench list``: the operators, suites, networks and metrics there are."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence


@click.command()
@click.argument("what", type=click.Choice(["operators", "suites", "networks", "metrics"]))
@click.argument("pattern", default="*")
@click.option("--json", "as_json", is_flag=True, help="Print a list of objects as JSON.")
@click.option("--markdown", is_flag=True, help="Print a table in Markdown.")
def command(what: str, pattern: str, as_json: bool, markdown: bool) -> int:
    """List operators, suites, networks or metrics.

    PATTERN (as 'niff-*') narrows the list. Parameters and FLOPs of networks are counted on shapes alone, for one
    image of 224×224; that takes some seconds the first time and is kept in the user's cache directory. Metrics are
    the columns of CSV, Parquet and JSON.

    Of a network that is not in the list, as 'torchvision:efficientnet_b0 replace.conv3x3=split', it shows what
    becomes of each layer and why, and parameters and FLOPs before and after.
    """
    from fnmatch import fnmatchcase

    from niffbench.errors import UsageError, did_you_mean
    from niffbench.suite import nameless

    if what == "networks" and ":" in pattern:
        _conversion(pattern, as_json)
        return 0
    names, rows = _SOURCES[what]()
    chosen = [name for name in names if fnmatchcase(name, pattern)]
    if not chosen:
        if lack := nameless(pattern):
            raise UsageError(f"'{pattern}' {lack}")
        raise UsageError(f"no {what[:-1]} is called '{pattern}'{did_you_mean(pattern, names)}")
    listed = rows(chosen)
    if as_json:
        sys.stdout.write(json.dumps(listed, indent=1) + "\n")
    else:
        _show(what, listed, markdown)
    return 0


Row = dict[str, Any]


def _operators() -> tuple[list[str], Callable[[Sequence[str]], list[Row]]]:
    from niffbench.operators.catalogue import catalogue

    operators = catalogue()

    def rows(names: Sequence[str]) -> list[Row]:
        return [
            {
                "operator": name + ("-kN" if operators[name].takes_kernel else ""),
                "family": operators[name].family,
                "role": operators[name].role,
                "boundary": operators[name].boundary,
                "options": {key: option.default for key, option in operators[name].options.items()},
                "dtypes": sorted(operators[name].dtypes),
                "summary": operators[name].summary,
            }
            for name in names
        ]

    return list(operators), rows


def _suites() -> tuple[list[str], Callable[[Sequence[str]], list[Row]]]:
    from niffbench.operators.catalogue import catalogue
    from niffbench.suite import available, load

    def rows(names: Sequence[str]) -> list[Row]:
        suites = [load(name, catalogue()) for name in names]
        return [
            {
                "suite": suite.name,
                "cases": len(suite.cases),
                "rounds": suite.rounds,
                "baseline": suite.baseline,
                "summary": suite.description,
            }
            for suite in suites
        ]

    return list(available()), rows


def _networks() -> tuple[list[str], Callable[[Sequence[str]], list[Row]]]:
    from niffbench.niff.catalogue import NETWORKS

    def rows(names: Sequence[str]) -> list[Row]:
        from niffbench.commands.network_costs import network_costs

        costs = network_costs(names)
        return [
            {
                "network": name,
                "base": NETWORKS[name].base,
                "variant": NETWORKS[name].variant,
                **asdict(costs[name]),
            }
            for name in names
        ]

    return list(NETWORKS), rows


def _conversion(text: str, as_json: bool) -> None:
    """What a rule makes of a network: each of its layers, and what the whole costs before and after."""
    import torch

    from niffbench.commands.network_costs import INPUT_SIZE, count_network
    from niffbench.errors import UsageError
    from niffbench.niff import networks
    from niffbench.operators.module import UserNetwork, check, users_code
    from niffbench.suite import entry_of, user_modules

    entry = entry_of(text)
    if entry.model is None:
        entry = entry.model_copy(update={"model": entry.module, "module": None})
    [row] = user_modules([entry], (str(Path.cwd()),))
    check(row)
    try:
        with users_code(entry.row), torch.device("meta"):
            model = UserNetwork.original(row, 1000)
            costs = {entry.row: count_network(model)}
            layers: list[networks.Replacement] = []
            if entry.replace:
                rule = networks.Rule.of(entry.replace, str(entry.options.get("execution", "rfft")))
                sizes = networks.feature_maps(model, INPUT_SIZE, INPUT_SIZE)
                layers = networks.replacements(model, rule, sizes)
                costs[text] = count_network(networks.convert(model, rule, sizes))
    except ValueError as error:
        raise UsageError(f"{entry.row}: {error}") from error
    rows = [{"network": name, **asdict(cost)} for name, cost in costs.items()]
    shown = [{**asdict(layer), "kind": layer.kind or "stays"} for layer in layers]
    if as_json:
        sys.stdout.write(json.dumps({"networks": rows, "layers": shown}, indent=1) + "\n")
        return
    if shown:
        _show("layers", shown)
    _show("networks", rows)


def _metrics() -> tuple[list[str], Callable[[Sequence[str]], list[Row]]]:
    from niffbench.results.metrics import dictionary

    lines: dict[str, Row] = {line["metric"]: {**line} for line in dictionary()}
    return list(lines), lambda names: [lines[name] for name in names]


_IMPORTANCE = {
    "operator": 9, "suite": 9, "network": 9, "metric": 9, "summary": 9, "parameters": 8, "flops": 8, "unit": 8,
    "cases": 7, "name": 9, "kind": 8, "why": 6, "layer": 7,
}  # fmt: skip
_SOURCES = {"operators": _operators, "suites": _suites, "networks": _networks, "metrics": _metrics}


def _show(what: str, rows: list[Row], markdown: bool = False) -> None:
    from niffbench.report import text
    from niffbench.report.table import Column, Table, row_of
    from niffbench.report.writers.markdown import write
    from niffbench.report.writers.terminal import Terminal, console

    shown = {"parameters": text.count, "flops": text.flops}
    names = [name for name in rows[0] if not (what == "operators" and name == "dtypes")]
    kinds = {name: "figure" if isinstance(rows[0][name], int) else "name" for name in names} | {
        "summary": "prose",
        "why": "prose",
    }
    columns = (Column(name, kinds[name], importance=_IMPORTANCE.get(name, 5)) for name in names)  # type: ignore[arg-type]
    lines = (row_of(*(shown.get(name, _cell)(row[name]) for name in names)) for row in rows)
    table = Table(what, "", tuple(columns), tuple(lines))
    if markdown:
        click.echo(write(table))
    else:
        console().print(Terminal(table))


def _cell(value: object) -> str:
    if isinstance(value, dict):
        return " ".join(f"{key}={default}" for key, default in value.items())
    return str(value)
