"""Cases for tests over the whole catalogue: small problems, of every shape that is easy to get wrong."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import strategies as st

from niffbench.case import Case, DType, Execution, MemoryFormat, Mode, OptionValue, Problem
from niffbench.niff.catalogue import form_of
from niffbench.operators.base import Operator
from niffbench.operators.catalogue import catalogue

SIDES = (1, 2, 3, 4, 7, 8, 9, 12, 13, 16)
"""Odd, even, prime, powers of two, and the single pixel."""

LAYERS = tuple(name for name, operator in catalogue().items() if operator.role != "network")


def runs(operator: Operator, place: str) -> bool:
    """Whether it runs on ``cpu`` or ``cuda``."""
    kind, form = getattr(operator, "kind", None), getattr(operator, "form", None)
    return kind is None or form is None or place in form_of(kind, form).devices


ON_CPU = tuple(name for name in LAYERS if runs(catalogue()[name], "cpu"))


def case_at(name: str, problem: Problem, kernel: int | None = None, **options: OptionValue) -> Case:
    """One case, options at their defaults unless given; the kernel is left out where there is none."""
    operator = catalogue()[name]
    settings = {key: option.default for key, option in operator.options.items()} | options
    return Case(name, problem, kernel if operator.takes_kernel else None, tuple(sorted(settings.items())))


@st.composite
def cases(draw: st.DrawFn, names: tuple[str, ...] = ON_CPU, *, modes: tuple[Mode, ...] | None = None) -> Case:
    """Any case that its operator does not refuse."""
    name = draw(st.sampled_from(names))
    operator = catalogue()[name]
    height, width = draw(st.sampled_from(SIDES)), draw(st.sampled_from(SIDES))
    channels = draw(st.sampled_from((1, 2, 3, 6, 8)))
    dtypes: tuple[DType, ...] = tuple(sorted(operator.dtypes))  # type: ignore[arg-type]
    formats: tuple[MemoryFormat, ...] = ("contiguous", "channels_last")
    problem = Problem(
        batch=draw(st.sampled_from((1, 2, 3))),
        channels=channels,
        channels_out=draw(st.sampled_from((channels, 1, 5))),
        height=height,
        width=width,
        dtype=draw(st.sampled_from(dtypes)),
        memory_format=draw(st.sampled_from(formats)),
        mode=draw(st.sampled_from(modes or ("inference", "forward", "training"))),
    )
    kernel = 2 * draw(st.integers(0, min(height, width) - 1)) + 1
    executions: tuple[Execution, ...] = ("eager", "compiled")
    options = {key: draw(st.sampled_from(values(operator, key))) for key in operator.options}
    drawn = replace(case_at(name, problem, kernel, **options), execution=draw(st.sampled_from(executions)))
    if refusal := operator.refusal(drawn):
        # The common reasons, mended; what is left is a genuine refusal.
        problem = Problem(
            problem.batch, 8, 8, max(height, 8), max(width, 8), problem.dtype, problem.memory_format, problem.mode
        )
        drawn = replace(drawn, problem=problem)
        assert operator.refusal(drawn) is None, refusal
    return drawn


def values(operator: Operator, key: str) -> tuple[OptionValue, ...]:
    """Values of an option: all of them, or some where any number will do."""
    choices = operator.options[key].choices
    return choices if choices is not None else (1, 2, 4)
