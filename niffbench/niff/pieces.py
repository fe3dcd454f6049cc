"""How many images :mod:`niffbench.niff.factored` takes at once; readable without torch, for its cost."""

from __future__ import annotations

LARGEST = 2**24
"""Bytes of spectra times features that are made at once, unless a single image has more: about a cache's size."""


def images_at_once(channels: int, features: int, frequencies: int, real: int) -> int:
    """Images of one piece, at least one.

    Args:
        channels: spectra of one image.
        features: K, of either MLP's last hidden layer.
        frequencies: of the half plane.
        real: bytes of a real number.
    """
    return max(1, LARGEST // (2 * features * channels * frequencies * 2 * real))
