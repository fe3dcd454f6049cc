"""How far from float64 an output or a gradient may be before the operator is called wrong."""

from __future__ import annotations

from math import sqrt

from niffbench.case import Problem
from niffbench.results import Numerics

TOLERANCE: dict[str, float] = {"float64": 1e-11, "float32": 1e-5, "float16": 5e-3, "bfloat16": 4e-2}
"""Bound on the relative L2 error and on the largest error relative to the reference's largest value, by dtype.

About 100 units in the last place in float64 and float32, five in the half precisions, whose products are summed in
float32: room for any order of summation, for FFTs and for Winograd, none for a wrong tap.
"""

TF32 = 5e-3
"""The same for float32 where products are rounded to TF32, which has float16's 10 bits of mantissa."""


def tolerance(dtype: str, tf32: bool = False) -> float:
    """The bound for ``dtype``.

    Args:
        tf32: whether float32 products may be rounded to TF32.
    """
    return TF32 if tf32 and dtype == "float32" else TOLERANCE[dtype]


HOPELESS = 0.5
"""A bound on a gradient's error from which on wrong gradients could not be told from right ones."""

EXACT = 1e-8
"""Bound on the gradients of an operator whose units switch, run in float64 whatever the case's dtype.

Rounding in float64 reaches hardly any threshold, so that the bound can be a millionth of what the case's own
gradients are allowed: it tells whether the gradient is the right one, theirs whether its rounding is in order.
"""

_SUMMED_AT_ONCE = 256  # products that libraries sum in one lane or block


def tolerance_of_gradients(allowed: float, problem: Problem, *, images: int, switches: bool) -> float:
    """The bound for gradients where an output may be off by ``allowed``; ``images`` have a gradient.

    Twice that, because backward rounds what forward has rounded before. A weight's gradient is moreover a sum over
    images · height · width products; summed block by block in the precision of the products, a sum's rounding
    errors are √(blocks) times those of a block. The half precisions are summed in float32.

    Args:
        switches: a ReLU or a maximum goes over where its input is within a rounding error ε of its threshold.
            That befalls a share of about ε of the units, whose gradients are then wrong altogether: a relative
            L2 error of √ε, which normalisations over few values make up to ten times as large. The largest
            error is then not bounded.
    """
    if switches:
        return 10 * sqrt(allowed)
    terms = images * problem.height * problem.width if problem.element_bytes >= 4 else 0
    return 2 * allowed * sqrt(1 + terms / _SUMMED_AT_ONCE)


def is_wrong(numerics: Numerics) -> bool:
    """Whether any error is beyond its tolerance; a NaN is."""
    return _fault(numerics) is not None


def verdict(numerics: Numerics) -> str:
    """The reason of a ``wrong`` record: the output's error, else that of the worst gradient."""
    return f"{_fault(numerics)}; not timed"


def _fault(numerics: Numerics) -> str | None:
    """What is beyond its tolerance."""
    fault = _beyond(numerics.l2, numerics.max, numerics.tolerance)
    if fault is not None:
        return fault
    for where, worst in (("", numerics.gradient), (" in float64", numerics.exact_gradient)):
        fault = None if worst is None else _beyond(worst.l2, worst.max, worst.tolerance)
        if worst is not None and fault is not None:
            return f"gradient of {worst.name}{where}: {fault}"
    return None


def _beyond(l2: float, largest: float | None, allowed: float) -> str | None:
    if l2 <= allowed and (largest is None or largest <= allowed):
        return None
    extent = "" if largest is None else f", largest {largest:.2e}"
    return f"error against float64 beyond the tolerance of {allowed:.0e}: relative L2 {l2:.2e}{extent}"
