"""CUDA C for the depthwise circular convolution of images of one size, written out for that size.

Two rows of an image are one complex row, whose transform is taken apart again: no image meets another, nor its own
gradient, which may be smaller by more than float32 can hold. Of the half plane that is left the first column, and
of an even width the last, are real until columns are transformed: together they are one complex column. So no
transform is wasted. A thread transforms two rows, then a column, all of it in registers; between the two the half
plane crosses shared memory. The product with the filter happens where a column is transformed, there and back.
Images are read and written once.

A transform of length N is straight-line code: prime-factor steps without twiddles between coprime factors
(Good 1958, Thomas 1963), Cooley and Tukey's steps within powers of a prime, and for an odd prime p the sums over
cosines and sines of x[k] ± x[p - k], (p - 1)² multiply-adds.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from functools import lru_cache

LARGEST_SIDE = 64
"""Above it a row no longer fits in the registers of a thread."""

Complex = tuple[str, str]


@dataclass
class _Code:
    """Statements in the making; a value is the name of a variable, or a literal."""

    double: bool
    lines: list[str] = field(default_factory=list)

    def let(self, expression: str) -> str:
        name = f"t{len(self.lines)}"
        self.lines.append(f"const real {name} = {expression};")
        return name

    def add(self, a: Complex, b: Complex) -> Complex:
        return self.let(f"{a[0]} + {b[0]}"), self.let(f"{a[1]} + {b[1]}")

    def sub(self, a: Complex, b: Complex) -> Complex:
        return self.let(f"{a[0]} - {b[0]}"), self.let(f"{a[1]} - {b[1]}")

    def turned(self, a: Complex, numerator: int, length: int) -> Complex:
        """``a · exp(-2πi · numerator / length)``."""
        numerator %= length
        common = math.gcd(numerator, length)
        numerator, length = numerator // common, length // common
        if length == 1:
            return a
        if length == 2:
            return self.let(f"-{a[0]}"), self.let(f"-{a[1]}")
        if length == 4:
            return (a[1], self.let(f"-{a[0]}")) if numerator == 1 else (self.let(f"-{a[1]}"), a[0])
        cosine, sine = map(self.literal, _unit(numerator, length))
        return (
            self.let(f"{a[0]} * {cosine} + {a[1]} * {sine}"),
            self.let(f"{a[1]} * {cosine} - {a[0]} * {sine}"),
        )

    def literal(self, value: float) -> str:
        return f"{value:.17e}" if self.double else f"{value:.9e}f"

    def weighted(self, values: list[str], weights: list[float]) -> str:
        """The terms of a weighted sum."""
        return " + ".join(
            f"{self.literal(weight)} * {value}" for weight, value in zip(weights, values, strict=True)
        )


def _unit(numerator: int, length: int) -> tuple[float, float]:
    angle = 2 * math.pi * numerator / length
    return math.cos(angle), math.sin(angle)


def _transformed(code: _Code, values: list[Complex]) -> list[Complex]:
    """The discrete Fourier transform (kernel exp(-2πi·jk/N)) of ``values``."""
    length = len(values)
    if length == 1:
        return values
    prime = next(p for p in range(2, length + 1) if length % p == 0)
    power = prime
    while length % (power * prime) == 0:
        power *= prime
    if power != length:
        return _by_coprime_factors(code, values, power, length // power)
    if power == prime:
        return _by_two(code, values) if prime == 2 else _by_an_odd_prime(code, values)
    return _by_powers(code, values, 4 if length % 4 == 0 else prime)


def _by_two(code: _Code, values: list[Complex]) -> list[Complex]:
    return [code.add(*values), code.sub(*values)]


def _by_an_odd_prime(code: _Code, values: list[Complex]) -> list[Complex]:
    length, half = len(values), len(values) // 2
    sums = [code.add(values[k], values[length - k]) for k in range(1, half + 1)]
    differences = [code.sub(values[k], values[length - k]) for k in range(1, half + 1)]
    total = values[0]
    for term in sums:
        total = code.add(total, term)
    result = [total] * length
    for m in range(1, half + 1):
        cosines, sines = zip(*(_unit(m * k % length, length) for k in range(1, half + 1)), strict=True)
        even = [code.let(f"{values[0][i]} + {code.weighted([s[i] for s in sums], [*cosines])}") for i in (0, 1)]
        odd = [code.let(code.weighted([d[i] for d in differences], [*sines])) for i in (0, 1)]
        result[m] = code.let(f"{even[0]} + {odd[1]}"), code.let(f"{even[1]} - {odd[0]}")
        result[length - m] = code.let(f"{even[0]} - {odd[1]}"), code.let(f"{even[1]} + {odd[0]}")
    return result


def _by_coprime_factors(code: _Code, values: list[Complex], one: int, two: int) -> list[Complex]:
    length = one * two
    table = [_transformed(code, [values[(two * i + one * j) % length] for i in range(one)]) for j in range(two)]
    across = [_transformed(code, [table[j][k] for j in range(two)]) for k in range(one)]
    return [across[k % one][k % two] for k in range(length)]


def _by_powers(code: _Code, values: list[Complex], radix: int) -> list[Complex]:
    length = len(values)
    part = length // radix
    parts = [_transformed(code, values[start::radix]) for start in range(radix)]
    result: list[Complex] = [("", "")] * length
    for k in range(part):
        turned = [code.turned(parts[s][k], s * k, length) for s in range(radix)]
        outer = _by_four(code, turned) if radix == 4 else _transformed(code, turned)
        for q in range(radix):
            result[k + part * q] = outer[q]
    return result


def _by_four(code: _Code, v: list[Complex]) -> list[Complex]:
    a, b, c, d = code.add(v[0], v[2]), code.sub(v[0], v[2]), code.add(v[1], v[3]), code.sub(v[1], v[3])
    return [
        code.add(a, c),
        (code.let(f"{b[0]} + {d[1]}"), code.let(f"{b[1]} - {d[0]}")),
        code.sub(a, c),
        (code.let(f"{b[0]} - {d[1]}"), code.let(f"{b[1]} + {d[0]}")),
    ]


@lru_cache(maxsize=64)
def transform(length: int, double: bool = False) -> str:
    """A device function ``fft<length>(re, im)`` in place; with the two swapped it is the inverse, unscaled."""
    code = _Code(double)
    result = _transformed(code, [(f"re[{k}]", f"im[{k}]") for k in range(length)])
    # Inputs are read before anything is written: a result may still be one of them.
    final = [(code.let(real), code.let(imaginary)) for real, imaginary in result]
    body = "\n    ".join([*code.lines, *(f"re[{k}] = {r}; im[{k}] = {i};" for k, (r, i) in enumerate(final))])
    return (
        f"static __device__ __forceinline__ void fft{length}(real (&re)[{length}], real (&im)[{length}]) {{\n"
        f"    {body}\n}}\n"
    )


@dataclass(frozen=True)
class Plan:
    """How a block is laid out for images of ``height`` × ``width``.

    Attributes:
        planes: real planes that a block works at side by side, an even number: images, or images and gradients.
        double: in float64 instead of float32.
    """

    height: int
    width: int
    planes: int
    double: bool = False

    @property
    def pairs(self) -> int:
        """Of rows; of an odd height the last has but one."""
        return -(-self.height // 2)

    @property
    def columns(self) -> int:
        """Of a plane in shared memory."""
        return -(-self.width // 2)

    @property
    def lanes(self) -> int:
        """Threads of one plane."""
        return max(self.pairs, self.columns)

    @property
    def threads(self) -> int:
        """Threads of a block, whole warps."""
        return -(-self.lanes * self.planes // 32) * 32

    @property
    def stride(self) -> int:
        """Numbers from row to row in shared memory: odd, so that neither rows nor columns share banks."""
        return self.columns | 1

    @property
    def frequencies(self) -> int:
        """Columns of the filter's half plane."""
        return self.width // 2 + 1

    @property
    def memory(self) -> int:
        """Bytes of shared memory: the filter's half plane and, for each plane, both parts."""
        numbers = 2 * self.height * self.frequencies + 4 * self.planes * self.pairs * self.stride
        return numbers * (8 if self.double else 4)


def plan(height: int, width: int, planes: int, *, double: bool = False, memory: int | None = None) -> Plan:
    """The layout for images of one size, where there are ``planes`` planes of a channel at most.

    Args:
        memory: Bytes of shared memory that a block may have.

    Raises:
        NotImplementedError: for sides beyond :data:`LARGEST_SIDE`.
    """
    if max(height, width) > LARGEST_SIDE:
        raise NotImplementedError(
            f"the native form on a GPU takes sides up to {LARGEST_SIDE}, got {height}×{width}"
        )
    # A warp of two planes is best alone, waiting for no other; four tiny ones fit. (Measured on an H200 with an
    # earlier kernel, of as many lanes for two planes.)
    most = 2 if double or 8 < max(height, width) <= 32 else 4
    layout = Plan(height, width, 2 if planes <= 2 else most, double)
    return layout if memory is None or layout.memory <= memory else Plan(height, width, 2, double)


def source(layout: Plan) -> str:
    """The kernels ``convolve`` and ``filter_gradient`` of one layout."""
    height, width, real = layout.height, layout.width, "double" if layout.double else "float"
    vector = 1 if layout.double else 4 if width % 4 == 0 else 2 if width % 2 == 0 else 1
    constants = {
        "H": height,
        "W": width,
        "F": layout.frequencies,
        "PAIRS": layout.pairs,
        "COLUMNS": layout.columns,
        "STRIDE": layout.stride,
        "LANES": layout.lanes,
        "PLANES": layout.planes,
        "THREADS": layout.threads,
        "VECTOR": vector,
        "FFT_ROW": f"fft{width}",
        "FFT_COLUMN": f"fft{height}",
    }
    defines = "".join(f"#define {name} {value}\n" for name, value in constants.items())
    types = (
        f"typedef {real} real;\ntypedef {real}2 complex;\ntypedef {real}{vector if vector > 1 else ''} vector;\n"
    )
    transforms = "".join(transform(length, layout.double) for length in sorted({height, width}))
    return defines + types + transforms + _KERNELS


_KERNELS = r"""
extern __shared__ real memory[];

static __device__ __forceinline__ void read_row(const real *row, real (&out)[W]) {
    #pragma unroll
    for (int i = 0; i < W / VECTOR; i++) {
        const vector v = ((const vector *)row)[i];
        #pragma unroll
        for (int j = 0; j < VECTOR; j++) out[VECTOR * i + j] = ((const real *)&v)[j];
    }
}

static __device__ __forceinline__ void write_row(real *row, const real (&in)[W]) {
    #pragma unroll
    for (int i = 0; i < W / VECTOR; i++) {
        vector v;
        #pragma unroll
        for (int j = 0; j < VECTOR; j++) ((real *)&v)[j] = in[VECTOR * i + j];
        ((vector *)row)[i] = v;
    }
}

/* Where a row of a plane is in shared memory: the first rows of all pairs and planes, then the second ones, so
   that threads that follow one another write rows that do. Real parts, and PART further the imaginary ones. */
#define ROW(i) (((i) / PAIRS * PLANES * PAIRS + (i) % PAIRS) * STRIDE)
#define PART (2 * PLANES * PAIRS * STRIDE)
#define EVEN (W % 2 == 0)

/* Transform two rows of an image, and store twice the left half of the spectrum of each. Its first number is real;
   of an even width so is the one in the middle, which is stored as the imaginary part of the first. */
static __device__ __forceinline__ void rows_there(const real *image, real *plane, int pair) {
    real re[W], im[W];
    const int second = pair + PAIRS;
    read_row(image + pair * W, re);
    if (second < H) {
        read_row(image + second * W, im);
    } else {
        #pragma unroll
        for (int i = 0; i < W; i++) im[i] = 0;
    }
    FFT_ROW(re, im);
    real *one = plane + pair * STRIDE, *two = one + ROW(PAIRS);
    one[0] = 2 * re[0];
    two[0] = 2 * im[0];
    one[PART] = EVEN ? 2 * re[W / 2] : 0;
    two[PART] = EVEN ? 2 * im[W / 2] : 0;
    #pragma unroll
    for (int i = 1; i < COLUMNS; i++) {
        one[i] = re[i] + re[W - i];
        one[PART + i] = im[i] - im[W - i];
        two[i] = im[i] + im[W - i];
        two[PART + i] = re[W - i] - re[i];
    }
    /* Rounding leaves more than nothing of a row that is not there, and no filter makes it smaller. */
    if (H % 2 && second == H) {
        #pragma unroll
        for (int i = 0; i < COLUMNS; i++) two[i] = two[PART + i] = 0;
    }
}

/* The way back: the spectra of two rows, stored like that but once, to the rows. */
static __device__ __forceinline__ void rows_back(const real *plane, real *image, int pair) {
    real re[W], im[W];
    const int second = pair + PAIRS;
    const real *one = plane + pair * STRIDE, *two = one + ROW(PAIRS);
    re[0] = one[0];
    im[0] = two[0];
    if (EVEN) {
        re[W / 2] = one[PART];
        im[W / 2] = two[PART];
    }
    #pragma unroll
    for (int i = 1; i < COLUMNS; i++) {
        re[i] = one[i] - two[PART + i];
        im[i] = one[PART + i] + two[i];
        re[W - i] = one[i] + two[PART + i];
        im[W - i] = two[i] - one[PART + i];
    }
    FFT_ROW(im, re);
    write_row(image + pair * W, re);
    if (second < H) write_row(image + second * W, im);
}

static __device__ __forceinline__ void load_column(const real *column, real (&re)[H], real (&im)[H]) {
    #pragma unroll
    for (int i = 0; i < H; i++) { re[i] = column[ROW(i)]; im[i] = column[PART + ROW(i)]; }
}

static __device__ __forceinline__ void store_column(real *column, const real (&re)[H], const real (&im)[H]) {
    #pragma unroll
    for (int i = 0; i < H; i++) { column[ROW(i)] = re[i]; column[PART + ROW(i)] = im[i]; }
}

/* y = H W irfft2(half rfft2(x)) for sign 1; for sign -1 with the filter's conjugate, which is the gradient of x.
   grid: (channels, parts of the batch); a part is `steps` times PLANES images. */
extern "C" __global__ void __launch_bounds__(THREADS) convolve(
    const real *__restrict__ x, const complex *__restrict__ half, real *__restrict__ y,
    int batch, int channels, int steps, int sign)
{
    complex *filter = (complex *)memory;
    const int c = blockIdx.x, lane = threadIdx.x % LANES, slot = threadIdx.x / LANES;
    real *plane = memory + 2 * H * F + slot * PAIRS * STRIDE;
    /* Half the filter, as spectra are stored twice as large. Two columns may be one, Z = A + i B; with wa and wb,
       what real images see of the filter there, and m for -k,
       wa A + i wb B = (wa + wb) / 2 Z(k) + (wa - wb) / 2 conj Z(m). */
    for (int i = threadIdx.x; i < H * F; i += THREADS) {
        const int v = i % F;
        const complex *row = half + (long long)c * H * F + i - v;
        complex w = row[v];
        if (EVEN && (v == 0 || v == W / 2)) {
            const complex *mirrored = half + (long long)c * H * F + (i < F ? 0 : H * F - i + v);
            const real turn = v ? -1 : 1;
            w.x = (row[0].x + mirrored[0].x + turn * (row[W / 2].x + mirrored[W / 2].x)) / 4;
            w.y = (row[0].y - mirrored[0].y + turn * (row[W / 2].y - mirrored[W / 2].y)) / 4;
        }
        w.x /= 2;
        w.y *= (real)sign / 2;
        filter[i] = w;
    }
    for (int step = 0; step < steps; step++) {
        const int image = (blockIdx.y * steps + step) * PLANES + slot;
        const bool works = slot < PLANES && image < batch;
        const long long place = ((long long)image * channels + c) * H * W;
        if (works && lane < PAIRS) rows_there(x + place, plane, lane);
        __syncthreads();
        if (works && lane < COLUMNS) {
            real re[H], im[H];
            load_column(plane + lane, re, im);
            FFT_COLUMN(re, im);
            if (lane || !EVEN) {
                #pragma unroll
                for (int i = 0; i < H; i++) {
                    const complex w = filter[i * F + lane];
                    const real r = re[i];
                    re[i] = r * w.x - im[i] * w.y;
                    im[i] = r * w.y + im[i] * w.x;
                }
            } else {
                #pragma unroll
                for (int k = 0; k <= H / 2; k++) {
                    const int m = (H - k) % H;
                    const complex a = filter[k * F], b = filter[k * F + W / 2];
                    const real r = re[k], i = im[k], s = re[m], j = im[m];
                    re[k] = r * a.x - i * a.y + s * b.x + j * b.y;
                    im[k] = r * a.y + i * a.x + s * b.y - j * b.x;
                    re[m] = s * a.x + j * a.y + r * b.x - i * b.y;
                    im[m] = j * a.x - s * a.y - r * b.y - i * b.x;
                }
            }
            FFT_COLUMN(im, re);
            store_column(plane + lane, re, im);
        }
        __syncthreads();
        if (works && lane < PAIRS) rows_back(plane, y + place, lane);
        /* The next step writes the rows that this thread itself has just read: nobody need wait. */
    }
}

/* Twice the spectra, at k, of two columns that were real: of A and of B in Z = A + i B, m being -k. */
static __device__ __forceinline__ complex of_first(const real *re, const real *im, int k, int m) {
    complex a;
    a.x = re[k] + re[m];
    a.y = im[k] - im[m];
    return a;
}

static __device__ __forceinline__ complex of_last(const real *re, const real *im, int k, int m) {
    complex b;
    b.x = im[k] + im[m];
    b.y = re[m] - re[k];
    return b;
}

/* The gradient of the half plane over one part of the batch: sums of conj(rfft2(x)) rfft2(g), columns that stand
   for their mirror images too counted twice.
   grid: (channels, parts); a part is `steps` times PLANES / 2 images. out: (parts, channels, H, F). */
extern "C" __global__ void __launch_bounds__(THREADS) filter_gradient(
    const real *__restrict__ x, const real *__restrict__ gradient, complex *__restrict__ out,
    int batch, int channels, int steps)
{
    complex *sums = (complex *)memory; /* Each is one thread's own. */
    const int c = blockIdx.x, lane = threadIdx.x % LANES, slot = threadIdx.x / LANES;
    real *planes = memory + 2 * H * F, *plane = planes + slot * PAIRS * STRIDE;
    for (int i = threadIdx.x; i < H * F; i += THREADS) sums[i].x = sums[i].y = 0;
    for (int step = 0; step < steps; step++) {
        /* The first planes are the images', the others their gradients'. */
        const int first = (blockIdx.y * steps + step) * (PLANES / 2), image = first + slot % (PLANES / 2);
        const bool works = slot < PLANES && image < batch;
        const long long place = ((long long)image * channels + c) * H * W;
        if (works && lane < PAIRS) rows_there((slot < PLANES / 2 ? x : gradient) + place, plane, lane);
        __syncthreads();
        if (works && lane < COLUMNS) {
            real re[H], im[H];
            load_column(plane + lane, re, im);
            FFT_COLUMN(re, im);
            store_column(plane + lane, re, im);
        }
        __syncthreads();
        const int present = batch - first < PLANES / 2 ? batch - first : PLANES / 2;
        for (int i = threadIdx.x; i < H * F; i += THREADS) {
            const int u = i / F, v = i % F, m = ROW((H - u) % H);
            complex sum = sums[i];
            for (int p = 0; p < present; p++) {
                const real *xs = planes + p * PAIRS * STRIDE, *gs = xs + PLANES / 2 * PAIRS * STRIDE;
                complex a, b;
                if (EVEN && v == 0) {
                    a = of_first(xs, xs + PART, ROW(u), m);
                    b = of_first(gs, gs + PART, ROW(u), m);
                } else if (EVEN && v == W / 2) {
                    a = of_last(xs, xs + PART, ROW(u), m);
                    b = of_last(gs, gs + PART, ROW(u), m);
                } else {
                    a.x = xs[ROW(u) + v];
                    a.y = xs[PART + ROW(u) + v];
                    b.x = gs[ROW(u) + v];
                    b.y = gs[PART + ROW(u) + v];
                }
                sum.x += a.x * b.x + a.y * b.y;
                sum.y += a.x * b.y - a.y * b.x;
            }
            sums[i] = sum;
        }
        __syncthreads();
    }
    for (int i = threadIdx.x; i < H * F; i += THREADS) {
        const int v = i % F;
        /* Spectra are twice as large, of the two columns that are one four times. */
        const real share = v != 0 && 2 * v != W ? (real)0.5 : EVEN ? (real)0.0625 : (real)0.25;
        complex sum = sums[i];
        sum.x *= share;
        sum.y *= share;
        out[((long long)blockIdx.y * channels + c) * H * F + i] = sum;
    }
}
"""
