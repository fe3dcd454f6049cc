"""The choice of an engine: by measurement, once for each kind of call, never where measuring would mislead."""

from __future__ import annotations

import copy
import json
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from random import Random
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch._subclasses import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from niffbench.niff import NiffDepthwise, NiffSplit, auto, fused, tuning
from niffbench.niff.autograd import wants_gradient
from niffbench.niff.grid import Remembered
from niffbench.niff.native import build

SLOW = 0.02
"""Seconds of the thread's own that a call of a slow engine takes."""


class Engines:
    """Stand-ins for the engines, of planted speed; counts the calls of each."""

    def __init__(self, seconds: dict[str, float]) -> None:
        self.seconds = seconds
        self.calls: Counter[str] = Counter()

    def engine(self, name: str) -> auto.Convolution:
        def convolve(x: Tensor, half: Tensor, _: Remembered) -> Tensor:
            self.calls[name] += 1
            if self.seconds[name] < 0:
                raise RuntimeError("not on this machine")
            end = time.thread_time() + self.seconds[name]
            while time.thread_time() < end:
                pass
            return fused.convolve(x, half)

        return convolve


@pytest.fixture
def planted(monkeypatch: pytest.MonkeyPatch) -> Iterator[Engines]:
    result = Engines({"fused": 0.004, "dft": 0.0, "native": SLOW})
    monkeypatch.setattr(auto, "ENGINES", {name: result.engine(name) for name in result.seconds})
    monkeypatch.setattr(auto, "GENERATING_ON", {})
    monkeypatch.setattr(auto, "candidates", lambda _: list(result.seconds))
    auto.forget()
    yield result
    auto.forget()


def inputs(size: int = 6, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    return torch.randn(2, 3, size, size, dtype=dtype), torch.randn(
        3, size, size // 2 + 1, dtype=dtype.to_complex()
    )


def convolve(x: Tensor, half: Tensor) -> Tensor:
    """With a filter that is at hand, by the fastest engine."""

    def rivals(own: Sequence[Tensor]) -> dict[str, Callable[[], Tensor]]:
        return {name: partial(auto.ENGINES[name], own[0], own[1], Remembered()) for name in auto.candidates(x)}

    what = (half.dtype, wants_gradient(half))
    chosen = auto.choose(x, lambda: (x, half), rivals, auto.Constants(), otherwise="fused", what=what)
    return auto.ENGINES[chosen](x, half, Remembered())


def chosen_by(engines: Engines, *tensors: Tensor) -> str:
    """Which engine a call goes to, and to no other."""
    engines.calls.clear()
    convolve(*tensors)
    (name,) = engines.calls
    assert engines.calls[name] == 1
    return name


def test_the_fastest_is_chosen_once_and_for_all(planted: Engines) -> None:
    x, half = inputs()
    convolve(x, half)
    assert set(planted.calls) == {"fused", "dft", "native"}
    assert chosen_by(planted, x, half) == "dft"
    assert chosen_by(planted, torch.randn_like(x), half) == "dft"
    assert list(auto.choices().values()) == ["dft"]
    planted.seconds["dft"] = SLOW
    assert chosen_by(planted, x, half) == "dft", "remembered, not measured again"
    auto.forget()
    convolve(x, half)
    assert chosen_by(planted, x, half) == "fused"


def test_another_kind_of_call_is_another_choice(planted: Engines) -> None:
    x, half = inputs()
    convolve(x, half)
    planted.seconds.update(dft=SLOW)
    wanted = x.clone().requires_grad_()
    others = [
        inputs(7),
        inputs(dtype=torch.float64),
        (torch.randn(2, 3, 6, 6).to(memory_format=torch.channels_last), half),
        (wanted, half),
        (x, half.clone().requires_grad_()),
    ]
    for other in others:
        convolve(*other)
        assert chosen_by(planted, *other) == "fused"
    with torch.no_grad():
        assert chosen_by(planted, wanted, half) == "dft", "no gradient is wanted here"
    assert chosen_by(planted, x, half) == "dft"
    assert len(auto.choices()) == 1 + len(others)


def test_measuring_a_call_that_trains_leaves_its_graph_alone(planted: Engines) -> None:
    x, half = inputs()
    x.requires_grad_()
    half.requires_grad_()
    seen: list[Tensor] = []
    x.register_hook(seen.append)
    convolve(x, half).sum().backward()
    assert len(seen) == 1
    assert x.grad is not None
    expected = torch.autograd.grad(fused.convolve(x, half).sum(), [x, half])
    assert torch.allclose(x.grad, expected[0])
    assert torch.allclose(half.grad, expected[1])


def test_the_numbers_drawn_at_random_do_not_depend_on_measuring(planted: Engines) -> None:
    x, half = inputs()
    torch.manual_seed(3)
    first = torch.randn(1)
    auto.forget()
    torch.manual_seed(3)
    convolve(x, half)
    assert torch.equal(torch.randn(1), first)


def test_an_engine_that_fails_is_passed_over(planted: Engines) -> None:
    planted.seconds.update(dft=-1)
    x, half = inputs()
    convolve(x, half)
    assert chosen_by(planted, x, half) == "fused"


def test_where_every_engine_fails_nothing_is_remembered(planted: Engines) -> None:
    x, half = inputs()
    planted.seconds.update(fused=-1, dft=-1, native=-1)
    with pytest.raises(RuntimeError, match="not on this machine"):
        convolve(x, half)
    assert not auto.choices()
    planted.seconds.update(dft=0)
    convolve(x, half)
    assert list(auto.choices().values()) == ["dft"]


CHECKPOINTED = """
import torch
from torch.utils.checkpoint import checkpoint
from niffbench.niff import NiffDepthwise

layer = NiffDepthwise(3, form="auto")
x = torch.randn(2, 3, 6, 6, requires_grad=True)
checkpoint(layer, x, use_reentrant=False).sum().backward()
leaves = [x, *layer.parameters()]
right = torch.autograd.grad(layer.with_form("rfft")(x).sum(), leaves)
print(all(torch.allclose(one.grad, two, rtol=1e-4, atol=1e-4) for one, two in zip(leaves, right)), layer.chosen)
"""


def test_measuring_inside_a_checkpoint_comes_to_an_end() -> None:
    """Unpacking what a checkpoint saves computes its region again, which must not wait for the choice.

    In a process of its own, because a thread that waits for ever would keep the lock.
    """
    done = subprocess.run(
        [sys.executable, "-c", CHECKPOINTED], capture_output=True, text=True, check=True, timeout=120
    )
    alike, chosen = done.stdout.split()
    assert alike == "True"
    assert chosen in auto.ENGINES


def test_threads_that_come_together_measure_once(planted: Engines) -> None:
    x, half = inputs()
    barrier = threading.Barrier(4)

    def call() -> None:
        barrier.wait()
        convolve(x, half)

    workers = [threading.Thread(target=call) for _ in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert planted.calls["native"] == 3, "one measurement"
    assert list(auto.choices().values()) == ["dft"]


def test_a_layer_says_what_was_chosen_for_it(planted: Engines) -> None:
    layer, other = NiffDepthwise(3, form="auto"), NiffDepthwise(3, form="auto")
    x, _ = inputs()
    assert layer.chosen is None
    with torch.no_grad():
        layer(x)
        assert layer.chosen == "dft"
        assert other.chosen is None, "it was not called"
        other(x)
        assert other.chosen == "dft", "remembered from the first layer's call"
    assert copy.deepcopy(layer).chosen is None
    assert layer.with_form("native").chosen is None, "that is no choice"


def test_an_engine_is_fixed_for_one_layer_its_copies_and_later_twins(planted: Engines) -> None:
    layer, (x, _) = NiffDepthwise(3, form="auto"), inputs()
    twin = layer.with_form("auto-cached")
    twin.fix_engine("fused")
    with torch.no_grad():
        for _ in range(3):
            layer(x)
            assert layer.chosen == "dft", "by measurement: it is not the twin that was told"
        planted.calls.clear()
        for fixed in (twin, copy.deepcopy(twin), twin.with_form("auto")):
            for _ in range(3):
                fixed(x)
                assert fixed.chosen is None, "that is no choice"
    assert set(planted.calls) == {"fused"}


@pytest.mark.skipif(build.unavailable() is not None, reason="there is no C compiler here")
def test_a_layer_that_is_told_to_take_the_kernel_chooses_nothing() -> None:
    layer, x = NiffSplit(3, 4, form="auto"), torch.randn(2, 3, 6, 5)
    layer.fix_engine("native")
    with torch.no_grad():
        for _ in range(3):
            assert torch.allclose(layer(x), layer.with_form("fft")(x), atol=1e-4)
            assert (layer.chosen, layer.filtering().chosen) == (None, None)
        layer.filtering()(x)
    assert not auto.choices()


@pytest.mark.skipif(build.unavailable() is not None, reason="there is no C compiler here")
def test_what_is_kept_is_the_filter_or_its_features_whichever_is_faster(monkeypatch: pytest.MonkeyPatch) -> None:
    """And nothing of the other, which was made to be measured."""
    seconds = {"fused": 3, "dft": 3, "native": 2, "features": 1}

    def fastest(calls: dict[str, Callable[[], object]], _: Tensor) -> str:
        for call in calls.values():
            call()
        return min(calls, key=seconds.__getitem__)

    monkeypatch.setattr(auto, "_fastest", fastest)
    x = torch.randn(2, 3, 6, 5)
    for engine, kept in (("features", [(2, 4, 18), (2, 3, 4), (2, 3)]), ("native", [(3, 6, 3)])):
        auto.forget()
        layer = NiffDepthwise(3, form="auto-cached")
        with torch.no_grad():
            results = [layer(x) for _ in range(3)]
        assert all(torch.allclose(one, layer.with_form("fft")(x), atol=1e-4) for one in results)
        assert layer.chosen == engine
        (entry,) = layer.generator._cache._current[2]._entries.values()
        assert [tuple(one.shape) for one in (entry if isinstance(entry, tuple) else (entry,))] == kept
        assert layer(x.requires_grad_()).requires_grad, "of images that want a gradient, or weights, none is kept"
        assert layer.chosen == "native"
        x = x.detach()
        seconds["native"] = 0
    auto.forget()


def test_an_engine_is_not_slow_for_what_other_processes_take(
    planted: Engines, monkeypatch: pytest.MonkeyPatch
) -> None:
    engines = dict(auto.ENGINES)

    def waiting(x: Tensor, half: Tensor, constants: Remembered) -> Tensor:
        time.sleep(0.02)
        return engines["dft"](x, half, constants)

    monkeypatch.setattr(auto, "ENGINES", {**engines, "dft": waiting})
    convolve(*inputs())
    assert list(auto.choices().values()) == ["dft"], "it waits for 20 ms and computes less than the others"


@given(
    true=st.lists(st.floats(1e-5, 1e-2), min_size=2, max_size=4),
    seed=st.integers(0, 2**32 - 1),
)
def test_no_engine_that_is_slower_than_another_by_more_than_the_noise_is_chosen(
    true: list[float], seed: int
) -> None:
    """Planted timings, of which the machine adds up to a tenth to all, and makes two of three 20 times as long."""
    random = Random(seed)
    spoiled = {engine: random.sample(range(3), random.randint(0, 2)) for engine in range(len(true))}
    calls: Counter[int] = Counter()

    def seconds(engine: object, _: Tensor) -> float:
        assert isinstance(engine, int)
        taken = true[engine] * random.uniform(1, 1.1) * (20 if calls[engine] in spoiled[engine] else 1)
        calls[engine] += 1
        return taken

    engines = {str(engine): engine for engine in range(len(true))}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(auto, "_seconds", seconds)
        chosen = auto._fastest(engines, torch.ones(1))  # type: ignore[arg-type]
    assert chosen is not None
    assert true[int(chosen)] <= 1.1 * min(true)
    assert set(calls.values()) == {3}, "a choice costs three calls of each"


def test_a_choice_outlives_its_process_unless_that_is_not_wanted(
    planted: Engines, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(build, "cache", lambda: tmp_path)
    file, (x, half) = tmp_path / "choices.json", inputs()
    convolve(x, half)
    assert not file.exists(), "switched off"
    monkeypatch.setenv(tuning.SWITCH, "1")
    auto.forget()
    convolve(x, half)
    (entry,) = json.loads(file.read_text()).items()
    assert entry[1] == "dft"
    planted.seconds["dft"] = SLOW
    auto.forget()  # as a new process has
    assert chosen_by(planted, x, half) == "dft"
    monkeypatch.setenv(tuning.SWITCH, "0")
    auto.forget()
    convolve(x, half)
    assert chosen_by(planted, x, half) == "fused", "what was written is not read"
    assert dict([entry]) == json.loads(file.read_text())


@pytest.mark.parametrize("content", ["", "[1, 2]", '{"a": 1}', "{", "\0\0"])
def test_a_file_of_choices_that_cannot_be_read_is_made_anew_and_bounded(
    content: str, planted: Engines, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(build, "cache", lambda: tmp_path)
    monkeypatch.setenv(tuning.SWITCH, "1")
    monkeypatch.setattr(tuning, "MOST", 2)
    (tmp_path / "choices.json").write_text(content)
    for size in (4, 5, 6):
        convolve(*inputs(size))
    assert list(json.loads((tmp_path / "choices.json").read_text()).values()) == ["dft", "dft"]
    assert [path.name for path in tmp_path.iterdir()] == ["choices.json"]


def test_a_choice_of_another_version_or_of_an_engine_that_is_gone_is_not_taken(
    planted: Engines, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(build, "cache", lambda: tmp_path)
    monkeypatch.setenv(tuning.SWITCH, "1")
    x, half = inputs()
    convolve(x, half)
    monkeypatch.setattr(auto, "candidates", lambda _: ["fused", "native"])
    auto.forget()
    convolve(x, half)
    assert chosen_by(planted, x, half) == "fused"
    before = tuning.remembered(("kind",), x)
    tuning.remember(("kind",), x, "dft")
    assert (before, tuning.remembered(("kind",), x)) == (None, "dft")
    monkeypatch.setattr(tuning, "__version__", "another")
    tuning._machine.cache_clear()
    assert tuning.remembered(("kind",), x) is None
    tuning._machine.cache_clear()


class Passing(TorchDispatchMode):
    """A mode that looks at every operation, as a counter does."""

    def __torch_dispatch__(self, func: object, types: object, args: object = (), kwargs: object = None) -> object:
        return func(*args, **(kwargs or {}))


def test_nothing_is_measured_where_it_would_mislead(planted: Engines) -> None:
    x, half = inputs()
    with Passing():
        assert chosen_by(planted, x, half) == "fused"
    with FakeTensorMode():
        assert chosen_by(planted, *inputs()) == "fused"
    planted.calls.clear()
    torch.func.grad(lambda x: convolve(x, half).sum())(x)
    assert set(planted.calls) == {"fused"}
    assert not auto.choices()
    convolve(x, half)
    with Passing():
        assert chosen_by(planted, x, half) == "dft", "what is known already may be used"


def test_a_compiled_layer_measures_nothing() -> None:
    torch._dynamo.reset()
    auto.forget()
    layer = NiffDepthwise(3, form="auto")
    x = torch.randn(1, 3, 6, 6)
    compiled = torch.compile(layer, backend="aot_eager", fullgraph=True)
    assert torch.allclose(compiled(x), layer.with_form("fft")(x), atol=1e-4)
    assert not auto.choices()
    assert layer.chosen is None


@pytest.mark.parametrize("kind", ["xpu", "mps"])
def test_a_trial_on_any_accelerator_ends_when_its_work_does(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise engines would be ranked by how fast they are enqueued."""
    there = torch.device(kind)
    events: list[object] = []
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda: there)
    monkeypatch.setattr(torch.accelerator, "synchronize", events.append)
    image = SimpleNamespace(device=there, is_cuda=False)
    auto._seconds(lambda: events.append("call"), image)  # type: ignore[arg-type]
    assert events == [there, "call", there]
    events.clear()
    auto._seconds(lambda: events.append("call"), torch.ones(1))
    assert events == ["call"]
