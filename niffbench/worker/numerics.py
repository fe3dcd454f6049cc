"""Numerics come before time: what an operator's first call gives against a plain float64 reference.

That is the output, and in training the gradients of the input and of every weight. Of a batch the first and the
last image are compared; in the first call the gradient of the output is zero on the others, so that the gradients
of the weights are sums over the compared images alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import inf

import torch
from torch import Tensor

from niffbench.results import GradientError, Numerics

CHECKED = 2
"""Images of a batch that are compared, first and last: operators treat images alike, references are slow."""


INPUT = "input"
"""The name of the input's gradient; parameters have their own."""


def images(x: Tensor) -> Tensor:
    """The images of a batch that are compared."""
    return x if x.shape[0] <= CHECKED else x[[0, -1]]


def masked(gradient: Tensor) -> Tensor:
    """The gradient of an output, zero on the images that are not compared."""
    result = torch.zeros_like(gradient)
    for compared in (0, -1):
        result[compared] = gradient[compared]
    return result


def compare(output: Tensor, reference: Tensor, tolerance: float) -> Numerics:
    """Relative L2 error, and the largest error relative to the reference's largest value.

    ``output``: the whole batch; ``reference``: float64, of the whole batch or of :func:`images`. An output that is
    not finite or has another shape is infinitely wrong. A reference of zeros makes errors absolute.
    """
    l2, largest = _errors(output, reference)
    return Numerics(l2=l2, max=largest, tolerance=tolerance)


def compare_gradients(
    gradients: Mapping[str, Tensor | None],
    reference: Mapping[str, Tensor],
    tolerance: float,
    *,
    switches: bool = False,
) -> GradientError:
    """The worst of the gradients: of the input, and of every parameter in ``reference``.

    Errors are relative as in :func:`compare`, but a parameter's to no less than the root mean square of all
    parameters' gradients: some are 0 but for rounding, as those of a shift that a normalisation takes away again.
    A gradient that is missing is infinitely wrong, unless it is 0. ``switches``: of
    :func:`~niffbench.worker.tolerance.tolerance_of_gradients`; then only relative L2 errors count.
    """
    parameters = [truth.flatten() for name, truth in reference.items() if name != INPUT]
    typical = float(torch.cat(parameters).square().mean().sqrt()) if parameters else 0.0
    errors = {
        name: _errors(gradients.get(name), truth, 0.0 if name == INPUT else typical)
        for name, truth in reference.items()
    }
    worst = max(errors, key=lambda name: errors[name][0] if switches else max(errors[name]))
    l2, largest = errors[worst]
    return GradientError(name=worst, l2=l2, max=None if switches else largest, tolerance=tolerance)


def _errors(result: Tensor | None, reference: Tensor, least: float = 0.0) -> tuple[float, float]:
    """Relative L2 and largest error; values of the reference count as at least ``least`` each."""
    if result is None:
        return (inf, inf) if bool(reference.any()) else (0.0, 0.0)
    whole = result.detach()
    compared = whole if whole.shape == reference.shape else images(whole)
    compared = compared.to(device=reference.device, dtype=torch.float64)
    if compared.shape != reference.shape:
        return inf, inf
    difference = compared - reference
    norm, highest = float(reference.norm()), float(reference.abs().max())
    l2 = difference.norm() / (max(norm, least * reference.numel() ** 0.5) or 1.0)
    largest = difference.abs().max() / (max(highest, least) or 1.0)
    bound: list[float] = torch.stack([l2, largest]).nan_to_num(nan=inf, posinf=inf).tolist()
    return bound[0], bound[1]
