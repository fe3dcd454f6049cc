"""A card that is not there: ``stub_card.c`` built for the torch that is installed, and programs run on it.

It computes nothing and its times mean nothing; see the C file. What runs on it shows that our code asks torch for
what there is, with every tensor where it belongs, and what torch's own allocator and graphs make of that.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import warm_process

HERE = Path(__file__).resolve().parent
SOURCE = HERE / "stub_card.c"
ANSWERED = re.compile(r"__cuda|cuda|cufft|cublas|cudnn|cupti|cu[A-Z]")
"""Names that torch finds in the stub instead of in CUDA's libraries, CUPTI's too, which needs a driver …"""
THEIR_OWN = re.compile(
    r"cuFile|cudnnGet(Version|CudartVersion|Property|ErrorString|LastErrorString)|cublasLtGetVersion"
)
"""… but for these: they need no card."""


class Unavailable(Exception):
    """No stub can be built here; the text says why."""


def build(place: Path) -> Path:
    """The library in ``place``, by the name of the driver's. Raises Unavailable."""
    import torch

    if sys.platform != "linux" or torch.version.cuda is None or not torch.version.cuda.startswith("13."):
        raise Unavailable(f"torch {torch.__version__} is not built for CUDA 13 on Linux")
    if torch.cuda.is_available():
        raise Unavailable("there is a real card")
    headers = [f"-I{folder}" for folder in _headers()]
    if not all(map(shutil.which, ("cc", "nm"))):
        raise Unavailable("there is no C compiler")
    bare, rest, library = place / "bare.so", place / "rest.c", place / "libcuda.so.1"
    compiler = ("cc", "-w", "-O1", "-fPIC", "-shared", *headers)
    _run(*compiler, str(SOURCE), "-o", str(bare))
    wanted = _symbols("--undefined-only", *(Path(torch.__file__).parent / "lib").glob("lib*.so"))
    missing = {name for name in wanted if ANSWERED.match(name) and not THEIR_OWN.match(name)}
    missing -= _symbols("--defined-only", bare)
    rest.write_text("".join(f"int {name}(void) {{ return 0; }}\n" for name in sorted(missing)))
    _run(*compiler, "-Wl,-soname,libcuda.so.1", str(SOURCE), str(rest), "-o", str(library))
    return library


def run(library: Path, module: str, *arguments: str, **settings: str) -> subprocess.CompletedProcess[str]:
    """Run ``python -m module arguments …`` on the card; ``settings`` are those of the C file."""
    path = os.pathsep.join(filter(None, (str(HERE.parent), str(HERE), os.environ.get("PYTHONPATH"))))
    beside = (("LD_PRELOAD", str(library)), ("LD_LIBRARY_PATH", str(library.parent)))
    environment = os.environ | settings | dict(beside) | {"PYTHONPATH": path}
    return warm_process.run(arguments, environment, HERE.parent, 600, module=module, beside=beside)


def _headers() -> list[Path]:
    """Folders of headers: of torch's CUDA runtime, which lacks some, and of Triton, maybe of another CUDA.

    The first is one that has CUDA 13's own.
    """
    runtime, triton = find_spec("nvidia"), find_spec("triton")
    places = (runtime.submodule_search_locations if runtime else None) or ()
    folders = [Path(place) / "cu13" / "include" for place in places]
    folders += [Path(triton.origin).parent / "backends/nvidia/include"] if triton and triton.origin else []
    for folder in folders:
        file = folder / "cuda_runtime_api.h"
        if file.is_file() and re.search(r"^#define CUDART_VERSION +13", file.read_text("utf-8"), re.MULTILINE):
            return [folder, *folders]
    raise Unavailable("there are no headers of CUDA 13 (they come with torch's CUDA runtime, and with Triton)")


def _symbols(kind: str, *libraries: Path) -> set[str]:
    lines = _run("nm", "-D", kind, *map(str, libraries)).splitlines()
    return {line.split()[-1].partition("@")[0] for line in lines if line.strip()}


def _run(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{command[0]} failed: {done.stderr.strip()[-1000:]}")
    return done.stdout
