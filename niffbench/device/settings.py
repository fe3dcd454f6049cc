"""Torch's versions and flags that change what a latency means: part of the fingerprint's ``must`` tier."""

from __future__ import annotations

import os

import torch

from niffbench.fingerprint import Fact

ENVIRONMENT = ("NVIDIA_TF32_OVERRIDE", "PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_ALLOC_CONF", "CUDA_LAUNCH_BLOCKING")
"""Variables that change latency or memory; recorded when set."""


def torch_facts() -> dict[str, Fact]:
    """Versions, threads, determinism and precision of torch on any device."""
    return {
        "torch": torch.__version__,
        "mkl": _built_with("Math Kernel Library Version "),
        "onednn": _built_with("MKL-DNN v"),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "matmul_precision": torch.get_float32_matmul_precision(),
        **{name.lower(): os.environ[name] for name in ENVIRONMENT if name in os.environ},
    }


def _built_with(marker: str) -> str | None:
    """The word after ``marker`` in torch's build description."""
    _, found, rest = torch.__config__.show().partition(marker)
    return rest.split()[0] if found else None
