"""The engines of the fast forms compute one function and its gradients, on every size and layout."""

from __future__ import annotations

import copy
import ctypes
import math
import os
import platform
import shutil
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch._subclasses import FakeTensorMode
from torch.autograd import forward_ad
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from niffbench.niff import NiffDepthwise, auto
from niffbench.niff.auto import ENGINES
from niffbench.niff.filters import FilterGenerator
from niffbench.niff.grid import Remembered
from niffbench.niff.native import build, generated, kernel

SIDES = st.one_of(st.integers(1, 17), st.sampled_from([19, 20, 22, 23, 28, 31, 32, 35, 47, 56, 61, 64]))
engines = pytest.mark.parametrize("engine", [name for name in ENGINES if name != "triton"])  # test_triton.py


def run(engine: str, x: Tensor, half: Tensor) -> Tensor:
    return ENGINES[engine](x, half, Remembered())


def truth(x: Tensor, half: Tensor) -> Tensor:
    return torch.fft.irfft2(torch.fft.rfft2(x) * half, s=x.shape[-2:], norm="forward")


def filters(channels: int, height: int, width: int, dtype: torch.dtype) -> Tensor:
    """Half planes of real kernels, so Hermitian where they must be."""
    generator = torch.Generator().manual_seed(1)
    return torch.fft.rfft2(torch.randn(channels, height, width, dtype=dtype, generator=generator))


def images(*shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, dtype=dtype, generator=torch.Generator().manual_seed(2))


def relative(result: Tensor, expected: Tensor) -> float:
    return float((result - expected).abs().max() / expected.abs().max())


@engines
@settings(max_examples=40, deadline=None)
@given(
    batch=st.integers(1, 3),
    channels=st.sampled_from([1, 3, 8, 15, 16, 17, 33]),
    height=SIDES,
    width=SIDES,
    dtype=st.sampled_from([torch.float32, torch.float64]),
    last=st.booleans(),
)
def test_values_and_gradients(
    engine: str, batch: int, channels: int, height: int, width: int, dtype: torch.dtype, last: bool
) -> None:
    allowed = 1e-5 if dtype == torch.float32 else 1e-12
    x, half = images(batch, channels, height, width, dtype=dtype), filters(channels, height, width, dtype)
    if last:
        x = x.to(memory_format=torch.channels_last)
    expected = truth(x, half)
    assert relative(run(engine, x, half), expected) < allowed

    x.requires_grad_()
    half.requires_grad_()
    outer = images(*x.shape, dtype=dtype).flip(0)
    result = torch.autograd.grad(run(engine, x, half), [x, half], outer)
    # What a Hermitian filter can vary by is Hermitian too: compare on the kernels that the half planes stand for.
    right = torch.autograd.grad(truth(x, half), [x, half], outer)
    assert relative(result[0], right[0]) < 10 * allowed
    size = {"s": (height, width)}
    columns = torch.arange(width // 2 + 1)
    weight = torch.where((columns == 0) | (2 * columns == width), 1.0, 0.5).to(dtype)
    kernels = [torch.fft.irfft2(gradient * weight, **size) for gradient in (result[1], right[1])]
    assert relative(*kernels) < 10 * allowed


@pytest.mark.parametrize("side", [42, 61, 97, 107, 122, 126, 251, 254, 263, 5041])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_kernel_at_sides_with_a_large_prime(side: int, dtype: torch.dtype) -> None:
    """By sums, by a convolution of one point less, by a padded one, within a longer transform, and 71 twice."""
    allowed = 2e-6 if dtype == torch.float32 else 1e-13
    for size in ((side, 2), (1, side)):
        x, half = images(1, 3, *size, dtype=dtype), filters(3, *size, dtype)
        assert relative(kernel.convolve(x, half), truth(x, half)) < allowed


@engines
def test_gradients_by_differences_once_and_twice(engine: str) -> None:
    def function(x: Tensor, kernels: Tensor) -> Tensor:
        return run(engine, x, torch.fft.rfft2(kernels))

    for size in ((5, 4), (4, 7), (18, 15)):
        x, kernels = images(2, 3, *size), images(3, *size)
        inputs = (x.requires_grad_(), kernels.requires_grad_())
        assert torch.autograd.gradcheck(function, inputs, fast_mode=True)
        assert torch.autograd.gradgradcheck(function, inputs, fast_mode=True)
    x.requires_grad_(False)
    assert torch.autograd.gradcheck(function, (x, kernels), fast_mode=True)
    x.requires_grad_()
    assert torch.autograd.gradcheck(function, (x, kernels.detach()), fast_mode=True)


@engines
def test_the_input_is_left_alone(engine: str) -> None:
    for size in ((6, 6), (20, 20)):
        x, half = images(2, 3, *size), filters(3, *size, torch.float64)
        copies = x.clone(), half.clone()
        run(engine, x, half)
        assert torch.equal(x, copies[0])
        assert torch.equal(half, copies[1])


@pytest.fixture
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.skipif(build.unavailable() is not None, reason="there is no C compiler here")
def test_the_kernel_works_in_torchs_threads(threads: None) -> None:
    """However it was compiled: it is given the functions of the OpenMP runtime that torch has loaded."""
    if "OpenMP" in torch.__config__.parallel_info():
        assert build._runtime() is not None
    teams, numbers = [], [0]
    member = ctypes.CFUNCTYPE(None, ctypes.c_void_p)

    @ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint)
    def parallel(work: int, data: int, count: int, _: int) -> None:
        teams.append(count)
        for numbers[0] in range(2):  # Of three threads that were asked for two come.
            member(work)(data)

    number, count = (ctypes.CFUNCTYPE(ctypes.c_int)(one) for one in (lambda: numbers[0], lambda: 2))
    library, x = build.load("double"), images(2, 40, 6, 6).requires_grad_()
    half = filters(40, 6, 6, torch.float64).requires_grad_()
    expected = torch.autograd.grad(truth(x, half).square().sum(), [x])
    torch.set_num_threads(3)
    try:
        library.niff_use_runtime(*(ctypes.cast(one, ctypes.c_void_p) for one in (parallel, number, count)))
        result = torch.autograd.grad(kernel.convolve(x, half).square().sum(), [x])
    finally:
        library.niff_use_runtime(*(build._runtime() or (None,) * 3))
    assert teams == [3, 3]
    assert relative(result[0], expected[0]) < 1e-12


@pytest.mark.parametrize("channels", [3, 16, 40])
def test_the_kernel_gives_the_same_on_any_number_of_threads(channels: int, threads: None) -> None:
    x, half = images(5, channels, 9, 12, dtype=torch.float32), filters(channels, 9, 12, torch.float32)
    results = []
    for count in (1, 2, 3, 8):
        torch.set_num_threads(count)
        inputs = x.clone().requires_grad_(), half.clone().requires_grad_()
        y = kernel.convolve(*inputs)
        results.append((y, *torch.autograd.grad(y.square().sum(), inputs)))
    for other in results[1:]:
        assert torch.equal(other[0], results[0][0])
        assert torch.equal(other[1], results[0][1])
        assert torch.allclose(other[2], results[0][2], rtol=1e-4, atol=1e-3)  # The batch is summed in parts.


def test_the_kernel_keeps_the_memory_format_and_copies_what_it_must() -> None:
    x, half = images(2, 17, 6, 7), filters(17, 6, 7, torch.float64)
    expected = truth(x, half)
    last = kernel.convolve(x.to(memory_format=torch.channels_last), half)
    assert last.is_contiguous(memory_format=torch.channels_last)
    strided = x.permute(3, 0, 1, 2).contiguous().permute(1, 2, 3, 0)
    conjugated = half.conj().resolve_conj().conj()
    for result in (last, kernel.convolve(x, half), kernel.convolve(strided, half), kernel.convolve(x, conjugated)):
        assert relative(result, expected) < 1e-12
    part = images(2, 34, 6, 7)[:, ::2]
    assert relative(kernel.convolve(part, half), truth(part, half)) < 1e-12
    assert kernel.convolve(x[:0], half).shape == (0, 17, 6, 7)


@settings(max_examples=30, deadline=None)
@given(
    batch=st.integers(1, 3),
    channels=st.sampled_from([1, 3, 8, 15, 17]),
    height=SIDES,
    width=SIDES,
    dtype=st.sampled_from([torch.bfloat16, torch.float16]),
    last=st.booleans(),
)
def test_half_precision_is_read_and_written_as_it_is(
    batch: int, channels: int, height: int, width: int, dtype: torch.dtype, last: bool
) -> None:
    """All arithmetic is that of float32, to the last bit; what comes out is rounded once."""
    half = filters(channels, height, width, torch.float32)
    x, outer = images(2, batch, channels, height, width).to(dtype)
    if last:
        x = x.to(memory_format=torch.channels_last)
    inputs, wide = [x.requires_grad_(), half.requires_grad_()], [x.detach().float().requires_grad_(), half]
    y, expected = kernel.convolve(*inputs), kernel.convolve(*wide)
    assert y.dtype == dtype
    assert torch.equal(y, expected.to(dtype))
    assert y.is_contiguous(memory_format=torch.channels_last if last else torch.contiguous_format)
    for_x, for_half = torch.autograd.grad(y, inputs, outer)
    right = torch.autograd.grad(expected, wide, outer.float())
    assert torch.equal(for_x, right[0].to(dtype))
    assert torch.equal(for_half, right[1])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_what_is_no_finite_half_precision_number_stays_none(dtype: torch.dtype) -> None:
    x, half = torch.ones(1, 8, 1, 3, dtype=dtype), torch.ones(8, 1, 2, dtype=torch.complex64)
    x[0, 0, 0, 0], x[0, 1, 0, 0], x[0, 2] = float("nan"), float("inf"), torch.finfo(dtype).max / 2
    y = kernel.convolve(x, half)
    assert not y[0, :2].isfinite().any()
    assert (y[0, 2] == float("inf")).all(), "three times half of the largest number"
    assert (y[0, 3:] == 3).all()


@pytest.mark.parametrize("form", ["native", "native-cached", "features-cached"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_layer_of_half_precision_casts_nothing(dtype: torch.dtype, form: str) -> None:
    layer = NiffDepthwise(9, form=form)
    x = images(2, 9, 7, 6, dtype=torch.float32).to(dtype).requires_grad_()
    for weights in (layer, copy.deepcopy(layer).to(dtype)):
        leaves = [x, *weights.parameters()]
        mine = torch.autograd.grad(weights(x).float().square().sum(), leaves)
        wide = x.detach().float().requires_grad_()
        right = torch.autograd.grad(weights(wide).to(dtype).float().square().sum(), [wide, *weights.parameters()])
        assert torch.equal(mine[0], right[0].to(dtype))
        assert all(torch.equal(*pair) for pair in zip(mine[1:], right[1:], strict=True))
    with FakeTensorMode(), torch.no_grad():
        chooses = NiffDepthwise(9, form=form.replace("native", "auto").replace("features", "auto"))
        assert chooses(torch.empty(2, 9, 7, 6, dtype=dtype)).dtype == dtype, "what it chooses is not known here"
    with torch.no_grad(), Made() as mode:
        layer(x)
    images_made = [one for one in mode.tensors if one.shape == x.shape]
    assert [one.dtype for one in images_made] == [dtype]
    (second,) = torch.autograd.grad(layer(x).float().square().sum(), x, create_graph=True)
    assert torch.autograd.grad(second.float().sum(), x)[0].dtype == dtype


@pytest.fixture
def poisoned() -> Iterator[None]:
    """What torch allocates without a value holds NaN, the kernel's scratch memory too."""
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("size", [(1, 1), (7, 7), (14, 5), (28, 3), (9, 56), (31, 2)])
def test_every_number_is_written_and_none_is_read_before(
    size: tuple[int, int], last: bool, poisoned: None
) -> None:
    for channels in (1, 8, 13):
        layer = NiffDepthwise(channels, form="native")
        x = images(2, channels, *size, dtype=torch.float32)
        x = (x.to(memory_format=torch.channels_last) if last else x).requires_grad_()
        y = layer(x)
        results = [y, *torch.autograd.grad(y.square().sum(), [x, *layer.parameters()])]
        results.append(kernel.convolve(x, filters(channels, *size, torch.float32)))
        assert all(one.isfinite().all() for one in results)


@pytest.mark.skipif(build.unavailable() is not None, reason="there is no C compiler here")
@pytest.mark.parametrize(("real", "size"), [("float", 16), ("float", 64), ("double", 64)])
def test_vectors_of_any_width(real: str, size: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As NEON and SSE have them, and AVX-512: the same code with other numbers of channels at once."""
    made = build.compiled(tmp_path, real, ("-O1", "-march=native", f"-DVECTOR_BYTES={size}"))
    library = build.declared(made)
    dtype = torch.float32 if real == "float" else torch.float64
    assert library.niff_lanes() == size // dtype.itemsize
    monkeypatch.setattr(kernel, "load", lambda _: library)
    monkeypatch.setattr(generated, "load", lambda _: library)
    for channels, height, width in ((1, 7, 7), (17, 14, 9), (32, 28, 6), (5, 61, 4)):
        for last in (False, True):
            x, half = images(2, channels, height, width, dtype=dtype), filters(channels, height, width, dtype)
            x = x.to(memory_format=torch.channels_last) if last else x
            allowed = 5e-6 if dtype == torch.float32 else 1e-12
            assert relative(kernel.convolve(x, half), truth(x.double(), half.to(torch.complex128))) < allowed
            layer = NiffDepthwise(channels, form="native", dtype=dtype)
            mine = torch.autograd.grad(layer(x).square().sum(), list(layer.parameters()))
            plain = torch.autograd.grad(layer.with_form("rfft")(x).square().sum(), list(layer.parameters()))
            largest = max(float(one.norm()) for one in plain)
            for one, other in zip(mine, plain, strict=True):
                assert float((one - other).norm()) < 100 * allowed * largest
            if dtype == torch.float32:
                rough = x.to(torch.bfloat16)
                assert torch.equal(
                    kernel.convolve(rough, half), kernel.convolve(rough.float(), half).to(torch.bfloat16)
                )


FOREIGN = r"""
#include "convolve.c"
#include <stdio.h>
#include <stdlib.h>
static void *take(int64_t size) {
    void *memory = aligned_alloc(128, (size + 127) / 128 * 128);
    if (fread(memory, 1, size, stdin) != (size_t)size) exit(1);
    return memory;
}
int main(void) {
    const int *of = take(6 * sizeof(int)), numbers = of[0], height = of[3], width = of[4];
    const int64_t images = (int64_t)of[1] * of[2] * height * width * bytes_of(numbers);
    const Axis down = {take(2 * height * sizeof(REAL))}, along = {take(2 * width * sizeof(REAL))};
    const Call call = {&down, &along, of[1], of[2], height, width, of[5], numbers, 1, 1, 1, 1};
    const Filter filter = {.half = take((int64_t)of[2] * height * (width / 2 + 1) * 2 * sizeof(REAL))};
    char *x = take(images), *y = malloc(images);
    char *memory = malloc(niff_workspace(height, width, 2, 0, &down, &along));
    if (!niff_takes(numbers)) return 2;
    niff_convolve(&filter, &call, x, y, memory);
    return fwrite(y, 1, images, stdout) != (size_t)images;
}
"""
ARM, EMULATOR = (
    shutil.which("aarch64-linux-gnu-gcc"),
    shutil.which("qemu-aarch64-static") or shutil.which("qemu-aarch64"),
)


def built_for(tmp_path: Path, compiler: str, *flags: str) -> Path:
    (tmp_path / "main.c").write_text(FOREIGN)
    arguments = [compiler, "-O1", "-std=gnu11", "-DREAL=float", "-DREAL_BYTES=4", f"-I{build.SOURCES[0].parent}"]
    subprocess.run([*arguments, *flags, "main.c", "-o", "main"], cwd=tmp_path, check=True)
    return tmp_path / "main"


@pytest.mark.skipif(ARM is None or EMULATOR is None, reason="needs a compiler for 64-bit ARM, and qemu")
def test_the_kernel_on_arm(tmp_path: Path) -> None:
    """NEON, under emulation: float32 against float64, half precisions against that to the last bit."""
    program = built_for(tmp_path, str(ARM), "-static")

    def run_there(x: Tensor, half: Tensor, last: bool) -> Tensor:
        layout = x.to(memory_format=torch.channels_last) if last else x.contiguous()
        stored = layout.permute(0, 2, 3, 1) if last else layout
        integers = np.array([kernel.HALVES.get(x.dtype, 0), *x.shape, last], np.int32)
        roots = [np.exp(-2j * np.pi * np.arange(side) / side).astype(np.complex64) for side in x.shape[2:]]
        parts = [*(one.tobytes() for one in (integers, *roots, half.numpy())), bytes(stored.untyped_storage())]
        done = subprocess.run([str(EMULATOR), program], input=b"".join(parts), capture_output=True, check=True)
        y = torch.frombuffer(bytearray(done.stdout), dtype=x.dtype).view(stored.shape)
        return y.permute(0, 3, 1, 2) if last else y

    for channels, height, width, last in (
        (4, 7, 7, False),
        (5, 14, 28, True),
        (3, 56, 9, False),
        (8, 11, 6, True),
    ):
        x, half = images(2, channels, height, width), filters(channels, height, width, torch.float32)
        y = run_there(x.float(), half, last)
        assert relative(y, truth(x.float().double(), half.to(torch.complex128))) < 5e-6
        for dtype in kernel.HALVES:
            rough = x.to(dtype)
            assert torch.equal(run_there(rough, half, last), run_there(rough.float(), half, last).to(dtype))


@pytest.mark.skipif(
    platform.machine() != "x86_64" or build.unavailable() is not None, reason="needs a C compiler for x86-64"
)
def test_the_kernel_is_compiled_for_avx_512(tmp_path: Path) -> None:
    """What it computes with vectors as wide is tried on any CPU: see above."""
    assert built_for(tmp_path, build._command()[0], "-march=x86-64-v4", "-Werror")


def test_the_kernel_refuses_what_would_lead_it_astray() -> None:
    x, half = images(1, 4, 6, 6), filters(4, 6, 6, torch.float64)
    for wrong in (half[:3], half[:, :5], half[..., :3], half.to(torch.complex64)):
        with pytest.raises(ValueError, match=r"expected a filter of shape \(4, 6, 4\) and dtype torch.complex128"):
            kernel.convolve(x, wrong)
    with pytest.raises(NotImplementedError, match="int32"):
        kernel.convolve(x.int(), half)


def test_a_compiled_graph_holds_the_kernel_and_trains() -> None:
    torch._dynamo.reset()
    x, kernels = images(2, 3, 6, 5).requires_grad_(), images(3, 6, 5).requires_grad_()
    function = torch.compile(
        lambda x, kernels: kernel.convolve(x, torch.fft.rfft2(kernels)), backend="aot_eager", fullgraph=True
    )
    result = torch.autograd.grad(function(x, kernels).square().sum(), [x, kernels])
    right = torch.autograd.grad(truth(x, torch.fft.rfft2(kernels)).square().sum(), [x, kernels])
    assert all(relative(*pair) < 1e-12 for pair in zip(result, right, strict=True))


def test_a_flop_counter_sees_the_kernel_at_work_on_real_tensors() -> None:
    """Forward two real FFTs and a complex product; backward three FFTs, two products and a sum over images."""
    batch, channels, height, width = 2, 3, 8, 5
    x, half = images(batch, channels, height, width), filters(channels, height, width, torch.float64)
    planes, half_plane = batch * channels, height * (width // 2 + 1)
    transform = planes * round(2.5 * height * width * math.log2(height * width))
    with FlopCounterMode(display=False) as counter:
        y = kernel.convolve(x, half)
    forward = counter.get_total_flops()
    assert forward == 2 * transform + 6 * planes * half_plane
    assert torch.equal(y, kernel.convolve(x, half))

    inputs = [x.requires_grad_(), half.requires_grad_()]
    with FlopCounterMode(display=False) as counter:
        result = torch.autograd.grad(kernel.convolve(x, half), inputs, y)
    backward = counter.get_total_flops() - forward
    assert backward == 3 * transform + 14 * planes * half_plane
    for mine, right in zip(result, torch.autograd.grad(kernel.convolve(x, half), inputs, y), strict=True):
        assert torch.equal(mine, right)


def test_the_kernel_as_an_operator_of_torch() -> None:
    operator = torch.ops.niffbench.circular_convolution
    x, half = images(2, 3, 4, 5).requires_grad_(), filters(3, 4, 5, torch.float64)
    torch.library.opcheck(operator, (x, half), test_utils=("test_schema", "test_faketensor"))
    last = x.detach().to(memory_format=torch.channels_last)
    torch.library.opcheck(operator, (last, half), test_utils=("test_schema", "test_faketensor"))


@pytest.mark.parametrize("mlp", ["tiny", "small", "big"])
@settings(max_examples=12, deadline=None)
@given(
    batch=st.integers(0, 3),
    channels=st.sampled_from([1, 3, 8, 17]),
    height=SIDES,
    width=SIDES,
    dtype=st.sampled_from([torch.float32, torch.float64]),
    last=st.booleans(),
)
def test_a_kernel_that_makes_its_filter(
    mlp: str, batch: int, channels: int, height: int, width: int, dtype: torch.dtype, last: bool
) -> None:
    """Against float64 by ordinary operations: values, and gradients in proportion to the largest."""
    layer = NiffDepthwise(channels, mlp=mlp, form="native", dtype=dtype)
    exact = NiffDepthwise(channels, mlp=mlp, form="rfft", dtype=torch.float64)
    exact.load_state_dict(layer.state_dict())
    x = images(batch, channels, height, width, dtype=dtype)
    x = (x.to(memory_format=torch.channels_last) if last else x).requires_grad_()
    twin, outer = x.detach().double().requires_grad_(), images(batch, channels, height, width).flip(0)
    y = layer(x)
    assert y.is_contiguous(memory_format=torch.channels_last if last else torch.contiguous_format)
    inputs, twins = [x, *layer.parameters()], [twin, *exact.parameters()]
    gradients = torch.autograd.grad(y, inputs, outer.to(dtype))
    if not batch:  # torch 2.11 transforms no empty batch.
        assert all(not gradient.any() for gradient in gradients)
        return
    right = exact(twin)
    expected = torch.autograd.grad(right, twins, outer)
    allowed = 2e-5 if dtype == torch.float32 else 1e-12
    assert relative(y.detach(), right.detach()) < allowed
    assert relative(gradients[0], expected[0]) < allowed
    weights = max(float(gradient.norm()) for gradient in expected[1:])
    for mine, theirs in zip(gradients[1:], expected[1:], strict=True):
        assert float((mine - theirs).norm()) < 10 * allowed * weights


def test_what_makes_its_filter_is_differentiated_twice_and_in_part() -> None:
    layer, x = NiffDepthwise(3, form="native", dtype=torch.float64), images(2, 3, 5, 4).requires_grad_()
    names = [name for name, _ in layer.named_parameters()]

    def function(x: Tensor, *weights: Tensor) -> Tensor:
        for name, weight in zip(names, weights, strict=True):
            module, _, last = name.rpartition(".")
            layer.get_submodule(module)._parameters[last] = weight  # type: ignore[assignment]
        result: Tensor = layer(x)
        return result

    inputs = (x, *(weight.detach().requires_grad_() for weight in layer.parameters()))
    assert torch.autograd.gradcheck(function, inputs, fast_mode=True)
    assert torch.autograd.gradgradcheck(function, inputs, fast_mode=True)
    for wanted in range(len(inputs)):
        some = tuple(one.detach().requires_grad_(place == wanted) for place, one in enumerate(inputs))
        assert torch.autograd.gradcheck(function, some, fast_mode=True)


@pytest.mark.parametrize("form", ["native", "native-cached", "features-cached", "auto"])
@pytest.mark.parametrize(("channels", "dtype"), [(3, torch.float32), (40, torch.float32), (9, torch.bfloat16)])
def test_later_calls_do_what_the_first_did(form: str, channels: int, dtype: torch.dtype) -> None:
    """A first call of a kind is checked, later ones go to C at once: inference, all gradients, some of them."""
    layer = NiffDepthwise(channels, form=form)
    if layer.chooses:
        layer.fix_engine("native")
    x = images(3, channels, 7, 6, dtype=torch.float32).to(dtype)
    outer = images(*x.shape, dtype=torch.float32).flip(0).to(dtype)

    def results(image: Tensor, frozen: int) -> list[Tensor]:
        for place, one in enumerate(layer.parameters()):
            one.requires_grad_(place >= frozen)
        leaves = [one for one in (image, *layer.parameters()) if one.requires_grad]
        with torch.no_grad():
            inferred = layer(image)
        y = layer(image)
        return [inferred, y, *(torch.autograd.grad(y, leaves, outer) if leaves else ())]

    for image in (x, x.clone().requires_grad_(), x.to(memory_format=torch.channels_last).requires_grad_()):
        for frozen in (0, 3, 6):
            first, *others = (results(image, frozen) for _ in range(3))
            for other in others:
                assert len(other) == len(first) >= 2
                for one, again in zip(first, other, strict=True):
                    assert torch.allclose(one, again, rtol=1e-5, atol=1e-5 * float(one.detach().abs().max()))
                    assert (one.dtype, one.stride()) == (again.dtype, again.stride())
    with torch.no_grad():
        before = layer(x)
        for one in layer.parameters():
            one.mul_(0.5)
        after = layer(x)
        assert torch.allclose(after, layer.with_form("rfft")(x), rtol=2e-2, atol=1e-2 * float(after.abs().max()))
        assert not torch.allclose(after, before)
    with FlopCounterMode(display=False) as counter:
        layer(x)
    assert counter.get_total_flops() > 0, "a counter sees later calls too"
    assert torch.equal(copy.deepcopy(layer)(x), layer(x))


@pytest.mark.parametrize("form", ["fused", "native", "native-cached", "features-cached"])
def test_whatever_differentiates_gets_right_numbers(form: str) -> None:
    """Dual tensors, in later calls too; gradients of many at once; hooks that lay out anew what is saved."""
    layer, x = NiffDepthwise(9, form=form), images(2, 9, 4, 5, dtype=torch.float32)
    plain, tangent = layer.with_form("rfft"), x.flip(0)
    for frozen in (True, False):
        layer.requires_grad_(not frozen)
        for mode in (torch.no_grad(), torch.enable_grad()):
            with mode, forward_ad.dual_level():
                for _ in range(2):
                    dual = layer(forward_ad.make_dual(x, tangent))
                    result = forward_ad.unpack_dual(dual).tangent
                    assert result is not None
                    assert relative(result.detach(), plain(tangent).detach()) < 1e-5
    x = x.to(memory_format=torch.channels_last).requires_grad_()
    outer = images(3, *x.shape, dtype=torch.float32)
    leaves = [x, *layer.parameters()]
    every = torch.autograd.grad(layer(x), leaves, outer, is_grads_batched=True)
    for _ in range(2):
        with torch.autograd.graph.saved_tensors_hooks(
            lambda saved: saved.clone().contiguous(), lambda saved: saved
        ):
            y = layer(x)
        results = torch.autograd.grad(y, leaves, outer[0])
        for one, many, right in zip(results, every, torch.autograd.grad(plain(x), leaves, outer[0]), strict=True):
            near = 1e-4 * float(right.abs().max()) + 1e-6
            assert torch.allclose(one, right, rtol=0, atol=near)
            assert torch.allclose(many[0], right, rtol=0, atol=near)


@pytest.mark.parametrize("form", ["native", "native-cached", "features-cached"])
def test_later_calls_see_what_has_changed_since(form: str) -> None:
    layer, x = NiffDepthwise(9, form=form), images(2, 9, 7, 6, dtype=torch.float32)
    with torch.no_grad():
        for _ in range(2):
            layer(x)
        with torch.device("meta"):
            assert torch.equal(layer(x), layer(x)), "what C writes into is on the CPU wherever tensors are made"
        layer.generator = NiffDepthwise(9, mlp="big").generator
        for _ in range(2):
            assert relative(layer(x), layer.with_form("fft")(x)) < 1e-5
        weight = layer.generator.weight4
        for other in (weight[..., :5].clone(), weight.double()):
            weight.data = other
            with pytest.raises((RuntimeError, ValueError)):
                layer(x)
        layer.to("meta")
        with pytest.raises((RuntimeError, ValueError)):
            layer(x)
    chooses = NiffDepthwise(9, form="auto")
    chooses.fix_engine("native")
    other = chooses.with_form("fused")
    with torch.no_grad():
        other(x)
    assert not other._constants.taken, "another form is not the kernel's"


def test_sides_come_back_after_many_others() -> None:
    layer, first = NiffDepthwise(1, form="native-cached"), images(1, 1, 14, 31, dtype=torch.float32)
    with torch.no_grad():
        before = layer(first)
        for side in range(1, 80):
            layer(images(1, 1, 2, side, dtype=torch.float32))
        assert torch.equal(layer(first), before)


@pytest.mark.parametrize("cached", [False, True])
def test_a_layer_that_makes_its_filter_in_a_compiled_graph(cached: bool) -> None:
    torch._dynamo.reset()
    layer = NiffDepthwise(3, form="native-cached" if cached else "native", dtype=torch.float64)
    x = images(2, 3, 6, 5).requires_grad_()
    inputs = [x, *layer.parameters()]
    result = torch.autograd.grad(
        torch.compile(layer, backend="aot_eager", fullgraph=True)(x).square().sum(), inputs
    )
    right = torch.autograd.grad(layer.with_form("rfft")(x).square().sum(), inputs)
    assert all(torch.allclose(*pair, rtol=1e-9, atol=1e-12) for pair in zip(result, right, strict=True))


def test_the_parts_of_a_kernel_that_makes_its_filter_as_operators_of_torch() -> None:
    generator = FilterGenerator((3,), mlp="small", dtype=torch.float64)
    grid, layers, scale = generator.half_ingredients(4, 5, torch.float64)
    tests = ("test_schema", "test_faketensor")
    features = torch.ops.niffbench.filter_features(grid, layers[:-2], scale)
    x = images(2, 3, 4, 5)
    torch.library.opcheck(torch.ops.niffbench.filter_features, (grid, layers[:-2], scale), test_utils=tests)
    arguments = (x, features, *layers[-2:], scale)
    torch.library.opcheck(torch.ops.niffbench.generated_convolution, arguments, test_utils=tests)
    half = generator.scaled_half_plane(4, 5, torch.float64).detach()
    assert relative(torch.ops.niffbench.generated_convolution(*arguments).detach(), truth(x, half)) < 1e-12
    with pytest.raises(ValueError, match=r"expected features, weights and bias of \(\(2, 4, 12\), "):
        torch.ops.niffbench.generated_convolution(x, features[:, :, :-1], *layers[-2:], scale)
    with pytest.raises(ValueError, match=r"expected layers in torch\.float64"):
        torch.ops.niffbench.filter_features(grid, [layer.float() for layer in layers[:-2]], scale)


class Made(TorchDispatchMode):
    """The dtypes and sizes of all tensors that operations make."""

    def __init__(self) -> None:
        super().__init__()
        self.tensors: list[Tensor] = []

    def __torch_dispatch__(self, func: object, types: object, args: object = (), kwargs: object = None) -> object:
        made = func(*args, **(kwargs or {}))
        self.tensors += [one for one in tree_leaves(made) if isinstance(one, Tensor)]
        return made


def test_a_training_step_makes_no_tensor_as_large_as_the_filter() -> None:
    layer, x = NiffDepthwise(32, form="native"), images(1, 32, 20, 20, dtype=torch.float32).requires_grad_()
    with Made() as mode:
        layer(x).sum().backward()
    assert x.grad is not None
    assert all(weight.grad is not None for weight in layer.parameters())
    assert not any(one.is_complex() for one in mode.tensors)
    assert all(one.shape == x.shape or one.numel() < 32 * 20 * 11 for one in mode.tensors)


def in_a_process(cache: Path, compiler: str | None, what: str = "unavailable", **more: str) -> str:
    """What a new process, with this cache and this compiler, says of the kernel."""
    environment = {**os.environ, "XDG_CACHE_HOME": str(cache), **({"CC": compiler} if compiler else {}), **more}
    code = f"from niffbench.niff.native import build; print(build.{what}())"
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True, timeout=120
    )
    return done.stdout.strip()


def test_a_missing_compiler_is_missed(tmp_path: Path) -> None:
    said = in_a_process(tmp_path, "no-such-compiler")
    assert said == (
        "no C compiler was found: install one (cc, or pip install 'niffbench[compiler]'), or name it in the "
        "environment's CC"
    )
    assert not list(tmp_path.rglob("*.so"))


@pytest.mark.skipif(build.unavailable() is not None, reason="there is no C compiler here")
def test_where_there_is_no_cc_the_one_in_zigs_package_compiles(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package, compiler = tmp_path / "ziglang", shutil.which(os.environ.get("CC", "cc"))
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "__main__.py").write_text(
        f"""import os, sys
assert sys.argv[1] == "cc"
os.environ["PATH"] = os.defpath
os.execv({compiler!r}, ["cc", *sys.argv[2:], "-O0"])
"""
    )
    monkeypatch.delenv("CC", raising=False)
    search = os.pathsep.join((str(tmp_path), *sys.path))
    assert in_a_process(tmp_path, None, PATH=str(tmp_path), PYTHONPATH=search) == "None"
    assert list(tmp_path.rglob("*.so"))


def test_a_compiler_that_fails_is_quoted(tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    broken.write_text("#!/bin/sh\necho what a pity >&2\nexit 1\n")
    broken.chmod(0o755)
    assert in_a_process(tmp_path, str(broken)) == f"{broken} could not compile the kernel: what a pity"


def hasty(folder: Path, before: str = "") -> str:
    """The compiler, in a hurry: where the kernel goes and what it is compiled with do not depend on how well."""
    compiler = folder / "compiler"
    compiler.write_text(f'#!/bin/sh\n{before}\nexec {os.environ.get("CC", "cc")} "$@" -O0\n')
    compiler.chmod(0o755)
    return str(compiler)


@pytest.mark.skipif(build.unavailable() is not None, reason="there is no C compiler here")
def test_what_was_compiled_is_found_again(tmp_path: Path) -> None:
    compiler, cache = hasty(tmp_path), tmp_path / "cache"
    assert in_a_process(cache, compiler) == "None"
    (made,) = cache.rglob("*.so")
    stamp = made.stat().st_mtime_ns
    assert in_a_process(cache, compiler) == "None"
    assert made.stat().st_mtime_ns == stamp
    assert list(made.parent.iterdir()) == [made], "nothing else is left behind"


@pytest.mark.skipif(build.unavailable() is not None, reason="there is no C compiler here")
def test_the_kernels_files_are_compiled_at_once(tmp_path: Path) -> None:
    begun = f"{tmp_path}/begun"
    both = f'[ "$(ls -d {begun}-* | wc -l)" -ge 2 ]'
    waiting = f"touch {begun}-$$; for _ in $(seq 600); do {both} && break; sleep 0.1; done; {both} || exit 1"
    compiler = hasty(tmp_path, f'case "$*" in *" -c "*) {waiting};; esac')
    assert in_a_process(tmp_path / "cache", compiler) == "None"
    assert len(list(tmp_path.glob("begun-*"))) % 2 == 0, "one waited in vain"


@pytest.mark.skipif(build.unavailable() is not None, reason="there is no C compiler here")
def test_without_a_cache_all_processes_share_one_directory_of_nobody_elses(tmp_path: Path) -> None:
    compiler, nowhere, temporary = hasty(tmp_path), Path(os.devnull), tmp_path / "temporary"
    temporary.mkdir()
    for _ in range(2):
        assert in_a_process(nowhere, compiler, TMPDIR=str(temporary)) == "None"
    (directory,) = temporary.iterdir()
    (made,) = directory.iterdir()
    assert (made.suffix, stat.S_IMODE(directory.stat().st_mode)) == (".so", 0o700)
    directory.chmod(0o777)
    said = in_a_process(nowhere, compiler, TMPDIR=str(temporary))
    assert said.startswith("there is no directory to compile the kernel in")


ANYWHERE = """
import os, pwd
def nobody(uid): raise KeyError(uid)
pwd.getpwuid = nobody
import torch
from niffbench.anonymize import anonymize
from niffbench.niff import NiffDepthwise, auto
NiffDepthwise(2, form="auto")(torch.randn(1, 2, 7, 7))
print(len(auto.choices()), anonymize("as it is"))
"""


def test_auto_needs_no_home_directory_and_no_locale(tmp_path: Path) -> None:
    """As where a container is run by a user that its image does not know."""
    bare = {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0", "TMPDIR": str(tmp_path)}
    left_out = ("HOME", "XDG_CACHE_HOME", "NIFFBENCH_TUNING")
    environment = {name: value for name, value in os.environ.items() if name not in left_out} | bare
    said = subprocess.run([sys.executable, "-c", ANYWHERE], env=environment, capture_output=True, check=True)
    assert said.stdout == b"1 as it is\n"
    (cache,) = tmp_path.glob("niffbench-*")
    assert (cache / "choices.json").exists()


def test_a_compiler_that_cannot_be_read_is_quoted(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("CC", '"gcc')
    with pytest.raises(build.Unavailable, match="CC cannot be read"):
        build.compiled("float", tmp_path, ())


@pytest.mark.skipif(build.tuning() != "-march=native", reason="the compiler here does not take -march=native")
def test_a_kernel_that_is_not_tuned_says_so_until_there_is_one_that_is(tmp_path: Path) -> None:
    lost = tmp_path / "lost"
    compiler = hasty(tmp_path, f'case "$*" in *=native*) test ! -e {lost} || exit 1;; esac')
    lost.touch()
    assert in_a_process(tmp_path, compiler, "tuning") == "none"
    lost.unlink()
    assert in_a_process(tmp_path, compiler, "tuning") == "-march=native"


def test_without_the_kernel_everything_else_works(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build, "_outcome", lambda real: "no compiler")
    auto.forget()
    x = torch.randn(1, 3, 6, 6)
    layer = NiffDepthwise(3, form="auto")
    with torch.no_grad(), pytest.warns(RuntimeWarning, match="without its C kernel.*no compiler"):
        assert torch.allclose(layer(x), layer.with_form("fft")(x), atol=1e-4)
    assert set(auto.choices().values()) <= {"fused", "dft"}
    assert layer.chosen in ("fused", "dft")
    with pytest.raises(NotImplementedError, match="no compiler"):
        layer.with_form("native")(x)
    auto.forget()


@pytest.mark.parametrize("mlp", ["tiny", "small", "big"])
@pytest.mark.parametrize("size", [(6, 7), (1, 1), (5, 8)])
def test_a_filter_by_hand_is_the_filter_by_ordinary_operations(mlp: str, size: tuple[int, int]) -> None:
    torch.manual_seed(0)
    generator = FilterGenerator((3,), mlp=mlp, dtype=torch.float64)
    scale = 1 / (size[0] * size[1])

    def gradients(half: Tensor, twice: bool) -> list[Tensor]:
        inputs = list(generator.parameters())
        square = torch.view_as_real(half).square().sum()
        first = torch.autograd.grad(square, inputs, create_graph=twice, allow_unused=True)
        first = [torch.zeros_like(i) if g is None else g for i, g in zip(inputs, first, strict=True)]
        if not twice:
            return first
        again = torch.autograd.grad(sum(g.square().sum() for g in first), inputs, allow_unused=True)
        return [torch.zeros_like(i) if g is None else g for i, g in zip(inputs, again, strict=True)]

    plain = generator.half_plane(*size, torch.float64) * scale
    quick = generator.scaled_half_plane(*size, torch.float64)
    assert relative(quick.detach(), plain.detach()) < 1e-12
    with torch.no_grad():
        assert torch.equal(generator.scaled_half_plane(*size, torch.float64), quick.detach())
    for twice in (False, True):
        plain = generator.half_plane(*size, torch.float64) * scale
        quick = generator.scaled_half_plane(*size, torch.float64)
        for mine, right in zip(gradients(quick, twice), gradients(plain, twice), strict=True):
            assert torch.allclose(mine, right, rtol=1e-9, atol=1e-14)


def test_the_half_plane_is_the_hermitian_part_of_the_plane() -> None:
    torch.manual_seed(0)
    for size in ((6, 8), (5, 7), (4, 1), (1, 6)):
        generator = FilterGenerator((2,), mlp="small", dtype=torch.float64)
        with torch.no_grad():
            plane = generator.full_plane(*size, torch.float64)
            mirrored = torch.roll(plane.flip(-2, -1), (1, 1), (-2, -1))
            hermitian_part = (plane + mirrored.conj()) / 2
            half = generator.half_plane(*size, torch.float64)
        assert relative(half, hermitian_part[..., : size[1] // 2 + 1]) < 1e-12


def test_every_engine_is_offered_where_it_runs() -> None:
    small, large = images(1, 1, 8, 8), images(1, 1, 8, 65)
    native = ["native"] if build.unavailable() is None else []
    assert auto.candidates(small) == ["fused", "dft", *native]
    assert auto.candidates(large) == ["fused", *native]
    assert auto.candidates(torch.empty(1, 1, 8, 8, device="meta")) == ["fused", "dft"]
