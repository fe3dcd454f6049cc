"""Refining: crossovers planted in a replay are bracketed by probes, which are ordinary records."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from run_session import Attempt, all_keys, asked, keys

from niffbench.case import Case
from niffbench.operators.catalogue import catalogue
from niffbench.results import Record, Run, read_manifest
from niffbench.session.interrupts import Interrupted, Interrupts
from niffbench.session.refine import Compared, comparisons
from niffbench.session.worker_session import Observer
from niffbench.suite import Suite, expand, parse

FORM, RIVAL = "niff-depthwise/rfft", "depthwise"
CLIFF = 15
"""The kernel from which on the rival is slow, and large."""

LARGE = {"latency": {"steady": {"median": 0.03}}, "memory": {"peak": 4_600_000}}
SMALL = {"latency": {"steady": {"median": 3e-4}}, "memory": {"peak": 1_600_000}}
REPLAY: dict[str, Any] = {
    "cases": [
        *({"label": f"{RIVAL}-k{kernel}", **LARGE} for kernel in range(CLIFF, 112, 2)),
        {"operator": RIVAL, **SMALL},
        {"operator": FORM, "latency": {"steady": {"median": 3.9e-4}}, "memory": {"peak": 3_000_000}},
        {
            "operator": "niff-depthwise/cached",
            "latency": {"steady": {"median": 1e-4}},
            "memory": {"peak": 1_000_000},
        },
    ]
}


def suite_of(*, kernels: list[int] = [7, 31], refine: str = "", forms: tuple[str, ...] = (FORM,)) -> Suite:  # noqa: B006
    operators = [f'{{name = "{form}"}}' for form in forms]
    text = f"""
        description = "made up"
        baseline = "depthwise-k{kernels[0]}"
        rounds = 3
        axes = {{channels = 64, size = 56}}
        operators = [{", ".join(operators)}, {{name = "depthwise", kernel = {kernels}}}]
        exclude = [{{where = {{kernel = 23}}, reason = "not that one"}}]
        [measure]
        regimes = ["steady"]
        min_time = 0.001
        max_time = 0.01
        [refine]
        axis = "kernel"
        {refine}
    """
    return expand(parse(text, "made-up.toml"), "made-up", "made-up.toml", text, catalogue())


def attempt(folder: Path, suite: Suite, replay: dict[str, Any] = REPLAY, **overrides: Any) -> Attempt:
    (folder / "replay.json").write_text(json.dumps(replay))
    asking = asked(launcher="inline", device=f"replay:{folder / 'replay.json'}", seed=1, **overrides)
    return Attempt(folder / "run", suite, overrides=asking)


def of(run: Run, quantity: str, form: str = FORM) -> Compared:
    [one] = [
        one for one in comparisons(run, catalogue()) if one.quantity == quantity and one.pair.form.operator == form
    ]
    return one


def probed(run: Run) -> set[int]:
    return {record.case.kernel for record in run.probes if record.case.kernel}


@pytest.fixture(scope="module")
def refined(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return attempt(tmp_path_factory.mktemp("refined"), suite_of(forms=(FORM, "niff-depthwise/cached"))).begin()


def test_a_cliff_is_bracketed_between_neighbours_in_latency_and_memory(refined: Run) -> None:
    for quantity in ("latency", "memory"):
        [crossover] = of(refined, quantity).comparison.crossovers
        assert crossover.bounds == {"rival_better_to": CLIFF - 2, "form_better_from": CLIFF}
        assert crossover.adjacent
    cliff = of(refined, "latency").comparison.crossovers[0].cliff
    assert cliff is not None
    assert cliff.side == "rival"
    assert cliff.ratio == pytest.approx(100, rel=0.1)
    assert cliff.expected == pytest.approx((CLIFF / (CLIFF - 2)) ** 2, rel=0.01)
    assert 23 not in probed(refined), "the suite excludes it"
    assert of(refined, "latency", "niff-depthwise/cached").comparison.better == "form"


def test_probes_are_records_of_rounds_that_measure_both_sides(refined: Run) -> None:
    assert keys(refined) == all_keys(suite_of(forms=(FORM, "niff-depthwise/cached")))
    assert {record.round for record in refined.records} == {0, 1, 2}
    rounds: dict[int, list[Record]] = {}
    for record in refined.probes:
        assert record.status == "ok"
        rounds.setdefault(record.round, []).append(record)
    assert sorted(rounds) == list(range(3, 3 + len(rounds)))
    for records in rounds.values():
        assert {record.case.operator for record in records} == {FORM, RIVAL}
    times = Counter(record.case.kernel for record in refined.probes if record.case.kernel)
    assert set(times.values()) == {1, 3}, "bytes need one round, at every kernel of the bracket"
    assert sum(number == 3 for number in times.values()) <= 4, "latency is bisected"
    manifest = read_manifest(refined.path)
    assert manifest.finished
    assert manifest.refining is not None
    assert manifest.wall is not None
    assert manifest.refining < manifest.wall


def test_flops_are_compared_at_every_admissible_value_and_need_no_probe(tmp_path: Path) -> None:
    run = attempt(tmp_path, suite_of(kernels=[3, 111], refine='quantities = ["flops"]')).begin()
    assert not run.probes
    form = (
        catalogue()[FORM].cost(run.records[0].case if run.records[0].case.kernel is None else _form(run)).flops()
    )
    rival = next(record.case for record in run.records if record.case.kernel)
    cheaper = [
        kernel
        for kernel in range(3, 112, 2)
        if catalogue()[RIVAL].cost(Case(RIVAL, rival.problem, kernel, rival.options)).flops() > form
    ]
    [crossover] = of(run, "flops").comparison.crossovers
    assert crossover.bounds == {"rival_better_to": min(cheaper) - 2, "form_better_from": min(cheaper)}
    assert crossover.adjacent


def _form(run: Run) -> Case:
    return next(record.case for record in run.records if record.case.operator == FORM)


class Stopper(Observer):
    """Asks for the end after so many records."""

    def __init__(self, stop: Interrupts, after: int) -> None:
        self.stop, self.left = stop, after

    def record(self, record: Record) -> None:
        self.left -= 1
        if self.left == 0:
            self.stop.requested = True


@pytest.mark.parametrize("after", [4, 9, 14])
def test_what_was_interrupted_goes_on_and_says_the_same(tmp_path: Path, refined: Run, after: int) -> None:
    one = attempt(tmp_path, suite_of(forms=(FORM, "niff-depthwise/cached")))
    with Interrupts() as stop:
        one.observer = Stopper(stop, after)
        with pytest.raises(Interrupted):
            one.begin(stop)
    assert read_manifest(one.place).finished is None
    one.observer = None
    run = one.resume()
    assert read_manifest(one.place).finished
    assert (
        of(run, "latency").comparison.crossovers[0].bounds
        == of(refined, "latency").comparison.crossovers[0].bounds
    )
    everything = [(record.id, record.round) for record in (*run.records, *run.probes)]
    assert len(everything) == len(set(everything))
    again = one.resume()
    assert len(again.probes) == len(run.probes), "nothing more is wanted"


def test_a_value_that_cannot_be_measured_is_gone_around(tmp_path: Path) -> None:
    fails = {"kind": "oom", "stage": "memory", "requested": 9, "available": 1}
    replay = {"cases": [{"label": "depthwise-k19", "failure": fails}, *REPLAY["cases"]]}
    run = attempt(tmp_path, suite_of(), replay).begin()
    assert of(run, "latency").comparison.crossovers[0].bounds == {"rival_better_to": 13, "form_better_from": 15}
    assert {record.status for record in run.probes if record.case.kernel == 19} == {"oom"}
    assert sum(record.case.kernel == 19 for record in run.probes) == 1


def test_a_budget_ends_it_and_the_run_says_so(tmp_path: Path) -> None:
    run = attempt(tmp_path, suite_of(refine="budget = 0.000001")).begin()
    assert not run.probes
    assert any("could be bracketed more closely" in note for note in run.manifest.notes)
    [crossover] = of(run, "latency").comparison.crossovers
    assert (crossover.below, crossover.above, crossover.adjacent) == (7, 31, False)


def test_it_can_be_left_out(tmp_path: Path) -> None:
    run = attempt(tmp_path, suite_of(), refine=False).begin()
    assert not run.probes
    assert run.manifest.settings.refine is None
