"""Fake tensors that are made again without torch are those that torch makes, and what cannot be is not."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional as F

from niffbench.cost import fakes
from niffbench.cost.fakes import Fakes


def _plain(x: Tensor) -> list[Tensor]:
    y = F.conv2d(x, x[:3, :, :3, :3], padding=1)
    return [y, F.relu_(y), y.mean((0, 1)), y.expand(2, *y.shape), F.pad(x, (1, 2)), x.mT.contiguous()]


def _complex(x: Tensor) -> list[Tensor]:
    z = torch.fft.rfft2(x)
    parts = torch.view_as_real(z.conj().resolve_conj())
    return [z, z.conj(), z.conj() * z, parts, parts[..., 1], z.imag, torch.fft.irfft2(z.conj(), s=x.shape[-2:])]


def _views(x: Tensor) -> list[Tensor]:
    return [*x.split(2, 1), *x.unbind(0), x[:, 1::2], x.flatten(2), x.select(1, 2).unsqueeze(0), x.reshape(-1)[5:]]


def _in_place(x: Tensor) -> list[Tensor]:
    y = x.clone()
    y[:, 1].zero_()
    shrunk = x.clone()
    shrunk.resize_(2, 3)
    turned = x.clone()
    turned.t_() if x.dim() == 2 else turned.transpose_(0, 1)
    return [y.add_(1.0), shrunk, turned]


def _trained(x: Tensor) -> list[Tensor]:
    x = x.detach().requires_grad_()
    weight, ones = torch.ones(4, 4, 3, 3), torch.ones(4)
    norm = F.batch_norm(F.conv2d(x, weight), ones, ones, training=True)
    (F.gelu(norm) * torch.fft.rfft2(x).abs().mean()).sum().backward()
    assert x.grad is not None
    return [norm, x.grad]


@pytest.mark.parametrize("made", [_plain, _complex, _views, _in_place, _trained])
def test_results_that_are_made_again_are_those_of_torch(made: Callable[[Tensor], list[Tensor]]) -> None:
    def described(mode: FakeTensorMode, layout: torch.memory_format) -> list[object]:
        with mode:
            x = torch.zeros(5, 4, 8, 9).to(memory_format=layout)
            outs = made(x)
        storages = [x.untyped_storage()._cdata, *(out.untyped_storage()._cdata for out in outs)]
        return [
            (
                *(
                    type(out),
                    out.shape,
                    out.stride(),
                    out.storage_offset(),
                    out.dtype,
                    out.device,
                    out.requires_grad,
                ),
                *(out.is_conj(), out.is_neg(), out.untyped_storage().nbytes(), out.is_contiguous()),
                storages.index(out.untyped_storage()._cdata),
            )
            for out in outs
        ]

    fakes._entries.clear()
    for layout in (torch.contiguous_format, torch.channels_last):
        expected = described(FakeTensorMode(), layout)
        assert [described(Fakes(), layout) for _ in range(3)] == [expected] * 3
    assert sum(entry is not None for entry in fakes._entries.values()) >= len(expected)


def test_what_depends_on_values_is_asked_of_torch_each_time() -> None:
    with Fakes():
        for value in (2.0, 3.0, 2.0):
            assert torch.tensor(value).item() == value
            assert (torch.tensor(value) * 2).item() == 2 * value
