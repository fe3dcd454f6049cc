"""Numerics come before time: the output of an operator's first call against a plain float64 reference."""

from __future__ import annotations

import torch
from torch import Tensor

from niffbench.records import Numerics

CHECKED = 2
"""Images of a batch that are compared, first and last: operators treat images alike, references are slow."""


def images(x: Tensor) -> Tensor:
    """The images of a batch that are compared."""
    return x if x.shape[0] <= CHECKED else x[[0, -1]]


def compare(output: Tensor, reference: Tensor, tolerance: float) -> Numerics:
    """Relative L2 error, and the largest error relative to the reference's largest value.

    ``output``: the whole batch; ``reference``: float64, of the whole batch or of :func:`images`. An output that is
    not finite or has another shape is infinitely wrong. A reference of zeros makes errors absolute.
    """
    whole = output.detach()
    compared = whole if whole.shape == reference.shape else images(whole)
    compared = compared.to(device=reference.device, dtype=torch.float64)
    if compared.shape != reference.shape:
        return Numerics(l2=float("inf"), max=float("inf"), tolerance=tolerance)
    difference = compared - reference
    l2 = difference.norm() / (reference.norm() or 1.0)
    largest = difference.abs().max() / (reference.abs().max() or 1.0)
    bound = torch.stack([l2, largest]).nan_to_num(nan=float("inf"), posinf=float("inf")).tolist()
    return Numerics(l2=bound[0], max=bound[1], tolerance=tolerance)
