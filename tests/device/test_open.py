"""Opening a device by name: what there is, what there is not, what is misspelt."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from run_worker import QUICK, case_of, work

from niffbench.device import cuda, open_device
from niffbench.errors import UsageError
from niffbench.operators.catalogue import catalogue
from niffbench.suite import load

Cli = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(autouse=True)
def threads() -> object:
    """Opening sets torch's threads; put them back."""
    before = torch.get_num_threads()
    yield None
    torch.set_num_threads(before)


def test_the_cpu_has_the_threads_it_was_asked_for() -> None:
    device = open_device("cpu", threads=1)
    assert (device.spec, device.place) == ("cpu", "cpu")
    assert device.facts()["threads"] == torch.get_num_threads() == 1


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device here")
def test_auto_falls_back_to_the_cpu() -> None:
    assert open_device("auto", threads=1).spec == "cpu"


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device here")
@pytest.mark.parametrize("spec", ["cuda", "cuda:0", "cuda:7"])
def test_cuda_asked_for_and_absent_says_what_torch_sees(spec: str) -> None:
    with pytest.raises(UsageError, match=rf"--device {spec}: torch {torch.__version__[:4]}.*--device cpu"):
        open_device(spec)


@pytest.mark.parametrize(
    ("spec", "hint"),
    [
        ("cdua", "should be auto, cpu, cuda or cuda:N, replay:FILE; did you mean 'cuda'"),
        ("CPU", "should be auto, cpu"),
        ("", "should be auto, cpu"),
        ("cuda:x", "should be cuda or cuda:N"),
        ("cuda:-1", "should be cuda or cuda:N"),
        ("cuda:", "should be cuda or cuda:N"),
        ("replay", "should be replay:FILE"),
        ("replay:", "should be replay:FILE"),
        ("cpu:1", "should be cpu"),
        ("base", "should be auto, cpu"),
        ("xpu", "xpu is not implemented; its file would be niffbench/device/xpu.py"),
        ("mps:0", "mps is not implemented; its file would be niffbench/device/mps.py"),
    ],
)
def test_a_name_that_is_none_is_refused_with_what_would_be_right(spec: str, hint: str) -> None:
    with pytest.raises(UsageError) as error:
        open_device(spec)
    assert hint in str(error.value)


def test_an_accelerator_that_nobody_wrote_is_refused_by_the_command_line(cli: Cli) -> None:
    done = cli("run", "smoke", "--device", "xpu")
    assert done.returncode == 2
    assert "niffbench/device/xpu.py" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_torch_for_amd_cards_is_asked_for_the_same_way(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.version, "cuda", None)
    assert "built without CUDA" in cuda.describe()
    assert not cuda.usable()
    monkeypatch.setattr(torch.version, "hip", "7.1")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert "built for ROCm 7.1 but sees no usable GPU" in cuda.describe()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert cuda.usable()


PLANTED = """
from niffbench.device.base import Capabilities, Kind
from niffbench.device.cpu import CpuDevice


class Planted(CpuDevice):
    spec = "planted"
    capabilities = Capabilities(asynchronous=True)

    def facts(self):
        return {**super().facts(), "device": "planted"}


KIND = Kind(
    forms="planted", open=lambda which, threads: Planted(threads), is_usable=lambda: True, describe=str, rank=5
)
"""


def test_a_device_is_one_file(tmp_path: Path) -> None:
    """It is found by name and by ``auto``, and measured as far as it can be."""
    (tmp_path / "planted.py").write_text(PLANTED)
    prelude = f"import niffbench.device; niffbench.device.__path__.append({str(tmp_path)!r})"
    measure = QUICK.model_copy(update={"regimes": ["first", "cold", "steady", "wall", "graph"]})
    for spec in ("planted", "auto"):
        said = work([case_of("depthwise", 3)], device=spec, measure=measure, prelude=prelude)
        record = said.only()
        assert said.of("hello")[0].fingerprint.must["device"] == "planted"
        assert record.status == "ok"
        assert set(record.latency) == {"first", "steady", "wall"}
        assert record.memory is record.energy is None
    assert said.of("hello")[0].fingerprint.must["threads"] == 1


def test_an_exclusion_names_a_device_that_there_is(tmp_path: Path) -> None:
    suite = tmp_path / "spared.toml"
    suite.write_text(
        'description = "d"\nbaseline = "depthwise-k3"\naxes = {channels = 4, size = [8, 9]}\n'
        'operators = [{name = "depthwise-k3"}]\n'
        '[[exclude]]\nwhere = {size = 9}\nreason = "too large there"\ndevice = "planted"\n'
    )
    spared = load(str(suite), catalogue(), device="planted", devices=["cpu", "planted"])
    assert [case.problem.height for case in spared.cases] == [8]
    with pytest.raises(UsageError, match=r"exclude\[0\].device: there is no device 'planted'"):
        load(str(suite), catalogue(), devices=["cpu"])


def test_a_replay_loads_no_torch(tmp_path: Path) -> None:
    (tmp_path / "trace.json").write_text("{}")
    code = (
        "import sys\n"
        "from niffbench.device import open_device\n"
        "from niffbench.worker.main import open_evaluator\n"
        "open_evaluator(open_device('replay:trace.json'))\n"
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True, timeout=60)
