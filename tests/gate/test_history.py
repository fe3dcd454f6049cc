"""Baselines and histories: which runs were before one, how runs are kept, and where a level changed."""

from __future__ import annotations

import shutil
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from statistics import median

import pytest
from synthetic import Fault, World, make, save

from niffbench.errors import NothingMeasured, UsageError
from niffbench.gate import history
from niffbench.gate.rules import Accepted, Rules
from niffbench.gate.trend import Collected, Trend, of_case
from niffbench.report import verdicts as words
from niffbench.report.plots import trend as drawing
from niffbench.results import Record, Run, is_control, read, round_value

SMALL = World(rounds=2, sizes=(14,), samples=3, faults=())
STEADY = Rules(regimes=("steady",))


def run_of(path: Path, day: int, world: World = SMALL, **fields: object) -> Run:
    run = make(replace(world, seed=day), path)
    update = {"started": f"2026-03-{day:02}T10:00:00Z", "commit": f"{day:040x}", **fields}
    return replace(run, manifest=run.manifest.model_copy(update=update))


def names(earlier: history.Earlier) -> list[str]:
    return [stored.path.name for stored in earlier.runs]


def test_before_a_run_are_those_of_its_suite_and_fingerprint_that_began_earlier(tmp_path: Path) -> None:
    for day in (3, 9, 5):
        save(run_of(tmp_path / "runs" / f"run-{day}", day))
    save(run_of(tmp_path / "runs" / "deep" / "er" / "other-suite", 20, replace(SMALL, name="other")))
    save(run_of(tmp_path / "runs" / "other-torch", 21, replace(SMALL, torch="2.14.0")))
    save(run_of(tmp_path / "runs" / "narrowed", 22, finished=None))
    (tmp_path / "runs" / "broken").mkdir()
    (tmp_path / "runs" / "broken" / "run.json").write_text("{")
    save(run_of(tmp_path / "runs" / "from-the-future", 28, started="2099-01-01T00:00:00Z"))
    head = save(run_of(tmp_path / "runs" / "head", 25))
    shutil.copytree(head.path, tmp_path / "runs" / "copy-of-head")
    earlier = history.before(tmp_path / "runs", head, by_arrival=False)
    assert names(earlier) == ["narrowed", "run-9", "run-5", "run-3"]
    assert not earlier.changed_environment
    assert any("broken" in note for note in earlier.notes)
    assert any("2099" in note for note in earlier.notes)
    assert "other-torch" in names(history.before(tmp_path / "runs", head, by_arrival=False, across_machines=True))


def test_a_history_is_in_the_order_of_arrival_whatever_clocks_said(tmp_path: Path) -> None:
    runs = [run_of(tmp_path / f"run-{day}", day) for day in (4, 2, 3)]
    runs[1] = replace(runs[1], manifest=runs[1].manifest.model_copy(update={"started": "2099-01-01T00:00:00Z"}))
    for run in runs:
        history.keep(tmp_path / "kept", run)
    head = run_of(tmp_path / "head", 9)
    commits = [s.manifest.commit for s in history.before(tmp_path / "kept", head, by_arrival=True).runs]
    assert commits == [run.manifest.commit for run in reversed(runs)]
    # An old run that is judged again is compared with what was before it then.
    again = history.before(tmp_path / "kept", runs[1], by_arrival=True)
    assert [stored.manifest.commit for stored in again.runs] == [runs[0].manifest.commit]
    assert [s.manifest.commit for s in history.of_suite(tmp_path / "kept").runs] == commits


def test_a_history_of_before_runs_were_numbered_goes_on(tmp_path: Path) -> None:
    for day in (4, 2):
        old = run_of(tmp_path / "x", day)
        commit = str(old.manifest.commit)[:12]
        place = tmp_path / "kept" / old.manifest.fingerprint.hash / "synthetic" / f"202603{day:02}T100000-{commit}"
        save(replace(old, path=place))
    assert history.keep(tmp_path / "kept", run_of(tmp_path / "x", 2)).name.startswith("20260302")
    history.keep(tmp_path / "kept", run_of(tmp_path / "x", 1))
    earlier = history.before(tmp_path / "kept", run_of(tmp_path / "x", 9), by_arrival=True)
    assert [stored.manifest.started[8:10] for stored in earlier.runs] == ["01", "04", "02"]


def test_a_folder_that_is_named_like_a_kept_run_hides_none_below_it(tmp_path: Path) -> None:
    """As an artifact of CI, by the number of its job; only one without any run below it has lost its own."""
    history.keep(tmp_path, run_of(tmp_path / "x", 1))
    save(run_of(tmp_path / "1234567890-nightly-0a1b2c3d" / "run", 2))
    (tmp_path / "000009-20260309T100000-none-0a1b2c3d").mkdir()
    entries = {str(place.name): isinstance(item, history.Stored) for place, item in history.stored_in(tmp_path)}
    (kept,) = (name for name in entries if name.startswith("000001-"))
    assert entries == {kept: True, "run": True, "000009-20260309T100000-none-0a1b2c3d": False}
    earlier = history.before(tmp_path, run_of(tmp_path / "head", 9), by_arrival=False)
    assert [stored.manifest.started[8:10] for stored in earlier.runs] == ["02", "01"]


def test_no_baseline_says_what_there_is_instead(tmp_path: Path) -> None:
    save(run_of(tmp_path / "other", 1, replace(SMALL, name="other")))
    with pytest.raises(NothingMeasured, match="1 of another suite") as refusal:
        history.before(tmp_path, run_of(tmp_path / "head", 2), by_arrival=False)
    assert refusal.value.exit_code == 3
    with pytest.raises(UsageError, match="no such directory"):
        history.before(tmp_path / "nowhere", run_of(tmp_path / "head", 2), by_arrival=False)


def test_any_number_of_processes_keep_runs_of_one_second(tmp_path: Path) -> None:
    """Shards of one commit with one seed; what others are just keeping is read by nobody."""
    runs = [run_of(tmp_path / f"{i}", 1, replace(SMALL, operators=(SMALL.operators[i],))) for i in range(8)]
    with ThreadPoolExecutor(8) as pool:
        places = list(pool.map(lambda run: history.keep(tmp_path / "kept", run), runs))
    assert len({place.name[:6] for place in places}) == 8
    staging = places[0].parent / ".new-x" / "run"
    shutil.copytree(places[0], staging)
    (staging / "records.jsonl.gz").write_bytes(b"half")
    earlier = history.of_suite(tmp_path / "kept")
    notes: dict[Path, str] = {}
    assert len(list(earlier.read(notes))) == 8
    assert not notes


def test_a_run_is_kept_once_by_fingerprint_suite_and_arrival(tmp_path: Path) -> None:
    run = save(run_of(tmp_path / "run", 7))
    place = history.keep(tmp_path / "kept", run)
    assert place == history.keep(tmp_path / "kept", run)
    fingerprint, suite, entry = place.relative_to(tmp_path / "kept").parts
    assert (fingerprint, suite) == (run.manifest.fingerprint.hash, "synthetic")
    assert entry.startswith(f"000001-20260307T100000-{str(run.manifest.commit)[:12]}-")
    assert read(place).records == run.records
    assert not list(place.parent.glob(".new-*"))


def test_old_runs_are_removed_but_not_the_accepted_level(tmp_path: Path) -> None:
    """The first run lacks an operator, whose accepted level is thus the second's."""
    lacking = replace(SMALL, faults=(Fault("crashed", "boom", "dense"),))
    for day, world in ((1, lacking), *((day, SMALL) for day in range(2, 8))):
        history.keep(tmp_path, run_of(tmp_path / "x", day, world))
    history.keep(tmp_path, run_of(tmp_path / "x", 1, replace(SMALL, name="other")))
    assert history.prune(tmp_path, run_of(tmp_path / "x", 8), 2) == 3
    days = [int(stored.manifest.started[8:10]) for stored in history.of_suite(tmp_path, "synthetic").runs]
    assert days == [7, 6, 2, 1]
    assert len(history.of_suite(tmp_path, "other").runs) == 1


def test_hostile_names_stay_inside_the_history(tmp_path: Path) -> None:
    run = save(run_of(tmp_path / "run", 7, commit="../../../../evil", started="../../x"))
    suite = run.manifest.suite.model_copy(update={"name": "../../../escape"})
    hostile = replace(run, manifest=run.manifest.model_copy(update={"suite": suite}))
    place = history.keep(tmp_path / "kept", hostile)
    assert (tmp_path / "kept").resolve() in place.resolve().parents
    assert len(place.relative_to(tmp_path / "kept").parts) == 3
    with pytest.raises(UsageError, match="'started'"):
        read(run.path)


def test_a_run_without_measurements_is_not_kept(tmp_path: Path) -> None:
    nothing = tuple(Fault("crashed", "boom", planted.operator) for planted in SMALL.operators)
    with pytest.raises(NothingMeasured, match="not kept"):
        history.keep(tmp_path, run_of(tmp_path / "run", 7, replace(SMALL, faults=nothing)))
    assert not list(tmp_path.iterdir())


def grown(tmp_path: Path, days: int, step: int, factor: float) -> list[Run]:
    """A history in which ``global-filter`` got slower from day ``step`` on."""
    return [
        run_of(tmp_path / f"{day}", day, replace(SMALL, slower={"global-filter": factor if day >= step else 1.0}))
        for day in range(1, days + 1)
    ]


def trends(runs: list[Run], rules: Rules) -> tuple[Trend, ...]:
    collected = Collected(rules)
    for run in runs:
        collected.add(run)
    return collected.trends()


def test_a_planted_step_is_found_at_its_run_in_its_case_only(tmp_path: Path) -> None:
    runs = grown(tmp_path, 24, 15, 1.12)
    steps = [step for trend in trends(runs, STEADY) for step in trend.steps()]
    assert [(step.label, step.quantity) for step in steps] == [("global-filter", "latency_steady")]
    assert steps[0].open
    assert steps[0].commit == f"{15:040x}"
    assert steps[0].since == f"{14:040x}"
    assert steps[0].ratio == pytest.approx(1.12, abs=0.02)
    assert "after" in words.line(steps[0])


def on_machine(run: Run, factor: float) -> Run:
    """The same run on a machine on which all takes ``factor`` times as long."""

    def slower(record: Record) -> Record:
        series = record.latency.items()
        latency = {regime: replace(one, samples=[factor * s for s in one.samples]) for regime, one in series}
        return replace(record, latency=latency)

    return replace(run, records=tuple(map(slower, run.records)))


def without(run: Run, operator: str) -> Run:
    """The same run in which an operator was not measured; without ``depthwise`` two controls are left."""
    return replace(run, records=tuple(record for record in run.records if record.case.operator != operator))


@pytest.mark.parametrize(
    "lost",
    [
        "nothing",
        "controls of a run",
        "controls of the newest but four",
        "controls of the newest",
        "all but one case of a run",
    ],
)
def test_a_slower_machine_is_one_step_and_hides_none(tmp_path: Path, lost: str) -> None:
    """Nor does a faster one: what is slower by 12 % stays so."""
    for machine in (1.08, 0.9):
        runs = [
            on_machine(run, machine if day >= 9 else 1.0)
            for day, run in enumerate(grown(tmp_path, 24, 15, 1.12), 1)
        ]
        if lost == "controls of the newest":
            runs[-1] = without(runs[-1], "depthwise")
        elif lost.startswith("controls"):
            which = 11 if lost == "controls of a run" else -1
            runs[which] = without(runs[which], "dense" if which == -1 else "depthwise")
        elif lost != "nothing":
            own = tuple(r for r in runs[11].records if r.case.operator == "global-filter")
            runs[11] = replace(runs[11], records=own)
        result = trends(runs, STEADY)
        assert {
            (step.label, step.quantity, step.commit): step.ratio for one in result for step in one.steps()
        } == {
            ("everything", "shared_steady", f"{9:040x}"): pytest.approx(machine, abs=0.02),
            ("global-filter", "latency_steady", f"{15:040x}"): pytest.approx(1.12, abs=0.03),
        }
        newest = of_case(result, "global-filter")
        assert newest.values[-1] == pytest.approx(
            median(round_value(r, newest.metric) for r in runs[-1].records if r.traits.label == "global-filter")
        )
        assert of_case(result, "everything").metric.key == "shared_steady"


def test_a_control_that_got_slower_is_a_step_of_its_own(tmp_path: Path) -> None:
    runs = [
        run_of(tmp_path / f"{day}", day, replace(SMALL, slower={"dense": 1.15 if day >= 12 else 1.0}))
        for day in range(1, 25)
    ]
    labels = {step.label for one in trends(runs, STEADY) for step in one.steps()}
    assert labels == {"dense-k3", "dense-k7"}


def test_a_step_stands_when_controls_come_later(tmp_path: Path) -> None:
    runs = [
        without(run, "depthwise") if day < 16 else run for day, run in enumerate(grown(tmp_path, 24, 10, 1.12), 1)
    ]
    [step] = [step for one in trends(runs, STEADY) for step in one.steps()]
    assert (step.label, step.commit, step.open) == ("global-filter", f"{10:040x}", True)
    assert of_case(trends(runs, STEADY), "global-filter").beyond(Accepted()) == pytest.approx(1.12, abs=0.03)


@pytest.mark.parametrize(("lost", "slower"), [(range(12, 18), 12), (range(1, 13), 7), (range(1, 13), 13)])
def test_where_no_controls_tell_of_the_machine_a_step_is_not_said_to_be_the_cases(
    tmp_path: Path, lost: range, slower: int
) -> None:
    """The machine gets slower in a run without them, or in the first that has some; one case does elsewhere."""
    runs = [
        on_machine(without(run, "depthwise") if day in lost else run, 1.1 if day >= slower else 1.0)
        for day, run in enumerate(grown(tmp_path, 30, 24, 1.12), 1)
    ]
    result = trends(runs, STEADY)
    steps = [step for one in result for step in one.steps() if step.case != "shared"]
    own = [step for step in steps if step.machine_known]
    assert [(step.label, step.commit) for step in own] == [("global-filter", f"{24:040x}")]
    unknown = [step for step in steps if not step.machine_known]
    assert {step.label for step in unknown} >= {"global-filter", "attention", "niff-depthwise/rfft", "dense-k3"}
    assert any("the machine was is not known there" in words.line(step) for step in unknown)
    assert not any("not known" in words.line(step) for step in own)


@pytest.mark.parametrize("failed", [False, True])
def test_a_newest_run_without_controls_hides_no_machine_of_earlier_ones(tmp_path: Path, failed: bool) -> None:
    """Whether it was not to measure them, or could not."""
    runs = [on_machine(run, 1.1 if day >= 9 else 1.0) for day, run in enumerate(grown(tmp_path, 24, 15, 1.12), 1)]
    slow = (
        replace(r, status="timeout", reason="slow", latency={}) for r in runs[-1].records if is_control(r.traits)
    )
    left = tuple(r for r in runs[-1].records if not is_control(r.traits))
    runs[-1] = replace(runs[-1], records=(*left, *slow) if failed else left)
    steps = [step for one in trends(runs, STEADY) for step in one.steps()]
    assert [(step.label, step.commit, step.machine_known) for step in steps] == [
        ("global-filter", f"{15:040x}", True),
        ("everything", f"{9:040x}", True),
    ]


def test_memory_needs_no_known_machine(tmp_path: Path) -> None:
    runs = [without(run, "depthwise") for run in grown(tmp_path, 24, 12, 1.12)]
    fatter = [
        replace(
            run,
            records=tuple(
                replace(r, memory=r.memory and replace(r.memory, peak=2 * r.memory.peak)) for r in run.records
            ),
        )
        if day >= 12
        else run
        for day, run in enumerate(runs, 1)
    ]
    steps = [step for one in trends(fatter, STEADY) for step in one.steps()]
    assert {step.machine_known for step in steps if step.quantity == "memory_peak"} == {True}
    assert {step.machine_known for step in steps if step.quantity == "latency_steady"} == {False}


def test_a_step_came_after_the_last_run_that_has_a_value(tmp_path: Path) -> None:
    """Not after one in which the case was not measured: its commit may be the culprit."""
    runs = grown(tmp_path, 24, 15, 1.12)
    runs[12:14] = [without(run, "global-filter") for run in runs[12:14]]
    [step] = [step for one in trends(runs, STEADY) for step in one.steps()]
    assert (step.since, step.commit) == (f"{12:040x}", f"{15:040x}")


def test_what_all_share_stepped_after_the_last_run_with_controls(tmp_path: Path) -> None:
    runs = [
        on_machine(without(run, "depthwise") if day in range(12, 18) else run, 1.1 if day >= 14 else 1.0)
        for day, run in enumerate(grown(tmp_path, 30, 99, 1.0), 1)
    ]
    [shared] = of_case(trends(runs, STEADY), "everything").steps()
    assert (shared.since, shared.commit) == (f"{11:040x}", f"{18:040x}")


@pytest.mark.parametrize("factor", [1.15, 0.87])
def test_of_three_controls_one_that_changes_is_alone(tmp_path: Path, factor: float) -> None:
    def changed(run: Run) -> Run:
        slower = on_machine(run, factor).records
        records = (
            two if one.traits.label == "dense-k3" else one for one, two in zip(run.records, slower, strict=True)
        )
        return replace(run, records=tuple(records))

    operators = (replace(p, kernels=(7,)) if p.operator == "depthwise" else p for p in SMALL.operators)
    world = replace(SMALL, operators=tuple(operators))
    runs = [run_of(tmp_path / f"{day}", day, world) for day in range(1, 25)]
    assert len({r.traits.label for r in runs[0].records if is_control(r.traits)}) == 3
    result = trends([changed(run) if day >= 12 else run for day, run in enumerate(runs, 1)], STEADY)
    assert {step.label for one in result for step in one.steps()} == {"dense-k3"}


def test_what_several_devices_share_in_a_round_is_nothing(tmp_path: Path) -> None:
    """One of two nodes that measured the halves of each run got faster: only its own cases did."""
    world = replace(SMALL, sizes=(14, 21))

    def scattered(run: Run, faster: bool) -> Run:
        records = []
        for record, fast in zip(run.records, on_machine(run, 0.8).records, strict=True):
            node = int(record.case.problem.height == 21)
            records.append(replace(fast if node and faster else record, node=node))
        return replace(run, records=tuple(records))

    runs = [scattered(run_of(tmp_path / f"{day}", day, world), day >= 12) for day in range(1, 25)]
    steps = [step for one in trends(runs, STEADY) for step in one.steps()]
    assert steps
    assert {step.problem for step in steps} == {r.case.problem.label for r in runs[0].records if r.node}


def test_without_enough_controls_latencies_are_taken_as_they_are(tmp_path: Path) -> None:
    world = replace(SMALL, operators=tuple(p for p in SMALL.operators if p.operator != "depthwise"))
    runs = [on_machine(run_of(tmp_path / f"{day}", day, world), 1.08 if day >= 9 else 1.0) for day in range(1, 25)]
    labels = {step.label for one in trends(runs, STEADY) for step in one.steps()}
    assert labels == {record.traits.label for record in runs[0].records}


def test_noise_alone_has_no_step(tmp_path: Path) -> None:
    result = trends(grown(tmp_path, 24, 99, 1.0), STEADY)
    cases = {record.id for record in run_of(tmp_path, 1).records}
    assert {(t.results.id, t.metric.key) for t in result} >= {
        (case, metric) for case in cases for metric in ("latency_steady", "memory_peak", "flops", "error_l2")
    }
    assert not [step for trend in result for step in trend.steps()]


def test_memory_has_steps_too_and_one_that_went_back_is_closed(tmp_path: Path) -> None:
    def memory(run: Run, factor: float) -> Run:
        def more(record: Record) -> Record:
            assert record.memory is not None
            return replace(record, memory=replace(record.memory, peak=round(record.memory.peak * factor)))

        return replace(run, records=tuple(map(more, run.records)))

    for factors, still in (([1.0] * 8 + [1.2] * 8, True), ([1.0] * 8 + [1.2] * 8 + [1.0] * 8, False)):
        runs = [memory(run, factor) for run, factor in zip(grown(tmp_path, 24, 99, 1.0), factors, strict=False)]
        steps = [step for trend in trends(runs, STEADY) for step in trend.steps()]
        assert {step.quantity for step in steps} == {"memory_peak", "memory_total"}
        assert {step.open for step in steps if (step.ratio or 0) > 1} == {still}


def test_a_failed_run_is_a_gap_and_a_short_history_says_that_it_is(tmp_path: Path) -> None:
    runs = grown(tmp_path, 5, 99, 1.0)
    runs[2] = replace(runs[2], records=tuple(r for r in runs[2].records if r.case.operator != "dense"))
    dense = of_case(trends(runs, STEADY), "dense-k3")
    assert dense.rounds[2] == ()
    assert dense.history.reason is not None
    with pytest.raises(UsageError, match="did you mean 'dense-k3'"):
        of_case(trends(runs, STEADY), "dense-k33")


def test_the_trend_is_drawn_with_its_step_and_the_same_twice(tmp_path: Path) -> None:
    trend = of_case(trends(grown(tmp_path, 24, 15, 1.12), STEADY), "global-filter")
    plot = drawing.draw(trend)
    assert plot.svg == drawing.draw(trend).svg
    assert plot.png.startswith(b"\x89PNG")
    assert "global-filter" in plot.title
    assert "+12" in plot.alt or "+11" in plot.alt
    assert plot.svg.count("<use") > 24 * SMALL.rounds
