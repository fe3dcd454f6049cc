"""The digest against planted truth: groups, ratios, winners, failures, marks of unlike things."""

from __future__ import annotations

import csv
import io
from dataclasses import replace
from pathlib import Path

import pytest
from synthetic import FAULTS, NETWORKS, WORLD, Fault, Noise, World, digest_of, make, truth

from niffbench.report import draw
from niffbench.report.comparison import pairs, table, unlike
from niffbench.report.digest import Group, Row, gather, over_floor
from niffbench.report.exports import spreadsheet
from niffbench.report.facts import notices
from niffbench.report.tables import cases, memory, witnesses
from niffbench.report.text import MISSING
from niffbench.report.view import view
from niffbench.results import REGISTRY, Ceilings, MachineState, Memory, Run, frame, round_value
from niffbench.stats.intervals import median_of_rounds

QUIET = Noise(between=0.001, within=0.001)


def _row(group: Group, label: str) -> Row:
    return next(row for row in group.rows if row.label == label)


def test_every_ratio_is_the_planted_one() -> None:
    world = World(noise=QUIET, faults=(), sizes=(28, 56))
    planted = {case.id: truth(world, operator, case) for operator, case in world.cases()}
    for group in digest_of(world).groups:
        assert group.baseline is not None
        base = planted[group.baseline.id]
        for row in group.rows:
            ratio = row.cells["latency_steady"].ratio
            assert ratio is not None
            assert ratio.estimate == pytest.approx(planted[row.id] / base, rel=0.01)


def test_most_intervals_hold_the_planted_ratio() -> None:
    world = World(faults=(), sizes=(14, 28, 56), channels=(16, 64), rounds=4)
    planted = {case.id: truth(world, operator, case) for operator, case in world.cases()}
    held = []
    for group in digest_of(world).groups:
        assert group.baseline is not None
        for row in group.rows:
            ratio = row.cells["latency_steady"].ratio
            if (
                row.id != group.baseline.id
                and ratio is not None
                and ratio.low is not None
                and ratio.high is not None
            ):
                held.append(ratio.low <= planted[row.id] / planted[group.baseline.id] <= ratio.high)
    assert len(held) == 72
    assert sum(held) / len(held) > 0.85  # 95 % of 72, whose sd is 2.6 %


def test_groups_keep_problems_and_executions_apart() -> None:
    digest = digest_of(World(modes=("inference", "training"), sizes=(14, 28)))
    assert [group.label for group in digest.groups] == [
        "B1 64@14", "B1 64@14 training", "B1 64@28", "B1 64@28 training",
    ]  # fmt: skip
    assert all(row.case.problem == group.problem for group in digest.groups for row in group.rows)


def test_compiled_and_eager_are_never_one_group() -> None:
    run = make(World(sizes=(28,)), Path("made-up"))
    cases = [replace(record.case, execution="compiled") for record in run.records]
    compiled = [replace(record, case=case, id=case.id) for record, case in zip(run.records, cases, strict=True)]
    groups = gather(Run(run.path, run.manifest, (*run.records, *compiled))).groups
    assert [group.execution for group in groups] == ["eager", "compiled"]
    assert all(row.case.execution == group.execution for group in groups for row in group.rows)


def test_latencies_of_unlike_regimes_are_not_compared_between_runs() -> None:
    run = make(World(sizes=(28,)), Path("one"))
    cold = [
        replace(record, latency={name: series for name, series in record.latency.items() if name != "steady"})
        for record in run.records
    ]
    digests = gather(run), gather(Run(Path("other"), run.manifest, tuple(cold)))
    assert [digest.regime for digest in digests] == ["steady", "cold"]
    assert any("main regimes differ" in sentence for sentence in unlike(digests))
    compared = table(digests, pairs(digests))
    latency, memory = (
        [c.title for c in compared.columns].index(f"× {noun}") for noun in ("steady latency", "total memory")
    )
    assert {row.entries[latency].text for row in compared.rows} == {MISSING}
    lines = [row.entries for row in compared.rows]
    assert {line[memory].text for line in lines if line[1].text == "depthwise-k3"} == {"1.00×"}


def test_the_fastest_wins_and_equals_are_named_as_equal() -> None:
    group = digest_of(World(sizes=(56,), noise=QUIET)).groups[0]
    assert group.winners["latency_steady"].row.label == "depthwise-k3"
    assert group.winners["latency_steady"].tied == ()
    tied = {row.label for row in group.winners["memory_total"].tied}  # planted: the same 8 bytes an element
    assert tied == {"depthwise-k7", "depthwise-k15", "depthwise-k31", "dense-k3", "dense-k7"}


def test_a_noisy_tie_in_latency_is_called_a_tie() -> None:
    slower = {"niff-depthwise/cached": 0.65 / 0.7}  # as fast as the global filter
    world = World(
        sizes=(56,), slower=slower, operators=tuple(o for o in WORLD if o.family in ("niff", "global-filter"))
    )
    winner = digest_of(world).groups[0].winners["latency_steady"]
    assert {winner.row.label, *(row.label for row in winner.tied)} == {"niff-depthwise/cached", "global-filter"}


def test_one_round_makes_no_winner_certain_but_flops_are_exact() -> None:
    group = digest_of(World(rounds=1, sizes=(28,))).groups[0]
    assert not group.winners["latency_steady"].certain
    assert group.winners["flops"].certain


def test_memory_is_ranked_with_what_an_operator_keeps() -> None:
    """A form that takes less in a call, and keeps a filter for it, is not the leanest for that."""
    run = make(World(sizes=(28,), faults=()), Path("made-up"))
    records = []
    for record in run.records:
        assert record.memory is not None
        small = record.traits.label == "niff-depthwise/cached"
        memory = replace(record.memory, peak=10, resident=10**7, kept=9 * 10**6) if small else record.memory
        records.append(replace(record, memory=memory))
    group = gather(Run(run.path, run.manifest, tuple(records))).groups[0]
    cached = _row(group, "niff-depthwise/cached")
    assert min(group.rows, key=lambda row: row.value("memory_peak") or 0) is cached
    assert group.winners["memory_total"].row is not cached
    assert (cached.value("memory_total"), cached.value("memory_kept")) == (10**7 + 10, 9 * 10**6)


def test_what_was_kept_is_told_of_records_of_before_it_was_counted() -> None:
    """Input and parameters are known, in training the gradient of the output too: the rest was kept."""
    for mode in ("inference", "training"):
        record = make(World(sizes=(28,), modes=(mode,), faults=()), Path("made-up")).records[0]
        given = 4 * (64 * 28 * 28 * (2 if mode == "training" else 1) + (record.parameters or 0))
        record = replace(record, memory=Memory(peak=1, resident=given + 123, output=1))
        assert round_value(record, REGISTRY["memory_kept"]) == 123


def test_a_ratio_is_the_quotient_of_the_values_beside_it() -> None:
    """Also where a round is missing on one side, and where one round was slow."""
    run = make(World(sizes=(28,), rounds=4), Path("made-up"))
    slow = {0: 1.0, 1: 1.0, 2: 5.0, 3: 1.0}
    records = [
        replace(
            record,
            latency={
                name: replace(series, samples=[slow[record.round] * sample for sample in series.samples])
                for name, series in record.latency.items()
            },
        )
        for record in run.records
        if not (record.case.kernel == 15 and record.round == 0)
    ]
    group = gather(Run(run.path, run.manifest, tuple(records))).groups[0]
    assert group.baseline is not None
    for row in group.rows:
        for key in ("latency_steady", "memory_total", "flops"):
            if (cell := row.cells.get(key)) and cell.ratio:
                assert cell.ratio.estimate == pytest.approx(cell.estimate / group.baseline.cells[key].estimate)
                assert cell.ratio.low is not None
                assert cell.ratio.high is not None
                assert cell.ratio.low <= cell.ratio.estimate <= cell.ratio.high


def test_counts_have_no_interval_and_one_value_for_each_choice() -> None:
    run = make(World(operators=NETWORKS[:2], sizes=(32,), faults=(), baseline="network/resnet18"), Path("made-up"))
    records = [
        replace(record, chosen=["dft"], cost=replace(record.cost, closed=7), memory=replace(record.memory, peak=1))
        if record.chosen and record.round == 0 and record.cost and record.memory
        else record
        for record in run.records
    ]
    digest = gather(Run(run.path, run.manifest, tuple(records)))
    row = _row(digest.groups[0], "network/resnet18-split")
    result = cases(digest)
    by_title = {column.title: place for place, column in enumerate(result.columns)}
    entries = next(line.entries for line in result.rows if line.anchor == row.id)
    assert "7 FLOP in 1 (dft)" in entries[by_title["FLOPs"]].note.replace("7.00", "7")
    for title in ("FLOPs", "total memory"):
        assert "in 2 rounds (native 12, dft 1)" in entries[by_title[title]].note
        assert "[" not in entries[by_title[title]].note + entries[by_title[title] + 1].note
    alike = _row(digest.groups[0], "network/resnet18")
    assert not next(line.entries for line in result.rows if line.anchor == alike.id)[by_title["total memory"]].note


def test_a_closed_form_that_both_counters_contradict_ranks_nobody() -> None:
    run = make(World(sizes=(28,), faults=()), Path("made-up"))
    lie = {"closed": 1, "closed_forward": 1, "disagreement": "unexplained: forward closed form 1"}
    records = tuple(
        replace(record, cost=replace(record.cost, **lie))  # type: ignore[arg-type]
        if record.cost and record.traits.label == "dense-k7"
        else record
        for record in run.records
    )
    digest = gather(Run(run.path, run.manifest, records))
    dense = _row(digest.groups[0], "dense-k7")
    assert dense.cost is not None
    assert dense.value("flops") == dense.cost.counted
    assert digest.groups[0].winners["flops"].row.label == "depthwise-k3"
    assert any("dense-k7" in notice and "contradicted" in notice for notice in notices(digest))


def test_many_samples_of_one_process_make_no_interval() -> None:
    """An interval is over rounds: what another process would give, the scatter within one does not tell."""
    one, three = (digest_of(World(sizes=(28,), rounds=rounds, samples=200, faults=())) for rounds in (1, 3))
    for row in one.rows:
        assert (row.cells["latency_steady"].value.low, row.cells["latency_steady"].value.rounds) == (None, 1)
    for row in three.rows:
        medians = [row.cells["latency_steady"].rounds[number] for number in range(3)]
        assert row.cells["latency_steady"].value == median_of_rounds(medians)


def test_rows_that_compute_something_else_are_marked() -> None:
    group = digest_of(World(sizes=(28,))).groups[0]
    assert not _row(group, "niff-depthwise/rfft").like_baseline
    assert _row(group, "depthwise-k3").like_baseline  # planted: one class, one boundary


@pytest.mark.parametrize("change", [{"boundary": "circular"}, {"equivalence": "another"}])
def test_another_boundary_or_another_class_alone_makes_unlike(change: dict[str, str]) -> None:
    run = make(World(sizes=(28,)), Path("made-up"))
    records = [
        replace(record, traits=replace(record.traits, **change))  # type: ignore[arg-type]
        if record.case.kernel == 3
        else record
        for record in run.records
    ]
    group = gather(Run(run.path, run.manifest, tuple(records))).groups[0]
    assert not _row(group, "depthwise-k3").like_baseline
    assert _row(group, "depthwise-k15").like_baseline


def test_a_disagreement_of_the_witnesses_is_shown_beside_its_operator() -> None:
    """Also where it is one problem of several that has it."""
    run = make(World(sizes=(14, 28, 56)), Path("made-up"))
    records = [
        replace(record, cost=record.cost and replace(record.cost, disagreement="unexplained (1 and 2)"))
        if (record.traits.label, record.case.problem.height) == ("depthwise-k3", 28)
        else record
        for record in run.records
    ]
    rows = witnesses(gather(Run(run.path, run.manifest, tuple(records)))).rows
    lines = [[entry.text for entry in row.entries] for row in rows]
    assert [line[:2] for line in lines if "unexplained (1 and 2)" in line] == [["depthwise-k3", "B1 64@28"]]
    assert [line[1] for line in lines if line[0] == "depthwise-k7"] == ["B1 64@14"]


def test_the_distance_to_the_floor_is_to_that_of_a_cache_where_one_holds_the_case() -> None:
    run = make(World(sizes=(28,), noise=QUIET, faults=()), Path("made-up"))
    slow = Ceilings(copy_bandwidth=1e9, matmul={"float32": 1e15})
    cached = slow.model_copy(update={"copy_by_size": {2**10: 8e9, 2**30: 8e9, 2**32: 1e9}})

    def distances(ceilings: Ceilings, *without: str) -> list[float]:
        records = tuple(
            replace(one, latency={regime: it for regime, it in one.latency.items() if regime not in without})
            for one in run.records
        )
        manifest = run.manifest.model_copy(update={"ceilings": ceilings})
        lines = csv.DictReader(io.StringIO(spreadsheet([gather(Run(run.path, manifest, records))])))
        return [float(line["over_floor"]) for line in lines]

    assert distances(cached) == pytest.approx([8 * distance for distance in distances(slow)])
    assert distances(cached, "steady", "graph") == distances(slow, "steady", "graph")
    assert distances(slow.model_copy(update={"others": 0.01})) == distances(slow)
    manifest = run.manifest.model_copy(update={"ceilings": slow.model_copy(update={"others": 0.6})})
    digest = gather(Run(run.path, manifest, run.records))
    assert {over_floor(row, digest) for row in digest.rows} == {None}, "what others slowed is no ceiling"


def test_taps_that_meet_the_padding_are_no_work_in_the_floor() -> None:
    run = make(World(sizes=(14,), kernels={"depthwise": (27,)}, faults=()), Path("made-up"))
    slow = Ceilings(copy_bandwidth=1e18, matmul={"float32": 1e9})
    digest = gather(Run(run.path, run.manifest.model_copy(update={"ceilings": slow}), run.records))
    row = next(row for row in digest.rows if row.label == "depthwise-k27")
    met = sum(0 <= pixel + tap < 14 for pixel in range(14) for tap in range(-13, 14)) / (14 * 27)
    latency, distance = row.value("latency_steady"), over_floor(row, digest)
    assert row.cost is not None
    assert latency is not None
    assert distance == pytest.approx(latency / (row.cost.flops * met**2 / 1e9))


def test_energy_is_told_of_a_call_and_of_an_image() -> None:
    run = make(World(sizes=(28,)), Path("made-up"))
    problem = replace(run.records[0].case.problem, batch=4)
    case = replace(run.records[0].case, problem=problem)
    record = replace(run.records[0], case=case, id=case.id, status="ok", energy=2.0)
    run = Run(run.path, run.manifest, (record,))
    digest = gather(run)
    [output] = csv.DictReader(io.StringIO(spreadsheet([digest])))
    assert (float(output["energy"]), float(output["energy_per_image"])) == (2.0, 0.5)
    assert list(frame(run)["energy_per_image"]) == [0.5]
    result = cases(digest)
    shown = dict(zip([column.title for column in result.columns], result.rows[0].entries, strict=True))
    assert (shown["energy"].value, shown["energy per image"].value) == (2.0, 0.5)


def test_all_of_a_cases_memory_is_told() -> None:
    """The card's own figures only where there are any."""
    run = make(World(sizes=(28,)), Path("made-up"))
    record = next(record for record in run.records if record.memory and record.status == "ok")
    message = Memory(peak=70, resident=10, output=30, kept=4, saved=20, predicted=50, workspace=20)
    figures = ["total", "peak", "kept", "resident", "predicted", "workspace", "saved", "output"]
    titles = ["problem", "operator", *figures]
    for more, sizes in (({}, []), ({"reserved": 90, "device_delta": -5}, [90, -5])):
        result = replace(record, memory=replace(message, **more))
        digest = gather(Run(run.path, run.manifest, (result,)))
        table = memory(digest, digest.groups)
        assert [column.title for column in table.columns] == [*titles, *(["reserved", "device"] if sizes else [])]
        assert [entry.value for entry in table.rows[0].entries[2:]] == [80, 70, 4, 10, 50, 20, 20, 30, *sizes]


def test_flagged_series_are_told() -> None:
    """A drift that the sampler found, and a card that was held back, cast doubt on the run in its own words."""
    run = make(World(sizes=(28,), faults=()), Path("made-up"))
    records = list(run.records)
    drifting = {"steady": replace(records[0].latency["steady"], flags=["drift"])}
    records[0] = replace(records[0], latency=drifting)
    records[1] = replace(records[1], machine=MachineState(throttle=["hw_slowdown"]))
    [output] = [said for said in notices(gather(Run(run.path, run.manifest, tuple(records)))) if "flagged" in said]
    assert "drift (1)" in output
    assert "throttled (1)" in output


def test_failures_keep_their_reasons_and_no_numbers() -> None:
    digest = digest_of(World(sizes=(112,)))
    attention = _row(digest.groups[0], "attention")
    assert (attention.status, attention.ok) == ("oom", False)
    assert "latency_steady" not in attention.cells
    assert "memory_peak" not in attention.cells
    assert attention.value("needed") == 60 * 2**30
    partly = _row(digest.groups[0], "depthwise-k31")
    assert partly.status == "crashed 1 of 3"
    assert partly.ok
    assert len(partly.cells["latency_steady"].rounds) == 2
    for fault in FAULTS:
        assert fault.status in digest.statuses


def test_what_was_measured_before_a_case_failed_is_no_result() -> None:
    """Out of memory in its last regime, say: samples of the others stay in the record, and out of the tables."""
    run = make(World(sizes=(28,), faults=()), Path("made-up"))
    records = [replace(r, status="oom", reason="x") if r.case.kernel == 3 else r for r in run.records]
    row = _row(gather(Run(run.path, run.manifest, tuple(records))).groups[0], "depthwise-k3")
    assert not row.ok
    assert not {"latency_steady", "memory_peak"} & set(row.cells)


def test_a_failed_row_never_wins_however_few_its_flops() -> None:
    fault = Fault("wrong", "off by a sign", "depthwise", kernel=3)
    group = digest_of(World(sizes=(28,), faults=(fault,))).groups[0]
    assert group.winners["flops"].row.label != "depthwise-k3"


def test_without_a_measured_baseline_there_are_no_latency_ratios() -> None:
    fault = Fault("oom", "too large", "depthwise", kernel=7)
    group = digest_of(World(sizes=(28,), faults=(fault,))).groups[0]
    assert group.baseline is not None
    assert all(row.cells["latency_steady"].ratio is None for row in group.rows if "latency_steady" in row.cells)


def test_the_baseline_is_the_row_of_that_name_not_its_operator_with_an_option() -> None:
    original = NETWORKS[0]
    sgd = replace(original, options=(("optimiser", "sgd"),))
    for baseline in ("network/resnet18", "network/resnet18 optimiser=sgd"):
        group = digest_of(World(sizes=(28,), operators=(sgd, original), baseline=baseline)).groups[0]
        assert group.baseline is not None
        assert group.baseline.label == baseline


def test_a_baseline_that_is_no_row_leaves_the_values() -> None:
    group = digest_of(World(sizes=(28,), baseline="dense-k99")).groups[0]
    assert group.baseline is None
    assert _row(group, "depthwise-k7").cells["latency_steady"].estimate > 0


def test_missing_records_are_counted() -> None:
    run = make(World(sizes=(28,), rounds=3), Path("made-up"))
    cut = Run(run.path, run.manifest, run.records[:20])
    assert gather(cut).missing == len(run.records) - 20


def test_a_clock_that_shows_nothing_measured_nothing() -> None:
    run = make(World(sizes=(28,), faults=()), Path("made-up"))
    for broken in (0.0, float("nan"), float("inf"), -1e-6):
        records = tuple(
            replace(
                record, latency={name: replace(series, samples=[broken] * 3) for name, series in latency.items()}
            )
            if record.traits.label == "attention"
            else record
            for record in run.records
            for latency in [record.latency]
        )
        group = gather(Run(run.path, run.manifest, records)).groups[0]
        assert "latency_steady" not in _row(group, "attention").cells
        assert group.winners["latency_steady"].row.label == "depthwise-k3"


def test_an_empty_run_has_a_digest() -> None:
    run = make(World(sizes=(28,)), Path("made-up"))
    digest = gather(Run(run.path, run.manifest, ()))
    assert digest.groups == ()
    assert digest.missing == len(run.records)


def test_what_counts_as_nothing_is_the_least_and_decided() -> None:
    """An identity, or a shuffle, takes no FLOPs: of those there is no ratio, and nothing is undecided."""
    run = make(World(sizes=(28,), faults=(), rounds=1), Path("made-up"))

    def without_flops(*labels: str) -> Group:
        records = [
            replace(record, cost=replace(record.cost, closed=0, closed_forward=0, counted=0, fvcore=0, steps=[]))
            if record.cost and record.traits.label in labels
            else record
            for record in run.records
        ]
        none = replace(run, records=tuple(records))
        draw(none)
        (group,) = gather(none).groups
        return group

    alone = without_flops("global-filter")
    winner, cell = alone.winners["flops"], _row(alone, "global-filter").cells["flops"]
    assert (winner.row.label, winner.decided, cell.value.estimate, cell.ratio) == ("global-filter", True, 0, None)
    tied = without_flops("global-filter", "attention").winners["flops"]
    assert tied.certain
    assert {row.label for row in (tied.row, *tied.tied)} == {"global-filter", "attention"}
    baseline = without_flops("depthwise-k7")
    assert baseline.winners["flops"].decided
    assert all(row.cells["flops"].ratio is None for row in baseline.rows)


def test_intervals_that_err_are_counted_of_many_alone_and_of_other_rows_than_the_baseline() -> None:
    few, many = (make(World(sizes=sizes, faults=()), Path("made-up")) for sizes in ((28,), (14, 28)))
    assert len(gather(many).rows) == 26
    assert "of the 24 intervals" in view(many).intervals
    assert "miss it" not in view(few).intervals
    assert view(few).intervals
