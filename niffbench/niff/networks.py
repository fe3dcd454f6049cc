"""Whole networks with NIFF layers: anybody's, converted by rule, and the baselines beside them.

What is replaced in which network follows Grabinski, Keuper and Keuper, TMLR 2024, and their code:
stride-1 convolutions become NIFF layers, the stem, pools, strided convolutions and the classifier stay.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import unset_fake_temporarily

from niffbench.errors import did_you_mean
from niffbench.niff.auto import Repeat
from niffbench.niff.autograd import compiling
from niffbench.niff.cache import note_change
from niffbench.niff.catalogue import (
    EXECUTIONS,
    NETWORKS,
    REPLACEABLE,
    Network,
    execution_of,
    form_of,
    one_of,
)
from niffbench.niff.depthwise import NiffDepthwise
from niffbench.niff.full import NiffFull
from niffbench.niff.layer import FilteringLayer, Limits, SpectralLayer
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
        bias: whether the bias of what is replaced stays, beside the NIFF layer, which has none; the published
            networks drop it.
        strict: whether a layer that would be replaced, but does what NIFF does not define, is an error; else it
            stays.
    """

    spatial: str | None = None
    depthwise: bool = True
    pointwise: bool = True
    linear: tuple[str, ...] = ()
    keep: tuple[str, ...] = ()
    mlp: str = "small"
    grid: str = "paper"
    forms: Mapping[str, str] = field(default_factory=lambda: EXECUTIONS["rfft"])
    bias: bool = True
    strict: bool = True

    @classmethod
    def of(cls, replace: Mapping[str, str], execution: str = "rfft") -> Rule:
        """The rule that :data:`REPLACEABLE` writes down; what it does not name stays, and so does what cannot be.

        Raises:
            ValueError: for an unknown layer, replacement or execution.
        """
        for layer, became in replace.items():
            one_of(layer, REPLACEABLE, "layer to replace")
            one_of(became, REPLACEABLE[layer], f"replacement of {layer}")
        chosen = {layer: None if became == "keep" else became for layer, became in replace.items()}
        return cls(
            spatial=chosen.get("conv3x3"),
            depthwise=chosen.get("depthwise") is not None,
            pointwise=chosen.get("conv1x1") is not None,
            forms=execution_of(execution),
            strict=False,
        )

    def __post_init__(self) -> None:
        if self.spatial is not None:
            one_of(self.spatial, ("full", "split"), "replacement of a dense convolution")
        for kind, form in self.forms.items():
            form_of(kind, form)

    def becomes(self, name: str, module: nn.Module, size: tuple[int, int] | None = None) -> Replacement | None:
        """What becomes of ``module``, which meets maps of ``size`` if that is known; None where it is no layer.

        Raises:
            ValueError: of a strict rule, if it would be replaced, but does something NIFF does not define
                (grouping other than depthwise, a channel multiplier, dilation, a padding that changes the size).
        """
        if not isinstance(module, nn.Conv2d | nn.Linear):
            return None
        named = any(fnmatch.fnmatchcase(name, one) for one in self.linear)
        if isinstance(module, nn.Linear) and not named:
            return None
        kind = "pointwise" if isinstance(module, nn.Linear) else self._kind_of_convolution(module)
        why = None
        if any(fnmatch.fnmatchcase(name, pattern) for pattern in self.keep):
            why = "named in keep"
        elif isinstance(module, nn.Conv2d) and module.stride != (1, 1):
            why = f"stride {module.stride[0]}"
        elif isinstance(module, nn.Conv2d) and _only_scales(module):
            why = "no filter: it scales each channel"
        elif kind is None:
            why = "as the rule says"
        elif size == (1, 1):
            why = "on a pooled map of one pixel"
        elif type(module).forward not in (nn.Conv2d.forward, nn.Linear.forward):
            why = f"a {type(module).__name__}, which computes something of its own"
            if self.strict:
                raise ValueError(f"{name} is {why}; name it in keep to leave it alone")
        elif isinstance(module, nn.Conv2d) and (undefined := _undefined(module)):
            if self.strict:
                raise ValueError(
                    f"{name} has {undefined} and NIFF does not define that; name it in keep to leave it alone"
                )
            why = f"{undefined.rstrip(',')}, which NIFF does not define"
        if why is not None:
            return Replacement(name, _in_words(module), None, why)
        assert kind is not None
        same = "the same function" if kind == "pointwise" else "another function: circular, as large as the map"
        bias = "" if module.bias is None else ", bias kept" if self.bias else ", bias dropped"
        return Replacement(name, _in_words(module), kind, same + bias)

    def _kind_of_convolution(self, module: nn.Conv2d) -> str | None:
        if module.kernel_size == (1, 1) and module.groups == 1:
            return "pointwise" if self.pointwise else None
        if module.groups == module.in_channels == module.out_channels and module.groups > 1:
            return "depthwise" if self.depthwise and not _only_scales(module) else None
        return self.spatial

    def layer(self, kind: str, module: nn.Conv2d | nn.Linear) -> nn.Module:
        """The NIFF layer of that kind that takes the place of ``module``, on its device, in its dtype and mode.

        What it takes over, a pointwise layer's weight and a bias, is trained where it was; new filters are.
        """
        layer = self._layer(kind, module).train(module.training)
        if not self.bias or module.bias is None:
            return layer
        both = Surrounded(layer, module.bias).train(module.training)
        assert both.bias is not None
        both.bias.requires_grad_(module.bias.requires_grad)
        return both

    def _layer(self, kind: str, module: nn.Conv2d | nn.Linear) -> SpectralLayer:
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
        layer.weight.requires_grad_(module.weight.requires_grad)
        return layer


@dataclass(frozen=True)
class Replacement:
    """What became of a layer: the ``kind`` of NIFF layer, None if it stays, and ``why``, or what that changes."""

    name: str
    layer: str
    kind: str | None
    why: str


class Surrounded(nn.Module):
    """A NIFF layer and what is around it: the bias of the convolution in whose place it is, added to every pixel.

    Attributes:
        limits: of a depthwise layer, what activations before and after it bring numbers within.
        in_place: such a layer may leave its result where its input is, if no gradient is wanted.
    """

    def __init__(
        self, layer: SpectralLayer, bias: Tensor | None, limits: Limits | None = None, *, in_place: bool = False
    ) -> None:
        super().__init__()
        self.layer = layer
        self.bias = None if bias is None else nn.Parameter(bias.detach().clone())
        self.limits = limits
        self.in_place = in_place
        self._last: Repeat | None = None

    def reset_parameters(self) -> None:
        """No bias to begin with; the layer's weights are its own to draw."""
        if self.bias is not None:
            nn.init.zeros_(self.bias)

    def forward(self, x: Tensor, memory: Tensor | None = None) -> Tensor:
        """The layer and what is around it; ``memory`` is that of the whole network: see :meth:`repeats`."""
        last = self._last
        if (
            memory is not None
            and last is not None
            and (x.shape, x.stride(), x.dtype) == last.images
            and x.is_cpu
            and memory.numel() >= last.call.forward_bytes
        ):
            return last.call.convolve(x, last.made_of, in_place=self.in_place, memory=memory)
        layer = self.layer
        if type(layer) is NiffDepthwise:  # What one derived from it computes only that knows.
            result = layer.surrounded(x, self.bias, self.limits, in_place=self.in_place)
            # That may be a call without what is around it, by the layer itself: of one image, or for gradients.
            if not compiling() and (last := layer.last) is not self._last:
                last = last if self._is_done_again(last) else None
                if last is not self._last:
                    self._last = last
                    note_change()
            return result
        out: Tensor = layer(x)
        if self.bias is None:
            return out
        bias = self.bias if self.layer.channel_dimension == 3 else self.bias[:, None, None]
        return out + bias.to(out.dtype)

    def repeats(self) -> int | None:
        """Bytes of memory in which the C kernel does the last call again, if nothing has changed since; else None.

        Who has asked, and knows that nobody watches, may call with memory of that size, and no more is asked then.
        """
        last = self._last
        if last is not None and self._is_done_again(last):
            return last.call.forward_bytes
        self._last = None
        return None

    def _is_done_again(self, last: Repeat | None) -> bool:
        layer = self.layer
        return (
            type(layer) is NiffDepthwise
            and last is not None
            and last is layer.last
            and layer.repeats(last, self.bias, self.limits)
        )

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "_last": None}  # It holds addresses.


def replacements(model: nn.Module, rule: Rule, sizes: FeatureMaps | None = None) -> list[Replacement]:
    """What ``rule`` makes of each convolution of ``model``, and of the linear layers it names, in order.

    ``sizes`` are the model's feature maps: where they are known, convolutions on one pixel stay.

    Raises:
        ValueError: if nothing is replaced, a pattern of ``rule.keep`` fits no layer, or as :meth:`Rule.becomes`.
    """
    _check_patterns(model, rule)
    every = [rule.becomes(name, module, (sizes or {}).get(name)) for name, module in model.named_modules()]
    replacements = [one for one in every if one is not None]
    if not any(one.kind for one in replacements):
        raise ValueError(f"{type(model).__name__} has no convolution that this rule replaces")
    return replacements


def replaced_by(model: nn.Module, rule: Rule, sizes: FeatureMaps | None = None) -> dict[str, str]:
    """The layers of ``model`` that ``rule`` replaces: name to kind, in order; else as :func:`replacements`."""
    return {one.name: one.kind for one in replacements(model, rule, sizes) if one.kind is not None}


def convert(model: nn.Module, rule: Rule, sizes: FeatureMaps | None = None) -> nn.Module:
    """Replace layers of ``model`` in place by NIFF layers, and return it (or its replacement, if it is one layer).

    Arguments and errors are those of :func:`replacements`; after an error the model is as it was.
    """
    instead: dict[nn.Module, nn.Module] = {}
    for name, kind in replaced_by(model, rule, sizes).items():
        module = model.get_submodule(name)
        assert isinstance(module, nn.Conv2d | nn.Linear)
        instead[module] = rule.layer(kind, module)
    return _with(model, instead)


def original(source: str, classes: int = 1000) -> nn.Module:
    """``torchvision:NAME`` or ``timm:NAME`` with fresh weights.

    Raises:
        ValueError: for an unknown library or name, or where timm is not installed.
    """
    library, _, name = source.partition(":")
    if one_of(library, ("torchvision", "timm"), "library of networks") == "torchvision":
        import torchvision.models

        one_of(name, torchvision.models.list_models(module=torchvision.models), "network of torchvision")
        model: nn.Module = torchvision.models.get_model(name, weights=None, num_classes=classes)
        return model
    try:
        import timm
    except ImportError as error:
        raise ValueError(f"{source} needs timm, which is not installed: pip install 'niffbench[timm]'") from error
    if not timm.is_model(name):
        one_of(name, timm.list_models(), "network of timm")
    made: nn.Module = timm.create_model(name, pretrained=False, num_classes=classes)
    return made


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
        one_of(kernel, ("map",), "kernel size")
    elif kernel < 1 or kernel % 2 == 0:
        raise ValueError(f"a kernel size must be odd and positive, got {kernel}")
    replaced = replaced_by(model, rule)
    sizes = feature_maps(model, *_sides(input_size)) if isinstance(kernel, str) else {}
    instead: dict[nn.Module, nn.Module] = {}
    for name in replaced:
        old = model.get_submodule(name)
        if not isinstance(old, nn.Conv2d) or old.kernel_size == (1, 1):
            continue
        sides = tuple(side // 2 * 2 + 1 for side in sizes[name]) if isinstance(kernel, str) else (kernel, kernel)
        instead[old] = nn.Conv2d(
            old.in_channels,
            old.out_channels,
            (sides[0], sides[1]),
            padding=(sides[0] // 2, sides[1] // 2),
            groups=old.groups,
            bias=old.bias is not None,
            device=old.weight.device,
            dtype=old.weight.dtype,
        ).train(old.training)
    return _with(model, instead)


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
    entry = NETWORKS[one_of(name, NETWORKS, "network")]
    forms = execution_of(execution)
    import torchvision.models

    sizes = _maps_of(entry.base, *_sides(input_size))
    with torch.device(device or torch.get_default_device()):
        model: nn.Module = torchvision.models.get_model(entry.base, weights=None, num_classes=num_classes)
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
        return Rule(linear=("features.*.block.[35]",), mlp="big", grid=grid, forms=forms, bias=False)
    if entry.base.startswith("mobilenet"):
        return Rule(grid=grid, forms=forms, bias=False)
    spatial = "full" if entry.variant == "full" else "split"
    return Rule(spatial=spatial, grid=grid, forms=forms, bias=False)


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
    if min(height, width) < _LARGEST_STRIDE:
        try:
            stride = stride_of(model)
        except ValueError:  # It takes neither size: whether it takes this one is seen below.
            stride = 1
        if min(height, width) < stride:
            name, least = type(model).__name__, f"{stride}×{stride}"
            raise ValueError(
                f"an input of {height}×{width} is smaller than the stride of {name}: give at least {least}"
            )
    return _traced(model, height, width)


@lru_cache(maxsize=64)
def _maps_of(base: str, height: int, width: int) -> FeatureMaps:
    """:func:`feature_maps` of a network of torchvision's, which takes two forward passes."""
    import torchvision.models

    with unset_fake_temporarily(), torch.device("meta"):
        return feature_maps(torchvision.models.get_model(base, weights=None), height, width)


_LARGEST_STRIDE = 128
"""That :func:`stride_of` can find: of 256, a map of two pixels is left."""


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
    """The sizes that :func:`feature_maps` tells; ValueError if the network cannot take such an input.

    What meta tensors cannot follow, as tensors that are no buffers or branches on values, is called as it is.
    """
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
    try:
        model.eval()
        shape = 1, image_channels(model), height, width
        try:
            with (
                unset_fake_temporarily(),
                torch.no_grad(),
            ):  # plain meta tensors are ten times faster than fake ones
                weights = {
                    name: torch.empty(value.shape, dtype=value.dtype, device="meta")
                    for name, value in state.items()
                }
                torch.func.functional_call(model, weights, (torch.empty(shape, device="meta"),))
        except Exception:  # what is wrong with the network itself comes up again
            sizes.clear()
            like = next(model.parameters(), torch.empty(0))
            with torch.no_grad():
                model(torch.zeros(shape, dtype=like.dtype, device=like.device))
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


def _only_scales(module: nn.Conv2d) -> bool:
    """Whether it is depthwise and of one pixel."""
    return module.kernel_size == (1, 1) and module.groups == module.in_channels == module.out_channels > 1


def _undefined(module: nn.Conv2d) -> str | None:
    """What a convolution does that NIFF does not define, if anything."""
    keeps_size = module.padding == "same" or all(
        isinstance(pad, int) and 2 * pad == dilation * (side - 1)
        for pad, side, dilation in zip(module.padding, module.kernel_size, module.dilation, strict=True)
    )
    if module.dilation != (1, 1):
        return f"dilation {module.dilation[0]}"
    if module.groups not in (1, module.in_channels):
        return f"{module.groups} groups of {module.in_channels} channels"
    if module.groups > 1 and module.out_channels != module.in_channels:
        return f"{module.out_channels // module.groups} outputs for each channel"
    if not keeps_size:
        return f"padding {module.padding} for a {module.kernel_size} kernel, which changes the size,"
    return None


def _in_words(module: nn.Conv2d | nn.Linear) -> str:
    """A layer in short: ``3×3, 64→128, stride 2``."""
    if isinstance(module, nn.Linear):
        return f"linear, {module.in_features}→{module.out_features}"
    parts = [f"{module.kernel_size[0]}×{module.kernel_size[1]}", f"{module.in_channels}→{module.out_channels}"]
    if module.groups == module.in_channels > 1:
        parts[0] = f"depthwise {parts[0]}"
    elif module.groups > 1:
        parts.append(f"{module.groups} groups")
    parts += [f"stride {module.stride[0]}"] if module.stride != (1, 1) else []
    return ", ".join(parts)


def _with(model: nn.Module, instead: Mapping[nn.Module, nn.Module]) -> nn.Module:
    """``model`` with modules replaced by all their names; a model that is itself replaced is the new module."""
    for name, old in list(model.named_modules(remove_duplicate=False)):
        if old not in instead:
            continue
        if not name:
            return instead[old]
        parent, _, last = name.rpartition(".")
        setattr(model.get_submodule(parent), last, instead[old])
    return model
