"""Lengths: what an FFT of one costs, which are fast, how prime others are, and how much of a kernel meets one."""

from __future__ import annotations

from math import isqrt, log2

FAST_PRIMES = (2, 3, 5, 7)
"""Radices that cuFFT, MKL and pocketfft all have dedicated code for (cuFFT's documentation, "Accuracy and
Performance")."""


def fft_flops(points: int, transforms: int = 1, *, real: bool = False) -> int:
    """Nominal FLOPs of ``transforms`` FFTs of ``points`` points: 5 N log2 N, half of it for real data.

    benchFFT's convention (M. Frigo and S. G. Johnson, "The Design and Implementation of FFTW3", Proc. IEEE
    93(2), 2005). ``points`` is the product of the transformed lengths. Nominal: lengths with a large prime
    factor really cost several times more.
    """
    return round((2.5 if real else 5.0) * points * log2(points)) * transforms if points > 1 else 0


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


def in_bounds_share(height: int, width: int, kernel: int) -> float:
    """Share of a zero-padded "same" convolution's multiply-adds that meet the image rather than the padding.

    ``kernel`` is odd. The nominal 2k² a pixel counts them all; at k = 31 only 27 %, 58 % and 77 % meet a square
    image of side 16, 32 and 64.
    """
    return _axis_share(height, kernel) * _axis_share(width, kernel)


def _axis_share(side: int, kernel: int) -> float:
    """One axis: pairs of pixel and tap at most ``kernel // 2`` and less than ``side`` apart, over all pairs."""
    reach = min(kernel // 2, side - 1)
    inside = side * (2 * reach + 1) - reach * (reach + 1)
    return inside / (side * kernel)
