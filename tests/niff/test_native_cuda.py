"""The CUDA kernels without a GPU: what they compute, on a CPU; and what NVRTC makes of them for GPUs."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from cuda_on_cpu import OnCpu
from hypothesis import given, settings
from hypothesis import strategies as st

from niffbench.niff import fused
from niffbench.niff.native import cuda, cuda_source

COMPILER = shutil.which("g++") or shutil.which("clang++")
STAGES = ((56, 56), (28, 28), (14, 14), (7, 7))
SHARED_MEMORY = {"sm_80": 163 * 1024, "sm_90": 227 * 1024}
"""Bytes that a block may ask for (CUDA C++ Programming Guide, "Compute Capabilities")."""

needs_compiler = pytest.mark.skipif(COMPILER is None, reason="no C++ compiler to try the kernels on a CPU with")
needs_nvrtc = pytest.mark.skipif(cuda.unavailable() is not None, reason=f"no NVRTC: {cuda.unavailable()}")


def _half(channels: int, height: int, width: int) -> torch.Tensor:
    """The half plane of random real kernels, float64."""
    return torch.fft.rfft2(torch.randn(channels, height, width, dtype=torch.float64))


def _error(result: torch.Tensor, truth: torch.Tensor) -> float:
    return float((result - truth).norm() / truth.norm())


def _hold(kernels: OnCpu, batch: int, channels: int, tolerance: float) -> None:
    """Forward and both gradients against torch's FFTs in float64; what is not written would be NaN.

    The gradient is as small as that of a mean loss.
    """
    height, width, double = kernels.layout.height, kernels.layout.width, kernels.layout.double
    real, complex_ = (torch.float64, torch.complex128) if double else (torch.float32, torch.complex64)
    x, gradient = torch.randn(2, batch, channels, height, width, dtype=torch.float64)
    gradient *= 2**-27
    half = _half(channels, height, width)
    narrow_x, narrow_gradient, narrow_half = x.to(real), gradient.to(real), half.to(complex_)
    for_x, for_half = fused.gradients(x, half, gradient, (True, True))
    assert for_x is not None
    assert for_half is not None
    assert _error(kernels.convolve(narrow_x, narrow_half), fused.convolve(x, half)) < tolerance
    assert _error(kernels.convolve(narrow_gradient, narrow_half, conjugate=True), for_x) < tolerance
    assert _error(kernels.filter_gradient(narrow_x, narrow_gradient), for_half) < tolerance


@needs_compiler
@pytest.mark.parametrize(
    ("size", "planes", "steps", "batch"),
    [
        ((56, 56), 4, 2, 9),
        ((7, 7), 4, 1, 5),
        ((28, 28), 2, 2, 3),
        ((9, 25), 2, 1, 2),
        ((64, 6), 2, 1, 1),
        ((6, 64), 4, 1, 3),
        ((1, 11), 4, 1, 3),
        ((5, 2), 4, 1, 7),
        ((4, 1), 4, 1, 2),
        ((1, 1), 2, 1, 1),
    ],
    ids=str,
)
def test_what_the_kernels_compute(
    size: tuple[int, int], planes: int, steps: int, batch: int, tmp_path: Path
) -> None:
    kernels = OnCpu.build(cuda_source.plan(*size, planes), steps, tmp_path, str(COMPILER))
    _hold(kernels, batch, 2, 1e-6)


@needs_compiler
def test_in_float64_they_are_as_exact_as_float64(tmp_path: Path) -> None:
    kernels = OnCpu.build(cuda_source.plan(13, 10, 2, double=True), 1, tmp_path, str(COMPILER))
    _hold(kernels, 3, 2, 1e-14)


@needs_compiler
@pytest.mark.parametrize("size", [(7, 7), (8, 6)], ids=str)
def test_no_image_meets_another(size: tuple[int, int], tmp_path: Path) -> None:
    kernels = OnCpu.build(cuda_source.plan(*size, 4), 2, tmp_path, str(COMPILER))
    x, half = torch.randn(7, 2, *size), _half(2, *size).to(torch.complex64)
    expected = kernels.convolve(x, half)
    x[2, 1, 3, 4], x[5] = torch.nan, 1e20 * x[5]
    result = kernels.convolve(x, half)
    for image in (0, 1, 3, 4, 6):
        assert torch.equal(result[image], expected[image])
    assert torch.equal(result[2, 0], expected[2, 0])


@needs_compiler
@pytest.mark.parametrize("size", [(9, 9), (3, 49), (7, 16), (8, 25)], ids=str)
def test_every_row_is_as_exact_where_filters_are_tiny(size: tuple[int, int], tmp_path: Path) -> None:
    """The last of an odd height too, which has no partner."""
    kernels = OnCpu.build(cuda_source.plan(*size, 2), 1, tmp_path, str(COMPILER))
    x, half = torch.randn(2, 2, *size), 2**-50 * _half(2, *size).to(torch.complex64)
    x[1] *= 2**-20
    for conjugate in (False, True):
        truth = fused.convolve(x.double(), (half.conj() if conjugate else half).to(torch.complex128))
        error = (kernels.convolve(x, half, conjugate=conjugate) - truth).norm(dim=-1) / truth.norm(dim=-1)
        assert error.max() < 5e-6


@needs_compiler
@pytest.mark.parametrize("size", [(7, 7), (8, 6), (5, 8)], ids=str)
def test_of_any_half_plane_real_images_see_what_torch_shows_them(size: tuple[int, int], tmp_path: Path) -> None:
    kernels = OnCpu.build(cuda_source.plan(*size, 2), 1, tmp_path, str(COMPILER))
    x = torch.randn(3, 2, *size)
    half = torch.randn(2, size[0], size[1] // 2 + 1, dtype=torch.complex64)
    for conjugate in (False, True):
        truth = fused.convolve(x.double(), (half.conj() if conjugate else half).to(torch.complex128))
        assert _error(kernels.convolve(x, half, conjugate=conjugate), truth) < 1e-6


@given(st.integers(1, 64), st.data())
@settings(max_examples=64)
def test_every_length_is_transformed(length: int, data: st.DataObject) -> None:
    """The statements themselves, run by Python in float64."""
    seed = data.draw(st.integers(0, 2**32 - 1))
    values = torch.randn(length, dtype=torch.complex128, generator=torch.Generator().manual_seed(seed))
    body = cuda_source.transform(length, double=True).partition("{\n")[2].rpartition("}")[0]
    statements = re.sub(r"const real (\w+)", r"\1", body).replace(";", "\n")
    names = {"re": values.real.tolist(), "im": values.imag.tolist()}
    exec("\n".join(line.strip() for line in statements.splitlines()), names)
    result = torch.complex(*(torch.tensor(names[part], dtype=torch.float64) for part in ("re", "im")))
    truth = torch.fft.fft(values)
    assert float((result - truth).norm()) <= 1e-13 * max(1.0, float(truth.norm()))


@needs_nvrtc
@pytest.mark.parametrize(
    ("size", "architecture"), [((56, 56), "sm_80"), *((size, "sm_90") for size in (*STAGES, (64, 64)))], ids=str
)
def test_it_fits_the_gpus_it_is_compiled_for(size: tuple[int, int], architecture: str) -> None:
    layout = cuda_source.plan(*size, 16)
    made = cuda.compiled(layout, architecture)
    assert made.spilled == {"convolve": 0, "filter_gradient": 0}
    assert layout.memory <= SHARED_MEMORY[architecture]
    assert layout.threads <= 128


@needs_nvrtc
def test_a_source_that_does_not_compile_is_unavailable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda, "source", lambda layout: "this is not CUDA")
    with pytest.raises(cuda.Unavailable, match="NVRTC could not compile the kernel"):
        cuda.compiled(cuda_source.plan(4, 4, 1), "sm_90")


def test_fewer_planes_are_taken_where_there_is_less_shared_memory() -> None:
    assert cuda_source.plan(56, 56, 16).planes == 4
    small = cuda_source.plan(56, 56, 16, memory=48 * 1024)
    assert small.planes == 2
    assert small.memory <= 48 * 1024


def test_a_layout_that_cannot_be_compiled_is_tried_once(monkeypatch: pytest.MonkeyPatch) -> None:
    tried: list[str] = []

    def failing(layout: cuda_source.Plan, architecture: str) -> None:
        tried.append(architecture)
        raise cuda.Unavailable("no such instruction")

    monkeypatch.setattr(cuda, "compiled", failing)
    monkeypatch.setattr(cuda, "unavailable", lambda: None)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: SimpleNamespace(major=9, minor=0))
    before = cuda.compiled_so_far()
    for _ in range(2):
        with pytest.raises(cuda.Unavailable, match="no such instruction"):
            cuda._kernels(cuda_source.plan(3, 5, 2), 0)
    assert tried == ["sm_90"]
    assert cuda.compiled_so_far() == before


def test_larger_sides_are_refused_by_name() -> None:
    with pytest.raises(NotImplementedError, match="sides up to 64, got 65×8"):
        cuda_source.plan(65, 8, 1)
