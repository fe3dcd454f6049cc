"""The form triton without a GPU: by Triton's interpreter, by its compiler, and what is said elsewhere."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from torch._subclasses import FakeTensorMode

from niffbench.niff import NiffDepthwise, forms_of
from niffbench.niff.native import triton_engine

needs_triton = pytest.mark.skipif(find_spec("triton") is None, reason="Triton is not installed")
STAGES = (56, 28, 14, 7)
SHARED_MEMORY: dict[int | str, int] = {80: 163 * 1024, 90: 227 * 1024, "gfx942": 64 * 1024}
"""Bytes that a block may ask for (CUDA C++ Programming Guide, "Compute Capabilities"; CDNA 3 ISA, LDS)."""


@needs_triton
def test_all_that_it_computes_under_the_interpreter() -> None:
    """The tests of ``interpreted.py``, in a process whose kernels are not compiled."""
    tests = Path(__file__).with_name("interpreted.py")
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", str(tests)],
        env={**os.environ, "TRITON_INTERPRET": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-4000:]


@pytest.mark.skipif(any(Path("/dev").glob("nvidia[0-9]*")), reason="there is a card")
def test_it_is_listed_only_where_it_runs_and_refused_by_name_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    assert "triton" not in forms_of("depthwise")
    layer = NiffDepthwise(2, form="triton")
    for form in ("triton", "triton-cached"):
        with pytest.raises(NotImplementedError, match="the triton form is not available for cpu: "):
            layer.with_form(form)(torch.randn(1, 2, 7, 7))


def test_fake_tensors_need_no_triton() -> None:
    with FakeTensorMode():
        layer = NiffDepthwise(3, form="triton")
        for dtype in (torch.float32, torch.bfloat16):
            x = torch.empty(2, 3, 14, 9, dtype=dtype, requires_grad=True)
            y = layer(x)
            y.sum().backward()
            assert (y.shape, y.dtype) == (x.shape, dtype)
            assert x.grad is not None
            assert all(weight.grad is not None for weight in layer.parameters())


@dataclass(frozen=True)
class Compiled:
    """What a kernel takes of a GPU: registers and bytes of local memory of a thread, and of shared memory."""

    registers: int
    local: int
    shared: int
    text: str


REAL, INTEGER = "fp32", "i32"
CONVOLVE = ("image", "result", "other", "sums", "filter", "weight", "bias", "matrices")
IMAGES = {"image", "result", "other"}
FEATURES = tuple(f"{name}{layer}" for layer in (1, 2, 3) for name in ("weight", "bias"))
MLPS = {"tiny": (8,), "small": (8, 4), "big": (16, 128, 32)}


def _convolve(
    side: tuple[int, int], architecture: int | str, *, backward: bool, hidden: int = 4, image: str = REAL
) -> Compiled:
    precision = "ieee" if isinstance(architecture, str) else "tf32x3" if image == REAL else "tf32"
    how = {"convolves": True, "correlates": backward, "conjugate": backward}
    signature = {f"{name}_ptr": f"*{image if name in IMAGES else REAL}" for name in CONVOLVE}
    signature |= {"scale": REAL, "batch": INTEGER, "channels": INTEGER}
    constants = triton_engine.constants_of(
        triton_engine.Layout(*side), hidden, precision, SHARED_MEMORY[architecture], **how
    ) | {"STEPS": 4}
    return _compiled("convolve", signature, constants, architecture)


def _features(mlp: str, architecture: int | str, *, backward: bool) -> Compiled:
    pointers = ("grid", *(("gradient", "sums") if backward else ("result",)), *FEATURES)
    signature = {f"{name}_ptr": f"*{REAL}" for name in pointers} | {"scale": REAL}
    layers = [torch.empty(2, width) for width in MLPS[mlp] for _ in range(2)]
    at_once = triton_engine.FREQUENCIES_BACKWARD if backward else triton_engine.FREQUENCIES
    precision = "ieee" if isinstance(architecture, str) else "tf32x3"
    constants = triton_engine.features_constants(56, 29, layers, at_once, precision) | {"BLOCKS": 1}
    return _compiled("features_gradient" if backward else "features", signature, constants, architecture)


def _compiled(
    kernel: str, signature: dict[str, str], constants: dict[str, Any], architecture: int | str
) -> Compiled:
    """``kernel`` for a GPU that is not here."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from niffbench.niff.native import triton_kernels

    nvidia = isinstance(architecture, int)
    target = GPUTarget("cuda", architecture, 32) if nvidia else GPUTarget("hip", architecture, 64)
    function = getattr(triton_kernels, kernel)
    options = {name: value for name, value in constants.items() if name not in function.arg_names}
    constants = {name: constants[name] for name in function.arg_names[len(signature) :]}
    assert [*signature, *constants] == [*function.arg_names]
    pointers = [place for place, kind in enumerate(signature.values()) if "*" in kind]
    source = ASTSource(
        fn=function,
        signature=signature | dict.fromkeys(constants, "constexpr"),
        constexprs=constants,
        attrs={(place,): [["tt.divisibility", 16]] for place in pointers},
    )
    made = triton.compile(source, target=target, options=options)
    shared = made.metadata.shared
    if not nvidia:
        text = made.asm["amdgcn"]
        used = {key: int(value) for key, value in re.findall(r"\.(vgpr_count|vgpr_spill_count):\s+(\d+)", text)}
        return Compiled(used["vgpr_count"], used["vgpr_spill_count"], shared, text)
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(made.asm["cubin"])
        file.flush()
        tool = triton.knobs.nvidia.cuobjdump.path
        said = subprocess.run([tool, "-res-usage", file.name], capture_output=True, text=True, check=True).stdout
    used = {key: int(value) for key, value in re.findall(r"(REG|STACK|LOCAL):(\d+)", said)}
    return Compiled(used["REG"], used["STACK"] + used["LOCAL"], shared, made.asm["ptx"])


def _more(*case: object) -> object:
    asked = "NIFFBENCH_TESTS_EXAMPLES" in os.environ
    return pytest.param(*case, marks=pytest.mark.skipif(not asked, reason="NIFFBENCH_TESTS_EXAMPLES asks for all"))


@needs_triton
@pytest.mark.parametrize(
    ("side", "architecture", "backward", "hidden", "image"),
    [
        *((side, 90, True, 4, REAL) for side in STAGES),
        (56, 90, False, 4, REAL),
        (28, 80, True, 4, "bf16"),
        (28, "gfx942", False, 4, REAL),
        *(_more(side, 90, False, 4, REAL) for side in STAGES[1:]),
        *(_more(side, 80, backward, 4, REAL) for side in STAGES for backward in (False, True)),
        *(_more(side, 90, backward, 0, REAL) for side in STAGES for backward in (False, True)),
        *(_more(side, 90, True, 32, image) for side in STAGES for image in (REAL, "fp16")),
        *(_more(side, "gfx942", backward, 4, REAL) for side in STAGES for backward in (False, True)),
    ],
)
def test_it_fits_the_gpus_it_is_compiled_for(
    side: int,
    architecture: int | str,
    backward: bool,
    hidden: int,
    image: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    made = _convolve((side, side), architecture, backward=backward, hidden=hidden, image=image)
    # Of the many hidden features of ConvNeXt's filters two numbers are, at 14 in half precision.
    assert made.local <= (8 if hidden > 4 else 0), "more is spilled than need be"
    assert made.shared <= SHARED_MEMORY[architecture]
    if architecture == 90:
        assert "mma.sync" in made.text, "matrix products are those of tensor cores"


@needs_triton
@pytest.mark.parametrize(
    ("mlp", "architecture", "backward"),
    [
        ("small", 90, True),
        ("big", 90, False),
        *(_more("small", architecture, backward) for architecture in (80, "gfx942") for backward in (False, True)),
        *(_more("tiny", 90, backward) for backward in (False, True)),
    ],
)
def test_hidden_features_fit_too(
    mlp: str, architecture: int | str, backward: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    made = _features(mlp, architecture, backward=backward)
    assert made.local == 0
    assert made.shared <= SHARED_MEMORY[architecture]
