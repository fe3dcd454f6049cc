"""What the counting witnesses and the memory prediction run: a case's module and input, in its mode."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch._guards import detect_fake_mode
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode, unset_fake_temporarily
from torch.utils._python_dispatch import TorchDispatchMode

from niffbench.case import Case, Mode
from niffbench.cost.closed import Cost
from niffbench.cost.fakes import Fakes
from niffbench.niff.steps import once


class Costed(Protocol):
    """What must be known of an operator; :class:`niffbench.operators.base.Operator` satisfies it."""

    def cost(self, case: Case) -> Cost | None: ...
    def build(self, case: Case) -> nn.Module: ...


@dataclass
class Call:
    """One call of a case: module, input and, in training from the first call on, the gradient of the output.

    Outside inference the input asks for a gradient, as it does inside a network.
    """

    module: nn.Module
    x: Tensor
    mode: Mode
    gradient: Tensor | None = None

    def __call__(self) -> Tensor:
        """Run the case once, in its mode; in training leaves gradients behind."""
        if self.mode == "inference":
            with torch.no_grad():
                return self.forward()
        out = self.forward()
        if self.mode == "training":
            if self.gradient is None:
                with once():
                    self.gradient = torch.zeros_like(out)
            out.backward(self.gradient)  # type: ignore[no-untyped-call]
        return out

    def forward(self) -> Tensor:
        """The forward pass alone, in the grad mode of the caller."""
        out: Tensor = self.module(self.x)
        return out

    def reset(self) -> None:
        """Drop the gradients."""
        self.module.zero_grad(set_to_none=True)
        self.x.grad = None


def prepare(operator: Costed, case: Case, warm: bool = True) -> Call:
    """The case's call on the CPU of whatever tensor mode is active.

    Args:
        warm: it has been called once, so that what a form keeps between calls is there.
    """
    problem = case.problem
    dtype = getattr(torch, problem.dtype)
    layout = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}[problem.memory_format]
    module = _built(operator, case).train(problem.mode == "training")
    if problem.mode == "inference":  # or torch's counter asks for gradients of weights that are parametrized
        module.requires_grad_(False)
    for tensor in (*module.parameters(), *module.buffers()):
        # Not module.to(): torch cannot swap fake parameters that anything refers to weakly.
        if tensor.dtype != (wanted := cast_dtype(tensor, problem.dtype)):
            tensor.data = tensor.data.to(wanted)
        if tensor.dim() == 4 and not tensor.is_contiguous(memory_format=layout):
            tensor.data = tensor.data.contiguous(memory_format=layout)
    shape = (problem.batch, problem.channels, problem.height, problem.width)
    x = torch.zeros(shape, dtype=dtype).contiguous(memory_format=layout)
    x.requires_grad_(problem.mode != "inference")
    call = Call(module, x, problem.mode)
    if warm:
        call()
        call.reset()
    return call


def cast_dtype(tensor: Tensor, dtype: str) -> torch.dtype:
    """What a weight or buffer has in a case of ``dtype``: that, the complex one of its precision, or its own.

    Raises:
        NotImplementedError: for complex numbers where there are none of that precision.
    """
    if tensor.is_complex():
        if dtype not in _COMPLEX:
            raise NotImplementedError(f"has complex weights, and {dtype} has no complex numbers")
        return _COMPLEX[dtype]
    own: torch.dtype = getattr(torch, dtype) if tensor.is_floating_point() else tensor.dtype
    return own


_COMPLEX = {"float64": torch.complex128, "float32": torch.complex64, "float16": torch.complex32}


def cast(module: nn.Module, dtype: str, place: torch.device | None = None) -> nn.Module:
    """``module`` in ``dtype`` and at ``place``, in place: complex numbers stay complex, integers integers."""
    module._apply(lambda tensor: tensor.to(device=place, dtype=cast_dtype(tensor, dtype)))  # type: ignore[no-untyped-call]
    return module


def _built(operator: Costed, case: Case) -> nn.Module:
    """The case's module, of fake tensors where these are wanted.

    Ours is built without memory, which is much faster than of fakes; anybody's of real tensors: some compute their
    own widths with torch.
    """
    mode = detect_fake_mode()
    if mode is None:
        return operator.build(case)
    where = _without_memory() if operator.cost(case) is not None else nullcontext()
    with unset_fake_temporarily(), where:
        module = operator.build(case)
    return faked(module, mode)


@contextmanager
def _without_memory() -> Iterator[None]:
    with torch.device("meta"), _Drawn():  # type: ignore[no-untyped-call]
        yield


def faked(module: nn.Module, mode: FakeTensorMode) -> nn.Module:
    """``module`` with fake tensors in the place of its weights and buffers, in place."""
    fakes: dict[int, Tensor] = {}  # a weight may have several names
    for part in module.modules():
        for registry in (part._parameters, part._buffers):
            for name, tensor in registry.items():
                if tensor is None:
                    continue
                if id(tensor) not in fakes:
                    with unset_fake_temporarily():  # the tensor is none
                        detached = tensor.detach()
                    if detached.is_meta:
                        fake_tensor: Tensor = FakeTensor(mode, detached, torch.device("cpu"))
                    else:
                        fake_tensor = mode.from_tensor(detached)
                    if isinstance(tensor, nn.Parameter):  # which torch would make by an operation
                        fake_tensor._is_param = True
                        fake_tensor.requires_grad_(tensor.requires_grad)
                    fakes[id(tensor)] = fake_tensor
                registry[name] = fakes[id(tensor)]  # type: ignore[assignment]
    return module


def load(module: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Give ``module`` the weights of ``state``, all of them and no other; in its own version of their layout."""
    own = module.state_dict()
    if own.keys() == state.keys():
        own.update(state)  # which leaves the version that some modules ask for
        module.load_state_dict(own)
    else:
        module.load_state_dict(dict(state))  # says what is wrong


_FILLING = {f"aten::{name}_" for name in ("add", "clamp", "erfinv", "fill", "mul", "normal", "uniform", "zero")}
"""What initialises weights, in place."""


class _Drawn(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """While a module without memory is built, fills none, and answers questions about values.

    Nothing needs to be drawn again.
    """

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is torch.ops.aten._local_scalar_dense.default and args[0].is_meta:
            return False if args[0].dtype == torch.bool else 0.0
        if func._schema.name in _FILLING and args[0].is_meta:
            return args[0]
        return func(*args, **(kwargs or {}))


@contextmanager
def fake(operator: Costed, case: Case) -> Iterator[Call]:
    """The case's warm call, built of fake tensors: shapes and types without any storage."""
    with Fakes():
        yield prepare(operator, case)
