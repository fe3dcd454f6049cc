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
from torch._ops import OpOverload
from torch.utils.flop_counter import flop_registry

from niffbench.lengths import fft_flops
from niffbench.niff.native import generated, triton_engine

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


def _mv(left: Tensor, right: Tensor, *_: Any, **__: Any) -> int:
    return multiply_add(left, right) * left.numel()


def _addmv(_bias: Tensor, left: Tensor, right: Tensor, *_: Any, **__: Any) -> int:
    return _mv(left, right)


def _trilinear(
    first: Tensor,
    second: Tensor,
    third: Tensor,
    *expanded_and_summed: Sequence[int],
    unroll_dim: int = 1,
    **_: Any,
) -> int:
    """``einsum`` of three factors with axes of length 1 put in, one slice of axis ``unroll_dim`` at a time.

    The first two factors are multiplied, and summed over what the third has not; then that with the third.
    """
    *expanded, summed = (tuple(dims) for dims in expanded_and_summed[:4])
    if len(expanded_and_summed) > 4:
        unroll_dim = int(expanded_and_summed[4])  # type: ignore[call-overload]
    shapes = []
    for factor, dims in zip((first, second, third), expanded, strict=True):
        lengths = list(factor.shape)
        for dim in dims:
            lengths.insert(dim, 1)
        shapes.append(lengths)
    unrolled = max(shape[unroll_dim] for shape in shapes)
    one, two, three = (_without(shape, unroll_dim) for shape in shapes)
    early = {dim for dim in summed if dim != unroll_dim and dim in expanded[2]}
    late = {dim for dim in summed if dim != unroll_dim} - early
    at = [dim for dim in range(len(shapes[0])) if dim != unroll_dim]
    product = [max(pair) for pair in zip(one, two, strict=True)]
    flops = (multiply_add if early else multiply)(first, second) * prod(product)
    lengths = [1 if dim in early else length for dim, length in zip(at, product, strict=True)]
    whole = [max(pair) for pair in zip(lengths, three, strict=True)]
    flops += (multiply_add if late else multiply)(first, third) * prod(whole)
    return unrolled * flops


def _without(lengths: Sequence[int], dim: int) -> list[int]:
    return [length for at, length in enumerate(lengths) if at != dim]


def _convolution(x: Tensor, weight: Tensor, *rest: Any, out_val: Tensor, **_: Any) -> int:
    transposed = bool(rest[4])
    images = x if transposed else out_val
    return multiply_add(x, weight) * images.shape[0] * prod(images.shape[2:]) * weight.numel()


def _convolution_backward(grad: Tensor, x: Tensor, weight: Tensor, *rest: Any, **_: Any) -> int:
    """Each of the gradients of input and weight costs what the forward pass cost, whatever the groups; the bias's
    is a sum over batch and space."""
    transposed, (*products, has_bias) = bool(rest[4]), rest[7]
    images = x if transposed else grad
    one = multiply_add(x, weight) * images.shape[0] * prod(images.shape[2:]) * weight.numel()
    return one * sum(map(bool, products)) + (_summed(grad, int(grad.shape[1])) if has_bias else 0)


def _sum(x: Tensor, *_: Any, out_val: Tensor, **__: Any) -> int:
    return _summed(x, out_val.numel())


def _summed(x: Tensor, sums: int) -> int:
    """FLOPs of so many sums of all of ``x``: an addition for each number, none where nothing is summed."""
    return 0 if x.numel() == sums else (2 if x.is_complex() else 1) * x.numel()


def _attention(query: Tensor, key: Tensor, value: Tensor, *_: Any, **__: Any) -> int:
    """Scores and weighted sum: two matrix products."""
    heads, tokens = prod(query.shape[:-2]), query.shape[-2]
    return 2 * heads * tokens * key.shape[-2] * (query.shape[-1] + value.shape[-1])


def _attention_backward(_grad: Tensor, query: Tensor, key: Tensor, value: Tensor, *_: Any, **__: Any) -> int:
    """Fused kernels compute the scores again, then four products: gradients of weights, value, query, key."""
    heads, tokens = prod(query.shape[:-2]), query.shape[-2]
    return 2 * heads * tokens * key.shape[-2] * (3 * query.shape[-1] + 2 * value.shape[-1])


def _fused_rms_norm(x: Tensor, _shape: Any, weight: Tensor | None, *_: Any, **__: Any) -> int:
    """The products that it is made of where it is not fused: with the root's reciprocal, and with the weight."""
    return x.numel() * (1 if weight is None else 2)


def _native_dropout(x: Tensor, _p: float, train: bool | None, *_: Any, **__: Any) -> int:
    return x.numel() if train else 0


def _native_dropout_backward(grad: Tensor, *_: Any, **__: Any) -> int:
    return grad.numel()


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
    _addmm: (aten.addmm, aten.addmm_, aten.addbmm, aten.addbmm_, aten.baddbmm, aten.baddbmm_),
    _mv: (aten.mv, aten.dot, aten.vdot),
    _addmv: (aten.addmv, aten.addmv_),
    _trilinear: (aten._trilinear,),
    _convolution: (aten.convolution, aten._convolution),
    _convolution_backward: (aten.convolution_backward,),
    _sum: (aten.sum,),
    _native_dropout: (aten.native_dropout,),
    _native_dropout_backward: (aten.native_dropout_backward,),
    _fused_rms_norm: (aten._fused_rms_norm,),
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

_FREE_NAMES = """
_adaptive_avg_pool2d _adaptive_avg_pool3d _conj_physical _fused_rms_norm_backward _local_scalar_dense
_log_softmax _log_softmax_backward_data _native_batch_norm_legit _native_batch_norm_legit_functional
_native_batch_norm_legit_no_training _prelu_kernel _softmax _softmax_backward_data _to_copy _unsafe_view
_weight_norm_interface adaptive_max_pool2d all amax amin any arange argmax argmin as_strided avg_pool2d
avg_pool3d bernoulli bucketize cat celu channel_shuffle clone col2im complex constant_pad_nd copy cummax elu
embedding embedding_dense empty empty_like empty_strided exponential fill flip floor_divide full full_like gather
gelu glu hardsigmoid hardswish hardtanh im2col index index_add index_put index_select leaky_relu lift_fresh
linalg_vector_norm log_sigmoid log_sigmoid_forward masked_fill masked_select max max_pool2d_with_indices
max_pool3d_with_indices mean min mish multinomial native_batch_norm native_group_norm native_layer_norm new_empty
new_empty_strided new_full new_ones new_zeros nonzero norm normal one_hot ones ones_like pixel_shuffle
pixel_unshuffle polar rand randint randn randperm reflection_pad1d reflection_pad2d reflection_pad3d relu repeat
replication_pad1d replication_pad2d replication_pad3d resolve_conj resolve_neg roll rrelu_with_noise
scalar_tensor scatter scatter_add select select_scatter sigmoid silu slice slice_scatter softplus sort
split_with_sizes stack std std_mean tanh threshold topk tril triu unfold uniform upsample_bicubic2d
upsample_bilinear2d upsample_linear1d upsample_nearest1d upsample_nearest2d upsample_nearest3d
upsample_trilinear3d var var_mean view_as_complex view_as_real where zero zeros zeros_like
"""
_FREE = frozenset(_FREE_NAMES.split())
_VARIANTS = ("", "_", "_backward", "_copy")


def is_free(operation: OpOverload) -> bool:
    """Whether an operation costs nothing in these units, whatever its arguments; asked of one that is not priced.

    What torch tags as pointwise is, and those that are known to be; their gradients and in-place forms likewise.
    """
    if operation.is_view or not {torch.Tag.pointwise, torch.Tag.inplace_view}.isdisjoint(operation.tags):
        return True
    name = operation.overloadpacket.__name__
    return operation.namespace == "aten" and any(name.removesuffix(ending) in _FREE for ending in _VARIANTS)


KERNELS = (*generated.OPERATIONS, *triton_engine.OPERATIONS)
"""Our own operations of torch."""


def _mapping() -> dict[Any, Formula]:
    """By operation and by each of its overloads, which is what torch 2.11 looks for before it takes one apart."""
    names = (name + ending for name in _FREE for ending in _VARIANTS)
    formulas = {operation: _nothing for name in names if (operation := getattr(aten, name, None))}
    formulas |= {operation: formula for formula, operations in _PRICED.items() for operation in operations}
    formulas |= {operation: flop_registry[operation] for operation in KERNELS}
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
