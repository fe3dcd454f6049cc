"""What a worker needs beside a device: cases set up, their cost, numerics and memory. Loads no torch itself.

There are two: one that builds operators with torch, and one that replays.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from niffbench.case import Case
from niffbench.device import Device, Runner
from niffbench.operators.base import Choice
from niffbench.protocol import Predicted
from niffbench.results import Ceilings, CostRecord, Map, Numerics


@dataclass(frozen=True, slots=True)
class Footprint:
    """Bytes of tensors, each storage once: what is there before a call, its output, what autograd saved beside.

    Attributes:
        kept: of what is resident, what is neither input nor parameter nor a gradient. ``saved`` leaves out
            what is resident or the output's; None in inference, and where it cannot be told.
    """

    resident: int
    output: int
    saved: int | None
    kept: int | None = None


class Workload(Runner, Protocol):
    """A case, set up and ready to run."""

    @property
    def case(self) -> Case: ...

    @property
    def parameters(self) -> int:
        """Learnable scalars."""

    def checked(self) -> None:
        """Its numerics are known: from now on it is called as it is timed."""

    def footprint(self) -> Footprint:
        """Count tensors around a call. Never while timing."""


class Evaluator(Protocol):
    """Sets cases up on a device and looks at them from every side but the clock's (see ``measure.latency``)."""

    @property
    def device(self) -> Device: ...

    def predict(self, case: Case, choice: Choice | None = None) -> Predicted:
        """The memory ``case`` needs and the bytes it moves, by what was chosen if known; allocates nothing.

        Raises whatever the operator does for want of support.
        """

    def ceilings(self, dtypes: frozenset[str], maps: Sequence[Map] = ()) -> Ceilings:
        """The machine's roofline, bare FFTs of ``maps`` included, measured in a second or two."""

    def touch(self, case: Case) -> None:
        """Build and call ``case`` once, for what that loads."""

    def workload(self, case: Case) -> Workload:
        """``case`` built, with its weights and its input on the device."""

    def numerics(self, workload: Workload, output: object) -> Numerics:
        """The error of ``output``, the workload's own, against float64."""

    def compiled_so_far(self) -> int:
        """How many of our kernels this process has compiled, which no later case has to."""

    def gone_without(self) -> list[str]:
        """Why what chooses among engines had fewer of them here than on other machines of the kind."""

    def choice(self, workload: Workload) -> Choice | None:
        """What the workload, called once, turned out to be; None where there is nothing to choose."""

    def cost(self, case: Case, choice: Choice | None) -> CostRecord:
        """The witnesses' statements on what was chosen; never touches a workload."""

    def count_ahead(self, case: Case) -> None:
        """Keep what a round's process will ask of ``case``: its cost, or cost and memory of what it may choose."""

    def judge_by(self, clock: Literal["host", "device"]) -> None:
        """By whose time forms that choose among engines do so on an accelerator."""

    def forget(self) -> None:
        """Drop the weights and references that cases of one problem share."""
