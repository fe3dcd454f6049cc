"""What is said of filters follows from the figures, is escaped, and is drawn the same every time."""

from __future__ import annotations

import csv
import io
import json
import xml.etree.ElementTree as ET
from dataclasses import replace

import numpy as np
import pytest
from rich.console import Console

from niffbench.report.writers.terminal import Terminal
from niffbench.study import tables as filter_tables
from niffbench.study.effective import FilterSize, Truncation
from niffbench.study.filters import LayerStudy
from niffbench.study.learned import Learned, Training
from niffbench.study.tables import FilterReport


def _layer(
    name: str, side: int | None, error: float, now: int, then: int | None, height: int = 8, width: int = 8
) -> LayerStudy:
    rng = np.random.default_rng(len(name))
    rings = max(height, width) // 2 + 1
    return LayerStudy(
        name=name,
        kind="depthwise",
        form="rfft",
        size=FilterSize(height, width, 24, tuple(np.linspace(0.2, 1, rings)), (0.6, 0.25, 0.1), (0.8, 0.2), 9),
        truncation=Truncation(height, width, side, error, 1, 360, 216),
        flops_form=now,
        flops_truncated=then,
        pictures=rng.normal(size=(4, height, width)),
    )


CUT = _layer("stage1", 3, 0.004, 1_000_000, 250_000)
DEAR = _layer("stage2", 7, 0.009, 1_000_000, 2_500_000)
WIDE = _layer("stage3", None, 0.2, 2_000_000, None)
LEARNED = Learned(
    niff=Training("digits-niff", 19474, 0.99, 9.0, 10),
    twin=Training("digits-twin", 18850, 0.98, 5.0, 10),
    layers=(CUT, DEAR, WIDE),
    cut={1: 0.1, 3: 0.97, 5: 0.985},
    advised=0.9867,
    networks={},
)


def _report(*layers: LayerStudy, learned: Learned | None = None) -> FilterReport:
    return FilterReport("net-niff", "weights of a.pt", "noise", 224, 1, 0.01, "circular", layers, learned)


def test_advice_cuts_what_is_within_the_error_and_cheaper() -> None:
    said = filter_tables.advice(_report(CUT, DEAR, WIDE))
    assert said[0] == "2 of 3 layers could be a circular k×k convolution within 1 %."
    assert said[1] == (
        "Truncating stage1 (3×3) would save 750 kFLOP of the 4.00 MFLOP that these layers take in their present "
        "forms, 19 %."
    )
    assert len(said) == 2


def test_advice_names_what_would_not_pay() -> None:
    said = filter_tables.advice(_report(DEAR, WIDE))
    assert said == [
        "1 of 2 layers could be a circular k×k convolution within 1 %.",
        "None of them would save FLOPs: the kernel it takes costs more than the FFTs do.",
    ]
    (nothing,) = filter_tables.advice(replace(_report(WIDE), boundary="zeros"))
    assert nothing == (
        "No layer could be a zero-padded k×k convolution within 1 %: even the largest kernel tried misses 20 % in "
        "stage3, the best of them."
    )


def test_layers_left_out_are_said() -> None:
    report = replace(_report(CUT), unreached=("aux1.conv", "aux2.conv"))
    *_, said = filter_tables.advice(report)
    assert said == "Left out, because evaluation never reaches them: aux1.conv and aux2.conv."
    assert filter_tables.plain(report)["unreached"] == ["aux1.conv", "aux2.conv"]


def test_kinds_that_are_guessed_are_said() -> None:
    *_, said = filter_tables.advice(replace(_report(CUT), guessed=("block.conv",)))
    assert said == (
        "The file does not say whether these are depthwise or full, which is guessed by their MLPs: block.conv. "
        "--network tells."
    )


def test_what_was_learned_is_said_with_its_twin() -> None:
    said = filter_tables.advice(_report(CUT, DEAR, WIDE, learned=LEARNED))[2:]
    assert said == [
        "digits-niff: 99.0 % of the test images right, 19,474 parameters, 9.00 s of training.",
        "digits-twin: 98.0 % of the test images right, 18,850 parameters, 5.00 s of training.",
        "With every filter cut to 5×5, and no further training, the network stays within a point of that "
        "(98.5 %).",
        "With the truncations within 1 %, it gets 98.7 %.",
    ]


def test_the_table_fits_a_terminal() -> None:
    console = Console(width=80, file=io.StringIO(), color_system=None)
    console.print(Terminal(filter_tables.table(_report(replace(CUT, name="features.17.conv.1.0"), DEAR, WIDE))))
    assert isinstance(console.file, io.StringIO)
    text = console.file.getvalue()
    assert "…" not in text
    assert "features.17.conv.1.0  8×8" in text
    assert max(map(len, text.splitlines())) <= 80


def test_markdown_escapes_names_and_shows_plots() -> None:
    report = replace(_report(CUT, WIDE), weights="weights of <img src=x>|`a`.pt")
    text = filter_tables.markdown(report, filter_tables.plots(report))
    assert "<img" not in text
    assert "\\|" in text
    table = [line for line in text.splitlines() if line.startswith("| ")]
    assert len(table) == 3
    assert {line.replace("\\|", "").count("|") for line in table} == {len(filter_tables.table(report).columns) + 1}
    for name in ("kernel-mass", "components", "kernels"):
        assert f"(plots/{name}.svg)" in text


def test_csv_and_json_hold_the_figures() -> None:
    report = _report(CUT, WIDE, learned=LEARNED)
    rows = list(csv.DictReader(io.StringIO(filter_tables.comma_separated(report))))
    assert [row["layer"] for row in rows] == ["stage1", "stage3"]
    assert (rows[0]["truncated_side"], rows[0]["flops_truncated"], rows[0]["saving"]) == ("3", "250000", "0.75")
    assert (rows[1]["truncated_side"], rows[1]["flops_truncated"], rows[1]["error"]) == ("", "", "0.2")
    read = json.loads(json.dumps(filter_tables.plain(report)))
    assert read["layers"][0]["mass_ratio"] == list(CUT.size.mass_ratio)
    assert read["learned"]["cut"][1] == {"side": 3, "accuracy": 0.97}
    assert read["advice"] == filter_tables.advice(report)


@pytest.mark.parametrize("layers", [1, 3, 30])
def test_plots_are_images_and_the_same_every_time(layers: int) -> None:
    several = [replace(_layer("x" * (i + 1), 3, 0.1, 2, 1, 5 + i % 9, 8), name=f"layer{i}") for i in range(layers)]
    report = _report(*several, learned=LEARNED)
    first, second = filter_tables.plots(report), filter_tables.plots(report)
    assert [plot.name for plot in first] == ["kernel-mass", "components", "kernels", "truncated-accuracy"]
    for one, other in zip(first, second, strict=True):
        assert one.svg == other.svg
        assert one.png == other.png
        assert one.png.startswith(b"\x89PNG")
        assert ET.fromstring(one.svg).tag.endswith("svg")
        assert one.alt
    assert "grid 5×8" in first[0].svg
    assert "layer0" in first[2].svg
    assert f"layer{layers - 1}" in first[2].svg


def test_few_components_are_counted_and_many_are_bounded() -> None:
    size = replace(CUT.size, explained_variance=(0.5, 0.1))
    table = filter_tables.table(_report(CUT, replace(CUT, size=size)))
    column = [column.title for column in table.columns].index("90 % variance")
    assert [row.entries[column].text for row in table.rows] == ["3", "> 2"]
