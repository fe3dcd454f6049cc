"""The gate on a real machine: an A/A run raises no alarm, and a planted slowdown is found in its case only.

    python tests/gate_verdict.py --pairs 20 --out DIR

measures two copies of this package in turn: first identical ones, then a pair of which one waits 10 % longer in
the operator ``planted`` (a depthwise convolution and a busy wait, added through ``NIFFBENCH_EXTRA_OPERATORS``).
Exit status 0 when both come out as they should. It takes minutes, so it is no part of the test suite.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]

OPERATOR = '''
"""A depthwise convolution that waits."""

import time

from niffbench.operators import depthwise

SECONDS = {seconds}


class Planted(depthwise.Depthwise):
    def build(self, case):
        from torch import nn

        class Waiting(nn.Module):
            def __init__(self, inner):
                super().__init__()
                self.inner = inner

            def forward(self, x):
                end = time.perf_counter() + SECONDS
                out = self.inner(x)
                while time.perf_counter() < end:
                    pass
                return out

        return Waiting(super().build(case))

    def reference(self, case, state, x):
        return super().reference(case, {{key.removeprefix("inner."): value for key, value in state.items()}}, x)

    def equivalence(self, case):
        return "planted"


OPERATORS = (Planted(name="planted", family="planted", summary="A wait.", boundary="zero"),)
'''

PLANT = """
[[operators]]
name = "planted-k7"

[measure]
regimes = ["cold", "steady"]
precision = 0.005
min_time = 0.1
max_time = 0.3
threads = 1
"""


def copy(place: Path, seconds: float) -> Path:
    """A directory with this package and the operator; ``seconds`` is how long a forward call takes."""
    shutil.copytree(ROOT / "niffbench", place / "niffbench", ignore=shutil.ignore_patterns("__pycache__"))
    (place / "planted_operators.py").write_text(OPERATOR.format(seconds=seconds))
    return place


def ab(base: Path, head: Path, suite: Path, pairs: int, out: Path, more: list[str]) -> dict[str, object]:
    """Run the gate; returns its exit status and what it called changed."""
    command = [sys.executable, "-m", "niffbench.cli", "ab", str(suite), "--base", str(base), "--head", str(head)]
    done = subprocess.run(
        [*command, "--rounds", str(pairs), "--device", "cpu", "--out", str(out), "--json", *more],
        env={**os.environ, "NIFFBENCH_EXTRA_OPERATORS": "planted_operators"},
        stdout=subprocess.PIPE,
        text=True,
        check=False,
        cwd=ROOT,
    )
    if not done.stdout:
        raise SystemExit(f"the gate ended with status {done.returncode} and no verdict")
    (out / "comparison.json").write_text(done.stdout)
    findings = json.loads(done.stdout)["findings"]
    latencies = [finding for finding in findings if finding["quantity"].startswith("latency_")]
    widths = sorted((f["high"] - f["low"]) / 2 for f in latencies if f["high"])
    return {
        "exit": done.returncode,
        "latencies": len(latencies),
        "equivalent": sum(finding["verdict"] == "equivalent" for finding in latencies),
        "half-width of the intervals, median and largest": [widths[len(widths) // 2], widths[-1]]
        if widths
        else None,
        "called": [
            [f["label"], f["problem"], f["quantity"], f["verdict"], f["ratio"]]
            for f in findings
            if f["verdict"] in ("regressed", "improved", "missing")
        ],
    }


def main() -> int:
    """Both runs, one after the other; prints what came of them."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--pairs", type=int, default=20)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument(
        "--milliseconds", type=float, default=0.5, help="of the planted operator, before it slows down"
    )
    parser.add_argument("--planted-pairs", type=int, default=10)
    options, more = parser.parse_known_args()  # the rest is for `niffbench ab`: --only, --alpha
    out: Path = options.out.resolve()
    out.mkdir(parents=True)
    suite = out / "gate.toml"
    suite.write_text(suite_text())
    seconds = options.milliseconds / 1e3
    base, same, slow = (
        copy(out / name, s) for name, s in (("base", seconds), ("same", seconds), ("slow", 1.1 * seconds))
    )
    told = {
        "A/A": ab(base, same, suite, options.pairs, out / "aa", more),
        "planted": ab(base, slow, suite, options.planted_pairs, out / "ab", more),
    }
    print(json.dumps(told, indent=1))
    quiet = told["A/A"]["exit"] in (0, 5) and not told["A/A"]["called"]
    called = told["planted"]["called"]
    assert isinstance(called, list)
    found = told["planted"]["exit"] == 1 and {(row[0], row[3]) for row in called} == {("planted-k7", "regressed")}
    print("A/A:", "no alarm" if quiet else "FALSE ALARM")
    print("planted 10 %:", "found in its cases only" if found else "NOT AS IT SHOULD BE")
    return 0 if quiet and found else 1


def suite_text() -> str:
    """The smoke suite's cases and the planted operator, measured as long as a gate should, on one thread.

    More threads than free cores wait for each other: on a busy machine that multiplies the noise.
    """
    return (ROOT / "suites" / "smoke.toml").read_text().partition("[measure]")[0] + PLANT


if __name__ == "__main__":
    sys.exit(main())
