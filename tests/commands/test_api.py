"""niffbench from Python: what is counted, what is refused, what a run shows; the pages' test measures for real."""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from launchers.inline import InlineWorker
from synthetic import WORLD, World, write
from torch import nn

import niffbench
from niffbench.errors import NiffbenchError
from niffbench.launch import local


class Net(nn.Module):
    """One 3×3 convolution, normalised."""

    def __init__(self, channels: int = 4) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(channels)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.norm(self.conv(x))


def test_a_module_is_counted_and_left_as_it_was() -> None:
    net = Net().train()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    x = torch.randn(2, 4, 6, 5)
    forward = 2 * 4 * 4 * 9 * 2 * 30
    cost = niffbench.count(net, x)
    assert (cost.flops, cost.flops_fvcore, cost.parameters, cost.notes) == (forward, forward, 4 * 4 * 9 + 8, ())
    assert cost.bytes_floor == 4 * (2 * x.numel() + 4 * 4 * 9 + 8)
    assert cost.memory_peak >= 4 * x.numel()
    assert niffbench.count(net, x, "training").flops == 3 * forward
    assert net.training
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert all(parameter.grad is None for parameter in net.parameters())


def test_any_input_can_be_counted() -> None:
    assert niffbench.count(nn.Linear(4, 5), torch.randn(7, 4)).flops == 2 * 7 * 4 * 5
    assert niffbench.count(nn.Embedding(3, 5), torch.zeros(2, dtype=torch.long), "forward").flops == 0


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            (nn.Conv2d, torch.ones(1)),
            "Conv2d is a class, and should be a module that was made of it, as Conv2d(…)",
        ),
        ((torch.sin, torch.ones(1)), "should be given a torch.nn.Module, and not a builtin_function_or_method"),
        (("depthwise-k3", torch.ones(1)), "should be given a torch.nn.Module, and not a str"),
        ((nn.ReLU(), (1, 4, 8, 8)), "the input should be a tensor, and not a tuple"),
        ((nn.ReLU(), torch.ones(1), None), "no mode named 'None'; choose from forward, inference, training"),
        ((nn.ReLU(), torch.ones(1), "train"), "no mode named 'train'; did you mean 'training'?"),
    ],
)
def test_what_cannot_be_counted_is_one_message(given: Any, message: str) -> None:
    with pytest.raises(NiffbenchError) as caught:
        niffbench.count(*given)
    assert str(caught.value) == f"count: {message}"


def test_a_run_is_read_shown_and_reported(tmp_path: Path) -> None:
    run = niffbench.read(write(tmp_path / "run", World(sizes=(14,), operators=WORLD[2:4], faults=())).path)
    assert set(run.frame["label"]) >= {"depthwise-k7", "niff-depthwise/cached"}
    assert run.findings["baseline"] == "depthwise-k7"
    assert "depthwise-k7" in str(run)
    assert "<table" in run._repr_html_()
    assert run.report(tmp_path / "page") == tmp_path / "page" / "report.html"
    with pytest.raises(NiffbenchError, match="there is no such directory"):
        niffbench.read(tmp_path / "nowhere")


def test_modules_and_classes_are_measured_beside_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Workers are calls here; the notebook's are processes."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(local, "LAUNCHER", InlineWorker())
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setenv("NIFFBENCH_ROOFLINE", "0")
    (tmp_path / "mine.py").write_text(Path(__file__).read_text(encoding="utf-8"), encoding="utf-8")
    trained = Net()
    nn.init.constant_(trained.conv.weight, 0.5)
    rows: list[Any] = ["depthwise-k3", Net, trained, Net(), {"module": "mine.py:Net", "label": "row"}]
    result = niffbench.measure(
        rows, channels=4, size=5, rounds=1, baseline="row", min_time=0.001, max_time=0.002, regimes=["steady"],
        mode=["inference", "training"], out="run",
    )  # fmt: skip
    assert (result.frame["status"] == "ok").all(), result.frame["reason"]
    assert list(dict.fromkeys(result.run.manifest.suite.cases)) == result.run.manifest.suite.cases
    labels = {"depthwise-k3", f"{__name__}:Net", "Net", "Net 2", "row"}
    assert set(result.frame["label"]) == labels
    assert result.findings["baseline"] == "row"
    assert (tmp_path / "run" / "findings.json").is_file()


@pytest.mark.parametrize(
    ("rows", "settings", "message"),
    [
        (["depthwise-k3"], {"chanels": 4}, "no setting named 'chanels'; did you mean 'channels'?"),
        (
            ["depthwise-k3"],
            {"channels": "four", "size": 8},
            "key 'channels': should be a valid integer, got 'four'",
        ),
        (
            ["depthwise-k3"],
            {"channels": 4, "size": "8"},
            "key 'size': should be a valid integer without quotation marks, got '8'",
        ),
        (["depthwise-k3"], {"channels": 4, "size": [8, -1]}, "key 'size[1]': should be greater"),
        (
            ["depthwise-k3"],
            {"channels": 4, "size": 8, "max_time": "x"},
            "key 'max_time': should be a valid number",
        ),
        (
            "depthwise-k3",
            {"channels": 4, "size": 8},
            "should be given a list of rows, as ['depthwise-k7', MyConv], and not a str",
        ),
        (nn.Conv2d, {"channels": 4, "size": 8}, "MyConv], and not a type"),
        ([], {"channels": 4, "size": 8}, "MyConv], and not an empty one"),
        (None, {"channels": 4, "size": 8}, "MyConv], and not None"),
        (torch.ones(2), {"channels": 4, "size": 8}, "MyConv], and not a Tensor"),
        (
            [torch.ones(3)],
            {"channels": 4, "size": 8},
            "a row should be a name, a mapping, a module or a callable, and not a Tensor",
        ),
        (["depthwis-k3"], {"channels": 4, "size": 8}, "did you mean 'depthwise'?"),
        ([{"modul": "a:b"}], {"channels": 4, "size": 8}, "modul"),
        (["depthwise-k3"], {"channels": 4, "size": 8, "out": "."}, "is not empty"),
    ],
)
def test_what_makes_no_sense_is_one_message(
    rows: Any, settings: dict[str, Any], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "something").touch()
    with pytest.raises(NiffbenchError) as caught:
        niffbench.measure(rows, **settings)
    assert message in str(caught.value)
    assert not (tmp_path / "reports").exists()


def in_main(made: Callable[..., Any]) -> Callable[..., Any]:
    """As if it were written in a notebook's cell."""
    made.__module__ = "__main__"
    return made


class Cell(Net):
    """Of a notebook."""


def _hooked() -> nn.Module:
    module = nn.Sequential(nn.ReLU())
    module.register_forward_hook(lambda *_: None)
    return module


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (in_main(Cell), "Cell is defined in a notebook or at a prompt, which no other process can import"),
        (nn.Sequential(Cell()), "Cell is defined in a notebook"),
        (lambda channels: Net(channels), "<lambda> has no name by which others could import it"),
        (partial(Net, 4), "has no name by which others could import it"),
        (_hooked(), "Sequential cannot be sent to another process"),
    ],
)
def test_what_no_other_process_can_import_is_one_message(
    row: Any, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delattr(sys.modules["__main__"], "__file__", raising=False)  # xdist's has none
    with pytest.raises(NiffbenchError) as caught:
        niffbench.measure([row], channels=4, size=5)
    assert message in str(caught.value)


def test_the_package_says_what_it_offers() -> None:
    assert {"measure", "read", "count"} <= set(dir(niffbench))
    with pytest.raises(AttributeError, match="has no attribute 'mesure'"):
        _ = niffbench.mesure
