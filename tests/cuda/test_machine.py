"""What a GPU says of itself, and what becomes of a run on it: NVML, energy, L2, TF32, out of memory, lost."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from gpu_cases import case, opened

from niffbench.device.base import is_throttled
from niffbench.device.cuda import CudaDevice
from niffbench.device.nvml import REASONS, Nvml
from niffbench.results import REGIMES, read
from niffbench.worker import energy
from niffbench.worker.ceilings import measure
from niffbench.worker.failures import explain
from niffbench.worker.machine import fingerprint
from niffbench.worker.probe import Probe
from niffbench.worker.tolerance import tolerance
from niffbench.worker.torch_evaluator import TorchEvaluator

pytestmark = pytest.mark.cuda

Cli = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def nvml() -> Nvml:
    """NVML of the first GPU; skips where the container hides it."""
    result = Nvml.open(str(torch.cuda.get_device_properties(0).uuid))
    if result is None:
        pytest.skip("NVML does not answer here (no driver library in this container?)")
    return result


@pytest.fixture
def flags() -> Iterator[None]:
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    yield
    torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before


def _busy() -> Probe:
    a = torch.randn(4096, 4096, device="cuda")
    out = torch.empty_like(a)
    return Probe(lambda: torch.mm(a, a, out=out))


def test_the_fingerprint_is_the_cards() -> None:
    must = fingerprint(opened("cuda")).must
    properties = torch.cuda.get_device_properties(0)
    assert must["gpu"] == properties.name
    assert must["gpu_memory_mib"] == properties.total_memory // 2**20
    assert must["gpu_l2_bytes"] == properties.L2_cache_size > 2**20
    assert must["cuda"] == torch.version.cuda
    for name in ("cudnn", "cufft"):
        version = must[name]
        assert isinstance(version, int)
        assert version > 1000
    assert must["gpu_multiprocessors"] == properties.multi_processor_count


@pytest.mark.alone
def test_nvml_tells_clocks_power_and_throttling(nvml: Nvml) -> None:
    device = opened("cuda")
    device.timed(_busy(), 50)
    state = device.state()
    assert device.highest_clock is not None
    assert state.sm_clock is not None
    assert 100 <= state.sm_clock <= 1.05 * device.highest_clock
    assert state.temperature is not None
    assert 10 < state.temperature < 110
    assert state.power is not None
    assert 5 < state.power < 2000
    assert set(state.throttle) <= set(REASONS)
    assert is_throttled(device, state) in (True, False)
    facts = nvml.facts()
    assert facts["driver"]
    assert isinstance(facts["power_limit_w"], int)


@pytest.mark.alone
def test_energy_is_counted(nvml: Nvml) -> None:
    device, probe = opened("cuda"), _busy()
    before = device.joules()
    if before is None:
        pytest.skip("this card has no energy counter")
    seconds, _ = device.timed(probe, 300)
    joules = energy.per_call(device, probe)
    after = device.joules()
    assert after is not None
    assert after > before
    assert joules is not None
    assert 5 < joules / (seconds / 300) < 2000  # watts


@pytest.mark.alone
def test_free_memory_follows_what_is_allocated() -> None:
    device = opened("cuda")
    device.release()
    before = device.free_memory()
    held = torch.empty(2**28, dtype=torch.uint8, device="cuda")
    after = device.free_memory()
    assert before is not None
    assert after is not None
    assert held.nbytes * 0.9 < before - after < held.nbytes * 1.5


def test_tf32_is_off_and_tolerated_where_a_case_asks_for_it(flags: None) -> None:
    torch.backends.cudnn.allow_tf32 = True
    device = CudaDevice(0)
    assert device.facts()["tf32_cudnn"] is device.facts()["tf32_matmul"] is False
    evaluator = TorchEvaluator(device)
    errors = {}
    for asked in (False, True):
        one = case("dense", batch=4, channels=256, size=(28, 28), kernel=3)
        one = replace(one, problem=replace(one.problem, tf32=asked))
        if asked and torch.cuda.get_device_capability(0) < (8, 0):
            with pytest.raises(NotImplementedError):
                evaluator.workload(one)
            return
        workload = evaluator.workload(one)
        errors[asked] = evaluator.numerics(workload, device.timed(workload)[1])
        assert not device.tf32
    assert errors[False].l2 < errors[False].tolerance == tolerance("float32")
    assert errors[False].l2 < errors[True].l2 < errors[True].tolerance


@pytest.mark.alone
def test_the_ceilings_are_a_gpus() -> None:
    result = measure(opened("cuda"), torch.device("cuda"), ["float32", "float16", "bfloat16"])
    assert 5e10 < result.copy_bandwidth < 5e13
    assert set(result.matmul) == {"float32", "float16", "bfloat16"}
    assert result.matmul["float16"] > result.matmul["float32"] > 1e11
    assert result.fft["float32"] > 1e10


def test_out_of_memory_is_explained_and_survived() -> None:
    total = torch.cuda.get_device_properties(0).total_memory
    with pytest.raises(torch.OutOfMemoryError) as caught:
        torch.empty(2 * total, dtype=torch.uint8, device="cuda")
    failure = explain(caught.value, opened("cuda").free_memory)
    assert failure.status == "oom"
    assert failure.needed == pytest.approx(2 * total, rel=0.01)
    assert failure.available is not None
    assert 0 < failure.available <= total
    assert float(torch.ones(4, device="cuda").sum()) == 4


_LOSE = """
import torch
from niffbench.worker.failures import DeviceLost, explain
x = torch.zeros(4, device="cuda")
try:
    x[torch.tensor([10**6], device="cuda")].sum().item()
except Exception as error:
    try:
        explain(error)
    except DeviceLost as lost:
        print("lost:", lost)
"""


def test_a_lost_device_is_recognised() -> None:
    done = subprocess.run([sys.executable, "-c", _LOSE], capture_output=True, text=True, timeout=120, check=False)
    assert "lost: " in done.stdout, done.stderr[-500:]


def test_the_doctor_sees_the_card(cli: Cli) -> None:
    done = cli("doctor", timeout=180)
    assert torch.cuda.get_device_name(0) in " ".join(done.stdout.split())
    assert "Traceback" not in done.stderr


def test_a_run_on_the_card_has_every_regime(cli: Cli, tmp_path: Path) -> None:
    out = tmp_path / "run"
    done = cli("run", "smoke", "--device", "cuda", "--out", str(out), "--json", timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    assert json.loads(done.stdout)["complete"]
    run = read(out)
    assert {record.status for record in run.records} == {"ok"}
    for record in run.records:
        assert tuple(record.latency) == REGIMES
        assert record.memory is not None
        assert record.memory.reserved is not None
        assert record.cost is not None
        assert record.cost.counted is not None
        graph = record.latency["graph"]
        assert graph.flags == ["not captured"] or graph.launch_share is not None
    assert (out / "report.html").is_file()
    page = (out / "report.md").read_text()
    assert torch.cuda.get_device_name(0).split()[-1] in page


def test_too_little_memory_is_said_before_anything_is_allocated(cli: Cli, tmp_path: Path) -> None:
    out = tmp_path / "run"
    arguments = ("--device", "cuda", "--memory-limit", "1KiB", "--out", str(out))
    done = cli("run", "smoke", *arguments, timeout=300)
    assert done.returncode == 3
    assert {record.status for record in read(out).records} == {"skipped"}


@pytest.mark.parametrize("form", ["native", "triton"])
@pytest.mark.parametrize("mode", ["inference", "training"])
def test_a_profile_sees_kernels_of_ours(form: str, mode: str, cli: Cli, tmp_path: Path) -> None:
    arguments = ("--size", "28", "--batch", "8", "--mode", mode, "--device", "cuda", "--out", str(tmp_path / "p"))
    done = cli("profile", f"niff-depthwise/{form}", *arguments, "--json", timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    (case,) = json.loads(done.stdout)["cases"]
    phases = {(phase["name"], phase["direction"]): phase for phase in case["phases"]}
    for direction in ("forward", "backward") if mode == "training" else ("forward",):
        convolution = phases["convolution", direction]
        assert "convolve" in {
            kernel["name"] for kernel in convolution["kernels"] if kernel["library"] == "niffbench"
        }
        assert convolution["seconds"] > 0


def test_a_profile_names_the_kernels_and_the_memory_of_the_steps(cli: Cli, tmp_path: Path) -> None:
    out = tmp_path / "profile"
    arguments = ("--size", "56", "--batch", "8", "--device", "cuda", "--out", str(out), "--json")
    done = cli("profile", "niff-depthwise/published", "depthwise-k7", *arguments, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    published, depthwise = json.loads(done.stdout)["cases"]
    assert {"forward fft", "inverse fft", "filter generation"} <= {phase["name"] for phase in published["phases"]}
    assert any(phase["kernels"] for phase in published["phases"])
    assert any(phase["kernels"] for phase in depthwise["phases"])
    spectra = {phase["name"]: phase for phase in published["phases"]}["forward fft"]
    assert spectra["peak"] >= spectra["kept"] >= published["case"]["problem"]["channels"] * 8 * 56 * 56 * 8
