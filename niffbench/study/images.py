"""Images to look at a network with: the bundled digits, a folder of pictures, anybody's data set, or noise.

They are read a few at a time and never kept.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor
from torch.utils.data import Dataset, TensorDataset

from niffbench.errors import UsageError
from niffbench.operators.module import attribute_of, users_code
from niffbench.study import digits
from niffbench.study.filters import natural_noise
from niffbench.suite import nameless

BATCH = 32
"""Images at once: of their activations none is kept."""

CALIBRATION = 64
"""Images that errors of layers are measured on."""

DIGITS = "digits"
VERIFYING = 5
"""One training digit of a fold in so many is kept apart, to verify solutions on."""
_NOISE = 3 * 64
_MEAN, _DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class Images:
    """Some of a data set's items: ``(C, H, W)`` alone, or with the number of a class."""

    items: Dataset[Any]
    places: Sequence[int]
    labelled: bool

    def __len__(self) -> int:
        return len(self.places)

    def batches(self, order: Sequence[int] | None = None) -> Iterator[tuple[Tensor, Tensor | None]]:
        """Images ``(B, C, H, W)`` and, where they have any, labels ``(B,)``, :data:`BATCH` at once.

        Args:
            order: numbers from 0 of those that are wanted; None: all, one after the other.

        Raises:
            UsageError: for what is no image, or has another shape than the others.
        """
        places = self.places if order is None else [self.places[number] for number in order]
        for start in range(0, len(places), BATCH):
            items = [self.items[place] for place in places[start : start + BATCH]]
            images = [item[0] if self.labelled else item for item in items]
            if any(image.shape != images[0].shape for image in images):
                other = next(image for image in images if image.shape != images[0].shape)
                raise UsageError(
                    f"--data: its images differ in shape, {tuple(images[0].shape)} and {tuple(other.shape)}; "
                    "have them made alike, by a transform say"
                )
            labels = torch.tensor([int(item[1]) for item in items]) if self.labelled else None
            yield torch.stack(images).float(), labels


@dataclass(frozen=True)
class Splits:
    """Images apart: those that errors are measured on, those that solutions are tested on, and the judges.

    Attributes:
        training: what may be trained on; the first of them are those that errors are measured on.
        held_out: no choice is made by these.
        what: what they are, in words.
    """

    training: Images
    verification: Images
    held_out: Images
    what: str

    @property
    def calibration(self) -> Images:
        """Images of the training part that errors are measured on."""
        return Images(self.training.items, self.training.places[:CALIBRATION], self.training.labelled)

    @property
    def shape(self) -> tuple[int, int, int]:
        """``(C, H, W)`` of an image."""
        images, _ = next(self.training.batches())
        return images.shape[1], images.shape[2], images.shape[3]


def of_digits(data: digits.Digits, verification: tuple[Tensor, Tensor] | None = None) -> Splits:
    """The digits; half of the test part verifies and half judges, unless there are others that verify.

    Args:
        verification: images and labels that are in neither part of ``data``.
    """
    test = TensorDataset(data.test_images, data.test_labels)
    training = _all_of(data.train_images, data.train_labels)
    side = data.train_images.shape[-1]
    what = f"scikit-learn's handwritten digits at {side}×{side}"
    if verification is not None:
        return Splits(training, _all_of(*verification), _all_of(data.test_images, data.test_labels), what)
    every = range(len(data.test_labels))
    return Splits(training, Images(test, every[::2], True), Images(test, every[1::2], True), what)


def fold_of(side: int, number: int, folds: int) -> tuple[digits.Digits, tuple[Tensor, Tensor]]:
    """The digits of a fold, and images with labels that are neither trained on nor tested on."""
    data = digits.load(side, (number, folds))
    apart = list(range(0, len(data.train_labels), VERIFYING))
    rest = [place for place in range(len(data.train_labels)) if place % VERIFYING]
    verification = data.train_images[apart], data.train_labels[apart]
    training = replace(data, train_images=data.train_images[rest], train_labels=data.train_labels[rest])
    return training, verification


def _all_of(images: Tensor, labels: Tensor) -> Images:
    return Images(TensorDataset(images, labels), range(len(labels)), True)


def noise(channels: int, side: int, seed: int) -> Splits:
    """Images with the spectrum of photographs, for who has no data."""
    images = natural_noise(channels, side, side, batch=_NOISE, seed=seed)
    return _thirds(list(images), False, _NOISE, seed, f"noise with the spectrum of photographs, {side}×{side}")


def load(data: str, channels: int, side: int | None, most: int, seed: int) -> Splits:
    """``digits``, a folder with a folder of pictures for each class, or ``my_data.py:dataset``.

    Args:
        channels: of the images that the network takes.
        side: of the square images; None: 224 of pictures, as they come of a data set.
        most: how many images are taken, drawn by ``seed``.

    Raises:
        UsageError: for what is none of these, or cannot be read.
    """
    if data == DIGITS:
        if channels != 1:
            raise UsageError(f"--data digits: they have one channel, and the network takes {channels}")
        return of_digits(digits.load(side or digits.SIDE))
    if Path(data).is_dir():
        return _thirds(_pictures(Path(data), channels, side or 224), True, most, seed, Path(data).name)
    if lack := nameless(data):
        raise UsageError(f"--data '{data}' {lack}")
    if ":" not in data:
        raise UsageError(f"--data {data}: is no folder; give digits, a folder of images or my_data.py:dataset")
    with users_code(data):
        made = _items(data)
        count = len(made)
        if count == 0:
            raise UsageError(f"--data {data}: has no image")
        first = made[0]
    labelled = isinstance(first, tuple | list)
    image = first[0] if labelled else first
    if not isinstance(image, Tensor) or image.dim() != 3:
        kind = (
            f"a tensor of shape {tuple(image.shape)}" if isinstance(image, Tensor) else f"a {type(image).__name__}"
        )
        raise UsageError(
            f"--data {data}: item 0 is {kind}, and should be a tensor (C, H, W), alone or with a label"
        )
    if image.shape[0] != channels:
        raise UsageError(f"--data {data}: images have {image.shape[0]} channels, and the network takes {channels}")
    if side is not None and tuple(image.shape[1:]) != (side, side):
        shape = "×".join(map(str, image.shape[1:]))
        raise UsageError(f"--data {data}: images are {shape}, and the network's are {side}×{side}")
    return _thirds(made, labelled, most, seed, data)


def _items(data: str) -> Any:
    """What ``my_data.py:dataset`` names: a data set, or what returns one when it is called."""
    value = attribute_of(data, (str(Path.cwd()),))
    if isinstance(value, type) or not hasattr(value, "__getitem__"):
        value = value()
    if not (hasattr(value, "__getitem__") and hasattr(value, "__len__")):
        raise UsageError(f"--data {data}: is a {type(value).__name__}, and should have items and a length")
    return value


def _pictures(folder: Path, channels: int, side: int) -> Dataset[Any]:
    from torchvision import transforms
    from torchvision.datasets import ImageFolder

    steps: list[Any] = [transforms.Grayscale(channels)] if channels == 1 else []
    steps += [transforms.Resize(round(side * 256 / 224)), transforms.CenterCrop(side), transforms.ToTensor()]
    steps += [transforms.Normalize(_MEAN, _DEVIATION)] if channels == 3 else []
    try:
        return cast("Dataset[Any]", ImageFolder(str(folder), transforms.Compose(steps)))
    except (FileNotFoundError, RuntimeError) as error:
        raise UsageError(f"--data {folder}: should hold a folder of images for each class ({error})") from error


def _thirds(items: Any, labelled: bool, most: int, seed: int, what: str) -> Splits:
    count = min(len(items), most)
    if count < 6:
        raise UsageError(
            f"--data: {count} images are too few to choose by some and judge by others; give 6 or more"
        )
    order = torch.randperm(len(items), generator=torch.Generator().manual_seed(seed))[:count].tolist()
    third = count // 3
    parts = [order[: count - 2 * third], order[count - 2 * third : -third], order[-third:]]
    training, verification, held_out = (Images(items, part, labelled) for part in parts)
    return Splits(training, verification, held_out, f"{what}, {count:,} images")
