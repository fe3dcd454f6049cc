"""Networks: parameter counts of the paper's, conversion by rule, baselines, and what is refused."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import cache
from math import inf

import pytest
import torch
import torchvision.models
from torch import Tensor, fx, nn
from torch._subclasses import FakeTensorMode
from torch.nn.modules.module import register_module_forward_hook
from torch.nn.utils import parametrize, prune

from niffbench.niff import NiffDepthwise, NiffFull, NiffPointwise, NiffSplit, native
from niffbench.niff.catalogue import EXECUTIONS, KINDS, NETWORKS
from niffbench.niff.inference import folded
from niffbench.niff.networks import (
    Rule,
    Surrounded,
    build,
    convert,
    execute_as,
    feature_maps,
    niff_layers,
    paper_rule,
    replaced_by,
    replacements,
    stride_of,
    with_kernel,
)
from niffbench.study import stored


@cache
def shapes(name: str) -> nn.Module:
    """A network of the catalogue without weights, the same one for all that only look at it."""
    return build(name, device="meta")


def millions(model: nn.Module) -> float:
    return sum(parameter.numel() for parameter in model.parameters()) / 1e6


@pytest.mark.parametrize(
    ("name", "parameters", "ratio"),
    [
        ("resnet18-full", "21.13", "1.807"),
        ("resnet50-full", "33.78", "1.322"),
        ("resnet18-split", "3.33", "0.285"),
        ("resnet50-split", "18.28", "0.715"),
        ("densenet121-full", "10.12", "1.268"),
        ("densenet121-split", "6.16", "0.772"),
        ("mobilenet_v2-niff", "3.513", "1.002"),
        ("convnext_tiny-niff", "28.89", "1.011"),
    ],
)
def test_parameter_counts_are_the_papers(name: str, parameters: str, ratio: str) -> None:
    network = millions(shapes(name))
    assert f"{network:.{len(parameters.split('.')[1])}f}" == parameters
    original = millions(shapes(NETWORKS[name].base))
    assert f"{network / original:.3f}" == ratio


def test_what_is_replaced_is_what_the_paper_replaces() -> None:
    counts = {
        "resnet18-full": {NiffFull: 13},
        "resnet50-split": {NiffSplit: 13, NiffPointwise: 33},
        "densenet121-full": {NiffFull: 58, NiffPointwise: 58 + 3},
        "mobilenet_v2-niff": {NiffDepthwise: 13, NiffPointwise: 34},
        "convnext_tiny-niff": {NiffDepthwise: 18, NiffPointwise: 36},
    }
    for name, expected in counts.items():
        model = shapes(name)
        result = [type(layer) for _, layer in niff_layers(model)]
        assert {kind: result.count(kind) for kind in set(result)} == expected
        left = [module for module in model.modules() if isinstance(module, nn.Conv2d)]
        assert all(module.stride != (1, 1) for module in left)
    convnext = shapes("convnext_tiny-niff")
    layers = dict(niff_layers(convnext))
    assert layers["features.1.0.block.0"].generator.mlp == "big"
    assert layers["features.1.0.block.3"].layout == "nhwc"
    assert isinstance(convnext.classifier[2], nn.Linear)


@pytest.mark.parametrize("name", ["resnet18-full", "resnet152-full", "densenet121-full", "squeezenet1_1-full"])
def test_fresh_full_networks_compute_what_their_originals_might(name: str) -> None:
    """Fresh normalisations do nothing in evaluation, and full layers as published would then overflow float32.

    SqueezeNet is not of the catalogue, and has none.
    """
    result = []
    for make in (
        lambda: stored.build(name, size=64),
        lambda: torchvision.models.get_model(name.removesuffix("-full"), weights=None),
    ):
        torch.manual_seed(0)
        model = make().eval()
        with torch.inference_mode():
            result.append(model(torch.randn(1, 3, 64, 64)).norm())
    assert 1e-6 < result[0] / result[1] < 10


def test_scaling_filters_leaves_their_shape() -> None:
    torch.manual_seed(0)
    generator = NiffFull(5, 6).generator
    before = generator.full_plane(7, 10, torch.float32)
    generator.level(7, 10, power=0.4)
    after = generator.full_plane(7, 10, torch.float32)
    torch.testing.assert_close(after.abs().square().mean(), torch.tensor(0.4))
    torch.testing.assert_close(after / after.abs().max(), before / before.abs().max())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_filters_in_any_dtype_are_scaled(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    layer = NiffFull(8, 8, dtype=dtype)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        layer.generator.level(56, 56, power=0.25)
    power = layer.filter(56, 56).abs().square().mean()
    assert float(power) == pytest.approx(0.25, rel=1e-9 if dtype == torch.float64 else 1e-2)


def test_filters_whose_last_layer_is_made_of_others_are_not_scaled() -> None:
    generator = NiffFull(5, 6).generator
    prune.l1_unstructured(generator, "weight1", 0.5)
    generator.level(7, 10, power=0.4)
    assert float(generator.full_plane(7, 10, torch.float32).detach().abs().square().mean()) == pytest.approx(0.4)
    parametrize.register_parametrization(generator, "weight2", nn.Tanh())
    before = generator.full_plane(7, 10, torch.float32)
    with pytest.raises(ValueError, match=r"^weight2 of this .* is made of other weights"):
        generator.level(7, 10, power=0.1)
    assert torch.equal(generator.full_plane(7, 10, torch.float32), before)


@pytest.mark.parametrize("base", ["resnet18", "mobilenet_v2", "convnext_tiny"])
def test_baselines_change_the_kernel_and_nothing_else(base: str) -> None:
    original = dict(shapes(base).named_modules())
    sizes = feature_maps(shapes(base), 160, 160)
    rule = paper_rule(NETWORKS[f"{base}-k9"])
    replaced = replaced_by(shapes(base), rule)
    for kernel in (9, "map"):
        model = build(f"{base}-k{kernel}", device="meta", input_size=160)
        for name, module in model.named_modules():
            if not isinstance(module, nn.Conv2d):
                continue
            old = original[name]
            if name not in replaced or old.kernel_size == (1, 1):
                assert repr(module) == repr(old)
                continue
            side = kernel if isinstance(kernel, int) else sizes[name][0] // 2 * 2 + 1
            assert module.kernel_size == (side, side)
            assert (module.in_channels, module.out_channels, module.groups, module.bias is None) == (
                old.in_channels, old.out_channels, old.groups, old.bias is None,
            )  # fmt: skip
        assert feature_maps(model, 160, 160) == sizes


@pytest.mark.parametrize("name", ["resnet18-full", "resnet18-split", "mobilenet_v2-niff", "convnext_tiny-niff"])
def test_every_execution_of_a_network_is_the_same_function(name: str) -> None:
    torch.manual_seed(0)
    model = build(name, num_classes=7, input_size=32)
    model = model.double().eval()
    for _, layer in niff_layers(model):  # Raw coordinates give huge gains: keep the signal in range.
        if not isinstance(layer, NiffPointwise):
            last = layer.generator.depth
            with torch.no_grad():
                layer.generator.get_parameter(f"weight{last}").mul_(0.1)
    x = torch.randn(1, 3, 32, 36, dtype=torch.float64)
    with torch.no_grad():
        outputs = {execution: execute_as(model, execution)(x) for execution in EXECUTIONS}
    truth = outputs["published"]
    assert truth.abs().max() > 0
    for execution, output in outputs.items():
        assert (output - truth).abs().max() < 1e-8 * truth.abs().max(), execution


def test_a_network_trains() -> None:
    torch.manual_seed(0)
    model = build("resnet18-split", num_classes=3, input_size=32, execution="elided")
    optimiser = torch.optim.SGD(model.parameters(), lr=1e-4)
    before = {name: value.detach().clone() for name, value in model.named_parameters()}
    model(torch.randn(2, 3, 32, 32)).square().sum().backward()
    optimiser.step()
    changed = [name for name, value in model.named_parameters() if not torch.equal(value, before[name])]
    assert any("generator.weight3" in name for name in changed)
    assert "conv1.weight" in changed


def test_pointwise_layers_take_over_the_weight_they_replace() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 1, bias=False), nn.ReLU(), nn.Conv2d(8, 4, 1, bias=False))
    x = torch.randn(1, 3, 6, 6)
    before = model(x)
    convert(model, Rule())
    assert [type(module) for module in model] == [NiffPointwise, nn.ReLU, NiffPointwise]
    assert torch.allclose(model(x), before, atol=1e-5)


def test_a_rule_says_what_to_replace() -> None:
    def model() -> nn.Module:
        return nn.Sequential(
            nn.Conv2d(4, 4, 3, padding=1),
            nn.Conv2d(4, 4, 5, padding="same", groups=4),
            nn.Conv2d(4, 6, 1),
            nn.Conv2d(6, 6, 3, padding=1, stride=2),
        ).double()

    assert replaced_by(model(), Rule()) == {"1": "depthwise", "2": "pointwise"}
    assert replaced_by(model(), Rule(spatial="full", keep=("1",))) == {"0": "full", "2": "pointwise"}
    assert replaced_by(model(), Rule(spatial="split", depthwise=False, pointwise=False)) == {"0": "split"}
    forms = {"depthwise": "fft", "full": "published", "pointwise": "elided", "split": "cached"}
    converted = convert(model(), Rule(spatial="full", mlp="big", grid="centred", forms=forms, bias=False))
    layers = dict(niff_layers(converted))
    assert {layer.kind: layer.form for layer in layers.values()} == {
        kind: forms[kind] for kind in ("full", "depthwise", "pointwise")
    }
    assert layers["1"].generator.mlp == "big"
    assert layers["0"].generator.mlp == "tiny"
    assert layers["1"].generator.grid == "centred"
    assert all(parameter.dtype == torch.float64 for parameter in converted.parameters())
    assert converted(torch.randn(1, 4, 8, 6, dtype=torch.float64)).shape == (1, 6, 4, 3)
    assert isinstance(convert(nn.Conv2d(4, 6, 3, padding=1), Rule(spatial="full", bias=False)), NiffFull)


def test_feature_maps_are_those_of_a_real_forward() -> None:
    model = build("convnext_tiny-niff", input_size=64, num_classes=2).train()
    seen: dict[str, tuple[int, ...]] = {}
    for name, layer in niff_layers(model):
        layer.register_forward_pre_hook(lambda _, inputs, name=name: seen.update({name: inputs[0].shape}))
    sizes = feature_maps(model, 64, 96)
    assert seen == {name: shape for name, shape in seen.items() if shape[0] == 1}, "traced with a batch of one"
    with torch.no_grad():
        model(torch.randn(2, 3, 64, 96))
    assert all(module.training for module in model.modules()), "tracing must leave the mode alone"
    for name, layer in niff_layers(model):
        shape = seen[name]
        last = isinstance(layer, NiffPointwise)
        assert sizes[name] == (tuple(shape[1:3]) if last else tuple(shape[2:]))


def test_strides() -> None:
    assert stride_of(build("resnet18-full", device="meta")) == 32
    assert stride_of(nn.Conv2d(3, 3, 3, padding=1)) == 1


FAMILIES = {
    "alexnet": None,
    "convnext_tiny": None,
    "densenet121": None,
    "efficientnet_b0": None,
    "efficientnet_v2_s": None,
    "googlenet": None,
    "inception_v3": "Conv2d_2a_3x3.conv has padding",
    "maxvit_t": None,
    "mnasnet0_5": None,
    "mobilenet_v2": None,
    "mobilenet_v3_small": None,
    "regnet_y_400mf": "groups of .* channels",
    "resnext50_32x4d": "32 groups of 128 channels",
    "shufflenet_v2_x0_5": None,
    "squeezenet1_0": None,
    "swin_t": "no convolution that this rule replaces",
    "vgg11": None,
    "vit_b_16": "no convolution that this rule replaces",
    "wide_resnet50_2": None,
}
"""torchvision's families of classifiers, and why one cannot be converted."""


@pytest.mark.filterwarnings("ignore:The default weight initialization of")
@pytest.mark.parametrize(("base", "refused"), FAMILIES.items())
def test_any_network_of_torchvision_is_converted_or_refused_clearly(base: str, refused: str | None) -> None:
    with torch.device("cpu" if base.startswith("regnet") else "meta"):  # A RegNet computes its widths in torch.
        if refused is not None:
            with pytest.raises(ValueError, match=refused):
                stored.build(f"{base}-split")
            return
        model = stored.build(f"{base}-split")
    sizes = feature_maps(model, 224, 224)
    layers = dict(niff_layers(model))
    assert layers
    unreached = layers.keys() - sizes.keys()
    assert all(name.startswith("aux") for name in unreached), "but for heads of training alone, each has its grid"


def test_a_network_that_takes_one_size_says_so_of_another() -> None:
    with torch.device("meta"):
        model = stored.build("maxvit_t-split")
    assert stride_of(model) == 32
    with pytest.raises(ValueError, match=r"^MaxVit cannot take an input of 256×256: "):
        feature_maps(model, 256, 256)


def test_the_catalogue_of_networks() -> None:
    for name, network in NETWORKS.items():
        assert network.name == name
        assert (network.kernel is not None) == (network.variant == "spatial")
    originals = [name for name, network in NETWORKS.items() if network.variant == "original"]
    assert len(originals) == 5 + 3 + 1 + 4
    for name in originals:
        assert {f"{name}-k{size}" for size in (7, 9, 15, 31, "map")} <= set(NETWORKS)
    assert all(tuple(forms) == KINDS for forms in EXECUTIONS.values())


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: build("resnet18-ful"), "unknown network 'resnet18-ful'; did you mean 'resnet18-full'"),
        (lambda: build("resnet18-full", execution="publshed"), "unknown execution 'publshed'.*'published'"),
        (lambda: build("resnet18-full", grid="papr", device="meta"), "unknown grid 'papr'"),
        (
            lambda: build("resnet18-full", input_size=31, device="meta"),
            "31×31 is smaller than the stride of ResNet: give at least 32×32",
        ),
        (lambda: convert(nn.Sequential(nn.Linear(3, 3)), Rule()), "Sequential has no convolution that this rule"),
        (lambda: convert(nn.Conv2d(3, 3, 3, padding=1, stride=2), Rule(spatial="full")), "has no convolution"),
        (lambda: convert(nn.Conv2d(4, 4, 3, padding=1, groups=2), Rule(spatial="full")), "2 groups of 4 channels"),
        (
            lambda: convert(nn.Sequential(nn.Conv2d(4, 4, 3, padding=2, dilation=2)), Rule(spatial="full")),
            "^0 has dilation 2 and NIFF does not define that; name it in keep",
        ),
        (lambda: convert(nn.Sequential(nn.Conv2d(4, 4, 3)), Rule(spatial="split")), "changes the size"),
        (
            lambda: convert(nn.Sequential(nn.Conv2d(4, 8, 3, padding=1, groups=4)), Rule(spatial="full")),
            "2 outputs for each channel",
        ),
        (
            lambda: convert(nn.Sequential(nn.Conv2d(4, 4, 1)), Rule(keep=("1",))),
            "keep 1: Sequential has no such layer",
        ),
        (lambda: Rule(spatial="ful"), "unknown replacement .*'full'"),
        (lambda: Rule(forms={"pointwise": "cached"}), "unknown form of the pointwise layer 'cached'"),
        (lambda: with_kernel(nn.Conv2d(3, 3, 3, padding=1), Rule(spatial="full"), 8), "odd and positive, got 8"),
        (lambda: with_kernel(nn.Conv2d(3, 3, 3, padding=1), Rule(spatial="full"), "mpa"), "unknown kernel size"),
        (lambda: execute_as(nn.Conv2d(3, 3, 3), "rfft"), "Conv2d has no NIFF layer"),
    ],
)
def test_refusals_say_what_is_wrong(call: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()


def test_a_refused_model_is_left_as_it_was() -> None:
    model = nn.Sequential(nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 3, padding=2, dilation=2))
    with pytest.raises(ValueError, match="dilation"):
        convert(model, Rule(spatial="full"))
    assert isinstance(model[0], nn.Conv2d)


def test_a_bias_stays_and_what_is_pooled_stays_whole() -> None:
    """A 1×1 convolution with its bias computes the same as a NIFF layer; on one pixel it is left alone."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 3, 2, 1), nn.AdaptiveAvgPool2d(1), nn.Conv2d(4, 2, 1)
    )
    x = torch.randn(2, 3, 12, 12)
    before, sizes = model(x), feature_maps(model, 12, 12)
    rule = Rule.of({"conv1x1": "pointwise", "conv3x3": "split"}, "elided")
    output = {one.name: (one.kind, one.why) for one in replacements(model, rule, sizes)}
    assert output == {
        "0": ("pointwise", "the same function, bias kept"),
        "1": (None, "stride 2"),
        "3": (None, "on a pooled map of one pixel"),
    }
    converted = convert(model, rule, sizes)
    assert torch.allclose(converted(x), before, atol=1e-6)
    assert [name for name, _ in converted.named_parameters()][:2] == ["0.bias", "0.layer.weight"]


def test_what_cannot_be_replaced_stays_with_its_reason() -> None:
    model = nn.Sequential(
        nn.Conv2d(4, 4, 3, padding=1),
        nn.Conv2d(4, 4, 3, padding=2, dilation=2),
        nn.Conv2d(4, 4, 3, padding=1, groups=2),
        nn.Conv2d(4, 8, 3, padding=1, groups=4),
        nn.Conv2d(8, 8, 3),
    )
    rule = Rule.of({"conv3x3": "full", "depthwise": "depthwise"})
    kinds = {one.name: one.kind for one in replacements(model, rule)}
    assert kinds == {"0": "full", "1": None, "2": None, "3": None, "4": None}
    reasons = [one.why for one in replacements(model, rule) if one.kind is None]
    parts = ("dilation 2", "2 groups of 4", "2 outputs for each", "padding (0, 0)")
    for reason, part in zip(reasons, parts, strict=True):
        assert part in reason
        assert reason.endswith("which NIFF does not define")
    with pytest.raises(ValueError, match="unknown replacement of conv1x1 'full'"):
        Rule.of({"conv1x1": "full"})


class _Standardised(nn.Conv2d):
    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.conv2d(x, self.weight - self.weight.mean(), self.bias)


def test_a_convolution_that_computes_something_of_its_own_stays_and_a_shared_one_stays_shared() -> None:
    model = nn.Sequential(_Standardised(4, 4, 1), shared := nn.Conv2d(4, 4, 3, padding=1), shared)
    rule = Rule.of({"conv1x1": "pointwise", "conv3x3": "split"})
    stays, becomes = replacements(model, rule)
    assert (stays.kind, stays.why) == (None, "a _Standardised, which computes something of its own")
    assert becomes.kind == "split"
    convert(model, rule)
    assert isinstance(model[0], _Standardised)
    assert model[1] is model[2]
    assert model[1] is not shared


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("trained", [True, False])
def test_what_takes_a_layers_place_is_in_its_mode_and_takes_over_weights_as_they_are_trained(
    training: bool, trained: bool
) -> None:
    def model() -> nn.Module:
        layers = (nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 4, 1), nn.Conv2d(4, 2, 1, bias=False))
        return nn.Sequential(*layers).train(training).requires_grad_(trained)

    rule = Rule.of({"conv3x3": "split", "conv1x1": "pointwise"})
    for changed in (convert(model(), rule), with_kernel(model(), rule, 5)):
        assert {module.training for module in changed.modules()} == {training}
    asked = {name: weight.requires_grad for name, weight in convert(model(), rule).named_parameters()}
    over = {"0.bias", "1.bias", "1.layer.weight", "2.weight"}
    assert all(asked[name] == (trained or name not in over) for name in asked)
    assert over <= asked.keys()


def test_a_shared_convolution_gets_its_other_kernel_by_all_its_names() -> None:
    shared = nn.Conv2d(4, 4, 3, padding=1)
    model = with_kernel(nn.Sequential(shared, nn.ReLU(), nn.Sequential(shared)), Rule(spatial="full"), 5)
    assert model[0] is model[2][0]
    assert model[0].kernel_size == (5, 5)


def test_a_scale_of_each_channel_becomes_no_filter() -> None:
    model = nn.Sequential(nn.Conv2d(4, 4, 1, groups=4), nn.Conv2d(4, 4, 3, padding=1, groups=4))
    scale, filtering = replacements(model, Rule())
    assert (scale.kind, scale.why) == (None, "no filter: it scales each channel")
    assert filtering.kind == "depthwise"


def with_statistics(model: nn.Module) -> nn.Module:
    """In evaluation, its normalisations as if it had been trained."""
    generator = torch.Generator().manual_seed(0)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor, low in ((module.running_mean, -0.2), (module.running_var, 0.5), (module.weight, 0.8)):
                assert tensor is not None
                tensor.data.uniform_(low, low + 0.4, generator=generator)
            module.bias.data.uniform_(-0.2, 0.2, generator=generator)
    return model.double().eval()


@pytest.mark.parametrize(
    ("name", "execution"),
    [
        ("resnet18-split", "auto"),
        ("resnet18-split", "rfft"),
        ("mobilenet_v2-niff", "auto"),
        ("densenet121-split", "auto"),
    ],
)
def test_a_folded_network_computes_the_same_with_fewer_passes(name: str, execution: str) -> None:
    """In float64, with statistics of some training, to all digits; the original is left as it is."""
    torch.manual_seed(0)
    model = with_statistics(build(name, execution=execution, input_size=32, num_classes=7))
    state = {key: value.clone() for key, value in model.state_dict().items()}
    x = torch.randn(2, 3, 32, 32, dtype=torch.float64)
    with torch.no_grad():
        before, one = model(x), folded(model)
        for _ in range(2):  # later calls of a layer go to C at once
            assert torch.allclose(one(x), before, rtol=1e-9, atol=1e-9 * float(before.abs().max()))
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())
    left = [sum(isinstance(module, nn.BatchNorm2d) for module in net.modules()) for net in (model, one)]
    if (
        execution == "auto"
    ):  # What normalises in front of a DenseNet's 1×1 convolutions meets several layers' output.
        assert left[1] == (62 if name.startswith("densenet") else 0)
        activations = [node for node in one.graph.nodes if isinstance(layer_of(one, node), nn.ReLU | nn.ReLU6)]
        assert len(activations) == {"resnet18-split": 9, "mobilenet_v2-niff": 9, "densenet121-split": 62}[name]
        assert not any(isinstance(layer, NiffPointwise | NiffSplit) for _, layer in niff_layers(one))
    assert left[1] < left[0] or not left[0]


@pytest.mark.filterwarnings("ignore:Accessing the data pointer of FakeTensor")  # by torch, where it copies one
@pytest.mark.parametrize("copied", [True, False])
def test_a_network_without_data_is_folded(copied: bool) -> None:
    with FakeTensorMode():
        model = build("mobilenet_v2-niff", execution="auto", input_size=32, num_classes=7).eval()
        one = folded(model, copied=copied)
        assert one(torch.empty(2, 3, 32, 32)).shape == (2, 7)
    assert not any(isinstance(module, nn.BatchNorm2d) for module in one.modules())
    shared = {*model.parameters()} & {*one.parameters()}
    assert bool(shared) != copied


def test_a_network_of_another_mode_is_not_folded_without_data() -> None:
    with FakeTensorMode():
        fake = build("mobilenet_v2-niff", execution="auto", input_size=32, num_classes=7).eval()
    real = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)).eval()
    for model in (fake, real):
        for mode in (FakeTensorMode(), FakeTensorMode(allow_non_fake_inputs=True)):
            with mode, pytest.raises(ValueError, match="was not made under the FakeTensorMode"):
                folded(model)


@pytest.mark.parametrize("form", ["native-cached", "features-cached", "native", "rfft"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
@pytest.mark.parametrize("limits", [(-inf, inf, 0.0, 6.0), (0.0, inf, -0.5, 0.25), (0.0, 1.0, -inf, inf)])
def test_what_is_around_a_depthwise_layer_is_done_in_every_call(
    form: str, dtype: torch.dtype, limits: tuple[float, float, float, float]
) -> None:
    """A bias, limits, and in place or not; by the C kernel itself, where the form is it and keeps its filter."""
    torch.manual_seed(0)
    layer, wide = NiffDepthwise(9, form=form, dtype=dtype), torch.promote_types(dtype, torch.float32)
    bias, near = torch.randn(9, dtype=wide), 1e-12 if dtype == torch.float64 else 1e-2
    images = torch.randn(2, 9, 7, 6, dtype=dtype), torch.randn(9, 4, 4, dtype=dtype)
    for x in (*images, images[0].to(memory_format=torch.channels_last)):
        for around in (bias, None):
            both = Surrounded(layer, around, limits)
            expected = layer(x.clamp(*limits[:2])) + (0 if around is None else bias[:, None, None].to(dtype))
            with torch.no_grad():
                for _ in range(3):
                    before = x.clone()
                    both.in_place = False
                    y = both(x)
                    assert torch.equal(x, before)
                    both.in_place = True
                    for one in (y, both(before)):
                        assert torch.allclose(one, expected.clamp(*limits[2:]), rtol=near, atol=near)
                        assert one.stride() == x.stride()
    x = images[0].clone()
    x[1, 2, 3, 4] = torch.nan
    with torch.no_grad():
        none = both(x).isnan().any(dim=3).any(dim=2)
    assert none.nonzero().tolist() == [[1, 2]], "what is no number stays none, and in its image"
    x, both = images[0], Surrounded(layer, bias)
    (gradient,) = torch.autograd.grad(both(x).sum(), both.bias)
    assert torch.allclose(gradient, torch.full_like(gradient, x.numel() / 9))


def layer_of(model: nn.Module, node: fx.Node) -> nn.Module | None:
    return model.get_submodule(str(node.target)) if node.op == "call_module" else None


class Seen(nn.Module):
    """A depthwise layer whose input is changed in place just before."""

    def __init__(self, between: nn.Module) -> None:
        super().__init__()
        self.first, self.between, self.last = nn.Conv2d(8, 8, 1), between, NiffDepthwise(8, form="native")
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        y = self.first(x)
        z = self.last(self.relu(self.between(y)))
        return z + y if isinstance(self.between, nn.Identity) else z


def test_an_activation_that_others_see_stays() -> None:
    """In place it changes what others read, through a module that puts out a view of what it is given."""
    x = torch.randn(2, 8, 6, 6, dtype=torch.float64)
    for between, stay in ((nn.Identity(), 1), (nn.BatchNorm2d(8), 0)):
        model = with_statistics(Seen(between))
        one = folded(model)
        with torch.no_grad():
            for _ in range(2):
                assert torch.allclose(one(x), model(x), rtol=1e-9, atol=1e-10)
        assert sum(isinstance(layer_of(one, node), nn.ReLU) for node in one.graph.nodes) == stay


def test_what_a_folded_network_does_again_is_the_same() -> None:
    """Its layers ask once whether they may: of other images, in copies, executing otherwise, for gradients."""
    model = with_statistics(Seen(nn.BatchNorm2d(8)))
    one, threads = folded(model), torch.get_num_threads()
    small, large = (torch.randn(shape, dtype=torch.float64) for shape in ((1, 8, 5, 4), (2, 8, 14, 9)))

    def alike(other: nn.Module, x: Tensor) -> bool:
        return torch.allclose(other(x), model(x), rtol=1e-9, atol=1e-10)

    with torch.no_grad():
        assert all(alike(one, x) for x in (small, small, large, large, small, large))
        assert one.scratch_memory(large).numel() > 0
        assert alike(copy.deepcopy(one), large)
        with torch.autocast("cpu"):
            assert one.scratch_memory(large) is None
        torch.set_num_threads(threads + 1)
        assert alike(one, large)
        assert alike(one, large)
        torch.set_num_threads(threads)
        for _, layer in niff_layers(one):
            layer.form = "rfft"
        assert alike(one, large)
        assert one.scratch_memory(large).numel() == 0
        assert torch.allclose(one.float()(large.float()), model(large).float(), rtol=1e-3, atol=1e-4)
    one, x = folded(model), large.requires_grad_()
    expected = torch.autograd.grad(model(x).square().sum(), x)
    for _ in range(2):
        assert torch.allclose(torch.autograd.grad(one(x).square().sum(), x)[0], expected[0], rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("form", ["native", "features-cached"])
def test_a_layer_is_done_again_with_what_is_around_it_whoever_called_it_between(form: str) -> None:
    """With gradients on, and of an image alone, it is called without: its own last call is then another."""
    model = with_statistics(nn.Sequential(NiffDepthwise(8, form=form), nn.ReLU6()))
    one, x = folded(model), torch.randn(1, 8, 6, 6, dtype=torch.float64)
    expected = model(x).detach()

    def alike(images: Tensor) -> bool:
        return torch.allclose(one(images), expected.view_as(images), rtol=1e-9, atol=1e-10)

    for between in (x, x[0]):
        assert all(alike(between) for _ in range(2))
        for mode in (torch.no_grad, torch.inference_mode):
            with mode():
                assert all(alike(images) for images in (x, x, x, x[0], x[0], x, x))
            assert alike(between)


def test_a_folded_network_takes_what_is_loaded_and_the_engine_that_is_fixed() -> None:
    """A layer whose engine is not the C kernel has no call to do again; that of the other one is, till then."""
    torch.manual_seed(0)
    model = nn.Sequential(NiffDepthwise(4, form="rfft"), nn.Tanh(), NiffDepthwise(4, form="auto")).double().eval()
    x, one = torch.randn(2, 4, 6, 6, dtype=torch.float64), folded(model)
    layer = [layer for _, layer in niff_layers(one)][1]
    assert isinstance(layer, NiffDepthwise)
    for engine in ("features", "fused"):
        layer.fix_engine(engine)
        other = {name: weight * 1.1 for name, weight in one.state_dict().items()}
        with torch.no_grad():
            assert all(torch.allclose(one(x), folded(one)(x), rtol=1e-9, atol=1e-10) for _ in range(3))
            assert (one.scratch_memory(x).numel() > 0) == (engine == "features")
            one.load_state_dict(other)
            assert torch.allclose(one(x), folded(one)(x), rtol=1e-9, atol=1e-10)


class Written:
    """Ways in which all weights of a network become others."""

    @staticmethod
    def by_an_optimiser(model: nn.Module) -> None:
        for one in model.parameters():
            one.grad = one.detach().clone()
        torch.optim.SGD(model.parameters(), lr=0.25).step()

    @staticmethod
    def unseen(model: nn.Module) -> None:
        for one in model.parameters():
            one.data.copy_(one.detach() * 1.25)

    @staticmethod
    def two_signs(model: nn.Module) -> None:
        for one in model.parameters():
            one.data.view(-1)[:8:7].neg_()

    @staticmethod
    def moved(model: nn.Module) -> None:
        for one in model.parameters():
            one.data = one.data * 0.75


@pytest.mark.parametrize("form", ["native", "features-cached", "rfft", "auto"])
def test_a_folded_network_keeps_nothing_of_weights_that_were_written_however(form: str) -> None:
    """As the network that is not folded, whose filters are made in every call."""
    torch.manual_seed(0)
    x = torch.randn(2, 3, 6, 6, dtype=torch.float64)
    layers = (NiffDepthwise(8, form=form), nn.ReLU(), NiffSplit(8, 4, form=form), NiffFull(4, 3))
    model = nn.Sequential(nn.Conv2d(3, 8, 1), *layers).double().eval().requires_grad_(False)
    one = folded(model)
    for _, layer in niff_layers(model):
        layer.form = "rfft"

    def alike(factor: float = 1.0) -> bool:
        results = []
        for network in (one, model):
            others = {} if factor == 1.0 else {name: w * factor for name, w in network.named_parameters()}
            results.append(torch.func.functional_call(network, others, (x,)))
        return torch.allclose(*results, rtol=1e-9, atol=1e-9)

    with torch.no_grad():
        for write in (Written.by_an_optimiser, Written.unseen, Written.two_signs, Written.moved):
            for network in (one, model):
                write(network)
            assert all(alike(factor) for factor in (1.0, 1.0, 1.5, 1.5, 1.0, 1.0)), write
        with torch.inference_mode():
            assert all(alike(factor) for factor in (1.5, 1.5, 1.0, 1.0))
    Written.unseen(one)
    Written.unseen(model)
    assert alike(), "with gradients on too"


class Image(Tensor):
    """Of a class of its own."""


@pytest.mark.parametrize("kernel", [True, False])
def test_unseen_writes_are_noticed_whatever_images_and_weights_are_like(
    kernel: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also of weights with room between their numbers, and of layers inside what is left as it is."""
    if not kernel:
        monkeypatch.setattr(native.build, "_outcome", lambda real: "no compiler")
    torch.manual_seed(0)
    x = torch.randn(1, 4, 6, 6, dtype=torch.float64)
    layers = [NiffDepthwise(4, form="native" if kernel else "rfft", dtype=torch.float64) for _ in range(2)]
    model = nn.Sequential(layers[0], nn.Sequential(layers[1])).eval().requires_grad_(False)
    model[1].register_forward_hook(lambda _module, _inputs, _y: None)
    for layer in layers:
        for name in ("weight2", "bias3"):
            weight = getattr(layer.generator, name)
            setattr(layer.generator, name, nn.Parameter(torch.stack((weight, weight), dim=-1)[..., 0], False))
    one = folded(model)
    with torch.no_grad():
        for images in (nn.Parameter(x), x.as_subclass(Image), x):
            for network in (one, model):
                network(images)
                for layer in [layer for _, layer in niff_layers(network)]:
                    layer.generator.weight2.data.mul_(1.25)
                    layer.generator.bias3.data.add_(0.25)
            expected = model[1][0].with_form("fft")(model[0].with_form("fft")(x))
            assert torch.allclose(one(images).as_subclass(Tensor), expected, rtol=1e-9, atol=1e-9)


class Louder(NiffDepthwise):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * 3 + 1


def test_what_a_derived_layer_computes_stays() -> None:
    layer, x = Louder(8, form="native", dtype=torch.float64), torch.randn(2, 3, 6, 6, dtype=torch.float64)
    model = with_statistics(nn.Sequential(nn.Conv2d(3, 8, 1), layer, nn.BatchNorm2d(8), nn.ReLU()))
    one, beside = folded(model), Surrounded(layer, torch.ones(8, dtype=torch.float64))
    with torch.no_grad():
        y = model[0](x)
        for _ in range(3):
            assert torch.allclose(one(x), model(x), rtol=1e-9, atol=1e-9)
            assert torch.allclose(beside(y), layer(y) + 1, rtol=1e-9, atol=1e-9)


def hooked() -> nn.Module:
    """All that folding would change, some of it within a container."""
    layers = (NiffDepthwise(8, form="native"), nn.BatchNorm2d(8), nn.ReLU6())
    beside = Surrounded(NiffDepthwise(4, form="native"), torch.ones(4))
    return with_statistics(
        nn.Sequential(
            *(nn.Conv2d(3, 8, 1), nn.BatchNorm2d(8), nn.ReLU(), nn.Sequential(*layers)),
            *(NiffPointwise(8, 8, form="elided"), NiffSplit(8, 4, form="elided"), nn.BatchNorm2d(4), beside),
            nn.ReLU(),
        )
    )


@pytest.mark.parametrize("place", [name for name, _ in hooked().named_modules() if "generator" not in name])
def test_what_has_hooks_stays_as_it_is(place: str) -> None:
    """A hook changes what the module puts out, and keeps it; as in the network that is not folded."""
    torch.manual_seed(0)
    seen: list[Tensor] = []
    model, x = hooked(), torch.randn(2, 3, 6, 7, dtype=torch.float64)

    def twice(_module: nn.Module, inputs: tuple[Tensor, ...], y: Tensor) -> Tensor:
        seen.extend((*inputs, y))
        return 2 * y

    model.get_submodule(place).register_forward_hook(twice)
    with torch.no_grad():
        expected, before = model(x), seen.copy()
        one = folded(model)
        for _ in range(3):
            seen.clear()
            assert torch.allclose(one(x), expected, rtol=1e-9, atol=1e-9)
            assert len(seen) == len(before)
            assert all(torch.allclose(*pair, rtol=1e-9, atol=1e-9) for pair in zip(seen, before, strict=True))


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize(
    "change",
    [
        lambda layer: prune.l1_unstructured(layer, "weight", 0.5),
        torch.nn.utils.spectral_norm,
        torch.nn.utils.weight_norm,
        torch.nn.utils.parametrizations.spectral_norm,
    ],
    ids=["pruned", "spectral", "normed", "parametrized"],
)
def test_a_weight_that_is_made_of_others_stays_so(change: Callable[[nn.Module], nn.Module]) -> None:
    torch.manual_seed(0)
    layer, x = nn.Conv2d(3, 8, 3, padding=1), torch.randn(2, 3, 6, 7, dtype=torch.float64)
    with torch.no_grad():
        change(layer)
        model = with_statistics(nn.Sequential(layer, nn.BatchNorm2d(8), NiffDepthwise(8, form="native")))
        model(x)
        one = folded(model)
        for factor in (1.0, 1.5):
            for weight in (*one.get_submodule("0").parameters(), *layer.parameters()):
                weight.mul_(factor)
            assert all(torch.allclose(one(x), model(x), rtol=1e-9, atol=1e-9) for _ in range(3))


def test_hooks_of_all_modules_see_layers_in_a_folded_network() -> None:
    seen: list[str] = []
    one, x = folded(nn.Sequential(NiffDepthwise(4, form="native"), nn.ReLU()).eval()), torch.randn(1, 4, 6, 6)
    with torch.no_grad():
        one(x)
        handle = register_module_forward_hook(lambda module, _inputs, _y: seen.append(type(module).__name__))
        try:
            for _ in range(3):
                one(x)
        finally:
            handle.remove()
    assert seen.count("NiffDepthwise") == 3


def test_hooks_of_layers_in_a_folded_network_are_called() -> None:
    seen: list[tuple[int, ...]] = []
    one, x = folded(nn.Sequential(NiffDepthwise(4, form="native"), nn.ReLU()).eval()), torch.randn(1, 4, 6, 6)
    ((_, layer),) = niff_layers(one)
    with torch.no_grad():
        expected = one(x)
        for calls in (0, 3):
            assert all(torch.allclose(one(x), expected) for _ in range(3))
            assert len(seen) == calls
            layer.register_forward_hook(lambda _module, _inputs, y: seen.append(tuple(y.shape)))


def test_a_folded_network_is_folded_again_with_all_that_is_in_it() -> None:
    """A normalisation behind an activation stays behind it; at a limit the gradient is that of the activation."""
    layer = NiffDepthwise(8, form="native")
    inner = with_statistics(nn.Sequential(nn.BatchNorm2d(8), nn.ReLU6(), layer, nn.ReLU()))
    norm = with_statistics(nn.Sequential(nn.BatchNorm2d(8)))
    x = torch.randn(2, 8, 6, 6, dtype=torch.float64)
    for parts, left in ((inner[:3].eval(), 1), (inner, 2)):
        both = folded(nn.Sequential(folded(parts), norm).eval())
        assert sum(isinstance(module, nn.BatchNorm2d) for module in both.modules()) == left
        with torch.no_grad():
            assert all(torch.allclose(both(x), norm(parts(x)), rtol=1e-9, atol=1e-10) for _ in range(3))
    at = torch.tensor([0.0, 6.0], dtype=torch.float64).expand(1, 8, 3, 2).clone().requires_grad_()
    both = Surrounded(NiffDepthwise(8, form="native", dtype=torch.float64), None, (0.0, 6.0, -inf, inf))
    (gradient,) = torch.autograd.grad(both(at).sum(), at)
    assert not gradient.any()


def test_modules_called_by_keywords_are_folded_and_autocast_stays_autocast() -> None:
    class Keywords(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer, self.norm = NiffDepthwise(8, form="native"), nn.BatchNorm2d(8)

        def forward(self, x: Tensor, more: Tensor | None = None) -> Tensor:
            x = self.norm(input=self.layer(x=x))
            return x if more is None else x + more

    model, x = with_statistics(Keywords()).float(), torch.randn(2, 8, 7, 6)
    one = folded(model)
    assert not any(isinstance(module, nn.BatchNorm2d) for module in one.modules())
    with torch.no_grad():
        for _ in range(2):
            assert torch.allclose(one(x=x), model(x), rtol=1e-4, atol=1e-5)
            with torch.autocast("cpu", dtype=torch.bfloat16):
                assert torch.allclose(one(x).float(), model(x).float(), rtol=2e-2, atol=1e-2)


def test_what_cannot_be_folded_is_said_or_stays() -> None:
    model = build("mobilenet_v2-niff", execution="auto", input_size=32)
    with pytest.raises(ValueError, match=r"call eval\(\) first"):
        folded(model.train())
    shared = nn.Conv2d(3, 3, 1)
    twice = nn.Sequential(shared, nn.BatchNorm2d(3), shared, nn.BatchNorm2d(3))
    x = torch.randn(2, 3, 4, 4, dtype=torch.float64)
    one = folded(with_statistics(twice))
    assert sum(isinstance(module, nn.BatchNorm2d) for module in one.modules()) == 2
    assert torch.allclose(one(x), twice(x), rtol=1e-10)

    layers = [NiffDepthwise(3, form="rfft") for _ in range(2)]
    layers[1].generator = layers[0].generator
    alike = nn.Sequential(layers[0], nn.BatchNorm2d(3), layers[1], nn.BatchNorm2d(3))
    one = folded(with_statistics(alike))
    assert not any(isinstance(module, nn.BatchNorm2d) for module in one.modules())
    assert all(layer.form == "cached" for _, layer in niff_layers(one))
    assert torch.allclose(one(x), alike(x), rtol=1e-9, atol=1e-10), "weights of two layers are folded apart"
    alike[1].train()
    with pytest.raises(ValueError, match=r"call eval\(\) first"):
        folded(alike)

    class Branching(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x if x.sum() > 0 else -x

    class Counting(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x / len(x)

    class Asserting(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            assert isinstance(x, Tensor)
            return x

    for untraceable in (Branching(), Counting(), Asserting()):
        with pytest.raises(ValueError, match=f"{type(untraceable).__name__} cannot be traced"):
            folded(untraceable.eval())
    pruned = nn.Sequential(nn.Conv2d(3, 3, 1)).eval()
    prune.l1_unstructured(pruned[0], "weight", 0.5)
    with pytest.raises(ValueError, match="Sequential cannot be copied"):
        folded(pruned)
    assert folded(pruned, copied=False)(x.float()).shape == x.shape
