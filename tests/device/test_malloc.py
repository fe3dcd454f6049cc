"""Memory that a process frees is kept on a CPU, so that no call faults in again what another gave back."""

from __future__ import annotations

import os
import platform
import subprocess
import sys

import pytest

glibc = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library")

_FAULTS = """
import resource
from niffbench.device.cpu import CpuDevice
import psutil, torch

device = CpuDevice(threads=1)
faults = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_minflt
image = torch.randn(64, 56, 56)
for _ in range(20):
    (image + 1) * 2  # two results of 0.8 MB
before = faults()
for _ in range(100):
    (image + 1) * 2
calls = faults() - before
large = torch.ones(2**26)
del large
held = psutil.Process().memory_info().rss
device.release()
print(device.facts()["malloc"], calls, held - psutil.Process().memory_info().rss, sep=";")
"""


def _faults(**variables: str) -> tuple[str, int, int]:
    """What the allocator is called, page faults in a hundred calls, and bytes that a release gave back."""
    clean = {k: v for k, v in os.environ.items() if not k.startswith("MALLOC_") and k != "GLIBC_TUNABLES"}
    command = [sys.executable, "-c", _FAULTS]
    done = subprocess.run(command, env=clean | variables, capture_output=True, text=True, check=True)
    name, calls, given_back = done.stdout.strip().split(";")
    return name, int(calls), int(given_back)


@glibc
def test_calls_fault_nothing_in_again_and_a_release_gives_all_back() -> None:
    name, calls, given_back = _faults()
    assert name == "glibc, kept"
    assert calls < 4000  # a tenth of the pages that two results a call have
    assert given_back > 2**27  # of the 2**28 bytes that the tensor had


@glibc
@pytest.mark.parametrize("limit", ["RLIMIT_AS", "RLIMIT_DATA"])
def test_where_addresses_are_limited_none_are_kept(limit: str) -> None:
    """Of memory that is given back below what is in use, addresses stay with the process."""
    text = f"import resource; resource.setrlimit(resource.{limit}, (2**33, 2**33)); "
    text += "from niffbench.device import malloc; print(malloc.keep_freed())"
    done = subprocess.run([sys.executable, "-c", text], capture_output=True, text=True, check=True)
    assert done.stdout == "glibc\n"


@glibc
@pytest.mark.parametrize(
    "variables",
    [
        {"MALLOC_MMAP_THRESHOLD_": "100000"},
        {"GLIBC_TUNABLES": "glibc.malloc.mmap_threshold=100000"},
    ],
)
def test_what_a_user_has_set_stays(variables: dict[str, str]) -> None:
    name, calls, _ = _faults(**variables)
    assert name == "glibc"
    assert calls > 10_000
