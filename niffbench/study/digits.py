"""A small NIFF network and its 3×3 twin, trained on scikit-learn's bundled handwritten digits.

The data are the 1,797 images of 8×8 pixels of "Optical Recognition of Handwritten Digits" (Alpaydin and Kaynak,
UCI, 1998) as ``sklearn.datasets.load_digits`` brings them along: real, and nothing is downloaded. The images are
enlarged, to 16×16 unless asked otherwise, so that filters have room to be larger or smaller than the image.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import pickle
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from niffbench import __version__
from niffbench.errors import UsageError
from niffbench.niff import native, tuning
from niffbench.niff.catalogue import one_of
from niffbench.niff.networks import Rule, convert, niff_layers

SIDE = 16
"""Height and width of the images that the networks see, unless another one is asked for."""

SIDES = range(8, 225)
"""Those that can be: from the data's own to the size of ImageNet's crops."""

CLASSES = 10
VARIANTS = ("niff", "twin")
"""The network with NIFF layers, and the same one with the depthwise 3×3 convolutions that these replaced."""

TEST_SHARE = 0.25


@dataclass(frozen=True)
class Digits:
    """Images ``(N, 1, side, side)`` between 0 and 1 and labels ``(N,)``; the test part is never trained on."""

    train_images: Tensor
    train_labels: Tensor
    test_images: Tensor
    test_labels: Tensor


@dataclass(frozen=True)
class Recipe:
    """How the networks are trained: AdamW under a one-cycle learning rate."""

    epochs: int = 10
    batch: int = 32
    learning_rate: float = 5e-3
    weight_decay: float = 0.05
    label_smoothing: float = 0.05
    seed: int = 0

    def __post_init__(self) -> None:
        if self.epochs < 1 or self.batch < 2:
            raise ValueError(f"training needs an epoch and batches of 2, got {self.epochs} and {self.batch}")


def recipe(epochs: int | None, seed: int) -> Recipe:
    """The usual one, for so many epochs if that is said."""
    return Recipe(seed=seed) if epochs is None else Recipe(epochs=epochs, seed=seed)


@dataclass(frozen=True)
class Trained:
    """A trained network: its accuracy on the test part (a share), each epoch's mean loss, wall time in seconds."""

    variant: str
    network: nn.Module
    accuracy: float
    losses: tuple[float, ...]
    seconds: float
    parameters: int


class _Block(nn.Module):
    """A depthwise convolution, then a 1×1 convolution, each with its batch norm, around a shortcut."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.filter = nn.Conv2d(channels, channels, 3, padding=1, groups=channels, bias=False)
        self.filter_norm = nn.BatchNorm2d(channels)
        self.mix = nn.Conv2d(channels, channels, 1, bias=False)
        self.mix_norm = nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        inner = torch.relu(self.filter_norm(self.filter(x)))
        return torch.relu(x + self.mix_norm(self.mix(inner)))


class DigitsNetwork(nn.Sequential):
    """``(B, 1, H, W)`` to ``(B, 10)``: a 3×3 stem, two blocks, a strided 3×3, two blocks at half the size."""

    def __init__(self, width: int = 24) -> None:
        super().__init__()
        self.stem = _convolution(1, width, 1)
        self.stage1 = nn.Sequential(_Block(width), _Block(width))
        self.down = _convolution(width, 2 * width, 2)
        self.stage2 = nn.Sequential(_Block(2 * width), _Block(2 * width))
        self.pool = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.classifier = nn.Linear(2 * width, CLASSES)


def _convolution(channels: int, width: int, stride: int) -> nn.Sequential:
    convolution = nn.Conv2d(channels, width, 3, stride=stride, padding=1, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(width), nn.ReLU())


def network(variant: str) -> nn.Module:
    """One of :data:`VARIANTS` with fresh weights from torch's generator.

    NIFF takes the place of the depthwise convolutions only; the 1×1 convolutions stay as they are, since NIFF's
    pointwise layer is a costlier equivalent of them.

    Raises:
        ValueError: for an unknown variant.
    """
    one_of(variant, VARIANTS, "digits network")
    return convert(DigitsNetwork(), Rule(pointwise=False)) if variant == "niff" else DigitsNetwork()


def load(side: int = SIDE, fold: tuple[int, int] | None = None) -> Digits:
    """The digits, split into three quarters to train on and one to test on, always the same way.

    Args:
        fold: the number of a fold from 0, and how many there are: the test part is then that fold of all digits.

    Raises:
        UsageError: if scikit-learn is not installed.
    """
    try:
        from sklearn.datasets import load_digits
        from sklearn.model_selection import StratifiedKFold, train_test_split
    except ImportError as error:
        raise UsageError(
            "training on digits needs scikit-learn, which is not installed: pip install 'niffbench[test]'"
        ) from error
    data = load_digits()
    images = torch.from_numpy(data.images).float()[:, None] / 16
    images = F.interpolate(images, size=(side, side), mode="bilinear", align_corners=False)
    labels = torch.from_numpy(data.target)
    if fold is None:
        parts = train_test_split(range(len(labels)), test_size=TEST_SHARE, random_state=0, stratify=data.target)
    else:
        folds = StratifiedKFold(fold[1], shuffle=True, random_state=0)
        parts = list(folds.split(data.target, data.target))[fold[0]]
    train, test = parts
    return Digits(images[train], labels[train], images[test], labels[test])


def train(
    variant: str,
    digits: Digits,
    recipe: Recipe = Recipe(),
    on_epoch: Callable[[int, float], None] | None = None,
    cache: Path | None = None,
) -> Trained:
    """Train one of :data:`VARIANTS`; the same seed gives the same network, however many cores there are.

    NIFF layers train by the C kernel where there is one, and leave as ``rfft``. The caller's random state and
    number of threads are left as they were.

    Args:
        on_epoch: told the number of epochs done and the last one's mean loss.
        cache: a folder where what was trained is kept, and taken from when the same is asked for again.

    Raises:
        ValueError: for an unknown variant.
    """
    started = time.perf_counter()
    with _reproducible(recipe.seed):
        model = network(variant)
        file = None if cache is None else cache / f"{_identity(model, digits, recipe)}.pt"
        if file is not None and (trained := _read(file, variant, model)) is not None:
            return trained
        with _executing(model, "rfft" if native.unavailable("cpu") else "native"):
            losses = tuple(_epochs(model, digits, recipe, on_epoch))
        reached = accuracy(model, digits)
    seconds = time.perf_counter() - started
    if file is not None:
        _write(file, {"accuracy": reached, "losses": losses, "seconds": seconds, "state": model.state_dict()})
    return Trained(variant, model, reached, losses, seconds, _parameters(model))


def accuracy(model: nn.Module, digits: Digits) -> float:
    """The share of the test images that ``model`` names rightly; leaves it in evaluation mode."""
    model.eval()
    with torch.no_grad():
        right = model(digits.test_images).argmax(1) == digits.test_labels
    return float(right.double().mean())


def _epochs(
    model: nn.Module, digits: Digits, recipe: Recipe, on_epoch: Callable[[int, float], None] | None
) -> Iterator[float]:
    images, labels = digits.train_images, digits.train_labels
    batches = max(len(labels) // recipe.batch, 1)  # The rest, too few for batch norm, waits for another epoch.
    optimiser = torch.optim.AdamW(
        model.parameters(), lr=recipe.learning_rate, weight_decay=recipe.weight_decay, foreach=False
    )
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimiser, recipe.learning_rate, total_steps=recipe.epochs * batches
    )
    model.train()
    for epoch in range(1, recipe.epochs + 1):
        total = 0.0
        order = torch.randperm(len(labels))
        for batch in range(batches):
            chosen = order[batch * recipe.batch : (batch + 1) * recipe.batch]
            logits = model(images[chosen])
            loss = F.cross_entropy(logits, labels[chosen], label_smoothing=recipe.label_smoothing)
            optimiser.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimiser.step()
            schedule.step()
            total += float(loss.detach())
        if on_epoch is not None:
            on_epoch(epoch, total / batches)
        yield total / batches


@contextlib.contextmanager
def _reproducible(seed: int) -> Iterator[None]:
    """One thread, whose sums have one order, and torch's CPU generator at ``seed``; both restored afterwards."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            yield
    finally:
        torch.set_num_threads(threads)


@contextlib.contextmanager
def _executing(model: nn.Module, form: str) -> Iterator[None]:
    """Within, all NIFF layers execute as ``form``; then as before."""
    forms = {layer: layer.form for _, layer in niff_layers(model)}
    for layer in forms:
        layer.form = form
    try:
        yield
    finally:
        for layer, before in forms.items():
            layer.form = before


def _identity(model: nn.Module, digits: Digits, recipe: Recipe) -> str:
    """What a trained network depends on, in one word."""
    about = hashlib.sha256(repr((model, recipe, torch.__version__, __version__)).encode())
    for part in (digits.train_images, digits.train_labels, digits.test_images, digits.test_labels):
        about.update(part.contiguous().numpy().data)
    return f"digits-{about.hexdigest()[:32]}"


def _read(file: Path, variant: str, model: nn.Module) -> Trained | None:
    """What an earlier training left in ``file``, with its weights in ``model``; None of what cannot be read."""
    try:
        content = torch.load(file, weights_only=True)
        model.load_state_dict(content["state"])
        losses = tuple(map(float, content["losses"]))
        figures = float(content["accuracy"]), losses, float(content["seconds"])
    except (OSError, RuntimeError, ValueError, KeyError, TypeError, EOFError, pickle.UnpicklingError):
        return None
    return Trained(variant, model.eval(), *figures, _parameters(model))


def _write(file: Path, content: dict[str, object]) -> None:
    saved = io.BytesIO()
    torch.save(content, saved)
    with contextlib.suppress(OSError):  # Without it the next one trains again.
        tuning.write_whole(file, saved.getvalue())


def _parameters(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())
