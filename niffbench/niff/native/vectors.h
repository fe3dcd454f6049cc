/* Vectors of numbers, whatever the CPU's are: what the kernels have in common.
 *
 * Compiled once per element type: REAL is float or double, REAL_BYTES its size.
 */
#ifndef NIFF_VECTORS_H
#define NIFF_VECTORS_H
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#ifdef __AVX__
#include <immintrin.h>
#endif

#ifndef REAL
#define REAL float
#endif

#if defined(VECTOR_BYTES) /* wider or narrower than the CPU's: slower, but as right */
#elif defined(__AVX512F__)
#define VECTOR_BYTES 64
#elif defined(__AVX__)
#define VECTOR_BYTES 32
#else
#define VECTOR_BYTES 16
#endif

typedef REAL Vector __attribute__((vector_size(VECTOR_BYTES)));
typedef REAL Unaligned __attribute__((vector_size(VECTOR_BYTES), aligned(sizeof(REAL)), may_alias));
enum { LANES = VECTOR_BYTES / sizeof(REAL) };

#define INLINE static inline __attribute__((always_inline))

/* Before a loop that the compiler unrolls whole; it has at most `count` rounds. */
#define PRAGMA(text) _Pragma(#text)
#ifdef __clang__
#define UNROLL(count) PRAGMA(clang loop unroll(full))
#else
#define UNROLL(count) PRAGMA(GCC unroll count)
#endif

/* ---- Transposition of LANES × LANES numbers ------------------------------------------------------------------ */

#if defined(__clang__) || __GNUC__ >= 12
#define SHUFFLE(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
typedef __typeof__((Vector){0} < (Vector){0}) Indices;
#define SHUFFLE(a, b, ...) __builtin_shuffle(a, b, (Indices){__VA_ARGS__})
#endif

/* Stage s exchanges, between rows i and i + s, the lanes whose number has bit s with those that have it not. */
#define LOW(l, s) (((l) & (s)) ? LANES + (l) - (s) : (l))
#define HIGH(l, s) (((l) & (s)) ? LANES + (l) : (l) + (s))
#define TWO(F, l, s) F(l, s), F(l + 1, s)
#define FOUR(F, l, s) TWO(F, l, s), TWO(F, l + 2, s)
#define EIGHT(F, l, s) FOUR(F, l, s), FOUR(F, l + 4, s)
#define SIXTEEN(F, l, s) EIGHT(F, l, s), EIGHT(F, l + 8, s)
#define EXCHANGE(COUNT, s)                                          \
    UNROLL(16) for (int i = 0; i < LANES; i++) {      \
        if (!(i & (s))) {                                           \
            Vector a = rows[i], b = rows[i + (s)];                  \
            rows[i] = SHUFFLE(a, b, COUNT(LOW, 0, s));              \
            rows[i + (s)] = SHUFFLE(a, b, COUNT(HIGH, 0, s));       \
        }                                                           \
    }

INLINE void transpose(Vector rows[LANES]) {
#define LANE_COUNT (VECTOR_BYTES / REAL_BYTES)
#if LANE_COUNT == 16
    EXCHANGE(SIXTEEN, 8) EXCHANGE(SIXTEEN, 4) EXCHANGE(SIXTEEN, 2) EXCHANGE(SIXTEEN, 1)
#elif LANE_COUNT == 8 /* In an order of which each step is one instruction of AVX. */
    UNROLL(4) for (int i = 0; i < 8; i += 2) {
        const Vector a = rows[i], b = rows[i + 1];
        rows[i] = SHUFFLE(a, b, 0, 8, 1, 9, 4, 12, 5, 13);
        rows[i + 1] = SHUFFLE(a, b, 2, 10, 3, 11, 6, 14, 7, 15);
    }
    UNROLL(2) for (int i = 0; i < 8; i += 4) {
        const Vector a = rows[i], b = rows[i + 1], c = rows[i + 2], d = rows[i + 3];
        rows[i] = SHUFFLE(a, c, 0, 1, 8, 9, 4, 5, 12, 13);
        rows[i + 1] = SHUFFLE(a, c, 2, 3, 10, 11, 6, 7, 14, 15);
        rows[i + 2] = SHUFFLE(b, d, 0, 1, 8, 9, 4, 5, 12, 13);
        rows[i + 3] = SHUFFLE(b, d, 2, 3, 10, 11, 6, 7, 14, 15);
    }
    UNROLL(4) for (int i = 0; i < 4; i++) {
        const Vector a = rows[i], b = rows[i + 4];
        rows[i] = SHUFFLE(a, b, 0, 1, 2, 3, 8, 9, 10, 11);
        rows[i + 4] = SHUFFLE(a, b, 4, 5, 6, 7, 12, 13, 14, 15);
    }
#elif LANE_COUNT == 4
    EXCHANGE(FOUR, 2) EXCHANGE(FOUR, 1)
#else
    EXCHANGE(TWO, 1)
#endif
}

/* ---- Numbers in memory: LANES of them, wherever they lie ------------------------------------------------------ */

INLINE Vector read_real(const char *from) { return *(const Unaligned *)from; }

INLINE void write_real(char *to, Vector numbers) { *(Unaligned *)to = numbers; }

#if REAL_BYTES == 4
#define BFLOAT16
typedef uint16_t Halves __attribute__((vector_size(VECTOR_BYTES / 2)));
typedef uint32_t Words __attribute__((vector_size(VECTOR_BYTES)));

INLINE Vector read_bfloat16(const char *from) {
    Halves halves;
    memcpy(&halves, from, sizeof halves);
    return (Vector)(__builtin_convertvector(halves, Words) << 16);
}

/* To the nearest, of two as near the even one; what is not a number stays none. */
INLINE void write_bfloat16(char *to, Vector numbers) {
    const Words words = (Words)numbers, none = (Words)(numbers != numbers);
    const Words nearest = words + 0x7fff + ((words >> 16) & 1);
    const Halves halves = __builtin_convertvector(((nearest & ~none) | ((words | 0x400000) & none)) >> 16, Halves);
    memcpy(to, &halves, sizeof halves);
}

#if defined(__F16C__) && VECTOR_BYTES >= 32
#define FLOAT16

INLINE Vector read_float16(const char *from) {
    Vector numbers;
    for (int i = 0; i < LANES; i += 8) {
        const __m256 eight = _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)(from + 2 * i)));
        memcpy((char *)&numbers + 4 * i, &eight, sizeof eight);
    }
    return numbers;
}

INLINE void write_float16(char *to, Vector numbers) {
    for (int i = 0; i < LANES; i += 8) {
        __m256 eight;
        memcpy(&eight, (const char *)&numbers + 4 * i, sizeof eight);
        _mm_storeu_si128((__m128i *)(to + 2 * i), _mm256_cvtps_ph(eight, _MM_FROUND_TO_NEAREST_INT));
    }
}
#elif defined(__FLT16_MAX__)
#define FLOAT16
typedef _Float16 Floats16 __attribute__((vector_size(VECTOR_BYTES / 2)));

INLINE Vector read_float16(const char *from) {
    Floats16 numbers;
    memcpy(&numbers, from, sizeof numbers);
    return __builtin_convertvector(numbers, Vector);
}

INLINE void write_float16(char *to, Vector numbers) {
    const Floats16 rounded = __builtin_convertvector(numbers, Floats16);
    memcpy(to, &rounded, sizeof rounded);
}
#endif
#endif

/* ---- Small things ---------------------------------------------------------------------------------------------- */

INLINE Vector all(REAL number) { return number - (Vector){0}; }

INLINE int least(int a, int b) { return a < b ? a : b; }

/* The limit in place of what is beyond it; what is not a number stays none. */
INLINE Vector within(Vector x, REAL lowest, REAL highest) {
#if defined(__AVX__) && VECTOR_BYTES == 32 && REAL_BYTES == 4 /* Of which compilers do not think by themselves. */
    return (Vector)_mm256_min_ps((__m256)all(highest), _mm256_max_ps((__m256)all(lowest), (__m256)x));
#else
    typedef __typeof__(x < x) Mask;
    const Mask below = x < all(lowest), above = x > all(highest);
    return (Vector)(((Mask)x & ~below & ~above) | ((Mask)all(lowest) & below) | ((Mask)all(highest) & above));
#endif
}

/* `count` numbers, at most LANES; the other lanes are zero. */
INLINE Vector load_some(const REAL *from, int64_t count) {
    if (count >= LANES) return *(const Unaligned *)from;
    Vector numbers = {0};
    memcpy(&numbers, from, (count > 0 ? count : 0) * sizeof(REAL));
    return numbers;
}

INLINE void store_some(REAL *to, int64_t count, Vector numbers) {
    if (count >= LANES)
        *(Unaligned *)to = numbers;
    else if (count > 0)
        memcpy(to, &numbers, count * sizeof(REAL));
}

/* ---- Threads: those of the OpenMP runtime that torch has loaded, so that no compiler need know OpenMP ------------- */

/* As the runtimes of GCC and of LLVM have them under the same names; null where there is none. See build.py. */
typedef struct {
    void (*parallel)(void (*member)(void *), void *data, unsigned threads, unsigned flags);
    int (*number)(void), (*count)(void); /* Of the thread that asks, and of all that are there. */
} Runtime;
extern Runtime niff_runtime;

typedef struct {
    void (*work)(const void *call, int thread);
    const void *call;
    int threads;
} Team;

static void member_of_team(void *data) {
    const Team *team = data;
    for (int thread = niff_runtime.number(); thread < team->threads; thread += niff_runtime.count())
        team->work(team->call, thread);
}

/* work(call, thread) for the numbers of so many threads, at once where they can be. */
INLINE void in_parallel(int threads, void work(const void *, int), const void *call) {
    if (threads > 1 && niff_runtime.parallel) {
        Team team = {work, call, threads};
        niff_runtime.parallel(member_of_team, &team, threads, 0);
        return;
    }
    for (int thread = 0; thread < threads; thread++) work(call, thread);
}

#endif
