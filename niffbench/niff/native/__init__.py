"""The depthwise convolution as one kernel, compiled for this machine when it is first used.

On a CPU it is C and needs a compiler (``cc``, or what the environment's ``CC`` names), as ``torch.compile`` does
there. On a CUDA GPU it is CUDA C, written out for the image's size and compiled by the NVRTC that torch brings
along. Without either everything else works, and :func:`unavailable` says what is missing.
"""

from __future__ import annotations

from niffbench.niff.native import build


def unavailable(device: str) -> str | None:
    """Why there is no kernel for a type of device (``cpu``, ``cuda``, …), or None if there is one.

    On a CPU it is compiled to find out; no GPU is asked.
    """
    if device == "cpu":
        return build.unavailable()
    if device == "cuda":
        from niffbench.niff.native import cuda  # torch, which not every worker needs

        return cuda.unavailable()
    return f"there is none for {device}"
