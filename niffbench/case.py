"""A case: one operator on one problem, executed one way; its id is a hash of its content."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, fields
from typing import Literal, TypeAlias, get_args

Mode: TypeAlias = Literal["inference", "forward", "training"]
DType: TypeAlias = Literal["float64", "float32", "float16", "bfloat16"]
MemoryFormat: TypeAlias = Literal["contiguous", "channels_last"]
Execution: TypeAlias = Literal["eager", "compiled"]
OptionValue: TypeAlias = str | int | float | bool
Contender: TypeAlias = Literal["form", "rival"]
"""Who is compared along an axis: a form of NIFF, or a convolution in space."""
Regime: TypeAlias = Literal["first", "cold", "steady", "wall", "graph"]
"""When a call is timed, and by whose clock.

``first``: the call that made plans, tuned, compiled. ``cold``: with empty caches. ``steady``: calls that follow
one another; on an accelerator its own time, with the gaps that it leaves between short kernels. ``wall``: what a
host waits for, from an idle device to an idle device; where calls are not only enqueued, ``steady`` is that, and
it is not measured twice. ``graph``: captured and replayed whole, with hardly a gap.
"""
REGIMES: tuple[Regime, ...] = get_args(Regime)

DTYPE_BYTES: dict[str, int] = {"float64": 8, "float32": 4, "float16": 2, "bfloat16": 2}


@dataclass(frozen=True, slots=True, order=True)
class Problem:
    """What every operator of a comparison is given: the input's shape, its type and what is asked.

    The input is ``(batch, channels, height, width)``, the output ``(batch, channels_out, height, width)``.

    Attributes:
        mode: ``inference`` runs under ``torch.inference_mode``, ``forward`` builds the autograd graph,
            ``training`` is forward and backward. The kernel size is not here: it distinguishes operators of
            one problem (a NIFF layer has none), so it belongs to the :class:`Case`.
        tf32: products in float32 (other dtypes never) may be rounded to TF32's 10 bits of mantissa.
    """

    batch: int
    channels: int
    channels_out: int
    height: int
    width: int
    dtype: DType = "float32"
    memory_format: MemoryFormat = "contiguous"
    mode: Mode = "inference"
    tf32: bool = False

    @property
    def precision(self) -> str:
        """``dtype``, or ``tf32``: what arithmetic the problem is computed in."""
        return "tf32" if self.tf32 else self.dtype

    @property
    def label(self) -> str:
        """A short text for tables: ``B1 64@56`` and whatever is not the default."""
        size = f"{self.height}" if self.height == self.width else f"{self.height}×{self.width}"
        channels = (
            f"{self.channels}" if self.channels == self.channels_out else f"{self.channels}→{self.channels_out}"
        )
        extra: list[str] = [self.mode] if self.mode != "inference" else []
        extra += [self.precision] if self.precision != "float32" else []
        extra += [self.memory_format] if self.memory_format != "contiguous" else []
        return " ".join([f"B{self.batch} {channels}@{size}", *extra])

    @property
    def element_bytes(self) -> int:
        """Bytes of one real element of ``dtype``."""
        return DTYPE_BYTES[self.dtype]


class _Cached:
    """Room beside a case's fields for what has been worked out of them."""

    __slots__ = ("_id",)
    _id: str


@dataclass(frozen=True, slots=True, order=True)
class Case(_Cached):
    """Operator × problem × execution.

    ``operator`` is a name of the catalogue (``niff-depthwise/rfft``, ``depthwise``); ``kernel`` the side of the
    spatial kernel in pixels, or None for an operator that has none; ``options`` the operator's other
    settings as sorted pairs, all of them, defaults included, so that a changed default is another case.
    """

    operator: str
    problem: Problem
    kernel: int | None = None
    options: tuple[tuple[str, OptionValue], ...] = ()
    execution: Execution = "eager"

    @property
    def id(self) -> str:
        """Twelve hexadecimal digits of a SHA-256 over the content; equal content, equal id, on any machine.

        It is worked out once: a run asks for it a dozen times a case. What came later than the first records is
        left out where it has its default, so that their ids stay.
        """
        try:
            return self._id
        except AttributeError:
            # Not asdict, which copies: histories have thousands of runs.
            content = {part.name: getattr(self, part.name) for part in fields(self)}
            problem = {part.name: getattr(self.problem, part.name) for part in fields(self.problem)}
            if not self.problem.tf32:
                del problem["tf32"]
            content["problem"] = problem
            canonical = json.dumps(content, sort_keys=True, separators=(",", ":"))
            object.__setattr__(self, "_id", hashlib.sha256(canonical.encode()).hexdigest()[:12])
            return self._id

    def option(self, name: str) -> OptionValue:
        """The value of option ``name``; KeyError if the case has none of that name."""
        return dict(self.options)[name]
