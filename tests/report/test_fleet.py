"""A run of several machines: intervals over them, the slow one named everywhere, unlike ones side by side."""

from __future__ import annotations

import json
from dataclasses import replace
from math import log
from pathlib import Path

import pytest
from synthetic import FEW, World, make, write

from niffbench import report
from niffbench.errors import FingerprintsDiffer
from niffbench.gate.comparison import compare
from niffbench.gate.findings import Comparison
from niffbench.gate.noise import Aim, assess
from niffbench.gate.rules import Rules
from niffbench.report import tables
from niffbench.report.digest import gather
from niffbench.report.exports import findings_of, written
from niffbench.report.facts import facts, notices
from niffbench.report.plots import custom
from niffbench.report.plots.custom import Request, resolve
from niffbench.results import frame
from niffbench.results.fleet import fleet, machines

SIZES = (14, 28, 56)
ALIKE = World(sizes=SIZES, rounds=16, operators=FEW, faults=(), nodes=(1.0, 1.01, 0.99, 1.0, 1.01, 0.99, 1.0, 1.0))
SLOW = replace(ALIKE, nodes=(1.0, 1.01, 0.99, 1.12, 1.01, 0.99, 1.0, 1.0))
ONE = replace(ALIKE, nodes=(1.0,))


def judged(base: World, head: World) -> Comparison:
    return compare(make(base, Path("base")), make(head, Path("head")), Rules())


def test_one_node_is_measured_as_none(tmp_path: Path) -> None:
    """A number on every record changes no number of the report."""
    alone, numbered = make(replace(ALIKE, nodes=()), tmp_path / "run"), make(ONE, tmp_path / "run")
    assert numbered.records[0].node == 0
    ours, theirs = findings_of(numbered), findings_of(alone)
    assert ours == theirs
    assert ours["fleet"] == []
    judgements = [compare(run, run, Rules()).findings for run in (alone, numbered)]
    assert judgements[0] == judgements[1]


@pytest.mark.parametrize("sharded", [False, True])
def test_intervals_are_over_the_devices(sharded: bool) -> None:
    """Nodes that differ by 20 % make wide intervals of values and none of ratios, in which they cancel."""
    apart = replace(ALIKE, nodes=(1.0, 1.2), rounds=12, sharded=sharded)
    rows = [gather(make(world, Path("run"))).rows for world in (apart, replace(apart, nodes=(1.1,)))]
    for ours, alone in zip(*rows, strict=True):
        cell, other = ours.cells["latency_steady"], alone.cells["latency_steady"]
        assert cell.value.rounds == 2
        assert cell.value.low is not None
        assert cell.value.low < 0.5 * cell.estimate
        assert other.value.rounds == 12
        assert (other.value.half_width or 1) < 0.05
        if cell.ratio is not None and cell.ratio.low != cell.ratio.high:
            assert cell.ratio.rounds == 2
            assert cell.ratio.estimate == pytest.approx(other.ratio.estimate if other.ratio else 0, rel=0.03)


def test_the_slow_node_is_named_wherever_the_run_is_shown() -> None:
    run = make(SLOW, Path("run"))
    [sentence] = fleet(run).sentences()
    assert sentence.startswith("node 3 is 1")
    assert "slower than the other seven" in sentence
    assert "at lower clocks (1,567 against 1,755 MHz)" in sentence
    said = f"N{sentence[1:]}."
    assert said in notices(gather(run))
    table = tables.fleet(gather(run))
    assert [row.entries[0].marks for row in table.rows] == [("failed",) if n == 3 else () for n in range(8)]
    assert table.rows[3].entries[0].text == "node 3, straggler"
    findings = json.loads(written(findings_of(run)))
    assert [one["node"] for one in findings["fleet"]] == list(range(8))
    [slow] = [one for one in findings["fleet"] if one["straggler"]]
    assert (slow["node"], slow["fellows"], slow["sentence"]) == (3, 7, sentence)
    assert slow["low"] < 1.12 < slow["high"]
    assert slow["compared"] == slow["cases"] == len(run.manifest.suite.cases)
    assert f"HEAD (head): {sentence}" in judged(ALIKE, SLOW).notes
    assert ("fleet", "8 devices of 8 nodes; intervals are over these, the rounds of each taken together") in facts(
        gather(run)
    )


def test_of_a_fleet_of_equals_nobody_is_named() -> None:
    run = make(ALIKE, Path("run"))
    assert fleet(run).sentences() == ()
    table = tables.fleet(gather(run))
    assert [row.entries[0].text for row in table.rows] == [f"node {number}" for number in range(8)]
    assert not any(row.entries[0].marks for row in table.rows)


def test_devices_of_a_node_are_told_apart() -> None:
    run = make(replace(ALIKE, nodes=(1.0, 1.0)), Path("run"))
    ids = ["aaaaaaaaaaaa", "bbbbbbbbbbbb"]
    records = [replace(one, device_id=ids[one.round // 2 % 2]) if one.node else one for one in run.records]
    members = fleet(replace(run, records=tuple(records))).members
    assert [one.name for one in members] == ["node 0", "node 1, device 0", "node 1, device 1"]
    assert [one.member[1] for one in members] == ["", *ids]


def test_a_case_that_one_device_alone_measured_is_said() -> None:
    run = make(ALIKE, Path("run"))
    lone = run.records[0].id
    records = tuple(one for one in run.records if one.id != lone or one.node == 5)
    digest = gather(replace(run, records=records))
    assert any(notice.startswith("1 case of ") and "one device alone" in notice for notice in notices(digest))


def test_devices_and_not_rounds_are_what_the_gate_compares() -> None:
    """Sixteen rounds of two machines are two, of which nothing can be said; of eight machines they are eight."""
    regressed = {operator.operator: 1.3 for operator in FEW if operator.operator == "global-filter"}
    few = judged(replace(ALIKE, nodes=(1.0, 1.05)), replace(ALIKE, nodes=(1.0, 1.05), slower=regressed))
    timed = [one for one in few.findings if one.quantity == "latency_steady"]
    assert {one.verdict for one in timed} == {"inconclusive"}
    assert {one.rounds for one in timed} == {(2, 2)}
    assert all("2 devices a side, at least 5 are needed" in one.reason for one in timed)
    many = judged(ALIKE, replace(ALIKE, seed=1, slower=regressed))
    worse = {one.label for one in many.findings if one.verdict == "regressed"}
    assert worse == {"global-filter"}
    assert "Welch's test on logs of the medians of devices" in many.method


def test_a_fleet_and_one_device_are_not_told_apart() -> None:
    """Nobody knows how far from the fleet's the one device would be."""
    mixed = judged(replace(ALIKE, nodes=()), ALIKE)
    timed = [one for one in mixed.findings if one.quantity == "latency_steady"]
    assert {one.verdict for one in timed} == {"inconclusive"}
    assert all("one device on a side" in one.reason for one in timed)


def test_what_a_fleet_can_show_is_judged_by_its_devices() -> None:
    noisy = assess(make(replace(ALIKE, nodes=(1.0, 1.2, 0.8, 1.1)), Path("run")), Rules(), Aim())
    assert noisy.ab is None
    assert noisy.alarms == ()
    assert all(0.1 < case.rounds.sd < 0.3 for case in noisy.cases if case.quantity == "latency_steady")


UNLIKE = replace(ALIKE, sizes=(14,), rounds=12, nodes=(1.0, 2.0, 1.01, 2.02, 0.99, 1.98), older=(1, 3, 5))


@pytest.mark.usefixtures("undrawn")
def test_unlike_machines_are_put_side_by_side_and_never_taken_together(tmp_path: Path) -> None:
    run = write(tmp_path / "run", UNLIKE)
    one, two = machines(run)
    assert [kind.manifest.fingerprint.must["torch"] for kind in (one, two)] == ["2.15.0", "2.11.0"]
    assert [kind.manifest.rounds for kind in (one, two)] == [6, 6]
    assert {record.round for record in two.records} == set(range(6))
    assert {record.node for record in two.records} == {1, 3, 5}
    assert one.manifest.ceilings is not None
    assert two.manifest.ceilings is None
    for ours, theirs in zip(gather(one).rows, gather(two).rows, strict=True):
        values = [row.cells["latency_steady"] for row in (ours, theirs)]
        assert log(values[1].estimate / values[0].estimate) == pytest.approx(log(2), abs=0.05)
        assert (values[0].value.half_width or 1) < 0.1
    document = json.loads(json.dumps(findings_of(run)))
    assert [len(part["fleet"]) for part in document["machines"]] == [3, 3]
    page = report.write(run, run.path).read_text()
    assert page.count("Device by device") >= 2
    assert one.name in page
    assert two.name in page
    assert json.loads((run.path / "findings.json").read_text()) == document
    assert report.terminal(run)


def test_what_takes_one_machine_refuses_several_by_name(tmp_path: Path) -> None:
    run = make(UNLIKE, tmp_path)
    uses = (gather, lambda run: compare(run, run, Rules()), lambda run: assess(run, Rules(), Aim()))
    for use in uses:
        with pytest.raises(
            FingerprintsDiffer, match=r"2 machines that are unlike \(torch '2\.15\.0' and '2\.11\.0'"
        ):
            use(run)


def test_what_is_drawn_of_a_fleet_are_its_devices(tmp_path: Path) -> None:
    """The bars of two that differ by 20 % are wide, whatever their rounds say."""
    table = frame(make(replace(ALIKE, nodes=(1.0, 1.2)), tmp_path))
    request = resolve(Request("label", "latency_steady", col="size"), table, "steady")
    drawn = custom._over_devices(request, table[table["status"] == "ok"])
    assert len(drawn) == 2 * table["case"].nunique()
    assert set(drawn["node"]) == {0, 1}
    alone = frame(make(ONE, tmp_path))
    assert custom._over_devices(request, alone) is alone
