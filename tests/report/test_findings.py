"""Findings: planted effects are said with their intervals; pure noise says nothing."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from synthetic import CROSSOVER, NETWORKS, WORLD, Law, Planted, World, digest_of, make

from niffbench.report.digest import Digest, gather
from niffbench.report.explorer import _crossovers
from niffbench.report.exports import findings_of
from niffbench.report.findings import Finding, _original, findings, no_crossovers, outcome
from niffbench.report.slices import Axis, slices
from niffbench.report.trends import all_slices, growths, rivalries
from niffbench.results import Latency, Record, Run
from niffbench.stats.crossovers import Point, compare
from niffbench.stats.series import JITTER, check

KERNELS = {"depthwise": (3, 7, 11, 15, 21, 31)}
RFFT = tuple(o for o in WORLD if o.operator in ("niff-depthwise/rfft", "depthwise"))


def _findings(digest: Digest) -> tuple[Finding, ...]:
    result = all_slices(digest)
    every = [slice_ for some in result.values() for slice_ in some]
    return findings(
        digest,
        result,
        [fit for slice_ in every for fit in growths(digest, slice_)],
        rivalries(digest),
    )


def _said(world: World, start: str) -> list[str]:
    return [f.sentence for f in _findings(digest_of(world)) if f.sentence.startswith(start)]


def test_the_planted_crossover_is_found_with_the_flop_crossover_beside_it() -> None:
    world = World(sizes=(56,), operators=RFFT, kernels=KERNELS, faults=(), rounds=5)
    (sentence,) = _said(world, "depthwise has less steady")
    low, high = map(int, re.findall(r"up to kernel size (\d+), niff-depthwise/rfft from (\d+) on", sentence)[0])
    assert (low, high) == (11, 15)
    assert low <= CROSSOVER <= high
    by_flops = tuple(map(int, re.findall(r"FLOPs alone put the crossover between (\d+) and (\d+)", sentence)[0]))
    flops = {row.label: row.cost.closed for row in digest_of(world).rows if row.cost}
    expected = (flops["niff-depthwise/rfft"] / (flops["depthwise-k3"] / 9)) ** 0.5
    assert by_flops[0] < expected < by_flops[1]
    assert by_flops[1] - by_flops[0] == 2  # closed forms know every odd kernel


@pytest.mark.parametrize(("rounds", "alone"), [(1, True), (2, False)])
def test_what_one_round_leaves_open_is_not_called_alike(rounds: int, alone: bool) -> None:
    """That it measured the two alike is more than one round says."""
    digest = digest_of(World(sizes=(28, 56), rounds=rounds, kernels={"depthwise": (3, 5)}, faults=()))
    flat = [one for one in rivalries(digest) if not one.crossovers and one.metric.family == "latency"]
    some = [one for one in flat if one.compared.comparison.outcome == "undecided"]
    assert some
    said = no_crossovers(some)
    assert ("one round alone" in said) == alone
    assert ("told apart" in said) != alone
    (shown,) = _crossovers(digest.groups[0], some[:1]).values()
    assert ("one round alone" in shown[0]) == alone


def test_an_undecided_crossover_names_who_wins_where_that_is_known() -> None:
    clear, unclear, rival = ({0: 0.5, 1: 0.51, 2: 0.49}, {0: 1.0, 1: 1.2, 2: 0.9}, dict.fromkeys(range(3), 1.0))
    partly = compare([Point(3, clear, rival), Point(5, unclear, rival)], [3, 5])
    assert outcome(partly, "NIFF", "depthwise") == (
        "undecided: at some values the two cannot be told apart, elsewhere NIFF wins"
    )
    same = compare([Point(3, unclear, rival), Point(5, unclear, rival)], [3, 5])
    assert outcome(same, "NIFF", "depthwise") == "undecided: throughout the two cannot be told apart"


def test_the_baseline_sentence_gives_the_planted_ratio() -> None:
    world = World(sizes=(28, 56), operators=RFFT, kernels={"depthwise": (7,)}, faults=())
    (sentence,) = _said(world, "In inference, niff-depthwise/rfft takes")
    low, high = map(float, re.findall(r"takes ([\d.]+)× to ([\d.]+)× the steady latency", sentence)[0])
    planted = (CROSSOVER / 7) ** 2
    assert low == pytest.approx(planted, rel=0.05)
    assert high == pytest.approx(planted, rel=0.05)
    assert "at both problems" in sentence
    assert "compute different functions" in sentence


def test_the_published_form_is_held_against_the_best_that_keeps_its_filter_and_the_best_that_does_not() -> None:
    said = _said(World(faults=(), sizes=(28, 56, 112)), "In inference, niff-depthwise/published takes")
    expected = (
        ("of niff-depthwise/rfft for the same function", 3.4, 52 / 28),
        (
            "of niff-depthwise/cached, which keeps its filter or what makes it, for the same function",
            3.4 / 0.7,
            52 / 22,
        ),
    )
    for sentence, (against, slower, larger) in zip(said, expected, strict=True):
        assert against in sentence
        times, low, high = map(float, re.findall(r"takes ([\d.]+)× \[([\d.]+), ([\d.]+)\]", sentence)[0])
        assert times == pytest.approx(slower, rel=0.03)
        assert low < times < high
        least, most = map(float, re.findall(r"\] \(([\d.]+)× to ([\d.]+)×\) the steady", sentence)[0])
        assert least < times < most
        memory = float(
            re.findall(r"([\d.]+)×(?: \[[\d., ]+\])? \([\d.]+× to [\d.]+×\) the total memory", sentence)[0]
        )
        assert memory == pytest.approx(larger, rel=0.03)
        assert re.search(r"[\d.]+× \([\d.]+× to [\d.]+×\) the FLOPs", sentence)
        assert "geometric mean over 3 problems, and their range" in sentence


def test_an_exponent_unlike_its_flops_is_said() -> None:
    slow = Planted("niff-depthwise/rfft", "niff", "circular", "n", Law(2e-9, size=1.5), Law(24.0))
    world = World(operators=(slow, WORLD[3]), sizes=(14, 28, 56, 112), faults=())
    said = [s for s in _said(world, "niff-depthwise/rfft's steady latency grows") if "resolution" in s]
    assert len(said) == 1
    assert float(re.findall(r"to the power ([\d.]+)", said[0])[0]) == pytest.approx(1.5, abs=0.05)


def _on_coarse_clock(run: Run, latencies: dict[str, float], step: float = 1e-6) -> Run:
    """The run as a clock of that step tells it, of operators that take so many steps, a part of one included."""
    generator = np.random.default_rng(0)

    def timed(record: Record) -> Record:
        taken = latencies[record.traits.label] * np.exp(0.002 * generator.standard_normal(60))
        samples = (step * np.floor(taken + generator.random(60))).tolist()
        series = Latency(samples=samples, flags=list(check(samples, jitter=JITTER).flags))
        return replace(record, latency={"steady": series})

    return replace(run, records=tuple(map(timed, run.records)))


@pytest.mark.parametrize(("apart", "decided"), [(0.7, False), (4.0, True)])
def test_a_difference_of_one_step_of_a_coarse_clock_is_none(apart: float, decided: bool) -> None:
    """Of 15.2 and 15.9 steps all medians are 15 and 16, which says nothing of 7 %."""
    latencies = {"niff-depthwise/rfft": 15.2 + apart, "depthwise-k3": 15.2, "depthwise-k7": 15.2}
    world = World(sizes=(28,), operators=RFFT, kernels={"depthwise": (3, 7)}, faults=(), rounds=8)
    digest = gather(_on_coarse_clock(make(world, Path("made-up")), latencies))
    (group,) = digest.groups
    ratio = next(row for row in group.rows if "niff" in row.label).cells["latency_steady"].ratio
    assert ratio is not None
    assert ratio.estimate == pytest.approx(1 + round(apart) / 15, rel=0.001)
    assert ratio.excludes(1.0) == decided
    winner = group.winners["latency_steady"]
    assert ("niff-depthwise/rfft" in {row.label for row in (winner.row, *winner.tied)}) != decided
    (timed,) = (r.compared.comparison for r in rivalries(digest) if r.metric.key == "latency_steady")
    assert timed.outcome == ("none" if decided else "undecided")
    said = [f.sentence for f in _findings(digest) if "steady latency of depthwise" in f.sentence]
    assert bool(said) == decided


@pytest.mark.parametrize(("apart", "decided"), [(0.7, False), (4.0, True)])
def test_nor_is_one_in_a_mean_over_problems(apart: float, decided: bool) -> None:
    latencies = {"niff-depthwise/published": 15.2 + apart, "niff-depthwise/rfft": 15.2}
    operators = tuple(o for o in WORLD if o.operator in latencies)
    world = World(sizes=(28, 56), operators=operators, faults=(), rounds=8, baseline="niff-depthwise/rfft")
    digest = gather(_on_coarse_clock(make(world, Path("made-up")), latencies))
    (sentence,) = (f.sentence for f in _findings(digest) if "for the same function" in f.sentence)
    assert ("steady latency" in sentence) == decided


def test_pure_noise_is_not_made_into_findings() -> None:
    """Two operators that do the same thing: at 95 %, claims about their latency must be rare."""
    law, memory = Law(1e-9), Law(8.0)
    same = (
        Planted("niff-depthwise/rfft", "niff", "circular", "same", law, memory),
        Planted("depthwise", "depthwise", "circular", "same", law, memory, kernels=(7,)),
    )
    claims = 0
    for seed in range(40):
        digest = digest_of(World(seed=seed, sizes=(56,), operators=same, faults=(), baseline="depthwise-k7"))
        claims += any("takes" in f.sentence and "the steady latency" in f.sentence for f in _findings(digest))
    assert claims <= 7  # 5 % of 40, plus 3.6 standard deviations


def test_one_round_claims_nothing_of_latency() -> None:
    said = [f.sentence for f in _findings(digest_of(World(rounds=1, kernels=KERNELS)))]
    assert not any("latency" in sentence or "fastest" in sentence for sentence in said)
    assert any("FLOPs" in sentence for sentence in said)  # counted, so one round is enough
    assert any("memory" in sentence for sentence in said)


def test_no_form_is_said_to_keep_its_filter_in_training() -> None:
    said = _said(
        World(faults=(), sizes=(28, 56), modes=("training",)), "In training, niff-depthwise/published takes"
    )
    assert said
    assert not any("keeps its filter" in sentence for sentence in said)


def test_every_finding_points_at_something_shown() -> None:
    digest = digest_of(World(modes=("inference", "training"), channels=(16, 32, 64), kernels=KERNELS))
    shown = {"overview", "witnesses", "crossovers", "scaling-size", "scaling-channels", "scaling-kernel"}
    for finding in _findings(digest):
        assert finding.shown in shown
        assert any(finding.rows in row.label for row in digest.rows)


def test_slices_hold_everything_else_fixed() -> None:
    digest = digest_of(
        World(sizes=(14, 28, 56), channels=(16, 32, 64), batches=(1, 2, 4), modes=("inference", "training"))
    )
    attributes: dict[Axis, str] = {"size": "height", "channels": "channels", "batch": "batch"}
    for axis, attribute in attributes.items():
        result = slices(digest, axis)
        assert len(result) == 18
        fixed = {"batch", "channels", "height", "mode"} - {attribute}
        for slice_ in result:
            held = {tuple(getattr(point.group.problem, name) for name in sorted(fixed)) for point in slice_.points}
            assert len(held) == 1


def test_no_slice_joins_dtypes() -> None:
    result = slices(digest_of(World(sizes=(14, 28, 56), dtypes=("float32", "bfloat16"))), "size")
    dtypes = [{point.group.problem.dtype for point in slice_.points} for slice_ in result]
    assert sorted(map(sorted, dtypes)) == [["bfloat16"], ["float32"]]


def test_each_niff_layer_is_judged_by_its_own_best_form() -> None:
    full = [
        Planted(f"niff-full/{form}", "niff", "circular", "niff-full", Law(scale), Law(48.0))
        for form, scale in (("published", 9e-8), ("rfft", 3e-8))
    ]
    world = World(sizes=(28, 56), operators=(*WORLD[:4], *full), faults=())
    said = [finding.sentence for finding in _findings(digest_of(world))]
    assert sum(sentence.startswith("In inference, niff-depthwise/cached takes") for sentence in said) == 1
    assert sum(sentence.startswith("In inference, niff-full/rfft takes") for sentence in said) == 1
    (against,) = (s for s in said if s.startswith("In inference, niff-full/published takes"))
    assert "of niff-full/rfft for the same function" in against


def test_a_form_that_wins_here_and_loses_there_has_both_said_in_full() -> None:
    """Latency, memory and FLOPs all change sides between two sizes: six amounts, none counted as "others"."""
    bent = Planted("niff-depthwise/rfft", "niff", "circular", "n", Law(4e-11, size=3.0), Law(0.3, size=3.0))
    world = World(operators=(bent, WORLD[3]), sizes=(7, 224), kernels={"depthwise": (7,)}, faults=())
    (sentence,) = _said(world, "In inference, niff-depthwise/rfft takes")
    assert "others" not in sentence
    assert sentence.count("at 1 of 2 problems") >= 4


def test_each_network_is_held_against_its_own_original() -> None:
    world = World(operators=NETWORKS, sizes=(32, 64), faults=(), baseline="network/resnet18")
    planted = {
        "network/resnet18-split": ("network/resnet18", 5 / 2),
        "network/convnext_tiny-niff": ("network/convnext_tiny", 5 / 4),
        "network/convnext_tiny-k31": ("network/convnext_tiny", 3.0),
    }
    for name, (original, ratio) in planted.items():
        (sentence,) = _said(world, f"In inference, {name} takes")
        assert f"the steady latency of {original} at both problems" in sentence
        result = re.findall(r"takes ([\d.]+)×(?: to ([\d.]+)×)?", sentence)[0]
        assert all(float(number) == pytest.approx(ratio, rel=0.05) for number in result if number)
    assert not _said(world, "In inference, network/convnext_tiny takes")


def test_networks_as_published_are_held_against_auto_all_together() -> None:
    """Two networks, 3 and 5 times slower as published and 2 times larger: √15 and 2 on the average."""
    slower = {"network/resnet18-split": 3.0, "network/convnext_tiny-niff": 5.0}
    run = make(World(operators=NETWORKS, sizes=(32, 64), faults=()), Path("made-up"))
    records = []
    for record in run.records:
        times = slower.get(record.case.operator)
        if times is None or record.memory is None:
            records.append(record)
            continue
        for execution, factor, larger in (("published", times * (1 + record.round / 100), 2), ("auto", 1.0, 1)):
            case = replace(record.case, options=(("execution", execution),))
            latency = {k: replace(v, samples=[factor * x for x in v.samples]) for k, v in record.latency.items()}
            memory = replace(record.memory, peak=larger * record.memory.peak)
            traits = replace(record.traits, label=f"{case.operator} execution={execution}")
            new = replace(record, case=case, id=case.id, latency=latency, memory=memory, traits=traits)
            records.append(new)
    (sentence,) = [
        f.sentence
        for f in _findings(gather(Run(run.path, run.manifest, tuple(records))))
        if f.sentence.startswith("In inference, networks as published take")
    ]
    times, low, high = map(
        float, re.findall(r"take ([\d.]+)× \[([\d.]+), ([\d.]+)\] \([\d.]+× to [\d.]+×\) the steady", sentence)[0]
    )
    assert times == pytest.approx(15**0.5, rel=0.03)
    assert low < times < high
    assert re.search(r" 1\.67× \(1\.67× to 1\.67×\) the total memory of the same in auto ", sentence)
    assert sentence.endswith("(geometric mean over 2 networks at 2 problems, and their range).")


def test_a_network_is_compared_with_the_original_of_the_same_optimiser() -> None:
    digest = digest_of(World(operators=NETWORKS[:2], sizes=(32,), faults=(), baseline="network/resnet18"))
    (group,) = digest.groups
    for options, original in (((("optimiser", "sgd"),), "sgd"), ((("optimiser", "adamw"),), "adamw")):
        rows = [
            replace(row, case=replace(row.case, options=(("optimiser", name),)))
            for row in group.rows[:1]
            for name in ("sgd", "adamw")
        ]
        niff = replace(group.rows[1], case=replace(group.rows[1].case, options=(("grid", "paper"), *options)))
        result = _original(replace(group, rows=(*rows, niff)), niff)
        assert result is not None
        assert result.case.option("optimiser") == original


def test_what_auto_chose_is_said() -> None:
    """In which problems which engine; where the rounds disagree, the usual one, whose cost the row has."""
    run = make(World(operators=NETWORKS[:2], sizes=(32, 64), faults=()), Path("made-up"))
    said = "network/resnet18-split chose native 12, dft 1 at both problems."
    assert said in [finding.sentence for finding in _findings(gather(run))]
    records = tuple(
        replace(r, chosen=["native"] * 13, cost=replace(r.cost, closed=7))
        if r.chosen and r.case.problem.height == 32 and r.round == 0 and r.cost
        else r
        for r in run.records
    )
    digest = gather(Run(run.path, run.manifest, records))
    rows = {row.case.problem.height: row for row in digest.rows if row.choices}
    assert rows[32].chosen == "native 12, dft 1 in 2 of 3 rounds; native 13 in 1"
    assert rows[32].cost is not None
    assert rows[32].cost.closed != 7
    assert not rows[32].cells["flops"].exact
    assert rows[64].cells["flops"].exact


def test_findings_for_machines_hold_the_planted_truth() -> None:
    world = World(sizes=(56,), operators=RFFT, kernels=KERNELS, faults=(), rounds=5)
    result = findings_of(make(world, Path("made-up")))
    by_quantity = {entry["quantity"]: entry for entry in result["crossovers"]}
    latency = by_quantity["latency"]
    assert (latency["form"], latency["rival"], latency["axis"]) == ("niff-depthwise/rfft", "depthwise", "kernel")
    assert (latency["rival_better_to"], latency["form_better_from"], latency["ties"]) == (11, 15, [])
    assert not latency["adjacent"]
    assert (latency["regime"], latency["confidence"], latency["cliff"]) == ("steady", 0.95, None)
    assert (latency["slice"]["channels"], latency["slice"]["height"], latency["probes"]) == (64, 56, 0)
    flops = by_quantity["flops"]
    assert (flops["adjacent"], flops["form_better_from"] - flops["rival_better_to"]) == (True, 2)
    winners = {entry["quantity"]: entry for entry in result["winners"]}
    assert (winners["latency"]["label"], winners["latency"]["decided"]) == ("depthwise-k3", True)
    assert winners["latency"]["low"] < winners["latency"]["value"] < winners["latency"]["high"]
    assert (winners["flops"]["low"], winners["flops"]["rounds"]) == (None, 5)
    assert (winners["memory"]["decided"], len(winners["memory"]["ties"])) == (False, len(KERNELS["depthwise"]) - 1)
    for entry in result["ratios"]:
        if entry["quantity"] == "latency" and entry["operator"] == "depthwise":
            kernel = int(entry["label"].rpartition("k")[2])
            assert entry["value"] == pytest.approx((kernel / 7) ** 2, rel=0.03)
            assert entry["decided"] == (kernel != 7)


def test_findings_of_one_round_decide_no_latency_and_of_an_empty_run_nothing() -> None:
    run = make(World(sizes=(28, 56), rounds=1, kernels=KERNELS, faults=()), Path("made-up"))
    result = findings_of(run)
    assert not [entry for entry in result["crossovers"] if entry["quantity"] == "latency"]
    for part in ("winners", "ratios"):
        assert not any(entry["decided"] for entry in result[part] if entry["quantity"] == "latency")
    empty = findings_of(Run(run.path, run.manifest, ()))
    assert (empty["crossovers"], empty["winners"], empty["ratios"]) == ([], [], [])
