"""The launcher ``stub``: processes of ``stub_worker.py``, which measure nothing and start in milliseconds."""

from __future__ import annotations

import sys
from pathlib import Path

from niffbench.launch.local import LocalLauncher

COMMAND = (sys.executable, "-E", "-S", str(Path(__file__).parents[1] / "stub_worker.py"))
LAUNCHER = LocalLauncher(COMMAND)
