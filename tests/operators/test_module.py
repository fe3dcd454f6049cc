"""Modules of one's own as rows: found, built, measured beside ours, with costs worked out by hand, and refused."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import json
import os
import subprocess
import sys
import tomllib
import zipfile
from math import log2
from pathlib import Path

import pytest
import torch
from cli_in_process import Call, call
from conftest import Cli
from launchers.inline import InlineWorker
from torch import nn

from niffbench.case import Case
from niffbench.cli import main
from niffbench.cost.call import cast, cast_dtype
from niffbench.cost.memory import predict
from niffbench.cost.witness import witnesses
from niffbench.device.settings import ProcessState
from niffbench.errors import UsageError
from niffbench.launch import local
from niffbench.operators.catalogue import catalogue
from niffbench.operators.module import check, declare
from niffbench.results import Record, Run, read
from niffbench.suite import UserModule, cases_of, entry_of, load
from niffbench.worker import tolerance
from niffbench.worker.failures import ENDS, explain
from niffbench.worker.torch_evaluator import TorchEvaluator

__all__ = ["call"]

CODE = Path(__file__).with_name("own_modules.py")

SUITE = """
description = "modules of one's own beside ours"
baseline = "niff-depthwise/rfft"
rounds = 1

[axes]
channels = 4
size = [[6, 10]]
batch = 3
mode = ["inference", "training"]

[[operators]]
name = "niff-depthwise/rfft"

[[operators]]
module = "own_modules.py:FourierUnit"
label = "fourier"

[[operators]]
module = "own_modules:hyena"
arguments = { length = 60 }

[[operators]]
module = "torch.nn:Conv2d"
arguments = { in_channels = "channels", out_channels = "channels_out", kernel_size = 5, padding = "same" }

[measure]
regimes = ["steady"]
min_time = 0.001
max_time = 0.01
"""


OPTIONAL = {
    "timm": """module = "timm.models.convnext:ConvNeXtBlock"
arguments = { in_chs = "channels" }
label = "convnext\"""",
    "neuralop": 'module = "own_modules.py:spectral"',
}
"""Rows of libraries that need not be installed."""
INSTALLED = [library for library in OPTIONAL if importlib.util.find_spec(library)]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A suite's modules are found beside it, and one more of the command line in the current folder."""
    place, suites = tmp_path_factory.mktemp("here"), tmp_path_factory.mktemp("suites")
    rows = [f"\n[[operators]]\n{OPTIONAL[library]}\n" for library in INSTALLED]
    (suites / "suite.toml").write_text(SUITE + "".join(rows))
    (suites / CODE.name).write_text(CODE.read_text())
    (place / "other.py").write_text(CODE.read_text())
    command = ["run", str(suites / "suite.toml"), "--device", "cpu", "--no-report", "--out", "run"]
    command += ["--operator", "other.py:GlobalFilter", "--operator", "depthwise-k3"]
    printed = io.StringIO()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(printed):
        patch.chdir(place)
        patch.setattr(local, "LAUNCHER", InlineWorker())  # three processes less, that import what they find
        patch.setattr(sys, "path", [*sys.path])
        patch.setenv("NIFFBENCH_ROOFLINE", "0")
        assert main(command) == 0
    assert "compared with themselves in float64" in " ".join(printed.getvalue().split())
    return read(place / "run")


def of(run: Run, operator: str) -> list[Record]:
    """Its records, inference first."""
    records = [record for record in run.records if record.case.operator == operator]
    return sorted(records, key=lambda record: record.case.problem.mode)


def test_they_are_measured_beside_ours(run: Run) -> None:
    assert {record.status for record in run.records} == {"ok"}, [record.reason for record in run.records]
    labels = {record.traits.label for record in run.records}
    same = "torch.nn:Conv2d in_channels=channels kernel_size=5 out_channels=channels_out padding=same"
    own = {"fourier", "own_modules:hyena length=60", same, "other.py:GlobalFilter"}
    own |= {{"timm": "convnext", "neuralop": "own_modules.py:spectral"}[library] for library in INSTALLED}
    assert labels == own | {"niff-depthwise/rfft", "depthwise-k3"}
    for record in run.records:
        itself = record.traits.label in own
        assert record.traits.reference == ("itself" if itself else "independent")
        assert record.latency
        assert record.memory
        assert record.parameters
        assert record.numerics is not None
        assert record.numerics.gradient is not None or record.case.problem.mode == "inference"


def fft(length: int) -> int:
    """FLOPs of one of real numbers."""
    return round(2.5 * length * log2(length))


def test_counted_costs_are_those_worked_out_by_hand(run: Run) -> None:
    batch, channels, points, half = 3, 4, 60, 6 * 6
    transforms = 2 * batch * channels * fft(points)
    linear = 2 * batch * (2 * channels) ** 2 * half
    padded = 2 * points
    long = (3 * batch * channels + channels) * fft(padded)
    spectral = 6 * batch * channels * (padded // 2 + 1)
    by_hand = {
        "own_modules.py:FourierUnit": transforms + linear,
        "other.py:GlobalFilter": transforms + 6 * batch * channels * half,
        "torch.nn:Conv2d": 2 * batch * points * 25 * channels**2,
        "own_modules:hyena": 2 * batch * points * 3 * channels**2
        + long - batch * channels * fft(padded)
        + spectral
        + 2 * batch * channels * points,
    }  # fmt: skip
    for operator, flops in by_hand.items():
        _check_counted(of(run, operator), flops)


def _check_counted(records: list[Record], flops: int) -> None:
    inference, training = records
    for record in (inference, training):
        cost = record.cost
        assert cost is not None
        assert (cost.stated, cost.disagreement, cost.notes) == (False, None, [])
        assert cost.closed_forward == cost.fvcore == flops, record.case.operator
        assert cost.closed == cost.counted == sum(step.flops for step in cost.steps)
        assert cost.bytes_own == sum(step.bytes or 0 for step in cost.steps)
    assert inference.cost is not None
    assert inference.cost.closed == flops


@pytest.mark.parametrize("library", OPTIONAL)
def test_layers_of_other_libraries_cost_what_is_worked_out_by_hand(run: Run, library: str) -> None:
    pytest.importorskip(library)
    batch, channels, points = 3, 4, 60
    by_hand = {
        # A 7×7, two linear maps to and from four times the channels, and a scale for each.
        "timm": 2 * batch * points * channels * (49 + 2 * 4 * channels) + batch * points * channels,
        "neuralop": 2 * round(batch * channels * 2.5 * points * log2(points)) + 8 * batch * channels**2 * 4 * 3,
    }
    operator = {"timm": "timm.models.convnext:ConvNeXtBlock", "neuralop": "own_modules.py:spectral"}[library]
    _check_counted(of(run, operator), by_hand[library])


def test_the_manifest_says_which_file_it_was(run: Run) -> None:
    by_operator = {source.operator: source for source in run.manifest.modules}
    assert by_operator["own_modules.py:FourierUnit"].file == CODE.name
    assert len(by_operator["other.py:GlobalFilter"].sha256 or "") == 64
    assert by_operator["torch.nn:Conv2d"].version == torch.__version__
    assert run.manifest.suite.added == ["other.py:GlobalFilter", "depthwise-k3"]
    assert str(CODE.parent) not in (run.path / "run.json").read_text()


def suite_of(*rows: str, **axes: object) -> list[Case]:
    given = {"channels": 4, "size": 8, **axes}
    return list(cases_of([entry_of(row) for row in rows], given, "test", catalogue(), declare).cases)


@pytest.fixture(autouse=True)
def _beside_the_code(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(CODE.parent)


def become(evaluator: TorchEvaluator, case: Case) -> str:
    """What a case's first call comes to: ``ok``, or its status and the reason."""
    try:
        workload = evaluator.workload(case)
        _, output = evaluator.device.timed(workload)
        numerics = evaluator.numerics(workload, output)
    except ENDS as error:
        failure = explain(error)
        return f"{failure.status}: {failure.reason}"
    return f"wrong: {tolerance.verdict(numerics)}" if tolerance.is_wrong(numerics) else "ok"


@pytest.mark.parametrize("mode", ["inference", "training"])
@pytest.mark.parametrize("dtype", ["float32", "float64", "bfloat16"])
@pytest.mark.parametrize(
    "name",
    [
        *("Normalised", "Counting", "Random", "Chancy", "Encoder", "Recurrent"),
        *("Strided", "Tied", "Lazy", "made", "Given"),
    ],
)
def test_whatever_is_a_module_is_right_in_its_mode(
    evaluator: TorchEvaluator, name: str, dtype: str, mode: str
) -> None:
    [case] = suite_of(f"own_modules.py:{name}", dtype=dtype, mode=mode, batch=3)
    assert become(evaluator, case) == "ok"


def test_only_shares_are_taken_for_shares_that_are_dropped(evaluator: TorchEvaluator) -> None:
    [case] = suite_of("own_modules.py:DropoutOfPowers", mode="training")
    workload = evaluator.workload(case)
    with workload.scope():
        workload.module.eval()
        x = workload.x.detach()
        assert torch.allclose(workload.module(x), x.abs().pow(3) + x)
        assert torch.allclose(workload.module.train()(x), x.abs().pow(3) + x)


def test_what_still_draws_at_random_is_no_wrong_module(evaluator: TorchEvaluator) -> None:
    [case] = suite_of("own_modules.py:Noisy", mode="training")
    assert become(evaluator, case).startswith("unsupported: it draws at random in training")
    [case] = suite_of("own_modules.py:Noisy", mode="inference")
    assert become(evaluator, case) == "ok"


def test_the_mode_is_set_by_the_case(evaluator: TorchEvaluator) -> None:
    for mode in ("inference", "forward", "training"):
        [case] = suite_of("own_modules.py:Normalised", mode=mode)
        assert evaluator.workload(case).module.training == (mode == "training")


def test_complex_weights_have_the_precision_of_the_case_and_integers_stay(evaluator: TorchEvaluator) -> None:
    for dtype, there in (("float64", torch.complex128), ("float32", torch.complex64)):
        [case] = suite_of("own_modules.py:GlobalFilter", dtype=dtype)
        assert evaluator.workload(case).module.weight.dtype == there
        assert become(evaluator, case) == "ok"
    [case] = suite_of("own_modules.py:GlobalFilter", dtype="bfloat16")
    message = "unsupported: has complex weights, and bfloat16 has no complex numbers (own_modules.py, line "
    assert become(evaluator, case).startswith(message)
    module = cast(nn.BatchNorm2d(3), "float16")
    assert module.num_batches_tracked is not None
    assert module.num_batches_tracked.dtype == torch.int64
    assert cast_dtype(torch.zeros(1, dtype=torch.bool), "float16") == torch.bool


def test_a_claim_is_held_to(evaluator: TorchEvaluator) -> None:
    right, wrong, other = suite_of(
        "own_modules.py:Claimed-k3 like=depthwise",
        "own_modules.py:Claimed-k3 like=depthwise shift=0.001",
        "own_modules.py:Normalised like=depthwise-k3",
    )
    operator = catalogue()[right.operator]
    assert operator.equivalence(right) == "depthwise-zero-k3"
    assert (operator.traits(right).reference, operator.traits(right).role) == ("independent", "spatial")
    assert become(evaluator, right) == "ok"
    assert become(evaluator, wrong).startswith("wrong: error against float64")
    assert "claims to be like depthwise-k3, whose weights are {'weight': (4, 1, 3, 3)}" in become(evaluator, other)


def test_a_reference_of_ones_own_is_held_to(evaluator: TorchEvaluator) -> None:
    right, wrong = suite_of(
        "own_modules.py:Claimed-k3 reference=own_modules.py:exact",
        "own_modules.py:Claimed-k3 reference=own_modules.py:exact shift=0.001",
        mode="training",
    )
    assert catalogue()[right.operator].traits(right).reference == "independent"
    assert become(evaluator, right) == "ok"
    assert become(evaluator, wrong).startswith("wrong: ")


@pytest.mark.parametrize("mode", ["inference", "training"])
def test_a_wrong_image_anywhere_in_the_batch_is_found(evaluator: TorchEvaluator, mode: str) -> None:
    for place in range(7):
        [case] = suite_of(f"own_modules.py:Claimed-k3 like=depthwise image={place}", batch=7, mode=mode)
        assert become(evaluator, case).startswith("wrong: "), place


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("Mutating", "wrong: it changes its input in place; not timed"),
        ("Growing", "wrong: it gives (1, 4, 8, 10) where it gave (1, 4, 8, 9) before; not timed"),
        ("NotANumber", "wrong: error against float64 beyond"),
        (
            "Pair",
            "crashed: TypeError: own_modules.py:Pair gives a tuple, and should give a tensor (own_mod",
        ),
        (
            "TwoInputs",
            "crashed: TypeError: TwoInputs.forward() missing 1 required positional argument: 't' (",
        ),
        ("Leaving", "crashed: own_modules.py, line {Leaving}: SystemExit: 3"),
        ("Interrupting", "crashed: own_modules.py, line {Interrupting}: KeyboardInterrupt"),
        ("Threads", "wrong: it changes torch's number of threads, of all that is measured beside it; not timed"),
        (
            "compiled",
            "unsupported: own_modules.py:compiled returned what torch.compile made, and should ret",
        ),
        ("Complex", "crashed: TypeError: own_modules.py:Complex gives complex numbers"),
        ("no_module", "crashed: TypeError: own_modules.py:no_module returned a str, and should return a torch.nn"),
        ("Raising", "crashed: own_modules.py, line {Raising}: RuntimeError: out of ideas"),
        ("Half", "unsupported: own_modules.py, line {Half}: this layer is not implemented for 'Float'"),
    ],
)
def test_what_cannot_be_right_is_told_apart(evaluator: TorchEvaluator, name: str, message: str) -> None:
    [case] = suite_of(f"own_modules.py:{name}")
    for number, line in enumerate(CODE.read_text().splitlines(), 1):
        message = message.replace(f"{{{line.rpartition('# ')[2]}}}", str(number))
    assert become(evaluator, case).startswith(message)


def test_another_shape_is_measured(evaluator: TorchEvaluator) -> None:
    [case] = suite_of("own_modules.py:Strided", mode="training")
    assert catalogue()[case.operator].output_shape(case) == (1, 4, 4, 4)
    assert become(evaluator, case) == "ok"


@pytest.mark.parametrize(
    "row", ["own_modules.py:FourierUnit", "own_modules.py:network replace.conv3x3=split", "torchvision:resnet18"]
)
def test_memory_is_predicted_of_anybodys_module(row: str) -> None:
    [case] = suite_of(row, channels=3, size=64)
    operator = catalogue()[case.operator]
    module = operator.build(case)
    weights = sum(value.nbytes for value in (*module.parameters(), *module.buffers()))
    prediction = predict(operator, case)
    assert prediction.resident >= weights + 3 * 64 * 64 * 4  # NIFF layers keep their grids
    assert prediction.peak > 0


def test_a_plan_counts_and_predicts_anybodys_module(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (tmp_path / "s.toml").write_text(
        'description = "d"\nbaseline = "mine"\naxes = { channels = 4, size = 8 }\n[[operators]]\nlabel = "mine"\n'
        'module = "torch.nn:Conv2d"\n'
        'arguments = { in_channels = 4, out_channels = 4, kernel_size = 3, padding = "same" }\n'
    )
    monkeypatch.setattr(local, "LAUNCHER", InlineWorker())
    assert main(["plan", str(tmp_path / "s.toml"), "--device", "cpu", "--json"]) == 0
    [planned] = json.loads(capsys.readouterr().out)["cases"]
    assert planned["flops"] == 2 * 4 * 4 * 9 * 8 * 8
    assert planned["needed"] is not None
    assert not planned["estimated"]


def test_what_cannot_be_counted_is_measured_without_a_cost(evaluator: TorchEvaluator) -> None:
    [case] = suite_of("own_modules.py:DependsOnData")
    assert become(evaluator, case) == "ok"
    with pytest.raises(Exception, match="cannot be run on fake tensors"):
        witnesses(catalogue()[case.operator], case)  # type: ignore[arg-type]


PRICED = """
import torch
from torch import nn
from torch.utils.flop_counter import register_flop_formula


@torch.library.custom_op("priced::power", mutates_args=())
def power(x: torch.Tensor, weights: list[torch.Tensor], often: int) -> torch.Tensor:
    return sum(weights) * x**often


@power.register_fake
def _(x, weights, often):
    return torch.empty_like(x)


@register_flop_formula(torch.ops.priced.power)
def _(shape, weights, often, *, out_shape=None):
    return 7 * often * shape.numel() + weights[1].numel()


class Priced(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.weights = nn.ParameterList(torch.randn(channels, 1, 1) for _ in range(2))

    def forward(self, x):
        return torch.ops.priced.power(x, list(self.weights), 3)
"""


def test_an_operation_that_registers_a_formula_costs_what_that_says(
    evaluator: TorchEvaluator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "priced.py").write_text(PRICED)
    monkeypatch.chdir(tmp_path)
    [case] = suite_of("priced.py:Priced", batch=2)
    assert become(evaluator, case) == "ok"
    cost = evaluator.cost(case, None)
    assert cost.closed == cost.counted == cost.fvcore == 7 * 3 * 2 * 4 * 64 + 4
    assert (cost.notes, cost.disagreement) == ([], None)


@pytest.mark.parametrize("name", ["Parametrized", "scripted"])
def test_what_torch_wraps_is_right_and_counted(evaluator: TorchEvaluator, name: str) -> None:
    [case] = suite_of(f"own_modules.py:{name}")
    assert become(evaluator, case) == "ok"
    assert evaluator.cost(case, None).closed >= 2 * 9 * 4 * 4 * 64


def test_what_is_the_users_is_taken_apart_beside_ours(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A layer, a network and one of torchvision, each with counted FLOPs and bytes in a step of its own."""
    rows = [
        "own_modules.py:FourierUnit",
        "own_modules.py:network replace.conv3x3=split",
        "torchvision:squeezenet1_1",
    ]
    options = ["--channels", "3", "--size", "32", "--device", "cpu", "--json", "--out", str(tmp_path / "out")]
    assert main(["profile", *rows, "depthwise-k3", *options]) == 0
    apart = json.loads(capsys.readouterr().out)["cases"]
    labels = [one["label"] for one in apart]
    assert labels == [rows[0], "own_modules.py:network conv3x3=split", rows[2], "depthwise-k3"]
    flops, half = [sum(phase["flops"] or 0 for phase in one["phases"]) for one in apart], 32 * 17
    assert flops[0] == 2 * 3 * fft(32 * 32) + 2 * (2 * 3) ** 2 * half
    assert flops[3] == 2 * 9 * 3 * 32 * 32
    assert all(sum(phase["bytes"] or 0 for phase in one["phases"]) > 3 * 32 * 32 * 4 for one in apart)


@pytest.mark.parametrize(
    ("source", "arguments", "message"),
    [
        ("own_module.py:FourierUnit", {}, "own_module.py: there is no such file; did you mean 'own_modules.py'?"),
        ("own_modules.py:FourierUnt", {}, "own_modules.py has no 'FourierUnt'; did you mean 'FourierUnit'?"),
        ("own_modules.py:CONSTANT", {}, "is an int, and should be a callable that returns a torch.nn.Module"),
        ("no_such_module:X", {}, "no module named 'no_such_module' in the suite's folder, the current one or"),
        ("broken.py:X", {}, "broken.py: broken.py, line 3: ZeroDivisionError: division by zero"),
        ("misspelt.py:X", {}, "misspelt.py: misspelt.py, line 2: invalid syntax"),
        ("leaving.py:X", {}, "leaving.py: leaving.py, line 2: ends the program"),
        ("importing.py:X", {}, "importing.py: importing.py, line 1: No module named 'nowhere_to_be_found'"),
        (
            "own_modules.py:FourierUnit",
            {"group": 4},
            "has no parameter 'group'; choose from channels, channels_out",
        ),
        ("own_modules.py:hyena", {}, "needs its parameter 'length': give it as an argument"),
        (
            "own_modules.py:made",
            {"groups": 2},
            "is a module already and takes no arguments, here groups; name",
        ),
        (
            "own_modules.py:Claimed",
            {},
            "own_modules.py:Claimed: needs a kernel size, as in 'own_modules.py:Claimed-k7' (own_modules.py, ",
        ),
    ],
)
def test_what_is_no_module_is_one_message_with_file_and_line(
    tmp_path: Path, source: str, arguments: dict[str, int], message: str
) -> None:
    (tmp_path / "broken.py").write_text("def wrong():\n    pass\nX = 1 / 0\n")
    (tmp_path / "misspelt.py").write_text("x = 1\ndef = 3\n")
    (tmp_path / "leaving.py").write_text("import sys\nsys.exit(0)\n")
    (tmp_path / "importing.py").write_text("import nowhere_to_be_found\n")
    module = UserModule(
        operator=source,
        source=source,
        folders=(str(CODE.parent), str(tmp_path)),
        arguments=tuple(arguments.items()),
    )
    with pytest.raises(UsageError) as refused:
        check(module)
    assert message in str(refused.value)


def test_the_command_line_ends_with_2_and_no_traceback(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text("import torch\n\nX = torch.nosuch\n")
    done = cli("run", "smoke", "--operator", "mine.py:X", "--device", "cpu")
    assert (done.returncode, done.stdout) == (2, "")
    assert "mine.py, line 3: AttributeError: module 'torch' has no attribute 'nosuch'" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "reports").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["list", "networks", "own_modules.py:FailsWhenMade"], "RuntimeError: no weights here"),
        (
            ["list", "networks", "own_modules.py:FailsWhenCalled replace.conv3x3=split"],
            "'Tensor' object has no attr",
        ),
        (
            ["filters", "own_modules.py:FailsWhenMade", "--replace", "conv3x3=split"],
            "RuntimeError: no weights here",
        ),
        (
            ["filters", "own_modules.py:FailsWhenCalled", "--replace", "conv3x3=split"],
            "'Tensor' object has no attr",
        ),
        (
            ["profile", "own_modules.py:FourierUnt"],
            "own_modules.py has no 'FourierUnt'; did you mean 'FourierUnit'?",
        ),
        (["plan", "smoke", "--operator", ""], "a row has no name; give one"),
    ],
)
def test_what_a_users_code_raises_is_one_message_of_every_command(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == 2
    said = capsys.readouterr().err
    assert message in said
    assert ("own_modules.py, line " in said) == ("FailsWhen" in said)
    assert len(said.strip().splitlines()) == 1


@pytest.mark.parametrize(
    "arguments",
    [
        ["run", "smoke", "--operator"],
        ["profile"],
        ["list", "networks"],
        ["list", "operators"],
        ["shrink"],
        ["filters", "--replace", "conv3x3=split"],
    ],
)
@pytest.mark.parametrize("file", ["mine.py", "mine.py:", "a folder/mine.py"])
def test_of_a_file_alone_every_command_says_what_it_defines(call: Call, arguments: list[str], file: str) -> None:
    place = Path(file.rstrip(":"))
    place.parent.mkdir(exist_ok=True)
    place.write_text("import nowhere\n\nclass Mine: ...\n\ndef make(): ...\n\ndef _own(): ...\n", encoding="utf-8")
    done = call(*arguments, file)
    assert done.returncode == 2
    wanted = f"'{file}' should have a name after a colon, as {place}:Mine (it defines Mine, make)"
    assert wanted in " ".join(done.stderr.split())


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ('module = "a.py"', "operators[1].module': should have a name after a colon, as a.py:NAME"),
        ('module = "a"', "operators[1].module': should be FILE.py:NAME, or MODULE:NAME"),
        ('name = "a.py"', "operators[1].name: 'a.py' should have a name after a colon, as a.py:NAME"),
        ('module = "a.py:X"\nname = "copy"', "needs one of name"),
        ('name = "dense-k3"\narguments = { a = 1 }', "arguments: goes with module, not with name"),
        ('module = "a.py:X"\noptions = { a = 1 }', "options: goes with name or model, not with module"),
        ('module = "a.py:X"\nlike = "dense-k3"\nreference = "a:b"', "give like or reference, not both"),
        ('module = "a.py:X"\narguments = { a = { b = 1 } }', "should be a string, a number or a boolean"),
        ('module = "a.py:X"\narguments = { a = [[1979-05-27]] }', "should be a string, a number or a boolean"),
        ('module = "a.py:X"\narguments = { a = [1, inf] }', "should be a finite number"),
    ],
)
def test_a_suite_says_what_is_right(tmp_path: Path, rows: str, message: str) -> None:
    head = 'description = "d"\nbaseline = "dense-k3"\naxes = { channels = 4, size = 8 }\n'
    (tmp_path / "s.toml").write_text(f'{head}[[operators]]\nname = "dense-k3"\n[[operators]]\n{rows}\n')
    with pytest.raises(UsageError) as refused:
        load(str(tmp_path / "s.toml"), catalogue(), declare=declare)
    assert message in str(refused.value)


def test_an_argument_may_be_a_list_of_literals_and_words(tmp_path: Path) -> None:
    (tmp_path / "s.toml").write_text(
        'description = "d"\nbaseline = "n"\naxes = { channels = 4, size = [[6, 8]] }\n[[operators]]\nlabel = "n"\n'
        'module = "torch.nn:LayerNorm"\narguments = { normalized_shape = ["channels", "height", 8] }\n'
    )
    written = load(str(tmp_path / "s.toml"), catalogue(), declare=declare).cases
    in_a_line = suite_of('torch.nn:LayerNorm normalized_shape=["channels","height",8]', size=[[6, 8]])
    [as_in_python] = suite_of("torch.nn:ZeroPad2d padding=(1,2,0,0)")
    assert [case.id for case in written] == [case.id for case in in_a_line]
    assert catalogue()["torch.nn:LayerNorm"].build(in_a_line[0]).weight.shape == (4, 6, 8)
    assert catalogue()["torch.nn:ZeroPad2d"].build(as_in_python).padding == (1, 2, 0, 0)


@pytest.mark.parametrize(
    ("written", "given"),
    [
        ('[true, "false", 2.5]', (True, "false", 2.5)),
        ('[["😀", "kernel"], ["channels"]]', (("😀", 3), (4,))),
    ],
)
def test_a_list_reaches_the_callable_as_it_was_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, written: str, given: object
) -> None:
    (tmp_path / "taking.py").write_text(
        "from torch import nn\n\n\nclass Taking(nn.Identity):\n    def __init__(self, value):\n"
        "        super().__init__()\n        self.value = value\n"
    )
    monkeypatch.chdir(tmp_path)
    row = {"module": "taking.py:Taking", "arguments": tomllib.loads(f"value = {written}")}
    axes = {"channels": 4, "size": 8} | ({"kernel": 3} if "kernel" in written else {})
    for entry in (row, entry_of(f"taking.py:Taking value={written.replace(', ', ',')}")):
        [case] = cases_of([entry], axes, "test", catalogue(), declare).cases
        assert catalogue()["taking.py:Taking"].build(case).value == given


@pytest.mark.parametrize("written", ["[1,Infinity]", "[null]", "[{}]"])
def test_a_line_may_not_hold_what_a_suite_may_not(written: str) -> None:
    with pytest.raises(UsageError, match="each of a list should be a"):
        entry_of(f"torch.nn:ZeroPad2d padding={written}")


def test_importing_a_file_changes_nothing_for_other_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "setting.py").write_text(
        "import torch\n\ntorch.set_num_threads(torch.get_num_threads() + 1)\n"
        "torch.set_default_dtype(torch.float64)\ntorch.set_grad_enabled(False)\ntorch.set_float32_matmul_precision('high')\n"
        "torch.backends.cudnn.benchmark = True\nX = torch.nn.Identity\n"
    )
    monkeypatch.chdir(tmp_path)
    before = ProcessState.here()
    try:
        check(UserModule(operator="setting.py:X", source="setting.py:X", folders=(str(tmp_path),)))
        assert ProcessState.here() == before
    finally:
        before.restore()


def test_ceilings_are_measured_as_if_nobodys_module_had_been_called(evaluator: TorchEvaluator) -> None:
    changing, other = suite_of("own_modules.py:Threads", "own_modules.py:GlobalFilter")
    evaluator.predict(other)
    before = ProcessState.here()
    evaluator.predict(changing)
    assert before.changed() == "torch's number of threads"
    evaluator.ceilings(frozenset({"float32"}))
    assert before.changed() is None


def test_other_arguments_are_another_case_and_another_label_is_not() -> None:
    rows = ["own_modules.py:hyena length=64", "own_modules.py:hyena length=32", "own_modules:hyena length=64"]
    one, *others = suite_of(*rows)
    [named] = suite_of(f"{rows[0]} label=mine")
    assert named.id == one.id
    assert len({one.id, *(other.id for other in others)}) == 3


NETWORKS = (
    "squeezenet1_1", "mnasnet0_5", "regnet_x_400mf", "shufflenet_v2_x0_5", "efficientnet_b0", "mobilenet_v3_small",
)  # fmt: skip
BY_RULE = "replace.conv3x3=split replace.conv1x1=pointwise replace.depthwise=depthwise"


@pytest.mark.parametrize("name", [*(f"torchvision:{name}" for name in NETWORKS), "timm:resnet10t"])
def test_networks_outside_the_paper_run_as_they_are_and_converted(evaluator: TorchEvaluator, name: str) -> None:
    if name.startswith("timm"):
        pytest.importorskip("timm")
    cases = suite_of(name, f"{name} {BY_RULE}", channels=3, channels_out=10, size=48)
    operator = catalogue()[name]
    for case, boundary, base in zip(cases, ("zero", "circular"), (None, name), strict=True):
        assert become(evaluator, case) == "ok"
        assert operator.output_shape(case) == (1, 10)
        traits = operator.traits(case)
        assert (traits.role, traits.boundary, traits.base) == ("network", boundary, base)
        if name in ("torchvision:squeezenet1_1", "timm:resnet10t"):  # counting takes longer than running
            cost = evaluator.cost(case, None)
            assert (cost.stated, cost.closed > 0, cost.disagreement) == (False, True, None)


def test_a_network_that_is_made_already_is_converted(evaluator: TorchEvaluator) -> None:
    row = "own_modules.py:classifier replace.conv3x3=split"
    [case] = suite_of(row, channels=3, channels_out=5, size=16)
    assert become(evaluator, case) == "ok"


def test_a_network_that_no_meta_tensor_goes_through_is_converted(evaluator: TorchEvaluator) -> None:
    """One with a tensor that is no buffer, and a branch on a value."""
    row = "own_modules.py:Centred replace.conv3x3=split"
    [case] = suite_of(row, channels=3, channels_out=5, size=16)
    assert become(evaluator, case) == "ok"


@pytest.mark.parametrize(
    ("rule", "boundary", "layers"),
    [
        ("replace.conv1x1=pointwise", "zero", "niff"),
        ("replace.conv1x1=pointwise replace.conv3x3=keep", "zero", "niff"),
        ("replace.conv1x1=pointwise replace.conv3x3=split", "circular", "niff"),
        ("replace.depthwise=depthwise", "circular", "niff"),
        ("replace.conv3x3=keep", "zero", "dense"),
    ],
)
def test_a_network_is_circular_where_a_layer_that_has_a_boundary_is_replaced(
    rule: str, boundary: str, layers: str
) -> None:
    [case] = suite_of(f"own_modules.py:network {rule}", channels=3, channels_out=5, size=16)
    traits = catalogue()[case.operator].traits(case)
    assert (traits.boundary, traits.layers) == (boundary, layers)


def test_a_network_of_ones_own_trains_and_chooses(evaluator: TorchEvaluator) -> None:
    row = "own_modules.py:network replace.conv3x3=split replace.conv1x1=pointwise execution=auto"
    [case] = suite_of(row, channels=3, channels_out=5, size=16, batch=2, mode="training")
    assert become(evaluator, case) == "ok"
    workload = evaluator.workload(case)
    evaluator.device.timed(workload)
    choice = evaluator.choice(workload)
    assert choice is not None
    assert len(choice.engines) == 1
    assert evaluator.cost(case, choice).counted


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (
            "torchvision:resnet18 replace.conv3x3=spilt",
            "unknown replacement of conv3x3 'spilt'; did you mean 'split'",
        ),
        ("torchvision:resnet18 replace.conv5x5=split", "unknown layer to replace 'conv5x5'; did you mean 'conv"),
        ("torchvision:resnet18 execution=fsat", "unknown execution 'fsat'"),
    ],
)
def test_a_rule_that_is_none_is_one_message(row: str, message: str) -> None:
    with pytest.raises(UsageError) as refused:
        suite_of(row, channels=3, size=64)
    assert message in str(refused.value)


def test_a_network_that_is_none_is_one_message() -> None:
    module = UserModule(operator="torchvision:resnet81", source="torchvision:resnet81", folders=(), network=True)
    with pytest.raises(UsageError, match="unknown network of torchvision 'resnet81'; did you mean 'resnet18'"):
        check(module)


def test_an_installed_package_brings_operators_by_its_entry_points(tmp_path: Path) -> None:
    code = Path(__file__).with_name("example_operator.py").read_text(encoding="utf-8")
    wheel = tmp_path / "tiny_ops-1.0-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("tiny_ops.py", code)
        archive.writestr(
            "tiny_ops-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: tiny-ops\nVersion: 1.0\n"
        )
        archive.writestr("tiny_ops-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
        archive.writestr("tiny_ops-1.0.dist-info/RECORD", "")
        archive.writestr("tiny_ops-1.0.dist-info/entry_points.txt", "[niffbench.operators]\ntiny = tiny_ops\n")
    site = tmp_path / "site"
    pip = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--no-index", "--target", str(site)]
    subprocess.run([*pip, str(wheel)], check=True)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(site), os.environ.get("PYTHONPATH", "")])}

    def listed() -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "niffbench.cli", "list", "operators", "fourier*"]
        return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)

    assert "fourier" in listed().stdout
    (site / "tiny_ops.py").write_text("OPERATORS = 1 / 0\n")
    done = listed()
    assert done.returncode == 2
    assert "entry point tiny = tiny_ops: tiny_ops.py, line 1: ZeroDivisionError" in done.stderr
