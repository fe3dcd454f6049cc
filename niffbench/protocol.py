"""What a session and its workers say to each other: JSON objects, one a line.

A worker gets one :class:`Task` on its standard input and replies on a pipe of its own (the descriptor given by
``--reply-fd``), so that whatever libraries print cannot be mistaken for a reply: Hello, then for each case, in an
order of the worker's, Begin for every stage and at last Predicted (survey) or Finished (round); Roofline, where
ceilings were asked for; End. Refused may come instead of any of them, Note between them.
Neither side imports torch to understand the other.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter

from niffbench.case import REGIMES, Case
from niffbench.fingerprint import Fingerprint
from niffbench.results import Ceilings, CostRecord, Map, Memory, ModuleSource, Numerics, Record, StepCost
from niffbench.suite import Regime, Settings, UserModule

FORK, ITSELF = b"f", b"i"
"""What a process that has loaded all that a worker needs gets with the descriptors of one: fork it, or be it."""

NODE = "NIFFBENCH_NODE"
"""The variable in which a launcher whose engine has several machines tells a worker what it calls its own."""


class _Message(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, ser_json_inf_nan="constants")


class Predicted(_Message):
    """What fake tensors say of one case: bytes resident, the peak above it, and what each step costs."""

    type: Literal["predicted"] = "predicted"
    case: str
    resident: int | None = None
    peak: int | None = None
    steps: list[StepCost] | None = None
    reason: str | None = None  # why there is no prediction

    @property
    def needed(self) -> int | None:
        """Bytes at the worst moment; None without a prediction."""
        return None if self.peak is None else (self.resident or 0) + self.peak


class Checked(_Message):
    """What an earlier round found out of a case once and for all, as it was executed then.

    Where it chose the same ``engines`` (None: it chooses nothing) it computes the same again, at the same cost.
    Of its ``memory`` what was counted from tensors holds; the peak is measured in each round.
    """

    engines: list[str] | None = None
    numerics: Numerics
    cost: CostRecord
    memory: Memory | None = None


class Task(_Message):
    """What a fresh worker process is to do.

    Attributes:
        survey: predict the memory of each case from fake tensors and measure the ceilings; with ``counts_ahead``
            also count what the cases cost, and leave it in the file that rounds read.
        ceilings: the dtypes of these, of the whole suite, of which ``cases`` may be what an earlier worker left;
            ``maps`` are those of it that are transformed.
        round: measure each case once, in an order drawn from the settings' seed and ``round``. ``predictions``
            (the survey's) and what was ``checked`` in earlier rounds, by case id, are not worked out again.
        busy: as a round, over and over until the process is ended, of which nothing is said once it samples.
        modules: the user's among the operators.
        devices: all that are measured on at once, of which the settings' is number ``place``; the worker keeps to
            its share of the cores. Empty: there is one.
    """

    kind: Literal["survey", "round", "busy"]
    settings: Settings
    cases: list[Case]
    round: int = 0
    ceilings: list[str] = []
    maps: list[Map] = []
    predictions: list[Predicted] = []
    checked: dict[str, list[Checked]] = {}
    modules: list[UserModule] = []
    devices: list[str] = []
    place: int = 0
    counts_ahead: bool = False


class Hello(_Message):
    """The first reply: the worker is up, on what, and where it found the user's modules.

    ``node`` is what the launcher's engine calls the machine, if it has several; only its number is written down.
    ``device`` is how ``--devices`` names the worker's.
    """

    type: Literal["hello"] = "hello"
    fingerprint: Fingerprint
    free_memory: int | None = None  # bytes
    modules: list[ModuleSource] = []
    node: str | None = None
    device: str | None = None


Stage = Literal["touch", "predict", "build", "numerics", "cost", "memory"] | Regime
"""What a worker does with a case: touch its operator, where the device loads code lazily; predict, unless the
survey has; build, first, numerics, cost, memory; then, in turns with other cases, the regimes that are sampled."""


class Begin(_Message):
    """The worker turns to ``case``; until the next message but a note it is to blame for a death or a hang."""

    type: Literal["begin"] = "begin"
    case: str
    stage: Stage

    @property
    def samples(self) -> bool:
        """Whether it goes on to sample the case, with which setting up is over."""
        return self.stage in REGIMES and self.stage != "first"


class Roofline(_Message):
    """The survey's ceilings, or the ``reason`` why there are none.

    ``others`` is other processes' share of the processor meanwhile, 0 to 1; None where nobody knows.
    """

    type: Literal["roofline"] = "roofline"
    ceilings: Ceilings | None = None
    others: float | None = None
    reason: str | None = None


class Finished(_Message):
    """A case is done in this round, with whatever status."""

    type: Literal["finished"] = "finished"
    record: Record


class Note(_Message):
    """What the manifest should say of the round, once for all of them."""

    type: Literal["note"] = "note"
    text: str


class Refused(_Message):
    """The whole task cannot be done (no such device, say); the worker exits after it.

    ``node`` is what the launcher's engine calls the machine, if it has several.
    """

    type: Literal["refused"] = "refused"
    message: str
    exit_code: int = 2
    node: str | None = None


class End(_Message):
    """Nothing is left to do; the worker exits with status 0."""

    type: Literal["end"] = "end"


Reply = Annotated[
    Hello | Begin | Predicted | Roofline | Finished | Note | Refused | End, Field(discriminator="type")
]
REPLIES: TypeAdapter[Reply] = TypeAdapter(Reply)


def write(message: BaseModel) -> bytes:
    """One message as a line."""
    return message.model_dump_json().encode() + b"\n"


def read(line: bytes) -> Reply:
    """The reply on one line; pydantic's ValidationError when it is none."""
    return REPLIES.validate_json(line)
