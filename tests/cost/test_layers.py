"""Layers of torch as anybody writes them: both counters give what is worked out by hand, and leave nothing out."""

from __future__ import annotations

from collections.abc import Callable
from math import prod

import pytest
import torch
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional as F

from niffbench.cost.counters import count
from niffbench.cost.fvcore import trace
from niffbench.lengths import fft_flops

several = settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
sides = st.integers(1, 5)
lengths = st.sampled_from((1, 2, 3, 4, 6, 7, 9, 11))
COMPLEX = torch.complex64


class Layer(nn.Module):
    """A function of the input and of its parameters; ``inner`` are modules that the function calls."""

    def __init__(self, function: Callable[..., Tensor], parameters: list[Tensor], inner: nn.Module | None) -> None:
        super().__init__()
        self.function, self.inner = function, inner
        self.weights = nn.ParameterList(parameters)

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x, *self.weights)


Shape = tuple[int, ...]


def check(
    function: Callable[..., Tensor],
    *shapes: Shape | tuple[Shape, torch.dtype],
    forward: int,
    backward: int | None = None,
    inner: Callable[[], nn.Module] | None = None,
) -> None:
    """Hold both counters to ``forward``, in inference and with gradients, and the dispatcher's to ``backward``.

    The first shape is the input's, the others are the weights'. ``backward`` is compared where it is given; that
    everything in it is priced always.
    """
    with FakeTensorMode(allow_non_fake_inputs=True):
        x, *weights = (
            torch.empty(shape[0], dtype=shape[1])
            if shape and isinstance(shape[-1], torch.dtype)
            else torch.empty(shape)
            for shape in shapes
        )
        module = inner() if inner else None
        layer = Layer(function if module is None else lambda x: function(module, x), weights, module)
    for grad in (False, True):
        x.requires_grad_(grad)
        with torch.inference_mode(not grad), FakeTensorMode(allow_non_fake_inputs=True):
            counted = count(lambda: layer(x))
        assert (counted.flops, counted.unpriced) == (forward, ())
        with torch.set_grad_enabled(grad):
            traced = trace(layer, x)
        assert (traced.flops, traced.unpriced) == (forward, ())
    with FakeTensorMode(allow_non_fake_inputs=True):
        out = layer(x)
        counted = count(lambda: out.backward(torch.zeros_like(out)))
    assert counted.unpriced == ()
    if backward is not None:
        assert counted.flops == backward


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths")
@several
@given(
    data=st.data(),
    dims=st.integers(1, 3),
    transposed=st.booleans(),
    groups=st.integers(1, 3),
    bias=st.booleans(),
    batched=st.booleans(),
)
def test_convolutions(
    data: st.DataObject, dims: int, transposed: bool, groups: int, bias: bool, batched: bool
) -> None:
    def each(values: st.SearchStrategy[int]) -> int | list[int] | tuple[int, ...]:
        """One number, a list or a tuple of one or of all: whatever torch takes."""
        number = st.lists(values, min_size=dims, max_size=dims)
        return data.draw(st.one_of(values, number, number.map(tuple)))

    kernel = data.draw(st.tuples(*[st.integers(1, 3)] * dims))
    batch, into, out = (data.draw(sides) for _ in range(3))
    image = data.draw(st.tuples(*[st.integers(5, 8)] * dims))
    stride, dilation = each(st.integers(1, 2)), each(st.integers(1, 2))
    padding = each(st.integers(0, 1))
    if not transposed:
        padding = data.draw(st.sampled_from((padding, "same", "valid")))
        stride = 1 if padding == "same" else stride
    name = f"conv{'_transpose' if transposed else ''}{dims}d"
    settings_ = {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups}

    def layer(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        y: Tensor = getattr(F, name)(x, weight, bias, **settings_)
        return y

    shape = (groups * into, out, *kernel) if transposed else (groups * out, into, *kernel)
    x = (batch, groups * into, *image) if batched else (groups * into, *image)
    biases = [(groups * out,)] if bias else []
    made = layer(torch.empty(x), torch.empty(shape)).shape[-dims:]
    images, channels = batch if batched else 1, groups * out
    flops = 2 * images * prod(image if transposed else made) * prod(shape)
    summed = images * prod(made)
    for_bias = channels * summed if bias and summed > 1 else 0
    check(layer, x, shape, *biases, forward=flops, backward=2 * flops + for_bias)


def test_complex_convolutions_are_three_real_ones() -> None:
    flops = 3 * 2 * (2 * 6 * 6) * (5 * 4 * 3 * 3)
    shapes: list[tuple[Shape, torch.dtype]] = [((2, 4, 8, 8), COMPLEX), ((5, 4, 3, 3), COMPLEX), ((5,), COMPLEX)]
    check(F.conv2d, *shapes, forward=flops)


@several
@given(
    batch=st.lists(sides, max_size=3),
    into=sides,
    beside=sides,
    out=sides,
    bias=st.booleans(),
)
def test_linear_and_bilinear(batch: list[int], into: int, beside: int, out: int, bias: bool) -> None:
    rows, biases = prod(batch), [(out,)] if bias else []
    flops = 2 * rows * into * out
    check(F.linear, (*batch, into), (out, into), *biases, forward=flops)

    def bilinear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        return F.bilinear(x[..., :into], x[..., into:], weight, bias)

    # For each output a matrix product with the left input, then one multiply-add for each number with the right.
    check(
        bilinear,
        (*batch, into + beside),
        (out, into, beside),
        *biases,
        forward=out * rows * beside * (2 * into + 2),
    )


@several
@given(
    data=st.data(),
    batch=st.lists(st.tuples(sides, st.sampled_from(("both", "left", "right"))), max_size=2),
    rows=sides,
    inner=sides,
    columns=sides,
    left_vector=st.booleans(),
    right_vector=st.booleans(),
    dtypes=st.sampled_from(((torch.float32,) * 2, (COMPLEX,) * 2)),
)
def test_matrix_products_of_all_ranks(
    data: st.DataObject,
    batch: list[tuple[int, str]],
    rows: int,
    inner: int,
    columns: int,
    left_vector: bool,
    right_vector: bool,
    dtypes: tuple[torch.dtype, torch.dtype],
) -> None:
    """Vectors, matrices, and batches of matrices that are broadcast against each other."""
    left: Shape = (inner,) if left_vector else (rows, inner)
    right: Shape = (inner,) if right_vector else (inner, columns)
    if not left_vector:
        left = (*(1 if side == "right" else n for n, side in batch), *left)
    if not right_vector:
        right = (*(1 if side == "left" else n for n, side in batch), *right)
        right = right[data.draw(st.integers(0, len(batch))) :] if not left_vector else right
    made = torch.empty(left).matmul(torch.empty(right)).shape
    flops = (8 if dtypes[0].is_complex else 2) * prod(made) * inner
    check(torch.matmul, (left, dtypes[0]), (right, dtypes[1]), forward=flops)


@pytest.mark.parametrize(
    ("function", "shapes", "flops"),
    [
        (torch.dot, [(5,), (5,)], 2 * 5),
        (torch.mv, [(4, 5), (5,)], 2 * 20),
        (torch.bmm, [(2, 3, 4), (2, 4, 5)], 2 * 2 * 3 * 4 * 5),
        (torch.outer, [(4,), (5,)], 20),
        (torch.kron, [(2, 3), (4, 5)], 6 * 20),
        (torch.inner, [(2, 4), (5, 4)], 2 * 2 * 4 * 5),
        (lambda x, w: torch.tensordot(x, w, dims=2), [(2, 3, 4), (3, 4, 5)], 2 * 2 * 12 * 5),
        (lambda x, w: torch.tensordot(x, w, dims=([1], [0])), [(2, 3, 4), (3, 5)], 2 * 8 * 3 * 5),
        (lambda x, w, b: torch.addmv(b, w, x), [(4,), (5, 4), (5,)], 2 * 20),
        (lambda x, w, b: torch.addmm(b, x, w), [(3, 4), (4, 5), (5,)], 2 * 60),
        (lambda x, w, b: torch.addbmm(b, x, w), [(2, 3, 4), (2, 4, 5), (3, 5)], 2 * 120),
        (lambda x, w, b: torch.baddbmm(b, x, w), [(2, 3, 4), (2, 4, 5), (2, 3, 5)], 2 * 120),
    ],
)
def test_other_products(function: Callable[..., Tensor], shapes: list[Shape], flops: int) -> None:
    check(function, *shapes, forward=flops)


@st.composite
def equations(draw: st.DrawFn) -> tuple[str, list[Shape]]:
    """Einsums of one to four operands: with an ellipsis or without, a result or none, some lengths 1."""
    sizes = {index: draw(st.integers(1, 4)) for index in "abcde"}
    spread = draw(st.lists(sides, max_size=2))
    operands = draw(st.lists(st.lists(st.sampled_from("abcde"), max_size=3, unique=True), min_size=1, max_size=4))
    dots = draw(st.lists(st.booleans(), min_size=len(operands), max_size=len(operands)))
    terms = [f"{'...' if dot else ''}{''.join(names)}" for dot, names in zip(dots, operands, strict=True)]
    shapes = [
        (*(spread if dot else []), *(sizes[name] for name in names))
        for dot, names in zip(dots, operands, strict=True)
    ]
    if draw(st.booleans()):
        return ",".join(terms), shapes
    every = sorted({name for names in operands for name in names})
    result = draw(st.lists(st.sampled_from(every), unique=True)) if every else []
    return f"{','.join(terms)}->{'...' if any(dots) else ''}{''.join(result)}", shapes


@settings(several, max_examples=60)
@given(equations())
def test_counters_agree_on_any_einsum(equation: tuple[str, list[Shape]]) -> None:
    text, shapes = equation
    with FakeTensorMode():
        operands = [torch.empty(shape) for shape in shapes]
        flops = count(lambda: torch.einsum(text, *operands)).flops
    check(lambda *operands: torch.einsum(text, *operands), *shapes, forward=flops)


@pytest.mark.parametrize(
    ("equation", "shapes", "flops"),
    [
        ("...i,oi->...o", [(2, 3, 4), (5, 4)], 2 * 6 * 4 * 5),
        ("bi,oi", [(2, 4), (5, 4)], 2 * 2 * 4 * 5),
        ("i,i", [(4,), (4,)], 2 * 4),
        ("ij,ij->ij", [(3, 4), (3, 4)], 12),
        ("ij->j", [(3, 4)], 12),
        ("bi,ij,jk->bk", [(2, 3), (3, 4), (4, 5)], 2 * 2 * 3 * 4 + 2 * 2 * 4 * 5),
        ("b...,b...->...", [(2, 3, 5), (2, 3, 5)], 2 * 30),
    ],
)
def test_einsums_by_hand(equation: str, shapes: list[Shape], flops: int) -> None:
    check(lambda *operands: torch.einsum(equation, *operands), *shapes, forward=flops)
    ones = [(shape, COMPLEX) for shape in shapes]
    factor = {"ij->j": 2, "ij,ij->ij": 6}.get(equation, 4)
    check(lambda *operands: torch.einsum(equation, *operands), *ones, forward=factor * flops)


def nominal(shape: list[int], dims: list[int], *, real: bool) -> int:
    points = prod(shape[dim] for dim in dims)
    return fft_flops(points, prod(shape) // points, real=real)


@settings(several, max_examples=60)
@given(
    data=st.data(),
    kind=st.sampled_from(("fft", "ifft", "rfft", "irfft", "hfft", "ihfft")),
    rank=st.sampled_from(("", "2", "n")),
    shape=st.lists(lengths, min_size=2, max_size=3),
    norm=st.sampled_from((None, "forward", "backward", "ortho")),
)
def test_transforms(data: st.DataObject, kind: str, rank: str, shape: list[int], norm: str | None) -> None:
    """Along any dimensions, of the lengths that are there or of others: cropped, or padded with zeros."""
    every = list(range(-len(shape), 0))
    most = {"": 1, "2": 2, "n": len(shape)}[rank]
    dims = data.draw(st.permutations(every))[: most if rank != "n" else data.draw(st.integers(1, most))]
    wanted = data.draw(st.none() | st.tuples(*[lengths.filter(lambda n: n > 1)] * len(dims)))
    complex_in = kind in ("irfft", "hfft") or (kind in ("fft", "ifft") and data.draw(st.booleans()))
    if kind in ("irfft", "hfft") and wanted is None and shape[dims[-1]] == 1:
        shape[dims[-1]] = 3  # a half plane of one column has no default length
    arguments = {"norm": norm}
    arguments |= {"n": wanted and wanted[0], "dim": dims[0]} if rank == "" else {"s": wanted, "dim": dims}

    def transform(x: Tensor) -> Tensor:
        y: Tensor = getattr(torch.fft, kind + rank)(x, **arguments)
        return y

    whole = list(shape)  # of the numbers in space, or of all of them where both sides are complex
    for at, dim in enumerate(dims):
        halved = kind in ("irfft", "hfft") and dim == dims[-1]
        whole[dim] = wanted[at] if wanted else 2 * (shape[dim] - 1) if halved else shape[dim]
    half = list(whole)
    half[dims[-1]] = whole[dims[-1]] // 2 + 1
    if kind in ("rfft", "irfft"):
        flops = nominal(whole, dims, real=True)
    elif kind in ("hfft", "ihfft"):
        flops = nominal(whole, dims[-1:], real=True) + nominal(half, dims[:-1], real=False)
    else:  # along one dimension torch makes half the spectrum of real data, and mirrors it
        flops = nominal(whole, dims, real=not complex_in and rank == "")
    given_ = tuple(shape), COMPLEX if complex_in else torch.float32
    assume(_runs_on_fake_tensors(transform, given_))
    check(transform, given_, forward=flops)


def _runs_on_fake_tensors(function: Callable[[Tensor], Tensor], shape: tuple[Shape, torch.dtype]) -> bool:
    """torch 2.11 cannot transform some fake tensors, or their gradients, along others than the last dimensions."""
    with FakeTensorMode():
        try:
            y = function(torch.empty(shape[0], dtype=shape[1], requires_grad=True))
            y.backward(torch.ones_like(y))  # type: ignore[no-untyped-call]
        except RuntimeError:
            return False
    return True


@pytest.mark.parametrize(
    ("layer", "per_number"),
    [
        ("BatchNorm2d(4)", 0),
        ("InstanceNorm2d(4, affine=True)", 0),
        ("GroupNorm(2, 4)", 0),
        ("LayerNorm((8, 8))", 0),
        ("RMSNorm((8,))", 2),
        ("ReLU()", 0),
        ("ReLU6()", 0),
        ("SiLU()", 0),
        ("GELU()", 0),
        ("Mish()", 0),
        ("Hardswish()", 0),
        ("ELU()", 0),
        ("PReLU()", 0),
        ("Softplus()", 0),
        ("Tanh()", 0),
        ("Sigmoid()", 0),
        ("LeakyReLU()", 0),
        ("LogSigmoid()", 0),
        ("GLU(1)", 0),
        ("Softmax(1)", 0),
        ("Dropout(0.5)", 1),
        ("MaxPool2d(2)", 0),
        ("AvgPool2d(2)", 0),
        ("AdaptiveAvgPool2d(1)", 0),
        ("Upsample(scale_factor=2, mode='bilinear')", 0),
        ("PixelShuffle(2)", 0),
        ("Unfold(3)", 0),
        ("ReflectionPad2d(2)", 0),
        ("ReplicationPad2d(1)", 0),
        ("CircularPad2d(1)", 0),
        ("ZeroPad2d(1)", 0),
    ],
)
def test_what_costs_nothing_is_known_to(layer: str, per_number: int) -> None:
    """Normalisations, activations, pooling, padding; what torch makes of products of tensors costs those."""
    check(
        lambda module, x: module(x),
        (2, 4, 8, 8),
        forward=512 * per_number,
        inner=lambda: eval(f"nn.{layer}", {"nn": nn}),
    )


@several
@given(
    shape=st.lists(sides, min_size=1, max_size=4),
    dtypes=st.sampled_from(((torch.float32,) * 2, (COMPLEX, torch.float32), (COMPLEX, COMPLEX))),
)
def test_products_element_by_element(shape: list[int], dtypes: tuple[torch.dtype, torch.dtype]) -> None:
    price = (1, 2, 6)[sum(dtype.is_complex for dtype in dtypes)]
    check(
        lambda x, weight: x * weight,
        (tuple(shape), dtypes[0]),
        (tuple(shape[-1:]), dtypes[1]),
        forward=price * prod(shape),
    )
