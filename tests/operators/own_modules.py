"""Modules as somebody writes them: layers in the frequency domain, and all that can be wrong with a module."""

from __future__ import annotations

import sys

import torch
from torch import Tensor, nn
from torch.nn import functional as F

CONSTANT = 3


class FourierUnit(nn.Module):
    """As in fast Fourier convolution (Chi et al., NeurIPS 2020) and LaMa."""

    def __init__(self, channels: int, channels_out: int) -> None:
        super().__init__()
        self.mix = nn.Conv2d(2 * channels, 2 * channels_out, 1, bias=False)
        self.norm = nn.BatchNorm2d(2 * channels_out)

    def forward(self, x: Tensor) -> Tensor:
        spectrum = torch.fft.rfft2(x, norm="ortho")
        mixed = self.norm(self.mix(torch.cat((spectrum.real, spectrum.imag), 1))).relu()
        return torch.fft.irfft2(torch.complex(*mixed.chunk(2, 1)), s=x.shape[-2:], norm="ortho")


class GlobalFilter(nn.Module):
    """As in GFNet (Rao et al., NeurIPS 2021): complex weights, one for each frequency and channel."""

    def __init__(self, channels: int, height: int, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(channels, height, width // 2 + 1, dtype=torch.complex64))

    def forward(self, x: Tensor) -> Tensor:
        return torch.fft.irfft2(torch.fft.rfft2(x) * self.weight, s=x.shape[-2:])


class _Hyena(nn.Module):
    """One gated long convolution over the pixels in reading order, as in Hyena (Poli et al., ICML 2023)."""

    def __init__(self, channels: int, length: int) -> None:
        super().__init__()
        self.inner = nn.Conv1d(channels, 3 * channels, 1)
        self.filter = nn.Parameter(torch.randn(channels, length))

    def forward(self, x: Tensor) -> Tensor:
        value, one, two = self.inner(x.flatten(2)).chunk(3, 1)
        pixels = value.shape[-1]
        spectrum = torch.fft.rfft(value * one, n=2 * pixels) * torch.fft.rfft(self.filter, n=2 * pixels)
        return (torch.fft.irfft(spectrum, n=2 * pixels)[..., :pixels] * two).reshape(x.shape)


def hyena(channels: int, length: int) -> nn.Module:
    return _Hyena(channels, length)


def spectral(channels: int) -> nn.Module:
    """neuraloperator's, of 4 × 3 frequencies."""
    from neuralop.layers.spectral_convolution import SpectralConv

    return SpectralConv(channels, channels, (4, 4))


class Claimed(nn.Module):
    """A depthwise convolution, right unless it is told to be off by ``shift``, or in one ``image``."""

    def __init__(self, channels: int, kernel: int, shift: float = 0.0, image: int = -1) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(channels, 1, kernel, kernel))
        self.shift, self.image = shift, image

    def forward(self, x: Tensor) -> Tensor:
        y = F.conv2d(x, self.weight, padding="same", groups=x.shape[1]) * (1 + self.shift)
        if self.image >= 0:
            wrong = torch.arange(len(y), device=y.device) == self.image
            y = torch.where(wrong[:, None, None, None], y * 1.01, y)
        return y


def exact(module: nn.Module, x: Tensor) -> Tensor:
    """What ``Claimed`` should compute."""
    return F.conv2d(x, module.weight, padding="same", groups=x.shape[1])


class Normalised(nn.Module):
    """Statistics of the batch in training, stored ones in evaluation."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.inner = nn.Sequential(
            nn.Conv2d(channels, channels, 3, padding=1), nn.BatchNorm2d(channels), nn.GELU()
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x)


class Counting(nn.Module):
    """With buffers of integers and of truth values."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.register_buffer("order", torch.arange(channels - 1, -1, -1))
        self.register_buffer("mask", torch.arange(channels) % 2 == 0)

    def forward(self, x: Tensor) -> Tensor:
        return x[:, self.order] * self.mask[:, None, None]


class Random(nn.Module):
    """Drops what it likes in training."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.inner = nn.Sequential(nn.Conv2d(channels, channels, 1), nn.Dropout2d(0.5), nn.Dropout(0.1))

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x)


class Plain(nn.Dropout):
    """Dropout by another name."""


class Chancy(nn.Module):
    """Draws in every way of torch's."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        drops = nn.AlphaDropout(0.3), nn.FeatureAlphaDropout(0.3), Plain(0.3)
        self.inner = nn.Sequential(nn.Conv2d(channels, channels, 1), *drops, nn.RReLU())

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x)


class DropoutOfPowers(nn.Module):
    """Called as if it drew, which it does not: ``p`` is an exponent."""

    def __init__(self) -> None:
        super().__init__()
        self.p, self.inner = 3.0, nn.Dropout(1)

    def forward(self, x: Tensor) -> Tensor:
        return x.abs().pow(self.p) + self.inner(x)


class Encoder(nn.Module):
    """Attention among the pixels, as it comes: what it weighs is dropped in training."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.inner = nn.TransformerEncoderLayer(channels, 2, 16, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x.flatten(2).transpose(1, 2)).transpose(1, 2).reshape(x.shape)


class Recurrent(nn.Module):
    """Two layers along the rows, with dropout between them."""

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        self.inner = nn.GRU(width, width, num_layers=2, dropout=0.5, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x.flatten(0, 1))[0].reshape(x.shape)


class Noisy(nn.Module):
    """Adds noise that nobody can switch off."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.inner = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x) + torch.randn_like(x) if self.training else self.inner(x)


class Strided(nn.Module):
    """Gives a smaller image."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.inner = nn.Conv2d(channels, channels, 3, stride=2, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x)


class Tied(nn.Module):
    """One weight under two names."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.one = nn.Conv2d(channels, channels, 1)
        self.two = nn.Conv2d(channels, channels, 1)
        self.two.weight = self.one.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.two(self.one(x))


class Mutating(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            x.mul_(0.5)
        return x + 1


class Growing(nn.Module):
    calls = 0

    def forward(self, x: Tensor) -> Tensor:
        Growing.calls += 1
        return F.pad(x, (0, Growing.calls))


class NotANumber(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x / 0 - x / 0


class Pair(nn.Module):
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return x, x


class Complex(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.fft.fft2(x)


def no_module() -> str:
    return "no module"


class Raising(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        raise RuntimeError("out of ideas")  # Raising


class Half(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        raise NotImplementedError("this layer is not implemented for 'Float'")  # Half


class DependsOnData(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * 2 if float(x.sum()) > 0 else x * 3


class TwoInputs(nn.Module):
    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        return x + t


class Leaving(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        sys.exit(3)  # Leaving


class Interrupting(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        raise KeyboardInterrupt  # Interrupting


class Threads(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        torch.set_num_threads(torch.get_num_threads() + 1)
        return x


class Lazy(nn.Module):
    """Its weights have shapes from the first call on."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.inner = nn.LazyConv2d(channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x)


made = nn.Conv2d(4, 4, 1)


class Given(nn.Conv2d):
    """Takes its channels by position alone."""

    def __init__(self, channels: int, /) -> None:
        super().__init__(channels, channels, 1)


def Parametrized(channels: int) -> nn.Module:
    return nn.utils.parametrizations.weight_norm(nn.Conv2d(channels, channels, 3, padding=1))


def scripted(channels: int) -> nn.Module:
    return torch.jit.trace(nn.Conv2d(channels, channels, 3, padding=1), torch.zeros(1, channels, 8, 8))


def compiled(channels: int) -> nn.Module:
    return torch.compile(nn.Conv2d(channels, channels, 3, padding=1))


class FailsWhenMade(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        raise RuntimeError("no weights here")


class FailsWhenCalled(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(3, 6, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.convolution(x).nothing


def network(num_classes: int) -> nn.Module:
    """A small classifier with biases, and a 1×1 convolution on a pooled map."""
    pooled = (nn.AdaptiveAvgPool2d(1), nn.Conv2d(6, num_classes, 1), nn.Flatten())
    return nn.Sequential(nn.Conv2d(3, 6, 3, padding=1), nn.GELU(), nn.Conv2d(6, 6, 1), *pooled)


class Centred(nn.Module):
    """A network that takes away a mean that is no buffer, of images that are not dark."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.mean = torch.tensor([0.4, 0.5, 0.6]).view(1, 3, 1, 1)
        self.body = network(num_classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x - self.mean if x.abs().max().item() > 0.1 else x)


classifier = network(5)
