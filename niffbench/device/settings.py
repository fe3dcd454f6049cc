"""Torch's versions and flags that change what a latency means: part of the fingerprint's ``must`` tier."""

from __future__ import annotations

import os
from importlib.metadata import PackageNotFoundError, version

import torch

from niffbench.fingerprint import Fact

ENVIRONMENT = (
    "NVIDIA_TF32_OVERRIDE",
    "PYTORCH_CUDA_ALLOC_CONF",
    "PYTORCH_ALLOC_CONF",
    "CUDA_LAUNCH_BLOCKING",
    "OMP_WAIT_POLICY",
    "OMP_PROC_BIND",
    "KMP_AFFINITY",
    "KMP_BLOCKTIME",
)
"""Variables that change latency or memory, OpenMP's by how threads wait and where they run; recorded when set."""


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
        "matmul_precision": torch.get_float32_matmul_precision(),
        **{name.lower(): os.environ[name] for name in ENVIRONMENT if name in os.environ},
    }


def _installed(package: str) -> str | None:
    """The version of what need not be there, without loading it."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _built_with(marker: str) -> str | None:
    """The word after ``marker`` in torch's build description."""
    _, found, rest = torch.__config__.show().partition(marker)
    return rest.split()[0] if found else None
