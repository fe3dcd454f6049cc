"""The three witnesses of one case together: closed form, FlopCounterMode with formulas, fvcore with handlers."""

from __future__ import annotations

from enum import StrEnum
from functools import lru_cache

import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from niffbench.case import Case
from niffbench.cost import counters, fvcore
from niffbench.cost.closed import Cost
from niffbench.cost.lengths import largest_prime_factor
from niffbench.cost.subject import Costed, prepare
from niffbench.results import CostRecord, StepCost


@lru_cache(maxsize=4096)
def witnesses(operator: Costed, case: Case) -> CostRecord:
    """What ``case`` costs, by all three witnesses; on fake tensors, so of any size and at no cost in memory.

    The counters run the module themselves, so never call this for a module that is being timed. Each case is
    counted once in a process.
    """
    closed = operator.cost(case)
    with FakeTensorMode(allow_non_fake_inputs=True):
        call = prepare(operator, case)
        counted = counters.count(call)
        call.reset()
    with torch.set_grad_enabled(case.problem.mode != "inference"):
        traced = fvcore.trace(call.module, call.x)
    missed = {name for name in counted.by_op if name not in counted.stock} | set(traced.missed)
    return CostRecord(
        closed=closed.flops(),
        closed_forward=closed.flops("forward"),
        steps=[StepCost(name=s.name, direction=s.direction, flops=s.flops, bytes=s.bytes) for s in closed.steps],
        counted=counted.flops,
        fvcore=traced.flops,
        stock_torch=sum(counted.stock.values()),
        stock_fvcore=traced.stock,
        missed=sorted(missed),
        disagreement=disagreement(closed, counted, traced),
        bytes_floor=closed.bytes_floor,
        bytes_own=closed.bytes_own,
        largest_prime_factor=max(map(largest_prime_factor, closed.transform_lengths), default=None),
    )


class Disagreement(StrEnum):
    """The known reasons for which the witnesses' figures differ."""

    UNPRICED = "an operation that nobody priced, so the counters may be too low"
    UNEXPLAINED = "unexplained"


def disagreement(closed: Cost, counted: counters.Counted, traced: fvcore.Traced) -> str | None:
    """Why the witnesses' figures differ, or None when they agree to the last FLOP.

    The text begins with a :class:`Disagreement` and ends with the figures.
    """
    if counted.unpriced:
        return f"{Disagreement.UNPRICED} ({', '.join(counted.unpriced)})"
    backward = closed.flops("backward")
    forward = (closed.flops("forward"), counted.flops - backward, traced.flops)
    if len(set(forward)) == 1:
        return None
    told = f"closed form {closed.flops():,}, counted {counted.flops:,}"
    return f"{Disagreement.UNEXPLAINED} ({told}; forward alone {forward[0]:,}, fvcore {traced.flops:,})"
