"""The worker: a fresh process that does one task and says what it learns, ``python -m niffbench.runner.worker``.

It reads its task from standard input and answers on the descriptor given by ``--reply-fd``. The manager decides
when it ends: it ignores the keyboard's interrupt, and ends itself when nobody listens any more.
"""

from __future__ import annotations

import ctypes
import os
import select
import signal
import sys
import threading
from collections.abc import Sequence

from pydantic import BaseModel

from niffbench.device import Device, open_device
from niffbench.errors import NiffbenchError, UsageError, did_you_mean
from niffbench.measure.bench import Bench, open_bench
from niffbench.measure.failures import DeviceLost, explain
from niffbench.operators.catalogue import catalogue
from niffbench.runner import messages
from niffbench.runner.machine import fingerprint
from niffbench.runner.provenance import discreet
from niffbench.runner.round import Round

LOST = 71
"""Exit status after the accelerator's context was lost."""

_PR_SET_PDEATHSIG = 1  # linux/prctl.h


class Line:
    """The line to the manager. A message that cannot be delivered ends the process: nobody is there to hear it."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        threading.Thread(target=self._watch, daemon=True).start()

    def send(self, message: BaseModel) -> None:
        """Deliver ``message`` whole."""
        data = memoryview(messages.write(message))
        try:
            while data:
                data = data[os.write(self._descriptor, data) :]
        except BrokenPipeError:
            os._exit(0)

    def _watch(self) -> None:
        """Sleep until the other end is closed (a pipe's writer is told by an error condition), then end."""
        poll = select.poll()
        poll.register(self._descriptor, 0)
        poll.poll()
        os._exit(0)


def survey(task: messages.Task, bench: Bench, line: Line) -> None:
    """Predict every case's memory; measure the ceilings that are asked for."""
    for case in task.cases:
        line.send(messages.Begin(case=case.id, stage="predict"))
        try:
            told = bench.predict(case)
        except Exception as error:
            reason = discreet(explain(error).reason)
            line.send(messages.Predicted(case=case.id, reason=reason))
        else:
            line.send(messages.Predicted(case=case.id, resident=told.resident, peak=told.peak))
    if task.ceilings:
        before = bench.device.processor()
        try:
            ceilings = bench.ceilings(frozenset(task.ceilings))
        except Exception as error:  # others hold the card's memory, say
            line.send(messages.Roofline(reason=discreet(explain(error).reason)))
        else:
            others = (bench.device.processor() - before).share
            line.send(messages.Roofline(ceilings=ceilings, others=others))


def work(task: messages.Task, device: Device, line: Line) -> None:
    """Do ``task`` on ``device``."""
    line.send(messages.Hello(fingerprint=fingerprint(device), free_memory=device.free_memory()))
    bench = open_bench(device, task.round)
    if task.kind == "survey":
        survey(task, bench, line)
    else:
        Round(task, bench, line.send).run()
    line.send(messages.End())


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one task; returns the exit status."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    if len(given) != 2 or given[0] != "--reply-fd" or not given[1].isdecimal():
        print("usage: python -m niffbench.runner.worker --reply-fd N < task", file=sys.stderr)
        return 2
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    _die_with_parent()
    _quiet_libraries()
    line = Line(int(given[1]))
    task = messages.Task.model_validate_json(sys.stdin.readline())
    try:
        _check(task)
        device = open_device(task.device, task.measure.threads)
        work(task, device, line)
    except NiffbenchError as error:
        line.send(messages.Refused(message=str(error), exit_code=error.exit_code))
        return error.exit_code
    except DeviceLost as error:
        print(f"the device is lost: {error}", file=sys.stderr, flush=True)
        os._exit(LOST)  # destructors would talk to it again, and hang
    return 0


def _check(task: messages.Task) -> None:
    """Raise UsageError for a case of an operator that this process does not know."""
    known = catalogue()
    for case in task.cases:
        if case.operator not in known:
            raise UsageError(f"no operator named '{case.operator}'{did_you_mean(case.operator, known)}")


def _die_with_parent() -> None:
    """Let the kernel end this process when its parent ends (Linux)."""
    if sys.platform != "linux":
        return
    parent = os.getppid()
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:  # it ended in between
        os._exit(0)


def _quiet_libraries() -> None:
    """Settings that libraries read when they are loaded: no log lines, no processes in the background."""
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")
    os.environ.setdefault("TORCHINDUCTOR_COMPILE_THREADS", "1")


if __name__ == "__main__":
    _status = main()
    sys.stdout.flush()
    os._exit(_status)  # what libraries do when the interpreter is taken down is slow, and loud
