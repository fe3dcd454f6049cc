/* What the kernels are told: see kernel.py and generated.py, which have the same structures. */
#ifndef NIFF_CALLS_H
#define NIFF_CALLS_H

/* What is computed once for a length. A prime factor for which a direct sum is too much work is transformed as a
 * cyclic convolution (Rader 1968) of `size` points: prime - 1, or enough to pad it where that has large factors. */
typedef struct {
    const REAL *roots;              /* exp(-2πi k / length), k = 0 … length - 1, real and imaginary part side by side. */
    int prime, size;                /* Both 0 if there is none. */
    const int32_t *powers;          /* g^0, g^1, … g^(prime - 2) modulo prime, which are all numbers but 0. */
    const REAL *inner_roots;        /* of a transform of `size` points. */
    const REAL *kernel;             /* The transform of the roots by inverse powers, over `size`. */
} Axis;

/* A filter, finished or to be made of hidden features. */
typedef struct {
    const REAL *half;     /* The finished filter (C, H, W / 2 + 1), complex; else null, and then: */
    const REAL *features; /* (2, hidden, points), columns of the half plane one after the other. */
    const REAL *weight;   /* (2, C, hidden) */
    const REAL *bias;     /* (2, C), of which the real one is not cancelled. */
    double scale;         /* On the bias; it is in the features already. */
    int hidden;
    /* Of these niff_gradient takes no notice; each may be null: */
    const REAL *shift;    /* (C), what is added to all numbers of an image. */
    const REAL *limits;   /* Least and largest of what enters, then of what leaves: beyond them stands the limit. */
} Filter;

/* What calls on images (B, C, H, W), or (B, H, W, C) if channels_last, have in common. */
typedef struct {
    const Axis *down, *along; /* For a column and for a row. */
    int64_t batch, channels;
    int height, width, channels_last, numbers;
    int threads, backward_threads;
    int parts; /* Into which the batch is divided, backward. */
    int ways;  /* Groups of channels that are taken at once, forward: those that share cache lines. */
} Call;

/* What calls with hidden layers of the same sizes, on as many frequencies, have in common. */
typedef struct {
    int64_t points;
    const int *widths; /* Two coordinates, then the units of each layer: count + 1 numbers. */
    double scale;
    int count, threads, backward_threads;
} Hidden;

#endif
