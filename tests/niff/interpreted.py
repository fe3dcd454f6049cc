"""The form triton on a CPU, by Triton's interpreter: run by ``test_triton.py``, in a process of its own.

``TRITON_INTERPRET=1 python -m pytest tests/niff/interpreted.py`` runs it alone.
"""

from __future__ import annotations

import os
import warnings
from collections import Counter
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode
from triton._C.libtriton import ir
from triton.runtime import interpreter

from niffbench.niff import NiffDepthwise, NiffSplit, auto, forms_of, fused
from niffbench.niff.native import triton_engine

EXAMPLES = int(os.environ.get("NIFFBENCH_TESTS_EXAMPLES", "6"))
SIDES = st.one_of(st.integers(1, 17), st.sampled_from([28, 31, 32, 35]))
ALLOWED = {torch.float32: 2e-6, torch.float16: 2e-3, torch.bfloat16: 1.5e-2}
"""Relative L2 errors: some ten roundings of float32, one of a half precision."""

pytestmark = pytest.mark.filterwarnings("ignore:Conversion of an array")  # by the interpreter of Triton 3.6


@pytest.fixture(autouse=True)
def poisoned() -> Iterator[None]:
    """What is not written is NaN."""
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture
def launches(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the kernels that were launched."""
    seen: list[str] = []
    launch = triton_engine._launch

    def counted(kernel: str, *arguments: Any, **constants: Any) -> None:
        seen.append(kernel)
        launch(kernel, *arguments, **constants)

    monkeypatch.setattr(triton_engine, "_launch", counted)
    return seen


def layers(channels: int, mlp: str = "small", **more: Any) -> tuple[NiffDepthwise, NiffDepthwise]:
    """A layer in the form triton, and one of the same weights in float64."""
    layer = NiffDepthwise(channels, mlp=mlp, form="triton", **more)
    exact = NiffDepthwise(channels, mlp=mlp, form="rfft", **more).double()
    exact.load_state_dict(layer.state_dict())
    return layer, exact


def relative(result: Tensor, truth: Tensor) -> float:
    return float((result.double() - truth).norm() / truth.norm())


def hold(layer: torch.nn.Module, exact: torch.nn.Module, x: Tensor, outer: Tensor) -> None:
    """Output and gradients against float64; those of weights in proportion to the largest."""
    x.requires_grad_()
    twin = x.detach().double().requires_grad_()
    y, right = layer(x), exact(twin)
    allowed = ALLOWED[x.dtype]
    assert y.dtype == x.dtype
    assert relative(y.detach(), right.detach()) < allowed
    gradients = torch.autograd.grad(y, [x, *layer.parameters()], outer)
    expected = torch.autograd.grad(right, [twin, *exact.parameters()], outer.double())
    assert relative(gradients[0], expected[0]) < allowed
    largest = max(float(gradient.norm()) for gradient in expected[1:])
    for mine, theirs in zip(gradients[1:], expected[1:], strict=True):
        assert float((mine - theirs).norm()) < 5 * allowed * largest


@settings(max_examples=EXAMPLES, deadline=None)
@given(
    batch=st.integers(1, 3),
    channels=st.sampled_from([1, 2, 3, 5]),
    height=SIDES,
    width=SIDES,
    mlp=st.sampled_from(["tiny", "small"]),
    dtype=st.sampled_from(list(ALLOWED)),
    last=st.booleans(),
)
@example(batch=1, channels=2, height=56, width=56, mlp="small", dtype=torch.float32, last=False)
@example(batch=2, channels=1, height=61, width=3, mlp="tiny", dtype=torch.float32, last=False)
@example(batch=1, channels=1, height=4, width=64, mlp="tiny", dtype=torch.float16, last=False)
@example(batch=2, channels=5, height=14, width=5, mlp="big", dtype=torch.float32, last=True)
@example(batch=5, channels=3, height=7, width=7, mlp="small", dtype=torch.bfloat16, last=False)
@example(batch=2, channels=17, height=14, width=13, mlp="small", dtype=torch.float32, last=False)
def test_values_and_gradients(
    batch: int, channels: int, height: int, width: int, mlp: str, dtype: torch.dtype, last: bool
) -> None:
    torch.manual_seed(batch + channels)
    layer, exact = layers(channels, mlp)
    x, outer = torch.randn(2, batch, channels, height, width).to(dtype)
    if dtype == torch.float32:
        outer *= 2**-27  # as of a mean loss
    hold(layer, exact, x.to(memory_format=torch.channels_last) if last else x, outer)
    with torch.inference_mode():
        cached, right = layer.with_form("triton-cached")(x), exact(x.double())
    assert relative(cached, right) < ALLOWED[dtype]


@pytest.mark.skipif("NIFFBENCH_TESTS_EXAMPLES" not in os.environ, reason="a minute: NIFFBENCH_TESTS_EXAMPLES asks")
@pytest.mark.parametrize("side", range(1, 65))
def test_every_side(side: int) -> None:
    layer, exact = layers(2, "tiny")
    for size in ((side, 5), (6, side)):
        x, outer = torch.randn(2, 2, 2, *size)
        hold(layer, exact, x, outer)


def test_no_image_meets_another() -> None:
    layer, _ = layers(5)
    x = torch.randn(4, 5, 7, 7)
    expected = layer(x).detach()
    x[1, 2, 3, 4], x[3] = torch.nan, 1e20 * x[3]
    result = layer(x).detach()
    assert torch.equal(result[0], expected[0])
    assert torch.equal(result[2], expected[2])


@pytest.mark.parametrize("size", [(9, 9), (8, 25)])
def test_every_row_is_as_exact_where_filters_are_tiny(size: tuple[int, int]) -> None:
    x, half = torch.randn(2, 3, *size), 2**-50 * torch.fft.rfft2(torch.randn(3, *size))
    x[1] *= 2**-20
    outer = 2**-40 * torch.randn_like(x)
    mine, exact = [x, half], [x.double(), half.to(torch.complex128)]
    for inputs in (mine, exact):
        for one in inputs:
            one.requires_grad_()
    y, right = triton_engine.convolve(*mine), fused.convolve(*exact)
    for_x, for_half = torch.autograd.grad(y, mine, outer)
    right_for_x, right_for_half = torch.autograd.grad(right, exact, outer.double())
    for rows, right_rows in ((y, right), (for_x, right_for_x)):
        error = (rows - right_rows).detach().norm(dim=-1) / right_rows.detach().norm(dim=-1)
        assert error.max() < 5e-6
    assert (for_half - right_for_half).norm() < 2e-6 * right_for_half.norm()


def test_split_layers_and_the_centred_grid() -> None:
    layer, exact = NiffSplit(3, 4, grid="centred", form="triton"), NiffSplit(3, 4, grid="centred").double()
    exact.load_state_dict(layer.state_dict())
    hold(layer, exact, torch.randn(2, 3, 9, 12), torch.randn(2, 4, 9, 12))
    half = torch.randn(2, 3, 9, 12).bfloat16()
    assert relative(layer(half).detach(), exact(half.double()).detach()) < 2e-2


def test_each_pass_launches_kernels_of_ours_and_larger_sides_none(launches: list[str]) -> None:
    assert {"triton", "triton-cached"} <= {*forms_of("depthwise")} & {*forms_of("split")}
    layer, exact = layers(2)
    for size in ((1, 1), (7, 5), (64, 2)):
        launches.clear()
        y = layer(torch.randn(1, 2, *size, requires_grad=True))
        assert launches == ["features", "convolve"]
        y.sum().backward()
        assert launches == ["features", "convolve", "convolve", "features_gradient"]
    cached = layer.with_form("triton-cached")
    with torch.no_grad():
        cached(torch.randn(1, 2, 8, 8))
        launches.clear()
        cached(torch.randn(1, 2, 8, 8))
        assert launches == ["convolve"]
        x = torch.randn(1, 2, 65, 4)
        for larger in (x, x.half()):
            assert relative(layer(larger), exact(larger.double())) < ALLOWED[larger.dtype]
    assert launches == ["convolve"]


class Moved:
    """Bytes that kernels loaded and stored, by what lies there."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, **tensors: Tensor) -> None:
        self.loaded: Counter[str] = Counter()
        self.stored: Counter[str] = Counter()
        builder = interpreter.InterpreterBuilder
        load, store = builder.create_masked_load, builder.create_masked_store

        def loads(own: Any, pointers: Any, mask: Any, *rest: Any) -> Any:
            self._count(self.loaded, tensors, pointers, mask)
            return load(own, pointers, mask, *rest)

        def stores(own: Any, pointers: Any, value: Any, mask: Any, *rest: Any) -> Any:
            self._count(self.stored, tensors, pointers, mask)
            return store(own, pointers, value, mask, *rest)

        monkeypatch.setattr(builder, "create_masked_load", loads)
        monkeypatch.setattr(builder, "create_masked_store", stores)

    @staticmethod
    def _count(into: Counter[str], tensors: dict[str, Tensor], pointers: Any, mask: Any) -> None:
        addresses = np.broadcast_to(pointers.data, np.broadcast_shapes(pointers.data.shape, mask.data.shape))
        touched = addresses[np.broadcast_to(mask.data, addresses.shape).astype(bool)]
        size = pointers.get_element_ty().primitive_bitwidth // 8
        if not touched.size:
            return
        for name, tensor in tensors.items():
            begin = tensor.data_ptr()
            if begin <= touched[0] < begin + tensor.nbytes:
                into[name] += size * touched.size
                return
        into["the rest"] += size * touched.size


@pytest.mark.parametrize(("channels", "side"), [(1, 56), (2, 28), (4, 14), (16, 7), (3, 9)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_each_pixel_is_read_once_and_written_once(
    channels: int, side: int, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Forward and backward, whatever else is read: features, weights and matrices, which a cache holds."""
    x, gradient = torch.randn(2, 2, channels, side, side).to(dtype)
    points, hidden = side * (side // 2 + 1), 4
    made_of = [torch.randn(2, hidden, points), torch.randn(2, channels, hidden), torch.randn(2, channels)]
    moved = Moved(monkeypatch, x=x, gradient=gradient)
    y = triton_engine._convolve(x, made_of, 1.0)
    assert moved.loaded["x"] == x.nbytes
    assert moved.stored == {"the rest": y.nbytes}
    moved.loaded.clear()
    moved.stored.clear()
    for_x, *_ = triton_engine._gradients(x, made_of, 1.0, gradient, True, True)
    again = 2 if side == 56 else 1  # There are no registers there for both results at once.
    assert (moved.loaded["x"], moved.loaded["gradient"]) == (x.nbytes, again * gradient.nbytes)
    layout = triton_engine.Layout(side, side)
    _, parts = triton_engine._division(-(-channels // layout.packed), 2, x)
    assert moved.stored == {"the rest": for_x.nbytes + parts * 8 * channels * points}


def test_a_kept_filter_is_read_once_by_each_program(monkeypatch: pytest.MonkeyPatch) -> None:
    x, half = torch.randn(1, 8, 10, 9), torch.fft.rfft2(torch.randn(8, 10, 9))
    moved = Moved(monkeypatch, x=x, half=half)
    triton_engine.convolve(x, half)
    assert (moved.loaded["x"], moved.loaded["half"]) == (x.nbytes, half.nbytes)


def test_some_gradients_and_those_of_a_finished_filter() -> None:
    x, half = torch.randn(3, 2, 6, 7), torch.fft.rfft2(torch.randn(2, 6, 7))
    outer = torch.randn_like(x)
    for needs in ((True, False), (False, True), (True, True)):
        mine = [one.clone().requires_grad_(need) for one, need in zip((x, half), needs, strict=True)]
        exact = [one.detach().to(torch.promote_types(one.dtype, torch.float64)) for one in mine]
        wanted = [one.requires_grad_() for one, need in zip(exact, needs, strict=True) if need]
        right = torch.autograd.grad(fused.convolve(*exact), wanted, outer.double())
        wanted = [one for one in mine if one.requires_grad]
        result = torch.autograd.grad(triton_engine.convolve(*mine), wanted, outer)
        for one, other in zip(result, right, strict=True):
            assert float((one - other).norm() / other.norm()) < 2e-6


def tf32(values: np.ndarray[Any, Any], *, rounded: bool) -> np.ndarray[Any, Any]:
    """float32 to its 10 leading bits."""
    bits = np.ascontiguousarray(values.astype(np.float32)).view(np.uint32)
    return ((bits + np.uint32(0x1000 if rounded else 0)) & np.uint32(0xFFFFE000)).view(np.float32)


@pytest.mark.parametrize("dtype", list(ALLOWED))
def test_products_of_tensor_cores_are_exact_enough(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    """As a GPU's, which cut off what is not rounded before; one product of TF32 would not be float32.

    Triton rounds where it makes three of one (cvt.rna.tf32 in PTX), and nowhere else.
    """

    def dot(own: Any, a: Any, b: Any, d: Any, precision: Any, *_: Any) -> Any:
        thrice = precision == ir.INPUT_PRECISION.TF32x3
        left, right = tf32(a.data, rounded=thrice), tf32(b.data, rounded=thrice)
        product = left @ right
        if thrice:
            product = product + tf32(a.data - left, rounded=True) @ right
            product = product + left @ tf32(b.data - right, rounded=True)
        return interpreter.TensorHandle((product + d.data).astype(np.float32), d.dtype.scalar)

    monkeypatch.setattr(interpreter.InterpreterBuilder, "create_dot", dot)
    for side in (56, 28, 7):
        x = torch.randn(2, 2, side, side + 2).to(dtype)
        half = torch.fft.rfft2(torch.randn(2, side, side + 2)) / (side * (side + 2))
        right = fused.convolve(x.double(), half.cdouble())
        for precision in ("tf32x3", "tf32"):
            monkeypatch.setattr(triton_engine, "_precision", lambda _, named=precision: named)
            allowed = 1e-3 if dtype == torch.float16 else ALLOWED[dtype]
            exact = relative(triton_engine.convolve(x, half), right) < allowed
            assert exact == (precision == "tf32x3" or dtype != torch.float32)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_what_is_not_finite_stays_so_in_half_precision(
    dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The NaN of a GPU's arithmetic has all its bits set (PTX), so that one more makes it a number."""
    made = interpreter.InterpreterBuilder.create_dot

    def dot(*operands: Any) -> Any:
        product = made(*operands)
        product.data[np.isnan(product.data)] = np.uint32(0x7FFFFFFF).view(np.float32)
        return product

    monkeypatch.setattr(interpreter.InterpreterBuilder, "create_dot", dot)
    half = torch.fft.rfft2(torch.randn(1, 6, 7))
    for wrong in (torch.nan, torch.inf):
        x = torch.randn(2, 1, 6, 7).to(dtype)
        x[0, 0, 3, 2] = wrong
        result = triton_engine.convolve(x, half)
        assert not result[0].isfinite().any()
        assert result[1].isfinite().all()


def test_halved_planes_compute_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """As Triton 3.6 takes them at 56, where the GPU has the shared memory."""
    own = triton_engine.constants_of
    monkeypatch.setattr(triton_engine, "constants_of", lambda *args, **how: own(*args, **how) | {"PARTS": 2})
    x = torch.randn(3, 2, 45, 56, requires_grad=True)
    half = (torch.fft.rfft2(torch.randn(2, 45, 56)) / (45 * 56)).requires_grad_()
    outer = torch.randn(x.shape)
    results, right = (
        (y, *torch.autograd.grad(y, (x, half), outer))
        for y in (triton_engine.convolve(x, half), fused.convolve(x, half))
    )
    for one, expected in zip(results, right, strict=True):
        assert (one - expected).abs().max() < 1e-5 * expected.abs().max()


def test_second_derivatives_are_those_of_ordinary_operations() -> None:
    """So are the gradients of many outputs at once."""
    layer, exact = layers(2)
    x, outer = torch.randn(2, 2, 6, 5, requires_grad=True), torch.randn(2, 2, 2, 6, 5)
    inputs = [x, *layer.parameters()]
    many = torch.autograd.grad(layer(x), inputs, outer, is_grads_batched=True)
    for mine, right in zip(many, torch.autograd.grad(layer(x), inputs, outer[0]), strict=True):
        assert (mine[0] - right).abs().max() <= 1e-4 * right.abs().max() + 1e-6
    results = []
    for one, dtype in ((layer, torch.float32), (exact, torch.float64)):
        x = torch.linspace(-1, 1, 2 * 2 * 6 * 5).view(2, 2, 6, 5).to(dtype).requires_grad_()
        inputs = [x, *one.parameters()]
        first = torch.autograd.grad(one(x).square().sum(), inputs, create_graph=True)
        results.append(torch.autograd.grad(sum(g.square().sum() for g in first), inputs, allow_unused=True))
    largest = max(float(gradient.norm()) for gradient in results[1] if gradient is not None)
    for mine, right in zip(*results, strict=True):
        assert (mine is None) == (right is None)
        if mine is not None and right is not None:
            assert float((mine - right).norm()) < 1e-5 * largest


def test_every_call_gives_the_same_numbers() -> None:
    layer, x = layers(3)[0], torch.randn(4, 3, 12, 10, requires_grad=True)
    inputs = [x, *layer.parameters()]
    runs = [torch.autograd.grad(layer(x).square().sum(), inputs) for _ in range(2)]
    assert all(torch.equal(*pair) for pair in zip(*runs, strict=True))


def test_empty_batches_and_what_has_to_be_copied() -> None:
    layer, exact = layers(3)
    x = torch.randn(5, 3, 8, 6)
    assert layer(x[:0]).shape == (0, 3, 8, 6)
    half = layer.generator.scaled_half_plane(8, 6, torch.float32).detach()
    assert triton_engine.convolve(x[:0], half).shape == (0, 3, 8, 6)
    for part in (x[::2], x.transpose(2, 3).contiguous().transpose(2, 3), x[2]):
        result, right = layer(part).detach(), exact(part.double()).detach()
        assert relative(result, right) < 2e-6
    conjugated = half.conj()
    assert relative(triton_engine.convolve(x, conjugated), fused.convolve(x.double(), conjugated.cdouble())) < 2e-6


def test_what_it_cannot_do_is_refused_by_name() -> None:
    layer, x = layers(3)[0], torch.randn(1, 3, 8, 6)
    with pytest.raises(NotImplementedError, match=r"the triton form is not implemented for torch\.float64"):
        layer(x.double())
    half = layer.generator.scaled_half_plane(8, 6, torch.float32).detach()
    for wrong in (half[:2], half[:, :7], half.to(torch.complex128)):
        with pytest.raises(ValueError, match="expected a filter of"):
            triton_engine.convolve(x, wrong)


def test_a_compiled_graph_holds_the_kernels_and_trains(launches: list[str]) -> None:
    torch._dynamo.reset()
    layer, exact = layers(2)
    x = torch.randn(2, 2, 6, 5, requires_grad=True)
    twin = x.detach().double().requires_grad_()
    compiled = torch.compile(layer, backend="aot_eager", fullgraph=True)
    result = torch.autograd.grad(compiled(x).square().sum(), [x, *layer.parameters()])
    assert launches == ["features", "convolve", "convolve", "features_gradient"]
    right = torch.autograd.grad(exact(twin).square().sum(), [twin, *exact.parameters()])
    largest = max(float(gradient.norm()) for gradient in right)
    for one, other in zip(result, right, strict=True):
        assert float((one - other).norm()) < 1e-5 * largest


def test_the_kernels_as_operators_of_torch() -> None:
    generator = layers(3)[0].generator
    grid, weights, scale = generator.half_ingredients(4, 5, torch.float32)
    tests = ("test_schema", "test_faketensor")
    hidden = list(weights[:-2])
    torch.library.opcheck(torch.ops.niffbench.triton_features, (grid, hidden, scale), test_utils=tests)
    features = torch.ops.niffbench.triton_features(grid, hidden, scale)
    x, made_of = torch.randn(2, 3, 4, 5), [features, *weights[-2:]]
    torch.library.opcheck(torch.ops.niffbench.triton_convolution, (x, made_of, scale), test_utils=tests)


def test_a_flop_counter_sees_what_it_sees_of_the_kernel_in_c() -> None:
    counts = []
    x = torch.randn(2, 3, 8, 5)
    for form in ("triton", "native", "triton-cached", "native-cached"):
        layer = NiffDepthwise(3, form=form)
        with FlopCounterMode(display=False) as counter:
            layer(x.requires_grad_()).sum().backward()
        with torch.no_grad():
            layer(x)
            with FlopCounterMode(display=False) as again:
                layer(x)
        counts.append((counter.get_total_flops(), again.get_total_flops()))
    assert counts[0] == counts[1]
    assert counts[2] == counts[3]
    assert min(min(pair) for pair in counts) > 0


def test_transforms_of_torch_see_ordinary_operations(launches: list[str]) -> None:
    layer, exact = layers(2)
    x = torch.randn(3, 2, 6, 5)
    result = torch.func.grad(lambda one: layer(one).square().sum())(x)
    twin = x.double().requires_grad_()
    assert relative(result.detach(), torch.autograd.grad(exact(twin).square().sum(), twin)[0]) < 1e-5
    assert not launches


def test_auto_leaves_the_interpreter_alone() -> None:
    assert "triton" not in auto.candidates(torch.randn(1, 2, 7, 7))


@pytest.mark.parametrize("form", ["auto", "auto-cached"])
def test_where_auto_finds_it_fastest_it_gets_half_precision_as_it_is(
    form: str, launches: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(auto, "candidates", lambda _: ["fused", "triton"])
    monkeypatch.setattr(auto, "_fastest", lambda calls, _: "triton")
    auto.forget()
    layer, exact = layers(2)
    x = torch.randn(1, 2, 7, 7).bfloat16()
    with torch.no_grad():
        y = layer.with_form(form)(x)
        assert launches == (["features", "convolve"] if form == "auto" else ["convolve"])
        assert y.dtype == torch.bfloat16
        assert relative(y, exact(x.double())) < ALLOWED[torch.bfloat16]
    auto.forget()


@pytest.mark.parametrize("failing", ["features", "convolve", "features_gradient"])
def test_a_kernel_that_fails_is_warned_of_once_and_ordinary_operations_step_in(
    failing: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Broken:
        def __getitem__(self, grid: object) -> Any:
            raise RuntimeError("no such instruction")

    from niffbench.niff.native import triton_kernels

    monkeypatch.setattr(triton_kernels, failing, Broken())
    monkeypatch.setattr(triton_engine, "_failed", {})
    layer, exact = layers(2)
    x, outer = torch.randn(2, 1, 2, 6, 5)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        for _ in range(2):
            hold(layer, exact, x.detach(), outer)
    (warned,) = (str(one.message) for one in said if "step in" in str(one.message))
    what = f"the triton form's kernel {failing} failed: RuntimeError: no such instruction"
    assert warned == f"torch's FFTs step in, as {what}"
    triton_engine.stand_in(False)
    try:
        with pytest.raises(triton_engine.Failed, match=what):
            hold(layer, exact, x.detach(), outer)
    finally:
        triton_engine.stand_in(True)
    assert triton_engine.failures() == [what]
