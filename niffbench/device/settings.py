"""Torch's versions and flags that change what a latency means: of the ``must`` tier, and restored."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch

from niffbench.anonymize import anonymize
from niffbench.device import host
from niffbench.fingerprint import Fact

ENVIRONMENT = (
    "NVIDIA_TF32_OVERRIDE",
    "PYTORCH_CUDA_ALLOC_CONF",
    "PYTORCH_ALLOC_CONF",
    "CUDA_LAUNCH_BLOCKING",
    "CUDA_MODULE_LOADING",
    "CUDA_DEVICE_MAX_CONNECTIONS",
    "CUDA_MPS_ACTIVE_THREAD_PERCENTAGE",
    "CUBLAS_WORKSPACE_CONFIG",
    "OMP_DYNAMIC",
    "OMP_THREAD_LIMIT",
    "OMP_WAIT_POLICY",
    "OMP_PROC_BIND",
    "KMP_AFFINITY",
    "KMP_BLOCKTIME",
    "MKL_CBWR",
    "MKL_DYNAMIC",
    "MKL_ENABLE_INSTRUCTIONS",
    "PYTORCH_NO_CUDA_MEMORY_CACHING",
    "GLIBC_TUNABLES",
)
"""Variables that change latency or memory, OpenMP's by how threads wait and where they run; recorded when set.

Of the other variables of MPS, which are paths, only that there are some."""

PREFIXES = ("DNNL_", "ONEDNN_", "MALLOC_")
"""Of variables that change the arithmetic (``ONEDNN_DEFAULT_FPMATH_MODE``), its instructions or the allocator."""


def torch_facts() -> dict[str, Fact]:
    """Versions, threads, determinism and precision of torch on any device."""
    return {
        "torch": torch.__version__,
        "torchvision": _installed("torchvision"),
        "mkl": _built_with("Math Kernel Library Version "),
        "onednn": _built_with("MKL-DNN v"),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "matmul_precision": _matmul_precision(),
        **{name.lower(): anonymize(value)[:200] for name, value in sorted(os.environ.items()) if _changes(name)},
        **host.limits(),
        **({"cuda_mps": True} if any(name.startswith("CUDA_MPS_") for name in os.environ) else {}),
    }


def _changes(name: str) -> bool:
    """Whether a variable changes latency, memory or arithmetic. One that only makes a library talk does not."""
    return name in ENVIRONMENT or (name.startswith(PREFIXES) and "VERBOSE" not in name)


_cudnn: Any = torch.backends.cudnn  # its stub lacks what was added last


def tf32_allowed() -> tuple[bool, bool]:
    """Whether matrix products and cuDNN's convolutions in float32 may be rounded to TF32 by torch's flags.

    Read from ``fp32_precision`` where torch has it (2.9): once anybody has set one of these, the getters of
    ``allow_tf32`` and of the matrix products' precision may raise.
    """
    matmul, cudnn = torch.backends.cuda.matmul, _cudnn
    if hasattr(matmul, "fp32_precision"):
        return matmul.fp32_precision == "tf32", cudnn.conv.fp32_precision == "tf32"
    return bool(matmul.allow_tf32), bool(cudnn.allow_tf32)


def allow_tf32(matmul: bool, cudnn: bool) -> None:
    """Set both. By the flags that every torch has: setting these, unlike reading them, never raises.

    A general ``fp32_precision`` would still overrule cuDNN's being off, so that is then set at its own.
    """
    torch.backends.cuda.matmul.allow_tf32 = matmul
    _cudnn.allow_tf32 = cudnn
    if tf32_allowed() != (matmul, cudnn):
        _cudnn.conv.fp32_precision = _cudnn.rnn.fp32_precision = "tf32" if cudnn else "ieee"


@contextmanager
def tf32(wanted: bool) -> Iterator[None]:
    """Both so, and afterwards as they were."""
    before = tf32_allowed()
    allow_tf32(wanted, wanted)
    try:
        yield
    finally:
        allow_tf32(*before)


def _matmul_precision() -> str | None:
    """None where old settings and new have been mixed, of which torch then says nothing."""
    with suppress(RuntimeError):
        return torch.get_float32_matmul_precision()
    return None


def _installed(package: str) -> str | None:
    """The version of what need not be there, without loading it."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _built_with(marker: str) -> str | None:
    """The word after ``marker`` in torch's build description."""
    _, marked, rest = torch.__config__.show().partition(marker)
    return rest.split()[0] if marked else None


@dataclass(frozen=True)
class ProcessState:
    """State of the process that all cases share, and a user's code may change."""

    values: Mapping[str, object]

    @classmethod
    def here(cls) -> ProcessState:
        return cls({name: read() for name, (read, _) in _SHARED.items()})

    def changed(self) -> str | None:
        """What would change the others' figures and is not as it was."""
        return next((name for name, (read, _) in _SHARED.items() if read() != self.values[name]), None)

    def restore(self) -> None:
        for name, (read, write) in _SHARED.items():
            if read() != self.values[name]:
                write(self.values[name])


def _set_matmul_precision(precision: str | None) -> None:
    if precision is not None:
        torch.set_float32_matmul_precision(precision)


# The precision of products before TF32, of which it sets a part.
_SHARED: dict[str, tuple[Callable[[], object], Callable[[Any], object]]] = {
    "torch's number of threads": (torch.get_num_threads, torch.set_num_threads),
    "torch's default dtype": (torch.get_default_dtype, torch.set_default_dtype),
    "whether torch records gradients": (torch.is_grad_enabled, torch.set_grad_enabled),
    "whether torch is deterministic": (
        torch.are_deterministic_algorithms_enabled,
        torch.use_deterministic_algorithms,
    ),
    "whether cuDNN tries its algorithms": (
        lambda: _cudnn.benchmark,
        lambda tried: setattr(_cudnn, "benchmark", tried),
    ),
    "the precision of torch's matrix products": (_matmul_precision, _set_matmul_precision),
    "whether TF32 is allowed": (tf32_allowed, lambda allowed: allow_tf32(*allowed)),
}
