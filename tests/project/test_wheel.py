"""A built wheel, installed elsewhere, finds its suites."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The package as a wheel puts it, in a folder of its own."""
    folder = tmp_path_factory.mktemp("wheel")
    pip = [sys.executable, "-m", "pip", "-q", "--disable-pip-version-check"]
    subprocess.run([*pip, "wheel", "--no-deps", "-w", str(folder), str(ROOT)], check=True)
    (wheel,) = folder.glob("*.whl")
    site = folder / "site"
    subprocess.run([*pip, "install", "--no-deps", "--target", str(site), str(wheel)], check=True)
    return site


def _python(site: Path, code: str) -> str:
    # -I keeps the checkout (the current directory, an editable install's path file aside) out of the search path.
    start = f"import sys; sys.path.insert(0, {str(site)!r}); "
    done = subprocess.run(
        [sys.executable, "-I", "-c", start + code], cwd=site, capture_output=True, text=True, check=True
    )
    return done.stdout.strip()


def test_wheel_finds_every_suite(installed: Path) -> None:
    code = "import niffbench.suite as s; print(s.__file__); print(*s.available(), sep=',')"
    file, names = _python(installed, code).splitlines()
    assert Path(file).is_relative_to(installed)
    assert names.split(",") == sorted(path.stem for path in (ROOT / "suites").glob("*.toml"))


@pytest.mark.parametrize("pattern", ["*.j2", "docs/*.md"])
def test_wheel_carries_its_templates_pages_and_type_marker(installed: Path, pattern: str) -> None:
    package = installed / "niffbench"
    assert (package / "py.typed").is_file()
    source = {path.relative_to(ROOT / "niffbench") for path in (ROOT / "niffbench").rglob(pattern)}
    assert source
    assert all((package / path).is_file() for path in source)


def test_wheel_answers_help(installed: Path) -> None:
    out = _python(installed, "from niffbench.cli import main; sys.argv = ['niffbench', '--help']; main()")
    assert "run" in out
    assert "plan" in out
