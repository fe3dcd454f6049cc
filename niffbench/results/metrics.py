"""The registry of metrics: every quantity of a record, declared once.

Frame, CSV, Parquet, JSON, terminal, reports, plots, exports, the pytest plugin and the gate all go through
:data:`REGISTRY` and read records with :func:`round_value` alone. A new quantity is one more entry here.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from math import isfinite
from statistics import median
from typing import Any, Literal, cast, get_args

from niffbench.case import REGIMES
from niffbench.lengths import in_bounds_share
from niffbench.results.record import REGIME_ORDER, Record, Status, is_control, main_regime
from niffbench.suite import Regime

Kind = Literal["status", "missing", "empty", "not a number", "absurd", "invalid", "stuck", "throttled", "coarse"]
Gate = Literal["test", "exact", "tolerance"]
Place = Literal["terminal", "networks", "cases", "memory"]
"""Where a metric is shown unasked: the closing table; that and the table of cases, of a run that holds networks;
the report's table of cases; its table of memory. Data (frame, CSV, JSON, exports) always hold every metric."""

MEASURED: frozenset[Status] = frozenset({"ok"})
ANY: frozenset[Status] = frozenset(get_args(Status))
UNUSABLE: tuple[Kind, ...] = ("invalid", "stuck", "throttled")
"""Flags of a series that tell of the clock or the machine and not of the code: such a round has no latency."""
PLAUSIBLE_SECONDS = (1e-12, 1e9)
"""What lies outside is no latency but a broken clock, or a joke."""
LARGEST = 1e30
"""No quantity is that large; NaN and infinity are not below it either."""


@dataclass(frozen=True, slots=True)
class Reason:
    """Why a round has no value of a metric. ``words`` go on from "round 3 …"."""

    kind: Kind
    words: str

    @property
    def tried(self) -> bool:
        """Whether the case ran and the quantity was looked for, but what came out cannot be used."""
        return self.kind not in ("status", "missing")


MISSING = Reason("missing", "did not measure it")

Reader = Callable[[Record], float | Reason | None]


@dataclass(frozen=True, kw_only=True)
class Metric:
    """One quantity.

    ``key`` names it wherever there are names: columns, JSON, thresholds, ``--y``. ``title`` is what people read,
    ``meaning`` a sentence for hints and the data dictionary. ``unit`` is a base unit (``s``, ``B``, ``FLOP``,
    ``J`` …), ``share`` of one, ``error`` for a relative error, or empty for a plain number.

    ``read`` gives one round's value, None where it was not measured, or the reason why what was measured is none.

    Attributes:
        better: the direction of improvement, None where there is none.
        exact: every round must find the same, so that one is enough.
        counted: it is counted, not timed, so that one round is enough too, and rounds that differ are no
            noise: something else was executed. All others are noisy, and known by an interval over rounds.
        over_rounds: what stands for several rounds, unless it is counted.
        compared: a ratio to the baseline means something.
        statuses: those of a record in which the value means anything; what needs no running is known of a
            failed case too.
        plausible: the open range outside which a value is absurd.
        gate: how two runs are judged by it: ``test`` (on rounds, with a minimum effect), ``exact`` (any
            difference counts), ``tolerance`` (a relative change is let pass), or not at all.
        shown: where it is shown unasked.
        regime: of a latency.
    """

    key: str
    title: str
    unit: str
    read: Reader
    meaning: str = ""
    family: str = ""
    better: Literal["lower", "higher"] | None = "lower"
    exact: bool = False
    counted: bool = False
    over_rounds: Literal["median", "largest", "smallest"] = "median"
    compared: bool = False
    statuses: frozenset[Status] = MEASURED
    plausible: tuple[float, float] = (-LARGEST, LARGEST)
    gate: Gate | None = None
    shown: frozenset[Place] = frozenset()
    regime: Regime | None = None

    @property
    def certainty(self) -> str:
        """How its value is known: ``exactly``, ``counted``, or ``by rounds``, with an interval over them."""
        return "exactly" if self.exact else "counted" if self.counted else "by rounds"

    def of_rounds(self, values: Sequence[float]) -> float:
        """What stands for the values of several rounds, of which there is one at least.

        Of what is counted it is the most frequent: between two choices of engines lies a value that none has.
        """
        if self.certainty != "by rounds":
            return Counter(values).most_common(1)[0][0]
        if self.over_rounds == "median":
            return median(values)
        return max(values) if self.over_rounds == "largest" else min(values)


def round_value(record: Record, metric: Metric) -> float | Reason:
    """What one round has to say of a metric, or why it has nothing: the only way from a record to a number."""
    if record.status not in metric.statuses:
        return Reason("status", f"is {record.status}: {record.reason or 'no reason was given'}")
    value = metric.read(record)
    if value is None:
        return MISSING
    if isinstance(value, Reason):
        return value
    if value != value:
        return Reason("not a number", f"has a {metric.title} that is no number")
    low, high = metric.plausible
    if not low < value < high:
        return Reason("absurd", f"has an absurd {metric.title}")
    return value


def _latency(regime: Regime) -> Reader:
    """The median of a round's samples, in seconds."""

    def read(record: Record) -> float | Reason | None:
        series = record.latency.get(regime)
        if series is None:
            return None
        if not series.samples:
            return Reason("empty", f"has no sample ({', '.join(series.flags) or 'none was taken'})")
        # One step of a coarse timer would look like a change.
        if "coarse" in series.flags and len(set(series.samples)) == 1:
            return Reason("coarse", "has times that its timer cannot tell apart")
        if unusable := [kind for kind in UNUSABLE if kind in series.flags]:
            return Reason(unusable[0], f"is {' and '.join(unusable)}")
        # Sorting NaNs would give any median.
        return median(series.samples) if isfinite(sum(series.samples)) else float("nan")

    return read


def _latency_metric(regime: Regime) -> Metric:
    meanings = {
        "first": "the first call of a process: plans, tuning, torch.compile; our own kernels are compiled before",
        "cold": "a call after the caches were flushed",
        "steady": "a call among many, back to back",
        "wall": "a call whose result the host waits for before the next",
        "graph": "a call replayed from a CUDA graph, without its launches",
    }
    return Metric(
        key=f"latency_{regime}",
        title=f"{regime} latency",
        unit="s",
        meaning=f"median of a round's samples: {meanings.get(regime, f'the {regime} regime')}",
        family="latency",
        read=_latency(regime),
        compared=True,
        plausible=PLAUSIBLE_SECONDS,
        gate="test",
        shown=frozenset({"terminal", "cases"}),
        regime=regime,
    )


def _samples_metric(regime: Regime) -> Metric:
    def read(record: Record) -> int | None:
        return len(record.latency[regime].samples) if regime in record.latency else None

    return Metric(
        key=f"samples_{regime}",
        title=f"{regime} samples",
        unit="",
        meaning=f"samples of the {regime} regime in a round",
        family="samples",
        read=read,
        better=None,
    )


def _launch_share(record: Record) -> float | Reason | None:
    graph = _latency("graph")(record)
    return graph if graph is None or isinstance(graph, Reason) else record.latency["graph"].launch_share


def _images_per_second(record: Record) -> float | Reason | None:
    value = round_value(record, REGISTRY[f"latency_{main_regime([record])}"])
    return value if isinstance(value, Reason) else record.case.problem.batch / value


def _stock_share(record: Record) -> float | None:
    cost = record.cost
    if cost is None:
        return None
    pairs = ((cost.stock_torch, cost.closed), (cost.stock_fvcore, cost.closed_forward))
    return max((seen / whole for seen, whole in pairs if seen is not None and whole), default=None)


def _taps_share(record: Record) -> float | None:
    case, traits = record.case, record.traits
    if case.kernel is None or traits.boundary != "zero" or not is_control(traits):
        return None
    return in_bounds_share(case.problem.height, case.problem.width, case.kernel)


def _at(path: str) -> Reader:
    """The number at a dotted path of a record, None where any part of the path is."""
    names = path.split(".")

    def read(record: Record) -> float | None:
        value: Any = record
        for name in names:
            if value is None:
                return None
            value = getattr(value, name)
        return cast("float | None", value)

    return read


def _memory(
    part: str,
    title: str,
    meaning: str,
    gate: Gate | None = None,
    shown: tuple[Place, ...] = (),
    read: Reader | None = None,
) -> Metric:
    """One of the figures of a record's memory, in bytes."""
    return Metric(
        key=f"memory_{part}",
        title=title,
        unit="B",
        read=read or _at(f"memory.{part}"),
        meaning=meaning,
        family="memory",
        counted=part not in ("reserved", "device_delta"),
        compared=part in ("peak", "total"),
        gate=gate,
        shown=frozenset({"memory", *shown}),
    )


def _kept(record: Record) -> int | None:
    """Bytes that an operator holds beside its parameters.

    Of older records, in which it was not counted: what is left of what is resident without input, weights and, in
    training, the gradient of the output.
    """
    memory, problem = record.memory, record.case.problem
    if memory is None or memory.kept is not None:
        return None if memory is None else memory.kept
    if record.parameters is None or problem.dtype != "float32" or record.traits.role == "network":
        return None
    planes = problem.channels + (problem.channels_out if problem.mode == "training" else 0)
    given = planes * problem.batch * problem.height * problem.width + record.parameters
    return max(memory.resident - given * problem.element_bytes, 0)


def _total(record: Record) -> int | None:
    return None if record.memory is None else record.memory.resident + record.memory.peak


def _count(
    key: str, part: str, title: str, meaning: str, gate: Gate | None = None, shown: tuple[Place, ...] = ()
) -> Metric:
    """A count of FLOPs or bytes: known without running, so of a case that failed too."""
    family = "bytes" if key.startswith("bytes") else "flops"
    return Metric(
        key=key,
        title=title,
        unit="B" if family == "bytes" else "FLOP",
        read=_at(f"cost.{part}"),
        meaning=meaning,
        family=family,
        better=None if "stock" in key or "floor" in key else "lower",
        exact=True,
        compared=bool(shown),
        statuses=ANY,
        gate=gate,
        shown=frozenset(shown),
    )


def _share_of_flops(key: str, title: str, read: Reader, meaning: str) -> Metric:
    """A share of a case's FLOPs; known without running, and neither of its ends is better."""
    return Metric(
        key=key,
        title=title,
        unit="share",
        read=read,
        meaning=meaning,
        family="flops",
        better=None,
        exact=True,
        statuses=ANY,
    )


def _error(key: str, part: str, title: str, meaning: str, shown: tuple[Place, ...] = ()) -> Metric:
    """An error relative to float64: the worst of all rounds, and of a ``wrong`` case too, whose reason it is."""
    return Metric(
        key=key,
        title=title,
        unit="error",
        read=_at(f"numerics.{part}"),
        meaning=meaning,
        family="error",
        over_rounds="largest",
        statuses=frozenset({"ok", "wrong"}),
        shown=frozenset(shown),
    )


def _machine(
    part: str,
    title: str,
    unit: str,
    meaning: str,
    over_rounds: Literal["largest", "smallest"] = "largest",
) -> Metric:
    """The machine around a case while it was sampled; the worst of all rounds stands for them."""
    return Metric(
        key=part,
        title=title,
        unit=unit,
        read=_at(f"machine.{part}"),
        meaning=meaning,
        family="machine",
        better=None,
        over_rounds=over_rounds,
    )


def _always(key: str, title: str, unit: str, meaning: str, family: str) -> Metric:
    """What a record says whatever became of its case."""
    return Metric(
        key=key, title=title, unit=unit, read=_at(key), meaning=meaning, family=family, better=None, statuses=ANY
    )


_METRICS = (
    *map(_latency_metric, REGIMES),
    Metric(
        key="launch_share",
        title="launch share",
        unit="share",
        read=_launch_share,
        meaning="share of the eager time that launches took, from CUDA graphs",
        family="latency",
        better=None,
        shown=frozenset({"cases"}),
    ),
    Metric(
        key="images_per_second",
        title="images/s",
        unit="images/s",
        read=_images_per_second,
        meaning=f"batch over the latency of the first regime measured of {', '.join(REGIME_ORDER)}",
        family="latency",
        better="higher",
        shown=frozenset({"networks"}),
    ),
    _memory(
        "total",
        "total memory",
        "inputs, parameters, what the operator keeps, and the peak of a call above these; what ranking goes by",
        None,
        ("terminal", "cases"),
        _total,
    ),
    _memory("peak", "peak memory", "of a call, above what was resident before it", "tolerance", ("cases",)),
    _memory(
        "kept",
        "kept memory",
        "what the operator holds between calls beyond its parameters: filters, buffers, workspaces that stay",
        None,
        ("cases",),
        _kept,
    ),
    _memory(
        "resident",
        "resident memory",
        "inputs, parameters, what is kept and, in training, the output's gradient: there before the call",
        "tolerance",
        ("cases",),
    ),
    _memory("predicted", "predicted memory", "the peak that fake tensors foretold"),
    _memory("workspace", "workspace memory", "peak without what was predicted: what kernels took inside"),
    _memory("saved", "saved memory", "what autograd kept for backward"),
    _memory("output", "output memory", "the result"),
    _memory("reserved", "reserved memory", "what the allocator's pool grew by in one warm call (CUDA)"),
    _memory(
        "device_delta",
        "device memory",
        "what the card's free memory shrank by in one warm call: no plans, no libraries, which were there (CUDA)",
    ),
    _count(
        "flops",
        "flops",
        "FLOPs",
        "real FLOPs of the closed form, or where both counters contradict it what was counted; FFTs nominal",
        "exact",
        ("terminal", "cases"),
    ),
    _count(
        "flops_executed",
        "executed",
        "executed FLOPs",
        "additions and multiplications as executed, where known: O(r²) for an odd radix r of the C kernel; of "
        "torch's FFTs and convolutions they are not known",
    ),
    _count("flops_forward", "closed_forward", "forward FLOPs", "real FLOPs of the closed form, forward only"),
    # What the code was seen to do: it changes where the closed form, which is written by hand, does not.
    _count(
        "flops_counted",
        "counted",
        "counted FLOPs",
        "FlopCounterMode with formulas for FFTs and complex products",
        "exact",
    ),
    _count("flops_fvcore", "fvcore", "fvcore FLOPs", "fvcore ×2 with handlers, forward only", "exact"),
    _count("flops_stock_torch", "stock_torch", "stock torch FLOPs", "torch's FlopCounterMode as it comes"),
    _count("flops_stock_fvcore", "stock_fvcore", "stock fvcore FLOPs", "fvcore as it comes, ×2, forward only"),
    _share_of_flops(
        "stock_counter_share",
        "stock counter share",
        _stock_share,
        "share of the FLOPs that the better of the two stock counters sees",
    ),
    _share_of_flops(
        "taps_share",
        "taps in the image",
        _taps_share,
        "share of a zero-padded k×k kernel's multiply-adds that meet the image; its FLOPs count them all",
    ),
    _count("bytes_floor", "bytes_floor", "least traffic", "inputs read and outputs written once"),
    _count(
        "bytes_own", "bytes_own", "own traffic", "bytes that the form's steps read and write", None, ("cases",)
    ),
    Metric(
        key="largest_prime_factor",
        title="largest prime factor",
        unit="",
        read=_at("cost.largest_prime_factor"),
        meaning="of the lengths of the FFTs",
        family="flops",
        better=None,
        exact=True,
        statuses=ANY,
    ),
    Metric(
        key="parameters",
        title="parameters",
        unit="count",
        read=_at("parameters"),
        meaning="numbers that training changes",
        family="parameters",
        exact=True,
        statuses=ANY,
        gate="exact",
        shown=frozenset({"cases"}),
    ),
    _error("error_l2", "l2", "error", "relative L2 of the output against float64", ("cases",)),
    _error("error_max", "max", "maximum error", "largest error of the output over its largest value"),
    _error(
        "error_gradient_l2",
        "gradient.l2",
        "gradient error",
        "relative L2 of the worst gradient against float64",
        ("cases",),
    ),
    _error("error_gradient_max", "gradient.max", "maximum gradient error", "the same by its largest error"),
    _error(
        "error_gradient_exact",
        "exact_gradient.l2",
        "gradient error in float64",
        "relative L2 of the worst gradient of the operator run in float64, where units switch",
    ),
    Metric(
        key="energy",
        title="energy",
        unit="J",
        read=_at("energy"),
        meaning="joules per call",
        family="energy",
        compared=True,
        shown=frozenset({"cases"}),
    ),
    Metric(
        key="energy_per_image",
        title="energy per image",
        unit="J",
        read=lambda record: None if record.energy is None else record.energy / record.case.problem.batch,
        meaning="joules of a call over its batch",
        family="energy",
        shown=frozenset({"cases"}),
    ),
    _machine("load", "load", "", "load average per core"),
    _machine("others", "others' load", "share", "other processes' share of the processor while it was sampled"),
    _machine("sm_clock", "SM clock", "MHz", "clock of the card's multiprocessors", "smallest"),
    _machine("temperature", "temperature", "°C", "of the card"),
    _machine("power", "power", "W", "drawn by the card"),
    *map(_samples_metric, REGIMES),
    _always("elapsed", "elapsed time", "s", "wall time of the case in a round", "time"),
    _always("measuring", "sampling time", "s", "the part of it inside sampling", "time"),
    _always("needed", "needed memory", "B", "what a case that ran out of memory, or was skipped, needs", "limit"),
    _always("available", "available memory", "B", "what there was of it", "limit"),
)

REGISTRY: dict[str, Metric] = {metric.key: metric for metric in _METRICS}
"""Every metric by its key, in the order of tables."""

SHORT = {"latency": "", "memory": "memory_total", "error": "error_l2"}
"""Short names for the main one of a family; see :func:`key_of`. Operators are ranked by this ``memory``."""


def over_rounds(records: Sequence[Record]) -> dict[str, float]:
    """Every metric that the rounds of one case have a value of, by its key."""
    values = {
        key: [value for record in records if not isinstance(value := round_value(record, metric), Reason)]
        for key, metric in REGISTRY.items()
    }
    return {key: REGISTRY[key].of_rounds(some) for key, some in values.items() if some}


def key_of(name: str, regime: Regime) -> str:
    """The key that a short name stands for: ``latency`` (of the run's main regime), ``memory``, ``error``."""
    return f"latency_{regime}" if name == "latency" else SHORT.get(name, name)


def headline(regime: Regime) -> tuple[Metric, Metric, Metric]:
    """What operators are judged by: latency in a run's main regime, memory, FLOPs."""
    latency, memory, flops = (REGISTRY[key_of(name, regime)] for name in ("latency", "memory", "flops"))
    return latency, memory, flops


def shown(place: Place) -> Iterator[Metric]:
    """The metrics that a place shows unasked, in their order."""
    return (metric for metric in REGISTRY.values() if place in metric.shown)


def dictionary() -> list[dict[str, str]]:
    """The data dictionary: what every column of frame, CSV and JSON is, one line a metric."""
    return [
        {
            "metric": metric.key,
            "title": metric.title,
            "unit": metric.unit,
            "better": metric.better or "",
            "certainty": metric.certainty,
            "gate": metric.gate or "",
            "summary": metric.meaning,
        }
        for metric in REGISTRY.values()
    ]
