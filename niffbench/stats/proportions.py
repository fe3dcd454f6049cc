"""Shares of images that a network names rightly, and how much two networks differ on the same images."""

from __future__ import annotations

from math import sqrt

import numpy as np
from scipy.special import chdtri, ndtr, ndtri

from niffbench.stats.contrasts import FloatArray
from niffbench.stats.intervals import Interval

NO_IMAGE = "no image"
NEAR = 0.25
"""Of the median margin: images within about so much of the decision say how many cross it."""


def share(right: int, images: int, *, confidence: float = 0.95) -> Interval:
    """``right / images`` with its score interval (E. B. Wilson, J. Am. Stat. Assoc. 22, 1927)."""
    if not images:
        return Interval(None, None, None, confidence, 0, "none", NO_IMAGE)
    z = float(ndtri((1 + confidence) / 2))
    p, n = right / images, images
    centre = (p + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z / (1 + z**2 / n) * sqrt(p * (1 - p) / n + z**2 / (4 * n**2))
    return Interval(p, min(centre - half, p), max(centre + half, p), confidence, n, "score")


def difference(lost: int, gained: int, images: int, *, confidence: float = 0.95) -> Interval:
    """The share that one network loses against another on the same images; negative where it gains.

    Wald's interval of paired proportions with half an observation added to each of the four cells (A. Agresti and
    Y. Min, Statistics in Medicine 24, 2005), stretched where needed to hold the estimate.

    Args:
        lost: images that only the other one names rightly.
        gained: images that only this one does.
    """
    if not images:
        return Interval(None, None, None, confidence, 0, "none", NO_IMAGE)
    z = float(ndtri((1 + confidence) / 2))
    estimate, n = (lost - gained) / images, images + 2
    centre = (lost - gained) / n
    half = z * sqrt(max(lost + gained + 1 - (lost - gained) ** 2 / n, 0.0)) / n
    return Interval(
        estimate, min(centre - half, estimate), max(centre + half, estimate), confidence, images, "paired Wald"
    )


def expected_loss(before: FloatArray, after: FloatArray, *, confidence: float = 0.99) -> Interval:
    """The share of images that are named rightly before and not after, from how their margins move.

    A margin is the score of an image's own class above that of the best other one: it is named rightly where that
    is positive. Of a few hundred images hardly one crosses zero where one in a thousand does, so that none may say
    nothing; but several come near it. Each counts by the share of thresholds around zero, normal with a
    deviation of :data:`NEAR` of the median margin, that its margin falls below: on average that is what the images
    at zero lose, if margins near it move alike. What rises makes up for nothing.

    The upper end is one-sided: that of a weighted sum of Poisson counts (M. P. Fay and E. J. Feuer, Statistics in
    Medicine 16, 1997), with the largest weight that was seen. Simulated (``tests/stats/test_proportions.py``), of
    networks that lose 0.2 % of the images no more than one in twenty is said to lose less, by 240 or 600 images.
    """
    if not before.size:
        return Interval(None, None, None, confidence, 0, "none", NO_IMAGE)
    width = NEAR * float(np.median(np.abs(before))) or 1.0
    fallen = np.maximum(ndtr(before / width) - ndtr(after / width), 0.0) / before.size
    estimate, largest = float(fallen.sum()), float(fallen.max())
    total, square = estimate + largest, float(np.square(fallen).sum()) + largest**2
    high = square / (2 * total) * float(chdtri(2 * total**2 / square, 1 - confidence)) if square else 0.0
    return Interval(estimate, 0.0, max(high, estimate), confidence, before.size, "weighted Poisson")
