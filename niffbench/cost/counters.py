"""The second witness: FLOPs as torch's dispatcher sees them, forward and backward, on real or fake tensors.

Counting runs the function. Never count what is timed: FlopCounterMode decomposes operations, and on torch up to
2.13 one call under any dispatch mode makes a compiled function run eagerly ever after.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode, flop_registry

from niffbench.cost.closed import Direction
from niffbench.cost.formulas import FORMULAS, KERNELS, Formula, is_free
from niffbench.cost.traffic import Dispatched, Traffic
from niffbench.niff.steps import recording


@dataclass(frozen=True)
class Counted:
    """What one run of a function cost.

    ``by_op`` has the operations that cost something. ``unpriced`` names the operations that are neither in the
    formulas nor known to be free, or whose formula fails: while it is not empty, ``flops`` may be too low.
    ``steps`` has the FLOPs of each step, ``traffic`` what it read and wrote, in bytes.

    Attributes:
        stock: what FlopCounterMode says without our formulas, but for the operations of ``stock_failures``, on
            which it fails.
    """

    flops: int
    by_op: dict[str, int]
    unpriced: tuple[str, ...]
    steps: Traffic
    traffic: Traffic
    stock: dict[str, int]
    stock_failures: tuple[str, ...] = ()


def count(function: Callable[[], object]) -> Counted:
    """Run ``function`` once and count it, with our formulas over the stock counter's."""
    counter, failed = _counter(len(flop_registry))
    failed.clear()
    guard = _Guard(counter.flop_registry)
    try:
        with recording(), _attention_in_parts(), guard, counter:
            function()
    except BaseException:
        _counter.cache_clear()  # It does not know any more which module is being called.
        raise
    return Counted(
        flops=counter.get_total_flops(),
        by_op=_by_op(counter),
        unpriced=tuple(sorted(guard.unpriced | failed)),
        steps=guard.flops,
        traffic=guard.traffic,
        stock={name: flops for name, flops in guard.stock.items() if flops},
        stock_failures=tuple(sorted(guard.stock_failures)),
    )


@lru_cache(maxsize=1)
def _counter(registered: int) -> tuple[FlopCounterMode, set[str]]:
    """The counter, which begins anew whenever it is entered, and what gets the names of formulas that fail.

    To look up its thousand formulas takes longer than to count a layer.

    Args:
        registered: how many torch knows, to which anybody may add.
    """
    failed: set[str] = set()
    formulas = {operation: _guarded(str(operation), formula, failed) for operation, formula in FORMULAS.items()}
    return FlopCounterMode(display=False, custom_mapping=formulas), failed


@contextmanager
def _attention_in_parts() -> Iterator[None]:
    """Multi-head attention as the operations it is made of; torch's fused inference kernel shows none of them."""
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)


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


class _Guard(Dispatched):  # type: ignore[no-untyped-call]
    """Sees every operation that the counter above lets through: FLOPs and traffic of each step, stock prices.

    Args:
        prices: The counter's formulas; an operation that has none and is not free is noted.
    """

    def __init__(self, prices: Mapping[Any, Formula]) -> None:
        super().__init__()
        self.flops: Traffic = {}
        self._prices = prices
        self.unpriced: set[str] = set()
        self.stock: Counter[str] = Counter()
        self.stock_failures: set[str] = set()

    def see(
        self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any
    ) -> tuple[str, Direction] | None:
        step = super().see(func, args, kwargs, out)
        name = str(func.overloadpacket)
        if func.overloadpacket not in self._prices:
            if not is_free(func):
                self.unpriced.add(name)
        elif step is not None:
            flops = self._prices[func.overloadpacket](*args, **kwargs, out_val=out)
            self.flops[step] = self.flops.get(step, 0) + flops
        if func.overloadpacket in flop_registry and func.overloadpacket not in KERNELS:
            try:
                self.stock[name] += flop_registry[func.overloadpacket](*args, **kwargs, out_val=out)
            except Exception:  # Of another's formula, on another's operation.
                self.stock_failures.add(name)
        return step
