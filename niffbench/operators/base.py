"""What an operator is: its name, its traits, its closed-form cost, and how to build it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar, Literal

from niffbench.case import Case, OptionValue
from niffbench.cost.closed import Cost
from niffbench.results import Role, Traits

if TYPE_CHECKING:
    from torch import Tensor, nn

Boundary = Literal["circular", "zero", "none", "unknown"]


def same_channels(case: Case) -> str | None:
    """The refusal of an operator that maps each channel to itself; None where as many go out as come in."""
    p = case.problem
    if p.channels_out == p.channels:
        return None
    return f"needs channels_out = channels ({p.channels}), got {p.channels_out}"


@dataclass(frozen=True, slots=True)
class Option:
    """One setting of an operator beside its kernel size: default, what is allowed, what it means."""

    default: OptionValue
    choices: tuple[OptionValue, ...] | None  # None: any value of the default's type
    help: str


@dataclass(frozen=True)
class Choice:
    """What an operator that measures and chooses turned out to be.

    Attributes:
        engines: what each of its layers that choose took, in their order. ``operator`` costs and builds what
            they then do.
    """

    engines: tuple[str, ...]
    operator: Operator


@dataclass(frozen=True)
class Operator(ABC):
    """A row of the tables. Instances are immutable and carry no tensors; importing one does not load torch.

    ``name`` is the catalogue name (``depthwise``, ``niff-depthwise/rfft``), ``family`` groups operators for
    colours and legends, ``summary`` is one line for ``niffbench list operators``; ``base`` names the operator that
    it was made from and is compared with beside the suite's baseline, as a network's original. ``role`` decides
    what it is compared with: crossovers are between a spectral and a spatial one.
    """

    name: str
    family: str
    summary: str
    boundary: Boundary
    takes_kernel: bool = False
    base: str | None = None
    role: Role = "other"
    options: Mapping[str, Option] = field(default_factory=dict, hash=False)
    shortfall: ClassVar[float] = 2.0
    """How many times longer than at the roofline a call takes, so that a plan can tell how long a suite will: a
    median over the suites quick, stages, networks and training on two CPU cores. By default that of an FFT."""
    setup: ClassVar[float] = 0.08
    """Seconds a case costs in a round beside calls: building it, its input, its weights, the counters."""
    dtypes: ClassVar[frozenset[str]] = frozenset({"float64", "float32", "float16", "bfloat16"})

    def refusal(self, case: Case) -> str | None:
        """Why this operator is not defined for ``case`` (said before anything runs), or None when it is.

        A refusal says what would be right: "needs channels_out = channels (64), got 128".
        """
        return None

    def label(self, case: Case) -> str:
        """The row's name in tables: ``depthwise-k31``, ``niff-depthwise/rfft mlp=big``."""
        kernel = f"-k{case.kernel}" if case.kernel is not None else ""
        extra = [f"{k}={v}" for k, v in case.options if v != self.options[k].default]
        return " ".join([self.name + kernel, *extra])

    def traits(self, case: Case) -> Traits:
        """What the tables need to know of this operator, as a record keeps it."""
        return Traits(
            label=self.label(case),
            family=self.family,
            boundary=self.boundary,
            equivalence=self.equivalence(case),
            base=self.base,
            role=self.role,
            layers=self.layers,
            published=self.is_published(case),
        )

    @property
    def layers(self) -> str:
        """The family whose colour it has: its own, or of a network that of the layers in it."""
        return self.family

    def is_published(self, case: Case) -> bool:
        """Whether it executes as the code that was published with its paper, slower ways included."""
        return False

    def output_shape(self, case: Case) -> tuple[int, ...]:
        """The output's shape: an image for each image, unless the operator is a whole network."""
        p = case.problem
        return p.batch, p.channels_out, p.height, p.width

    def mixes_images(self, case: Case) -> bool:
        """Whether an image's result depends on the rest of the batch, as a normalisation's in training does."""
        return False

    def error_growth(self, case: Case) -> float:
        """How many times the rounding errors of one layer the result may be off."""
        return 1.0

    def choice(self, case: Case, module: nn.Module) -> Choice | None:
        """What ``case`` turned out to be, where only a first call of its ``module`` tells, and there was one."""
        return None

    def likely(self, case: Case) -> Sequence[Operator]:
        """What ``case`` is; where only a first call tells, what it mostly turns out to be on a CPU, if known."""
        return (self,)

    def switches(self, case: Case) -> bool:
        """Whether units switch on and off, as ReLUs do: rounding then moves gradients further than outputs."""
        return False

    @abstractmethod
    def equivalence(self, case: Case) -> str:
        """The equivalence class: operators with equal classes, given equal weights, compute one function.

        Members of a class have the same ``state_dict`` layout, so the same weights can be loaded into all.
        """

    @abstractmethod
    def cost(self, case: Case) -> Cost | None:
        """Closed-form FLOPs, bytes and parameters, step by step, forward and backward (:mod:`niffbench.cost`).

        None where nobody wrote one: then it is counted. Of one that has yet to choose (see :meth:`choice`) a
        figure that does not depend on the machine.
        """

    def executed(self, case: Case) -> int | None:
        """FLOPs as executed on a CPU where they are known, beside the nominal ones of the closed form."""
        return None

    @abstractmethod
    def build(self, case: Case) -> nn.Module:
        """A module for ``case`` in the default dtype on the default device, initialised from torch's RNG.

        It maps ``(batch, channels, height, width)`` to :meth:`output_shape`.
        """

    @abstractmethod
    def reference(self, case: Case, state: Mapping[str, Tensor], x: Tensor) -> Tensor:
        """The same function in float64, written plainly and independently of :meth:`build`.

        ``state`` is the module's state dict and ``x`` the input, both float64 on the CPU. Autograd must be able to
        follow it: the gradients that the module's are compared with are made by it.
        """
