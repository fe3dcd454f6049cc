"""TF32 by torch's old flags and its new ones, each in a process of its own: they hold for a whole process."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
import torch

from niffbench.device import settings

NEWER = "fp32_precision" if hasattr(torch.backends.cuda.matmul, "fp32_precision") else ""
ASKED_FOR = [
    "pass",
    "torch.backends.cuda.matmul.allow_tf32 = True",
    "torch.set_float32_matmul_precision('high')",
    *(
        f"torch.backends.{name}.fp32_precision = 'tf32'".replace("..", ".")
        for name in ("", "cudnn", "cudnn.conv", "cuda.matmul")
        if NEWER
    ),
]


PROGRAM = f"""
import json, os, torch
from niffbench.device import settings
torch.set_num_threads(1)
for setting in {ASKED_FOR!r}:
    if os.fork():
        _, status = os.wait()
        assert status == 0, setting
        continue
    exec(setting)
    before = settings.tf32_allowed()
    settings.allow_tf32(False, False)
    allowed = [settings.tf32_allowed()]
    with settings.tf32(True):
        allowed.append(settings.tf32_allowed())
    allowed.append(settings.tf32_allowed())
    settings.allow_tf32(*before)
    allowed.append(settings.tf32_allowed() == before)
    settings.torch_facts()
    print(json.dumps([setting, allowed]), flush=True)
    os._exit(0)
"""


def test_tf32_is_set_and_read_whatever_was_set_before() -> None:
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    allowed = dict(map(json.loads, done.stdout.splitlines()))
    assert allowed == {setting: [[False, False], [True, True], [False, False], True] for setting in ASKED_FOR}


def test_variables_of_the_driver_are_facts_and_their_paths_are_not(monkeypatch: pytest.MonkeyPatch) -> None:
    unset = settings.torch_facts()
    assert "cuda_mps" not in unset
    monkeypatch.setenv("CUDA_MPS_PIPE_DIRECTORY", "/somebody/s")
    for name in ("CUDA_MODULE_LOADING", "CUDA_DEVICE_MAX_CONNECTIONS", "CUBLAS_WORKSPACE_CONFIG"):
        monkeypatch.setenv(name, "1")
        assert settings.torch_facts()[name.lower()] == "1"
    assert settings.torch_facts()["cuda_mps"] is True
    assert "/somebody/s" not in settings.torch_facts().values()
