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
from math import prod
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from niffbench.cost.closed import fft_flops

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # fvcore's import calls torch.jit.script, which torch deprecates.
    from fvcore.nn import FlopCountAnalysis
    from fvcore.nn.flop_count import _DEFAULT_SUPPORTED_OPS as STOCK

Handler = Callable[[Sequence[Any], Sequence[Any]], int]


@dataclass(frozen=True)
class Traced:
    """What one forward pass costs: by our handlers, by fvcore's own, and what only ours see. Real FLOPs."""

    flops: int
    stock: int
    missed: tuple[str, ...]


def trace(module: nn.Module, x: Tensor) -> Traced:
    """Trace ``module(x)`` and count it; ``module`` and ``x`` may be fake, grad mode is the caller's.

    Raises:
        RuntimeError: where ``torch.jit`` cannot trace the module.
    """
    stock: Counter[str] = Counter()
    ours: Counter[str] = Counter()

    def both(name: str) -> Handler:
        def handle(inputs: Sequence[Any], outputs: Sequence[Any]) -> int:
            if name in STOCK:
                counted = STOCK[name](inputs, outputs)
                stock[name] += int(2 * (sum(counted.values()) if isinstance(counted, Counter) else counted))
            flops = HANDLERS[name](inputs, outputs)
            ours[name] += flops
            return flops

        return handle

    analysis = FlopCountAnalysis(module, x).unsupported_ops_warnings(False).uncalled_modules_warnings(False)
    analysis.tracer_warnings("none").set_op_handle(**{name: both(name) for name in HANDLERS})
    log = logging.getLogger("fvcore.nn.jit_analysis")
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        with _PlainSizes(), _Convolutions(), _Untraced():  # type: ignore[no-untyped-call]
            total = analysis.total()
    finally:
        log.setLevel(level)
    missed = tuple(sorted(name for name, flops in ours.items() if flops and not stock[name]))
    return Traced(total, sum(stock.values()), missed)


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
    """Calls ``torch._convolution`` for a convolution: all that tracing records of one, below a dispatch mode."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        return (_convolve if func is torch.conv2d else func)(*args, **(kwargs or {}))


def _convolve(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: int | tuple[int, ...] = 1,
    padding: int | tuple[int, ...] = 0,
    dilation: int | tuple[int, ...] = 1,
    groups: int = 1,
) -> Tensor:
    steps, margins, gaps = (
        value if isinstance(value, tuple) else (value, value) for value in (stride, padding, dilation)
    )
    return torch._convolution(
        x, weight, bias, steps, margins, gaps, False, (0, 0), groups, False, False, False, False
    )


def _shape(value: Any) -> list[int]:
    """Sizes of a traced tensor; empty for a number."""
    return value.type().sizes() if value.isCompleteTensor() else []


def _is_complex(value: Any) -> bool:
    dtype = value.type().dtype() if value.isCompleteTensor() else None
    return dtype is not None and dtype.is_complex


def _integers(value: Any) -> list[int] | None:
    """A traced list of integers, or None where it is absent or not constant."""
    if value.node().kind() == "prim::ListConstruct":
        found = [item.toIValue() for item in value.node().inputs()]
    else:
        found = value.toIValue()
    return None if found is None or None in found else [int(number) for number in found]


def _multiply_add(*factors: Any) -> int:
    return (2, 4, 8)[sum(map(_is_complex, factors))]


def _multiply(*factors: Any) -> int:
    return (1, 2, 6)[sum(map(_is_complex, factors))]


def _transform(real: bool, inverse: bool) -> Handler:
    def handle(inputs: Sequence[Any], outputs: Sequence[Any]) -> int:
        shape = _shape(outputs[0] if inverse or not real else inputs[0])
        dims = _integers(inputs[2])
        points = prod(shape[dim] for dim in (dims if dims is not None else range(len(shape))))
        return fft_flops(points, prod(shape) // points, real=real)

    return handle


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


def _einsum(inputs: Sequence[Any], outputs: Sequence[Any]) -> int:
    """Every combination of indices once, for two operands; products alone where there is nothing to contract."""
    factors, result = inputs[0].toIValue().replace(" ", "").split("->")
    operands = list(inputs[1].node().inputs())
    sizes = {
        index: size
        for names, operand in zip(factors.split(","), operands, strict=True)
        for index, size in zip(names, _shape(operand), strict=True)
    }
    contracted = prod(size for index, size in sizes.items() if index not in result)
    price = _multiply_add if contracted > 1 else _multiply
    return price(*operands) * prod(sizes.values())


def _convolution(inputs: Sequence[Any], outputs: Sequence[Any]) -> int:
    x, weight = inputs[:2]
    shape = _shape(x) if inputs[6].toIValue() else _shape(outputs[0])
    return _multiply_add(x, weight) * shape[0] * prod(shape[2:]) * prod(_shape(weight))


def _attention(inputs: Sequence[Any], outputs: Sequence[Any]) -> int:
    query, key, value = map(_shape, inputs[:3])
    return 2 * prod(query[:-1]) * key[-2] * (query[-1] + value[-1])


def _sum(inputs: Sequence[Any], outputs: Sequence[Any]) -> int:
    entering, leaving = prod(_shape(inputs[0])), prod(_shape(outputs[0]))
    return 0 if entering == leaving else (2 if _is_complex(inputs[0]) else 1) * entering


def _filtered(inputs: Sequence[Any], outputs: Sequence[Any]) -> int:
    """NIFF's convolution in one kernel: a real FFT, a complex product on the half plane, the inverse."""
    *planes, height, width = _shape(outputs[0])
    half = height * (width // 2 + 1)
    return 2 * fft_flops(height * width, prod(planes), real=True) + 6 * prod(planes) * half


def _nothing(inputs: Sequence[Any], outputs: Sequence[Any]) -> int:
    return 0


HANDLERS: dict[str, Handler] = dict.fromkeys(STOCK, _nothing) | {
    "aten::_convolution": _convolution,
    "aten::addmm": _matmul(1),
    "aten::baddbmm": _matmul(1),
    "aten::bmm": _matmul(0),
    "aten::einsum": _einsum,
    "aten::fft_fft2": _transform(real=False, inverse=False),
    "aten::fft_fftn": _transform(real=False, inverse=False),
    "aten::fft_ifft2": _transform(real=False, inverse=True),
    "aten::fft_ifftn": _transform(real=False, inverse=True),
    "aten::fft_irfft2": _transform(real=True, inverse=True),
    "aten::fft_irfftn": _transform(real=True, inverse=True),
    "aten::fft_rfft2": _transform(real=True, inverse=False),
    "aten::fft_rfftn": _transform(real=True, inverse=False),
    "aten::linear": _matmul(0),
    "aten::matmul": _matmul(0),
    "aten::mm": _matmul(0),
    "aten::mul": _mul,
    "aten::mul_": _mul,
    "aten::scaled_dot_product_attention": _attention,
    "aten::sum": _sum,
    "niffbench::circular_convolution": _filtered,
}
"""Traced operation → real FLOPs in the units of :mod:`niffbench.cost.closed`; 0 for what only fvcore prices."""
