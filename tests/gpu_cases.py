"""What the tests of a GPU run: every operator that runs there, on a small problem; and the places they run at.

Tests that make sense on a CPU too are given both places, so that they are known to work before a card sees them.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from functools import cache
from typing import ClassVar

import pytest
import torch
from operator_cases import runs
from torch import Tensor

from niffbench.case import Case, DType, Execution, MemoryFormat, Mode, Problem
from niffbench.device import Device, open_device
from niffbench.operators.catalogue import catalogue
from niffbench.worker.workload import TorchWorkload

PLACES = ("cpu", pytest.param("cuda", marks=pytest.mark.cuda))
KERNEL = 7
SIZE = (26, 30)
"""Height and width: not square, odd prime factors, no powers of two (half-precision cuFFT takes only those)."""


REHEARSED = ("niff-depthwise/rfft", "niff-full/published", "niff-split/elided", "dense", "fft-depthwise-padded")
"""Operators whose tests run on a CPU too; the others are tested there by tests of their own."""


NETWORKS = ("resnet18", "resnet18-split", "mobilenet_v2-niff", "convnext_tiny-niff")
"""Whole networks that are tried on a card, as one of each make."""


def names(place: str) -> list[str]:
    """Operators that run on ``cpu`` or ``cuda`` and take :func:`case`, as all but whole networks do."""
    return [name for name, one in catalogue().items() if runs(one, place) and one.refusal(case(name)) is None]


def case(
    name: str,
    *,
    dtype: DType = "float32",
    mode: Mode = "inference",
    memory_format: MemoryFormat = "contiguous",
    execution: Execution = "eager",
    batch: int = 2,
    channels: int = 8,
    channels_out: int | None = None,
    size: tuple[int, int] = SIZE,
    kernel: int = KERNEL,
) -> Case:
    """A case of the operator ``name`` with its default options."""
    operator = catalogue()[name]
    options = tuple(sorted((key, option.default) for key, option in operator.options.items()))
    problem = Problem(batch, channels, channels_out or channels, *size, dtype, memory_format, mode)
    return Case(name, problem, kernel if operator.takes_kernel else None, options, execution)


@cache
def opened(place: str) -> Device:
    """The device, one for all tests, with two threads on the host."""
    return open_device(place, 2)


@dataclass(eq=False)
class Holder:
    """A workload whose last output stays reachable: of a captured graph, where every replay writes."""

    workload: TorchWorkload
    output: Tensor | None = field(default=None)
    unrolled: ClassVar[int] = 1

    def scope(self) -> AbstractContextManager[object]:
        return self.workload.scope()

    def call(self) -> object:
        self.output = self.workload.call()
        return self.output

    def reset(self) -> None:
        self.workload.reset()


def exactly() -> Iterator[None]:
    """Float32 as float32 while a test runs: no TF32."""
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    try:
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before


def relative(result: Tensor, truth: Tensor) -> float:
    """Relative L2 error, in float64 on the CPU."""
    truth = truth.detach().double().cpu()
    return float((result.detach().double().cpu() - truth).norm() / truth.norm())


def everywhere() -> list[object]:
    """(place, operator) pairs for parametrisation: all on CUDA, and :data:`REHEARSED` on the CPU."""
    return [
        *(pytest.param("cpu", name, id=f"cpu-{name}") for name in REHEARSED),
        *(pytest.param("cuda", name, id=f"cuda-{name}", marks=pytest.mark.cuda) for name in names("cuda")),
    ]
