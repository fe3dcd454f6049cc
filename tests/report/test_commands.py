"""The commands report, plot and export, run for real, and their outputs read back by those who consume them."""

from __future__ import annotations

import io
import json
import re
import shutil
import subprocess
import sys
import xml.etree.ElementTree as ET
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import jsonschema
import pandas as pd
import pytest
from conftest import Cli
from prometheus_client.openmetrics.parser import text_string_to_metric_families
from pyarrow import parquet
from synthetic import FEW, Fault, World, make, save, write

from niffbench.cli import main
from niffbench.commands.plot import _records
from niffbench.report.digest import gather
from niffbench.results import frame, read

Here = Callable[..., "Done"]


@dataclass(frozen=True)
class Done:
    """What a command left behind."""

    returncode: int
    stdout: str
    stderr: str


@pytest.fixture
def here(capfd: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Here:
    """The command line inside this process, in an empty directory: as ``cli``, without a second interpreter."""
    monkeypatch.chdir(tmp_path)

    def call(*args: str) -> Done:
        capfd.readouterr()
        status = main(args)
        said = capfd.readouterr()
        return Done(status, said.out, said.err)

    return call


WORLD = World(sizes=(14, 28), channels=(16, 32))


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run's directory without a report."""
    return write(tmp_path_factory.mktemp("runs") / "made-up", WORLD).path


def test_report_writes_into_the_run(cli: Cli, tmp_path: Path) -> None:
    path = write(tmp_path / "r", World(sizes=(14,))).path
    done = cli("report", str(path))
    assert (done.returncode, done.stderr) == (0, "")
    assert Path(done.stdout.strip()) == path / "report.html"
    assert (path / "report.html").stat().st_size > 50_000


@pytest.mark.usefixtures("undrawn")
def test_report_of_two_runs_goes_beside_the_first(here: Here, tmp_path: Path) -> None:
    one = write(tmp_path / "a", World(sizes=(14,), operators=FEW)).path
    two = write(tmp_path / "b", World(sizes=(14,), operators=FEW, seed=1)).path
    done = here("report", str(one), str(two), "--json")
    assert done.returncode == 0
    output = json.loads(done.stdout)
    assert Path(output["html"]) == tmp_path / "a-and-b" / "report.html"
    assert all(Path(path).is_file() for path in output.values())


@pytest.mark.usefixtures("undrawn")
def test_no_report_of_several_runs_overwrites_that_of_others(here: Here, tmp_path: Path) -> None:
    world = World(sizes=(14,), operators=FEW, rounds=1)
    names = [f"{letter}-{'long name ' * 3}" for letter in "abcdef"]
    long = [str(write(tmp_path / name, world).path) for name in names]
    short = [str(write(tmp_path / place / "same", world).path) for place in ("one", "two", "three")]
    pages = [
        here("report", *runs).stdout for runs in (long[:5], [*long[:4], long[5]], short[:2], [short[0], short[2]])
    ]
    assert len({Path(page.strip()).parent for page in pages}) == 4
    assert all(Path(page.strip()).is_file() for page in pages)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("nowhere",), "nowhere: there is no such directory"),
        ((".",), "is not a run"),
        ((), "Missing argument"),
    ],
)
def test_report_refuses_what_is_no_run(here: Here, arguments: tuple[str, ...], message: str) -> None:
    done = here("report", *arguments)
    assert done.returncode == 2
    assert message in done.stderr
    assert "Traceback" not in done.stderr


def test_report_refuses_a_run_named_twice(here: Here, run: Path) -> None:
    done = here("report", str(run), str(run))
    assert done.returncode == 2
    assert "named twice" in done.stderr


def test_plot_is_a_vector_figure_of_the_size_asked_for_with_its_fonts(cli: Cli, run: Path, tmp_path: Path) -> None:
    done = cli("plot", str(run), "--x", "size", "--y", "latency", "--hue", "operator", "--col", "channels",
               "--size", "6.5x3", "--out", "fig.pdf")  # fmt: skip
    assert done.returncode == 0, done.stderr
    pdf = (tmp_path / "fig.pdf").read_bytes()
    assert pdf.startswith(b"%PDF")
    box = re.search(rb"/MediaBox \[ 0 0 ([\d.]+) ([\d.]+) \]", pdf)
    assert box is not None
    assert [float(side) / 72 for side in box.groups()] == pytest.approx([6.5, 3.0], abs=0.01)
    assert b"/FontFile2" in pdf  # TrueType, embedded
    assert b"/Type3" not in pdf


def test_plot_says_what_it_pools(here: Here, run: Path) -> None:
    done = here("plot", str(run), "--x", "size", "--hue", "operator", "--out", "fig.svg")
    assert done.returncode == 0
    assert "kernel" in done.stderr
    assert "channels" in done.stderr
    alone = here("plot", str(run), "--x", "size", "--hue", "label", "--col", "channels", "--out", "fig.svg")
    assert alone.stderr == ""


def svg_words(path: Path) -> str:
    return " ".join(
        "".join(element.itertext()) for element in ET.parse(path).iter() if element.tag.endswith("text")
    )


def test_plot_draws_a_line_for_each_operator_unasked(here: Here, run: Path, tmp_path: Path) -> None:
    """The example of the README: no line goes through several operators, and what is pooled is told."""
    done = here("plot", str(run), "--x", "size", "--only", "channels=16", "--out", "fig.svg")
    assert (done.returncode, done.stderr) == (0, "")
    labels = [name for name in dict.fromkeys(frame(read(run)).query("status == 'ok'")["label"]) if name]
    words = svg_words(tmp_path / "fig.svg")
    assert all(label in words for label in labels)
    asked = here("plot", str(run), "--x", "size", "--only", "channels=16", "--hue", "label", "--out", "asked.svg")
    assert asked.returncode == 0
    assert (tmp_path / "fig.svg").read_bytes() == (tmp_path / "asked.svg").read_bytes()
    pooled = here("plot", str(run), "--x", "size", "--out", "pooled.svg")
    assert "channels (16 and 32), so there are no intervals" in pooled.stderr


def test_plot_over_kernels_has_level_lines_for_who_has_none(here: Here, tmp_path: Path) -> None:
    path = write(tmp_path / "r", World(sizes=(14,), kernels={"depthwise": (3, 7, 11)}, faults=())).path
    done = here("plot", str(path), "--x", "kernel", "--out", "fig.svg")
    assert done.returncode == 0
    assert "left out" not in done.stderr
    assert "niff-depthwise/rfft" in svg_words(tmp_path / "fig.svg")
    assert "depthwise-k7" not in svg_words(tmp_path / "fig.svg")
    done = here("plot", str(path), "--x", "kernel", "--hue", "mode", "--out", "fig.svg")
    assert "without a kernel, and so left out: " in done.stderr
    assert "niff-depthwise/rfft" in done.stderr


def test_plot_makes_room_for_many_operators(here: Here, tmp_path: Path) -> None:
    """Nothing of the legend is outside the figure, of the size asked for or not."""
    kernels = {"depthwise": tuple(range(3, 53, 2))}
    path = write(tmp_path / "r", World(sizes=(28, 56), kernels=kernels, faults=())).path
    for name, *size in (("high.svg",), ("asked.svg", "--size", "6.5x4")):
        assert here("plot", str(path), "--x", "size", "--out", name, *size).returncode == 0
        figure = ET.parse(tmp_path / name).getroot()
        height = float(figure.attrib["viewBox"].split()[3])
        assert (height == 4 * 72) is bool(size)
        ys = [float(y) for y in re.findall(r'<text [^>]*\by="([\d.-]+)"', (tmp_path / name).read_text())]
        assert 0 < min(ys) < max(ys) < height


def test_plot_draws_a_column_against_itself(here: Here, run: Path) -> None:
    assert here("plot", str(run), "--x", "latency", "--y", "latency", "--out", "fig.svg").returncode == 0


def test_plot_draws_words_along_x_and_is_the_same_every_time(here: Here, run: Path, tmp_path: Path) -> None:
    arguments = ("plot", str(run), "--x", "label", "--y", "memory", "--only", "size=28", "--only", "channels=16")
    for name in ("one.svg", "two.svg"):
        assert here(*arguments, "--out", name).returncode == 0
    one = (tmp_path / "one.svg").read_bytes()
    assert one == (tmp_path / "two.svg").read_bytes()
    assert b"niff-depthwise/rfft" in one


@pytest.mark.parametrize("option", ["hue", "style", "col", "row", "x"])
@pytest.mark.parametrize("column", ["tf32", "published"])
def test_plot_takes_what_is_true_or_false_for_words(here: Here, run: Path, option: str, column: str) -> None:
    x = () if option == "x" else ("--x", "size")
    done = here("plot", str(run), *x, f"--{option}", column, "--out", "a.svg")
    assert done.returncode == 0
    assert "False" in svg_words(Path("a.svg"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--x", "siez"), "no column named 'siez'; did you mean 'size'? Columns: "),
        (("--x", "size", "--y", "label"), "'label' holds no numbers; choose from"),
        (("--x", "size", "--y", "energy"), "'energy' was not measured in this run"),
        (("--x", "size", "--hue", "colour"), "--hue: no column named 'colour'"),
        (("--x", "reason"), "--x: 'reason' is empty wherever there is a 'latency_steady'"),
        (("--x", "size", "--col", "latency"), "values, and 24 can be shown so"),
        (("--x", "size", "--col", "label", "--row", "channels", "--size", "2x1"), "do not fit into 2x1 inches"),
        (("--x", "size", "--only", "depthwise-k99"), "matches no measured case"),
        (("--x", "size", "--out", "fig.gif"), "should end in .pdf, .svg, .png"),
        (("--x", "size", "--size", "big"), "width x height"),
    ],
)
def test_plot_names_what_would_be_right(
    here: Here, run: Path, tmp_path: Path, arguments: tuple[str, ...], message: str
) -> None:
    done = here("plot", str(run), *arguments)
    assert done.returncode == 2
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_figure_has_level_lines_names_of_ones_own_and_its_size_in_millimetres(
    here: Here, tmp_path: Path
) -> None:
    run = write(tmp_path / "kernels", World(sizes=(28,), kernels={"depthwise": (3, 7, 31)}, faults=())).path
    (tmp_path / "theme.toml").write_text(
        '[labels]\n"niff-depthwise/rfft" = "ours"\n[colours]\n"depthwise" = "#123456"\n'
    )
    done = here(
        "plot", str(run), "--x", "kernel", "--y", "ratio", "--linear-y", "--size", "254x127mm", "--out", "a.svg",
        "--theme", "theme.toml", "--label", "kernel=side of the kernel",
    )  # fmt: skip
    assert done.returncode == 0
    assert "left out" not in done.stderr
    texts = svg_words(tmp_path / "a.svg")
    assert all(words in texts for words in ("ours", "side of the kernel", "steady latency, paired ratio"))
    assert re.search(r"\d×", texts)  # a linear axis has its unit
    drawing = (tmp_path / "a.svg").read_text()
    assert 'width="720pt" height="360pt"' in drawing
    assert "#123456" in drawing


@pytest.mark.parametrize(
    ("theme", "message"),
    [
        ("[label]\na = 'b'", "unknown table 'label'"),
        ("[colours]\na = 'no colour'", "colours.a should be a colour"),
        ("labels = 1", "labels.labels should be a text"),
        ("[labels", "theme.toml"),
        (f"a = {'[' * 2000}{']' * 2000}", "not valid TOML"),
        (f"a{'.a' * 100_000} = 1", "dots"),
        ("#" * 1_100_000, "larger than"),
    ],
)
def test_a_faulty_theme_is_one_clear_message(
    here: Here, run: Path, tmp_path: Path, theme: str, message: str
) -> None:
    (tmp_path / "theme.toml").write_text(theme)
    done = here("plot", str(run), "--x", "size", "--theme", "theme.toml")
    assert done.returncode == 2
    assert message in done.stderr


def test_exported_csv_is_the_frame(cli: Cli, run: Path, tmp_path: Path) -> None:
    assert cli("export", str(run), "--format", "csv", "--out", "run.csv").returncode == 0
    expected = frame(read(run))
    result = pd.read_csv(tmp_path / "run.csv", keep_default_na=True)
    assert set(expected.columns) | {"run", "machine", "torch", "threads"} <= set(result.columns)
    of_case = result.groupby("case")["latency_steady"].agg(["min", "max"])
    bounds = result.groupby("case")[["latency_steady_low", "latency_steady_high"]].first()
    assert (bounds["latency_steady_low"] < of_case["max"])[of_case["max"].notna()].all()
    assert (bounds["latency_steady_high"] > of_case["min"])[of_case["min"].notna()].all()
    assert "latency_steady" in (tmp_path / "run.dictionary.md").read_text()
    pd.testing.assert_series_equal(result["latency_steady"], expected["latency_steady"], rtol=1e-15)
    assert list(result["label"]) == list(expected["label"])


def test_exported_parquet_is_the_frame(here: Here, run: Path, tmp_path: Path) -> None:
    assert here("export", str(run), "--format", "parquet", "--out", "run.parquet").returncode == 0
    expected = frame(read(run))
    pd.testing.assert_frame_equal(
        pd.read_parquet(tmp_path / "run.parquet")[list(expected.columns)], expected,
        check_dtype=False, check_column_type=False,
    )  # fmt: skip
    schema = parquet.read_schema(tmp_path / "run.parquet")
    assert schema.field("latency_steady_low").metadata[b"unit"] == b"s"
    assert b"memory_total" in schema.metadata[b"dictionary"]


def test_pytest_benchmark_compares_the_export(here: Here, run: Path, tmp_path: Path) -> None:
    slower = write(tmp_path / "slower", World(sizes=(14, 28), channels=(16, 32), slower={"dense": 2.0})).path
    for number, path in enumerate((run, slower), start=1):
        assert (
            here("export", str(path), "--format", "pytest-benchmark", "--out", f"000{number}_run.json").returncode
            == 0
        )
    done = subprocess.run(
        [sys.executable, "-m", "pytest_benchmark", "compare", "0001_run.json", "0002_run.json", "--csv=out.csv",
         "--group-by=name"],
        cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    table = pd.read_csv(tmp_path / "out.csv")
    dense = table[
        table["name"].str.contains("dense-k3", regex=False)
        & table["name"].str.contains("16@28 steady", regex=False)
    ]
    fast, slow = sorted(dense["median"])
    assert slow / fast == pytest.approx(2.0, rel=0.03)
    output = json.loads((tmp_path / "0001_run.json").read_text())
    assert output["machine_info"]["node"] == ""
    steady = [
        record
        for record in read(run).records
        if (record.traits.label, record.case.problem.label) == ("dense-k3", "B1 16@28")
    ]
    result = next(
        b
        for b in output["benchmarks"]
        if b["params"]["case"] == steady[0].id and b["params"]["regime"] == "steady"
    )
    assert result["stats"]["data"] == [sample for record in steady for sample in record.latency["steady"].samples]


def test_the_action_s_schema_is_met(here: Here, run: Path) -> None:
    """benchmark-action/github-action-benchmark, README, "customSmallerIsBetter"."""
    entries = json.loads(here("export", str(run), "--format", "github-action-benchmark").stdout)
    assert isinstance(entries, list)
    assert len({entry["name"] for entry in entries}) == len(entries)
    for entry in entries:
        assert set(entry) <= {"name", "unit", "value", "range", "extra"}
        assert {"name", "unit", "value"} <= set(entry)
        assert isinstance(entry["name"], str)
        assert isinstance(entry["unit"], str)
        assert isinstance(entry["value"], float)
        assert entry["value"] > 0 or entry["unit"] == "rounds"
        assert all(isinstance(entry[key], str) for key in ("range", "extra") if key in entry)
    assert any("range" in entry for entry in entries if "latency" in entry["name"])
    assert not any("range" in entry for entry in entries if "FLOPs" in entry["name"])


def failing(tmp_path: Path) -> Path:
    """A run in which every case of dense failed."""
    world = replace(WORLD, faults=(Fault("crashed", '=HYPERLINK("x")', "dense"),))
    return write(tmp_path / "failing", world).path


def test_failed_cases_stay_visible_where_others_look_at_runs(here: Here, tmp_path: Path) -> None:
    """None of these consumers says anything of a case that is not there any more."""
    path = str(failing(tmp_path))
    records = read(Path(path)).records
    rounds, cases = max(r.round for r in records) + 1, len({r.id for r in records if r.status != "ok"})
    assert cases
    action = json.loads(here("export", path, "--format", "github-action-benchmark").stdout)
    failed = [entry for entry in action if entry["unit"] == "rounds" and entry["value"]]
    assert [entry["value"] for entry in failed] == [rounds] * cases
    assert {entry["name"].split(" / ")[0] for entry in failed} == {"dense-k3", "dense-k7"}
    assert all("HYPERLINK" in entry["extra"] for entry in failed)
    bencher = json.loads(here("export", path, "--format", "bencher").stdout)
    assert {measures["failed-rounds"]["value"] for measures in bencher.values()} == {0.0, float(rounds)}
    table = here("export", path, "--format", "csv").stdout
    assert "'=HYPERLINK" in table
    assert not re.search(r"(^|,)\"?[=+@]", table, re.MULTILINE)


def test_bencher_s_schema_is_met(here: Here, run: Path) -> None:
    """Its published schema, written down in a file; the bounds are around the value."""
    schema = json.loads((Path(__file__).parents[1] / "data" / "bencher-metric-format.json").read_text())
    content = json.loads(here("export", str(run), "--format", "bencher").stdout)
    jsonschema.validate(content, schema)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({"x": {"latency": {"lower_value": 1.0}}}, schema)
    assert len(content) == len({record.id for record in read(run).records})
    measured = [measure for measures in content.values() for measure in measures.items()]
    for name, measure in measured:
        assert re.fullmatch(r"[a-z0-9-]+", name)
        assert measure.get("lower_value", 0) <= measure["value"] <= measure.get("upper_value", float("inf"))
    latencies = [measure["value"] for name, measure in measured if name == "latency-steady"]
    assert min(latencies) == pytest.approx(frame(read(run)).groupby("case")["latency_steady"].median().min() * 1e9)


@pytest.mark.filterwarnings("error")
def test_an_interval_without_an_end_is_exported_without(here: Here, tmp_path: Path) -> None:
    """Of two rounds that are nothing like each other."""
    run = make(replace(WORLD, rounds=2, sizes=(14,), channels=(16,), faults=()), tmp_path / "wild")
    save(replace(run, records=tuple(replace(r, energy=9e29 if r.round else 1e-300) for r in run.records)))
    content = json.loads(here("export", "wild", "--format", "bencher").stdout)
    assert all(set(measures["energy"]) == {"value", "lower_value"} for measures in content.values())
    exported = here("export", "wild", "--format", "openmetrics").stdout
    names = {family.name for family in text_string_to_metric_families(exported)}
    assert "niffbench_energy_low_joules" in names
    assert "niffbench_energy_high_joules" not in names


def test_cases_of_endless_names_stay_apart_in_other_tools(here: Here, tmp_path: Path) -> None:
    run = make(replace(WORLD, sizes=(14,), channels=(16,)), tmp_path / "named")
    evil = "x\n::error::\u202e" + "y" * 5000
    records = [replace(r, traits=replace(r.traits, label=evil + r.traits.label)) for r in run.records]
    save(replace(run, records=tuple(records)))
    exported = {name: here("export", "named", "--format", name).stdout for name in ("bencher", "openmetrics")}
    names = list(json.loads(exported["bencher"]))
    assert len(names) == len({record.id for record in records})
    assert max(map(len, names)) <= 1024
    assert not set("".join(names)) & set("\n\u202e")
    families = list(text_string_to_metric_families(exported["openmetrics"]))
    assert max(len(s.labels["operator"]) for s in families[-1].samples) <= 400


def test_openmetrics_are_read_back_by_prometheus(here: Here, tmp_path: Path) -> None:
    path = failing(tmp_path)
    manifest = json.loads((path / "run.json").read_text())
    manifest["suite"]["name"] = 'a "quoted" \\ name'
    (path / "run.json").write_text(json.dumps(manifest))
    exported = here("export", str(path), "--format", "openmetrics").stdout
    families = {family.name: family for family in text_string_to_metric_families(exported)}
    latency = families["niffbench_latency_steady_seconds"]
    assert (latency.type, latency.unit) == ("gauge", "seconds")
    expected = frame(read(path)).query("status == 'ok'").groupby("case")["latency_steady"].median()
    assert {s.labels["case"]: s.value for s in latency.samples} == pytest.approx(expected.to_dict())
    assert {s.labels["suite"] for s in latency.samples} == {'a "quoted" \\ name'}
    assert {
        s.value for s in families["niffbench_failed_rounds"].samples if s.labels["operator"] == "dense-k3"
    } != {0}


def test_export_suggests_its_formats(here: Here, run: Path) -> None:
    done = here("export", str(run), "--format", "excel")
    assert done.returncode == 2
    assert "github-action-benchmark" in done.stderr


def test_a_table_has_every_case_in_its_cell(here: Here, run: Path) -> None:
    arguments = ("table", str(run), "--only", "channels=16", "--values", "latency,latency_ratio,flops")
    done = here(*arguments, "--format", "csv")
    assert (done.returncode, done.stderr) == (0, "")
    assert here(*arguments, "--format", "csv").stdout == done.stdout
    table = pd.read_csv(io.StringIO(done.stdout), index_col="operator")
    expected = frame(read(run)).query("channels == 16 and status == 'ok'").groupby(["label", "problem"])
    for (label, problem), latency in expected["latency_steady"].median().items():
        assert float(table.loc[label, f"{problem} latency_steady (s)"]) == pytest.approx(latency)
        base = float(table.loc["depthwise-k7", f"{problem} latency_steady (s)"])
        assert float(table.loc[label, f"{problem} latency_steady_ratio"]) == pytest.approx(latency / base)
        assert float(table.loc[label, f"{problem} flops (FLOP)"]) == expected["flops"].first()[label, problem]


def test_a_table_for_a_paper_is_latex_and_goes_into_a_file(here: Here, run: Path, tmp_path: Path) -> None:
    options = ("--rows", "operator,size", "--columns", "channels", "--values", "memory", "--format", "latex")
    done = here("table", str(run), *options, "--out", "paper/table.tex")
    assert (done.returncode, done.stdout.strip()) == (0, "paper/table.tex")
    written = (tmp_path / "paper" / "table.tex").read_text()
    assert r"operator & size & 16 & 32 \\" in written
    assert re.search(r"niff-depthwise/rfft & 28 & .*(KiB|MiB).*&.*(KiB|MiB)", written)
    bare = here("table", str(run), "--only", "size=28", "--values", "latency", "--no-intervals").stdout
    assert bare.count(r"\[") == 0


def test_rows_that_differ_in_a_late_argument_alone_are_told_apart(here: Here, tmp_path: Path) -> None:
    """In a table, in a plot's legend and in who wins."""
    long = "my_layers.py:LargeKernelDepthwiseSeparableConvolution bias=False dilation=1 padding_mode="
    labels = {"global-filter": f"{long}circular", "niff-depthwise/rfft": f"{long}reflect"}
    run = make(World(sizes=(14, 28), faults=()), tmp_path / "r")
    records = [
        replace(
            record,
            traits=replace(record.traits, label=labels.get(record.traits.label, record.traits.label)),
            latency={
                name: replace(one, samples=[sample / 100 for sample in one.samples])
                if (record.traits.label, record.case.problem.height)
                in (("global-filter", 14), ("niff-depthwise/rfft", 28))
                else one
                for name, one in record.latency.items()
            },
        )
        for record in run.records
    ]
    digest = gather(save(replace(run, records=tuple(records))))
    names = {row.traits.label: row.label for row in digest.rows}
    assert len(set(names.values())) == len(names)
    assert all(len(name) <= 60 for name in names.values())
    assert [group.winners["latency_steady"].row.label for group in digest.groups] == [
        names[labels["global-filter"]], names[labels["niff-depthwise/rfft"]]
    ]  # fmt: skip
    done = here("table", "r", "--values", "latency", "--format", "csv")
    assert (done.returncode, done.stderr) == (0, "")
    assert {row.partition(",")[0] for row in done.stdout.splitlines()[1:]} == set(names.values())
    assert here("plot", "r", "--x", "size", "--out", "a.svg").returncode == 0
    assert all(name in svg_words(tmp_path / "a.svg") for name in names.values())


def test_a_table_of_a_run_without_records_says_so(here: Here, run: Path, tmp_path: Path) -> None:
    shutil.copytree(run, tmp_path / "empty")
    (tmp_path / "empty" / "records.jsonl").write_bytes(b"")
    done = here("table", "empty")
    assert done.returncode == 2
    assert "empty: nothing was measured in it" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--rows", "operatr"), "--rows: no column named 'operatr'; did you mean 'operator'?"),
        (("--values", "latncy"), "--values: no metric named 'latncy'; did you mean 'latency'?"),
        (("--values", "energy"), "'energy' was not measured in this run; choose from"),
        (("--values", ""), "--values: names nothing"),
        (("--columns", "operator"), "--columns: 'operator' makes the rows already"),
        (("--columns", "size"), "add one of problem, channels, channels_out to --rows or --columns"),
        (("--only", "depthwise-k99"), "--only depthwise-k99 matches no case of it"),
        (("--format", "word"), "'word' is not one of"),
    ],
)
def test_a_table_names_what_would_be_right(
    here: Here, run: Path, arguments: tuple[str, ...], message: str
) -> None:
    done = here("table", str(run), *arguments)
    assert done.returncode == 2
    assert message in done.stderr
    assert "Traceback" not in done.stderr


def test_plot_along_a_refined_axis_goes_through_what_was_measured_between() -> None:
    run = read(Path(__file__).parents[2] / "reports" / "quick-example")
    suites = {record.case.kernel for record in run.records}
    between = {record.case.kernel for record in run.probes} - suites
    assert between
    assert between <= {record.case.kernel for record in _records(run, "kernel", "latency")}
    assert {record.case.kernel for record in _records(run, "kernel", "ratio")} == suites
    assert {record.case.kernel for record in _records(run, "channels", "latency")} == suites
