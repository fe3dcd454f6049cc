"""Printing tables and messages, whoever reads them and for how long."""

from __future__ import annotations

import os
from contextlib import suppress

import rich.console


class Console(rich.console.Console):
    """rich's, but that a reader who leaves early (``| head``, Ctrl-C in a pipeline) changes no exit status.

    rich itself would exit with 1, which of a check means a regression, and of an interrupted run that it was not.
    """

    def on_broken_pipe(self) -> None:
        """Print no more; Python must not try to flush the rest on its way out either."""
        self.quiet = True
        with suppress(OSError, ValueError):  # a stream without a file
            os.dup2(os.open(os.devnull, os.O_WRONLY), self.file.fileno())
