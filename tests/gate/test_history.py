"""Baselines and histories: which run is found, how runs are kept, and where a level changed."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from synthetic import Fault, World, make, save

from niffbench.errors import NothingMeasured, UsageError
from niffbench.gate import archive
from niffbench.gate.baseline import newest_matching
from niffbench.gate.rules import Rules
from niffbench.gate.trend import trends
from niffbench.report.plots import trend as drawing
from niffbench.results import Run, read

SMALL = World(rounds=2, sizes=(14,), samples=3, faults=())
STEADY = Rules(regimes=("steady",))


def run_of(path: Path, day: int, world: World = SMALL, **fields: object) -> Run:
    run = make(replace(world, seed=day), path)
    update = {"started": f"2026-03-{day:02}T10:00:00Z", "commit": f"{day:040x}", **fields}
    return replace(run, manifest=run.manifest.model_copy(update=update))


def test_the_newest_matching_run_is_the_baseline(tmp_path: Path) -> None:
    for day in (3, 9, 5):
        save(run_of(tmp_path / "runs" / f"run-{day}", day))
    save(run_of(tmp_path / "runs" / "deep" / "er" / "other-suite", 20, replace(SMALL, name="other")))
    save(run_of(tmp_path / "runs" / "other-torch", 21, replace(SMALL, torch="2.14.0")))
    save(run_of(tmp_path / "runs" / "unfinished", 22, finished=None))
    nothing = tuple(Fault("crashed", "boom", planted.operator) for planted in SMALL.operators)
    save(run_of(tmp_path / "runs" / "nothing", 23, replace(SMALL, faults=nothing)))
    torn = save(run_of(tmp_path / "runs" / "garbled", 24))
    (torn.path / "records.jsonl").write_text("not json\n")
    (tmp_path / "runs" / "broken").mkdir()
    (tmp_path / "runs" / "broken" / "run.json").write_text("{")
    head = save(run_of(tmp_path / "runs" / "head", 25))
    found, notes = newest_matching(tmp_path / "runs", head)
    assert found.name == "run-9"
    assert len(notes) == 2
    assert {"garbled", "broken"} == {name for name in ("garbled", "broken") if any(name in note for note in notes)}
    across, _ = newest_matching(tmp_path / "runs", head, across_machines=True)
    assert across.name == "other-torch"


def test_a_run_is_no_baseline_of_itself_not_even_a_copy(tmp_path: Path) -> None:
    head = save(run_of(tmp_path / "head", 1))
    shutil.copytree(head.path, tmp_path / "copy")
    with pytest.raises(NothingMeasured, match="no baseline for head"):
        newest_matching(tmp_path, head)


def test_no_baseline_says_what_there_is_instead(tmp_path: Path) -> None:
    save(run_of(tmp_path / "other", 1, replace(SMALL, torch="2.14.0")))
    with pytest.raises(NothingMeasured) as refusal:
        newest_matching(tmp_path, run_of(tmp_path / "head", 2))
    assert refusal.value.exit_code == 3
    assert "1 with another fingerprint" in str(refusal.value)
    assert "torch" in str(refusal.value)
    with pytest.raises(UsageError, match="no such directory"):
        newest_matching(tmp_path / "nowhere", run_of(tmp_path / "head", 2))


def test_a_run_is_kept_once_by_fingerprint_suite_and_commit(tmp_path: Path) -> None:
    run = save(run_of(tmp_path / "run", 7))
    place = archive.keep(tmp_path / "history", run)
    assert place == archive.keep(tmp_path / "history", run)
    relative = place.relative_to(tmp_path / "history")
    assert relative.parts[0] == run.manifest.fingerprint.hash
    assert relative.parts[1] == "synthetic"
    assert relative.parts[2] == f"20260307T100000-{run.manifest.commit[:12]}"  # type: ignore[index]
    assert read(place).records == run.records
    assert not list(place.parent.glob(".new-*"))


def test_hostile_names_stay_inside_the_archive(tmp_path: Path) -> None:
    run = save(run_of(tmp_path / "run", 7, commit="../../../../evil", started="../../x"))
    suite = run.manifest.suite.model_copy(update={"name": "../../../escape"})
    run = replace(run, manifest=run.manifest.model_copy(update={"suite": suite}))
    place = archive.keep(tmp_path / "history", run)
    assert (tmp_path / "history").resolve() in place.resolve().parents
    assert len(place.relative_to(tmp_path / "history").parts) == 3


def test_a_run_without_measurements_is_not_kept(tmp_path: Path) -> None:
    nothing = tuple(Fault("crashed", "boom", planted.operator) for planted in SMALL.operators)
    with pytest.raises(NothingMeasured, match="not kept"):
        archive.keep(tmp_path, run_of(tmp_path / "run", 7, replace(SMALL, faults=nothing)))
    assert not list(tmp_path.iterdir())


def test_a_history_is_that_of_the_newest_suite_and_fingerprint(tmp_path: Path) -> None:
    for day in (4, 2, 3):
        archive.keep(tmp_path, run_of(tmp_path / "x", day))
    archive.keep(tmp_path, run_of(tmp_path / "x", 1, replace(SMALL, torch="2.14.0")))
    (tmp_path / "stray" / "run").mkdir(parents=True)
    (tmp_path / "stray" / "run" / "run.json").write_text("[]")
    runs, notes = archive.history(tmp_path)
    assert [run.manifest.started[8:10] for run in runs] == ["02", "03", "04"]
    assert len(notes) == 1
    (tmp_path / "stray" / "empty").mkdir()
    with pytest.raises(NothingMeasured, match="no run is kept"):
        archive.history(tmp_path / "stray" / "empty")


def grown(tmp_path: Path, days: int, step: int, factor: float) -> list[Run]:
    """A history in which ``global-filter`` got slower from day ``step`` on."""
    return [
        run_of(tmp_path / f"{day}", day, replace(SMALL, slower={"global-filter": factor if day >= step else 1.0}))
        for day in range(1, days + 1)
    ]


def test_a_planted_step_is_found_at_its_run_in_its_case_only(tmp_path: Path) -> None:
    runs = grown(tmp_path, 24, 15, 1.12)
    steps = [step for trend in trends(runs, STEADY) for step in trend.steps()]
    assert [(step.label, step.quantity) for step in steps] == [("global-filter", "latency_steady")]
    assert steps[0].commit == f"{15:040x}"
    assert steps[0].since == f"{14:040x}"
    assert steps[0].ratio == pytest.approx(1.12, abs=0.02)
    assert "after" in drawing.line(steps[0])


def test_noise_alone_has_no_step(tmp_path: Path) -> None:
    found = trends(grown(tmp_path, 24, 99, 1.0), STEADY)
    assert len(found) == len({record.id for record in run_of(tmp_path, 1).records})
    assert not [step for trend in found for step in trend.steps()]


def test_a_failed_run_is_a_gap_and_a_short_history_says_that_it_is(tmp_path: Path) -> None:
    runs = grown(tmp_path, 5, 99, 1.0)
    runs[2] = replace(runs[2], records=tuple(r for r in runs[2].records if r.case.operator != "dense"))
    dense = next(trend for trend in trends(runs, STEADY, ["dense-k3"]) if trend.results.label == "dense-k3")
    assert dense.points[2].medians == ()
    assert dense.history.reason is not None
    with pytest.raises(UsageError, match="did you mean 'dense-k3'"):
        trends(runs, STEADY, ["dense-k33"])


def test_the_trend_is_drawn_with_its_step_and_the_same_twice(tmp_path: Path) -> None:
    trend = trends(grown(tmp_path, 24, 15, 1.12), STEADY, ["global-filter"])[0]
    plot = drawing.draw(trend)
    assert plot.svg == drawing.draw(trend).svg
    assert plot.png.startswith(b"\x89PNG")
    assert "global-filter" in plot.title
    assert "+12" in plot.alt or "+11" in plot.alt
    assert plot.svg.count("<use") > 24 * SMALL.rounds
