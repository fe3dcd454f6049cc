"""Whole networks with NIFF layers: torchvision's, converted by rule, and the baselines beside them.

What is replaced in which network follows Grabinski, Keuper and Keuper, TMLR 2024, and their code:
stride-1 convolutions become NIFF layers, the stem, pools, strided convolutions and the classifier stay.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn

from niffbench.errors import did_you_mean
from niffbench.niff.catalogue import EXECUTIONS, NETWORKS, Network, execution_of, form_of, known
from niffbench.niff.depthwise import NiffDepthwise
from niffbench.niff.full import NiffFull
from niffbench.niff.layer import FilteringLayer, SpectralLayer
from niffbench.niff.pointwise import NiffPointwise
from niffbench.niff.split import NiffSplit

FeatureMaps = Mapping[str, tuple[int, int]]
Size = int | tuple[int, int]
"""The side of a square image, or height and width."""


@dataclass(frozen=True)
class Rule:
    """Which layers of a network become which NIFF layer, executed how.

    Attributes:
        spatial: what a dense k×k convolution of stride 1 becomes, ``full`` or ``split``; ``None`` leaves it.
        depthwise: whether depthwise k×k convolutions of stride 1 become depthwise NIFF layers.
        pointwise: whether 1×1 convolutions of stride 1 become pointwise NIFF layers, taking over their weight.
        linear: name patterns of ``nn.Linear`` layers on ``(B, H, W, C)`` that become pointwise ones, likewise.
        keep: name patterns of layers to leave alone, e.g. ``"layer4.*"``.
        mlp: the filter MLP of depthwise and split layers; full layers always have the tiny one.
        grid: ``paper`` or ``centred``.
        forms: the form of each kind of layer; see ``catalogue.EXECUTIONS`` for whole sets.

    NIFF layers have no bias, so the bias of a replaced convolution is dropped, as in the published networks.
    """

    spatial: str | None = None
    depthwise: bool = True
    pointwise: bool = True
    linear: tuple[str, ...] = ()
    keep: tuple[str, ...] = ()
    mlp: str = "small"
    grid: str = "paper"
    forms: Mapping[str, str] = field(default_factory=lambda: EXECUTIONS["rfft"])

    def __post_init__(self) -> None:
        if self.spatial is not None:
            known(self.spatial, ("full", "split"), "replacement of a dense convolution")
        for kind, form in self.forms.items():
            form_of(kind, form)

    def kind_of(self, name: str, module: nn.Module) -> str | None:
        """The kind of NIFF layer that ``module`` becomes, ``None`` if it stays.

        Raises:
            ValueError: if it would be replaced, but does something NIFF does not define (grouping other than
                depthwise, a channel multiplier, dilation, a padding that changes the size).
        """
        if any(fnmatch.fnmatchcase(name, pattern) for pattern in self.keep):
            return None
        if isinstance(module, nn.Linear):
            return "pointwise" if any(fnmatch.fnmatchcase(name, one) for one in self.linear) else None
        if not isinstance(module, nn.Conv2d) or module.stride != (1, 1):
            return None
        kind = self._kind_of_convolution(module)
        if kind is not None:
            _refuse_undefined(name, module)
        return kind

    def _kind_of_convolution(self, module: nn.Conv2d) -> str | None:
        if module.kernel_size == (1, 1) and module.groups == 1:
            return "pointwise" if self.pointwise else None
        if module.groups == module.in_channels == module.out_channels and module.groups > 1:
            return "depthwise" if self.depthwise else None
        return self.spatial

    def layer(self, kind: str, module: nn.Conv2d | nn.Linear) -> SpectralLayer:
        """The NIFF layer of that kind that takes the place of ``module``, on its device and in its dtype."""
        device, dtype, form = module.weight.device, module.weight.dtype, self.forms[kind]
        if kind == "pointwise":
            return self._pointwise(module, form)
        assert isinstance(module, nn.Conv2d)
        channels = (module.in_channels, module.out_channels)
        if kind == "depthwise":
            return NiffDepthwise(
                module.in_channels, mlp=self.mlp, grid=self.grid, form=form, device=device, dtype=dtype
            )
        if kind == "full":
            return NiffFull(*channels, grid=self.grid, form=form, device=device, dtype=dtype)
        return NiffSplit(*channels, mlp=self.mlp, grid=self.grid, form=form, device=device, dtype=dtype)

    @staticmethod
    def _pointwise(module: nn.Conv2d | nn.Linear, form: str) -> NiffPointwise:
        layout = "nhwc" if isinstance(module, nn.Linear) else "nchw"
        out_channels, in_channels = module.weight.shape[:2]
        layer = NiffPointwise(
            in_channels,
            out_channels,
            layout=layout,
            form=form,
            device=module.weight.device,
            dtype=module.weight.dtype,
        )
        with torch.no_grad():
            layer.weight.copy_(module.weight.view(out_channels, in_channels))
        return layer


def replaced_by(model: nn.Module, rule: Rule) -> dict[str, str]:
    """The layers of ``model`` that ``rule`` replaces: name to kind, in the model's order.

    Raises:
        ValueError: if there are none, one does something NIFF does not define, or a pattern of ``rule.keep`` fits
            no convolution or linear layer.
    """
    _check_patterns(model, rule)
    kinds = {name: rule.kind_of(name, module) for name, module in model.named_modules()}
    found = {name: kind for name, kind in kinds.items() if kind is not None}
    if not found:
        raise ValueError(f"{type(model).__name__} has no convolution that this rule replaces")
    return found


def convert(model: nn.Module, rule: Rule) -> nn.Module:
    """Replace layers of ``model`` in place by NIFF layers, and return it (or its replacement, if it is one layer).

    Raises:
        ValueError: as :func:`replaced_by`; the model is then left as it was.
    """
    for name, kind in replaced_by(model, rule).items():
        module = model.get_submodule(name)
        assert isinstance(module, nn.Conv2d | nn.Linear)
        model = _put(model, name, rule.layer(kind, module))
    return model


def with_kernel(model: nn.Module, rule: Rule, kernel: int | str, *, input_size: Size = 224) -> nn.Module:
    """The baseline: every k×k convolution that ``rule`` replaces gets another kernel size, in place.

    It keeps its channels, groups and bias and is zero-padded to the same size. 1×1 convolutions stay as they are.

    Args:
        kernel: an odd size, or ``map`` for the smallest odd size that covers the layer's feature map.
        input_size: of the network's input; needed for ``map``.

    Raises:
        ValueError: for a kernel that is not odd and positive, and as :func:`replaced_by`.
    """
    if isinstance(kernel, str):
        known(kernel, ("map",), "kernel size")
    elif kernel < 1 or kernel % 2 == 0:
        raise ValueError(f"a kernel size must be odd and positive, got {kernel}")
    replaced = replaced_by(model, rule)
    sizes = feature_maps(model, *_sides(input_size)) if isinstance(kernel, str) else {}
    for name in replaced:
        old = model.get_submodule(name)
        if not isinstance(old, nn.Conv2d) or old.kernel_size == (1, 1):
            continue
        sides = tuple(side // 2 * 2 + 1 for side in sizes[name]) if isinstance(kernel, str) else (kernel, kernel)
        new = nn.Conv2d(
            old.in_channels,
            old.out_channels,
            (sides[0], sides[1]),
            padding=(sides[0] // 2, sides[1] // 2),
            groups=old.groups,
            bias=old.bias is not None,
            device=old.weight.device,
            dtype=old.weight.dtype,
        )
        model = _put(model, name, new)
    return model


def build(
    name: str,
    *,
    execution: str = "rfft",
    grid: str = "paper",
    keep: Sequence[str] = (),
    input_size: Size = 224,
    num_classes: int = 1000,
    device: torch.device | str | None = None,
) -> nn.Module:
    """A network of the catalogue with fresh weights.

    They are drawn as torchvision and the published layers draw theirs, but the filters of full layers are scaled
    to keep the size of what flows through them: as drawn, they make it hundreds of times larger, and a deep
    network in evaluation, whose fresh normalisations do nothing, overflows.

    Args:
        name: one of ``catalogue.NETWORKS``, e.g. ``resnet18-full``, ``convnext_tiny-niff``, ``resnet50-k31``.
        execution: which form each kind of layer takes, one of ``catalogue.EXECUTIONS``.
        grid: ``paper`` or ``centred``.
        keep: name patterns of layers to leave alone, which the paper replaces.
        input_size: of the images it is meant for; kernels of ``-kmap`` networks and the scale of the filters of
            full layers depend on it.

    Raises:
        ValueError: for an unknown name, execution, grid or pattern, or an input smaller than the network's stride.
    """
    entry = NETWORKS[known(name, NETWORKS, "network")]
    forms = execution_of(execution)
    import torchvision.models

    with torch.device(device or torch.get_default_device()):
        model: nn.Module = torchvision.models.get_model(entry.base, weights=None, num_classes=num_classes)
    sizes = feature_maps(model, *_sides(input_size))
    if entry.variant == "original":
        return model
    rule = replace(paper_rule(entry, grid=grid, forms=forms), keep=tuple(keep))
    if entry.kernel is not None:
        return with_kernel(model, rule, entry.kernel, input_size=input_size)
    return level(convert(model, rule), sizes)


def level(model: nn.Module, sizes: FeatureMaps) -> nn.Module:
    """``model`` with its full layers' filters scaled, in place, to keep the size of what flows through them.

    ``sizes`` are its feature maps; a layer without one is never reached, and stays as it is.
    """
    for name, layer in niff_layers(model):
        if isinstance(layer, NiffFull) and name in sizes:
            # E|W|² = 2 / Ci: He's gain for what a ReLU halves, at every frequency
            layer.generator.level(*sizes[name], power=2 / layer.in_channels)
    return model


def paper_rule(entry: Network, *, grid: str = "paper", forms: Mapping[str, str] | None = None) -> Rule:
    """The paper's rule for one network of the catalogue; of a baseline, the rule whose layers it changes."""
    forms = EXECUTIONS["rfft"] if forms is None else forms
    if entry.base.startswith("convnext"):
        return Rule(linear=("features.*.block.[35]",), mlp="big", grid=grid, forms=forms)
    if entry.base.startswith("mobilenet"):
        return Rule(grid=grid, forms=forms)
    return Rule(spatial="full" if entry.variant == "full" else "split", grid=grid, forms=forms)


def niff_layers(model: nn.Module) -> Iterator[tuple[str, SpectralLayer]]:
    """Names and NIFF layers of a model, in its order."""
    for name, module in model.named_modules():
        if isinstance(module, SpectralLayer):
            yield name, module


def choosing_layers(model: nn.Module) -> list[FilteringLayer]:
    """The layers of a model, in its order, that leave it to ``auto`` which engine convolves."""
    return [layer for _, layer in niff_layers(model) if isinstance(layer, FilteringLayer) and layer.chooses]


def execute_as(model: nn.Module, execution: str) -> nn.Module:
    """Set the form of every NIFF layer of ``model``, in place: one of ``catalogue.EXECUTIONS``.

    Raises:
        ValueError: for an unknown execution, or a model without NIFF layers.
    """
    forms = execution_of(execution)
    layers = [layer for _, layer in niff_layers(model)]
    if not layers:
        raise ValueError(f"{type(model).__name__} has no NIFF layer")
    for layer in layers:
        layer.form = forms[layer.kind]
    return model


def feature_maps(model: nn.Module, height: int, width: int) -> FeatureMaps:
    """Height and width of what each convolution and NIFF layer is given when the network's input is H×W.

    The network is run on meta tensors: nothing is computed, and its weights are not touched.

    Raises:
        ValueError: for an input smaller than the network's stride, or another that it cannot take.
    """
    try:
        stride = stride_of(model)
    except ValueError:  # It takes neither size: whether it takes this one is seen below.
        stride = 1
    if min(height, width) < stride:
        name = type(model).__name__
        raise ValueError(
            f"an input of {height}×{width} is smaller than the stride of {name}: give at least {stride}×{stride}"
        )
    return _traced(model, height, width)


def stride_of(model: nn.Module) -> int:
    """How many times smaller than its input the network's smallest feature map is (pooling to 1×1 apart).

    Raises:
        ValueError: for a network that takes images of neither 256×256 nor 224×224.
    """
    try:
        reference, sizes = 256, _traced(model, 256, 256)
    except ValueError:  # Some are built for 224×224, the size of ImageNet's crops, and no other.
        reference, sizes = 224, _traced(model, 224, 224)
    sides = [min(size) for size in sizes.values()]
    return reference // min((side for side in sides if side > 1), default=reference)


def check_input(model: nn.Module, height: int, width: int) -> None:
    """Raise ValueError if an H×W input is smaller than the network's stride, or another that it cannot take."""
    feature_maps(model, height, width)


def image_channels(model: nn.Module) -> int:
    """Channels of the images that a network takes: those of its first convolution or NIFF layer.

    Raises:
        ValueError: if it has none.
    """
    for module in model.modules():
        if isinstance(module, nn.Conv2d | SpectralLayer):
            return module.in_channels
    raise ValueError(f"{type(model).__name__} has no convolution")


def _traced(model: nn.Module, height: int, width: int) -> dict[str, tuple[int, int]]:
    """The sizes that :func:`feature_maps` tells; ValueError if the network cannot take such an input."""
    images = torch.empty(1, image_channels(model), height, width, device="meta")
    sizes: dict[str, tuple[int, int]] = {}
    handles = []
    for name, module in model.named_modules():
        if isinstance(module, nn.Conv2d | SpectralLayer):

            def note(module: nn.Module, inputs: tuple[Tensor, ...], name: str = name) -> None:
                shape = inputs[0].shape
                last = isinstance(module, NiffPointwise) and module.layout == "nhwc"
                sizes[name] = (shape[1], shape[2]) if last else (shape[-2], shape[-1])

            handles.append(module.register_forward_pre_hook(note))
    modes = [(module, module.training) for module in model.modules()]
    state = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    weights = {name: torch.empty_like(value, device="meta") for name, value in state.items()}
    try:
        model.eval()
        with torch.no_grad():
            torch.func.functional_call(model, weights, (images,))
    except (RuntimeError, AssertionError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise ValueError(f"{type(model).__name__} cannot take an input of {height}×{width}: {reason}") from error
    finally:
        for handle in handles:
            handle.remove()
        for module, mode in modes:
            module.training = mode
    return sizes


def _sides(size: Size) -> tuple[int, int]:
    return (size, size) if isinstance(size, int) else size


def _check_patterns(model: nn.Module, rule: Rule) -> None:
    names = [name for name, module in model.named_modules() if isinstance(module, nn.Conv2d | nn.Linear)]
    for pattern in rule.keep:
        if not any(fnmatch.fnmatchcase(name, pattern) for name in names):
            raise ValueError(
                f"keep {pattern}: {type(model).__name__} has no such layer{did_you_mean(pattern, names)}"
            )


def _refuse_undefined(name: str, module: nn.Conv2d) -> None:
    keeps_size = module.padding == "same" or all(
        isinstance(pad, int) and 2 * pad == dilation * (side - 1)
        for pad, side, dilation in zip(module.padding, module.kernel_size, module.dilation, strict=True)
    )
    wrong = None
    if module.dilation != (1, 1):
        wrong = f"dilation {module.dilation[0]}"
    elif module.groups not in (1, module.in_channels):
        wrong = f"{module.groups} groups of {module.in_channels} channels"
    elif module.groups > 1 and module.out_channels != module.in_channels:
        wrong = f"{module.out_channels // module.groups} outputs for each channel"
    elif not keeps_size:
        wrong = f"padding {module.padding} for a {module.kernel_size} kernel, which changes the size,"
    if wrong:
        raise ValueError(f"{name} has {wrong} and NIFF does not define that; name it in keep to leave it alone")


def _put(model: nn.Module, name: str, module: nn.Module) -> nn.Module:
    """``model`` with the submodule ``name`` replaced; a model that is itself replaced is the new module."""
    if not name:
        return module
    parent, _, last = name.rpartition(".")
    setattr(model.get_submodule(parent), last, module)
    return model
