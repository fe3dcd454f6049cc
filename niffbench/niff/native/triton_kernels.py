"""The Triton kernels: a circular convolution with a filter that is made inside, and what that filter is made of.

A real image's transform falls into four real ones of a quarter of its size. At ±h, ±w lie four pixels; the sums
and differences of the four are even or odd along either axis, and a product with cosines, or sines, of N // 2 + 1
points from the left and from the right transforms each. Spectra at (u, v) and (-u, v) are sums and differences of
the four, and the same matrices lead back. Any side will do, odd and prime ones too.

A tile holds the four planes of one image, ``(4, TH, TW)``, each side a power of two and at least 16, as matrix
products want it. Maps so small that a quarter of one leaves half a tile empty are packed, several channels to a
tile, and the matrices repeat along their diagonals.

Importing this loads Triton, which decides there and then whether its interpreter runs the kernels.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def _apart(planes, TH: tl.constexpr, TW: tl.constexpr):
    """The four planes: even, even; even rows, odd columns; odd rows, even columns; odd, odd."""
    last = tl.permute(tl.reshape(planes, (2, 2, TH, TW)), (2, 3, 1, 0))
    even, odd = tl.split(last)
    ee, eo = tl.split(even)
    oe, oo = tl.split(odd)
    return ee, eo, oe, oo


@triton.jit
def _together(ee, eo, oe, oo, TH: tl.constexpr, TW: tl.constexpr):
    """The inverse of :func:`_apart`."""
    last = tl.join(tl.join(ee, eo), tl.join(oe, oo))
    return tl.reshape(tl.permute(last, (3, 2, 0, 1)), (4, TH, TW))


@triton.jit
def _rounded(x):
    """To the nearest of TF32: the bits that tensor cores then cut off would else make every product smaller.

    NaN stays as it is: the largest of its bits would become a number.
    """
    return tl.where(x == x, (x.to(tl.int32, bitcast=True) + 0x1000).to(tl.float32, bitcast=True), x)


@triton.jit
def _product(left, right, PRECISION: tl.constexpr):
    if PRECISION == "tf32":
        left = _rounded(left)
        right = _rounded(right)
    return tl.dot(left, right, input_precision=PRECISION)


@triton.jit
def _transformed(
    ee,
    eo,
    oe,
    oo,
    left,
    odd_left,
    right,
    odd_right,
    TH: tl.constexpr,
    TW: tl.constexpr,
    PRECISION: tl.constexpr,
    SEPARATE: tl.constexpr,
    PARTS: tl.constexpr,
):
    """Cosines and sines along columns and rows: all four planes, maybe parts of them, in one product, or each."""
    if SEPARATE:
        ee = _product(_product(left, ee, PRECISION), right, PRECISION)
        eo = _product(_product(left, eo, PRECISION), odd_right, PRECISION)
        oe = _product(_product(odd_left, oe, PRECISION), right, PRECISION)
        oo = _product(_product(odd_left, oo, PRECISION), odd_right, PRECISION)
    else:
        planes = tl.reshape(_together(ee, eo, oe, oo, TH, TW), (4, TH, PARTS, TW // PARTS))
        columns = tl.reshape(tl.permute(planes, (0, 2, 1, 3)), (4 * PARTS, TH, TW // PARTS))
        columns = _product(left, columns, PRECISION)
        planes = tl.permute(tl.reshape(columns, (4, PARTS, TH, TW // PARTS)), (0, 2, 1, 3))
        rows = tl.reshape(planes, (4 * PARTS, TH // PARTS, TW))
        rows = _product(rows, right, PRECISION)
        ee, eo, oe, oo = _apart(tl.reshape(rows, (4, TH, TW)), TH, TW)
    return ee, eo, oe, oo


@triton.jit
def _spectra(
    image,
    left,
    odd_left,
    right,
    odd_right,
    u,
    v,
    up,
    back,
    inside,
    two_rows,
    two_columns,
    W: tl.constexpr,
    TH: tl.constexpr,
    TW: tl.constexpr,
    PRECISION: tl.constexpr,
    SEPARATE: tl.constexpr,
    PARTS: tl.constexpr,
):
    """Real and imaginary parts of an image's spectrum at (u, v), and those at (-u, v). Each pixel is read once.

    A row or column that is its own mirror image counts as two; the matrices halve it.
    """
    here = tl.load(image + u * W + v, mask=inside, other=0.0).to(tl.float32)
    down = tl.load(image + up * W + v, mask=two_rows, other=0.0).to(tl.float32)
    across = tl.load(image + u * W + back, mask=two_columns, other=0.0).to(tl.float32)
    both = tl.load(image + up * W + back, mask=two_rows & two_columns, other=0.0).to(tl.float32)
    both = tl.where(two_rows & two_columns, both, tl.where(two_rows, down, tl.where(two_columns, across, here)))
    down = tl.where(two_rows, down, here)
    across = tl.where(two_columns, across, here)
    sums = here + down
    differences = here - down
    mirrored_sums = across + both
    mirrored_differences = across - both
    ee, eo, oe, oo = _transformed(
        sums + mirrored_sums,
        sums - mirrored_sums,
        differences + mirrored_differences,
        differences - mirrored_differences,
        *(left, odd_left, right, odd_right, TH, TW, PRECISION, SEPARATE, PARTS),
    )
    return ee - oo, -(oe + eo), ee + oo, oe - eo


@triton.jit
def _store_sums(
    real,
    imaginary,
    up_real,
    up_imaginary,
    sums_ptr,
    channels,
    c,
    u,
    v,
    up,
    inside,
    two_rows,
    H: tl.constexpr,
    W: tl.constexpr,
    HIDDEN: tl.constexpr,
):
    """A program's part of the filter's gradient. A column that stands for its mirror image too counts twice."""
    F: tl.constexpr = W // 2 + 1
    share = tl.where((v > 0) & (2 * v != W), 2.0, 1.0)
    sums_ptr += tl.program_id(1).to(tl.int64) * channels * (2 * H * F)
    if HIDDEN == 0:
        at = sums_ptr + 2 * (c * (H * F) + u * F + v)
        tl.store(at, share * real, mask=inside)
        tl.store(at + 1, share * imaginary, mask=inside)
        at = sums_ptr + 2 * (c * (H * F) + up * F + v)
        tl.store(at, share * up_real, mask=two_rows)
        tl.store(at + 1, share * up_imaginary, mask=two_rows)
    else:
        at = sums_ptr + c * (H * F) + v
        tl.store(at + u * F, share * real, mask=inside)
        tl.store(at + up * F, share * up_real, mask=two_rows)
        at += channels * (H * F)
        tl.store(at + u * F, share * imaginary, mask=inside)
        tl.store(at + up * F, share * up_imaginary, mask=two_rows)


@triton.jit(do_not_specialize=("batch", "channels"))
def convolve(
    image_ptr,
    result_ptr,
    other_ptr,
    sums_ptr,
    filter_ptr,
    weight_ptr,
    bias_ptr,
    matrices_ptr,
    scale,
    batch,
    channels,
    STEPS: tl.constexpr,
    H: tl.constexpr,
    W: tl.constexpr,
    SH: tl.constexpr,
    SW: tl.constexpr,
    TH: tl.constexpr,
    TW: tl.constexpr,
    HIDDEN: tl.constexpr,
    CONVOLVES: tl.constexpr,
    CORRELATES: tl.constexpr,
    CONJUGATE: tl.constexpr,
    AT_ONCE: tl.constexpr,
    SEPARATE: tl.constexpr,
    PARTS: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Images times a filter, and the sum over images of conj(other's spectrum) times the image's.

    The latter, where the images are gradients of a convolution's results and ``other`` the images that went in, is
    the gradient of the filter. A program does STEPS images of a tile's channels, one after the
    other; the last one again where there are fewer.

    Args:
        image_ptr: ``(batch, channels, H, W)``, as ``result_ptr`` and ``other_ptr``.
        sums_ptr: a part for each program of axis 1, ``(parts, 2, channels, H, W // 2 + 1)`` where HIDDEN is not
            0, else ``(parts, channels, H, W // 2 + 1, 2)``.
        filter_ptr: where HIDDEN is 0, the half plane, ``(channels, H, W // 2 + 1, 2)``. Else the even, then the
            odd hidden features of its MLPs, ``(2, HIDDEN, H, W // 2 + 1)``.
        weight_ptr: of the last layer, ``(2, channels, HIDDEN)``, with ``bias_ptr``, ``(2, channels)``.
        matrices_ptr: cosines, then sines, for the left, ``(2, TH, TH)``, then for the right, ``(2, TW, TW)``.
        scale: of the bias.
        SH, SW: sides of a packed map in the tile.
        CONVOLVES, CORRELATES: which of the two results is wanted.
        CONJUGATE: take the filter's conjugate.
        AT_ONCE: both results of an image one after the other, its spectrum being taken once; else all of one
            result first, which takes fewer registers.
        SEPARATE: transform the planes one by one, which takes less shared memory.
        PARTS: of each plane, where not: so that twice as many warps have one each.
    """
    F: tl.constexpr = W // 2 + 1
    LH: tl.constexpr = H // 2 + 1
    ACROSS: tl.constexpr = TW // SW
    PACKED: tl.constexpr = (TH // SH) * ACROSS
    KIND: tl.constexpr = result_ptr.dtype.element_ty
    i = tl.arange(0, TH)[:, None]
    j = tl.arange(0, TW)[None, :]
    u = i % SH
    v = j % SW
    up = H - u
    back = W - v
    inside = (u < LH) & (v < F)
    if PACKED == 1:
        c = tl.program_id(0)
        present = c < channels
    else:
        c = tl.program_id(0) * PACKED + (i // SH) * ACROSS + j // SW
        present = c < channels
        inside = inside & present
    two_rows = inside & (u > 0) & (2 * u != H)
    two_columns = inside & (v > 0) & (2 * v != W)

    if SEPARATE:
        square = tl.arange(0, TH)[:, None] * TH + tl.arange(0, TH)[None, :]
        left = tl.load(matrices_ptr + square)
        odd_left = tl.load(matrices_ptr + TH * TH + square)
        square = 2 * TH * TH + tl.arange(0, TW)[:, None] * TW + tl.arange(0, TW)[None, :]
        right = tl.load(matrices_ptr + square)
        odd_right = tl.load(matrices_ptr + TW * TW + square)
    else:
        plane = tl.arange(0, 4 * PARTS)[:, None, None] // PARTS
        square = tl.arange(0, TH)[None, :, None] * TH + tl.arange(0, TH)[None, None, :]
        left = tl.load(matrices_ptr + (plane // 2) * (TH * TH) + square)
        square = 2 * TH * TH + tl.arange(0, TW)[None, :, None] * TW + tl.arange(0, TW)[None, None, :]
        right = tl.load(matrices_ptr + (plane % 2) * (TW * TW) + square)
        odd_left = left
        odd_right = right

    sum_real = tl.zeros((TH, TW), tl.float32)
    sum_imaginary = tl.zeros((TH, TW), tl.float32)
    up_sum_real = tl.zeros((TH, TW), tl.float32)
    up_sum_imaginary = tl.zeros((TH, TW), tl.float32)
    of_image = channels.to(tl.int64) * (H * W)
    first = tl.program_id(1) * STEPS
    if CORRELATES and not AT_ONCE:
        for step in range(STEPS):
            n = tl.minimum(first + step, batch - 1)
            place = other_ptr + n * of_image + c * (H * W)
            ar, ai, br, bi = _spectra(
                *(place, left, odd_left, right, odd_right, u, v, up, back, inside, two_rows, two_columns),
                *(W, TH, TW, PRECISION, SEPARATE, PARTS),
            )
            place = image_ptr + n * of_image + c * (H * W)
            xr, xi, zr, zi = _spectra(
                *(place, left, odd_left, right, odd_right, u, v, up, back, inside, two_rows, two_columns),
                *(W, TH, TW, PRECISION, SEPARATE, PARTS),
            )
            once = tl.where(first + step < batch, 1.0, 0.0)
            sum_real += once * (ar * xr + ai * xi)
            sum_imaginary += once * (ar * xi - ai * xr)
            up_sum_real += once * (br * zr + bi * zi)
            up_sum_imaginary += once * (br * zi - bi * zr)
        _store_sums(
            *(sum_real, sum_imaginary, up_sum_real, up_sum_imaginary),
            *(sums_ptr, channels, c, u, v, up, inside, two_rows, H, W, HIDDEN),
        )
    if CONVOLVES:
        if HIDDEN == 0:
            at = filter_ptr + 2 * (c * (H * F) + u * F + v)
            real = tl.load(at, mask=inside, other=0.0)
            imaginary = tl.load(at + 1, mask=inside, other=0.0)
            at = filter_ptr + 2 * (c * (H * F) + up * F + v)
            up_real = tl.where(two_rows, tl.load(at, mask=two_rows, other=0.0), real)
            up_imaginary = tl.where(two_rows, tl.load(at + 1, mask=two_rows, other=0.0), imaginary)
        else:
            real = tl.zeros((TH, TW), tl.float32) + tl.load(bias_ptr + c, mask=present, other=0.0) * scale
            imaginary = tl.zeros((TH, TW), tl.float32)
            up_real = real
            up_imaginary = imaginary
            for k in tl.range(0, HIDDEN, loop_unroll_factor=4):
                for_even = tl.load(weight_ptr + c * HIDDEN + k, mask=present, other=0.0)
                for_odd = tl.load(weight_ptr + (channels + c) * HIDDEN + k, mask=present, other=0.0)
                even = filter_ptr + k * (H * F) + v
                odd = even + HIDDEN * H * F
                real += for_even * tl.load(even + u * F, mask=inside, other=0.0)
                imaginary += for_odd * tl.load(odd + u * F, mask=inside, other=0.0)
                up_real += for_even * tl.load(even + up * F, mask=two_rows, other=0.0)
                up_imaginary += for_odd * tl.load(odd + up * F, mask=two_rows, other=0.0)
            up_real = tl.where(two_rows, up_real, real)
            up_imaginary = tl.where(two_rows, up_imaginary, imaginary)
        if CONJUGATE:
            imaginary = -imaginary
            up_imaginary = -up_imaginary
        for step in range(STEPS):
            n = tl.minimum(first + step, batch - 1)
            place = image_ptr + n * of_image + c * (H * W)
            xr, xi, zr, zi = _spectra(
                *(place, left, odd_left, right, odd_right, u, v, up, back, inside, two_rows, two_columns),
                *(W, TH, TW, PRECISION, SEPARATE, PARTS),
            )
            if AT_ONCE:
                place = other_ptr + n * of_image + c * (H * W)
                ar, ai, br, bi = _spectra(
                    *(
                        place,
                        left,
                        odd_left,
                        right,
                        odd_right,
                        u,
                        v,
                        up,
                        back,
                        inside,
                        two_rows,
                        two_columns,
                    ),
                    *(W, TH, TW, PRECISION, SEPARATE, PARTS),
                )
                once = tl.where(first + step < batch, 1.0, 0.0)
                sum_real += once * (ar * xr + ai * xi)
                sum_imaginary += once * (ar * xi - ai * xr)
                up_sum_real += once * (br * zr + bi * zi)
                up_sum_imaginary += once * (br * zi - bi * zr)
            yr = 2 * (xr * real - xi * imaginary)
            yi = 2 * (xr * imaginary + xi * real)
            wr = 2 * (zr * up_real - zi * up_imaginary)
            wi = 2 * (zr * up_imaginary + zi * up_real)
            ee, eo, oe, oo = _transformed(
                *(yr + wr, -(yi + wi), wi - yi, wr - yr),
                *(left, odd_left, right, odd_right, TH, TW, PRECISION, SEPARATE, PARTS),
            )
            sums = ee + oe
            differences = ee - oe
            mirrored_sums = oo + eo
            mirrored_differences = eo - oo
            place = result_ptr + n * of_image + c * (H * W)
            tl.store(place + u * W + v, (sums + mirrored_sums).to(KIND), mask=inside)
            tl.store(place + u * W + back, (sums - mirrored_sums).to(KIND), mask=two_columns)
            tl.store(place + up * W + v, (differences + mirrored_differences).to(KIND), mask=two_rows)
            tl.store(
                place + up * W + back,
                (differences - mirrored_differences).to(KIND),
                mask=two_rows & two_columns,
            )
        if AT_ONCE:
            _store_sums(
                *(sum_real, sum_imaginary, up_sum_real, up_sum_imaginary),
                *(sums_ptr, channels, c, u, v, up, inside, two_rows, H, W, HIDDEN),
            )


@triton.jit
def _silu(before):
    return before / (1.0 + tl.exp(-before))


@triton.jit
def _silu_gradient(before):
    gate = 1.0 / (1.0 + tl.exp(-before))
    return gate * (1.0 + before * (1.0 - gate))


@triton.jit
def _from_coordinates(x, y, weight_ptr, bias_ptr, part, N: tl.constexpr, R: tl.constexpr):
    """The first layer, ``(points, R)``; columns beyond N are zero."""
    n = tl.arange(0, R)
    at = part * N + n
    along = tl.load(weight_ptr + 2 * at, mask=n < N, other=0.0)
    down = tl.load(weight_ptr + 2 * at + 1, mask=n < N, other=0.0)
    bias = tl.load(bias_ptr + at, mask=n < N, other=0.0)
    return x[:, None] * along[None, :] + y[:, None] * down[None, :] + bias[None, :]


@triton.jit
def _weight(weight_ptr, part, M: tl.constexpr, N: tl.constexpr, Q: tl.constexpr, R: tl.constexpr):
    """A layer's weights from M to N features, ``(Q, R)``, zero beyond both."""
    m = tl.arange(0, Q)[:, None]
    n = tl.arange(0, R)[None, :]
    return tl.load(weight_ptr + (part * N + n) * M + m, mask=(m < M) & (n < N), other=0.0)


@triton.jit
def _next(hidden, weight, bias_ptr, part, N: tl.constexpr, R: tl.constexpr, PRECISION: tl.constexpr):
    n = tl.arange(0, R)
    bias = tl.load(bias_ptr + part * N + n, mask=n < N, other=0.0)
    return tl.dot(hidden, weight, input_precision=PRECISION) + bias[None, :]


@triton.jit
def _last_hidden(
    x,
    y,
    part,
    weight1_ptr,
    bias1_ptr,
    weight2_ptr,
    bias2_ptr,
    weight3_ptr,
    bias3_ptr,
    DEPTH: tl.constexpr,
    N1: tl.constexpr,
    N2: tl.constexpr,
    N3: tl.constexpr,
    R1: tl.constexpr,
    R2: tl.constexpr,
    R3: tl.constexpr,
    PRECISION: tl.constexpr,
):
    hidden = _silu(_from_coordinates(x, y, weight1_ptr, bias1_ptr, part, N1, R1))
    if DEPTH >= 2:
        weight = _weight(weight2_ptr, part, N1, N2, R1, R2)
        hidden = _silu(_next(hidden, weight, bias2_ptr, part, N2, R2, PRECISION))
    if DEPTH >= 3:
        weight = _weight(weight3_ptr, part, N2, N3, R2, R3)
        hidden = _silu(_next(hidden, weight, bias3_ptr, part, N3, R3, PRECISION))
    return hidden


@triton.jit
def features(
    grid_ptr,
    result_ptr,
    weight1_ptr,
    bias1_ptr,
    weight2_ptr,
    bias2_ptr,
    weight3_ptr,
    bias3_ptr,
    scale,
    H: tl.constexpr,
    F: tl.constexpr,
    DEPTH: tl.constexpr,
    N1: tl.constexpr,
    N2: tl.constexpr,
    N3: tl.constexpr,
    R1: tl.constexpr,
    R2: tl.constexpr,
    R3: tl.constexpr,
    POINTS: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """The even part of the real MLP's last hidden layer and the odd one of the imaginary MLP's.

    A program does POINTS frequencies of one MLP (axis 1).

    Args:
        grid_ptr: coordinates, by columns, ``(2, 2, F, H)``: here, then at the mirror image.
        result_ptr: ``(2, K, H, F)``, K the width of the last hidden layer.
        scale: half of this is a factor on all.
        DEPTH: hidden layers; N1, N2, N3 are their widths, R1, R2, R3 powers of two from there on, at least 16.
    """
    part = tl.program_id(1)
    point = tl.program_id(0) * POINTS + tl.arange(0, POINTS)
    ok = point < H * F
    at = grid_ptr + (point % F) * H + point // F
    x = tl.load(at, mask=ok, other=0.0)
    y = tl.load(at + 2 * H * F, mask=ok, other=0.0)
    here = _last_hidden(
        *(x, y, part, weight1_ptr, bias1_ptr, weight2_ptr, bias2_ptr, weight3_ptr, bias3_ptr),
        *(DEPTH, N1, N2, N3, R1, R2, R3, PRECISION),
    )
    at += H * F
    x = tl.load(at, mask=ok, other=0.0)
    y = tl.load(at + 2 * H * F, mask=ok, other=0.0)
    there = _last_hidden(
        *(x, y, part, weight1_ptr, bias1_ptr, weight2_ptr, bias2_ptr, weight3_ptr, bias3_ptr),
        *(DEPTH, N1, N2, N3, R1, R2, R3, PRECISION),
    )
    K: tl.constexpr = N1 if DEPTH == 1 else (N2 if DEPTH == 2 else N3)
    R: tl.constexpr = R1 if DEPTH == 1 else (R2 if DEPTH == 2 else R3)
    k = tl.arange(0, R)[None, :]
    value = tl.where(part == 0, here + there, here - there) * (scale / 2)
    tl.store(result_ptr + (part * K + k) * (H * F) + point[:, None], value, mask=(k < K) & ok[:, None])


@triton.jit
def features_gradient(
    grid_ptr,
    gradient_ptr,
    sums_ptr,
    weight1_ptr,
    bias1_ptr,
    weight2_ptr,
    bias2_ptr,
    weight3_ptr,
    bias3_ptr,
    scale,
    H: tl.constexpr,
    F: tl.constexpr,
    DEPTH: tl.constexpr,
    N1: tl.constexpr,
    N2: tl.constexpr,
    N3: tl.constexpr,
    R1: tl.constexpr,
    R2: tl.constexpr,
    R3: tl.constexpr,
    POINTS: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCKS: tl.constexpr,
):
    """Gradients of the hidden layers of :func:`features`, for that of its result.

    Each of axis 0's programs takes BLOCKS times POINTS frequencies and leaves sums, ``(programs, parameters)``,
    weights and biases of all layers one after the other.
    """
    part = tl.program_id(1)
    K: tl.constexpr = N1 if DEPTH == 1 else (N2 if DEPTH == 2 else N3)
    R: tl.constexpr = R1 if DEPTH == 1 else (R2 if DEPTH == 2 else R3)
    for_along = tl.zeros((R1,), tl.float32)
    for_down = tl.zeros((R1,), tl.float32)
    for_bias1 = tl.zeros((R1,), tl.float32)
    if DEPTH >= 2:
        weight2 = _weight(weight2_ptr, part, N1, N2, R1, R2)
        for_weight2 = tl.zeros((R2, R1), tl.float32)
        for_bias2 = tl.zeros((R2,), tl.float32)
    if DEPTH >= 3:
        weight3 = _weight(weight3_ptr, part, N2, N3, R2, R3)
        for_weight3 = tl.zeros((R3, R2), tl.float32)
        for_bias3 = tl.zeros((R3,), tl.float32)
    k = tl.arange(0, R)[None, :]
    for block in range(BLOCKS):
        point = (tl.program_id(0) * BLOCKS + block) * POINTS + tl.arange(0, POINTS)
        ok = point < H * F
        outer = tl.load(
            gradient_ptr + (part * K + k) * (H * F) + point[:, None], mask=(k < K) & ok[:, None], other=0.0
        ) * (scale / 2)
        for mirrored in range(2):
            at = grid_ptr + mirrored * (H * F) + (point % F) * H + point // F
            x = tl.load(at, mask=ok, other=0.0)
            y = tl.load(at + 2 * H * F, mask=ok, other=0.0)
            upstream = tl.where((part == 1) & (mirrored == 1), -outer, outer)
            before1 = _from_coordinates(x, y, weight1_ptr, bias1_ptr, part, N1, R1)
            if DEPTH >= 2:
                first = _silu(before1)
                before2 = _next(first, weight2, bias2_ptr, part, N2, R2, PRECISION)
                if DEPTH >= 3:
                    second = _silu(before2)
                    before3 = _next(second, weight3, bias3_ptr, part, N3, R3, PRECISION)
                    upstream = upstream * _silu_gradient(before3)
                    for_bias3 += tl.sum(upstream, 0)
                    for_weight3 += tl.dot(tl.trans(upstream), second, input_precision=PRECISION)
                    upstream = tl.dot(upstream, tl.trans(weight3), input_precision=PRECISION)
                upstream = upstream * _silu_gradient(before2)
                for_bias2 += tl.sum(upstream, 0)
                for_weight2 += tl.dot(tl.trans(upstream), first, input_precision=PRECISION)
                upstream = tl.dot(upstream, tl.trans(weight2), input_precision=PRECISION)
            upstream = upstream * _silu_gradient(before1)
            for_bias1 += tl.sum(upstream, 0)
            for_along += tl.sum(upstream * x[:, None], 0)
            for_down += tl.sum(upstream * y[:, None], 0)
    LATER: tl.constexpr = (2 * N2 * (N1 + 1) if DEPTH >= 2 else 0) + (2 * N3 * (N2 + 1) if DEPTH >= 3 else 0)
    sums_ptr += tl.program_id(0) * (6 * N1 + LATER)
    n = tl.arange(0, R1)
    at = part * N1 + n
    tl.store(sums_ptr + 2 * at, for_along, mask=n < N1)
    tl.store(sums_ptr + 2 * at + 1, for_down, mask=n < N1)
    sums_ptr += 4 * N1
    tl.store(sums_ptr + at, for_bias1, mask=n < N1)
    sums_ptr += 2 * N1
    if DEPTH >= 2:
        n = tl.arange(0, R2)
        m = tl.arange(0, R1)
        inside = (n[:, None] < N2) & (m[None, :] < N1)
        tl.store(sums_ptr + (part * N2 + n[:, None]) * N1 + m[None, :], for_weight2, mask=inside)
        sums_ptr += 2 * N2 * N1
        tl.store(sums_ptr + part * N2 + n, for_bias2, mask=n < N2)
        sums_ptr += 2 * N2
    if DEPTH >= 3:
        n = tl.arange(0, R3)
        m = tl.arange(0, R2)
        inside = (n[:, None] < N3) & (m[None, :] < N2)
        tl.store(sums_ptr + (part * N3 + n[:, None]) * N2 + m[None, :], for_weight3, mask=inside)
        sums_ptr += 2 * N3 * N2
        tl.store(sums_ptr + part * N3 + n, for_bias3, mask=n < N3)
