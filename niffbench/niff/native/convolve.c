/* Depthwise circular convolution with a frequency filter, one cache-resident pass over each image.
 *
 * What an eager form spends its time on is memory: every FFT, product and copy walks through all images. Here a
 * thread takes as many channels as a vector register has lanes, and does everything for these images before it
 * touches the next: real FFT of the rows, FFT of the columns, product with the filter, and both inverses. Lanes are
 * channels, so that the FFT is written as for scalars and needs no shuffles; images are transposed on the way in
 * and out, unless channels already lie side by side (channels-last).
 *
 * Compiled once per element type: REAL is float or double. Nothing is checked here: the caller has seen to it.
 */
#include <unistd.h>

#include "vectors.h"

#include "calls.h"

typedef struct {
    Vector re, im;
} Complex; /* One complex number for each lane. */

enum { MAX_RADIX = 14, MOST_WAYS = 2 };

/* ---- Images in memory ---------------------------------------------------------------------------------------- */

enum { REALS, BFLOATS16, FLOATS16 }; /* What images are of; all arithmetic is in REAL. */

typedef struct {
    int64_t lane_step, point_step; /* From one channel to the next, and from one number of an image to the next. */
    int lanes;                     /* How many channels there are; the other lanes are zero. */
    int64_t points;                /* Numbers in an image. */
    int numbers;                   /* One of the above. */
} Layout;

INLINE int bytes_of(int numbers) { return numbers == REALS ? (int)sizeof(REAL) : 2; }

/* Numbers first … first + count - 1 of each image, of `bytes` each, one Vector a number; `end` bounds what may be
 * read, by `read`. */
INLINE void load_by(const char *images, const char *end, Layout layout, int64_t first, int count, int bytes,
                    Vector read(const char *), Vector out[LANES]) {
    const int64_t lane_step = layout.lane_step * bytes, point_step = layout.point_step * bytes;
    const char *from = images + first * point_step;
    if (layout.lane_step == 1 && layout.lanes == LANES) {
        for (int i = 0; i < count; i++) out[i] = read(from + i * point_step);
        return;
    }
    if (layout.point_step == 1 && layout.lanes == LANES && from + (LANES - 1) * lane_step + LANES * bytes <= end) {
        /* What is read beyond count belongs to a neighbour and is not used. */
        UNROLL(16) for (int l = 0; l < LANES; l++) out[l] = read(from + l * lane_step);
        transpose(out);
        return;
    }
    char numbers[LANES][LANES * sizeof(REAL)];
    memset(numbers, 0, sizeof numbers);
    for (int l = 0; l < layout.lanes; l++)
        for (int i = 0; i < count; i++) memcpy(numbers[i] + l * bytes, from + l * lane_step + i * point_step, bytes);
    for (int i = 0; i < count; i++) out[i] = read(numbers[i]);
}

/* The inverse of load_by; the Vectors are used up. */
INLINE void store_by(char *images, Layout layout, int64_t first, int count, int bytes, void write(char *, Vector),
                     Vector in[LANES]) {
    const int64_t lane_step = layout.lane_step * bytes, point_step = layout.point_step * bytes;
    char *to = images + first * point_step;
    if (layout.lane_step == 1 && layout.lanes == LANES) {
        for (int i = 0; i < count; i++) write(to + i * point_step, in[i]);
        return;
    }
    if (layout.point_step == 1 && layout.lanes == LANES) {
        transpose(in);
        if (first + LANES <= layout.points) {
            /* What is written beyond count is overwritten by the next store, which is of the same images. */
            UNROLL(16) for (int l = 0; l < LANES; l++) write(to + l * lane_step, in[l]);
            return;
        }
        for (int l = 0; l < LANES; l++) {
            char numbers[LANES * sizeof(REAL)];
            write(numbers, in[l]);
            memcpy(to + l * lane_step, numbers, count * bytes);
        }
        return;
    }
    for (int i = 0; i < count; i++) {
        char numbers[LANES * sizeof(REAL)];
        write(numbers, in[i]);
        for (int l = 0; l < layout.lanes; l++) memcpy(to + l * lane_step + i * point_step, numbers + l * bytes, bytes);
    }
}

INLINE void load(const char *images, const char *end, Layout layout, int64_t first, int count, Vector out[LANES]) {
    switch (layout.numbers) {
#ifdef BFLOAT16
        case BFLOATS16: load_by(images, end, layout, first, count, 2, read_bfloat16, out); return;
#endif
#ifdef FLOAT16
        case FLOATS16: load_by(images, end, layout, first, count, 2, read_float16, out); return;
#endif
        default: load_by(images, end, layout, first, count, sizeof(REAL), read_real, out);
    }
}

INLINE void store(char *images, Layout layout, int64_t first, int count, Vector in[LANES]) {
    switch (layout.numbers) {
#ifdef BFLOAT16
        case BFLOATS16: store_by(images, layout, first, count, 2, write_bfloat16, in); return;
#endif
#ifdef FLOAT16
        case FLOATS16: store_by(images, layout, first, count, 2, write_float16, in); return;
#endif
        default: store_by(images, layout, first, count, sizeof(REAL), write_real, in);
    }
}

/* ---- FFT of one axis: Stockham's, mixed radix, decimation in frequency ---------------------------------------- */

typedef struct {
    int length, passes, radix[64];
    const REAL *roots;
    const Axis *axis;
} Plan;

static Plan make_plan(int length, const REAL *roots, const Axis *axis) {
    Plan plan = {.length = length, .roots = roots, .axis = axis};
    int rest = length, twos = 0;
    while (rest % (2 << twos) == 0) twos++;
    for (int odd = 7; odd > 2; odd -= 2) /* A 2 that no 8 takes goes with an odd factor. */
        if (twos % 3 == 1 && rest % odd == 0) {
            plan.radix[plan.passes++] = 2 * odd;
            rest /= 2 * odd;
            twos--;
        }
    while (rest % 2 == 0) { /* 16 = 4 · 4 rather than 8 · 2. */
        int radix = rest % 8 == 0 && (rest % 16 || rest % 32 == 0) ? 8 : rest % 4 == 0 ? 4 : 2;
        plan.radix[plan.passes++] = radix;
        rest /= radix;
    }
    for (int radix = 3; rest > 1; radix += 2)
        while (rest % radix == 0) {
            plan.radix[plan.passes++] = radix;
            rest /= radix;
        }
    return plan;
}

/* Where the terms of a transform lie: first + step · j, modulo `length` unless that is 0. */
typedef struct {
    int first, step, length;
} Places;

INLINE int place(Places of, int j) {
    const int at = of.first + of.step * j;
    return of.length ? at % of.length : at;
}

#define IN_ORDER ((Places){0, 1, 0})

/* DFT of odd length r, given cos and sin of 2πq/r: sums and differences of opposite terms halve the products. Real
 * parts of what comes out before imaginary ones, whose terms are read again: all that is live at once fits into a
 * CPU's sixteen registers. */
INLINE void dft_odd(int r, const REAL *cosine, const REAL *sine, const Complex *x, Places from, Complex *y, Places to) {
    const int half = (r - 1) / 2;
    UNROLL(2) for (int part = 0; part < 2; part++) {
        const Vector first = part ? x[place(from, 0)].im : x[place(from, 0)].re;
        Vector total = first, sum[4], difference[4];
        UNROLL(3) for (int j = 1; j <= half; j++) {
            const Complex *one = x + place(from, j), *two = x + place(from, r - j);
            sum[j] = part ? one->im + two->im : one->re + two->re;
            difference[j] = part ? one->re - two->re : one->im - two->im;
            total += sum[j];
        }
        *(part ? &y[place(to, 0)].im : &y[place(to, 0)].re) = total;
        UNROLL(3) for (int k = 1; k <= half; k++) {
            Complex *one = y + place(to, k), *two = y + place(to, r - k);
            Vector even = first, odd = {0};
            UNROLL(3) for (int j = 1; j <= half; j++) {
                even += cosine[j * k % r] * sum[j];
                odd += sine[j * k % r] * difference[j];
            }
            *(part ? &two->im : &one->re) = even + odd;
            *(part ? &one->im : &two->re) = even - odd;
        }
    }
}

INLINE void dft2(const Complex *x, Places from, Complex *y, Places to) {
    const Complex a = x[place(from, 0)], b = x[place(from, 1)];
    y[place(to, 0)] = (Complex){a.re + b.re, a.im + b.im};
    y[place(to, 1)] = (Complex){a.re - b.re, a.im - b.im};
}

INLINE void dft3(const Complex *x, Places from, Complex *y, Places to) {
    static const REAL cosine[] = {1, -0.5, -0.5}, sine[] = {0, 0.86602540378443864676, -0.86602540378443864676};
    dft_odd(3, cosine, sine, x, from, y, to);
}

INLINE void dft4(const Complex *x, Places from, Complex *y, Places to) {
    const Complex e = x[place(from, 0)], f = x[place(from, 1)], g = x[place(from, 2)], h = x[place(from, 3)];
    Complex a = {e.re + g.re, e.im + g.im}, b = {e.re - g.re, e.im - g.im};
    Complex c = {f.re + h.re, f.im + h.im}, d = {f.re - h.re, f.im - h.im};
    y[place(to, 0)] = (Complex){a.re + c.re, a.im + c.im};
    y[place(to, 1)] = (Complex){b.re + d.im, b.im - d.re};
    y[place(to, 2)] = (Complex){a.re - c.re, a.im - c.im};
    y[place(to, 3)] = (Complex){b.re - d.im, b.im + d.re};
}

INLINE void dft5(const Complex *x, Places from, Complex *y, Places to) {
    static const REAL cosine[] = {1, 0.30901699437494742410, -0.80901699437494742410, -0.80901699437494742410,
                                  0.30901699437494742410};
    static const REAL sine[] = {0, 0.95105651629515357212, 0.58778525229247312917, -0.58778525229247312917,
                                -0.95105651629515357212};
    dft_odd(5, cosine, sine, x, from, y, to);
}

INLINE void dft7(const Complex *x, Places from, Complex *y, Places to) {
    static const REAL cosine[] = {1,
                                  0.62348980185873353053,
                                  -0.22252093395631440429,
                                  -0.90096886790241912624,
                                  -0.90096886790241912624,
                                  -0.22252093395631440429,
                                  0.62348980185873353053};
    static const REAL sine[] = {0,
                                0.78183148246802980871,
                                0.97492791218182360702,
                                0.43388373911755812048,
                                -0.43388373911755812048,
                                -0.97492791218182360702,
                                -0.78183148246802980871};
    dft_odd(7, cosine, sine, x, from, y, to);
}

INLINE void dft8(const Complex *x, Places from, Complex *y, Places to) {
    const REAL diagonal = 0.70710678118654752440;
    Complex even[4], odd[4];
    dft4(x, (Places){from.first, 2 * from.step, from.length}, even, IN_ORDER);
    dft4(x, (Places){from.first + from.step, 2 * from.step, from.length}, odd, IN_ORDER);
    const Complex turned[4] = {
        odd[0],
        {diagonal * (odd[1].re + odd[1].im), diagonal * (odd[1].im - odd[1].re)},
        {odd[2].im, -odd[2].re},
        {diagonal * (odd[3].im - odd[3].re), -diagonal * (odd[3].re + odd[3].im)},
    };
    UNROLL(4) for (int k = 0; k < 4; k++) {
        y[place(to, k)] = (Complex){even[k].re + turned[k].re, even[k].im + turned[k].im};
        y[place(to, k + 4)] = (Complex){even[k].re - turned[k].re, even[k].im - turned[k].im};
    }
}

/* A product of coprime lengths: no roots to turn by between the two (Good 1958, Thomas 1963). Term k goes to
 * (k % one) · to_one + (k % two) · to_two modulo length. */
#define COPRIME(length, one, two, to_one, to_two)                                                                \
    INLINE void coprime##length(const Complex *x, Complex *y, Complex *table) {                                  \
        UNROLL(8) for (int j = 0; j < two; j++)                                                    \
            dft##one(x, (Places){one * j, two, length}, table, (Places){one * j, 1, 0});                         \
        UNROLL(8) for (int k = 0; k < one; k++)                                                    \
            dft##two(table, (Places){k, one, 0}, y, (Places){k * to_one, to_two, length});                       \
    }
COPRIME(6, 2, 3, 3, 4) COPRIME(10, 2, 5, 5, 6) COPRIME(14, 2, 7, 7, 8) COPRIME(28, 4, 7, 21, 8) COPRIME(56, 8, 7, 49, 8)

/* As one of several passes. */
#define WITHIN(length)                                                                                           \
    INLINE void dft##length(const Complex *x, Places from, Complex *y, Places to) {                              \
        Complex in[length], table[length], out[length];                                                          \
        UNROLL(16) for (int j = 0; j < length; j++) in[j] = x[place(from, j)];                     \
        coprime##length(in, out, table);                                                                         \
        UNROLL(16) for (int j = 0; j < length; j++) y[place(to, j)] = out[j];                      \
    }
WITHIN(6) WITHIN(10) WITHIN(14)

/* One pass: `stride` interleaved transforms of length n become r times as many of length n / r. */
INLINE void fft_pass(int r, void dft(const Complex *, Places, Complex *, Places), int n, int stride,
                     const REAL *roots, const Complex *in, Complex *out) {
    const int m = n / r;
    for (int p = 0; p < m; p++) {
        for (int q = 0; q < stride; q++) {
            Complex y[MAX_RADIX];
            dft(in, (Places){q + stride * p, stride * m, 0}, y, IN_ORDER);
            Complex *to = out + q + stride * r * p;
            to[0] = y[0];
            UNROLL(16) for (int j = 1; j < r; j++) {
                const REAL *root = roots + 2 * stride * p * j;
                to[stride * j] = (Complex){y[j].re * root[0] - y[j].im * root[1],
                                           y[j].re * root[1] + y[j].im * root[0]};
            }
        }
    }
}

/* The last pass has one transform length left, r itself, and so no roots to turn by. */
INLINE void fft_last(void dft(const Complex *, Places, Complex *, Places), int stride, const Complex *in,
                     Complex *out) {
    for (int q = 0; q < stride; q++) dft(in, (Places){q, stride, 0}, out, (Places){q, stride, 0});
}

#define PASS(r)                                                                                                  \
    static __attribute__((noinline)) void pass##r(int n, int stride, const REAL *roots, const Complex *in,       \
                                                  Complex *out) {                                                \
        if (n == r)                                                                                              \
            fft_last(dft##r, stride, in, out);                                                                   \
        else                                                                                                     \
            fft_pass(r, dft##r, n, stride, roots, in, out);                                                      \
    }
PASS(2) PASS(3) PASS(4) PASS(5) PASS(6) PASS(7) PASS(8) PASS(10) PASS(14)

/* Whole transforms whose sizes the compiler knows: those of the usual feature maps. */
static __attribute__((noinline)) void fft7(const Complex *in, Complex *out) { dft7(in, IN_ORDER, out, IN_ORDER); }
#define UNROLLED(length)                                                                                         \
    static __attribute__((noinline)) void fft##length(const Complex *in, Complex *out, Complex *other) {         \
        coprime##length(in, out, other);                                                                         \
    }
#define TWO_PASSES(length, one, two)                                                                             \
    static __attribute__((noinline)) void fft##length(const REAL *roots, const Complex *in, Complex *out,        \
                                                      Complex *other) {                                          \
        fft_pass(one, dft##one, length, 1, roots, in, other);                                                    \
        fft_last(dft##two, one, other, out);                                                                     \
    }
UNROLLED(14) UNROLLED(28) UNROLLED(56) TWO_PASSES(32, 8, 4) TWO_PASSES(64, 8, 8) TWO_PASSES(112, 14, 8)

/* Outputs k, r - k and, of two at once, k + 1 and r - k - 1 of a direct sum; roots are `step` apart. */
INLINE void direct_sums(int at_once, int k, int r, int step, const REAL *roots, Complex first, const Complex *sum,
                        const Complex *difference, Complex y[4]) {
    const int half = (r - 1) / 2;
    Complex even[2], odd[2] = {{{0}, {0}}, {{0}, {0}}};
    int apart[2], place[2];
    UNROLL(2) for (int i = 0; i < at_once; i++) {
        even[i] = first;
        place[i] = apart[i] = (k + i) * step;
    }
    for (int j = 1; j <= half; j++) {
        const Complex s = sum[j], d = difference[j];
        UNROLL(2) for (int i = 0; i < at_once; i++) {
            const REAL cosine = roots[2 * place[i]], sine = roots[2 * place[i] + 1];
            even[i].re += cosine * s.re;
            even[i].im += cosine * s.im;
            odd[i].re -= sine * d.re;
            odd[i].im -= sine * d.im;
            place[i] += apart[i];
            if (place[i] >= r * step) place[i] -= r * step;
        }
    }
    UNROLL(2) for (int i = 0; i < at_once; i++) {
        y[2 * i] = (Complex){even[i].re + odd[i].im, even[i].im - odd[i].re};
        y[2 * i + 1] = (Complex){even[i].re - odd[i].im, even[i].im + odd[i].re};
    }
}

/* Any odd radix r, of a transform of `length` points; `scratch` holds 2r numbers. */
static void pass_any(int r, int n, int stride, int length, const REAL *roots, const Complex *in, Complex *out,
                     Complex *scratch) {
    const int m = n / r, half = (r - 1) / 2, step = length / r;
    Complex *sum = scratch, *difference = scratch + r;
    for (int p = 0; p < m; p++) {
        for (int q = 0; q < stride; q++) {
            const Complex *from = in + q + stride * p, first = from[0];
            Complex *to = out + q + stride * r * p, total = first;
            for (int j = 1; j <= half; j++) {
                const Complex a = from[stride * m * j], b = from[stride * m * (r - j)];
                sum[j] = (Complex){a.re + b.re, a.im + b.im};
                difference[j] = (Complex){a.re - b.re, a.im - b.im};
                total.re += sum[j].re;
                total.im += sum[j].im;
            }
            to[0] = total;
            for (int k = 1; k <= half; k += 2) {
                const int at_once = k < half ? 2 : 1, at[4] = {k, r - k, k + 1, r - k - 1};
                Complex y[4];
                if (at_once == 2)
                    direct_sums(2, k, r, step, roots, first, sum, difference, y);
                else
                    direct_sums(1, k, r, step, roots, first, sum, difference, y);
                for (int i = 0; i < 2 * at_once; i++) {
                    const REAL *root = roots + 2 * stride * p * at[i];
                    to[stride * at[i]] = m == 1 ? y[i]
                                                : (Complex){y[i].re * root[0] - y[i].im * root[1],
                                                            y[i].re * root[1] + y[i].im * root[0]};
                }
            }
        }
    }
}

static void pass_by_convolution(int n, int stride, const Plan *plan, const Complex *in, Complex *out,
                                Complex *scratch);

/* Forward FFT from `in` to `out`, through `other` (three different places, each `length` long). */
static void fft(const Plan *plan, const Complex *in, Complex *out, Complex *other, Complex *scratch) {
    switch (plan->length) {
        case 1: out[0] = in[0]; return;
        case 7: fft7(in, out); return;
        case 14: fft14(in, out, other); return;
        case 28: fft28(in, out, other); return;
        case 32: fft32(plan->roots, in, out, other); return;
        case 56: fft56(in, out, other); return;
        case 64: fft64(plan->roots, in, out, other); return;
        case 112: fft112(plan->roots, in, out, other); return;
    }
    int n = plan->length, stride = 1;
    for (int i = 0; i < plan->passes; i++) {
        const int r = plan->radix[i];
        Complex *to = (plan->passes - i) % 2 ? out : other;
        switch (r) {
            case 2: pass2(n, stride, plan->roots, in, to); break;
            case 3: pass3(n, stride, plan->roots, in, to); break;
            case 4: pass4(n, stride, plan->roots, in, to); break;
            case 5: pass5(n, stride, plan->roots, in, to); break;
            case 6: pass6(n, stride, plan->roots, in, to); break;
            case 7: pass7(n, stride, plan->roots, in, to); break;
            case 8: pass8(n, stride, plan->roots, in, to); break;
            case 10: pass10(n, stride, plan->roots, in, to); break;
            case 14: pass14(n, stride, plan->roots, in, to); break;
            default:
                if (plan->axis && r == plan->axis->prime)
                    pass_by_convolution(n, stride, plan, in, to, scratch);
                else
                    pass_any(r, n, stride, plan->length, plan->roots, in, to, scratch);
        }
        in = to;
        n /= r;
        stride *= r;
    }
}

/* A pass whose radix is the axis's prime r: but for x[0] and y[0], y by inverse powers is the cyclic
 * convolution of x by its powers with the roots. `scratch` holds 3 times the convolution's size, and 2 · size more. */
static void pass_by_convolution(int n, int stride, const Plan *plan, const Complex *in, Complex *out,
                                Complex *scratch) {
    const Axis *axis = plan->axis;
    const int r = axis->prime, size = axis->size, m = n / r;
    const Plan inner = make_plan(size, axis->inner_roots, NULL);
    Complex *a = scratch, *b = scratch + size, *c = scratch + 2 * size, *rest = scratch + 3 * size;
    for (int p = 0; p < m; p++)
        for (int q = 0; q < stride; q++) {
            const Complex *from = in + q + stride * p;
            Complex *to = out + q + stride * r * p;
            for (int i = 0; i < r - 1; i++) a[i] = from[stride * m * axis->powers[i]];
            memset(a + r - 1, 0, (size - r + 1) * sizeof(Complex));
            fft(&inner, a, b, c, rest);
            const Complex first = from[0];
            to[0] = (Complex){first.re + b[0].re, first.im + b[0].im};
            for (int i = 0; i < size; i++) {
                const Complex z = b[i];
                const REAL re = axis->kernel[2 * i], im = axis->kernel[2 * i + 1];
                b[i] = (Complex){z.re * im + z.im * re, z.re * re - z.im * im}; /* swapped */
            }
            b[0].re += first.im;
            b[0].im += first.re;
            fft(&inner, b, a, c, rest);
            for (int i = 0; i < r - 1; i++) { /* Inverse powers are the powers from the last one on, backwards. */
                const int power = axis->powers[i ? r - 1 - i : 0];
                const Complex y = a[i]; /* swapped */
                const REAL *root = plan->roots + 2 * stride * p * power;
                to[stride * power] =
                    m == 1 ? (Complex){y.im, y.re}
                           : (Complex){y.im * root[0] - y.re * root[1], y.im * root[1] + y.re * root[0]};
            }
        }
}

/* ---- Images to half spectra and back --------------------------------------------------------------------------
 *
 * A half spectrum is stored by columns, [v][u] with v = 0 … W / 2, which begin `pitch` numbers apart: rows are written
 * across them, and steps of many powers of two would meet in a few sets of the cache. Two real rows are one complex row;
 * separating them leaves a factor of 2, which is undone in the filter. The first column, and of an even width the last,
 * are real too: both as one complex column were 0 to 3 % faster at 14, 28 and 56, less than calls vary, and odd
 * sides have but one, so each is transformed by itself. An inverse FFT is a forward one with
 * real and imaginary part exchanged on both sides ("swapped").
 */

typedef struct {
    int height, width, columns, pitch;
    Plan down, along; /* Of a column and of a row. */
} Shape;

typedef struct {
    Complex *spectrum, *second; /* pitch × columns each */
    Complex *filter, *gradient; /* height × columns each */
    Complex *a, *b, *c, *scratch;                   /* the longer side each; for scratch see spare */
    Vector *weights;                                /* of the last layer, and its bias */
    REAL *features;                                 /* their gradient */
} Work;

static int pitch_of(int height) { return height % 16 ? height : height + 1; }

static Shape make_shape(int height, int width, const Axis *down, const Axis *along) {
    return (Shape){height, width, width / 2 + 1, pitch_of(height), make_plan(height, down->roots, down),
                   make_plan(width, along->roots, along)};
}

/* Complex numbers of scratch that passes need. */
static int spare(const Axis *down, const Axis *along, int side) {
    const int size = down->size > along->size ? down->size : along->size;
    return 2 * side + 5 * size;
}

INLINE void all_within(Vector numbers[LANES], const REAL *limits) {
    UNROLL(16) for (int i = 0; i < LANES; i++) numbers[i] = within(numbers[i], limits[0], limits[1]);
}

/* Row h, which is even, and the next, within limits unless these are null. */
INLINE void forward_by(const REAL *limits, const char *images, const char *end, Layout layout, const Shape *shape,
                       const Work *work, Complex *spectrum, int h) {
    const int height = shape->height, width = shape->width, pair = h + 1 < height;
    Complex *row = work->a;
    for (int part = 0; part <= pair; part++)
        for (int first = 0; first < width; first += LANES) {
            const int count = least(width - first, LANES);
            Vector numbers[LANES], *to = &row[first].re + part;
            load(images, end, layout, (int64_t)(h + part) * width + first, count, numbers);
            if (limits) all_within(numbers, limits);
            if (count == LANES) {
                UNROLL(16) for (int i = 0; i < LANES; i++) to[2 * i] = numbers[i];
            } else {
                for (int i = 0; i < count; i++) to[2 * i] = numbers[i];
            }
        }
    if (!pair)
        for (int w = 0; w < width; w++) row[w].im = (Vector){0};
    fft(&shape->along, row, work->b, work->c, work->scratch);
    for (int v = 0; v < shape->columns; v++) {
        const Complex z = work->b[v], mirror = work->b[v ? width - v : 0];
        Complex *to = spectrum + (int64_t)v * shape->pitch + h;
        to[0] = (Complex){z.re + mirror.re, z.im - mirror.im};
        if (pair) to[1] = (Complex){z.im + mirror.im, mirror.re - z.re};
    }
}

/* Functions of their own: with a question in them the loops of load and store are slower where there is no limit. */
static __attribute__((noinline)) void two_rows_forward(const char *images, const char *end, Layout layout,
                                                       const Shape *shape, const Work *work, Complex *spectrum, int h) {
    forward_by(NULL, images, end, layout, shape, work, spectrum, h);
}

static __attribute__((noinline)) void two_rows_forward_within(const REAL *limits, const char *images, const char *end,
                                                              Layout layout, const Shape *shape, const Work *work,
                                                              Complex *spectrum, int h) {
    forward_by(limits, images, end, layout, shape, work, spectrum, h);
}

static void rows_forward(const char *images, const char *end, Layout layout, const Shape *shape, const Work *work,
                         Complex *spectrum) {
    for (int h = 0; h < shape->height; h += 2) two_rows_forward(images, end, layout, shape, work, spectrum, h);
}

/* From a swapped spectrum. Of columns that are their own mirror image the imaginary part is not used. */
INLINE void inverse_by(const REAL *limits, char *images, Layout layout, const Shape *shape, const Work *work,
                       const Complex *spectrum, int h) {
    const int height = shape->height, width = shape->width, pair = h + 1 < height;
    Complex *row = work->a;
    for (int v = 0; v < shape->columns; v++) {
        const Complex *from = spectrum + (int64_t)v * shape->pitch + h, none = {{0}, {0}};
        const Complex one = from[0], two = pair ? from[1] : none;
        const int mirror = v ? width - v : 0;
        if (mirror == v) {
            row[v] = (Complex){two.im, one.im};
        } else {
            row[v] = (Complex){one.re + two.im, one.im - two.re};
            row[mirror] = (Complex){two.im - one.re, one.im + two.re};
        }
    }
    fft(&shape->along, row, work->b, work->c, work->scratch);
    for (int part = 0; part <= pair; part++) /* swapped */
        for (int first = 0; first < width; first += LANES) {
            const int count = least(width - first, LANES);
            Vector numbers[LANES];
            const Vector *from = &work->b[first].im - part;
            if (count == LANES) {
                UNROLL(16) for (int i = 0; i < LANES; i++) numbers[i] = from[2 * i];
            } else {
                for (int i = 0; i < LANES; i++) numbers[i] = i < count ? from[2 * i] : (Vector){0};
            }
            if (limits) all_within(numbers, limits);
            store(images, layout, (int64_t)(h + part) * width + first, count, numbers);
        }
}

static __attribute__((noinline)) void two_rows_inverse(char *images, Layout layout, const Shape *shape,
                                                       const Work *work, const Complex *spectrum, int h) {
    inverse_by(NULL, images, layout, shape, work, spectrum, h);
}

static __attribute__((noinline)) void two_rows_inverse_within(const REAL *limits, char *images, Layout layout,
                                                              const Shape *shape, const Work *work,
                                                              const Complex *spectrum, int h) {
    inverse_by(limits, images, layout, shape, work, spectrum, h);
}

static void rows_inverse(char *images, Layout layout, const Shape *shape, const Work *work, const Complex *spectrum) {
    for (int h = 0; h < shape->height; h += 2) two_rows_inverse(images, layout, shape, work, spectrum, h);
}

/* A filter (C, H, W / 2 + 1) is an image of complex numbers. Packed by columns, and halved: see above. */
static void pack(const REAL *filter, const REAL *end, Layout layout, const Shape *shape, Complex *out) {
    const REAL scale = 0.5;
    int u = 0, v = 0;
    for (int64_t first = 0; first < layout.points; first += LANES) {
        const int count = layout.points - first < LANES ? (int)(layout.points - first) : LANES;
        Vector numbers[LANES];
        load_by((const char *)filter, (const char *)end, layout, first, count, sizeof(REAL), read_real, numbers);
        for (int i = 0; i < count; i += 2) { /* LANES is even, so pairs stay together. */
            out[(int64_t)v * shape->height + u] = (Complex){numbers[i] * scale, numbers[i + 1] * scale};
            if (++v == shape->columns) v = 0, u++;
        }
    }
}

/* The inverse of pack for a product of two spectra, which is 4 times too large. Columns with a mirror image count
 * twice. */
static void unpack(const Complex *in, Layout layout, const Shape *shape, REAL *filter) {
    const REAL scale = 0.25;
    int u = 0, v = 0;
    for (int64_t first = 0; first < layout.points; first += LANES) {
        const int count = layout.points - first < LANES ? (int)(layout.points - first) : LANES;
        Vector numbers[LANES] = {{0}};
        for (int i = 0; i < count; i += 2) {
            const Complex number = in[(int64_t)v * shape->height + u];
            const REAL factor = v && 2 * v != shape->width ? 2 * scale : scale;
            numbers[i] = number.re * factor;
            numbers[i + 1] = number.im * factor;
            if (++v == shape->columns) v = 0, u++;
        }
        store_by((char *)filter, layout, first, count, sizeof(REAL), write_real, numbers);
    }
}

/* ---- The last layer of the filter's MLPs ------------------------------------------------------------------------
 *
 * Real parts are sums over even hidden features (and the bias), imaginary parts over odd ones: see features.c. The
 * filter of the channels at hand is made a column at a time, where the column's spectrum is about to be multiplied,
 * and its gradient is taken apart where it has been summed, so that no filter is ever as large as all channels.
 */

/* The weights of one MLP after the other, and the bias; halved, as a packed filter is. */
static void pack_weights(const Filter *filter, int64_t channels, int64_t channel, int lanes, Vector *weights) {
    const REAL half = 0.5;
    const int hidden = filter->hidden;
    memset(weights, 0, (2 * hidden + 1) * sizeof(Vector));
    for (int part = 0; part < 2; part++)
        for (int lane = 0; lane < lanes; lane++) {
            const REAL *row = filter->weight + (part * channels + channel + lane) * hidden;
            for (int k = 0; k < hidden; k++) weights[part * hidden + k][lane] = half * row[k];
        }
    for (int lane = 0; lane < lanes; lane++)
        weights[2 * hidden][lane] = half * (REAL)filter->scale * filter->bias[channel + lane];
}

/* mix for so many hidden features as the compiler knows: their weights stay in registers. */
INLINE void mix_few(int hidden, const Filter *filter, const Vector *weights, int64_t points, int64_t first, int count,
                    Complex *out) {
    const REAL *even = filter->features + first, *odd = even + hidden * points;
    Vector own[2 * 4 + 1];
    UNROLL(9) for (int k = 0; k <= 2 * hidden; k++) own[k] = weights[k];
    for (int at = 0; at < count; at++) {
        Vector re = own[2 * hidden], im = {0};
        UNROLL(4) for (int k = 0; k < hidden; k++) {
            re += own[k] * even[k * points + at];
            im += own[hidden + k] * odd[k * points + at];
        }
        out[at] = (Complex){re, im};
    }
}

/* The filter at `count` frequencies from number `first` on. */
static void mix(const Filter *filter, const Vector *weights, int64_t points, int64_t first, int count, Complex *out) {
    const int hidden = filter->hidden;
    if (hidden == 4) {
        mix_few(4, filter, weights, points, first, count, out);
        return;
    }
    const REAL *even = filter->features + first, *odd = even + hidden * points;
    for (int at = 0; at < count; at += 4) {
        int where[4];
        Vector re[4], im[4];
        UNROLL(4) for (int i = 0; i < 4; i++) {
            where[i] = least(at + i, count - 1); /* Beyond the last one it once more. */
            re[i] = weights[2 * hidden];
            im[i] = (Vector){0};
        }
        for (int k = 0; k < hidden; k++) {
            const Vector a = weights[k], b = weights[hidden + k];
            UNROLL(4) for (int i = 0; i < 4; i++) {
                re[i] += a * even[k * points + where[i]];
                im[i] += b * odd[k * points + where[i]];
            }
        }
        UNROLL(4) for (int i = 0; i < 4; i++) out[where[i]] = (Complex){re[i], im[i]};
    }
}

/* From the gradient of the filter that mix made, which is used up, those of its weights and bias, one set of rows a
 * channel, and of the features: these are added to what is there. Columns with a mirror image count twice; the
 * gradient is 4 times too large as it comes. */
static void unmix(const Filter *filter, const Vector *weights, const Shape *shape, Complex *gradient, int lanes,
                  int64_t channels, int64_t channel, REAL *for_features, REAL *for_weight, REAL *for_bias) {
    const int hidden = filter->hidden;
    const int64_t points = (int64_t)shape->height * shape->columns;
    Vector bias = {0};
    Vector sums[2 * hidden];
    memset(sums, 0, sizeof sums);
    for (int64_t first = 0; first < points; first += LANES) {
        const int count = points - first < LANES ? (int)(points - first) : LANES;
        Vector re[LANES], im[LANES];
        for (int i = 0; i < LANES; i++) {
            re[i] = im[i] = (Vector){0};
            if (i < count) {
                const int64_t v = (first + i) / shape->height;
                const REAL factor = v && 2 * v != shape->width ? 0.5 : 0.25;
                re[i] = gradient[first + i].re * factor;
                im[i] = gradient[first + i].im * factor;
                bias += re[i];
            }
        }
        for (int k = 0; k < hidden; k += 4) {
            const REAL *even[4], *odd[4];
            Vector a[4], b[4];
            UNROLL(4) for (int j = 0; j < 4; j++) {
                const int at = least(k + j, hidden - 1);
                even[j] = filter->features + at * points + first;
                odd[j] = even[j] + hidden * points;
                a[j] = sums[at];
                b[j] = sums[hidden + at];
            }
            for (int i = 0; i < count; i++)
                UNROLL(4) for (int j = 0; j < 4; j++) {
                    a[j] += re[i] * even[j][i];
                    b[j] += im[i] * odd[j][i];
                }
            UNROLL(4) for (int j = 0; j < 4; j++) {
                const int at = least(k + j, hidden - 1);
                sums[at] = a[j];
                sums[hidden + at] = b[j];
            }
        }
        transpose(re);
        transpose(im);
        for (int k = 0; k < hidden; k++) {
            Vector even = {0}, odd = {0};
            for (int lane = 0; lane < LANES; lane++) {
                even += re[lane] * weights[k][lane];
                odd += im[lane] * weights[hidden + k][lane];
            }
            REAL *to[2] = {for_features + k * points + first, for_features + (hidden + k) * points + first};
            /* The weights are halved. */
            store_some(to[0], count, load_some(to[0], count) + 2 * even);
            store_some(to[1], count, load_some(to[1], count) + 2 * odd);
        }
    }
    for (int lane = 0; lane < lanes; lane++) {
        for (int part = 0; part < 2; part++)
            for (int k = 0; k < hidden; k++)
                for_weight[(part * channels + channel + lane) * hidden + k] = sums[part * hidden + k][lane];
        for_bias[channel + lane] = (REAL)filter->scale * bias[lane];
        for_bias[channels + channel + lane] = 0;
    }
}

static Layout image_layout(const Call *call, int64_t channel) {
    const int64_t left = call->channels - channel, points = (int64_t)call->height * call->width;
    const int lanes = left < LANES ? (int)left : LANES;
    return call->channels_last ? (Layout){1, call->channels, lanes, points, call->numbers}
                               : (Layout){points, 1, lanes, points, call->numbers};
}

static Layout filter_layout(const Shape *shape, int64_t channels, int64_t channel) {
    const int64_t left = channels - channel, points = (int64_t)shape->height * shape->columns * 2;
    return (Layout){points, 1, left < LANES ? (int)left : LANES, points, REALS};
}

static Shape shape_of(const Call *call) { return make_shape(call->height, call->width, call->down, call->along); }

static Work carve(char *memory, const Shape *shape, int planes, int hidden) {
    const int64_t plane = (int64_t)shape->height * shape->columns, pitched = (int64_t)shape->pitch * shape->columns;
    const int side = shape->height > shape->width ? shape->height : shape->width;
    Complex *at = (Complex *)(((uintptr_t)memory + 127) & ~(uintptr_t)127);
    Work work = {.a = at, .b = at + side, .c = at + 2 * side, .scratch = at + 3 * side};
    at += 3 * side + spare(shape->down.axis, shape->along.axis, side);
    work.spectrum = at;
    at += pitched;
    if (planes > 2) work.second = at, at += pitched;
    work.filter = at;
    at += planes > 1 ? plane : shape->height;
    if (planes > 2) work.gradient = at, at += plane;
    work.weights = (Vector *)at;
    work.features = (REAL *)(work.weights + 2 * hidden + 1);
    return work;
}

/* What a thread keeps of the filter for all images of the channels at hand. */
static void begin_channels(const Filter *filter, int64_t channels, int64_t channel, const Shape *shape,
                           const Work *work) {
    const Layout layout = filter_layout(shape, channels, channel);
    if (filter->half)
        pack(filter->half + channel * layout.points, filter->half + channels * layout.points, layout, shape,
             work->filter);
    else
        pack_weights(filter, channels, channel, layout.lanes, work->weights);
}

/* A column of it: made for the first image, and kept if there are `more`. */
INLINE const Complex *column_of(const Filter *filter, const Shape *shape, const Work *work, int v, int first,
                                int more) {
    Complex *column = work->filter + (filter->half || more ? (int64_t)v * shape->height : 0);
    if (!filter->half && first)
        mix(filter, work->weights, (int64_t)shape->height * shape->columns, (int64_t)v * shape->height,
            shape->height, column);
    return column;
}

/* ---- What is called from outside ------------------------------------------------------------------------------ */

int niff_lanes(void) { return LANES; }

/* Bytes of the second-level cache; where the system does not say, what most have at least. */
int64_t niff_cache(void) {
#ifdef _SC_LEVEL2_CACHE_SIZE
    const long bytes = sysconf(_SC_LEVEL2_CACHE_SIZE);
    if (bytes > 0) return bytes;
#endif
    return 1 << 18;
}

/* Whether images may be of such numbers. */
int niff_takes(int numbers) {
#ifdef BFLOAT16
    if (numbers == BFLOATS16) return 1;
#endif
#ifdef FLOAT16
    if (numbers == FLOATS16) return 1;
#endif
    return numbers == REALS;
}

/* Bytes of memory that each thread needs: for gradient (planes = 4), or for convolve, with a filter that is finished
 * or needed for several images (planes = 2) or made column by column (planes = 1). */
int64_t niff_workspace(int height, int width, int planes, int hidden, const Axis *down, const Axis *along) {
    const int64_t side = height > width ? height : width, plane = (int64_t)height * (width / 2 + 1);
    const int64_t features = planes > 2 ? (2 * hidden * plane * sizeof(REAL) + 127) & ~(int64_t)127 : 0;
    const int64_t pitched = (int64_t)pitch_of(height) * (width / 2 + 1);
    const int64_t spectra = planes > 2 ? 2 * pitched + 2 * plane : pitched + (planes > 1 ? plane : height);
    const int64_t numbers = spectra + 3 * side + spare(down, along, (int)side);
    return (int64_t)sizeof(Complex) * numbers + (2 * hidden + 1) * sizeof(Vector) + features + 128;
}

/* The columns of one group of channels, from what rows_forward leaves to what rows_inverse takes. */
static void columns(const Filter *filter, int64_t channels, int64_t channel, const Shape *shape, const Work *work,
                    int first, int more) {
    const int height = shape->height;
    for (int v = 0; v < shape->columns; v++) {
        Complex *column = work->spectrum + (int64_t)v * shape->pitch;
        const Complex *factor = column_of(filter, shape, work, v, first, more);
        fft(&shape->down, column, work->a, work->c, work->scratch);
        for (int u = 0; u < height; u++) {
            const Complex z = work->a[u], w = factor[u];
            work->a[u] = (Complex){z.re * w.im + z.im * w.re, z.re * w.re - z.im * w.im}; /* swapped */
        }
        if (filter->shift && v == 0) work->a[0].im += load_some(filter->shift + channel, channels - channel);
        fft(&shape->down, work->a, column, work->c, work->scratch);
    }
}

Runtime niff_runtime;

/* Gives the addresses of the three functions of a runtime. */
void niff_use_runtime(void *parallel, void *number, void *count) {
    niff_runtime.number = (int (*)(void))number;
    niff_runtime.count = (int (*)(void))count;
    niff_runtime.parallel = (void (*)(void (*)(void *), void *, unsigned, unsigned))parallel;
}

typedef struct {
    const Filter *filter;
    const Call *call;
    const char *x;
    char *y, *memory;
} Convolution;

static void convolve_in_thread(const void *of, int thread) {
    const Convolution *given = of;
    const Filter *filter = given->filter;
    const Call *call = given->call;
    const int64_t batch = call->batch, channels = call->channels;
    const int height = call->height, ways = call->ways, bytes = bytes_of(call->numbers);
    const Shape shape = shape_of(call);
    const int64_t image = (int64_t)height * shape.width * bytes;
    const int64_t together = ways * LANES, tasks = (channels + together - 1) / together * batch;
    const int planes = filter->half || batch > 1 ? 2 : 1;
    const int64_t each = niff_workspace(height, shape.width, planes, filter->hidden, call->down, call->along);
    const char *x_end = given->x + batch * channels * image;
    const REAL *limits = filter->limits;
    Work works[MOST_WAYS];
    for (int way = 0; way < ways; way++)
        works[way] = carve(given->memory + (thread * ways + way) * each, &shape, planes, filter->hidden);
    int64_t begun = -1;
    for (int64_t task = tasks * thread / call->threads; task < tasks * (thread + 1) / call->threads; task++) {
        const int64_t begin = task / batch * together, at = task % batch * channels * image;
        const int64_t left = (channels - begin + LANES - 1) / LANES;
        const int groups = left < ways ? (int)left : ways, first = begun != begin;
        const Layout layout = image_layout(call, begin), last = image_layout(call, begin + (groups - 1) * LANES);
        const int64_t from = at + begin * layout.lane_step * bytes, next = LANES * layout.lane_step * bytes;
        begun = begin;
        for (int way = 0; way < groups && first; way++)
            begin_channels(filter, channels, begin + way * LANES, &shape, &works[way]);
        for (int h = 0; h < height; h += 2)
            for (int way = 0; way < groups; way++) {
                const char *images = given->x + from + way * next;
                const Layout own = way + 1 < groups ? layout : last;
                if (limits)
                    two_rows_forward_within(limits, images, x_end, own, &shape, &works[way], works[way].spectrum, h);
                else
                    two_rows_forward(images, x_end, own, &shape, &works[way], works[way].spectrum, h);
            }
        for (int way = 0; way < groups; way++)
            columns(filter, channels, begin + way * LANES, &shape, &works[way], first, batch > 1);
        for (int h = 0; h < height; h += 2)
            for (int way = 0; way < groups; way++) {
                char *images = given->y + from + way * next;
                const Layout own = way + 1 < groups ? layout : last;
                if (limits)
                    two_rows_inverse_within(limits + 2, images, own, &shape, &works[way], works[way].spectrum, h);
                else
                    two_rows_inverse(images, own, &shape, &works[way], works[way].spectrum, h);
            }
    }
}

/* y = H · W · irfft2(filter · rfft2(x)), that is, 1 / (H · W) is expected in the filter. */
void niff_convolve(const Filter *filter, const Call *call, const char *x, char *y, char *memory) {
    const Convolution given = {filter, call, x, y, memory};
    in_parallel(call->threads, convolve_in_thread, &given);
}

typedef struct {
    const Filter *filter;
    const Call *call;
    const char *x, *output;
    char *input;
    REAL *for_half, *for_weight, *for_bias;
    char *memory;
} Gradient;

static void gradient_in_thread(const void *of, int thread) {
    const Gradient *given = of;
    const Filter *filter = given->filter;
    const Call *call = given->call;
    const int64_t batch = call->batch, channels = call->channels, parts = call->parts;
    const int height = call->height, threads = call->backward_threads, hidden = filter->hidden;
    const int bytes = bytes_of(call->numbers), learns = given->for_half || given->for_weight;
    const Shape shape = shape_of(call);
    const int64_t image = (int64_t)height * shape.width * bytes, plane = (int64_t)height * shape.columns;
    const int64_t tasks = (channels + LANES - 1) / LANES * parts, all = batch * channels * image;
    const int64_t each = niff_workspace(height, shape.width, 4, hidden, call->down, call->along);
    const Work work = carve(given->memory + thread * each, &shape, 4, hidden);
    if (given->for_weight) memset(work.features, 0, 2 * hidden * plane * sizeof(REAL));
    for (int64_t task = tasks * thread / threads; task < tasks * (thread + 1) / threads; task++) {
        const int64_t channel = task / parts * LANES, part = task % parts;
        const int64_t begin = batch * part / parts, end = batch * (part + 1) / parts;
        const Layout layout = image_layout(call, channel);
        if (given->input || given->for_weight) begin_channels(filter, channels, channel, &shape, &work);
        memset(work.gradient, 0, plane * sizeof(Complex));
        for (int64_t b = begin; b < end; b++) {
            const int64_t from = b * channels * image + channel * layout.lane_step * bytes;
            rows_forward(given->output + from, given->output + all, layout, &shape, &work, work.spectrum);
            if (learns) rows_forward(given->x + from, given->x + all, layout, &shape, &work, work.second);
            for (int v = 0; v < shape.columns; v++) {
                Complex *column = work.spectrum + (int64_t)v * shape.pitch;
                fft(&shape.down, column, work.a, work.c, work.scratch);
                if (learns) {
                    Complex *sum = work.gradient + (int64_t)v * height;
                    fft(&shape.down, work.second + (int64_t)v * shape.pitch, work.b, work.c, work.scratch);
                    for (int u = 0; u < height; u++) { /* conj(x) · output */
                        const Complex g = work.a[u], z = work.b[u];
                        sum[u].re += z.re * g.re + z.im * g.im;
                        sum[u].im += z.re * g.im - z.im * g.re;
                    }
                }
                if (given->input) {
                    const int first = b == begin, more = end - begin > 1;
                    const Complex *factor = column_of(filter, &shape, &work, v, first, more);
                    for (int u = 0; u < height; u++) { /* conj(filter) · output, swapped */
                        const Complex g = work.a[u], w = factor[u];
                        work.a[u] = (Complex){g.im * w.re - g.re * w.im, g.re * w.re + g.im * w.im};
                    }
                    fft(&shape.down, work.a, column, work.c, work.scratch);
                }
            }
            if (given->input) rows_inverse(given->input + from, layout, &shape, &work, work.spectrum);
        }
        if (given->for_half)
            unpack(work.gradient, filter_layout(&shape, channels, channel), &shape,
                   given->for_half + (part * channels + channel) * plane * 2);
        if (given->for_weight)
            unmix(filter, work.weights, &shape, work.gradient, layout.lanes, channels, channel, work.features,
                  given->for_weight + part * 2 * channels * hidden, given->for_bias + part * 2 * channels);
    }
}

/* Gradients of niff_convolve. `output` is the gradient of y, `input` receives that of x unless it is null. Unless they
 * are null, for_half[part] receives the part's share of a finished filter's gradient, (parts, C, H, W / 2 + 1) complex;
 * or for_weight and for_bias the shares of the gradients of weight and bias, (parts, …): the caller adds them up.
 * for_features receives the whole gradient of the features. */
void niff_gradient(const Filter *filter, const Call *call, const char *x, const char *output, char *input,
                   REAL *for_half, REAL *for_features, REAL *for_weight, REAL *for_bias, char *memory) {
    const Gradient given = {filter, call, x, output, input, for_half, for_weight, for_bias, memory};
    const int threads = call->backward_threads, hidden = filter->hidden;
    in_parallel(threads, gradient_in_thread, &given);
    if (!for_weight) return;
    const Shape shape = shape_of(call);
    const int64_t each = niff_workspace(shape.height, shape.width, 4, hidden, call->down, call->along);
    const int64_t numbers = 2 * hidden * (int64_t)shape.height * shape.columns;
    memcpy(for_features, carve(memory, &shape, 4, hidden).features, numbers * sizeof(REAL));
    for (int thread = 1; thread < threads; thread++) {
        const REAL *more = carve(memory + thread * each, &shape, 4, hidden).features;
        for (int64_t i = 0; i < numbers; i++) for_features[i] += more[i];
    }
}
