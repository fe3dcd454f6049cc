"""The depthwise convolution as one kernel, compiled for this machine when it is first used.

On a CPU it is C and needs a compiler: ``cc``, what the environment's ``CC`` names, or where there is no ``cc`` the
one in Zig's package, which pip installs (``niffbench[compiler]``). It runs in torch's own threads, whichever made
it; a process that is forked from one in which several have worked must do with one, as for torch's own operations.
Without a compiler ``auto`` has torch's FFTs and matrix products to choose from, and takes 4.0 times as long in
inference and 3.0 times in training (an AMD EPYC, one thread, float32, geometric mean over ResNet's and ConvNeXt's
stages at batch 1 and 8); with Zig's compiler nothing is lost: 0.86 and 0.92 times the latency of GCC 12's.

On a CUDA GPU it is CUDA C, written out for the image's size and compiled by the NVRTC that torch brings
along. Without either everything else works, and :func:`unavailable` says what is missing.

A GPU has another in Triton (:mod:`niffbench.niff.native.triton_engine`, the form ``triton``). The one in CUDA C
takes a finished filter and does float64 too; the one in Triton makes the filter itself, takes half precision and
goes by tensor cores. ``auto`` tries both. What was measured on an H200 is the former as it was when two images
were one complex image; as they are now neither has been.
"""

from __future__ import annotations

from importlib import import_module

LANGUAGES = {"cpu": "C", "cuda": "CUDA"}
"""Types of device that a kernel is written for, and in what."""

_MODULES = {"cpu": "build", "cuda": "cuda"}  # the latter loads torch, which not every worker needs


def unavailable(device: str) -> str | None:
    """Why there is no kernel for a type of device (``cpu``, ``cuda``, …), or None if there is one.

    On a CPU it is compiled to find out; no GPU is asked.
    """
    if device not in _MODULES:
        return f"there is none for {device}"
    why: str | None = import_module(f"{__name__}.{_MODULES[device]}").unavailable()
    return why
