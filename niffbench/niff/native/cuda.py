"""The CUDA kernels: compiled by NVRTC for an image size and the GPU at hand, once a process; and launched.

NVRTC and the driver are reached through NVIDIA's ``cuda-bindings``, which torch for CUDA on Linux requires.
"""

from __future__ import annotations

import ctypes
import functools
import re
import threading
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from niffbench.niff.native.build import Unavailable
from niffbench.niff.native.cuda_source import Plan, plan, source

THREADS = 512
"""Threads a multiprocessor for which a channel's images are divided among blocks, instead of done in turn by one:
each block loads the filter, or leaves a sum that others are added to. Best, or near it, at ResNet's stages on an
H200."""

INTEGERS = {"convolve": 4, "filter_gradient": 3}
"""How many integers each kernel takes after its three pointers."""

Arguments = tuple[int, ...]

_lock = threading.Lock()
_refused: dict[tuple[Plan, int], str] = {}


class Kernel:
    """A loaded kernel: three pointers, then integers. Launching it costs little on the host."""

    def __init__(self, function: Any, layout: Plan, integers: int) -> None:
        self._function = function
        self._layout = layout
        self._values: list[ctypes.c_void_p | ctypes.c_int] = [
            *(ctypes.c_void_p() for _ in range(3)),
            *(ctypes.c_int() for _ in range(integers)),
        ]
        addresses = (ctypes.c_void_p * len(self._values))(*map(ctypes.addressof, self._values))
        self._addresses, self._parameters = addresses, ctypes.addressof(addresses)
        self._lock = threading.Lock()

    def __call__(self, grid: tuple[int, int], arguments: Arguments, device: torch.device) -> None:
        """Enqueue it on the device's current stream.

        Raises:
            Unavailable: if the driver refuses.
        """
        from cuda.bindings import driver

        layout = self._layout
        stream = torch.cuda.current_stream(device).cuda_stream
        with self._lock, torch.cuda.device(device):  # The driver copies the arguments before it returns.
            for value, argument in zip(self._values, arguments, strict=True):
                value.value = argument
            _checked(
                driver.cuLaunchKernel(
                    self._function, *grid, 1, layout.threads, 1, 1, layout.memory, stream, self._parameters, 0
                )
            )


@dataclass(frozen=True)
class Kernels:
    """The kernels of one layout on one GPU, and that GPU's number of multiprocessors."""

    convolve: Kernel
    filter_gradient: Kernel
    multiprocessors: int


def compiled_so_far() -> int:
    """For how many layouts and GPUs this process has compiled kernels."""
    return _loaded.cache_info().currsize


@functools.cache
def shared_memory(device: torch.device) -> int:
    """Bytes that a block may have; torch knows, where Triton cannot even be loaded."""
    properties = torch.cuda.get_device_properties(device)
    return int(getattr(properties, "shared_memory_per_block_optin", properties.shared_memory_per_block))


def unavailable() -> str | None:
    """Why no kernel can be compiled for a CUDA GPU here, or None if it can; asks no GPU."""
    if torch.version.cuda is None:
        return "this torch is not built for CUDA"
    try:
        from cuda.bindings import driver, nvrtc  # noqa: F401
    except Exception as error:  # the package is missing, or the libraries that it loads
        return f"NVRTC cannot be reached through cuda-bindings: {error}"
    return None


def convolve(x: Tensor, half: Tensor, *, conjugate: bool = False) -> Tensor:
    """``H·W · irfft2(half · rfft2(x))``, or with the filter's conjugate.

    Args:
        x: contiguous, ``(B, C, H, W)``, float32 or float64, sides up to 64.
        half: contiguous, ``(C, H, W // 2 + 1)``, complex of the same precision.
        conjugate: take ``half.conj()``; applied to a gradient of the result this gives the gradient of ``x``.

    Raises:
        NotImplementedError: for larger sides.
        Unavailable: if the kernel cannot be compiled or launched.
    """
    x, y = _aligned(x), torch.empty_like(x)
    if x.numel():
        batch, channels = x.shape[:2]
        layout = _plan(x, batch)
        kernels = _kernels(layout, x.device.index)
        steps, parts = _division(-(-batch // layout.planes), channels, layout, kernels)
        arguments = (x.data_ptr(), half.data_ptr(), y.data_ptr(), batch, channels, steps, -1 if conjugate else 1)
        kernels.convolve((channels, parts), arguments, x.device)
    return y


def filter_gradient(x: Tensor, gradient: Tensor) -> Tensor:
    """The gradient of the half plane, for the images and the gradient of :func:`convolve`'s result.

    Both ``(B, C, H, W)`` and contiguous; the result is complex, ``(C, H, W // 2 + 1)``. Sums are taken in a fixed
    order. Raises as :func:`convolve`.
    """
    batch, channels, height, width = x.shape
    dtype = torch.complex128 if x.dtype == torch.float64 else torch.complex64
    if not x.numel():
        return torch.zeros(channels, height, width // 2 + 1, dtype=dtype, device=x.device)
    layout = _plan(x, 2 * batch)
    kernels = _kernels(layout, x.device.index)
    steps, parts = _division(-(-2 * batch // layout.planes), channels, layout, kernels)
    x, gradient = _aligned(x), _aligned(gradient)
    out = torch.empty(parts, channels, height, layout.frequencies, dtype=dtype, device=x.device)
    arguments = (x.data_ptr(), gradient.data_ptr(), out.data_ptr(), batch, channels, steps)
    kernels.filter_gradient((channels, parts), arguments, x.device)
    return out.sum(0) if parts > 1 else out[0]


def _aligned(x: Tensor) -> Tensor:
    """``x`` where rows may be read four numbers at a time."""
    return x if x.data_ptr() % 16 == 0 else x.clone()


def _division(turns: int, channels: int, layout: Plan, kernels: Kernels) -> tuple[int, int]:
    """How many of a channel's ``turns`` one block takes, and among how many blocks they are divided."""
    parts = max(1, min(turns, -(-THREADS * kernels.multiprocessors // (layout.threads * channels))))
    steps = -(-turns // parts)
    return steps, -(-turns // steps)


def _plan(x: Tensor, planes: int) -> Plan:
    height, width = x.shape[-2:]
    return plan(height, width, planes, double=x.dtype == torch.float64, memory=shared_memory(x.device))


def _kernels(layout: Plan, device: int) -> Kernels:
    with _lock:  # Two threads would compile twice.
        if (layout, device) in _refused:
            raise Unavailable(_refused[layout, device])
        try:
            return _loaded(layout, device)
        except Unavailable as error:
            _refused[layout, device] = str(error)
            raise


@functools.cache
def _loaded(layout: Plan, device: int) -> Kernels:
    if (why := unavailable()) is not None:
        raise Unavailable(why)
    properties = torch.cuda.get_device_properties(device)
    code = compiled(layout, f"sm_{properties.major}{properties.minor}").code
    with torch.cuda.device(device):
        torch.cuda.synchronize(device)  # The context is then there, and current.
        try:
            functions = _functions(code, layout.memory)
        except RuntimeError as error:  # of the bindings, where the driver is not what they expect
            raise Unavailable(f"the driver cannot be reached through cuda-bindings: {error}") from error
    kernels = {name: Kernel(function, layout, INTEGERS[name]) for name, function in functions.items()}
    return Kernels(**kernels, multiprocessors=properties.multi_processor_count)


def _functions(code: bytes, memory: int) -> dict[str, Any]:
    """The kernels in ``code``, loaded, by name; each may use ``memory`` bytes of shared memory."""
    from cuda.bindings import driver

    attribute = driver.CUfunction_attribute.CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
    (module,) = _checked(driver.cuModuleLoadData(code))
    functions = {}
    for name in INTEGERS:
        (functions[name],) = _checked(driver.cuModuleGetFunction(module, name.encode()))
        _checked(driver.cuFuncSetAttribute(functions[name], attribute, memory))
    return functions


@dataclass(frozen=True)
class MachineCode:
    """Compiled kernels, and for each the bytes of registers that a thread keeps in memory for want of room."""

    code: bytes
    spilled: dict[str, int]


def compiled(layout: Plan, architecture: str) -> MachineCode:
    """The kernels for ``architecture`` (``sm_90``); needs no GPU.

    Raises:
        Unavailable: if it fails.
    """
    from cuda.bindings import nvrtc

    (program,) = _checked(nvrtc.nvrtcCreateProgram(source(layout).encode(), b"niff.cu", 0, [], []))
    options = [f"--gpu-architecture={architecture}".encode(), b"--std=c++17", b"--ptxas-options=-v"]
    (outcome,) = nvrtc.nvrtcCompileProgram(program, len(options), options)
    (size,) = _checked(nvrtc.nvrtcGetProgramLogSize(program))
    log = b" " * size
    _checked(nvrtc.nvrtcGetProgramLog(program, log))
    text = log.decode(errors="replace").strip("\0 \n")
    if int(outcome):
        raise Unavailable(f"NVRTC could not compile the kernel: {text[:300]}")
    (size,) = _checked(nvrtc.nvrtcGetCUBINSize(program))
    code = b" " * size
    _checked(nvrtc.nvrtcGetCUBIN(program, code))
    nvrtc.nvrtcDestroyProgram(program)
    report = re.findall(r"Function properties for (\w+)\s.*?(\d+) bytes spill stores", text, re.S)
    return MachineCode(bytes(code), {name: int(spill) for name, spill in report})


def _checked(answer: tuple[Any, ...]) -> tuple[Any, ...]:
    """What a call of the driver or of NVRTC gave beside its status.

    Raises:
        Unavailable: for a failure.
    """
    status, *rest = answer
    if int(status):
        raise Unavailable(f"the kernel cannot be used: {status.name}")
    return tuple(rest)
