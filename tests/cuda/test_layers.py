"""NIFF's layers on a GPU: every form against the slow float64 account, dtypes, autocast, moves, one life long."""

from __future__ import annotations

import copy

import gpu_cases
import pytest
import torch
from gpu_cases import PLACES, relative
from niff_reference import reference_output
from torch import Tensor

from niffbench.niff import NiffDepthwise, NiffFull, NiffPointwise, NiffSplit
from niffbench.niff.catalogue import FORMS, KINDS
from niffbench.niff.layer import SpectralLayer

exactly = pytest.fixture(autouse=True)(gpu_cases.exactly)

SIZES = ((7, 7), (8, 8), (9, 14))


def _layer(kind: str, form: str) -> SpectralLayer:
    torch.manual_seed(2)
    match kind:
        case "depthwise":
            return NiffDepthwise(5, form=form)
        case "full":
            return NiffFull(5, 3, form=form)
        case "split":
            return NiffSplit(5, 3, form=form)
    return NiffPointwise(5, 3, form=form)


def _at(place: str) -> list[tuple[str, str]]:
    return [(kind, form.name) for kind in KINDS for form in FORMS[kind] if place in form.devices]


WHERE = [
    *(pytest.param("cpu", *pair, id=f"cpu-{'-'.join(pair)}") for pair in _at("cpu")),
    *(pytest.param("cuda", *pair, id=f"cuda-{'-'.join(pair)}", marks=pytest.mark.cuda) for pair in _at("cuda")),
]


def _images(size: tuple[int, int]) -> Tensor:
    return torch.randn(2, 5, *size, generator=torch.Generator().manual_seed(6))


@pytest.mark.parametrize(("place", "kind", "form"), WHERE)
def test_every_form_is_the_layer_in_one_life(place: str, kind: str, form: str) -> None:
    """Sizes one after another, inference before training, then again: nothing kept may be stale."""
    layer = _layer(kind, form).to(place)
    for size in (*SIZES, SIZES[0]):
        x = _images(size)
        truth = reference_output(copy.deepcopy(layer).cpu(), x)
        with torch.inference_mode():
            assert relative(layer(x.to(place)), truth) < 1e-5
        output = layer(x.to(place).requires_grad_())
        assert output.device.type == place
        assert relative(output, truth) < 1e-5
        output.square().mean().backward()
        with torch.no_grad():
            for parameter in layer.parameters():
                assert parameter.grad is not None
                parameter.sub_(1e-3 * parameter.grad)
                parameter.grad = None


@pytest.mark.parametrize(("place", "kind", "form"), WHERE)
def test_dtypes_and_autocast(place: str, kind: str, form: str) -> None:
    layer, x = _layer(kind, form).to(place), _images((9, 14))
    truth = reference_output(copy.deepcopy(layer).cpu(), x)
    if not form.startswith("triton"):
        assert relative(copy.deepcopy(layer).double()(x.double().to(place)), truth) < 1e-12
    for lower, allowed in ((torch.float16, 5e-3), (torch.bfloat16, 4e-2)):
        halves = copy.deepcopy(layer).to(lower)
        exact = reference_output(copy.deepcopy(halves).cpu().double(), x.to(lower).double())
        output = halves(x.to(lower).to(place))
        assert output.dtype == lower
        assert relative(output, exact) < allowed
        with torch.autocast(place, dtype=lower):
            assert relative(layer(x.to(place)), truth) < allowed


@pytest.mark.cuda
@pytest.mark.parametrize(("kind", "form"), _at("cuda"))
def test_a_layer_may_move_and_be_copied(kind: str, form: str) -> None:
    layer, x = _layer(kind, form), _images((8, 8))
    truth = reference_output(layer, x)
    with torch.no_grad():
        for place in ("cpu", "cuda", "cpu", "cuda"):
            if place not in next(one.devices for one in FORMS[kind] if one.name == form):
                continue
            layer.to(place)
            assert relative(layer(x.to(place)), truth) < 1e-5
            assert relative(copy.deepcopy(layer)(x.to(place)), truth) < 1e-5
        other = _layer(kind, form).cuda()
        other.load_state_dict({name: value.cpu() for name, value in layer.state_dict().items()})
        assert relative(other(x.cuda()), truth) < 1e-5


@pytest.mark.cuda
@pytest.mark.parametrize("form", [form.name for form in FORMS["pointwise"] if "cuda" in form.devices])
def test_channels_at_the_end(form: str) -> None:
    layer, x = NiffPointwise(5, 3, form=form, layout="nhwc").cuda(), _images((9, 14))
    truth = torch.einsum("oi,bihw->bhwo", layer.weight.detach().double().cpu(), x.double())
    assert relative(layer(x.permute(0, 2, 3, 1).cuda()), truth) < 1e-5


@pytest.mark.parametrize("place", PLACES)
def test_gradients_are_the_derivative(place: str) -> None:
    layer = _layer("depthwise", "rfft").double().to(place)
    x = torch.randn(1, 5, 4, 5, dtype=torch.float64, device=place, requires_grad=True)
    assert torch.autograd.gradcheck(layer, (x,))


@pytest.mark.cuda
def test_what_irfft2_makes_of_imaginary_parts_does_not_matter() -> None:
    """GPU libraries differ on imaginary parts at zero and Nyquist; the Hermitian half plane has none there."""
    layer = NiffDepthwise(5).double().cuda()
    half = layer.generator.half_plane(8, 8, torch.float64)
    own_mirror = half[:, [0, 0, 4, 4], [0, 4, 0, 4]]
    assert float(own_mirror.imag.abs().max()) < 1e-12
