"""Bytes that a call moves, step by step, as torch's dispatcher sees them; the tensors may be fake.

Each operation reads each tensor that it is given once and writes each result once, whatever passes its library
makes inside; :data:`PASSES` has the exceptions, which are passes of their own on a GPU. A kernel of ours is one
operation and is counted like any other: what it reads and writes once.

An operation belongs to the step (:mod:`niffbench.niff.steps`) that it is taken in; one of a backward pass to the
step that made its node of autograd's graph, or else to the step that the node's own backward takes. What no step
holds is named after its kind. Putting a leaf's gradient in order is not the form's, and not counted: inside a
network it is none.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import lru_cache
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor
from torch.utils._mode_utils import no_dispatch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from niffbench.cost import fakes
from niffbench.cost.closed import Direction
from niffbench.cost.formulas import FORMULAS
from niffbench.niff.steps import PREFIX, is_once

Traffic = dict[tuple[str, Direction], int]
"""Step and direction → bytes, in the order in which the steps were first taken."""


class Dispatched(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Sees every operation that moves data, and adds up its bytes in :attr:`traffic`.

    Steps are seen inside ``with recording():`` only (:mod:`niffbench.niff.steps`).
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.traffic: Traffic = {}
        self._open: list[tuple[str | None, int]] = []
        self._step_of_node: dict[int, str] = {}
        self._goes_back = False

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is torch.ops.prim.device.default:  # which fakes are asked for more often than for all else
            return args[0].fake_device if isinstance(args[0], FakeTensor) else func(*args)
        if is_once():
            out = fakes.call(func, args, kwargs)
            self.made_once(out)
            return out
        if func.namespace == "profiler":
            self._range(func, args)
            with no_dispatch():  # no other mode has to do with it
                return func(*args, **kwargs)
        if _is_composite(func):
            with self:
                return func.decompose(*args, **kwargs)
        out = fakes.call(func, args, kwargs)
        self.made(out)
        if not func.is_view and str(func.overloadpacket) not in _NO_DATA:
            self.see(func, args, kwargs, out)
        return out

    def made(self, out: Any) -> None:
        """What any operation gave, a view or empty memory too."""

    def made_once(self, out: Any) -> None:
        """What an operation gave whose result may be kept for all calls."""

    def see(
        self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any
    ) -> tuple[str, Direction] | None:
        """Count one operation that moves data; returns the step it is part of, None of a gradient's sum."""
        step = self._step(func)
        if step is not None:
            self.traffic[step] = self.traffic.get(step, 0) + moved(str(func.overloadpacket), args, out)
        return step

    def _range(self, func: Any, args: tuple[Any, ...]) -> None:
        """A named range begins or ends; the nodes that were made inside are its step's."""
        now = torch.autograd._get_sequence_nr()  # type: ignore[attr-defined]
        if func.overloadpacket is torch.ops.profiler._record_function_enter_new:
            name = args[0].removeprefix(PREFIX) if args[0].startswith(PREFIX) else None
            self._open.append((name, now))
            return
        name, since = self._open.pop()
        if name is not None and torch._C._current_autograd_node() is None:
            for node in range(since, now):
                self._step_of_node.setdefault(node, name)

    def _step(self, func: Any) -> tuple[str, Direction] | None:
        node = torch._C._current_autograd_node()
        taken = next((name for name, _ in reversed(self._open) if name is not None), None)
        if node is not None:
            self._goes_back = True
            if node.name() == "torch::autograd::AccumulateGrad":
                return None
            taken = self._step_of_node.get(node._sequence_nr(), taken)
        return taken or kind_of(func.overloadpacket.__name__), "backward" if self._goes_back else "forward"


@lru_cache(maxsize=4096)
def _is_composite(func: Any) -> bool:
    """Whether torch makes an operation of others; in inference mode such a one comes whole."""
    composite = torch._C.DispatchKey.CompositeImplicitAutograd
    return func not in FORMULAS and (
        composite in func.py_kernels or torch._C._dispatch_has_kernel_for_dispatch_key(func.name(), composite)
    )


_KINDS = (
    ("convolution", "convolution"),
    ("attention", "attention"),
    ("_fft_c2r", "inverse fft"),
    ("_fft_", "forward fft"),
    ("mm", "mixing"),
    ("mul", "product"),
)
"""Part of an operation's name → the step that it is where nobody named one."""


def kind_of(operation: str) -> str:
    """The step that one of torch's operations is by its name, where nobody named one."""
    plain = operation.rpartition("::")[2].replace("matmul", "")  # which is made of others
    return next((kind for mark, kind in _KINDS if mark in plain), OTHER)


OTHER = "other"


_NO_DATA = {
    f"aten.{name}"
    for name in (
        "empty",
        "empty_like",
        "empty_strided",
        "new_empty",
        "new_empty_strided",
        "_unsafe_view",
        "lift_fresh",
    )
}
_WRITES_FIRST = {f"aten.{name}" for name in ("copy_", "zero_", "fill_", "uniform_", "normal_")}
_READS_NOTHING = {
    f"aten.{name}" for name in ("zeros_like", "ones_like", "full_like", "new_zeros", "new_ones", "new_full")
}


def moved(name: str, args: tuple[Any, ...], out: object) -> int:
    """Bytes that one operation moves."""
    read = [size(leaf) for leaf in tree_leaves(args) if isinstance(leaf, Tensor)]
    written = sum(size(leaf) for leaf in tree_leaves(out) if isinstance(leaf, Tensor))
    if name in PASSES:
        return PASSES[name](args, read, written)
    if name in _READS_NOTHING:
        return written
    if name in _WRITES_FIRST:
        return written + sum(read[1:])
    return sum(read) + written


def size(tensor: Tensor) -> int:
    """Bytes of the distinct numbers of a tensor (an expanded dimension holds one)."""
    distinct = 1
    for length, stride in zip(tensor.shape, tensor.stride(), strict=True):
        distinct *= length if stride or not length else 1
    return distinct * tensor.element_size()


Passes = Callable[[tuple[Any, ...], list[int], int], int]
"""Arguments of an operation, bytes of each tensor among them, bytes of its results → bytes that it moves."""


def _roll(args: tuple[Any, ...], read: list[int], written: int) -> int:
    """A pass for each rolled dimension."""
    return (sum(read) + written) * max(len(args[2]) if len(args) > 2 else 1, 1)


def _fft(args: tuple[Any, ...], read: list[int], written: int) -> int:
    """torch runs cuFFT unscaled and multiplies afterwards: a scaled FFT makes one more pass over its result."""
    return sum(read) + written + (2 * written if args[2] != 0 else 0)


def _convolution_backward(args: tuple[Any, ...], read: list[int], written: int) -> int:
    """The two gradients read the output's gradient each."""
    return sum(read) + written + (read[0] if all(args[10][:2]) else 0)


PASSES: Mapping[str, Passes] = MappingProxyType(
    {
        "aten.roll": _roll,
        "aten._fft_c2c": _fft,
        "aten._fft_r2c": _fft,
        "aten._fft_c2r": _fft,
        "aten.convolution_backward": _convolution_backward,
    }
)
"""Operation → the bytes of one that makes passes of its own."""
