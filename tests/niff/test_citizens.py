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


def test_what_is_exported_has_its_weights_and_loads_without_this_package(tmp_path: Path) -> None:
    truths = {}
    for kind, form in EXPORTED:
        layer, x, other = build(kind, *CHANNELS, form=form).eval(), images(2), images(2)
        with torch.no_grad():
            layer(x)  # a filter that is kept already is not what is exported
            exported = torch.export.export(layer, (x,))
            expected = layer(other)
        assert len(exported.state_dict) == len(layer.state_dict())
        torch.testing.assert_close(exported.module()(other), expected, atol=1e-5, rtol=1e-4)
        torch.export.save(exported, tmp_path / f"{kind}-{form}.pt2")
        truths[f"{kind}-{form}.pt2"] = (other, expected)
    torch.save(truths, tmp_path / "truths.pt")
    code = """
import sys, torch
sys.modules["niffbench"] = None
for name, (x, expected) in torch.load("truths.pt").items():
    torch.testing.assert_close(torch.export.load(name).module()(x), expected, atol=1e-5, rtol=1e-4)
print(len(torch.load("truths.pt")))
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout.strip()) == (0, str(len(EXPORTED))), done.stderr


def test_onnx_computes_the_same(tmp_path: Path) -> None:
    """All kinds of layer in one network."""
    pytest.importorskip("onnxscript")
    runtime = pytest.importorskip("onnxruntime")
    forms = {"depthwise": "auto", "full": "published", "split": "cached", "pointwise": "rfft"}
    layers = [build(kind, 4, 4, form=form) for kind, form in forms.items()]
    network, x = nn.Sequential(*layers).eval(), images(2)
    with torch.no_grad():
        exported = torch.onnx.export(network, (x,), dynamo=True, verbose=False)
        assert exported is not None
        exported.save(tmp_path / "network.onnx")
        expected = network(x)
    session = runtime.InferenceSession(tmp_path / "network.onnx")
    (out,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    torch.testing.assert_close(torch.from_numpy(out), expected, atol=1e-5 * float(expected.abs().max()), rtol=1e-4)


@pytest.mark.parametrize("form", ["cached", "fused-cached", "auto-cached"])
def test_a_write_that_no_version_counter_sees_is_seen_when_told(form: str) -> None:
    layer, x = build("depthwise", *CHANNELS, form=form), images(1)
    with torch.no_grad():
        before = layer(x)
        layer.generator.weight1.data.mul_(2)
        layer.generator.forget()
        assert not torch.allclose(layer(x), before)
        torch.testing.assert_close(layer(x), layer.with_form("rfft")(x))
