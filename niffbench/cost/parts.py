"""Parts of steps that several operators share: transforms, spectral products, circular padding, casts.

Each function returns the work of one thing, or a pair: forward and backward. Bytes follow what torch executes,
with the conventions of :mod:`niffbench.cost.closed`.
"""

from __future__ import annotations

from dataclasses import dataclass

from niffbench.case import Problem
from niffbench.cost.closed import NOTHING, Work, bilinear, fft_flops

FLOAT32 = 4


def compute_bytes(problem: Problem) -> int:
    """Bytes of a real number where half precision is computed in float32, as every FFT here is.

    No CPU library has half-precision FFTs, and cuFFT has them for powers of two only.
    """
    return max(problem.element_bytes, FLOAT32)


def casts(problem: Problem, parameters: int) -> tuple[Work, Work]:
    """Half-precision input and parameters cast up, the result cast back; and the gradients the other way."""
    if problem.element_bytes >= FLOAT32:
        return NOTHING, NOTHING
    pixels = problem.batch * problem.height * problem.width
    numbers = pixels * (problem.channels + problem.channels_out) + parameters
    both = Work(0, numbers * (problem.element_bytes + FLOAT32))
    return both, both


def circular_padding(
    planes: int, height: int, width: int, rows: int, columns: int, real: int
) -> tuple[Work, Work]:
    """``F.pad(mode="circular")`` of ``planes`` images by ``rows`` and ``columns`` on each side.

    Forward copies the image, then each margin from the other side. Backward, autograd takes the gradient back
    through these copies one by one, each time copying the padded gradient, spreading the margin's part over
    another padded gradient full of zeros, and adding that.
    """
    image, padded = height * width, (height + 2 * rows) * (width + 2 * columns)
    margins = [columns * (height + 2 * rows)] * (2 if columns else 0)
    margins += [rows * (width + 2 * columns)] * (2 if rows else 0)
    if not margins:
        return NOTHING, NOTHING
    forward = 2 * (image + sum(margins))
    backward = 6 * padded * len(margins) + 6 * sum(margins) + 2 * padded + 6 * image
    return Work(0, planes * real * forward), Work(0, planes * real * backward)


@dataclass(frozen=True, slots=True)
class Transform:
    """The 2-D FFTs of one form: ``height`` × ``width`` points, ``real`` bytes in one real number.

    Arguments called ``planes`` are numbers of images. Scaled transforms make the extra pass over their result
    that the module's text describes.
    """

    height: int
    width: int
    real: int

    @property
    def points(self) -> int:
        """Points of one image."""
        return self.height * self.width

    @property
    def half(self) -> int:
        """Complex numbers of the half plane that determines a real image's spectrum."""
        return self.height * (self.width // 2 + 1)

    @property
    def complex(self) -> int:
        """Bytes of one complex number."""
        return 2 * self.real

    @property
    def lengths(self) -> tuple[int, ...]:
        """The transformed lengths, for :attr:`Cost.transform_lengths`."""
        return (self.height, self.width)

    def images(self, planes: int) -> int:
        """Bytes of ``planes`` real images."""
        return planes * self.points * self.real

    def spectra(self, planes: int) -> int:
        """Bytes of ``planes`` half planes."""
        return planes * self.half * self.complex

    def full_spectra(self, planes: int) -> int:
        """Bytes of ``planes`` complex images or full spectra."""
        return planes * self.points * self.complex

    def r2c(self, planes: int, *, scaled: bool = False) -> Work:
        """Real images to half planes."""
        spectra = self.spectra(planes)
        traffic = self.images(planes) + spectra + (2 * spectra if scaled else 0)
        return Work(fft_flops(self.points, planes, real=True), traffic)

    def c2r(self, planes: int, *, scaled: bool = True) -> Work:
        """Half planes to real images."""
        images = self.images(planes)
        traffic = self.spectra(planes) + images + (2 * images if scaled else 0)
        return Work(fft_flops(self.points, planes, real=True), traffic)

    def c2c(self, planes: int, *, scaled: bool = False) -> Work:
        """Complex images to spectra, or back."""
        return Work(fft_flops(self.points, planes), self.full_spectra(planes) * (4 if scaled else 2))

    def widen(self, planes: int) -> Work:
        """The copy of real images into complex ones that a complex FFT of real data begins with."""
        return Work(0, self.images(planes) + self.full_spectra(planes))

    def r2c_backward(self, planes: int, *, scaled: bool = False) -> Work:
        """The gradient of :meth:`r2c` as torch computes it: a *complex* FFT of the half plane padded with zeros.

        Clearing the padded plane, copying the half plane into it, transforming, and a real part that is a view
        (``fft_r2c_backward`` in torch's autograd).
        """
        padding = Work(0, self.full_spectra(planes) + 2 * self.spectra(planes))
        return padding + self.c2c(planes, scaled=scaled)

    def c2r_backward(self, planes: int, *, scaled: bool = True) -> Work:
        """The gradient of :meth:`c2r`: a real FFT, then the columns that stand for two are doubled in place."""
        doubled = planes * self.height * ((self.width - 1) // 2) * self.complex
        return self.r2c(planes, scaled=scaled) + Work(0, 2 * doubled)


def spectral_product(
    batch: int, planes: int, points: int, number: int, *, batched: bool = False
) -> tuple[Work, Work]:
    """The complex product of ``batch × planes`` spectra with ``planes`` filters, forward and backward.

    ``points`` complex numbers of ``number`` bytes a plane. Backward conjugates (copies) both factors, makes two
    products, and sums the filter's gradient over the batch: over one image too, which is a copy, unless the filter
    is ``batched``, stored with a batch of one.
    """
    spectra, filters = batch * planes * points, planes * points
    forward = Work(6 * spectra, (2 * spectra + filters) * number)
    conjugates = Work(0, 2 * (spectra + filters) * number)
    products = Work(12 * spectra, (5 * spectra + filters) * number)
    summed = Work(0, 2 * filters * number) if batch == 1 and not batched else batch_sum(batch, filters, number)
    return forward, conjugates + products + summed


def contraction(problem: Problem, points: int, number: int) -> tuple[Work, Work]:
    """Complex matrices over the channels, one for each of ``points`` frequencies: ``bihw,iohw->bohw``.

    ``number`` bytes a complex number. Over a single channel there is nothing to contract: ``torch.einsum`` then
    multiplies element by element; backward conjugates both factors, makes two products as large as all that was
    multiplied, and sums what had been spread out.
    """
    batch, into, out = problem.batch, problem.channels, problem.channels_out
    spectra, matrices, results = (count * points * number for count in (batch * into, into * out, batch * out))
    products = batch * into * out * points
    if into > 1:
        return bilinear(8 * products, spectra, matrices, results)
    forward, _ = bilinear(6 * products, spectra, matrices, results)
    conjugates = Work(0, 2 * (spectra + matrices))
    backward = Work(12 * products, 4 * results + spectra + matrices)
    sums = batch_sum(out, batch * points, number) + batch_sum(batch, out * points, number)
    return forward, conjugates + backward + sums


def batch_sum(batch: int, elements: int, number: int, *, complex_: bool = True) -> Work:
    """The sum of ``batch`` gradients of ``elements`` numbers each, ``number`` bytes a number; nothing for one."""
    if batch == 1:
        return NOTHING
    return Work((2 if complex_ else 1) * batch * elements, (batch + 1) * elements * number)
