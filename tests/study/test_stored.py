"""Networks from files: weights alone, of the right architecture, in our layout or the published one."""

from __future__ import annotations

import os
import pickle
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from niffbench.niff import NiffDepthwise, load_published
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


@pytest.mark.parametrize("wrap", [lambda s: s, lambda s: {"model": s, "epoch": 3}, lambda s: {"state_dict": s}])
@pytest.mark.parametrize("prefix", ["", "module."])
def test_common_ways_of_saving_are_understood(checkpoint: Path, tmp_path: Path, wrap: Any, prefix: str) -> None:
    state = stored.read(checkpoint).state
    path = tmp_path / "other.pt"
    torch.save(wrap({prefix + key: value for key, value in state.items()}), path)
    read = stored.read(path)
    assert read.network is None
    assert read.state.keys() == state.keys()
    stored.restore(read, "digits-niff", size=16)


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
    torch.save(stored.build("mobilenet_v2-niff", classes=7).state_dict(), path)
    model = stored.restore(stored.read(path), "mobilenet_v2-niff")
    assert [m.out_features for m in model.modules() if isinstance(m, nn.Linear)] == [7]


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
            lambda s: {k: v for k, v in s.items() if "classifier" not in k},
            "lacks 'classifier.weight'",
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
    found = stored.Checkpoint(tmp_path / "claims.pt", state, None)
    with pytest.raises(ValueError, match=r"claims.pt: is of another.*\(40000000, 1\) where \(40000000, 1280\)"):
        stored.restore(found, "mobilenet_v2-niff", size=32)


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
    with pytest.raises(ValueError, match="cannot be read as weights alone"):
        stored.read(path)
    assert not marker.exists()
    path.write_bytes(pickle.dumps(_Evil(marker)))
    with pytest.raises(ValueError, match=r"not a checkpoint as torch\.save writes it"):
        stored.read(path)
    assert not marker.exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([torch.ones(2)], "holds no state dict"),
        ({}, "holds no state dict"),
        ({"a": "text"}, "'a' is no tensor"),
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


_ANY_FILE = settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


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
