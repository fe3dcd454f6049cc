/* The hidden features of a filter's Hermitian half plane, and the gradients of the layers that make them.
 *
 * Two MLPs, the real and the imaginary one, map two coordinates to K hidden features: layers with bias, SiLU after
 * each. Of the real MLP's the even part is wanted, of the imaginary one's the odd part: half the sum of, or the
 * difference between, a frequency's features and its mirror image's. Lanes are frequencies; a block of them goes
 * through all layers before the next. Backward makes a block's features again.
 */
#include "vectors.h"

#include "calls.h"

enum {
    CHUNK = 8, /* Vectors of a block. */
    POINTS = CHUNK * LANES,
    MOST_LAYERS = 8
};

typedef Vector Block[CHUNK]; /* A unit's numbers, or a coordinate's, at the frequencies of a block. */

typedef struct {
    int count;                 /* Hidden layers. */
    int widths[MOST_LAYERS + 1]; /* Two coordinates, then the units of each layer. */
    int units, numbers;        /* Of all layers together: units, and weights with biases. */
    const REAL *const *tensors; /* Weight (2, out, in) and bias (2, out) of each layer in turn. */
} Layers;

static Layers make_layers(int count, const int *widths, const REAL *const *tensors) {
    Layers layers = {.count = count, .tensors = tensors, .widths = {widths[0]}};
    for (int l = 0; l < count; l++) {
        layers.widths[l + 1] = widths[l + 1];
        layers.units += widths[l + 1];
        layers.numbers += widths[l + 1] * (widths[l] + 1);
    }
    return layers;
}

/* exp(x), within a few units in the last place: 2^n · exp(r), r at most half of log 2, by exp's own series. */
INLINE Vector exponential(Vector x) {
#if REAL_BYTES == 4
    enum { TERMS = 7, MANTISSA = 23 };
    typedef int32_t Whole __attribute__((vector_size(VECTOR_BYTES)));
    const REAL lowest = -87, highest = 88, shift = 12582912, high = 0.693359375f, low = -2.12194440e-4f;
#else
    enum { TERMS = 13, MANTISSA = 52 };
    typedef int64_t Whole __attribute__((vector_size(VECTOR_BYTES)));
    const REAL lowest = -708, highest = 709, shift = 6755399441055744, high = 6.93147180369123816490e-01,
               low = 1.90821492927058770002e-10;
#endif
    static const REAL inverse_factorials[] = {
        1.0,       1.0,        1.0 / 2,     1.0 / 6,       1.0 / 24,       1.0 / 120,       1.0 / 720,
        1.0 / 5040, 1.0 / 40320, 1.0 / 362880, 1.0 / 3628800, 1.0 / 39916800, 1.0 / 479001600, 1.0 / 6227020800,
    };
    x = within(x, lowest, highest);
    const Vector shifted = x * (REAL)1.44269504088896340736 + shift, n = shifted - shift;
    const Vector r = x - n * high - n * low;
    Vector sum = all(inverse_factorials[TERMS]);
    UNROLL(16) for (int term = TERMS - 1; term >= 0; term--) sum = sum * r + inverse_factorials[term];
    return (Vector)((Whole)sum + ((Whole)shifted << MANTISSA));
}

/* out[o] = bias[o] + Σ weight[o · down + i · across] · in[i]; without a bias it is 0. What enters two vectors of `out`
 * stays in the nearest cache while all rows take it. */
static void multiply(const REAL *weight, int down, int across, const REAL *bias, int rows, int columns, int vectors,
                     const Block *in, Block *out) {
    for (int v = 0; v < vectors; v += 2)
        for (int o = 0; o < rows; o += 4) {
            const REAL *row[4];
            Vector one[4], two[4];
            UNROLL(4) for (int i = 0; i < 4; i++) { /* Beyond the last row it once more. */
                row[i] = weight + (int64_t)least(o + i, rows - 1) * down;
                one[i] = two[i] = all(bias ? bias[least(o + i, rows - 1)] : 0);
            }
            for (int c = 0; c < columns; c++) {
                const Vector a = in[c][v], b = in[c][v + 1];
                UNROLL(4) for (int i = 0; i < 4; i++) {
                    const REAL factor = row[i][c * across];
                    one[i] += a * factor;
                    two[i] += b * factor;
                }
            }
            UNROLL(4) for (int i = 3; i >= 0; i--) {
                out[least(o + i, rows - 1)][v] = one[i];
                out[least(o + i, rows - 1)][v + 1] = two[i];
            }
        }
}

/* sums[o · (columns + 1) + i] += outer[o] · in[i], and with the last of each row outer[o] alone; lane by lane. */
static void accumulate(const Block *outer, const Block *in, int rows, int columns, int vectors, Vector *sums) {
    for (int o = 0; o < rows; o++) {
        Vector *row = sums + (int64_t)o * (columns + 1), total = row[columns];
        for (int v = 0; v < vectors; v++) total += outer[o][v];
        row[columns] = total;
        for (int c = 0; c < columns; c += 4) {
            int at[4];
            Vector sum[4];
            UNROLL(4) for (int i = 0; i < 4; i++) {
                at[i] = least(c + i, columns - 1);
                sum[i] = row[at[i]];
            }
            for (int v = 0; v < vectors; v++)
                UNROLL(4) for (int i = 0; i < 4; i++) sum[i] += outer[o][v] * in[at[i]][v];
            UNROLL(4) for (int i = 0; i < 4; i++) row[at[i]] = sum[i];
        }
    }
}

/* Coordinates of a block's frequencies, or of their mirror images; 0 beyond the last one. */
static void coordinates(const REAL *grid, int64_t points, int64_t first, int side, int vectors, Block *out) {
    for (int axis = 0; axis < 2; axis++)
        for (int v = 0; v < vectors; v++)
            out[axis][v] = load_some(grid + (2 * axis + side) * points + first + v * LANES,
                                     points - first - v * LANES);
}

/* The units of all layers of one MLP, and where they are wanted SiLU's derivatives there. */
static void run(const Layers *layers, int part, int vectors, const Block *in, Block *units, Block *slopes) {
    for (int l = 0; l < layers->count; l++) {
        const int into = layers->widths[l], out = layers->widths[l + 1];
        const REAL *weight = layers->tensors[2 * l] + (int64_t)part * out * into;
        multiply(weight, into, 1, layers->tensors[2 * l + 1] + part * out, out, into, vectors, in, units);
        for (int o = 0; o < out; o++)
            for (int v = 0; v < vectors; v++) {
                const Vector before = units[o][v], gate = 1 / (1 + exponential(-before));
                units[o][v] = before * gate;
                if (slopes) slopes[o][v] = gate + gate * before * (1 - gate);
            }
        in = units;
        units += out;
        if (slopes) slopes += out;
    }
}

static int vectors_of(int64_t points, int64_t first) {
    const int64_t left = points - first;
    return left >= POINTS ? CHUNK : (int)(left + 2 * LANES - 1) / (2 * LANES) * 2;
}

static void *aligned(char *memory) { return (void *)(((uintptr_t)memory + 127) & ~(uintptr_t)127); }

/* Bytes of memory that each thread needs for features, or for their gradient. */
int64_t niff_features_workspace(int count, const int *widths, int gradient) {
    const Layers layers = make_layers(count, widths, NULL);
    const int64_t blocks = 2 + 2 * layers.units;
    return 128 + (gradient ? (blocks + 2 * layers.units) * sizeof(Block) + 2 * layers.numbers * sizeof(Vector)
                           : blocks * sizeof(Block));
}

typedef struct {
    const REAL *grid;
    int64_t points;
    const Layers *layers;
    double scale;
    const REAL *gradient; /* of the features, where that is given */
    REAL *features;       /* where they are wanted */
    char *memory;
    int64_t each; /* Bytes of it for a thread. */
    int threads;
} Generation;

/* The tasks of one thread are blocks of one MLP and of the other in turn. */
static int64_t first_task(const Generation *of, int thread) {
    return 2 * ((of->points + POINTS - 1) / POINTS) * thread / of->threads;
}

static void features_in_thread(const void *of, int thread) {
    const Generation *given = of;
    const Layers *layers = given->layers;
    const int64_t points = given->points;
    const int last = layers->widths[layers->count];
    Block *in = aligned(given->memory + thread * given->each), *units[2] = {in + 2, in + 2 + layers->units};
    for (int64_t task = first_task(given, thread); task < first_task(given, thread + 1); task++) {
        const int part = (int)(task % 2);
        const int64_t first = task / 2 * POINTS;
        const int vectors = vectors_of(points, first);
        for (int side = 0; side < 2; side++) {
            coordinates(given->grid, points, first, side, vectors, in);
            run(layers, part, vectors, in, units[side], NULL);
        }
        const Block *here = units[0] + layers->units - last, *there = units[1] + layers->units - last;
        const REAL half = (REAL)(given->scale / 2), other = part ? -half : half;
        for (int k = 0; k < last; k++)
            for (int v = 0; v < vectors; v++)
                store_some(given->features + ((int64_t)part * last + k) * points + first + v * LANES,
                           points - first - v * LANES, half * here[k][v] + other * there[k][v]);
    }
}

/* Even features of the real MLP and odd ones of the imaginary, times `scale`: features is (2, K, points).
 *
 * grid: (2, 2, points), either coordinate of each frequency, and of its mirror image. `widths` holds count + 1
 * numbers, `tensors` 2 · count: see Layers. */
void niff_features(const REAL *grid, int64_t points, int count, const int *widths, const REAL *const *tensors,
                   double scale, REAL *features, char *memory, int threads) {
    const Layers layers = make_layers(count, widths, tensors);
    const int64_t each = niff_features_workspace(count, widths, 0);
    const Generation given = {grid, points, &layers, scale, NULL, features, memory, each, threads};
    in_parallel(threads, features_in_thread, &given);
}

static void features_gradient_in_thread(const void *of, int thread) {
    const Generation *given = of;
    const Layers *layers = given->layers;
    const int64_t points = given->points;
    const int last = layers->widths[layers->count];
    Block *in = aligned(given->memory + thread * given->each), *units = in + 2, *slopes = units + layers->units;
    Block *outer = slopes + layers->units, *inner = outer + layers->units;
    Vector *all_sums = (Vector *)(inner + layers->units);
    memset(all_sums, 0, 2 * layers->numbers * sizeof(Vector));
    for (int64_t task = first_task(given, thread); task < first_task(given, thread + 1); task++) {
        const int part = (int)(task % 2);
        const int64_t first = task / 2 * POINTS;
        const int vectors = vectors_of(points, first);
        for (int side = 0; side < 2; side++) {
            const REAL factor = (REAL)(part && side ? -given->scale / 2 : given->scale / 2);
            coordinates(given->grid, points, first, side, vectors, in);
            run(layers, part, vectors, in, units, slopes);
            for (int k = 0; k < last; k++)
                for (int v = 0; v < vectors; v++)
                    outer[k][v] = factor * load_some(given->gradient + ((int64_t)part * last + k) * points + first +
                                                         v * LANES,
                                                     points - first - v * LANES);
            int unit = layers->units, number = layers->numbers;
            for (int l = layers->count - 1; l >= 0; l--) {
                const int into = layers->widths[l], width = layers->widths[l + 1];
                unit -= width;
                number -= width * (into + 1);
                for (int o = 0; o < width; o++)
                    for (int v = 0; v < vectors; v++) outer[o][v] *= slopes[unit + o][v];
                const Block *entering = l ? units + unit - into : in;
                accumulate(outer, entering, width, into, vectors, all_sums + part * layers->numbers + number);
                if (l) {
                    const REAL *weight = layers->tensors[2 * l] + (int64_t)part * width * into;
                    multiply(weight, 1, into, NULL, into, width, vectors, outer, inner);
                    memcpy(outer, inner, into * sizeof(Block));
                }
            }
        }
    }
}

/* The gradients of the layers' tensors, into `out`, given that of the features. */
void niff_features_gradient(const REAL *grid, int64_t points, int count, const int *widths,
                            const REAL *const *tensors, double scale, const REAL *gradient, REAL *const *out,
                            char *memory, int threads) {
    const Layers layers = make_layers(count, widths, tensors);
    const int64_t each = niff_features_workspace(count, widths, 1);
    const Generation given = {grid, points, &layers, scale, gradient, NULL, memory, each, threads};
    in_parallel(threads, features_gradient_in_thread, &given);
    for (int part = 0, number = 0; part < 2; part++)
        for (int l = 0; l < count; l++)
            for (int o = 0; o < layers.widths[l + 1]; o++)
                for (int i = 0, into = layers.widths[l]; i <= into; i++, number++) {
                    REAL total = 0;
                    for (int thread = 0; thread < threads; thread++) {
                        const Block *in = aligned(memory + thread * each);
                        const Vector sum = ((const Vector *)(in + 2 + 4 * layers.units))[number];
                        for (int lane = 0; lane < LANES; lane++) total += sum[lane];
                    }
                    const int64_t row = (int64_t)part * layers.widths[l + 1] + o;
                    if (i < into)
                        out[2 * l][row * into + i] = total;
                    else
                        out[2 * l + 1][row] = total;
                }
}

/* ---- Whether weights are what they were ------------------------------------------------------------------------- */

/* A number for all bits of tensors of so many bytes; words are turned as they come, so that no two changes cancel. */
uint64_t niff_sum(int count, const char *const *tensors, const int64_t *bytes) {
    typedef uint32_t Words __attribute__((vector_size(VECTOR_BYTES)));
    Words strands[4];
    for (int s = 0; s < 4; s++) strands[s] = (Words){0} + (uint32_t)(s + 1);
    for (int t = 0; t < count; t++)
        for (int64_t at = 0; at < bytes[t]; at += sizeof strands) {
            Words words[4] = {{0}};
            if (bytes[t] - at >= (int64_t)sizeof words)
                memcpy(words, tensors[t] + at, sizeof words);
            else
                memcpy(words, tensors[t] + at, bytes[t] - at);
            UNROLL(4) for (int s = 0; s < 4; s++) {
                const Words product = (strands[s] ^ words[s]) * 0x9E3779B1u;
                strands[s] = product << 15 | product >> 17;
            }
        }
    uint64_t sum = 0, parts[sizeof strands / sizeof sum];
    memcpy(parts, strands, sizeof strands);
    for (size_t i = 0; i < sizeof parts / sizeof *parts; i++) {
        sum = (sum ^ parts[i]) * 0x9E3779B97F4A7C15u;
        sum ^= sum >> 32;
    }
    return sum;
}

/* ---- Both kernels in one call ----------------------------------------------------------------------------------- */

void niff_convolve(const Filter *filter, const Call *call, const char *x, char *y, char *memory);
void niff_gradient(const Filter *filter, const Call *call, const char *x, const char *output, char *input,
                   REAL *for_half, REAL *for_features, REAL *for_weight, REAL *for_bias, char *memory);

static Filter filter_of(const Hidden *hidden, const REAL *const *tensors, const REAL *features) {
    const REAL *const *last = tensors + 2 * hidden->count;
    return (Filter){NULL, features, last[0], last[1], hidden->scale, hidden->widths[hidden->count], NULL, NULL};
}

/* niff_features, and niff_convolve with what they are; `tensors` are those of the last layer too. */
void niff_generate(const Hidden *hidden, const Call *call, const REAL *grid, const REAL *const *tensors,
                   const char *x, char *y, REAL *features, char *memory) {
    niff_features(grid, hidden->points, hidden->count, hidden->widths, tensors, hidden->scale, features, memory,
                  hidden->threads);
    const Filter filter = filter_of(hidden, tensors, features);
    niff_convolve(&filter, call, x, y, memory);
}

/* The gradients of niff_generate: of x unless `input` is null, and of the tensors, `into` as many. The call divides
 * its batch into one part. `memory` begins with room for the gradient of the features. */
void niff_generate_gradients(const Hidden *hidden, const Call *call, const REAL *grid, const REAL *const *tensors,
                             const REAL *features, const char *x, const char *output, char *input,
                             REAL *const *into, char *memory) {
    const Filter filter = filter_of(hidden, tensors, features);
    REAL *for_features = (REAL *)memory, *const *last = into + 2 * hidden->count;
    memory += (2 * hidden->widths[hidden->count] * hidden->points * sizeof(REAL) + 127) & ~(size_t)127;
    niff_gradient(&filter, call, x, output, input, NULL, for_features, last[0], last[1], memory);
    niff_features_gradient(grid, hidden->points, hidden->count, hidden->widths, tensors, hidden->scale, for_features,
                           into, memory, hidden->backward_threads);
}
