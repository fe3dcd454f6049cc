"""FLOP formulas for what stock counters miss or miscount, in the units of :mod:`niffbench.cost.closed`.

For ``torch.utils.flop_counter.FlopCounterMode(custom_mapping=FORMULAS)``. That counter knows no FFT and no complex
arithmetic, and over-counts the weight gradient of a grouped convolution (torch 2.11 to 2.15). Every formula takes
the operation's own arguments and ``out_val``, its result.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import prod
from typing import Any

import torch
from torch import Tensor

from niffbench.cost.closed import fft_flops

aten = torch.ops.aten
Formula = Callable[..., int]


def multiply_add(*factors: Tensor) -> int:
    """FLOPs of one multiply-add: 8 when both factors are complex, 4 when one is, else 2."""
    return (2, 4, 8)[sum(factor.is_complex() for factor in factors)]


def multiply(left: Tensor, right: Tensor) -> int:
    """FLOPs of one multiplication: 6 when both factors are complex, 2 when one is, else 1."""
    return (1, 2, 6)[left.is_complex() + right.is_complex()]


def _transforms(x: Tensor, dims: Sequence[int], *, real: bool) -> int:
    points = prod(x.shape[dim] for dim in dims)
    return fft_flops(points, x.numel() // points, real=real)


def _c2c(x: Tensor, dims: Sequence[int], *_: Any, **__: Any) -> int:
    return _transforms(x, dims, real=False)


def _r2c(x: Tensor, dims: Sequence[int], *_: Any, **__: Any) -> int:
    return _transforms(x, dims, real=True)


def _c2r(_x: Tensor, dims: Sequence[int], *_: Any, out_val: Tensor, **__: Any) -> int:
    return _transforms(out_val, dims, real=True)


def _mul(left: Tensor, right: object, *_: Any, out_val: Tensor, **__: Any) -> int:
    if not isinstance(right, Tensor) or not left.dim() or not right.dim():
        return 0  # Scaling by a constant.
    return multiply(left, right) * int(out_val.numel())


def _mm(left: Tensor, right: Tensor, *_: Any, **__: Any) -> int:
    return multiply_add(left, right) * left.numel() * int(right.shape[-1])


def _addmm(_bias: Tensor, left: Tensor, right: Tensor, *_: Any, **__: Any) -> int:
    return _mm(left, right)


def _convolution(x: Tensor, weight: Tensor, *rest: Any, out_val: Tensor, **_: Any) -> int:
    transposed = bool(rest[4])
    images = x if transposed else out_val
    return multiply_add(x, weight) * images.shape[0] * prod(images.shape[2:]) * weight.numel()


def _convolution_backward(grad: Tensor, x: Tensor, weight: Tensor, *rest: Any, **_: Any) -> int:
    """Each of the gradients of input and weight costs what the forward pass cost, whatever the groups."""
    transposed, mask = bool(rest[4]), rest[7]
    images = x if transposed else grad
    one = multiply_add(x, weight) * images.shape[0] * prod(images.shape[2:]) * weight.numel()
    return one * int(sum(mask[:2]))


def _sum(x: Tensor, *_: Any, out_val: Tensor, **__: Any) -> int:
    if x.numel() == out_val.numel():
        return 0
    return (2 if x.is_complex() else 1) * x.numel()


def _attention(query: Tensor, key: Tensor, value: Tensor, *_: Any, **__: Any) -> int:
    """Scores and weighted sum: two matrix products."""
    heads, tokens = prod(query.shape[:-2]), query.shape[-2]
    return 2 * heads * tokens * key.shape[-2] * (query.shape[-1] + value.shape[-1])


def _attention_backward(_grad: Tensor, query: Tensor, key: Tensor, value: Tensor, *_: Any, **__: Any) -> int:
    """Fused kernels compute the scores again, then four products: gradients of weights, value, query, key."""
    heads, tokens = prod(query.shape[:-2]), query.shape[-2]
    return 2 * heads * tokens * key.shape[-2] * (3 * query.shape[-1] + 2 * value.shape[-1])


def _nothing(*_: Any, **__: Any) -> int:
    return 0


def _raw(formula: Formula) -> Formula:
    """Mark a formula as taking tensors instead of shapes, as FlopCounterMode wants it."""
    formula._get_raw = True  # type: ignore[attr-defined]
    return formula


_PRICED: dict[Formula, tuple[Any, ...]] = {
    _c2c: (aten._fft_c2c,),
    _r2c: (aten._fft_r2c,),
    _c2r: (aten._fft_c2r,),
    _mul: (aten.mul, aten.mul_),
    _mm: (aten.mm, aten.bmm),
    _addmm: (aten.addmm, aten.addmm_, aten.baddbmm),
    _convolution: (aten.convolution, aten._convolution),
    _convolution_backward: (aten.convolution_backward,),
    _sum: (aten.sum,),
    _attention: (
        aten._scaled_dot_product_flash_attention,
        aten._scaled_dot_product_flash_attention_for_cpu,
        aten._scaled_dot_product_efficient_attention,
        aten._scaled_dot_product_cudnn_attention,
    ),
    _attention_backward: (
        aten._scaled_dot_product_flash_attention_backward,
        aten._scaled_dot_product_flash_attention_for_cpu_backward,
        aten._scaled_dot_product_efficient_attention_backward,
        aten._scaled_dot_product_cudnn_attention_backward,
    ),
}

_FREE = """
_adaptive_avg_pool2d _adaptive_avg_pool2d_backward _conj _conj_physical _local_scalar_dense _log_softmax
_log_softmax_backward_data _native_batch_norm_legit _native_batch_norm_legit_functional
_native_batch_norm_legit_no_training _softmax _softmax_backward_data _to_copy _unsafe_view add add_ arange
as_strided_ avg_pool2d avg_pool2d_backward bernoulli_ cat clamp clamp_ clone complex conj_physical
constant_pad_nd copy copy_ detach div div_ empty empty_like empty_strided eq fill fill_ flip full full_like
gelu gelu_backward gt hardtanh hardtanh_ hardtanh_backward index_select le lift_fresh max_pool2d_with_indices
max_pool2d_with_indices_backward mean native_batch_norm native_batch_norm_backward native_dropout
native_dropout_backward native_layer_norm native_layer_norm_backward ne neg new_empty new_empty_strided
new_full new_ones new_zeros normal_ ones ones_like pow rand randn relu relu_ resolve_conj resolve_neg roll
rsqrt scalar_tensor select_backward silu silu_ silu_backward slice_backward stack sub sub_ threshold_backward
uniform_ where zero_ zeros zeros_like
addcdiv_ addcmul_ lerp_ sqrt
"""


def _mapping() -> dict[Any, Formula]:
    """By operation and by each of its overloads, which is what torch 2.11 looks for before it takes one apart."""
    formulas = {operation: _nothing for name in _FREE.split() if (operation := getattr(aten, name, None))}
    formulas |= {operation: formula for formula, operations in _PRICED.items() for operation in operations}
    overloads = {
        getattr(operation, overload): formula
        for operation, formula in formulas.items()
        for overload in operation.overloads()
    }
    return {operation: _raw(formula) for operation, formula in (formulas | overloads).items()}


FORMULAS: dict[Any, Formula] = _mapping()
"""Operation → formula, for ``custom_mapping``.

Operations that are known to be free are in it too: what it does not know, FlopCounterMode takes apart first, and
would price the products inside a fused activation's gradient.
"""
