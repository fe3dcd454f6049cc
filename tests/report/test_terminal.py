"""The closing table: narrow, complete, and safe for a terminal."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console
from synthetic import NETWORKS, WORLD, World, make

from niffbench import report
from niffbench.report import text
from niffbench.report.digest import gather
from niffbench.report.exports import findings_of
from niffbench.results import Run


def _printed(run: Run, width: int = 100) -> str:
    console = Console(width=width, force_terminal=False, color_system=None)
    with console.capture() as captured:
        console.print(report.terminal(run))
    return captured.get()


def test_every_operator_stands_in_100_columns_uncut() -> None:
    printed = _printed(make(World(sizes=(28, 112)), Path("made-up")))
    assert max(map(len, printed.splitlines())) <= 100
    assert "…" not in printed
    for name in ("niff-depthwise/published", "fft-depthwise-k31", "B1 64@112", "oom", "steady", "depthwise-k7"):
        assert name in printed


def test_the_winner_is_marked_once_a_column() -> None:
    printed = _printed(make(World(sizes=(28,), faults=()), Path("made-up")))
    lines = [
        line for line in printed.splitlines() if "★" in line and line.startswith(("niff", "depthwise", "dense"))
    ]
    best = next(line for line in lines if line.startswith("depthwise-k3"))
    assert best.count("★") == 2  # latency and FLOPs
    assert re.search(r"≈ \d+ KiB", best)  # planted: as much memory as its other kernels
    assert not any("★" in line for line in printed.splitlines() if line.startswith("niff"))


def test_it_opens_with_the_crossovers() -> None:
    some = tuple(planted for planted in WORLD if planted.operator in ("niff-depthwise/rfft", "depthwise"))
    world = World(sizes=(56,), operators=some, kernels={"depthwise": (7, 11, 15)}, faults=(), rounds=5)
    run = make(world, Path("made-up"))
    [crossover] = [entry for entry in findings_of(run)["crossovers"] if entry["quantity"] == "latency"]
    opening = _printed(run).partition("operator  ")[0]
    for word in ("rival", "form", "rival_better_to", "form_better_from"):
        assert re.search(rf"(?<![\d/-]){crossover[word]}\b", opening.lower()), word


def test_one_round_decides_no_latency() -> None:
    printed = _printed(make(World(sizes=(28,), faults=(), rounds=1), Path("made-up")))
    assert not re.search(r"★ [\d.]+ [mµn]?s", printed)
    assert re.search(r"★ \d+ kFLOP", printed)
    assert "median of 1 round" in printed


def test_a_long_run_gets_one_line_a_problem() -> None:
    printed = _printed(make(World(sizes=tuple(range(8, 28))), Path("made-up")))
    assert len(printed.splitlines()) < 40
    assert "B1 64@27" in printed
    assert max(map(len, printed.splitlines())) <= 100


@pytest.mark.parametrize("width", [60, 80, 120])
def test_a_long_run_is_readable_at_any_width(width: int) -> None:
    run = make(World(sizes=tuple(range(8, 28)), faults=()), Path("made-up"))
    printed = _printed(run, width)
    assert max(map(len, printed.splitlines())) <= width
    assert "…" not in printed
    digest = gather(run)
    for group in digest.groups:
        ratio = group.winners["latency_steady"].row.cells["latency_steady"].ratio
        assert ratio is not None
        first = next(line for line in printed.splitlines() if line.startswith(group.label[:6]))
        assert group.label[:6] in first
        assert text.times(ratio.estimate) in printed


def test_escape_codes_in_records_do_not_reach_the_terminal() -> None:
    run = make(World(sizes=(28,)), Path("made-up"))
    records = tuple(
        replace(
            record,
            reason="\x1b]0;x\x07",
            traits=replace(record.traits, label=f"\x1b[2J[bold]{record.traits.label}[/]"),
        )
        for record in run.records
    )
    printed = _printed(Run(run.path, run.manifest, records))
    assert "\x1b" not in printed
    assert "[bold]" in printed  # markup of rich is text here


def test_networks_are_told_in_images_per_second_too_and_what_was_chosen_in_brackets() -> None:
    world = World(operators=NETWORKS, sizes=(32,), batches=(8,), faults=(), baseline="network/resnet18")
    run = make(world, Path("made-up"))
    printed = _printed(run)
    assert max(map(len, printed.splitlines())) <= 100
    assert "…" not in printed
    assert "images/s" in printed
    speed = next(row.value("images_per_second") for row in gather(run).rows)
    assert f" {text.plain(speed)} " in next(line for line in printed.splitlines() if "network/resnet18 " in line)
    assert "(native 12, dft 1)" in " ".join(printed.split())
    assert "images/s" not in _printed(make(World(sizes=(28,)), Path("made-up")))
