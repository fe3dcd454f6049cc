"""One table, every writer: nothing is lost on a narrow terminal, and nothing in a cell breaks an output."""

from __future__ import annotations

import csv as standard_csv
import io
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from niffbench.report.table import ESSENTIAL, Column, Entry, Table, row_of
from niffbench.report.writers import csv, html, latex, markdown
from niffbench.report.writers.terminal import layout, lines, wrap

WORDS = st.lists(st.text("abkxyz0189", min_size=1, max_size=14), min_size=1, max_size=6)
NAMES = st.builds(lambda words, seams: "".join(a + b for a, b in zip(words, seams, strict=False)).strip("/-_ @")
                  or "x", WORDS, st.lists(st.sampled_from("/-_ @"), min_size=6, max_size=6))  # fmt: skip
FIGURES = st.builds(
    lambda value, unit: f"{value}{unit}", st.integers(0, 10**6), st.sampled_from(["", " ms", " GFLOP", "×"])
)
HOSTILE = "a & b % $x$ #1 _y_ {z} ~ ^ \\cmd | <b> [q] ≁ 10⁻⁷ µs × –\x1b[31m\n| @x"


@st.composite
def tables(draw: st.DrawFn) -> Table:
    """A name, up to seven figures of which some are essential and some have notes, and perhaps a sentence."""
    figures = draw(st.integers(1, 7))
    columns = [Column("case")]
    columns += [Column(f"f{i}", "figure", importance=draw(st.integers(1, ESSENTIAL))) for i in range(figures)]
    if sentences := draw(st.booleans()):
        columns.append(Column("why", "prose"))
    rows = []
    for _ in range(draw(st.integers(1, 4))):
        cells = [Entry(draw(NAMES), draw(st.sampled_from(["", "note"])))]
        for _ in range(figures):
            cells.append(Entry(draw(FIGURES), draw(st.sampled_from(["", "[0.123, 0.456]"]))))
        cells += [Entry(draw(st.sampled_from(["", "because it did not fit into what there is"])))] * sentences
        rows.append(row_of(*cells))
    return Table("t", "", tuple(columns), tuple(rows))


def _squashed(output: str) -> str:
    return re.sub(r"\s", "", output)


@given(tables(), st.integers(20, 200))
@settings(deadline=None)
def test_at_any_width_figures_are_whole_and_names_can_be_read(table: Table, width: int) -> None:
    plan = layout(table, width)
    printed = [line.plain for line in lines(table, width)]
    essential = [place for place, column in enumerate(table.columns) if column.importance == ESSENTIAL]
    figures = [place for place in essential if table.columns[place].kind == "figure"]
    needed = 7 + sum(
        1 + max(2, *(max(len(row.entries[place].text), len(row.entries[place].note)) for row in table.rows))
        for place in figures
    )
    if width >= needed:
        assert max(map(len, printed)) <= width
    assert not set(plan.dropped) & set(essential)
    if plan.dropped:  # the least important went first
        shown = [table.columns[place].importance for place in plan.widths]
        assert max(table.columns[place].importance for place in plan.dropped) <= min(
            [importance for importance in shown if importance < ESSENTIAL], default=ESSENTIAL
        )
    for row in table.rows:
        for place in plan.widths:
            if table.columns[place].kind == "figure":
                entry = row.entries[place]
                assert any(entry.text in line for line in printed)
                assert any(entry.note in line for line in printed)
    names = _squashed("".join(line[: plan.widths[0]] for line in printed))
    for row in table.rows:
        assert _squashed(row.entries[0].text) in names


@given(NAMES, st.integers(1, 40))
def test_a_broken_name_can_be_put_together_again(name: str, width: int) -> None:
    pieces = wrap(name, width)
    assert max(map(len, pieces)) <= width
    assert _squashed("".join(pieces)) == _squashed(name)


def test_names_are_broken_at_their_seams_where_they_have_some() -> None:
    assert wrap("niff-depthwise/published", 16) == ["niff-depthwise/", "published"]
    assert wrap("network/resnet18 size=224", 18) == ["network/resnet18", "size=224"]
    assert wrap("B1 64@112 training", 10) == ["B1 64@112", "training"]
    assert wrap("abcdefgh-k3", 5) == ["abcde", "fgh-", "k3"]


def test_groups_are_headings_and_what_is_left_out_is_named() -> None:
    table = Table(
        "t",
        "Title",
        (
            Column("problem", "group"),
            Column("case"),
            Column("time", "figure"),
            Column("extra", "figure", importance=1),
        ),
        (row_of("B1", "one", "1 ms", "x" * 9), row_of("B1", "two", "2 ms", "y"), row_of("B2", "one", "3 ms", "z")),
    )
    wide = [line.plain for line in lines(table, 60)]
    assert [line.split()[0] for line in wide if line] == ["Title", "case", "B1", "one", "two", "B2", "one"]
    assert "extra" in wide[1]
    narrow = [line.plain for line in lines(table, 12)]
    assert "extra" not in narrow[1]
    assert "extra" in " ".join(narrow[-3:])
    assert {"1 ms", "2 ms", "3 ms"} <= {line.strip()[-4:] for line in narrow}


PAPER = Table(
    "t_1",
    "Costs",
    (Column("problem", "group"), Column("operator"), Column("time", "figure", "time", unit="s")),
    (
        row_of("B1", "a_b", Entry("1.00 ms", "[0.9, 1.1]", 1e-3, ("winner",))),
        row_of("B2", HOSTILE, Entry("2.1·10⁻⁷", value=2.1e-7, marks=("unlike",))),
    ),
    "50 % of it",
)


def test_latex_is_a_booktabs_table_with_everything_escaped() -> None:
    output = latex.write(PAPER)
    for rule in ("toprule", "midrule", "bottomrule"):
        assert f"\\{rule}" in output
    assert output.index("toprule") < output.index("midrule") < output.index("bottomrule")
    assert re.findall(r"\\(begin|end)\{(\w+)\}", output) == [
        ("begin", "table"), ("begin", "tabular"), ("end", "tabular"), ("end", "table"),
    ]  # fmt: skip
    body = output[output.index("toprule") : output.index("bottomrule")]
    rows = [line for line in body.splitlines() if line.endswith(r"\\") and "multicolumn" not in line]
    assert len(rows) == 3
    assert {len(re.findall(r"(?<!\\)&", row)) for row in rows} == {1}
    assert "% of" not in body.replace(r"\%", "")  # nothing is commented out
    assert output.count("{") - output.count(r"\{") == output.count("}") - output.count(r"\}")
    assert r"\textbf{1.00 ms}" in output
    assert "10$^{-7}$" in output
    assert r"$\nsim$" in output
    assert "\x1b" not in output


@given(st.text(max_size=60))
def test_any_text_is_inert_in_latex(output: str) -> None:
    escaped = latex.escape(output)
    bare = re.sub(r"\\[a-z]+\{\}|\$[^$]*\$|\\[{}$&%#_]|\{\[\}|\{\]\}", "", escaped)
    assert not set(bare) & set("\\{}$&%#_~^<>|")


def test_csv_has_numbers_in_base_units_and_no_formula() -> None:
    table = Table("t", "", (Column("name"), *PAPER.columns[2:]), (row_of("=SUM(A1)", PAPER.rows[0].entries[2]),))
    head, line = standard_csv.reader(io.StringIO(csv.write(table)))
    assert head == ["name", "time (s)", "time, note"]
    assert line[0] == "'=SUM(A1)"
    assert float(line[1]) == 1e-3
    assert line[2] == "[0.9, 1.1]"


@pytest.mark.parametrize("write", [markdown.write, html.write])
def test_a_cell_cannot_break_a_page(write: object) -> None:
    assert callable(write)
    output = str(write(PAPER))
    assert "<b>" not in output
    assert "\x1b" not in output
    assert "≁2.1" in output


def test_a_cut_table_says_so() -> None:
    assert "1 row left out." in markdown.write(PAPER, 1)
    assert "left out" not in markdown.write(PAPER)
