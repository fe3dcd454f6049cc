"""Steps are recorded by name inside ``recording``, and cost nothing outside."""

from __future__ import annotations

import threading
from typing import Any

import pytest
import torch
from torch.profiler import ProfilerActivity, profile

from niffbench.niff import NiffDepthwise, NiffFull, NiffSplit, recording, step
from niffbench.niff.steps import PREFIX


def ranges(*, layer: torch.nn.Module, record: bool) -> list[str]:
    """The niffbench ranges of one forward, in order of their start."""
    x = torch.randn(1, 3, 6, 6)
    with torch.no_grad(), profile(activities=[ProfilerActivity.CPU]) as profiler:
        if record:
            with recording():
                layer(x)
        else:
            layer(x)
    events = sorted(profiler.events(), key=lambda event: event.time_range.start)
    return [event.name.removeprefix(PREFIX) for event in events if event.name.startswith(PREFIX)]


def test_a_forward_is_made_of_its_steps_in_order() -> None:
    assert ranges(layer=NiffDepthwise(3, form="published"), record=True) == [
        "filter generation", "forward fft", "shift", "product", "shift", "inverse fft", "real part",
    ]  # fmt: skip
    assert ranges(layer=NiffDepthwise(3, form="rfft"), record=True) == [
        "filter generation", "forward fft", "product", "inverse fft",
    ]  # fmt: skip
    assert ranges(layer=NiffFull(3, 4, form="fft"), record=True) == [
        "filter generation", "forward fft", "mixing", "inverse fft", "real part",
    ]  # fmt: skip
    assert ranges(layer=NiffSplit(3, 4, form="published"), record=True) == [
        "filter generation", "forward fft", "shift", "product", "mixing", "shift", "inverse fft", "real part",
    ]  # fmt: skip


@pytest.mark.parametrize("form", ["native", "auto", "auto-cached"])
def test_what_is_done_at_once_is_one_step(form: str) -> None:
    layer = NiffDepthwise(3, form=form)
    with torch.no_grad():
        layer(torch.randn(1, 3, 6, 6))
    assert ranges(layer=layer, record=True) == ["filter generation", "convolution"]


def test_nothing_is_recorded_unless_asked() -> None:
    assert ranges(layer=NiffDepthwise(3), record=False) == []


def test_half_precision_counts_its_casts() -> None:
    layer = NiffDepthwise(3).half()
    x = torch.randn(1, 3, 6, 6).half()
    with profile(activities=[ProfilerActivity.CPU]) as profiler, recording():
        layer(x)
    assert sum(event.name == PREFIX + "cast" for event in profiler.events()) >= 2


def test_the_switch_belongs_to_one_thread_and_is_restored() -> None:
    seen: list[bool] = []
    off = step("product")
    with recording():
        assert step("product") is not off
        with recording():
            pass
        assert step("product") is not off, "leaving an inner block must not switch the outer one off"
        thread = threading.Thread(target=lambda: seen.append(step("product") is off))
        thread.start()
        thread.join()
    assert seen == [True]
    assert step("product") is off
    with pytest.raises(RuntimeError), recording():
        raise RuntimeError
    assert step("product") is off


def test_a_backward_pass_takes_its_steps_in_the_thread_that_records_them() -> None:
    """On an accelerator too, where autograd has threads of its own unless it is told not to use them."""
    off = step("product")
    seen: list[tuple[bool, bool, int]] = []

    class Own(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
            return x.clone()

        @staticmethod
        def backward(ctx: Any, gradient: torch.Tensor) -> torch.Tensor:
            handed_over = torch._C._is_multithreading_enabled()
            seen.append((step("product") is not off, handed_over, threading.get_ident()))
            return gradient

    def train() -> None:
        Own.apply(torch.ones(1, requires_grad=True)).backward()

    with recording():
        train()
    train()
    here = threading.get_ident()
    assert seen == [(True, False, here), (False, True, here)]


def test_a_misspelt_step_is_refused_while_recording() -> None:
    with recording(), pytest.raises(ValueError, match="'prodcut' is not a step"):
        step("prodcut")


def test_steps_leave_a_compiled_graph_whole() -> None:
    def double(x: torch.Tensor) -> torch.Tensor:
        with step("product"):
            return x * 2

    compiled = torch.compile(double, backend="eager", fullgraph=True)
    assert torch.equal(compiled(torch.ones(2)), torch.full((2,), 2.0))
