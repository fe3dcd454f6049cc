"""``niffbench profile``: where the time and memory of an operator go, step by step."""

from __future__ import annotations

import json
import os
import re
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import click

from niffbench.case import DType, MemoryFormat, Mode
from niffbench.errors import NothingMeasured, UsageError

if TYPE_CHECKING:
    from niffbench.case import Case
    from niffbench.device import Device
    from niffbench.report.plots.canvas import Plot
    from niffbench.report.table import Table
    from niffbench.worker.phases import Kernel, Phase, Phases

TRANSFORMS = ("forward fft", "inverse fft", "shift", "real part")
"""Steps that only exist because the work is done by FFTs."""

_MOST_KERNELS = 2


@click.command()
@click.argument("operators", nargs=-1, required=True, metavar="CASE...")
@click.option("--channels", type=click.IntRange(1, 2**20), default=64, show_default=True, metavar="N")
@click.option("--channels-out", type=click.IntRange(1, 2**20), metavar="N", help="[default: as --channels]")
@click.option("--size", default="56", show_default=True, metavar="H|HxW", help="Height and width of the input.")
@click.option("--batch", type=click.IntRange(1, 2**20), default=1, show_default=True, metavar="N")
@click.option("--mode", type=click.Choice(get_args(Mode)), default="inference", show_default=True)
@click.option("--dtype", type=click.Choice(get_args(DType)), default="float32", show_default=True)
@click.option(
    "--memory-format", type=click.Choice(get_args(MemoryFormat)), default="contiguous", show_default=True
)
@click.option(
    "--option",
    "options",
    multiple=True,
    metavar="NAME=VALUE",
    help="A setting of the operators that have it, as mlp=big.  Repeatable.",
)
@click.option("--device", default="auto", show_default=True, metavar="DEVICE", help="auto, cpu, cuda or cuda:N.")
@click.option("--threads", type=click.IntRange(1, 4096), metavar="N", help="[default: physical cores]")
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="Where traces, plot and figures go.  [default: reports/profile-CASE-TIME]",
)
@click.option("--json", "as_json", is_flag=True, help="Print the figures as JSON instead of tables.")
def command(
    operators: tuple[str, ...],
    options: tuple[str, ...],
    device: str,
    threads: int | None,
    out: Path | None,
    as_json: bool,
    **axes: Any,
) -> None:
    """Take operators apart: time, FLOPs, bytes and memory of each step, and the kernels behind it.

    CASE is a row of the tables, as niff-depthwise/rfft or depthwise-k31; several are set side by side. Writes a
    Chrome trace of each (open it in Perfetto), a stacked-bar plot and the figures as JSON.
    """
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # read when torch is loaded
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    from niffbench.device import open_device
    from niffbench.session.directory import check_vacant, make

    cases = _cases(operators, axes, options)
    if device.startswith("replay"):
        raise UsageError(f"--device {device}: a replay has no kernels to profile; take auto, cpu, cuda or cuda:N")
    name = re.sub(r"[^\w.-]+", "-", operators[0])
    out = out or Path("reports") / f"profile-{name}-{datetime.now():%Y%m%d-%H%M%S}"
    check_vacant(out)
    opened = open_device(device, threads)
    make(out)
    profiled = [_profiled(opened, case, out) for case in cases]
    document, plot = _document(opened, profiled), _plot(profiled)
    try:
        (out / "profile.json").write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
        (out / "phases.svg").write_text(plot.svg, encoding="utf-8")
        (out / "phases.png").write_bytes(plot.png)
    except OSError as error:
        raise UsageError(f"--out {out}: cannot be written ({error.strerror})") from error
    if as_json:
        click.echo(json.dumps(document, indent=1))
    else:
        _print(profiled, out)


@dataclass(frozen=True)
class Profiled:
    """One case with its label and what was found; ``transforms``: whether by its closed form it makes FFTs."""

    case: Case
    label: str
    trace: Path
    phases: Phases
    transforms: bool


def _cases(operators: tuple[str, ...], axes: dict[str, Any], options: tuple[str, ...]) -> list[Case]:
    """The cases asked for, checked as a suite's are. Raises UsageError."""
    from niffbench.operators.catalogue import catalogue
    from niffbench.suite import of_values, operator_of

    known = catalogue()
    match = re.fullmatch(r"(\d+)(?:[x×](\d+))?", axes["size"])
    if match is None:
        raise UsageError(f"--size {axes['size']}: should be a side or HxW, as 56 or 56x40")
    axes |= {"size": [[int(match[1]), int(match[2])]] if match[2] else int(match[1])}
    settings = dict(_setting(text) for text in options)
    taken: set[str] = set()
    entries = []
    for text in operators:
        operator, _ = operator_of(text, known, "profile")
        own = {key: value for key, value in settings.items() if key in known[operator].options}
        taken |= own.keys()
        entries.append({"name": text, "options": own})
    if unknown := sorted(settings.keys() - taken):
        having = sorted({key for text in operators for key in known[operator_of(text, known, "")[0]].options})
        raise UsageError(
            f"--option {unknown[0]}: none of these operators has it; they have {', '.join(having) or 'none'}"
        )
    document = {
        "description": "profile",
        "baseline": _row(operators[0], settings),
        "axes": {axis: value for axis, value in axes.items() if value is not None},
        "operators": entries,
    }
    return list(of_values(document, "profile", known).cases)


def _row(text: str, settings: dict[str, Any]) -> str:
    """The label of the row ``text`` with the ``settings`` it has: a suite wants one of its rows as baseline."""
    from niffbench.operators.catalogue import catalogue
    from niffbench.suite import operator_of

    known = catalogue()
    options = known[operator_of(text, known, "profile")[0]].options
    own = {key: settings[key] for key in sorted(settings.keys() & options.keys())}
    return " ".join([text, *(f"{key}={value}" for key, value in own.items() if value != options[key].default)])


def _setting(text: str) -> tuple[str, Any]:
    key, mark, value = text.partition("=")
    if not mark:
        raise UsageError(f"--option {text}: should be NAME=VALUE, as mlp=big")
    try:
        return key, json.loads(value)
    except ValueError:
        return key, value


def _profiled(device: Device, case: Case, out: Path) -> Profiled:
    """Check ``case`` against float64, then take it apart. Raises NothingMeasured when that cannot be done."""
    from niffbench.operators.catalogue import catalogue
    from niffbench.worker import phases, tolerance
    from niffbench.worker.failures import DeviceLost, explain
    from niffbench.worker.torch_evaluator import TorchEvaluator

    operator = catalogue()[case.operator]
    label, trace = operator.label(case), out / f"trace-{case.id}.json"
    name = f"{label} at {case.problem.label}"
    try:
        evaluator = TorchEvaluator(device)
        workload = evaluator.workload(case)
        _, output = device.timed(workload)
        numerics = evaluator.numerics(workload, output)
        del output
        if tolerance.is_wrong(numerics):
            raise NothingMeasured(f"{name}: {tolerance.verdict(numerics)}")
        choice = evaluator.choice(workload)
        cost = (operator if choice is None else choice.operator).cost(case)
        found = phases.profile(device, workload, evaluator.cost(case, choice).steps, trace)
    except NothingMeasured:
        raise
    except OSError as error:
        raise UsageError(f"--out {out}: cannot be written ({error.strerror})") from error
    except Exception as error:
        try:
            failure = explain(error, device.free_memory)
        except DeviceLost as lost:
            raise NothingMeasured(f"{name}: the device is lost: {lost}") from error
        raise NothingMeasured(f"{name}: {failure.status}: {failure.reason}") from error
    if not found.instrumented > 0:  # CUPTI is not there, or not for this user
        raise NothingMeasured(
            f"{name}: torch's profiler saw none of its kernels; does CUPTI work on this machine?"
        )
    return Profiled(case, label, trace, found, bool(cost.transform_lengths))


def _document(device: Device, profiled: list[Profiled]) -> dict[str, Any]:
    from niffbench.worker.machine import fingerprint

    return {
        "fingerprint": fingerprint(device).model_dump(),
        "cases": [
            {
                "label": one.label,
                "case": asdict(one.case),
                "trace": one.trace.name,
                "instrumented": one.phases.instrumented,
                "gap": one.phases.gap,
                **asdict(one.phases),
            }
            for one in profiled
        ],
    }


def _plot(profiled: list[Profiled]) -> Plot:
    from niffbench.report.plots.steps import Bar, measured_steps

    bars = [
        Bar(
            one.label,
            tuple((phase.name, phase.seconds) for phase in one.phases.phases if phase.direction == "forward"),
            tuple((phase.name, phase.seconds) for phase in one.phases.phases if phase.direction == "backward"),
            one.phases.remainder,
        )
        for one in profiled
    ]
    return measured_steps(bars, profiled[0].case.problem.label)


def _print(profiled: list[Profiled], out: Path) -> None:
    from niffbench.report import text
    from niffbench.report.writers.terminal import Terminal, console

    out_console = console()
    for one in profiled:
        found = one.phases
        out_console.print(Terminal(_table(one)))
        cost = found.whole / found.steady - 1 if found.steady > 0 else 0.0
        out_console.print(
            f"An instrumented call takes {text.seconds(found.whole)}, a plain one {text.seconds(found.steady)} "
            f"({cost:+.0%}). Steps and remainder add up to {text.seconds(found.instrumented)}, a gap of "
            f"{found.gap:.1%}. {_overhead(one)}\n"
        )
    click.echo(f"Plot: {out / 'phases.svg'}")
    click.echo(f"Traces, for ui.perfetto.dev: {', '.join(str(one.trace) for one in profiled)}")


def _overhead(one: Profiled) -> str:
    """What share of a call is there only for the FFTs."""
    found = one.phases
    steps = [phase.seconds for phase in found.phases if phase.name in TRANSFORMS]
    if one.transforms and not steps:
        split = f"{one.case.operator.partition('/')[0]}/rfft"
        return f"Its transforms are inside one kernel and cannot be told apart; profile {split} for the split."
    return f"FFTs, shifts and real parts are {sum(steps) / found.instrumented:.0%} of it."


def _table(one: Profiled) -> Table:
    from niffbench.report import text
    from niffbench.report.table import Column, Entry, Table, row_of

    phases = one.phases
    columns = (
        Column("step"),
        Column("time", "figure", unit="s"),
        Column("share", "figure", importance=8),
        Column("FLOPs", "figure", unit="FLOP", importance=7),
        Column("per second", "figure", "flop_rate", importance=5),
        Column("bytes", "figure", unit="B", importance=6),
        Column("per second", "figure", "byte_rate", importance=4),
        Column("peak", "figure", unit="B", importance=6),
        Column("kernels", "prose", importance=3),
    )
    rows = [
        row_of(
            Entry(phase.name, phase.direction if phase.direction == "backward" else ""),
            text.seconds(phase.seconds),
            f"{phase.seconds / phases.instrumented:.0%}",
            text.flops(phase.flops),
            _rate(phase, phase.flops, "FLOP/s"),
            text.size_of(phase.bytes),
            _rate(phase, phase.bytes, "B/s"),
            text.size_of(phase.peak),
            _names(phase.kernels),
        )
        for phase in phases.phases
    ]
    share = f"{phases.remainder / phases.instrumented:.0%}"
    outside = ("outside the steps", text.seconds(phases.remainder), share, *[""] * 5, _names(phases.outside))
    title = f"{one.label} at {one.case.problem.label}"
    return Table("steps", title, columns, (*rows, row_of(*outside)))


def _rate(phase: Phase, amount: int | None, unit: str) -> str:
    from niffbench.report import text

    return text.rate(amount / phase.seconds if amount and phase.seconds > 0 else None, unit)


def _names(kernels: tuple[Kernel, ...]) -> str:
    return ", ".join(
        f"{kernel.name.removeprefix('aten::')[:60]} ({kernel.library})" for kernel in kernels[:_MOST_KERNELS]
    )
