"""How ``convolve.c`` transforms an axis, pass by pass, and the real operations it executes; without a compiler.

Nominal FLOPs are those of lengths that are powers of two. Additions and multiplications as the code has them are
more where a length has odd factors, O(r²) for a radix r, and fewer where it has few; of lanes without a channel
none are counted.
"""

from __future__ import annotations

from niffbench.lengths import FAST_PRIMES, fast_length, largest_prime_factor

_DIRECT = 45
"""A prime factor's sums over all pairs take less time than two transforms for a convolution of more points than
its square divided by this; measured on a CPU with AVX2."""

_COMPLEX_PRODUCT = 6
_EVEN = {2: 4, 4: 16, 8: 56}
"""Operations of a transform of so many points."""

_UNROLLED = {28: (4, 7), 56: (8, 7)}
"""Lengths whose factors are coprime, and which are written out: nothing is turned between the two."""


def radices(length: int) -> list[int]:
    """Those of the passes, in their order: ``make_plan``."""
    passes: list[int] = []
    rest, twos = length, (length & -length).bit_length() - 1
    for odd in (7, 5, 3):  # a 2 that no 8 takes goes with an odd factor
        if twos % 3 == 1 and rest % odd == 0:
            passes.append(2 * odd)
            rest //= 2 * odd
            twos -= 1
    while rest % 2 == 0:
        passes.append(8 if rest % 8 == 0 and (rest % 16 or rest % 32 == 0) else 4 if rest % 4 == 0 else 2)
        rest //= passes[-1]
    for odd in range(3, rest + 1, 2):
        while rest % odd == 0:
            passes.append(odd)
            rest //= odd
    return passes


def cyclic_length(prime: int) -> int:
    """Of the convolution by which so many points are transformed; 0 where sums over all pairs take less time.

    It is one less, or enough to pad that to where all passes are short.
    """
    smooth = largest_prime_factor(prime - 1) <= FAST_PRIMES[-1] if prime > 1 else False
    size = prime - 1 if smooth else fast_length(2 * prime - 3)
    return size if prime**2 > _DIRECT * size else 0


def transform(length: int, *, by_convolution: bool = True) -> int:
    """Operations of one complex transform: ``fft``.

    Args:
        by_convolution: a large prime factor is transformed as a cyclic convolution.
    """
    if length in _UNROLLED:
        return sum(length // radix * _short(radix) for radix in _UNROLLED[length])
    largest = largest_prime_factor(length)
    size = cyclic_length(largest) if by_convolution else 0
    passes, total = radices(length), 0
    for place, radix in enumerate(passes):
        turns = _COMPLEX_PRODUCT * (radix - 1) * (place < len(passes) - 1)
        if size and radix == largest:
            each = 2 * transform(size, by_convolution=False) + _COMPLEX_PRODUCT * size + 4 + turns
        elif radix > FAST_PRIMES[-1] and radix % 2:
            each = _odd(radix) + turns
        else:
            each = _short(radix) + turns
        total += length // radix * each
    return total


def _odd(radix: int) -> int:
    """Sums over all pairs, of which those of opposite terms are halved."""
    half = radix // 2
    return 8 * half**2 + 10 * half


def _short(radix: int) -> int:
    if radix % 2:
        return _odd(radix)
    return _EVEN[radix] if radix in _EVEN else radix // 2 * _EVEN[2] + 2 * _odd(radix // 2)


def real_transforms(height: int, width: int) -> tuple[int, int]:
    """Operations of a transform of a real image to its half plane, and of one back."""
    columns, pairs = width // 2 + 1, -(-height // 2)
    both = pairs * transform(width) + columns * transform(height)
    mirrored = columns - 1 - (width % 2 == 0)
    return both + 2 * height * columns, both + 4 * pairs * mirrored
