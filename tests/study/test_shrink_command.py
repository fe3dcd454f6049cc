"""``niffbench shrink`` whole: a trained checkpoint in, a report and a network of plain torch out; bad input."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter as clock
from typing import Any

import pytest
import torch
from launchers.inline import InlineWorker
from PIL import Image
from torch import nn

from niffbench.case import Case, Problem
from niffbench.cli import main
from niffbench.device.base import Processor
from niffbench.device.cpu import CpuDevice
from niffbench.home import user_cache
from niffbench.launch import local
from niffbench.niff import NiffDepthwise, NiffFull, NiffSplit, folded, networks
from niffbench.niff.layer import FilteringLayer
from niffbench.session.interrupts import Interrupts
from niffbench.study import costs, digits, source, stored
from niffbench.study.costs import Measuring, measure
from niffbench.study.images import fold_of
from niffbench.study.shrink import replaced
from niffbench.study.shrink_tables import beside

SIDE = 8


@dataclass(frozen=True)
class Done:
    """What a command wrote and said."""

    out: Path
    stdout: str
    result: dict[str, Any]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with a trained network and its twin; workers are calls here, so that rounds take no start."""
    folder = tmp_path_factory.mktemp("shrink")
    data = digits.load(SIDE)
    for variant in digits.VARIANTS:
        trained = digits.train(variant, data, digits.Recipe(epochs=2))
        stored.save(folder / f"{variant}.pt", f"digits-{variant}", trained.network, SIDE)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
        patch.setenv("NIFFBENCH_ROOFLINE", "0")
        patch.setattr(local, "LAUNCHER", InlineWorker())
        for name in ("_OF_LAYERS", "_OF_NETWORKS"):  # figures of layers and networks do not matter here
            patch.setattr(costs, name, {"regimes": ["steady"], "min_time": 0.001, "max_time": 0.005})
        yield folder


@pytest.fixture(scope="module")
def done(place: Path) -> Done:
    """The trained network, shrunk."""
    out = place / "out"
    # What is smallest does not depend on how busy the machine is.
    arguments = ["niff.pt", "--budget", "4%", "--objective", "parameters", "--finetune", "1", "--twin", "twin.pt"]
    arguments += ["--rounds", "2", "--device", "cpu"]
    with pytest.MonkeyPatch.context() as patch:
        said: list[str] = []
        patch.setattr("click.echo", lambda text="", **_: said.append(str(text)))
        assert main(["shrink", *arguments, "--out", str(out)]) == 0
    return Done(out, "\n".join(said), json.loads((out / "shrink.json").read_text()))


def test_everything_is_written_and_networks_are_compared_on_images_nothing_was_chosen_by(done: Done) -> None:
    files = {path.relative_to(done.out).as_posix() for path in done.out.rglob("*") if path.is_file()}
    plots = {f"plots/{name}.{kind}" for name in ("networks", "kernel-mass", "kernels") for kind in ("svg", "png")}
    assert files == {"report.md", "report.html", "table.csv", "shrink.json", "shrunk.py", "shrunk.pt", *plots}
    assert f"Report: {done.out / 'report.md'}" in done.stdout
    compared = {one["name"]: one for one in done.result["networks"]}
    assert list(compared) == ["published", "fastest forms", "3×3 twin", "shrunk"]
    assert {one["images"] for one in compared.values()} == {225}
    assert compared["published"]["lost"] == compared["published"]["gained"] == 0
    for one in compared.values():
        assert all(seconds > 0 for seconds in one["latency"])
        assert one["accuracy"]["low"] < one["accuracy"]["estimate"] <= one["accuracy"]["high"]
    report = (done.out / "report.md").read_text()
    assert all(f"plots/{name}.svg" in report for name in ("networks", "kernel-mass", "kernels"))
    assert "<svg" in (done.out / "report.html").read_text()


def test_the_choice_is_cheaper_layer_by_layer_and_within_the_budget_where_it_was_verified(done: Done) -> None:
    result = done.result
    assert result["sums"]["cheapest"] <= result["sums"]["chosen"] <= result["sums"]["forms"]
    checked = result["verification"]
    assert checked["lost"] - checked["gained"] <= 0.04 * checked["images"]
    assert result["attempts"][-1]["holds"]
    for layer in result["layers"]:
        names = {one["name"] for one in layer["candidates"]}
        side = layer["height"]
        assert {f"k{k}" for k in range(3, side + 1, 2)} | {f"k{k} zeros" for k in range(1, side + 1, 2)} < names
        assert {"published", "auto-cached", "identity", "strip k3", "basis k3 r1"} < names


def test_what_comes_out_needs_torch_alone_and_can_be_exported(done: Done) -> None:
    """In a process that cannot import this package, where no NIFF layer is left."""
    assert done.result["cut"], "this network of four layers has nothing left to test"
    left = [layer for layer in done.result["layers"] if layer["layer"] not in done.result["cut"]]
    ban = "" if left else "sys.modules['niffbench'] = None; "
    code = (
        f"import sys; {ban}sys.path.insert(0, {str(done.out)!r}); import torch, shrunk; network = shrunk.load(); "
        f"x = torch.rand(3, 1, {SIDE}, {SIDE}); program = torch.export.export(network, (x,)); "
        "print(float((program.module()(x) - network(x)).abs().max()))"
    )
    finished = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False
    )
    assert finished.returncode == 0, finished.stderr
    assert float(finished.stdout) < 1e-5


def test_a_folder_of_pictures_and_a_budget_that_nothing_meets(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Digits as files, a folder for each of three classes; the answer is that nothing can be cut."""
    data = digits.load(SIDE)
    for label in range(3):
        (place / "pictures" / str(label)).mkdir(parents=True)
        for number, image in enumerate(data.test_images[data.test_labels == label][:12]):
            grey = (image[0] * 255).round().to(torch.uint8).numpy()
            Image.fromarray(grey).save(place / "pictures" / str(label) / f"{number}.png")
    arguments = ["niff.pt", "--data", "pictures", "--max-error", "0.00001", "--objective", "parameters"]
    assert main(["shrink", *arguments, "--rounds", "2", "--device", "cpu", "--out", "exact", "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["data"] == "pictures, 36 images"
    assert result["shape"] == [1, 1, SIDE, SIDE]
    for one in result["networks"]:
        assert one["images"] == 12
        assert one["right"] >= 8  # they are the digits that it learned to read
    assert result["cut"] == {}
    assert "Nothing can be cut within 0.001 %" in result["sentences"][0]
    assert (place / "exact" / "shrunk.py").is_file()


def test_a_study_in_folds_judges_every_digit_and_keeps_what_it_trained(place: Path) -> None:
    arguments = ["digits-niff", "--folds", "2", "--size", str(SIDE), "--epochs", "1", "--budget", "30%"]
    arguments += ["--objective", "parameters", "--rounds", "2", "--device", "cpu", "--out", "study"]
    assert main(["shrink", *arguments, "--memory-format", "channels_last"]) == 0
    result = json.loads((place / "study" / "folds.json").read_text())
    assert {one["images"] for one in result["networks"].values()} == {1797}
    for number, cuts in enumerate(result["cut"], start=1):
        own = json.loads((place / "study" / f"fold{number}" / "shrink.json").read_text())
        assert own["cut"] == cuts
        compared = {one["name"]: one["channels_last"] for one in own["networks"]}
        assert (compared["published"], compared["shrunk"]) == (False, True)
        source = (place / "study" / f"fold{number}" / "shrunk.py").read_text()
        assert "network.eval().to(memory_format=torch.channels_last)" in source
    assert "Fold by fold" in (place / "study" / "report.md").read_text()
    data, _ = fold_of(SIDE, 1, 2)
    again = digits.train("niff", data, digits.recipe(1, 1), lambda *_: pytest.fail("trained again"), user_cache())
    kept = stored.read(place / "study" / "fold2" / "digits-niff.pt").state
    assert all(torch.equal(kept[name], weight) for name, weight in again.network.state_dict().items())


def test_a_network_of_the_paper_is_written_as_a_module() -> None:
    """With its spectral pointwise layers ordinary; the filters that are left are layers of this package."""
    torch.manual_seed(0)
    model = replaced(stored.build("convnext_tiny-niff", size=32, classes=10), {}, {}).eval()
    assert not any(layer.kind == "pointwise" for _, layer in networks.niff_layers(model))
    text, state = source.written(model, torch.randn(2, 3, 32, 32), "convnext", "w.pt")
    assert "from niffbench.niff import NiffDepthwise" in text
    assert state.keys() == model.state_dict().keys()


def test_costs_are_measured_once_and_remembered(place: Path) -> None:
    problem = Problem(1, 3, 3, 8, 8)
    kernels = [Case("depthwise-circular", problem, kernel=side) for side in (3, 5)]
    with Interrupts() as stop:
        measuring = Measuring(stop, "cpu", rounds=2, cache=place / "costs")
        first = measure(kernels[:1], measuring)
        both = measure(kernels, measuring)
        again = measure(kernels, measuring)
    assert (first.measured, both.measured, again.measured) == (1, 1, 0)
    assert again.figures == both.figures
    for case in kernels:
        assert (again.of([case], "latency") or 0) > 0
        assert (again.of([case], "memory") or 0) >= 4 * 3 * 64


def test_what_was_measured_beside_busy_neighbours_is_said_and_not_remembered(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = Case("depthwise-circular", Problem(1, 5, 5, 8, 8), kernel=3)

    def busy(share: float) -> None:
        monkeypatch.setattr(CpuDevice, "processor", lambda _: Processor(1e6 * share * clock(), 1e6 * clock()))

    with Interrupts() as stop:
        measuring = Measuring(stop, "cpu", rounds=2, cache=place / "busy")
        busy(0.6)
        loud = measure([case], measuring)
        busy(0.01)
        calm = measure([case], measuring)
        again = measure([case], measuring)
    assert loud.others == pytest.approx(0.6, abs=0.01)
    assert loud.joined(calm).others == loud.others
    assert (calm.others, again.others) == (pytest.approx(0.01, abs=0.005), None)
    assert (loud.measured, calm.measured, again.measured) == (1, 1, 0)
    assert ["60 %" in sentence for sentence in beside(loud.others)] == [True]
    assert beside(calm.others) == beside(None) == []


@pytest.mark.parametrize("layer", [NiffFull(3, 2, grid="centred"), NiffSplit(3, 4, mlp="big", form="dft")])
def test_layers_that_are_left_are_written_with_their_settings(layer: FilteringLayer) -> None:
    model = nn.Sequential(layer, nn.GELU("tanh"), nn.Conv2d(layer.out_channels, 2, 3, padding_mode="circular"))
    text, _ = source.written(model, torch.randn(2, 3, 8, 8), "two", "w.pt")
    assert f"grid='{layer.generator.grid}', form='{layer.form}'" in text


def test_what_is_folded_into_a_layer_is_written_with_it() -> None:
    kinds = nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.ReLU6(), NiffDepthwise(4), nn.BatchNorm2d(4), nn.ReLU()
    text, _ = source.written(folded(nn.Sequential(*kinds).eval()), torch.randn(2, 3, 8, 8), "folded", "w.pt")
    assert "(float('0.0'), float('6.0'), float('0.0'), float('inf')), in_place=True)" in text
    assert "BatchNorm2d" not in text


def test_a_network_whose_course_depends_on_its_input_says_so() -> None:
    class Fickle(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x if x.sum() > 0 else -x

    with pytest.raises(source.Unwritable, match="cannot be traced"):
        source.written(Fickle(), torch.ones(1, 1, 2, 2), "t", "w.pt")


DATA = """
import torch
from torch.utils.data import TensorDataset

def of(labels, side=8, channels=1):
    return TensorDataset(torch.rand(len(labels), channels, side, side), torch.tensor(labels))

one_class = of([3] * 60)
strange = of(list(range(60)))
random = of([0] * 300 + [place % 9 + 1 for place in range(300)])
small = of([0, 1])
large = of([0, 1] * 30, 16)
coloured = of([0, 1] * 30, 8, 3)
bare = torch.rand(60, 1, 8, 8)
words = ["no image"] * 60
"""


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["digits-twin"], "digits-twin has no NIFF layer: there is nothing to shrink"),
        (
            ["resnet18-split"],
            "by what is it judged? Give --data, with labels for a --budget in accuracy, or --max",
        ),
        (["resnet18-split", "--budget", "1%"], "--budget is in accuracy: give --data with labels, or --max-error"),
        (["niff.pt", "--budget", "1%", "--max-error", "1%"], "give one of them"),
        (["niff.pt", "--max-error", "0.000000001"], "--max-error 1e-09: the unshrunk network is itself"),
        (["niff.pt", "--data", "data.py:one_class"], "--data: all images are of one class"),
        (["niff.pt", "--data", "data.py:strange"], "labels go up to"),
        (["niff.pt", "--data", "data.py:random"], "no more than whoever always names the commonest class"),
        (["niff.pt", "--data", "data.py:small"], "2 images are too few"),
        (["niff.pt", "--data", "data.py:large"], "images are 16×16, and the network's are 8×8"),
        (["niff.pt", "--data", "data.py:coloured"], "images have 3 channels, and the network takes 1"),
        (["niff.pt", "--data", "data.py:bare"], "the images have no labels; give --max-error"),
        (["niff.pt", "--data", "data.py:words"], "item 0 is a str, and should be a tensor (C, H, W)"),
        (["niff.pt", "--data", "data.py:absent"], "data.py:absent: data.py has no 'absent'"),
        (["niff.pt", "--data", "nowhere"], "--data nowhere: is no folder; give digits, a folder of images or"),
        (["niff.pt", "--data", "empty"], "should hold a folder of images for each class"),
        (["niff.pt", "--data", "data.py"], "'data.py' should have a name after a colon, as data.py:of"),
        (["niff.pt", "--size", "32"], "niff.pt: was trained at 8×8, not 32×32"),
        (["niff.pt", "--folds", "5"], "--folds trains networks of its own: give digits-niff alone"),
        (["niff.pt", "--epochs", "5"], "--epochs are those of --folds"),
        (["niff.pt", "--out", "empty/full"], "is not empty"),
    ],
)
def test_bad_input_is_one_clear_message(
    place: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    (place / "data.py").write_text(DATA)
    (place / "empty" / "full").mkdir(parents=True, exist_ok=True)
    (place / "empty" / "full" / "file").touch()
    assert main(["shrink", *arguments]) == 2
    out, err = capsys.readouterr()
    assert message in " ".join(err.split())
    assert "Traceback" not in err
    assert out == ""
