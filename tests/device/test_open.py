"""Opening a device by name: what there is, what there is not, what is misspelt."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from niffbench.device import open_device
from niffbench.errors import UsageError


@pytest.fixture(autouse=True)
def threads() -> object:
    """Opening sets torch's threads; put them back."""
    before = torch.get_num_threads()
    yield None
    torch.set_num_threads(before)


def test_the_cpu_has_the_threads_it_was_asked_for() -> None:
    device = open_device("cpu", threads=1)
    assert (device.spec, device.kind) == ("cpu", "cpu")
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
        ("cdua", "did you mean 'cuda'"),
        ("CPU", "should be auto, cpu"),
        ("cuda:x", "should be auto, cpu"),
        ("cuda:-1", "should be auto, cpu"),
        ("", "should be auto, cpu"),
        ("replay", "replay:FILE"),
        ("replay:", "replay:FILE"),
        ("cpu:1", "should be auto, cpu"),
    ],
)
def test_a_name_that_is_none_is_refused_with_what_would_be_right(spec: str, hint: str) -> None:
    with pytest.raises(UsageError) as error:
        open_device(spec)
    assert hint in str(error.value)


def test_a_replay_loads_no_torch(tmp_path: Path) -> None:
    (tmp_path / "trace.json").write_text("{}")
    code = (
        "import sys\n"
        "import niffbench.worker.main\n"
        "from niffbench.device import open_device\n"
        "from niffbench.worker.evaluator import open_evaluator\n"
        "open_evaluator(open_device('replay:trace.json'))\n"
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True, timeout=60)
