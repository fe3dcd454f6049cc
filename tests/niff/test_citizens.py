"""The layers among torch's others: memory formats, no batch, an empty one, tracing, exporting."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from niff.test_layers import CASES, build
from torch import nn

CHANNELS = 4, 6
EXPORTED = [case for case in CASES if case[1] in ("published", "auto", "auto-cached", "elided")]
"""Forms without engines or with any: what is exported depends on the kind alone."""


def images(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, CHANNELS[0], 6, 5)


@pytest.mark.parametrize(("kind", "form"), CASES)
def test_channels_last_in_is_channels_last_out(kind: str, form: str) -> None:
    layer, x = build(kind, *CHANNELS, form=form), images(2)
    out = layer(x.to(memory_format=torch.channels_last))
    assert out.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(out, layer(x))
    assert not layer(x).is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize(("kind", "form"), CASES)
def test_a_single_image_needs_no_batch(kind: str, form: str) -> None:
    layer, x = build(kind, *CHANNELS, form=form), images(1)
    assert layer(x[0]).shape == layer(x).shape[1:]
    torch.testing.assert_close(layer(x[0]), layer(x)[0])


@pytest.mark.parametrize(("kind", "form"), CASES)
def test_an_empty_batch_gives_one_and_gradients_of_zero(kind: str, form: str) -> None:
    layer, x = build(kind, *CHANNELS, form=form), images(0).requires_grad_()
    out = layer(x)
    assert (out.shape[0], out.shape[2:]) == (0, x.shape[2:])
    out.sum().backward()
    assert x.grad is not None
    assert all(parameter.grad is not None and not parameter.grad.any() for parameter in layer.parameters())


@pytest.mark.parametrize(("kind", "form"), CASES)
def test_it_is_traced(kind: str, form: str) -> None:
    layer, x, other = build(kind, *CHANNELS, form=form), images(2), images(2)
    with torch.no_grad():
        traced = torch.jit.trace(layer, x)
        torch.testing.assert_close(traced(other), layer(other), atol=1e-5, rtol=1e-4)


class Beside(nn.Module):
    """Every exported form beside the others, so that they are exported together."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(build(kind, *CHANNELS, form=form) for kind, form in EXPORTED)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return tuple(layer(x) for layer in self.layers)


@pytest.fixture(scope="module")
def exported() -> tuple[Beside, torch.export.ExportedProgram]:
    """Of any number of images; filters that are kept already are not what is exported."""
    network = Beside().eval()
    with torch.no_grad():
        network(images(2))
        program = torch.export.export(network, (images(3),), dynamic_shapes={"x": {0: torch.export.Dim("batch")}})
    return network, program


def test_what_is_exported_has_its_weights_and_loads_without_this_package(
    exported: tuple[Beside, torch.export.ExportedProgram], tmp_path: Path
) -> None:
    (network, program), x = exported, images(5)
    assert program.state_dict.keys() == network.state_dict().keys()
    torch.export.save(program, tmp_path / "network.pt2")
    with torch.no_grad():
        torch.save((x, network(x)), tmp_path / "truth.pt")
    code = """
import sys, torch
sys.modules["niffbench"] = None
x, expected = torch.load("truth.pt")
outputs = torch.export.load("network.pt2").module()(x)
for one, other in zip(outputs, expected, strict=True):
    torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-4)
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_onnx_computes_the_same(exported: tuple[Beside, torch.export.ExportedProgram], tmp_path: Path) -> None:
    pytest.importorskip("onnxscript")
    runtime = pytest.importorskip("onnxruntime")
    (network, program), x = exported, images(5)
    converted = torch.onnx.export(program, dynamo=True, verbose=False)
    assert converted is not None
    converted.save(tmp_path / "network.onnx")
    session = runtime.InferenceSession(tmp_path / "network.onnx")
    outputs = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    with torch.no_grad():
        for out, expected in zip(outputs, network(x), strict=True):
            atol = 1e-5 * float(expected.abs().max())
            torch.testing.assert_close(torch.from_numpy(out), expected, atol=atol, rtol=1e-4)


@pytest.mark.parametrize("form", ["cached", "fused-cached", "auto-cached"])
def test_a_write_that_no_version_counter_sees_is_seen_when_told(form: str) -> None:
    layer, x = build("depthwise", *CHANNELS, form=form), images(1)
    with torch.no_grad():
        before = layer(x)
        layer.generator.weight1.data.mul_(2)
        layer.generator.forget()
        assert not torch.allclose(layer(x), before)
        torch.testing.assert_close(layer(x), layer.with_form("rfft")(x))
