"""The house: imports go down the rooms, light modules stay light, and nothing private is written down."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from niffbench.fingerprint import Fingerprint

PACKAGE = Path(__file__).parents[2] / "niffbench"
ROOT = PACKAGE.parent

# Top to bottom; an import may stay in its room or go to a later line (niffbench/ARCHITECTURE.md).
ROOMS = (
    {"__main__", "cli", "commands", "pytest_plugin", "api"},
    {"verdict"},
    {"study"},
    {"report"},
    {"gate"},
    {"session"},
    {"launch"},
    {"worker"},
    {"operators"},
    {"cost"},
    {"niff"},
    {"device"},
    {"protocol"},
    {"results"},
    {"stats"},
    {"suite"},
    {"fingerprint", "case", "errors", "anonymize", "home", "lengths", "units", "__init__"},
)
FLOOR = {room: level for level, rooms in enumerate(ROOMS) for room in rooms}
# Importing these must not load torch, in any chain.
TORCH_FREE = (
    "niffbench",
    "niffbench.cli",
    "niffbench.results",
    "niffbench.suite",
    "niffbench.fingerprint",
    "niffbench.case",
    "niffbench.stats",
    "niffbench.report",
    "niffbench.gate",
    "niffbench.session.opening",
    "niffbench.niff.catalogue",
    "niffbench.operators.catalogue",
)


DEVICES = {"cpu", "cuda", "replay", "xpu", "mps"}


def test_nobody_but_the_devices_compares_the_name_of_one() -> None:
    """What a device can do stands in its capabilities; a comparison of names would forget the next device."""
    compared = [
        f"{path.relative_to(PACKAGE)}:{node.lineno}"
        for path in PACKAGE.rglob("*.py")
        if _room(path) != "device"
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Compare)
        for one in ast.walk(node)
        if isinstance(one, ast.Constant) and one.value in DEVICES
    ]
    assert compared == []


def _room(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def _imports(path: Path) -> set[str]:
    result: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module:
            result |= (
                {f"{node.module}.{alias.name}" for alias in node.names}
                if node.module == "niffbench"
                else {node.module}
            )
        elif isinstance(node, ast.Import):
            result |= {alias.name for alias in node.names}
    return {name.split(".")[1] for name in result if name.startswith("niffbench.")}


MODULES = sorted(PACKAGE.rglob("*.py"))
NAMES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path for path in MODULES
}


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_go_down(path: Path) -> None:
    here = _room(path)
    assert here in FLOOR, f"{here} is in no room of the house"
    upward = {name for name in _imports(path) if name in FLOOR and FLOOR[name] < FLOOR[here]}
    assert not upward, f"{path.relative_to(ROOT)} imports upward: {sorted(upward)}"


def _nodes_at_run_time(tree: ast.AST) -> Iterator[ast.AST]:
    """Every node of ``tree`` but those that only a type checker sees."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING"):
            for otherwise in node.orelse:
                yield otherwise
                yield from _nodes_at_run_time(otherwise)
        else:
            yield node
            yield from _nodes_at_run_time(node)


def _imported_modules(path: Path) -> set[str]:
    """The dotted names that a module imports at run time, lazy imports too."""
    names: set[str] = set()
    for node in _nodes_at_run_time(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module:
            inner = [f"{node.module}.{alias.name}" for alias in node.names]
            names |= {name if name in NAMES else node.module for name in inner}
        elif isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
    return names & NAMES.keys()


def test_no_imports_go_in_a_circle() -> None:
    """Every strongly connected component of the modules' imports is a single module."""
    imports = {name: _imported_modules(path) for name, path in NAMES.items()}
    reached: dict[str, set[str]] = {}
    for name in imports:
        reached[name], ahead = set(), list(imports[name])
        while ahead:
            if (module := ahead.pop()) not in reached[name]:
                reached[name].add(module)
                ahead += imports[module]
    circles = {
        tuple(sorted(other for other in reached[name] if name in reached[other]))
        for name in imports
        if name in reached[name]
    }
    assert circles == set()


def test_torch_free_rooms_name_no_torch() -> None:
    for room in ("stats", "report", "gate", "session"):
        for path in (PACKAGE / room).rglob("*.py"):
            names = {
                alias.name.split(".")[0]
                for node in ast.walk(ast.parse(path.read_text()))
                if isinstance(node, ast.Import)
                for alias in node.names
            } | {
                (node.module or "").split(".")[0]
                for node in ast.walk(ast.parse(path.read_text()))
                if isinstance(node, ast.ImportFrom)
            }
            assert not names & {"torch", "torchvision", "fvcore"}, path


@pytest.mark.parametrize("module", TORCH_FREE)
def test_light_modules_load_no_torch(module: str) -> None:
    code = f"import {module}, sys; print(*sorted({{'torch'}} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""


def test_no_module_of_the_light_rooms_loads_torch_by_any_chain() -> None:
    """They must run on a machine without torch, to judge and report what another one measured."""
    names = [
        ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        for room in ("stats", "report", "gate", "results", "suite")
        for path in sorted((PACKAGE / room).rglob("*.py"))
    ]
    code = (
        f"import importlib, sys\nfor name in {names}:\n    importlib.import_module(name)\n"
        "    assert 'torch' not in sys.modules, name"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_a_worker_does_not_load_torchs_compiler_that_nobody_asked_for() -> None:
    """It takes seconds in every round."""
    code = "import sys, niffbench.worker.torch_evaluator; print('torch._dynamo' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_niff_is_a_library_of_its_own() -> None:
    """It knows nothing of benchmarking but its version, so that people can import it on its own."""
    for path in (PACKAGE / "niff").rglob("*.py"):
        assert _imports(path) <= {"niff", "errors", "home", "lengths", "__version__"}, path


def test_package_and_command_line_load_neither_torch_nor_pandas() -> None:
    code = (
        "import niffbench, niffbench.cli, sys\n"
        "print(*sorted({'torch', 'pandas', 'matplotlib', 'scipy'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""


def _names(path: Path) -> set[str]:
    """What a module defines: functions, classes, constants, and ``Class.method``."""
    result: set[str] = set()
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.ClassDef):
            methods = [item.name for item in node.body if isinstance(item, ast.FunctionDef)]
            result |= {node.name, *methods, *(f"{node.name}.{name}" for name in methods)}
        elif isinstance(node, ast.FunctionDef):
            result.add(node.name)
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            result |= {target.id for target in targets if isinstance(target, ast.Name)}
    return result


def _claims() -> list[tuple[str, str, str]]:
    """The rows of the table of rules that are no headings: claim, code, test."""
    page = (PACKAGE / "ARCHITECTURE.md").read_text()
    table = page.partition("## Where each rule stands")[2].partition("\n## ")[0]
    rows = [re.split(r"\s*\|\s*", line)[1:4] for line in table.splitlines() if line.startswith("| ")]
    return [(claim, code, test) for claim, code, test in rows[1:] if code]


def test_every_rule_has_its_place_and_its_test() -> None:
    claims = _claims()
    assert len(claims) > 40
    for claim, code, test in claims:
        places = re.findall(r"`([\w./]+\.(?:py|md))`(?:: `([\w.]+)`)?", code)
        tests = re.findall(r"`([\w/]+/test_\w+\.py)::(test_\w+)`", test)
        assert places, claim
        assert tests, claim
        for file, name in places:
            path = PACKAGE / file
            assert path.is_file(), f"{claim}: {file}"
            assert not name or name in _names(path), f"{claim}: {file} has no {name}"
        for file, name in tests:
            path = ROOT / "tests" / file
            assert path.is_file(), f"{claim}: {file}"
            assert name in _names(path), f"{claim}: {file} has no {name}"


def test_only_what_must_match_is_hashed() -> None:
    one = Fingerprint(must={"torch": "2.15.0"}, should={"kernel": "6.1"})
    assert one.hash == Fingerprint(must={"torch": "2.15.0"}, should={"kernel": "6.2"}).hash
    assert one.hash != Fingerprint(must={"torch": "2.15.1"}, should={"kernel": "6.1"}).hash


def test_top_level_holds_only_what_it_should() -> None:
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False)
    if tracked.returncode != 0:
        pytest.skip("not a git checkout")
    top = {line.split("/")[0] for line in tracked.stdout.splitlines()}
    allowed = {"pyproject.toml", "niffbench", "suites", "reports", "tests", "README.md"}
    assert {name for name in top if not name.startswith(".")} <= allowed


def test_published_records_name_no_host() -> None:
    for path in (ROOT / "reports").glob("*/run.json"):
        assert not re.search(r'"(hostname|user(name)?|node)"', path.read_text()), path
