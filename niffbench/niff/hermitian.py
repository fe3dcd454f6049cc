"""The Hermitian half plane of a generated filter, from coordinates to complex numbers.

A real output sees of a filter W only ``Wh(k) = (W(k) + conj W(-k mod N)) / 2``. The last layer of the filter's
MLPs is linear, so the average may be taken on what enters it: of the real MLP its even part, of the imaginary one
its odd part, whose bias cancels. One matrix product then makes real and imaginary parts side by side, as a complex
tensor stores them: ``rows`` (planes × features) times ``basis`` (features × frequencies × 2), in which the K even
features stand in the real column, the K odd ones in the imaginary column, and a constant carries the real bias.

Two ways to the same numbers: :func:`generate_plainly`, by ordinary differentiable operations, and
:func:`generate`, which writes forward and backward by hand because the time of a small filter is the number of its
operations. The latter falls back on the former for whatever looks inside: ``torch.compile``, ``torch.func``, a
second derivative. And :func:`factors`, which leaves that last product to be made, or avoided, by others.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from niffbench.niff.autograd import compiling, wants_gradient, wants_operations, watched, without_autocast

Layers = tuple[Tensor, ...]
"""Weights and biases of both MLPs in turn: ``(2, out, in)``, ``(2, out)``, …; index 0 is the real MLP."""


def generate(grid: Tensor, layers: Layers, scale: float) -> Tensor:
    """The scaled half plane of every filter plane; complex ``(planes, frequencies)``.

    Args:
        grid: coordinates of the half plane and of its mirror image, ``(2, 2, frequencies)``: see
            :func:`niffbench.niff.grid.mirrored_half_plane`.
        layers: the MLPs.
        scale: a factor on the result.
    """
    if compiling() or watched():
        return generate_plainly(grid, layers, scale)
    if wants_gradient(*layers):
        result: Tensor = _Generation.apply(grid, scale, *layers)
        return result
    rows, basis, _ = _forward(grid, layers, scale, keep=False)
    return torch.view_as_complex((rows @ basis.flatten(1)).view(rows.shape[0], -1, 2))


def generate_plainly(grid: Tensor, layers: Layers, scale: float) -> Tensor:
    """As :func:`generate`."""
    hidden = _hidden(grid, layers)
    here, there = hidden.view(2, hidden.shape[1], 2, -1).unbind(2)
    even = (here[0] + there[0]) * (scale / 2)
    odd = (here[1] - there[1]) * (scale / 2)
    zero = torch.zeros_like(even)
    constant = torch.stack((torch.full_like(even[:1], scale), zero[:1]), dim=-1)
    basis = torch.cat((torch.stack((even, zero), -1), torch.stack((zero, odd), -1), constant))
    weight, bias = layers[-2:]
    rows = torch.cat((weight[0], weight[1], bias[0, :, None]), dim=1)
    return torch.view_as_complex((rows @ basis.flatten(1)).view(rows.shape[0], -1, 2))


def factors(grid: Tensor, layers: Layers, scale: float) -> tuple[Tensor, Tensor, Tensor]:
    """What the half planes are made of: the basis's features, the last layer's weights and its real bias.

    Args:
        grid: as for :func:`generate`.
        layers: as for :func:`generate`.
        scale: a factor on what comes out of the last layer.

    Returns:
        The even features and the odd ones, real ``(2, K, frequencies)``; the weights ``(2, planes, K)``, which are
        not scaled; the bias ``(planes,)``.
    """
    hidden = _hidden(grid, layers)
    (real, imaginary), (mirrored_real, mirrored_imaginary) = (
        part.unbind() for part in hidden.view(2, hidden.shape[1], 2, -1).unbind(2)
    )
    features = torch.stack((real + mirrored_real, imaginary - mirrored_imaginary)) * (scale / 2)
    weight, bias = layers[-2:]
    return features, weight, bias[0] * scale


def _hidden(grid: Tensor, layers: Layers) -> Tensor:
    """The last hidden layer of both MLPs, by ordinary operations."""
    hidden = grid.flatten(1).expand(2, -1, -1)
    for weight, bias in zip(layers[:-2:2], layers[1:-2:2], strict=True):
        hidden = F.silu(torch.baddbmm(bias[:, :, None], weight, hidden))
    return hidden


def _forward(grid: Tensor, layers: Layers, scale: float, keep: bool) -> tuple[Tensor, Tensor, list[Tensor]]:
    """Rows, basis and, to ``keep`` for backward, what entered each SiLU and what left it.

    The averages' factor of a half and the scale are in the rows, which are few, and so twice the bias's constant.
    """
    hidden = grid.flatten(1).expand(2, -1, -1)
    saved = []
    for weight, bias in zip(layers[:-2:2], layers[1:-2:2], strict=True):
        before = torch.baddbmm(bias[:, :, None], weight, hidden)
        hidden = F.silu(before, inplace=not keep)
        saved += [before, hidden]
    features = hidden.shape[1]
    hidden = hidden.view(2, features, 2, -1)
    basis = torch.zeros(2 * features + 1, hidden.shape[3], 2, dtype=grid.dtype, device=grid.device)
    torch.add(hidden[0, :, 0], hidden[0, :, 1], out=basis[:features, :, 0])
    torch.sub(hidden[1, :, 0], hidden[1, :, 1], out=basis[features:-1, :, 1])
    basis[-1, :, 0] = 2
    weight, bias = layers[-2:]
    rows = torch.cat((weight[0], weight[1], bias[0, :, None]), dim=1) * (scale / 2)
    return rows, basis, saved


class _Generation(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, grid: Tensor, scale: float, *layers: Tensor) -> Tensor:
        rows, basis, saved = _forward(grid, layers, scale, keep=True)
        ctx.scale = scale
        ctx.save_for_backward(grid, rows, basis, *saved, *layers)
        return torch.view_as_complex((rows @ basis.flatten(1)).view(rows.shape[0], -1, 2))

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        with without_autocast(gradient):
            return _gradients(ctx, gradient)


def _gradients(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
    grid, rows, basis, *rest = ctx.saved_tensors
    count = (len(rest) - 2) // 2  # Each hidden layer kept two tensors and has two parameters.
    saved, layers = rest[:count], tuple(rest[count:])
    if wants_operations(gradient):  # Leave all to autograd.
        twice, needs = torch.is_grad_enabled(), ctx.needs_input_grad[2:]
        wanted = [layer for layer, need in zip(layers, needs, strict=True) if need]
        with torch.enable_grad():
            again = generate_plainly(grid, layers, ctx.scale)
            some = iter(torch.autograd.grad(again, wanted, gradient, create_graph=twice))
        return None, None, *(next(some) if need else None for need in needs)
    outer = torch.view_as_real(gradient.resolve_conj()).flatten(1)
    features = (basis.shape[0] - 1) // 2
    for_rows = (outer @ basis.flatten(1).T) * (ctx.scale / 2)
    for_basis = (rows.T[:-1] @ outer).view(2 * features, -1, 2)
    even, odd = for_basis[:features, :, 0], for_basis[features:, :, 1]
    upstream = torch.stack((even, even, odd, -odd)).view(2, 2, features, -1).transpose(1, 2).flatten(2)
    real_bias = for_rows[:, -1]
    gradients = [
        torch.stack((real_bias, torch.zeros_like(real_bias))),
        torch.stack((for_rows[:, :features], for_rows[:, features:-1])),
    ]
    entering = [grid.flatten(1).expand(2, -1, -1), *saved[1::2]]
    for index in range(len(saved) // 2 - 1, -1, -1):
        before = torch.ops.aten.silu_backward(upstream, saved[2 * index])
        gradients += [before.sum(-1), before @ entering[index].transpose(1, 2)]
        if index:
            upstream = layers[2 * index].transpose(1, 2) @ before
    return None, None, *reversed(gradients)
