"""How far from float64 an output may be before the operator is called wrong."""

from __future__ import annotations

from niffbench.records import Numerics

TOLERANCE: dict[str, float] = {"float64": 1e-11, "float32": 1e-5, "float16": 5e-3, "bfloat16": 4e-2}
"""Bound on the relative L2 error and on the largest error relative to the reference's largest value, by dtype.

About 100 units in the last place in float64 and float32, five in the half precisions, whose products are summed in
float32: room for any order of summation, for FFTs and for Winograd, none for a wrong tap.
"""

TF32 = 5e-3
"""The same for float32 where products are rounded to TF32, which has float16's 10 bits of mantissa."""


def tolerance(dtype: str, tf32: bool = False) -> float:
    """The bound for ``dtype``; ``tf32``: whether float32 products may be rounded to TF32."""
    return TF32 if tf32 and dtype == "float32" else TOLERANCE[dtype]


def is_wrong(numerics: Numerics) -> bool:
    """Whether either error is beyond the tolerance; a NaN is."""
    return not (numerics.l2 <= numerics.tolerance and numerics.max <= numerics.tolerance)


def verdict(numerics: Numerics) -> str:
    """The reason of a ``wrong`` record."""
    return (
        f"error against float64 beyond the tolerance of {numerics.tolerance:.0e}: "
        f"relative L2 {numerics.l2:.2e}, largest {numerics.max:.2e}; not timed"
    )
