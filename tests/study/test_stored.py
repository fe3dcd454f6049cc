"""Networks from files: weights alone, of the right architecture, in our layout or the published one."""

from __future__ import annotations

import argparse
import os
import pickle
import zipfile
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from niffbench.niff import NiffDepthwise, NiffFull, NiffSplit, load_published
from niffbench.niff.layer import FilteringLayer
from niffbench.niff.networks import niff_layers
from niffbench.study import stored


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("stored") / "digits.pt"
    torch.manual_seed(3)
    stored.save(path, "digits-niff", stored.build("digits-niff", size=16))
    return path


def test_what_is_saved_is_restored(checkpoint: Path, tmp_path: Path) -> None:
    read = stored.read(checkpoint)
    assert read.network == "digits-niff"
    model = stored.restore(read, "digits-niff", execution="cached", size=16)
    assert {m.form for m in model.modules() if isinstance(m, NiffDepthwise)} == {"cached"}
    state = model.state_dict()
    assert state.keys() == read.state.keys()
    assert all(torch.equal(value, read.state[key]) for key, value in state.items())


def _averaged(state: dict[str, Tensor]) -> dict[str, Any]:
    """As torch's AveragedModel, of a network that ran on several cards, has it."""
    return {"n_averaged": torch.tensor(7), **{f"module.module.{key}": value for key, value in state.items()}}


def _trainer(state: dict[str, Tensor]) -> dict[str, Any]:
    """As Lightning saves it: the network in a child, beside a loss with a weight and an optimiser's numbers."""
    weights = {f"model.{key}": value for key, value in state.items()} | {"loss.weight": torch.ones(10)}
    moments = {0: {"step": torch.tensor(3.0), "exp_avg": torch.zeros(5)}}
    return {"epoch": 3, "state_dict": weights, "optimizer_states": [{"state": moments}], "loops": {"fit": {}}}


WRAPPED: dict[str, Any] = {
    "plain": lambda s: s,
    "net": lambda s: {"net": s, "acc": 0.9, "epoch": 3},
    "model_state_dict": lambda s: {"model_state_dict": s, "loss": torch.tensor(0.1)},
    "namespace": lambda s: {"model": s, "args": argparse.Namespace(lr=0.1, out="x"), "best": np.float64(0.5)},
    "numpy": lambda s: {"model": s, "best": np.float32(0.5), "count": np.int64(3), "done": np.bool_(True)},
    "arrays": lambda s: {"model": s, "history": np.zeros(3), "out": Path("x"), "when": datetime(2026, 1, 2)},
    "of numpy": lambda s: {key: value.numpy() for key, value in s.items()},
    "in a list": lambda s: [3, (s, {})],
    "nested": lambda s: {"checkpoint": {"weights": {"model_ema": s}}},
    "parallel": lambda s: {f"module.{key}": value for key, value in s.items()},
    "compiled": lambda s: {f"_orig_mod.{key}": value for key, value in s.items()},
    "both": lambda s: {"state_dict": {f"module._orig_mod.{key}": value for key, value in s.items()}},
    "a compiled part": lambda s: {key.replace("stage1.", "stage1._orig_mod."): v for key, v in s.items()},
    "averaged": _averaged,
    "trainer": _trainer,
    "versioned": lambda s: {**s, "_metadata": {"version": 1}},
    "uncounted": lambda s: {key: value for key, value in s.items() if "num_batches_tracked" not in key},
    "another head": lambda s: (
        {k: v for k, v in s.items() if "classifier" not in k} | {"classifier.1.weight": torch.ones(3, 48)}
    ),
}


@pytest.mark.parametrize("old", [False, True], ids=["", "as before 1.6"])
@pytest.mark.parametrize("how", WRAPPED)
def test_however_weights_are_saved_they_are_found(checkpoint: Path, tmp_path: Path, how: str, old: bool) -> None:
    state = dict(stored.read(checkpoint).state)
    path = tmp_path / "other.pt"
    torch.save(WRAPPED[how](state), path, _use_new_zipfile_serialization=not old)
    read = stored.read(path)
    assert read.network is None
    restored = stored.restore(read, "digits-niff", size=16).state_dict()
    for key, value in state.items():
        if "classifier" not in key and "num_batches_tracked" not in key:
            assert torch.equal(restored[key], value), key


def test_which_of_several_was_taken_is_said(checkpoint: Path, tmp_path: Path) -> None:
    state = dict(stored.read(checkpoint).state)
    torch.save({"model": state, "ema": {"module": state}}, tmp_path / "two.pt")
    assert stored.read(tmp_path / "two.pt").chosen == "'model', not 'ema.module'"
    assert stored.read(checkpoint).chosen == ""


def test_a_program_is_not_taken_for_weights(tmp_path: Path) -> None:
    torch.jit.trace(nn.Conv2d(1, 1, 1), torch.zeros(1, 1, 2, 2)).save(tmp_path / "program.pt")
    with pytest.raises(ValueError, match=r"program\.pt: holds a program and not weights alone"):
        stored.read(tmp_path / "program.pt")


def test_safetensors_are_read(checkpoint: Path, tmp_path: Path) -> None:
    library = pytest.importorskip("safetensors.torch")
    state, path = stored.read(checkpoint).state, tmp_path / "own.safetensors"
    library.save_file({key: value.contiguous() for key, value in state.items()}, path)
    assert stored.read(path).state.keys() == state.keys()
    assert stored.read(path.rename(tmp_path / "own.pt")).state.keys() == state.keys()
    path.write_bytes(b"\x08\0\0\0\0\0\0\0not json")
    with pytest.raises(ValueError, match=r"own\.safetensors: cannot be read"):
        stored.read(path)


def test_layers_are_recognised_by_their_names_in_any_network(tmp_path: Path) -> None:
    """In our layout, the published one and inside a wrapper; what says too little is left out."""
    torch.manual_seed(1)
    own = nn.Module()
    own.first, own.second = NiffDepthwise(6, mlp="big"), NiffSplit(6, 4)
    own.third, own.rest = NiffFull(4, 4), nn.Conv2d(3, 3, 3)
    state = {f"model.{key}": value for key, value in own.state_dict().items()}
    for part in ("real", "imag"):
        for index, (fan_in, fan_out) in enumerate(((2, 8), (8, 4), (4, 5)), start=1):
            state[f"model.old.mlp_{part}.layer_mpl{index}.weight"] = torch.randn(fan_out, fan_in, 1, 1)
            state[f"model.old.mlp_{part}.layer_mpl{index}.bias"] = torch.randn(fan_out)
    path = tmp_path / "own.pt"
    torch.save({"weights": state}, path)
    model = stored.bare(stored.read(path), "cached")
    layers = dict(niff_layers(model))
    assert {name: type(layer).__name__ for name, layer in layers.items()} == {
        "model.first": "NiffDepthwise",
        "model.second": "NiffSplit",
        "model.third": "NiffFull",
        "model.old": "NiffDepthwise",
    }
    assert model.guessed == ("model.first", "model.third", "model.old")
    for name, layer in (("first", own.first), ("second", own.second), ("third", own.third)):
        copy = layers[f"model.{name}"]
        assert isinstance(copy, FilteringLayer)
        assert torch.equal(copy.spatial_kernel(8, 8), layer.spatial_kernel(8, 8))
    torch.save({"a.weight": torch.ones(3, 3)}, path)
    with pytest.raises(ValueError, match=r"own\.pt: holds no NIFF layer with a filter"):
        stored.bare(stored.read(path), "rfft")
    torch.save(NiffFull(3, 4).state_dict(), path)
    with pytest.raises(ValueError, match="whose channels its names do not tell"):
        stored.bare(stored.read(path), "rfft")


@pytest.mark.parametrize("layer", [NiffSplit(6, 4), NiffFull(3, 3)])
def test_weights_that_are_no_layers_are_one_message_that_names_it(layer: nn.Module, tmp_path: Path) -> None:
    state = {f"block.{key}": value for key, value in layer.state_dict().items()}
    without = [{key: value for key, value in state.items() if key != gone} for gone in list(state)[2:]]
    for key, value in state.items():
        spoilt = [torch.tensor(1.0), torch.ones(3), value.long(), value[:0], value[None, None]]
        without += [state | {key: instead} for instead in spoilt]
    for weights in without:
        torch.save(weights, tmp_path / "own.pt")
        with pytest.raises(ValueError, match=r"own\.pt: 'block"):
            stored.bare(stored.read(tmp_path / "own.pt"), "rfft")


def test_published_weights_within_a_network_load_with_their_permutation(checkpoint: Path, tmp_path: Path) -> None:
    torch.manual_seed(5)
    state = dict(stored.read(checkpoint).state)
    name = "stage2.1.filter"
    ours = NiffDepthwise(48)
    theirs: dict[str, Tensor] = {}
    for part in ("real", "imag"):
        for index, (fan_in, fan_out) in enumerate(((2, 8), (8, 4), (4, 48)), start=1):
            theirs[f"mlp_{part}.layer_mpl{index}.weight"] = torch.randn(fan_out, fan_in, 1, 1)
            theirs[f"mlp_{part}.layer_mpl{index}.bias"] = torch.randn(fan_out)
    load_published(ours, theirs)
    state = {key: value for key, value in state.items() if not key.startswith(f"{name}.")}
    state |= {f"{name}.{key}": value for key, value in theirs.items()}
    path = tmp_path / "published.pt"
    torch.save(state, path)
    model = stored.restore(stored.read(path), "digits-niff", size=16)
    loaded = model.get_submodule(name)
    assert isinstance(loaded, NiffDepthwise)
    assert torch.equal(loaded.spatial_kernel(8, 8), ours.spatial_kernel(8, 8))
    # The original's planes are not in our order.
    assert not torch.equal(ours.generator.weight3[0, :, :, None, None], theirs["mlp_real.layer_mpl3.weight"])


def test_the_number_of_classes_is_read_off_the_classifier(tmp_path: Path) -> None:
    path = tmp_path / "seven.pt"
    torch.save(stored.build("mobilenet_v2-niff", size=32, classes=7).state_dict(), path)
    model = stored.restore(stored.read(path), "mobilenet_v2-niff", size=32)
    assert [m.out_features for m in model.modules() if isinstance(m, nn.Linear)] == [7]


def test_a_converted_head_and_one_of_another_name_are_no_hindrance(tmp_path: Path) -> None:
    path = tmp_path / "ten.pt"
    state = stored.build("squeezenet1_1-split", classes=10, size=64).state_dict()
    torch.save(state, path)
    model = stored.restore(stored.read(path), "squeezenet1_1-split", size=64)
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())
    state = stored.build("resnet18-split", classes=7, size=64).state_dict()
    torch.save({key.replace("fc.", "head."): value for key, value in state.items()}, path)
    model = stored.restore(stored.read(path), "resnet18-split", size=64)
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())
    body = {key: value for key, value in state.items() if not key.startswith("fc.")}
    torch.save(body | {"head.1.weight": torch.ones(3, 3)}, path)
    model = stored.restore(stored.read(path), "resnet18-split", size=64)
    assert all(torch.equal(model.state_dict()[key], value) for key, value in body.items())
    torch.save(body | {f"head.1.{key}": value for key, value in NiffDepthwise(4).state_dict().items()}, path)
    with pytest.raises(ValueError, match=r"it also holds 'head\.1\.generator\.weight1'"):
        stored.restore(stored.read(path), "resnet18-split", size=64)
    torch.save(state | {"head.weight": torch.ones(3)}, path)
    with pytest.raises(ValueError, match=r"it also holds 'head\.weight'"):
        stored.restore(stored.read(path), "resnet18-split", size=64)


@pytest.mark.parametrize(
    ("network", "change", "message"),
    [
        (
            "digits-twin",
            lambda s: s,
            "other architecture than digits-twin: it lacks 'stage1.0.filter.weight'",
        ),
        ("digits-niff", lambda s: s | {"extra": torch.ones(1)}, "it also holds 'extra'"),
        (
            "digits-niff",
            lambda s: {k: v for k, v in s.items() if k != "stem.0.weight"},
            "lacks 'stem.0.weight'",
        ),
        ("digits-niff", lambda s: s | {"stem.0.weight": torch.ones(24, 3, 3, 3)}, "'stem.0.weight' has shape"),
        ("digits-niff", lambda s: s | {"stage1.0.filter.generator.bias9": torch.ones(1)}, "also holds"),
        (
            "digits-niff",
            lambda s: {key: value.int() for key, value in s.items()},
            r"'stem.0.weight' is torch.int32 where torch.float32 is expected",
        ),
        ("digit-niff", lambda s: s, "no network named 'digit-niff'; did you mean 'digits-niff'"),
    ],
)
def test_another_architecture_is_refused(
    checkpoint: Path, tmp_path: Path, network: str, change: Any, message: str
) -> None:
    path = tmp_path / "changed.pt"
    torch.save(change(dict(stored.read(checkpoint).state)), path)
    with pytest.raises(ValueError, match=message):
        stored.restore(stored.read(path), network, size=16)


def test_shapes_are_compared_before_memory_is_taken_for_them(tmp_path: Path) -> None:
    """A classifier of 40 million rows: 80 MB in the file, and 200 GB as MobileNet-v2 would have it."""
    state = dict(stored.build("mobilenet_v2-niff", size=32, classes=7).state_dict())
    rows = 40_000_000
    state |= {
        "classifier.1.weight": torch.zeros(rows, 1, dtype=torch.int8),
        "classifier.1.bias": torch.zeros(rows, dtype=torch.int8),
    }
    model = stored.restore(stored.Checkpoint(tmp_path / "claims.pt", state, None), "mobilenet_v2-niff", size=32)
    assert model.get_parameter("classifier.1.weight").shape == (1000, 1280)


@pytest.mark.parametrize("base", ["regnet_y_400mf", "convnext_tiny", "densenet121"])
def test_a_network_of_any_make_is_restored(base: str, tmp_path: Path) -> None:
    """A RegNet computes its widths; of its convolutions only the 1×1 can be converted."""
    keep = ["*.f.b.0"] if base.startswith("regnet") else []
    name = f"{base}-full" if base != "convnext_tiny" else "convnext_tiny-niff"
    state = stored.build(name, size=32, classes=3, keep=keep).state_dict()
    model = stored.restore(stored.Checkpoint(tmp_path / "own.pt", state, None), name, size=32, keep=keep)
    assert model.state_dict().keys() == state.keys()
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())


class _Evil:
    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return (os.mkdir, (str(self.marker),))


def test_nothing_in_a_file_is_executed(tmp_path: Path) -> None:
    path, marker = tmp_path / "evil.pt", tmp_path / "marker"
    torch.save({"weight": _Evil(marker)}, path)
    with pytest.raises(
        ValueError, match=r"holds a \w+\.mkdir, which is code and not data; save the weights alone"
    ):
        stored.read(path)
    assert not marker.exists()
    path.write_bytes(pickle.dumps(_Evil(marker)))
    with pytest.raises(ValueError, match=r"not a checkpoint as torch\.save or safetensors write it"):
        stored.read(path)
    assert not marker.exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([torch.ones(2)], "holds no state dict"),
        ({}, "holds no state dict"),
        ({"a": "text"}, "holds no state dict"),
        ({"a": torch.tensor([1.0, float("nan")])}, "'a' holds NaN or infinite values"),
        ({"a": torch.tensor([float("inf")])}, "'a' holds NaN or infinite values"),
        pytest.param(
            {"a": torch.ones(3).to_sparse()},
            "'a' is not an ordinary, dense tensor",
            marks=pytest.mark.filterwarnings("ignore:Validating sparse tensor invariants"),
        ),
        ({"a": torch.ones(1).expand(10**7, 10**7)}, "'a' is not an ordinary, dense tensor"),
        ({"a": torch.ones(2, device="meta")}, "'a' is not an ordinary, dense tensor"),
    ],
)
def test_what_is_no_state_dict_is_refused(tmp_path: Path, content: Any, message: str) -> None:
    path = tmp_path / "odd.pt"
    torch.save(content, path)
    with pytest.raises(ValueError, match=message) as caught:
        stored.read(path)
    assert str(path) in str(caught.value)


def test_a_file_that_is_none_is_refused(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "absent.pt"):
        with pytest.raises(ValueError, match="is not a file"):
            stored.read(path)


def test_a_file_too_large_is_not_read(checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bomb = tmp_path / "bomb.pt"
    with zipfile.ZipFile(bomb, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", b"\0" * 10_000_000)
    assert bomb.stat().st_size < 20_000
    monkeypatch.setattr(stored, "LARGEST_FILE", 50_000)
    for path in (checkpoint, bomb):
        with pytest.raises(ValueError, match="checkpoints of up to 50,000 are read"):
            stored.read(path)


def _refused_by_name_or_read(path: Path) -> bool:
    """Whether it was read; anything but a ValueError that names the file fails the test."""
    message = None
    try:
        stored.restore(stored.read(path), "digits-niff", size=16)
    except ValueError as error:
        message = str(error)
    assert message is None or str(path) in message
    return message is None


_ANY_FILE = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@_ANY_FILE
@given(edits=st.lists(st.tuples(st.floats(0, 1), st.integers(0, 255)), min_size=1, max_size=4))
def test_a_damaged_description_is_read_or_refused(
    checkpoint: Path, tmp_path: Path, edits: list[tuple[float, int]]
) -> None:
    path = tmp_path / "damaged.pt"
    with zipfile.ZipFile(checkpoint) as before, zipfile.ZipFile(path, "w") as after:
        for entry in before.infolist():
            content = bytearray(before.read(entry))
            if entry.filename.endswith("data.pkl"):
                for place, value in edits:
                    content[int(place * (len(content) - 1))] = value
            after.writestr(entry.filename, bytes(content))
    _refused_by_name_or_read(path)


@_ANY_FILE
@given(share=st.floats(0, 1, exclude_max=True))
def test_a_torn_file_is_refused(checkpoint: Path, tmp_path: Path, share: float) -> None:
    path, content = tmp_path / "torn.pt", checkpoint.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    assert not _refused_by_name_or_read(path)


def test_a_nest_of_shared_lists_is_looked_through_once_and_the_weights_far_down_a_list_are_read(
    tmp_path: Path,
) -> None:
    path, nest = tmp_path / "nested.pt", [1.0] * 40
    for _ in range(8):
        nest = [nest] * 40  # 40^9 places
    weights = {"weight": torch.ones(2)}
    torch.save([nest, *range(20), {"model": weights}], path)
    read = stored.read(path)
    assert (read.state["weight"].tolist(), read.chosen) == ([1.0, 1.0], "")


def test_a_file_packed_anew_is_read(checkpoint: Path, tmp_path: Path) -> None:
    path = tmp_path / "packed.pt"
    with zipfile.ZipFile(checkpoint) as before, zipfile.ZipFile(path, "w") as after:
        for entry in before.infolist():
            after.writestr(entry.filename, before.read(entry))
    assert _refused_by_name_or_read(path)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("vit_b_16-full", "has no convolution that this rule replaces"),
        ("resnet18-ful", "did you mean 'resnet18-full'"),
        ("vgg11", "no network named 'vgg11'"),
    ],
)
def test_a_network_that_cannot_be_built_is_refused(name: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        stored.build(name)


def test_an_input_smaller_than_the_stride_is_refused() -> None:
    with pytest.raises(ValueError, match="smaller than the stride"):
        stored.build("resnet18-split", size=16)


def test_any_network_of_torchvision_is_converted() -> None:
    model = stored.build("squeezenet1_1-split", size=64)
    assert any(type(module).__name__ == "NiffSplit" for module in model.modules())
    assert {"digits-niff", "resnet18-full"} <= set(stored.names())
