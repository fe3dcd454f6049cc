"""The worker: a fresh process that does one task and says what it learns, ``python -m niffbench.worker.main``.

It reads its task from standard input and answers on the descriptor given by ``--reply-fd``. The session decides
when it ends: it ignores the keyboard's interrupt, and ends itself when nobody listens any more.
"""

from __future__ import annotations

import gc
import os
import select
import signal
import sys
import threading
from collections.abc import Sequence
from contextlib import suppress
from typing import NoReturn

from pydantic import BaseModel

from niffbench import protocol
from niffbench.anonymize import anonymize
from niffbench.device import Device, open_device, pin
from niffbench.device.host import die_with_parent
from niffbench.device.replay import ReplayDevice
from niffbench.errors import NiffbenchError, UsageError, did_you_mean
from niffbench.operators.catalogue import catalogue
from niffbench.operators.module import check, declare
from niffbench.worker.evaluator import Evaluator
from niffbench.worker.failures import ENDS, DeviceLost, explain
from niffbench.worker.machine import fingerprint
from niffbench.worker.round import Round

LOST = 71
"""Exit status after the accelerator's context was lost."""


class Line:
    """The line to the session. A message that cannot be delivered ends the process: nobody is there to hear it."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        threading.Thread(target=self._watch, daemon=True).start()

    def send(self, message: BaseModel) -> None:
        """Deliver ``message`` whole."""
        data = memoryview(protocol.write(message))
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


def survey(task: protocol.Task, evaluator: Evaluator, line: Line) -> None:
    """Predict every case's memory; measure the ceilings that are asked for; then count ahead, if that is."""
    for case in task.cases:
        line.send(protocol.Begin(case=case.id, stage="predict"))
        try:
            predicted = evaluator.predict(case)
        except ENDS as error:
            reason = anonymize(explain(error).reason)
            line.send(protocol.Predicted(case=case.id, reason=reason))
        else:
            line.send(predicted)
    if task.ceilings:
        before = evaluator.device.processor()
        try:
            ceilings = evaluator.ceilings(frozenset(task.ceilings), task.maps)
        except Exception as error:  # others hold the card's memory, say
            line.send(protocol.Roofline(reason=anonymize(explain(error).reason)))
        else:
            others = (evaluator.device.processor() - before).share
            ceilings = ceilings.model_copy(update={"others": others})
            line.send(protocol.Roofline(ceilings=ceilings, others=others))
    for case in task.cases if task.counts_ahead else []:
        with suppress(*ENDS):  # the round will say so
            evaluator.count_ahead(case)


def stay_busy(task: protocol.Task, evaluator: Evaluator, line: Line) -> NoReturn:
    """Measure every case over and over, until the process is ended.

    Nobody listens once it samples, or has called every case: it says no more then, as a full pipe would halt it.
    """
    is_heard = True

    def say(message: BaseModel) -> None:
        nonlocal is_heard
        if is_heard:
            line.send(message)
        match message:
            case protocol.Begin(samples=True) | protocol.End():
                is_heard = False

    while True:
        Round(task, evaluator, say).run()
        say(protocol.End())


def open_evaluator(device: Device, round_: int = 0) -> Evaluator:
    """The evaluator for ``device``; ``round_`` chooses among recorded rounds on a replay."""
    if isinstance(device, ReplayDevice):
        from niffbench.worker.replay_evaluator import ReplayEvaluator

        return ReplayEvaluator(device, round_)
    from niffbench.worker.torch_evaluator import TorchEvaluator

    return TorchEvaluator(device)


def work(task: protocol.Task, device: Device, line: Line) -> None:
    """Do ``task`` on ``device``."""
    sources = [check(module) for module in task.modules]
    hello = protocol.Hello(
        fingerprint=fingerprint(device),
        free_memory=device.free_memory(),
        modules=sources,
        node=os.environ.get(protocol.NODE),
        device=_short(task.devices[task.place]) if task.devices else None,
    )
    line.send(hello)
    evaluator = open_evaluator(device, task.round)
    gc.enable()
    match task.kind:
        case "survey":
            survey(task, evaluator, line)
        case "round":
            Round(task, evaluator, line.send).run()
        case "busy":
            stay_busy(task, evaluator, line)
    line.send(protocol.End())


def _short(spec: str) -> str:
    """A device without the path of its file: ``cuda:3``, ``replay:3``."""
    return f"{spec.partition(':')[0]}:{spec.rpartition(':')[2]}"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one task; returns the exit status."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    if len(given) != 2 or given[0] != "--reply-fd" or not given[1].isdecimal():
        print("usage: python -m niffbench.worker.main --reply-fd N < task", file=sys.stderr)
        return 2
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    die_with_parent()
    quiet_libraries()
    gc.disable()  # until all is loaded, of which next to nothing is garbage
    line = Line(int(given[1]))
    task = protocol.Task.model_validate_json(sys.stdin.readline())
    try:
        _check(task)
        if task.devices:
            _pin(task)
        device = open_device(task.settings.device, task.settings.measure.threads)
        work(task, device, line)
    except NiffbenchError as error:
        line.send(protocol.Refused(message=str(error), exit_code=error.exit_code))
        return error.exit_code
    except DeviceLost as error:
        print(f"the device is lost: {error}", file=sys.stderr, flush=True)
        os._exit(LOST)  # destructors would talk to it again, and hang
    return 0


def _pin(task: protocol.Task) -> None:
    """Keep to the worker's share of the cores.

    Raises:
        UsageError: when one of the devices is not there.
    """
    try:
        pin(task.devices, task.place)
    except Exception:
        for spec in task.devices:
            open_device(spec)  # what is wrong with it is said here
        raise


def _check(task: protocol.Task) -> None:
    """Raise UsageError for a case of an operator that this process does not know."""
    declare(task.modules)
    operators = catalogue()
    for case in task.cases:
        if case.operator not in operators:
            raise UsageError(f"no operator named '{case.operator}'{did_you_mean(case.operator, operators)}")


def quiet_libraries() -> None:
    """Settings that libraries read when they are loaded: no log lines, no processes in the background."""
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")
    os.environ.setdefault("TORCHINDUCTOR_COMPILE_THREADS", "1")


if __name__ == "__main__":
    _status = main()
    sys.stdout.flush()
    os._exit(_status)  # what libraries do when the interpreter is taken down is slow, and loud
