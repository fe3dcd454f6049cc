"""``niffbench profile``: where the time and memory of an operator go, step by step."""

from __future__ import annotations

import json
import os
import re
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import click

from niffbench.case import DType, MemoryFormat, Mode
from niffbench.errors import NothingMeasured, UsageError

if TYPE_CHECKING:
    from niffbench.case import Case
    from niffbench.report.plots.canvas import Plot
    from niffbench.report.table import Table
    from niffbench.worker.phases import Kernel, Phase
    from niffbench.worker.profiling import Profiled

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
    help="Where traces, plot and figures go.  [default: reports/profile-CASE-TIME-ID]",
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
    from niffbench.device import open_computing
    from niffbench.session import directory
    from niffbench.worker.profiling import document, profiled

    cases = _cases(operators, axes, options)
    name = re.sub(r"[^\w.-]+", "-", operators[0])
    out = out or directory.default(f"profile-{name}")
    directory.check_vacant(out)
    opened = open_computing(device, threads, "to take apart")
    directory.make(out)
    before = opened.processor()
    apart: list[Profiled] = []
    missing: list[str] = []
    for case in cases:
        try:
            apart.append(profiled(opened, case, out))
        except NothingMeasured as error:
            missing.append(str(error))
    if not apart:
        with suppress(OSError):  # what a case left there stays
            out.rmdir()
        raise NothingMeasured("; ".join(missing))
    others = (opened.processor() - before).share
    figures, plot = json.dumps(document(opened, apart, others), indent=1), _plot(apart)
    try:
        (out / "profile.json").write_text(figures + "\n", encoding="utf-8")
        (out / "phases.svg").write_text(plot.svg, encoding="utf-8")
        (out / "phases.png").write_bytes(plot.png)
    except OSError as error:
        raise UsageError(f"--out {out}: cannot be written ({error.strerror})") from error
    if as_json:
        click.echo(figures)
    else:
        _print(apart, out, others)
    if missing:
        raise NothingMeasured(f"{'; '.join(missing)}; the others were taken apart")


def _cases(rows: tuple[str, ...], axes: dict[str, Any], options: tuple[str, ...]) -> tuple[Case, ...]:
    """The cases asked for; each option goes to the operators that have it.

    Raises:
        UsageError: for a size that is none, or an option that no operator has.
    """
    from niffbench.operators.catalogue import catalogue
    from niffbench.operators.module import UserOperator, check, declare
    from niffbench.suite import cases_of, entry_of, operator_of, setting_of

    match = re.fullmatch(r"(\d+)(?:[x×](\d+))?", axes["size"])
    if match is None:
        raise UsageError(f"--size {axes['size']}: should be a side or HxW, as 56 or 56x40")
    axes |= {"size": [[int(match[1]), int(match[2])]] if match[2] else int(match[1])}
    settings = dict(setting_of(text, f"--option {text}") for text in options)
    entries = []
    offered: set[str] = set()
    for entry in map(entry_of, rows):
        if entry.name is None:
            entries.append(entry)
            continue
        names = catalogue()[operator_of(entry.name, catalogue(), "profile")[0]].options.keys()
        own = {key: value for key, value in settings.items() if key in names}
        entries.append(entry.model_copy(update={"options": own | entry.options}))
        offered |= names
    if unknown := sorted(settings.keys() - offered):
        having = ", ".join(sorted(offered)) or "none"
        raise UsageError(f"--option {unknown[0]}: none of these operators has it; they have {having}")
    given = {axis: value for axis, value in axes.items() if value is not None}
    cases = cases_of(entries, given, "profile", catalogue(), declare).cases
    for case in cases:
        operator = catalogue()[case.operator]
        if isinstance(operator, UserOperator):
            check(operator.row(case))
    return cases


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


def _print(profiled: list[Profiled], out: Path, others: float | None) -> None:
    from niffbench.report import text
    from niffbench.report.writers.terminal import Terminal, console
    from niffbench.results import is_busy

    out_console = console()
    for one in profiled:
        phases = one.phases
        out_console.print(Terminal(_table(one)))
        cost = phases.whole / phases.steady - 1 if phases.steady > 0 else 0.0
        out_console.print(
            f"An instrumented call takes {text.seconds(phases.whole)}, a plain one {text.seconds(phases.steady)} "
            f"({cost:+.0%}). Steps and remainder add up to {text.seconds(phases.instrumented)}, a gap of "
            f"{phases.gap:.1%}. {_overhead(one)}\n"
        )
    if others is not None and is_busy(others):
        out_console.print(
            f"Other processes used {text.percent(others)} of the processor meanwhile: repeat this on a quiet "
            "machine."
        )
    click.echo(f"Plot: {out / 'phases.svg'}")
    click.echo(f"Traces, for ui.perfetto.dev: {', '.join(str(one.trace) for one in profiled)}")


def _overhead(one: Profiled) -> str:
    """What share of a call is there only for the FFTs."""
    from niffbench.report import text

    phases = one.phases
    steps = [phase.seconds for phase in phases.phases if phase.name in TRANSFORMS]
    if one.transforms and not steps:
        split = f"{one.case.operator.partition('/')[0]}/rfft"
        return f"Its transforms are inside one kernel and cannot be told apart; profile {split} for the split."
    return f"FFTs, shifts and real parts are {text.percent(sum(steps) / phases.instrumented)} of it."


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
            text.percent(phase.seconds / phases.instrumented),
            text.flops(phase.flops),
            _rate(phase, phase.flops, "FLOP/s"),
            text.size_of(phase.bytes),
            _rate(phase, phase.bytes, "B/s"),
            text.size_of(phase.peak),
            _names(phase.kernels),
        )
        for phase in phases.phases
    ]
    share = text.percent(phases.remainder / phases.instrumented)
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
