"""Whole networks as operators: their closed forms are written down independently of torchvision."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from operator_cases import case_at
from torch import Tensor, nn
from torch.optim.optimizer import register_optimizer_step_post_hook

from niffbench.case import Case, DType, Mode, OptionValue, Problem
from niffbench.cost.memory import predict
from niffbench.cost.witness import witnesses
from niffbench.device.cpu import CpuDevice
from niffbench.niff import NiffFull
from niffbench.niff.catalogue import NETWORKS
from niffbench.niff.networks import choosing_layers, feature_maps, niff_layers
from niffbench.operators.catalogue import catalogue
from niffbench.operators.network import WholeNetwork
from niffbench.worker import torch_evaluator
from niffbench.worker.tolerance import is_wrong, tolerance, verdict
from niffbench.worker.torch_evaluator import MOST_ON_HOST, TorchEvaluator

IMAGES = Problem(2, 3, 10, 64, 64)
SMALL = Problem(4, 3, 10, 32, 32, mode="training")
"""Four values of each channel to normalise over in the last stage, and a quarter of the work."""
FULL = Problem(1, 3, 1000, 224, 224)


def network(name: str, problem: Problem = IMAGES, **options: OptionValue) -> Case:
    return case_at(f"network/{name}", problem, **options)


def output(case: Case, x: Tensor, seed: int = 0) -> tuple[Tensor, Tensor]:
    """What the network says, and what its reference does."""
    torch.manual_seed(seed)
    operator = catalogue()[case.operator]
    module = operator.build(case)
    state = {
        name: value.double() if value.is_floating_point() else value.clone()
        for name, value in module.state_dict().items()
    }
    with torch.no_grad():
        truth = operator.reference(case, state, x.double())
        return module(x), truth


def test_the_reference_of_large_kernels_is_the_convolution_that_is_timed() -> None:
    """Transforms compute it on large maps: were they to wrap, or a pixel off, every pixel would show it."""
    result, truth = output(network("convnext_tiny-k31", replace(IMAGES, batch=1)), torch.randn(1, 3, 64, 64))
    torch.testing.assert_close(result.double(), truth, rtol=1e-4, atol=1e-5)


def test_every_network_is_an_operator() -> None:
    assert {f"network/{name}" for name in NETWORKS} <= set(catalogue())


@pytest.mark.parametrize(
    ("name", "millions"),
    [
        ("resnet18-full", 21.13), ("resnet50-full", 33.78), ("resnet18-split", 3.33), ("resnet50-split", 18.28),
        ("densenet121-full", 10.12), ("densenet121-split", 6.16), ("mobilenet_v2-niff", 3.513),
        ("convnext_tiny-niff", 28.89), ("resnet18", 11.69), ("resnet50", 25.56), ("convnext_tiny", 28.59),
    ],
)  # fmt: skip
def test_parameters_are_the_published_ones(name: str, millions: float) -> None:
    case = network(name, FULL)
    assert catalogue()[case.operator].cost(case).parameters / 1e6 == pytest.approx(millions, abs=0.006)


@pytest.mark.parametrize(
    ("name", "gigaflops"),
    [
        ("resnet18", 3.63), ("resnet34", 7.33), ("resnet50", 8.18), ("resnet101", 15.6), ("resnet152", 23.0),
        ("densenet121", 5.67), ("densenet169", 6.72), ("densenet201", 8.58), ("mobilenet_v2", 0.60),
        ("convnext_tiny", 8.91), ("convnext_small", 17.37), ("convnext_base", 30.7), ("convnext_large", 68.7),
    ],
)  # fmt: skip
def test_flops_of_originals_are_what_torchvision_documents(name: str, gigaflops: float) -> None:
    """Twice the GFLOPS (multiply-adds) in torchvision's table of weights."""
    case = network(name, FULL)
    assert catalogue()[case.operator].cost(case).flops() / 1e9 == pytest.approx(gigaflops, rel=0.01)


@pytest.mark.parametrize(
    ("name", "mode"),
    [
        ("resnet18", "training"),
        ("mobilenet_v2-niff", "inference"),
        ("convnext_tiny-niff", "inference"),
        ("resnet18-kmap", "training"),
    ],
)
def test_witnesses_agree_on_networks(name: str, mode: Mode) -> None:
    case = network(name, replace(IMAGES, mode=mode))
    operator = catalogue()[case.operator]
    record = witnesses(operator, case)
    assert record.disagreement is None
    assert record.counted == record.closed
    assert record.fvcore == record.closed_forward
    with torch.device("meta"):
        learnable = sum(parameter.numel() for parameter in operator.build(case).parameters())
    assert operator.cost(case).parameters == learnable


@pytest.mark.parametrize("optimiser", ["sgd", "adamw"])
def test_witnesses_agree_whatever_updates_the_weights(optimiser: str) -> None:
    """The update itself counts nothing, and nothing in it is unpriced."""
    training = replace(IMAGES, mode="training")
    plain, stepping = (network("resnet18", training, optimiser=name) for name in ("none", optimiser))
    record = witnesses(catalogue()["network/resnet18"], stepping)
    assert record.disagreement is None
    assert record.counted == record.closed == witnesses(catalogue()["network/resnet18"], plain).counted


@pytest.mark.parametrize("execution", ["published", "rfft", "elided", "cached"])
def test_every_execution_agrees_with_float64(execution: str) -> None:
    case = network("resnet18-split", execution=execution)
    said, truth = output(case, torch.randn(2, 3, 64, 64))
    assert said.shape == catalogue()[case.operator].output_shape(case) == (2, 10)
    growth = catalogue()[case.operator].error_growth(case)
    assert (said.double() - truth).norm() / truth.norm() < tolerance("float32") * growth


def test_fresh_full_layers_keep_the_size_of_what_flows_on_images_that_are_not_square() -> None:
    case = network("resnet18-full", replace(IMAGES, height=32, width=160))
    module = catalogue()[case.operator].build(case)
    sizes = feature_maps(module, 32, 160)
    full = {name: layer for name, layer in niff_layers(module) if isinstance(layer, NiffFull)}
    assert len(full) == 13
    for name, layer in full.items():
        power = layer.filter(*sizes[name]).abs().square().mean().item()
        assert power == pytest.approx(2 / layer.in_channels, rel=1e-3), name


@pytest.mark.parametrize("name", ["convnext_tiny-niff", "mobilenet_v2-niff", "resnet18"])
def test_training_agrees_with_float64(name: str) -> None:
    case = network(name, replace(IMAGES, batch=3, mode="training"))
    said, truth = output(case, torch.randn(3, 3, 64, 64))
    growth = catalogue()[case.operator].error_growth(case)
    assert (said.double() - truth).norm() / truth.norm() < tolerance("float32") * growth
    assert catalogue()[case.operator].mixes_images(case)


@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        ("resnet18", "float32"),
        ("resnet18-split", "float32"),
        ("resnet18-split", "float64"),
        ("mobilenet_v2-niff", "float32"),
        ("convnext_tiny-niff", "float32"),
    ],
)
def test_gradients_agree_with_float64_and_a_wrong_one_is_found(name: str, dtype: DType) -> None:
    """Though ReLUs that rounding has switched, and shifts that a norm takes away, have noisy gradients."""
    before = torch.get_num_threads()
    evaluator = TorchEvaluator(CpuDevice(threads=1))
    wide = name == "mobilenet_v2-niff"  # whose many normalisations make more of rounding over four values
    case = network(name, replace(SMALL, width=64 if wide else 32, dtype=dtype))
    for fault in (None, "reversed", *(["missing"] if name == "resnet18" else [])):
        workload = evaluator.workload(case)
        output = workload.call()
        first = workload.leaves()[1]
        assert first.grad is not None
        if fault:
            first.grad = None if fault == "missing" else first.grad.flip(2)
        result = evaluator.numerics(workload, output)
        assert is_wrong(result) == bool(fault), verdict(result)
        assert result.gradient is not None
        exact = result.exact_gradient
        assert (exact is not None) == catalogue()[case.operator].switches(case)
        assert exact is None or exact.l2 < 1e-11
    torch.set_num_threads(before)


@pytest.mark.parametrize(
    ("name", "dtype"), [("resnet18", "float32"), ("resnet18-split", "float32"), ("resnet18", "bfloat16")]
)
def test_a_small_error_of_a_gradient_is_found_behind_what_rounding_switches(
    monkeypatch: pytest.MonkeyPatch, name: str, dtype: DType
) -> None:
    """Of 2 %, in one layer: the bound on the case's own gradients lets it pass, or there can be none."""
    before = torch.get_num_threads()
    evaluator = TorchEvaluator(CpuDevice(threads=1))
    case = network(name, replace(SMALL, width=64 if dtype == "bfloat16" else 32, dtype=dtype))
    right = WholeNetwork.build
    workload = evaluator.workload(case)
    result = evaluator.numerics(workload, workload.call())
    assert result.exact_gradient is not None
    assert result.exact_gradient.l2 < 1e-11

    def planted(operator: WholeNetwork, case: Case) -> nn.Module:
        module = right(operator, case)
        module.get_parameter("layer2.0.conv1.weight").register_hook(lambda gradient: 1.02 * gradient)
        return module

    monkeypatch.setattr(WholeNetwork, "build", planted)
    workload = evaluator.workload(case)
    result = evaluator.numerics(workload, workload.call())
    assert not is_wrong(replace(result, exact_gradient=None))
    assert (result.gradient is None) == (dtype == "bfloat16")
    assert is_wrong(result)
    assert verdict(result).startswith("gradient of layer2.0.conv1.weight in float64: error")
    assert result.exact_gradient is not None
    assert result.exact_gradient.l2 == pytest.approx(0.02, rel=1e-6)
    torch.set_num_threads(before)


@pytest.mark.parametrize(
    ("affordable", "compared", "exactly", "text"),
    [
        (2.1, True, True, None),
        (1.9, True, False, "with the operator itself float64 would take "),
        (0.9, False, False, "float64 would take "),
    ],
)
def test_an_operator_is_run_in_float64_where_that_and_its_reference_are_affordable_or_it_is_said(
    monkeypatch: pytest.MonkeyPatch, affordable: float, compared: bool, exactly: bool, text: str | None
) -> None:
    before = torch.get_num_threads()
    evaluator = TorchEvaluator(CpuDevice(threads=1))
    case = network("resnet18", SMALL)
    monkeypatch.setattr(
        torch_evaluator, "MOST_ON_HOST", affordable * catalogue()[case.operator].cost(case).flops()
    )
    workload = evaluator.workload(case)
    result = evaluator.numerics(workload, workload.call())
    assert (result.gradient is not None, result.exact_gradient is not None) == (compared, exactly)
    assert (result.gradients_left_out is None) == (text is None)
    assert text is None or str(result.gradients_left_out).startswith(text)
    torch.set_num_threads(before)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_no_memory_for_the_operator_itself_leaves_the_ordinary_comparison(
    monkeypatch: pytest.MonkeyPatch, dtype: DType
) -> None:
    before = torch.get_num_threads()
    evaluator = TorchEvaluator(CpuDevice(threads=1))
    workload = evaluator.workload(network("resnet18", replace(SMALL, dtype=dtype)))
    output = workload.call()

    def full(*_: object) -> nn.Module:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.")

    monkeypatch.setattr(WholeNetwork, "build", full)
    result = evaluator.numerics(workload, output)
    assert result.exact_gradient is None
    assert result.gradients_left_out is not None
    assert result.gradients_left_out.endswith("no memory for the operator itself in float64")
    assert (result.gradient is not None) == (dtype == "float32")
    assert ("rounding to" in result.gradients_left_out) == (dtype == "bfloat16")
    torch.set_num_threads(before)


def test_a_shipped_step_of_training_is_compared_in_float64() -> None:
    """Of ``suites/training.toml``, by the baseline itself beside its reference, on a CPU."""
    case = network("resnet18", replace(FULL, batch=8, mode="training"), optimiser="sgd")
    assert 2 * catalogue()[case.operator].cost(case).flops() <= MOST_ON_HOST


@pytest.mark.parametrize("optimiser", ["sgd", "adamw"])
def test_an_optimiser_steps_once_a_call_and_changes_nothing(optimiser: str) -> None:
    case = network("resnet18", replace(IMAGES, mode="training"), optimiser=optimiser)
    module = catalogue()[case.operator].build(case)
    steps = 0

    def note(*_: object) -> None:
        nonlocal steps
        steps += 1

    hook = register_optimizer_step_post_hook(note)
    before = [parameter.detach().clone() for parameter in module.parameters()]
    try:
        for _ in range(2):
            module(torch.randn(2, 3, 64, 64)).sum().backward()
    finally:
        hook.remove()
    assert steps == 2
    assert all(torch.equal(old, new) for old, new in zip(before, module.parameters(), strict=True))
    assert all(parameter._version > 0 for parameter in module.parameters())


def test_adamw_keeps_two_moments() -> None:
    """Memory that the first step makes is resident from then on."""
    training = replace(IMAGES, mode="training")
    plain, adamw = (network("resnet18", training, optimiser=name) for name in ("none", "adamw"))
    operator = catalogue()["network/resnet18"]
    weights = operator.cost(plain).parameters * 4
    more = predict(operator, adamw).resident - predict(operator, plain).resident
    assert more == pytest.approx(2 * weights, rel=0.01)


@pytest.mark.parametrize(
    ("name", "change", "text"),
    [
        ("resnet18", {"channels": 64}, "channels = 3"),
        ("resnet18", {"height": 31}, "32×32"),
        ("resnet18-kmap", {"width": 96}, "square"),
        ("resnet18", {"mode": "training", "batch": 1, "height": 32, "width": 32}, "batch ≥ 2"),
    ],
)
def test_refusals_say_what_would_be_right(name: str, change: dict[str, object], text: str) -> None:
    case = network(name, replace(IMAGES, **change))  # type: ignore[arg-type]
    refusal = catalogue()[case.operator].refusal(case)
    assert refusal is not None
    assert text in refusal


@pytest.mark.parametrize("name", ["resnet18", "resnet50", "mobilenet_v2", "densenet121"])
def test_a_single_image_is_trained_on_unless_torchvision_cannot_normalise_it(name: str) -> None:
    torchvision = pytest.importorskip("torchvision")
    model = torchvision.models.get_model(name, weights=None).train()
    for height, width in ((32, 32), (32, 33), (48, 48), (63, 63), (64, 32)):
        case = network(name, replace(IMAGES, mode="training", batch=1, height=height, width=width))
        refusal = catalogue()[case.operator].refusal(case) or ""
        assert (refusal == "") == _normalises(model, height, width)
        assert refusal == "" or f"more than {height}×{width} pixels" in refusal


def _normalises(model: nn.Module, height: int, width: int) -> bool:
    """Whether its maps of a single image have more than one pixel."""
    try:
        with torch.no_grad():
            model(torch.randn(1, 3, height, width))
    except ValueError:
        return False
    return True


def test_folding_needs_inference_and_layers_that_choose() -> None:
    operator = catalogue()["network/mobilenet_v2-niff"]
    refused = (("training", "auto", "mode = inference"), ("inference", "rfft", "execution = auto"))
    for mode, execution, text in refused:
        case = network("mobilenet_v2-niff", replace(SMALL, mode=mode), folded="yes", execution=execution)
        assert text in str(operator.refusal(case))


def test_an_optimiser_needs_training() -> None:
    case = network("resnet18", optimiser="sgd")
    refusal = catalogue()[case.operator].refusal(case)
    assert refusal is not None
    assert "training" in refusal


@pytest.mark.parametrize(
    ("name", "engines"),
    [("mobilenet_v2-niff", ("dft", "native", "fused", "features")), ("resnet18-full", ("rfft", "factored"))],
)
def test_a_network_whose_layers_chose_costs_what_each_of_them_chose(name: str, engines: tuple[str, ...]) -> None:
    """Choices are read off the called module in the order in which the closed form spends them."""
    case = network(name, replace(SMALL, batch=1, mode="inference"), execution="auto-cached")
    operator = catalogue()[case.operator]
    assert isinstance(operator, WholeNetwork)
    module = operator.build(case)
    assert operator.choice(case, module) is None, "nothing was called"
    with torch.inference_mode():
        module(torch.randn(1, 3, 32, 32))
    choice = operator.choice(case, module)
    assert choice is not None
    assert set(choice.engines) <= set(engines)
    layers = len(choice.engines)
    assert layers == len(choosing_layers(module)) > 4
    one, other, *_ = engines
    record = witnesses(replace(operator, engines=(one,) + (other,) * (layers - 1)), case)
    assert record.disagreement is None
    assert record.counted == record.closed


@pytest.mark.parametrize("name", ["resnet18", "resnet18-full", "mobilenet_v2-niff"])
def test_a_folded_network_is_a_row_that_is_what_it_folds(name: str) -> None:
    """It computes what the network does, costs what is counted, and has no weights beside those of the fold."""
    options = {"execution": "auto"} if "-" in name else {}
    case = network(name, replace(SMALL, batch=1, mode="inference"), folded="yes", **options)
    operator = catalogue()[case.operator]
    assert operator.equivalence(case) == operator.equivalence(network(name, case.problem, **options))
    said, truth = output(case, torch.randn(1, 3, 32, 32))
    assert (said.double() - truth).norm() / truth.norm() < tolerance("float32") * operator.error_growth(case)
    module = operator.build(case)
    with torch.inference_mode():
        module(torch.randn(1, 3, 32, 32))
    assert sum(parameter.numel() for parameter in module.parameters()) == operator.cost(case).parameters
    choice = operator.choice(case, module)
    chosen = operator if choice is None else choice.operator
    assert isinstance(chosen, WholeNetwork)
    assert len(chosen.engines) == len(choosing_layers(module))
    record = witnesses(chosen, case)
    assert record.disagreement is None
    assert record.counted == record.closed


def test_a_network_names_the_original_it_was_made_from() -> None:
    expected_names = catalogue()
    assert (
        expected_names["network/resnet18-split"].base
        == expected_names["network/resnet18-kmap"].base
        == "network/resnet18"
    )
    assert expected_names["network/resnet18"].base is None
