"""Bad input on the command line: one clear message, exit code 2, no traceback, nothing written."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from cli_in_process import Call, call

__all__ = ["call"]

GOOD = """
description = "good"
baseline = "depthwise-k3"
axes = {channels = 4, size = 9}
operators = [{name = "depthwise-k3"}]
"""


def tree(root: Path) -> dict[str, bytes | None]:
    """Everything below ``root``, with the content of files."""
    return {str(path.relative_to(root)): path.read_bytes() if path.is_file() else None for path in root.rglob("*")}


def refused(call: Call, root: Path, *arguments: str) -> str:
    """Run, see that nothing came of it, and return the message."""
    before = tree(root)
    done = call(*arguments)
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""
    assert tree(root) == before
    message = [line for line in done.stderr.splitlines() if not line.startswith(("Usage:", "Try "))]
    assert len([line for line in message if line]) == 1, done.stderr
    return " ".join(message)


@pytest.mark.parametrize(
    ("old", "new", "output"),
    [
        ("size = 9}", "size = 9", "s.toml: not valid TOML"),
        ("axes = {", "axes = {colour = 3, ", "s.toml: unknown key 'axes.colour'; choose from batch, channels"),
        ("channels = 4", "chanels = 4", "unknown key 'axes.chanels'; did you mean 'channels'?"),
        (
            '{name = "depthwise-k3"',
            '{name = "depthwize-k3"',
            "operators[0].name: no operator named 'depthwize-k3'; did",
        ),
        ("channels = 4", 'channels = "four"', "key 'axes.channels[0]': should be a valid integer, got 'four'"),
        ('{name = "depthwise-k3"', '{name = "depthwise-k8"', "'depthwise-k8' at B1 4@9: kernel size 8 is even"),
        ('{name = "depthwise-k3"', '{name = "depthwise-k19"', "kernel size 19 is larger than 2H−1 = 17 at 9×9"),
        ("size = 9", "size = 0", "key 'axes.size[0]': should be greater than or equal to 1, got 0"),
        ('description = "good"', "", "s.toml: key 'description' is missing"),
        (
            'baseline = "depthwise-k3"',
            'baseline = "depthwise-k5"',
            "is not one of its rows; did you mean 'depthwise-k3'?",
        ),
    ],
)
def test_a_faulty_suite(call: Call, tmp_path: Path, old: str, new: str, output: str) -> None:
    assert old in GOOD
    (tmp_path / "s.toml").write_text(GOOD.replace(old, new))
    assert output in refused(call, tmp_path, "run", "s.toml", "--device", "cpu")


def test_a_suite_that_windows_wrote_is_none_the_worse(call: Call, tmp_path: Path) -> None:
    (tmp_path / "s.toml").write_bytes(b"\xef\xbb\xbf" + GOOD.replace("\n", "\r\n").encode())
    output = refused(call, tmp_path, "plan", "s.toml", "--only", "nothing")
    assert "its rows are depthwise-k3" in output


def test_a_suite_that_is_a_directory(call: Call, tmp_path: Path) -> None:
    (tmp_path / "s.toml").mkdir()
    assert "suite file s.toml: is a directory" in refused(call, tmp_path, "plan", "s.toml")


def test_a_plan_of_a_faulty_suite(call: Call, tmp_path: Path) -> None:
    (tmp_path / "s.toml").write_text(GOOD.replace("size = 9", "size = 0"))
    assert "should be greater than or equal to 1, got 0" in refused(call, tmp_path, "plan", "s.toml")


@pytest.mark.parametrize(
    ("arguments", "output"),
    [
        (["smoek"], "no suite named 'smoek'; did you mean 'smoke'?"),
        (["nothing.toml"], "suite file nothing.toml: there is no such file"),
        (["."], "suite file .: is a directory"),
        (["smoke", "--only", "denes-k3"], "--only denes-k3: matches no case of smoke; did you mean 'dense-k3'?"),
        (["smoke", "--only", "size=99"], "--only size=99: matches no case of smoke; its rows are"),
        (["smoke", "--only", "sizes=7"], "--only sizes=7: no axis named 'sizes'; did you mean 'size'?"),
        (
            ["smoke", "--operator", "depthwize-k3"],
            "niffbench: --operator depthwize-k3: no operator named 'depthwize-k3'; did",
        ),
        (["smoke", "--operator", "dense-k9999"], "niffbench: --operator dense-k9999 'dense-k9999' at "),
        (["smoke", "--refine"], "--refine: suite 'smoke' has no [refine] table, which says along which axis"),
        (["smoke", "--min-time", "3s", "--max-time", "1s"], "--min-time 3 s is longer than --max-time 1 s"),
    ],
)
def test_faulty_arguments(call: Call, tmp_path: Path, arguments: list[str], output: str) -> None:
    assert output in refused(call, tmp_path, "run", *arguments)


@pytest.mark.parametrize(
    ("device", "output"),
    [("cdua", "did you mean 'cuda'?"), ("replay:nothing.json", "cannot be read (No such file or directory)")],
)
def test_a_device_there_is_not(call: Call, tmp_path: Path, device: str, output: str) -> None:
    assert output in refused(call, tmp_path, "run", "smoke", "--device", device)


def test_cuda_asked_for_and_absent(call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    message = refused(call, tmp_path, "run", "smoke", "--device", "cuda")
    assert "--device cuda" in message
    assert "use --device cpu" in message


def test_an_out_that_is_not_empty(call: Call, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("years of work")
    message = refused(call, tmp_path, "run", "smoke", "--out", "mine")
    assert "--out mine: is not empty; name a new directory, or --resume it" in message


def test_an_out_that_is_a_file_or_below_one(call: Call, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("content")
    assert "is not a directory" in refused(call, tmp_path, "run", "smoke", "--out", "file")
    assert "file is not a directory" in refused(call, tmp_path, "run", "smoke", "--out", "file/run")


def test_an_out_that_cannot_be_written(call: Call, tmp_path: Path) -> None:
    place = Path("/proc/niffbench")  # nobody can make a directory there, not even root
    assert "--out /proc/niffbench: cannot be made" in refused(
        call, tmp_path, "run", "smoke", "--out", str(place), "--device", replay(tmp_path)
    )
    if os.geteuid() != 0:
        (tmp_path / "locked").mkdir(mode=0o500)
        assert "cannot be written to" in refused(call, tmp_path, "run", "smoke", "--out", "locked/run")


def replay(tmp_path: Path) -> str:
    (tmp_path / "replay.json").write_text("{}")
    return "replay:replay.json"


@pytest.mark.parametrize(
    ("arguments", "output"),
    [
        (["--resume", "nothing"], "nothing: there is no such directory"),
        (["--resume", "."], "is not a run (it has no run.json)"),
        (["--resume", ".", "--rounds", "3"], "--rounds: a resumed run keeps the settings it was begun with"),
        (["smoke", "--resume", ".", "--only", "x"], "--only: a resumed run keeps the settings it was begun with"),
    ],
)
def test_a_resumption_of_nothing(call: Call, tmp_path: Path, arguments: list[str], output: str) -> None:
    message = refused(call, tmp_path, "run", *arguments)
    assert output in message


def test_a_run_of_a_newer_niffbench_is_not_resumed(call: Call, tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text('{"schema_version": 99}')
    assert "is newer than this niffbench knows" in refused(call, tmp_path, "run", "--resume", ".")


def test_what_a_suite_says_does_not_reach_the_terminal_as_codes(call: Call, tmp_path: Path) -> None:
    (tmp_path / "s.toml").write_text(GOOD.replace('name = "depthwise-k3"', 'name = "\\u001b[31mred"'))
    message = refused(call, tmp_path, "run", "s.toml")
    assert "\x1b" not in message
    assert "?[31mred" in message
