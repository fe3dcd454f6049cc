"""Training on digits: real data split once, the same network every time, nothing left behind."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from niffbench.errors import UsageError
from niffbench.niff import NiffDepthwise
from niffbench.study import digits


@pytest.fixture(scope="module")
def data() -> digits.Digits:
    return digits.load()


def test_the_data_are_the_bundled_digits_and_test_images_are_not_trained_on(data: digits.Digits) -> None:
    assert data.train_images.shape == (1347, 1, 16, 16)
    assert data.test_images.shape == (450, 1, 16, 16)
    assert data.train_images.min() >= 0
    assert data.train_images.max() <= 1
    counts = torch.bincount(data.test_labels, minlength=10)
    assert counts.min() >= 43  # stratified: a tenth each, within the data's own imbalance
    seen = {image.numpy().tobytes() for image in data.train_images}
    assert not any(image.numpy().tobytes() in seen for image in data.test_images)
    again = digits.load()
    assert torch.equal(again.test_images, data.test_images)
    assert torch.equal(again.train_labels, data.train_labels)


def test_the_twin_differs_in_its_filters_alone() -> None:
    niff, twin = digits.network("niff"), digits.network("twin")
    ours = {name: type(m) for name, m in niff.named_modules() if not name.endswith("generator")}
    theirs = {name: type(m) for name, m in twin.named_modules()}
    assert ours.keys() == theirs.keys()
    changed = {name for name in ours if ours[name] is not theirs[name]}
    assert changed == {f"stage{stage}.{block}.filter" for stage in (1, 2) for block in (0, 1)}
    assert {ours[name] for name in changed} == {NiffDepthwise}
    for name in changed:
        conv = twin.get_submodule(name)
        assert isinstance(conv, nn.Conv2d)
        assert (conv.kernel_size, conv.groups) == ((3, 3), conv.in_channels)


@pytest.mark.parametrize("variant", digits.VARIANTS)
def test_a_seed_gives_one_network_whatever_the_threads_and_leaves_no_trace(
    data: digits.Digits, variant: str
) -> None:
    few = digits.Digits(data.train_images[:130], data.train_labels[:130], data.test_images, data.test_labels)
    recipe, threads = digits.Recipe(epochs=1, seed=4), torch.get_num_threads()
    output: list[tuple[int, float]] = []
    try:
        torch.set_num_threads(2)
        torch.manual_seed(0)
        before = torch.get_rng_state()
        first = digits.train(variant, few, recipe, lambda epoch, loss: output.append((epoch, loss)))
        assert torch.equal(torch.get_rng_state(), before)
        assert torch.get_num_threads() == 2
        torch.set_num_threads(1)
        torch.manual_seed(1)
        second = digits.train(variant, few, recipe)
    finally:
        torch.set_num_threads(threads)
    assert first.losses == second.losses
    assert first.accuracy == second.accuracy
    for a, b in zip(first.network.state_dict().values(), second.network.state_dict().values(), strict=True):
        assert torch.equal(a, b)
    assert output == [(1, first.losses[0])]
    other = digits.train(variant, few, digits.Recipe(epochs=1, seed=5))
    assert other.losses != first.losses


def test_what_was_trained_is_kept_for_who_asks_for_the_same_again(data: digits.Digits, tmp_path: Path) -> None:
    few = digits.Digits(data.train_images[:64], data.train_labels[:64], data.test_images, data.test_labels)
    recipe, epochs = digits.Recipe(epochs=1, batch=32), list[int]()

    def trained(recipe: digits.Recipe) -> digits.Trained:
        return digits.train("niff", few, recipe, lambda epoch, _: epochs.append(epoch), tmp_path / "cache")

    first, again = trained(recipe), trained(recipe)
    assert epochs == [1]
    assert (again.accuracy, again.losses, again.seconds) == (first.accuracy, first.losses, first.seconds)
    assert digits.accuracy(again.network, few) == first.accuracy
    trained(digits.Recipe(epochs=1, batch=32, seed=1))
    assert epochs == [1, 1]
    for file in (tmp_path / "cache").iterdir():
        file.write_bytes(file.read_bytes()[:100])  # cut off
    assert trained(recipe).losses == first.losses
    assert epochs == [1, 1, 1]


def test_training_learns(data: digits.Digits) -> None:
    trained = digits.train("twin", data, digits.Recipe(epochs=3))
    assert trained.losses[-1] < trained.losses[0] / 2
    assert trained.accuracy > 0.8
    assert trained.accuracy == digits.accuracy(trained.network, data)
    assert trained.parameters == sum(p.numel() for p in trained.network.parameters())


def test_without_scikit_learn_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(UsageError, match="needs scikit-learn"):
        digits.load()


def test_nonsense_is_refused(data: digits.Digits) -> None:
    with pytest.raises(ValueError, match="did you mean 'niff'"):
        digits.train("nif", data)
    with pytest.raises(ValueError, match="an epoch"):
        digits.Recipe(epochs=0)
