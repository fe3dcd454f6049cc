"""Busy neighbours: told wherever a run is looked at, with the share and the number of cases."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from html import unescape
from pathlib import Path

import pytest
from rich.console import Console
from synthetic import World, make

from niffbench import report
from niffbench.gate.comparison import compare
from niffbench.gate.latencies import Pairing
from niffbench.gate.rules import Rules
from niffbench.results import MachineState, Record, Run, background_load, calm_cases, dump, frame, parse

WORLD = World(rounds=8, sizes=(14, 28), faults=())
CALM = make(WORLD, Path("calm"))
CASES = len(CALM.manifest.suite.cases)


def _beside(others: Callable[[Record], float | None]) -> Run:
    """The made-up run as it would be had ``others`` been there."""
    records = tuple(replace(r, machine=MachineState(load=0.1, others=others(r))) for r in CALM.records)
    return Run(Path("crowded"), CALM.manifest, records)


CROWDED = _beside(lambda r: (0.41 if r.round == 1 else 0.2) if r.case.operator == "dense" else 0.01)
DENSE = len({record.id for record in CALM.records if record.case.operator == "dense"})
NOTE = f"ther processes used up to 41 % of the processor while {DENSE} of {CASES} cases were sampled"


@pytest.mark.parametrize("share", [None, 0.0, 0.05])
def test_a_quiet_machine_and_one_that_does_not_tell_are_not_called_busy(share: float | None) -> None:
    assert background_load(_beside(lambda record: share).records) is None


def test_a_case_counts_once_and_the_largest_share_is_told() -> None:
    result = background_load(CROWDED.records)
    assert result is not None
    assert (result.sampled, result.busy, result.most) == (CASES, DENSE, 0.41)


def test_a_case_of_which_nobody_knows_is_as_calm_as_the_busiest_other() -> None:
    dense = {record.id for record in CALM.records if record.case.operator == "dense"}
    every = {record.id for record in CALM.records}
    assert calm_cases(CROWDED.records) == every - dense
    unknown = _beside(lambda record: 0.2 if record.case.operator == "dense" else None)
    assert calm_cases(unknown.records) == set()
    assert calm_cases(_beside(lambda record: None).records) == every


def test_what_was_never_sampled_has_no_neighbours() -> None:
    lost = tuple(replace(r, status="crashed", latency={}) for r in CROWDED.records if r.case.operator == "dense")
    others = tuple(r for r in CROWDED.records if r.case.operator != "dense")
    assert background_load((*lost, *others)) is None


@pytest.mark.usefixtures("undrawn")
def test_the_terminal_and_the_report_say_it_and_what_to_do(tmp_path: Path) -> None:
    console = Console(width=1000, force_terminal=False, color_system=None)
    with console.capture() as captured:
        console.print(report.terminal(CROWDED))
    page = report.write(CROWDED, tmp_path)
    for text in (captured.get(), unescape(page.read_text()), (tmp_path / "report.md").read_text()):
        assert f"O{NOTE}: repeat the run on a quiet machine, or compare versions with ab." in text
    with console.capture() as captured:
        console.print(report.terminal(CALM))
    assert "ther processes" not in captured.get()


def test_the_frame_holds_the_share() -> None:
    assert sorted(set(frame(CROWDED)["others"])) == [0.01, 0.2, 0.41]


def test_a_check_says_which_side_had_them_and_judges_all_the_same() -> None:
    comparison = compare(CALM, CROWDED, Rules())
    assert [note for note in comparison.notes if "processes" in note] == [
        f"HEAD (crowded): o{NOTE}; ab measures both sides in turn"
    ]
    assert comparison.findings == compare(CALM, CALM, Rules()).findings
    paired = compare(CROWDED, CALM, Rules(), pairing=Pairing((True, False) * 4))
    assert [note for note in paired.notes if "processes" in note] == [f"BASE (crowded): o{NOTE}"]


def test_a_record_of_before_knows_of_no_others_and_one_of_now_keeps_them() -> None:
    line = dump(CROWDED.records[0])
    assert parse(line) == CROWDED.records[0]
    before = parse(line.replace(b'"others":0.01,', b""))
    assert before.machine == MachineState(load=0.1)
