"""The real command, its workers and torch on operators that misbehave in earnest: each costs itself alone."""

from __future__ import annotations

import os
import signal
from pathlib import Path

from cli_process import Started

from niffbench.results import read

ROOT = Path(__file__).parents[2]
SUITE = """
description = "what may go wrong"
baseline = "hostile/fine"
rounds = 1
axes = {channels = 2, size = 4}
operators = [
    {name = "hostile/fine"}, {name = "hostile/segfault"}, {name = "hostile/hang"}, {name = "hostile/ravenous"},
]
measure = {regimes = ["steady"], min_time = 0.01, max_time = 0.05, min_samples = 3, case_timeout = 5, threads = 1}
"""
SPACE = 64  # GiB of addresses: torch is content with them, and one operator is not


def test_every_way_to_fail_costs_the_case_that_failed(tmp_path: Path) -> None:
    (tmp_path / "hostile.toml").write_text(SUITE)
    paths = os.pathsep.join((str(ROOT), str(ROOT / "tests"), os.environ.get("PYTHONPATH", "")))
    variables = {"NIFFBENCH_EXTRA_OPERATORS": "hostile_operators", "PYTHONPATH": paths, "NIFFBENCH_ROOFLINE": "0"}
    arguments = ["run", "hostile.toml", "--device", "cpu", "--out", "out", "--no-report", "--seed", "1"]
    with Started(tmp_path, arguments, limits={"AS": SPACE * 2**30}, variables=variables) as started:
        assert started.end() == 0, started.said()
        assert not started.workers()
        assert "Traceback" not in started.said()
    result = {record.case.operator.partition("/")[2]: record for record in read(tmp_path / "out").records}
    assert {name: record.status for name, record in result.items()} == {
        "fine": "ok",
        "segfault": "crashed",
        "hang": "timeout",
        "ravenous": "oom",
    }
    assert result["fine"].latency["steady"].samples
    assert f"killed by {signal.SIGSEGV.name}" in str(result["segfault"].reason)
    assert result["hang"].reason == "took longer than 5 s (in first)"
    assert result["ravenous"].needed == 2**37
    assert 0 < (result["ravenous"].available or 0) < SPACE * 2**30
