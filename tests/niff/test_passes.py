"""Operations as executed: the C kernel's own code, compiled with numbers that count what is done to them."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from niffbench.case import Case, Problem
from niffbench.lengths import fft_flops, largest_prime_factor
from niffbench.niff.native import passes
from niffbench.operators.catalogue import catalogue

SOURCE = Path(passes.__file__).with_name("convolve.c")
COMPILER = shutil.which("c++")
LENGTHS = [*range(1, 130), 144, 176, 211, 224, 251, 256, 262, 502]
SIDES = [(1, 1), (1, 2), (2, 1), (3, 4), (7, 7), (8, 5), (14, 14), (31, 30), (56, 56), (127, 12)]

VECTORS = r"""
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <vector>
#define REAL float
#define INLINE static inline
#define UNROLL(count)
enum { LANES = 2 };
static long operations;
struct Vector {
    REAL lanes[LANES];
    REAL &operator[](int lane) { return lanes[lane]; }
    REAL operator[](int lane) const { return lanes[lane]; }
};
#define COUNTED(op) \
    static Vector operator op(Vector a, Vector b) { operations++; return {{a[0] op b[0], a[1] op b[1]}}; } \
    static Vector &operator op##=(Vector &a, Vector b) { return a = a op b; }
COUNTED(+) COUNTED(-) COUNTED(*)
static Vector operator*(Vector a, REAL b) { return a * Vector{{b, b}}; }
static Vector operator*(REAL a, Vector b) { return b * a; }
static Vector operator-(Vector a) { return {{-a[0], -a[1]}}; }
static void transpose(Vector *rows) {
    REAL kept = rows[0][1];
    rows[0][1] = rows[1][0];
    rows[1][0] = kept;
}
static Vector read_real(const char *from) {
    Vector numbers;
    memcpy(&numbers, from, sizeof numbers);
    return numbers;
}
static void write_real(char *to, Vector numbers) { memcpy(to, &numbers, sizeof numbers); }
static Vector within(Vector numbers, REAL, REAL) { return numbers; }
static int least(int a, int b) { return a < b ? a : b; }
static Vector load_some(const REAL *from, int64_t count) { return {{from[0], count > 1 ? from[1] : 0}}; }
static void store_some(REAL *to, int64_t count, Vector a) { memcpy(to, &a, least(count, 2) * sizeof(REAL)); }
struct Runtime {
    int (*number)(), (*count)();
    void (*parallel)(void (*)(void *), void *, unsigned, unsigned);
};
static void in_parallel(int threads, void work(const void *, int), const void *call) { work(call, threads); }
"""

MAIN = r"""
struct Length {
    std::vector<REAL> numbers;
    std::vector<int32_t> powers;
    Axis axis;
    Length(int length, int prime, int size) : numbers(2 * (length + 2 * size) + 2), powers(prime + 1, 1) {
        REAL *roots = numbers.data();
        axis = {roots, prime, size, powers.data(), roots, roots};
    }
};
int main() {
    int height, prime_down, size_down, width, prime_along, size_along;
    while (scanf("%d%d%d%d%d%d", &height, &prime_down, &size_down, &width, &prime_along, &size_along) == 6) {
        Length down(height, prime_down, size_down), along(width, prime_along, size_along);
        const Shape shape = make_shape(height, width, &down.axis, &along.axis);
        std::vector<char> memory(niff_workspace(height, width, 2, 0, &down.axis, &along.axis));
        std::vector<REAL> images(LANES * height * width + LANES);
        const Work work = carve(memory.data(), &shape, 2, 0);
        const Call call = {&down.axis, &along.axis, 1, LANES, height, width};
        const Layout layout = image_layout(&call, 0);
        char *first = (char *)images.data(), *end = (char *)(images.data() + images.size());
        operations = 0;
        fft(&shape.along, work.b, work.a, work.c, work.scratch);
        const long one = operations;
        for (int back = 0; back < 2; back++) {
            operations = 0;
            if (!back) rows_forward(first, end, layout, &shape, &work, work.spectrum);
            for (int v = 0; v < shape.columns; v++)
                fft(&shape.down, work.spectrum + v * height, work.a, work.c, work.scratch);
            if (back) rows_inverse(first, layout, &shape, &work, work.spectrum);
            printf("%ld ", back ? operations : one), back ? 0 : printf("%ld ", operations);
        }
        printf("\n");
    }
}
"""


def line(side: int) -> str:
    prime = largest_prime_factor(side)
    size = passes.cyclic_length(prime)
    return f"{side} {prime if size else 0} {size}"


@pytest.mark.skipif(COMPILER is None, reason="needs a C++ compiler, whose operators can count")
def test_operations_are_those_that_the_kernels_code_executes(tmp_path: Path) -> None:
    (tmp_path / "vectors.h").write_text(VECTORS)
    (tmp_path / "count.cpp").write_text(SOURCE.read_text(encoding="utf-8") + MAIN)
    flags = ["-std=c++20", "-w", "-fpermissive", "-O1", f"-I{SOURCE.parent}"]
    subprocess.run([str(COMPILER), *flags, "count.cpp", "-o", "count"], cwd=tmp_path, check=True)
    sides = [(1, length) for length in LENGTHS] + SIDES
    given = "\n".join(f"{line(height)} {line(width)}" for height, width in sides)
    done = subprocess.run([tmp_path / "count"], input=given, capture_output=True, text=True, check=True)
    counted = [tuple(map(int, row.split())) for row in done.stdout.splitlines()]
    assert counted == [
        (passes.transform(width), *passes.real_transforms(height, width)) for height, width in sides
    ]


def test_a_prime_side_executes_more_than_its_nominal_flops_and_a_power_of_two_less() -> None:
    def times(side: int) -> float:
        return passes.transform(side) / fft_flops(side)

    assert times(64) < 1 < times(11) < times(31) == pytest.approx(2.5, abs=0.2)
    assert 1 < times(251) < times(31), "a large prime is a convolution, no sum over all pairs: else 12 times"


@pytest.mark.parametrize("mode", ["inference", "training"])
def test_executed_flops_are_stated_where_they_are_known(mode: str) -> None:
    def both(name: str, side: int) -> tuple[int, int | None]:
        operator = catalogue()[name]
        options = tuple((key, option.default) for key, option in sorted(operator.options.items()))
        case = Case(name, Problem(2, 8, 8, side, side, mode=mode), options=options)  # type: ignore[arg-type]
        cost = operator.cost(case)
        assert cost is not None
        return cost.flops(), operator.executed(case)

    for name in ("niff-depthwise/native", "niff-depthwise/native-cached", "niff-split/native"):
        nominal, executed = both(name, 32)
        assert executed is not None
        assert executed < nominal
        nominal, executed = both(name, 31)
        assert executed is not None
        assert executed > nominal
    nominal, executed = both("niff-depthwise/dft", 31)
    assert executed == nominal
    for unknown in ("niff-depthwise/rfft", "niff-depthwise/published", "niff-full/auto", "niff-depthwise/auto"):
        assert both(unknown, 31)[1] is None
