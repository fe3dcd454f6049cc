"""The command line: which commands there are, and what becomes of errors. Loads only the command called."""

from __future__ import annotations

import importlib
import io
import os
import re
import sys
import tempfile
import traceback
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING, TextIO

import click

from niffbench import __version__
from niffbench.errors import INTERRUPTED, NiffbenchError, UsageError, did_you_mean

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

BUG = 70
"""Exit status of an error of niffbench's own (EX_SOFTWARE of sysexits.h): never 1, which means a regression."""

COMMANDS: Mapping[str, str] = MappingProxyType(
    {
        "run": "Measure a suite; ends with a table and a report.",
        "plan": "Say what a run would do, need and take.",
        "list": "List operators, suites, networks or metrics.",
        "merge": "Put RUN..., the parts of a suite that `run --shard` measured, together into one run.",
        "report": "Write report.html, report.md, table.csv and plots of RUN, a run's directory.",
        "plot": "Draw columns of a run's records against each other.",
        "table": "Write metrics of a run as a table for a paper.",
        "export": "Write RUN, a run's directory, in another tool's format.",
        "profile": "Take operators apart: time, FLOPs, bytes and memory of each step, and the kernels behind it.",
        "filters": "Say how large a NIFF network's filters really are.",
        "shrink": "Cut the filters of a trained NIFF network to what they need, and prove what is left of it.",
        "check": "Judge the run HEAD against the run BASE, case by case.",
        "ab": "Judge HEAD against BASE by measuring both in turn: the gate for noisy and shared machines.",
        "aa": "Measure the same code again and again, and say what a gate could see on this machine.",
        "publish": "Write HISTORY, which `check --history` keeps, as a static site.",
        "rates": "Simulate decision rules on samples whose truth is known.",
        "gpu-verdict": "Say whether all is right on this GPU, and what it costs there, in minutes.",
        "doctor": "Examine the machine: what it is, whether it is quiet enough to measure on, what works.",
    }
)
"""Every command with its line in ``--help``; ``niffbench/commands/NAME.py`` holds it as ``command``
(``-`` in NAME is ``_`` there)."""

_STREAMS: Mapping[str, int] = MappingProxyType({"stdout": 1, "stderr": 2})
_CONTROL = re.compile(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069\ufeff]")
_CI_LINE = re.compile(r"^(\s*)(?=::|##\[)", re.MULTILINE)
"""The start of a line that a CI system obeys."""
LONGEST_MESSAGE = 4000


class Commands(click.Group):
    """The commands, each imported when it is called."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Their names, in the order in which a person meets them."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import one; None when there is none of that name."""
        if cmd_name not in COMMANDS:
            return None
        command = importlib.import_module(f"niffbench.commands.{cmd_name.replace('-', '_')}").command
        assert isinstance(command, click.Command)
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Raise click's UsageError with a suggestion for a name that is none."""
        if args and args[0] not in COMMANDS and not args[0].startswith("-"):
            raise click.UsageError(f"no command named '{args[0]}'{did_you_mean(args[0], COMMANDS)}", ctx)
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The list in ``--help``, without importing anything."""
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="niffbench")
def niffbench() -> None:
    """What NIFF's FFT convolutions cost, in FLOPs, memory and latency, against spatial convolutions.

    Start with `niffbench run quick`.
    """


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status. A user sees one message, never a traceback."""
    if argv is None:
        _outlive_readers()
    status = _status(None if argv is None else list(argv))
    try:
        sys.stdout.flush()
    except NiffbenchError as error:
        _say(str(error))
        status = error.exit_code
    if argv is None and not {"torch", "ray"}.isdisjoint(sys.modules):
        sys.stderr.flush()
        os._exit(status)  # what libraries do when the interpreter is taken down is slow, and loud, or a crash
    return status


def _status(arguments: list[str] | None) -> int:
    """Run a command; returns the exit status, and has said what went wrong."""
    try:
        status = niffbench.main(arguments, prog_name="niffbench", standalone_mode=False)
        return status if isinstance(status, int) else 0
    except click.exceptions.Exit as done:
        return done.exit_code
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except NiffbenchError as error:
        if str(error):
            _say(str(error))
        return error.exit_code
    except (KeyboardInterrupt, click.Abort):
        _say("interrupted")
        return INTERRUPTED
    except Exception as error:
        if os.environ.get("NIFFBENCH_DEBUG"):
            raise
        _say(f"{type(error).__name__}: {str(error).partition(chr(10))[0] or 'no message'}; {_stored(error)}")
        return BUG


class _Outliving(io.FileIO):
    """Standard output or error, which writes to nobody once its reader is gone (``| head``) or its disk full."""

    def write(self, data: ReadableBuffer, /) -> int:
        """As of a file. What a reader leaves unread is no failure, and changes no verdict's exit status.

        Raises:
            UsageError: once, for output that cannot be written for another reason.
        """
        try:
            return super().write(data)
        except OSError as error:
            _to_nobody(self.fileno())
            if isinstance(error, BrokenPipeError) or self.fileno() == _STREAMS["stderr"]:
                return super().write(data)
            raise UsageError(f"standard output: cannot be written ({error.strerror})") from error


class _Harmless(io.TextIOWrapper):
    """A stream none of whose lines a CI system takes for a command, whatever a label or a note begins with."""

    def write(self, text: str, /) -> int:
        """As of a text stream."""
        super().write(_CI_LINE.sub(r"\1| ", text))
        return len(text)


def _outlive_readers() -> None:
    """Let standard output and standard error outlive who reads them, and spell out what their encoding lacks."""
    for name, descriptor in _STREAMS.items():
        stream = getattr(sys, name)
        if stream is None:  # closed before we began: no file opened later must take its place
            _to_nobody(descriptor)
        elif _descriptor(stream) != descriptor:  # who calls us has put something else there
            continue
        else:
            stream.flush()
        kind = _Harmless if os.environ.get("CI") else io.TextIOWrapper
        ours = kind(
            io.BufferedWriter(_Outliving(descriptor, "wb", closefd=False)),
            encoding=None if stream is None else stream.encoding,
            errors="backslashreplace",
            line_buffering=stream is not None and (stream.line_buffering or stream.write_through),
        )
        setattr(sys, name, ours)


def _descriptor(stream: TextIO) -> int | None:
    """The number of the file behind ``stream``; None where there is none, as behind a StringIO."""
    try:
        return stream.fileno()
    except (OSError, AttributeError):
        return None


def _to_nobody(descriptor: int) -> None:
    """Let what is written to ``descriptor`` go nowhere; processes that are started later inherit it."""
    nobody = os.open(os.devnull, os.O_WRONLY)
    if nobody != descriptor:
        os.dup2(nobody, descriptor)
        os.close(nobody)
    os.set_inheritable(descriptor, True)


def _say(message: str) -> None:
    """One message on standard error, not endless; what a file put into it commands neither terminal nor CI system.

    Its further lines are indented, so that none can be taken for a message of its own.
    """
    line = re.sub(r"\n(?! )", "\n  ", _CI_LINE.sub(r"\1| ", _CONTROL.sub("?", message)))
    click.echo(f"niffbench: {line if len(line) <= LONGEST_MESSAGE else line[:LONGEST_MESSAGE] + ' …'}", err=True)


def _stored(error: Exception) -> str:
    """Keep the traceback in a file; says where, or how to see it."""
    again = "set NIFFBENCH_DEBUG=1 to see where it comes from"
    try:
        with tempfile.NamedTemporaryFile(
            "w", prefix="niffbench-error-", suffix=".txt", delete=False, encoding="utf-8"
        ) as file:
            traceback.print_exception(error, file=file)
    except OSError:
        return f"this is a fault of niffbench: {again}"
    return f"this is a fault of niffbench: details are in {file.name}, or {again}"


if __name__ == "__main__":
    sys.exit(main())
