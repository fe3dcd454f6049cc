"""Options that several commands share, and the units people write numbers in."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from math import inf
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from niffbench.units import NUMBER

if TYPE_CHECKING:
    from niffbench.launch.base import Request
    from niffbench.session.opening import SuiteLoader
    from niffbench.suite import Overrides

Command = TypeVar("Command", bound=Callable[..., Any])

_BYTES: dict[tuple[str | None, str | None], int] = {(None, None): 1}
for _power, _prefix in enumerate("KMGT", start=1):
    _BYTES |= {(_prefix, ""): 1000**_power, (_prefix, "I"): 1024**_power}


def share(context: click.Context, parameter: click.Parameter, value: str | None) -> float | None:
    """A callback that reads a share between 0 and 1, as ``0.02`` or ``2%``; None stays None."""
    if value is None:
        return None
    match = re.fullmatch(NUMBER + r"\s*(%?)", value.strip())
    number = float(match[1]) / (100 if match[2] else 1) if match else 0.0
    if not 0 < number < 1:
        raise click.BadParameter(f"{value!r} should be a share between 0 and 1, as 2% or 0.02", context, parameter)
    return number


def duration(context: click.Context, parameter: click.Parameter, value: str | None) -> float | None:
    """A callback that reads a time in seconds, as ``90``, ``90s``, ``500ms``, ``10m`` or ``1h30m``."""
    if value is None:
        return None
    from niffbench.suite.schema import MAX_TIME, seconds_of

    seconds = seconds_of(value)
    if seconds is None or not 0 < seconds <= MAX_TIME:
        message = f"{value!r} should be a time above zero, as 90s, 500ms or 10m, and at most a week"
        raise click.BadParameter(message, context, parameter)
    return seconds


def size(context: click.Context, parameter: click.Parameter, value: str | None) -> int | None:
    """A callback that reads a number of bytes, as ``8GiB``, ``500MB`` or ``1048576``."""
    if value is None:
        return None
    match = re.fullmatch(NUMBER + r"\s*(?:([KMGT])(I?)B?|B?)", value.strip().upper())
    number = float(match[1]) * _BYTES[(match[2], match[3])] if match else 0.0
    if not 1 <= number < inf:
        message = f"{value!r} should be a number of bytes, as 8GiB, 500MB or 1048576"
        raise click.BadParameter(message, context, parameter)
    return int(number)


def _pairs(context: click.Context, parameter: click.Parameter, values: tuple[str, ...]) -> list[tuple[str, str]]:
    """A callback that reads ``key=value``, each key once."""
    pairs: list[tuple[str, str]] = []
    for text in values:
        key, mark, value = text.partition("=")
        if not mark or not re.fullmatch(r"[a-z][a-z0-9_-]*", key):
            raise click.BadParameter(f"{text!r} should be KEY=VALUE, as partition=gpu", context, parameter)
        if key in dict(pairs):
            raise click.BadParameter(f"{key} is given twice", context, parameter)
        pairs.append((key, value))
    return pairs


def _replaced(_: click.Context, __: click.Parameter, values: tuple[str, ...]) -> dict[str, str]:
    """A callback that reads ``layer=kind``."""
    from niffbench.suite import setting_of

    return {key: str(kind) for key, kind in (setting_of(one, f"--replace {one}") for one in values)}


def loader(suite: str, only: tuple[str, ...], shard: str | None, added: tuple[str, ...] = ()) -> SuiteLoader:
    """Reads ``suite`` as ``--only``, ``--shard`` and ``--operator`` change it, once for each kind of device."""
    from functools import cache

    from niffbench.device import devices
    from niffbench.operators.catalogue import catalogue
    from niffbench.operators.module import declare
    from niffbench.suite import DeviceType, Shard, Suite, load

    part = None if shard is None else Shard.parse(shard)

    @cache
    def read(kind: DeviceType | None) -> Suite:
        return load(
            suite,
            catalogue(),
            only=only,
            shard=part,
            device=kind,
            devices=devices(),
            added=added,
            declare=declare,
        )

    return read


def overrides_of(options: Mapping[str, Any]) -> Overrides:
    """What :func:`suite_options` and :func:`measure_options` collected; a seed is drawn if none was given."""
    from secrets import randbelow

    from niffbench.suite import Overrides

    seed = options.get("seed")
    launcher, device = place_of(options)
    return Overrides(
        device=device or "auto",
        launcher=launcher or "local",
        at_once=options["at_once"],
        rounds=options["rounds"],
        seed=randbelow(2**31) if seed is None else seed,
        precision=options["precision"],
        min_time=options["min_time"],
        max_time=options["max_time"],
        case_timeout=options["case_timeout"],
        threads=options["threads"],
        memory_limit=options["memory_limit"],
        budget=options["time_budget"],
        refine=options["refine"],
    )


def place_of(options: Mapping[str, Any]) -> tuple[str | None, str | None]:
    """The launcher and the device that are asked for; ``--devices`` is a launcher of its own.

    Raises:
        UsageError: for ``--devices`` beside another launcher, or ``--device``.
    """
    from niffbench.errors import UsageError

    if (several := options["devices"]) is None:
        return options["launcher"], options["device"]
    for option, other in (("--on", options["launcher"]), ("--device", options["device"])):
        if other is not None:
            raise UsageError(f"--devices {several}: names devices of this machine, so leave out {option} {other}")
    return "devices", several


def request_of(
    options: Mapping[str, Any], directory: Path, load: SuiteLoader, device: str | None = None
) -> Request:
    """What :func:`measure_options` collected that says how the workers of the run in ``directory`` are placed."""
    from niffbench.device import kind_of
    from niffbench.launch.base import Request
    from niffbench.operators.module import file_of

    device = device or place_of(options)[1] or "auto"
    rows = [(row.source.rpartition(":")[0], row.folders) for row in load(kind_of(device)).modules]
    files = {file_of(name, folders) for name, folders in rows if name.endswith(".py")}
    return Request(
        directory=directory,
        device=device,
        files=sorted(file for file in files if file is not None),
        workers=options["workers"],
        gpus=options["gpus_per_worker"],
        cpus=options["cpus_per_worker"],
        options=dict(options["launcher_options"]),
    )


def placement(options: Mapping[str, Any]) -> list[str]:
    """The arguments that place the workers of a resumed run as ``options`` did."""
    given = [("--on", options["launcher"]), ("--workers", options["workers"])]
    given += [("--gpus-per-worker", options["gpus_per_worker"]), ("--cpus-per-worker", options["cpus_per_worker"])]
    given += [("--launcher-option", f"{key}={value}") for key, value in options["launcher_options"]]
    return [text for option, value in given if value is not None for text in (option, str(value))]


def suite_options(command: Command) -> Command:
    """``--device`` and ``--only``: on what, and which of a suite's cases."""
    return _with(
        command,
        click.option(
            "--device", metavar="DEVICE", help="auto, cpu, cuda, cuda:N or replay:FILE.  [default: auto]"
        ),
        click.option(
            "--only",
            multiple=True,
            metavar="PATTERN",
            help="Only these cases: an operator or row ('niff-*', depthwise-k7), a case's id, or axis=value. "
            "Of one axis any may fit, of several all must. Repeatable.",
        ),
    )


shard_option = click.option(
    "--shard",
    metavar="N/M",
    help="Only the Nth of M parts, made of whole problems; `niffbench merge` puts the M runs together.",
)
operator_option = click.option(
    "--operator",
    "added",
    multiple=True,
    metavar="ROW",
    help="One more row: 'niff-depthwise/rfft mlp=big', or a module of your own, as 'my_ops.py:MyConv groups=4' "
    "(label=…, like=… and reference=… are for the row itself).  Repeatable.",
)


min_time_option = click.option(
    "--min-time", callback=duration, metavar="TIME", help="Sample each regime for at least so long."
)
threads_option = click.option(
    "--threads",
    type=click.IntRange(1, 4096),
    metavar="N",
    help="Threads of one operation on a CPU.  [default: physical cores]",
)
time_budget_option = click.option(
    "--time-budget",
    callback=duration,
    metavar="TIME",
    help="Be done in about so long, as 10m; every case is measured at least once.",
)


def conversion_options(command: Command) -> Command:
    """``--network``, ``--keep`` and ``--replace``: which network a checkpoint is of, or a name stands for."""
    return _with(
        command,
        click.option(
            "--network", metavar="NAME", help="Which network a checkpoint's weights are of, if it does not say."
        ),
        click.option(
            "--keep",
            multiple=True,
            metavar="PATTERN",
            help="Leave layers of such names as they are, 'layer4.*' say, when converting NETWORK.  Repeatable.",
        ),
        click.option(
            "--replace",
            "replaced",
            multiple=True,
            callback=_replaced,
            metavar="LAYER=KIND",
            help="What becomes of the layers of torchvision:NAME, timm:NAME or my_nets.py:NAME: conv3x3=split or "
            "full, conv1x1=pointwise, depthwise=depthwise.  Repeatable.",
        ),
    )


def measure_options(command: Command) -> Command:
    """What overrides a suite's own settings, for all cases and rounds."""
    return _with(
        command,
        click.option(
            "--on",
            "launcher",
            metavar="LAUNCHER",
            help="Where the workers are started: local, ray or slurm.  [default: local, this machine]",
        ),
        click.option(
            "--workers",
            type=click.IntRange(1, 100_000),
            metavar="N",
            help="How many measure at once, each on resources of its own.  [default: as many as a Ray cluster has "
            "room for; 4 on Slurm]",
        ),
        click.option(
            "--gpus-per-worker",
            type=click.IntRange(0, 1024),
            metavar="N",
            help="GPUs that an engine reserves for a worker.  [default: 1 where the device is one, else 0]",
        ),
        click.option(
            "--cpus-per-worker",
            type=click.IntRange(1, 4096),
            metavar="N",
            help="Cores that an engine reserves for a worker.  [default: a node's, on Ray shared by its GPUs; on "
            "Slurm what comes with a GPU]",
        ),
        click.option(
            "--launcher-option",
            "launcher_options",
            multiple=True,
            callback=_pairs,
            metavar="KEY=VALUE",
            help="For the engine itself: address=head:6379, partition=gpu, time=60.  Repeatable.",
        ),
        click.option(
            "--devices",
            metavar="DEVICES",
            help="Several devices of this machine, as cuda:0-7 or cuda:0,2: a worker for each, on cores near it.",
        ),
        click.option(
            "--at-once/--in-turn",
            default=None,
            help="Measure on all --devices at once, or on one at a time.  [default: at once, unless one turns out "
            "to be more than 1 % slower beside the others than alone]",
        ),
        click.option(
            "--rounds",
            type=click.IntRange(1, 1000),
            metavar="N",
            help="Fresh worker processes that measure every case.  [default: the suite's]",
        ),
        click.option(
            "--precision",
            callback=share,
            metavar="SHARE",
            help="Stop sampling when the median is known so well, as 2% or 0.02.",
        ),
        min_time_option,
        click.option(
            "--max-time", callback=duration, metavar="TIME", help="Sample each regime for at most so long."
        ),
        click.option(
            "--case-timeout",
            callback=duration,
            metavar="TIME",
            help="Give a case up that takes longer than this in a round.",
        ),
        threads_option,
        click.option(
            "--memory-limit",
            callback=size,
            metavar="SIZE",
            help="Skip cases predicted to need more, as 8GiB.  [default: what is free]",
        ),
        time_budget_option,
        click.option(
            "--refine/--no-refine",
            default=None,
            envvar="NIFFBENCH_REFINE",
            help="Bracket crossovers by measuring between the suite's values.  [default: as the suite says]",
        ),
    )


def _with(command: Command, *options: Callable[[Command], Command]) -> Command:
    for option in reversed(options):
        command = option(command)
    return command
