"""Questions to torch about what will be done with a result."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.nn.modules import module

from niffbench.niff.steps import is_recording


def compiling() -> bool:
    """Whether ``torch.compile`` is tracing."""
    return torch.compiler.is_compiling()


def exporting() -> bool:
    """Whether ``torch.export`` is tracing: what is recorded must run without this package."""
    # Not is_exporting(): torch 2.11 says so of any graph that it compiles.
    return bool(torch.compiler._is_exporting_flag)


def watched() -> bool:
    """Whether ``torch.jit.trace``, ``torch.func`` (grad, vmap, …) or dual tensors must see every operation."""
    return transformed() or (not torch.compiler.is_compiling() and torch._C._get_tracing_state() is not None)


def transformed() -> bool:
    """Whether ``torch.func``, or forward differentiation, wraps the tensors at hand: addresses say too little."""
    return not torch.compiler.is_compiling() and (
        torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0
    )


def hooks_of_all() -> bool:
    """Whether hooks that are not one module's see the calls of all."""
    return bool(module._global_forward_hooks or module._global_forward_pre_hooks)


def wants_operations(gradient: Tensor) -> bool:
    """Whether a backward pass given this must be made of torch's operations: it is differentiated, or batched."""
    return torch.is_grad_enabled() or transformed() or torch._C._functorch.is_legacy_batchedtensor(gradient)


def unobserved(x: Tensor) -> bool:
    """Whether nobody sees more of a call on ``x``, an ordinary tensor on a CPU, than the result and its gradients.

    No tracer, transform, mode of torch, autocast or recorded step.
    """
    return not (
        torch.compiler.is_compiling()
        or torch._C._len_torch_dispatch_stack()
        or torch._C._are_functorch_transforms_active()
        or forward_ad._current_level >= 0
        or torch._C._get_tracing_state() is not None
        or torch.is_autocast_enabled("cpu")
        or is_recording()
    ) and (type(x) is Tensor and x.is_cpu and not x.is_neg())


def autocasts(tensor: Tensor) -> bool:
    """Whether autocast is on where ``tensor`` is."""
    device = tensor.device.type
    return device != "meta" and torch.is_autocast_enabled(device)


def without_autocast(tensor: Tensor) -> AbstractContextManager[object]:
    """Autocast off where ``tensor`` is. A backward pass inside a region of autocast has it on again."""
    return torch.autocast(tensor.device.type, enabled=False) if autocasts(tensor) else nullcontext()


def wants_gradient(*tensors: Tensor) -> bool:
    """Whether autograd will ask for a gradient of what is computed from these now."""
    return torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors)
