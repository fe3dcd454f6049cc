"""The registry of metrics: a value or the reason why there is none, the same for every reader."""

from __future__ import annotations

from dataclasses import fields, replace
from math import inf, nan
from pathlib import Path

import pytest
from synthetic import World, make

from niffbench.case import REGIMES
from niffbench.report.digest import Cells
from niffbench.results import (
    REGISTRY,
    CostRecord,
    Latency,
    MachineState,
    Memory,
    Reason,
    Record,
    Run,
    Status,
    frame,
    over_rounds,
    round_value,
)
from niffbench.results.metrics import UNUSABLE

RUN = make(World(sizes=(14,), rounds=1, faults=(), device="cuda"), Path("made-up"))
MEASURED = replace(RUN.records[0], energy=2.0)


def with_series(series: Latency, record: Record = MEASURED) -> Record:
    return replace(record, latency={**record.latency, "steady": series})


@pytest.mark.parametrize("status", ["oom", "timeout", "crashed", "unsupported", "skipped", "wrong"])
def test_a_failure_is_never_a_number_whatever_was_measured_before_it(status: Status) -> None:
    failed = replace(MEASURED, status=status, reason="out of luck")
    for key in ("latency_steady", "latency_first", "launch_share", "images_per_second", "memory_peak", "energy"):
        assert not isinstance(round_value(MEASURED, REGISTRY[key]), Reason), key
        reason = round_value(failed, REGISTRY[key])
        assert isinstance(reason, Reason), key
        assert reason.kind == "status"
        assert "out of luck" in reason.words
    row = frame(Run(RUN.path, RUN.manifest, (failed,))).iloc[0]
    assert row[["latency_steady", "memory_peak", "energy"]].isna().all()
    assert row["flops"] == MEASURED.cost.closed  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("series", "kind"),
    [
        (Latency(samples=[1e-3, nan, 1e-3]), "not a number"),
        (Latency(samples=[1e-3, inf]), "not a number"),
        (Latency(samples=[0.0] * 3), "absurd"),
        (Latency(samples=[-1e-3] * 3), "absurd"),
        (Latency(samples=[1e12] * 3), "absurd"),
        (Latency(samples=[]), "empty"),
        (Latency(samples=[1e-3] * 3, flags=["coarse"]), "coarse"),
        *((Latency(samples=[1e-3, 2e-3], flags=["drift", flag]), flag) for flag in UNUSABLE),
    ],
)
def test_a_series_that_tells_of_the_clock_and_not_of_the_code_has_no_latency(series: Latency, kind: str) -> None:
    for key in ("latency_steady", "images_per_second"):
        reason = round_value(with_series(series), REGISTRY[key])
        assert isinstance(reason, Reason)
        assert reason.kind == kind
        assert reason.tried


def test_what_casts_doubt_only_leaves_the_value() -> None:
    odd = Latency(samples=[1e-3, 3e-3, 2e-3], flags=["drift", "busy", "coarse"])
    assert round_value(with_series(odd), REGISTRY["latency_steady"]) == 2e-3


def test_what_was_not_measured_is_missing_and_not_zero() -> None:
    bare = replace(MEASURED, latency={}, memory=None, numerics=None, cost=None, energy=None, machine=None)
    for metric in REGISTRY.values():
        if metric.family in ("latency", "memory", "flops", "bytes", "error", "energy", "machine", "samples"):
            assert round_value(bare, metric) == Reason("missing", "did not measure it"), metric.key


def test_an_absurd_count_is_no_number_either() -> None:
    record = replace(MEASURED, memory=Memory(peak=1, resident=1, output=1, workspace=10**400))
    reason = round_value(record, REGISTRY["memory_workspace"])
    assert isinstance(reason, Reason)
    assert reason.kind == "absurd"


def test_every_number_of_a_record_is_a_metric_and_every_regime_has_its_own() -> None:
    assert {f"memory_{field.name}" for field in fields(Memory)} <= REGISTRY.keys()
    assert {f"{stem}_{regime}" for stem in ("latency", "samples") for regime in REGIMES} <= REGISTRY.keys()
    numbered = replace(
        MEASURED,
        cost=CostRecord(
            closed=1001, closed_forward=1002, steps=[], counted=1003, fvcore=1004, stock_torch=1005,
            stock_fvcore=1006, bytes_floor=1007, bytes_own=1008, largest_prime_factor=1009,
        ),
    )  # fmt: skip
    assert set(range(1001, 1010)) <= {round_value(numbered, metric) for metric in REGISTRY.values()}


@pytest.mark.parametrize(
    ("part", "values", "stands"),
    [
        ({"memory": "peak"}, [200, 100, 100, 700], 100),
        ({"memory": "peak"}, [100, 200], 100),
        ({"memory": "device_delta"}, [100, 200], 150),
        ({"machine": "sm_clock"}, [1900.0, 1200.0, 1900.0], 1200.0),
        ({"machine": "temperature"}, [40.0, 70.0, 41.0], 70.0),
        ({"cost": "closed"}, [30, 10, 10], 10),
    ],
    ids=str,
)
def test_one_rule_says_what_stands_for_rounds(part: dict[str, str], values: list[float], stands: float) -> None:
    """To who reads records and to who reads a report; of what is counted no value that no round had."""
    [(whole, name)] = part.items()
    bare = replace(
        MEASURED,
        machine=MachineState(),
        memory=Memory(peak=1, resident=1, output=1),
        cost=CostRecord(closed=1, closed_forward=1, steps=[], bytes_floor=1, bytes_own=None),
    )
    records = [
        replace(bare, round=number, **{whole: replace(getattr(bare, whole), **{name: value})})
        for number, value in enumerate(values)
    ]
    key = {"peak": "memory_peak", "device_delta": "memory_device_delta", "closed": "flops"}.get(name, name)
    assert over_rounds(records)[key] == stands
    assert Cells(records)[key].estimate == stands


def test_how_much_of_a_padded_kernel_meets_the_image_is_said_of_those_alone() -> None:
    run = make(World(sizes=(32,), rounds=1, kernels={"depthwise": (31,)}, faults=()), Path("made-up"))
    shares = {record.traits.label: round_value(record, REGISTRY["taps_share"]) for record in run.records}
    assert shares["depthwise-k31"] == pytest.approx(0.58, abs=0.006)
    assert isinstance(shares["niff-depthwise/rfft"], Reason)
