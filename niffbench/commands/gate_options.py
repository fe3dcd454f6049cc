"""Options and outputs that ``check`` and ``ab`` share: by which rules to judge, and where the verdicts go."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from niffbench.case import REGIMES
from niffbench.commands.options import share

if TYPE_CHECKING:
    from niffbench.gate.findings import Comparison
    from niffbench.gate.rules import Rules

Command = TypeVar("Command", bound=Callable[..., Any])


def limit(context: click.Context, parameter: click.Parameter, value: str) -> float:
    """A callback that reads a limit as a file of thresholds has it: ``0.03`` or ``3%``, and 0 for none."""
    from niffbench.gate.rules import fraction

    try:
        return fraction(value)
    except ValueError as error:
        raise click.BadParameter(str(error), context, parameter) from error


_FILE = click.Path(path_type=Path, dir_okay=False)

_RULES = (
    click.option(
        "--alpha",
        default="0.01",
        callback=share,
        metavar="SHARE",
        show_default=True,
        help="Bound on the chance of any false alarm in the suite, for each level that HEAD is held to.",
    ),
    click.option(
        "--min-effect",
        default="3%",
        callback=limit,
        metavar="SHARE",
        show_default=True,
        help="Least relative change of a latency that is called.",
    ),
    click.option(
        "--memory-tolerance",
        default="1%",
        callback=limit,
        metavar="SHARE",
        show_default=True,
        help="Relative change of a memory figure that is let pass.",
    ),
    click.option(
        "--rule-out",
        default="10%",
        callback=limit,
        metavar="SHARE",
        show_default=True,
        help="Exit 5 unless a slowdown of this size is ruled out for every latency.",
    ),
    click.option(
        "--regime",
        "regimes",
        multiple=True,
        type=click.Choice(REGIMES),
        help="Judge these regimes only.  [default: cold, steady, graph]",
    ),
    click.option(
        "--thresholds",
        type=_FILE,
        metavar="FILE",
        help="TOML of [[threshold]]s: cases, quantities, min_effect, memory_tolerance.",
    ),
    click.option(
        "--accept",
        type=_FILE,
        metavar="FILE",
        help="TOML of [[accept]]s: cases, quantities, up_to, reason, until; and of [[environment]]s.",
    ),
)

_OUTPUTS = (
    click.option("--all", "everything", is_flag=True, help="Show also what was shown to be the same."),
    click.option("--json", "as_json", is_flag=True, help="Print JSON instead of a table."),
    click.option(
        "--markdown", type=_FILE, metavar="FILE", help="Write Markdown, for a pull request or a CI summary."
    ),
    click.option("--junit", type=_FILE, metavar="FILE", help="Write JUnit XML."),
)


def rule_options(command: Command) -> Command:
    """Add the options that :func:`rules_of` takes."""
    for option in reversed(_RULES):
        command = option(command)
    return command


def output_options(command: Command) -> Command:
    """Add the options that :class:`Outputs` is made of."""
    for option in reversed(_OUTPUTS):
        command = option(command)
    return command


def rules_of(
    *,
    alpha: float,
    min_effect: float,
    memory_tolerance: float,
    rule_out: float,
    regimes: tuple[str, ...],
    thresholds: Path | None,
    accept: Path | None,
) -> Rules:
    """The rules asked for.

    Raises:
        UsageError: for a value that makes no sense or a faulty file.
    """
    from niffbench.errors import UsageError
    from niffbench.gate.rules import Rules, chosen

    if alpha >= 0.5:
        raise UsageError(f"--alpha should be less than 0.5, got {alpha:g}")
    return Rules(alpha, min_effect, memory_tolerance, rule_out, chosen(regimes)).reading(thresholds, accept)


@dataclass(frozen=True)
class Outputs:
    """Where a comparison is to go, beside standard output."""

    everything: bool
    as_json: bool
    markdown: Path | None
    junit: Path | None

    @classmethod
    def asked_for(cls, command: click.Command, arguments: Sequence[str]) -> Outputs:
        """What a command line that cannot be parsed asks for, as much of it as can be."""
        context = click.Context(
            command, resilient_parsing=True, ignore_unknown_options=True, allow_extra_args=True
        )
        given, _, _ = command.make_parser(context).parse_args(list(arguments))
        files = [Path(path) if (path := given.get(name)) else None for name in ("markdown", "junit")]
        return cls(False, bool(given.get("as_json")), *files)

    @contextmanager
    def promised(self) -> Iterator[None]:
        """Whatever ends the block, what was asked for is written: instead of a comparison why there is none."""
        from niffbench.cli import BUG
        from niffbench.errors import INTERRUPTED, NiffbenchError

        try:
            yield
        except (NiffbenchError, click.ClickException) as error:
            said = error.format_message() if isinstance(error, click.ClickException) else str(error)
            self._explain(error.exit_code, said)
            raise
        except (KeyboardInterrupt, click.Abort):
            self._explain(INTERRUPTED, "interrupted")
            raise
        except click.exceptions.Exit:
            raise
        except Exception as error:
            self._explain(BUG, f"a fault of niffbench: {type(error).__name__}: {error}")
            raise

    def say(self, comparison: Comparison) -> None:
        """Print the table or JSON, and write the files asked for.

        Raises:
            UsageError: for a file that cannot be.
        """
        from niffbench.report.verdicts import document, terminal
        from niffbench.report.writers import junit
        from niffbench.report.writers.terminal import console

        if self.markdown is not None:
            write(self.markdown, document(comparison).encode())
        if self.junit is not None:
            write(self.junit, junit.write(comparison))
        if self.as_json:
            print_json(comparison.for_machines())
        else:
            console().print(terminal(comparison, everything=self.everything))

    def _explain(self, exit_code: int, message: str) -> None:
        from niffbench.errors import UsageError
        from niffbench.report.verdicts import not_compared
        from niffbench.report.writers import junit

        if self.as_json:
            print_json({"exit_code": exit_code, "headline": message, "counts": {}, "findings": []})
        texts = (
            (self.markdown, not_compared(message, exit_code).encode()),
            (self.junit, junit.failure(message, exit_code)),
        )
        for path, text in texts:
            with suppress(UsageError):  # one that cannot be written is perhaps what went wrong
                if path is not None:
                    write(path, text)


class GateCommand(click.Command):
    """A command that writes its outputs at every exit, that for a command line it cannot parse included."""

    def make_context(
        self, info_name: str | None, args: list[str], parent: click.Context | None = None, **extra: Any
    ) -> click.Context:
        """As click does it."""
        with Outputs.asked_for(self, args).promised():
            return super().make_context(info_name, args, parent, **extra)


def print_json(document: object) -> None:
    """In ASCII, so that an encoding without our signs cannot spoil it."""
    click.echo(json.dumps(document, indent=1))


def write(path: Path, content: bytes) -> None:
    """Write a file asked for.

    Raises:
        UsageError: when it cannot be.
    """
    from niffbench.errors import UsageError

    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    except OSError as error:
        raise UsageError(f"{path}: cannot be written ({error.strerror})") from error
