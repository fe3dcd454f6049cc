"""Triton's kernels of suites, compiled before they are measured.

``python -m niffbench.verdict.ahead DEVICE 2/8 SUITE…`` compiles the second of eight shares.

One after the other in the process that measures they would take most of a card's quarter of an hour. Several
processes, each with its share, leave them in Triton's cache, where that process finds them.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence

from niffbench.case import Case
from niffbench.niff.catalogue import FORMS
from niffbench.operators.catalogue import catalogue
from niffbench.suite import load


def kernels(case: Case) -> int:
    """How many of Triton's kernels a case compiles: each size, batch and way has its own."""
    layer, _, name = case.operator.removeprefix("niff-").partition("/")
    engines = {form.engine for form in FORMS.get(layer, ()) if form.name == name}
    if not engines & {"auto", "triton"}:
        return 0
    return 2 if case.problem.mode == "training" else 1


def compiling(suites: Iterable[str]) -> list[Case]:
    """The cases of suites that compile kernels.

    Raises:
        UsageError: for a suite that cannot be read.
    """
    cases = (case for suite in suites for case in load(suite, catalogue(), device="cuda").cases)
    return [case for case in dict.fromkeys(cases) if kernels(case)]


def main(place: str, share: str, suites: Sequence[str]) -> None:
    """Call every case of a share once; what cannot be called says why when it is measured."""
    from niffbench.device import open_device
    from niffbench.worker.failures import ENDS, explain
    from niffbench.worker.torch_evaluator import TorchEvaluator

    number, of = map(int, share.split("/"))
    evaluator = TorchEvaluator(open_device(place))
    called = 0
    for case in compiling(suites)[number - 1 :: of]:
        try:
            evaluator.touch(case)
            called += 1
        except ENDS as error:
            explain(error)
        evaluator.forget()
    print(called)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], sys.argv[3:])
