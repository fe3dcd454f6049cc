"""``doctor`` and ``profile`` for real, on the CPU, and what they refuse."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from time import perf_counter as clock

import pytest

from niffbench.commands import doctor
from niffbench.device.base import Processor
from niffbench.device.cpu import CpuDevice
from niffbench.niff.native import build
from niffbench.worker import health_check

pytest_plugins = ["cli_in_process"]
Call = Callable[..., subprocess.CompletedProcess[str]]


def test_doctor_says_what_works_as_json_and_for_people(call: Call, capsys: pytest.CaptureFixture[str]) -> None:
    done = call("doctor", "--device", "cpu", "--threads", "1", "--json")
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert result["fingerprint"]["must"]["threads"] == 1
    assert 0 < result["timer_resolution"] < 1e-3
    assert {counter["name"]: counter["works"] for counter in result["counters"]}["memory of a call"]
    assert set(result["quiet"]) == {"load", "others", "jitter", "worst", "governor", "remarks"}
    assert isinstance(result["cuda"]["usable"], bool)
    assert (result["kernel"] == "works") == (build.unavailable() is None)
    assert os.uname().nodename not in done.stdout.split('"')
    doctor._print(result)
    printed = capsys.readouterr().out
    for heading in ("Machine", "Is it quiet?", "What works", "CUDA", "FLOPs, fvcore with handlers"):
        assert heading in printed


@pytest.mark.parametrize(("remarks", "code"), [((), 0), (("the frequency governor is 'powersave'",), 1)])
def test_a_strict_doctor_fails_an_unfit_machine_with_a_remedy(
    call: Call, monkeypatch: pytest.MonkeyPatch, remarks: tuple[str, ...], code: int
) -> None:
    quiet = health_check.Quiet(0.0, 0.0, 0.0, 1.0, None, remarks)
    monkeypatch.setattr(health_check, "quiet", lambda governor: quiet)
    done = call("doctor", "--device", "cpu", "--threads", "1", "--strict", "--json")
    assert done.returncode == code
    assert len(json.loads(done.stdout)["unfit"]) == len(remarks)
    assert ("cpupower" in done.stderr) == bool(code)


def test_profile_takes_two_operators_apart_side_by_side(call: Call, tmp_path: Path) -> None:
    done = call(
        "profile", "niff-depthwise/rfft", "depthwise-k7", "--channels", "8", "--size", "10x12", "--device", "cpu",
        "--threads", "1", "--mode", "training", "--option", "mlp=big", "--out", "apart",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "niff-depthwise/rfft mlp=big at B1 8@10×12 training" in done.stdout
    assert "inverse fft (backward)" in done.stdout
    document = json.loads((tmp_path / "apart" / "profile.json").read_text())
    assert [case["label"] for case in document["cases"]] == ["niff-depthwise/rfft mlp=big", "depthwise-k7"]
    first = document["cases"][0]
    total = sum(phase["seconds"] for phase in first["phases"]) + first["remainder"]
    assert total == pytest.approx(first["instrumented"])
    assert first["gap"] == pytest.approx(1 - total / first["whole"])
    assert abs(first["gap"]) < 0.01
    assert "FFTs, shifts and real parts are" in done.stdout
    assert (tmp_path / "apart" / first["trace"]).stat().st_size > 1000
    assert (tmp_path / "apart" / "phases.png").read_bytes().startswith(b"\x89PNG")
    assert "forward fft" in (tmp_path / "apart" / "phases.svg").read_text()
    everything = "".join(path.read_text(errors="replace") for path in (tmp_path / "apart").glob("*.json"))
    assert str(tmp_path) not in everything
    assert f'"{os.uname().nodename}"' not in everything


@pytest.mark.parametrize("form", ["native", "auto"])
def test_profile_does_not_call_hidden_transforms_none(call: Call, form: str) -> None:
    done = call("profile", f"niff-depthwise/{form}", "--channels", "4", "--size", "8", "--device", "cpu")
    assert done.returncode == 0, done.stderr
    output = " ".join(done.stdout.split())
    assert "cannot be told apart; profile niff-depthwise/rfft for the split" in output
    assert "FFTs, shifts and real parts are" not in output


@pytest.mark.parametrize(
    ("arguments", "output"),
    [
        (["niff-depthwise/rft"], "did you mean 'niff-depthwise/rfft'"),
        (["depthwise-k4"], "kernel size 4 is even"),
        (["depthwise-k15", "--size", "7"], "larger than 2H−1"),
        (["depthwise"], "depthwise-k7"),
        (["depthwise-k3", "--size", "0"], "size"),
        (["depthwise-k3", "--size", "large"], "--size large"),
        (["depthwise-k3", "--option", "mlp=big"], "none of these operators has it"),
        (["depthwise-k3", "--option", "mlp"], "NAME=VALUE"),
        (["niff-depthwise/rfft", "--option", "mlp=huge"], "big"),
        (["depthwise-k3", "--device", "cdua"], "did you mean 'cuda'"),
        (["depthwise-k3", "--device", "replay:x.json"], "has nothing to take apart"),
    ],
)
def test_profile_refuses_what_it_cannot_take_apart(
    call: Call, tmp_path: Path, arguments: list[str], output: str
) -> None:
    done = call("profile", *arguments, "--out", "apart")
    assert done.returncode == 2
    assert output in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "apart").exists()


def test_profile_writes_over_nothing(call: Call, tmp_path: Path) -> None:
    (tmp_path / "apart").mkdir()
    (tmp_path / "apart" / "mine").write_text("kept")
    done = call("profile", "depthwise-k3", "--out", "apart", "--device", "cpu")
    assert done.returncode == 2
    assert "not empty" in done.stderr
    assert (tmp_path / "apart" / "mine").read_text() == "kept"


@pytest.mark.parametrize("share", [0.4, 0.01])
def test_profile_says_that_the_machine_was_busy(call: Call, monkeypatch: pytest.MonkeyPatch, share: float) -> None:
    monkeypatch.setattr(CpuDevice, "processor", lambda _: Processor(1e6 * share * clock(), 1e6 * clock()))
    done = call("profile", "depthwise-k3", "--channels", "4", "--size", "8", "--device", "cpu", "--out", "apart")
    assert done.returncode == 0, done.stderr
    said = json.loads(Path("apart", "profile.json").read_text(encoding="utf-8"))["others"]
    assert said == pytest.approx(share, abs=0.002)
    assert ("Other processes used 40 % of the processor" in done.stdout) == (share == 0.4)


def test_profile_refuses_what_does_not_fit_in_memory_as_a_run_does(call: Call, tmp_path: Path) -> None:
    arguments = ("depthwise-k3", "niff-depthwise/rfft", "--channels", "1000", "--size", "30000", "--device", "cpu")
    done = call("profile", *arguments, "--out", "apart")
    assert done.returncode == 3
    for label in arguments[:2]:
        assert f"{label} at B1 1000@30000: skipped, needs " in done.stderr
    assert "TiB by prediction, " in done.stderr
    assert not (tmp_path / "apart").exists()


def test_profile_keeps_what_was_taken_apart_beside_what_could_not_be(call: Call, tmp_path: Path) -> None:
    arguments = ("--channels", "4", "--size", "8", "--device", "cpu", "--out", "apart")
    done = call("profile", "niff-depthwise/triton", "depthwise-k3", *arguments, "--json")
    assert done.returncode == 3
    (case,) = json.loads(done.stdout)["cases"]
    assert case["label"] == "depthwise-k3"
    assert json.loads((tmp_path / "apart" / "profile.json").read_text(encoding="utf-8"))["cases"] == [case]
    assert "niff-depthwise/triton at B1 4@8: unsupported, the triton form is not available for cpu" in done.stderr
    assert "the others were taken apart" in done.stderr
