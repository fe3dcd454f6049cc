"""The second witness: FLOPs as torch's dispatcher sees them, forward and backward, on real or fake tensors.

Counting runs the function. Never count what is timed: FlopCounterMode decomposes operations, and on torch up to
2.13 one call under any dispatch mode makes a compiled function run eagerly ever after.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode, flop_registry

from niffbench.cost.formulas import FORMULAS, Formula, is_free


@dataclass(frozen=True)
class Counted:
    """What one run of a function cost.

    ``by_op`` has the operations that cost something. ``unpriced`` names the operations that are neither in the
    formulas nor known to be free, or whose formula fails: while it is not empty, ``flops`` may be too low.
    ``traffic`` is what the dispatched operations read and wrote, in bytes. ``stock``: what FlopCounterMode says
    without our formulas, but for the operations of ``stock_failures``, on which its own formula fails.
    """

    flops: int
    by_op: dict[str, int]
    unpriced: tuple[str, ...]
    traffic: int
    stock: dict[str, int]
    stock_failures: tuple[str, ...] = ()


def count(function: Callable[[], object]) -> Counted:
    """Run ``function`` once and count it, with our formulas over the stock counter's."""
    failed: set[str] = set()
    formulas = {operation: _guarded(str(operation), formula, failed) for operation, formula in FORMULAS.items()}
    counter = FlopCounterMode(display=False, custom_mapping=formulas)
    guard = _Guard(known=frozenset(map(str, counter.flop_registry)))
    with guard, counter:
        function()
    return Counted(
        flops=counter.get_total_flops(),
        by_op=_by_op(counter),
        unpriced=tuple(sorted(guard.unpriced | failed)),
        traffic=guard.traffic,
        stock={name: flops for name, flops in guard.stock.items() if flops},
        stock_failures=tuple(sorted(guard.stock_failures)),
    )


def _guarded(name: str, formula: Formula, failed: set[str]) -> Formula:
    """The formula; where it fails, on arguments that it does not expect, 0, and ``name`` is in ``failed``."""

    def guarded(*args: Any, **kwargs: Any) -> int:
        try:
            return formula(*args, **kwargs)
        except Exception:
            failed.add(name)
            return 0

    guarded._get_raw = True  # type: ignore[attr-defined]
    return guarded


def _by_op(counter: FlopCounterMode) -> dict[str, int]:
    counts = counter.get_flop_counts().get("Global", {})
    return {str(packet): flops for packet, flops in counts.items() if flops}


OURS = "niffbench"
"""Namespace of our own operations: their formulas stand in torch's registry, but come with no stock counter."""


class _Guard(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Sees every operation that the counter above lets through; notes the unpriced, the traffic, stock prices."""

    def __init__(self, known: frozenset[str]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.known = known
        self.unpriced: set[str] = set()
        self.traffic = 0
        self.stock: Counter[str] = Counter()
        self.stock_failures: set[str] = set()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        name = str(func.overloadpacket)
        if func.is_view or name in _NO_DATA:
            return out
        if name not in self.known and not is_free(func):
            self.unpriced.add(name)
        if func.overloadpacket in flop_registry and func.namespace != OURS:
            try:
                self.stock[name] += flop_registry[func.overloadpacket](*args, **(kwargs or {}), out_val=out)
            except Exception:  # Of another's formula, on another's operation.
                self.stock_failures.add(name)
        self.traffic += traffic(name, args, out)
        return out


_NO_DATA = {"prim.device", "profiler._record_function_enter_new", "profiler._record_function_exit"} | {
    f"aten.{name}"
    for name in (
        "empty",
        "empty_like",
        "empty_strided",
        "new_empty",
        "new_empty_strided",
        "_unsafe_view",
        "lift_fresh",
    )
}
_WRITES_FIRST = {f"aten.{name}" for name in ("copy_", "zero_", "fill_", "uniform_", "normal_")}
_READS_NOTHING = {
    f"aten.{name}" for name in ("zeros_like", "ones_like", "full_like", "new_zeros", "new_ones", "new_full")
}


def traffic(name: str, args: tuple[Any, ...], out: object) -> int:
    """Bytes one operation moves: each tensor argument is read once, each result written once.

    Passes of their own, as :mod:`niffbench.cost.closed` describes: a roll makes one for each dimension, a scaled
    FFT one more over its result, a convolution's two gradients read the output's gradient each.
    """
    inputs = [leaf for leaf in tree_leaves(args) if isinstance(leaf, Tensor)]
    outputs = [leaf for leaf in tree_leaves(out) if isinstance(leaf, Tensor)]
    written = sum(map(size, outputs))
    if name in _READS_NOTHING:
        return written
    if name in _WRITES_FIRST:
        return written + sum(map(size, inputs[1:]))
    moved = sum(map(size, inputs)) + written
    if name == "aten.roll":
        return moved * max(len(args[2]) if len(args) > 2 else 1, 1)
    if name in ("aten._fft_c2c", "aten._fft_r2c", "aten._fft_c2r") and args[2] != 0:
        return moved + 2 * written
    if name == "aten.convolution_backward":
        return moved + size(inputs[0]) if all(args[10][:2]) else moved
    return moved


def size(tensor: Tensor) -> int:
    """Bytes of the distinct numbers of a tensor (an expanded dimension holds one)."""
    distinct = 1
    for length, stride in zip(tensor.shape, tensor.stride(), strict=True):
        distinct *= length if stride or not length else 1
    return distinct * tensor.element_size()
