"""The third witness: fvcore's FlopCountAnalysis over a traced forward pass, with handlers for what it misses.

fvcore counts 1 for a multiply-add, so its own figures are given ×2; our handlers return real FLOPs. It traces with
``torch.jit``, which runs the module; on fake tensors nothing is computed or allocated, so any size can be traced.
"""

from __future__ import annotations

import logging
import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from math import prod
from typing import Any

import torch
from torch import Tensor, nn
from torch._ops import OpOverloadPacket
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from niffbench.cost.formulas import is_free
from niffbench.lengths import fft_flops

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # fvcore's import calls torch.jit.script, which torch deprecates.
    from fvcore.nn import FlopCountAnalysis
    from fvcore.nn.flop_count import _DEFAULT_SUPPORTED_OPS as STOCK

Handler = Callable[[Sequence[Any], Sequence[Any]], int]


@dataclass(frozen=True)
class Traced:
    """What one forward pass costs, in real FLOPs.

    ``flops`` by our handlers, ``stock`` by fvcore's own (None where they fail), ``missed`` what only ours see.
    ``unpriced`` names the operations that no handler could price: while it is not empty, ``flops`` may be too low.
    ``stock_failures`` names those that fvcore's own handlers failed on.
    """

    flops: int
    stock: int | None
    missed: tuple[str, ...]
    unpriced: tuple[str, ...] = ()
    stock_failures: tuple[str, ...] = ()


def trace(module: nn.Module, x: Tensor) -> Traced:
    """Trace ``module(x)`` and count it; ``module`` and ``x`` may be fake, grad mode is the caller's.

    Raises:
        Exception: whatever ``torch.jit`` raises where it cannot trace the module.
    """
    stock: Counter[str] = Counter()
    ours: Counter[str] = Counter()
    unpriced: set[str] = set()
    stock_failures: set[str] = set()
    handlers = _registered() | HANDLERS

    def both(name: str) -> Handler:
        def handle(inputs: Sequence[Any], outputs: Sequence[Any]) -> int:
            if name in STOCK:
                try:
                    counted = STOCK[name](inputs, outputs)
                except (
                    Exception
                ):  # Handlers of other people, on operations of other people: an assertion as a rule.
                    stock_failures.add(name)
                else:
                    stock[name] += int(2 * (sum(counted.values()) if isinstance(counted, Counter) else counted))
            try:
                flops = handlers[name](inputs, outputs)
            except Exception:
                unpriced.add(name)
                return 0
            ours[name] += flops
            return flops

        return handle

    analysis = FlopCountAnalysis(module, x).unsupported_ops_warnings(False).uncalled_modules_warnings(False)
    analysis.tracer_warnings("none").set_op_handle(**{name: both(name) for name in handlers})
    log = logging.getLogger("fvcore.nn.jit_analysis")
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        with _PlainSizes(), _Convolutions(), _Untraced():  # type: ignore[no-untyped-call]
            total = analysis.total()
            unpriced |= {name for name in analysis.unsupported_ops() if not _is_free(name)}
    finally:
        log.setLevel(level)
    return Traced(
        flops=total,
        stock=None if stock_failures else sum(stock.values()),
        missed=tuple(sorted(name for name, flops in ours.items() if flops and not stock[name])),
        unpriced=tuple(sorted(unpriced)),
        stock_failures=tuple(sorted(stock_failures)),
    )


_FREE_PARTS = frozenset(
    {"adaptive_avg_pool2d", "fft_fftshift", "fft_ifftshift", "instance_norm", "log_softmax"}
    | {"max_pool2d", "pad", "prelu", "softmax"}
)
"""Some of what costs nothing as a whole; the dispatcher sees its parts."""


def _is_free(name: str) -> bool:
    """Whether a traced operation is known to cost nothing; one of another namespace is not."""
    namespace, _, plain = name.partition("::")
    if namespace == "prim" and not plain.startswith("PythonOp"):
        return True
    if namespace != "aten" or plain in _FREE_PARTS:
        return namespace == "aten"
    operation = getattr(torch.ops.aten, plain, None)
    return operation is not None and any(is_free(getattr(operation, name)) for name in operation.overloads())


class _Untraced(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Runs each operation with tracing off, once it is recorded: fake tensors ask for shapes as plain numbers."""

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is torch.ops.aten._convolution.default:  # Unknown to the fake tensors of older torch.
            func, args = torch.ops.aten.convolution.default, args[:9]
        c = torch._C
        state = c._get_tracing_state()
        excluded = c._dispatch_tls_local_exclude_set().remove(c._dispatch_key_parse("Tracer"))
        with c._ForceDispatchKeyGuard(c._dispatch_tls_local_include_set(), excluded):
            c._set_tracing_state(None)  # type: ignore[attr-defined]
            try:
                return func(*args, **(kwargs or {}))
            finally:
                c._set_tracing_state(state)  # type: ignore[attr-defined]


class _PlainSizes(TorchFunctionMode):
    """Gives sizes as plain numbers, not as traced tensors: a module may look something up by them."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func not in (Tensor.shape.__get__, Tensor.size):  # type: ignore[attr-defined]
            return func(*args, **(kwargs or {}))
        state = torch._C._get_tracing_state()
        torch._C._set_tracing_state(None)  # type: ignore[attr-defined]
        try:
            return func(*args, **(kwargs or {}))
        finally:
            torch._C._set_tracing_state(state)  # type: ignore[attr-defined]


class _Convolutions(TorchFunctionMode):
    """Calls ``torch._convolution``, all that tracing records of a convolution below a dispatch mode."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        return _CONVOLUTIONS.get(func, func)(*args, **(kwargs or {}))


Lengths = int | str | Sequence[int]


def _convolve(dims: int) -> Callable[..., Tensor]:
    """What ``torch.conv1d``, ``conv2d`` and ``conv3d`` do, with one call of ``torch._convolution``."""

    def convolve(
        input: Tensor,
        weight: Tensor,
        bias: Tensor | None = None,
        stride: Lengths = 1,
        padding: Lengths = 0,
        dilation: Lengths = 1,
        groups: int = 1,
    ) -> Tensor:
        gaps = _each(dilation, dims)
        if padding == "same":
            # Where the two margins of a side differ, the larger one is padded before.
            wanted = [gap * (side - 1) for gap, side in zip(gaps, weight.shape[2:], strict=True)]
            if uneven := [margin % 2 for margin in wanted] if any(margin % 2 for margin in wanted) else []:
                input = F.pad(input, [number for odd in reversed(uneven) for number in (0, odd)])
            margins = [margin // 2 for margin in wanted]
        else:
            margins = [0] * dims if padding == "valid" else _each(padding, dims)
        return _one(input, weight, bias, _each(stride, dims), margins, gaps, None, groups)

    return convolve


def _convolve_transposed(dims: int) -> Callable[..., Tensor]:
    """What ``torch.conv_transpose1d``, ``conv_transpose2d`` and ``conv_transpose3d`` do, likewise."""

    def convolve(
        input: Tensor,
        weight: Tensor,
        bias: Tensor | None = None,
        stride: Lengths = 1,
        padding: Lengths = 0,
        output_padding: Lengths = 0,
        groups: int = 1,
        dilation: Lengths = 1,
    ) -> Tensor:
        steps, margins, more, gaps = (_each(value, dims) for value in (stride, padding, output_padding, dilation))
        return _one(input, weight, bias, steps, margins, gaps, more, groups)

    return convolve


def _one(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    output_padding: list[int] | None,
    groups: int,
) -> Tensor:
    """One convolution of a batch or of a single image; transposed where there is an ``output_padding``.

    A complex one is three real ones, as torch does it.
    """
    if weight.is_complex():
        parts = (x.real, weight.real), (x.imag, weight.imag), (x.real + x.imag, weight.real + weight.imag)
        both_real, both_imaginary, crossed = (
            _one(*pair, None, stride, padding, dilation, output_padding, groups) for pair in parts
        )
        y = torch.complex(both_real - both_imaginary, crossed - both_real - both_imaginary)
        return y if bias is None else y + bias.view(-1, *[1] * len(stride))
    batched = x.dim() == weight.dim()
    y = torch._convolution(
        x if batched else x.unsqueeze(0),
        weight,
        bias,
        stride,
        padding,
        dilation,
        output_padding is not None,
        output_padding or [0] * len(stride),
        groups,
        False,
        False,
        False,
        False,
    )
    return y if batched else y.squeeze(0)


def _each(value: Lengths, dims: int) -> list[int]:
    """One number for each dimension."""
    assert not isinstance(value, str)
    numbers = [value] if isinstance(value, int) else list(value)
    return numbers * dims if len(numbers) == 1 else numbers


_CONVOLUTIONS: dict[Any, Callable[..., Tensor]] = {
    torch.conv1d: _convolve(1),
    torch.conv2d: _convolve(2),
    torch.conv3d: _convolve(3),
    torch.conv_transpose1d: _convolve_transposed(1),
    torch.conv_transpose2d: _convolve_transposed(2),
    torch.conv_transpose3d: _convolve_transposed(3),
}


def _shape(value: Any) -> list[int]:
    """Sizes of a traced tensor; empty for a number."""
    return value.type().sizes() if value.isCompleteTensor() else []


def _is_complex(value: Any) -> bool:
    dtype = value.type().dtype() if value.isCompleteTensor() else None
    return dtype is not None and dtype.is_complex


def _integers(value: Any) -> list[int] | None:
    """A traced integer, or list of them, as a list; None where it is absent.

    Raises:
        TypeError: where it is not constant.
    """
    if value.node().kind() == "prim::ListConstruct":
        return [int(item.toIValue()) for item in value.node().inputs()]
    constant = value.toIValue()
    if constant is None and value.node().kind() != "prim::Constant":
        raise TypeError(f"not constant: {value}")
    return constant if constant is None or isinstance(constant, list) else [int(constant)]


def _multiply_add(*factors: Any) -> int:
    return (2, 4, 8)[sum(map(_is_complex, factors))]


def _multiply(*factors: Any) -> int:
    return (1, 2, 6)[sum(map(_is_complex, factors))]


Transformed = Callable[[list[int], list[int]], int]
"""Shape in the space of the real (or only) side, transformed dimensions → real FLOPs."""


def _price(shape: Sequence[int], dims: Sequence[int], *, real: bool = False) -> int:
    points = prod(shape[dim] for dim in dims)
    return fft_flops(points, prod(shape) // points, real=real)


def _real(shape: list[int], dims: list[int]) -> int:
    return _price(shape, dims, real=True)


def _hermitian(shape: list[int], dims: list[int]) -> int:
    """A real FFT along the last dimension, and complex ones of its half along the others."""
    *others, last = dims
    half = list(shape)
    half[last] = shape[last] // 2 + 1
    return _price(shape, [last], real=True) + _price(half, others)


def _transform(price: Transformed, *, halves: bool = False) -> Handler:
    """FFTs ``(input, lengths, dims, norm)``.

    Args:
        halves: it is the input, and not the output, that is real.
    """

    def handle(inputs: Sequence[Any], outputs: Sequence[Any]) -> int:
        lengths, dims = _integers(inputs[1]), _integers(inputs[2])
        shape = _shape(outputs[0])
        if dims is None:
            dims = list(range(-len(lengths), 0)) if lengths else list(range(len(shape)))
        if halves:
            given = lengths[-1] if lengths else -1
            shape[dims[-1]] = _shape(inputs[0])[dims[-1]] if given == -1 else given
        return price(shape, dims)

    return handle


def _transform_line(inputs: Sequence[Any], outputs: Sequence[Any]) -> int:
    """A complex FFT along one dimension; of real data torch makes half of the result and mirrors it."""
    return _price(_shape(outputs[0]), _integers(inputs[2]) or [-1], real=not _is_complex(inputs[0]))


def _mul(inputs: Sequence[Any], outputs: Sequence[Any]) -> int:
    left, right = inputs[:2]
    if not _shape(left) or not _shape(right):
        return 0  # Scaling by a constant, or arithmetic on sizes.
    return _multiply(left, right) * prod(_shape(outputs[0]))


def _matmul(first: int) -> Handler:
    """Matrix products; ``first`` is the position of the left factor."""

    def handle(inputs: Sequence[Any], outputs: Sequence[Any]) -> int:
        left, right = inputs[first : first + 2]
        return _multiply_add(left, right) * prod(_shape(outputs[0])) * _shape(left)[-1]

    return handle


def _vectors(first: int) -> Handler:
    """Products of all numbers of the left factor, each with one of the right; ``first`` is its position."""

    def handle(inputs: Sequence[Any], outputs: Sequence[Any]) -> int:
        left, right = inputs[first : first + 2]
        return _multiply_add(left, right) * prod(_shape(left))

    return handle


def _outer(inputs: Sequence[Any], outputs: Sequence[Any]) -> int:
    return _multiply(*inputs[:2]) * prod(_shape(outputs[0]))


def _batches(inputs: Sequence[Any], outputs: Sequence[Any]) -> int:
    """The sum of a batch of matrix products, and a matrix."""
    return _multiply_add(*inputs[1:3]) * prod(_shape(inputs[1])) * _shape(inputs[2])[-1]


def _tensordot(inputs: Sequence[Any], outputs: Sequence[Any]) -> int:
    dims = _integers(inputs[2]) or []
    contracted = prod(_shape(inputs[0])[dim] for dim in dims)
    return _multiply_add(*inputs[:2]) * prod(_shape(outputs[0])) * contracted


def _bilinear(inputs: Sequence[Any], outputs: Sequence[Any]) -> int:
    """For each output feature a matrix times the left input, and that times the right one."""
    left, right, weight = inputs[:3]
    into, beside = _shape(weight)[1:]
    one = prod(_shape(outputs[0])) * beside
    return one * (_multiply_add(left, weight) * into + _multiply_add(left, right))


@dataclass(frozen=True)
class _Operand:
    """A factor of an einsum: the lengths of its indices, those of length 1 left out."""

    sizes: dict[str, int]
    complex: bool

    def elements(self) -> int:
        return prod(self.sizes.values())


def _einsum(inputs: Sequence[Any], outputs: Sequence[Any]) -> int:
    """One pair of operands after the other, in the order that torch takes them; then the sum over what is left.

    An index is summed as soon as no other operand has it: of one operand alone before the product.
    """
    if not any(map(_shape, inputs[1].node().inputs())):
        return 0  # Arithmetic on numbers.
    operands, result = _operands(inputs)
    path = _integers(inputs[2]) if len(inputs) > 2 else None
    flops = 0
    while len(operands) > 1:
        first, second = sorted((path.pop(0), path.pop(0))) if path else (0, 1)
        pair = [operands.pop(second), operands.pop(first)][::-1]
        needed = set(result).union(*(operand.sizes for operand in operands))
        for at, (own, other) in enumerate(zip(pair, pair[::-1], strict=True)):
            alone = set(own.sizes) - needed - set(other.sizes)
            flops += _summed(own, alone)
            pair[at] = _Operand({key: n for key, n in own.sizes.items() if key not in alone}, own.complex)
        left, right = pair
        together = left.sizes | right.sizes
        contracted = set(left.sizes) & set(right.sizes) - needed
        prices = (2, 4, 8) if contracted else (1, 2, 6)
        flops += prices[left.complex + right.complex] * prod(together.values())
        product = _Operand(
            {key: n for key, n in together.items() if key not in contracted}, left.complex or right.complex
        )
        operands.insert(len(operands) if path is not None else 0, product)
    return flops + _summed(operands[0], set(operands[0].sizes) - set(result))


def _operands(inputs: Sequence[Any]) -> tuple[list[_Operand], set[str]]:
    """The operands of an einsum and the indices of its result; ``1``, ``2`` … are those of an ellipsis."""
    equation, values = inputs[0].toIValue().replace(" ", ""), list(inputs[1].node().inputs())
    factors, arrow, result = equation.partition("->")
    if not arrow:
        named = factors.replace("...", "").replace(",", "")
        result = "..." + "".join(index for index in set(named) if named.count(index) == 1)
    operands, hidden = [], set[str]()
    for term, value in zip(factors.split(","), values, strict=True):
        shape = _shape(value)
        before, dots, after = term.partition("...")
        spread = [str(n) for n in range(len(shape) - len(before + after), 0, -1)] if dots else []
        hidden.update(spread)
        sizes = {key: n for key, n in zip([*before, *spread, *after], shape, strict=True) if n != 1}
        operands.append(_Operand(sizes, _is_complex(value)))
    return operands, set(result.replace("...", "")) | (hidden if "..." in result else set())


def _summed(operand: _Operand, indices: set[str]) -> int:
    return (2 if operand.complex else 1) * operand.elements() if indices else 0


def _convolution(inputs: Sequence[Any], outputs: Sequence[Any]) -> int:
    x, weight = inputs[:2]
    shape = _shape(x) if inputs[6].toIValue() else _shape(outputs[0])
    return _multiply_add(x, weight) * shape[0] * prod(shape[2:]) * prod(_shape(weight))


def _attention(inputs: Sequence[Any], outputs: Sequence[Any]) -> int:
    query, key, value = map(_shape, inputs[:3])
    return 2 * prod(query[:-1]) * key[-2] * (query[-1] + value[-1])


def _dropout(inputs: Sequence[Any], outputs: Sequence[Any]) -> int:
    """In training the product with what is left in."""
    return prod(_shape(inputs[0])) if inputs[2].toIValue() and 0 < inputs[1].toIValue() < 1 else 0


def _rms_norm(inputs: Sequence[Any], outputs: Sequence[Any]) -> int:
    """Made of products: with the root's reciprocal, and with the weight where there is one."""
    return prod(_shape(inputs[0])) * (2 if _shape(inputs[2]) else 1)


def _sum(inputs: Sequence[Any], outputs: Sequence[Any]) -> int:
    entering, leaving = prod(_shape(inputs[0])), prod(_shape(outputs[0]))
    return 0 if entering == leaving else (2 if _is_complex(inputs[0]) else 1) * entering


def _filtered(inputs: Sequence[Any], outputs: Sequence[Any]) -> int:
    """NIFF's convolution in one kernel: a real FFT, a complex product on the half plane, the inverse."""
    *planes, height, width = _shape(outputs[0])
    half = height * (width // 2 + 1)
    return 2 * fft_flops(height * width, prod(planes), real=True) + 6 * prod(planes) * half


def _features(inputs: Sequence[Any], outputs: Sequence[Any]) -> int:
    """The hidden layers of NIFF's two MLPs, at each frequency of a half plane and of its mirror image."""
    weights = list(inputs[1].node().inputs())[::2]
    return 2 * sum(prod(_shape(weight)) for weight in weights) * prod(_shape(inputs[0])[1:])


def _filtered_by_features(inputs: Sequence[Any], outputs: Sequence[Any]) -> int:
    """:func:`_filtered`, and the last layer of both MLPs at each frequency."""
    return _filtered(inputs, outputs) + 2 * prod(_shape(inputs[2])) * _shape(inputs[1])[2]


def _nothing(inputs: Sequence[Any], outputs: Sequence[Any]) -> int:
    return 0


HANDLERS: dict[str, Handler] = dict.fromkeys(STOCK, _nothing) | {
    "aten::_convolution": _convolution,
    "aten::addbmm": _batches,
    "aten::addmm": _matmul(1),
    "aten::addmv": _vectors(1),
    "aten::baddbmm": _matmul(1),
    "aten::bilinear": _bilinear,
    "aten::bmm": _matmul(0),
    "aten::dot": _vectors(0),
    "aten::dropout": _dropout,
    "aten::einsum": _einsum,
    "aten::fft_fft": _transform_line,
    "aten::fft_ifft": _transform_line,
    **{f"aten::fft_{name}": _transform(_price) for name in ("fft2", "fftn", "ifft2", "ifftn")},
    **{f"aten::fft_{name}": _transform(_real) for name in ("irfft", "irfft2", "irfftn")},
    **{f"aten::fft_{name}": _transform(_real, halves=True) for name in ("rfft", "rfft2", "rfftn")},
    **{f"aten::fft_{name}": _transform(_hermitian) for name in ("hfft", "hfft2", "hfftn")},
    **{f"aten::fft_{name}": _transform(_hermitian, halves=True) for name in ("ihfft", "ihfft2", "ihfftn")},
    "aten::feature_dropout": _dropout,
    "aten::ger": _outer,
    "aten::inner": _matmul(0),
    "aten::linear": _matmul(0),
    "aten::kron": _outer,
    "aten::linalg_matmul": _matmul(0),
    "aten::matmul": _matmul(0),
    "aten::mm": _matmul(0),
    "aten::mul": _mul,
    "aten::mul_": _mul,
    "aten::multiply": _mul,
    "aten::mv": _vectors(0),
    "aten::outer": _outer,
    "aten::rms_norm": _rms_norm,
    "aten::scaled_dot_product_attention": _attention,
    "aten::sum": _sum,
    "aten::tensordot": _tensordot,
    "aten::vdot": _vectors(0),
    "niffbench::circular_convolution": _filtered,
    "niffbench::filter_features": _features,
    "niffbench::generated_convolution": _filtered_by_features,
}
"""Traced operation → real FLOPs in the units of :mod:`niffbench.cost.closed`; 0 for what only fvcore prices."""


def _registered() -> dict[str, Handler]:
    """Handlers of the operations for which somebody registered a formula with torch's counter."""
    packets = [packet for packet in flop_registry if isinstance(packet, OpOverloadPacket)]
    names = {packet: packet._qualified_op_name for packet in packets}
    return {
        name: partial(_by_formula, flop_registry[packet])
        for packet, name in names.items()
        if not name.startswith("aten::")
    }


def _by_formula(formula: Callable[..., int], inputs: Sequence[Any], outputs: Sequence[Any]) -> int:
    results = [_untraced(value) for value in outputs]
    return int(formula(*map(_untraced, inputs), out_val=results[0] if len(results) == 1 else tuple(results)))


def _untraced(value: Any) -> Any:
    """A traced tensor as one without storage, a list of them likewise, and a constant as it is."""
    if value.node().kind() == "prim::ListConstruct":
        return [_untraced(item) for item in value.node().inputs()]
    if not value.isCompleteTensor():
        return value.toIValue()
    return torch.empty(_shape(value), dtype=value.type().dtype(), device="meta")
