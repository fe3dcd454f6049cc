"""``gpu-verdict`` rehearsed where there is no GPU: every step, what it leaves, being cut and being interrupted."""

from __future__ import annotations

import io
import json
import os
import re
import signal
import socket
import subprocess
import sys
import tarfile
import threading
import time
from collections.abc import Callable
from contextlib import nullcontext, suppress
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from cli_process import Started, wait_for
from conftest import Cli

from niffbench.operators.catalogue import catalogue
from niffbench.results import read
from niffbench.session.interrupts import Interrupts
from niffbench.verdict import ahead, archive, giving
from niffbench.verdict import job as verdict_job
from niffbench.verdict import steps as verdict_steps
from niffbench.verdict.job import Job, Outcome, Settings, StepResult
from niffbench.verdict.steps import Step, steps

ROOT = Path(__file__).parents[2]
TRACE = ROOT / "tests" / "data" / "replay_cuda.json"
NIFF = tuple(f"niff-depthwise/{form}" for form in ("published", "rfft", "native-cached"))
OPERATORS = (*NIFF, "depthwise-k7", "dense-k3", "copy")


def _started(out: Path, *arguments: str) -> Started:
    variables = {"NIFFBENCH_ROOFLINE": "0"}  # seconds, of what a CPU can do
    return Started(out.parent, ["gpu-verdict", "--out", str(out), *arguments], variables=variables)


@dataclass(frozen=True)
class Rehearsed:
    """What a rehearsal left, and its archive unpacked."""

    out: Path
    unpacked: Path
    status: int
    printed: str

    @property
    def page(self) -> str:
        return (self.out / "verdict.md").read_text()

    def json(self, name: str) -> Any:
        return json.loads((self.unpacked / name).read_text())


def _finished(started: Started, out: Path) -> Rehearsed:
    with started:
        status, printed = started.process.wait(500), started.said()
    unpacked = out.with_name(f"{out.name}-unpacked")
    with tarfile.open(out / "gathered.tar.gz") as archive:
        archive.extractall(unpacked, filter="data")
    return Rehearsed(out, unpacked, status, printed)


@pytest.fixture(scope="module")
def rehearsed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Rehearsed, Rehearsed]:
    """Both groups of steps, side by side: what shows that all is right on the CPU, what it costs on a replay."""
    folder = tmp_path_factory.mktemp("verdict")
    right = _started(folder / "right", "--only", "right", "--device", "cpu", "--minutes", "60")
    cost = _started(folder / "cost", "--only", "cost", "--device", f"replay:{TRACE}", "--minutes", "60")
    return _finished(right, folder / "right"), _finished(cost, folder / "cost")


def test_every_step_is_done_and_told_beside_its_estimate(rehearsed: tuple[Rehearsed, Rehearsed]) -> None:
    for group, one in zip(("right", "cost"), rehearsed, strict=True):
        assert one.status == 0, one.printed
        planned = [step for step in steps(Settings("cuda", 1, None, ("gpu",))) if step.group == group]
        results = one.json("steps.json")
        assert [result["name"] for result in results] == [step.name for step in planned]
        for result, step in zip(results, planned, strict=True):
            assert result["status"] in ("done", "skipped"), result
            assert result["estimate"] == step.estimate
            assert f"| {result['name']} | {result['status']} | {step.estimate:.0f} s |" in one.page
            assert result["name"] in one.printed


def test_few_files_of_plain_names_are_left(rehearsed: tuple[Rehearsed, Rehearsed]) -> None:
    for one in rehearsed:
        names = {path.name for path in one.out.rglob("*")}
        assert names == {"gathered.tar.gz", "verdict.md", "steps.json"}
        assert all(re.fullmatch(r"[A-Za-z0-9._-]+", name) for name in names)


def test_tests_that_need_a_card_are_shared_out_and_skip_without_one(
    rehearsed: tuple[Rehearsed, Rehearsed],
) -> None:
    right, _ = rehearsed
    assert (right.unpacked / "tests" / "1.xml").exists()
    assert (right.unpacked / "tests" / "2.xml").exists()
    details = {result["name"]: result["detail"] for result in right.json("steps.json")}
    assert re.fullmatch(r"\d+ skipped", details["tests"])


def test_runs_can_be_read_and_their_headline_has_every_case(rehearsed: tuple[Rehearsed, Rehearsed]) -> None:
    right, cost = rehearsed
    assert read(right.unpacked / "runs" / "smoke").records
    run = read(cost.unpacked / "runs" / "suite-gpu")
    assert {record.status for record in run.records} == {"ok"}
    assert len(run.records) == len(run.manifest.suite.cases)
    rows = cost.page.partition("## Headline")[2].partition("## Crossover")[0].splitlines()
    for record in run.records:
        assert any(row.startswith(f"| {record.case.problem.label} | {record.traits.label} |") for row in rows)
    assert {record.case.problem.batch for record in run.records} == {1, 8, 32}


def test_crossovers_are_told_in_latency_and_in_flops(rehearsed: tuple[Rehearsed, Rehearsed]) -> None:
    _, cost = rehearsed
    assert {r.case.problem.batch for r in read(cost.unpacked / "runs" / "gpu-kernels").records} == {32}
    crossovers = cost.page.partition("## Crossover kernel size: gpu-kernels")[2].partition("## Witnesses")[0]
    for quantity in ("latency", "FLOPs"):
        assert re.search(rf"\| niff-depthwise/rfft \| depthwise \| [a-z ]*{quantity} \|", crossovers)


def test_every_assumption_is_tried_and_none_confirmed_without_a_card(
    rehearsed: tuple[Rehearsed, Rehearsed],
) -> None:
    from niffbench.verdict.assumptions import CHECKS

    right, _ = rehearsed
    findings = right.json("assumptions.json")
    assert [finding["claim"] for finding in findings] == list(CHECKS)
    for finding in findings:
        assert finding["verdict"] == "not checked"
        assert "the check failed" not in finding["evidence"], finding
        assert finding["claim"] in right.page


def test_our_medians_stand_beside_why_no_other_tool_has_any(rehearsed: tuple[Rehearsed, Rehearsed]) -> None:
    _, cost = rehearsed
    rows = cost.json("witnesses.json")
    assert {row["operator"] for row in rows} == set(OPERATORS)
    for row in rows:
        assert row["ours"] > 0
        assert row["theirs"] is None
        assert row["reason"]
    assert {row["tool"].partition(",")[0] for row in rows} == {"triton.testing.do_bench", "cuda.bench"}


def test_what_is_packed_names_no_host(rehearsed: tuple[Rehearsed, Rehearsed]) -> None:
    host = socket.gethostname().encode()
    for one in rehearsed:
        for path in one.unpacked.rglob("*"):
            assert len(host) <= 4 or not path.is_file() or host not in path.read_bytes(), path


def test_a_later_call_adds_to_what_is_there(rehearsed: tuple[Rehearsed, Rehearsed], cli: Cli) -> None:
    right, _ = rehearsed
    done = cli("gpu-verdict", "--only", "nvidia-smi", "--device", "cpu", "--out", str(right.out))
    assert done.returncode == 0, done.stderr
    names = {result["name"] for result in json.loads((right.out / "steps.json").read_text())}
    assert names == {result["name"] for result in right.json("steps.json")}
    with tarfile.open(right.out / "gathered.tar.gz") as archive:
        assert {"assumptions.json", "runs/smoke/run.json"} <= set(archive.getnames())


def test_a_step_that_fails_is_told_and_stops_no_other(cli: Cli, tmp_path: Path) -> None:
    out, trace = tmp_path / "out", tmp_path / "torn.json"
    trace.write_text("{")
    arguments = ("--only", "smoke", "--only", "kernels", "--device", f"replay:{trace}")
    done = cli("gpu-verdict", *arguments, "--out", str(out), timeout=300)
    assert done.returncode == 1
    results = json.loads((out / "steps.json").read_text())
    assert [result["name"] for result in results] == ["smoke", "kernels"]
    for result in results:
        assert result["status"] == "failed"
        assert "torn.json" in result["detail"]
    assert "torn.json" in (out / "verdict.md").read_text()


def _given(out: Path, *planned: Step, minutes: float = 10.0) -> dict[str, StepResult]:
    """What became of steps that are not the command's own."""
    with Interrupts() as stop:
        results = giving.give(out, Settings("cpu", minutes, None, ()), planned, stop, lambda result: None)
    with tarfile.open(out / "gathered.tar.gz") as archive:
        assert "steps.json" in archive.getnames()
    return {result.name: result for result in results}


def _fine(name: str) -> Step:
    return Step(name, "right", 60, lambda job: job.run(name, [["-c", "print('fine')"]])[0].outcome())


def test_a_driver_that_does_not_answer_is_cut_and_stops_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    slow = tmp_path / "bin" / "nvidia-smi"
    slow.parent.mkdir()
    slow.write_text("#!/bin/sh\nexec sleep 60\n")
    slow.chmod(0o755)
    monkeypatch.setenv("PATH", str(slow.parent), prepend=os.pathsep)
    monkeypatch.setattr(verdict_steps, "PATIENCE", 0.2)
    results = _given(tmp_path / "out", Step("nvidia-smi", "right", 0.1, verdict_steps.nvidia_smi), _fine("next"))
    assert {name: result.status for name, result in results.items()} == {"nvidia-smi": "cut", "next": "done"}


def test_a_step_that_breaks_in_whatever_way_stops_no_other(tmp_path: Path) -> None:
    def broken(job: Job) -> Outcome:
        raise AssertionError("nobody thought of it")

    results = _given(tmp_path / "out", Step("broken", "right", 1, broken), _fine("next"))
    assert (results["broken"].status, results["next"].status) == ("failed", "done")
    assert "nobody thought of it" in results["broken"].detail


def test_tests_that_failed_have_failed_though_the_rest_was_cut(tmp_path: Path) -> None:
    """One fails before another lasts too long; one alone lasts too long; a file cannot be imported."""
    begun = tmp_path / "begun"
    lasting = f"def test_lasts():\n    open({str(begun)!r}, 'w')\n    time.sleep(1000)\n"
    codes = {
        "both": f"def test_fails():\n    assert 0\n\n{lasting}",
        "long": lasting,
        "torn": "import not_there\n",
    }
    with Interrupts() as stop:
        job = Job(Settings("cpu", 1, None, ()), tmp_path / "out", stop, lambda: None, time.monotonic() + 600)

        def cut() -> None:
            wait_for(begun.exists)
            job.until = time.monotonic()

        outcomes = {}
        for name, code in codes.items():
            path = tmp_path / f"test_{name}.py"
            path.write_text(f"import time\nimport pytest\npytestmark = pytest.mark.cuda\n\n{code}")
            begun.unlink(missing_ok=True)
            job.until = job.deadline
            if lasting in code:
                threading.Thread(target=cut, daemon=True).start()
            outcomes[name] = verdict_steps.run_tests(job, name, [path], 1)
    assert {name: outcome.status for name, outcome in outcomes.items()} == {
        "both": "failed",
        "long": "cut",
        "torn": "failed",
    }
    assert outcomes["both"].detail == "1 failed; the rest was cut"
    assert "passed" not in outcomes["long"].detail


def test_a_gathering_that_fails_leaves_the_step_and_the_next_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Something lies where the archive is drafted, until the first step is over."""
    out = tmp_path / "out"
    draft = out / "gathered.tar.gz.part"
    monkeypatch.setattr(verdict_job, "GATHER_EVERY", 0.1)

    def lasting(job: Job) -> Outcome:
        draft.mkdir(parents=True)
        try:
            return job.run("lasting", [["-c", "import time; time.sleep(1); print('whole')"]])[0].outcome()
        finally:
            draft.rmdir()

    results = _given(out, Step("lasting", "right", 60, lasting), _fine("next"))
    assert [(one.status, one.detail) for one in results.values()] == [("done", "whole"), ("done", "fine")]


def test_processes_end_with_their_step_though_it_breaks(tmp_path: Path) -> None:
    def broken(job: Job) -> Outcome:
        lasting = ["-c", f"import time; open({str(tmp_path / 'begun')!r}, 'w'); time.sleep(100)"]
        return job.run("broken", [lasting, ["-c", "\0"]])[0].outcome()  # no argument holds that

    results = _given(tmp_path / "out", Step("broken", "right", 60, broken), _fine("next"))
    assert [(one.status, one.detail) for one in results.values()][1] == ("done", "fine")
    assert results["broken"].status == "failed"


def test_a_process_that_cannot_be_ended_holds_nothing_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As where a driver is slow to let go of one that was killed."""
    stubborn = "import signal, time; signal.signal(signal.SIGINT, signal.SIG_IGN); time.sleep(60)"
    held: list[int] = []
    monkeypatch.setattr(verdict_job.os, "killpg", lambda group, _: held.append(group))
    monkeypatch.setattr(verdict_job, "GRACE", 0.1)
    monkeypatch.setattr(verdict_job, "LAST", 0.1)

    def lasting(job: Job) -> Outcome:
        job.until = time.monotonic() + 0.5
        return job.run("lasting", [["-c", stubborn]])[0].outcome()

    try:
        results = _given(tmp_path / "out", Step("lasting", "right", 60, lasting), _fine("next"))
    finally:
        monkeypatch.undo()
        for group in set(held):
            with suppress(ProcessLookupError):  # others ended by themselves
                os.killpg(group, signal.SIGKILL)
    assert {name: one.status for name, one in results.items()} == {"lasting": "cut", "next": "done"}


def test_a_file_that_vanishes_while_it_is_packed_is_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, out = tmp_path / "folder", tmp_path / "out"
    folder.mkdir()
    out.mkdir()
    for name in ("a.txt", "draft.part", "z.txt"):
        (folder / name).write_text(name)

    def cleaned(path: Path) -> bytes:  # its writer is faster
        if path.suffix == ".part":
            path.unlink()
        return path.read_bytes()

    monkeypatch.setattr(archive, "_cleaned", cleaned)
    archive.pack(folder, out)
    with tarfile.open(out / archive.NAME) as packed:
        assert packed.getnames() == ["a.txt", "z.txt"]


def test_nvbench_measures_on_the_card_that_holds_the_tensors(monkeypatch: pytest.MonkeyPatch) -> None:
    """Asked of a stand-in for NVBench, which needs a card."""
    from niffbench.verdict import witnesses
    from niffbench.worker.probe import Probe

    seen: dict[str, object] = {}
    launched = SimpleNamespace(get_stream=lambda: SimpleNamespace(addressof=lambda: 0))
    state = SimpleNamespace(exec=lambda launch, batched: launch(launched))

    def run_all(arguments: list[str]) -> None:
        seen["devices"] = arguments[arguments.index("--devices") + 1]
        for run in registered:
            run(state)

    registered: list[Callable[[object], None]] = []

    def register(run: Callable[[object], None]) -> SimpleNamespace:
        registered.append(run)
        return SimpleNamespace(set_name=lambda name: None)

    bench = SimpleNamespace(register=register, run_all_benchmarks=run_all)
    results = SimpleNamespace(BenchmarkResult=SimpleNamespace(from_json=lambda path: {}))
    for name, module in (("cuda", SimpleNamespace(bench=bench)), ("cuda.bench.results", results)):
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.setitem(sys.modules, "cuda.bench", bench)
    monkeypatch.setattr("torch.cuda.ExternalStream", lambda address, device: seen.setdefault("stream", device))
    monkeypatch.setattr("torch.cuda.stream", lambda stream: nullcontext())
    witnesses.nvbench({"copy": Probe(lambda: None)}, "cuda:1")
    assert seen["devices"] == "1"
    assert str(seen["stream"]) == "cuda:1"


def test_without_time_steps_are_cut_and_said_to_be(cli: Cli, tmp_path: Path) -> None:
    done = cli("gpu-verdict", "--only", "cost", "--device", "cpu", "--minutes", "0.05", "--out", str(tmp_path))
    assert done.returncode == 0
    assert {result["status"] for result in json.loads((tmp_path / "steps.json").read_text())} == {"cut"}
    assert "Not measured." in (tmp_path / "verdict.md").read_text()


def test_who_is_ended_on_the_way_has_gathered_what_there_is(tmp_path: Path) -> None:
    out = tmp_path / "out"
    suite = ("--only", "suite-gpu", "--device", "cpu", "--minutes", "60")
    started = _started(out, "--only", "nvidia-smi", *suite)
    wait_for(lambda: started.workers() and (out / "verdict.md").exists())
    started.process.send_signal(signal.SIGTERM)
    ended = _finished(started, out)
    assert ended.status == 130
    assert [result["status"] for result in ended.json("steps.json")][1:] == ["cut"]


@pytest.mark.parametrize(
    ("arguments", "output"),
    [
        (["--only", "rigth"], "--only rigth: no such step; did you mean 'right'?"),
        (["--suite", "gqu"], "no suite named 'gqu'; did you mean 'gpu'?"),
        (["--device", "tpu"], "--device tpu: should be cpu, cuda or cuda:N, replay:FILE"),
    ],
)
def test_bad_input_is_one_message(cli: Cli, tmp_path: Path, arguments: list[str], output: str) -> None:
    done = cli("gpu-verdict", "--out", str(tmp_path / "out"), *arguments)
    assert done.returncode == 2
    assert output in done.stderr
    assert not (tmp_path / "out").exists()


def _suite(folder: Path, form: str, mode: str = "inference", sizes: str = "[7, 14, 28]") -> str:
    path = folder / f"{form}-{mode}.toml"
    path.write_text(
        f'description = "x"\nbaseline = "niff-depthwise/{form}"\n'
        f'axes = {{batch = 1, channels = 8, size = {sizes}, mode = "{mode}"}}\n'
        f'operators = [{{name = "niff-depthwise/{form}"}}]\n',
        encoding="utf-8",
    )
    return str(path)


def test_what_triton_compiles_is_compiled_ahead_whatever_form_asks_for_it(tmp_path: Path) -> None:
    def kernels(form: str, mode: str = "inference") -> int:
        return sum(map(ahead.kernels, ahead.compiling([_suite(tmp_path, form, mode)])))

    assert kernels("triton") == kernels("auto") == 3
    assert kernels("auto", "training") == 6
    assert kernels("native") == kernels("rfft") == 0
    [few, many] = (
        next(step.estimate for step in steps(Settings("cuda", 1, rounds, (suite,))) if step.name == "ahead")
        for suite, rounds in ((_suite(tmp_path, "rfft"), 9), (_suite(tmp_path, "triton"), 1))
    )
    assert few < many


@pytest.mark.skipif(find_spec("triton") is None, reason="Triton is not installed")
def test_shares_of_what_is_compiled_ahead_are_all_of_it(tmp_path: Path) -> None:
    """By the interpreter, which meets the same kernels."""
    suite, called = _suite(tmp_path, "triton", sizes="[5, 6, 7]"), 0
    for share in ("1/2", "2/2"):
        command = [sys.executable, "-m", "niffbench.verdict.ahead", "cpu", share, suite]
        done = subprocess.run(
            command, env={**os.environ, "TRITON_INTERPRET": "1"}, capture_output=True, text=True, check=True
        )
        called += int(done.stdout)
    assert called == 3


def test_every_operator_that_is_profiled_is_there() -> None:
    assert set(verdict_steps.PROFILED) <= {*catalogue(), "depthwise-k7"}
    assert {"niff-depthwise/native", "niff-depthwise/triton"} <= set(verdict_steps.PROFILED)


@pytest.mark.parametrize("damage", ["none", "cut", "garbled"])
def test_a_file_that_is_no_archive_is_refused(cli: Cli, tmp_path: Path, damage: str) -> None:
    content = b"no archive"
    if damage != "none":
        packed = io.BytesIO()
        with tarfile.open(fileobj=packed, mode="w:gz") as archive:
            entry = tarfile.TarInfo("trace.bin")
            text = " ".join(map(str, range(30_000))).encode()
            entry.size = len(text)
            archive.addfile(entry, io.BytesIO(text))
        whole = packed.getvalue()
        half = len(whole) // 2
        content = whole[:half] if damage == "cut" else whole[:half] + b"\xff" * 500 + whole[half + 500 :]
    (tmp_path / "gathered.tar.gz").write_bytes(content)
    done = cli("gpu-verdict", "--only", "nvidia-smi", "--device", "cpu", "--out", str(tmp_path))
    assert done.returncode == 2
    assert "gathered.tar.gz: cannot be unpacked" in done.stderr
    assert (tmp_path / "gathered.tar.gz").read_bytes() == content


TIMED = """
import time
from pathlib import Path

import pytest

LOG = Path(__file__).with_name("log.txt")


@pytest.mark.parametrize("number", range(12))
def test_others(number):
    _log("other")


@pytest.mark.alone
@pytest.mark.parametrize("number", range(4))
def test_timed(number):
    _log("alone")


def _log(kind):
    begun = time.monotonic()
    time.sleep(0.05)
    with LOG.open("a") as file:
        file.write(f"{kind} {begun} {time.monotonic()}\\n")
"""


def test_plain_processes_share_tests_out_and_what_is_timed_runs_alone(tmp_path: Path) -> None:
    (tmp_path / "test_timed.py").write_text(TIMED)
    command = [sys.executable, "-m", "pytest", "-c", str(ROOT / "pyproject.toml"), "-p", "conftest"]
    path = os.pathsep.join((str(ROOT / "tests"), os.environ.get("PYTHONPATH", "")))
    environment = {**os.environ, "PYTHONPATH": path, "NIFFBENCH_TESTS_LOCK": str(tmp_path / "lock")}
    processes = [
        subprocess.Popen(
            [*command, "-p", "no:cacheprovider", str(tmp_path / "test_timed.py")],
            env={**environment, "NIFFBENCH_TESTS_SHARE": f"{number}/3"},
            stdout=subprocess.DEVNULL,
        )
        for number in (1, 2, 3)
    ]
    assert [process.wait(120) for process in processes] == [0, 0, 0]
    lines = [line.split() for line in (tmp_path / "log.txt").read_text().splitlines()]
    assert len(lines) == 16  # each test once
    spans = [(kind, float(begun), float(ended)) for kind, begun, ended in lines]
    for place, (kind, begun, ended) in enumerate(spans):
        if kind == "alone":
            others = spans[:place] + spans[place + 1 :]
            assert all(end <= begun or ended <= begin for _, begin, end in others)
