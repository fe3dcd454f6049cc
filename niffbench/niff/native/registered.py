"""Our kernels as operators of torch, for what traces instead of running, or counts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from torch._library.custom_ops import CustomOpDef

_functions: dict[object, Callable[..., Any]] = {}


def registered(name: str, devices: Sequence[str]) -> Callable[[Callable[..., Any]], CustomOpDef]:
    """Make a function that changes none of its arguments torch's operator ``niffbench::name`` on ``devices``."""

    def made(function: Callable[..., Any]) -> CustomOpDef:
        qualified = f"niffbench::{name}"
        custom: CustomOpDef = torch.library.custom_op(qualified, mutates_args=(), device_types=devices)(function)
        _functions[getattr(torch.ops.niffbench, name).default] = function
        return custom

    return made


def itself(func: Callable[..., Any]) -> Callable[..., Any]:
    """What computes an operation that a dispatch mode was shown: of ours the function without the dispatcher.

    There it is wrapped so that no compiler looks into it, for which the compiler is loaded first. An operator of
    ours has one function for all its devices.
    """
    return _functions.get(func, func)
