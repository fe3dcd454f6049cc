"""Tensors are where they belong, found out without a card: every operator on fake tensors of a CUDA device.

Fake tensors know shape, dtype and device, compute nothing and need no driver; operations among tensors of two
devices are refused as on a card. (A backward pass cannot be tried so: autograd's engine asks for the driver.)
"""

from __future__ import annotations

from typing import get_args

import pytest
import torch
from gpu_cases import NETWORKS, case, names
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

from niffbench.case import Case, DType, MemoryFormat
from niffbench.niff import NiffDepthwise
from niffbench.niff.grid import axis
from niffbench.operators.catalogue import catalogue

CUDA = torch.device("cuda", 0)
LAYOUTS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}


def _on_the_card(module: nn.Module, dtype: torch.dtype) -> None:
    """Put fakes on the card in the place of parameters and buffers; called in a fake tensor mode."""
    for part in module.modules():
        for name, parameter in part.named_parameters(recurse=False):
            part._parameters[name] = nn.Parameter(_fake(parameter, dtype), parameter.requires_grad)
        for name, buffer in part.named_buffers(recurse=False):
            part._buffers[name] = _fake(buffer, dtype)


def _fake(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    kind = dtype if tensor.is_floating_point() else tensor.dtype
    return torch.empty(tensor.shape, device=CUDA, dtype=kind)


def _outputs(one: Case) -> list[Tensor]:
    """Of the case's module on the card: in inference, the first call and a warm one; with a gradient wanted."""
    problem, dtype = one.problem, getattr(torch, one.problem.dtype)
    with torch.device("meta"):
        module = catalogue()[one.operator].build(one)
    with FakeTensorMode():
        _on_the_card(module, dtype)
        shape = (problem.batch, problem.channels, problem.height, problem.width)
        x = torch.empty(shape, device=CUDA, dtype=dtype).contiguous(memory_format=LAYOUTS[problem.memory_format])
        with torch.inference_mode():
            result = [module(x), module(x)]
        return [*result, module(x.requires_grad_())]


@pytest.mark.parametrize(
    ("dtype", "memory_format"),
    [*((dtype, "contiguous") for dtype in get_args(DType)), ("float32", "channels_last")],
)
@pytest.mark.parametrize("name", names("cuda"))
def test_operators_stay_on_the_card(name: str, dtype: DType, memory_format: MemoryFormat) -> None:
    if dtype not in catalogue()[name].dtypes:
        pytest.skip(f"{name} is not defined for {dtype}")
    one = case(name, dtype=dtype, memory_format=memory_format)
    for output in _outputs(one):
        assert isinstance(output, FakeTensor)
        assert (output.device, output.dtype) == (CUDA, getattr(torch, dtype))
        assert tuple(output.shape) == catalogue()[name].output_shape(one)


@pytest.mark.parametrize("network", NETWORKS)
def test_networks_stay_on_the_card(network: str) -> None:
    for output in _outputs(case(f"network/{network}", channels=3, channels_out=1000, size=(64, 64))):
        assert output.device == CUDA
        assert output.shape == (2, 1000)


def test_a_tensor_that_stayed_behind_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """The fakes can tell: a grid made on the CPU, as by a forgotten ``device=``, is refused."""

    def left_behind(*args: object, device: torch.device, **options: object) -> Tensor:
        return axis(*args, device=torch.device("cpu"), **options)  # type: ignore[arg-type]

    module = NiffDepthwise(8)
    monkeypatch.setattr("niffbench.niff.grid.axis", left_behind)
    with FakeTensorMode():
        _on_the_card(module, torch.float32)
        with pytest.raises(RuntimeError, match="cpu"):
            module(torch.empty(2, 8, 26, 30, device=CUDA))
