"""The evaluator that replays: memory, numerics and cost from the file or the closed form. Loads no torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from niffbench.case import Case
from niffbench.cost.closed import Cost, step_costs
from niffbench.device.replay import CaseTrace, GradientTrace, NumericsTrace, ReplayDevice, ReplayRunner
from niffbench.operators.base import Choice
from niffbench.operators.catalogue import catalogue
from niffbench.protocol import Predicted
from niffbench.results import Ceilings, CostRecord, GradientError, Map, Numerics
from niffbench.worker.evaluator import Footprint, Workload
from niffbench.worker.tolerance import tolerance, tolerance_of_gradients


@dataclass(eq=False)
class ReplayWorkload(ReplayRunner):
    """A replayed case; ``parameters`` as its closed form counts them."""

    parameters: int = 0

    def checked(self) -> None:
        """It is called the same before and after."""

    def footprint(self) -> Footprint:
        """The file's figures, else those of the closed form."""
        trace, (resident, output) = self.entry.memory, _sizes(self.case)
        return Footprint(
            resident=resident if trace.resident is None else trace.resident,
            output=output if trace.output is None else trace.output,
            saved=trace.saved,
        )


class ReplayEvaluator:
    """Evaluator of a :class:`ReplayDevice` in one round."""

    def __init__(self, device: ReplayDevice, round_: int) -> None:
        self.device = device
        self._round = round_

    def predict(self, case: Case, choice: Choice | None = None) -> Predicted:
        """The file's figures, else inputs, weights and output at their closed-form sizes."""
        memory = self._entry(case).memory
        sizes = _sizes(case)
        peak = next(value for value in (memory.predicted, memory.peak, 2 * sizes[1]) if value is not None)
        return Predicted(
            case=case.id, resident=sizes[0] if memory.resident is None else memory.resident, peak=peak
        )

    def ceilings(self, dtypes: frozenset[str], maps: Sequence[Map] = ()) -> Ceilings:
        """The file's, else the rates its made-up latencies come from."""
        trace = self.device.trace
        rates = dict.fromkeys(sorted(dtypes), trace.flops)
        return trace.ceilings or Ceilings(copy_bandwidth=trace.bandwidth, matmul=rates, fft=rates)

    def count_ahead(self, case: Case) -> None:
        """Nothing is kept."""

    def touch(self, case: Case) -> None:
        """Nothing is called."""

    def workload(self, case: Case) -> ReplayWorkload:
        """Raises what the file says goes wrong in building."""
        trace = self.device.trace
        entry = self._entry(case)
        cost = _closed(case)
        work = max(cost.flops() / trace.flops, cost.bytes_floor / trace.bandwidth)
        output = _sizes(case)[1]
        workload = ReplayWorkload(
            case=case,
            round=self._round,
            entry=entry,
            nominal=entry.steady(self._round) or trace.overhead + work,
            peak=2 * output if entry.memory.peak is None else entry.memory.peak,
            kept=output if entry.memory.output is None else entry.memory.output,
            held=self.device.held,
            parameters=cost.parameters,
        )
        workload.reach("build")
        return workload

    def numerics(self, workload: Workload, output: object) -> Numerics:
        """The file's errors, else a hundredth of the tolerance."""
        assert isinstance(workload, ReplayWorkload)
        workload.reach("numerics")
        allowed = tolerance(workload.case.problem.dtype, workload.case.problem.tf32)
        errors = workload.entry.numerics or NumericsTrace(l2=allowed / 100, max=allowed / 100)
        gradient = _gradient(workload.case, errors.gradient, allowed)
        return Numerics(l2=errors.l2, max=errors.max, tolerance=allowed, gradient=gradient)

    def compiled_so_far(self) -> int:
        """Nothing is compiled."""
        return 0

    def gone_without(self) -> list[str]:
        """Nothing is chosen."""
        return []

    def choice(self, workload: Workload) -> Choice | None:
        """Nothing is called, so nothing is chosen."""
        return None

    def cost(self, case: Case, choice: Choice | None) -> CostRecord:
        """The closed form alone: the counters need torch."""
        cost = _closed(case)
        return CostRecord(
            closed=cost.flops(),
            closed_forward=cost.flops("forward"),
            steps=step_costs(cost, None),
            bytes_floor=cost.bytes_floor,
            bytes_own=None,
        )

    def judge_by(self, clock: Literal["host", "device"]) -> None:
        """Nothing is chosen."""

    def forget(self) -> None:
        """Nothing is shared."""

    def _entry(self, case: Case) -> CaseTrace:
        return self.device.entry(case, catalogue()[case.operator].label(case), self._round)


def _closed(case: Case) -> Cost:
    """What a case costs without torch.

    Raises:
        NotImplementedError: where only counters could tell.
    """
    cost = catalogue()[case.operator].cost(case)
    if cost is None:
        raise NotImplementedError("a replay cannot count what a module costs")
    return cost


def _gradient(case: Case, errors: GradientTrace | None, allowed: float) -> GradientError | None:
    """In training the file's error of the worst gradient, else a hundredth of the tolerance."""
    problem, switches = case.problem, catalogue()[case.operator].switches(case)
    if problem.mode != "training":
        return None
    bound = tolerance_of_gradients(allowed, problem, images=problem.batch, switches=switches)
    errors = errors or GradientTrace(l2=bound / 100, max=None if switches else bound / 100)
    return GradientError(name=errors.name, l2=errors.l2, max=errors.max, tolerance=bound)


def _sizes(case: Case) -> tuple[int, int]:
    """Bytes of the input with the weights, and of the output."""
    problem = case.problem
    plane = problem.batch * problem.height * problem.width * problem.element_bytes
    weights = _closed(case).parameters * problem.element_bytes
    return plane * problem.channels + weights, plane * problem.channels_out
