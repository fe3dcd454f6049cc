"""What exceptions mean for a record, in the words the libraries use."""

from __future__ import annotations

import pytest

from niffbench.worker.failures import MAX_REASON, DeviceLost, explain


class OutOfMemoryError(RuntimeError):
    """As torch names it."""


CUDA = (
    "CUDA out of memory. Tried to allocate 20.50 GiB. GPU 0 has a total capacity of 79.11 GiB of which 10.25 GiB "
    "is free. Including non-PyTorch memory, this process has 68.85 GiB memory in use."
)
CPU = (
    "[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to "
    "allocate 40000000000000 bytes. Error code 12 (Cannot allocate memory)"
)


@pytest.mark.parametrize(
    ("error", "needed", "available"),
    [
        (OutOfMemoryError(CUDA), round(20.5 * 2**30), round(10.25 * 2**30)),
        (OutOfMemoryError("CUDA out of memory. Tried to allocate 512.00 MiB."), 2**29, 7),
        (RuntimeError(CPU), 40_000_000_000_000, 7),
        (RuntimeError("CUDA error: out of memory"), None, 7),
        (RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"), None, 7),
        (RuntimeError("cuFFT error: CUFFT_ALLOC_FAILED"), None, 7),
        (RuntimeError("std::bad_alloc"), None, 7),
        (MemoryError(), None, 7),
    ],
)
def test_out_of_memory_with_what_was_asked_for_and_free(
    error: Exception, needed: int | None, available: int
) -> None:
    result = explain(error, lambda: 7)
    assert (result.status, result.needed, result.available) == ("oom", needed, available)


@pytest.mark.parametrize(
    "text",
    [
        "\"slow_conv2d_cpu\" not implemented for 'Half'",
        "Unsupported dtype Half",
        "cuFFT only supports dimensions whose sizes are powers of two when computing in half precision",
        "This operation is not supported on this device",
    ],
)
def test_what_a_library_lacks_is_unsupported(text: str) -> None:
    assert explain(RuntimeError(text)).status == "unsupported"
    assert explain(RuntimeError(text)).reason == text


def test_an_error_without_a_text_still_has_a_reason() -> None:
    assert explain(NotImplementedError()).reason == "NotImplementedError"
    assert explain(MemoryError()).reason == "out of memory"


@pytest.mark.parametrize(
    "text",
    [
        "CUDA error: unspecified launch failure",
        "CUDA error: an illegal memory access was encountered\nCompile with TORCH_USE_CUDA_DSA",
        "CUBLAS_STATUS_EXECUTION_FAILED when calling cublasSgemm",
        "cuDNN error: CUDNN_STATUS_INTERNAL_ERROR",
    ],
)
def test_a_lost_device_ends_the_process(text: str) -> None:
    """It is not asked what memory it has: it would answer with another error."""
    with pytest.raises(DeviceLost):
        explain(RuntimeError(text), lambda: pytest.fail("a lost device was asked for its memory"))


def test_a_device_that_was_said_to_be_lost_stays_lost() -> None:
    """Whoever catches it on its way out, though its text was cut before the words that told."""
    with pytest.raises(DeviceLost) as first:
        explain(RuntimeError(MAX_REASON * "x" + " CUDA error: unspecified launch failure"))
    with pytest.raises(DeviceLost) as second:
        explain(first.value)
    assert second.value is first.value


def test_anything_else_is_the_operators_crash_in_one_short_line() -> None:
    result = explain(ValueError("a\n  b\t" + "x" * 2000))
    assert result.status == "crashed"
    assert result.reason.startswith("ValueError: a b x")
    assert len(result.reason) == MAX_REASON
