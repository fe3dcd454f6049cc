"""Published weights load, reproduce the published outputs, and are refused by another architecture."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize, prune

from niffbench.niff import NiffDepthwise, NiffFull, NiffPointwise, NiffSplit, form_of, forms_of, load_published
from niffbench.niff.catalogue import HIDDEN_WIDTHS
from niffbench.niff.checkpoint import recognise
from niffbench.niff.layer import FilteringLayer, SpectralLayer

VECTORS = Path(__file__).parents[1] / "data" / "niff_reference_vectors.npz"
NAMES = [
    f"{kind}_{size}"
    for kind in ("depthwise_small", "depthwise_big", "full_tiny", "pointwise", "split_small")
    for size in (7, 8)
]


def published(name: str) -> tuple[dict[str, Tensor], Tensor, Tensor]:
    """Weights, input and output of one published module."""
    with np.load(VECTORS, allow_pickle=False) as vectors:
        prefix = f"{name}/w/"
        weights = {
            key.removeprefix(prefix): torch.from_numpy(vectors[key])
            for key in vectors.files
            if key.startswith(prefix)
        }
        return weights, torch.from_numpy(vectors[f"{name}/x"]), torch.from_numpy(vectors[f"{name}/y"])


def layer_for(name: str, in_channels: int, out_channels: int) -> SpectralLayer:
    kind, *rest = name.split("_")
    if kind == "depthwise":
        return NiffDepthwise(in_channels, mlp=rest[0])
    if kind == "full":
        return NiffFull(in_channels, out_channels)
    return (NiffPointwise if kind == "pointwise" else NiffSplit)(in_channels, out_channels)


@pytest.mark.parametrize("name", NAMES)
def test_every_form_reproduces_the_published_output(name: str) -> None:
    weights, x, y = published(name)
    layer = layer_for(name, x.shape[1], y.shape[1])
    load_published(layer, weights)
    for form in forms_of(layer.kind):
        if "cpu" not in form_of(layer.kind, form).devices:
            continue
        with torch.no_grad():
            error = (layer.with_form(form)(x) - y).abs().max() / y.abs().max()
        assert error < 1e-5, form


def test_there_is_a_vector_of_every_module() -> None:
    with np.load(VECTORS, allow_pickle=False) as vectors:
        assert {key.split("/")[0] for key in vectors.files} == set(NAMES)


def test_loading_keeps_parameters_trainable_and_twins_in_step() -> None:
    weights, x, _ = published("split_small_8")
    layer = layer_for("split_small_8", 6, 9)
    twin = layer.with_form("elided")
    load_published(layer, weights)
    assert torch.allclose(twin(x), layer(x), atol=1e-5)
    layer(x).sum().backward()
    assert twin.weight.grad is not None


@pytest.mark.parametrize(
    ("layer", "name", "message"),
    [
        (NiffDepthwise(6, mlp="big"), "depthwise_small_8", r"\(6.* big MLP: it lacks 'mlp_imag.layer_mpl4"),
        (NiffDepthwise(6), "depthwise_big_8", "also holds 'mlp_imag.layer_mpl4.bias'"),
        (NiffDepthwise(5), "depthwise_small_8", r"mpl3.weight' has shape \(6, 4, 1, 1\) where \(5, 4, 1, 1\)"),
        (NiffPointwise(6, 9), "split_small_8", "lacks 'mlp.weight'"),
        (NiffSplit(6, 9), "depthwise_small_8", "lacks '0.mlp_imag.layer_mpl1.bias'"),
        (NiffFull(8, 6), "pointwise_8", "lacks 'mlp_imag"),
        (NiffPointwise(9, 6), "pointwise_8", r"shape \(9, 6\) where \(6, 9\)"),
    ],
)
def test_another_architecture_is_refused_and_nothing_is_changed(
    layer: SpectralLayer, name: str, message: str
) -> None:
    before = {key: value.clone() for key, value in layer.state_dict().items()}
    with pytest.raises(ValueError, match=message):
        load_published(layer, published(name)[0])
    assert all(torch.equal(value, before[key]) for key, value in layer.state_dict().items())


@pytest.mark.parametrize(
    ("name", "module", "weight"),
    [
        ("depthwise_small_8", "generator", "weight2"),
        ("full_tiny_8", "generator", "bias1"),
        ("split_small_8", "", "weight"),
        ("pointwise_8", "", "weight"),
    ],
)
@pytest.mark.parametrize(
    "make_of_others",
    [
        lambda module, name: parametrize.register_parametrization(module, name, nn.Tanh()),
        lambda module, name: prune.l1_unstructured(module, name, 0.5),
    ],
    ids=["parametrized", "pruned"],
)
def test_weights_made_of_others_are_refused_and_nothing_is_changed(
    name: str, module: str, weight: str, make_of_others: Callable[[nn.Module, str], object]
) -> None:
    weights, x, y = published(name)
    layer = layer_for(name, x.shape[1], y.shape[1])
    make_of_others(layer.get_submodule(module), weight)
    before = {key: value.clone() for key, value in layer.state_dict().items()}
    with pytest.raises(ValueError, match=rf"^{weight} of this .* is made of other weights"):
        load_published(layer, weights)
    assert all(torch.equal(value, before[key]) for key, value in layer.state_dict().items())


@pytest.mark.parametrize("mlp", HIDDEN_WIDTHS)
def test_a_split_layer_is_told_by_its_matrix_whatever_its_mlp(mlp: str) -> None:
    layer = NiffSplit(16, 8, mlp=mlp)
    (mine,) = recognise({f"block.{key}": value for key, value in layer.state_dict().items()}).layers.values()
    assert isinstance(mine, NiffSplit)
    assert torch.equal(mine.weight, layer.weight)
    assert torch.equal(mine.filter(5, 6), layer.filter(5, 6))


def test_a_pointwise_layer_behind_a_full_one_makes_no_split_layer_of_it() -> None:
    """In the published layout, where both stand as the halves of a split layer do."""
    state: dict[str, Tensor] = {}
    for number, name in enumerate(("full_tiny_8", "pointwise_8")):
        weights, x, y = published(name)
        state |= {f"block.{number}.{key}": value for key, value in weights.items()}
        if number == 0:
            images, expected, channels = x, y, (x.shape[1], y.shape[1])
    recognised = recognise(state)
    assert not any(isinstance(layer, NiffSplit) for layer in recognised.layers.values())
    if channels[0] == channels[1]:
        assert torch.allclose(recognised.layers["block.0"](images), expected, atol=1e-5)
    else:
        assert recognised.unclear == ("block.0",)


@pytest.mark.parametrize(
    "layer",
    [
        NiffDepthwise(16, mlp="tiny"),
        NiffDepthwise(6),
        NiffFull(8, 2),
        NiffFull(3, 5),
        NiffFull(4, 4, mlp="small"),
    ],
    ids=repr,
)
@pytest.mark.parametrize("normalisation", [nn.BatchNorm2d, nn.LayerNorm])
def test_a_normalisation_after_a_layer_tells_a_depthwise_one_from_a_full_one(
    layer: FilteringLayer, normalisation: Callable[[int], nn.Module]
) -> None:
    block = nn.Sequential(nn.BatchNorm2d(3), layer, normalisation(layer.out_channels), nn.BatchNorm2d(7))
    state = {f"net.{key}": value for key, value in block.state_dict().items()}
    found = recognise(state)
    mine = found.layers["net.1"]
    assert (type(mine), mine.in_channels, mine.out_channels) == (
        type(layer),
        layer.in_channels,
        layer.out_channels,
    )
    doubtful = (layer.kind == "full") != (layer.generator.mlp == "tiny")
    assert found.guessed + found.unclear == (("net.1",) if doubtful else ())
    by_name, inside = dict(sorted(state.items())), {key.replace("net.1.", "net.1.0."): state[key] for key in state}
    alone = {key: value for key, value in state.items() if key.startswith("net.1.")}
    for unclear, name in ((by_name, "net.1"), (inside, "net.1.0"), (alone, "net.1")):
        found = recognise(unclear)
        assert found.guessed + found.unclear == (name,), "what comes next may be of another branch"


def test_a_normalisation_that_two_kinds_may_have_leaves_a_guess() -> None:
    """A full layer with one image coming in, and a depthwise one whose normalisation is of what follows it."""
    for layer, channels in ((NiffFull(1, 16), 16), (NiffDepthwise(16), 8)):
        found = recognise(nn.Sequential(layer, nn.BatchNorm2d(channels)).state_dict())
        assert found.guessed == ("0",)


def test_a_published_state_dict_is_not_taken_for_our_own() -> None:
    with pytest.raises(RuntimeError, match="Missing key"):
        NiffDepthwise(6).load_state_dict(published("depthwise_small_8")[0])
