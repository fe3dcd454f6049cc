"""The pytest plugin: suites become tests, samples are replayed to the last bit, pytest-benchmark does the rest."""

from __future__ import annotations

import json
import os
import random
import re
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from synthetic import World, make

import niffbench
from niffbench.case import Case
from niffbench.errors import NothingMeasured
from niffbench.gate import ab
from niffbench.operators.catalogue import catalogue
from niffbench.results import REGISTRY, Latency, Metric, Record, Run, Traits, read
from niffbench.session.provenance import revision
from niffbench.suite import load

pytest_plugins = ["pytester"]

SUITE = """
description = "Two operators, twice"
baseline = "depthwise-k3"
axes.channels = 8
axes.size = [14, 28]
axes.mode = ["inference", "training"]
operators = [{name = "depthwise-k3"}, {name = "dense-k3"}]
measure = {regimes = ["cold", "steady"], min_time = 0.0, max_time = 0.01, min_samples = 5}
"""
NAME = re.compile(r"^(depthwise|dense)-k3\[B1-C8-(14x14|28x28)-float32-(inference|training)-steady\]$")

Session = Callable[..., pytest.RunResult]


@dataclass
class Machine:
    """Stands in for ``niffbench run``: made-up samples, ``faults`` by problem label, and a memory of its runs."""

    slower: dict[str, float] = field(default_factory=dict)  # operator → factor
    faults: dict[str, tuple[str, str]] = field(default_factory=dict)  # problem label of dense → status, reason
    flags: list[str] = field(default_factory=list)
    broken: bool = False
    asked: list[list[str]] = field(default_factory=list)

    def measured(
        self, python: str, arguments: Sequence[str], out: Path, environment: Mapping[str, str], cwd: Path
    ) -> Run:
        self.asked.append(list(arguments))
        if self.broken:
            raise NothingMeasured("the machine is broken")
        only = [arguments[i + 1] for i, part in enumerate(arguments) if part == "--only"]
        cases = load(arguments[0], catalogue(), only=only).cases
        run = make(World(sizes=(14,), rounds=1), out)
        return Run(out, run.manifest, tuple(map(self.record, cases)))

    def record(self, case: Case) -> Record:
        traits = Traits(label=case.operator, family=case.operator, boundary="zero", equivalence="x")
        fault = self.faults.get(case.problem.label) if case.operator == "dense" else None
        if fault:
            return Record(case=case, id=case.id, round=0, status=fault[0], reason=fault[1], traits=traits)  # type: ignore[arg-type]
        draw = random.Random(case.id)
        samples = [1e-3 * self.slower.get(case.operator, 1.0) * draw.gauss(1, 1e-4) for _ in range(5)]
        series = Latency(samples=samples, flags=self.flags)
        return Record(
            case=case, id=case.id, round=0, status="ok", traits=traits, latency={"steady": series, "cold": series}
        )


@pytest.fixture(autouse=True)
def _no_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sessions of these tests are no part of one that is spread over processes, where nothing is benchmarked."""
    monkeypatch.delenv("PYTEST_XDIST_WORKER", raising=False)


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Machine:
    """The stand-in, in force."""
    stand_in = Machine()
    monkeypatch.setattr(ab, "measured", stand_in.measured)
    return stand_in


@pytest.fixture
def session(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> Session:
    """A pytest session in this process, in a directory with ``two.toml``."""
    (pytester.path / "two.toml").write_text(SUITE)
    (pytester.path / "pytest.ini").write_text("[pytest]\naddopts = --strict-markers --strict-config\n")
    monkeypatch.setenv("PYTEST_ADDOPTS", "")

    def run(*arguments: str) -> pytest.RunResult:
        unneeded = ("no:cacheprovider", "no:xdist", "no:hypothesispytest")
        return pytester.runpytest_inprocess(*(part for name in unneeded for part in ("-p", name)), *arguments)

    return run


def collected(done: pytest.RunResult) -> list[str]:
    return [line.partition("::")[2] for line in done.outlines if "::" in line]


def test_real_samples_are_replayed_to_the_last_bit_with_what_else_is_known(tmp_path: Path) -> None:
    (tmp_path / "two.toml").write_text(SUITE)
    (tmp_path / "trace.json").write_text("{}")
    options = ("--niffbench-device", "replay:trace.json", "--niffbench-rounds", "2", "--niffbench-keep", "kept")
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "two.toml", *options, "--benchmark-json", "out.json"],
        cwd=tmp_path,
        env={**os.environ, "PYTEST_ADDOPTS": ""},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    assert "8 passed" in done.stdout
    written = json.loads((tmp_path / "out.json").read_text())
    (run,) = (read(path) for path in (tmp_path / "kept").iterdir() if path.is_dir())
    assert len(written["benchmarks"]) == 8
    assert run.manifest.commit == revision(Path(niffbench.__file__), os.environ).commit
    for benchmark in written["benchmarks"]:
        assert NAME.match(benchmark["name"])
        assert benchmark["fullname"] == f"two.toml::{benchmark['name']}"
        info = benchmark["extra_info"]
        records = [record for record in run.records if record.id == info["case"]]
        assert [record.round for record in records] == [0, 1]
        samples = [sample for record in records for sample in record.latency["steady"].samples]
        assert benchmark["stats"]["data"] == samples
        record = records[0]
        assert record.cost is not None
        assert record.memory is not None
        assert info["flops"] == record.cost.closed
        assert info.get("bytes_own") == record.cost.bytes_own
        assert info["bytes_floor"] == record.cost.bytes_floor
        assert info["memory_peak"] == record.memory.peak
        assert info["parameters"] == record.parameters
        assert info["fingerprint"] == run.manifest.fingerprint.hash
        assert info["regime"] == "steady"
        assert info["rounds"] == 2
    assert written["machine_info"]["node"] == ""
    assert f'"{os.uname().nodename}"' not in json.dumps(written)


def test_rows_of_ones_own_modules_are_tests_too(session: Session, pytester: pytest.Pytester) -> None:
    (pytester.path / "mine.toml").write_text(
        SUITE.replace('{name = "dense-k3"}', '{module = "torch.nn:Identity", label = "mine"}')
    )
    names = collected(session("mine.toml", "--collect-only", "-q"))
    assert [name.partition("[")[0] for name in names] == ["depthwise-k3"] * 4 + ["mine"] * 4


def test_cases_are_selected_by_name_and_by_marks(session: Session) -> None:
    everything = ("two.toml", "--collect-only", "-q")
    names = collected(session(*everything))
    assert len(names) == 8
    assert all(map(NAME.match, names))
    by_name = collected(session(*everything, "-k", "dense and 14x14 and not training"))
    assert by_name == ["dense-k3[B1-C8-14x14-float32-inference-steady]"]
    by_mark = collected(session(*everything, "-m", "family_depthwise and mode_training"))
    assert len(by_mark) == 2
    assert all(name.startswith("depthwise") and "training" in name for name in by_mark)
    both = ("--niffbench-regime", "cold", "--niffbench-regime", "steady")
    assert len(collected(session(*everything, *both))) == 16
    assert len(collected(session(*everything, *both, "-m", "regime_cold"))) == 8
    exact = f"two.toml::{by_name[0]}"
    assert collected(session(exact, "--collect-only", "-q")) == by_name


def test_only_what_is_selected_is_measured_and_at_once(session: Session, machine: Machine) -> None:
    session("two.toml", "-k", "dense and 28x28", "--niffbench-rounds", "3").assert_outcomes(passed=2, deselected=6)
    assert len(machine.asked) == 1
    assert machine.asked[0].count("--only") == 2
    assert machine.asked[0][machine.asked[0].index("--rounds") + 1] == "3"


def test_save_compare_and_compare_fail_work(session: Session, machine: Machine) -> None:
    assert session("two.toml", "--benchmark-save", "before").ret == 0
    compare = ("--benchmark-compare=0001", "--benchmark-compare-fail=median:5%")
    assert session("two.toml", *compare).ret == 0
    machine.slower["dense"] = 1.2
    worse = session("two.toml", *compare)
    assert worse.ret != 0
    said = worse.stdout.str() + worse.stderr.str()
    assert "Performance has regressed" in said
    assert "dense-k3[B1-C8-28x28" in said
    assert "depthwise-k3[B1-C8-28x28-float32-inference-steady] (" not in said.partition("has regressed")[2]


def test_a_comparison_that_covers_nothing_says_so(session: Session, machine: Machine) -> None:
    session("two.toml", "-k", "28x28", "--benchmark-save", "before").assert_outcomes(passed=4, deselected=4)
    said = session("two.toml", "-k", "14x14", "--benchmark-compare=0001").stdout.str()
    assert "is not in 0001_before.json" in said
    assert "was not run, but is in 0001_before.json" in said


def test_what_could_not_be_measured_fails_or_skips_with_its_reason(
    session: Session, machine: Machine, pytester: pytest.Pytester
) -> None:
    machine.faults = {
        "B1 8@14": ("oom", "wants 10 bytes"),
        "B1 8@28": ("unsupported", "not on this device"),
        "B1 8@14 training": ("crashed", "signal SIGSEGV"),
    }
    done = session("two.toml", "-rsf", "--benchmark-json", "out.json")
    done.assert_outcomes(passed=5, failed=2, skipped=1)
    for reason in ("oom: wants 10 bytes", "unsupported: not on this device", "crashed: signal SIGSEGV"):
        assert reason in done.stdout.str()
    assert len(json.loads((pytester.path / "out.json").read_text())["benchmarks"]) == 5


def test_a_run_that_fails_fails_its_cases_and_is_not_repeated(session: Session, machine: Machine) -> None:
    machine.broken = True
    done = session("two.toml")
    done.assert_outcomes(failed=8)
    assert "the machine is broken" in done.stdout.str()
    assert len(machine.asked) == 1


@pytest.mark.parametrize("flag", ["stuck", "invalid"])
def test_a_broken_clock_fails_rather_than_being_the_fastest(session: Session, machine: Machine, flag: str) -> None:
    machine.flags = [flag]
    done = session("two.toml", "-k", "14x14 and inference")
    done.assert_outcomes(failed=2, deselected=6)
    assert flag in done.stdout.str()


def test_a_planted_metric_is_in_what_pytest_benchmark_keeps(
    session: Session, machine: Machine, pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    planted = Metric(key="stickiness", title="stickiness", unit="mPa", read=lambda _: 421.0)
    monkeypatch.setitem(REGISTRY, planted.key, planted)
    session("two.toml", "-k", "14x14 and inference", "--benchmark-json", "out.json").assert_outcomes(
        passed=2, deselected=6
    )
    written = json.loads((pytester.path / "out.json").read_text())["benchmarks"]
    assert [benchmark["extra_info"]["stickiness"] for benchmark in written] == [421.0, 421.0]


def test_a_regime_that_is_none_is_one_message(session: Session, machine: Machine) -> None:
    done = session("two.toml", "--niffbench-regime", "staedy")
    assert done.ret == pytest.ExitCode.USAGE_ERROR
    assert "'staedy' is none of first, cold, steady" in done.stderr.str()
    assert not machine.asked


def test_a_regime_that_was_not_measured_is_skipped(session: Session, machine: Machine) -> None:
    session("two.toml", "-k", "14x14", "--niffbench-regime", "graph").assert_outcomes(skipped=4, deselected=4)


def test_without_statistics_each_case_is_only_shown_to_work(session: Session, machine: Machine) -> None:
    done = session("two.toml", "-k", "14x14 and inference", "--benchmark-disable")
    done.assert_outcomes(passed=2, deselected=6)
    assert [arguments.count("--only") for arguments in machine.asked] == [1, 1]
    assert "Min" not in done.stdout.str()


def test_benchmark_only_and_skip_see_the_cases_as_benchmarks(session: Session, machine: Machine) -> None:
    session("two.toml", "--benchmark-only").assert_outcomes(passed=8)
    session("two.toml", "--benchmark-skip").assert_outcomes(skipped=8)
    assert len(machine.asked) == 1


def test_a_faulty_suite_is_one_message_and_other_toml_files_are_left_alone(
    session: Session, pytester: pytest.Pytester
) -> None:
    (pytester.path / "two.toml").write_text(SUITE.replace("dense-k3", "dence-k3"))
    done = session("two.toml")
    done.assert_outcomes(errors=1)
    assert "did you mean 'dense'" in done.stdout.str()
    assert "Traceback" not in done.stdout.str()
    (pytester.path / "other.toml").write_text("[tool]\nx = 1\n")
    assert not collected(session("other.toml", "--collect-only", "-q"))


def test_suites_are_collected_only_when_they_or_their_folder_are_named(
    session: Session, pytester: pytest.Pytester
) -> None:
    (pytester.path / "suites").mkdir()
    (pytester.path / "suites" / "deep.toml").write_text(SUITE)
    assert not collected(session("--collect-only", "-q"))
    assert len(collected(session("suites", "--collect-only", "-q"))) == 8
    assert len(collected(session("suites/deep.toml", "--collect-only", "-q"))) == 8


def test_loading_the_plugin_loads_no_torch() -> None:
    code = (
        "import niffbench.pytest_plugin, sys; print(*sorted({'torch', 'pandas', 'pydantic'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "\n"


@pytest.mark.parametrize(
    "text",
    [
        "[[[ not toml",
        "operators = 3\nbaseline = 'main'\n",
        f"operators = 1\nbaseline = 1\n{'.'.join('a' * 60_000)} = 1",
    ],
    ids=["malformed", "keys of ours", "hostile"],
)
def test_what_lies_about_in_somebody_elses_tests_is_left_alone(
    session: Session, pytester: pytest.Pytester, text: str
) -> None:
    folder = pytester.mkdir("theirs")
    (folder / "settings.toml").write_text(text)
    (folder / "test_theirs.py").write_text("def test_it(): pass\n")
    session("theirs").assert_outcomes(passed=1)
    # Named itself it means to be one.
    assert session("theirs/settings.toml").ret != 0


def test_without_pytest_benchmark_a_suite_is_skipped_with_one_reason(session: Session) -> None:
    done = session("-p", "no:benchmark", "two.toml", "-rs")
    done.assert_outcomes(skipped=1)
    done.stdout.fnmatch_lines(["*SKIPPED*need pytest-benchmark*"])
