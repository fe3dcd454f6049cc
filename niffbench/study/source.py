"""A network as a small Python module and a state dict, which need torch alone (and NIFF where it is left).

The module is written from what the network was seen to do (``torch.fx``): its parts by the arguments of their
constructors, under the names that they have, and its forward pass.
"""

from __future__ import annotations

import inspect
import re
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, fx, nn

from niffbench.niff.layer import FilteringLayer, SpectralLayer
from niffbench.niff.networks import Surrounded

_CLASS = "Network"
_HEAD = '''"""{title}

Rebuild it with ``load("{weights}")``; {needs}.
"""

from __future__ import annotations

from pathlib import Path

{imports}


def _put(module: nn.Module, name: str, part: nn.Module | nn.Parameter | torch.Tensor) -> None:
    """Set ``part`` in the place that a dotted name says."""
    *parents, last = name.split(".")
    for parent in parents:
        if parent not in module._modules:
            module.add_module(parent, nn.Module())
        module = module._modules[parent]
    if isinstance(part, nn.Module):
        module.add_module(last, part)
    elif isinstance(part, nn.Parameter):
        module.register_parameter(last, part)
    else:
        module.register_buffer(last, part)


class {name}(nn.Module):
    """``{shape}`` to ``{output}``."""

    def __init__(self) -> None:
        super().__init__()
{parts}

{forward}


def load(weights: str | Path | None = None) -> {name}:
    """The network with its weights, in evaluation mode."""
    network = {name}()
    place = Path(__file__).with_name("{weights}") if weights is None else weights
    network.load_state_dict(torch.load(place, weights_only=True, map_location="cpu"))
    return network.eval(){layout}
'''


class Unwritable(ValueError):
    """The network does what cannot be written down as a module; says what."""


class _Tracer(fx.Tracer):
    """Looks into everything but torch's own modules and NIFF's layers."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return isinstance(m, SpectralLayer | Surrounded) or super().is_leaf_module(m, module_qualified_name)


def written(
    model: nn.Module, x: Tensor, title: str, weights: str, *, exact: bool = True, channels_last: bool = False
) -> tuple[str, dict[str, Tensor]]:
    """The module's source, and the state dict that it loads from the file ``weights`` beside it.

    Args:
        x: images that the module must treat as ``model`` does; their shape is named.
        exact: whether the outputs may not differ at all.
        channels_last: whether weights are to have their channels last in memory.

    Raises:
        Unwritable: for a network whose course depends on its input, or that has parts no source can make.
    """
    model = model.eval()
    try:
        graph = _Tracer().trace(model)
    except Exception as error:  # whatever the network does with what stands for its input
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
        raise Unwritable(f"its course cannot be traced: {reason}") from error
    places = {str(node.target): node.op for node in graph.nodes if node.op in ("call_module", "get_attr")}
    state = model.state_dict()
    parts: list[str] = []
    classes: dict[str, str] = {}
    tensors: dict[str, Tensor] = {}
    for name, kind in places.items():
        if kind == "call_module":
            module = model.get_submodule(name)
            parts.append(f'_put(self, "{name}", {_made(module, name, classes)})')
            tensors |= {key: value for key, value in state.items() if key.startswith(f"{name}.")}
        else:
            parts.append(f'_put(self, "{name}", {_tensor(model, name)})')
            tensors[name] = _attribute(model, name).detach()
    code = graph.python_code("self")
    imports = {"import torch", "from torch import nn"} | {
        f"from {where} import {what}" for what, where in classes.items()
    }
    for alias, value in code.globals.items():
        if f"{alias}" in code.src and (line := _import(alias, value)) is not None:
            imports.add(line)
    niff = any("niffbench" in line for line in imports)
    with torch.no_grad():
        output = tuple(model(x).shape[1:])
    source = _HEAD.format(
        title=title,
        weights=weights,
        needs="it needs niffbench for the NIFF layers that are left" if niff else "it needs torch alone",
        imports="\n".join(sorted(imports)),
        name=_CLASS,
        shape=_shape(x.shape[1:]),
        output=_shape(output),
        parts="\n".join(f"        {line}" for line in parts),
        forward="\n".join(f"    {line}".rstrip() for line in _forward(code.src)),
        layout=".to(memory_format=torch.channels_last)" if channels_last else "",
    )
    _check(source, tensors, model, x, exact=exact, channels_last=channels_last)
    return source, {key: value.detach().clone() for key, value in tensors.items()}


def _forward(source: str) -> list[str]:
    """The lines of the forward pass, without what frees its values, comments, and what is for tracing it again."""
    lines = [re.sub(r"\s+#.*$", "", line) for line in source.strip().splitlines() if line.strip()]
    lines = [line for line in lines if not line.startswith("torch.fx.")]
    return [re.sub(r";\s+(\w+ = )+None.*$", "", line) for line in lines]


def _shape(sides: tuple[int, ...]) -> str:
    return f"(B, {', '.join(map(str, sides))})"


def _made(module: nn.Module, name: str, classes: dict[str, str]) -> str:
    """The call that makes such a module; notes in ``classes`` where one is imported from that is not torch's."""
    kind = type(module)
    if isinstance(module, Surrounded):
        classes[kind.__name__] = kind.__module__
        bias = None if module.bias is None else f"torch.empty({len(module.bias)})"
        limits = ", ".join(f"float('{limit}')" for limit in module.limits or ())
        around = f"{bias}, {f'({limits})' if limits else None}, in_place={module.in_place}"
        return f"{kind.__name__}({_made(module.layer, name, classes)}, {around})"
    if isinstance(module, FilteringLayer):
        classes[kind.__name__] = "niffbench.niff"
        channels = (
            f"{module.in_channels}"
            if module.kind == "depthwise"
            else f"{module.in_channels}, {module.out_channels}"
        )
        own = module.generator
        return f"{kind.__name__}({channels}, mlp={own.mlp!r}, grid={own.grid!r}, form={module.form!r})"
    if not kind.__module__.startswith("torch.nn"):
        classes[kind.__name__] = "niffbench.niff" if isinstance(module, SpectralLayer) else kind.__module__
    prefix = "nn." if kind.__module__.startswith("torch.nn") and hasattr(nn, kind.__name__) else ""
    arguments = []
    for key, parameter in inspect.signature(kind.__init__).parameters.items():
        if key in ("self", "device", "dtype") or parameter.kind in (
            parameter.VAR_KEYWORD,
            parameter.VAR_POSITIONAL,
        ):
            continue
        if not hasattr(module, key):
            if parameter.default is parameter.empty:
                raise Unwritable(f"{name} is a {kind.__name__}, whose '{key}' it does not keep")
            continue
        value = getattr(module, key)
        if isinstance(value, Tensor) or (value is None and key == "bias"):
            value = value is not None
        if not _literal(value):
            raise Unwritable(f"{name} is a {kind.__name__} with a '{key}' that is no plain value")
        if parameter.default is parameter.empty or value != parameter.default:
            arguments.append(f"{key}={value!r}")
    return f"{prefix}{kind.__name__}({', '.join(arguments)})"


def _literal(value: object) -> bool:
    if isinstance(value, tuple | list):
        return all(map(_literal, value))
    return value is None or isinstance(value, int | float | str | bool)


def _attribute(model: nn.Module, name: str) -> Tensor:
    parent, _, last = name.rpartition(".")
    value: Any = getattr(model.get_submodule(parent), last)
    if not isinstance(value, Tensor):
        raise Unwritable(f"{name} is a {type(value).__name__} and no tensor")
    return value


def _tensor(model: nn.Module, name: str) -> str:
    value = _attribute(model, name)
    empty = f"torch.empty({tuple(value.shape)}, dtype={value.dtype})"
    return f"nn.Parameter({empty})" if isinstance(value, nn.Parameter) else empty


def _import(alias: str, value: object) -> str | None:
    """The line that gives the forward pass a name that it uses; None for what is there anyhow."""
    if isinstance(value, ModuleType):
        return None if value is torch else f"import {value.__name__} as {alias}"
    where, what = getattr(value, "__module__", None), getattr(value, "__qualname__", None)
    if where in (None, "builtins") or what is None or alias == "device":
        return None
    return f"from {where} import {what}" + (f" as {alias}" if what != alias else "")


def _check(
    source: str, state: dict[str, Tensor], model: nn.Module, x: Tensor, *, exact: bool, channels_last: bool
) -> None:
    """Raise Unwritable unless the module does to ``x`` what ``model`` does."""
    scope: dict[str, Any] = {"__name__": "shrunk", "__file__": "shrunk.py"}
    try:
        exec(compile(source, "shrunk.py", "exec"), scope)
        network: nn.Module = scope[_CLASS]()
        network.load_state_dict(state)
        network = network.to(memory_format=torch.channels_last) if channels_last else network
        with torch.no_grad():
            network.eval()(x)  # A cached form makes its filter, and may then round differently.
            wanted, own = model(x), network(x)
    except Exception as error:
        raise Unwritable(f"the module written of it does not work: {type(error).__name__}: {error}") from error
    if not (torch.equal(wanted, own) if exact else torch.allclose(wanted, own, rtol=1e-4, atol=1e-5)):
        raise Unwritable("the module written of it computes something else")
