"""Questions to torch about what will be done with a result."""

from __future__ import annotations

import torch
from torch import Tensor


def tracing() -> bool:
    """Whether operations are being recorded (``torch.compile``, ``torch.jit.trace``) rather than only run."""
    return torch.compiler.is_compiling() or torch._C._get_tracing_state() is not None


def wants_gradient(*tensors: Tensor) -> bool:
    """Whether autograd will ask for a gradient of what is computed from these now."""
    return torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors)
