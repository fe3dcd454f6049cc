"""``niffbench doctor``: what machine is this, is it quiet, is CUDA usable, which counters work."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from collections.abc import Iterable

    from rich.console import Console


@click.command()
@click.option("--device", default="auto", show_default=True, metavar="DEVICE", help="auto, cpu, cuda or cuda:N.")
@click.option("--threads", type=click.IntRange(1, 4096), metavar="N", help="[default: physical cores]")
@click.option("--strict", is_flag=True, help="Exit 1 when the machine is not fit to gate on.")
@click.option("--json", "as_json", is_flag=True, help="Print everything as JSON instead of tables.")
@click.pass_context
def command(context: click.Context, /, device: str, threads: int | None, strict: bool, as_json: bool) -> None:
    """Examine the machine: what it is, whether it is quiet enough to measure on, what works.

    With --strict the exit code is 1 when a gate would not be reliable here, and each reason comes with a remedy.
    Every counter is really called. Takes a few seconds.
    """
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # read when torch is loaded
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    findings = _examine(device, threads)
    if as_json:
        click.echo(json.dumps(findings, indent=1))
    else:
        _print(findings)
    if strict and findings["unfit"]:
        for reason, remedy in findings["unfit"].items():
            click.echo(f"not fit to gate on: {reason}; {remedy}", err=True)
        context.exit(1)


def _examine(spec: str, threads: int | None) -> dict[str, Any]:
    from dataclasses import asdict

    from niffbench.device import devices, kind, kind_of, open_computing
    from niffbench.worker import health_check as health_check
    from niffbench.worker.machine import fingerprint

    device = open_computing(spec, threads, "to examine")
    machine = fingerprint(device)
    accelerators = {name: kind(name) for name in devices() if kind(name).accelerator}
    governor = machine.should.get("governor")
    quiet = health_check.quiet(None if governor is None else str(governor))
    return {
        "unfit": health_check.unfit(quiet, machine.should),
        "fingerprint": {"hash": machine.hash, **machine.model_dump()},
        "quiet": asdict(quiet),
        "timer_resolution": health_check.resolution(),
        "device": device.spec,
        "free_memory": device.free_memory(),
        "accelerators": list(accelerators),
        **{
            name: {
                "usable": one.is_usable(),
                "detail": one.describe(),
                "nvml": dict(device.counters()) if name == kind_of(device.spec) else {},
            }
            for name, one in accelerators.items()
        },
        "compiler": health_check.compiler(),
        "kernel": health_check.kernel(),
        "counters": [asdict(counter) for counter in health_check.check_counters(device)],
    }


def _print(findings: dict[str, Any]) -> None:
    from niffbench.report import text
    from niffbench.report.writers.terminal import console as make_console

    console = make_console()
    machine, quiet = findings["fingerprint"], findings["quiet"]
    facts = [(key, str(value)) for tier in ("must", "should") for key, value in machine[tier].items()]
    _show(console, f"Machine (fingerprint {machine['hash']})", facts)
    others = "not told here" if quiet["others"] is None else f"{text.percent(quiet['others'])} of the processor"
    verdict = "quiet" if not quiet["remarks"] else "noisy: " + "; ".join(quiet["remarks"])
    _show(
        console,
        "Is it quiet?",
        [
            ("verdict", verdict),
            ("load per core, last minute", f"{quiet['load']:.2f}"),
            ("other processes", others),
            ("jitter (5 % to 95 %)", f"{quiet['jitter']:.1%}"),
            ("slowest of a few hundred", f"{quiet['worst']:.1f} × the median"),
            ("timer's resolution", text.seconds(findings["timer_resolution"])),
            ("free memory", text.size_of(findings["free_memory"])),
        ],
    )
    works = []
    for name in findings["accelerators"]:
        works.append((name.upper(), findings[name]["detail"]))
        works += [
            (f"NVML {counter}", "works" if fine else "no answer")
            for counter, fine in findings[name]["nvml"].items()
        ]
    works += [(counter["name"], counter["detail"]) for counter in findings["counters"]]
    works += [("C++ compiler for torch.compile", findings["compiler"] or "none found")]
    works += [("NIFF's C kernel", findings["kernel"])]
    _show(console, "What works", works)


def _show(console: Console, title: str, rows: Iterable[tuple[str, str]]) -> None:
    from niffbench.report.table import Column, Entry, Table, row_of
    from niffbench.report.writers.terminal import Terminal

    lines = tuple(row_of(Entry(key, marks=("quiet",)), value) for key, value in rows)
    console.print(Terminal(Table("", title, (Column(""), Column("", "prose")), lines)), "")
