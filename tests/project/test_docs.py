"""The pages of ``niffbench/docs``: every block of code in them works, and they name every key there is."""

from __future__ import annotations

import json
import re
import shlex
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import nbformat
import pytest
from launchers.inline import InlineWorker
from nbclient import NotebookClient
from pydantic import BaseModel

import niffbench
from niffbench.cli import COMMANDS, main
from niffbench.launch import local
from niffbench.operators.catalogue import catalogue
from niffbench.operators.module import declare
from niffbench.study import costs
from niffbench.suite import load
from niffbench.suite.schema import Axes, Exclusion, Measure, OperatorEntry, Refine, SuiteFile

DOCS = Path(niffbench.__file__).parent / "docs"
PAGES = sorted(page.stem for page in DOCS.glob("*.md"))
BLOCK = re.compile(r"(?:<!-- file: (?P<file>\S+) -->\n)?```(?P<language>\w*)\n(?P<text>.*?)```", re.DOTALL)
BEFORE = {"figure": ["own-layer"]}
"""Pages whose runs a page looks at."""
ELSEWHERE = {"notebook", "ray", "slurm"}
"""Pages that are followed in other tests, what needs an engine in ``tests/launch``."""

Follow = Callable[[str], None]


@dataclass(frozen=True)
class Block:
    """A block of code; ``file`` is where a reader is told to save it."""

    language: str
    text: str
    file: str | None


def blocks(page: str, folder: Path = DOCS) -> Iterator[Block]:
    for match in BLOCK.finditer((folder / f"{page}.md").read_text(encoding="utf-8")):
        yield Block(match["language"], match["text"], match["file"])


@pytest.fixture(scope="module")
def follow(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Follow]:
    """Do what a page says, once; workers are not processes but calls, so that it takes a second."""
    followed: set[str] = set()
    place = tmp_path_factory.mktemp("reader")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        patch.setattr(local, "LAUNCHER", InlineWorker())
        patch.setattr(sys, "path", [*sys.path])
        patch.setenv("NIFFBENCH_ROOFLINE", "0")  # seconds of each run, and no page is about it
        for named in ("_OF_LAYERS", "_OF_NETWORKS"):  # as is how long what ``shrink`` measures is sampled
            patch.setattr(costs, named, {"regimes": ["steady"], "min_time": 0.001, "max_time": 0.005})

        def page(name: str) -> None:
            for needed in [*BEFORE.get(name, []), name]:
                if needed not in followed:
                    for block in blocks(needed):
                        execute(block, place)
                    followed.add(needed)

        yield page


def execute(block: Block, place: Path) -> None:
    if block.file:
        (place / block.file).write_text(block.text, encoding="utf-8")
    match block.language:
        case "toml":
            path = place / (block.file or "suite.toml")
            path.write_text(block.text, encoding="utf-8")
            assert load(str(path), catalogue(), declare=declare).cases
        case "python":
            exec(compile(block.text, block.file or "page", "exec"), {"__name__": "page"})
        case "sh":
            for line in block.text.splitlines():
                command, *arguments = shlex.split(line)
                assert command == "niffbench"
                assert main(arguments) in ((0, 5) if arguments[0] == "check" else (0,)), line
        case language:
            pytest.fail(f"nobody runs a block of {language or 'no language'}")


@pytest.mark.parametrize("page", sorted({*PAGES} - ELSEWHERE))
def test_every_block_works_in_the_order_of_the_page(follow: Follow, page: str) -> None:
    follow(page)


def test_the_readmes_python_works(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (block,) = (block for block in blocks("README", DOCS.parents[1]) if block.language == "python")
    execute(block, tmp_path)
    assert capsys.readouterr().out == "torch.Size([1, 96, 56, 56])\n"


def test_the_notebook_measures_shows_and_says_what_it_cannot_send(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its page as cells, in a kernel of its own, and one more that defines its class in the notebook."""
    monkeypatch.setenv("NIFFBENCH_ROOFLINE", "0")
    cells = [nbformat.v4.new_code_cell(block.text) for block in blocks("notebook") if block.language == "python"]
    cells.append(
        nbformat.v4.new_code_cell("class Here(MyConv): pass\nniffbench.measure([Here], channels=8, size=14)")
    )
    notebook = nbformat.v4.new_notebook(cells=cells)
    NotebookClient(
        notebook, timeout=120, allow_errors=True, resources={"metadata": {"path": str(tmp_path)}}
    ).execute()
    _, measured, frame, winners, counted, refused = (cell["outputs"] for cell in notebook.cells)
    table = next(output["data"]["text/html"] for output in measured if output["output_type"] == "execute_result")
    assert all(f">{row}<" in table or f">{row} " in table for row in ("depthwise-k7", "my_ops:MyConv", "Conv2d"))
    assert measured[0]["output_type"] == "display_data"  # the bar, which is gone
    assert "memory_total" in frame[0]["data"]["text/html"]
    assert winners[0]["data"]["text/plain"]
    assert f"flops={2 * 8 * 8 * 9 * 14 * 14}" in counted[0]["data"]["text/plain"]
    (line,) = refused[0]["traceback"]
    assert "Here is defined in a notebook" in line
    assert "%%writefile my_ops.py" in line


def test_every_key_of_a_suite_is_on_its_page() -> None:
    page = (DOCS / "suites.md").read_text(encoding="utf-8")
    models: list[type[BaseModel]] = [SuiteFile, Axes, OperatorEntry, Exclusion, Measure, Refine]
    keys = {name for model in models for name in model.model_fields}
    assert {key for key in keys if f"`{key}`" not in page} == set()


def test_the_defaults_of_a_suite_are_those_of_its_page(tmp_path: Path) -> None:
    (tmp_path / "least.toml").write_text(
        'description = "d"\nbaseline = "dense-k3"\naxes = { channels = 4, size = 7 }\n'
        'operators = [{ name = "dense-k3" }]\n'
    )
    (case,) = load(str(tmp_path / "least.toml"), catalogue()).cases
    names = ("batch", "dtype", "tf32", "memory_format", "mode")
    used = {name: getattr(case.problem, name) for name in names} | {"execution": case.execution}
    used |= {name: field.default for name, field in Measure.model_fields.items() if field.default is not None}
    assert {name: written for name, written in told_defaults().items() if name in used} == {
        name: ", ".join(value) if isinstance(value, list) else json.dumps(value).strip('"').removesuffix(".0")
        for name, value in used.items()
    }


def told_defaults() -> dict[str, str]:
    """By key, what the tables of the page on suites have in their column of defaults."""
    page, told = (DOCS / "suites.md").read_text(encoding="utf-8"), dict[str, str]()
    for header, rows in re.findall(r"^(\|.*\|)\n\|[-|]+\|\n((?:\|.*\|\n)+)", page, re.MULTILINE):
        columns = [cell.strip() for cell in header.split("|")]
        for cells in (row.split("|") for row in rows.splitlines() if "default" in columns):
            keys, written = re.findall(r"`(\w+)`", cells[1]), cells[columns.index("default")].strip().strip("`")
            told |= dict(zip(keys, written.split(", ") if len(keys) > 1 else [written], strict=True))
    return told


def test_the_data_dictionary_is_that_of_the_registry(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list", "metrics", "--markdown"]) == 0
    assert (DOCS / "metrics.md").read_text(encoding="utf-8").endswith(f"\n\n{capsys.readouterr().out}")


def test_pages_name_commands_and_pages_that_exist() -> None:
    for page in PAGES:
        text = (DOCS / f"{page}.md").read_text(encoding="utf-8")
        assert {name for name in re.findall(r"\]\((\S+?\.md)\)", text) if not (DOCS / name).is_file()} == set()
        assert set(re.findall(r"`niffbench ([a-z-]+)", text)) <= COMMANDS.keys()
