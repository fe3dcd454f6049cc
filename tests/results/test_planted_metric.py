"""A metric planted in the registry, and nowhere else, appears in every output and in the gate."""

from __future__ import annotations

import csv
import io
import json
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
from cli_in_process import Call, call
from synthetic import World, make, save

from niffbench import report
from niffbench.report.exports import data_dictionary, export
from niffbench.results import REGISTRY, Metric, Record, Run, frame, is_control

__all__ = ["call"]

KEY, TITLE, UNIT = "stickiness", "stickiness", "mPa"
VALUE = 421.0
SUITE = """
description = "One operator"
baseline = "depthwise-k3"
rounds = 1
axes.channels = 4
axes.size = 9
operators = [{name = "depthwise-k3"}]
measure = {regimes = ["steady"], min_time = 0.0, max_time = 0.01, min_samples = 5}
"""


def stickiness(record: Record) -> float:
    """Of a made-up record what is planted in it; in a real one the same for every case."""
    return record.energy or VALUE


PLANTED = Metric(
    key=KEY,
    title=TITLE,
    unit=UNIT,
    read=stickiness,
    meaning="how hard it is to let go",
    compared=True,
    gate="test",
    shown=frozenset({"terminal", "cases"}),
)


@pytest.fixture(autouse=True)
def _planted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(REGISTRY, KEY, PLANTED)


def sticky(path: Path, factor: float = 1.0) -> Run:
    """A run whose cases are all equally sticky, but for a little noise from round to round.

    All but the controls, torch's own convolutions, are ``factor`` times as sticky.
    """
    run = make(World(sizes=(14, 28), rounds=8), path)

    def value(record: Record) -> float:
        own = not is_control(record.traits)
        return VALUE * (factor if own else 1) * (1 + 1e-5 * ((7 * record.round) % 5))

    records = tuple(replace(record, energy=value(record)) for record in run.records)
    return save(replace(run, records=records))


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return sticky(tmp_path_factory.mktemp("planted") / "base")


def test_it_is_a_column_of_frame_csv_and_parquet_and_no_failure_has_it(run: Run) -> None:
    parquet = pd.read_parquet(io.BytesIO(export(run, "parquet")))
    for table in (frame(run), pd.read_csv(io.BytesIO(export(run, "csv"))), parquet):
        measured = table["status"] == "ok"
        assert table[KEY][measured].between(VALUE, VALUE * 1.001).all()
        assert table[KEY][~measured].isna().all()
        assert 0 < measured.sum() < len(table)


@pytest.mark.usefixtures("undrawn")
def test_it_is_in_every_file_of_a_report(run: Run) -> None:
    files = report.draw(run)
    lines = list(csv.DictReader(io.StringIO(str(files["table.csv"]))))
    for line in lines:
        if line["status"] == "ok":
            assert float(line[f"{KEY}_low"]) <= float(line[KEY]) <= float(line[f"{KEY}_high"])
            assert float(line[f"{KEY}_ratio"]) == pytest.approx(1, rel=1e-3)
    for name in ("report.html", "report.md"):
        assert TITLE in str(files[name])
        assert f"421 {UNIT}" in str(files[name])


def test_it_is_on_the_terminal_and_in_json(call: Call) -> None:
    Path("one.toml").write_text(SUITE, encoding="utf-8")
    Path("r.json").write_text("{}", encoding="utf-8")
    arguments = ("run", "one.toml", "--device", "replay:r.json", "--no-report", "--out")
    printed = call(*arguments, "printed").stdout
    assert TITLE in printed
    assert f"421 {UNIT}" in printed
    assert [case[KEY] for case in json.loads(call(*arguments, "json", "--json").stdout)["cases"]] == [VALUE]


def test_it_is_in_the_exports_for_other_tools(run: Run) -> None:
    infos = [one["extra_info"] for one in json.loads(export(run, "pytest-benchmark"))["benchmarks"]]
    assert all(info[KEY] == pytest.approx(VALUE, rel=1e-3) for info in infos)
    entries = [entry for entry in json.loads(export(run, "github-action-benchmark")) if entry["unit"] == UNIT]
    assert entries
    assert all(entry["value"] == pytest.approx(VALUE, rel=1e-3) for entry in entries)
    measures = [one[KEY] for one in json.loads(export(run, "bencher")).values() if KEY in one]
    assert measures
    assert all(measure["value"] == pytest.approx(VALUE, rel=1e-3) for measure in measures)
    samples = [line for line in export(run, "openmetrics").decode().splitlines() if f"_{KEY}" in line]
    values = [float(line.rpartition(" ")[2]) for line in samples if not line.startswith("#")]
    assert values
    assert max(values) == pytest.approx(VALUE, rel=1e-3)


@pytest.mark.parametrize("form", ["latex", "markdown", "csv"])
def test_it_can_be_a_table_for_a_paper(run: Run, call: Call, form: str) -> None:
    done = call(
        "table", str(run.path), "--values", KEY, "--no-intervals", "--columns", "problem", "--format", form
    )
    assert done.returncode == 0, done.stderr
    assert "421" in done.stdout


def test_it_can_be_drawn(run: Run, call: Call) -> None:
    assert call("plot", str(run.path), "--x", "size", "--y", KEY, "--out", "fig.svg").returncode == 0
    assert TITLE in Path("fig.svg").read_text(encoding="utf-8")


@pytest.mark.usefixtures("undrawn")
def test_it_has_a_trend_on_the_site_of_a_history(run: Run, call: Call) -> None:
    for _ in range(2):
        assert call("check", str(run.path), "--history", "history").returncode in (0, 3)
    assert call("publish", "history", "--out", "site").returncode == 0
    pages = [page.read_text() for page in Path("site").rglob("*.html")]
    assert sum(TITLE in page and UNIT in page for page in pages) >= len({record.id for record in run.records}) - 1


@pytest.mark.parametrize("rule", ["test", "exact", "tolerance"])
def test_the_gate_judges_it_by_its_rule(
    rule: str, call: Call, tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(REGISTRY, KEY, replace(PLANTED, gate=rule))
    worse = sticky(tmp_path / "head", 1.5)
    done = call("check", str(run.path), str(worse.path), "--json")
    measured = [record for record in run.records if record.status == "ok"]
    own = {record.traits.label for record in measured if not is_control(record.traits)}
    assert own
    findings = [one for one in json.loads(done.stdout)["findings"] if one["quantity"] == KEY]
    assert done.returncode == 1
    worse_ones = [one for one in findings if one["verdict"] == "regressed"]
    assert {one["label"] for one in worse_ones} == own
    assert all(one["ratio"] == pytest.approx(1.5, rel=1e-3) for one in worse_ones)


def test_a_threshold_may_name_it(call: Call, tmp_path: Path, run: Run) -> None:
    Path("limits.toml").write_text(
        f'[[threshold]]\nquantities = ["{KEY}"]\nmin_effect = "90%"\n', encoding="utf-8"
    )
    worse = sticky(tmp_path / "head", 1.5)
    done = call("check", str(run.path), str(worse.path), "--json", "--thresholds", "limits.toml")
    findings = [one for one in json.loads(done.stdout)["findings"] if one["quantity"] == KEY]
    assert {one["verdict"] for one in findings} == {"equivalent"}


def test_the_data_dictionary_says_what_it_is(call: Call) -> None:
    [line] = json.loads(call("list", "metrics", KEY, "--json").stdout)
    assert (line["unit"], line["summary"]) == (UNIT, PLANTED.meaning)
    assert KEY in call("list", "metrics").stdout
    assert PLANTED.meaning in data_dictionary()
