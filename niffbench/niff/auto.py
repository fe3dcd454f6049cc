"""The fastest of several ways to the same result, measured once for each kind of call and remembered.

As ``cudnn.benchmark`` does: the first call of a kind (shapes, memory format, dtype, device, threads, which
gradients are wanted) tries the candidates on its own input, three times each; later ones of any layer, and of
later processes (:mod:`niffbench.niff.tuning`), take the winner.

Fastest by the host's clock: what a caller waits for whose machine has nothing else to do, the launches of small
calls included. Who enqueues call after call, or captures them in a graph, asks for the GPU's own time:
:func:`judge_by`.
"""

from __future__ import annotations

import threading
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import _get_current_dispatch_mode

from niffbench.lengths import largest_prime_factor
from niffbench.niff import dft, fused, native, tuning
from niffbench.niff.autograd import wants_gradient, watched
from niffbench.niff.catalogue import IN_C
from niffbench.niff.grid import Remembered
from niffbench.niff.native import build, generated, kernel, triton_engine
from niffbench.niff.native.cuda_source import LARGEST_SIDE

if TYPE_CHECKING:
    from niffbench.niff.catalogue import Form
    from niffbench.niff.filters import FilterGenerator

Convolution = Callable[[Tensor, Tensor, Remembered], Tensor]
Rivals = Callable[[Sequence[Tensor]], Mapping[str, Callable[[], Tensor]]]
"""Engine → a call of it, on tensors like those of the call at hand; made only to be measured."""

ENGINES: Mapping[str, Convolution] = MappingProxyType(
    {
        "fused": lambda x, half, _: fused.convolve(x, half),
        "dft": dft.convolve,
        "native": lambda x, half, _: kernel.convolve(x, half),
        "triton": lambda x, half, _: triton_engine.convolve(x, half),
    }
)
"""Ways to ``H·W · irfft2(half · rfft2(x))``; see each for what it does. The last argument keeps its constants.

Full layers have others: see :class:`niffbench.niff.NiffFull`.
"""

GENERATING: Mapping[str, Callable[..., Tensor]] = MappingProxyType(
    {**dict.fromkeys(IN_C, generated.convolve), "triton": triton_engine.generated}
)
"""Engines that make the filter themselves, of :meth:`niffbench.niff.filters.FilterGenerator.half_ingredients`."""

GENERATING_ON: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {**dict.fromkeys(IN_C, generated.DEVICES), "triton": triton_engine.DEVICES}
)
"""Types of device on which they do."""

LARGEST_DFT = 64
"""Side up to which matrix products are worth a try."""

LARGEST_PRIME = 13
"""Prime factor of a side up to which the CUDA kernel is worth the seconds that compiling it takes: beyond, torch's
FFTs were faster on an H200 (31: 14 against 17 µs, 61: 23 against 63)."""

_MOST_TAKEN = 64

_ROUNDS = 3
"""A noisy machine can spoil one round, or two. The first one's calls are slow as a rule, and tell which fail."""

_EXACT_THREADS = time.get_clock_info("thread_time").resolution < 1e-5
_KERNEL_WHEN_COMPILED = frozenset({"cpu"})
_HEAD_START = 2_000_000  # cycles that a GPU spins while a trial is enqueued: a ms or more

Kept = tuple[kernel.Call, tuple[str, int, int, torch.dtype]]
"""A call of the C kernel, and by which key the layer keeps what it needs of the filter."""


@dataclass(frozen=True, slots=True)
class Earlier:
    """What a call of the C kernel was like. Only where all of it is the same is it done again.

    Attributes:
        images: their shape, strides and dtype.
        by: the layer's form and generator, and the number of threads.
    """

    images: tuple[torch.Size, tuple[int, ...], torch.dtype]
    by: tuple[Form, FilterGenerator, int]


@dataclass(frozen=True, slots=True)
class Repeat(Earlier):
    """A call of the C kernel with what it makes the filter of.

    Attributes:
        key, kept: what the generator keeps, and by which key.
        alive: what else addresses in ``made_of`` lead to.
        chosen: the engine that this is, if it was chosen by measurement.
    """

    key: tuple[str, int, int, torch.dtype]
    kept: object
    shift: Tensor | None
    limits: tuple[float, ...] | None
    alive: Sequence[object]
    call: kernel.Call
    made_of: kernel.Filter
    chosen: str | None


@dataclass(frozen=True, slots=True)
class Generation(Earlier):
    """A call of the C kernel that makes its filter, of weights in the dtype of the arithmetic.

    Attributes:
        learns: whether images, and weights, want a gradient.
    """

    learns: tuple[bool, bool]
    prepared: generated.Prepared
    grid: Tensor
    scale: float


Clock = Literal["host", "device"]

_lock = threading.Lock()
_clock: Clock = "host"
_alone = False  # whether choices of other processes are of no account
_choices: dict[tuple[object, ...], str] = {}


class Constants(Remembered):
    """What one layer's engines keep; ``chosen`` is the engine that its last call took by measurement.

    Attributes:
        engines: the layer's own choices, kind of call to engine, which stay when the process forgets its.
        taken: what is prepared for more calls of the C kernel, by what they are like.
        last: what the last of them was, with a filter that is kept.
        generation: the same, with one that is made.
    """

    def __init__(self, capacity: int = 8) -> None:
        super().__init__(capacity)
        self.chosen: str | None = None
        self.engines: dict[tuple[object, ...], str] = {}
        self.taken: dict[tuple[object, ...], generated.Prepared | Kept] = {}
        self.last: Repeat | None = None
        self.generation: Generation | None = None

    def take(self, like: tuple[object, ...], prepared: generated.Prepared | Kept) -> None:
        """Write down what is prepared for such calls."""
        if len(self.taken) >= _MOST_TAKEN:
            self.taken.clear()
        self.taken[like] = prepared


def choose(
    x: Tensor,
    tensors: Callable[[], Sequence[Tensor]],
    rivals: Rivals,
    constants: Constants,
    *,
    otherwise: str,
    what: tuple[object, ...],
) -> str:
    """The engine that is fastest for such a call; not in a graph that is being compiled.

    Where nothing can be measured (fake tensors, ``torch.func``, a tracer, a dispatch mode that may be counting, a
    CUDA graph's capture) it is the one called ``otherwise``, unless the choice is known already.

    Args:
        x: the images.
        tensors: gives what the result depends on, the images first.
        rivals: the engines, given tensors like these.
        constants: the layer's, where the choice is written down.
        otherwise: see above.
        what: beside the images' shape and the like, what calls of one kind have in common.
    """
    if watched() or type(x) not in (Tensor, nn.Parameter):
        return otherwise
    key = _kind(x, what)
    chosen = constants.engines.get(key) or _choices.get(key)
    if chosen is None:
        if _get_current_dispatch_mode() is not None or x.device.type == "meta" or _capturing(x) or not x.numel():
            return otherwise
        with _lock:  # Another thread that comes with the same kind of call waits for the outcome.
            chosen = _choices.get(key) or _remembered_or_fastest(key, tensors(), rivals)
            if chosen is None:  # All failed (memory was short, say): another call may try again.
                return otherwise
            _choices[key] = chosen
    constants.chosen = chosen
    if key not in constants.engines:
        constants.engines[key] = chosen
    return chosen


def judge_by(clock: Clock) -> None:
    """From now on choose by what the ``host`` waits for, or on a GPU by the ``device``'s own time.

    What was chosen by the one says nothing of the other.
    """
    global _clock
    _clock = clock


def choices() -> Mapping[tuple[object, ...], str]:
    """What has been chosen in this process: kind of call to engine."""
    return MappingProxyType(dict(_choices))


def forget(*, alone: bool = False) -> None:
    """Measure again, as if nothing had been chosen; layers keep to what they have chosen themselves.

    Args:
        alone: from now on neither take what another process chose nor leave it a choice.
    """
    global _alone
    with _lock:
        _choices.clear()
        _alone = alone


def candidates(x: Tensor) -> list[str]:
    """Engines worth a try on such images."""
    names = ["fused"]
    if max(x.shape[-2:]) <= LARGEST_DFT:
        names.append("dft")
    if _has_kernel(x.device.type) and (not x.is_cuda or _suits_cuda(x)):
        names.append("native")
    if x.is_cuda and triton_engine.suits(x) and triton_engine.unavailable(x) is None:
        names.append("triton")
    return names


def when_compiled(device: str) -> str:
    """The engine in a graph that is being compiled, where nothing can be measured: a CPU's kernel if it works.

    On a GPU it would not do for every size, and the compiler fuses around torch's FFTs.
    """
    return "native" if device in _KERNEL_WHEN_COMPILED and _has_kernel(device) else "fused"


# All that torch.compiler.assume_constant_result does, but for loading the compiler where nobody compiles.
when_compiled._dynamo_marked_constant = True  # type: ignore[attr-defined]


def _has_kernel(device: str) -> bool:
    """Whether a kernel runs there; a warning where only an installation is missing, as slower engines step in."""
    why = native.unavailable(device)
    if why is not None and device in native.LANGUAGES:
        text = f"auto goes without its {native.LANGUAGES[device]} kernel, mostly the fastest: {why}"
        warnings.warn(text, RuntimeWarning, stacklevel=2)
    return why is None


def _suits_cuda(x: Tensor) -> bool:
    """Whether the CUDA kernel takes such images, and may be the fastest for them."""
    sides = x.shape[-2:]
    return (
        (x.dtype == torch.float32 or x.dtype in triton_engine.HALVES)
        and max(sides) <= LARGEST_SIDE
        and all(largest_prime_factor(side) <= LARGEST_PRIME for side in sides)
    )


def _kind(x: Tensor, what: tuple[object, ...]) -> tuple[object, ...]:
    return (
        what,
        tuple(x.shape),
        x.dtype,
        x.is_contiguous(),
        wants_gradient(x),
        x.device,
        _clock if x.is_cuda else None,
        torch.get_num_threads() if x.is_cpu else None,
    )


def _capturing(x: Tensor) -> bool:
    return x.is_cuda and torch.cuda.is_current_stream_capturing()


def _remembered_or_fastest(key: tuple[object, ...], tensors: Sequence[Tensor], rivals: Rivals) -> str | None:
    """What an earlier process chose, if that is still among the rivals; else what is fastest now."""
    own = [tensor.detach().requires_grad_(wants_gradient(tensor)) for tensor in tensors]
    calls = rivals(own)
    engine = None if _alone else tuning.remembered(key, own[0])
    if engine in calls:
        return engine
    leaves = [tensor for tensor in own if tensor.requires_grad]
    whole = {name: _with_backward(call, leaves) if leaves else call for name, call in calls.items()}
    engine = _fastest(whole, own[0])
    if engine is not None and not _alone:
        tuning.remember(key, own[0], engine)
    return engine


def _fastest(calls: Mapping[str, Callable[[], object]], x: Tensor) -> str | None:
    """The call of the shortest best time, or None if all failed; interleaved rounds meet the same machine."""
    best: dict[str, float] = {}
    for _ in range(_ROUNDS):
        for name in list(best or calls):
            try:
                seconds = _seconds(calls[name], x)
            except RuntimeError as error:  # It may not know this dtype (NotImplementedError), or lack the memory.
                best.pop(name, None)
                if isinstance(error, build.Unavailable):
                    warnings.warn(f"auto goes without {name}: {error}", RuntimeWarning, stacklevel=2)
                continue
            best[name] = min(best.get(name, seconds), seconds)
    return min(best, key=best.__getitem__, default=None)


def _with_backward(rival: Callable[[], Tensor], leaves: Sequence[Tensor]) -> Callable[[], object]:
    """One call and its backward pass, to leaves that are cut off from the caller's graph."""

    def call() -> object:
        # Hooks of the caller are not for what a trial saves: a checkpoint's would compute all of its region again,
        # and wait there for this very choice. The innermost pair is the one that applies.
        with torch.autograd.graph.saved_tensors_hooks(_as_it_is, _as_it_is):
            y = rival()
            return torch.autograd.grad(y, leaves, y.detach())

    return call


def _seconds(call: Callable[[], object], x: Tensor) -> float:
    """Duration of one call on ``x``'s device, all that is queued on an accelerator included.

    By its own clock if that is to judge and is CUDA's; by the host's elsewhere, which waits for it. On a CPU by
    the calling thread's, which stands still while other processes have the processor: engines share their work out
    evenly, so that this is what a caller waits for on a machine of its own.
    """
    device = x.device
    if _clock == "device" and x.is_cuda:
        return _gpu_seconds(call, device)
    clock = time.perf_counter if _wait_for(device) or not _EXACT_THREADS else time.thread_time
    begin = clock()
    call()
    _wait_for(device)
    return clock() - begin


def _wait_for(device: torch.device) -> bool:
    """Until all is done that was queued there, if it is an accelerator, whichever; and whether it is."""
    accelerator = torch.accelerator.current_accelerator()
    if accelerator is None or accelerator.type != device.type:
        return False
    torch.accelerator.synchronize(device)
    return True


def _gpu_seconds(call: Callable[[], object], device: torch.device) -> float:
    """The GPU's time of one call that is enqueued while it spins."""
    with torch.cuda.device(device):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
        torch.cuda.synchronize()
        torch.cuda._sleep(_HEAD_START)  # type: ignore[no-untyped-call]
        begin.record()
        call()
        end.record()
        end.synchronize()
        return float(begin.elapsed_time(end)) * 1e-3


def _as_it_is(tensor: Tensor) -> Tensor:
    return tensor
