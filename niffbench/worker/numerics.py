"""Numerics come before time: what an operator's first call gives against a plain float64 reference.

That is the output, and in training the gradients of the input and of every weight. References are slow, so a
batch is made of copies of two images, in an order that no operator knows: every image of it is compared, with a
reference of two. Images that an operator mixes are all different, and so is the reference's batch.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import inf

import torch
from torch import Tensor

from niffbench.results import GradientError, Numerics

CHECKED = 2
"""Different images in a batch that is compared: its first and its last."""


INPUT = "input"
"""The name of the input's gradient; parameters have their own."""


def images(x: Tensor) -> Tensor:
    """The different images of a batch that is compared."""
    return x if x.shape[0] <= CHECKED else x[[0, -1]]


def pattern(batch: int) -> list[int]:
    """Which of the different images each image of a batch is; all but the first and the last are drawn."""
    if batch <= CHECKED:
        return list(range(batch))
    drawn = torch.randint(CHECKED, (batch - 2,), generator=torch.Generator().manual_seed(batch)).tolist()
    return [0, *drawn, 1]


def copies(x: Tensor) -> Tensor:
    """The batch that is compared: of the first and the last image of ``x``."""
    return images(x)[pattern(x.shape[0])]


def counts(batch: int) -> Tensor:
    """How often each of the different images is in the batch, in the shape of images."""
    return torch.bincount(torch.tensor(pattern(batch))).double()[:, None, None, None]


def compare(output: Tensor, reference: Tensor, tolerance: float) -> Numerics:
    """Relative L2 error, and the largest error relative to the reference's largest value.

    Args:
        output: the whole batch.
        reference: float64, of the whole batch or of its different :func:`images`. An output that is not finite
            or has another shape is infinitely wrong. A reference of zeros makes errors absolute.
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
    A gradient that is missing is infinitely wrong, unless it is 0.

    Args:
        switches: of :func:`~niffbench.worker.tolerance.tolerance_of_gradients`; then only relative L2 errors
            count.
    """
    parameters = [_parts(truth).flatten() for name, truth in reference.items() if name != INPUT]
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
    compared = result.detach().to(device=reference.device)
    if compared.shape[:1] != reference.shape[:1] and len(reference) == CHECKED < len(compared):
        reference = reference[pattern(len(compared))]
    if compared.shape != reference.shape or compared.is_complex() != reference.is_complex():
        return inf, inf
    compared, reference = _parts(compared), _parts(reference)
    difference = compared - reference
    norm, highest = float(reference.norm()), float(reference.abs().max())
    l2 = difference.norm() / (max(norm, least * reference.numel() ** 0.5) or 1.0)
    largest = difference.abs().max() / (max(highest, least) or 1.0)
    bound: list[float] = torch.stack([l2, largest]).nan_to_num(nan=inf, posinf=inf).tolist()
    return bound[0], bound[1]


def _parts(value: Tensor) -> Tensor:
    """In float64; complex numbers as their two parts."""
    return (torch.view_as_real(value.resolve_conj()) if value.is_complex() else value).double()
