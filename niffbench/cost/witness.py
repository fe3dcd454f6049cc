"""The three witnesses of one case together: closed form, FlopCounterMode with formulas, fvcore with handlers."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from functools import lru_cache, partial
from typing import TypeVar

import torch
from torch import Tensor, nn

from niffbench.case import Case, Mode
from niffbench.cost import counters, fvcore
from niffbench.cost.call import Call, Costed, faked, prepare
from niffbench.cost.closed import Cost, Step, Uncounted, step_costs
from niffbench.cost.fakes import Fakes
from niffbench.cost.memory import follow, saved
from niffbench.lengths import largest_prime_factor
from niffbench.results import CostRecord

Result = TypeVar("Result")


@lru_cache(maxsize=4096)
def witnesses(operator: Costed, case: Case) -> CostRecord:
    """What ``case`` costs, by all three witnesses; on fake tensors, so of any size and at no cost in memory.

    A witness that fails has no figure; the record's notes say why, and what else a figure leaves out. Of an
    operator without a closed form what was counted stands for it. The counters run the module themselves, so never
    call this for a module that is being timed. Each case is counted once in a process.

    Raises:
        Uncounted: where there is neither a closed form nor a count.
    """
    stated = operator.cost(case)
    notes: list[str] = []
    floor = parameters = 0
    with Fakes(allow_non_fake_inputs=True):
        call = _attempt("cannot be run on fake tensors", partial(prepare, operator, case), notes)
        counted = None if call is None else _attempt("FlopCounterMode fails", partial(counters.count, call), notes)
        if stated is None and call is not None and counted is not None:
            floor, parameters = _floor(call)
    traced = None
    if call is not None:
        traced = _traced(call, notes)
    notes += _left_out(counted, traced)
    if stated is not None:
        closed = stated
    elif counted is not None:
        closed = Cost(tuple(Step(*key, flops) for key, flops in counted.steps.items()), floor, parameters)
    else:
        raise Uncounted("; ".join(notes))
    return CostRecord(
        closed=closed.flops(),
        closed_forward=closed.flops("forward"),
        steps=step_costs(closed, None if counted is None else counted.traffic),
        counted=None if counted is None else counted.flops,
        fvcore=None if traced is None else traced.flops,
        stock_torch=None if counted is None or counted.stock_failures else sum(counted.stock.values()),
        stock_fvcore=None if traced is None else traced.stock,
        missed=sorted(_missed(counted, traced)),
        disagreement=disagreement(closed, counted, traced, stated is not None),
        notes=notes,
        bytes_floor=closed.bytes_floor,
        bytes_own=None if counted is None else sum(counted.traffic.values()),
        largest_prime_factor=max(map(largest_prime_factor, closed.transform_lengths), default=None),
        stated=stated is not None,
    )


def _traced(call: Call, notes: list[str]) -> fvcore.Traced | None:
    call.reset()
    with torch.set_grad_enabled(call.mode != "inference"):
        return _attempt("fvcore fails", partial(fvcore.trace, call.module, call.x), notes)


def _floor(call: Call) -> tuple[int, int]:
    """Bytes that any implementation of a call moves, and its learnable scalars; as closed forms state them."""
    with torch.no_grad():
        out = call.forward()
    once = sum(tensor.nbytes for tensor in (call.x, out, *call.module.parameters()))
    parameters = sum(parameter.numel() for parameter in call.module.parameters())
    return once * (2 if call.mode == "training" else 1), parameters


@dataclass(frozen=True)
class ModuleCost:
    """What a call of a module costs, in real FLOPs and bytes; nothing of it was executed.

    Attributes:
        flops: by torch's FlopCounterMode with our formulas, a multiply-add is 2 and an FFT nominal.
        flops_fvcore: fvcore's count of the forward pass alone, None where it cannot follow.
        bytes_own: what its operations read and write.
        bytes_floor: input, output and weights once.
        memory_resident: input, weights and what it keeps.
        memory_peak: above that.
        saved: for the backward pass. ``notes`` say what a figure leaves out.
    """

    flops: int
    flops_fvcore: int | None
    by_operation: Mapping[str, int]
    bytes_own: int
    bytes_floor: int
    memory_resident: int
    memory_peak: int
    saved: int | None
    parameters: int
    notes: tuple[str, ...]


def count_module(module: nn.Module, x: Tensor, mode: Mode) -> ModuleCost:
    """What ``module(x)`` costs; ``module`` is left as it is. Raises whatever it raises on fake tensors."""
    own = {id(tensor): tensor for tensor in (*module.parameters(), *module.buffers())}
    with Fakes(allow_non_fake_inputs=True) as fake:
        copied = faked(copy.deepcopy(module, memo=own), fake).train(mode == "training")  # of no tensor
        if mode == "inference":
            copied.requires_grad_(False)
        given = fake.from_tensor(x).detach()
        call = Call(copied, given.requires_grad_(mode != "inference" and x.is_floating_point()), mode)
        predicted = follow(call)
        kept_for_backward = saved(call)
        counted = counters.count(call)
        floor, parameters = _floor(call)
    notes: list[str] = []
    traced = _traced(call, notes)
    notes += _left_out(counted, traced)
    return ModuleCost(
        counted.flops,
        None if traced is None else traced.flops,
        counted.by_op,
        sum(predicted.traffic.values()),
        floor,
        predicted.resident,
        predicted.peak,
        kept_for_backward,
        parameters,
        tuple(notes),
    )


def counted_cost(operator: Costed, case: Case) -> Cost | None:
    """The cost of an operator without a closed form, as it is counted; None where that fails."""
    try:
        record: CostRecord = witnesses(operator, case)  # type: ignore[arg-type]
    except Uncounted:
        return None
    steps = tuple(Step(step.name, step.direction, step.flops) for step in record.steps if step.flops)
    return Cost(steps, record.bytes_floor, 0)


def _attempt(failure: str, witness: Callable[[], Result], notes: list[str]) -> Result | None:
    """What ``witness`` says; None where it fails, and a note of the failure and its reason."""
    try:
        return witness()
    except Exception as error:  # A library on somebody's module: anything may come.
        reason = next(iter(str(error).strip().splitlines()), "")
        notes.append(f"{failure}: {type(error).__name__}: {reason[:200]}")
        return None


def _left_out(counted: counters.Counted | None, traced: fvcore.Traced | None) -> list[str]:
    """Notes on the operations that count as nothing in a figure because nobody knows what they cost."""
    notes = []
    if counted and counted.unpriced:
        notes.append(f"FlopCounterMode counts as nothing, unpriced: {', '.join(counted.unpriced)}")
    if traced and traced.unpriced:
        notes.append(f"fvcore counts as nothing, unpriced: {', '.join(traced.unpriced)}")
    if counted and counted.stock_failures:
        notes.append(f"torch's stock counter fails on {', '.join(counted.stock_failures)}")
    if traced and traced.stock_failures:
        notes.append(f"fvcore's stock counter fails on {', '.join(traced.stock_failures)}")
    return notes


def _missed(counted: counters.Counted | None, traced: fvcore.Traced | None) -> set[str]:
    """The operations that only our formulas and handlers price."""
    by_torch = {name for name in counted.by_op if name not in counted.stock} if counted else set()
    return by_torch | (set(traced.missed) if traced else set())


def operations(operator: Costed, case: Case) -> frozenset[str]:
    """The names of torch's operations that cost something in ``case``; on fake tensors."""
    with Fakes(allow_non_fake_inputs=True):
        return frozenset(counters.count(prepare(operator, case)).by_op)


class Disagreement(StrEnum):
    """The known reasons for which the witnesses' figures differ."""

    UNPRICED = "an operation that nobody priced, so the counters may be too low"
    UNEXPLAINED = "unexplained"


def disagreement(
    closed: Cost, counted: counters.Counted | None, traced: fvcore.Traced | None, stated: bool = True
) -> str | None:
    """Why the figures of the witnesses that there are differ, or None when they agree to the last FLOP.

    The text begins with a :class:`Disagreement` and ends with the figures.

    Args:
        stated: ``closed`` is a closed form and not what was counted.
    """
    forward = {"closed form": closed.flops("forward")} if stated else {}
    if counted:
        forward["FlopCounterMode"] = counted.flops - closed.flops("backward")
    if traced:
        forward["fvcore"] = traced.flops
    if len(set(forward.values())) <= 1:
        return None
    unpriced = {name for witness in (counted, traced) if witness for name in witness.unpriced}
    reason = f"{Disagreement.UNPRICED} ({', '.join(sorted(unpriced))})" if unpriced else Disagreement.UNEXPLAINED
    return f"{reason}: forward {', '.join(f'{name} {flops:,}' for name, flops in forward.items())}"
