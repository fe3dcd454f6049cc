"""torchvision's architectures as lists of what costs something, written down independently of torchvision.

From the papers and torchvision's documentation: ResNet (He et al. 2016, stride in the 3×3), DenseNet (Huang et al.
2017), MobileNetV2 (Sandler et al. 2018), ConvNeXt (Liu et al. 2022). Reading a network's cost needs no torch.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from niffbench.cost.closed import Parts, added, product

Size = tuple[int, int]


@dataclass(frozen=True)
class Convolution:
    """A convolution of ``into`` to ``out`` channels; ``given`` and ``made`` are the sizes of input and output."""

    into: int
    out: int
    kernel: Size
    stride: int
    groups: int
    bias: bool
    given: Size
    made: Size

    @property
    def parameters(self) -> int:
        return self.out * (self._taps + self.bias)

    def parts(self, batch: int) -> Parts:
        return {"convolution": product(2 * self._taps * self.out * batch * self.made[0] * self.made[1])}

    @property
    def _taps(self) -> int:
        """Of each channel that goes out."""
        return self.kernel[0] * self.kernel[1] * self.into // self.groups


@dataclass(frozen=True)
class Linear:
    """A linear layer with bias on each of ``size`` pixels, or on the pooled features where that is ``(1, 1)``.

    Attributes:
        replaceable: it is one of ConvNeXt's pointwise layers and not a classifier.
    """

    into: int
    out: int
    size: Size
    replaceable: bool

    @property
    def parameters(self) -> int:
        return self.out * (self.into + 1)

    def parts(self, batch: int) -> Parts:
        """Backward, the bias's gradient is summed over the pixels."""
        pixels = batch * self.size[0] * self.size[1]
        bias = pixels * self.out if pixels > 1 else 0
        return {"mixing": added(product(2 * self.into * self.out * pixels), (0, bias))}


@dataclass(frozen=True)
class Norm:
    """A normalisation with scale and shift, and the activation after it if there is one: they cost no FLOPs.

    Attributes:
        folds: in inference it can go into the convolution before it, whose bias is left of it.
    """

    channels: int
    folds: bool = False

    @property
    def parameters(self) -> int:
        return 2 * self.channels

    def parts(self, batch: int) -> Parts:
        return {}


@dataclass(frozen=True)
class Scale:
    """A learned factor for each channel, and the sum with what skipped it."""

    channels: int
    size: Size

    @property
    def parameters(self) -> int:
        return self.channels

    def parts(self, batch: int) -> Parts:
        """Backward, the factors' gradients are summed over the pixels."""
        pixels = batch * self.size[0] * self.size[1]
        numbers = pixels * self.channels
        return {"product": (numbers, 2 * numbers + (numbers if pixels > 1 else 0))}


Site = Convolution | Linear | Norm | Scale
"""Each with its learnable ``parameters`` and the FLOPs of its ``parts`` on so many images."""

_RESNETS = {
    "resnet18": ((2, 2, 2, 2), False),
    "resnet34": ((3, 4, 6, 3), False),
    "resnet50": ((3, 4, 6, 3), True),
    "resnet101": ((3, 4, 23, 3), True),
    "resnet152": ((3, 8, 36, 3), True),
}
_DENSENETS = {"densenet121": (6, 12, 24, 16), "densenet169": (6, 12, 32, 32), "densenet201": (6, 12, 48, 32)}
_CONVNEXTS = {
    "convnext_tiny": ((96, 192, 384, 768), (3, 3, 9, 3)),
    "convnext_small": ((96, 192, 384, 768), (3, 3, 27, 3)),
    "convnext_base": ((128, 256, 512, 1024), (3, 3, 27, 3)),
    "convnext_large": ((192, 384, 768, 1536), (3, 3, 27, 3)),
}
_INVERTED = (
    (1, 16, 1, 1),
    (6, 24, 2, 2),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
)

STRIDE = 32
"""How many times smaller than its input every network's smallest feature map is."""


def sites(base: str, height: int, width: int, classes: int) -> tuple[Site, ...]:
    """What costs something in the network ``base`` on an input of ``height`` × ``width``, in order."""
    size = (height, width)
    if base in _RESNETS:
        return tuple(_resnet(*_RESNETS[base], size, classes))
    if base in _DENSENETS:
        return tuple(_densenet(_DENSENETS[base], size, classes))
    if base in _CONVNEXTS:
        return tuple(_convnext(*_CONVNEXTS[base], size, classes))
    return tuple(_mobilenet(size, classes))


def with_kernel(site: Site, kernel: int | str) -> Site:
    """The baseline's version of a replaced convolution: another kernel size, or one that covers the map."""
    if not isinstance(site, Convolution) or site.kernel == (1, 1):
        return site
    if isinstance(kernel, int):
        return replace(site, kernel=(kernel, kernel))
    return replace(site, kernel=(site.given[0] // 2 * 2 + 1, site.given[1] // 2 * 2 + 1))


def _halved(size: Size) -> Size:
    """A convolution or maximum of stride 2, padded."""
    return (size[0] + 1) // 2, (size[1] + 1) // 2


def _convolve(
    into: int, out: int, side: int, size: Size, *, stride: int = 1, groups: int = 1, bias: bool = False
) -> Convolution:
    made = size if stride == 1 else _halved(size)
    return Convolution(into, out, (side, side), stride, groups, bias, size, made)


def _resnet(depths: tuple[int, ...], bottleneck: bool, size: Size, classes: int) -> Iterator[Site]:
    stem = _convolve(3, 64, 7, size, stride=2)
    yield from (stem, Norm(64, folds=True))
    size, channels, wider = _halved(stem.made), 64, 4 if bottleneck else 1
    for stage, depth in enumerate(depths):
        inner = 64 * 2**stage
        for block in range(depth):
            stride = 2 if block == 0 and stage > 0 else 1
            if bottleneck:
                chain = [_convolve(channels, inner, 1, size), _convolve(inner, inner, 3, size, stride=stride)]
                chain.append(_convolve(inner, inner * wider, 1, chain[-1].made))
            else:
                chain = [_convolve(channels, inner, 3, size, stride=stride)]
                chain.append(_convolve(inner, inner, 3, chain[-1].made))
            for convolution in chain:
                yield from (convolution, Norm(convolution.out, folds=True))
            if stride != 1 or channels != inner * wider:
                skip = _convolve(channels, inner * wider, 1, size, stride=stride)
                yield from (skip, Norm(skip.out, folds=True))
            size, channels = chain[-1].made, inner * wider
    yield Linear(channels, classes, (1, 1), False)


def _densenet(depths: tuple[int, ...], size: Size, classes: int) -> Iterator[Site]:
    growth, narrow = 32, 128
    stem = _convolve(3, 64, 7, size, stride=2)
    yield from (stem, Norm(64, folds=True))
    size, channels = _halved(stem.made), 64
    for stage, depth in enumerate(depths):
        for _ in range(depth):
            yield from (Norm(channels), _convolve(channels, narrow, 1, size))
            yield from (Norm(narrow, folds=True), _convolve(narrow, growth, 3, size))
            channels += growth
        yield Norm(channels)
        if stage < len(depths) - 1:
            yield _convolve(channels, channels // 2, 1, size)
            size, channels = (size[0] // 2, size[1] // 2), channels // 2
    yield Linear(channels, classes, (1, 1), False)


def _mobilenet(size: Size, classes: int) -> Iterator[Site]:
    stem = _convolve(3, 32, 3, size, stride=2)
    yield from (stem, Norm(32, folds=True))
    size, channels = stem.made, 32
    for expansion, out, repeats, first in _INVERTED:
        for repeat in range(repeats):
            wide = channels * expansion
            if expansion > 1:
                yield from (_convolve(channels, wide, 1, size), Norm(wide, folds=True))
            middle = _convolve(wide, wide, 3, size, stride=first if repeat == 0 else 1, groups=wide)
            yield from (middle, Norm(wide, folds=True))
            size = middle.made
            yield from (_convolve(wide, out, 1, size), Norm(out, folds=True))
            channels = out
    yield from (_convolve(channels, 1280, 1, size), Norm(1280, folds=True), Linear(1280, classes, (1, 1), False))


def _convnext(widths: tuple[int, ...], depths: tuple[int, ...], size: Size, classes: int) -> Iterator[Site]:
    channels = 3
    for stage, (width, depth) in enumerate(zip(widths, depths, strict=True)):
        side = 4 if stage == 0 else 2
        if stage > 0:
            yield Norm(channels)
        made = (size[0] // side, size[1] // side)
        yield Convolution(channels, width, (side, side), side, 1, True, size, made)
        if stage == 0:
            yield Norm(width)
        size, channels = made, width
        for _ in range(depth):
            yield _convolve(width, width, 7, size, groups=width, bias=True)
            yield Norm(width)
            yield from (Linear(width, 4 * width, size, True), Linear(4 * width, width, size, True))
            yield Scale(width, size)
    yield from (Norm(channels), Linear(channels, classes, (1, 1), False))
