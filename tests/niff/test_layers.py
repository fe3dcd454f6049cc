"""Every form of every layer against a float64 circular convolution, in value and in gradient."""

from __future__ import annotations

import copy
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from niff_reference import circular_convolution, reference_filter, reference_output
from torch import Tensor, nn
from torch._subclasses import FakeTensorMode
from torch.nn.utils import parametrize, prune

from niffbench.niff import NiffDepthwise, NiffFull, NiffPointwise, NiffSplit, forms_of
from niffbench.niff.catalogue import KINDS, LAYOUTS, form_of
from niffbench.niff.layer import SpectralLayer
from niffbench.niff.networks import Surrounded

CASES = [(kind, form) for kind in KINDS for form in forms_of(kind) if "cpu" in form_of(kind, form).devices]
FILTERING = ("depthwise", "full", "split")


def build(kind: str, in_channels: int, out_channels: int, seed: int = 0, **options: object) -> SpectralLayer:
    """A layer with seeded weights, its out_channels ignored where in and out must agree."""
    torch.manual_seed(seed)
    if kind == "depthwise":
        return NiffDepthwise(in_channels, **options)
    make = {"full": NiffFull, "pointwise": NiffPointwise, "split": NiffSplit}[kind]
    return make(in_channels, out_channels, **options)


def relative(result: Tensor, truth: Tensor) -> float:
    """Largest error over the largest true value."""
    result, truth = result.detach().double(), truth.detach().double()
    return float((result - truth).abs().max() / truth.abs().max())


SIDES = st.one_of(st.integers(1, 12), st.sampled_from([13, 14, 16, 17, 19, 28]))


@pytest.mark.parametrize(("kind", "form"), CASES)
@settings(max_examples=12, deadline=None)
@given(
    height=SIDES,
    width=SIDES,
    batch=st.integers(1, 3),
    channels=st.tuples(st.integers(1, 5), st.integers(1, 5)),
    grid=st.sampled_from(["paper", "centred"]),
)
def test_every_form_is_the_circular_convolution_with_the_real_part_of_the_inverse_transform(
    kind: str, form: str, height: int, width: int, batch: int, channels: tuple[int, int], grid: str
) -> None:
    options = {"grid": grid} if kind in FILTERING else {}
    layer = build(kind, *channels, form=form, dtype=torch.float64, **options)
    x = torch.randn(batch, channels[0], height, width, dtype=torch.float64)
    truth = reference_output(layer, x)
    for context in (torch.enable_grad(), torch.no_grad(), torch.inference_mode()):
        with context:
            assert relative(layer(x), truth) < 1e-12
            assert relative(layer(x), truth) < 1e-12, "the second call differs from the first"


@pytest.mark.parametrize(("kind", "form"), CASES)
@pytest.mark.parametrize("size", [(6, 5), (7, 7), (4, 8)])
def test_gradients_are_right(kind: str, form: str, size: tuple[int, int]) -> None:
    layer = build(kind, 3, 2, form=form, dtype=torch.float64)
    names = [name for name, _ in layer.named_parameters()]
    values = [value.detach().clone().requires_grad_() for value in layer.parameters()]
    x = torch.randn(2, 3, *size, dtype=torch.float64, requires_grad=True)

    def run(x: Tensor, *values: Tensor) -> Tensor:
        return torch.func.functional_call(layer, dict(zip(names, values, strict=True)), (x,))

    assert torch.autograd.gradcheck(run, (x, *values), fast_mode=True)


@pytest.mark.parametrize(("kind", "form"), CASES)
@pytest.mark.parametrize("scale", [1, 2**-27], ids=["gradients like images", "gradients of a mean loss"])
def test_forms_agree_in_gradient_in_float32(kind: str, form: str, scale: float) -> None:
    layer = build(kind, 6, 4)
    x = torch.randn(3, 6, 14, 9)
    weights = scale * torch.randn_like(layer(x))

    def gradients(of: SpectralLayer, dtype: torch.dtype) -> list[Tensor]:
        of = copy.deepcopy(of).to(dtype)
        image = x.to(dtype).requires_grad_()
        return list(torch.autograd.grad((of(image) * weights).sum(), [image, *of.parameters()]))

    truth = gradients(layer.with_form("published"), torch.float64)
    for mine, true in zip(gradients(layer.with_form(form), torch.float32), truth, strict=True):
        assert relative(mine, true) < 1e-4


@pytest.mark.parametrize(("kind", "form"), CASES)
@pytest.mark.parametrize("extreme", [2.0**27, torch.nan, torch.inf])
def test_no_image_depends_on_another(kind: str, form: str, extreme: float) -> None:
    layer = build(kind, 3, 4, form=form)
    images, outer = torch.randn(4, 3, 7, 6), torch.randn(4, 3 if kind == "depthwise" else 4, 7, 6)
    images[1, 1, 2, 3] = outer[1, 2, 3, 1] = extreme
    for take in ([0, 1], [1, 2], [0, 1, 2, 3]):
        x = images[take].requires_grad_()
        y = layer(x)
        (gradient,) = torch.autograd.grad(y, x, outer[take])
        for place, image in enumerate(take):
            if image != 1:
                alone = images[image : image + 1].clone().requires_grad_()
                expected = layer(alone)
                (expected_gradient,) = torch.autograd.grad(expected, alone, outer[image : image + 1])
                assert relative(y[place], expected[0]) < 1e-5
                assert relative(gradient[place], expected_gradient[0]) < 1e-5


@pytest.mark.parametrize(("kind", "form"), CASES)
@pytest.mark.parametrize("size", [(9, 9), (8, 25)])
def test_filters_images_and_gradients_far_smaller_than_others_are_as_exact(
    kind: str, form: str, size: tuple[int, int]
) -> None:
    """In every row: nothing that the filter has not made small gets into one, of an odd height say."""
    layer = build(kind, 3, 4, form=form)
    with torch.no_grad():
        last = [layer.weight] if kind == "pointwise" else list(layer.generator.parameters())[-2:]
        for weight in last:
            weight.mul_(2**-50)
    x, outer = torch.randn(2, 3, *size), 2**-40 * torch.randn(2, 3 if kind == "depthwise" else 4, *size)
    x[1] *= 2**-20

    def values(of: SpectralLayer, dtype: torch.dtype) -> tuple[list[Tensor], list[Tensor]]:
        of = copy.deepcopy(of).to(dtype)
        image = x.to(dtype).requires_grad_()
        y = of(image)
        for_x, *for_weights = torch.autograd.grad(y, [image, *of.parameters()], outer.to(dtype))
        return [row for images in (y, for_x) for row in images.flatten(0, 2)], for_weights

    rows, for_weights = values(layer, torch.float32)
    true_rows, true_for_weights = values(layer.with_form("published"), torch.float64)
    assert max(map(relative, rows, true_rows)) < 1e-4
    assert max(map(relative, for_weights, true_for_weights)) < 1e-4


@pytest.mark.parametrize(("kind", "form"), CASES)
def test_only_what_asks_for_a_gradient_gets_one(kind: str, form: str) -> None:
    layer = build(kind, 3, 4, form=form)
    x = torch.randn(2, 3, 6, 7)
    for parameter in layer.parameters():
        parameter.requires_grad_(False)
    assert not layer(x).requires_grad
    image = x.clone().requires_grad_()
    layer(image).sum().backward()
    assert image.grad is not None
    for parameter in layer.parameters():
        parameter.requires_grad_(True)
    layer(x).sum().backward()
    assert all(parameter.grad is not None for parameter in layer.parameters())


@pytest.mark.parametrize("form", forms_of("pointwise"))
def test_pointwise_with_channels_last_is_the_same_map(form: str) -> None:
    nchw = build("pointwise", 3, 5)
    nhwc = NiffPointwise(3, 5, layout="nhwc", form=form)
    nhwc.load_state_dict(nchw.state_dict())
    x = torch.randn(2, 3, 6, 5)
    assert relative(nhwc(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2), reference_output(nchw, x)) < 1e-5


@pytest.mark.parametrize(
    ("kind", "options", "count"),
    [
        ("depthwise", {"mlp": "tiny"}, 48 + 18 * 12),
        ("depthwise", {"mlp": "small"}, 120 + 10 * 12),
        ("depthwise", {"mlp": "big"}, 12704 + 66 * 12),
        ("full", {}, 48 + 18 * 12 * 20),
        ("pointwise", {}, 12 * 20),
        ("split", {}, 120 + 10 * 12 + 12 * 20),
    ],
)
def test_parameter_counts(kind: str, options: dict[str, str], count: int) -> None:
    layer = build(kind, 12, 20, device="meta", **options)
    assert sum(parameter.numel() for parameter in layer.parameters()) == count


@pytest.mark.parametrize("kind", FILTERING)
@pytest.mark.parametrize("mlp", ["tiny", "small", "big"])
@pytest.mark.parametrize("grid", ["paper", "centred"])
def test_the_filter_is_the_mlps_on_the_grid(kind: str, mlp: str, grid: str) -> None:
    layer = build(kind, 3, 2, mlp=mlp, grid=grid, dtype=torch.float64)
    for size in ((5, 8), (7, 7), (1, 4)):
        assert relative_complex(layer.filter(*size), reference_filter(layer, *size)) < 1e-12


def relative_complex(result: Tensor, truth: np.ndarray) -> float:
    return float(abs(result.detach().numpy() - truth).max() / abs(truth).max())


@pytest.mark.parametrize("size", [(6, 8), (7, 5)])
def test_the_spatial_kernel_is_centred_and_does_what_the_layer_does(size: tuple[int, int]) -> None:
    layer = build("depthwise", 3, 3, dtype=torch.float64)
    kernel = layer.spatial_kernel(*size)
    origin = torch.roll(kernel, (-(size[0] // 2), -(size[1] // 2)), (-2, -1))
    x = torch.randn(2, 3, *size, dtype=torch.float64)
    dense = torch.diag_embed(origin.permute(1, 2, 0)).permute(2, 3, 0, 1)
    assert relative(layer(x), circular_convolution(x, dense)) < 1e-12


@pytest.mark.parametrize("kind", FILTERING)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_autocast_leaves_filter_and_kernel_as_they_are(kind: str, dtype: torch.dtype) -> None:
    layer = build(kind, 3, 2)
    expected = layer.filter(6, 7), layer.spatial_kernel(6, 7)
    with torch.autocast("cpu", dtype=dtype):
        mine = layer.filter(6, 7), layer.spatial_kernel(6, 7)
    assert all(torch.equal(*pair) for pair in zip(mine, expected, strict=True))


@pytest.mark.parametrize(("kind", "form"), CASES)
def test_many_sizes_in_one_life_and_after_a_copy(kind: str, form: str) -> None:
    layer = build(kind, 3, 3, form=form).eval()
    sizes = [(8, 8), (5, 7), (1, 1), (8, 8), *[(n, n + 1) for n in range(2, 14)], (8, 8)]
    for height, width in sizes:
        x = torch.randn(1, 3, height, width)
        for of in (layer, copy.deepcopy(layer)):
            with torch.no_grad():
                assert relative(of(x), reference_output(of, x)) < 1e-4


@pytest.mark.parametrize(("kind", "form"), CASES)
def test_inference_mode_first_and_training_after(kind: str, form: str) -> None:
    layer = build(kind, 3, 3, form=form)
    x = torch.randn(2, 3, 6, 6)
    with torch.inference_mode():
        first = layer(x)
    result = layer(x)
    result.square().sum().backward()
    assert relative(first.clone(), result.detach()) < 1e-6
    assert all(parameter.grad is not None for parameter in layer.parameters())


@pytest.mark.parametrize(("kind", "form"), CASES)
def test_a_saved_layer_is_the_same_layer(kind: str, form: str, tmp_path: object) -> None:
    layer = build(kind, 3, 3, form=form)
    x = torch.randn(2, 3, 6, 6)
    before = layer(x).detach()
    torch.save(layer, f"{tmp_path}/layer.pt")
    again = torch.load(f"{tmp_path}/layer.pt", weights_only=False)
    assert torch.equal(again(x), before)
    fresh = build(kind, 3, 3, seed=1, form=form)
    fresh.load_state_dict(layer.state_dict())
    assert torch.equal(fresh(x), before)


@pytest.mark.parametrize(("kind", "form"), CASES)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_cast_inside(kind: str, form: str, dtype: torch.dtype) -> None:
    layer = build(kind, 3, 3, form=form)
    x = torch.randn(2, 3, 7, 6).to(dtype)
    result = layer(x)
    assert result.dtype == dtype
    assert relative(result, reference_output(layer, x)) < 3e-2
    weights_too = copy.deepcopy(layer).to(dtype)
    assert relative(weights_too(x), reference_output(weights_too, x)) < 3e-2


@pytest.mark.parametrize(("kind", "form"), CASES)
@pytest.mark.parametrize(
    ("of_images", "of_weights"), [(torch.float64, torch.float32), (torch.float32, torch.float64)]
)
def test_the_wider_dtype_is_computed_in(
    kind: str, form: str, of_images: torch.dtype, of_weights: torch.dtype
) -> None:
    layer = build(kind, 3, 3, form=form, dtype=of_weights)
    x = torch.randn(2, 3, 7, 6, dtype=of_images)
    result = layer(x)
    assert result.dtype == of_images
    assert relative(result, reference_output(layer, x)) < (1e-12 if of_images == torch.float64 else 1e-6)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_an_ordinary_convolution_in_half_precision_stays_one(layout: str) -> None:
    layer = NiffPointwise(4, 4, layout=layout, form="elided", dtype=torch.bfloat16)
    x, weight = torch.randn(2, 4, 4, 4, dtype=torch.bfloat16), layer.weight
    expected = nn.functional.conv2d(x, weight[:, :, None, None]) if layout == "nchw" else x @ weight.T
    assert torch.equal(layer(x), expected)


@pytest.mark.parametrize("kind", KINDS)
def test_weights_of_a_layer_without_data_are_drawn_like_any(kind: str) -> None:
    layer = Surrounded(build(kind, 3, 4, device="meta"), torch.zeros(4 if kind != "depthwise" else 3))
    layer.to("meta").to_empty(device="cpu")
    with torch.no_grad():
        for weight in layer.parameters():
            weight.fill_(torch.nan)
    torch.manual_seed(0)
    for module in layer.modules():
        if hasattr(module, "reset_parameters"):
            module.reset_parameters()
    drawn = {name.removeprefix("layer."): weight for name, weight in layer.named_parameters() if name != "bias"}
    for name, other in build(kind, 3, 4).named_parameters():
        bound = other.shape[-1] ** -0.5 if "bias" not in name else 1
        assert 0 < drawn[name].abs().max() <= bound
    assert not layer.bias.any()


@pytest.mark.parametrize(("kind", "form"), CASES)
def test_shapes_without_data(kind: str, form: str) -> None:
    layer = build(kind, 3, 4, form=form, device="meta")
    out = 3 if kind == "depthwise" else 4
    for context in (torch.enable_grad(), torch.no_grad()):
        with context:
            assert layer(torch.empty(2, 3, 7, 6, device="meta")).shape == (2, out, 7, 6)
    with FakeTensorMode():
        layer = build(kind, 3, 4, form=form)
        layer(torch.empty(2, 3, 7, 6)).sum().backward()
        with torch.no_grad():
            assert layer(torch.empty(2, 3, 7, 6)).shape == (2, out, 7, 6)


@pytest.mark.parametrize(("kind", "form"), CASES)
def test_autocast(kind: str, form: str) -> None:
    layer = build(kind, 3, 3, form=form)
    x = torch.randn(2, 3, 7, 6, requires_grad=True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        result = layer(x)
    ordinary = kind == "pointwise" and form == "elided"
    assert result.dtype == (torch.bfloat16 if ordinary else torch.float32)
    assert relative(result, reference_output(layer, x)) < (3e-2 if ordinary else 1e-5)
    result.float().sum().backward()
    assert x.grad is not None


# What keeps a filter does so outside the graph, by one way for all forms: each engine once, each layer once.
COMPILED = [
    case for case in CASES if not form_of(*case).keeps_filter or case[0] == "depthwise" or case[1] == "cached"
]


TRAINED = [
    *(("depthwise", form) for form in ("published", "rfft", "fused", "native", "dft")),
    *(("full", form) for form in ("rfft", "factored", "auto")),
    ("pointwise", "published"),
    ("split", "auto"),
]


@pytest.mark.usefixtures("untimed_guards")
@pytest.mark.parametrize(("kind", "form"), COMPILED)
def test_it_compiles(kind: str, form: str) -> None:
    torch._dynamo.reset()
    layer = build(kind, 3, 4, form=form)
    x = torch.randn(2, 3, 6, 7)
    truth = layer.with_form("fft")(x).detach()
    if (kind, form) not in TRAINED:  # as is looked at below
        assert relative(torch.compile(layer, backend="eager", fullgraph=True)(x), truth) < 1e-5
    # What is kept between calls is kept outside the graph, which then is not whole.
    compiled = torch.compile(layer, backend="eager", fullgraph=not form_of(kind, form).keeps_filter)
    with torch.no_grad():
        assert relative(compiled(x), truth) < 1e-5
        next(layer.parameters()).mul_(0.5)
        assert relative(compiled(x), layer.with_form("fft")(x)) < 1e-5


@pytest.mark.usefixtures("untimed_guards")
@pytest.mark.parametrize(("kind", "form"), TRAINED)
def test_it_trains_compiled(kind: str, form: str) -> None:
    torch._dynamo.reset()
    layer = build(kind, 3, 4, form=form)
    compiled = torch.compile(layer, backend="aot_eager", fullgraph=True)
    x = torch.randn(2, 3, 6, 7, requires_grad=True)
    right, result = layer.with_form("fft")(x), compiled(x)
    assert relative(result.detach(), right.detach()) < 1e-5
    truth = torch.autograd.grad(right.square().sum(), [x, *layer.parameters()])
    mine = torch.autograd.grad(result.square().sum(), [x, *layer.parameters()])
    for one, other in zip(mine, truth, strict=True):
        assert relative(one, other) < 1e-4


@pytest.mark.parametrize(("kind", "form"), CASES)
def test_strided_input(kind: str, form: str) -> None:
    layer = build(kind, 4, 3, form=form)
    x = torch.randn(3, 4, 6, 8)
    truth = reference_output(layer, x)
    assert relative(layer(x.to(memory_format=torch.channels_last)), truth) < 1e-5
    assert relative(layer(x.permute(3, 2, 1, 0).contiguous().permute(3, 2, 1, 0)), truth) < 1e-5


def test_forms_share_weights() -> None:
    layer = build("split", 3, 4)
    twin = layer.with_form("published")
    assert (layer.form, twin.form) == ("rfft", "published")
    assert all(one is other for one, other in zip(layer.parameters(), twin.parameters(), strict=True))
    x = torch.randn(1, 3, 6, 6)
    with torch.no_grad():
        layer.weight.mul_(2)
        layer.generator.weight1.add_(1)
    assert relative(twin(x), layer(x)) < 1e-5


def test_the_form_can_be_set_later() -> None:
    layer = build("depthwise", 3, 3)
    layer.form = "published"
    assert layer.form == "published"
    with pytest.raises(ValueError, match=r"form of the depthwise layer 'ftt'.*'fft'"):
        layer.form = "ftt"
    assert layer.form == "published"


class _Bump:
    """Ways in which weights change, each of which a kept filter must notice."""

    @staticmethod
    def optimiser(layer: SpectralLayer) -> None:
        optimiser = torch.optim.Adam(layer.parameters(), lr=0.1)
        layer(torch.randn(1, 3, 6, 6)).square().sum().backward()
        optimiser.step()

    @staticmethod
    def in_place(layer: SpectralLayer) -> None:
        with torch.no_grad():
            layer.generator.bias2.add_(1.0)

    @staticmethod
    def state_dict(layer: SpectralLayer) -> None:
        layer.load_state_dict(build(layer.kind, 3, 3, seed=5).state_dict())

    @staticmethod
    def assigned(layer: SpectralLayer) -> None:
        layer.load_state_dict(build(layer.kind, 3, 3, seed=6).state_dict(), assign=True)

    @staticmethod
    def there_and_back(layer: SpectralLayer) -> None:
        layer.half().float()

    @staticmethod
    def replaced(layer: SpectralLayer) -> None:
        layer.generator.weight1 = torch.nn.Parameter(layer.generator.weight1.detach() * 2)

    @staticmethod
    def output(layer: SpectralLayer) -> None:
        layer.generator.weight1.data.mul_(2)
        layer.generator.forget()

    @staticmethod
    def pruned(layer: SpectralLayer) -> None:
        prune.l1_unstructured(layer.generator, "weight2", 0.5)

    @staticmethod
    def pruned_and_in_place(layer: SpectralLayer) -> None:
        x = torch.randn(2, 3, 6, 6)
        prune.l1_unstructured(layer.generator, "weight2", 0.5)
        for change in (lambda: layer.generator.weight2_orig.mul_(2), lambda: layer.generator.weight2_mask.zero_()):
            with torch.no_grad():
                before = layer(x)
                change()
                assert not torch.equal(layer(x), before)

    @staticmethod
    def taken_away_and_put_back(layer: SpectralLayer) -> None:
        parametrize.register_parametrization(layer.generator, "weight1", nn.Tanh())
        parametrize.remove_parametrizations(layer.generator, "weight1")


CACHED = [(kind, form) for kind, form in CASES if form_of(kind, form).keeps_filter]


@pytest.mark.parametrize(("kind", "form"), CACHED)
@pytest.mark.parametrize("change", [name for name in vars(_Bump) if not name.startswith("_")])
def test_a_kept_filter_follows_the_weights(kind: str, form: str, change: str) -> None:
    layer = build(kind, 3, 3, form=form)
    x = torch.randn(2, 3, 6, 6)
    with torch.no_grad():
        before = layer(x)
    getattr(_Bump, change)(layer)
    with torch.no_grad():
        after = layer(x)
        assert not torch.equal(after, before)
        layer.generator.weights()  # Pruned, it has them without what made them, which could not be copied.
        assert torch.equal(after, copy.deepcopy(layer)(x))
        assert relative(after, reference_output(layer, x)) < 1e-5


@pytest.mark.parametrize(("kind", "form"), CACHED)
def test_a_kept_filter_is_kept_and_never_reused_in_training(
    kind: str, form: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    layer = build(kind, 3, 3, form=form)
    calls = 0
    take_weights = type(layer.generator)._cast_layers

    def counting(*args: object) -> tuple[Tensor, ...]:
        nonlocal calls
        calls += 1
        return take_weights(*args)

    monkeypatch.setattr(type(layer.generator), "_cast_layers", counting)
    x = torch.randn(2, 3, 6, 6)
    with torch.inference_mode():
        layer(x)
        layer(x)
    with torch.no_grad():
        layer(x)
    made = calls
    assert made >= 1
    with torch.no_grad():
        layer(x)
        assert calls == made, "what is at hand is not made again"
        layer(x.double())
    assert calls > made, "another dtype needs another filter"
    made = calls
    for _ in range(2):
        layer(x).sum().backward()
    assert calls >= made + 2


def test_weights_of_inference_mode_are_no_reason_to_be_slow() -> None:
    """No version of them is counted, so no filter of them is kept; the kernel makes it then."""
    with torch.inference_mode():
        layer, x = NiffDepthwise(5, form="auto-cached"), torch.randn(2, 5, 6, 7)
        for engine in ("native", "features"):
            layer.fix_engine(engine)
            for factor in (1.0, 1.5):
                layer.generator.weight3.mul_(factor)
                assert relative(layer(x), reference_output(layer, x)) < 1e-5
                assert relative(layer(x), reference_output(layer, x)) < 1e-5
    assert layer._constants.generation is not None


@pytest.mark.parametrize(("kind", "form"), CASES)
def test_transforms_over_weights(kind: str, form: str) -> None:
    """An ensemble by ``vmap``, and forward derivatives; of layers that keep what was made of other weights."""
    layers = [build(kind, 3, 4, seed, form=form, dtype=torch.float64).requires_grad_(False) for seed in (0, 1)]
    x = torch.randn(2, 3, 6, 7, dtype=torch.float64)
    first = {name: weight.detach().clone() for name, weight in layers[0].named_parameters()}
    tangents = {name: torch.randn_like(weight) for name, weight in first.items()}

    def call(layer: SpectralLayer, weights: dict[str, Tensor]) -> Tensor:
        return torch.func.functional_call(layer, weights, (x,))

    published = layers[0].with_form("published")
    _, slope = torch.func.jvp(lambda weights: call(published, weights), (first,), (tangents,))
    stacked, _ = torch.func.stack_module_state(layers)
    for _ in range(2):
        expected = torch.stack([layer(x) for layer in layers])
        together = torch.func.vmap(lambda weights: call(layers[0], weights))(stacked)
        assert relative(together, expected) < 1e-9
        mine = torch.func.jvp(lambda weights: call(layers[0], weights), (first,), (tangents,))[1]
        assert relative(mine, slope) < 1e-9


@pytest.mark.parametrize(("kind", "form"), CASES)
def test_a_transform_leaves_nothing_of_its_own_behind(kind: str, form: str) -> None:
    layer, x = build(kind, 3, 4, form=form), torch.randn(2, 3, 6, 7)
    torch.func.grad(lambda image: layer(image).sum())(x)
    with torch.no_grad():
        for _ in range(3):
            assert relative(layer(x), reference_output(layer, x)) < 1e-5


@pytest.mark.parametrize(("kind", "form"), CACHED)
def test_a_frozen_layer_passes_gradients_through_its_kept_filter(kind: str, form: str) -> None:
    layer = build(kind, 3, 3, form=form).requires_grad_(False)
    with torch.inference_mode():
        layer(torch.randn(1, 3, 6, 6))
    x = torch.randn(1, 3, 6, 6, requires_grad=True)
    mine = torch.autograd.grad(layer(x).square().sum(), x)[0]
    truth = torch.autograd.grad(layer.with_form("published")(x).square().sum(), x)[0]
    assert relative(mine, truth) < 1e-4


@pytest.mark.parametrize(("kind", "form"), [case for case in CASES if case[0] != "pointwise"])
def test_a_pruned_filter_is_trained(kind: str, form: str) -> None:
    """Each call makes its weights of those that are trained, also where one that was not pruned came before."""
    layer, x = build(kind, 3, 3, form=form), torch.randn(2, 3, 6, 6)
    for _ in range(2):
        layer(x).sum().backward()
    prune.l1_unstructured(layer.generator, "weight2", 0.5)
    kept = layer.generator.weight2_mask.bool()
    optimiser = torch.optim.SGD(layer.parameters(), lr=0.1)
    for _ in range(3):
        optimiser.zero_grad()
        layer(x).square().mean().backward()
        assert layer.generator.weight2_orig.grad[kept].all()
        assert not layer.generator.weight2_orig.grad[~kept].any()
        optimiser.step()
        with torch.no_grad():
            assert relative(layer(x), reference_output(layer, x)) < 1e-5
    prune.remove(layer.generator, "weight2")
    with torch.no_grad():
        assert relative(layer(x), reference_output(layer, x)) < 1e-5


def test_the_grid_of_a_filter_cannot_become_another() -> None:
    layer = build("depthwise", 3, 3)
    with pytest.raises(AttributeError, match="grid"):
        layer.generator.grid = "centred"


REFUSED: list[tuple[Callable[[], object], str]] = [
    (lambda: NiffDepthwise(3, mlp="smal"), "unknown filter MLP 'smal'.*'small'"),
    (lambda: NiffDepthwise(3, grid="centered"), "unknown grid 'centered'.*'centred'"),
    (lambda: NiffDepthwise(3, form="cache"), "unknown form .*'cache'.*'cached'"),
    (lambda: NiffDepthwise(8, stride=2), "NIFF does not define stride: its layers are circular.* of stride 1"),
    (lambda: NiffFull(4, 8, groups=2, dilation=2), "NIFF does not define groups, dilation"),
    (lambda: NiffPointwise(4, 8, bias=True), "NIFF does not define bias"),
    (lambda: NiffSplit(4, 8, padding=1), "NIFF does not define padding"),
    (lambda: NiffDepthwise(0), "at least one channel"),
    (lambda: NiffFull(3, 0), "at least one channel"),
    (lambda: NiffPointwise(3, 4, layout="nhcw"), "unknown layout 'nhcw'"),
    (lambda: NiffDepthwise(3, form="auto").fix_engine("nativ"), "engine of the depthwise layer 'nativ'.*'native'"),
    (lambda: NiffFull(3, 4, form="auto").fix_engine("native"), "'native'; choose from factored, rfft"),
    (lambda: NiffFull(3, 4).fix_engine("rfft"), "form 'rfft' leaves nothing to choose"),
    (lambda: NiffPointwise(3, 4)(torch.randn(1, 5, 6, 6)), r"3 channels in dimension 1.*\(1, 5, 6, 6\)"),
    (lambda: NiffPointwise(3, 4, layout="nhwc")(torch.randn(1, 3, 6, 6)), "3 channels in dimension 3"),
    (lambda: NiffPointwise(3, 4, form="elided")(torch.randn(1, 5, 6, 6)), "3 channels in dimension 1"),
    (lambda: NiffDepthwise(3)(torch.randn(3, 6)), "3 or 4 dimensions"),
    (lambda: NiffDepthwise(3)(torch.randn(1, 3, 6, 6, dtype=torch.complex64)), "real"),
    (lambda: NiffDepthwise(3, form="native")(torch.randn(2, 3, 0, 6)), r"at least one pixel.*\(2, 3, 0, 6\)"),
]


@pytest.mark.parametrize(("call", "message"), REFUSED, ids=[message for _, message in REFUSED])
def test_refusals_say_what_is_wrong(call: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()
