"""CUDA C for the depthwise circular convolution of images of one size, written out for that size.

Two images are one complex image, ``z = x1 + i·x2``: a real filter's Hermitian plane acts on both at once, so that
every transform is complex and none is wasted. A thread transforms a row, then a column, all of it in registers;
between the two the plane crosses shared memory. The product with the filter happens where a column is
transformed, there and back. Images are read and written once.

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
        planes: complex planes that a block works at side by side.
        double: in float64 instead of float32.
    """

    height: int
    width: int
    planes: int
    double: bool = False

    @property
    def lanes(self) -> int:
        """Threads of one plane."""
        return max(self.height, self.width)

    @property
    def threads(self) -> int:
        """Threads of a block, whole warps."""
        return -(-self.lanes * self.planes // 32) * 32

    @property
    def stride(self) -> int:
        """Numbers from row to row in shared memory: odd, so that neither rows nor columns share banks."""
        return self.width | 1

    @property
    def columns(self) -> int:
        """Of the half plane."""
        return self.width // 2 + 1

    @property
    def memory(self) -> int:
        """Bytes of shared memory: the filter's half plane and, for each plane, both parts."""
        numbers = 2 * self.height * self.columns + 2 * self.planes * self.height * self.stride
        return numbers * (8 if self.double else 4)


def plan(height: int, width: int, planes: int, *, double: bool = False) -> Plan:
    """The layout for images of one size, where there are ``planes`` planes of a channel at most.

    Raises:
        NotImplementedError: for sides beyond :data:`LARGEST_SIDE`.
    """
    if max(height, width) > LARGEST_SIDE:
        raise NotImplementedError(
            f"the native form on a GPU takes sides up to {LARGEST_SIDE}, got {height}×{width}"
        )
    # Measured on an H200: a plane of up to 32 lanes is best a warp that waits for no other; two tiny ones fit.
    most = 1 if double or 8 < max(height, width) <= 32 else 2
    return Plan(height, width, max(1, min(most, planes)), double)


def source(layout: Plan) -> str:
    """The kernels ``convolve`` and ``filter_gradient`` of one layout."""
    height, width, real = layout.height, layout.width, "double" if layout.double else "float"
    vector = 1 if layout.double else 4 if width % 4 == 0 else 2 if width % 2 == 0 else 1
    constants = {
        "H": height,
        "W": width,
        "F": layout.columns,
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

/* N numbers of a plane in shared memory, `step` apart: real parts, and H STRIDE further the imaginary ones. */
template <int N>
static __device__ __forceinline__ void load(const real *plane, int step, real (&re)[N], real (&im)[N]) {
    #pragma unroll
    for (int i = 0; i < N; i++) { re[i] = plane[i * step]; im[i] = plane[H * STRIDE + i * step]; }
}

template <int N>
static __device__ __forceinline__ void store(real *plane, int step, const real (&re)[N], const real (&im)[N]) {
    #pragma unroll
    for (int i = 0; i < N; i++) { plane[i * step] = re[i]; plane[H * STRIDE + i * step] = im[i]; }
}

/* y = H W irfft2(half rfft2(x)) for sign 1; for sign -1 with the filter's conjugate, which is the gradient of x.
   grid: (channels, parts of the batch); a part is `steps` times PLANES pairs of images. */
extern "C" __global__ void __launch_bounds__(THREADS) convolve(
    const real *__restrict__ x, const complex *__restrict__ half, real *__restrict__ y,
    int batch, int channels, int steps, int sign)
{
    complex *filter = (complex *)memory;
    const int c = blockIdx.x, lane = threadIdx.x % LANES, slot = threadIdx.x / LANES;
    real *plane = memory + 2 * H * F + slot * 2 * H * STRIDE;
    for (int i = threadIdx.x; i < H * F; i += THREADS) {
        complex w = half[(long long)c * H * F + i];
        w.y *= sign;
        filter[i] = w;
    }
    for (int step = 0; step < steps; step++) {
        const int first = 2 * ((blockIdx.y * steps + step) * PLANES + slot), second = first + 1;
        const bool works = slot < PLANES && first < batch;
        const long long one = ((long long)first * channels + c) * H * W, two = one + (long long)channels * H * W;
        if (works && lane < H) {
            real re[W], im[W];
            read_row(x + one + lane * W, re);
            if (second < batch) {
                read_row(x + two + lane * W, im);
            } else {
                #pragma unroll
                for (int i = 0; i < W; i++) im[i] = 0;
            }
            FFT_ROW(re, im);
            store<W>(plane + lane * STRIDE, 1, re, im);
        }
        __syncthreads();
        if (works && lane < W) {
            real re[H], im[H];
            load<H>(plane + lane, STRIDE, re, im);
            FFT_COLUMN(re, im);
            const bool mirrored = lane >= F;
            const complex *column = filter + (mirrored ? W - lane : lane);
            const real turn = mirrored ? -1 : 1;
            #pragma unroll
            for (int i = 0; i < H; i++) {
                const complex w = column[(mirrored ? (H - i) % H : i) * F];
                const real wi = turn * w.y, r = re[i];
                re[i] = r * w.x - im[i] * wi;
                im[i] = r * wi + im[i] * w.x;
            }
            FFT_COLUMN(im, re);
            store<H>(plane + lane, STRIDE, re, im);
        }
        __syncthreads();
        if (works && lane < H) {
            real re[W], im[W];
            load<W>(plane + lane * STRIDE, 1, re, im);
            FFT_ROW(im, re);
            write_row(y + one + lane * W, re);
            if (second < batch) write_row(y + two + lane * W, im);
        }
        /* The next step writes the rows that this thread itself has just read: nobody need wait. */
    }
}

/* The gradient of the half plane over one part of the batch: sums of conj(rfft2(x)) rfft2(g), columns that stand
   for their mirror images too counted twice. An image and its gradient are one complex image.
   grid: (channels, parts); a part is `steps` times PLANES images. out: (parts, channels, H, F). */
extern "C" __global__ void __launch_bounds__(THREADS) filter_gradient(
    const real *__restrict__ x, const real *__restrict__ gradient, complex *__restrict__ out,
    int batch, int channels, int steps)
{
    complex *sums = (complex *)memory; /* Each is one thread's own. */
    const int c = blockIdx.x, lane = threadIdx.x % LANES, slot = threadIdx.x / LANES;
    real *planes = memory + 2 * H * F, *plane = planes + slot * 2 * H * STRIDE;
    for (int i = threadIdx.x; i < H * F; i += THREADS) sums[i].x = sums[i].y = 0;
    for (int step = 0; step < steps; step++) {
        const int first = (blockIdx.y * steps + step) * PLANES, image = first + slot;
        const bool works = slot < PLANES && image < batch;
        const long long place = ((long long)image * channels + c) * H * W + lane * W;
        if (works && lane < H) {
            real re[W], im[W];
            read_row(x + place, re);
            read_row(gradient + place, im);
            FFT_ROW(re, im);
            store<W>(plane + lane * STRIDE, 1, re, im);
        }
        __syncthreads();
        if (works && lane < W) {
            real re[H], im[H];
            load<H>(plane + lane, STRIDE, re, im);
            FFT_COLUMN(re, im);
            store<H>(plane + lane, STRIDE, re, im);
        }
        __syncthreads();
        const int present = batch - first < PLANES ? batch - first : PLANES;
        for (int i = threadIdx.x; i < H * F; i += THREADS) {
            const int u = i / F, v = i % F;
            const int here = u * STRIDE + v, there = (u ? H - u : 0) * STRIDE + (v ? W - v : 0);
            complex sum = sums[i];
            for (int p = 0; p < present; p++) {
                const real *re = planes + p * 2 * H * STRIDE, *im = re + H * STRIDE;
                /* z = x + i g, so that 2 X = Z(k) + conj Z(-k) and 2 G = -i (Z(k) - conj Z(-k)). */
                const real xr = re[here] + re[there], xi = im[here] - im[there];
                const real gr = im[here] + im[there], gi = re[there] - re[here];
                sum.x += xr * gr + xi * gi;
                sum.y += xr * gi - xi * gr;
            }
            sums[i] = sum;
        }
        __syncthreads();
    }
    for (int i = threadIdx.x; i < H * F; i += THREADS) {
        const int v = i % F;
        const real share = v == 0 || 2 * v == W ? (real)0.25 : (real)0.5;
        complex sum = sums[i];
        sum.x *= share;
        sum.y *= share;
        out[((long long)blockIdx.y * channels + c) * H * F + i] = sum;
    }
}
"""
