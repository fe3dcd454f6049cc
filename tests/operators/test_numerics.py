"""Every operator against its float64 reference, in value and in gradient, and against the rest of its class."""

from __future__ import annotations

import copy
from collections import defaultdict
from collections.abc import Callable
from dataclasses import replace
from typing import get_args

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from operator_cases import ON_CPU, case_at, cases
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from niffbench.case import Case, DType, OptionValue, Problem
from niffbench.cost.memory import predict
from niffbench.device.cpu import CpuDevice
from niffbench.niff import recording
from niffbench.niff.steps import PREFIX
from niffbench.operators.catalogue import catalogue
from niffbench.worker.tolerance import is_wrong, verdict
from niffbench.worker.torch_evaluator import TorchEvaluator

PROBLEM = Problem(2, 8, 8, 12, 10)
BOUND = {"float64": 1e-10, "float32": 1e-4, "float16": 2e-2, "bfloat16": 1e-1}


def build(case: Case, seed: int = 0) -> tuple[nn.Module, Tensor]:
    """The case's module and an input, in its dtype and memory format."""
    torch.manual_seed(seed)
    p = case.problem
    dtype = getattr(torch, p.dtype)
    layout = torch.channels_last if p.memory_format == "channels_last" else torch.contiguous_format
    module = catalogue()[case.operator].build(case).to(dtype).to(memory_format=layout)
    return module, torch.randn(p.batch, p.channels, p.height, p.width).to(dtype).contiguous(memory_format=layout)


def reference(case: Case, module: nn.Module, x: Tensor) -> Tensor:
    state = {name: value.double() for name, value in module.state_dict().items()}
    return catalogue()[case.operator].reference(case, state, x.detach().double())


def error(result: Tensor, truth: Tensor) -> float:
    """Relative L2."""
    result, truth = result.detach().double(), truth.detach().double()
    return float((result - truth).norm() / truth.norm().clamp_min(1e-30))


def ordinary(name: str, **settings: OptionValue) -> Case:
    options: dict[str, OptionValue] = {"modes": 4} if name == "spectral" else {}
    return case_at(name, PROBLEM, 5, **(options | settings))


@settings(max_examples=120, deadline=None)
@given(cases(), st.integers(0, 9))
def test_operators_compute_what_their_reference_says(case: Case, seed: int) -> None:
    module, x = build(case, seed)
    truth = reference(case, module, x)
    assert truth.dtype == torch.float64
    for context in (torch.inference_mode, torch.enable_grad):
        with context():
            result = module(x)
        assert result.shape == (x.shape[0], case.problem.channels_out, *x.shape[2:])
        assert result.dtype == x.dtype
        assert error(result, truth) < BOUND[case.problem.dtype]


@pytest.mark.parametrize("name", ON_CPU)
def test_float64_agrees_to_ten_digits(name: str) -> None:
    case = ordinary(name)
    module, x = build(replace(case, problem=replace(PROBLEM, dtype="float64")))
    assert error(module(x), reference(case, module, x)) < 1e-10


@pytest.mark.parametrize("name", ["depthwise-circular", "depthwise", "fft-depthwise", "fft-depthwise-padded"])
def test_the_largest_kernels(name: str) -> None:
    """2·min(H, W) − 1: circular ones wrap around, by FFT as well as by padding."""
    case = case_at(name, replace(PROBLEM, height=7, width=9, dtype="float64"), 13)
    module, x = build(case)
    assert error(module(x), reference(case, module, x)) < 1e-10


def classes() -> list[tuple[str, list[Case]]]:
    """Cases by equivalence class, variants of options included, where a class has several."""
    result: dict[str, list[Case]] = defaultdict(list)
    for name in ON_CPU:
        variants = [ordinary(name)]
        options = catalogue()[name].options
        variants += [ordinary(name, cached=True)] if "cached" in options else []
        variants += [ordinary(name, layout="nhwc")] if "layout" in options else []
        for case in variants:
            result[catalogue()[name].equivalence(case)].append(case)
    return [(label, members) for label, members in result.items() if len(members) > 1]


@pytest.mark.parametrize(("label", "members"), classes())
def test_members_of_a_class_share_weights_and_results(label: str, members: list[Case]) -> None:
    first, x = build(members[0])
    state, truth = first.state_dict(), first(x)
    for case in members[1:]:
        other, _ = build(case, seed=1)
        shapes = {name: value.shape for name, value in other.state_dict().items()}
        assert shapes == {name: value.shape for name, value in state.items()}
        other.load_state_dict(state)
        with torch.inference_mode():
            assert error(other(x), truth) < 1e-5, case


@pytest.mark.parametrize("name", ON_CPU)
def test_gradients_are_those_of_the_reference(name: str) -> None:
    """Directional derivatives along a random direction, in float64, of input and weights."""
    case = replace(ordinary(name), problem=replace(PROBLEM, dtype="float64", mode="training"))
    module, x = build(case)
    x.requires_grad_()
    out = module(x)
    weight = torch.randn_like(out)
    out.backward(weight)
    names, values = zip(*module.named_parameters(), strict=True)
    leaves = (x, *values)
    assert all(leaf.grad is not None and leaf.grad.isfinite().all() for leaf in leaves)
    along = [torch.randn_like(leaf) for leaf in leaves]
    step = 1e-5

    def moved(by: float) -> Tensor:
        shifted = [leaf.detach() + by * direction for leaf, direction in zip(leaves, along, strict=True)]
        state = dict(zip(names, shifted[1:], strict=True))
        return (catalogue()[name].reference(case, state, shifted[0]) * weight).sum()

    numeric = (moved(step) - moved(-step)) / (2 * step)
    analytic = sum((leaf.grad * d).sum() for leaf, d in zip(leaves, along, strict=True) if leaf.grad is not None)
    assert float(analytic) == pytest.approx(float(numeric), rel=1e-6)


@pytest.mark.parametrize("dtype", get_args(DType))
@pytest.mark.parametrize("name", ON_CPU)
def test_no_right_gradient_is_called_wrong(evaluator: TorchEvaluator, name: str, dtype: DType) -> None:
    for problem in (PROBLEM, replace(PROBLEM, batch=3, height=28, width=26), replace(PROBLEM, batch=1, width=7)):
        case = replace(ordinary(name), problem=replace(problem, dtype=dtype, mode="training"))
        workload = evaluator.workload(case)
        result = evaluator.numerics(workload, workload.call())
        assert not is_wrong(result), verdict(result)
        assert result.gradient is not None
        assert max(result.gradient.l2, result.gradient.max) < 0.6 * result.gradient.tolerance


@settings(max_examples=60, deadline=None)
@given(cases(modes=("training",)))
def test_no_right_gradient_is_called_wrong_at_odd_shapes(case: Case) -> None:
    """All run eagerly: compiling took nearly all of the time, and how exact a form's gradients are is its own."""
    evaluator = TorchEvaluator(CpuDevice(threads=1))
    workload = evaluator.workload(replace(case, execution="eager"))
    result = evaluator.numerics(workload, workload.call())
    assert not is_wrong(result), verdict(result)


def test_no_right_gradient_of_a_compiled_form_is_called_wrong_at_an_odd_shape(evaluator: TorchEvaluator) -> None:
    problem = replace(PROBLEM, batch=1, channels=3, channels_out=3, height=7, width=9, mode="training")
    workload = evaluator.workload(replace(case_at("niff-depthwise/rfft", problem), execution="compiled"))
    result = evaluator.numerics(workload, workload.call())
    assert not is_wrong(result), verdict(result)
    assert result.gradient is not None


PLANTED: dict[str, Callable[[Tensor], Tensor | None]] = {
    "scaled": lambda gradient: gradient * 1.01,
    "reversed": lambda gradient: gradient.flatten().flip(0).view_as(gradient),
    "not a number": lambda gradient: gradient * torch.nan,
    "missing": lambda gradient: None,
}


@pytest.mark.parametrize("fault", PLANTED)
@pytest.mark.parametrize("name", ON_CPU)
def test_a_wrong_gradient_is_found_whosever_it_is(evaluator: TorchEvaluator, name: str, fault: str) -> None:
    case = replace(ordinary(name), problem=replace(PROBLEM, batch=3, mode="training"))
    for number, whose in enumerate(evaluator.workload(case).gradients()):
        workload = evaluator.workload(case)
        output = workload.call()
        leaf = workload.leaves()[number]
        assert leaf.grad is not None
        leaf.grad = PLANTED[fault](leaf.grad.contiguous())
        result = evaluator.numerics(workload, output)
        assert is_wrong(result)
        assert verdict(result).startswith(f"gradient of {whose}: ")


@pytest.mark.parametrize("name", ON_CPU)
def test_modules_survive_copy_state_and_moves(name: str) -> None:
    module, x = build(ordinary(name))
    with torch.inference_mode():
        before = module(x)
    twin = copy.deepcopy(module)
    with torch.no_grad():
        for parameter in twin.parameters():
            parameter.mul_(0.5)
    with torch.inference_mode():
        assert torch.equal(module(x), before)  # the copy's weights are its own
        assert not torch.allclose(twin(x), before)
    twin.load_state_dict(module.state_dict())
    with torch.inference_mode():
        assert error(twin(x), before) < 1e-6
        assert error(module.double()(x.double()), before) < 1e-5


@pytest.mark.parametrize("name", ["fft-depthwise", "fft-dense-padded"])
def test_a_kept_spectrum_follows_its_weight(name: str) -> None:
    module, x = build(ordinary(name, cached=True))
    weight = next(module.parameters())
    with torch.inference_mode():
        first = module(x)
        assert torch.equal(module(x), first)
    with torch.no_grad():
        weight.mul_(2)
    with torch.inference_mode():
        assert error(module(x), 2 * first) < 1e-6
    module(x).sum().backward()
    assert weight.grad is not None  # where a gradient is wanted nothing is taken from the store


@pytest.mark.usefixtures("untimed_guards")
@pytest.mark.parametrize("name", [name for name in ON_CPU if not name.startswith("niff")])
def test_modules_can_be_compiled(name: str) -> None:
    """Through AOT autograd, without a code generator: the graph is whole, the result the same."""
    module, x = build(ordinary(name))
    torch._dynamo.reset()
    compiled = torch.compile(module, backend="aot_eager", fullgraph=True, dynamic=False)
    assert error(compiled(x), module(x)) < 1e-6


@pytest.mark.parametrize("name", ON_CPU)
def test_steps_are_those_of_the_closed_form(name: str) -> None:
    """What is recorded while a layer runs joins with its cost by name; steps that cost nothing may be missing."""
    case = ordinary(name)
    module, x = build(case)
    with torch.inference_mode():
        module(x)  # auto tries its candidates, each of which has steps
    with torch.inference_mode(), torch.profiler.profile() as profile, recording():
        module(x)
    seen = {event.key.removeprefix(PREFIX) for event in profile.key_averages() if event.key.startswith(PREFIX)}
    stated = {step.name for step in catalogue()[name].cost(case).steps}
    assert stated <= seen
    assert seen - stated <= {"real part", "cast", "filter generation", "shift", "padding"}  # moved, not computed


def test_half_precision_is_cast_and_the_cast_is_counted() -> None:
    case = case_at("fft-depthwise", replace(PROBLEM, dtype="float16"), 5)
    traffic = predict(catalogue()["fft-depthwise"], case).traffic
    pixels = 2 * 12 * 10
    assert traffic["cast", "forward"] == (2 + 4) * pixels * 16
    assert traffic["forward fft", "forward"] > pixels * 8 * 4  # float32 in, complex64 out


@settings(max_examples=30, deadline=None)
@given(cases(("global-filter", "spectral"), modes=("inference",)))
def test_half_plane_operators_start_with_nothing_that_libraries_may_read_differently(case: Case) -> None:
    """Before the inverse FFT, columns that mirror themselves are Hermitian: no imaginary part to be ignored."""
    module, x = build(replace(case, problem=replace(case.problem, dtype="float64")))
    seen: list[Tensor] = []

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
            if func.overloadpacket is torch.ops.aten._fft_c2r:
                seen.append(args[0].clone())
            return func(*args, **(kwargs or {}))

    with torch.no_grad(), Watch():
        module(x)
    (spectrum,) = seen
    height, width = x.shape[-2:]
    mirror = -torch.arange(height) % height
    for column in {0, width // 2} if width % 2 == 0 else {0}:
        own = spectrum[..., column]
        assert torch.allclose(own, own[..., mirror].conj(), atol=1e-12)
