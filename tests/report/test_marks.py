"""A ratio between operators that compute different functions is marked wherever it is shown."""

from __future__ import annotations

import csv
import io
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
from rich.console import Console
from synthetic import WORLD, World, make, write

from niffbench import report

# The baseline is a NIFF form, so its other form is like it, and what wins is unlike it.
SOME = tuple(one for one in WORLD if one.operator in ("niff-depthwise/rfft", "niff-depthwise/cached", "depthwise"))
SMALL = World(sizes=(28, 56), operators=SOME, faults=(), baseline="niff-depthwise/rfft")
MARK = "≁"

Table = tuple[list[str], list[list[str]]]


class Tables(HTMLParser):
    """Every table of a page: the texts of its head and of its rows."""

    def __init__(self) -> None:
        super().__init__()
        self.tables: list[Table] = []
        self._cell: list[str] | None = None

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag == "table":
            self.tables.append(([], []))
        elif tag == "tr" and self.tables:
            self.tables[-1][1].append([])
        elif tag in ("td", "th"):
            self._cell = []

    def handle_endtag(self, tag: str) -> None:
        if tag in ("td", "th") and self._cell is not None:
            head, rows = self.tables[-1]
            (head if tag == "th" else rows[-1]).append("".join(self._cell).strip())
            self._cell = None

    def handle_data(self, data: str) -> None:
        if self._cell is not None:
            self._cell.append(data)


def _of_page(html: str) -> list[Table]:
    tables = Tables()
    tables.feed(html)
    return tables.tables


def _of_markdown(output: str) -> list[Table]:
    result: list[Table] = []
    for block in re.findall(r"(?:^\|.*\n)+", output, re.MULTILINE):
        head, _, *rows = [
            [cell.strip().replace("\\", "") for cell in line.strip("|").split(" | ")]
            for line in block.splitlines()
        ]
        result.append((head, rows))
    return result


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A written report."""
    place = tmp_path_factory.mktemp("marks") / "marks"
    report.write(write(place, SMALL), place)
    return place


@pytest.fixture(params=["report.html", "report.md"])
def tables(request: pytest.FixtureRequest, folder: Path) -> list[Table]:
    """The tables of the page, and of the Markdown."""
    text = (folder / request.param).read_text()
    return _of_page(text) if request.param.endswith("html") else _of_markdown(text)


def _named(tables: list[Table], *heads: str) -> list[list[str]]:
    """The rows of the one table whose head begins like this."""
    [rows] = [rows for head, rows in tables if tuple(head[: len(heads)]) == heads]
    return [row for row in rows if row]


def test_every_ratio_to_an_unlike_baseline_is_marked_in_the_table_of_cases(tables: list[Table]) -> None:
    [head] = [head for head, _ in tables if head[:2] == ["problem", "operator"] and "×" in head]
    ratios = [place for place, name in enumerate(head) if name == "×"]
    rows = _named(tables, *head)
    assert len(rows) == 2 * 6
    assert len(ratios) == 3
    for row in rows:
        assert [MARK in row[place] for place in ratios] == [row[1].startswith("depthwise")] * 3, row


def test_a_winner_unlike_the_baseline_is_marked(tables: list[Table]) -> None:
    for row in _named(tables, "problem", "fastest"):
        assert "depthwise-k3" in row[1]
        assert re.search(rf"{MARK}0\.\d+×", row[1]), row


def test_a_crossover_of_unlike_operators_is_marked(tables: list[Table]) -> None:
    rows = _named(tables, "NIFF form", "spatial operator")
    assert rows
    assert all(row[1].startswith(f"{MARK}depthwise") for row in rows)


def test_the_table_for_spreadsheets_says_what_is_unlike_and_has_all_that_tells_cases_apart(folder: Path) -> None:
    lines = list(csv.DictReader(io.StringIO((folder / "table.csv").read_text())))
    assert len(lines) == 2 * 6
    for line in lines:
        unlike = line["label"].startswith("depthwise")
        assert line["like_baseline"] == str(not unlike)
        assert line["boundary"] == ("zero" if unlike else "circular")
        assert line["equivalence"] == ("depthwise" if unlike else "niff-depthwise")
        assert [line[name] for name in ("dtype", "memory_format", "mode", "execution", "regime")] == [
            "float32", "contiguous", "inference", "eager", "steady",
        ]  # fmt: skip


@pytest.mark.parametrize("sizes", [(28,), tuple(range(8, 28))], ids=["short", "long"])
def test_the_terminal_marks_them_too(sizes: tuple[int, ...]) -> None:
    """Case by case in a short run; in a long one, where a problem has one line, its winners."""
    console = Console(width=100, force_terminal=False, color_system=None)
    with console.capture() as captured:
        console.print(report.terminal(make(World(sizes=sizes, operators=SOME, faults=(),
                                                 baseline="niff-depthwise/rfft"), Path("made-up"))))  # fmt: skip
    lines = captured.get().splitlines()
    if len(sizes) == 1:
        unlike = {line.split()[0]: MARK in line for line in lines if re.match(r"(niff-)?depthwise.*×", line)}
        assert unlike == {
            "niff-depthwise/rfft": False, "niff-depthwise/cached": False,
            **{f"depthwise-k{kernel}": True for kernel in (3, 7, 15, 31)},
        }  # fmt: skip
    else:
        problems = [line for line in lines if line.startswith("B1 64@")]
        assert len(problems) == len(sizes)
        assert all(re.search(rf"depthwise-k3\s+{MARK}0\.\d+×", line) for line in problems)
