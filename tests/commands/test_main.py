"""The command line itself: quick, tidy, and never a traceback."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import click
import pytest
from conftest import Cli
from synthetic import World, write
from warm_process import start

from niffbench import cli as module
from niffbench.errors import NothingMeasured, UsageError

HEAVY = ("torch", "pandas", "pydantic", "rich", "numpy", "scipy", "matplotlib")


def test_help_is_light() -> None:
    code = (
        "import sys\nfrom niffbench.cli import main\n"
        f"status = main(['--help'])\nprint(sorted(set({HEAVY!r}) & set(sys.modules)), status)"
    )
    out = subprocess.check_output([sys.executable, "-c", code], text=True)
    assert out.endswith("[] 0\n")
    assert all(name in out for name in module.COMMANDS)


@pytest.mark.parametrize("name", module.COMMANDS)
def test_each_command_is_there_and_its_help_says_what_the_list_says(name: str) -> None:
    command = importlib.import_module(f"niffbench.commands.{name.replace('-', '_')}").command
    assert isinstance(command, click.Command)
    assert (command.help or "").strip().splitlines()[0] == module.COMMANDS[name]


@pytest.mark.parametrize("name", module.COMMANDS)
def test_the_help_of_a_command_loads_no_torch(name: str) -> None:
    code = (
        "import sys\nfrom niffbench.cli import main\n"
        f"status = main([{name!r}, '--help'])\nprint(sorted({{'torch', 'pandas'}} & set(sys.modules)), status)"
    )
    assert subprocess.check_output([sys.executable, "-c", code], text=True).endswith("[] 0\n")


def test_version(cli: Cli) -> None:
    from niffbench import __version__

    assert cli("--version").stdout == f"niffbench, version {__version__}\n"
    module = subprocess.run(
        [sys.executable, "-m", "niffbench", "--version"], capture_output=True, text=True, check=True
    )
    assert module.stdout == f"niffbench, version {__version__}\n"


@pytest.mark.parametrize(
    ("arguments", "output"),
    [
        (["rnu"], "no command named 'rnu'; did you mean 'run'?"),
        (["frobnicate"], "choose from aa, ab, check"),
        (["--versoin"], "Did you mean '--version'?"),
        (["run", "--onyl", "x"], "'--only'?"),
        (["run", "smoke", "--rounds", "0"], "0 is not in the range"),
        (["run", "smoke", "--precision", "200%"], "'200%' should be a share between 0 and 1, as 2% or 0.02"),
        (["run", "smoke", "--time-budget", "soon"], "'soon' should be a time above zero, as 90s, 500ms or 10m"),
        (["run", "smoke", "--max-time", "200h"], "as 90s, 500ms or 10m, and at most a week"),
        (["run", "smoke", "--memory-limit", "lots"], "'lots' should be a number of bytes, as 8GiB"),
        (["list", "operatos"], "is not one of 'operators', 'suites', 'networks', 'metrics'"),
        (["run"], "which suite?"),
    ],
)
def test_a_misspelt_word(cli: Cli, arguments: list[str], output: str) -> None:
    done = cli(*arguments)
    assert done.returncode == 2
    assert output in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""


def raising(error: BaseException, monkeypatch: pytest.MonkeyPatch) -> int:
    """The exit status of a command that raises ``error``."""

    @click.command()
    def command() -> None:
        raise error

    monkeypatch.setattr(module.Commands, "get_command", lambda self, ctx, name: command)
    return module.main(["run"])


@pytest.mark.parametrize(
    ("error", "status", "output"),
    [
        (UsageError("that is no suite"), 2, "niffbench: that is no suite\n"),
        (NothingMeasured("nothing was measured"), 3, "niffbench: nothing was measured\n"),
        (UsageError("red \x1b[31m and \x00 and \x9b"), 2, "niffbench: red ?[31m and ? and ?\n"),
        (KeyboardInterrupt(), 130, "interrupted"),
        (click.UsageError("no such thing"), 2, "Error: no such thing"),
        (click.exceptions.Exit(5), 5, ""),
    ],
)
def test_what_becomes_of_an_error(
    error: BaseException,
    status: int,
    output: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert raising(error, monkeypatch) == status
    assert output in capsys.readouterr().err


def test_a_fault_of_niffbench_is_one_line_and_a_file(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: object
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    assert raising(ZeroDivisionError("a\nb"), monkeypatch) == module.BUG
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("niffbench: ZeroDivisionError: a; this is a fault of niffbench")
    file = line.split("details are in ")[1].split(",")[0]
    with open(file, encoding="utf-8") as stored:  # noqa: PTH123 - a path from a message
        assert "Traceback" in stored.read()
    monkeypatch.setenv("NIFFBENCH_DEBUG", "1")
    with pytest.raises(ZeroDivisionError):
        raising(ZeroDivisionError("a"), monkeypatch)


@pytest.mark.parametrize("arguments", [["list", "suites"], ["list", "operators", "--json"]])
def test_a_reader_that_is_gone_changes_no_exit_status(arguments: list[str], tmp_path: Path) -> None:
    """Of 1 a gate would read a regression."""
    done = gone(tmp_path, *arguments)
    assert (done.returncode, done.stderr) == (0, "")


def test_a_verdict_outlives_its_reader(tmp_path: Path) -> None:
    """``set -o pipefail; niffbench check … --json | head -1`` fails a pipeline as without the reader."""
    base = str(write(tmp_path / "base", World(sizes=(14,), rounds=5)).path)
    head = str(write(tmp_path / "head", World(sizes=(14,), rounds=5, slower={"dense": 2.0})).path)
    few = str(write(tmp_path / "few", World(sizes=(14,), rounds=2, samples=4)).path)
    verdicts = {
        ("check", base, head, "--json", "--junit", "junit.xml"): 1,
        ("check", base, head, "--all"): 1,
        ("check", base, base, "--json"): 0,
        ("check", base, str(tmp_path / "nowhere"), "--json"): 2,
        ("aa", "--run", few, "--json"): 5,
    }
    for arguments, status in verdicts.items():
        assert gone(tmp_path, *arguments).returncode == status, arguments
    assert gone(tmp_path, "check", base, head, "--json", errors=True).returncode == 1
    assert (tmp_path / "junit.xml").is_file()


@pytest.mark.parametrize("where", ["/dev/full", "&-"])
@pytest.mark.parametrize("how", ["", "--json"])
def test_output_that_cannot_be_written(tmp_path: Path, where: str, how: str) -> None:
    """Of a full disk one message; who closes standard output wants none. Neither is a regression."""
    run = write(tmp_path / "run", World(sizes=(14,), rounds=2, samples=4)).path
    done = subprocess.run(
        ["bash", "-c", f'"{sys.executable}" -m niffbench.cli check {run} {run} {how} >{where}'],
        stderr=subprocess.PIPE,
        text=True,
        check=False,
    )
    full = "niffbench: standard output: cannot be written (No space left on device)\n"
    assert (done.returncode, done.stderr) == ((5, "") if where == "&-" else (2, full))


def test_an_encoding_without_our_signs_is_no_fault(cli: Cli, tmp_path: Path) -> None:
    run = str(write(tmp_path / "run", World(sizes=(14,), rounds=2, samples=4)).path)
    for arguments in (["list", "suites"], ["check", run, run, "--all"], ["check", run, run, "--json"]):
        done = cli(*arguments, env={"PYTHONIOENCODING": "ascii"})
        assert (done.returncode, done.stderr) == (0 if arguments[0] == "list" else 5, "")
    assert json.loads(done.stdout)["findings"]


def test_output_that_a_caller_redirects_goes_there() -> None:
    program = """
import contextlib, io, sys
from niffbench.cli import main
sys.argv = ["niffbench", "list", "suites"]
with contextlib.redirect_stdout(io.StringIO()) as caught:
    status = main()
print(status, "quick" in caught.getvalue())
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert (done.stdout, done.stderr) == ("0 True\n", "")


def gone(place: Path, *arguments: str, errors: bool = False) -> subprocess.CompletedProcess[str]:
    """What becomes of a command of which nobody reads standard output, nor standard error if ``errors``."""
    reading, writing = os.pipe()
    os.close(reading)
    with tempfile.TemporaryFile() as said:
        try:
            process = start(
                arguments, os.environ, cwd=place, stdout=writing, stderr=writing if errors else said.fileno()
            )
        finally:
            os.close(writing)
        status = process.wait(60)
        said.seek(0)
        return subprocess.CompletedProcess(arguments, status, "", said.read().decode())


def test_a_reader_that_leaves_early() -> None:
    arguments = f"{sys.executable} -m niffbench.cli list operators --json"
    done = subprocess.run(
        ["bash", "-c", f"set -o pipefail; {arguments} | head -c 1"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0
    assert done.stderr == ""
