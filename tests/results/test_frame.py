"""A run as a data frame."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, replace
from pathlib import Path
from statistics import median

import pandas as pd
from synthetic import NETWORKS, World, make

from niffbench.case import REGIMES, Problem
from niffbench.results import Latency, Run, Traits, dump, frame, parse

RUN = make(World(sizes=(14, 28), rounds=2, samples=5, modes=("inference", "training")), Path("made-up"))


def test_one_row_per_case_and_round() -> None:
    table = frame(RUN, {"run": "a"})
    assert len(table) == len(RUN.records)
    assert set(table["run"]) == {"a"}
    for row, record in zip(table.to_dict("records"), RUN.records, strict=True):
        assert (row["case"], row["round"], row["status"]) == (record.id, record.round, record.status)
        assert (row["label"], row["height"], row["mode"]) == (
            record.traits.label,
            record.case.problem.height,
            record.case.problem.mode,
        )
        series = record.latency.get("steady")
        expected = median(series.samples) if series else math.nan
        assert row["latency_steady"] == expected or (math.isnan(row["latency_steady"]) and math.isnan(expected))
        if record.cost:
            assert row["flops"] == record.cost.closed


def test_what_was_not_measured_is_not_a_number() -> None:
    table = frame(RUN)
    failed = table[table["status"] != "ok"]
    assert len(failed) > 0
    assert failed["latency_steady"].isna().all()
    assert (table["latency_steady"].dropna() > 0).all()
    for name in table.columns:
        if name.startswith(("latency_", "memory_")) and name != "memory_format":
            assert pd.api.types.is_numeric_dtype(table[name]), name


def test_the_worst_gradient_of_training_has_columns() -> None:
    table = frame(RUN)
    output = table[table["gradient"].notna()]
    assert set(output["mode"]) == {"training"}
    assert set(output["error_gradient_l2"]) == {3e-6}
    assert table[table["mode"] == "inference"]["error_gradient_max"].isna().all()


def test_all_that_tells_cases_apart_is_a_column() -> None:
    """So that unlike is never pooled by accident: boundary, class, dtype, mode, form, regime and the rest."""
    case = replace(
        RUN.records[0].case,
        problem=Problem(2, 3, 5, 7, 11, "bfloat16", "channels_last", "training"),
        kernel=9,
        options=(("mlp", "big"),),
        execution="compiled",
    )
    traits = Traits(label="a mlp=big", family="niff", boundary="circular", equivalence="one")
    series = {regime: Latency(samples=[float(place + 1)]) for place, regime in enumerate(REGIMES)}
    odd = replace(RUN.records[0], case=case, id=case.id, traits=traits, latency=series, status="ok")
    row = frame(Run(RUN.path, RUN.manifest, (odd,))).to_dict("records")[0]
    expected = asdict(case.problem) | asdict(traits) | {f"latency_{r}": s.samples[0] for r, s in series.items()}
    expected |= {"operator": case.operator, "kernel": 9, "options": "mlp=big", "execution": "compiled"}
    assert {name: row[name] for name in expected} == expected


def test_a_series_with_a_sample_that_is_none_has_no_median() -> None:
    measured = next(record for record in RUN.records if record.status == "ok")
    odd = replace(measured, latency={"steady": Latency(samples=[1.0, math.nan, 3.0])})
    assert frame(Run(RUN.path, RUN.manifest, (odd,)))["latency_steady"].isna().all()


def test_a_run_without_records_is_an_empty_frame() -> None:
    assert frame(Run(RUN.path, RUN.manifest, ())).empty


def test_images_per_second_are_of_the_regime_that_stands_for_latency() -> None:
    table = frame(make(World(sizes=(14,), batches=(4,), faults=()), Path("made-up")))
    assert (table["images_per_second"] == 4 / table["latency_steady"]).all()
    measured = next(record for record in RUN.records if record.status == "ok")
    graph = replace(measured, latency={"graph": Latency(samples=[0.5])})
    assert frame(Run(RUN.path, RUN.manifest, (graph,)))["images_per_second"].tolist() == [2.0]
    assert frame(RUN)["images_per_second"].isna().equals(frame(RUN)["latency_steady"].isna())


def test_choices_are_told_in_short() -> None:
    table = frame(make(World(sizes=(14,), operators=NETWORKS, faults=(), rounds=1), Path("made-up")))
    output = dict(zip(table["operator"], table["chosen"], strict=True))
    assert output["network/resnet18-split"] == "native 12, dft 1"
    assert pd.isna(output["network/resnet18"])
    one = replace(next(record for record in RUN.records if record.status == "ok"), chosen=["native"])
    assert frame(Run(RUN.path, RUN.manifest, (one,)))["chosen"].tolist() == ["native"]


def test_a_record_from_before_there_were_choices_is_read() -> None:
    line = json.loads(dump(next(record for record in RUN.records if record.status == "ok")))
    del line["chosen"], line["traits"]["base"]
    old = parse(json.dumps(line).encode())
    assert (old.chosen, old.traits.base) == (None, None)
