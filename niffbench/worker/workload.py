"""A case set up with torch: weights, input, mode and execution, the same for all operators of one class.

What is called and timed is made here once and nothing that counts ever runs it: costs come from a module of their
own (a dispatch mode can make a compiled function run eagerly ever after), saved tensors from a call of the eager
module, memory from profilers that do not dispatch.
"""

from __future__ import annotations

import hashlib
import types
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import lru_cache
from math import prod
from typing import Any

import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from niffbench.case import Case
from niffbench.cost.call import cast, load
from niffbench.niff.native.registered import itself
from niffbench.operators.base import Operator
from niffbench.operators.catalogue import catalogue
from niffbench.worker.evaluator import Footprint
from niffbench.worker.numerics import INPUT, copies

CACHED_NOISE = 2**26
"""Numbers up to which an input and an output's gradient are kept from case to case: 256 MiB each."""

MEAN_LOSS = 2.0**-20
"""How large a gradient is that comes from a mean over about a million numbers."""

_LAYOUTS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}


class TorchWorkload:
    """``case`` on ``device``, ready to be called.

    The module is in evaluation unless it is trained; complex weights are of the precision of the case's dtype.

    ``inference`` runs under ``torch.inference_mode``. Otherwise the input asks for a gradient, as it does inside a
    network. ``training`` is: forget the gradients (set to None, as optimizers do by default, so backward writes
    them instead of adding), forward, backward from a fixed gradient of the output. Until :meth:`checked` input and
    gradient are those that numerics compare. ``arithmetic`` is what to run in beside that mode.
    """

    unrolled = 1

    def __init__(
        self,
        case: Case,
        module: nn.Module,
        x: Tensor,
        device: torch.device,
        arithmetic: Callable[[], AbstractContextManager[object]] = nullcontext,
    ) -> None:
        self.case = case
        self._arithmetic = arithmetic
        dtype, layout = getattr(torch, case.problem.dtype), _LAYOUTS[case.problem.memory_format]
        self.module = cast(module, case.problem.dtype, device).to(memory_format=layout)
        mixing = catalogue()[case.operator].mixes_images(case)
        self._compared: Callable[[Tensor], Tensor] = (lambda batch: batch) if mixing else copies
        self.x = self._compared(x).to(device=device, dtype=dtype, copy=True).contiguous(memory_format=layout)
        self.gradient: Tensor | None = None
        forward = compiled(module, case.id) if case.execution == "compiled" else module
        self.call: Callable[[], Tensor]
        if case.problem.mode == "training":
            self.x.requires_grad_()
            self.gradient = self._first_gradient()
            self.call = _training(forward, self.x, self.gradient, self.leaves())
        else:
            self.x.requires_grad_(case.problem.mode == "forward")
            self.call = _forward(forward, self.x)

    @property
    def parameters(self) -> int:
        """Learnable scalars."""
        return sum(parameter.numel() for parameter in self.module.parameters())

    @contextmanager
    def scope(self) -> Iterator[None]:
        """Inference mode or its opposite, and the case's arithmetic."""
        with self._arithmetic(), torch.inference_mode(self.case.problem.mode == "inference"):
            yield

    def reset(self) -> None:
        """Forget the gradients."""
        for leaf in self.leaves():
            leaf.grad = None

    def gradients(self) -> dict[str, Tensor | None]:
        """What the last call left: of the input, as ``input``, and of every parameter that wants a gradient."""
        wanting = {name: p for name, p in self.module.named_parameters() if p.requires_grad}
        return {INPUT: self.x.grad, **{name: parameter.grad for name, parameter in wanting.items()}}

    @property
    def is_untouched(self) -> bool:
        """Whether the input is still what it was before the first call."""
        given = self._compared(input_of(self.case)).to(self.x)
        return bool(torch.equal(given, self.x.detach()))

    def checked(self) -> None:
        """Forget the gradients that were compared; from now on all images, and their gradients, are different.

        They are written into the place of the first ones: what is called stays what it is, its graphs included.
        """
        self.reset()
        with torch.no_grad():
            self.x.copy_(input_of(self.case))
            if self.gradient is not None:
                self.gradient.copy_(output_gradient(self.case))

    def leaves(self) -> list[Tensor]:
        """What gets a gradient in training."""
        return [self.x, *self.module.parameters()]

    def footprint(self) -> Footprint:
        """Count the tensors of an eager call; of a compiled case too, whose own call no mode may touch.

        Resident are input, weights, the output's gradient, and what else the call reads without having made it:
        buffers, and what a form keeps between calls. What is saved is told of eager cases alone.
        """
        saved: dict[int, int] = {}
        keep = torch.autograd.graph.saved_tensors_hooks(_keeping(saved), lambda tensor: tensor)
        with self.scope(), keep, _Reads() as reads:
            output = self.module(self.x)
        held = [self.x, *self.module.parameters()]
        given = storages(held if self.gradient is None else [*held, self.gradient])
        resident = reads.outside | given
        results = _without(storages([output]), resident)
        beside = _without(saved, resident | results)
        is_countable = self.case.execution == "eager" and self.case.problem.mode != "inference"
        return Footprint(
            resident=sum(resident.values()),
            output=sum(results.values()),
            saved=sum(beside.values()) if is_countable else None,
            kept=sum(_without(resident, given).values()),
        )

    def _first_gradient(self) -> Tensor:
        """Of the call that is checked."""
        return self._compared(output_gradient(self.case)).to(self.x, copy=True)


def _forward(module: Callable[[Tensor], Tensor], x: Tensor) -> Callable[[], Tensor]:
    return lambda: module(x)


def _training(
    module: Callable[[Tensor], Tensor], x: Tensor, gradient: Tensor, leaves: list[Tensor]
) -> Callable[[], Tensor]:
    def call() -> Tensor:
        for leaf in leaves:
            leaf.grad = None
        output = module(x)
        output.backward(gradient)  # type: ignore[no-untyped-call]
        return output

    return call


def compiled(module: nn.Module, name: str) -> Callable[[Tensor], Tensor]:
    """``torch.compile`` of ``module`` for one shape.

    Each case gets a code object of its own: torch keeps compiled versions by code object, and past a limit of
    them silently runs eagerly.
    """

    def forward(x: Tensor) -> Tensor:
        result: Tensor = module(x)
        return result

    code = forward.__code__.replace(co_name=f"forward_{name}")
    own = types.FunctionType(code, forward.__globals__, code.co_name, None, forward.__closure__)
    torch._dynamo.config.fail_on_recompile_limit_hit = True
    result: Callable[[Tensor], Tensor] = torch.compile(own, dynamic=False)
    return result


def build(operator: Operator, case: Case, state: Mapping[str, Tensor] | None) -> nn.Module:
    """The case's module on the CPU, with ``state`` as weights, or its own, seeded by its class and shape."""
    problem = case.problem
    shape = (problem.channels, problem.channels_out, problem.height, problem.width)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed_of(f"{operator.equivalence(case)}/{shape}"))
        module = operator.build(case).train(problem.mode == "training")
    if state is not None:
        load(module, state)
    return module


def input_of(case: Case) -> Tensor:
    """What is called with: random images, always the same."""
    problem = case.problem
    shape = (problem.batch, problem.channels, problem.height, problem.width)
    return noise(f"input/{shape}", shape)


def output_gradient(case: Case) -> Tensor:
    """Where backward starts from in training: random, in the output's shape, always the same.

    As small as that of a mean loss, so that an operator is found wrong which rounds gradients beside images.
    float16 could not hold that, and is trained with losses scaled up.
    """
    shape = catalogue()[case.operator].output_shape(case)
    gradient = noise(f"gradient/{shape}", shape)
    return gradient if case.problem.dtype == "float16" else MEAN_LOSS * gradient


def noise(key: str, shape: tuple[int, ...]) -> Tensor:
    """Standard normal numbers, float32 on the CPU, from a seed made of ``key``; not to be written to.

    All cases of a problem ask for the same, which take a tenth of a second to make at batch 32.
    """
    return (_cached_noise if prod(shape) <= CACHED_NOISE else _noise)(key, shape)


def _noise(key: str, shape: tuple[int, ...]) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed_of(key)))


_cached_noise = lru_cache(maxsize=2)(_noise)


def seed_of(key: str) -> int:
    """A seed that is the same in every process (``hash`` is not)."""
    return int.from_bytes(hashlib.sha256(key.encode()).digest()[:7], "big")


class _Reads(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Notes the storages that operations read without one of them having made it: ``outside``, as of `storages`.

    What is made dies when the call drops it, as without this; a weak reference keeps a storage's identity, and
    that alone, from being given out a second time.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.outside: dict[int, int] = {}
        self._seen: dict[int, StorageWeakRef] = {}

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # nothing here is compiled, so the compiler need not be loaded to be told so

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        read = storages(_tensors((args, kwargs)))
        self.outside |= {key: size for key, size in read.items() if key not in self._seen}
        result = itself(func)(*args, **(kwargs or {}))
        for tensor in _tensors((args, kwargs, result)):
            reference = StorageWeakRef(tensor.untyped_storage())  # type: ignore[no-untyped-call]
            self._seen.setdefault(reference.cdata, reference)
        return result


def _tensors(tree: object) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]


def storages(tensors: list[Tensor]) -> dict[int, int]:
    """Identity and bytes of each storage behind ``tensors``."""
    return {t.untyped_storage()._cdata: t.untyped_storage().nbytes() for t in tensors}


def _without(storages: dict[int, int], others: dict[int, int]) -> dict[int, int]:
    return {key: size for key, size in storages.items() if key not in others}


def _keeping(saved: dict[int, int]) -> Callable[[Tensor], Tensor]:
    """Notes the storages of what autograd saves; the graph lives, and with it they, as long as the output.

    The tensors themselves would hold the graph that holds this: a circle through C++ that nobody collects, whose
    gradient accumulators belong to the default stream ever after, so that no CUDA graph could be captured.
    """

    def pack(tensor: Tensor) -> Tensor:
        saved.update(storages([tensor]))
        return tensor

    return pack
