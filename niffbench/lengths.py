"""Transform lengths: which are fast, and how prime the others are."""

from __future__ import annotations

from math import isqrt

FAST_PRIMES = (2, 3, 5, 7)
"""Radices that cuFFT, MKL and pocketfft all have dedicated code for (cuFFT's documentation, "Accuracy and
Performance")."""


def fast_length(at_least: int) -> int:
    """The smallest length of at least ``at_least`` without a prime factor above 7."""
    length = max(at_least, 1)
    while largest_prime_factor(length) > FAST_PRIMES[-1]:
        length += 1
    return length


def largest_prime_factor(number: int) -> int:
    """The largest prime that divides ``number``; 1 for 1.

    Raises:
        ValueError: below 1.
    """
    if number < 1:
        raise ValueError(f"only positive integers have prime factors, not {number}")
    largest, rest = 1, number
    for candidate in range(2, isqrt(number) + 1):
        while rest % candidate == 0:
            largest, rest = candidate, rest // candidate
    return max(largest, rest)
