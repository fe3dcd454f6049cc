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
from niffbench.session.outcome import measuring_share, outcome
from niffbench.suite import Regime

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


def rounds_of(place: int, *medians: float, regime: Regime = "steady") -> list[Record]:
    """The records of one case, of several rounds."""
    series = [Latency(samples=[median] * 12, stopped="time") for median in medians]
    return [
        replace(RUN.records[place], round=number, latency={"first": series[0], regime: one})
        for number, one in enumerate(series)
    ]


def test_precision_is_that_of_rounds_and_the_widest_comes_first() -> None:
    records = [
        *rounds_of(0, 1.0, 1.0001, 0.9999),
        *rounds_of(1, 1.0, 1.1, 0.9),
        *rounds_of(2, 1.0, 1.3, 0.8),
        *rounds_of(3, 1.0),  # one round tells nothing of others: too short to be precise or not
        *rounds_of(4, 1.0, math.nan, math.nan),
    ]
    result = outcome(with_records(*records))
    assert result.latencies == 3
    assert [one.label for one in result.imprecise] == [RUN.records[place].traits.label for place in (2, 1)]
    assert result.imprecise[1].half_width == pytest.approx(4.30 * 0.1 / 3**0.5, rel=0.1)


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


def test_what_refining_samples_is_sampling_too() -> None:
    run = make(World(sizes=(14,), faults=()), Path("made-up"))
    run = replace(run, manifest=run.manifest.model_copy(update={"wall": 1e6}))
    assert measuring_share(replace(run, probes=run.records)) == pytest.approx(2 * (measuring_share(run) or 0))
    assert measuring_share(replace(run, manifest=run.manifest.model_copy(update={"wall": None}))) is None
