"""The CUDA kernels on a CPU: their source compiled as C++, a thread for each thread of a block.

It shows that the source computes what it should and waits where it must; registers, banks and speed are the GPU's.
"""

from __future__ import annotations

import ctypes
import subprocess
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from niffbench.niff.native.cuda_source import Plan, source

_BEFORE = r"""
#include <barrier>
#include <limits>
#include <thread>
#include <vector>
#define __global__
#define __device__
#define __forceinline__ inline
#define __restrict__
#define __launch_bounds__(threads)
#define __shared__
struct dim { int x, y, z; };
struct float2 { float x, y; };
struct float4 { float x, y, z, w; };
struct double2 { double x, y; };
static thread_local dim threadIdx, blockIdx;
static std::barrier<> *gate;
static void __syncthreads() { gate->arrive_and_wait(); }
"""

_AFTER = r"""
real memory[1 << 15];
template <class Body> static void launch(int columns, int rows, Body body) {
    for (int row = 0; row < rows; row++) for (int column = 0; column < columns; column++) {
        for (real &number : memory) number = std::numeric_limits<real>::quiet_NaN();
        std::barrier<> all(THREADS);
        gate = &all;
        std::vector<std::thread> threads;
        for (int thread = 0; thread < THREADS; thread++)
            threads.emplace_back([=] { threadIdx = {thread, 0, 0}; blockIdx = {column, row, 0}; body(); });
        for (auto &thread : threads) thread.join();
    }
}
extern "C" void run_convolve(const real *x, const complex *half, real *y, int batch, int channels, int steps,
                             int sign, int parts) {
    launch(channels, parts, [=] { convolve(x, half, y, batch, channels, steps, sign); });
}
extern "C" void run_filter_gradient(const real *x, const real *gradient, complex *out, int batch, int channels,
                                    int steps, int parts) {
    launch(channels, parts, [=] { filter_gradient(x, gradient, out, batch, channels, steps); });
}
"""


@dataclass(frozen=True)
class OnCpu:
    """The kernels of ``layout``, with what a block does in turn (``steps``)."""

    library: ctypes.CDLL
    layout: Plan
    steps: int

    @classmethod
    def build(cls, layout: Plan, steps: int, directory: Path, compiler: str) -> OnCpu:
        """Compiled in ``directory``."""
        (directory / "kernel.cpp").write_text(_BEFORE + source(layout) + _AFTER)
        flags = ["-std=c++20", "-O1", "-w", "-shared", "-fPIC", "-pthread"]
        subprocess.run([compiler, *flags, "-o", "kernel.so", "kernel.cpp"], cwd=directory, check=True)
        return cls(ctypes.CDLL(str(directory / "kernel.so")), layout, steps)

    def convolve(self, x: Tensor, half: Tensor, *, conjugate: bool = False) -> Tensor:
        y = torch.full_like(x, torch.nan)
        parts = -(-x.shape[0] // (self.layout.planes * self.steps))
        self._run("convolve", (x, half, y), (*x.shape[:2], self.steps, -1 if conjugate else 1, parts))
        return y

    def filter_gradient(self, x: Tensor, gradient: Tensor) -> Tensor:
        parts = -(-2 * x.shape[0] // (self.layout.planes * self.steps))
        dtype = torch.complex128 if self.layout.double else torch.complex64
        out = torch.full((parts, x.shape[1], x.shape[2], self.layout.frequencies), torch.nan, dtype=dtype)
        self._run("filter_gradient", (x, gradient, out), (*x.shape[:2], self.steps, parts))
        return out.sum(0)

    def _run(self, name: str, tensors: tuple[Tensor, ...], numbers: tuple[int, ...]) -> None:
        function = getattr(self.library, f"run_{name}")
        function(*(ctypes.c_void_p(tensor.data_ptr()) for tensor in tensors), *map(ctypes.c_int, numbers))
