"""A report's files: complete, reproducible, whole, small enough, and harmless whatever the records say."""

from __future__ import annotations

import csv
import io
import json
import random
import re
import shutil
import xml.etree.ElementTree as ET
from collections import Counter
from dataclasses import asdict, replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from synthetic import WORLD, World, make, write

from niffbench import report
from niffbench.errors import UsageError
from niffbench.report import write_whole
from niffbench.report.comparison import unlike
from niffbench.report.digest import gather
from niffbench.results import Ceilings, GradientError, Record, Run

KERNELS = {"depthwise": (3, 7, 31)}
RICH = World(modes=("inference", "training"), channels=(16, 32, 64), sizes=(14, 56, 112), kernels=KERNELS)
FEW = WORLD[1:4]
"""For what does not depend on how many operators there are."""
HOSTILE = (
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "</svg><svg onload=alert(1)>",
    "{{ 7 * 7 }}{% raw %}",
    "$\\frac{1}{0}$ | `code` @everyone",
    "\x00\x1b[2J\u202ereversed\n\n# heading",
    "=HYPERLINK(1)",
    "x" * 5000,
)


class Tags(HTMLParser):
    """Counts elements and keeps attributes."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: Counter[str] = Counter()
        self.attributes: list[tuple[str, str | None]] = []
        self.text: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags[tag] += 1
        self.attributes += attrs

    def handle_data(self, data: str) -> None:
        self.text.append(data)


def _parsed(html: str) -> Tags:
    tags = Tags()
    tags.feed(html)
    return tags


@pytest.fixture(scope="module")
def rich(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A written report of a run with every axis, status and mode in it."""
    folder = tmp_path_factory.mktemp("rich") / "rich"
    report.write(write(folder, RICH), folder)
    return folder


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A report of a run whose every text is an attack."""
    folder = tmp_path_factory.mktemp("hostile") / "hostile"
    run = make(World(sizes=(14, 28), channels=(8, 16)), folder)
    records = []
    for place, record in enumerate(run.records):
        word = HOSTILE[place % len(HOSTILE)]
        cost = record.cost and replace(record.cost, missed=[word], disagreement=word)
        latency = {name: replace(series, flags=[word]) for name, series in record.latency.items()}
        kind = HOSTILE[sorted(operator.family for operator in WORLD).index(record.traits.family) % len(HOSTILE)]
        traits = replace(record.traits, label=f"{word} {record.traits.label}", family=kind, equivalence=word)
        gradient = GradientError(name=word, l2=1e-6, max=1e-6, tolerance=1e-5) if place % 2 else None
        numerics = record.numerics and replace(record.numerics, gradient=gradient, gradients_left_out=word)
        output = {"cost": cost, "latency": latency, "traits": traits, "numerics": numerics}
        records.append(replace(record, reason=word, **output))
    print_ = run.manifest.fingerprint.model_copy(update={"must": {word[:200]: word for word in HOSTILE}})
    suite = run.manifest.suite.model_copy(update={"description": HOSTILE[1], "baseline": HOSTILE[0]})
    manifest = run.manifest.model_copy(
        update={
            "fingerprint": print_,
            "suite": suite,
            "notes": list(HOSTILE),
            "commit": HOSTILE[0],
            "started": HOSTILE[1],
        }
    )
    report.write(Run(folder, manifest, tuple(records)), folder)
    return folder


def test_all_files_are_there_and_nothing_else(rich: Path) -> None:
    names = {path.name for path in rich.iterdir()}
    assert names == {
        "report.html",
        "report.md",
        "findings.json",
        "table.csv",
        "plots",
        "run.json",
        "records.jsonl",
    }
    plots = {path.name for path in (rich / "plots").iterdir()}
    stems = {
        "overview", "scaling-size", "scaling-channels", "scaling-kernel", "map-winners", "map-ratios", "steps",
        "roofline", "pareto", "error",
    }  # fmt: skip
    assert plots == {f"{stem}{suffix}" for stem in stems for suffix in (".svg", ".png")}


def test_the_page_needs_no_network(rich: Path) -> None:
    html = (rich / "report.html").read_text()
    links = [
        value
        for name, value in _parsed(html).attributes
        if name in ("src", "href", "srcset", "action", "xlink:href")
    ]
    assert links
    assert all(link and (link.startswith("#") or link == "data:,") for link in links)
    assert "@import" not in html
    assert not re.search(r"url\((?!#)", html)


def test_every_link_inside_the_page_arrives(rich: Path) -> None:
    tags = _parsed((rich / "report.html").read_text())
    ids = [value for name, value in tags.attributes if name == "id"]
    assert len(ids) == len(set(ids))
    targets = {
        value[1:]
        for name, value in tags.attributes
        if name in ("href", "xlink:href") and value and value[0] == "#"
    }
    assert targets <= set(ids)


def test_every_plot_has_a_text_for_who_cannot_see_it(rich: Path) -> None:
    html = (rich / "report.html").read_text()
    labels = re.findall(r'<svg role="img" aria-label="([^"]+)"', html)
    assert len(labels) == html.count("<svg ")
    assert all(len(label) > 40 for label in labels)


def test_equal_runs_give_equal_bytes(tmp_path: Path) -> None:
    world = World(sizes=(14, 28, 56), kernels=KERNELS, operators=FEW)
    one, two = tmp_path / "first" / "run", tmp_path / "second" / "run"
    for folder in (one, two):
        report.write(make(world, folder), folder)
    paths = [path.relative_to(one) for path in sorted(one.rglob("*")) if path.is_file()]
    assert len(paths) > 12
    for path in paths:
        assert (one / path).read_bytes() == (two / path).read_bytes(), path.name


def test_markdown_stays_small_and_shows_plots_by_reference(rich: Path) -> None:
    output = (rich / "report.md").read_text()
    assert len(output.encode()) < 60_000
    images = re.findall(r"!\[[^\]]+\]\(([^)]+)\)", output)
    assert len(images) == 10
    assert all((rich / image).is_file() for image in images)
    assert output.count("<details>") == output.count("</details>")


@pytest.mark.usefixtures("undrawn")
def test_a_huge_run_still_gives_small_markdown(tmp_path: Path) -> None:
    world = World(
        sizes=tuple(range(8, 48)), rounds=1, samples=1, kernels={"depthwise": (7,), "dense": (3,)}, faults=()
    )
    report.write(make(world, tmp_path), tmp_path)
    assert len((tmp_path / "report.md").read_bytes()) < 60_000


def test_the_table_holds_every_case_in_base_units(rich: Path) -> None:
    lines = list(csv.DictReader(io.StringIO((rich / "table.csv").read_text())))
    run = make(RICH, rich)
    assert [line["case"] for line in lines] == run.manifest.suite.cases
    for line in lines:
        if line["status"] == "ok":
            assert (
                float(line["latency_steady_low"])
                <= float(line["latency_steady"])
                <= float(line["latency_steady_high"])
            )
            assert float(line["flops"]) == int(line["flops"].split(".")[0])
        if line["status"] == "oom":
            assert (line["latency_steady"], line["memory_peak"]) == ("", "")
            assert line["reason"]


@pytest.mark.usefixtures("undrawn")
def test_the_worst_gradient_is_shown_or_why_there_is_none(tmp_path: Path) -> None:
    run = make(World(sizes=(28,), modes=("inference", "training"), rounds=2, samples=3, operators=FEW), tmp_path)
    name = next(r.traits.label for r in run.records if r.case.problem.mode == "training" and r.status == "ok")

    def changed(record: Record) -> Record:
        if record.traits.label != name or record.numerics is None or record.numerics.gradient is None:
            return record
        return replace(record, numerics=replace(record.numerics, gradient=None, gradients_left_out="too | much"))

    report.write(replace(run, records=tuple(map(changed, run.records))), tmp_path)
    lines = list(csv.DictReader(io.StringIO((tmp_path / "table.csv").read_text())))
    compared = [line for line in lines if line["gradient"]]
    left_out = [line for line in lines if line["gradients_left_out"]]
    assert {(line["mode"], line["gradient"], line["error_gradient_l2"]) for line in compared} == {
        ("training", "weight", "3e-06")
    }
    assert {(line["mode"], line["label"], line["gradients_left_out"]) for line in left_out} == {
        ("training", name, "too | much")
    }
    html = (tmp_path / "report.html").read_text()
    assert "gradient error" in html
    assert html.count("not compared") == len(left_out)


@pytest.mark.usefixtures("undrawn")
@pytest.mark.parametrize("beside", [True, False])
def test_a_gradient_that_was_compared_in_float64_is_shown_and_not_said_to_be_left_out(
    tmp_path: Path, beside: bool
) -> None:
    """As of networks in bfloat16, or where products are rounded to TF32: there is no other error to show."""
    run = make(World(sizes=(28,), modes=("training",), rounds=1, samples=3, operators=FEW), tmp_path)
    exact = GradientError(name="layer1.weight", l2=2e-12, max=3e-12, tolerance=1e-8)

    def changed(record: Record) -> Record:
        assert record.numerics is not None
        output = {"exact_gradient": exact} if beside else {"exact_gradient": exact, "gradient": None}
        left_out = None if beside else "rounding alone"
        return replace(record, numerics=replace(record.numerics, **output, gradients_left_out=left_out))

    report.write(replace(run, records=tuple(map(changed, run.records))), tmp_path)
    for page in ("report.html", "report.md"):
        text = (tmp_path / page).read_text()
        assert "2.0·10⁻¹² in float64" in text
        assert ("rounding alone" in text) == (not beside)
        assert "not compared" not in text
    lines = list(csv.DictReader(io.StringIO((tmp_path / "table.csv").read_text())))
    assert {line["error_gradient_exact"] for line in lines} == {"2e-12"}
    assert {line["error_gradient_l2"] for line in lines} == {"3e-06" if beside else ""}


@pytest.mark.usefixtures("undrawn")
def test_gradients_take_no_room_where_none_was_compared(tmp_path: Path) -> None:
    """As in older runs, without such checks."""
    report.write(make(World(sizes=(28,), rounds=1, samples=3, operators=FEW), tmp_path), tmp_path)
    page = (tmp_path / "report.html").read_text()
    assert "gradient error" not in page
    assert "Bars: no intervals, there was one round" in page
    assert "95 % intervals over 1" not in page


def test_hostile_text_makes_no_element_and_no_handler(hostile: Path, rich: Path) -> None:
    tags = _parsed((hostile / "report.html").read_text())
    assert set(tags.tags) <= set(_parsed((rich / "report.html").read_text()).tags)
    assert tags.tags["script"] == 2
    assert tags.attributes.count(("type", "application/json")) == 1  # the explorer's data, which nobody executes
    assert tags.tags["img"] == 0
    assert not [name for name, _ in tags.attributes if name.startswith("on")]
    assert "49" not in "".join(tags.text).split()  # {{ 7 * 7 }}
    assert "alert(1)" in "".join(tags.text)


def test_hostile_text_leaves_plots_well_formed(hostile: Path) -> None:
    for path in (hostile / "plots").glob("*.svg"):
        names = {element.tag.rpartition("}")[2] for element in ET.fromstring(path.read_text()).iter()}
        assert not names & {"script", "image", "foreignObject"}, path.name


def test_hostile_text_is_inert_in_markdown(hostile: Path) -> None:
    output = (hostile / "report.md").read_text()
    assert not re.search(r"<(?!/?(details|summary)>)", output)
    assert "@everyone" not in output
    assert not re.search(r"^# heading", output, re.MULTILINE)
    for line in output.splitlines():
        if line.startswith("|"):
            assert line.endswith("|")


def test_hostile_text_is_no_formula(hostile: Path) -> None:
    cells = [cell for line in csv.reader(io.StringIO((hostile / "table.csv").read_text())) for cell in line]
    assert not [cell for cell in cells if cell[:1] in ("=", "@", "+")]
    assert any(cell.startswith("'=HYPERLINK") for cell in cells)


def test_the_page_says_what_it_is_sure_of(rich: Path) -> None:
    text = " ".join(_parsed((rich / "report.html").read_text()).text)
    for word in ("Which operator wins", "depthwise-k3", "The machine and the run", "AMD EPYC", "oom", "SIGSEGV",
                 "of it inside sampling", "stock counter sees", "rounds"):  # fmt: skip
        assert word in text, word
    assert "not finished" not in text


@pytest.mark.usefixtures("undrawn")
def test_an_unfinished_run_says_so(tmp_path: Path) -> None:
    run = make(World(sizes=(14,), modes=("inference", "training"), operators=FEW), tmp_path)
    part = Run(
        tmp_path, run.manifest.model_copy(update={"finished": None, "wall": None}), run.records[:30], torn=17
    )
    html = report.write(part, tmp_path).read_text()
    assert f"{len(run.records) - 30} of {len(run.records)} records missing" in html
    assert "torn" in html


def test_a_run_of_which_nothing_is_known_has_a_report(tmp_path: Path) -> None:
    run = make(World(sizes=(14,)), tmp_path)
    html = report.write(Run(tmp_path, run.manifest, ()), tmp_path).read_text()
    assert "Nothing was measured." in html


@pytest.mark.usefixtures("undrawn")
def test_several_runs_stand_side_by_side(tmp_path: Path) -> None:
    one = make(World(sizes=(28, 56)), tmp_path / "laptop")
    two = make(World(sizes=(28, 56), device="cuda", seed=1), tmp_path / "rack")
    html = report.write([one, two], tmp_path / "both").read_text()
    text = " ".join(_parsed(html).text)
    assert "laptop and rack have unlike fingerprints" in text
    assert "gpu (None and NVIDIA H100 80GB HBM3)" in text
    assert "Run against run" in text
    table = html[html.index('id="compared"') :]
    ratios = re.findall(r'data-v="([^"]+)">[\d.]+× <span class="note">', table[: table.index("</table>")])
    assert len(ratios) > 15
    assert all(float(ratio) == pytest.approx(0.1, rel=0.1) for ratio in ratios)  # planted: ten times as fast
    ids = re.findall(r'\bid="([^"]+)"', html)
    assert len(ids) == len(set(ids))
    assert {"r0-overview.svg", "r1-overview.svg", "side-by-side.svg"} <= {
        p.name for p in (tmp_path / "both" / "plots").iterdir()
    }


def test_the_same_machine_twice_is_not_called_unlike() -> None:
    digests = [gather(make(World(sizes=(28,), seed=seed), Path("made-up"))) for seed in (0, 1)]
    assert unlike(digests) == ()


def test_a_file_is_written_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "report.html"
    write_whole(target, "old")

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "replace", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write_whole(target, "new")
    monkeypatch.undo()
    assert target.read_text() == "old"
    assert list(tmp_path.iterdir()) == [target]


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(UsageError, match="cannot be written"):
        write_whole(tmp_path / "file" / "report.html", "text")


def test_a_directory_that_is_removed_while_its_files_are_written_is_not_made_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "run"
    run.mkdir()

    def write_and_remove(path: Path, content: str | bytes) -> None:
        write_whole(path, content)
        shutil.rmtree(run)

    monkeypatch.setattr(report, "write_whole", write_and_remove)
    with pytest.raises(UsageError, match=r"run: was removed while the report was written\Z"):
        report.save({"plots/scaling.svg": "a", "plots/scaling.png": b"b", "report.html": "c"}, run)
    assert not run.exists()


@pytest.mark.parametrize("seed", range(2))
def test_whatever_is_missing_or_absurd_there_is_a_report(tmp_path: Path, seed: int) -> None:
    """Records with parts taken out, and with numbers no clock or allocator shows."""
    draw = random.Random(seed)
    world = World(
        sizes=tuple(draw.sample([1, 7, 28, 97, (7, 14), (14, 28), (28, 56)], 3)),
        channels=tuple(draw.sample([1, 2, 16, 64], 2)),
        dtypes=("float32", "bfloat16"),
        rounds=draw.randint(1, 3),
        samples=2,
        device="cuda",
        operators=tuple(draw.sample(WORLD, 6)),
    )
    records = []
    for record in make(world, tmp_path).records:
        cost, memory, numerics = record.cost, record.memory, record.numerics
        changes: list[dict[str, Any]] = [{}] * 6 + [
            {"cost": None},
            {"memory": None},
            {"latency": {}},
            {"energy": 1e308},
        ]
        if cost and memory and numerics:
            samples = draw.choice([[], [0.0], [float("nan")], [1e300, 1e300], [1e-300], [-1.0]])
            changes += [
                {"cost": replace(cost, closed=0, closed_forward=0, bytes_own=0, bytes_floor=0, steps=[])},
                {"memory": replace(memory, peak=draw.choice([0, 2**63 - 1]))},
                {"numerics": replace(numerics, l2=draw.choice([float("nan"), float("inf"), 0.0, -1.0, 1e308]))},
                {"latency": {name: replace(series, samples=samples) for name, series in record.latency.items()}},
                {"traits": replace(record.traits, label="")},
            ]
        records.append(replace(record, **draw.choice(changes)))
    run = make(world, tmp_path)
    ceilings = Ceilings(copy_bandwidth=1e308, matmul={"float32": 1e-300})
    manifest = run.manifest.model_copy(update={"ceilings": draw.choice([None, ceilings, run.manifest.ceilings])})
    html = report.write(Run(tmp_path, manifest, tuple(draw.sample(records, len(records) * 2 // 3))), tmp_path)
    assert "Every case" in html.read_text()


@pytest.mark.usefixtures("undrawn")
def test_a_profile_inside_the_run_becomes_bars(tmp_path: Path) -> None:
    run = make(World(sizes=(28,), operators=FEW), tmp_path)
    phases = [
        {"name": "forward fft", "direction": "forward", "seconds": 2e-4, "flops": 5},
        {"name": "<b>product</b>", "direction": "backward", "seconds": 1e-4},
    ]
    case = {
        "label": "niff-depthwise/rfft",
        "case": asdict(run.records[0].case),
        "phases": phases,
        "remainder": 1e-5,
    }
    (tmp_path / "profile").mkdir()
    profile = tmp_path / "profile" / "profile.json"
    profile.write_text(json.dumps({"fingerprint": {}, "cases": [case]}))
    html = report.write(run, tmp_path).read_text()
    assert 'id="phases"' in html
    assert "&lt;b&gt;product" in html
    profile.write_text('{"cases": [{"label": 3}]}')
    assert 'id="phases"' not in report.write(run, tmp_path).read_text()
