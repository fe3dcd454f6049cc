"""Shares of images that a network names rightly, and how much two networks differ on the same images."""

from __future__ import annotations

from math import sqrt

from scipy.special import ndtri

from niffbench.stats.intervals import Interval

NO_IMAGE = "no image"


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
