"""``niffbench filters`` for real: training on digits, a checkpoint, a network, and every kind of bad input."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn
from warm_process import run

from niffbench.cli import main
from niffbench.niff import NiffFull
from niffbench.niff.filters import FilterGenerator
from niffbench.study import stored


@pytest.fixture(scope="module")
def learned(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, subprocess.CompletedProcess[str]]:
    """The directory that ``--train digits`` wrote, and what it said."""
    out = tmp_path_factory.mktemp("digits") / "out"
    arguments = ("filters", "--train", "digits", "--epochs", "4", "--out", str(out), "--error", "15%")
    done = run(arguments, os.environ, out.parent, timeout=180)  # it is to take less than 3 minutes on two cores
    assert done.returncode == 0, done.stderr
    return out, done


def test_niff_learns_the_digits_and_is_analysed(
    learned: tuple[Path, subprocess.CompletedProcess[str]],
) -> None:
    out, done = learned
    result = json.loads((out / "filters.json").read_text())
    assert result["learned"]["niff"]["accuracy"] >= 0.97
    assert result["learned"]["twin"]["accuracy"] >= 0.97
    grids = {layer["layer"]: (layer["height"], layer["width"]) for layer in result["layers"]}
    assert grids == {
        "stage1.0.filter": (16, 16),
        "stage1.1.filter": (16, 16),
        "stage2.0.filter": (8, 8),
        "stage2.1.filter": (8, 8),
    }
    for layer in result["layers"]:
        assert layer["mass_ratio"] == sorted(layer["mass_ratio"])
        assert layer["mass_ratio"][-1] == pytest.approx(1)
        assert sum(layer["explained_variance"]) <= 1 + 1e-9
        if layer["truncated_side"] is not None:
            assert layer["error"] <= 0.15
    cut = {entry["side"]: entry["accuracy"] for entry in result["learned"]["cut"]}
    assert list(cut) == [1, 3, 5, 7, 9, 11, 13, 15]
    assert cut[15] > cut[1]
    assert f"digits-niff: {100 * result['learned']['niff']['accuracy']:.1f} % of the test images" in done.stdout
    assert "stage1.0.filter" in done.stdout
    assert str(out / "report.md") in done.stdout
    assert done.stderr == ""


def test_everything_is_written(learned: tuple[Path, subprocess.CompletedProcess[str]]) -> None:
    out, _ = learned
    plots = {"kernel-mass", "components", "kernels", "truncated-accuracy"}
    files = {path.relative_to(out).as_posix() for path in out.rglob("*") if path.is_file()}
    assert files == {
        "report.md",
        "table.csv",
        "filters.json",
        "digits-niff.pt",
        "digits-twin.pt",
        *(f"plots/{name}.{kind}" for name in plots for kind in ("svg", "png")),
    }
    report = (out / "report.md").read_text()
    assert all(f"plots/{name}.svg" in report for name in plots)


def test_a_trained_checkpoint_is_analysed_alike(
    learned: tuple[Path, subprocess.CompletedProcess[str]], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    out, _ = learned
    arguments = ["filters", str(out / "digits-niff.pt"), "--error", "15%", "--json"]
    assert main([*arguments, "--out", str(tmp_path / "again")]) == 0
    again, before = json.loads(capsys.readouterr().out), json.loads((out / "filters.json").read_text())
    # Arrays that lie elsewhere in memory may take another vector path of the FFT: equal but for rounding.
    assert [list(layer) for layer in again["layers"]] == [list(layer) for layer in before["layers"]]
    for layer, same in zip(again["layers"], before["layers"], strict=True):
        for key, value in layer.items():
            assert value == (
                same[key] if isinstance(value, str) else pytest.approx(same[key], rel=1e-6, abs=1e-12)
            ), key
    assert again["learned"] is None
    assert json.loads((tmp_path / "again" / "filters.json").read_text()) == again


def test_a_network_by_name_lands_in_reports(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    arguments = ["filters", "mobilenet_v2-niff", "--size", "64", "--layer", "features.3.conv.1.0", "--batch", "2"]
    assert main([*arguments, "--execution", "cached", "--boundary", "zeros", "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    (layer,) = result["layers"]
    assert (layer["layer"], layer["form"], layer["height"]) == ("features.3.conv.1.0", "cached", 16)
    assert (result["batch"], result["boundary"]) == (2, "zeros")
    assert "untrained, random weights of seed 0" in result["weights"]
    (written,) = (tmp_path / "reports").iterdir()
    assert written.name.startswith("filters-mobilenet_v2-niff-")
    assert (written / "report.md").is_file()


def test_layers_can_be_left_as_they_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    patterns = ["features.?.*", "features.10.*"]
    keep = [word for pattern in patterns for word in ("--keep", pattern)]
    assert main(["filters", "squeezenet1_1-split", "--size", "64", "--json", *keep]) == 0
    result = json.loads(capsys.readouterr().out)
    assert [layer["layer"] for layer in result["layers"]] == ["features.11.expand3x3", "features.12.expand3x3"]
    assert result["weights"].endswith(f"{', '.join(patterns)} not converted")


def test_a_checkpoint_of_no_known_network_is_looked_at_layer_by_layer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save(
        {
            "net": {
                "block.0.filter.generator." + k: v
                for k, v in FilterGenerator((3,), mlp="small").state_dict().items()
            }
        },
        "my.pt",
    )
    assert main(["filters", "my.pt", "--size", "12", "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    [layer] = result["layers"]
    assert (layer["layer"], layer["height"], layer["width"]) == ("block.0.filter", 12, 12)
    assert result["input"] == "noise with the spectrum of photographs, 12×12, given to each layer by itself"
    assert result["weights"] == "weights of my.pt"


def test_any_network_is_converted_by_rule(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "my_nets.py").write_text(
        "from torch import nn\n\n\n"
        "def Net(num_classes):\n"
        "    pooled = [nn.AdaptiveAvgPool2d(1), nn.Conv2d(4, num_classes, 1), nn.Flatten()]\n"
        "    return nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 4, 3, 2, 1), *pooled)\n"
    )
    (tmp_path / "resnet18-split").mkdir()  # blocks nothing
    monkeypatch.chdir(tmp_path)
    arguments = ["filters", "my_nets.py:Net", "--replace", "conv3x3=split", "--replace", "conv1x1=pointwise"]
    assert main([*arguments, "--size", "16", "--json"]) == 0
    [layer] = json.loads(capsys.readouterr().out)["layers"]
    assert (layer["layer"], layer["height"]) == ("0.layer", 16)
    assert main(["filters", "resnet18-split", "--size", "32", "--layer", "layer1.0.conv1", "--json"]) == 0


def test_what_a_file_does_not_say_is_said_to_be_a_guess(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    blocks = nn.Sequential(NiffFull(8, 2), nn.BatchNorm2d(2), NiffFull(4, 4))
    torch.save(blocks.state_dict(), tmp_path / "own.pt")
    monkeypatch.chdir(tmp_path)
    assert main(["filters", "own.pt", "--size", "8", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert [layer["kind"] for layer in report["layers"]] == ["full", "full"]
    assert report["guessed"] == ["2"]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of files that are no use."""
    place = tmp_path_factory.mktemp("files")
    torch.save(stored.build("digits-niff", size=16).state_dict(), place / "bare.pt")
    stored.save(place / "liar.pt", "resnet18-split", stored.build("digits-niff", size=16))
    stored.save(place / "twin.pt", "digits-twin", stored.build("digits-twin", size=16))
    (place / "text.pt").write_text("not a checkpoint")
    (place / "full").mkdir()
    (place / "full" / "precious").write_text("kept")
    return place


@pytest.fixture
def files(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with them."""
    monkeypatch.chdir(tmp_path)
    return Path(shutil.copytree(made, tmp_path, dirs_exist_ok=True))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "filters of what? Give a CHECKPOINT or a NETWORK, or --train digits"),
        (["resnet18-ful"], "no network named 'resnet18-ful'; did you mean 'resnet18-full'?"),
        (["resnet18", "--size", "64"], "no layer with a frequency filter; take resnet18-full or resnet18-split"),
        (["resnet18-k7", "--size", "64"], "no layer with a frequency filter"),
        (["vit_b_16-split"], "VisionTransformer has no convolution that this rule replaces"),
        (
            ["resnet18-split", "--size", "16"],
            "an input of 16×16 is smaller than the stride of ResNet: give at least 32",
        ),
        (["resnet18-split", "--size", "64", "--layer", "layer1.0.conv3"], "did you mean 'layer1.0.conv"),
        (["resnet18-split", "--execution", "rft"], "unknown execution 'rft'; did you mean 'rfft'?"),
        (
            ["inception_v3-split", "--size", "96"],
            "Conv2d_2a_3x3.conv has padding (0, 0) for a (3, 3) kernel, which changes the size, and NIFF does not "
            "define that; name it in keep to leave it alone",
        ),
        (["resnet18-split", "--keep", "layer1.0.conv9"], "keep layer1.0.conv9: ResNet has no such layer; did you"),
        (
            ["digits-niff", "--keep", "stem"],
            "digits-niff is made as it is, not converted: there is nothing to keep",
        ),
        (["--train", "digits", "--keep", "stem"], "--keep is for networks that are converted"),
        (["maxvit_t-split", "--size", "256"], "MaxVit cannot take an input of 256×256: "),
        (["resnet18-split", "--error", "0"], "should be a share between 0 and 1"),
        (["resnet18-split", "--out", "full"], "--out full: is not empty"),
        (["resnet18-split", "--network", "resnet18-full"], "'resnet18-split' is no such file"),
        (["resnet18-split", "--epochs", "3"], "--epochs are those of --train"),
        (["resnet18-split", "--train", "digits"], "give no CHECKPOINT, NETWORK or --network with it"),
        (["--train", "digits", "--size", "7"], "--size 7: the digits are 8×8, and enlarged to"),
        (["--train", "digits", "--sizes", "8,x"], "--sizes 8,x: should be sides, as 8,16,32"),
        (["--train", "digits", "--seeds", "2"], "--seeds goes with --sizes"),
        (["absent.pt"], "absent.pt: is not a file"),
        (["text.pt"], "text.pt: is not a checkpoint as torch.save or safetensors write it"),
        (["bare.pt"], "bare.pt: does not say which network it is of; give --network NAME, or --size N"),
        (["bare.pt", "--network", "digits-twin"], "bare.pt: is of another architecture than digits-twin"),
        (["liar.pt"], "liar.pt: is of another architecture than resnet18-split: it lacks 'conv1.weight'"),
        (["twin.pt"], "no layer with a frequency filter; take digits-niff"),
    ],
)
def test_bad_input_is_one_clear_message(
    files: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    before = sorted(files.rglob("*"))
    assert main(["filters", *arguments]) == 2
    out, err = capsys.readouterr()
    assert message in " ".join(err.split())
    assert "Traceback" not in err
    assert out == ""
    assert sorted(files.rglob("*")) == before


def test_a_network_that_overflows_is_not_told_to_be_another(
    files: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = stored.build("digits-niff", size=16)
    torch.nn.init.constant_(model.get_parameter("stem.1.weight"), 1e38)
    stored.save(files / "huge.pt", "digits-niff", model)
    assert main(["filters", "huge.pt"]) == 2
    output = "what stage1.0.filter computes is not finite: with these weights the network overflows"
    assert capsys.readouterr() == ("", f"niffbench: digits-niff: {output}\n")


def test_memory_that_cannot_be_had_is_said(
    files: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before it is asked for, or when it is refused: more than any machine can address."""
    output = "niffbench: there is not enough memory for {:,} bytes at once: give a smaller --size or --batch\n"
    assert main(["filters", "mobilenet_v2-niff", "--size", "8192", "--batch", "4096"]) == 2
    assert capsys.readouterr() == ("", output.format(8 * 4096 * 3 * 8192**2))
    monkeypatch.setattr("niffbench.study.request.natural_noise", lambda *_, **__: torch.empty(2**55))
    assert main(["filters", "mobilenet_v2-niff", "--size", "64"]) == 2
    assert capsys.readouterr() == ("", output.format(4 * 2**55))


@pytest.mark.parametrize(
    ("library", "arguments", "message"),
    [
        (
            "sklearn.datasets",
            ["--train", "digits"],
            "needs scikit-learn, which is not installed: pip install 'nif",
        ),
        (
            "timm",
            ["timm:resnet10t", "--replace", "conv3x3=split"],
            "needs timm, which is not installed: pip install",
        ),
        (
            "safetensors",
            ["bare.safetensors"],
            "needs safetensors, which is not installed: pip install 'niffbench[",
        ),
    ],
)
def test_without_a_library_it_says_which_extra_has_it(
    library: str,
    arguments: list[str],
    message: str,
    files: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (files / "bare.safetensors").write_bytes(b"\x02\0\0\0\0\0\0\0{}")
    for name in [library, *(name for name in sys.modules if name.startswith(f"{library}."))]:
        monkeypatch.setitem(sys.modules, name, None)
    assert main(["filters", *arguments]) == 2
    assert message in " ".join(capsys.readouterr().err.split())
    assert not (files / "reports").exists()


def test_a_folder_of_a_networks_name_is_no_checkpoint(files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (files / "resnet18-split").mkdir()
    assert main(["filters", "resnet18-split", "--size", "16"]) == 2
    assert "an input of 16×16 is smaller than the stride of ResNet" in capsys.readouterr().err


def test_the_message_is_all_there_is(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["filters", "resnet18-ful"]) == 2
    output = "niffbench: no network named 'resnet18-ful'; did you mean 'resnet18-full'?\n"
    assert capsys.readouterr() == ("", output)
