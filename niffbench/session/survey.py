"""The survey: what the machine is and can do at best, and what each case will need, before measuring."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from niffbench import protocol
from niffbench.case import Case
from niffbench.errors import FingerprintsDiffer
from niffbench.fingerprint import Fingerprint
from niffbench.launch import launcher
from niffbench.launch.base import WorkerBroken
from niffbench.operators.catalogue import catalogue
from niffbench.results import Ceilings, Map, ModuleSource, is_busy
from niffbench.session.interrupts import Interrupts
from niffbench.session.worker_session import Answer, TaskRefused, WorkerSession
from niffbench.suite import Settings, UserModule
from niffbench.units import percent

_ATTEMPTS = 3


@dataclass(frozen=True)
class Survey:
    """``free_memory`` in bytes; ``predictions`` by case id, complete unless the worker kept dying over them.

    ``note`` says why there are no ``ceilings`` where they were asked for, or that they are in doubt: ``crowded``
    are those measured beside busy neighbours, lower than the machine's and all times expected from them longer.

    Attributes:
        modules: where the user's were found.
        unlike: other machines that were met before the one that was asked for.
    """

    fingerprint: Fingerprint
    free_memory: int | None = None
    predictions: Mapping[str, protocol.Predicted] = field(default_factory=dict)
    ceilings: Ceilings | None = None
    note: str | None = None
    crowded: bool = False
    modules: Sequence[ModuleSource] = ()
    unlike: Sequence[Fingerprint] = ()


def survey(
    cases: Sequence[Case],
    settings: Settings,
    stop: Interrupts,
    *,
    modules: Sequence[UserModule] = (),
    ceilings: bool = True,
    fingerprint: Fingerprint | None = None,
    counts_ahead: bool = False,
) -> Survey:
    """Ask workers of their own; with ``fingerprint``, they must be on that machine.

    A case whose prediction kills or hangs the worker has no prediction, and a machine whose roofline does has no
    ceilings; cases that use up all attempts leave one for the ceilings.

    Args:
        modules: of the suite.
        counts_ahead: rounds will follow, and ask what the cases cost. Only done where they will be measured, too.

    Raises:
        WorkerBroken: when no worker starts.
        TaskRefused: when one will not do what it is asked.
        FingerprintsDiffer: when there is no other than another machine than ``fingerprint``'s.
        Interrupted: by Ctrl-C.
    """
    dtypes = sorted({case.problem.precision for case in cases}) if ceilings else []
    spectral = (
        [case.problem for case in cases if catalogue()[case.operator].role == "spectral"] if ceilings else []
    )
    maps = sorted({Map.of(problem) for problem in spectral})
    predictions: dict[str, protocol.Predicted] = {}
    roofline = protocol.Roofline()
    hello: protocol.Hello | None = None
    unlike: list[Fingerprint] = []

    def take(answer: Answer) -> None:
        nonlocal roofline
        if isinstance(answer, protocol.Predicted):
            predictions[answer.case] = answer
        elif isinstance(answer, protocol.Roofline):
            roofline = answer

    for attempt in range(_ATTEMPTS + bool(dtypes)):
        left = [case for case in cases if case.id not in predictions] if attempt < _ATTEMPTS else []
        task = protocol.Task(
            kind="survey",
            settings=settings,
            cases=left,
            ceilings=dtypes,
            maps=maps,
            modules=list(modules),
            counts_ahead=counts_ahead and settings.launcher == "local",
        )
        while True:
            session = WorkerSession(task, stop, take, fingerprint=fingerprint)
            try:
                loss = session.run()
                break
            except FingerprintsDiffer:
                assert session.hello is not None
                if (node := session.hello.node) is None or not launcher(settings.launcher).avoid(node):
                    raise
                unlike.append(session.hello.fingerprint)
            except TaskRefused as refused:
                begun = fingerprint is not None
                if not begun or refused.node is None or not launcher(settings.launcher).avoid(refused.node):
                    raise
        hello = session.hello or hello
        if loss is None:
            break
        if hello is not None and not session.unanswered:  # another worker would fare no better over the roofline
            roofline = protocol.Roofline(reason=loss.reason)
            break
        if session.hello is None and (attempt == _ATTEMPTS - 1 or loss.silent):
            raise WorkerBroken(f"no worker process can be started: {loss.reason}")
        if session.hello is not None:
            # Not to be asked again: the case it was at, else the first that it has not answered.
            blamed = (loss.case or next(iter(session.unanswered.values()))).id
            predictions[blamed] = protocol.Predicted(case=blamed, reason=f"the prediction failed: {loss.reason}")
    assert hello is not None  # the last attempt raises when there is none
    return Survey(
        hello.fingerprint,
        hello.free_memory,
        predictions,
        roofline.ceilings,
        _note(roofline),
        is_busy(roofline.others),
        hello.modules,
        unlike,
    )


def _note(roofline: protocol.Roofline) -> str | None:
    """What is wrong with it, or why there is none."""
    if roofline.reason is not None:
        return f"the machine's roofline could not be measured: {roofline.reason}"
    if roofline.others is not None and is_busy(roofline.others):
        return (
            f"other processes used {percent(roofline.others)} of the processor while the machine's roofline "
            "was measured: it may be too low, so no latency is held against it"
        )
    return None
