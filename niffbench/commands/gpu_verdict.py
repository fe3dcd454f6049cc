"""``niffbench gpu-verdict``: all that a quarter of an hour of a card can tell."""

from __future__ import annotations

from pathlib import Path

import click


@click.command("gpu-verdict")
@click.option("--out", type=click.Path(path_type=Path), required=True, metavar="DIR", help="Where the results go.")
@click.option(
    "--minutes",
    type=click.FloatRange(0.05, 10_000),
    default=12.0,
    show_default=True,
    metavar="M",
    help="The time there is, shared out among the steps.",
)
@click.option(
    "--only",
    multiple=True,
    metavar="right|cost|STEP",
    help="Only the steps that show whether all is right on this card, or what it costs, or one.  Repeatable.",
)
@click.option(
    "--rounds",
    type=click.IntRange(1, 1000),
    metavar="N",
    help="Of the suites whose figures are asked for.  [default: the suite's]",
)
@click.option(
    "--suite",
    "suites",
    multiple=True,
    default=("gpu",),
    show_default=True,
    metavar="NAME",
    help="Whose figures are asked for.  Repeatable.",
)
@click.option(
    "--device",
    default="cuda",
    show_default=True,
    metavar="DEVICE",
    help="cuda or cuda:N; cpu or replay:FILE rehearse everything small.",
)
def command(
    out: Path, minutes: float, only: tuple[str, ...], rounds: int | None, suites: tuple[str, ...], device: str
) -> int:
    """Say whether all is right on this GPU, and what it costs there, in minutes.

    Steps are done in order of worth, each within its share of the time: the driver's facts, the doctor, the
    tests marked cuda, what we assume of CUDA, the smallest suite, tests that compile; then the headline suite, our
    clocks beside others', profiles, kernel sizes. A step that fails or is cut stops no other. After every step DIR
    has gathered.tar.gz with all results, verdict.md and steps.json, so that an end at any moment costs little.

    \b
    Exit codes
      0    every step was done, cut for time or skipped
      1    a step failed
      130  interrupted; what was done is gathered
    """
    from niffbench.device import devices, forms
    from niffbench.errors import INTERRUPTED, UsageError
    from niffbench.session.interrupts import Interrupts
    from niffbench.verdict import giving
    from niffbench.verdict.job import Settings, StepResult
    from niffbench.verdict.steps import chosen, steps

    if device.partition(":")[0] not in devices():
        raise UsageError(f"--device {device}: should be {forms()}")
    settings = Settings(device, minutes, rounds, suites)
    planned = chosen(steps(settings), only)

    def say(result: StepResult) -> None:
        took = f"{result.seconds:5.1f} s of {result.estimate:3.0f} s"
        click.echo(f"{result.status:<8} {result.name:<14} {took}  {result.detail}")

    with Interrupts() as stop:
        results = giving.give(out.resolve(), settings, planned, stop, say)
        click.echo(f"{out / giving.PAGE}")
        if stop.requested:
            return INTERRUPTED
    return int(any(result.status == "failed" for result in results))
