"""What a run came to."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
from run_session import Attempt, asked, suite_of
from synthetic import World, make

from niffbench.results import Latency, Record, Run
from niffbench.session.outcome import outcome

RUN = make(World(sizes=(14,), rounds=2, samples=6, faults=()), Path("made-up"))


def with_records(*records: Record) -> Run:
    return Run(RUN.path, RUN.manifest, records)


def test_counts_and_what_is_missing() -> None:
    result = outcome(with_records(*RUN.records[:-3]))
    assert result.measured == len(RUN.records) - 3
    assert result.missing == 3
    assert result.counts == {"ok": result.measured}
    assert result.failures == ()


def test_one_failure_of_a_case_over_its_rounds_is_one_line() -> None:
    first = RUN.records[0]
    same = [record for record in RUN.records if record.id == first.id]
    broken = [replace(record, status="oom", reason="out of memory", latency={}) for record in same]
    (failure,) = outcome(with_records(*broken)).failures
    assert (failure.status, failure.label, failure.reason, failure.rounds) == (
        "oom",
        first.traits.label,
        "out of memory",
        2,
    )


@pytest.mark.parametrize(
    ("series", "half_width"),
    [
        (Latency(samples=[1.0] * 40, stopped="time"), None),
        (Latency(samples=[1.0, 1.5] * 20, stopped="precision"), None),
        (Latency(samples=[1.0, 1.5] * 20, stopped="time"), pytest.approx(0.2, abs=0.05)),
        (Latency(samples=[1.0, 2.0], stopped="time"), "unknown"),
        (Latency(samples=[1.0, math.nan] * 20, stopped="count"), "unknown"),
        (Latency(samples=[0.0] * 40, stopped="time"), "unknown"),
    ],
)
def test_the_precision_that_was_not_reached(series: Latency, half_width: object) -> None:
    record = replace(RUN.records[0], latency={"first": Latency(samples=[9.0], stopped="single"), "steady": series})
    result = outcome(with_records(record))
    assert result.series == 1
    if half_width is None:
        assert result.imprecise == ()
    else:
        (worst,) = result.imprecise
        assert worst.half_width is None if half_width == "unknown" else worst.half_width == half_width


def test_the_worst_comes_first_and_the_unknown_before_it() -> None:
    def record(*samples: float) -> Record:
        return replace(RUN.records[0], latency={"steady": Latency(samples=list(samples), stopped="time")})

    records = (record(*[1.0, 1.2] * 20), record(1.0, 2.0), record(*[1.0, 1.6] * 20))
    widths = [one.half_width for one in outcome(with_records(*records)).imprecise]
    assert widths[0] is None
    assert widths[1:] == sorted(widths[1:], key=lambda width: -(width or 0))


def test_the_share_of_time_that_was_sampling() -> None:
    manifest = RUN.manifest.model_copy(update={"wall": 100.0})
    records = tuple(replace(record, measuring=2.0) for record in RUN.records)
    assert outcome(Run(RUN.path, manifest, records)).share == pytest.approx(2.0 * len(records) / 100.0)


def test_a_replay_is_sampled_for_no_more_than_all_of_its_time(tmp_path: Path) -> None:
    """Its time is virtual, that of the energy pass too: seconds of it pass within milliseconds of the wall's."""
    slow = {"operator": "*", "latency": {"steady": {"median": 0.05}}}
    (tmp_path / "replay.json").write_text(json.dumps({"like": "cuda", "watts": 100, "cases": [slow]}))
    asking = asked(launcher="inline", device=f"replay:{tmp_path / 'replay.json'}")
    run = Attempt(tmp_path / "run", suite_of(regimes=["steady"], energy="true"), overrides=asking).begin()
    assert run.records[0].energy is not None
    assert run.manifest.wall is not None
    assert sum(record.measuring for record in run.records) > run.manifest.wall
    share = outcome(run).share
    assert share is not None
    assert 0 < share <= 1
