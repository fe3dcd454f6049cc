"""What a round learns of one case, as it learns it, until it is a record."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from statistics import median

from niffbench.anonymize import anonymize
from niffbench.case import Case
from niffbench.device import Processor
from niffbench.operators.base import Operator
from niffbench.protocol import Predicted
from niffbench.results import CostRecord, Latency, MachineState, Memory, Numerics, Record, Status, is_busy
from niffbench.suite import Regime
from niffbench.worker.evaluator import Workload
from niffbench.worker.failures import Failure
from niffbench.worker.latency import around


@dataclass
class CaseRun:
    """``case`` in the making. ``workload`` is there while it can be run; times in seconds, as in its record.

    ``first`` is what the first call took, asked for or not.
    """

    case: Case
    operator: Operator
    workload: Workload | None = None
    prediction: Predicted | None = None
    parameters: int | None = None
    chosen: list[str] | None = None
    output: list[int] | None = None
    first: float = 0.0
    numerics: Numerics | None = None
    cost: CostRecord | None = None
    memory: Memory | None = None
    latency: dict[Regime, Latency] = field(default_factory=dict)
    energy: float | None = None
    states: list[MachineState] = field(default_factory=list)
    processor: list[Processor] = field(default_factory=list)
    note: str | None = None
    elapsed: float = 0.0
    measuring: float = 0.0
    once: float = 0.0

    def pace(self, regime: Regime) -> float:
        """Seconds a call is known to take before ``regime`` is sampled; 0 if unknown.

        The first call tells enough for a cold series; for a warm one only the cold series does, because first
        calls compile and tune.
        """
        if regime == "cold":
            return self.first
        cold = self.latency.get("cold")
        return median(cold.samples) if cold is not None else 0.0

    def note_shape(self, output: object) -> None:
        """Keep the shape of a layer's output where it is none of an image as large as the input."""
        p, shape = self.case.problem, getattr(output, "shape", None)
        usual = (p.batch, p.channels_out, p.height, p.width)
        if shape is not None and self.operator.role != "network" and tuple(shape) != usual:
            self.output = list(shape)

    def remark(self, text: str) -> None:
        """Say beside the figures that there are why one is missing."""
        self.note = text if self.note is None else f"{self.note}; {text}"

    def record(self, round_: int, failure: Failure | None = None) -> Record:
        """The record of the case in this round: ``ok``, or what ``failure`` says."""
        status: Status = "ok" if failure is None else failure.status
        reason = self.note if failure is None else failure.reason
        machine = around(self.states, self.processor)
        busy = machine is not None and is_busy(machine.others)
        return Record(
            case=self.case,
            id=self.case.id,
            round=round_,
            status=status,
            reason=None if reason is None else anonymize(reason),
            traits=self.operator.traits(self.case),
            parameters=self.parameters,
            chosen=self.chosen,
            output=self.output,
            cost=self.cost,
            latency=_beside_busy(self.latency) if busy else self.latency,
            memory=self.memory,
            numerics=self.numerics,
            energy=self.energy,
            machine=machine,
            needed=None if failure is None else failure.needed,
            available=None if failure is None else failure.available,
            elapsed=self.elapsed,
            measuring=self.measuring,
            once=self.once,
        )


def _beside_busy(latency: dict[Regime, Latency]) -> dict[Regime, Latency]:
    """The series that were sampled beside busy neighbours, flagged; ``first`` comes before all sampling."""
    return {
        regime: replace(series, flags=sorted({*series.flags, "busy"}))
        if series.samples and regime != "first"
        else series
        for regime, series in latency.items()
    }
