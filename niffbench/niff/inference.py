"""A network for inference: normalisations folded into the layers before them, channels last in memory."""

from __future__ import annotations

import copy
import inspect
import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch._subclasses.fake_tensor import unset_fake_temporarily
from torch.nn.utils.fusion import fuse_conv_bn_weights

from niffbench.niff.autograd import compiling, hooks_of_all, transformed, unobserved
from niffbench.niff.cache import Watch, changes
from niffbench.niff.catalogue import keeping
from niffbench.niff.depthwise import NiffDepthwise
from niffbench.niff.layer import UNLIMITED, FilteringLayer, SpectralLayer
from niffbench.niff.native import kernel
from niffbench.niff.networks import Surrounded, niff_layers
from niffbench.niff.pointwise import NiffPointwise
from niffbench.niff.split import NiffSplit

_FRESH = (nn.Conv2d, nn.BatchNorm2d, nn.Linear, SpectralLayer, Surrounded)
"""Modules whose output is no view of what they are given: nobody else sees what is done to it in place."""

_HOOKS = ("_forward_pre_hooks", "_forward_hooks", "_backward_pre_hooks", "_backward_hooks")
_ABOUT_HOOKS = (
    "_forward_pre_hooks_with_kwargs",
    "_forward_hooks_with_kwargs",
    "_forward_hooks_always_called",
    "_is_full_backward_hook",
)


@torch.inference_mode(mode=False)  # Of what is made in it no version is counted, so no filter of it is kept.
def folded(model: nn.Module, *, copied: bool = True) -> nn.Module:
    """A copy of ``model``, which is in evaluation mode, that computes the same, up to rounding, with fewer passes.

    What is an ordinary 1×1 convolution becomes one, which takes images of its dtype only: pointwise layers in form
    ``elided`` and the second half of split ones in a form that does without its FFTs. A batch normalisation goes
    into the convolution or NIFF layer before it, where nothing else takes what that puts out, and a ReLU or ReLU6
    into the depthwise NIFF layer before or after it, whose C kernel has every number in a register, and which
    works in place where nothing else takes what it is given. Filters are made once and kept until weights are
    others, however they were written: on a CPU each call looks at all of them first; elsewhere, and in a compiled
    graph, a write through ``.data`` is not seen. On a CPU convolutions keep their channels last in memory, which
    the C kernel takes as they are. Arguments of ``forward`` beside the images have their defaults.

    A class derived from a layer's stays as it is: what it computes only it knows. So does what has hooks (pruned
    weights have, too), with all that is in it; of hooks added later those that keep an output may see it change.

    Args:
        copied: else what is made has the layers of ``model``, which is of no use any more.

    Raises:
        ValueError: for a model in training, or one that cannot be copied, or that ``torch.fx`` cannot trace; under
            torch's ``FakeTensorMode`` for one that was not made under it.
    """
    name = type(model).__name__
    if any(module.training for module in model.modules()):
        raise ValueError("only a model in evaluation mode can be folded: call eval() first")
    try:
        with unset_fake_temporarily() as mode:  # within it torch copies no buffer, and without it the mode too
            if mode is not None and any(getattr(one, "fake_mode", None) is not mode for one in _tensors(model)):
                raise ValueError(f"{name} was not made under the FakeTensorMode under which it should be folded")
            model = copy.deepcopy(model, {id(mode): mode}) if copied else model
    except RuntimeError as error:  # Of a weight that is pruned, say, with the graph that made it.
        raise ValueError(f"{name} cannot be copied and so not be folded: {error}") from error
    try:
        graph = _Tracer().trace(model, _defaults(model))
    except Exception as error:  # Its own code meets what is no tensor, and may raise anything.
        raise ValueError(f"{name} cannot be traced and so not be folded: {error}") from error
    made = fx.GraphModule(model, graph)
    if _is_hooked(model):  # Those of the whole stay too, with what they may need.
        made.__dict__.update({hooks: model.__dict__[hooks] for hooks in (*_HOOKS, *_ABOUT_HOOKS)})
        made._parameters.update(model._parameters)
        made._buffers.update(model._buffers)
    for node in _calls(graph):
        given = made.get_submodule(str(node.target))
        layer = _ordinary(given)
        made.set_submodule(str(node.target), layer)
        # Of two ordinary ones two calls, so that each meets what is before and after it.
        if layer is not given and isinstance(layer, nn.Sequential):
            node.target, first = f"{node.target}.0", node.target
            with graph.inserting_after(node):
                second = graph.call_module(f"{first}.1", (node,))
            node.replace_all_uses_with(second)
            second.args = (node,)
    for fold in (_fold_normalisation, _fold_activation, _place):
        for node in _calls(graph):
            fold(made, node)
    made.delete_all_unused_submodules()
    _ask_once(made)
    for _, one in niff_layers(made):
        one.form = keeping(one.kind, one.form)
    made.recompile()
    made.requires_grad_(False).eval()
    for weight in made.parameters():
        if weight.is_cpu and weight.dim() == 4:  # Not made.to(), which cannot swap fake tensors.
            weight.data = weight.data.contiguous(memory_format=torch.channels_last)
    return made


def _tensors(model: nn.Module) -> Iterator[Tensor]:
    yield from model.parameters()
    yield from model.buffers()


def _defaults(model: nn.Module) -> dict[str, object]:
    """What arguments of the model beside the images have that are not given."""
    _, *others = inspect.signature(model.forward).parameters.values()
    return {one.name: one.default for one in others if one.default is not one.empty}


class _Tracer(fx.Tracer):
    """Sees a NIFF layer as one operation, and what has hooks, which would meet no tensors."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        whole = isinstance(m, SpectralLayer | Surrounded) or _is_hooked(m)
        return whole or super().is_leaf_module(m, module_qualified_name)


def _is_hooked(module: nn.Module) -> bool:
    """Whether hooks see, or change, what it is given and puts out, or the layer in it."""
    within = (module, module.layer) if isinstance(module, Surrounded) else (module,)
    return any(one.__dict__[hooks] for one in within for hooks in _HOOKS)


def _calls(graph: fx.Graph) -> list[fx.Node]:
    """The calls of modules, in order."""
    return [node for node in graph.nodes if node.op == "call_module"]


def _given(node: fx.Node) -> fx.Node | None:
    """What a call is given first, if that is what another call of a module puts out."""
    given = (*node.args, *node.kwargs.values())
    return given[0] if given and isinstance(given[0], fx.Node) and given[0].op == "call_module" else None


def _only_call(graph: fx.Graph, node: fx.Node | None) -> bool:
    """Whether it is a call of a module that is not called elsewhere, so that the module may change."""
    return node is not None and [call.target for call in _calls(graph)].count(node.target) == 1


def _leave_out(node: fx.Node, before: fx.Node) -> None:
    node.replace_all_uses_with(before)
    node.graph.erase_node(node)


def _fold_normalisation(made: fx.GraphModule, node: fx.Node) -> None:
    """Into the layer before it, if ``node`` is one, and nothing else takes what that layer puts out."""
    normalisation, before = made.get_submodule(str(node.target)), _given(node)
    if type(normalisation) is not nn.BatchNorm2d or normalisation.running_var is None or before is None:
        return
    if len(before.users) > 1 or not _only_call(node.graph, before) or _is_hooked(normalisation):
        return
    both = _with_normalisation(made.get_submodule(str(before.target)), normalisation)
    if both is not None:
        made.set_submodule(str(before.target), both)
        _leave_out(node, before)


def _fold_activation(made: fx.GraphModule, node: fx.Node) -> None:
    """Into the depthwise layer before or after it, if ``node`` is one, and no other sees what it changes."""
    activation, before = made.get_submodule(str(node.target)), _given(node)
    if type(activation) not in (nn.ReLU, nn.ReLU6) or before is None or not _is_its_own(made, before):
        return
    if _is_hooked(activation):
        return
    within = (0.0, 6.0 if type(activation) is nn.ReLU6 else math.inf)
    after = next(iter(node.users)) if len(node.users) == 1 else None
    for layer, leaves in ((before, True), (after, False)):
        if layer is None or layer.op != "call_module" or not _only_call(node.graph, layer):
            continue
        both = _with_limits(made.get_submodule(str(layer.target)), within, leaves=leaves)
        if both is not None:
            made.set_submodule(str(layer.target), both)
            _leave_out(node, before)
            return


def _place(made: fx.GraphModule, node: fx.Node) -> None:
    """Let a depthwise layer work in place, if ``node`` is one and no other, nor a hook, has what it is given."""
    layer, before = made.get_submodule(str(node.target)), _given(node)
    if type(layer) is NiffDepthwise:
        layer = Surrounded(layer, None)
        made.set_submodule(str(node.target), layer)
    if isinstance(layer, Surrounded) and _only_call(node.graph, node):
        layer.in_place = before is not None and _is_its_own(made, before) and not _is_hooked(layer)


class _Memory(nn.Module):
    """Scratch memory for the depthwise layers of a network, once for all of them; None where each must ask itself.

    What a layer asks before it calls C is asked once for all of them, and what it keeps of its weights is dropped
    where they are others: between convolutions, which leave nothing in the caches, that takes longer than some
    maps do.
    """

    def __init__(self, layers: list[Surrounded | FilteringLayer]) -> None:
        super().__init__()
        self._layers = layers
        self._watch = Watch()
        self._asked: tuple[int, int] | None = None
        self._bytes = 0

    def forward(self, x: Tensor) -> Tensor | None:
        if compiling() or transformed() or (isinstance(x, Tensor) and not x.is_cpu):
            return None
        hooked = self._look()
        if torch.is_grad_enabled() or hooked or not unobserved(x):
            return None
        now = changes(), torch.get_num_threads()
        if now != self._asked:
            sizes = [layer.repeats() for layer in self._layers if isinstance(layer, Surrounded)]
            self._bytes = max(size or 0 for size in sizes) if sizes else 0
            self._asked = now
        return kernel.workspace(self._bytes)

    def _look(self) -> bool:
        """Drop filters of other weights; whether a layer inside another has hooks, which C would pass over."""
        around: list[object] = []
        weights: list[Tensor] = []
        generators, hooked = [], hooks_of_all()
        for layer in self._layers:
            inner: Any = layer
            if isinstance(layer, Surrounded):  # Attributes of a module's own take a µs each to find.
                inner, bias = layer._modules["layer"], layer._parameters.get("bias")
                around += (inner, layer.limits)
                if bias is not None:
                    weights.append(bias)
                hooked = hooked or bool(inner._forward_hooks or inner._forward_pre_hooks)
            generator = inner._modules["generator"]
            generators.append(generator)
            weights += generator.sources()

        def forget() -> None:
            for generator in generators:
                generator.forget()

        self._watch.look((*around, *generators), weights, forget)
        return hooked


def _ask_once(made: fx.GraphModule) -> None:
    """Give all depthwise layers the memory of one :class:`_Memory`, which looks at all weights of filters.

    Those of layers inside what stays as it is, too.
    """
    every = [one for one in made.modules() if isinstance(one, Surrounded | FilteringLayer)]
    inside = [one.layer for one in every if isinstance(one, Surrounded)]
    layers = [
        one
        for one in every
        if not any(one is other for other in inside)
        and isinstance(one.layer if isinstance(one, Surrounded) else one, FilteringLayer)
    ]
    if not layers:
        return
    images = next(node for node in made.graph.nodes if node.op == "placeholder")
    name = "scratch_memory"
    calls = [(node, made.get_submodule(str(node.target))) for node in _calls(made.graph)]
    made.add_module(name, _Memory(layers))
    with made.graph.inserting_after(images):
        memory = made.graph.call_module(name, (images,))
    for node, layer in calls:
        if isinstance(layer, Surrounded) and type(layer.layer) is NiffDepthwise:
            node.update_kwarg("memory", memory)


def _is_its_own(made: fx.GraphModule, node: fx.Node) -> bool:
    """Whether what a call puts out is no view of what others have, hooks neither, and but one other takes it."""
    module = made.get_submodule(str(node.target))
    return isinstance(module, _FRESH) and not _is_hooked(module) and len(node.users) == 1


def _ordinary(layer: nn.Module) -> nn.Module:
    """The layer, or ordinary ones that do the same."""
    bias = None
    inner = layer
    if isinstance(layer, Surrounded):
        inner, bias = layer.layer, layer.bias
    if _is_hooked(layer):
        return layer
    if type(inner) is NiffPointwise and inner.form == "elided":
        return _linear(inner.weight, bias) if inner.layout == "nhwc" else _convolution(inner.weight, bias)
    if type(inner) is NiffSplit and inner.elides:
        return nn.Sequential(inner.filtering(), _convolution(inner.weight, bias))
    return layer


def _linear(weight: Tensor, bias: Tensor | None) -> nn.Linear:
    made = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None, device="meta")
    made.weight = nn.Parameter(weight.detach(), requires_grad=weight.requires_grad)
    if bias is not None:
        made.bias = nn.Parameter(bias.detach(), requires_grad=bias.requires_grad)
    return made.eval()


def _convolution(weight: Tensor, bias: Tensor | None) -> nn.Conv2d:
    made = nn.Conv2d(weight.shape[1], weight.shape[0], 1, bias=bias is not None, device="meta")
    linear = _linear(weight, bias)
    made.weight, made.bias = nn.Parameter(linear.weight.detach()[:, :, None, None]), linear.bias
    return made.eval()


@torch.no_grad()
def _with_normalisation(layer: nn.Module, normalisation: nn.BatchNorm2d) -> nn.Module | None:
    """Both in one layer; None where the layer is none that a factor for each channel of its output can go into."""
    inner, bias, limits = layer, None, None
    if isinstance(layer, Surrounded):
        inner, bias, limits = layer.layer, layer.bias, layer.limits
    if _is_hooked(layer):
        return None
    if type(layer) is nn.Conv2d:
        return _convolution_with(layer, normalisation)
    if type(inner) is not NiffDepthwise or inner.generator.derives or (limits and limits[2:] != UNLIMITED):
        return None
    mean, variance = normalisation.running_mean, normalisation.running_var
    assert mean is not None
    assert variance is not None
    factor = torch.rsqrt(variance + normalisation.eps)
    if normalisation.weight is not None:
        factor = factor * normalisation.weight
    shift = -mean * factor if normalisation.bias is None else normalisation.bias - mean * factor
    *weights, weight, offset = inner.generator.weights()
    own = inner.with_form(inner.form)  # Others may have the same weights.
    scaled = (nn.Parameter(weight * factor[:, None]), nn.Parameter(offset * factor))
    own.generator = inner.generator.with_weights((*weights, *scaled))
    return Surrounded(own, shift if bias is None else shift + bias * factor, limits)


def _with_limits(layer: nn.Module, within: tuple[float, float], *, leaves: bool) -> Surrounded | None:
    """A depthwise layer and limits on what leaves, or enters; None for others, and where it has such already."""
    inner, bias, limits = layer, None, None
    if isinstance(layer, Surrounded):
        inner, bias, limits = layer.layer, layer.bias, layer.limits
    entering, leaving = (limits[:2], limits[2:]) if limits else (UNLIMITED, UNLIMITED)
    if type(inner) is not NiffDepthwise or (leaving if leaves else entering) != UNLIMITED or _is_hooked(layer):
        return None
    return Surrounded(inner, bias, (*entering, *within) if leaves else (*within, *leaving))


def _convolution_with(convolution: nn.Conv2d, normalisation: nn.BatchNorm2d) -> nn.Conv2d:
    """Both in one convolution, of weights of its own."""
    made = copy.copy(convolution)
    made.__dict__["_parameters"] = convolution._parameters.copy()
    mean, variance = normalisation.running_mean, normalisation.running_var
    assert mean is not None
    assert variance is not None
    made.weight, made.bias = fuse_conv_bn_weights(
        *(convolution.weight, convolution.bias, mean, variance, normalisation.eps),
        *(normalisation.weight, normalisation.bias),
    )
    return made
