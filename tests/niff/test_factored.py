"""Full layers without a filter, and the choice between them and those that make one."""

from __future__ import annotations

import time

import pytest
import torch
from niff_reference import reference_output
from torch import Tensor, nn
from torch.nn.utils import parametrize

from niffbench.niff import NiffDepthwise, NiffFull, auto, catalogue


def layer(
    form: str, into: int = 3, out: int = 4, mlp: str = "tiny", dtype: torch.dtype = torch.float64
) -> NiffFull:
    torch.manual_seed(0)
    return NiffFull(into, out, mlp=mlp, form=form, dtype=dtype)


def derivatives(layer: NiffFull, x: Tensor) -> list[Tensor]:
    """Gradients of image and weights, and those of a function of these."""
    leaves = [x, *layer.parameters()]
    first = torch.autograd.grad(layer(x).square().sum(), leaves)
    once = torch.autograd.grad(layer(x).square().sum(), leaves, create_graph=True)
    second = torch.autograd.grad(sum((one * one.detach().cos()).sum() for one in once), leaves)
    return [*first, *once, *second]


@pytest.mark.parametrize("mlp", ["tiny", "small", "big"])
@pytest.mark.parametrize("images", [1, 2, 5])
@pytest.mark.parametrize("size", [(6, 5), (4, 8), (5, 2), (1, 7), (1, 1)])
def test_pieces_of_any_size_are_the_layer(
    size: tuple[int, int], images: int, mlp: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A piece of one image, of two and a rest, of all: in value, first and second derivative."""
    one, features = layer("factored", mlp=mlp), {"tiny": 8, "small": 4, "big": 32}[mlp]
    height, width = size
    monkeypatch.setattr(catalogue, "LARGEST_PIECE", images * 2 * features * 3 * height * (width // 2 + 1) * 16)
    assert catalogue.images_at_once(3, features, height * (width // 2 + 1), 8) == images
    x = torch.randn(5, 3, *size, dtype=torch.float64, requires_grad=True)
    assert torch.allclose(one(x), reference_output(one, x.detach()), rtol=1e-10, atol=1e-10)
    with torch.inference_mode():
        assert torch.allclose(one(x), one.with_form("rfft")(x), rtol=1e-10, atol=1e-10)
    for mine, right in zip(derivatives(one, x), derivatives(one.with_form("rfft"), x), strict=True):
        assert torch.allclose(mine, right, rtol=1e-8, atol=1e-9 * float(right.detach().abs().max()))


@pytest.mark.parametrize("form", ["rfft", "cached", "factored", "factored-cached", "auto", "auto-cached"])
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_images_come_out_in_the_memory_format_they_had(form: str, memory_format: torch.memory_format) -> None:
    x = torch.randn(3, 3, 6, 8, dtype=torch.float64).to(memory_format=memory_format)
    with torch.no_grad():
        assert layer(form)(x).is_contiguous(memory_format=memory_format)


@pytest.fixture
def planted(monkeypatch: pytest.MonkeyPatch) -> dict[str, float]:
    """Seconds that each engine takes besides its work; a negative number fails."""
    seconds = {"rfft": 0.03, "factored": 0.0}
    convolve = NiffFull._convolve

    def slowed(self: NiffFull, x: Tensor, filters: tuple[Tensor, ...], engine: str | None) -> Tensor:
        delay = seconds[engine or ""]
        if delay < 0:
            raise RuntimeError("not enough memory")
        end = time.thread_time() + delay
        while time.thread_time() < end:
            pass
        return convolve(self, x, filters, engine)

    monkeypatch.setattr(NiffFull, "_convolve", slowed)
    auto.forget()
    yield seconds
    auto.forget()


@pytest.mark.parametrize("form", ["auto", "auto-cached"])
@pytest.mark.parametrize("fastest", ["rfft", "factored"])
def test_the_faster_of_both_is_taken(form: str, fastest: str, planted: dict[str, float]) -> None:
    planted.update({"rfft": 0.03, "factored": 0.03} | {fastest: 0.0})
    one = layer(form)
    x = torch.randn(2, 3, 6, 5, dtype=torch.float64, requires_grad=True)
    assert one.chosen is None
    for mine, right in zip(derivatives(one, x), derivatives(one.with_form("fft"), x), strict=True):
        assert torch.allclose(mine, right, rtol=1e-8, atol=1e-9 * float(right.detach().abs().max()))
    with torch.no_grad():
        one(x)
    assert one.chosen == fastest
    assert set(auto.choices().values()) == {fastest}


def test_what_is_kept_and_what_is_made_are_chosen_apart(planted: dict[str, float]) -> None:
    made, cached = layer("auto"), layer("auto-cached")
    x = torch.randn(2, 3, 6, 5, dtype=torch.float64)
    with torch.no_grad():
        made(x)
        planted.update(rfft=0.0, factored=0.03)
        cached(x)
        assert (made.chosen, cached.chosen) == ("factored", "rfft")
        layer("auto", out=5)(x)
    assert len(auto.choices()) == 3, "other channels are another kind of call"


def test_a_measurement_leaves_the_layer_alone(planted: dict[str, float]) -> None:
    """Neither the caller's hooks see it, nor does what the loser would keep stay; one that fails has lost."""
    one, seen = layer("auto-cached"), []
    planted.update(rfft=-1.0)
    x = torch.randn(2, 3, 6, 5, dtype=torch.float64)
    for parameter in one.parameters():
        parameter.register_hook(seen.append)
    one(x).sum().backward()
    assert len(seen) == len(list(one.parameters()))
    with torch.no_grad():
        one(x)
    assert one.chosen == "factored"
    assert len(one.generator._cache._current[2]) == 1


@pytest.mark.parametrize("channels", [(1, 4), (3, 1), (1, 1)])
@pytest.mark.parametrize("wanted", [{"x"}, {"weights"}, {"weight2"}, {"x", "bias1"}])
def test_only_gradients_that_are_wanted_are_made(channels: tuple[int, int], wanted: set[str]) -> None:
    one = layer("factored", *channels)
    x = torch.randn(2, channels[0], 6, 5, dtype=torch.float64, requires_grad="x" in wanted)
    for name, parameter in one.generator.named_parameters():
        parameter.requires_grad_("weights" in wanted or name in wanted)
    leaves = [leaf for leaf in (x, *one.parameters()) if leaf.requires_grad]
    mine, right = (torch.autograd.grad(twin(x).square().sum(), leaves) for twin in (one, one.with_form("rfft")))
    for our, their in zip(mine, right, strict=True):
        assert torch.allclose(our, their, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("form", ["rfft", "factored"])
def test_a_backward_pass_inside_autocast_gives_the_image_its_exact_gradient(form: str) -> None:
    one = layer(form, dtype=torch.float32)
    x = torch.randn(2, 3, 6, 5, requires_grad=True)
    [right] = torch.autograd.grad(one(x).square().sum(), x)
    with torch.autocast("cpu", torch.bfloat16):
        mine, *weights = torch.autograd.grad(one(x).square().sum(), [x, *one.parameters()])
    assert torch.allclose(mine, right, rtol=1e-4, atol=1e-5 * float(right.abs().max()))
    assert all(bool(weight.isfinite().all()) for weight in weights)


class Twice(nn.Module):
    def forward(self, weight: Tensor) -> Tensor:
        return 2 * weight


@pytest.mark.parametrize("form", ["auto", "auto-cached"])
def test_weights_that_are_made_of_others_may_be_measured(form: str) -> None:
    auto.forget()
    one = layer(form)
    parametrize.register_parametrization(one.generator, "weight2", Twice())
    x = torch.randn(2, 3, 6, 5, dtype=torch.float64)
    one(x).sum().backward()
    assert one.chosen is not None
    assert all(parameter.grad is not None for parameter in one.parameters())
    assert torch.allclose(one(x), reference_output(one, x), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("names", [("weight2",), ("weight1", "bias1", "weight2", "bias2")])
@pytest.mark.parametrize("form", ["cached", "factored-cached", "auto-cached"])
def test_what_is_kept_follows_what_weights_are_made_of(form: str, names: tuple[str, ...]) -> None:
    one = layer(form)
    for name in names:
        parametrize.register_parametrization(one.generator, name, Twice())
    x = torch.randn(2, 3, 6, 5, dtype=torch.float64)
    made_of = one.generator.parametrizations.weight2.original
    with torch.no_grad():
        before = one(x)
        made_of.mul_(2)
        after = one(x)
    assert not torch.allclose(before, after)
    assert torch.allclose(after, reference_output(one, x), rtol=1e-10, atol=1e-10)
    for parameter in one.parameters():
        parameter.requires_grad_(parameter is made_of)
    one(x).sum().backward()
    assert made_of.grad is not None


def test_full_and_depthwise_layers_have_engines_of_their_own() -> None:
    auto.forget()
    x = torch.randn(2, 3, 6, 6)
    full, depthwise = NiffFull(3, 3, form="auto"), NiffDepthwise(3, mlp="tiny", form="auto")
    with torch.no_grad():
        full(x)
        depthwise(x)
    assert full.chosen in ("rfft", "factored")
    assert depthwise.chosen in auto.ENGINES
