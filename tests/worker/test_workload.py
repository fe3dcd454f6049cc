"""Subjects: the same weights for a class, modes, gradients, and a compiled function that nothing un-compiles."""

from __future__ import annotations

import functools
import weakref
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from typing import Any

import pytest
import torch
from run_worker import case_of
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef

from niffbench.case import Case, DType, Mode
from niffbench.device.cpu import CpuDevice
from niffbench.niff import auto, native
from niffbench.niff.native import build
from niffbench.operators.base import Operator
from niffbench.operators.catalogue import catalogue
from niffbench.worker import memory, torch_evaluator
from niffbench.worker.shared import Store
from niffbench.worker.tolerance import is_wrong, tolerance
from niffbench.worker.torch_evaluator import TorchEvaluator
from niffbench.worker.workload import TorchWorkload, noise, seed_of


def _output(workload: TorchWorkload) -> Tensor:
    with workload.scope():
        return workload.call()


class Rounding(CpuDevice):
    """A device with TF32, which computes as a CPU does."""

    def arithmetic(self, tf32: bool) -> AbstractContextManager[object]:
        @contextmanager
        def rounding() -> Iterator[None]:
            self.tf32 = tf32
            yield
            self.tf32 = False

        return rounding()


def test_the_cases_of_a_problem_share_the_making_of_their_input_and_not_the_input(
    evaluator: TorchEvaluator, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[tuple[int, ...]] = []
    randn = torch.randn

    def counting(shape: tuple[int, ...], **settings: Any) -> Tensor:
        made.append(shape)
        return randn(shape, **settings)

    monkeypatch.setattr(torch, "randn", counting)
    names = ("niff-depthwise/rfft", "niff-depthwise/fft", "niff-depthwise/published")
    workloads = [evaluator.workload(case_of(name, size=11, mode="training")) for name in names]
    assert len([shape for shape in made if len(shape) == 4]) == 2  # the input and the output's gradient
    addresses = {tensor.data_ptr() for one in workloads for tensor in (one.x, one.gradient) if tensor is not None}
    assert len(addresses) == 6


@pytest.mark.parametrize(
    ("operator", "kernel", "asked", "loosened"),
    [
        ("depthwise", 3, True, True),
        ("depthwise", 3, False, False),
        ("fft-depthwise", 3, True, False),
        ("niff-depthwise/rfft", None, True, True),  # its filter comes out of matrix products
    ],
)
def test_a_tolerance_is_loosened_only_where_products_are_rounded(
    operator: str, kernel: int | None, asked: bool, loosened: bool
) -> None:
    case = case_of(operator, kernel)
    case = replace(case, problem=replace(case.problem, tf32=asked))
    threads = torch.get_num_threads()
    evaluator = TorchEvaluator(Rounding(threads=1))
    torch.set_num_threads(threads)
    workload = evaluator.workload(case)
    allowed = evaluator.numerics(workload, _output(workload)).tolerance
    assert (allowed > 100 * tolerance("float32")) is loosened


class Overridden(CpuDevice):
    """A device whose driver rounds float32 to TF32, whatever is asked for."""

    tf32 = True


def test_float32_is_refused_where_it_would_be_tf32() -> None:
    threads = torch.get_num_threads()
    evaluator = TorchEvaluator(Overridden(threads=1))
    torch.set_num_threads(threads)
    with pytest.raises(NotImplementedError, match="NVIDIA_TF32_OVERRIDE=1 makes it TF32"):
        evaluator.workload(case_of("depthwise", 3))
    assert evaluator.workload(case_of("depthwise", 3, dtype="float64")).parameters > 0


def test_operators_of_a_class_get_the_same_weights_and_so_agree(evaluator: TorchEvaluator) -> None:
    forms = [
        evaluator.workload(case_of(f"niff-depthwise/{form}")) for form in ("published", "fft", "rfft", "cached")
    ]
    first = forms[0].module.state_dict()
    for workload in forms[1:]:
        state = workload.module.state_dict()
        assert all(torch.equal(state[name], value) for name, value in first.items())
    outputs = [_output(workload) for workload in forms]
    for output in outputs[1:]:
        assert float((output - outputs[0]).norm() / outputs[0].norm()) < 1e-5


def test_a_form_that_would_draw_other_weights_gets_those_of_its_class(
    evaluator: TorchEvaluator, monkeypatch: pytest.MonkeyPatch
) -> None:
    kind = type(catalogue()["fft-depthwise"])
    build = kind.build

    def disturbed(self: Operator, case: Case) -> nn.Module:
        torch.rand(1)
        return build(self, case)

    monkeypatch.setattr(kind, "build", disturbed)
    for name in ("depthwise-circular", "fft-depthwise"):
        workload = evaluator.workload(case_of(name, 3, size=9))
        assert not is_wrong(evaluator.numerics(workload, _output(workload)))


@pytest.mark.parametrize("dtype", ["float64", "float32", "bfloat16"])
def test_the_reference_is_as_exact_as_float64_is(evaluator: TorchEvaluator, dtype: DType) -> None:
    workload = evaluator.workload(case_of("depthwise", 5, size=14, dtype=dtype))
    assert not is_wrong(evaluator.numerics(workload, _output(workload)))


def test_building_leaves_torchs_own_randomness_alone(evaluator: TorchEvaluator) -> None:
    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    evaluator.workload(case_of("depthwise", 3, size=9))
    assert torch.equal(torch.rand(3), expected)


def test_seeds_do_not_depend_on_the_process() -> None:
    assert seed_of("x") == 12790714374497968
    assert torch.equal(noise("x", (3,)), noise("x", (3,)))
    assert not torch.equal(noise("x", (3,)), noise("y", (3,)))


@pytest.mark.parametrize(
    ("mode", "graph", "gradients"),
    [("inference", False, False), ("forward", True, False), ("training", True, True)],
)
def test_a_mode_is_what_it_says(evaluator: TorchEvaluator, mode: Mode, graph: bool, gradients: bool) -> None:
    workload = evaluator.workload(case_of("depthwise", 3, mode=mode))
    output = _output(workload)
    assert output.is_inference() == (mode == "inference")
    assert (output.grad_fn is not None) == graph
    assert all((leaf.grad is not None) == gradients for leaf in workload.leaves())
    workload.reset()
    assert all(leaf.grad is None for leaf in workload.leaves())


def test_training_forgets_the_gradients_instead_of_adding_to_them(evaluator: TorchEvaluator) -> None:
    workload = evaluator.workload(case_of("depthwise", 3, mode="training"))
    _output(workload)
    first = [leaf.grad for leaf in workload.leaves()]
    _output(workload)
    for leaf, before in zip(workload.leaves(), first, strict=True):
        assert leaf.grad is not None
        assert before is not None
        assert torch.equal(leaf.grad, before)


def test_images_are_copies_of_two_until_they_are_checked(evaluator: TorchEvaluator) -> None:
    """And afterwards all different, in the same place, where compiled code and graphs will look for them."""
    workload = evaluator.workload(case_of("depthwise", 3, mode="training", batch=5))
    assert workload.gradient is not None
    places = workload.x.data_ptr(), workload.gradient.data_ptr()
    output = _output(workload)
    for batch in (workload.x, workload.gradient, workload.x.grad):
        assert batch is not None
        assert len(batch.unique(dim=0)) == 2
    compared = evaluator.numerics(workload, output)
    assert compared.gradient is not None
    assert compared.gradient.l2 < 1e-5
    assert all(leaf.grad is None for leaf in workload.leaves())
    _output(workload)
    for batch in (workload.x, workload.gradient, workload.x.grad):
        assert batch is not None
        assert len(batch.unique(dim=0)) == 5
    assert (workload.x.data_ptr(), workload.gradient.data_ptr()) == places


def test_memory_format_and_dtype_reach_input_and_weights(evaluator: TorchEvaluator) -> None:
    case = case_of("dense", 3, dtype="bfloat16")
    last = replace(case, problem=replace(case.problem, memory_format="channels_last"))
    workload = evaluator.workload(last)
    assert workload.x.dtype == torch.bfloat16
    assert workload.x.is_contiguous(memory_format=torch.channels_last)
    assert all(parameter.dtype == torch.bfloat16 for parameter in workload.module.parameters())


def test_references_are_shared_by_class_and_shape_and_across_modes(
    evaluator: TorchEvaluator, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[str] = []
    original = TorchEvaluator._reference

    def counted(self: TorchEvaluator, case: object, weights: object) -> Tensor:
        made.append(case.operator)  # type: ignore[attr-defined]
        return original(self, case, weights)  # type: ignore[arg-type]

    monkeypatch.setattr(TorchEvaluator, "_reference", counted)
    for mode in ("inference", "training"):
        for form in ("rfft", "published"):
            workload = evaluator.workload(case_of(f"niff-depthwise/{form}", size=11, mode=mode))  # type: ignore[arg-type]
            assert evaluator.numerics(workload, _output(workload)).l2 < 1e-5
        evaluator.forget()
    assert made == ["niff-depthwise/rfft"]
    workload = evaluator.workload(case_of("niff-depthwise/rfft", size=12))
    evaluator.numerics(workload, _output(workload))
    assert len(made) == 2


def test_gradients_are_shared_by_class_and_shape_and_only_computed_for_training(
    evaluator: TorchEvaluator, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[str] = []
    original = TorchEvaluator._reference_gradients

    def counted(self: TorchEvaluator, case: Case, *of: object) -> object:
        made.append(case.problem.mode)
        return original(self, case, *of)  # type: ignore[arg-type]

    def fails(*_: object) -> Tensor:
        raise AssertionError("the gradients' pass has given the output too")

    monkeypatch.setattr(TorchEvaluator, "_reference_gradients", counted)
    monkeypatch.setattr(TorchEvaluator, "_reference", fails)
    for mode in ("training", "inference", "training"):
        for form in ("rfft", "published"):
            workload = evaluator.workload(case_of(f"niff-depthwise/{form}", size=13, mode=mode))  # type: ignore[arg-type]
            result = evaluator.numerics(workload, _output(workload))
            assert result.l2 < 1e-5
            assert (result.gradient is None) == (mode == "inference")
        evaluator.forget()
    assert made == ["training"]


def test_gradients_count_in_what_the_store_keeps() -> None:
    store, case = Store(), case_of("depthwise", 3, mode="training")
    store.add(case, "class", {"weight": torch.zeros(10)})
    stored = store.find(case, "class")
    assert stored is not None
    before = stored.bytes
    store.gradients(
        case, "class", lambda weights: (torch.zeros(5), {"weight": torch.zeros(10), "input": torch.ones(2)})
    )
    assert stored.bytes - before == 4 * (5 + 10 + 2)


@pytest.mark.parametrize(
    ("operator", "dtype", "output"),
    [
        ("network/resnet18-split", "bfloat16", "rounding to bfloat16 alone may move them by "),
        ("depthwise", "float32", "float64 would take 1.7e+03 FLOPs for them, over 1e+02"),
    ],
)
def test_gradients_that_cannot_be_compared_are_said_to_be_left_out(
    evaluator: TorchEvaluator, monkeypatch: pytest.MonkeyPatch, operator: str, dtype: DType, output: str
) -> None:
    monkeypatch.setattr(torch_evaluator, "MOST_ON_HOST", 100.0)
    entry = catalogue()[operator]
    case = case_of(operator, 3 if entry.takes_kernel else None, size=2, batch=3, mode="training", dtype=dtype)
    if entry.role == "network":
        case = replace(case, problem=replace(case.problem, channels=3, height=64, width=64))
    workload = evaluator.workload(case)
    result = evaluator.numerics(workload, _output(workload))
    assert result.gradient is None
    assert result.gradients_left_out is not None
    assert result.gradients_left_out.startswith(output)
    assert result.l2 < result.tolerance
    assert workload.gradient is not None
    assert all(bool(image.any()) for image in workload.gradient)


def test_float64_that_does_not_fit_is_no_fault_of_the_case(
    evaluator: TorchEvaluator, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> object:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.")

    monkeypatch.setattr(TorchEvaluator, "_reference_gradients", full)
    workload = evaluator.workload(case_of("depthwise", 5, mode="training"))
    result = evaluator.numerics(workload, _output(workload))
    assert result.gradients_left_out == "no memory for them in float64"
    assert result.l2 < 1e-5


def test_the_store_keeps_the_latest_up_to_its_size(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("niffbench.worker.shared.CACHED_BYTES", 100)
    store, cases = Store(), [case_of("depthwise", 3, size=size) for size in (5, 6, 7)]
    for case in cases:
        store.add(case, "class", {"weight": torch.zeros(10)})
    store.trim()
    assert [store.find(case, "class") is None for case in cases] == [True, False, False]
    assert store.find(cases[2], "another class") is None


def _compiles(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Replace inductor by a backend that runs the captured graph, and notes each run by its kind."""
    runs: list[str] = []
    real = torch.compile

    def backend(graph: torch.fx.GraphModule, inputs: object) -> object:
        def run(*arguments: Tensor) -> object:
            runs.append("compiled")
            return graph(*arguments)

        return run

    monkeypatch.setattr(torch, "compile", lambda function, **options: real(function, backend=backend, **options))
    return runs


def test_counting_before_timing_does_not_change_what_is_executed(
    evaluator: TorchEvaluator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rule 6. Cost and memory are looked at; every later call must still run the compiled graph."""
    runs = _compiles(monkeypatch)
    case = case_of("depthwise", 3, size=10, execution="compiled")
    workload = evaluator.workload(case)
    _output(workload)
    assert runs == ["compiled"]
    modes: list[int] = []
    call = workload.call
    monkeypatch.setattr(workload, "call", lambda: (modes.append(torch._C._len_torch_dispatch_stack()), call())[1])
    evaluator.cost(case, None)
    assert modes == []
    memory.measure(evaluator.device, workload, evaluator.predict(case))
    assert set(modes) == {0}
    runs.clear()
    block = evaluator.device.samples(workload, "steady", 2, 3)
    assert len(block.samples) == 3
    assert runs == ["compiled"] * 6


def test_counting_before_timing_touches_no_eager_case(evaluator: TorchEvaluator) -> None:
    """Rule 6 again: what is timed is not run for its cost, and afterwards no mode is there to slow it down."""
    case = case_of("depthwise", 3, size=15)
    workload = evaluator.workload(case)
    modes: list[int] = []
    workload.module.register_forward_pre_hook(lambda *_: modes.append(torch._C._len_torch_dispatch_stack()))
    evaluator.cost(case, None)
    assert modes == []
    memory.measure(evaluator.device, workload, evaluator.predict(case))
    modes.clear()
    evaluator.device.samples(workload, "steady", 2, 3)
    assert modes == [0] * 6


@pytest.mark.skipif(build.unavailable() is not None, reason="there is no C compiler here")
@pytest.mark.parametrize(
    ("form", "dtype"), [("native", "float32"), ("native", "float64"), ("features-cached", "float64")]
)
def test_no_first_call_compiles_the_kernel(
    form: str, dtype: DType, evaluator: TorchEvaluator, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(build, "_outcome", functools.cache(build._outcome.__wrapped__))  # as in a new process
    native.unavailable("cpu")
    workload = evaluator.workload(case_of(f"niff-depthwise/{form}", dtype=dtype))
    monkeypatch.setattr(build, "compiled", None)
    monkeypatch.setattr(build, "_built", None)
    evaluator.device.timed(workload)


@pytest.mark.skipif(build.unavailable() is not None, reason="there is no C compiler here")
def test_only_operators_that_may_take_the_kernel_wait_for_it(
    evaluator: TorchEvaluator, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[str] = []
    built = build._built

    def noted(real: str, tuning: tuple[str, ...]) -> object:
        made.append(real)
        return built(real, tuning)

    monkeypatch.setattr(build, "_outcome", functools.cache(build._outcome.__wrapped__))  # as in a new process
    monkeypatch.setattr(build, "_built", noted)
    for name in ("depthwise", "niff-depthwise/rfft", "niff-depthwise/dft-cached", "niff-full/auto"):
        evaluator.device.timed(
            evaluator.workload(case_of(name, 3 if name == "depthwise" else None, dtype="float64"))
        )
    assert "double" not in made
    evaluator.workload(case_of("niff-depthwise/auto", dtype="float64"))
    assert "double" in made


def test_every_case_of_auto_tunes_in_its_own_first_call_and_never_again(
    evaluator: TorchEvaluator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The order of cases decides nothing: what one has chosen is forgotten before the next, and it keeps to it."""
    tuned: list[str] = []
    fastest = auto._fastest

    def noted(*arguments: Any) -> str:
        tuned.append(stage)
        return fastest(*arguments)

    monkeypatch.setattr(auto, "_fastest", noted)
    workloads = []
    for form in ("auto", "auto-cached"):
        stage = f"first of {form}"
        workloads.append(evaluator.workload(case_of(f"niff-depthwise/{form}", channels=3, size=6)))
        evaluator.device.timed(workloads[-1])
    stage = "sampling"
    for workload in workloads:
        evaluator.device.samples(workload, "steady", 1, 2)
    assert tuned == ["first of auto", "first of auto-cached"]


def test_many_shapes_are_each_compiled_and_none_silently_runs_eagerly(
    evaluator: TorchEvaluator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Torch gives up on a code object after eight recompilations; each case has one of its own."""
    runs = _compiles(monkeypatch)
    workloads = [
        evaluator.workload(case_of("depthwise", 3, size=size, execution="compiled")) for size in range(5, 19)
    ]
    for workload in workloads:
        _output(workload)
    assert len(runs) == len(workloads)


def test_the_footprint_of_a_compiled_case_does_not_run_it(monkeypatch: pytest.MonkeyPatch) -> None:
    called: list[str] = []
    monkeypatch.setattr(
        "niffbench.worker.workload.compiled", lambda module, name: lambda x: called.append("compiled")
    )
    case = case_of("dense", 1, execution="compiled")
    workload = TorchWorkload(case, nn.Conv2d(4, 4, 1), torch.ones(1, 4, 8, 8), torch.device("cpu"))
    assert workload.footprint().output == 4 * 64 * 4
    assert called == []


class _Square(nn.Module):
    """Saves for its backward pass what it made itself, and remembers that without keeping it."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(4, 1, 1))
        self.made: list[weakref.ref[Tensor]] = []

    def forward(self, x: Tensor) -> Tensor:
        scaled = x * self.weight
        self.made.append(weakref.ref(scaled))
        return scaled * scaled


def test_a_footprint_leaves_nothing_of_its_call() -> None:
    """What stayed would take memory, and hold gradients to the default stream: no CUDA graph could be captured."""
    module, x = _Square(), torch.ones(1, 4, 8, 8)
    workload = TorchWorkload(case_of("dense", 1, mode="training"), module, x, torch.device("cpu"))
    assert workload.footprint().saved == x.nbytes
    assert [made() for made in module.made] == [None]


class _Chain(nn.Module):
    """Drops each result once the next is made, and counts those that are alive."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("shift", torch.ones(1))
        self.alive = 0

    def forward(self, x: Tensor) -> Tensor:
        made: list[StorageWeakRef] = []
        for _ in range(20):
            x = x + self.shift
            made.append(StorageWeakRef(x.untyped_storage()))
            self.alive = max(self.alive, sum(not one.expired() for one in made))
        return x


def test_a_footprint_needs_no_more_memory_than_the_call() -> None:
    module, x = _Chain(), torch.ones(1, 4, 64, 64)
    workload = TorchWorkload(case_of("dense", 1), module, x, torch.device("cpu"))
    footprint = workload.footprint()
    assert module.alive <= 2
    assert (footprint.resident, footprint.output) == (x.nbytes + 4, x.nbytes)
