"""The worker on a real CPU: a whole round, operators that misbehave, and the ways a process dies."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import pytest
from cli_process import busy
from run_worker import QUICK, TESTS, Said, case_of, work

from niffbench import protocol
from niffbench.cost.memory import predict
from niffbench.device import Processor, host
from niffbench.niff.native import build
from niffbench.operators.catalogue import catalogue
from niffbench.operators.niff import Niff
from niffbench.results import CostRecord, Map, Numerics, Record
from niffbench.stats.intervals import spread
from niffbench.suite import Settings

CASES = [
    case_of("niff-depthwise/published"),
    case_of("niff-depthwise/rfft"),
    case_of("depthwise", 3),
    case_of("depthwise", 3, mode="training"),
]


WRONG_GRADIENTS = ("scaled", "shifted", "transposed", "rounded", "nan", "missing")


@pytest.fixture(scope="module")
def said() -> Said:
    return work(CASES, round=2, seed=7)


def test_every_case_gets_one_complete_record(said: Said) -> None:
    assert said.status == 0
    assert sorted(r.id for r in said.records) == sorted(case.id for case in CASES)
    for record in said.records:
        assert (record.status, record.reason, record.round) == ("ok", None, 2)
        assert set(record.latency) == {"first", "cold", "steady"}
        assert all(sample > 0 for series in record.latency.values() for sample in series.samples)
        assert [sum(series.blocks) for series in record.latency.values()] == [
            len(series.samples) for series in record.latency.values()
        ]
        assert record.memory is not None
        assert record.memory.peak >= record.memory.output > 0
        assert record.numerics is not None
        assert record.numerics.l2 < 1e-5
        gradient = record.numerics.gradient
        assert (gradient is not None) == (record.case.problem.mode == "training")
        assert gradient is None or 0 < gradient.l2 < gradient.tolerance
        assert record.cost is not None
        assert record.cost.closed == record.cost.counted
        assert 0 < record.measuring <= record.elapsed
        assert record.machine is not None


@pytest.mark.alone
@pytest.mark.skipif(len(os.sched_getaffinity(0)) != os.cpu_count(), reason="some cores are out of reach")
def test_busy_neighbours_are_noticed() -> None:
    """One on every core: the worker's single thread cannot have half of what there is."""
    if host.processor() == Processor():
        pytest.skip("the platform does not tell")
    with busy(os.cpu_count() or 1):
        long = QUICK.model_copy(update={"regimes": ["first", "steady"], "min_time": 1.3, "max_time": 1.6})
        record = work([case_of("depthwise", 3)], measure=long).only()
    assert record.machine is not None
    assert record.machine.others is not None
    assert record.machine.others > 0.15
    assert "busy" in record.latency["steady"].flags
    assert "busy" not in record.latency["first"].flags


def test_every_stage_of_a_case_is_announced_and_numerics_come_before_time(said: Said) -> None:
    for case in CASES:
        stages = [m.stage for m in said.of("begin") if m.case == case.id]
        assert stages[:6] == ["predict", "build", "first", "numerics", "cost", "memory"]
        assert set(stages[6:]) == {"cold", "steady"}


def test_a_problem_is_set_up_before_any_of_it_is_sampled(said: Said) -> None:
    """Sampling must not take turns with building: the caches and the allocator would be different each time."""
    ids = {case.id for case in CASES if case.problem.mode == "inference"}
    stages = [m.stage for m in said.of("begin") if m.case in ids]
    sampling = [stage in ("cold", "steady") for stage in stages]
    assert sampling == sorted(sampling)


def test_the_first_words_say_the_machine_without_whose_it_is(said: Said) -> None:
    hello = said.messages[0]
    assert hello.type == "hello"
    assert hello.fingerprint.must["device"] == "cpu"
    assert hello.fingerprint.must["threads"] == 1
    assert hello.free_memory > 0
    text = hello.model_dump_json()
    assert os.uname().nodename not in text.split('"')
    assert said.messages[-1].type == "end"


def test_the_order_is_drawn_from_seed_and_round() -> None:
    cases = [case_of("depthwise", 3, size=size) for size in range(5, 13)]

    def order(**task: int) -> list[str]:
        return [
            record.id
            for record in work(cases, device=f"replay:{TESTS / 'data' / 'replay_cuda.json'}", **task).records
        ]

    first = order(seed=1, round=0)
    assert first == order(seed=1, round=0)
    assert first != order(seed=1, round=1)
    assert first != order(seed=2, round=0)


def _hostile(name: str, **task: object) -> Said:
    return work([case_of(f"hostile/{name}")], hostile=True, **task)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def misbehaved() -> Said:
    names = ("fine", "wrong", "pixel", "nan", "unsupported", "broken")
    return work([case_of(f"hostile/{name}") for name in names], hostile=True)


@pytest.fixture(scope="module")
def backward() -> Said:
    names = [f"hostile/gradient-{name}" for name in WRONG_GRADIENTS]
    cases = [case_of(name, mode=mode, batch=3) for name in names for mode in ("inference", "training")]
    return work(cases, hostile=True)


def _of(said: Said, name: str) -> Record:
    return next(record for record in said.records if record.traits.label == f"hostile/{name}")


@pytest.mark.parametrize("name", ["wrong", "pixel", "nan"])
def test_a_wrong_operator_is_not_timed(misbehaved: Said, name: str) -> None:
    record = _of(misbehaved, name)
    assert record.status == "wrong"
    assert record.reason is not None
    assert "not timed" in record.reason
    assert record.numerics is not None
    assert (
        not record.numerics.l2 <= record.numerics.tolerance or not record.numerics.max <= record.numerics.tolerance
    )
    assert record.latency == {}
    stages = {m.stage for m in misbehaved.of("begin") if m.case == record.id}
    assert not {"cold", "steady"} & stages


@pytest.mark.parametrize("name", WRONG_GRADIENTS)
def test_a_wrong_gradient_is_not_timed(backward: Said, name: str) -> None:
    """The output is right: in inference the same operator is timed."""
    wrong, right = sorted(
        (record for record in backward.records if record.traits.label == f"hostile/gradient-{name}"),
        key=lambda record: record.status,
        reverse=True,
    )
    assert (wrong.case.problem.mode, wrong.status) == ("training", "wrong")
    assert wrong.latency == {}
    assert wrong.numerics is not None
    assert wrong.numerics.l2 <= wrong.numerics.tolerance
    assert wrong.numerics.gradient is not None
    assert wrong.reason is not None
    assert wrong.reason.startswith(f"gradient of {wrong.numerics.gradient.name}: error against float64")
    assert name != "missing" or wrong.numerics.gradient.name == "weight"
    stages = {m.stage for m in backward.of("begin") if m.case == wrong.id}
    assert not {"memory", "cold", "steady"} & stages
    assert (right.case.problem.mode, right.status) == ("inference", "ok")
    assert right.numerics is not None
    assert right.numerics.gradient is None


def test_what_the_device_lacks_is_unsupported(misbehaved: Said) -> None:
    record = _of(misbehaved, "unsupported")
    assert record.status == "unsupported"
    assert record.reason is not None
    assert re.fullmatch(
        r"hostile_operators.py, line \d+: \"doubling_cpu\" not implemented for 'Half'", record.reason
    )


def test_a_mistake_of_an_operator_costs_that_case_alone(misbehaved: Said) -> None:
    assert _of(misbehaved, "fine").status == "ok"
    assert _of(misbehaved, "broken").status == "crashed"
    reason = _of(misbehaved, "broken").reason or ""
    assert re.fullmatch(r"hostile_operators.py, line \d+: ValueError: a mistake of the operator's own", reason)
    assert misbehaved.status == 0


def test_memory_that_really_runs_out_is_oom_with_figures() -> None:
    """The address space is limited once torch is loaded, and 2 GiB are asked for."""
    prelude = (
        "import resource, torch, torch._dynamo, psutil\n"
        "used = psutil.Process().memory_info().vms\n"
        "resource.setrlimit(resource.RLIMIT_AS, (used + 2**30, used + 2**30))"
    )
    said = _hostile("hungry", prelude=prelude)
    record = said.only()
    assert record.status == "oom", (record.reason, said.printed)
    assert record.needed == 2**31
    assert record.available is not None
    assert record.available > 0


def test_a_real_segmentation_fault_leaves_the_case_to_blame() -> None:
    said = _hostile("segfault")
    assert said.status == -signal.SIGSEGV
    assert said.records == []
    assert (said.messages[-1].type, said.messages[-1].stage) == ("begin", "first")


def test_a_problem_that_fits_only_in_part_is_measured_in_lots_and_one_that_never_does_is_skipped() -> None:
    """Three cases of 32 KiB input each under a limit for two of them, and one of 128 KiB."""
    cases = [case_of("depthwise", kernel, channels=8, size=32) for kernel in (1, 3, 5)]
    needed = work(cases[:1], kind="survey").of("predicted")[0]
    limit = int(2.5 * needed.resident + needed.peak)
    said = work([*cases, case_of("depthwise", 1, channels=8, size=64)], memory_limit=limit)
    *fitting, skipped = sorted(said.records, key=lambda record: record.case.problem.height)
    assert [record.status for record in fitting] == ["ok"] * 3
    assert skipped.status == "skipped"
    assert skipped.needed is not None
    assert skipped.needed > limit
    assert skipped.available == limit
    assert skipped.latency == {}
    assert [m.stage for m in said.of("begin") if m.case == skipped.id] == ["predict"]
    stages = [(m.case, m.stage) for m in said.of("begin") if m.case != skipped.id]
    built = [case for case, stage in stages if stage == "build"]
    first_sampled = next(i for i, (_, stage) in enumerate(stages) if stage == "cold")
    assert len({case for case, stage in stages[:first_sampled] if stage == "build"}) == 2
    assert len(built) == 3


def test_a_survey_predicts_and_measures_ceilings() -> None:
    cases = [case_of("niff-depthwise/rfft"), case_of("depthwise", 3)]
    maps = [Map.of(case.problem) for case in cases[:1]]
    said = work(cases, kind="survey", ceilings=["float32", "float64"], maps=maps)
    assert [m.type for m in said.messages if m.type != "begin"] == [
        "hello",
        "predicted",
        "predicted",
        "roofline",
        "end",
    ]
    assert all(m.resident > 0 and m.peak > 0 and m.reason is None for m in said.of("predicted"))
    ceilings = said.of("roofline")[0].ceilings
    assert ceilings.copy_bandwidth > 1e8
    assert ceilings.matmul.keys() == ceilings.fft.keys() == {"float32", "float64"}
    assert min(ceilings.matmul.values()) > 1e8
    assert min(ceilings.fft.values()) > 1e7
    assert ceilings.fft_of(cases[0].problem) > 1e5


def test_cuda_asked_for_and_absent_is_refused() -> None:
    import torch

    if torch.cuda.is_available():
        pytest.skip("there is a CUDA device here")
    said = work([case_of("depthwise", 3)], device="cuda")
    assert said.status == 2
    [refused] = said.messages
    assert refused.type == "refused"
    assert refused.exit_code == 2
    assert "torch" in refused.message


def test_an_unknown_operator_is_refused() -> None:
    said = work([case_of("no-such-thing")])
    assert said.of("refused")[0].exit_code == 2
    assert "no-such-thing" in said.of("refused")[0].message


def _start(trace: str, *by: str) -> tuple[subprocess.Popen[bytes], int]:
    """A worker on one case of a replay that hangs, or what starts it; and the reading end of its replies."""
    Path(trace).write_text('{"cases": [{"failure": {"kind": "hang", "stage": "first"}}]}', encoding="utf-8")
    settings = Settings(device=f"replay:{trace}", rounds=1, measure=QUICK)
    task = protocol.Task(kind="round", settings=settings, cases=[case_of("depthwise", 3)])
    read, write = os.pipe()
    process = subprocess.Popen(
        [*by, sys.executable, "-P", "-m", "niffbench.worker.main", "--reply-fd", str(write)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        pass_fds=(write,),
        env={**os.environ, "PYTHONPATH": str(TESTS.parent)},
    )
    os.close(write)
    assert process.stdin is not None
    process.stdin.write(protocol.write(task))
    process.stdin.close()
    return process, read


def _until(read: int, stage: str) -> None:
    heard = b""
    while f'"{stage}"'.encode() not in heard:
        data = os.read(read, 65536)
        assert data, heard
        heard += data


def test_it_ends_when_nobody_listens_any_more_and_not_at_the_keyboards_wish(tmp_path: Path) -> None:
    process, read = _start(str(tmp_path / "hang.json"))
    try:
        _until(read, "first")
        process.send_signal(signal.SIGINT)
        time.sleep(0.3)
        assert process.poll() is None
        os.close(read)
        assert process.wait(timeout=60) == 0
    finally:
        process.kill()
        process.wait()


def test_it_ends_with_its_parent(tmp_path: Path) -> None:
    """The parent is a process of its own that starts a worker, says its number, and is killed."""
    code = (
        "import subprocess, sys, time\n"
        "print(subprocess.Popen(sys.argv[1:], close_fds=False, stdout=2).pid, flush=True)\n"
        "time.sleep(60)"
    )
    parent, read = _start(str(tmp_path / "hang.json"), sys.executable, "-c", code)
    assert parent.stdout is not None
    worker = int(parent.stdout.readline())
    _until(read, "first")
    parent.kill()
    parent.wait()
    deadline = time.monotonic() + 60
    while _alive(worker) and time.monotonic() < deadline:
        time.sleep(0.02)
    os.close(read)
    assert not _alive(worker)


def _alive(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8") as file:  # noqa: PTH123
            return file.read().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_series_are_kept_raw(said: Said) -> None:
    record: Record = next(r for r in said.records if r.traits.label == "depthwise-k3")
    steady = record.latency["steady"]
    assert steady.calls >= 1
    assert len(steady.samples) == sum(steady.blocks)
    assert spread(steady.samples).median < record.latency["first"].samples[0] * 10


def test_what_auto_chose_is_recorded_and_costs_and_needs_what_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What another round found out of another choice is not taken, and what it chose is left to nobody."""
    (tmp_path / "niffbench").mkdir()
    for kernel in build.cache().glob("*.so"):
        shutil.copy(kernel, tmp_path / "niffbench")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("NIFFBENCH_TUNING", "1")
    case = case_of("niff-depthwise/auto-cached", size=6)
    operator = catalogue()[case.operator]
    assert isinstance(operator, Niff)
    foreign = CostRecord(closed=1, closed_forward=1, steps=[], bytes_floor=1, bytes_own=1)
    compiled = replace(case, execution="compiled")
    wrong = Numerics(l2=7.0, max=7.0, tolerance=9.0)
    checked = protocol.Checked(engines=["another"], numerics=wrong, cost=foreign)
    said = work([case, compiled], checked={case.id: [checked]})
    records = {record.case.execution: record for record in said.records}
    for execution, record in records.items():
        assert (record.status, record.cost is None) == ("ok", False), record.reason
        assert record.chosen is not None
        [engine] = record.chosen
        assert execution == "eager" or engine != "dft"
        assert record.cost is not None
        assert record.numerics is not None
        assert record.numerics.l2 < 1e-5
        chosen = replace(operator, engine=engine)
        assert record.cost.executed == chosen.executed(case)
        assert record.cost.closed == record.cost.counted == chosen.cost(case).flops()
        assert record.memory is not None
        assert record.memory.predicted == predict(chosen, record.case).peak, "workspace is what this engine takes"
    assert not (tmp_path / "niffbench" / "choices.json").exists()


def test_what_was_checked_in_another_round_is_relied_on_and_trained_on_the_whole_batch() -> None:
    cases = [case_of("depthwise", 3, batch=2, mode="training"), case_of("depthwise", 5)]
    first = {record.id: record for record in work(cases).records}
    checked = {
        key: [
            protocol.Checked(
                engines=record.chosen, numerics=record.numerics, cost=record.cost, memory=record.memory
            )
        ]
        for key, record in first.items()
    }
    said = work(cases, checked=checked, round=1)
    assert {message.stage for message in said.of("begin")}.isdisjoint({"predict", "numerics", "cost"})
    for record in said.records:
        earlier = first[record.id]
        assert (record.status, record.numerics, record.cost) == ("ok", earlier.numerics, earlier.cost)
        assert record.memory == earlier.memory, "gradients of the whole batch are made in the call"


needs_triton = pytest.mark.skipif(find_spec("triton") is None, reason="Triton is not installed")
INTERPRETED = (("TRITON_INTERPRET", "1"),)


@needs_triton
def test_no_first_call_is_that_in_which_a_kernel_was_compiled() -> None:
    """By the interpreter, which compiles nothing, but meets each kernel for the first time as a GPU does."""
    said = work(
        [case_of("niff-depthwise/triton", channels=channels) for channels in (1, 2, 3)], beside=INTERPRETED
    )
    assert [record.status for record in said.records] == ["ok"] * 3
    stages = [
        [message.stage for message in said.of("begin") if message.case == record.id] for record in said.records
    ]
    assert sorted(each.count("first") for each in stages) == [1, 1, 2]
    (twice,) = (each for each in stages if each.count("first") == 2)
    assert twice[twice.index("build") :][:5] == ["build", "first", "build", "first", "numerics"]


BROKEN = """
import sys
from types import SimpleNamespace
class Broken:
    def __getitem__(self, grid): raise RuntimeError("no such instruction")
sys.modules["niffbench.niff.native.triton_kernels"] = SimpleNamespace(features=Broken(), convolve=Broken())
"""


@needs_triton
def test_a_kernel_that_fails_is_not_measured_as_what_would_step_in() -> None:
    record = work([case_of("niff-depthwise/triton")], prelude=BROKEN, beside=INTERPRETED).only()
    assert record.status == "unsupported"
    assert record.reason is not None
    assert "the triton form's kernel features failed: RuntimeError: no such instruction" in record.reason


def test_without_a_compiler_the_record_names_what_stepped_in(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CC", "no-such-compiler")
    said = work([case_of("niff-depthwise/auto", size=size) for size in (8, 9)])
    assert all(record.chosen in (["fused"], ["dft"]) for record in said.records)
    [note] = said.of("note")
    assert "auto went without its C kernel, mostly the fastest: no C compiler was found" in note.text
